# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Service Control Manager, as far as restarting services one after the other needs it."""

from __future__ import annotations

import ctypes
import time
from ctypes import wintypes
from typing import Any, Callable, NamedTuple

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError

STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
RELOAD = 128  # what our service host takes as "read your configuration again"

_STATES = {STOPPED: "stopped", START_PENDING: "starting", STOP_PENDING: "stopping", RUNNING: "running"}
_CONTROL_STOP = 1
_NOT_ACTIVE, _CANNOT_ACCEPT, _ALREADY_RUNNING, _NO_SERVICE = 1062, 1061, 1056, 1060
_CONNECT, _QUERY, _START, _STOP, _CONTROL = 0x1, 0x4, 0x10, 0x20, 0x100
_QUERY_PROCESS, _SYNCHRONIZE = 0x1000, 0x100000
# Windows counts 100 ns from 1601 on.
_EPOCH = 116444736000000000


class Status(NamedTuple):
    """What a service does."""

    state: int
    pid: int
    exit_code: int

    def describe(self) -> str:
        """Say it in words."""
        ended = f", exit code {self.exit_code}" if self.state == STOPPED and self.exit_code else ""
        return _STATES.get(self.state, f"in state {self.state}") + ended


class _StatusProcess(ctypes.Structure):
    _fields_ = (
        *((name, wintypes.DWORD) for name in ("type", "state", "accepted", "win32_exit", "specific_exit")),
        *((name, wintypes.DWORD) for name in ("checkpoint", "wait_hint", "pid", "flags")),
    )


class Services:
    """Services by name. Every wait is bounded."""

    def __init__(self) -> None:
        handle, pointer, dword, text = wintypes.HANDLE, wintypes.LPVOID, wintypes.DWORD, wintypes.LPCWSTR
        self._advapi: Any = _library(
            "advapi32",
            OpenSCManagerW=(handle, text, text, dword),
            OpenServiceW=(handle, handle, text, dword),
            QueryServiceStatusEx=(wintypes.BOOL, handle, dword, pointer, dword, pointer),
            StartServiceW=(wintypes.BOOL, handle, dword, pointer),
            ControlService=(wintypes.BOOL, handle, dword, pointer),
            CloseServiceHandle=(wintypes.BOOL, handle),
        )
        self._kernel: Any = _library(
            "kernel32",
            OpenProcess=(handle, dword, wintypes.BOOL, dword),
            GetProcessTimes=(wintypes.BOOL, handle, pointer, pointer, pointer, pointer),
            WaitForSingleObject=(dword, handle, dword),
            CloseHandle=(wintypes.BOOL, handle),
        )
        self._manager = self._advapi.OpenSCManagerW(None, None, _CONNECT)
        if not self._manager:
            raise _windows_error("service", "the Service Control Manager cannot be reached")

    def status(self, name: str) -> Status:
        """Return what a service does; one that does not exist is stopped."""
        handle = self._advapi.OpenServiceW(self._manager, name, _QUERY)
        if not handle:
            if _last_error() == _NO_SERVICE:
                return Status(STOPPED, 0, 0)
            raise _windows_error("service", f"service {name} cannot be opened")
        try:
            return self._query(handle, name)
        finally:
            self._advapi.CloseServiceHandle(handle)

    def started_at(self, pid: int) -> float:
        """Return when a process was started, in seconds since 1970; 0 when that cannot be told."""
        process = self._kernel.OpenProcess(_QUERY_PROCESS, False, pid)
        if not process:
            return 0.0
        try:
            times = [wintypes.FILETIME() for _ in range(4)]
            if not self._kernel.GetProcessTimes(process, *(ctypes.byref(time) for time in times)):
                return 0.0
            return float((times[0].dwHighDateTime << 32 | times[0].dwLowDateTime) - _EPOCH) / 1e7
        finally:
            self._kernel.CloseHandle(process)

    def stop(self, name: str, timeout: float) -> None:
        """Stop a service and wait until its process is gone: only then is its port free."""
        deadline = time.monotonic() + timeout
        process = 0
        pid = self.status(name).pid
        if pid:
            process = self._kernel.OpenProcess(_SYNCHRONIZE, False, pid)
        try:
            while not self._ask_to_stop(name):
                if time.monotonic() > deadline:
                    raise ReleaseError("stop", f"service {name} takes no orders: it is {self.status(name).describe()}")
                time.sleep(0.2)
            self._wait(name, STOPPED, deadline)
            if process:
                self._kernel.WaitForSingleObject(process, 10000)
        finally:
            if process:
                self._kernel.CloseHandle(process)

    def start(self, name: str, timeout: float) -> None:
        """Start a service, and wait until it runs."""

        def start(handle: int) -> bool:
            return bool(self._advapi.StartServiceW(handle, 0, None)) or _last_error() == _ALREADY_RUNNING

        if not self._with(name, _START | _QUERY, start):
            raise _windows_error("start", f"service {name} cannot be started")
        self._wait(name, RUNNING, time.monotonic() + timeout)

    def control(self, name: str, code: int) -> bool:
        """Send a service a control of its own; false when it does not take it."""
        status = _StatusProcess()
        return bool(
            self._with(name, _CONTROL, lambda handle: self._advapi.ControlService(handle, code, ctypes.byref(status)))
        )

    def _ask_to_stop(self, name: str) -> bool:
        if self.status(name).state in (STOPPED, STOP_PENDING):
            return True
        status = _StatusProcess()
        right = _STOP | _QUERY
        if self._with(
            name, right, lambda handle: self._advapi.ControlService(handle, _CONTROL_STOP, ctypes.byref(status))
        ):
            return True
        error = _last_error()
        if error in (_NOT_ACTIVE, _CANNOT_ACCEPT):  # it has just ended, or it is starting
            return error == _NOT_ACTIVE
        raise _windows_error("stop", f"service {name} cannot be stopped")

    def _wait(self, name: str, wanted: int, deadline: float) -> None:
        while True:
            status = self.status(name)
            if status.state == wanted:
                return
            if wanted == RUNNING and status.state == STOPPED:
                raise ReleaseError("start", f"service {name} did not start: it is {status.describe()}")
            if time.monotonic() > deadline:
                raise ReleaseError(
                    "start" if wanted == RUNNING else "stop",
                    f"service {name} is {status.describe()}, and not {_STATES[wanted]} in time",
                )
            time.sleep(0.1)

    def _with(self, name: str, rights: int, function: Callable[[int], Any]) -> Any:  # noqa: ANN401
        handle = self._advapi.OpenServiceW(self._manager, name, rights)
        if not handle:
            raise _windows_error("service", f"service {name} cannot be opened")
        try:
            return function(handle)
        finally:
            error = _last_error()
            self._advapi.CloseServiceHandle(handle)
            ctypes.set_last_error(error)  # type: ignore[attr-defined, unused-ignore]

    def _query(self, handle: int, name: str) -> Status:
        status, needed = _StatusProcess(), wintypes.DWORD()
        size = ctypes.sizeof(status)
        if not self._advapi.QueryServiceStatusEx(handle, 0, ctypes.byref(status), size, ctypes.byref(needed)):
            raise _windows_error("service", f"service {name} cannot be asked")
        return Status(status.state, status.pid, status.specific_exit or status.win32_exit)


