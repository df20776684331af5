"""Brings what supervisord runs in line with its configuration; talks to it over its Unix socket.

Runs on the hosts: standard library only, Python 3.9 or newer.

A program that watches paths is started through a small script (roles/supervisor/files/launch) which puts a stamp of
those paths into the process's environment. A process is stale when its stamp is not that of the paths as they are now.
So it is the kernel that says what a process was started from: no state of ours can get lost or lie, and a run that was
killed is simply gone on with by the next one.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shlex
import socket
import subprocess
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional, Protocol

STAMP = "WSGI_FLEET_STAMP"
READY = "--ready"
POLL_SECONDS = 0.1
LAUNCH_SECONDS = 10.0  # that the launch script may take on a busy host
LOG_BYTES = 4096
LOG_LINES = 20

# supervisor.states.ProcessStates
STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL = 0, 10, 20, 30, 40, 100, 200
ALIVE = (STARTING, RUNNING, BACKOFF)
ENDED = (STOPPED, EXITED, FATAL)
CHANGING = ("state", "statename", "pid", "exitstatus", "spawnerr")
# supervisor.xmlrpc.Faults: what a process that moved on by itself answers
ALREADY_STARTED, NOT_RUNNING = 60, 70


class SupervisorError(Exception):
    """Something that an operator can act upon."""


# ------------------------------------------------------------------------------------------------------- stamps


def stamp(paths: Iterable[str]) -> str:
    """One hash over what paths are now: targets of links, contents of files. The launch script does the same."""
    lines = "".join(f"{describe(Path(path))}\n" for path in paths)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def describe(path: Path) -> str:
    """What a path is, in the words of the launch script."""
    try:
        if path.is_symlink():
            return f"link {path.readlink()}"
        if path.is_file():
            return f"file {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError:
        return "unreadable"
    return "none"


def stamp_of(pid: int, proc: str = "/proc") -> Optional[str]:
    """The stamp that a process was started with; None when it has none, or is gone."""
    for entry in environment_of(Path(proc, str(pid))).split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == STAMP.encode():
            return value.decode("ascii", "replace")
    return None


def environment_of(process: Path) -> bytes:
    """The environment of /proc/PID; empty when there is none to be read."""
    try:
        return (process / "environ").read_bytes()
    except PermissionError:
        pass
    except OSError:
        return b""
    # Root in a container often lacks CAP_SYS_PTRACE, but a process may always read those of the same user.
    try:
        owner = process.stat()
        done = subprocess.run(
            ["/bin/cat", str(process / "environ")],
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except OSError:
        return b""
    return done.stdout


class Launch(NamedTuple):
    """What a program's command line says: LAUNCHER [--ready] PATH... -- COMMAND."""

    watch: tuple[str, ...] = ()
    ready: bool = False  # it says when it is ready


def parse_launch(command: str, launcher: str) -> Launch:
    """Read a command line; one without the launcher says nothing."""
    try:
        words = shlex.split(command)
    except ValueError:
        return Launch()
    if not words or words[0] != launcher or "--" not in words:
        return Launch()
    ready = words[1] == READY
    return Launch(tuple(words[1 + ready : words.index("--")]), ready)


def is_ready(pid: int, proc: str = "/proc") -> bool:
    """Whether a process, or a child of it, has said that it is ready: by a name (comm) that ends in -ready."""
    for path in Path(proc).glob("[0-9]*/stat"):
        try:
            name, _, values = path.read_bytes().rpartition(b")")
        except OSError:  # gone meanwhile
            continue
        if name.endswith(b"-ready") and pid in (int(path.parent.name), int(values.split()[1])):
            return True
    return False


# ------------------------------------------------------------------------------------------------------ the daemon


def forgotten_sockets(directory: Path, listed: str) -> list[Path]:
    """The Unix sockets in a directory that no process holds any more.

    `listed` is the content of /proc/net/unix. supervisord leaves the path of a socket behind when it closes it.
    """
    held = {line.split(maxsplit=7)[7] for line in listed.splitlines()[1:] if len(line.split(maxsplit=7)) > 7}
    try:
        return sorted(path for path in directory.iterdir() if path.is_socket() and str(path) not in held)
    except FileNotFoundError:
        return []


class Rpc(Protocol):
    """What we use of supervisord's interface (the `supervisor` namespace of its XML-RPC)."""

    def call(self, method: str, *arguments: object) -> Any: ...  # noqa: ANN401 - what XML-RPC gives


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ANN401 - as the base class has it
        return UnixConnection(self._path, self._timeout)


