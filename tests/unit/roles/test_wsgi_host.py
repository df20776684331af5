"""The service host of role waitress, as a process: what it refuses, how it serves, and how it stops.

WSGI_HOST_PYTHONS names further interpreters, with colons between, whose waitress is to be tried too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HOST = Path(__file__).parents[3] / "roles" / "waitress" / "files" / "wsgi_host.py"
PYTHONS = [sys.executable, *filter(None, os.environ.get("WSGI_HOST_PYTHONS", "").split(":"))]
APPLICATION = """
import atexit, os, sys, time

print("a line that was printed")
atexit.register(lambda: print("farewell"))


def app(environ, start_response):
    path = environ["PATH_INFO"]
    size = 60_000_000 if path == "/large" else 0
    body = f"{os.getpid()} {os.environ.get('TOKEN')}".encode()
    if path.startswith("/sleep/"):
        time.sleep(float(path[7:]))
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(size or len(body)))])
    return (b"x" * 100_000 for _ in range(600)) if size else [body]


def make(name, *, size=1):
    return app


def broken():
    raise RuntimeError("no database")


number = 7
"""


def load_host() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wsgi_host", HOST)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["wsgi_host"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


host = load_host()


def has_waitress(python: str) -> bool:
    return not subprocess.run([python, "-c", "import waitress"], capture_output=True, check=False).returncode


@pytest.fixture(params=PYTHONS, ids=lambda path: Path(path).parents[1].name)
def python(request: pytest.FixtureRequest) -> str:
    if not has_waitress(request.param):
        pytest.skip("has no waitress")
    return str(request.param)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration of the application above, with changes."""
    (tmp_path / "demo.py").write_text(APPLICATION)

    def make(**changes: object) -> Path:
        config = {"callable": "demo:app", "directory": str(tmp_path), "stop_timeout": 20, **changes}
        path = tmp_path / "config.json"
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return path

    return make


def check(python: str, path: Path) -> tuple[int, str]:
    done = subprocess.run([python, str(HOST), "--check", str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


# -- the configuration


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "callable, command: exactly one of both"),
        ({"callable": "a:b", "command": ["/x"]}, "callable, command: exactly one of both"),
        ({"callable": "a:b", "stop_timout": 3}, "stop_timout: is no known key; did you mean stop_timeout?"),
        ({"callable": "a:b", "zzz": 3}, "zzz: is no known key; known are callable, command,"),
        ({"callable": "a:b", "stop_timeout": "3"}, "stop_timeout: must be a number of seconds above 0"),
        ({"callable": "a:b", "stop_timeout": True}, "stop_timeout: must be a number"),
        ({"callable": "a:b", "directory": "here"}, "directory: must be an absolute path"),
        ({"callable": "a:b", "environment": {"A": 1}}, "environment: must be an object of names and texts"),
        ({"callable": "a:b", "environment": {"A=B": "1"}}, "environment: must be an object of names and texts"),
        ({"callable": "a"}, "callable: must be module:object"),
        ({"callable": "a/b.py:c"}, "callable: must be module:object"),
        ({"callable": "a:b(open('x'))"}, "callable: must be module:object"),
        ({"callable": "a:b.c"}, "callable: must be module:object"),
        ({"callable": "a:b", "waitress": []}, "waitress: must be an object"),
        ({"callable": "a:b", "waitress": {"sockets": []}}, "waitress.sockets: cannot be data"),
        ({"callable": "a:b", "listen_fd": 0, "waitress": {"port": 1}}, "waitress.port: is of no use with listen_fd"),
        ({"callable": "a:b", "reload_command": ["/x"]}, "reload_command: is of no use with callable"),
        ({"command": ["/x"], "venv": "/x"}, "venv: is of no use with command"),
        ({"command": "/x"}, "command: must be a list of texts"),
        ({"callable": "a:b", "log_level": "info"}, "log_level: must be one of DEBUG, INFO"),
    ],
)
def test_wrong_configuration(given: dict[str, Any], problem: str) -> None:
    (found,) = host.config_problems(given)
    assert found.startswith(problem)


