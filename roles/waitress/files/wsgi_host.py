#!/usr/bin/env python3
"""Runs a WSGI application under waitress, or another program, as a service that never cuts a request.

    wsgi_host.py CONFIG.json                on Windows as a service, elsewhere in the foreground (under supervisor, say)
    wsgi_host.py --foreground CONFIG.json   in the foreground everywhere, with its log on standard error
    wsgi_host.py --check CONFIG.json        prove the configuration and the application; serve nothing

waitress' own way to stop gives requests five seconds and cuts the rest, and SIGTERM it does not know at all. Here a
stop closes the door and lets everybody inside finish, for up to `stop_timeout` seconds.

On Windows the service control manager starts this file with the base interpreter (`python.exe -I -S`): a virtual
environment's python.exe is a launcher whose child would be the real process. No other program is needed.

Exit status in the foreground: 0 all was answered, 1 it did not start or ended by itself, 3 requests were cut, 64 usage.

From top to bottom: the configuration, the log, the application, waitress, other programs, the foreground, the service
control manager, the command line. Standard library only, Python 3.9 and newer, and waitress from the application's own
environment: 1.4.4 and newer, of which some internals are used (see Waitress).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import io
import json
import logging
import logging.handlers
import os
import re
import signal
import site
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Union

WINDOWS = os.name == "nt"
EXIT_FAILED, EXIT_CUT, EXIT_USAGE = 1, 3, 64
# Seconds.
LOOK = 0.5  # between two looks at whether what is served has ended by itself
SWEEP = 0.1  # between two looks at what is still to be answered
NEWCOMER = 0.1  # within which a request is expected on a new connection
QUIET = 1.0  # so long a connection has to be idle before a stop closes it: a request may be on its way
EXIT_HANDLERS = 5.0  # what the application's own exit handlers may take
RETRY_ROTATION = 30.0

# Not by getLogger: an application that configures logging disables all loggers which it does not know.
log, printed, complained = logging.Logger("wsgi_host"), logging.Logger("stdout"), logging.Logger("stderr")


class HostError(Exception):
    """What an operator can mend; the text says all, no traceback is needed."""


# -- the configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What the JSON file says. Exactly one of callable and command is given."""

    service: str = ""
    directory: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    environment_file: str = ""
    start_timeout: float = 60
    stop_timeout: float = 30
    log_file: str = ""
    log_max_bytes: int = 10_000_000
    log_keep: int = 5
    log_level: str = "INFO"
    # an application under waitress
    callable: str = ""
    venv: str = ""
    waitress: dict[str, Any] = field(default_factory=dict)
    listen_fd: int = -1
    # another program
    command: list[str] = field(default_factory=list)
    stop_command: list[str] = field(default_factory=list)
    reload_command: list[str] = field(default_factory=list)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_absolute(value: object) -> bool:
    return _is_text(value) and Path(str(value)).is_absolute()


def _is_environment(value: object) -> bool:
    return isinstance(value, dict) and all(
        bool(name) and "=" not in name and isinstance(text, str) and "\0" not in name + text
        for name, text in value.items()
    )


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def _is_callable(value: object) -> bool:
    return isinstance(value, str) and parse_callable(value) is not None


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SECONDS = (_is_number, "a number of seconds above 0")
ABSOLUTE = (_is_absolute, "an absolute path")
COMMAND = (_is_command, "a list of texts: the program and its arguments")
VARIABLES = (_is_environment, "an object of names and texts")
CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "service": (_is_text, "the name of the service"),
    "directory": ABSOLUTE,
    "environment": VARIABLES,
    "environment_file": ABSOLUTE,
    "start_timeout": SECONDS,
    "stop_timeout": SECONDS,
    "log_file": ABSOLUTE,
    "log_max_bytes": (_is_whole, "a whole number of bytes"),
    "log_keep": (_is_whole, "a whole number of files"),
    "log_level": (lambda value: value in LEVELS, f"one of {', '.join(LEVELS)}"),
    "callable": (_is_callable, 'module:object or module:factory("literal", ...)'),
    "venv": ABSOLUTE,
    "waitress": (lambda value: isinstance(value, dict), "an object of waitress' settings"),
    "listen_fd": (_is_whole, "the number of a file descriptor"),
    "command": COMMAND,
    "stop_command": COMMAND,
    "reload_command": COMMAND,
}
KNOWN = f"known are {', '.join(sorted(CHECKS))}"
# What is of use with one kind of service only.
OF_CALLABLE = ("venv", "waitress", "listen_fd")
OF_COMMAND = ("stop_command", "reload_command")
# Where an application listens by itself.
OWN_SOCKETS = ("host", "port", "listen", "unix_socket", "unix_socket_perms")