class Daemon:
    """supervisord behind its socket. No call of ours blocks there: we never ask it to wait."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self._path = path
        self._timeout = timeout

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - what XML-RPC gives
        """Call supervisor.METHOD.

        Raises:
            OSError: nobody answers.
            SupervisorError: supervisord stumbled over it.
        """
        server = xmlrpc.client.ServerProxy(
            "http://localhost", transport=UnixTransport(self._path, self._timeout), allow_none=True
        )
        try:
            return getattr(server, f"supervisor.{method}")(*arguments)
        except http.client.HTTPException as error:
            msg = f"supervisord did not answer {method} at {self._path}: {error!r}"
            raise OSError(msg) from error
        except xmlrpc.client.ProtocolError as error:
            msg = f"supervisord failed at {method} {' '.join(map(str, arguments))} ({error.errcode} {error.errmsg})"
            raise SupervisorError(msg) from error


class Process(NamedTuple):
    """One process: what supervisord knows of it and what its configuration says."""

    name: str  # group:process, as supervisorctl takes it
    group: str
    state: int
    statename: str
    pid: int
    exitstatus: int
    spawnerr: str
    autostart: bool
    startsecs: int
    stopwaitsecs: int
    exitcodes: tuple[int, ...]
    priority: tuple[int, int]
    launch: Launch
    logs: tuple[str, ...]  # of stdout, stderr: those that exist

    @property
    def down(self) -> bool:
        """It should run, but has ended, and not as it was meant to."""
        return self.autostart and self.state in ENDED and not self.finished

    @property
    def finished(self) -> bool:
        """It ended as it was meant to (supervisord itself would have started it again if not)."""
        return self.state == EXITED and self.exitstatus in self.exitcodes


class Group(NamedTuple):
    """What a group's configuration says of it."""

    priority: int
    watch: frozenset[str]


def parse_groups(configs: Iterable[Mapping[str, Any]], launcher: str) -> dict[str, Group]:
    """The configured groups by name, in the order of their priorities."""
    groups: dict[str, Group] = {}
    for config in sorted(configs, key=lambda config: (int(config.get("group_prio", 999)), config["group"])):
        known = groups.get(config["group"], Group(int(config.get("group_prio", 999)), frozenset()))
        launch = parse_launch(str(config.get("command", "")), launcher)
        groups[config["group"]] = known._replace(watch=known.watch.union(launch.watch))
    return groups


def parse_processes(
    infos: Iterable[Mapping[str, Any]], configs: Iterable[Mapping[str, Any]], launcher: str
) -> list[Process]:
    """Join what runs with how it is configured, in the order of supervisor's priorities."""
    configured = {(config["group"], config["name"]): config for config in configs}
    found = []
    for info in infos:
        config = configured.get((info["group"], info["name"]), {})
        found.append(
            Process(
                name=f"{info['group']}:{info['name']}",
                group=info["group"],
                state=info["state"],
                statename=info["statename"],
                pid=info["pid"],
                exitstatus=info["exitstatus"],
                spawnerr=info["spawnerr"],
                autostart=bool(config.get("autostart", False)),
                startsecs=int(config.get("startsecs", 1)),
                stopwaitsecs=int(config.get("stopwaitsecs", 10)),
                exitcodes=tuple(config.get("exitcodes", (0,))),
                priority=(int(config.get("group_prio", 999)), int(config.get("process_prio", 999))),
                launch=parse_launch(str(config.get("command", "")), launcher),
                logs=tuple(channel for channel in ("stdout", "stderr") if info[f"{channel}_logfile"]),
            )
        )
    return sorted(found, key=lambda process: (process.priority, process.name))


# ----------------------------------------------------------------------------------------------------- reconcile


