# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.release: checks the records, and brings what only the controller has."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

from ansible import constants as C  # noqa: N812 - its name everywhere
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, failure_message
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import (
    App,
    Source,
    app_record,
    app_secrets,
    parse_app,
    problems,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.removal import removal_problems
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import (
    Entry,
    file_checksum,
    pack_tree,
    tree_digest,
    walk_tree,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import Wheel, find_wheels, write_archive


@dataclass(frozen=True)
class Local:
    """A source that lies on the controller."""

    path: Path
    entries: tuple[Entry, ...] = ()  # of a directory

    def pack(self, app: App, target: Path) -> Path:
        """The one file in which it travels."""
        if not self.entries:
            return self.path
        if pack_tree(self.entries, target) != app.source.digest:
            raise AnsibleActionFail(f"{app.name}: {self.path} changed while it was read; run again")
        return target


class Wheels(NamedTuple):
    """The wheels of one release, and the directory on the controller where they are."""

    place: Path
    wheels: list[Wheel]


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Ask the host what it lacks; send that and only that."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        building = args.get("state", "built") == "built"
        wrong = problems(args.get("apps"), sources=building)
        wrong = wrong or removal_problems(args.get("removed") or [], args["apps"])
        if wrong:
            raise AnsibleActionFail("The applications cannot be released as they are described:\n" + "\n".join(wrong))
        environment = args.get("environment") or {}
        if not isinstance(environment, Mapping):
            raise AnsibleActionFail("environment: expected a dictionary of variables")
        args["environment"] = json.dumps({str(name): str(value) for name, value in environment.items()})
        apps = [parse_app(record) for record in args["apps"]]
        local: dict[str, Local] = {}
        if building:
            apps, local = self._look_up(apps)
        if args.get("wheelhouse") and not Path(args["wheelhouse"]).expanduser().is_absolute():
            raise AnsibleActionFail("wheelhouse: give the directory on the controller as an absolute path")
        result = self._ask(args, apps, task_vars)
        wanted = result.pop("wanted", [])
        if wanted or "wheel_lists" in result:
            result = self._complete(result, args, apps, wanted, local, task_vars)
        return result

    def _complete(
        self,
        first: dict[str, Any],
        args: dict[str, Any],
        apps: Sequence[App],
        wanted: Sequence[str],
        local: Mapping[str, Local],
        task_vars: Optional[dict[str, Any]],
    ) -> dict[str, Any]:
        """Bring what the host lacks, and let it go on with that."""
        wheels: dict[str, Wheels] = {}
        failures = first.setdefault("failures", [])
        for name, place in first.pop("wheel_lists", {}).items():
            try:
                wheelhouse = Path(args["wheelhouse"]).expanduser()
                wheels[name] = Wheels((wheelhouse / place).parent, find_wheels(wheelhouse, place))
            except ReleaseError as error:
                failures.append({"app": name, "step": error.step, "problem": error.problem, "fix": error.fix})
        failed = {failure["app"] for failure in failures}
        bring = [app for app in apps if app.name in wanted and app.name not in failed]
        files = {
            wheel.file: entry.place / wheel.file
            for entry in wheels.values()
            for wheel in entry.wheels
            if wheel.file not in first.get("stored", ())
        }
        first.pop("stored", None)
        second: dict[str, Any] = {"actions": [], "apps": {}, "lacks": []}
        if bring:
            args = {
                **args,
                "wheels": {name: [asdict(wheel) for wheel in entry.wheels] for name, entry in wheels.items()},
            }
            second = self._bring(args, bring, local, files, task_vars)
        return merge(first, second, len(apps))

    def _ask(self, args: dict[str, Any], apps: Sequence[App], task_vars: Optional[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="wsgi.fleet.release",
            module_args={
                **args,
                "apps": [app_record(app) for app in apps],
                "credentials": json.dumps({app.name: app_secrets(app) for app in apps if app_secrets(app)}),
            },
            task_vars=task_vars,
        )
        return result

    def _look_up(self, apps: Sequence[App]) -> tuple[list[App], dict[str, Local]]:
        """Hash what lies here. What is wrong with it is told before any host is touched."""
        found: list[App] = []
        local: dict[str, Local] = {}
        failures: list[dict[str, str]] = []
        for app in apps:
            try:
                if not app.source.remote:
                    local[app.name], digest = self._hash(app.source)
                    app = replace(app, source=replace(app.source, digest=digest))
            except ReleaseError as error:
                failures.append({"app": app.name, "step": error.step, "problem": error.problem, "fix": error.fix})
            except OSError as error:
                failures.append({"app": app.name, "step": "read", "problem": str(error), "fix": ""})
            found.append(app)
        if failures:
            raise AnsibleActionFail(failure_message(failures, len(failures)))
        return found, local

    def _hash(self, source: Source) -> tuple[Local, str]:
        try:
            path = Path(self._find_needle("files", str(Path(source.location).expanduser())))
        except Exception as error:  # whatever ansible-core raises for a file that it cannot find
            raise ReleaseError(
                "read",
                f"the controller has no {source.location}",
                f"give source.{source.kind} as an absolute path, or relative to the playbook",
            ) from error
        if source.kind == "archive":
            if not path.is_file():
                raise ReleaseError("read", f"{path} is no file", "give a directory as source.path")
            digest = file_checksum(path)
            if source.checksum and digest != source.checksum:
                raise ReleaseError(
                    "read",
                    f"{path} is not the file that was wanted: its checksum is {digest}, not {source.checksum}",
                    "correct source.checksum, or the file",
                )
            return Local(path), digest
        if not path.is_dir():
            raise ReleaseError("read", f"{path} is no directory", "give a tar or zip file as source.archive")
        entries = tuple(walk_tree(path, source.exclude))
        if not entries:
            raise ReleaseError("read", f"{path} holds no file", "correct source.path or source.exclude")
        return Local(path, entries), tree_digest(entries)

    def _bring(
        self,
        args: dict[str, Any],
        apps: Sequence[App],
        local: Mapping[str, Local],
        wheels: Mapping[str, Path],
        task_vars: Optional[dict[str, Any]],
    ) -> dict[str, Any]:
        uploads: dict[str, str] = {}
        archives: list[str] = []
        self._make_tmp_path()
        shell = self._connection._shell
        try:
            if wheels:
                archives.append(shell.join_path(shell.tmpdir, "wheels"))
                with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as scratch:
                    write_archive(wheels, Path(scratch, "wheels"))
                    self._transfer_file(str(Path(scratch, "wheels")), archives[0])
                args = {**args, "wheel_archive": archives[0]}
            for app in apps:
                if app.name not in local:
                    continue
                target = shell.join_path(shell.tmpdir, f"source-{app.name}")
                with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as scratch:
                    self._transfer_file(str(local[app.name].pack(app, Path(scratch, "source"))), target)
                uploads[app.name] = target
            self._fixup_perms2((shell.tmpdir, *archives, *uploads.values()))
            return self._ask({**args, "uploads": uploads}, apps, task_vars)
        finally:
            self._remove_tmp_path(shell.tmpdir)


def merge(first: dict[str, Any], second: dict[str, Any], total: int) -> dict[str, Any]:
    """Two answers as one."""
    second.pop("wanted", None)
    if "actions" not in second:  # it did not get that far
        return {**second, "changed": bool(first.get("changed") or second.get("changed"))}
    actions = [*first["actions"], *second["actions"]]
    result = {
        **second,
        "apps": {**first.get("apps", {}), **second.get("apps", {})},
        "actions": actions,
        "changed": bool(actions),
        "settled": False,
        "warnings": [*first.get("warnings", []), *second.get("warnings", [])],
    }
    if actions:
        result["diff"] = [{"prepared": "".join(f"{line}\n" for line in actions)}]
    failures = [*first.get("failures", []), *second.get("failures", [])]
    if failures:
        result.update(failed=True, failures=failures, msg=failure_message(failures, total))
    return result
