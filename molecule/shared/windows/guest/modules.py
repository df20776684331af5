"""Stand-ins for Windows modules of Ansible, in Windows' Python under Wine: one process serves all calls.

Written from the modules' documentation, and only as far as the roles use them. An option that is given and not handled
fails the task, so a stand-in may be less than its module, never quietly more. Files, registry, processes and the
Service Control Manager are the real APIs of (Wine's) Windows. What Wine does not have (accounts, access control, the
firewall) is only written down.
"""

import ctypes
import hashlib
import json
import os
import shutil
import socketserver
import subprocess
import time
import traceback
import winreg
import zipfile
from ctypes import wintypes as w
from pathlib import Path


class FailedError(Exception):
    def __init__(self, message, **result):
        super().__init__(message)
        self.result = result


class Arguments:
    """The arguments of a call; those that were given and that nobody asked for are an error."""

    def __init__(self, request, stream):
        self.request = request
        self.stream = stream  # what follows the request
        self.values = request["args"]
        self.left = set(request.get("given", ()))
        self.check = request["check"]

    def __call__(self, name, default=None):
        self.left.discard(name)
        value = self.values.get(name)
        return default if value is None else value

    def path(self, name):
        value = self(name)
        return None if value is None else Path(windows_path(value, name))

    def done(self, *ignored):
        left = self.left - set(ignored)
        if left:
            raise FailedError(f"the stand-in does not know {', '.join(sorted(left))}")


def windows_path(text, what="path"):
    """A path as Windows accepts it: what a Unix path or a stray character would do there shows here."""
    text = os.path.expandvars(text)
    if text.startswith("/") or (len(text) > 1 and text[1] != ":" and not text.startswith("\\\\")):
        raise FailedError(f"{what} {text!r} is no absolute path of Windows")
    rest = text[2:].replace("/", "\\")
    for part in rest.split("\\"):
        if any(character in part for character in '<>:"|?*') or part != part.rstrip(" ."):
            raise FailedError(f"{what} {text!r} holds {part!r}, which is no name")
        if part.split(".")[0].upper() in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT1"):
            raise FailedError(f"{what} {text!r} holds a name that is reserved")
    if len(text) >= 260:
        raise FailedError(f"{what} {text!r} is longer than 259 characters")
    return text[:2] + rest


def digest(path, algorithm="sha1"):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


# -- files


def win_file(a):
    path, state = a.path("path"), a("state")
    a.done()
    if state != "directory":
        raise FailedError(f"the stand-in does not know state {state}")
    if path.exists() and not path.is_dir():
        raise FailedError(f"path {path} is not a directory")
    exists = path.is_dir()
    if not exists and not a.check:
        path.mkdir(parents=True)
    return {"changed": not exists}


def win_stat(a):
    path, wanted = a.path("path"), a("get_checksum", True)
    a.done()
    if not path.exists():
        return {"stat": {"exists": False}}
    found = {"exists": True, "isdir": path.is_dir(), "isreg": path.is_file(), "path": str(path)}
    if wanted and path.is_file():
        found["checksum"] = digest(path)
    return {"stat": found}


def win_copy(a):
    mode = a("_copy_mode", "single")
    dest = a.path("dest")
    if mode == "query":
        todo = []
        for file in a("files", []):
            path = dest / file["dest"]
            if path.is_dir():
                path = path / Path(file["src"]).name
            if not path.is_file() or digest(path) != file["checksum"]:
                todo.append(file)
        return {"files": todo, "directories": [], "symlinks": []}
    if mode != "single":
        raise FailedError(f"the stand-in does not copy in mode {mode}")
    src = a.path("src")
    if a("backup") or a("remote_src"):
        raise FailedError("the stand-in knows neither backup nor remote_src")
    a.done("force", "decrypt", "local_follow", "content")
    target = dest / a.values["_original_basename"] if dest.is_dir() else dest
    if target.is_file() and digest(target) == digest(src):
        return {"changed": False, "dest": str(target)}
    if not a.check:
        if not target.parent.is_dir():
            raise FailedError(f"destination directory {target.parent} does not exist")
        shutil.copyfile(src, target)
    return {"changed": True, "dest": str(target), "checksum": digest(src)}


def win_unzip(a):
    src, dest, delete = a.path("src"), a.path("dest"), a("delete_archive", False)
    a.done()
    if not src.is_file():
        raise FailedError(f"File: {src} does not exist")
    if not a.check:
        dest.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(src) as archive:
            archive.extractall(dest)
        if delete:
            src.unlink()
    return {"changed": True, "dest": str(dest), "src": str(src)}


