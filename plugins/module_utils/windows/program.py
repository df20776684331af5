# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's half of wsgi.fleet.win_release: takes a request, does what it says, and answers in JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import (
    ReleaseError,
    failure_message,
    suggest_fix,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import front as nginx
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import scm
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, remove
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.live import Switch, get
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.releases import (
    Builder,
    environment_for_downloads,
    is_complete,
    live_release,
    prune,
    refuse_bad,
)

FIREWALL_GROUP = "wsgi.fleet"


class Run:
    """One request."""

    def __init__(self, request: Mapping[str, Any], python: str) -> None:
        self.request = request
        self.host = Host(
            root=Path(request["root"]),
            data=Path(request["data"]),
            python=python,
            check=request["check"],
            environment=request["environment"],
            timeout=request["timeout"],
        )
        self.failures: list[dict[str, str]] = []
        self.wanted: list[str] = []
        self.wheels = ""
        self.results: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        """Do it, and tell everything that a task may want to know."""
        states = {"built": self.build, "live": self.go_live, "finished": self.finish, "asked": self.ask}
        states[self.request["state"]]()
        host = self.host
        result: dict[str, Any] = {
            "changed": bool(host.actions),
            "actions": host.actions,
            "warnings": host.warnings,
            "wanted": self.wanted,
            "apps": {app["name"]: {"id": app["id"], "live": live_release(host, app["name"])} for app in self.apps},
        }
        if self.request["state"] == "built":
            result.update(self.look())
        if self.request["state"] == "asked":
            result.update(results=self.results, look=self.releases())
        if host.diff:
            result["diff"] = host.diff
        if self.failures:
            result.update(failed=True, failures=self.failures, msg=failure_message(self.failures, len(self.apps)))
        return result

    def look(self) -> dict[str, Any]:
        """Say what the host should have and what it should not, for the modules that see to it."""
        wanted = {service["name"].casefold() for service in self.request["services"]}
        present = scm.owned_services(str(self.host.service_host))
        known = {name.casefold() for name in present}
        return {
            "services": self.request["services"],
            "obsolete_services": [name for name in present if name.casefold() not in wanted],
            "obsolete_rules": [
                name for name in scm.firewall_rules(FIREWALL_GROUP) if name not in self.request["rules"]
            ],
            # In check mode there may be neither the account nor the directory yet.
            "rights": [
                right
                for right in self.request["rights"]
                if not self.host.check or (right["service"].casefold() in known and Path(right["path"]).is_dir())
            ],
        }

    @property
    def apps(self) -> list[dict[str, Any]]:
        return list(self.request["apps"])

    def attempt(self, name: str, function: Callable[[], None]) -> None:
        """One application's failure is its own."""
        try:
            function()
        except ReleaseError as error:
            self.failures.append({"app": name, "step": error.step, "problem": error.problem, "fix": error.fix})
        except OSError as error:
            text = f"{error.strerror or error}: {error.filename}"
            self.failures.append(
                {"app": name, "step": self.request["state"], "problem": text, "fix": suggest_fix(text)}
            )

    # -- state built --

    def build(self) -> None:
        """Build what is missing, as far as what it takes is here; say what else to bring."""
        environment_for_downloads(self.host.environment)
        if self.request.get("wheels"):
            archive = Path(self.request["wheels"])
            self.wheels = str(archive.with_name("wheelhouse"))
            extract(archive, Path(self.wheels), strip=False)
        if self.request["service_host"]:
            self.host.write(self.host.service_host, self.request["service_host"].encode(), shown=False)
        for right in self.request["rights"]:
            if not self.host.check:
                Path(right["path"]).mkdir(parents=True, exist_ok=True)
        for app in self.apps:
            if not self.host.check:
                (self.host.data / app["name"] / "var" / "shared").mkdir(parents=True, exist_ok=True)
            self.attempt(app["name"], lambda app=app: self.build_one(app))  # type: ignore[misc]
        front = self.request["front"]
        if front and not nginx.program(self.host, front).is_file():
            self.attempt("nginx", lambda: self.unpack(front))

    def build_one(self, app: Mapping[str, Any]) -> None:
        host, release = self.host, self.host.releases(app["name"]) / app["id"]
        refuse_bad(host, app["name"], app["id"], self.request["bad"])
        if is_complete(release):
            return
        if app["fixed"]:
            kept = [path.name for path in sorted(release.parent.glob("*")) if is_complete(path)]
            raise ReleaseError(
                "choose",
                f"release {app['id']} is not on this host; kept are {', '.join(kept) or 'none'}",
                "name one of these, or let the source decide",
            )
        if not host.check and not self.request["brought"]:
            self.wanted.append(app["name"])
            return
        host.actions.append(f"build release {app['id']} of {app['name']} from {app['description']}")
        if not host.check:
            Builder(host, app, self.wheels).build()

    def unpack(self, front: Mapping[str, Any]) -> None:
        if not self.host.check and not self.request["brought"]:
            self.wanted.append("nginx")
            return
        self.host.actions.append(f"unpack nginx {front['id']}")
        if not self.host.check:
            nginx.unpack(self.host, front)

    # -- state live --

    def go_live(self) -> None:
        """Restart what is not what it should be."""
        manager = scm.Services()
        for app in self.apps:
            self.attempt(app["name"], Switch(self.host, manager, app).make_live)
        front = self.request["front"]
        if front:
            self.attempt("nginx", nginx.Front(self.host, manager, front).make_live)

    # -- state asked --

    def ask(self) -> None:
        """Ask every instance, and answer as module probe does."""
        for app in self.apps:
            for instance in app["instances"]:
                probe = instance["probe"]
                started = time.monotonic()
                status, error = get(probe)
                self.results.append(
                    {
                        "name": app["name"],
                        "url": f"http://{probe['host']}:{probe['port']}{probe['path']}",
                        "status": status,
                        "seconds": round(time.monotonic() - started, 3),
                        "error": error,
                        "good": not error and status < probe["below"],
                    }
                )

    def releases(self) -> str:
        """Return the live releases, in the form of the links that a Linux host has."""
        live = {app["name"]: live_release(self.host, app["name"]) for app in self.apps}
        return "\n".join(f"{name}/current releases/{release}" for name, release in live.items() if release)

    # -- state finished --

    def finish(self) -> None:
        """Remove what is not needed any more; its services are gone by now."""
        known = {app["name"] for app in self.apps}
        for app in self.apps:
            live = live_release(self.host, app["name"])
            self.attempt(
                app["name"],
                lambda app=app, live=live: prune(  # type: ignore[misc]
                    self.host, app["name"], app["keep_releases"], {live, app["id"]}
                ),
            )
            self.attempt(app["name"], lambda app=app: self.drop_instances(app))  # type: ignore[misc]
        data_too = {app["name"] for app in self.request["removed"] if not app["keep_data"]}
        directory = self.host.root / "apps"
        present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        for name in sorted((present | data_too) - known):
            self.attempt(name, lambda name=name: self.remove_app(name, name in data_too))  # type: ignore[misc]
        front, unpacked = self.request["front"], self.host.root / "nginx"
        obsolete = [unpacked, self.host.data / "nginx"]
        if front:
            obsolete = [path for path in unpacked.glob("*") if path.name != front["id"]]
        for path in obsolete:
            self.attempt("nginx", lambda path=path: self.remove_path(path))  # type: ignore[misc]

    def drop_instances(self, app: Mapping[str, Any]) -> None:
        wanted = {f"{instance['service']}.json" for instance in app["instances"]}
        for path in sorted(self.host.config(app["name"]).glob("*.json")):
            if path.name not in wanted:
                self.remove_path(path)

    def remove_app(self, name: str, data_too: bool) -> None:
        for path in (self.host.app(name), self.host.data / name if data_too else self.host.config(name)):
            self.remove_path(path)

    def remove_path(self, path: Path) -> None:
        if path.exists():
            self.host.actions.append(f"remove {path}")
            if not self.host.check:
                remove(path)


def main(request: Mapping[str, Any], python: str) -> None:
    """Print the answer, in ASCII, whatever the console's code page is."""
    print(json.dumps(Run(request, python).answer()))
