"""How the scenarios' tests ask running systems, from outside of them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# For tests of a case that is rare, or whose mechanism another test of the same role shows in less time.
thorough = pytest.mark.skipif(not os.environ.get("WSGI_FLEET_THOROUGH"), reason="runs with: make test thorough=1")


@dataclass
class Answer:
    """What an HTTP server answered; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode()


def fetch(
    address: str,
    host: str,
    path: str = "/",
    *,
    port: int | None = None,
    tls: bool = False,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 10,
) -> Answer:
    """Ask the server at `address` for `host`'s `path`, whatever DNS says; certificates are not checked."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(host, timeout=timeout)
    sock = socket.create_connection((address, port or (443 if tls else 80)), timeout)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname=host)
    connection.sock = sock
    try:
        connection.request(method, path, body=body, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        got = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, got, content, time.monotonic() - started)
    finally:
        connection.close()


def connects(address: str, port: int, timeout: float = 2) -> str:
    """What a TCP connection meets: "open", "refused" (an answer that says no) or "dropped" (no answer)."""
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "dropped"
    return "open"


def wait_until(true: Callable[[], Any], seconds: float = 30, what: str = "it") -> Any:
    """The first true value of `true()`; an exception counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = true()
        except (OSError, AssertionError, RuntimeError, http.client.HTTPException) as error:
            value, reason = None, repr(error)
        else:
            reason = "not yet true"
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}: {reason}")
        time.sleep(0.5)


def run_as_root(*command: str) -> str:
    """What a command on this machine says, which makes the hosts and may look into them."""
    sudo = ["sudo", "-n"] if os.getuid() else []
    return subprocess.run([*sudo, *command], check=True, capture_output=True, text=True, timeout=120).stdout


def ansible_environment(**extra: str) -> dict[str, str]:
    """The environment of somebody who calls Ansible in a clone: nothing of molecule's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
    return {
        **kept,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "COLUMNS": "200",
        **extra,
    }


def run_playbook(
    playbook: str, *arguments: str, inventories: list[Path], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the project as an operator would; the caller looks at the return code."""
    command = ["ansible-playbook", playbook, *(f"--inventory={path}" for path in inventories), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=ansible_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


class Visitors:
    """Connections that ask a site for as long as this is open; afterwards `seen` tells what they got.

    `words` are those of visitors.py: tls, get. Those with a pause (seconds) leave the machine some time for others.
    """

    def __init__(self, directory: Path, address: str, site: str, *words: str, connections: int, pause: float) -> None:
        self.stop = directory / "stop"
        self.arguments = [address, site, str(self.stop), str(connections), str(pause), *words]
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Visitors:
        self.stop.unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "molecule" / "shared" / "visitors.py"), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1)
        self.stop.touch()
        output, _ = self.process.communicate(timeout=60)
        self.seen = json.loads(output)
        print(self.seen)
