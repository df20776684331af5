"""The host of role mod_wsgi, as a process, with a program in the place of mod_wsgi-express and Apache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HOST = Path(__file__).parents[3] / "roles" / "mod_wsgi" / "files" / "express_host.py"
# Does what the host relies on: loads the script it is given, and answers one request for each connection.
EXPRESS = """
import os, runpy, socketserver, sys, time

words = sys.argv[1:]
option = dict(zip(words[2:], words[3:]))
root = option["--server-root"]
with open(os.environ["ARGUMENTS"], "w") as file:
    file.write("\\n".join(words))
if "--threads" in option and int(option["--threads"]) > 99:
    sys.exit("too many threads")
if words[0] == "setup-server":
    with open(root + "/apachectl", "w") as file:
        file.write("#!/bin/sh\\ntest ! -e ./refuse || { echo 'Syntax error on line 1'; exit 1; }\\n")
    os.chmod(root + "/apachectl", 0o755)
    sys.exit()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        path, length = self.rfile.readline().split()[1].decode(), 0
        while (line := self.rfile.readline().strip()):
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"Content-Length" else length
        if path == "/early":
            self.wfile.write(b"HTTP/1.1 413 Too Large\\r\\nConnection: close\\r\\n\\r\\n")
            self.connection.shutdown(1)  # Apache reads the rest, too
            self.rfile.read(length)
            return
        taken = len(self.rfile.read(length))
        time.sleep(float(path[1:] or 0))
        padding = b"x" * (1_000_000 if path == "/0.0" else 0)
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n%s %d %d" % (padding, os.getpid(), taken))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


sys.path.insert(0, os.getcwd())
with Server((option["--host"], int(option["--port"])), Handler) as server:
    runpy.run_path(words[1])
    server.serve_forever()
"""
APPLICATION = """
def app(environ, start_response): ...
def make(name, *, size=1): return app
def broken(): raise RuntimeError("no database")
number = 7
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an application, and an environment that seems to have mod_wsgi."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    express = tmp_path / "bin" / "mod_wsgi-express"
    express.write_text(f"#!{sys.executable}\n{EXPRESS}")
    express.chmod(0o755)
    (tmp_path / "wsgi.py").write_text(textwrap.dedent(APPLICATION))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def command(place: Path, *options: str, **config: Any) -> dict[str, Any]:
    """What subprocess is to run the host with."""
    path = place / "mod_wsgi.json"
    path.write_text(json.dumps({"callable": "wsgi:app", "directory": str(place), **config}))
    environment = {**os.environ, "ARGUMENTS": str(place / "arguments"), "TMPDIR": str(place / "tmp")}
    return {"args": [str(place / "bin" / "python"), str(HOST), *options, str(path)], "env": environment}