def win_command(a):
    argv, chdir, creates, stdin = a("argv"), a.path("chdir"), a.path("creates"), a("stdin")
    a.done()
    if not argv:
        raise FailedError("the stand-in knows argv only")
    windows_path(argv[0], "program")
    line = subprocess.list2cmdline(argv)
    if creates and creates.exists():
        return {"cmd": line, "rc": 0, "skipped": True, "msg": f"skipped, since {creates} exists"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    environment.update({name: str(value) for name, value in a.request.get("environment", {}).items()})
    try:
        done = subprocess.run(line, cwd=chdir, env=environment, input=(stdin or "").encode(), capture_output=True)
    except OSError as error:
        raise FailedError(f"Failed to run: '{line}': {error}", rc=2, cmd=line) from error
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    result = {"cmd": line, "changed": True, "rc": done.returncode, "stdout": out, "stderr": err}
    if done.returncode:
        raise FailedError("non-zero return code", **result)
    return result


# -- services

advapi = ctypes.WinDLL("advapi32", use_last_error=True)
STATES = {1: "stopped", 2: "start_pending", 3: "stop_pending", 4: "running", 7: "paused"}
START_MODES = {"auto": 2, "delayed": 2, "manual": 3, "disabled": 4}
KEEP = 0xFFFFFFFF
STATUS_FIELDS = ("type", "state", "accepted", "exit", "specific", "checkpoint", "hint", "pid", "flags")


class Config(ctypes.Structure):
    _fields_ = (
        *(("type", w.DWORD), ("start", w.DWORD), ("error", w.DWORD), ("path", w.LPWSTR), ("group", w.LPWSTR)),
        *(("tag", w.DWORD), ("dependencies", w.LPVOID), ("user", w.LPWSTR), ("display", w.LPWSTR)),
    )


class Status(ctypes.Structure):
    _fields_ = tuple((name, w.DWORD) for name in STATUS_FIELDS)


TEXT = w.LPCWSTR
for function, outcome, *parameters in (
    ("OpenSCManagerW", w.HANDLE, TEXT, TEXT, w.DWORD),
    ("OpenServiceW", w.HANDLE, w.HANDLE, TEXT, w.DWORD),
    ("CreateServiceW", w.HANDLE, w.HANDLE, TEXT, TEXT, *[w.DWORD] * 4, TEXT, TEXT, w.LPVOID, TEXT, TEXT, TEXT),
    ("ChangeServiceConfigW", w.BOOL, w.HANDLE, *[w.DWORD] * 3, TEXT, TEXT, w.LPVOID, TEXT, TEXT, TEXT, TEXT),
    ("QueryServiceConfigW", w.BOOL, w.HANDLE, w.LPVOID, w.DWORD, w.LPVOID),
    ("QueryServiceStatusEx", w.BOOL, w.HANDLE, w.DWORD, w.LPVOID, w.DWORD, w.LPVOID),
    ("ControlService", w.BOOL, w.HANDLE, w.DWORD, w.LPVOID),
    ("DeleteService", w.BOOL, w.HANDLE),
    ("CloseServiceHandle", w.BOOL, w.HANDLE),
):
    getattr(advapi, function).restype, getattr(advapi, function).argtypes = outcome, parameters


def succeed(value, what):
    if not value:
        code = ctypes.get_last_error()
        raise FailedError(f"{what}: {ctypes.FormatError(code).strip()} ({code})")
    return value


class Service:
    def __init__(self, name):
        self.name = name
        self.manager = succeed(advapi.OpenSCManagerW(None, None, 0xF003F), "OpenSCManager")
        self.handle = advapi.OpenServiceW(self.manager, name, 0xF01FF)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """A service with an open handle would not go away."""
        for handle in (self.handle, self.manager):
            if handle:
                advapi.CloseServiceHandle(handle)

    def config(self):
        self.buffer, needed = ctypes.create_string_buffer(8192), w.DWORD()
        succeed(advapi.QueryServiceConfigW(self.handle, self.buffer, 8192, ctypes.byref(needed)), "QueryServiceConfig")
        return Config.from_buffer_copy(self.buffer)

    def state(self):
        status, needed = Status(), w.DWORD()
        size = ctypes.sizeof(status)
        succeed(advapi.QueryServiceStatusEx(self.handle, 0, ctypes.byref(status), size, ctypes.byref(needed)), "Query")
        return status.state

    def stop(self):
        succeed(advapi.ControlService(self.handle, 1, ctypes.byref(Status())), "ControlService")
        deadline = time.monotonic() + 120
        while self.state() != 1:
            if time.monotonic() > deadline:
                raise FailedError(f"service {self.name} does not stop")
            time.sleep(0.2)


def service_key(name, access=winreg.KEY_READ):
    return winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"SYSTEM\CurrentControlSet\Services\{name}", 0, access)


