#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs, as the configuration of supervisord says it should."""

from __future__ import annotations

DOCUMENTATION = r"""
module: supervisor
short_description: Bring what supervisord runs in line with its configuration
description:
  - Starts supervisord when it does not run, and restarts it only when it was started from other files than those in
    O(watch) are now.
  - Then compares the configuration with what runs. New groups are added, gone ones stopped and removed, changed ones
    replaced. Nothing else is touched. Programs that should run, but do not, are started.
  - A program whose command begins with O(launcher) and paths to watch is restarted when what these paths are (the
    target of a link, the content of a file) is not what the process was started from. The processes of one program are
    restarted one after the other, each only when the one before is up; the first that does not come up ends this.
  - A process is up when it has lasted for its C(startsecs). One that is started with C(--ready) after O(launcher) is up
    when it, or a child of it, has a name (C(/proc/PID/comm)) that ends in C(-ready), which may be sooner or later.
  - Groups of a greater C(priority) take their turn when those of a lesser one are up. Those that watch what a group in
    trouble watches are left as they were.
  - What a process was started from is read from the process itself. So nothing is restarted twice, and a run that was
    killed is gone on with by the next one.
notes:
  - A group whose configuration changed is stopped before it starts again, because supervisord knows no other way. What
    changes often belongs into a watched file, not into the section of the program.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  socket:
    description: Unix socket of supervisord.
    type: path
    default: /run/supervisord.sock
  service:
    description: systemd's unit of supervisord. It is enabled, and started through O(launcher) with O(watch).
    type: str
    default: supervisord.service
  watch:
    description: What supervisord is to be restarted for, in the order that its unit names them.
    type: list
    elements: path
    default: []
  launcher:
    description: Path of the script that marks a process with what it was started from.
    type: path
    required: true
  timeout:
    description: Seconds to wait for supervisord, and for each process beyond its own C(startsecs) or C(stopwaitsecs).
    type: int
    default: 60
  runtime_directory:
    description: Directory of the programs' sockets. Those in it that nobody listens on any more are removed.
    type: path
  groups:
    description: All process groups. Check mode says that these would start, where no supervisord runs yet.
    type: list
    elements: str
    default: []
  pending:
    description: Programs and groups whose configuration check mode left as it was. It then reports these as changed.
    type: list
    elements: str
    default: []
  pending_daemon:
    description: Whether check mode left something of O(watch) as it was. It then says that supervisord would restart.
    type: bool
    default: false
attributes:
  check_mode:
    description: Cannot foresee that a watched path will be changed by another task of the same run.
    support: partial
  diff_mode:
    description: Shows which processes start, stop and restart.
    support: full
  platform:
    description: Hosts with systemd and Python 3.9 or newer.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Run what the configuration says
  wsgi.fleet.supervisor:
    launcher: /etc/supervisord/launch
    watch: [/etc/supervisord/supervisord.conf, /etc/systemd/system/supervisord.service]
"""