class Served:
    """Hosts on one Unix socket, as supervisord would start them."""

    def __init__(self, place: Path) -> None:
        self.place, self.address = place, str(place / "sock")
        self.processes: list[subprocess.Popen[str]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(64)

    def start(self, **config: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            **command(self.place, **config),
            stdin=self.listener.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def ready(self, process: subprocess.Popen[str]) -> None:
        comm = Path(f"/proc/{process.pid}/comm")
        deadline = time.monotonic() + 10
        while comm.read_text() != "mod_wsgi-ready\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ask(self, path: str = "/", body: bytes = b"") -> str:
        """What was answered: the process that did, and how much it was sent."""
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(ConnectionError):
            sock.settimeout(10)
            sock.connect(self.address)
            sock.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while part := sock.recv(65536):
                answer += part
        return answer.decode()


@pytest.fixture
def served(place: Path) -> Iterator[Served]:
    made = Served(place)
    yield made
    for process in made.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    made.listener.close()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=20)
    return process.returncode, said


def test_serves_and_passes_the_options_on(served: Served) -> None:
    options = {"threads": 3, "chunked_request": True, "compress_responses": False, "trust_proxy_header": ["A", "B"]}
    process = served.start(callable='wsgi:make("x", size=2)', options=options)
    served.ready(process)
    assert served.ask(body=b"x" * 300_000).endswith(" 300000")
    assert served.ask("/early", b"x" * 300_000).startswith("HTTP/1.1 413")
    words = (served.place / "arguments").read_text().split("\n")
    assert words[0] == "start-server"
    text = " ".join(words)
    for part in ("--threads 3", "--chunked-request", "--trust-proxy-header A --trust-proxy-header B"):
        assert part in text
    assert "--host 127.0.0.1" in text
    assert "--keep-alive-timeout 0" in text
    assert "--compress-responses" not in text
    assert Path(f"/proc/{process.pid}/fd/0").readlink() == Path("/dev/null")
    process.terminate()
    assert end_of(process) == (0, "")
    assert list((served.place / "tmp").iterdir()) == []


def test_stop_waits_for_who_is_inside_and_leaves_the_others_to_the_next(served: Served) -> None:
    one = served.start(options={"threads": 2})
    served.ready(one)
    with ThreadPoolExecutor(3) as pool:
        inside = [pool.submit(served.ask, "/1") for _ in range(2)]
        time.sleep(0.3)
        waiting = pool.submit(served.ask)
        time.sleep(0.1)
        assert not waiting.done()  # as many at a time as there are threads
        one.terminate()
        two = served.start()
        answers = {answer.result().split()[-2] for answer in inside}
        assert len(answers) == 1
        assert waiting.result().split()[-2] not in answers
    assert end_of(one)[0] == 0
    assert two.poll() is None


def test_stop_waits_for_who_reads_slowly(served: Served) -> None:
    process = served.start()
    served.ready(process)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(served.address)
        sock.sendall(b"GET /0.0 HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        process.terminate()
        taken, paused = 0, False
        while part := sock.recv(50_000):
            taken += len(part)
            if taken > 760_000 and not paused:  # Apache has said all; the kernel has most of the rest, the host some
                time.sleep(1.8)
                paused = True
    assert taken > 1_000_000
    assert end_of(process) == (0, "")


def test_request_that_takes_too_long_is_cut(served: Served) -> None:
    process = served.start(stop_timeout=0.2)
    served.ready(process)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(served.ask, "/5")
        time.sleep(0.2)
        process.terminate()
        assert end_of(process) == (3, "express_host: cut 1 request(s) that took more than 0.2 s\n")
        assert long.result() == ""


def test_apache_goes_with_a_host_that_is_killed_and_the_host_with_apache(served: Served) -> None:
    process = served.start()
    served.ready(process)
    apache = int(served.ask().split()[-2])
    process.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{apache}/cmdline").exists() and Path(f"/proc/{apache}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process = served.start()
    served.ready(process)
    os.kill(int(served.ask().split()[-2]), signal.SIGKILL)
    assert end_of(process) == (1, "express_host: Apache has ended\n")


def test_what_does_not_get_ready_ends(served: Served) -> None:
    (served.place / "wsgi.py").write_text("import time\ntime.sleep(30)\n")
    process = served.start(options={"startup_timeout": 0.5})
    assert end_of(process) == (1, "express_host: the application was not loaded within 0.5 seconds\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"callable": 'wsgi:make("x")'}, ""),
        ({"callable": "wsgi:nosuch"}, "cannot import name 'nosuch' from 'wsgi'"),
        ({"callable": "nosuch:app"}, "No module named 'nosuch'"),
        ({"callable": "wsgi:number"}, "wsgi:number is no WSGI application: it is a int"),
        ({"callable": "wsgi:broken()"}, "no database"),
        ({"options": {"threads": 100}}, "mod_wsgi-express setup-server failed:\ntoo many threads"),
        ({"thread": 1}, "unexpected keyword argument 'thread'"),
        ({"directory": "/nowhere"}, "No such file or directory: '/nowhere'"),
    ],
)
def test_check(place: Path, change: dict[str, Any], said: str) -> None:
    done = subprocess.run(**command(place, "--check", **change), capture_output=True, text=True, check=False)
    assert said in done.stderr
    assert done.returncode == (1 if said else 0), done.stderr
    assert list((place / "tmp").iterdir()) == []


def test_apache_refuses_its_configuration(place: Path) -> None:
    (place / "refuse").touch()
    done = subprocess.run(**command(place, "--check"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "express_host: apachectl configtest failed:\nSyntax error on line 1\n")


@pytest.mark.parametrize("words", [[], ["--check"], ["a", "b"], ["--serve", "a"]])
def test_usage(words: list[str]) -> None:
    assert subprocess.run([sys.executable, str(HOST), *words], capture_output=True, check=False).returncode == 64