@dataclass
class Outcome:
    """What was done, or would be; names of groups in the first three, of processes in the others."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def anything(self) -> bool:
        """Whether something was, or would be, done."""
        return bool(self.added or self.changed or self.removed or self.started or self.restarted)


class Reconciler:
    """One pass over everything that supervisord runs.

    Groups of one priority are done, and up, before those of the next. A group in trouble does not stop the others: its
    error is noted and the rest is brought up to date. Only later groups that watch the same path are left as they were:
    a release that does not serve must not get at the jobs. Within a group the first process that does not come up is
    the last one touched, so that the others go on as they were.
    """

    def __init__(
        self,
        rpc: Rpc,
        launcher: str,
        patience: float,
        *,
        stamp_now: Callable[[Sequence[str]], str] = stamp,
        stamp_then: Callable[[int], Optional[str]] = stamp_of,
        ready: Callable[[int], bool] = is_ready,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rpc = rpc
        self._launcher = launcher
        self._patience = patience
        self._stamp_now = stamp_now
        self._stamp_then = stamp_then
        self._ready = ready
        self._sleep = sleep
        self._clock = clock
        self._failed: set[str] = set()  # groups
        self._troubled: dict[str, str] = {}  # what failed groups watch, and which of them does
        self.outcome = Outcome()

    def processes(self) -> list[Process]:
        """Everything that supervisord knows, running or not."""
        return parse_processes(self._rpc.call("getAllProcessInfo"), self._rpc.call("getAllConfigInfo"), self._launcher)

    def stale(self, process: Process) -> bool:
        """Whether a living process was started from something else than what is there now."""
        if not process.launch.watch or process.state not in (STARTING, RUNNING):
            return False
        return self._stamp_then(process.pid) != self._stamp_now(process.launch.watch)

    def preview(self) -> Outcome:
        """What reconcile() would do now."""
        out = self.outcome
        out.added, out.changed, out.removed = self._reread()
        for process in self.processes():
            if process.group in out.changed or process.group in out.removed:
                continue
            if process.down:
                out.started.append(process.name)
            elif self.stale(process):
                out.restarted.append(process.name)
        return out

    def reconcile(self) -> Outcome:
        """Make it so."""
        before = self.processes()
        added, changed, removed = self._reread()
        for group in removed:
            self._attempt(group, lambda group: self._remove(group, before))
        groups = parse_groups(self._rpc.call("getAllConfigInfo"), self._launcher)
        for priority in sorted({group.priority for group in groups.values()}):
            stage = {name: group for name, group in groups.items() if group.priority == priority}
            for name in self._released(stage, changed):
                self._attempt(name, lambda name: self._replace(name, before))
            for name in self._released(stage, added):
                self._attempt(name, self._add)
            members = [process for process in self.processes() if process.group in stage]
            needy = dict.fromkeys(process.group for process in members if self._needs_attention(process))
            for name in self._released(stage, needy):
                self._attempt(name, self._renew)
            self._troubled.update({path: name for name in stage if name in self._failed for path in groups[name].watch})
        return self.outcome

    def _attempt(self, group: str, action: Callable[[str], None]) -> None:
        try:
            action(group)
        except SupervisorError as error:
            self.outcome.errors.append(str(error))
            self._failed.add(group)
        except xmlrpc.client.Fault as fault:
            self.outcome.errors.append(f"{group}: supervisord refuses: {fault.faultString}")
            self._failed.add(group)

    def _released(self, stage: Mapping[str, Group], names: Iterable[str]) -> list[str]:
        """Those of a stage that may go on; the others are told once."""
        free = []
        for name in names:
            if name not in stage or name in self._failed:
                continue
            cause = next((self._troubled[path] for path in stage[name].watch if path in self._troubled), None)
            if cause is None:
                free.append(name)
            else:
                self._failed.add(name)
                self.outcome.errors.append(f"{name} is left as it was: it runs what {cause} runs, which is in trouble.")
        return free

    def _reread(self) -> tuple[list[str], list[str], list[str]]:
        try:
            added, changed, removed = self._rpc.call("reloadConfig")[0]
        except xmlrpc.client.Fault as fault:
            msg = f"supervisord cannot read its configuration: {fault.faultString}"
            raise SupervisorError(msg) from fault
        return sorted(added), sorted(changed), sorted(removed)

    # ---- groups

    def _remove(self, group: str, before: Sequence[Process]) -> None:
        self._stop([process for process in before if process.group == group])
        self._rpc.call("removeProcessGroup", group)
        self.outcome.removed.append(group)

    def _replace(self, group: str, before: Sequence[Process]) -> None:
        """A group that runs cannot take a new configuration: it has to leave and come back."""
        members = [process for process in before if process.group == group]
        alive = {process.name for process in members if process.state in ALIVE}
        self._stop(members)
        self._rpc.call("removeProcessGroup", group)
        self._join(group)
        self.outcome.changed.append(group)
        for process in self._members(group):
            if process.name in alive and not process.autostart:  # somebody had started it by hand
                self._start(process)

    def _add(self, group: str) -> None:
        self._join(group)
        self.outcome.added.append(group)

    def _join(self, group: str) -> None:
        try:
            self._rpc.call("addProcessGroup", group)
        except SupervisorError as error:  # a socket that cannot be opened is told in supervisord's own log only
            _, _, last = self._rpc.call("readLog", -LOG_BYTES, 0).strip().rpartition("\n")
            msg = f"{group} cannot be added: {error}. The last line of supervisord's log: {last}"
            raise SupervisorError(msg) from error

    def _needs_attention(self, process: Process) -> bool:
        on_its_way = process.autostart and process.state in (STARTING, BACKOFF, STOPPING)
        return process.down or on_its_way or self.stale(process)

    def _renew(self, group: str) -> None:
        """Bring up what is down, then restart what is stale, one process after the other."""
        new = group in self.outcome.added or group in self.outcome.changed
        for process in self._members(group):
            if process.state == STOPPING:
                self._stop([process])
            if process.down or (process.autostart and process.state == STOPPING):
                self._start(process)
                if not new:
                    self.outcome.started.append(process.name)
                self._verify(self._wait_until_up(process))
            elif process.autostart and process.state in (STARTING, BACKOFF):
                self._wait_until_up(process)
        for process in self._members(group):
            if self.stale(process):
                self._stop([process])
                self.outcome.restarted.append(process.name)
                self._start(process)
                self._verify(self._wait_until_up(process))

    def _members(self, group: str) -> list[Process]:
        return [process for process in self.processes() if process.group == group]

    # ---- processes

    def _start(self, process: Process) -> None:
        try:
            self._rpc.call("startProcess", process.name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != ALREADY_STARTED:
                msg = f"{process.name} cannot be started: {fault.faultString}"
                raise SupervisorError(msg) from fault

    def _wait_until_up(self, process: Process) -> Process:
        return self._wait(
            process,
            done=lambda now: now.finished or self._is_up(now),
            hopeless=lambda now: now.state in (FATAL, EXITED),
            seconds=process.startsecs + self._patience,
            failure="did not come up",
        )

    def _is_up(self, process: Process) -> bool:
        """One that says when it is ready is believed; any other is up when it has lasted for its startsecs."""
        if process.launch.ready:
            return process.state in (STARTING, RUNNING) and self._ready(process.pid)
        return process.state == RUNNING

    def _verify(self, process: Process) -> None:
        """A stamp that does not match right after a start would mean a restart in every run."""
        deadline = self._clock() + LAUNCH_SECONDS
        while self.stale(process) and self._stamp_then(process.pid) is None and self._clock() < deadline:
            self._sleep(POLL_SECONDS)
        if self.stale(process):
            paths = ", ".join(process.launch.watch)
            msg = (
                f"{process.name} runs, but without the stamp of what it watches ({paths}). Its user "
                "must be able to read all of these, and its command must hand the environment on (no `env -i`)."
            )
            raise SupervisorError(msg)

    def _stop(self, processes: Sequence[Process]) -> None:
        """Ask all to stop, then wait. supervisord itself kills what takes longer than its stopwaitsecs."""
        for process in processes:
            if process.state in ALIVE:
                try:
                    self._rpc.call("stopProcess", process.name, False)
                except xmlrpc.client.Fault as fault:
                    if fault.faultCode != NOT_RUNNING:
                        msg = f"{process.name} cannot be stopped: {fault.faultString}"
                        raise SupervisorError(msg) from fault
        for process in processes:
            self._wait(
                process,
                done=lambda now: now.state in ENDED,
                hopeless=lambda _: False,
                seconds=process.stopwaitsecs + self._patience,
                failure="did not stop",
            )

    def _wait(
        self,
        process: Process,
        *,
        done: Callable[[Process], bool],
        hopeless: Callable[[Process], bool],
        seconds: float,
        failure: str,
    ) -> Process:
        deadline = self._clock() + seconds
        while True:
            info = self._rpc.call("getProcessInfo", process.name)
            now = process._replace(**{name: info[name] for name in CHANGING})
            if done(now):
                return now
            if hopeless(now) or self._clock() >= deadline:
                raise SupervisorError(self._complaint(now, failure))
            self._sleep(POLL_SECONDS)

    def _complaint(self, process: Process, failure: str) -> str:
        text = f"{process.name} {failure}: it is {process.statename}"
        if process.spawnerr:
            text += f" ({process.spawnerr})"
        if process.launch.ready and process.state in (STARTING, RUNNING):
            text += " but not ready (supervisor_timeout gives it more time)"
        untouched = [p.name for p in self._members(process.group) if p.name != process.name and p.state == RUNNING]
        if untouched:
            text += f". {', '.join(untouched)} still run{'s' if len(untouched) == 1 else ''}"
        text += ". Repair the program and run again: it goes on from here."
        for channel in process.logs:
            tail = self._rpc.call(f"tailProcess{channel.capitalize()}Log", process.name, 0, LOG_BYTES)[0]
            lines = tail.splitlines()[-LOG_LINES:]
            if lines:
                text += f"\nThe last lines of its {channel} log:\n" + "\n".join(f"  {line}" for line in lines)
        return text
