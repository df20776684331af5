"""Stamps as the launch script makes them, and what is done with a supervisord (a model of it) in every state."""

# ruff: noqa: N802 - the model has supervisord's own names

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from xmlrpc.server import SimpleXMLRPCDispatcher

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils import supervisor as s

LAUNCH = Path(__file__).resolve().parents[3] / "roles" / "supervisor" / "files" / "launch"


# --------------------------------------------------------------------------------------------------------- stamps


def launched(*paths: str, **environment: str) -> dict[str, str]:
    """The environment of a program that the launch script started."""
    done = subprocess.run(
        [str(LAUNCH), *paths, "--", "env", "-0"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        check=True,
        text=True,
    )
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


def test_only_sockets_that_nobody_holds_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as held, socket.socket(socket.AF_UNIX) as left:
        held.bind(str(tmp_path / "held.sock"))
        left.bind(str(tmp_path / "left.sock"))
        left.close()
        listed = Path("/proc/net/unix").read_text()
        assert s.forgotten_sockets(tmp_path, listed) == [tmp_path / "left.sock"]
    assert s.forgotten_sockets(tmp_path / "missing", listed) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content\n\xff")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("releases/it's one")
    (tmp_path / "link to file").symlink_to("file")
    (tmp_path / "directory").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["file"],
        ["empty"],
        ["link"],
        ["link to file"],
        ["directory"],
        ["nothing"],
        ["link", "file", "nothing", "file"],
    ],
    ids=str,
)
def test_launcher_and_module_make_the_same_stamp(place: Path, names: list[str]) -> None:
    paths = [str(place / name) for name in names]
    assert launched(*paths)[s.STAMP] == s.stamp(paths)


def test_stamp_changes_with_what_is_watched(place: Path) -> None:
    paths = [str(place / "link"), str(place / "file")]
    stamps = [s.stamp(paths)]
    (place / "file").write_bytes(b"other")
    stamps.append(s.stamp(paths))
    (place / "link").unlink()
    (place / "link").symlink_to("releases/two")
    stamps.append(s.stamp(paths))
    (place / "file").unlink()
    stamps.append(s.stamp(paths))
    assert len(set(stamps)) == 4
    assert s.stamp(paths[::-1]) not in stamps


