# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which services a host is to have, how they are configured, and who may read and write what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

NGINX = "wsgi-fleet-nginx"
READ, WRITE = "ReadAndExecute", "Modify"

# What an application's record need not say; the role's specification documents the same values.
DEFAULTS: dict[str, Any] = {
    "requirements": [],
    "packages": ["waitress==3.0.2"],
    "env": {},
    "secrets": {},
    "instances": 2,
    "address": "127.0.0.1",
    "waitress": {},
    "health": {"host": "localhost", "path": "/", "below": 500},
    "health_timeout": 30,
    "trial": True,
    "start_timeout": 60,
    "stop_timeout": 30,
    "keep_releases": 5,
    "log_level": "INFO",
    "log_max_bytes": 10000000,
    "log_keep": 5,
}


def complete(app: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a record does not say."""
    given = {key: value for key, value in app.items() if value is not None}
    return {**DEFAULTS, **given, "health": {**DEFAULTS["health"], **given.get("health", {})}}


class Place(NamedTuple):
    """Where things are on a host."""

    root: str
    data: str
    python: str
    host_digest: str

    @property
    def service_host(self) -> str:
        return rf"{self.root}\bin\wsgi_host.py"

    def command(self, config: str) -> str:
        """Return a service's command line; every path in quotes, for one with a space would start something else."""
        return f'"{self.python}" -I -S "{self.service_host}" "{config}"'


def place(root: str, data: str, python: str, service_host: str) -> Place:
    """Return where things are; what changes the program that runs has to change the digest."""
    digest = hashlib.sha256(f"{python}\0{service_host}".encode()).hexdigest()[:12]
    return Place(root.rstrip("\\"), data.rstrip("\\"), python, digest)


def instances(where: Place, app: Mapping[str, Any], release: str) -> list[dict[str, Any]]:
    """Return the instances of an application: the name of its service, and its configuration."""
    home = rf"{where.data}\{app['name']}"
    found = []
    for number in range(app["instances"]):
        name, port = f"{app['name']}-{number}", app["port"] + number
        config = {
            "service": name,
            "callable": app["callable"],
            "environment": {
                **{variable: str(value) for variable, value in app["env"].items()},
                "WSGI_FLEET_APP": app["name"],
                "WSGI_FLEET_RELEASE": release,
                "WSGI_FLEET_SHARED": rf"{home}\var\shared",
                # A new interpreter or service host is taken up like any other change of the configuration.
                "WSGI_FLEET_HOST": where.host_digest,
            },
            "waitress": {**app["waitress"], "listen": _listen(app["address"], port)},
            "start_timeout": app["start_timeout"],
            "stop_timeout": app["stop_timeout"],
            "log_file": rf"{home}\var\logs\{name}.log",
            "log_level": app["log_level"],
            "log_max_bytes": app["log_max_bytes"],
            "log_keep": app["log_keep"],
        }
        found.append({"service": name, "config": config})
    return found


def services(where: Place, apps: list[Mapping[str, Any]], front: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the services for module win_service."""
    found = []
    for app in apps:
        for number in range(app["instances"]):
            name = f"{app['name']}-{number}"
            found.append(
                {
                    "name": name,
                    # Windows refuses a display name that another service has.
                    "display_name": f"{app['name']} web application ({name})",
                    "description": f"{app['callable']} under waitress on port {app['port'] + number}",
                    "path": where.command(rf"{where.data}\{app['name']}\config\{name}.json"),
                    "stop_timeout": app["stop_timeout"],
                }
            )
    if front:
        found.append(
            {
                "name": NGINX,
                "display_name": "nginx of wsgi.fleet",
                "description": "nginx in front of the web applications of this host",
                "path": where.command(rf"{where.data}\nginx\service\{NGINX}.json"),
                "stop_timeout": front["config"]["stop_timeout"],
            }
        )
    return found


def rights(where: Place, apps: list[Mapping[str, Any]], front: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return who may what in the data directory, where nobody but administrators may anything otherwise."""
    found = []
    for app in apps:
        home = rf"{where.data}\{app['name']}"
        for number in range(app["instances"]):
            name = f"{app['name']}-{number}"
            found += [_right(rf"{home}\config", name, READ), _right(rf"{home}\var", name, WRITE)]
    if front:
        home = rf"{where.data}\nginx"
        found += [_right(home, NGINX, READ)]
        found += [_right(rf"{home}\{name}", NGINX, WRITE) for name in ("logs", "temp")]
    return found


def _right(path: str, service: str, kind: str) -> dict[str, str]:
    return {"path": path, "service": service, "rights": kind}


def _listen(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def probe_at(health: Mapping[str, Any], listen: str) -> dict[str, Any]:
    """Return what to ask an instance, where it listens."""
    address, _, port = listen.rpartition(":")
    own = address.strip("[]")
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(own, own)  # noqa: S104 - not bound here
    return {**health, "address": reachable, "port": int(port)}
