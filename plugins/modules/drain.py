#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have a balancer send nothing new to a host for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drain
short_description: Take servers out of nginx's upstreams for a while, or bring them back
description:
  - Runs on a balancer that role nginx has set up. Requests that are under way end as they would; new ones go to others.
  - The new configuration is tested; when nginx refuses it, the files stay as they were.
  - Nothing is kept anywhere. A later run of role nginx brings every server back.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  servers:
    description: The servers of a host, as the upstreams have them.
    type: list
    elements: str
    required: true
  state:
    description: V(drained) sends nothing new there, V(served) does again.
    type: str
    choices: [drained, served]
    required: true
  names:
    description: Sites whose upstreams are meant.
    type: list
    elements: str
    required: true
  root:
    description: Directory of nginx's configuration.
    type: path
    default: /etc/nginx
attributes:
  check_mode:
    description: Says whether something would change.
    support: full
  diff_mode:
    description: Nothing is shown.
    support: none
"""

EXAMPLES = r"""
- name: Have the balancer send nothing new to this host
  wsgi.fleet.drain:
    servers: ["192.0.2.11:80"]
    state: drained
    names: [shop]
  delegate_to: lb1
"""

RETURN = r"""
alone:
  description: Upstreams in which the servers stay, since they have no other that is up.
  returned: success
  type: list
  elements: str
  sample: [shop]
"""

import fcntl
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.draining import has_drained, mark, set_servers


def replace(path: Path, text: str) -> None:
    """A new text in place of a file, in one step; owner and mode are root's anyway."""
    draft = path.with_name(f".{path.name}.drain")
    draft.write_text(text)
    draft.chmod(path.stat().st_mode & 0o7777)
    draft.replace(path)


def main() -> None:
    """Change, test, reload."""
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "served"], "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "root": {"type": "path", "default": "/etc/nginx"},
        },
        supports_check_mode=True,
    )
    options = module.params
    down = options["state"] == "drained"
    sites = Path(options["root"]) / "sites-enabled"
    alone: list[str] = []
    with Path("/run/wsgi-fleet-drain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several hosts of a batch come at once
        files = [*sorted(sites.glob("*.conf")), sites / "default"]
        before = {path: path.read_text() for path in files if path.is_file()}
        after = dict(before)
        for path in before:
            if path.stem in options["names"]:
                after[path], without = set_servers(before[path], options["servers"], down=down)
                alone += without
        if after == before:
            module.exit_json(changed=False, alone=alone)
        drained = any(has_drained(text) for text in after.values())
        after[sites / "default"] = mark(before[sites / "default"], drained=drained)
        if module.check_mode:
            module.exit_json(changed=True, alone=alone)
        changed = [path for path in before if after[path] != before[path]]
        for path in changed:
            replace(path, after[path])
        code, output, errors = module.run_command(["nginx", "-t", "-q", "-g", "pid /dev/null;"])
        if code:
            for path in changed:
                replace(path, before[path])
            module.fail_json(msg=f"nginx refuses the configuration, so it was left as it was: {errors or output}")
        module.run_command(["systemctl", "reload", "nginx.service"], check_rc=True)
    if alone:
        module.warn(f"{', '.join(options['servers'])} stays in {', '.join(alone)}: no other server is up there")
    module.exit_json(changed=True, alone=alone)


if __name__ == "__main__":
    main()