def test_all_mistakes_are_told_at_once_and_no_value(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"callable": "a:b", "environment": {"KEY": ["s3cret"]}, "venv": "here", "log_keep": -1}))
    status, said = check(sys.executable, path)
    assert status == 1
    assert [line.split(": ")[1] for line in said.splitlines()] == ["environment", "venv", "log_keep"]
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"environment": {"A": "s3cret"', "is no JSON in UTF-8 (line 1, column 31)"),
        (b"\xff\xfe", "is no JSON in UTF-8 (encoding)"),
        (b"[]", "must hold a JSON object"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_file_that_is_no_configuration(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(host.HostError) as caught:
        host.read_config(path)
    assert str(caught.value) == f"{path}: {problem}"


def test_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"callable": "a:b"}')
    assert host.read_config(path).callable == "a:b"


def test_secrets_win_over_the_environment(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text('{"A": "2"}')
    config = host.Config(environment={"A": "1", "B": "1"}, environment_file=str(secrets))
    assert host.variables(config) == {"A": "2", "B": "1"}
    secrets.write_text('{"A": 7}')
    with pytest.raises(host.HostError, match="must hold an object of names and texts"):
        host.variables(config)


@pytest.mark.parametrize(
    "arguments", [[], ["--check"], ["a", "b"], ["--nosuch", "a"], ["--check", "--foreground", "a"]]
)
def test_usage(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, str(HOST), *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (64, "usage")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"callable": "demo:make('x', size=2)"}, ""),
        ({"waitress": {"threads": 8, "trusted_proxy": "*", "trusted_proxy_headers": ["x-forwarded-for"]}}, ""),
        ({"callable": "nosuch:app"}, "callable: there is no module 'nosuch' in "),
        ({"callable": "demo:nosuch"}, "callable: module 'demo' has no 'nosuch'"),
        ({"callable": "demo:number"}, "callable: 'demo:number' is a int, nothing that waitress could call"),
        ({"callable": "demo:broken()"}, "RuntimeError: no database"),
        ({"waitress": {"nosuch": 1}}, "waitress: Unknown adjustment 'nosuch'"),
        ({"waitress": {"threads": "many"}}, "waitress: invalid literal for int()"),
        ({"waitress": {"trusted_proxy_headers": ["forwarded"]}}, "waitress: trusted_proxy_headers has no meaning"),
        ({"waitress": {"trusted_proxy": "*"}}, "waitress: No proxy headers were marked as trusted"),
        ({"venv": "/nosuch"}, "venv: there is no virtual environment at /nosuch"),
    ],
)
def test_check(python: str, write: Callable[..., Path], changes: dict[str, object], problem: str) -> None:
    status, said = check(python, write(**changes))
    assert problem in said
    assert status == bool(problem), said