def service_value(name, value):
    try:
        with service_key(name) as key:
            return winreg.QueryValueEx(key, value)[0]
    except OSError:
        return None


def failure_actions(reset, actions):
    """The bytes that Windows keeps in the registry."""
    kinds = {"none": 0, "restart": 1, "reboot": 2, "run_command": 3}
    numbers = [reset, 0, 0, len(actions), 20]
    for action in actions:
        numbers += [kinds[action["type"]], int(action.get("delay_ms") or 0)]
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def see_program(path):
    """Refuse what CreateProcess would not start: a path with a space and without quotes is the classic hole."""
    program = path[1:].split('"')[0] if path.startswith('"') else path.split(" ")[0]
    if not Path(program).is_file():
        raise FailedError(f"service path {path!r}: {program!r} is no file (a path with spaces needs quotes)")


def win_service(a):
    name, state, path, display = a("name"), a("state"), a("path"), a("display_name")
    mode, user = a("start_mode"), a("username")
    sid = {None: None, "none": 0, "unrestricted": 1, "restricted": 3}[a("sid_info")]
    values = [
        ("Description", winreg.REG_SZ, a("description")),
        ("ServiceSidType", winreg.REG_DWORD, sid),
        ("PreshutdownTimeout", winreg.REG_DWORD, a("pre_shutdown_timeout_ms")),
        ("FailureActionsOnNonCrashFailures", winreg.REG_DWORD, a("failure_actions_on_non_crash_failure")),
    ]
    actions, reset = a("failure_actions"), a("failure_reset_period_sec")
    if actions is not None:
        values.append(("FailureActions", winreg.REG_BINARY, failure_actions(int(reset or 0), actions)))
    a.done()
    with Service(name) as service:
        if state == "absent":
            if service.handle and not a.check:
                if service.state() != 1:
                    service.stop()
                succeed(advapi.DeleteService(service.handle), "DeleteService")
            return {"changed": bool(service.handle), "exists": False}
        if state is not None:
            raise FailedError(f"the stand-in does not know state {state}")
        changed = not service.handle
        if not service.handle:
            if a.check:
                return {"changed": True, "exists": False}
            see_program(path)
            settings = (
                0xF01FF,
                0x10,
                START_MODES[mode or "auto"],
                1,
                path,
                None,
                None,
                None,
                user or "LocalSystem",
                None,
            )
            service.handle = succeed(advapi.CreateServiceW(service.manager, name, display or name, *settings), "Create")
        else:
            now = service.config()
            start = START_MODES[mode] if mode and START_MODES[mode] != now.start else KEEP
            path = path if path and path != now.path else None
            user = user if user and user.lower() != (now.user or "").lower() else None
            display = display if display and display != now.display else None
            if start != KEEP or path or user or display:
                changed = True
                if path:
                    see_program(path)
                if not a.check:
                    settings = (KEEP, start, KEEP, path, None, None, None, user, None, display)
                    succeed(advapi.ChangeServiceConfigW(service.handle, *settings), "ChangeServiceConfig")
        for value, kind, data in values:
            if data is None:
                continue
            wanted = int(data) if kind == winreg.REG_DWORD else data
            if service_value(name, value) != wanted:
                changed = True
                if not a.check:
                    with service_key(name, winreg.KEY_READ | winreg.KEY_SET_VALUE) as key:
                        winreg.SetValueEx(key, value, 0, kind, wanted)
        return {"changed": changed, "exists": True, "name": name, "state": STATES.get(service.state())}


# -- what is only written down

RECORD = Path(r"C:\windows\rig.json")
RULES = r"SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\FirewallRules"