def test_stamp_is_read_from_the_living_process(place: Path) -> None:
    path = str(place / "link")
    with subprocess.Popen([str(LAUNCH), path, "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")  # the launcher left standard input alone, and is cat by now
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        assert s.stamp_of(process.pid) == s.stamp([path])
        process.stdin.close()
    assert s.stamp_of(process.pid) is None


def test_launcher_sets_what_came_in_octal_and_hides_it() -> None:
    environment = launched(WSGI_FLEET_ENVIRONMENT=r"export\0040ODD\0075\0047\0042\0047")
    assert environment["ODD"] == '"'
    assert "WSGI_FLEET_ENVIRONMENT" not in environment


@pytest.mark.parametrize(
    ("command", "launch"),
    [
        ("/launch /a '/b c' -- run -- x", s.Launch(("/a", "/b c"))),
        ("/launch --ready /a -- run --ready", s.Launch(("/a",), ready=True)),
        ("/launch --ready -- run", s.Launch(ready=True)),
        ("/launch -- run --ready", s.Launch()),
        ("/launch /a run", s.Launch()),
        ("/other --ready /a -- run", s.Launch()),
        ("'", s.Launch()),
        ("", s.Launch()),
    ],
)
def test_command_line_says_what_is_watched(command: str, launch: s.Launch) -> None:
    assert s.parse_launch(command, "/launch") == launch


def test_launcher_leaves_out_what_is_not_for_it(place: Path) -> None:
    assert launched("--ready", str(place / "file"))[s.STAMP] == s.stamp([str(place / "file")])


@pytest.mark.parametrize("who", ["itself", "a child"])
def test_process_says_by_its_name_that_it_is_ready(who: str) -> None:
    say = "open('/proc/self/comm', 'w').write('any-ready'); input()"
    code = say if who == "itself" else f"import os, sys; os.fork() and (os.wait(), sys.exit()); {say}"
    wait = f"input(); {code}"
    with subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert not s.is_ready(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 10
        while not s.is_ready(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not s.is_ready(os.getpid() if who == "a child" else process.pid + 1)
        process.stdin.close()
    assert not s.is_ready(process.pid)


# ---------------------------------------------------------------------------------------------- a supervisord


@dataclass
class Program:
    """A process of the model. `now` is what its watched path is; `stamp` what it was started from."""

    group: str
    name: str
    state: int = s.RUNNING
    autostart: bool = True
    exitstatus: int = 0
    exitcodes: list[int] = field(default_factory=lambda: [0])
    watch: bool = True
    stamp: str = "new"
    fails: bool = False  # ends right after every start
    sticks: bool = False  # never ends
    blind: bool = False  # cannot see what it watches
    late: float = 0.0  # seconds after its start that it has its stamp
    ready: Optional[float] = None  # seconds after its start that it says so
    since: float = 0.0
    pid: int = 100
    priority: int = 999
    path: str = "/watched"


class Supervisord:
    """As much of supervisord as we call, with a clock that moves when somebody sleeps."""

    def __init__(self, *programs: Program, reread: tuple[list[str], list[str], list[str]] = ([], [], [])) -> None:
        self.programs = list(programs)
        self.coming: list[Program] = []
        self.reread = reread
        self.said: list[str] = []
        self.time = 0.0
        self.startsecs = 0.0

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def find(self, name: str) -> Program:
        return next(p for p in self.programs if f"{p.group}:{p.name}" == name)

    def reloadConfig(self) -> Any:
        return [list(self.reread)]

    def getProcessInfo(self, name: str) -> dict[str, Any]:
        p = self.find(name)
        names = {
            0: "STOPPED",
            10: "STARTING",
            20: "RUNNING",
            30: "BACKOFF",
            40: "STOPPING",
            100: "EXITED",
            200: "FATAL",
        }
        info = {"group": p.group, "name": p.name, "state": p.state, "statename": names[p.state], "pid": p.pid}
        return {**info, "exitstatus": p.exitstatus, "spawnerr": "", "stdout_logfile": "/log", "stderr_logfile": ""}

    def getAllProcessInfo(self) -> list[dict[str, Any]]:
        return [self.getProcessInfo(f"{p.group}:{p.name}") for p in self.programs]

    def getAllConfigInfo(self) -> list[dict[str, Any]]:
        return [
            {
                "group": p.group,
                "name": p.name,
                "autostart": p.autostart,
                "exitcodes": p.exitcodes,
                "startsecs": 1,
                "stopwaitsecs": 10,
                "group_prio": p.priority,
                "process_prio": p.priority,
                "command": f"/launch {'' if p.ready is None else '--ready '}{p.path} -- {p.name}"
                if p.watch
                else p.name,
            }
            for p in {(p.group, p.name): p for p in (*self.programs, *self.coming)}.values()
        ]

    def startProcess(self, name: str, wait: bool) -> None:
        assert wait is False
        p = self.find(name)
        if p.state in (s.STARTING, s.RUNNING, s.BACKOFF):
            raise xmlrpc.client.Fault(s.ALREADY_STARTED, f"ALREADY_STARTED: {name}")
        self.said.append(f"start {name}")
        p.state, p.pid, p.stamp = s.STARTING, p.pid + 1, "nothing" if p.blind else "new"
        p.since = self.time

    def stopProcess(self, name: str, wait: bool) -> None:
        assert wait is False
        p = self.find(name)
        if p.state not in (s.STARTING, s.RUNNING, s.BACKOFF):
            raise xmlrpc.client.Fault(s.NOT_RUNNING, f"NOT_RUNNING: {name}")
        self.said.append(f"stop {name}")
        p.state = s.STOPPED if p.state == s.BACKOFF else s.STOPPING

    def removeProcessGroup(self, group: str) -> None:
        if any(p.group == group and p.state not in s.ENDED for p in self.programs):
            raise xmlrpc.client.Fault(91, f"STILL_RUNNING: {group}")
        self.said.append(f"remove {group}")
        self.programs = [p for p in self.programs if p.group != group]

    def addProcessGroup(self, group: str) -> None:
        self.said.append(f"add {group}")
        self.programs += [p for p in self.coming if p.group == group]

    def tailProcessStdoutLog(self, name: str, offset: int, length: int) -> list[Any]:
        return ["first line\nlast line of " + name + "\n", 0, False]

    def readLog(self, offset: int, length: int) -> str:
        return "INFO something\nValueError: Address already in use\n\n"

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        for p in self.programs:
            if p.state == s.STARTING and self.time >= p.since + self.startsecs:
                p.state = s.FATAL if p.fails else s.RUNNING
            elif p.state == s.STOPPING and not p.sticks:
                p.state = s.STOPPED
            elif p.state == s.BACKOFF:
                p.state = s.FATAL if p.fails else s.RUNNING

    def reconciler(self, patience: float = 5) -> s.Reconciler:
        by_pid = {id(p): p for p in self.programs}

        def stamp_then(pid: int) -> str | None:
            known = (p for p in (*by_pid.values(), *self.programs) if p.pid == pid and self.time >= p.since + p.late)
            return next((p.stamp for p in known), None)

        return s.Reconciler(
            self,
            "/launch",
            patience,
            stamp_now=lambda _: "new",
            stamp_then=stamp_then,
            ready=lambda pid: any(p.pid == pid and self.time >= p.since + (p.ready or 0) for p in self.programs),
            sleep=self.sleep,
            clock=lambda: self.time,
        )


def masters(**options: Any) -> list[Program]:
    return [Program("shop", "shop_0", pid=100, **options), Program("shop", "shop_1", pid=200, **options)]


def test_nothing_to_do_does_nothing() -> None:
    daemon = Supervisord(
        *masters(), Program("once", "once", state=s.EXITED), Program("m", "m", autostart=False, state=s.STOPPED)
    )
    assert not daemon.reconciler().preview().anything
    assert not daemon.reconciler().reconcile().anything
    assert daemon.said == []


def test_stale_processes_are_restarted_one_after_the_other() -> None:
    daemon = Supervisord(*masters(stamp="old"), Program("other", "other", stamp="old", watch=False, pid=300))
    outcome = daemon.reconciler().reconcile()
    assert daemon.said == ["stop shop:shop_0", "start shop:shop_0", "stop shop:shop_1", "start shop:shop_1"]
    assert outcome.restarted == ["shop:shop_0", "shop:shop_1"]
    assert outcome.errors == []


def test_one_is_up_before_the_next_one_goes() -> None:
    daemon = Supervisord(*masters(stamp="old"))
    seen = []
    stop = daemon.stopProcess

    def watch(name: str, wait: bool) -> None:
        seen.append([p.state for p in daemon.programs])
        stop(name, wait)

    daemon.stopProcess = watch  # type: ignore[method-assign]
    daemon.reconciler().reconcile()
    assert seen == [[s.RUNNING, s.RUNNING], [s.RUNNING, s.RUNNING]]


@pytest.mark.parametrize(("ready", "states"), [(1, [s.STARTING, s.RUNNING]), (9, [s.RUNNING, s.RUNNING])])
def test_one_that_says_when_it_is_ready_is_believed(ready: float, states: list[int]) -> None:
    daemon = Supervisord(*masters(stamp="old", ready=ready))
    daemon.startsecs = 5.0
    seen = []
    stop = daemon.stopProcess

    def watch(name: str, wait: bool) -> None:
        seen.append(([p.state for p in daemon.programs], daemon.time - daemon.programs[0].since))
        stop(name, wait)

    daemon.stopProcess = watch  # type: ignore[method-assign]
    daemon.reconciler(patience=20).reconcile()
    assert [found[0] for found in seen] == [[s.RUNNING, s.RUNNING], states]
    assert seen[1][1] == pytest.approx(ready, abs=0.2)


@pytest.mark.parametrize(("late", "errors"), [(3, 0), (30, 1)])
def test_launcher_may_take_its_time(late: float, errors: int) -> None:
    daemon = Supervisord(Program("shop", "shop", state=s.STOPPED, late=late))
    assert len(daemon.reconciler().reconcile().errors) == errors


def test_one_that_never_gets_ready_ends_the_roll() -> None:
    daemon = Supervisord(*masters(stamp="old", ready=1000))
    (error,) = daemon.reconciler().reconcile().errors
    assert "it is RUNNING but not ready (supervisor_timeout gives it more time). shop:shop_1 still runs" in error
    assert daemon.said == ["stop shop:shop_0", "start shop:shop_0"]


def test_the_first_that_does_not_come_up_ends_the_roll() -> None:
    daemon = Supervisord(*masters(stamp="old", fails=True), Program("blog", "blog", stamp="old", pid=300))
    outcome = daemon.reconciler().reconcile()
    assert daemon.said == ["stop blog:blog", "start blog:blog", "stop shop:shop_0", "start shop:shop_0"]
    (error,) = outcome.errors
    assert error.startswith("shop:shop_0 did not come up: it is FATAL. shop:shop_1 still runs. Repair")
    assert error.endswith("The last lines of its stdout log:\n  first line\n  last line of shop:shop_0")


def test_a_failed_roll_goes_on_when_the_cause_is_gone() -> None:
    daemon = Supervisord(*masters(stamp="old", fails=True))
    daemon.reconciler().reconcile()
    daemon.said.clear()
    assert daemon.reconciler().reconcile().errors  # nothing repaired: the one that serves is left alone
    assert daemon.said == ["start shop:shop_0"]
    daemon.said.clear()
    for program in daemon.programs:
        program.fails = False
    outcome = daemon.reconciler().reconcile()
    assert daemon.said == ["start shop:shop_0", "stop shop:shop_1", "start shop:shop_1"]
    assert (outcome.started, outcome.restarted, outcome.errors) == (["shop:shop_0"], ["shop:shop_1"], [])


@pytest.mark.parametrize("state", [s.STOPPED, s.FATAL])
def test_what_is_down_is_started(state: int) -> None:
    daemon = Supervisord(Program("shop", "shop_0"), Program("shop", "shop_1", state=state, pid=200))
    assert daemon.reconciler().preview().started == ["shop:shop_1"]
    assert daemon.reconciler().reconcile().started == ["shop:shop_1"]
    assert daemon.said == ["start shop:shop_1"]


@pytest.mark.parametrize(("exitstatus", "started"), [(0, False), (2, True)])
def test_a_program_that_ended_well_is_left_alone(exitstatus: int, started: bool) -> None:
    daemon = Supervisord(Program("once", "once", state=s.EXITED, exitstatus=exitstatus))
    assert bool(daemon.reconciler().reconcile().started) is started


@pytest.mark.parametrize("state", [s.STARTING, s.BACKOFF])
def test_what_is_on_its_way_is_waited_for(state: int) -> None:
    daemon = Supervisord(Program("shop", "shop", state=state))
    assert not daemon.reconciler().reconcile().anything
    assert daemon.programs[0].state == s.RUNNING
    daemon = Supervisord(Program("shop", "shop", state=state, fails=True))
    assert "did not come up" in daemon.reconciler().reconcile().errors[0]


def test_groups_come_change_and_go_by_themselves() -> None:
    daemon = Supervisord(
        Program("gone", "gone"), Program("changed", "changed", pid=200), Program("same", "same", pid=300),
        reread=(["fresh"], ["changed"], ["gone"]),
    )  # fmt: skip
    daemon.coming = [
        Program("fresh", "fresh", state=s.STOPPED, pid=400),
        Program("changed", "changed", state=s.STOPPED, pid=500),
    ]
    outcome = daemon.reconciler().reconcile()
    assert (outcome.added, outcome.changed, outcome.removed) == (["fresh"], ["changed"], ["gone"])
    assert (outcome.started, outcome.restarted, outcome.errors) == ([], [], [])
    assert [line for line in daemon.said if "same" in line] == []
    assert {p.name: p.state for p in daemon.programs} == dict.fromkeys(["same", "fresh", "changed"], s.RUNNING)


def test_a_group_whose_socket_cannot_be_opened_is_told_and_others_go_on() -> None:
    daemon = Supervisord(*masters(stamp="old"), reread=(["fresh"], [], []))
    daemon.coming = [Program("fresh", "fresh", path="/fresh")]

    def refuse(group: str) -> None:
        raise s.SupervisorError(f"supervisord failed at addProcessGroup {group} (500 Internal Server Error)")

    daemon.addProcessGroup = refuse  # type: ignore[method-assign]
    outcome = daemon.reconciler().reconcile()
    (error,) = outcome.errors
    assert error.startswith("fresh cannot be added: supervisord failed at addProcessGroup fresh (500")
    assert error.endswith("log: ValueError: Address already in use")
    assert (outcome.added, outcome.restarted) == ([], ["shop:shop_0", "shop:shop_1"])


def fleet(**web: Any) -> list[Program]:
    """The web part of an application, which has its background program after itself, and another application's."""
    return [
        *masters(stamp="old", path="/shop", **web),
        Program("a-job", "a-job", stamp="old", pid=300, priority=1000, path="/shop"),
        Program("z-job", "z-job", stamp="old", pid=400, priority=1000, path="/blog"),
    ]


def test_groups_of_a_later_priority_wait_until_the_earlier_ones_are_up() -> None:
    daemon = Supervisord(*fleet())
    states = []
    stop = daemon.stopProcess

    def watch(name: str, wait: bool) -> None:
        states.append((name, [p.state for p in daemon.programs]))
        stop(name, wait)

    daemon.stopProcess = watch  # type: ignore[method-assign]
    assert daemon.reconciler().reconcile().errors == []
    assert [name for name, _ in states] == ["shop:shop_0", "shop:shop_1", "a-job:a-job", "z-job:z-job"]
    assert all(state == [s.RUNNING] * 4 for _, state in states)


def test_new_and_changed_groups_wait_for_their_turn_too() -> None:
    daemon = Supervisord(*masters(stamp="old"), reread=(["a-job"], ["b-job"], []))
    daemon.programs.append(Program("b-job", "b-job", pid=300, priority=1000))
    daemon.coming = [
        Program(name, name, state=s.STOPPED, pid=pid, priority=1000) for name, pid in (("a-job", 400), ("b-job", 500))
    ]
    assert daemon.reconciler().reconcile().errors == []
    order = ["start shop:shop_1", "stop b-job:b-job", "remove b-job", "add b-job", "add a-job"]
    assert daemon.said[3:8] == order


def test_what_runs_the_same_as_a_group_in_trouble_is_left_as_it_was() -> None:
    daemon = Supervisord(*fleet(fails=True), reread=(["b-job"], [], []))
    daemon.coming = [Program("b-job", "b-job", state=s.STOPPED, pid=500, priority=1000, path="/shop")]
    outcome = daemon.reconciler().reconcile()
    assert (outcome.added, outcome.restarted) == ([], ["shop:shop_0", "z-job:z-job"])
    assert outcome.errors[1:] == [
        "b-job is left as it was: it runs what shop runs, which is in trouble.",
        "a-job is left as it was: it runs what shop runs, which is in trouble.",
    ]
    for program in daemon.programs:
        program.fails = False
    outcome = daemon.reconciler().reconcile()
    assert (outcome.added, outcome.errors) == (["b-job"], [])
    assert outcome.restarted == ["shop:shop_1", "a-job:a-job"]


def test_what_somebody_started_by_hand_runs_on_after_a_change() -> None:
    daemon = Supervisord(Program("manual", "manual", autostart=False), reread=([], ["manual"], []))
    daemon.coming = [Program("manual", "manual", autostart=False, state=s.STOPPED, pid=200)]
    daemon.reconciler().reconcile()
    assert daemon.said == ["stop manual:manual", "remove manual", "add manual", "start manual:manual"]


def test_a_process_that_does_not_stop_is_an_error_and_others_go_on() -> None:
    daemon = Supervisord(Program("a", "a", stamp="old", sticks=True), Program("b", "b", stamp="old", pid=200))
    outcome = daemon.reconciler().reconcile()
    assert "a:a did not stop: it is STOPPING" in outcome.errors[0]
    assert outcome.restarted == ["b:b"]
    assert daemon.time < 60


def test_a_stamp_that_never_matches_is_an_error_and_no_endless_restart() -> None:
    daemon = Supervisord(*masters(stamp="old", blind=True))
    (error,) = daemon.reconciler().reconcile().errors
    assert error.startswith("shop:shop_0 runs, but without the stamp of what it watches (/watched).")
    assert daemon.said == ["stop shop:shop_0", "start shop:shop_0"]


def test_configuration_that_supervisord_cannot_read_is_told() -> None:
    daemon = Supervisord()

    def refuse() -> None:
        raise xmlrpc.client.Fault(92, "CANT_REREAD: no such user")

    daemon.reloadConfig = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(s.SupervisorError, match="cannot read its configuration: CANT_REREAD: no such user"):
        daemon.reconciler().reconcile()


# ------------------------------------------------------------------------------------------------- the connection


def test_calls_go_over_the_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    dispatcher = SimpleXMLRPCDispatcher(allow_none=True)
    dispatcher.register_function(lambda name, wait: [name, wait], "supervisor.startProcess")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            body = dispatcher._marshaled_dispatch(stream.read(length))
            connection.sendall(
                b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )

    thread = threading.Thread(target=serve)
    thread.start()
    assert s.Daemon(path, timeout=5).call("startProcess", "shop:shop_0", False) == ["shop:shop_0", False]
    thread.join(5)
    listener.close()


def test_nobody_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        s.Daemon(str(tmp_path / "nothing")).call("getState")
