# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts the options of sites into nginx's words."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nginx_view
short_description: A site in nginx's words
description:
  - Works out what the options of a site mean for nginx, location by location, so that the template only writes it down.
  - The record has to be right already, see P(wsgi.fleet.nginx_problems#filter).
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: caches, modules
options:
  _input:
    description: A record as C(nginx_sites) of the role P(wsgi.fleet.nginx#role) has it, with all defaults filled in.
    type: dict
    required: true
  caches:
    description: Directory for what is cached.
    type: str
    required: true
  modules:
    description: Names of nginx's modules that the host has besides the usual ones.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
site: "{{ __nginx_site | wsgi.fleet.nginx_view('/var/lib/nginx') }}"
"""

RETURN = r"""
_value:
  description: The record and, in C(view), what its template needs.
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import nginx_view as made
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import site_options


def nginx_view(site: Mapping[str, Any], caches: str, modules: Sequence[str] = ()) -> dict[str, Any]:
    """See DOCUMENTATION."""
    read = site_options.read_site(site)
    return {**read, "view": made.view(read, caches, modules)}


def nginx_ports(
    sites: Sequence[Mapping[str, Any]], modules: Sequence[str] = (), http2_by_server: bool = True
) -> list[dict[str, Any]]:
    """See nginx_ports.yml."""
    return made.ports(sites, modules, http2_by_server)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"nginx_view": nginx_view, "nginx_ports": nginx_ports}
