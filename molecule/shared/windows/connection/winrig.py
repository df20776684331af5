"""A connection plugin for hosts that are Wine prefixes in containers.

To the controller such a host speaks PowerShell with pipelining, as over psrp: action plugins, the lookup of modules
(.ps1), passing of arguments, check mode and diffs are the real ones. What arrives here is the manifest that Ansible
sends to PowerShell. The arguments are checked against the specification in the *real* module's source in that manifest
(or, for an old module without one, against its documentation); then a stand-in for the module runs in Windows' Python
under Wine. A module, an option or PowerShell that is not known fails the task: nothing is skipped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.connection import ConnectionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import powershell

DOCUMENTATION = """
name: winrig
short_description: Runs stand-ins of Windows modules under Wine
description: What molecule/shared/windows/README.md says.
author: The wsgi.fleet maintainers
options:
  container:
    description: Name of the container.
    required: true
    vars: [{name: winrig_container}]
  remote_addr:
    description: Its address.
    required: true
    vars: [{name: ansible_host}]
  journal:
    description: A file to which every call of a module is written, one line of JSON for each. Empty writes none.
    default: ''
    vars: [{name: winrig_journal}]
extends_documentation_fragment: [connection_pipelining]
"""

STAND_INS = ("/rig/guest/python", r"Z:\rig\guest\modules.py")
PORT = 8990
GROUPS = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
KNOWN = ("type", "required", "default", "choices", "aliases", "elements", "no_log", "options", *GROUPS)
SEPARATOR = "\n\0\0\0\0\n"
# What action plugins tell their modules on top of what the documentation lists.
INTERNAL = {"ansible.windows.win_copy": {"_copy_mode", "_original_basename", "files", "directories", "symlinks"}}


def documented(path: Path) -> dict[str, Any]:
    """Make an argument specification of the documentation beside a module."""
    text = path.with_suffix(".py").read_text(encoding="utf-8")
    found = re.search(r"DOCUMENTATION\s*=\s*r?('''|\"\"\")(.*?)\1", text, re.DOTALL)
    if found is None:
        raise AnsibleError(f"no documentation beside {path}")

    def convert(options: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                "type": "str",
                **{
                    key: option[key]
                    for key in ("type", "required", "default", "choices", "aliases", "elements")
                    if key in option
                },
                **({"options": convert(option["suboptions"])} if option.get("suboptions") else {}),
            }
            for name, option in options.items()
        }

    return {"options": convert(yaml.safe_load(found[2])["options"])}


def specification(source: str, path: Path) -> tuple[dict[str, Any], str]:
    """Return what a module accepts, and where that is said."""
    try:
        spec = powershell.spec_of(source)
    except ValueError as error:
        return documented(path), f"documentation (its specification cannot be read: {error})"
    if spec is not None:
        return spec, "specification"
    # An old module says in its call of Parse-Args whether it has a check mode; without, it is skipped there.
    checks = re.search(r"Parse-Args\b.*supports_check_mode\s+\$true", source) is not None
    return {**documented(path), "supports_check_mode": checks}, "documentation"


def nested(value: object) -> object:
    """Undo what `, @('a','b')` adds in PowerShell."""
    while (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], list)
        and value[0]
        and isinstance(value[0][0], list)
    ):
        value = value[0]
    return value


def pythonic(options: dict[str, Any]) -> dict[str, Any]:
    """Turn a PowerShell specification into one of Python's."""
    found = {}
    for name, option in options.items():
        spec = {key: value for key, value in option.items() if key in KNOWN}
        if spec.get("type") == "path":
            spec["type"] = "str"  # a path of Windows: there is nothing to expand here
        for key in ("aliases", "choices"):
            if isinstance(spec.get(key), str):
                spec[key] = [spec[key]]
        if spec.get("options"):
            spec["options"] = pythonic(spec["options"])
        if spec.get("required"):
            spec.pop("default", None)
        found[name] = spec
    return found