def remember(kind, key, value, check):
    """Note what Windows would enforce; tests read it there."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    entries = record.setdefault(kind, {})
    changed = entries.get(key) != value
    if changed and not check:
        entries[key] = value
        RECORD.write_text(json.dumps(record, indent=1))
    return {"changed": changed}


def win_acl(a):
    path, user, rights, kind = a.path("path"), a("user"), a("rights"), a("type")
    if a("state") == "absent":
        raise FailedError("the stand-in does not know state absent")
    a.done()
    if not path.exists():
        raise FailedError(f"{path} file or directory does not exist on the host")
    service = user.removeprefix("NT SERVICE\\")
    with Service(service) as found:
        known = bool(found.handle)
    if service != user and not known:
        raise FailedError(f"{user} is not a valid user or group on the host machine or domain")
    return remember("rights", f"{path}|{user}", f"{kind} {rights}", a.check)


def win_acl_inheritance(a):
    path, state = a.path("path"), a("state")
    a.done("reorganize")
    if not path.exists():
        raise FailedError(f"{path} file or directory does not exist on the host")
    return remember("inheritance", str(path), state, a.check)


def win_firewall_rule(a):
    """Keeps rules in the registry, in the form in which Windows keeps them."""
    name, state, group = a("name"), a("state"), a("group")
    fields = {"Action": a("action"), "Active": a("enabled"), "Dir": a("direction"), "Protocol": a("protocol")}
    fields |= {"LPort": a("localport"), "RA4": a("remoteip"), "Desc": a("description"), "Profiles": a("profiles")}
    a.done()
    if state == "present" and fields["Protocol"] != "tcp":
        raise FailedError("the stand-in knows tcp only")
    fields["Protocol"] = 6
    parts = [*(f"{key}={value}" for key, value in fields.items()), f"Name={name}", f"EmbedCtxt={group}"]
    text = "|".join(["v2.30", *parts, ""])
    with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, RULES, 0, winreg.KEY_READ | winreg.KEY_WRITE) as key:
        present = [winreg.EnumValue(key, index)[:2] for index in range(winreg.QueryInfoKey(key)[1])]
        same = [(entry, value) for entry, value in present if f"|Name={name}|" in value]
        changed = bool(same) if state == "absent" else [value for _, value in same] != [text]
        if changed and not a.check:
            for entry, _ in same:
                winreg.DeleteValue(key, entry)
            if state == "present":
                entry = "{" + hashlib.sha256(name.encode()).hexdigest()[:32].upper() + "}"
                winreg.SetValueEx(key, entry, 0, winreg.REG_SZ, text)
    return {"changed": changed}


# -- what the connection itself needs


def make_directory(a):
    path = Path(os.path.expandvars(a.values["Directory"]), a.values["Name"])
    path.mkdir(parents=True)
    return {"stdout": str(path)}


def expand_user(a):
    return {"stdout": str(Path(a.values["Path"]).expanduser())}


def remove(a):
    path = Path(a.values["path"])
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    return {}


def put(a):
    path = Path(a.values["path"])
    with path.open("wb") as stream:
        shutil.copyfileobj(a.stream, stream)
    return {"sha256": digest(path, "sha256")}


MODULES = {
    "powershell_mkdtemp.ps1": make_directory,
    "powershell_expand_user.ps1": expand_user,
    "_remove": remove,
    "_put": put,
    **{f"ansible.windows.{module.__name__}": module for module in (win_file, win_stat, win_copy, win_command)},
    **{f"ansible.windows.{module.__name__}": module for module in (win_service, win_acl, win_acl_inheritance)},
    **{f"community.windows.{module.__name__}": module for module in (win_unzip, win_firewall_rule)},
}


def answer_to(stream):
    request = json.loads(stream.readline())
    module = MODULES.get(request["module"])
    try:
        if module is None:
            raise FailedError(f"the rig has no stand-in for {request['module']}")
        if request["check"] and not request.get("supports_check", True):
            answer = {"skipped": True, "changed": False, "msg": "remote module does not support check mode"}
        else:
            answer = {"changed": False, **module(Arguments(request, stream))}
    except FailedError as error:
        answer = {"failed": True, "changed": False, "msg": str(error), **error.result}
    except Exception as error:  # noqa: BLE001 - the task shows it
        text = traceback.format_exc()
        answer = {"failed": True, "changed": False, "msg": f"the stand-in broke: {error!r}", "exception": text}
    return answer


class Call(socketserver.StreamRequestHandler):
    """One connection: a line of JSON asks, perhaps data after it; a line of JSON answers."""

    def handle(self):
        self.wfile.write(json.dumps(answer_to(self.rfile)).encode() + b"\n")


socketserver.TCPServer.allow_reuse_address = True  # after a power cut
with socketserver.TCPServer(("0.0.0.0", 8990), Call) as server:
    server.serve_forever()
