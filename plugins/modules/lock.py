#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One run at a time for each application, over all its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lock
short_description: Keep two runs from deploying the same application at once
description:
  - Writes who deploys what, since when and why, on every host that it is called for. Another run is refused with that.
  - A lock does not outlive its purpose. One whose run is known to be dead (it ran on the same control node, and its
    process is gone) is taken over at once, any other one O(seconds) after it was taken or renewed.
  - The same run may take its locks again, which renews them.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  names:
    description: What to lock. All of it or nothing.
    type: list
    elements: str
    required: true
  state:
    description: V(held) takes the locks for this run, V(released) gives those back that this run holds.
    type: str
    choices: [held, released]
    default: held
  purpose:
    description: What the run is about to do, for others to read.
    type: str
    default: ""
  seconds:
    description: For how long at most. More than any such run takes.
    type: int
    default: 7200
  break_locks:
    description: Take the locks whoever holds them.
    type: bool
    default: false
  directory:
    description: Where the locks are kept, one file for each.
    type: path
    default: /var/lib/wsgi-fleet/locks
  holder:
    description: Set by the action plugin - who this run is.
    type: dict
  dead:
    description: Set by the action plugin - ids of runs that are known to be dead.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Fails where a lock is held by another run; takes and gives back nothing.
    support: full
  diff_mode:
    description: Locks are no configuration.
    support: none
"""

EXAMPLES = r"""
- name: Let nobody else deploy the shop
  wsgi.fleet.lock:
    names: [shop]
    purpose: deploy v1.4.2
"""

RETURN = r"""
holders:
  description: Who holds the locks that were asked for and are not had, by name.
  returned: when another run holds one
  type: dict
  sample: {shop: {id: 4f3c-812, who: alice, where: control1, since: "2026-03-01T12:00:00Z", purpose: deploy v1.4.2}}
"""

import fcntl
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils import locks


def main() -> None:
    """Take or give back."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "purpose": {"type": "str", "default": ""},
            "seconds": {"type": "int", "default": 7200},
            "break_locks": {"type": "bool", "default": False},
            "directory": {"type": "path", "default": "/var/lib/wsgi-fleet/locks"},
            "holder": {"type": "dict"},
            "dead": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params
    directory = Path(options["directory"])
    files = locks.files(directory, options["names"])
    mine = options["holder"]["id"]
    if module.check_mode and not directory.is_dir():
        module.exit_json(changed=False)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    now = time.time()
    with (directory / ".lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # for the moment in which files are read and written
        if options["state"] == "released":
            if not module.check_mode:
                locks.give_back(files, mine)
            module.exit_json(changed=False)
        held = locks.others(files, mine, options["dead"], now, force=options["break_locks"])
        if held:
            module.fail_json(msg="another run holds the lock", holders=held)
        if not module.check_mode:
            locks.take(files, {**options["holder"], "purpose": options["purpose"]}, now, options["seconds"])
    module.exit_json(changed=False)  # nothing of the host's is different


if __name__ == "__main__":
    main()