def config_problems(given: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a configuration; no value is repeated, for it may be a secret."""
    found = []
    for key, value in given.items():
        if key not in CHECKS:
            near = difflib.get_close_matches(key, CHECKS, 1)
            found.append(f"{key}: is no known key; " + (f"did you mean {near[0]}?" if near else KNOWN))
        elif not CHECKS[key][0](value):
            found.append(f"{key}: must be {CHECKS[key][1]}")
    if ("callable" in given) == ("command" in given):
        found.append("callable, command: exactly one of both must say what to run")
    else:
        kind, foreign = ("callable", OF_COMMAND) if "callable" in given else ("command", OF_CALLABLE)
        found += [f"{key}: is of no use with {kind}" for key in foreign if key in given]
    settings = given.get("waitress")
    if isinstance(settings, dict):
        if "sockets" in settings:
            found.append("waitress.sockets: cannot be data; give listen_fd")
        if "listen_fd" in given:
            found += [f"waitress.{key}: is of no use with listen_fd" for key in OWN_SOCKETS if key in settings]
    if WINDOWS and "listen_fd" in given:
        found.append("listen_fd: Windows has none; give waitress.host and waitress.port")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, which editors on Windows may have begun with a byte order mark."""
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        # Not the text itself: it may be a secret.
        place = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "encoding"
        raise HostError(f"{path}: is no JSON in UTF-8 ({place})") from None
    if not isinstance(given, dict):
        raise HostError(f"{path}: must hold a JSON object")
    return given


def read_config(path: Path) -> Config:
    """Read and check the configuration.

    Raises:
        HostError: with everything that is wrong.
    """
    given: dict[str, Any] = read_object(path)
    problems = config_problems(given)
    if problems:
        raise HostError("\n".join(f"{path}: {problem}" for problem in problems))
    return Config(**given)


def variables(config: Config) -> dict[str, str]:
    """The environment that the configuration adds, secrets included."""
    more: dict[str, str] = {}
    if config.environment_file:
        more = read_object(Path(config.environment_file))
        if not _is_environment(more):
            raise HostError(f"{config.environment_file}: must hold {VARIABLES[1]}")
    return {**config.environment, **more}


# -- the log ---------------------------------------------------------------------------------------------------


class PatientRotatingFileHandler(logging.handlers.RotatingFileHandler):
    """Rotates when it can. On Windows a file that anybody has open cannot be renamed: then it is tried again later."""

    _retry_at = 0.0

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - its name in the base class
        if time.monotonic() < self._retry_at:
            if self.stream is None:
                self.stream = self._open()
            return False
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802 - its name in the base class
        try:
            super().doRollover()
        except OSError:
            self._retry_at = time.monotonic() + RETRY_ROTATION
            if self.stream is None:
                self.stream = self._open()


class LogStream:
    """Takes what the application prints into the log; stands in for sys.stdout and sys.stderr."""

    encoding, errors = "utf-8", "replace"

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._log, self._level, self._part, self._inside = logger, level, "", threading.local()

    def write(self, text: str) -> int:
        if getattr(self._inside, "yes", False):  # a handler that fails prints to stderr
            return len(text)
        self._inside.yes = True
        try:
            *lines, self._part = (self._part + str(text)).split("\n")
            for line in lines:
                self._log.log(self._level, "%s", line)
        finally:
            self._inside.yes = False
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("what is printed goes into a log, which has no file descriptor")


def set_up_log(config: Config, to_file: bool) -> None:
    """Log to the file, or to standard error."""
    handler: logging.Handler = logging.StreamHandler()
    if to_file:
        try:
            Path(config.log_file).parent.mkdir(parents=True, exist_ok=True)
            handler = PatientRotatingFileHandler(
                config.log_file, maxBytes=config.log_max_bytes, backupCount=config.log_keep, encoding="utf-8"
            )
        except OSError as error:
            raise HostError(f"log_file: {config.log_file} cannot be written: {error.strerror}") from None
        sys.stdout, sys.stderr = LogStream(printed, logging.INFO), LogStream(complained, logging.ERROR)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # or prints would wait in a buffer for hours
    if sys.stdin is None:  # as in a service on Windows
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - for as long as we run
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] %(levelname)s %(name)s: %(message)s"))
    for logger in (log, printed, complained, logging.getLogger()):
        logger.addHandler(handler)
        logger.setLevel(config.log_level)
    if config.log_level != "DEBUG":
        # A line for each request that has to wait for a thread: on a busy day that is the whole log.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)


