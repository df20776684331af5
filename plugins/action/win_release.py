# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of wsgi.fleet.win_release: looks sources up, and runs our program in the host's Python.

Windows modules are PowerShell. What this does is the same work as on Linux, in the same Python modules: they travel
with the request on the standard input of the host's own interpreter, which nobody else can read, and leave nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from ansible import constants as C  # noqa: N812 - its name everywhere
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.wsgi.fleet.plugins.action.lock import ask_for_locks
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, failure_message, tail
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import (
    describe,
    release_id,
    release_inputs,
    source_identity,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App, parse_app, problems
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import (
    Entry,
    file_checksum,
    pack_tree,
    tree_digest,
    walk_tree,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import checkouts
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import services as planned

_UTILS = "ansible_collections.wsgi.fleet.plugins.module_utils"
# What the host's half is made of; errors comes with the fixes that it names.
_MODULES = (
    *("release", "release.errors", "release.records", "release.identity", "release.sources", "release.standing"),
    *("locks", "windows", "windows.gate", "windows.host", "windows.scm", "windows.releases", "windows.services"),
    *("windows.live", "windows.front", "windows.program"),
)
_BOOT = "import sys,base64,zlib;exec(zlib.decompress(base64.b64decode(sys.stdin.buffer.read())))"
_PROGRAM = """
import importlib.abc, importlib.util, json, sys
sent, request = json.loads(%r)
class Sent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        package = any(other.startswith(name + ".") for other in sent)
        return importlib.util.spec_from_loader(name, self, is_package=package) if package or name in sent else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(sent.get(module.__name__, ""), module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Sent())
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import program
program.main(request, sys.executable)
"""


def payload(request: Mapping[str, Any]) -> str:
    """Pack our modules and a request into what the host's interpreter reads."""
    directory = Path(__file__).resolve().parents[1] / "module_utils"
    sources = {}
    for name in _MODULES:
        path = directory.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        sources[f"{_UTILS}.{name}"] = path.read_text(encoding="utf-8")
    program = _PROGRAM % json.dumps([sources, request])
    return base64.b64encode(zlib.compress(program.encode())).decode()


class _Source:
    """A source as the controller has it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.path: Optional[Path] = None
        self.entries: tuple[Entry, ...] = ()
        self.commit = ""

    def pack(self, target: Path) -> Optional[Path]:
        """Return the one file in which it travels; none for what the host fetches by itself."""
        source = self.app.source
        if source.kind == "git":
            checkouts.check_out(source, self.commit, target)
            return target
        if not self.entries:
            return self.path
        if pack_tree(self.entries, target) != source.digest:
            raise AnsibleActionFail(f"{self.app.name}: {self.path} changed while it was read; run again")
        return target


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Ask the host what it lacks; bring that and only that."""

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = {**self._task.args.get("request", {}), "state": self._task.args.get("state", "built")}
        if args["state"] in ("held", "released"):
            return ask_for_locks(lambda lock: self._ask_for(args, lock, task_vars), args["lock"])
        args["apps"] = [planned.complete(record) for record in args["apps"]]
        wrong = problems([_release_part(record) for record in args["apps"]])
        if wrong:
            raise AnsibleActionFail("The applications cannot be released as they are described:\n" + "\n".join(wrong))
        where = planned.place(args["root"], args["data"], args["python"], args["service_host"])
        sources, apps = self._look_up(args, where)
        front = self._front(args, where)
        request = {
            "state": args["state"],
            "check": bool(args.get("check", False)),
            "root": where.root,
            "data": where.data,
            "environment": {str(name): str(value) for name, value in (args.get("environment") or {}).items()},
            "timeout": int(args.get("timeout") or 900),
            "bad": args.get("bad", "refuse"),
            "service_host": args["service_host"],
            "apps": apps,
            "only": list(args.get("only") or ()),
            "return": {"to": {}, "previous": False, "reason": "", **(args.get("return") or {})},
            "services": planned.services(where, args["apps"], front),
            "rights": planned.rights(where, args["apps"], front),
            "rules": [rule["name"] for rule in args.get("rules") or ()],
            "removed": args.get("removed") or [],
            "front": front,
            "maintenance": _maintenance(args.get("maintenance") or {}),
            "brought": False,
        }
        if args.get("bare"):
            return _guess(request)
        first = self._ask(args["python"], request, task_vars)
        if first.get("failed") or not first.get("wanted"):
            return first
        return _merge(first, self._bring(args, request, first["wanted"], sources, task_vars))

    def _ask_for(
        self, args: Mapping[str, Any], lock: Mapping[str, Any], task_vars: Optional[dict[str, Any]]
    ) -> dict[str, Any]:
        if args.get("bare"):
            return {"changed": False}
        known = {key: args[key] for key in ("state", "root", "data")} | {"check": bool(args.get("check", False))}
        request = {**known, "environment": {}, "timeout": 60, "apps": [], "lock": {**_LOCK, **lock}}
        return self._ask(args["python"], request, task_vars)

    def _look_up(
        self, args: Mapping[str, Any], where: planned.Place
    ) -> tuple[dict[str, _Source], list[dict[str, Any]]]:
        """Work out what each release is made of. What is wrong with it is told before the host is touched."""
        sources: dict[str, _Source] = {}
        apps: list[dict[str, Any]] = []
        failures: list[dict[str, str]] = []
        for record in args["apps"]:
            source = _Source(parse_app(_release_part(record)))
            try:
                known = (args.get("releases") or {}).get(record["name"], {}).get("id") or ""
                chosen = not args.get("only") or record["name"] in args["only"]
                identified = args["state"] in ("built", "live") and chosen and not known
                if identified:
                    self._identify(source)
            except ReleaseError as error:
                failures.append({"app": record["name"], "step": error.step, "problem": error.problem, "fix": error.fix})
                continue
            sources[record["name"]] = source
            apps.append(_request_of(record, source, where, args, known, identified))
        if failures:
            raise AnsibleActionFail(failure_message(failures, len(failures)))
        return sources, apps

    def _identify(self, source: _Source) -> None:
        app = source.app
        if app.source.kind == "git":
            source.commit = checkouts.resolve(app.source)
        if app.source.remote:
            return
        try:
            source.path = Path(self._find_needle("files", str(Path(app.source.location).expanduser())))
        except Exception as error:  # whatever ansible-core raises for a file that it cannot find
            raise ReleaseError(
                "read",
                f"the controller has no {app.source.location}",
                f"give source.{app.source.kind} as an absolute path, or relative to the playbook",
            ) from error
        if app.source.kind == "archive":
            digest = file_checksum(source.path)
            if app.source.checksum and digest != app.source.checksum:
                raise ReleaseError(
                    "read",
                    f"{source.path} is not the file that was wanted: its checksum is {digest}, "
                    f"not {app.source.checksum}",
                    "correct source.checksum, or the file",
                )
        else:
            source.entries = tuple(walk_tree(source.path, app.source.exclude))
            if not source.entries:
                raise ReleaseError("read", f"{source.path} holds no file", "correct source.path or source.exclude")
            digest = tree_digest(source.entries)
        source.app = replace(app, source=replace(app.source, digest=digest))

    def _front(self, args: Mapping[str, Any], where: planned.Place) -> Optional[dict[str, Any]]:
        """Complete what the host must know of nginx: where its program is follows from the archive's checksum."""
        if not args.get("front"):
            return None
        front = dict(args["front"])
        archive = self._find_needle("files", front["archive"])
        found = file_checksum(Path(archive))
        if found != front["checksum"]:
            raise AnsibleActionFail(f"{archive} is not the file that was wanted: its checksum is {found}")
        front["id"] = found.partition(":")[2][:12]
        home, program = rf"{where.data}\nginx", rf"{where.root}\nginx\{front['id']}\nginx.exe"
        command = [program, "-p", home, "-c", rf"{home}\conf\nginx.conf"]
        config = {
            **front["config"],
            "service": planned.NGINX,
            "environment": {"WSGI_FLEET_HOST": where.host_digest},
            "log_file": rf"{home}\logs\service.log",
            "command": command,
            "stop_command": [*command, "-s", "quit"],
            "reload_command": [*command, "-s", "reload"],
            "directory": home,
        }
        front["files"], digest = _sealed(front["files"], config)
        text = json.dumps(config, indent=1, sort_keys=True) + "\n"
        return {**front, "config": config, "service_file": text, "digest": digest, "local": archive}

    def _bring(
        self,
        args: Mapping[str, Any],
        request: dict[str, Any],
        wanted: Sequence[str],
        sources: Mapping[str, _Source],
        task_vars: Optional[dict[str, Any]],
    ) -> dict[str, Any]:
        request = {**request, "brought": True, "apps": [dict(app) for app in request["apps"]]}
        self._make_tmp_path()
        shell = self._connection._shell

        def upload(path: Path, name: str) -> str:
            target = str(shell.join_path(shell.tmpdir, name))
            self._transfer_file(str(path), target)
            return target

        try:
            with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as scratch:
                for app in request["apps"]:
                    if app["name"] not in wanted:
                        continue
                    name = f"source-{app['name']}"
                    try:
                        path = sources[app["name"]].pack(Path(scratch, name))
                    except ReleaseError as error:
                        raise AnsibleActionFail(f"{app['name']}: {error}") from error
                    if path:
                        app["upload"] = upload(path, name)
                if args.get("wheelhouse") and any(name != "nginx" for name in wanted):
                    request["wheels"] = upload(
                        _pack_wheels(Path(args["wheelhouse"]), Path(scratch, "wheels")), "wheels"
                    )
                if "nginx" in wanted:
                    request["front"] = {**request["front"], "upload": upload(Path(request["front"]["local"]), "nginx")}
            return self._ask(args["python"], request, task_vars)
        finally:
            self._remove_tmp_path(shell.tmpdir)

    def _ask(self, python: str, request: Mapping[str, Any], task_vars: Optional[dict[str, Any]]) -> dict[str, Any]:
        done = self._execute_module(
            module_name="ansible.windows.win_command",
            module_args={"argv": [python, "-I", "-c", _BOOT], "stdin": payload(request)},
            task_vars=task_vars,
        )
        try:
            answer: dict[str, Any] = json.loads(str(done.get("stdout", "")).strip().splitlines()[-1])
        except (IndexError, ValueError):
            said = tail(str(done.get("stderr") or done.get("stdout") or "")) or done.get("msg")
            return {
                "failed": True,
                "msg": f"{python} gave no answer: {said}\nWhere it is not yet: site.yml installs it.",
            }
        for warning in answer.pop("warnings", ()):
            self._display.warning(warning)
        return answer


# In a file of nginx: replaced by the digest of all of them.
_DIGEST = "WSGI_FLEET_DIGEST"
# What a lock need not say; the documentation has the same.
_LOCK = {"purpose": "", "seconds": 7200, "break_locks": False}
_RELEASE_KEYS = ("name", "source", "requirements", "packages", "keep_releases")


def _sealed(files: Mapping[str, Any], *more: object) -> tuple[dict[str, Any], str]:
    """Return nginx's files with the digest of all of them, and of what else it runs with, in its place; and that."""
    digest = hashlib.sha256(json.dumps([files, *more], sort_keys=True).encode()).hexdigest()
    return {name: {**file, "content": file["content"].replace(_DIGEST, digest)} for name, file in files.items()}, digest


def _maintenance(given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete what nginx is to be told of sites in maintenance; of none it says nothing."""
    files, digest = _sealed(given.get("files") or {})
    return {"status_port": int(given.get("status_port") or 0), "files": files, "digest": digest if files else ""}


def _release_part(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides on a release; on Windows every application of a host has the same Python."""
    return {key: record[key] for key in _RELEASE_KEYS if record.get(key) is not None}


def _request_of(
    record: Mapping[str, Any],
    source: _Source,
    where: planned.Place,
    args: Mapping[str, Any],
    known: str,
    identified: bool,
) -> dict[str, Any]:
    app = source.app
    identity = source_identity(app.source, source.commit)
    major, minor = str(args["python_version"]).split(".")[:2]
    inputs = release_inputs(app, identity, f"cpython-{major}{minor}")
    # Where no source is asked, the name of the release is known or of no interest.
    release = known or (release_id(inputs) if identified else "")
    request: dict[str, Any] = {
        **{key: record[key] for key in ("name", "secrets", "health", "health_timeout", "trial", "keep_releases")},
        "id": release,
        "instances": planned.instances(where, record, release),
        "inputs": inputs,
        "description": describe(app.source, identity),
        "kind": app.source.kind,
        "subdirectory": app.source.subdirectory,
        "requirements": list(app.requirements),
        "packages": list(app.packages),
    }
    if app.source.kind == "package":
        request["package"] = f"{app.source.location}=={app.source.version}"
    elif app.source.kind == "archive" and app.source.remote:
        request |= {"url": app.source.location, "checksum": app.source.checksum}
        request |= {"username": app.source.username, "password": app.source.password}
    return request


def _pack_wheels(directory: Path, target: Path) -> Path:
    wheels = sorted(directory.expanduser().glob("*.whl"))
    if not wheels:
        raise AnsibleActionFail(f"wheelhouse: {directory} on the controller holds no wheels")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for wheel in wheels:
            archive.write(wheel, wheel.name)
    return target


def _guess(request: Mapping[str, Any]) -> dict[str, Any]:
    """Say what would happen on a host that has no Python yet, in check mode."""
    verbs = {"built": "build release {id} of {name} from {description}", "live": "start {name} with release {id}"}
    actions = [verbs[request["state"]].format(**app) for app in request["apps"]] if request["state"] in verbs else []
    return {
        "changed": bool(actions),
        "actions": actions,
        "apps": {},
        "services": request["services"],
        "pending": [app["name"] for app in request["apps"]],
        "obsolete_services": [],
        "obsolete_rules": [],
        "rights": [],
        "results": [],
        "releases": [],
        "look": "",
        "in_maintenance": "",
    }


def _merge(first: Mapping[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Make one answer of two."""
    if "actions" not in second:
        return second
    actions = [*first["actions"], *second["actions"]]
    diff = [*first.get("diff", ()), *second.get("diff", ())]
    return {**second, "actions": actions, "changed": bool(actions), **({"diff": diff} if diff else {})}
