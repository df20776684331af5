# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""nginx for Windows, which our service host runs. Its configuration is tested before it takes the old one's place."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read, remove, replace
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.live import Manager, Service, is_stale, restart
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.scm import RELOAD

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


class Front:
    """The running nginx."""

    def __init__(self, host: Host, manager: Manager, front: Mapping[str, Any]) -> None:
        self.host = host
        self.manager = manager
        self.front = front
        self.home = host.data / "nginx"
        self.conf = self.home / "conf"
        config = front["config"]
        self.service = Service(
            name=config["service"],
            config=self.home / "service" / f"{config['service']}.json",
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
        changed = self._changed(wanted)
        if changed:
            self._test(wanted)
        for name in changed:
            shown = not self.front["files"].get(name, {}).get("secret")
            if name in wanted:
                host.write(self.conf / name, wanted[name], shown=shown)
            else:
                host.actions.append(f"remove {self.conf / name}")
                if not host.check:
                    (self.conf / name).unlink()
        moved = host.write(service.config, service.content)
        if moved or is_stale(self.manager, service.name, (service.config,)):
            self._restart()
        elif self._answer() != self.front["digest"]:
            self._reload()

    def _changed(self, wanted: Mapping[str, bytes]) -> list[str]:
        present = [path.relative_to(self.conf).as_posix() for path in self.conf.rglob("*") if path.is_file()]
        gone = [name for name in present if name not in wanted and not Path(name).name.startswith(".")]
        return sorted([name for name in wanted if read(self.conf / name) != wanted[name]] + gone)

    def _test(self, wanted: Mapping[str, bytes]) -> None:
        """Let nginx judge a copy; nothing live has changed when it refuses."""
        if self.host.check:
            return
        staged = self.home / "conf.new"
        remove(staged)
        try:
            for name, content in wanted.items():
                replace(staged / name, content)
                argv = [str(program(self.host, self.front)), "-t", "-q", "-e", "stderr", "-p", str(self.home)]
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

    def _answer(self) -> str:
        """Return the digest of the configuration that nginx runs with, as itself says it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.front["status_port"], timeout=5)
        try:
            connection.request("GET", "/config")
            return connection.getresponse().read().decode("ascii", "replace").strip()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


def only_ports_are_taken(output: str) -> bool:
    """Whether a test failed for ports in use alone, by the running nginx as a rule: by then all was read and right."""
    problems = [line for line in output.splitlines() if "[emerg]" in line]
    return bool(problems) and all("bind() to" in line for line in problems)
