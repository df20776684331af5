# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts a site into Apache's words, and says what could not be. The thinking is in module_utils/apache_view."""

from __future__ import annotations

DOCUMENTATION = r"""
name: apache_view
short_description: A site in Apache's words
description:
  - Works out what the options of a site mean for Apache, so that the template only writes it down.
  - The record has to be right already, see P(wsgi.fleet.apache_problems#filter).
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  _input:
    description: A record as C(apache_sites) of the role P(wsgi.fleet.apache#role) has it, with all defaults filled in.
    type: dict
    required: true
"""

EXAMPLES = r"""
site: "{{ __apache_site | wsgi.fleet.apache_view }}"
"""

RETURN = r"""
_value:
  description: The record and, in C(view), what its template needs.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils import apache_view as made


def apache_view(site: Mapping[str, Any]) -> dict[str, Any]:
    """See DOCUMENTATION."""
    return {**site, "view": made.view(site)}


def apache_problems(
    sites: Sequence[Mapping[str, Any]],
    status_port: int,
    self_signed_days: int,
    system: Optional[str],
    systems: Sequence[str],
) -> list[str]:
    """See apache_problems.yml."""
    problems = []
    if system is None or system not in systems:
        named = "an unknown system: gather facts first" if system is None else system
        problems.append(f"this role knows {', '.join(systems)}, not {named}")
    return problems + made.find_problems(sites, status_port, self_signed_days)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"apache_view": apache_view, "apache_problems": apache_problems}
