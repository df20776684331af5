# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""nginx for Windows, which our service host runs. Its configuration is tested before it takes the old one's place.

It has two parts, and nginx says of each which one it goes by: that of the sites, and who is in maintenance. A run that
is about the one leaves the other as it is.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read, remove, replace
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.live import (
    Manager,
    Service,
    get,
    is_stale,
    restart,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.scm import RELOAD
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.services import NGINX

# The parts, by what nginx answers to; the second one is a directory below the first.
CONFIG, MAINTENANCE = "config", "maintenance"

# nginx gives no word on a reload: the running one is asked for its configuration, for this long.
_RELOAD_SECONDS = 5


def program(host: Host, front: Mapping[str, Any]) -> Path:
    """Return where nginx.exe is to be."""
    return Path(host.root, "nginx", str(front["id"]), "nginx.exe")


def unpack(host: Host, front: Mapping[str, Any]) -> None:
    """Unpack the archive where it is not."""
    target = program(host, front).parent
    draft = target.with_name(f"{target.name}.new")
    remove(draft)
    draft.mkdir(parents=True)
    extract(Path(front["upload"]), draft, strip=True)
    if not (draft / "nginx.exe").is_file():
        raise ReleaseError("unpack", "the archive holds no nginx.exe", "give the zip file as nginx.org publishes it")
    draft.rename(target)


def service_file(host: Host) -> Path:
    """Return where the configuration of nginx's service is."""
    return host.data / "nginx" / "service" / f"{NGINX}.json"


def maintenance_file(host: Host, name: str) -> Path:
    """Return where a file of the maintenance is, when there is one."""
    return host.data / "nginx" / "conf" / MAINTENANCE / name


def knows_maintenance(host: Host, status_port: int) -> bool:
    """Whether nginx runs, and with a configuration that has the switch."""
    probe = {"address": "127.0.0.1", "port": status_port, "host": "localhost", "path": f"/{MAINTENANCE}"}
    return service_file(host).is_file() and get(probe)[0] == 200


def in_maintenance(host: Host) -> str:
    """Say who is in maintenance and since when, as the comments have it in what nginx goes by."""
    text = (read(maintenance_file(host, "sites.map")) or b"").decode()
    return ", ".join(" ".join(found) for found in re.findall(r"(?m)^(\S+) \S+; # (since .*)$", text))


def registered(host: Host) -> dict[str, Any]:
    """Return what Front must know of the service, as it is on the host: for a run that leaves it alone."""
    text = service_file(host).read_bytes().decode()
    return {"config": json.loads(text), "service_file": text}


class Front:
    """The running nginx, and one of the parts of its configuration."""

    def __init__(self, host: Host, manager: Manager, front: Mapping[str, Any], part: str = CONFIG) -> None:
        self.host = host
        self.manager = manager
        self.front = front
        self.part = part
        self.home = host.data / "nginx"
        self.conf = self.home / "conf"
        config = front["config"]
        self.service = Service(
            name=config["service"],
            config=service_file(host),
            content=front["service_file"].encode(),
            probe={},
            log=Path(config["log_file"]),
            start_timeout=config["start_timeout"],
            stop_timeout=config["stop_timeout"],
        )

    def make_live(self) -> None:
        """Test, put in place, and see that it is what nginx runs with."""
        host, service = self.host, self.service
        wanted = {name: file["content"].encode() for name, file in self.front["files"].items()}
        ours, others = self._present()
        changed = sorted(name for name in ours.keys() | wanted.keys() if ours.get(name) != wanted.get(name))
        if changed:
            self._test({**others, **wanted})
        for name in changed:
            # What is gone may have been secret, but for a maintenance, which has no secrets.
            gone = {"secret": self.part == CONFIG}
            shown = not self.front["files"].get(name, gone).get("secret")
            host.tell(self.conf / name, wanted.get(name), shown=shown)
        if changed and not host.check:
            self._put(changed, wanted)
        moved = host.write(service.config, service.content)
        if moved or is_stale(self.manager, service.name, (service.config,)):
            self._restart()
        elif self._answer() != self.front["digest"]:
            self._reload()

    def _present(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return the files of our part, and those of the other."""
        parts: dict[bool, dict[str, bytes]] = {True: {}, False: {}}
        for path in self.conf.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(self.conf)
                closing = name.parts[0] == MAINTENANCE
                parts[closing == (self.part == MAINTENANCE)][name.as_posix()] = path.read_bytes()
        return parts[True], parts[False]

    def _put(self, changed: Sequence[str], wanted: Mapping[str, bytes]) -> None:
        for name in changed:
            # They name what batches.conf defines: without them nginx starts, wherever a run is killed.
            if name.startswith(f"{MAINTENANCE}/sites."):
                (self.conf / name).unlink(missing_ok=True)
        for name in changed:
            if name in wanted:
                replace(self.conf / name, wanted[name])
            else:
                (self.conf / name).unlink(missing_ok=True)
        if not wanted:
            remove(self.conf / MAINTENANCE)

    def _test(self, wanted: Mapping[str, bytes]) -> None:
        """Let nginx judge a copy; nothing live has changed when it refuses."""
        if self.host.check:
            return
        staged = self.home / "conf.new"
        remove(staged)
        try:
            for name, content in wanted.items():
                replace(staged / name, content)
            argv = [self.front["config"]["command"][0], "-t", "-q", "-e", "stderr", "-p", str(self.home)]
            try:
                self.host.run([*argv, "-c", str(staged / "nginx.conf")], "nginx", cwd=self.home)
            except ReleaseError as error:
                if only_ports_are_taken(error.problem):
                    return
                text = error.problem.replace("conf.new", "conf")
                raise ReleaseError("nginx", f"refuses its configuration; the old one stays: {text}") from error
        finally:
            remove(staged)

    def _restart(self) -> None:
        self.host.actions.append(f"restart {self.service.name}")
        if self.host.check:
            return
        restart(self.manager, self.service)
        self._see()

    def _reload(self) -> None:
        self.host.actions.append(f"reload {self.service.name}")
        if self.host.check:
            return
        self.manager.control(self.service.name, RELOAD)
        deadline = time.monotonic() + _RELOAD_SECONDS
        while time.monotonic() < deadline:
            if self._answer() == self.front["digest"]:
                return
            time.sleep(0.2)
        self.host.warnings.append("nginx did not take up its configuration by a reload, and was restarted")
        self._restart()

    def _see(self) -> None:
        deadline = time.monotonic() + 20
        while self._answer() != self.front["digest"]:
            if time.monotonic() > deadline:
                status = self.manager.status(self.service.name)
                raise ReleaseError(
                    "nginx",
                    f"does not run with its configuration: the service is {status.describe()}, and it answers "
                    f"{self._answer()!r} instead of {self.front['digest']!r}",
                    f"look at {self.service.log} and {self.home / 'logs' / 'error.log'}",
                )
            time.sleep(0.3)

    def _answer(self) -> Optional[str]:
        """Return the digest of the configuration that nginx runs with, as itself says it; nothing when it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.front["status_port"], timeout=5)
        try:
            connection.request("GET", f"/{self.part}")
            return connection.getresponse().read().decode("ascii", "replace").strip()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def only_ports_are_taken(output: str) -> bool:
    """Whether a test failed for ports in use alone, by the running nginx as a rule: by then all was read and right."""
    problems = [line for line in output.splitlines() if "[emerg]" in line]
    return bool(problems) and all("bind() to" in line for line in problems)
