# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the records of roles gunicorn and waitress have in common: a name, and a way to run what an application has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Instance = Mapping[str, Any]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def problems_of(instance: Instance, server: str) -> list[str]:
    """What is wrong with one record, beyond its types and its settings."""
    problems = []
    if not _NAME.fullmatch(instance["name"]):
        problems.append("name: may hold letters, digits, '_', '.' and '-' only")
    ways = [way for way in ("runner", "venv") if instance.get(way)]
    if len(ways) != 1:
        problems.append(f"runner, venv: exactly one of both must say how to run {server}")
    elif ways == ["venv"] and not instance.get("directory"):
        problems.append("directory: is missing; with venv, name the directory of the application")
    return problems


def all_problems(instances: Sequence[Instance], variable: str, problems: Callable[[Instance], list[str]]) -> list[str]:
    """What is wrong with all records, by the name of the variable that holds them."""
    found = [f"{variable}: {instance['name']}: {problem}" for instance in instances for problem in problems(instance)]
    names = [instance["name"] for instance in instances]
    return found + [
        f"{variable}: '{name}' is there twice; every name must be its own"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]


def python_of(instance: Instance) -> list[str]:
    """The command that runs the application's own Python."""
    runner = instance.get("runner") or []
    return [*runner, "python"] if runner else [f"{instance['venv']}/bin/python"]
