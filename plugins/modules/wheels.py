#!/usr/bin/python
# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wheels of the releases of a host, for a wheelhouse on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheels
short_description: Fill a wheelhouse with what releases have installed
version_added: 0.1.0
description:
  - Makes a wheel of each package that is installed in the given releases, also of the application itself and of what
    had to be compiled, and brings those that the wheelhouse does not have to the controller.
  - A wheel is made from the installed files. So it holds what was checked when the release was built; nothing is
    fetched again, and other hosts need neither an index nor a compiler.
  - Each list is tried in an empty environment before it counts.
  - The same release on other hosts is then made of exactly these wheels, see O(wsgi.fleet.release#module:wheelhouse).
options:
  apps:
    description: The RV(wsgi.fleet.release#module:apps) that M(wsgi.fleet.release) returned.
    type: dict
    required: true
  wheelhouse:
    description:
      - Directory on the controller. There is a directory for each version of Python and architecture in it, such as
        C(cp311-x86_64), with the wheels and for each release a list C(ID.json) of those that it is made of.
    type: path
    required: true
  root:
    description: Directory of the applications.
    type: path
    default: /srv
  cache_dir:
    description: Directory of C(wsgi-build).
    type: path
    default: /var/cache/wsgi-fleet
  state_dir:
    description: Where the list of what was made is kept.
    type: path
    default: /var/lib/wsgi-fleet
  uv:
    description: The uv program on the host.
    type: path
    default: /opt/wsgi-fleet/uv/bin/uv
  timeout:
    description: Seconds that one step may take.
    type: int
    default: 1800
  known:
    description: Set by the action plugin.
    type: list
    elements: str
    default: []
  have:
    description: Set by the action plugin.
    type: list
    elements: str
    default: []
  archive:
    description: Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Says which lists are missing, and makes none.
    support: full
  diff_mode:
    description: One line for every list.
    support: full
notes:
  - Wheels say nothing of the C library. Hosts of one architecture and Python with an older one than the host where the
    wheels were compiled may not be able to load them; wheels that were published for many systems can be loaded.
  - A wheel is held in memory while it is made.
author:
  - The wsgi.fleet maintainers
"""

EXAMPLES = r"""
- name: Build the releases
  wsgi.fleet.release:
    apps: "{{ apps }}"
  register: releases

- name: Keep their wheels
  wsgi.fleet.wheels:
    apps: "{{ releases.apps }}"
    wheelhouse: /srv/wheelhouse
"""

RETURN = r"""
lists:
  description: The lists that were new.
  returned: always
  type: list
  elements: str
  sample: [cp311-x86_64/3f2a9c0d1e4b]
files:
  description: The wheels that were new.
  returned: always
  type: list
  elements: str
"""

import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.release.build import install_wheels, own, scratch
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, failure_message
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import Host, read_marker
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import (
    Store,
    Wheel,
    pack_release,
    platform_of,
    write_archive,
    write_list,
)


def wanted(host: Host, apps: dict[str, Any], known: list[str]) -> dict[str, tuple[str, Path]]:
    """The releases whose wheels the controller does not have: application and directory by PLATFORM/ID."""
    found: dict[str, tuple[str, Path]] = {}
    for name, app in sorted(apps.items()):
        release = host.root / name / "releases" / str(app["id"])
        marker = read_marker(release)
        if marker:
            place = f"{platform_of(marker['inputs']['python'], platform.machine())}/{release.name}"
            if place not in known:
                found[place] = name, release
        elif not host.check:
            raise ReleaseError("wheels", f"{release} is no complete release", "build it first (role app, main)")
    return found


def pack(host: Host, place: str, name: str, release: Path, target: Path) -> list[Wheel]:
    """Make the wheels of one release, and see that they are enough."""
    wheels = pack_release(release, target)
    for path in target.glob("*.whl"):
        path.chmod(0o644)
    host.store = Store(target)
    scratch(host)
    venv = host.cache / "tmp/trial"
    own(host, venv, 0o700)
    python = str(venv / "venv/bin/python")
    interpreter = read_marker(release)["interpreter"]
    host.command(
        [host.uv, "venv", "--no-project", "--python", interpreter, str(venv / "venv")],
        "venv",
        environment=host.environment(),
        unprivileged=True,
    )
    install_wheels(host, wheels, python)
    listing = host.command(
        [host.uv, "pip", "list", "--python", python, "--format", "json"],
        "wheels",
        environment=host.environment(),
        unprivileged=True,
    )
    host.stop_builder()
    scratch(host)
    installed = [f"{item['name']}=={item['version']}" for item in json.loads(listing)]
    if installed != read_marker(release)["installed"]:
        raise ReleaseError("wheels", f"the wheels of {name} install {installed} in {place}, which is something else")
    return wheels


def fill(host: Host, params: dict[str, Any]) -> dict[str, Any]:
    """Make what is missing."""
    lists: dict[str, str] = {}
    files: dict[str, Path] = {}
    with host.locked():
        missing = wanted(host, params["apps"], params["known"])
        if not missing or host.check:
            return {"lists": dict.fromkeys(missing, ""), "files": []}
        host.prepare_builder()
        host.stop_builder()
        for left in host.state.glob("wheels-*"):  # of a killed run
            shutil.rmtree(left)
        # The builder has to get in: it tries the wheels.
        with tempfile.TemporaryDirectory(dir=host.state, prefix="wheels-") as directory:
            os.chown(directory, 0, host.builder.gid)
            Path(directory).chmod(0o750)
            for place, (name, release) in missing.items():
                target = Path(directory, place.partition("/")[0])
                target.mkdir(exist_ok=True)
                wheels = pack(host, place, name, release, target)
                lists[place] = write_list(name, release.name, wheels)
                files.update({f"{target.name}/{wheel.file}": target / wheel.file for wheel in wheels})
            new = {name: path for name, path in files.items() if name not in params["have"]}
            archive = Path(params["archive"])
            write_archive(new, archive)
            owner = archive.parent.stat()
            os.chown(archive, owner.st_uid, owner.st_gid)  # whose login fetches it
    return {"lists": lists, "files": sorted(new)}


def main() -> None:
    """Wire the parameters to the work."""
    module = AnsibleModule(
        {
            "apps": {"type": "dict", "required": True},
            "wheelhouse": {"type": "path", "required": True},
            "root": {"type": "path", "default": "/srv"},
            "cache_dir": {"type": "path", "default": "/var/cache/wsgi-fleet"},
            "state_dir": {"type": "path", "default": "/var/lib/wsgi-fleet"},
            "uv": {"type": "path", "default": "/opt/wsgi-fleet/uv/bin/uv"},
            "timeout": {"type": "int", "default": 1800},
            "known": {"type": "list", "elements": "str", "default": []},
            "have": {"type": "list", "elements": "str", "default": []},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    if os.geteuid() != 0:
        module.fail_json(msg="Releases are root's business here: run with become.")
    umask = os.umask(0o022)
    try:
        result = fill(Host(module), module.params)
    except ReleaseError as error:
        failure = {"app": "host", "step": error.step, "problem": error.problem, "fix": error.fix}
        module.fail_json(msg=failure_message([failure], 1))
    finally:
        os.umask(umask)
    module.exit_json(changed=bool(result["lists"]), **result)


if __name__ == "__main__":
    main()
