"""What serves an app: everything that differs between the values of a record's `server`, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from . import _gunicorn, _mod_wsgi, _waitress
from ._checks import Where, show

CONFIG = "/etc/wsgi-fleet"
# In the app's directory below CONFIG: what its processes are started from. All of them, whoever serves: a program that
# is the same for supervisord before and after a change of the server has its processes replaced one after the other.
FILES = (
    *("env", "run", "start", "gunicorn.conf.py", "waitress.json", "wsgi_host.py"),
    *("mod_wsgi.json", "express_host.py"),
)

App = Mapping[str, Any]


class Server(Protocol):
    """A kind of server. Its commands run in a release, through the app's `run`."""

    keys: tuple[str, ...]
    """The keys of a record that are about it."""
    program: str
    """What a release has where it is installed."""
    packages: tuple[str, ...]
    """What it needs of the distribution, to be built and to run."""

    def requirement(self, app: App) -> str:
        """Return what to install for it, pinned."""

    def check(self, app: App) -> list[str]:
        """Return the command that proves app and configuration and serves nothing."""

    def start(self, app: App) -> list[str]:
        """Return the command that serves at the listening socket in its standard input, and ends politely on TERM."""

    def trial(self, app: App) -> list[str]:
        """Return a smaller `start`, of which one answer is wanted."""

    def processes(self, app: App) -> int:
        """Return how many processes supervisord runs on each host."""

    def stop_time(self, app: App) -> tuple[str, int]:
        """Return the seconds that running requests have when a process stops, and the key that says so."""

    def idle_time(self, app: App) -> int:
        """Return the seconds that it keeps an idle connection open."""

    def answer_time(self, app: App) -> int:
        """Return the seconds after which nginx may give up a request."""

    def fits(self, app: App, where: Where) -> None:
        """Report what does not go together."""


class Gunicorn:
    """Masters on one socket, each with workers."""

    keys: tuple[str, ...] = ("gunicorn", "workers", "masters")
    program = "gunicorn"
    packages: tuple[str, ...] = ()

    def requirement(self, app: App) -> str:
        return _gunicorn.requirement(app["gunicorn"]["version"], app["gunicorn"]["settings"]["worker_class"])

    def check(self, app: App) -> list[str]:
        return ["gunicorn", "--check-config", *self._config(app)]

    def start(self, app: App) -> list[str]:
        return ["gunicorn", *self._config(app)]

    def trial(self, app: App) -> list[str]:
        return ["gunicorn", "--workers", "1", *self._config(app)]

    def processes(self, app: App) -> int:
        return int(app["masters"])

    def stop_time(self, app: App) -> tuple[str, int]:
        return "gunicorn.graceful_timeout", app["gunicorn"]["settings"]["graceful_timeout"]

    def idle_time(self, app: App) -> int:
        return int(app["gunicorn"]["settings"]["keepalive"])

    def answer_time(self, app: App) -> int:
        # gunicorn gives up first, so that its own answer is seen; an hour where it never does (timeout 0).
        timeout = app["gunicorn"]["settings"]["timeout"]
        return min(timeout + 5, 86400) if timeout else 3600

    def fits(self, app: App, where: Where) -> None:
        python, version = app.get("python"), app["gunicorn"]["version"]
        if python and int(python.split(".")[1]) < 10 and _gunicorn.release(version) >= (24, 0):
            where.at("python").fail(
                f"is {show(python)}, but gunicorn {version} needs 3.10 or newer; choose a newer Python, "
                'or give gunicorn.version "23.0.0"'
            )

    @staticmethod
    def _config(app: App) -> list[str]:
        return ["-c", f"{CONFIG}/{app['name']}/gunicorn.conf.py"]


class _Hosted:
    """Processes on one socket, each in a program of ours, which stops without cutting a request."""

    keys: tuple[str, ...]
    packages: tuple[str, ...] = ()
    host: str
    """The program; what it reads is called as the key of the record."""
    oldest_python: tuple[int, int]

    def requirement(self, app: App) -> str:
        return f"{self.keys[0]}=={self._about(app)['version']}"

    def check(self, app: App) -> list[str]:
        return self._command(app, "--check")

    def start(self, app: App) -> list[str]:
        return self._command(app)

    def trial(self, app: App) -> list[str]:
        return self._command(app)

    def processes(self, app: App) -> int:
        return int(self._about(app)["instances"])

    def stop_time(self, app: App) -> tuple[str, int]:
        return f"{self.keys[0]}.stop_timeout", self._about(app)["stop_timeout"]

    def fits(self, app: App, where: Where) -> None:
        python, (major, minor) = app.get("python"), self.oldest_python
        if python and tuple(map(int, python.split("."))) < self.oldest_python:
            where.at("python").fail(
                f"is {show(python)}, but server {app['server']} needs {major}.{minor} or newer; choose a newer Python"
            )

    def _about(self, app: App) -> dict[str, Any]:
        return dict(app[self.keys[0]])

    def _command(self, app: App, *options: str) -> list[str]:
        config = f"{CONFIG}/{app['name']}"
        return ["python", f"{config}/{self.host}", *options, f"{config}/{self.keys[0]}.json"]


class Waitress(_Hosted):
    """Processes with threads."""

    keys: tuple[str, ...] = ("waitress",)
    program = "waitress-serve"
    host = "wsgi_host.py"
    oldest_python = _waitress.OLDEST_PYTHON

    def idle_time(self, app: App) -> int:
        return int(_waitress.complete_settings(app["waitress"]["settings"])["channel_timeout"])

    def answer_time(self, app: App) -> int:
        # waitress never gives up; this is nginx's own.
        return 60


class ModWsgi(_Hosted):
    """Apaches of the app's own, each with processes and threads."""

    keys: tuple[str, ...] = ("mod_wsgi",)
    program = "mod_wsgi-express"
    packages: tuple[str, ...] = ("apache2-bin", "apache2-dev")  # without the service that the package apache2 is
    host = "express_host.py"
    oldest_python = _mod_wsgi.OLDEST_PYTHON

    def idle_time(self, app: App) -> int:
        # One request for each connection: a stop needs to know when nobody is there any more.
        return 0

    def answer_time(self, app: App) -> int:
        # Apache gives up first, so that its own answer is seen.
        return int(_mod_wsgi.complete_settings(app["mod_wsgi"]["settings"])["socket_timeout"]) + 5


SERVERS: dict[str, Server] = {"gunicorn": Gunicorn(), "waitress": Waitress(), "mod_wsgi": ModWsgi()}


def server_of(app: App) -> Server:
    """Return what serves an app."""
    return SERVERS[app["server"]]


def start_otherwise(app: App) -> list[dict[str, Any]]:
    """Return how other servers serve the app's live release, while the next one is to be served by its own."""
    own = server_of(app).program
    return [
        {"without": own, "program": other.program, "command": other.start(app)}
        for other in SERVERS.values()
        if other.program != own
    ]


def refuse_others(given: Mapping[str, Any], server: str, where: Where) -> None:
    """Report keys of a record that are about a server which does not serve it."""
    for name, other in SERVERS.items():
        for key in other.keys:
            if name != server and key in given:
                where.at(key).fail(f"is about {name}, but server is {server}; leave it out, or set server to {name}")
