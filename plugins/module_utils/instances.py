# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the records of the servers' roles have in common: a name, and a way to run what an application has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.wsgi.fleet.plugins.module_utils.plan._checks import plain

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


class Hosted(NamedTuple):
    """A server in a program of ours, which reads a file of JSON for each instance and proves that with `--check`."""

    server: str
    variable: str
    program: str
    config: str
    content: Callable[[Instance], Mapping[str, Any]]
    problems: Callable[[Instance], list[str]]


def hosted_tree(hosted: Hosted, records: Sequence[Instance], source: str) -> dict[str, Any]:
    """Files and tests of all instances for module tree, or all that is wrong with them; `source` is the program."""
    problems = all_problems(
        records, hosted.variable, lambda one: problems_of(one, hosted.server) + hosted.problems(one)
    )
    if problems:
        return {"problems": problems, "files": [], "tests": []}
    files = []
    for instance in records:
        name = instance["name"]
        # ASCII only, so that no encoding matters
        text = json.dumps(plain(hosted.content(instance)), indent=2, sort_keys=True) + "\n"
        files += [
            {"path": f"{name}/{hosted.program}", "src": source},
            {"path": f"{name}/{hosted.config}", "content": text, "group": instance["group"], "mode": "0640"},
        ]
    return {"problems": [], "files": files, "tests": [_check_of(hosted, instance) for instance in records]}


def _check_of(hosted: Hosted, instance: Instance) -> dict[str, Any]:
    """The test that server and application take part in: in its environment, as its user."""
    program, config = f"{instance['name']}/{hosted.program}", f"{instance['name']}/{hosted.config}"
    test = {
        "name": f"{hosted.program} --check for {instance['name']}",
        "file": config,
        "user": instance["user"],
        "argv": [*python_of(instance), f"{{root}}/{program}", "--check", f"{{root}}/{config}"],
        # A new release is tried when it is switched to; here only what changes here counts.
        "when_changed": [config, program],
    }
    if instance.get("directory"):
        test["chdir"] = instance["directory"]
    return test
