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

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import instances

# Keys of a record that are keys of the file too.
_KEYS = ("callable", "directory", "listen_fd", "stop_timeout", "log_level")
_OWN_SOCKETS = ("host", "port", "listen", "unix_socket", "unix_socket_perms")


def problems_of(instance: Mapping[str, Any]) -> list[str]:
    """What is wrong with one record, beyond its types."""
    if instance.get("listen_fd") is None:
        return []
    return [
        f"settings: {name}: is of no use with listen_fd; leave one of them out"
        for name in _OWN_SOCKETS
        if name in (instance.get("settings") or {})
    ]


def content_of(instance: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON file of an instance says."""
    config = {key: instance[key] for key in _KEYS if instance.get(key) is not None}
    return {**config, "waitress": instance.get("settings") or {}}


WAITRESS = instances.Hosted("waitress", "waitress_instances", "wsgi_host.py", "waitress.json", content_of, problems_of)


def waitress_tree(records: Sequence[Mapping[str, Any]], host: str) -> dict[str, Any]:
    """See DOCUMENTATION."""
    return instances.hosted_tree(WAITRESS, records, host)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"waitress_tree": waitress_tree}
