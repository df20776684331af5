# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turns records of instances into what our host for waitress reads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: waitress_tree
short_description: Configuration files of waitress from records of instances
description:
  - Makes one JSON file for each instance, puts the program that reads it beside it, and has that prove both.
  - Says all that is wrong with the records at once.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: host
options:
  _input:
    description: Records as C(waitress_instances) of the role P(wsgi.fleet.waitress#role) has them.
    type: list
    elements: dict
    required: true
  host:
    description: The program, as a file on the control node.
    type: str
    required: true
"""

EXAMPLES = r"""
tree: "{{ waitress_instances | wsgi.fleet.waitress_tree('wsgi_host.py') }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), all that is wrong with the records; everything else is empty then.
    - C(files) and C(tests), for M(wsgi.fleet.tree).
  type: dict
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import instances
from ansible_collections.wsgi.fleet.plugins.module_utils.plan._checks import plain

# Keys of a record that are keys of the file too.
_KEYS = ("callable", "directory", "listen_fd", "stop_timeout", "log_level")
_OWN_SOCKETS = ("host", "port", "listen", "unix_socket", "unix_socket_perms")


def problems_of(instance: Mapping[str, Any]) -> list[str]:
    """What is wrong with one record, beyond its types."""
    problems = instances.problems_of(instance, "waitress")
    if instance.get("listen_fd") is not None:
        problems += [
            f"settings: {name}: is of no use with listen_fd; leave one of them out"
            for name in _OWN_SOCKETS
            if name in (instance.get("settings") or {})
        ]
    return problems


def config_text(instance: Mapping[str, Any]) -> str:
    """The JSON file of an instance; ASCII only, so that no encoding matters."""
    config = {key: instance[key] for key in _KEYS if instance.get(key) is not None}
    config["waitress"] = instance.get("settings") or {}
    return json.dumps(plain(config), indent=2, sort_keys=True) + "\n"


def check_of(instance: Mapping[str, Any]) -> dict[str, Any]:
    """The test that waitress and the application take part in: in its environment, as its user."""
    name = instance["name"]
    test = {
        "name": f"wsgi_host.py --check for {name}",
        "file": f"{name}/waitress.json",
        "user": instance["user"],
        "argv": [
            *instances.python_of(instance),
            f"{{root}}/{name}/wsgi_host.py",
            "--check",
            f"{{root}}/{name}/waitress.json",
        ],
        # A new release is tried when it is switched to; here only what changes here counts.
        "when_changed": [f"{name}/waitress.json", f"{name}/wsgi_host.py"],
    }
    if instance.get("directory"):
        test["chdir"] = instance["directory"]
    return test


def waitress_tree(records: Sequence[Mapping[str, Any]], host: str) -> dict[str, Any]:
    """See DOCUMENTATION."""
    problems = instances.all_problems(records, "waitress_instances", problems_of)
    if problems:
        return {"problems": problems, "files": [], "tests": []}
    files = []
    for instance in records:
        name = instance["name"]
        files += [
            {"path": f"{name}/wsgi_host.py", "src": host},
            {
                "path": f"{name}/waitress.json",
                "content": config_text(instance),
                "group": instance["group"],
                "mode": "0640",
            },
        ]
    return {"problems": [], "files": files, "tests": [check_of(instance) for instance in records]}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"waitress_tree": waitress_tree}