# -- the application -------------------------------------------------------------------------------------------


def activate(venv: Path) -> None:
    """Take the packages of a virtual environment, whose interpreter need not be the one that runs us."""
    name = "python.exe" if WINDOWS else "python"
    programs = venv / ("Scripts" if WINDOWS else "bin")
    home = venv / "pyvenv.cfg"
    if not home.is_file():
        raise HostError(f"venv: there is no virtual environment at {venv}")
    version = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", home.read_text(encoding="utf-8"), re.MULTILINE)
    if version and (int(version[1]), int(version[2])) != sys.version_info[:2]:
        raise HostError(
            f"venv: {venv} is for Python {version[1]}.{version[2]}, but this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}; make it anew"
        )
    library = "Lib" if WINDOWS else f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    site.addsitedir(str(venv / library / "site-packages"))
    sys.prefix = sys.exec_prefix = str(venv)
    if (programs / name).is_file():  # so that what the application starts lands in the environment too
        sys.executable = str(programs / name)
    os.environ["VIRTUAL_ENV"] = str(venv)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"


def parse_callable(text: str) -> Optional[tuple[str, str, Optional[ast.Call]]]:
    """Take apart `module:object` or `module:factory("literal", ...)`; None when it is neither."""
    module, _, expression = text.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return module, tree.id, None
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            for argument in [*tree.args, *(named.value for named in tree.keywords)]:
                ast.literal_eval(argument)
            return (module, tree.func.id, tree) if all(named.arg for named in tree.keywords) else None
    except (SyntaxError, ValueError):
        pass
    return None


def load_application(text: str) -> Callable[..., Any]:
    """Import what is to be served.

    Raises:
        HostError: it is not there, or is nothing that could be called.
    """
    parsed = parse_callable(text)
    if parsed is None:
        raise HostError(f"callable: {text!r} is not {CHECKS['callable'][1]}")
    module_name, name, call = parsed
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the application's own affair: its traceback tells more
        raise HostError(f"callable: there is no module {error.name!r} in {', '.join(sys.path[:1])}") from None
    try:
        application = getattr(module, name)
    except AttributeError:
        raise HostError(f"callable: module {module_name!r} has no {name!r}") from None
    if call is not None:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        application = application(*arguments, **named)
    if not callable(application):
        raise HostError(f"callable: {text!r} is a {type(application).__name__}, nothing that waitress could call")
    return application  # type: ignore[no-any-return]


def enter(config: Config) -> Callable[..., Any]:
    """Become the application: its environment, packages, directory; then itself."""
    os.environ.update(variables(config))
    if config.venv:
        activate(Path(config.venv))
    if config.directory:
        os.chdir(config.directory)
    here = str(Path(__file__).resolve().parent)
    if sys.path and sys.path[0] == here:  # the place of this file is none to import from
        del sys.path[0]
    sys.path.insert(0, str(Path.cwd()))
    return load_application(config.callable)


