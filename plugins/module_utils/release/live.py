# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a release goes live: proven beside the live one, switched, found to be good; or left again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils import probing
from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.build import Job, attempt
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, tail
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import (
    CHANGING,
    SYSTEM_PATH,
    UNKNOWN,
    Host,
    is_complete,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App

CHECK_TIMEOUT = 120  # seconds; gunicorn would give a worker less to come up
ANSWER_TIMEOUT = 5.0  # seconds for one answer
PAUSE = 0.2  # seconds between two questions
LOG_BYTES = 8192
REASON_LENGTH = 2000  # characters
STOP_TIMEOUT = 5.0  # seconds; a server on trial has no visitors to be polite to


def checked(host: Host, jobs: list[Job]) -> dict[str, Any]:
    """Run what must succeed in the next release before any host of the fleet switches to it."""

    def check(job: Job) -> None:
        release = host.linked(job.app.name, "next")
        if release and release != host.linked(job.app.name, "current"):
            _check(host, job.app, release)

    for job in jobs:
        attempt(job, check, job)
    return {}


def _check(host: Host, app: App, release: str) -> None:
    """Hooks after the build and the application's own check, once for a release and a configuration."""
    path = host.root / app.name / "releases" / release
    digest = standing.config_digest(host.config / app.name)
    if host.check or standing.read_state(path).get("checked") == digest:
        return
    _hooks(host, app, "after_build", "--next")
    if app.check:
        host.command(_within(host, app, "--next", *app.check), "check", timeout=CHECK_TIMEOUT)
    standing.write_state(path, checked=digest)


def migrated(host: Host, jobs: list[Job], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Run the migrations of releases that are about to go live. Call it on one host of the fleet only."""

    def migrate(job: Job) -> None:
        name = job.app.name
        release = _next(host, name, expected)
        if not job.app.migrate or not release or release == host.linked(name, "current"):
            return
        path = host.root / name / "releases" / release
        if not standing.read_state(path).get("migrated") and host.act(f"{name}: migrate with {release}"):
            host.command(_within(host, job.app, "--next", *job.app.migrate), "migrate")
            standing.write_state(path, migrated=True)

    for job in jobs:
        attempt(job, migrate, job)
    return {}


def tried(host: Host, jobs: list[Job]) -> dict[str, Any]:
    """Let what is new, release or configuration, serve a request on a socket of its own, before visitors meet it."""

    def attend(job: Job) -> None:
        name = job.app.name
        release, live = host.linked(name, "next"), host.linked(name, "current")
        settled = release == live and is_settled(host.root / name / "releases" / live, host.config / name)
        if release and not settled and not host.check:
            try_out(host, job.app, release)

    for job in jobs:
        attempt(job, attend, job)
    return {}


def switched(host: Host, jobs: list[Job], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Make `current` what `next` is, once that has served a request beside it."""
    apps: dict[str, Any] = {}

    def switch(job: Job) -> None:
        name = job.app.name
        previous = host.linked(name, "current")
        release = _next(host, name, expected)
        if not release and not host.check:
            raise ReleaseError(
                "switch", f"{host.root}/{name}/next names no complete release", "build one first (role app, main)"
            )
        release = release or UNKNOWN
        if release != previous:
            if not host.check:
                _check(host, job.app, release)
                try_out(host, job.app, release)
                _hooks(host, job.app, "before_switch", "--next")
            if host.act(f"{name}: current: {previous or 'none'} -> {release}"):
                (host.root / name / CHANGING).touch()
                # Good or not before, it has to be found so again: the last good one is the one that was live last.
                standing.write_state(host.root / name / "releases" / release, settled=False, well="")
                host.set_link(name, "current", release)
        apps[name] = {"id": release, "previous": previous}

    for job in jobs:
        attempt(job, switch, job)
    return {"apps": apps}


def judged(host: Host, jobs: list[Job]) -> dict[str, Any]:
    """Ask what is live, once for a release and a configuration. When all of the fleet is well, it is `finished`."""
    for job in jobs:
        attempt(job, _judge, host, job.app)
    return {}


def finished(host: Host, jobs: list[Job]) -> dict[str, Any]:
    """What is live and well is good, and the configuration that it is good with is kept beside it."""

    def finish(job: Job) -> None:
        name = job.app.name
        _judge(host, job.app)
        release = host.linked(name, "current")
        path = host.root / name / "releases" / release
        if release and not is_settled(path, host.config / name) and host.act(f"{name}: {release} is good"):
            standing.mark_good(path, host.config / name)
            standing.write_state(path, settled=True, returned=False)

    for job in jobs:
        attempt(job, finish, job)
    return {}


def _judge(host: Host, app: App) -> None:
    release = host.linked(app.name, "current")
    path, config = host.root / app.name / "releases" / release, host.config / app.name
    state, digest = standing.read_state(path), standing.config_digest(config)
    changing = host.root / app.name / CHANGING
    if not release:
        return
    if not is_settled(path, config) and state.get("well") != digest:
        if host.act(f"{app.name}: {release} is well"):
            _hooks(host, app, "after_rollback" if state.get("returned") else "after_switch")
            _ask(host, app)
            standing.write_state(path, well=digest)
            changing.unlink(missing_ok=True)
    elif changing.exists() and host.act(f"{app.name}: its answers may be cached again"):
        changing.unlink()  # left by a run that was killed


def is_settled(release: Path, config: Path) -> bool:
    """Whether a live release was found to be good since it went live, just as it is."""
    return standing.is_good(release, config) and bool(standing.read_state(release).get("settled"))


def returned(host: Host, jobs: list[Job], to: Mapping[str, str], *, previous: bool, reason: str) -> dict[str, Any]:
    """Go back to the release that was good last, with its configuration; with a `reason`, what is left by that is bad.

    With `previous` the live release is left even when it was good; `to` names another one than the last good.
    """
    apps: dict[str, Any] = {}

    def go_back(job: Job) -> None:
        name = job.app.name
        home = host.root / name / "releases"
        live, following = host.linked(name, "current"), host.linked(name, "next")
        target = to.get(name) or standing.last_good(home, without=live if previous else "")
        if not target or not is_complete(home / target):
            known = sorted(path.name for path in home.iterdir() if is_complete(path)) if home.is_dir() else []
            what = f"release {target} is not there" if target else "no other release was found to be good here"
            raise ReleaseError("return", what, f"name one of those that are there: {', '.join(known) or 'none'}")
        for release in sorted({live, following} - {"", target}):
            bad = standing.read_state(home / release).get("verdict") == standing.BAD
            if reason and not bad and host.act(f"{name}: {release} is bad: {reason.splitlines()[0]}"):
                standing.mark_bad(home / release, reason[:REASON_LENGTH])
        restored = standing.restore_config(home / target, host.config / name, check=host.check)
        host.actions += [f"{name}: {file} as it was with {target}" for file in restored]
        if live != target and not host.check:
            (host.root / name / CHANGING).touch()
            standing.write_state(home / target, settled=False, returned=True, well="")
        for link, now in (("next", following), ("current", live)):
            if now != target and host.act(f"{name}: {link}: {now or 'none'} -> {target}"):
                host.set_link(name, link, target)
        apps[name] = {"id": target, "previous": live}

    for job in jobs:
        attempt(job, go_back, job)
    return {"apps": apps}


def _next(host: Host, name: str, expected: Mapping[str, Any]) -> str:
    """What `next` names; in check mode what it would name, as far as that is known."""
    would = expected.get(name) if host.check else None
    return str(would["id"] or UNKNOWN) if would else host.linked(name, "next")


def _within(host: Host, app: App, *words: str) -> list[str]:
    """A command run as the application itself is run."""
    return [str(host.config / app.name / "run"), *words]


def _hooks(host: Host, app: App, point: str, *options: str) -> None:
    for argv in app.hooks.get(point, ()):
        host.command(_within(host, app, *options, *argv), f"hook {point}")


def before_build(host: Host, app: App) -> None:
    """Run the first hook, where a live release gives it an environment to run in."""
    if host.linked(app.name, "current"):
        _hooks(host, app, "before_build")


# -- asking ----------------------------------------------------------------------------------------------------


def try_out(host: Host, app: App, release: str) -> None:
    """Serve one good answer from the next release, beside the live one and where no visitor gets to it.

    Once for a release and a configuration.
    """
    path = host.root / app.name / "releases" / release
    digest = standing.config_digest(host.config / app.name)
    if not app.serve or not app.probes or standing.read_state(path).get("tried") == digest:
        return
    with tempfile.TemporaryDirectory(prefix="wsgi-fleet-") as directory, tempfile.TemporaryFile() as output:
        address = f"{directory}/trial.sock"
        first = app.probes[0]
        target = {key: first.get(key) for key in ("host", "path", "below")}
        target |= {"name": "a trial socket", "socket": address}
        with _server(_within(host, app, "--next", *app.serve), address, output) as process:
            answer = _wait_for(target, app.health_timeout, process)
        if not answer["good"]:
            output.seek(0)
            said = scrub(output.read()[-LOG_BYTES:].decode(errors="replace"), host.secrets)
            ended = f"; the server ended with status {process.returncode}" if process.returncode else ""
            raise ReleaseError(
                "trial",
                f"what is new is not well, so it did not go live: {probing.told(answer)}{ended}\n{tail(said)}",
                "mend the application, or its record (health, health_timeout, env), and deploy again",
            )
    standing.write_state(path, tried=digest)


@contextlib.contextmanager
def _server(argv: list[str], address: str, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A server that finds a listening socket in its standard input, as supervisord would give it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(16)
        process = subprocess.Popen(
            argv,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
            stdin=listener.fileno(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(
    target: Mapping[str, Any], seconds: float, process: Optional[subprocess.Popen[bytes]] = None
) -> dict[str, Any]:
    """The first good answer, or the last bad one within that time; a server that has ended gives no other."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probing.ask(target, min(ANSWER_TIMEOUT, max(deadline - time.monotonic(), 0.5)))
        if answer["good"] or time.monotonic() >= deadline or (process and process.poll() is not None):
            return answer
        time.sleep(PAUSE)


def _ask(host: Host, app: App) -> None:
    """Ask the live application wherever it must answer."""
    for target in app.probes:
        answer = _wait_for(target, app.health_timeout)
        if not answer["good"]:
            raise ReleaseError(
                "health",
                f"the application is not well: {probing.told(answer)}\n{_last_lines(host.logs / app.name)}",
                f"look into {host.logs}/{app.name}/; what was good before comes back with playbooks/rollback.yml",
            )


def _last_lines(directory: Path) -> str:
    """The end of the log that was written to last."""
    logs = [path for path in directory.glob("*.log") if path.is_file()] if directory.is_dir() else []
    if not logs:
        return ""
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    with newest.open("rb") as stream:
        stream.seek(max(newest.stat().st_size - LOG_BYTES, 0))
        return f"{newest.name}:\n{tail(stream.read().decode(errors='replace'))}"
