# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What runs: instances are restarted one after the other, and all go back when one is not well.

A file in use cannot be replaced on Windows, so nothing is switched but configuration: each instance's names the release
that it runs from. An instance whose process is older than its configuration is restarted, however the run ended that
wrote it.

What a release was good with is kept beside the configuration, in `good`: a directory for each.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, tail
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read, remove, replace
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.releases import (
    KEPT,
    configured,
    in_order,
    is_complete,
    live_release,
    release_of,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.services import probe_at

# How much longer than the service itself we wait for it to end or to begin.
_MARGIN = 30
_REASON_LENGTH = 2000  # characters
SECRETS = "environment.json"
# In the environment of an instance that is on trial: where it is to listen.
TRIAL = "WSGI_FLEET_TRIAL"


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


Setup = dict[str, bytes]
"""The configuration of an application: the file of each instance, and SECRETS."""


class Switch:
    """The instances of one application."""

    def __init__(self, host: Host, manager: Manager, app: Mapping[str, Any]) -> None:
        self.host = host
        self.manager = manager
        self.app = app
        self.name = str(app["name"])
        self.home = host.releases(self.name)
        self.directory = host.config(self.name)
        self.secrets = self.directory / "secrets" / SECRETS
        self.live = live_release(host, self.name)

    # -- what is to be, what is, and what was good

    def wanted(self) -> Setup:
        """Return the configuration of the release that the request names."""
        release = self.home / self.app["id"]
        paths = {
            "venv": str(release / "venv"),
            "directory": str(release / "src" / self.app["subdirectory"]),
            "environment_file": str(self.secrets),
        }
        files = {
            f"{instance['service']}.json": _text({**instance["config"], **paths}) for instance in self.app["instances"]
        }
        return {**files, SECRETS: _text(self.app["secrets"])}

    def present(self) -> Setup:
        """Return what is in place; an instance that was left on trial as it was to be."""
        files = {path.name: _off_trial(path.read_bytes()) for path in configured(self.host, self.name)}
        return {**files, SECRETS: read(self.secrets) or _text({})} if files else {}

    def kept(self, release: str) -> Setup:
        """Return the configuration that a release was good with; empty when it never was, or is not there."""
        place = self.directory / KEPT / release
        if not release or not is_complete(self.home / release) or not (place / SECRETS).is_file():
            return {}
        return {path.name: path.read_bytes() for path in place.glob("*.json")}

    def fitted(self, setup: Setup) -> Setup:
        """Return a setup for the instances and ports that there are now: of these, nginx and balancers know."""
        if not setup:
            return {}
        model = json.loads(next(content for name, content in setup.items() if name != SECRETS))
        found = {SECRETS: setup[SECRETS]}
        for name, content in self.present().items():
            if name == SECRETS:
                continue
            now, then = json.loads(content), json.loads(setup[name]) if name in setup else model
            own = {"service": now["service"], "log_file": now["log_file"]}
            found[name] = _text({**then, **own, "waitress": {**then["waitress"], "listen": listens(now)}})
        return found

    def differing(self, setup: Setup) -> list[Service]:
        """Return the instances that do not run with this setup."""
        secrets_differ = read(self.secrets) != setup.get(SECRETS)
        return [
            service
            for service in self._services(setup)
            if secrets_differ
            or read(service.config) != service.content
            or is_stale(self.manager, service.name, (service.config, self.secrets))
        ]

    def _services(self, setup: Setup) -> list[Service]:
        return [self._service(name, setup[name]) for name in in_order(setup) if name != SECRETS]

    def _service(self, name: str, content: bytes) -> Service:
        config = json.loads(content)
        return Service(
            name=config["service"],
            config=self.directory / name,
            content=content,
            probe=probe_at(self.app["health"], config["waitress"]["listen"]),
            log=Path(config["log_file"]),
            start_timeout=config["start_timeout"],
            stop_timeout=config["stop_timeout"],
        )

    def refuse_another_layout(self) -> None:
        """A deploy brings releases: how many instances there are and where they listen concerns others too."""
        wanted = {instance["service"]: listens(instance["config"]) for instance in self.app["instances"]}
        files = configured(self.host, self.name)
        present = {path.stem: listens(json.loads(path.read_bytes())) for path in files}
        if present != wanted:
            said = [
                ", ".join(f"{name} on {where}" for name, where in layout.items()) or "none"
                for layout in (present, wanted)
            ]
            raise ReleaseError(
                "instances",
                f"this host has the instances {said[0]}; wanted are {said[1]}",
                "run site.yml, which tells services, firewall, nginx and balancers as well",
            )

    # -- going live

    def make_live(self) -> None:
        """Bring every instance to what it should be; all go back when one is not well."""
        setup = self.wanted()
        todo = self.differing(setup)
        if not todo:
            return
        changes = self.app["id"] != self.live
        if changes and not self.host.check:
            # Good or not before, it has to be found so again: the last good one is the one that was live last.
            standing.write_state(self.home / self.app["id"], settled=False)
        begun: list[Service] = []
        try:
            # With one instance alone, a trial would only make the interruption longer.
            self._bring(setup, todo, begun, trial=changes and bool(self.live) and self.app["trial"] and len(setup) > 2)
        except ReleaseError as error:
            raise self._go_back(begun, error) from error

    def mend(self) -> None:
        """Let what is live run, as it was good."""
        setup = self.fitted(self.kept(self.live)) or self.present()
        self._bring(setup, self.differing(setup), [])

    def give_up(self, to: str, left: str, reason: str, *, previous: bool) -> None:
        """Go back to a release that was good, as it was then. With a reason, what is left by that is bad.

        With `previous`, the live one is left even when it was good; `to` names another one than the last good.
        """
        target = to or self._last_good(previous=previous)
        setup = self.fitted(self.kept(target))
        if not setup:
            good = sorted(path.name for path in self.home.glob("*") if self.kept(path.name))
            what = f"release {target} was never good here" if target else "no other release was found to be good here"
            raise ReleaseError("return", what, f"name one of those that were: {', '.join(good) or 'none'}")
        going = {self.live, left} - {"", target}
        if not previous:
            self._mark_bad(going, reason)
        todo, before = self.differing(setup), self.present()
        if self.live != target and not self.host.check:
            standing.write_state(self.home / target, settled=False)
        if todo:
            self.host.actions.append(f"return {self.name} to release {target}")
        begun: list[Service] = []
        try:
            self._bring(setup, todo, begun)
        except ReleaseError as error:
            if not previous:
                raise
            raise self._undo(begun, before, self.live, error) from error
        if previous:
            self._mark_bad(going, reason)

    def _last_good(self, *, previous: bool) -> str:
        is_good = standing.read_state(self.home / self.live).get("verdict") == standing.GOOD if self.live else False
        return self.live if is_good and not previous else standing.last_good(self.home, without=self.live)

    def _mark_bad(self, releases: Iterable[str], reason: str) -> None:
        for release in releases:
            path = self.home / release
            bad = standing.read_state(path).get("verdict") == standing.BAD
            if reason and is_complete(path) and not bad:
                self.host.actions.append(f"{self.name}: {release} is bad: {reason.splitlines()[0]}")
                if not self.host.check:
                    standing.mark_bad(path, reason[:_REASON_LENGTH])

    def _bring(self, setup: Setup, todo: Sequence[Service], begun: list[Service], *, trial: bool = False) -> None:
        """Restart instances with another configuration, one after the other; each has to be well before the next."""
        host = self.host
        if todo:
            host.write(self.secrets, setup[SECRETS], shown=False)
        for service in todo:
            begun.append(service)
            host.write(service.config, service.content)
            host.actions.append(f"restart {service.name}")
            if host.check:
                continue
            if trial and service is todo[0]:
                self._try(service)
            self._restart(service)
            self._see_well(service)

    def _try(self, service: Service) -> None:
        """Let an instance answer from the new release where no visitor gets to it."""
        config = json.loads(service.content)
        config["environment"][TRIAL] = config["waitress"]["listen"]
        config["waitress"]["listen"] = f"127.0.0.1:{_free_port()}"
        aside = self._service(service.config.name, _text(config))
        replace(aside.config, aside.content)
        self._restart(aside)
        self._see_well(aside)
        replace(service.config, service.content)

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

    def _go_back(self, begun: Sequence[Service], error: ReleaseError) -> ReleaseError:
        """Return to the configuration that was good last, and say what came of it."""
        target = self._last_good(previous=False)
        good = self.kept(target)
        if self.app["id"] not in (self.live, target):
            standing.mark_bad(self.home / self.app["id"], error.problem.splitlines()[0])
        if not good:
            return ReleaseError(error.step, f"{error.problem}\nthere is no good release to go back to", error.fix)
        return self._undo(begun, good, target, error)

    def _undo(self, begun: Sequence[Service], setup: Setup, release: str, error: ReleaseError) -> ReleaseError:
        """Bring back the instances that have begun to change."""
        self.host.actions.append(f"return {self.name} to release {release}")
        if read(self.secrets) != setup[SECRETS]:  # else those that were not touched would have to restart
            replace(self.secrets, setup[SECRETS])
        for service in begun:
            content = setup.get(service.config.name)
            if content is None:  # it is new: nothing of it was good
                with contextlib.suppress(ReleaseError):
                    self.manager.stop(service.name, service.stop_timeout + _MARGIN)
                service.config.unlink()
                continue
            replace(service.config, content)
            try:
                earlier = self._service(service.config.name, content)
                restart(self.manager, earlier)
                self._see_well(earlier)
            except ReleaseError as second:
                return ReleaseError(
                    error.step, f"{error.problem}\nand going back to release {release} failed too: {second}", error.fix
                )
        return ReleaseError(error.step, f"{error.problem}\nrelease {release} is live again", error.fix)

    # -- and being good

    def settle(self) -> None:
        """Note that what is live is good, and keep the configuration that it is good with."""
        present = self.present()
        if not self.live or self.host.check:
            return
        state = standing.read_state(self.home / self.live)
        is_good = state.get("verdict") == standing.GOOD and state.get("settled")
        if is_good and self.kept(self.live) == present:
            return
        found = sorted({release_of(content) for name, content in present.items() if name != SECRETS})
        if found != [self.live]:
            raise ReleaseError("finish", f"its instances run from several releases: {', '.join(found)}", "run again")
        stale = [service.name for service in self.differing(present)]
        if stale:
            raise ReleaseError("finish", f"{', '.join(stale)} should run, as configured, and does not", "run again")
        for service in self._services(present):
            self._see_well(service)
        self._keep(present)
        standing.write_state(
            self.home / self.live, verdict=standing.GOOD, since=standing.now(), reason="", settled=True
        )

    def _keep(self, setup: Setup) -> None:
        place = self.directory / KEPT / self.live
        draft = place.with_name(f".{self.live}.new")
        remove(draft)
        for name, content in setup.items():
            replace(draft / name, content)
        remove(place)
        draft.rename(place)


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


def listens(config: Mapping[str, Any]) -> str:
    """Return where an instance is to listen, also while it is on trial."""
    return str(config["environment"].get(TRIAL) or config["waitress"]["listen"])


def _off_trial(content: bytes) -> bytes:
    config = json.loads(content)
    if TRIAL not in config["environment"]:
        return content
    config["waitress"]["listen"] = config["environment"].pop(TRIAL)
    return _text(config)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
