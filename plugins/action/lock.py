# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.lock: says who this run is, and knows which runs of its own machine are dead."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


def machine() -> str:
    """What tells this control node from others; its name where it has no id."""
    try:
        return Path("/etc/machine-id").read_text().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


def started(pid: int) -> str:
    """When a process of this machine began, in the kernel's own count; empty when there is no such process."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


def same_program(pid: int) -> bool:
    """Whether a process runs the program that this one runs; true where the kernel does not tell."""
    if not Path("/proc/self/exe").exists():
        return True
    try:
        return Path(f"/proc/{pid}/exe").samefile("/proc/self/exe")
    except OSError:
        return False


def this_run(pid: int) -> dict[str, Any]:
    """Who takes the lock: the run whose process this is. AnsibleActionFail where that has ended.

    A run that is killed leaves children that go on for a moment. What they took would be held by a run that does not
    exist, or by whoever adopts orphans on this machine, and given back by nobody.
    """
    begun = started(pid)
    if not same_program(pid) or (not begun and Path("/proc/self/stat").exists()):
        raise AnsibleActionFail("The run that this task belongs to has ended, so it takes no lock.")
    try:
        who = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        who = f"uid {os.getuid()}"
    name = machine()
    return {
        "id": f"{name}:{pid}:{begun}",
        "who": who,
        "where": socket.gethostname(),
        "machine": name,
        "pid": pid,
    }


def is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether a run is known to have ended: it was one of this machine, and its process is gone."""
    if holder.get("machine") != machine() or not Path("/proc/self/stat").exists():
        return False
    begun = str(holder["id"]).rpartition(":")[2]
    return not begun or started(int(holder.get("pid", 0))) != begun


def ask_for_locks(ask: Callable[[dict[str, Any]], dict[str, Any]], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a host; where dead runs hold the locks, take them over; where others do, say who."""
    arguments = {**arguments, "holder": this_run(os.getppid())}  # this is a child of ansible-playbook, which is the run
    result = ask(arguments)
    holders = result.get("holders", {})
    if holders and all(map(is_dead, holders.values())):
        result = ask({**arguments, "dead": [holder["id"] for holder in holders.values()]})
        holders = result.get("holders", {})
    if holders:
        lines = [
            f"{name} is locked by {holder.get('who')} on {holder.get('where')} since {holder.get('since')}"
            f" ({holder.get('purpose') or 'no purpose given'})."
            for name, holder in sorted(holders.items())
        ]
        result["msg"] = "\n".join(
            [*lines, "Wait until that run has ended. Where it is sure to be dead: -e wsgi_break_locks=true"]
        )
    return result


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Ask; where a dead run holds the lock, take it over."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)

        def ask(arguments: dict[str, Any]) -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(
                module_name="wsgi.fleet.lock", module_args=arguments, task_vars=task_vars
            )
            return answer

        return ask_for_locks(ask, self._task.args)