RETURN = r"""
daemon:
  description: What was done to supervisord itself.
  returned: always
  type: str
  sample: unchanged
added:
  description: Groups that were added; their processes have been started.
  returned: always
  type: list
  elements: str
changed_groups:
  description: Groups that were stopped, and started with a new configuration.
  returned: always
  type: list
  elements: str
removed:
  description: Groups that were stopped and removed.
  returned: always
  type: list
  elements: str
started:
  description: Processes that should have run, but did not, and have been started.
  returned: always
  type: list
  elements: str
restarted:
  description: Processes that were restarted because something that they watch changed.
  returned: always
  type: list
  elements: str
  sample: ["shop:shop_0", "shop:shop_1"]
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.supervisor import (
    Daemon,
    Outcome,
    Reconciler,
    SupervisorError,
    forgotten_sockets,
    stamp,
    stamp_of,
)

PROPERTIES = ("LoadState", "UnitFileState", "ActiveState", "MainPID", "NeedDaemonReload")
PAST = {"start": "started", "restart": "restarted", None: "unchanged"}


class Service:
    """supervisord as systemd sees it."""

    def __init__(self, module: AnsibleModule, name: str, watch: list[str]) -> None:
        self._module = module
        self._name = name
        self._watch = watch

    def wanted(self) -> tuple[bool, bool, Optional[str]]:
        """What is to be done: read the unit again, enable it, and start or restart it."""
        state = self._state()
        reload = state["NeedDaemonReload"] == "yes" or state["LoadState"] != "loaded"
        enable = state["UnitFileState"] != "enabled"
        if state["ActiveState"] not in ("active", "reloading"):
            return reload, enable, "start"
        if stamp_of(int(state["MainPID"])) != stamp(self._watch):
            return reload, enable, "restart"
        return reload, enable, None

    def bring_up(self, daemon: Daemon, timeout: float) -> tuple[bool, Optional[str]]:
        """Do that, and wait until supervisord answers."""
        reload, enable, action = self.wanted()
        if reload:
            self._systemctl("daemon-reload")
        if enable:
            self._systemctl("enable")
        if action:
            # A unit that failed too often in a short time must not refuse the start that is to mend it.
            self._systemctl("reset-failed", check=False)
            self._systemctl(action)
        deadline = time.monotonic() + timeout
        while True:
            try:
                daemon.call("getState")
            except OSError as error:
                if time.monotonic() >= deadline:
                    msg = f"supervisord does not answer after {timeout:.0f} seconds ({error}).\n{self._journal()}"
                    raise SupervisorError(msg) from error
                time.sleep(0.1)
            else:
                return reload or enable, action

    def _state(self) -> Mapping[str, str]:
        _, out, _ = self._module.run_command(
            ["systemctl", "show", self._name, f"--property={','.join(PROPERTIES)}"], check_rc=True
        )
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def _systemctl(self, verb: str, *, check: bool = True) -> None:
        names = [] if verb == "daemon-reload" else [self._name]
        code, out, err = self._module.run_command(["systemctl", verb, *names])
        if check and code != 0:
            msg = f"systemctl {' '.join([verb, *names])} failed: {(err or out).strip()}\n{self._journal()}"
            raise SupervisorError(msg)

    def _journal(self) -> str:
        _, out, _ = self._module.run_command(
            ["journalctl", f"--unit={self._name}", "--lines=15", "--no-pager", "--output=cat"]
        )
        return f"Its last messages:\n{out.rstrip()}"


def diff_lines(outcome: Outcome, action: Optional[str], enabled: bool) -> str:
    """What happens, one line each."""
    lines = [f"supervisord: {PAST[action]}"] if action else []
    lines += ["supervisord: enabled at boot, or its unit read again"] if enabled else []
    for what in ("removed", "changed", "added"):
        lines += [f"group {name}: {what}" for name in getattr(outcome, what)]
    for what in ("started", "restarted"):
        lines += [f"process {name}: {what}" for name in getattr(outcome, what)]
    return "".join(f"{line}\n" for line in lines)


def foresee(
    service: Service, reconciler: Reconciler, parameters: Mapping[str, Any]
) -> tuple[Outcome, bool, Optional[str]]:
    """What check mode says."""
    reload, enable, action = service.wanted()
    if action == "start":
        return Outcome(added=sorted(parameters["groups"])), True, "start"
    outcome = reconciler.preview()
    processes = reconciler.processes()
    known = {process.group for process in processes} | set(outcome.added)
    homes = {process.name.split(":", 1)[1]: process.group for process in processes}
    for name in sorted(parameters["pending"]):
        group = name if name in known else homes.get(name, name)
        if group not in known:
            where = outcome.added
        elif group in parameters["groups"]:
            where = outcome.changed
        else:
            where = outcome.removed
        if group not in where:
            where.append(group)
    return outcome, reload or enable, "restart" if parameters["pending_daemon"] else action


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "default": "/run/supervisord.sock"},
            "service": {"type": "str", "default": "supervisord.service"},
            "watch": {"type": "list", "elements": "path", "default": []},
            "launcher": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
            "runtime_directory": {"type": "path"},
            "groups": {"type": "list", "elements": "str", "default": []},
            "pending": {"type": "list", "elements": "str", "default": []},
            "pending_daemon": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    daemon = Daemon(parameters["socket"])
    service = Service(module, parameters["service"], parameters["watch"])
    reconciler = Reconciler(daemon, parameters["launcher"], parameters["timeout"])

    enabled, action = False, None
    try:
        if module.check_mode:
            outcome, enabled, action = foresee(service, reconciler, parameters)
        else:
            enabled, action = service.bring_up(daemon, parameters["timeout"])
            outcome = reconciler.reconcile()
            if parameters["runtime_directory"]:
                listed = Path("/proc/net/unix").read_text()
                for path in forgotten_sockets(Path(parameters["runtime_directory"]), listed):
                    path.unlink()
    except (SupervisorError, OSError) as error:
        outcome = reconciler.outcome
        outcome.errors.append(str(error))

    text = diff_lines(outcome, action, enabled)
    result: dict[str, Any] = {
        "changed": bool(text),
        "daemon": PAST[action],
        "added": outcome.added,
        "changed_groups": outcome.changed,
        "removed": outcome.removed,
        "started": outcome.started,
        "restarted": outcome.restarted,
    }
    if text:
        result["diff"] = {"before": "", "after": text, "before_header": "processes", "after_header": "processes"}
    if outcome.errors:
        module.fail_json(msg="\n".join(outcome.errors), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
