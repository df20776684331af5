# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.wheels: keeps what the host has made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from ansible import constants as C  # noqa: N812 - its name everywhere
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, failure_message
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import known_lists, read_archive, read_list


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Say what is known, fetch what is new."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        wheelhouse = Path(str(args.get("wheelhouse") or "")).expanduser()
        if not wheelhouse.is_absolute():
            raise AnsibleActionFail("wheelhouse: give the directory on the controller as an absolute path")
        args["known"] = known_lists(wheelhouse)
        args["have"] = [f"{path.parent.name}/{path.name}" for path in sorted(wheelhouse.glob("*/*.whl"))]
        self._make_tmp_path()
        shell = self._connection._shell
        try:
            args["archive"] = shell.join_path(shell.tmpdir, "wheels")
            result: dict[str, Any] = self._execute_module(
                module_name="wsgi.fleet.wheels", module_args=args, task_vars=task_vars
            )
            lists = result.get("lists") or {}
            if lists and not result.get("failed") and not self._task.check_mode:
                self._keep(wheelhouse, lists, result["files"], args["archive"])
        finally:
            self._remove_tmp_path(shell.tmpdir)
        if not result.get("failed"):
            result["lists"] = sorted(lists)
            result["diff"] = [{"prepared": "".join(f"wheelhouse: {place}\n" for place in sorted(lists))}]
        return result

    def _keep(self, wheelhouse: Path, lists: Mapping[str, str], files: list[str], archive: str) -> None:
        """The wheels first: a list counts when all that it names is there."""
        with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as scratch:
            local = Path(scratch, "wheels")
            self._connection.fetch_file(archive, str(local))
            for place, text in lists.items():
                directory = (wheelhouse / place).parent
                directory.mkdir(parents=True, exist_ok=True)
                try:
                    read_archive(local, read_list(text), directory, folder=directory.name)
                except (ReleaseError, ValueError) as error:
                    raise AnsibleActionFail(
                        failure_message([{"app": place, "step": "wheels", "problem": str(error), "fix": ""}], 1)
                    ) from error
                draft = directory / f".{(wheelhouse / place).name}.new"
                draft.write_text(text)
                draft.replace(wheelhouse / f"{place}.json")
