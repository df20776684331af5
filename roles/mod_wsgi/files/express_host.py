#!/usr/bin/env python3
"""Runs a WSGI application under mod_wsgi-express, as a service that shares a socket and never cuts a request.

    express_host.py CONFIG.json            serve at the listening socket in standard input, until TERM
    express_host.py --check CONFIG.json    prove the configuration and the application; serve nothing

Apache takes no socket from whoever starts it, none that is a path, and has no place for two that take turns. So this
program takes the connections, as many as Apache has threads for, and carries each to an Apache of its own, at a port of
the loopback interface. A stop closes the door, waits for all who are inside, and ends Apache when nobody is.

Exit status: 0 all was answered, 1 it did not start or ended by itself, 3 requests were cut, 64 usage.

Standard library only, Python 3.10 and newer, and mod_wsgi 6 beside the interpreter that runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXIT_FAILED, EXIT_CUT, EXIT_USAGE = 1, 3, 64
LOOPBACK = "127.0.0.1"
CHUNK = 65536
# Seconds.
LOOK = 0.05  # between two looks at whether the application is loaded
LINGER = 1.0  # for the rest of a request that was answered early
LAST = 8.0  # for an Apache in which nobody is any more

# What mod_wsgi-express loads: a factory is called here, which it has no word for.
APPLICATION = """\
from {module} import {name}
application = {expression}
if not callable(application):
    raise TypeError({callable!r} + " is no WSGI application: it is a " + type(application).__name__)
"""
LOADED = """\
open({loaded!r}, "w").close()
"""
# The application sees paths as with other servers, and a port that belongs to the scheme, not this Apache's own.
APACHE = """\
AllowEncodedSlashes On
RequestHeader setifempty X-Forwarded-Port 443 "expr=%{req_novary:X-Forwarded-Proto} == 'https'"
RequestHeader setifempty X-Forwarded-Port 80
"""


class HostError(Exception):
    """What an operator can mend; the text says all, no traceback is needed."""


@dataclass(frozen=True)
class Config:
    """What the JSON file says; `options` are those of mod_wsgi-express, with underscores."""

    callable: str
    directory: str = ""
    stop_timeout: float = 30
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """How many requests Apache answers at the same time."""
        return int(self.options.get("processes", 1)) * int(self.options.get("threads", 5))


def read_config(path: str) -> Config:
    """Read the configuration, and go where it says."""
    try:
        config = Config(**json.loads(Path(path).read_text(encoding="utf-8")))
        if config.directory:
            os.chdir(config.directory)
    except (OSError, TypeError, ValueError) as error:
        raise HostError(f"{path}: {error}") from None
    return config


def say(text: str) -> None:
    """Write a line to the log."""
    print(f"express_host: {text}", file=sys.stderr, flush=True)


# -- Apache ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server_root(config: Config) -> Iterator[Path]:
    """A directory for what mod_wsgi-express writes, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="express-") as name:
        root = Path(name)
        module, _, expression = config.callable.partition(":")
        words = {"module": module, "name": expression.partition("(")[0], "expression": expression}
        (root / "application.py").write_text(APPLICATION.format(callable=config.callable, **words))
        (root / "apache.conf").write_text(APACHE)
        place = os.open(root, os.O_RDONLY)
        fcntl.flock(place, fcntl.LOCK_SH)  # systemd-tmpfiles leaves alone what somebody holds, however old it is
        try:
            yield root
        finally:
            os.close(place)


def express(config: Config, command: str, root: Path, port: int) -> list[str]:
    """A command of mod_wsgi-express."""
    argv = [str(Path(sys.executable).with_name("mod_wsgi-express")), command, str(root / "application.py")]
    own = {
        "host": LOOPBACK,
        "port": port,
        "server_root": root,
        "include_file": root / "apache.conf",
        "log_to_terminal": True,
        "disable_reloading": True,
        # One request for each connection: else nobody could tell whether another one is on its way.
        "keep_alive_timeout": 0,
        "trust_proxy": LOOPBACK,  # whoever comes, comes through here
    }
    for name, value in {**config.options, **own}.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            argv += [word for one in value for word in (option, str(one))]
        elif isinstance(value, bool):
            argv += [option] if value else []
        else:
            argv += [option, str(value)]
    return argv


def free_port() -> int:
    """A port that nobody has. Should somebody be faster than Apache, it ends, and supervisor starts this again."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


# -- connections -----------------------------------------------------------------------------------------------


async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass on what comes, and that nothing more will; either side may leave early."""
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
        target.write_eof()


async def hand_over(guest: socket.socket, port: int) -> None:
    """Carry a connection to Apache and back, until Apache has answered."""
    near_in, near_out = await asyncio.open_connection(sock=guest)
    try:
        far_in, far_out = await asyncio.open_connection(LOOPBACK, port)
    except OSError as error:
        say(f"Apache cannot be reached: {error}")
        near_out.close()
        return
    asking = asyncio.create_task(carry(near_in, far_out))
    await carry(far_in, near_out)
    await asyncio.wait([asking], timeout=LINGER)
    asking.cancel()
    far_out.close()
    near_out.close()
    with contextlib.suppress(OSError):
        await near_out.wait_closed()  # a slow client still has to be sent the rest


