#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The releases that a host has, and what is known of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: releases
short_description: List the releases of applications on a host
description:
  - Says of every complete release what it was built from, whether it is live, and whether it is good or bad.
  - Changes nothing.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  names:
    description: Applications to look at.
    type: list
    elements: str
    required: true
  root:
    description: Directory of the applications.
    type: path
    default: /srv
attributes:
  check_mode:
    description: Looks in check mode too; nothing is changed either way.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: See what there is to go back to
  wsgi.fleet.releases:
    names: [shop]
"""

RETURN = r"""
releases:
  description: The releases of all applications, the youngest of each first.
  returned: always
  type: list
  elements: dict
  sample:
    - app: shop
      release: 3f2a9c0d1e4b
      live: true
      verdict: good
      since: "2026-03-01T12:00:00Z"
      built: "2026-03-01T11:59:00Z"
      source: git v1.4.2 (0123456789ab)
      reason: ""
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import read_marker
from ansible_collections.wsgi.fleet.plugins.module_utils.release.standing import row


def look(home: Path) -> list[dict[str, Any]]:
    """All complete releases of the application that lives in `home`."""
    try:
        live = (home / "current").readlink().name
    except OSError:
        live = ""
    found = []
    for path in (home / "releases").iterdir() if (home / "releases").is_dir() else ():
        marker = read_marker(path)
        if marker:
            found.append(row(home.name, path, marker, live))
    return sorted(found, key=lambda release: release["built"], reverse=True)


def main() -> None:
    """Look."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "root": {"type": "path", "default": "/srv"},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    module.exit_json(changed=False, releases=[row for name in module.params["names"] for row in look(root / name)])


if __name__ == "__main__":
    main()
