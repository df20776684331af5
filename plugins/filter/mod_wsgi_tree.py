# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turns records of instances into what our host for mod_wsgi-express reads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: mod_wsgi_tree
short_description: Configuration files of mod_wsgi-express from records of instances
description:
  - Makes one JSON file for each instance, puts the program that reads it beside it, and has that prove both.
  - Says all that is wrong with the records at once.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: host
options:
  _input:
    description: Records as C(mod_wsgi_instances) of the role P(wsgi.fleet.mod_wsgi#role) has them.
    type: list
    elements: dict
    required: true
  host:
    description: The program, as a file on the control node.
    type: str
    required: true
"""

EXAMPLES = r"""
tree: "{{ mod_wsgi_instances | wsgi.fleet.mod_wsgi_tree('express_host.py') }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), all that is wrong with the records; everything else is empty then.
    - C(files) and C(tests), for M(wsgi.fleet.tree).
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import instances

# Keys of a record that are keys of the file too.
_KEYS = ("callable", "directory", "stop_timeout")


def content_of(instance: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON file of an instance says."""
    config = {key: instance[key] for key in _KEYS if instance.get(key) is not None}
    options = {name: value for name, value in (instance.get("options") or {}).items() if value is not None}
    return {**config, "options": options}


MOD_WSGI = instances.Hosted(
    "mod_wsgi-express", "mod_wsgi_instances", "express_host.py", "mod_wsgi.json", content_of, lambda _: []
)


def mod_wsgi_tree(records: Sequence[Mapping[str, Any]], host: str) -> dict[str, Any]:
    """See DOCUMENTATION."""
    return instances.hosted_tree(MOD_WSGI, records, host)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"mod_wsgi_tree": mod_wsgi_tree}