class Connection(ConnectionBase):  # type: ignore[misc]
    transport = "winrig"
    module_implementation_preferences = (".ps1", ".exe", "")
    has_pipelining = True
    always_pipeline_modules = True
    has_native_async = True
    allow_executable = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._shell_type = "powershell"
        super().__init__(*arguments, **named)

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if in_data:
            return self._run(json.loads(in_data.decode().split(SEPARATOR)[1]))
        found = re.search(r"EncodedCommand\s+(\S+)", cmd)
        script = base64.b64decode(found[1]).decode("utf-16-le") if found else cmd
        removed = re.search(r"^Remove-Item '([^']+)' -Force( -Recurse)?;?$", script, re.MULTILINE)
        if removed is None:
            raise AnsibleError(f"winrig: PowerShell that is no module: {script[:300]!r}")
        self._ask({"module": "_remove", "args": {"path": removed[1]}})
        return 0, b"", b""

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        data = Path(in_path).read_bytes()
        answer = self._ask({"module": "_put", "args": {"path": out_path}}, data)
        if answer.get("sha256") != hashlib.sha256(data).hexdigest():
            raise AnsibleError(f"winrig: {out_path} did not arrive: {answer}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        raise AnsibleError("winrig: fetching files is not implemented")

    def _ask(self, request: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        with self._stand_ins() as connection, connection.makefile("rwb") as stream:
            stream.write(json.dumps({"check": False, **request}).encode() + b"\n" + data)
            stream.flush()
            connection.shutdown(socket.SHUT_WR)
            line = stream.readline()
        if not line:
            raise AnsibleConnectionFailure(
                f"{self.get_option('container')} gave no answer; see /var/log/python.err there"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stand_ins(self) -> socket.socket:
        """Connect to the process of the stand-ins, and start it where there is none: after a boot."""
        address = (self.get_option("remote_addr"), PORT)
        deadline = time.monotonic() + 60
        started = False
        while True:
            try:
                connection = socket.create_connection(address, 10)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise AnsibleConnectionFailure(f"no stand-ins at {address[0]}: {error}") from error
                if not started:
                    subprocess.run(["podman", "exec", "-d", self.get_option("container"), *STAND_INS], check=True)
                    started = True
                time.sleep(0.2)
            else:
                connection.settimeout(None)
                return connection

    def _run(self, manifest: dict[str, Any]) -> tuple[int, bytes, bytes]:
        last = manifest["actions"][-1]
        others = [action["name"] for action in manifest["actions"][:-1]]
        if others:
            return _failed(f"the rig cannot do {', '.join(others)} (become, async and the like)")
        if last["name"] != "module_wrapper.ps1":
            answer = self._ask({"module": last["name"], "args": last["params"]})
            failed = bool(answer.get("failed"))
            return int(failed), to_bytes(answer.get("stdout", "")), to_bytes(answer["msg"] if failed else "")
        script = manifest["scripts"][last["params"]["Script"]]
        name = last["params"]["Script"].removesuffix(".ps1")
        name = name.replace("ansible_collections.", "").replace(".plugins.modules.", ".")
        given = {entry["Name"]: entry["Value"] for entry in last["params"]["Variables"]}["complex_args"]
        arguments = {key: value for key, value in given.items() if not key.startswith("_ansible_")}
        private = {key: arguments.pop(key) for key in list(arguments) if key in INTERNAL.get(name, ())}
        spec, origin = specification(base64.b64decode(script["script"]).decode("utf-8-sig"), Path(script["path"]))
        options = pythonic(spec["options"])
        if private.get("_copy_mode") == "query":
            options = {key: {**option, "required": False} for key, option in options.items()}
        groups = {key: nested(spec[key]) for key in GROUPS if key in spec}
        checked = ModuleArgumentSpecValidator(options, **groups).validate(arguments)
        if checked.error_messages:
            return _failed(f"{name}: {'; '.join(checked.error_messages)} (says its {origin})")
        started = time.time()
        answer = self._ask(
            {
                "module": name,
                "args": {**checked.validated_parameters, **private},
                "given": sorted(arguments),
                "check": bool(given.get("_ansible_check_mode")),
                "environment": last["params"].get("Environment") or {},
                "supports_check": bool(spec.get("supports_check_mode", True)),
            }
        )
        if self.get_option("journal"):
            line = {
                "module": name,
                "args": arguments,
                "changed": answer.get("changed"),
                "seconds": round(time.time() - started, 2),
            }
            with Path(self.get_option("journal")).open("a") as journal:
                journal.write(json.dumps(line) + "\n")
        return int(bool(answer.get("failed"))), to_bytes(json.dumps(answer)), b""


def _failed(message: str) -> tuple[int, bytes, bytes]:
    return 1, to_bytes(json.dumps({"failed": True, "msg": message})), b""
