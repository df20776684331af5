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
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def read(path: Path) -> dict[str, Any]:
    """Who holds a lock; empty when nobody does, or when the file is no lock."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and "id" in holder else {}


def others(
    files: Mapping[str, Path], mine: str, dead: Sequence[str], now: float, *, force: bool
) -> dict[str, dict[str, Any]]:
    """The locks that other, living runs hold."""
    found = {}
    for name, path in files.items():
        holder = read(path)
        if holder and holder["id"] != mine and holder["id"] not in dead and holder.get("until", 0) > now and not force:
            found[name] = holder
    return found


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
    files = {name: directory / f"{name.replace('/', '_')}.json" for name in options["names"]}
    mine = options["holder"]["id"]
    if module.check_mode and not directory.is_dir():
        module.exit_json(changed=False)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    now = time.time()
    with (directory / ".lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # for the moment in which files are read and written
        if options["state"] == "released":
            for path in files.values():
                if read(path).get("id") == mine and not module.check_mode:
                    path.unlink()
            module.exit_json(changed=False)
        held = others(files, mine, options["dead"], now, force=options["break_locks"])
        if held:
            module.fail_json(msg="another run holds the lock", holders=held)
        if not module.check_mode:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
            holder = {**options["holder"], "purpose": options["purpose"], "since": since}
            for path in files.values():
                draft = path.with_suffix(".new")
                draft.write_text(json.dumps({**holder, "until": now + options["seconds"]}) + "\n")
                draft.replace(path)
    module.exit_json(changed=False)  # nothing of the host's is different


if __name__ == "__main__":
    main()
