# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fills the defaults of a role's records in."""

from __future__ import annotations

DOCUMENTATION = r"""
name: with_defaults
short_description: Records with their defaults
description:
  - Ansible checks a role's records against their specification, but does not fill in its defaults. This does.
  - As P(ansible.builtin.combine#filter) with O(ignore:recursive) does for one record, but for hundreds of them at once.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: defaults
options:
  _input:
    description: The records.
    type: list
    elements: dict
    required: true
  defaults:
    description: What stands where a record says nothing, in nested mappings too. Lists are not merged.
    type: dict
    required: true
"""

EXAMPLES = r"""
__nginx_sites: "{{ nginx_sites | wsgi.fleet.with_defaults({'http_port': 80, 'tls': {'mode': 'self_signed'}}) }}"
"""

RETURN = r"""
_value:
  description: The records, complete.
  type: list
  elements: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def with_defaults(records: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """See DOCUMENTATION."""
    complete = _merge({}, defaults)  # Ansible looks at each value of its own mappings whenever it is asked for
    return [_merge(complete, record) for record in records]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"with_defaults": with_defaults}