def test_check_of_a_venv_for_another_python(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("home = /usr\nversion = 3.1.4\n")
    status, said = check(sys.executable, write(venv=str(tmp_path / "venv")))
    assert (status, "is for Python 3.1, but this is 3." in said) == (1, True)


# -- the log


def test_log_waits_for_a_file_that_somebody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a file that is open cannot be renamed."""
    path = tmp_path / "host.log"
    handler = host.PatientRotatingFileHandler(path, maxBytes=100, backupCount=2)
    now = [1000.0]
    monkeypatch.setattr(host.time, "monotonic", lambda: now[0])

    def emit(text: str) -> None:
        handler.emit(logging.LogRecord("x", logging.INFO, "x", 1, text, (), None))

    with monkeypatch.context() as held:
        held.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(PermissionError()))
        for number in range(20):
            emit(f"line number {number}")
    assert len(path.read_text().splitlines()) == 20
    now[0] += 31
    emit("after")
    handler.close()
    assert path.read_text() == "after\n"
    assert len((tmp_path / "host.log.1").read_text().splitlines()) == 20


def test_log_survives_what_the_application_does_to_logging(
    python: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(callable="django:app", log_file=str(tmp_path / "host.log"), waitress={"port": free_port()})
    (tmp_path / "django.py").write_text(
        "import logging.config\nlogging.config.dictConfig({'version': 1})\nfrom demo import app\nprint('printed')\n"
    )
    with subprocess.Popen([python, str(HOST), str(path)]) as process:
        wait_for(lambda: "serving django:app" in (tmp_path / "host.log").read_text())
        process.terminate()
        assert process.wait(10) == 0
    said = (tmp_path / "host.log").read_text()
    assert "INFO stdout: printed" in said
    assert "INFO wsgi_host: stopped" in said


# -- serving


class Running:
    """A host, the listening socket that it was given (or a port of its own), and what it said."""

    def __init__(self, python: str, config: Path, listener: socket.socket) -> None:
        self.listener = listener
        self.process = subprocess.Popen(
            [python, str(HOST), str(config)],
            stdin=listener,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


def ask(address: Any, path: str = "/", *, slow: bool = False, timeout: float = 30) -> tuple[int, int, bool, str]:
    """Status, length, whether the connection ends, text of an answer; `slow` reads it for about three seconds."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(timeout)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(address)
        return talk(sock, path, slow=slow)


def talk(sock: socket.socket, path: str = "/", *, slow: bool = False) -> tuple[int, int, bool, str]:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        got = sock.recv(65536)
        if not got:
            raise ConnectionError("no answer")
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    wanted = int(next(line for line in lines if line.startswith("content-length:")).split(":")[1])
    length, text = len(body), body.decode()
    while length < wanted:
        got = sock.recv(200_000)
        if not got:
            break
        length += len(got)
        text += got.decode() if wanted < 1000 else ""
        if slow:
            time.sleep(len(got) / 20_000_000)
    return int(lines[0].split()[1]), length, "connection: close" in lines, text


@pytest.fixture
def run(python: str, write: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []
    listeners: dict[str, socket.socket] = {}

    def begin(*, own_port: int = 0, **changes: object) -> Running:
        address = str(tmp_path / "demo.sock")
        listener = listeners.get(address)
        if listener is None:
            listener = listeners[address] = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen(64)
        given = {"waitress": {"host": "127.0.0.1", "port": own_port}} if own_port else {"listen_fd": 0}
        if "waitress" in changes:
            given["waitress"] = {**given.get("waitress", {}), **changes.pop("waitress")}  # type: ignore[dict-item]
        running = Running(python, write(**given, **changes), listener)
        started.append(running)
        if own_port:
            wait_for(lambda: ask(("127.0.0.1", own_port)))
        else:
            wait_for(lambda: ask(address))
        return running

    yield begin
    for running in started:
        running.process.kill()
        running.process.communicate()


def wait_for(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_stop_lets_everybody_finish(run: Callable[..., Running], tmp_path: Path) -> None:
    """A request longer than waitress itself would wait, a slow download, and one on a connection that is open."""
    port = free_port()
    address = ("127.0.0.1", port)
    running = run(own_port=port, environment={"TOKEN": "t-1"})
    with ThreadPoolExecutor(8) as pool, socket.create_connection(address) as kept, socket.create_connection(address):
        assert talk(kept)[:3:2] == (200, False)
        long = pool.submit(ask, address, "/sleep/7")
        large = pool.submit(ask, address, "/large", slow=True)
        time.sleep(0.5)
        assert talk(kept)[:3:2] == (200, False)
        running.stop()
        begun = time.monotonic()
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            ask(address)
        # nobody may be cut off who was let in, and who is told that this was the last one
        assert talk(kept)[:3:2] == (200, True)
        status, length, last, text = long.result()
        assert (status, length, last, text.split()[1]) == (200, len(text), True, "t-1")
        assert large.result()[:2] == (200, 60_000_000)
        status, said = running.end()
    assert 5.5 < time.monotonic() - begun < 9
    assert status == 0, said
    assert "a line that was printed" in said
    assert said.rstrip().endswith("farewell")  # the application's exit handlers have run


def test_what_takes_too_long_is_cut(run: Callable[..., Running], tmp_path: Path) -> None:
    running = run(stop_timeout=1)
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(ask, str(tmp_path / "demo.sock"), "/sleep/15")
        time.sleep(0.5)
        begun = time.monotonic()
        running.stop()
        status, said = running.end()
        with pytest.raises(ConnectionError):
            cut.result()
    assert time.monotonic() - begun < 4
    assert (status, "cut 1 request(s) that took more than 1 s" in said) == (3, True)


def test_shared_socket_goes_on_without_one_of_two(run: Callable[..., Running], tmp_path: Path) -> None:
    """Two processes at one socket, the first stops under load and another comes: nobody notices."""
    address = str(tmp_path / "demo.sock")
    first, second = run(), run()
    stop, failed, answered = threading.Event(), [], []

    def visit() -> None:
        sock = None
        while not stop.is_set():
            try:
                if sock is None:
                    sock = socket.socket(socket.AF_UNIX)
                    sock.settimeout(10)
                    sock.connect(address)
                status, _, last, text = talk(sock)
                answered.append((status, text.split()[0]))
                if last:
                    sock.close()
                    sock = None
            except OSError as error:
                failed.append(error)
                sock = None

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    wait_for(lambda: {text for _, text in answered} == {str(first.process.pid), str(second.process.pid)})
    first.stop()
    status, said = first.end()
    before = len(answered)
    third = run()
    wait_for(lambda: str(third.process.pid) in {text for _, text in answered[before:]})
    stop.set()
    for visitor in visitors:
        visitor.join()
    assert not failed
    assert status == 0, said
    assert {status for status, _ in answered} == {200}
    assert Path(address).is_socket()


def test_process_takes_only_what_it_has_threads_for(run: Callable[..., Running], tmp_path: Path) -> None:
    """Eight requests of a second over two processes with four threads each: all end together."""
    address = str(tmp_path / "demo.sock")
    run(waitress={"threads": 4})
    run(waitress={"threads": 4})
    for _ in range(2):
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            pids = [answer[3].split()[0] for answer in pool.map(ask, [address] * 8, ["/sleep/1"] * 8)]
        assert time.monotonic() - begun < 1.9
        assert sorted(map(pids.count, set(pids))) == [4, 4]


def test_one_long_request_is_in_nobodys_way(run: Callable[..., Running], tmp_path: Path) -> None:
    address = str(tmp_path / "demo.sock")
    run(waitress={"threads": 2})
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, address, "/sleep/3")
        time.sleep(0.3)
        begun = time.monotonic()
        assert [ask(address)[0] for _ in range(5)] == [200] * 5
        assert time.monotonic() - begun < 1
        assert not long.done()
        assert long.result()[0] == 200


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"callable": "demo:nosuch"}, 1, "module 'demo' has no 'nosuch'"),
        ({"listen_fd": 9}, 1, "file descriptor 9 is no listening socket"),
        ({"listen_fd": None, "waitress": {"host": "192.0.2.1"}}, 1, "waitress cannot listen (host 192.0.2.1): "),
    ],
)
def test_start_that_fails(
    python: str, write: Callable[..., Path], changes: dict[str, object], status: int, words: str
) -> None:
    path = write(**{"listen_fd": 0, **changes})
    done = subprocess.run(
        [python, str(HOST), str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# -- other programs

PROGRAM = textwrap.dedent("""
    import os, pathlib, signal, sys, time
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("bye", flush=True)))
    print("hello", flush=True)
    time.sleep(30)
""")


@pytest.mark.parametrize(
    ("stop_command", "status"),
    [(None, 0), ("kill $(cat PID); echo told", 0), ("exit 7", 3)],
    ids=["none", "good", "bad"],
)
def test_program_is_asked_to_leave(tmp_path: Path, stop_command: str | None, status: int) -> None:
    pid = str(tmp_path / "pid")
    config: dict[str, Any] = {"command": [sys.executable, "-c", PROGRAM, pid], "stop_timeout": 2}
    if stop_command:
        config["stop_command"] = ["/bin/sh", "-c", stop_command.replace("PID", pid)]
    path, log = tmp_path / "config.json", tmp_path / "logs" / "host.log"
    path.write_text(json.dumps({**config, "log_file": str(log)}))
    with subprocess.Popen([sys.executable, str(HOST), str(path)]) as process:
        wait_for(lambda: log.exists() and "hello" in log.read_text())
        process.terminate()
        assert process.wait(10) == status
    assert ("bye" in log.read_text()) == (status == 0)


def test_program_that_ends_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"command": ["/bin/sh", "-c", "echo why; exit 4"]}))
    done = subprocess.run([sys.executable, str(HOST), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sh: why" in done.stderr
    assert "ended by itself: sh ended with status 4" in done.stderr
