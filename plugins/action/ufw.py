# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.ufw: comes back by a new connection and confirms what was changed.

Where it cannot, the host takes the change back by itself (see module_utils/ufw/guard.py); then it says so.
"""

from __future__ import annotations

import time
from typing import Any, Optional

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

GRACE = 20  # seconds that a host may take for taking the change back


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Change; where the change is guarded, confirm it."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        result = self._ask(self._task.args, task_vars)
        guard = result.pop("guard", None)
        if guard is None:
            return result
        problem = self._confirm(guard["name"], guard["seconds"], task_vars)
        return {**result, "failed": True, "msg": problem} if problem else result

    def _ask(self, arguments: dict[str, Any], task_vars: Optional[dict[str, Any]]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="wsgi.fleet.ufw", module_args=arguments, task_vars=task_vars
        )
        return answer

    def _confirm(self, name: str, seconds: int, task_vars: Optional[dict[str, Any]]) -> str:
        """Comes back again and again, until the host says what became of the change. Returns what went wrong."""
        deadline = time.monotonic() + seconds + GRACE
        problem, pause = "", 1
        while time.monotonic() < deadline:
            try:
                # An open connection proves nothing: what is established passes any firewall.
                self._connection.reset()
                answer = self._ask({"confirm": name}, task_vars)
            except AnsibleConnectionFailure as error:
                problem = str(error)
            except AnsibleError as error:
                return f"The firewall was changed, but could not be confirmed: {error}. The host takes the change back."
            else:
                if answer.get("confirmed"):
                    return ""
                unreachable = answer.get("unreachable", False)  # as some strategies say it
                problem = str(answer.get("msg")) if unreachable else self._judge(answer, problem)
                if not unreachable and answer.get("why") != "same connection":
                    return problem
            # Fewer than six in half a minute: a firewall that limits SSH counts those that it refuses, too.
            time.sleep(pause)
            pause = min(2 * pause, 16)
        return (
            f"The firewall was changed, and this host could not be reached by a new connection since ({problem}). "
            "It was to take the change back by itself; where it is still not reachable, look at it on its console."
        )

    @staticmethod
    def _judge(answer: dict[str, Any], problem: str) -> str:
        if answer.get("why") == "taken back":
            return (
                "The new firewall did not let this run in by a new connection, so the host took the change back: the "
                f"firewall that it had before is in force. What the connection met: {problem or 'nothing in time'}. "
                "See by which address and port this run comes, and whether rules of others (ufw status, "
                "/etc/ufw/before.rules) stand before."
            )
        if answer.get("why") == "another run":
            return "Another run has changed the firewall at the same time; run this again when it has ended."
        if answer.get("why") == "same connection":
            return "every connection came by the one that was open before; end its ssh process (ControlPersist)"
        return str(answer.get("msg", "the host gave no answer"))