# -- waitress --------------------------------------------------------------------------------------------------


class Tasks:
    """waitress' task dispatcher, for processes that share a listening socket: requests go where a thread is free.

    A process takes no connection while all of its threads are at work. A request that comes then, on a connection that
    is open, has to wait, but its connection ends with it: the next one may go to another process.
    """

    def __init__(self, threads: int) -> None:
        from waitress.channel import HTTPChannel
        from waitress.task import ThreadedTaskDispatcher

        self._channel, self._dispatcher, self._threads = HTTPChannel, ThreadedTaskDispatcher(), threads
        self._dispatcher.set_thread_count(threads)
        self._lock, self._taken = threading.Lock(), 0
        self._silent: list[Any] = []  # connections that have just come, and whose request is to be expected
        self._wake: Callable[[], None] = lambda: None

    def attend(self, listener: Any) -> None:  # noqa: ANN401 - waitress has no types
        """Have a listener let in only whom there is a thread for."""
        readable = listener.readable
        listener.channel_class = self._let_in
        listener.readable = lambda: readable() and self._is_free()  # the first one tidies up, too
        self._wake = listener.trigger.pull_trigger

    def _let_in(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        channel = self._channel(*arguments, **named)
        self._silent.append(channel)
        return channel

    def _is_free(self) -> bool:
        now = time.time()
        self._silent = [
            channel
            for channel in self._silent
            if channel.last_activity == channel.creation_time and now - channel.creation_time < NEWCOMER
        ]
        return self._taken + len(self._silent) < self._threads

    def add_task(self, channel: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._taken += 1
            waits = self._taken > self._threads
        if waits:
            end_with(channel.requests)
        self._dispatcher.add_task(CountedTask(channel, self._done))

    def _done(self) -> None:
        with self._lock:
            was_full = self._taken >= self._threads
            self._taken -= 1
        if was_full:
            self._wake()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._dispatcher, name)


class CountedTask:
    def __init__(self, task: Any, done: Callable[[], None]) -> None:  # noqa: ANN401
        self._task, self._done = task, done

    def service(self) -> None:
        try:
            self._task.service()
        finally:
            self._done()

    def cancel(self) -> None:
        self._task.cancel()


class Waitress:
    """An application under waitress, and how that is stopped without cutting anybody off.

    Of waitress' internals we use: the map of the main loop; `trigger` of a listener, which runs a function in the main
    loop's thread; `requests`, `request`, `total_outbufs_len`, `last_activity`, `parser_class` of a channel, which is a
    connection; `_dispatcher` of create_server. The tests hold them against the releases that we support.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.ended, self.error = threading.Event(), ""
        self._application: Callable[..., Any] = load_application
        self._map: dict[int, Any] = {}
        self._listeners: list[Any] = []

    def load(self) -> None:
        """Do what is slow and may go wrong, before anybody is let in."""
        self._application = enter(self._config)
        adjustments(self._config)

    def start(self) -> None:
        from waitress.server import BaseWSGIServer, create_server

        shared = [inherited_socket(self._config.listen_fd)] if self._config.listen_fd >= 0 else []
        settings = {**self._config.waitress, **({"sockets": shared} if shared else {})}
        tasks = Tasks(adjustments(self._config).threads) if shared else None
        try:
            server = create_server(self._application, map=self._map, _dispatcher=tasks, **settings)
        except OSError as error:
            where = ", ".join(f"{key} {settings[key]}" for key in OWN_SOCKETS if key in settings)
            raise HostError(f"waitress cannot listen ({where or 'port 8080'}): {error.strerror or error}") from None
        self._listeners = self._all(BaseWSGIServer)
        if tasks:
            tasks.attend(self._listeners[0])
        threading.Thread(target=self._serve, args=(server,), name="waitress-main", daemon=True).start()
        say_ready()

    def _serve(self, server: Any) -> None:  # noqa: ANN401
        try:
            server.run()
            self.error = "waitress ended"
        except BaseException:  # noqa: BLE001 - whatever it is, it has to be known
            self.error = f"waitress ended\n{traceback.format_exc()}"
        self.ended.set()

    def reload(self) -> None:
        log.info("there is nothing to reload; a restart loses no request")

    def drain(self, tick: Callable[[], None] = lambda: None) -> int:
        """Let nobody in any more and everybody finish; the number of requests that were not answered in time."""
        deadline = time.monotonic() + self._config.stop_timeout
        while not self.ended.is_set():
            self._listeners[0].trigger.pull_trigger(self._sweep)
            time.sleep(SWEEP)
            tick()
            channels = self._channels()
            if not channels:
                return 0
            if time.monotonic() >= deadline:
                left = sum(map(self._is_busy, channels))
                if left:
                    log.warning("cut %d request(s) that took more than %s s", left, self._config.stop_timeout)
                return left
        return 0

    def _all(self, kind: type) -> list[Any]:
        return [member for member in list(self._map.values()) if isinstance(member, kind)]

    def _channels(self) -> list[Any]:
        from waitress.channel import HTTPChannel

        return self._all(HTTPChannel)

    @staticmethod
    def _is_busy(channel: Any) -> bool:  # noqa: ANN401
        return bool(channel.requests or channel.total_outbufs_len or channel.request is not None)

    def _sweep(self) -> None:
        """Run by the main loop again and again: nothing else touches connections meanwhile."""
        from waitress.server import BaseWSGIServer

        for listener in self._all(BaseWSGIServer):
            if self._config.listen_fd < 0:
                self._accept_waiting(listener)  # closing would refuse those whom the system has let in already
            listener.del_channel()
            listener.socket.close()
        last = last_request_parser()
        for channel in self._channels():
            channel.parser_class = last
            if self._is_busy(channel):
                end_with(channel.requests)
            elif time.time() - channel.last_activity > QUIET and not has_input(channel.socket):
                channel.handle_close()

    def _accept_waiting(self, listener: Any) -> None:  # noqa: ANN401
        for _ in range(listener.adj.backlog):
            before = len(self._map)
            listener.handle_accept()
            if len(self._map) == before:
                break


def say_ready() -> None:
    """Tell whoever waits for it, by the name of this process. Not to be able to is no reason to stop."""
    if WINDOWS:
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("waitress-ready")


def end_with(requests: list[Any]) -> None:
    """Have a connection end when these requests are answered, and its client told so."""
    for request in list(requests):
        request.headers["CONNECTION"] = "close"


def adjustments(config: Config) -> Any:  # noqa: ANN401 - waitress has no types
    """What waitress itself makes of its settings.

    Raises:
        HostError: waitress is not there, or refuses them.
    """
    try:
        from waitress.adjustments import Adjustments
    except ModuleNotFoundError:
        raise HostError(f"waitress is not installed in {sys.prefix}") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "No proxy headers")  # of which waitress would choose some
            return Adjustments(**config.waitress)
    except (ValueError, TypeError, DeprecationWarning) as error:
        raise HostError(f"waitress: {error}") from None


def last_request_parser() -> type:
    """The parser of requests, for connections that end with the request they are at."""
    from waitress.parser import HTTPRequestParser

    class LastRequestParser(HTTPRequestParser):  # type: ignore[misc] # waitress has no types
        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            self.headers["CONNECTION"] = "close"

    return LastRequestParser


def has_input(connection: Any) -> bool:  # noqa: ANN401 - what waitress has as a socket
    """Whether a client has sent what was not read yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def inherited_socket(number: int) -> socket.socket:
    """The listening socket that whoever started us holds, and goes on to hold when we end.

    Raises:
        HostError: there is none.
    """
    try:
        listener = socket.socket(fileno=os.dup(number))
        listening = bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        listening = False
    if not listening:
        raise HostError(
            f"listen_fd: file descriptor {number} is no listening socket (supervisor's fcgi-program gives 0)"
        )
    if number == 0:  # what the application starts would have it as its standard input
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    return listener


# -- other programs --------------------------------------------------------------------------------------------


class Command:
    """Another program, such as nginx for Windows, which is no service by itself."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.ended, self.error = threading.Event(), ""
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._options: dict[str, Any] = {}
        self._job: object = None

    def load(self) -> None:
        for key in ("command", "stop_command", "reload_command"):
            words = getattr(self._config, key)
            if words and not Path(words[0]).is_absolute():
                raise HostError(f"{key}: {words[0]!r} must be the absolute path of a program")
            if words and not os.access(words[0], os.X_OK):
                raise HostError(f"{key}: there is no program {words[0]}")
        self._options = {
            "cwd": self._config.directory or None,
            "env": {**os.environ, **variables(self._config)},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        if WINDOWS:
            self._options["creationflags"] = subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined,unused-ignore]

    def start(self) -> None:
        if WINDOWS:
            self._job = die_together()
        try:
            self._process = subprocess.Popen(self._config.command, **self._options)
        except OSError as error:
            raise HostError(f"command: {self._config.command[0]} cannot be started: {error.strerror}") from None
        threading.Thread(target=self._attend, args=(self._process,), daemon=True).start()

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        name = Path(self._config.command[0]).name
        for line in process.stdout or ():
            log.info("%s: %s", name, line.decode("utf-8", "replace").rstrip())
        self.error = f"{name} ended with status {process.wait()}"
        self.ended.set()

    def reload(self) -> None:
        if self._config.reload_command:
            self._tell("reload_command")

    def _tell(self, key: str) -> None:
        try:
            done = subprocess.run(
                getattr(self._config, key), check=False, timeout=self._config.stop_timeout, **self._options
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("%s: %s", key, error)
            return
        said = done.stdout.decode("utf-8", "replace").strip()
        log.info("%s: status %d%s", key, done.returncode, f": {said}" if said else "")

    def drain(self, tick: Callable[[], None] = lambda: None) -> int:
        """Ask the program to leave; 1 when it had to be killed."""
        if self._process is None:
            return 0
        deadline = time.monotonic() + self._config.stop_timeout
        if self._config.stop_command:
            threading.Thread(target=self._tell, args=("stop_command",), daemon=True).start()
        else:
            self._process.terminate()
        while time.monotonic() < deadline:
            if self.ended.wait(SWEEP):
                return 0
            tick()
        log.warning("killed %s, which took more than %s s", self._config.command[0], self._config.stop_timeout)
        self._process.kill()
        return 1


def die_together() -> object:
    """Put this process into a job object: whatever it starts ends with it, however it ends."""
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = wintypes.HANDLE
    kernel.SetInformationJobObject.argtypes = [wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD]
    kernel.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
    job = kernel.CreateJobObjectW(None, None)
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION: zeros but for LimitFlags, which follow two 64 bit numbers.
    limits = (ctypes.c_byte * (144 if ctypes.sizeof(ctypes.c_void_p) == 8 else 112))()
    ctypes.c_uint32.from_buffer(limits, 16).value = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    extended_limit_information = 9
    if not (
        kernel.SetInformationJobObject(job, extended_limit_information, limits, ctypes.sizeof(limits))
        and kernel.AssignProcessToJobObject(job, kernel.GetCurrentProcess())
    ):
        log.warning("what is started may outlive us: %s", last_error())
    return job


# -- the foreground --------------------------------------------------------------------------------------------

Served = Union[Waitress, Command]


def make_served(config: Config) -> Served:
    """Choose the kind of service."""
    return Waitress(config) if config.callable else Command(config)


def run_in_foreground(config: Config) -> int:
    """Serve until a signal says stop. Until it serves, a signal ends it at once."""
    served = make_served(config)
    served.load()
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    served.start()
    log.info("serving %s", config.callable or config.command[0])
    while not stop.wait(LOOK):
        if served.ended.is_set():
            log.error("ended by itself: %s", served.error)
            return EXIT_FAILED
    log.info("stopping")
    left = served.drain()
    log.info("stopped")
    return EXIT_CUT if left else 0


def leave(status: int) -> NoReturn:
    """End. The application's exit handlers get their time, but a thread that never ends is not waited for."""
    watchdog = threading.Timer(EXIT_HANDLERS, os._exit, (status,))
    watchdog.daemon = True
    watchdog.start()
    sys.exit(status)


# -- the service control manager (Windows) ---------------------------------------------------------------------

STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
CONTROL_STOP, CONTROL_INTERROGATE, CONTROL_SHUTDOWN, CONTROL_PARAMCHANGE, CONTROL_PRESHUTDOWN = 1, 4, 5, 6, 15
CONTROL_RELOAD = 128  # ours
ACCEPT_STOP, ACCEPT_PARAMCHANGE, ACCEPT_PRESHUTDOWN = 0x1, 0x8, 0x100
OWN_PROCESS = 0x10
ERROR_SERVICE_SPECIFIC, ERROR_CALL_NOT_IMPLEMENTED = 1066, 120
STOP_HINT = 10.0  # seconds within which the next sign of life comes


def last_error() -> Exception:
    """The last error of this thread, as Windows words it."""
    import ctypes

    return ctypes.WinError(ctypes.get_last_error())  # type: ignore[attr-defined,unused-ignore,no-any-return]


class ServiceControl:
    """Our side of the talk with the service control manager, over advapi32.

    It is answered first and the application imported afterwards: a slow import is no error 1053. A failed start is
    reported as such. What ends by itself later leaves without a word, which counts as a crash: the failure actions
    follow, whatever FailureActionsOnNonCrashFailures says (a change of that flag counts from the next boot on).
    """

    def __init__(self, config: Config) -> None:
        import ctypes
        from ctypes import wintypes

        class Status(ctypes.Structure):
            _fields_ = [
                (name, wintypes.DWORD)
                for name in ("type", "state", "accepted", "win32_exit", "specific_exit", "checkpoint", "wait_hint")
            ]

        functype = ctypes.WINFUNCTYPE  # type: ignore[attr-defined,unused-ignore]
        main_type = functype(None, wintypes.DWORD, ctypes.POINTER(wintypes.LPWSTR))
        handler_type = functype(wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.LPVOID, wintypes.LPVOID)

        class Entry(ctypes.Structure):
            _fields_ = [("name", wintypes.LPWSTR), ("main", main_type)]

        self._api = ctypes.WinDLL("advapi32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
        self._api.StartServiceCtrlDispatcherW.argtypes = [ctypes.POINTER(Entry)]
        self._api.StartServiceCtrlDispatcherW.restype = wintypes.BOOL
        self._api.RegisterServiceCtrlHandlerExW.argtypes = [wintypes.LPCWSTR, handler_type, wintypes.LPVOID]
        self._api.RegisterServiceCtrlHandlerExW.restype = wintypes.HANDLE
        self._api.SetServiceStatus.argtypes = [wintypes.HANDLE, ctypes.POINTER(Status)]
        self._api.SetServiceStatus.restype = wintypes.BOOL
        self._reference, self._status_type = ctypes.byref, Status

        self._config = config
        self._served = make_served(config)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._handle: object = None
        self._state, self._checkpoint = START_PENDING, 0
        # Kept here: what the system calls must not be collected.
        self._handler, self._main = handler_type(self._on_control), main_type(self._on_start)
        self._table = (Entry * 2)(Entry(config.service, self._main), Entry(None, main_type()))

    def run(self) -> int:
        """Hand this thread over to the control manager until the service has ended."""
        if self._api.StartServiceCtrlDispatcherW(self._table):
            return 0
        log.error("was not started by the service control manager (%s); try --foreground", last_error())
        return EXIT_FAILED

    def _report(self, state: int, hint: float = 0, status: int = 0) -> None:
        with self._lock:
            if self._state == STOPPED:
                return
            self._state = state
            self._checkpoint = self._checkpoint + 1 if state in (START_PENDING, STOP_PENDING) else 0
            report = self._status_type(
                OWN_PROCESS,
                state,
                ACCEPT_STOP | ACCEPT_PARAMCHANGE | ACCEPT_PRESHUTDOWN if state == RUNNING else 0,
                ERROR_SERVICE_SPECIFIC if status else 0,
                status,
                self._checkpoint,
                int(hint * 1000),
            )
            if not self._api.SetServiceStatus(self._handle, self._reference(report)):
                log.error("SetServiceStatus(%d): %s", state, last_error())

    def _on_control(self, control: int, _type: int, _data: object, _context: object) -> int:
        if control in (CONTROL_STOP, CONTROL_SHUTDOWN, CONTROL_PRESHUTDOWN):
            log.info("control %d: stopping", control)
            self._report(STOP_PENDING, STOP_HINT)
            self._stop.set()
        elif control in (CONTROL_PARAMCHANGE, CONTROL_RELOAD):
            threading.Thread(target=self._served.reload, daemon=True).start()
        elif control != CONTROL_INTERROGATE:
            return ERROR_CALL_NOT_IMPLEMENTED
        return 0

    def _on_start(self, _count: int, _arguments: object) -> None:
        self._handle = self._api.RegisterServiceCtrlHandlerExW(self._config.service, self._handler, None)
        if not self._handle:
            log.error("RegisterServiceCtrlHandlerEx: %s", last_error())
            return
        self._report(START_PENDING, self._config.start_timeout)
        try:
            self._served.load()
            self._served.start()
        except BaseException as error:  # noqa: BLE001 - a SystemExit of the application is a failed start too
            tell(error)
            self._report(STOPPED, status=EXIT_FAILED)
            return
        self._report(RUNNING)
        log.info("running as service %s", self._config.service)
        while not self._stop.wait(LOOK):
            if self._served.ended.is_set():
                log.error("ended by itself: %s", self._served.error)
                logging.shutdown()
                os._exit(EXIT_FAILED)  # without STOPPED: see above
        left = self._served.drain(lambda: self._report(STOP_PENDING, STOP_HINT))
        log.info("stopped%s", f", {left} cut" if left else "")
        self._report(STOPPED)


# -- the command line ------------------------------------------------------------------------------------------


def tell(error: BaseException) -> None:
    """Log what went wrong: an error of ours as it is, one of the application's with its traceback."""
    if isinstance(error, HostError):
        for line in str(error).splitlines():
            log.error("%s", line)
    else:
        log.error("the application cannot be loaded", exc_info=error)


def check(config: Config) -> None:
    """Do everything that a start does, except to serve."""
    make_served(config).load()


def main(arguments: list[str]) -> int:
    """Run what the command line says; the exit status."""
    options = [argument for argument in arguments if argument in ("--check", "--foreground")]
    paths = [argument for argument in arguments if argument not in options]
    if len(paths) != 1 or len(options) > 1 or paths[0].startswith("-"):
        print("usage: wsgi_host.py [--check | --foreground] CONFIG.json", file=sys.stderr)
        return EXIT_USAGE
    as_service = WINDOWS and not options
    try:
        config = read_config(Path(paths[0]))
        if as_service and not config.service:
            raise HostError(f"{paths[0]}: service: is missing; name the service")
        set_up_log(config, to_file=bool(config.log_file) and not options)
        if "--check" in options:
            check(config)
            return 0
        return ServiceControl(config).run() if as_service else run_in_foreground(config)
    except BaseException as error:  # noqa: BLE001 - a SystemExit of the application included
        if isinstance(error, KeyboardInterrupt):
            return EXIT_FAILED
        tell(error)  # without a handler yet, to standard error
        return EXIT_FAILED


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