def _library(name: str, **functions: tuple[Any, ...]) -> Any:  # noqa: ANN401
    library = ctypes.WinDLL(name, use_last_error=True)  # type: ignore[attr-defined, unused-ignore]
    for function, (result, *arguments) in functions.items():
        getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
    return library


def _last_error() -> int:
    return int(ctypes.get_last_error())  # type: ignore[attr-defined, unused-ignore]


def _windows_error(step: str, problem: str) -> ReleaseError:
    code = _last_error()
    reason = ctypes.FormatError(code).strip()  # type: ignore[attr-defined, unused-ignore]
    return ReleaseError(step, f"{problem}: {reason} ({code})")


def owned_services(program: str) -> list[str]:
    """Return the services whose command line holds this path, from the registry."""
    import winreg  # Windows has it

    found = []
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Services") as services:  # type: ignore[attr-defined, unused-ignore]
        for name in _keys(services):
            try:
                with winreg.OpenKey(services, name) as service:  # type: ignore[attr-defined, unused-ignore]
                    command = str(winreg.QueryValueEx(service, "ImagePath")[0])  # type: ignore[attr-defined, unused-ignore]
            except OSError:
                continue  # drivers have none
            if program.casefold() in command.casefold():
                found.append(name)
    return sorted(found)


def firewall_rules(group: str) -> list[str]:
    """Return the names of the firewall's rules that are in a group, from the registry."""
    import winreg

    path = r"SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\FirewallRules"
    found = []
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as rules:  # type: ignore[attr-defined, unused-ignore]
            for index in range(winreg.QueryInfoKey(rules)[1]):  # type: ignore[attr-defined, unused-ignore]
                found.append(read_rule(str(winreg.EnumValue(rules, index)[1]), group))  # type: ignore[attr-defined, unused-ignore]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name)


def read_rule(text: str, group: str) -> str:
    """Return the name of a rule (`v2.30|Action=Allow|...` in the registry); empty when it is not in the group."""
    fields = dict(part.partition("=")[::2] for part in text.split("|") if "=" in part)
    return fields.get("Name", "") if fields.get("EmbedCtxt") == group else ""


def _keys(key: Any) -> list[str]:  # noqa: ANN401
    import winreg

    return [winreg.EnumKey(key, index) for index in range(winreg.QueryInfoKey(key)[0])]  # type: ignore[attr-defined, unused-ignore]
