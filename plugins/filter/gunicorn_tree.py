# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turns gunicorn's settings, as data, into the Python that gunicorn reads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: gunicorn_tree
short_description: Configuration files of gunicorn from records of instances
description:
  - Writes every setting as a Python literal which is exactly the value of the record, whatever characters it holds.
  - Says all that is wrong with the records at once.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: check
options:
  _input:
    description: Records as C(gunicorn_instances) of the role P(wsgi.fleet.gunicorn#role) has them.
    type: list
    elements: dict
    required: true
  check:
    description: Python that reads and proves a configuration with gunicorn, whose arguments it takes.
    type: str
    required: true
"""

EXAMPLES = r"""
tree: "{{ gunicorn_instances | wsgi.fleet.gunicorn_tree(lookup('ansible.builtin.file', 'check.py')) }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), all that is wrong with the records; everything else is empty then.
    - C(files) and C(tests), for M(wsgi.fleet.tree).
  type: dict
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import instances

SETTING = re.compile(r"[a-z][a-z0-9_]*")


def python_literal(value: object) -> str:
    """The Python source of a value made of YAML's types; ASCII only, so that no encoding matters.

    Raises:
        ValueError: the value has no literal.
    """
    if value is None or isinstance(value, bool):
        return str(value) if value is None else str(bool(value))
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, str):
        return ascii(str(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(python_literal(item) for item in value)}]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{python_literal(key)}: {python_literal(item)}" for key, item in value.items())
        return f"{{{items}}}"
    msg = f"is a {type(value).__name__}, which is no value for gunicorn; quote it if it is meant as text"
    raise ValueError(msg)


def problems_of(instance: Mapping[str, Any]) -> list[str]:
    """What is wrong with one record, beyond its types."""
    problems = instances.problems_of(instance, "gunicorn")
    for name, value in (instance.get("settings") or {}).items():
        if not SETTING.fullmatch(name):
            problems.append(f"settings: '{name}' is no name of a setting")
        try:
            python_literal(value)
        except ValueError as error:
            problems.append(f"settings: {name}: {error}")
    return problems


def settings_lines(settings: Mapping[str, Any]) -> list[str]:
    """One assignment a line, in the order of the names."""
    return [f"{name} = {python_literal(value)}" for name, value in sorted(settings.items())]


def check_of(instance: Mapping[str, Any], check: str) -> dict[str, Any]:
    """The test that only gunicorn itself can make: with the application, in its environment, as its user."""
    path = f"{instance['name']}/gunicorn.conf.py"
    test = {
        "name": f"gunicorn --check-config for {instance['name']}",
        "file": path,
        "user": instance["user"],
        "argv": [*instances.python_of(instance), "-c", check, "--config", f"{{root}}/{path}"],
        # A new release is tried when it is switched to; here only what changes here counts.
        "when_changed": [path],
    }
    if instance.get("directory"):
        test["chdir"] = instance["directory"]
    return test


def gunicorn_tree(records: Sequence[Mapping[str, Any]], check: str) -> dict[str, Any]:
    """See DOCUMENTATION."""
    problems = instances.all_problems(records, "gunicorn_instances", problems_of)
    if problems:
        return {"problems": problems, "files": [], "tests": []}
    files = [
        {
            "path": f"{instance['name']}/gunicorn.conf.py",
            "template": "gunicorn.conf.py.j2",
            "vars": {
                "__gunicorn_lines": settings_lines(
                    {**(instance.get("settings") or {}), "wsgi_app": instance["callable"]}
                )
            },
            "group": instance["group"],
            "mode": "0640",
            "secret": bool((instance.get("settings") or {}).get("raw_env")),
        }
        for instance in records
    ]
    return {"problems": [], "files": files, "tests": [check_of(instance, check) for instance in records]}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"gunicorn_tree": gunicorn_tree}
