# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs: instances are restarted one after the other, and all go back when one is not well.

A file in use cannot be replaced on Windows, so nothing is switched but configuration: each instance's names the release
that it runs from. An instance whose process is older than its configuration is restarted, however the run ended that
wrote it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, tail
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read, remove, replace
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.releases import is_complete, live_release, release_of

# How much longer than the service itself we wait for it to end or to begin.
_MARGIN = 30
_GOOD = "good"


class Manager(Protocol):
    """What we ask of the Service Control Manager."""

    def status(self, name: str) -> Any: ...  # noqa: ANN401
    def started_at(self, pid: int) -> float: ...
    def stop(self, name: str, timeout: float) -> None: ...
    def start(self, name: str, timeout: float) -> None: ...
    def control(self, name: str, code: int) -> bool: ...


@dataclass(frozen=True)
class Service:
    """A service that runs from a configuration file."""

    name: str
    config: Path
    content: bytes
    probe: Mapping[str, Any]
    log: Path
    start_timeout: int
    stop_timeout: int


def is_stale(manager: Manager, name: str, files: Sequence[Path]) -> bool:
    """Whether a service has to be (re)started: it does not run, or it is older than one of the files."""
    status = manager.status(name)
    if not status.pid:
        return True
    changed = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
    return manager.started_at(status.pid) < changed


def restart(manager: Manager, service: Service) -> None:
    """Restart a service and see that it answers."""
    manager.stop(service.name, service.stop_timeout + _MARGIN)
    manager.start(service.name, service.start_timeout + _MARGIN)


class Switch:
    """The instances of one application."""

    def __init__(self, host: Host, manager: Manager, app: Mapping[str, Any]) -> None:
        self.host = host
        self.manager = manager
        self.app = app
        self.name = str(app["name"])
        self.release = host.releases(self.name) / app["id"]
        self.directory = host.config(self.name)
        self.secrets = self.directory / "secrets" / "environment.json"
        self.kept = self.directory / _GOOD
        self.services = [self._service(instance) for instance in app["instances"]]

    def _service(self, instance: Mapping[str, Any]) -> Service:
        config = {
            **instance["config"],
            "venv": str(self.release / "venv"),
            "directory": str(self.release / "src" / self.app["subdirectory"]),
            "environment_file": str(self.secrets),
        }
        return Service(
            name=instance["service"],
            config=self.directory / f"{instance['service']}.json",
            content=_text(config),
            probe=instance["probe"],
            log=Path(config["log_file"]),
            start_timeout=config["start_timeout"],
            stop_timeout=config["stop_timeout"],
        )

    def make_live(self) -> None:
        """Bring every instance to what it should be, and judge the release."""
        host = self.host
        secrets_differ = read(self.secrets) != _text(self.app["secrets"])
        files = (self.secrets,)
        todo = [
            service
            for service in self.services
            if secrets_differ
            or read(service.config) != service.content
            or is_stale(self.manager, service.name, (service.config, *files))
        ]
        if not todo:
            self._judge_good()
            return
        before = live_release(host, self.name)
        host.write(self.secrets, _text(self.app["secrets"]), shown=False)
        begun: list[Service] = []
        try:
            for service in todo:
                begun.append(service)
                host.write(service.config, service.content)
                host.actions.append(f"restart {service.name}")
                if not host.check:
                    self._restart(service)
                    self._see_well(service)
        except ReleaseError as error:
            raise self._go_back(begun, before, error) from error
        self._judge_good()

    def _restart(self, service: Service) -> None:
        try:
            restart(self.manager, service)
        except ReleaseError as error:
            said = f"{error.problem}{self._log_end(service)}"
            raise ReleaseError(error.step, said, error.fix or f"look at {service.log}") from error

    def _see_well(self, service: Service) -> None:
        """Wait for a good answer."""
        deadline = time.monotonic() + self.app["health_timeout"]
        while True:
            answer = ask(service.probe)
            if not answer:
                return
            status = self.manager.status(service.name)
            if not status.pid:
                answer = f"it is {status.describe()}"
            if not status.pid or time.monotonic() > deadline:
                raise ReleaseError(
                    "health", f"{service.name} is not well: {answer}{self._log_end(service)}", f"look at {service.log}"
                )
            time.sleep(0.3)

    def _log_end(self, service: Service) -> str:
        text = (read(service.log) or b"").decode("utf-8", "replace")
        secrets = [str(value) for value in self.app["secrets"].values()]
        return f"\nthe end of its log:\n{scrub(tail(text), secrets)}" if text else ""

    def _judge_good(self) -> None:
        """Keep the configuration that a release is good with."""
        if self.host.check:
            return
        wanted = {service.config.name: service.content for service in self.services}
        wanted[self.secrets.name] = _text(self.app["secrets"])
        present = {path.name: path.read_bytes() for path in self.kept.glob("*.json")} if self.kept.is_dir() else {}
        if present != wanted:
            remove(self.kept)
            for name, content in wanted.items():
                replace(self.kept / name, content)
        if standing.read_state(self.release).get("verdict") != standing.GOOD:
            standing.write_state(self.release, verdict=standing.GOOD, since=standing.now(), reason="")

    def _go_back(self, begun: Sequence[Service], before: str, error: ReleaseError) -> ReleaseError:
        """Return to the configuration that was good last, and say what came of it."""
        host = self.host
        good = {path.name: path.read_bytes() for path in self.kept.glob("*.json")} if self.kept.is_dir() else {}
        target = _release_of(good)
        if self.app["id"] not in (before, target):
            standing.write_state(
                self.release, verdict=standing.BAD, since=standing.now(), reason=error.problem.splitlines()[0]
            )
        if not target or not is_complete(host.releases(self.name) / target):
            return ReleaseError(error.step, f"{error.problem}\nthere is no good release to go back to", error.fix)
        host.actions.append(f"return {self.name} to release {target}")
        if read(self.secrets) != good[self.secrets.name]:  # else those that were not touched would have to restart
            replace(self.secrets, good[self.secrets.name])
        for service in begun:
            content = good.get(service.config.name)
            if content is None:  # it is new: nothing of it was good
                with contextlib.suppress(ReleaseError):
                    self.manager.stop(service.name, service.stop_timeout + _MARGIN)
                service.config.unlink()
                continue
            replace(service.config, content)
            try:
                restart(self.manager, service)
                self._see_well(service)
            except ReleaseError as second:
                return ReleaseError(
                    error.step, f"{error.problem}\nand going back to release {target} failed too: {second}", error.fix
                )
        return ReleaseError(error.step, f"{error.problem}\nrelease {target} is live again", error.fix)


def ask(probe: Mapping[str, Any]) -> str:
    """Ask a server; empty when the answer is good, else what is wrong with it."""
    status, error = get(probe)
    if error:
        return f"no answer from {probe['address']}:{probe['port']}: {error}"
    return "" if status < probe["below"] else f"{probe['path']} is answered with {status}"


def get(probe: Mapping[str, Any]) -> tuple[int, str]:
    """Return the status of a server's answer, or why there is none."""
    connection = http.client.HTTPConnection(probe["address"], probe["port"], timeout=10)
    try:
        connection.request("GET", probe["path"], headers={"Host": probe["host"], "Connection": "close"})
        return connection.getresponse().status, ""
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _release_of(files: Mapping[str, bytes]) -> str:
    return next(filter(None, map(release_of, files.values())), "")
