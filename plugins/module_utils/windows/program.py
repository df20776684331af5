# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's half of wsgi.fleet.win_release: takes a request, does what it says, and answers in JSON."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import (
    ReleaseError,
    failure_message,
    suggest_fix,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import front as nginx
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import gate, scm
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read, remove
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.live import Switch, get
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.releases import (
    Builder,
    environment_for_downloads,
    is_complete,
    judge_bad,
    listed,
    live_release,
    prune,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.services import probe_at

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
        self.pending: list[str] = []
        self.wheels = ""

    def answer(self) -> dict[str, Any]:
        """Do it, and tell everything that a task may want to know."""
        states = {
            "built": self.build,
            "live": self.go_live,
            "finished": self.finish,
            "returned": self.go_back,
            "asked": self.ask,
            "maintained": self.maintain,
            "listed": self.list_releases,
            "held": self.hold,
            "released": self.release,
        }
        more = states[self.request["state"]]() or {}
        host = self.host
        result: dict[str, Any] = {
            "changed": bool(host.actions),
            "actions": host.actions,
            "warnings": host.warnings,
            "wanted": self.wanted,
            "apps": {app["name"]: {"id": app["id"], "live": live_release(host, app["name"])} for app in self.apps},
            **more,
        }
        if host.diff:
            result["diff"] = host.diff
        if result.get("holders"):
            result.update(failed=True, msg="another run holds the lock")
        if self.failures:
            result.update(failed=True, failures=self.failures, msg=failure_message(self.failures, len(self.apps)))
        return result

    def look(self) -> dict[str, Any]:
        """Say what the host should have and what it should not, for the modules that see to it."""
        wanted = {service["name"].casefold() for service in self.request["services"]}
        present = scm.owned_services(str(self.host.service_host))
        known = {name.casefold() for name in present}
        return {
            "pending": self.pending,
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
        """All applications that the host should have."""
        return list(self.request["apps"])

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """Those of them that this run is about."""
        only = self.request["only"]
        return [app for app in self.apps if not only or app["name"] in only]

    def stays(self, app: Mapping[str, Any]) -> bool:
        """Whether what is live stays, since the release that is wanted is bad; refuse it otherwise."""
        return judge_bad(self.host, app["name"], app["id"], self.request["bad"])

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

    def build(self) -> dict[str, Any]:
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
        manager = scm.Services()
        for app in self.chosen:
            if not self.host.check:
                (self.host.data / app["name"] / "var" / "shared").mkdir(parents=True, exist_ok=True)
            self.attempt(app["name"], lambda app=app: self.build_one(Switch(self.host, manager, app)))  # type: ignore[misc]
        front = self.front
        if front and not nginx.program(self.host, front).is_file():
            self.attempt("nginx", lambda: self.unpack(front))
        return self.look()

    def build_one(self, switch: Switch) -> None:
        host, app = self.host, switch.app
        if self.request["only"]:
            switch.refuse_another_layout()
        if self.stays(app):
            host.warnings.append(f"{app['name']}: release {app['id']} is bad, so {switch.live} stays")
            return
        if is_complete(switch.home / app["id"]):
            if switch.differing(switch.wanted()):
                self.pending.append(app["name"])
            return
        self.pending.append(app["name"])
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
        for app in self.chosen:
            switch = Switch(self.host, manager, app)
            self.attempt(app["name"], lambda switch=switch: self.go_live_one(switch))  # type: ignore[misc]
        front = self.front
        if front:
            self.attempt("nginx", nginx.Front(self.host, manager, front).make_live)

    def go_live_one(self, switch: Switch) -> None:
        if self.stays(switch.app):
            switch.mend()
        else:
            switch.make_live()

    # -- state returned --

    def go_back(self) -> None:
        """Leave what is live, or what was to be, for what was good."""
        manager, back = scm.Services(), self.request["return"]
        for app in self.chosen:
            switch, to = Switch(self.host, manager, app), back["to"].get(app["name"], "")
            self.attempt(
                app["name"],
                lambda switch=switch, to=to: switch.give_up(  # type: ignore[misc]
                    to, switch.app["id"], back["reason"], previous=back["previous"]
                ),
            )

    # -- state asked --

    def ask(self) -> dict[str, Any]:
        """Ask every instance, answer as module probe does, and say what is in maintenance."""
        results = []
        for app in self.chosen:
            for instance in app["instances"]:
                probe = probe_at(app["health"], instance["config"]["waitress"]["listen"])
                started = time.monotonic()
                status, error = get(probe)
                results.append(
                    {
                        "name": app["name"],
                        "url": f"http://{probe['host']}:{probe['port']}{probe['path']}",
                        "status": status,
                        "seconds": round(time.monotonic() - started, 3),
                        "error": error,
                        "good": not error and status < probe["below"],
                    }
                )
        state = read(nginx.maintenance_file(self.host, "state.json")) or b""
        maintenance = {
            "known": nginx.knows_maintenance(self.host, self.request["maintenance"]["status_port"]),
            "now": standing.now(),
            "state": base64.b64encode(state).decode(),
        }
        look = "\n".join([self.releases(), state.decode("utf-8", "replace")]).strip()
        return {"results": results, "look": look, "maintenance": maintenance}

    def releases(self) -> str:
        """Return the live releases, in the form of the links that a Linux host has."""
        live = {app["name"]: live_release(self.host, app["name"]) for app in self.apps}
        return "\n".join(f"{name}/current releases/{release}" for name, release in live.items() if release)

    # -- state maintained --

    def maintain(self) -> None:
        """Close sites, or open them: what nginx is told is worked out."""
        self.attempt("nginx", self.throw_switch)

    def throw_switch(self) -> None:
        told = {**self.request["maintenance"], **nginx.registered(self.host)}
        nginx.Front(self.host, scm.Services(), told, nginx.MAINTENANCE).make_live()

    # -- state listed --

    def list_releases(self) -> dict[str, Any]:
        """Say what is known of the releases."""
        return {"releases": [row for app in self.chosen for row in listed(self.host, app["name"])]}

    # -- states held and released --

    def hold(self) -> dict[str, Any]:
        """Take locks, or say who has them."""
        return {"holders": gate.hold(self.locks, self.request["lock"], check=self.host.check)}

    def release(self) -> None:
        """Give locks back."""
        gate.release(self.locks, self.request["lock"], check=self.host.check)

    @property
    def locks(self) -> Path:
        return self.host.data / "locks"

    @property
    def front(self) -> dict[str, Any] | None:
        """Return nginx, which is the whole host's: a run that is about some applications leaves it alone."""
        return None if self.request["only"] else self.request["front"]

    # -- state finished --

    def finish(self) -> dict[str, Any]:
        """Note that what is live is good, and remove what is not needed any more; its services are gone by now."""
        manager = scm.Services()
        for app in self.chosen:
            if not self.request["only"]:
                self.attempt(app["name"], lambda app=app: self.drop_instances(app))  # type: ignore[misc]
            self.attempt(app["name"], lambda app=app: self.finish_one(Switch(self.host, manager, app)))  # type: ignore[misc]
        if self.request["only"]:
            return {}
        known = {app["name"] for app in self.apps}
        removed = {app["name"]: app["keep_data"] for app in self.request["removed"]}
        directory = self.host.root / "apps"
        present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        for name in sorted((present | set(removed)) - known):
            self.attempt(name, lambda name=name: self.remove_app(name, removed))  # type: ignore[misc]
        unpacked = self.host.root / "nginx"
        obsolete = [unpacked, self.host.data / "nginx"]
        if self.front:
            front = self.front
            obsolete = [path for path in unpacked.glob("*") if path.name != front["id"]]
        for path in obsolete:
            self.attempt("nginx", lambda path=path: self.remove_path(path))  # type: ignore[misc]
        return {"in_maintenance": nginx.in_maintenance(self.host)}

    def finish_one(self, switch: Switch) -> None:
        switch.settle()
        prune(self.host, switch.name, switch.app["keep_releases"], {switch.live, switch.app["id"]})

    def drop_instances(self, app: Mapping[str, Any]) -> None:
        wanted = {f"{instance['service']}.json" for instance in app["instances"]}
        for path in sorted(self.host.config(app["name"]).glob("*.json")):
            if path.name not in wanted:
                self.remove_path(path)

    def remove_app(self, name: str, removed: Mapping[str, bool]) -> None:
        """Remove what can be made again; of one taken away on purpose logs too, and data unless they are kept."""
        home = self.host.data / name
        paths = [self.host.app(name), self.host.config(name)]
        if name in removed:
            paths.append(home / "var" / "logs")
            shared = home / "var" / "shared"
            if not removed[name] or not shared.is_dir() or not any(shared.iterdir()):
                paths.append(home)
        for path in paths:
            self.remove_path(path)

    def remove_path(self, path: Path) -> None:
        if path.exists():
            self.host.actions.append(f"remove {path}")
            if not self.host.check:
                remove(path)


def main(request: Mapping[str, Any], python: str) -> None:
    """Print the answer, in ASCII, whatever the console's code page is."""
    print(json.dumps(Run(request, python).answer()))
