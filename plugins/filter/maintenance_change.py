# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says what a host's nginx has to be told when sites are closed or opened."""

from __future__ import annotations

DOCUMENTATION = r"""
name: maintenance_change
short_description: Who is in maintenance after a change, and what nginx has to be told
description:
  - Joins what was in maintenance with what is asked for. A site that goes on keeps the time since when it is closed.
  - A site whose end has passed is forgotten.
  - Says all that is wrong at once; then there is nothing else.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: before, now, keep_others
options:
  _input:
    description: Records as C(nginx_maintenance) of the role P(wsgi.fleet.nginx#role) has them.
    type: list
    elements: dict
    required: true
  before:
    description: Text of the host's C(state.json) in base64; empty where there is none.
    type: str
    required: true
  now:
    description: The host's time, as ISO 8601 writes it.
    type: str
    required: true
  keep_others:
    description: Whether sites without a record stay in maintenance.
    type: bool
    required: true
"""

EXAMPLES = r"""
change: "{{ [{'name': 'shop', 'closed': true}] | wsgi.fleet.maintenance_change('', '2026-11-21T12:00:00Z', true) }}"
"""

RETURN = r"""
_value:
  description: What to write down and to tell nginx.
  type: dict
  contains:
    problems:
      description: One line for each problem; empty when all is well.
      type: list
      elements: str
    state:
      description: For each site in maintenance its C(since), C(until), C(retry_after), C(reason) and C(allow).
      type: dict
    batches:
      description:
        - Sites of which nginx is told the same.
        - Each has C(number), C(allow), C(reason), C(until), C(retry_after) (the header), C(sites) and C(over).
        - The last is a regular expression for the seconds of the epoch from which on they are open again, or empty.
      type: list
      elements: dict
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import maintenance


def maintenance_change(
    records: Sequence[Mapping[str, Any]], before: str, now: str, keep_others: bool
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    time = maintenance.read_time(now)
    problems = maintenance.problems(records, time)
    try:
        state = json.loads(base64.b64decode(before) or "{}")
        after = {} if problems else maintenance.change(state, records, keep_others, time)
        batches = maintenance.batches(after)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(
            f"state.json of the maintenance cannot be read ({error!r}); remove it, and say anew what is closed"
        )
        after, batches = {}, []
    return {"problems": problems, "state": after, "batches": batches}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"maintenance_change": maintenance_change}