class Door:
    """Lets connections in, as many at a time as there is room for; others wait, or go to another process."""

    def __init__(self, listener: socket.socket, port: int, room: int) -> None:
        self.guests: set[asyncio.Task[None]] = set()
        self._listener, self._port, self._room = listener, port, room
        self._open = False

    def open(self) -> None:
        """Let in."""
        self._open = True
        asyncio.get_running_loop().add_reader(self._listener, self._let_in)

    def close(self) -> None:
        """Let nobody in any more."""
        self._open = False
        asyncio.get_running_loop().remove_reader(self._listener)

    def _let_in(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self.guests) < self._room:
            try:
                guest, _ = self._listener.accept()
            except OSError:  # another process was faster, or the client has left
                return
            guest.setblocking(False)
            task = loop.create_task(hand_over(guest, self._port))
            self.guests.add(task)
            task.add_done_callback(self._left)
        loop.remove_reader(self._listener)

    def _left(self, task: asyncio.Task[None]) -> None:
        self.guests.discard(task)
        if self._open and len(self.guests) == self._room - 1:
            self.open()


# -- serving ---------------------------------------------------------------------------------------------------


def take_socket() -> socket.socket:
    """The listening socket in standard input, which the application's own children are not to have."""
    listener = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    listener.setblocking(False)
    return listener


async def first(*events: Coroutine[Any, Any, Any]) -> int:
    """Which of them comes first."""
    tasks = [asyncio.ensure_future(event) for event in events]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return next(index for index, task in enumerate(tasks) if task in done)


async def loaded(marker: Path) -> None:
    """Wait until the application is loaded."""
    while not marker.exists():
        await asyncio.sleep(LOOK)


async def serve(config: Config) -> int:
    """Serve until told to stop."""
    listener, port, stop = take_socket(), free_port(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with server_root(config) as root:
        marker = root / "loaded"
        with (root / "application.py").open("a") as script:
            script.write(LOADED.format(loaded=str(marker)))
        prctl = ctypes.CDLL(None).prctl
        apache = await asyncio.create_subprocess_exec(
            *express(config, "start-server", root, port),
            stdin=subprocess.DEVNULL,
            # PR_SET_PDEATHSIG: should this program be killed, Apache would go on for nobody
            preexec_fn=lambda: prctl(1, signal.SIGTERM),
        )
        try:
            return await attend(config, apache, stop, marker, Door(listener, port, config.capacity))
        finally:
            with contextlib.suppress(ProcessLookupError):
                apache.terminate()
            try:
                await asyncio.wait_for(apache.wait(), LAST)
            except asyncio.TimeoutError:
                apache.kill()


async def attend(
    config: Config, apache: asyncio.subprocess.Process, stop: asyncio.Event, marker: Path, door: Door
) -> int:
    """See Apache through its life: until it is up, while it serves, and until the last one has been answered."""
    patience = config.options.get("startup_timeout", 15)
    came = await first(stop.wait(), apache.wait(), loaded(marker), asyncio.sleep(patience))
    if came == 0:
        return 0
    if came != 2:
        say("Apache has ended" if came == 1 else f"the application was not loaded within {patience} seconds")
        return EXIT_FAILED
    with contextlib.suppress(OSError):  # for role supervisor, which waits for this before it stops the next process
        Path("/proc/self/comm").write_text("mod_wsgi-ready")
    door.open()
    if await first(stop.wait(), apache.wait()) == 1:
        say("Apache has ended")
        return EXIT_FAILED
    door.close()
    if door.guests:
        _, cut = await asyncio.wait(door.guests, timeout=config.stop_timeout)
        if cut:
            say(f"cut {len(cut)} request(s) that took more than {config.stop_timeout:g} s")
            return EXIT_CUT
    return 0


# -- the check -------------------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Have mod_wsgi-express read the options, Apache its configuration, and load the application."""
    with server_root(config) as root:
        run(express(config, "setup-server", root, free_port()))
        run([str(root / "apachectl"), "configtest"])
        sys.path.insert(0, str(Path.cwd()))
        try:
            runpy.run_path(str(root / "application.py"))
        except (Exception, SystemExit):  # noqa: BLE001 - whatever the application does
            traceback.print_exc()
            raise HostError(f"{config.callable} cannot be loaded") from None


def run(argv: list[str]) -> None:
    """Run a command that must succeed."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise HostError(f"{argv[0]}: {error.strerror}; install mod_wsgi there") from None
    if done.returncode:
        raise HostError(f"{Path(argv[0]).name} {argv[1]} failed:\n{done.stdout.strip()}")


def main(argv: list[str]) -> int:
    """Do what the command line says."""
    checking = argv[:1] == ["--check"]
    if len(argv) != 1 + checking or argv[-1].startswith("-"):
        print("usage: express_host.py [--check] CONFIG.json", file=sys.stderr)
        return EXIT_USAGE
    try:
        config = read_config(argv[-1])
        if checking:
            check(config)
            return 0
        return asyncio.run(serve(config))
    except HostError as error:
        say(str(error))
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
