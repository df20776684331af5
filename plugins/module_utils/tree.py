"""Puts a set of files onto a host as one change: compare, stage, test, swap.

Used on both sides: the action plugin checks the request and packs the rendered texts, the module does the rest on the
host. Standard library only, Python 3.9 or newer.

What is atomic: each file by itself (a reader sees the old or the new one, never a part). The set as a whole is not: the
renames follow each other within a few milliseconds. A run that fails undoes what it did; a run that is killed is
mended by the next one, because the manifest names old and new files before the first of them is touched.
"""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH
from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

STATE_DIRECTORY = "/var/lib/wsgi-fleet/tree"
DIGEST_TOKEN = "{{ tree_digest }}"  # noqa: S105 - a place holder
LOCK_SECONDS = 120.0
DIFF_LIMIT = 104448  # bytes; what ansible.builtin.copy shows at most
OUTPUT_LIMIT = 6000  # characters of a failed test's output
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Our temporary names end as dpkg's do: whatever reads a whole directory (logrotate, cron, run-parts) passes over them.
TEMPORARY_PREFIX = ".wsgi-fleet-"
TEMPORARY_SUFFIX = ".dpkg-new"
TEMPORARY = re.compile(r"\.wsgi-fleet-[0-9a-f]{16}\.dpkg-new")

_OWNERSHIP = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}
ARGUMENTS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "root": {"type": "str", "required": True},
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "str", "required": True},
            "template": {"type": "str"},
            "content": {"type": "raw"},
            "src": {"type": "str"},
            "vars": {"type": "dict", "default": {}},
            **_OWNERSHIP,
            "mode": {"type": "raw", "default": "0644"},
            "secret": {"type": "bool", "default": False, "no_log": False},
        },
    },
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "str", "required": True},
            **_OWNERSHIP,
            "mode": {"type": "raw", "default": "0755"},
        },
    },
    "tests": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "argv": {"type": "list", "elements": "str", "required": True},
            "chdir": {"type": "str"},
            "user": {"type": "str"},
            "file": {"type": "str"},
            "name": {"type": "str"},
        },
    },
    "timeout": {"type": "int", "default": 60},
}


class TreeError(Exception):
    """Something an operator can act upon; `details` goes into the task's result."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details


class UndoError(Exception):
    """A failed swap could not be undone; the manifest stays as it is during a swap, so the next run mends."""


# ---------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class File:
    path: str
    content: bytes
    owner: str
    group: str
    mode: int
    secret: bool


@dataclass(frozen=True)
class Directory:
    path: str
    owner: str
    group: str
    mode: int


@dataclass(frozen=True)
class Test:
    argv: tuple[str, ...]
    chdir: Optional[str]
    user: Optional[str]
    file: Optional[str]
    name: str


@dataclass(frozen=True)
class Request:
    name: str
    root: str
    files: tuple[File, ...]
    directories: tuple[Directory, ...]
    tests: tuple[Test, ...]
    timeout: int = 60


def parse_mode(value: object) -> int:
    """Turn "0644" into a number; anything else could mean two things (YAML reads a bare 0644 as 420)."""
    if not isinstance(value, str) or not re.fullmatch(r"0[0-7]{3,4}|[1-7][0-7]{3}", value):
        msg = f'mode {value!r} is no quoted octal mode such as "0644"'
        raise ValueError(msg)
    return int(value, 8)


def _path_problem(path: str) -> str:
    if not path or path.startswith("/") or path.endswith("/"):
        return "is no path of a file relative to root"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "holds a control character"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "may not hold '.', '..' or an empty part"
    if any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        return f"may not begin with {TEMPORARY_PREFIX}: our temporary files do"
    return ""


def request_problems(request: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a request that passed ARGUMENTS, before anything is rendered or changed."""
    found: list[str] = []
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", request["name"]):
        found.append(f"name: {request['name']!r} may hold small letters, digits, '-' and '_' only")
    root = request["root"]
    if not root.startswith("/") or os.path.normpath(root) != root or root in ("/", "//"):
        found.append(f"root: {root!r} is no plain absolute directory such as /etc/nginx")
    if request["timeout"] < 1:
        found.append("timeout: must be at least 1 second")

    seen: dict[str, str] = {}
    for kind in ("directories", "files"):
        for index, record in enumerate(request[kind]):
            path = record["path"]
            where = f"{kind}[{index}] ({path})"
            problem = "" if kind == "directories" and path == "." else _path_problem(path)
            if problem:
                found.append(f"{where}: path {problem}")
            elif path in seen:
                found.append(f"{where}: {seen[path]} has the same path")
            else:
                seen[path] = where
            try:
                parse_mode(record["mode"])
            except ValueError as error:
                found.append(f"{where}: {error}")
    files = {record["path"] for record in request["files"]}
    found += [
        f"{where}: {parent} is a file in the same request, it cannot hold other files"
        for path, where in seen.items()
        for parent in parents(path)
        if parent in files
    ]
    for index, test in enumerate(request["tests"]):
        where = f"tests[{index}] ({test['name'] or ' '.join(test['argv'][:1])})"
        if not test["argv"] or not test["argv"][0]:
            found.append(f"{where}: argv must name a program")
        if test["chdir"] is not None and not test["chdir"].startswith(("/", "{root}")):
            found.append(f"{where}: chdir {test['chdir']!r} must be absolute or begin with {{root}}")
        if test["file"] is not None and test["file"] not in files:
            found.append(f"{where}: file {test['file']!r} is not among the files")
    return found


def build_request(request: Mapping[str, Any], contents: Sequence[bytes]) -> Request:
    """Make typed records of a request without problems."""
    return Request(
        name=request["name"],
        root=request["root"],
        files=tuple(
            File(
                record["path"], content, record["owner"], record["group"], parse_mode(record["mode"]), record["secret"]
            )
            for record, content in zip(request["files"], contents)
        ),
        directories=tuple(
            Directory(record["path"], record["owner"], record["group"], parse_mode(record["mode"]))
            for record in request["directories"]
        ),
        tests=tuple(
            Test(tuple(test["argv"]), test["chdir"], test["user"], test["file"], test["name"] or test["argv"][0])
            for test in request["tests"]
        ),
        timeout=request["timeout"],
    )


def parents(path: str) -> list[str]:
    """The directories above a relative path, outermost first: a/b/c -> a, a/b."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def tree_digest(files: Iterable[Mapping[str, Any]], contents: Sequence[bytes]) -> str:
    """One hash over path, owner, group, mode and content of all files, in whatever order they are given."""
    records = sorted(
        [f["path"], f["owner"], f["group"], parse_mode(f["mode"]), hashlib.sha256(content).hexdigest()]
        for f, content in zip(files, contents)
    )
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def pack(contents: Sequence[bytes]) -> str:
    """All contents as one string that a module parameter can carry."""
    text = json.dumps([content.decode("latin-1") for content in contents])
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def unpack(blob: str) -> list[bytes]:
    """The reverse of pack()."""
    return [text.encode("latin-1") for text in json.loads(zlib.decompress(base64.b64decode(blob)))]


# ------------------------------------------------------------------------------------------------ what is there


@dataclass(frozen=True)
class Node:
    """What is, or shall be, at a path. The content of a link is its target."""

    kind: str  # absent, file, link, directory, other
    uid: int = -1
    gid: int = -1
    mode: int = -1
    content: bytes = b""


ABSENT = Node("absent")


def read_node(path: str, *, content: bool = True) -> Node:
    """Look at a path without following a link at its end."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return Node("link", status.st_uid, status.st_gid, content=os.fsencode(os.readlink(path)))
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            return Node("directory", status.st_uid, status.st_gid, mode)
        if not stat.S_ISREG(status.st_mode):
            return Node("other", status.st_uid, status.st_gid, mode)
        return Node("file", status.st_uid, status.st_gid, mode, Path(path).read_bytes() if content else b"")
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT


def write_node(path: str, node: Node, *, durable: bool = False) -> None:
    """Make a new file or link: closed to others until owner and mode are right, then complete."""
    if node.kind == "link":
        os.symlink(os.fsdecode(node.content), path)
        if node.uid >= 0:
            os.chown(path, node.uid, node.gid, follow_symlinks=False)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(node.content)
        stream.flush()
        os.fchown(descriptor, node.uid, node.gid)
        os.fchmod(descriptor, node.mode)  # after chown, which drops set-id bits
        if durable:
            os.fsync(descriptor)


def make_directory(path: str, uid: int, gid: int, mode: int) -> None:
    """Make one directory, closed until its owner is right."""
    os.mkdir(path, 0o700)
    set_directory(path, uid, gid, mode)


def set_directory(path: str, uid: int, gid: int, mode: int) -> None:
    """Give a directory its owner and mode, never what a link points to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(directory: str) -> str:
    """An unpredictable name of ours in a directory."""
    return f"{directory}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


def remove_leftovers(directories: Iterable[str]) -> None:
    """Remove what runs that were killed left in these directories; a stage that a living run holds locked stays."""
    for directory in directories:
        try:
            entries = [entry for entry in os.scandir(directory) if TEMPORARY.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)


class Owners:
    """User and group names of this host; in check mode one that does not exist yet is noted, else refused."""

    def __init__(self, *, check: bool) -> None:
        self._check = check
        self._known: dict[tuple[str, str], Optional[int]] = {}
        self.missing: list[str] = []

    def number(self, kind: str, name: str, wanted_by: str) -> int:
        """The number of a user ("owner") or group ("group"); -1 (no change) when it is missing in check mode."""
        if (kind, name) not in self._known:
            self._known[kind, name] = self._look_up(kind, name)
            if self._known[kind, name] is None:
                self.missing.append(f"{kind} {name} does not exist yet")
        number = self._known[kind, name]
        if number is None and not self._check:
            msg = f"{wanted_by}: {kind} {name!r} does not exist on this host. Create it first, or correct the {kind}."
            raise TreeError(msg, path=wanted_by)
        return -1 if number is None else number

    @staticmethod
    def _look_up(kind: str, name: str) -> Optional[int]:
        if name.isdigit():
            return int(name)
        try:
            return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
        except KeyError:
            return None


# ------------------------------------------------------------------------------------------------- the manifest


@dataclass
class Manifest:
    """What one caller owns on this host, by absolute path."""

    files: dict[str, dict[str, bool]] = field(default_factory=dict)  # path -> {secret, adopted}
    made: set[str] = field(default_factory=set)  # directories that were not there before us
    listed: set[str] = field(default_factory=set)  # directories asked for by name: kept even when empty
    pending: Optional[dict[str, list[str]]] = None  # a swap has begun and was not seen to end

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(
            {
                "version": 1,
                "files": self.files,
                "made": sorted(self.made),
                "listed": sorted(self.listed),
                "pending": self.pending,
            },
            indent=1,
            sort_keys=True,
        )


class Store:
    """The manifests, the lock and the originals of adopted files."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def manifest_path(self, name: str) -> str:
        return f"{self.directory}/{name}.json"

    def original_path(self, name: str, path: str) -> str:
        return f"{self.directory}/{name}.orig{path}"

    def load(self, name: str) -> Manifest:
        """The manifest of a caller; an empty one when there is none."""
        path = Path(self.manifest_path(name))
        try:
            stored = json.loads(path.read_text())
            return Manifest(stored["files"], set(stored["made"]), set(stored["listed"]), stored["pending"])
        except FileNotFoundError:
            return Manifest()
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{path} cannot be read as a manifest ({error}). Move it away: the next run adopts its files."
            raise TreeError(msg) from error

    def others(self, name: str) -> dict[str, Manifest]:
        """The manifests of all other callers."""
        try:
            names = sorted(entry[:-5] for entry in os.listdir(self.directory) if entry.endswith(".json"))
        except FileNotFoundError:
            return {}
        return {other: self.load(other) for other in names if other != name}

    def save(self, name: str, manifest: Manifest) -> None:
        """Replace a manifest, so that it is on disk before this returns."""
        temporary = temporary_path(self.directory)
        node = Node("file", os.geteuid(), os.getegid(), 0o600, manifest.text().encode())
        write_node(temporary, node, durable=True)
        os.rename(temporary, self.manifest_path(name))
        sync_directory(self.directory)

    def keep_original(self, name: str, path: str, node: Node) -> None:
        """Keep a copy of what was there before we took a path over."""
        target = self.original_path(name, path)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        write_node(target, node, durable=True)

    def drop_original(self, name: str, path: str) -> None:
        """Forget a kept copy."""
        target = self.original_path(name, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        with contextlib.suppress(OSError):  # up to the first directory that is not empty
            os.removedirs(os.path.dirname(target))

    @contextlib.contextmanager
    def locked(self, *, check: bool, seconds: float) -> Iterator[None]:
        """One run at a time on a host. Check mode makes nothing, so on a bare host it goes without."""
        if check and not os.path.exists(f"{self.directory}/lock"):
            yield
            return
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        descriptor = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        msg = (
                            f"another run has held {self.directory}/lock for more than {seconds:.0f} seconds. "
                            "Let it end (or end it), then run again."
                        )
                        raise TreeError(msg) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------------------------------- from wanted to changes


@dataclass(frozen=True)
class Change:
    """One path that shall become different."""

    path: str
    before: Node
    after: Node
    owners: str  # of `after`, for people: "root:shop"
    secret: bool


@dataclass
class Plan:
    """Everything a run will do. Made without touching anything."""

    changes: list[Change] = field(default_factory=list)
    directories: list[Change] = field(default_factory=list)  # to make or to correct, outermost first
    needed: set[str] = field(default_factory=set)  # directories that this request cannot do without
    emptied: list[str] = field(default_factory=list)  # to remove, innermost first
    adopted: list[Change] = field(default_factory=list)  # foreign files that we replace
    restored: list[str] = field(default_factory=list)  # owned paths whose original comes back, or is forgotten
    wanted: Manifest = field(default_factory=Manifest)


def _refuse_links(root: str, directories: Iterable[str]) -> None:
    """Below root every directory must be one: whoever could plant a link could lead our writes elsewhere."""
    for parent in directories:
        node = read_node(f"{root}/{parent}", content=False)
        if node.kind == "link":
            target = os.fsdecode(node.content)
            msg = f"{root}/{parent} must be a directory but is a link to {target}; links are not followed. Remove it."
            raise TreeError(msg, path=parent)
        if node.kind not in ("absent", "directory"):
            msg = f"{root}/{parent} must be a directory but is none. Move it away."
            raise TreeError(msg, path=parent)


def make_plan(
    request: Request, manifest: Manifest, others: Mapping[str, Manifest], store: Store, owners: Owners
) -> Plan:
    """Compare the host with the request."""
    plan = Plan()
    root = os.path.realpath(request.root)
    if read_node(root, content=False).kind not in ("absent", "directory"):
        msg = f"root {request.root} is not a directory. Move it away, or correct root."
        raise TreeError(msg)
    _plan_directories(plan, request, root, owners)
    _plan_files(plan, request, root, manifest, others, owners)
    _plan_removals(plan, request, manifest, store)

    # Callers share directories: whoever removes the last file removes a directory that any of them has made.
    gone = {change.path for change in plan.changes if change.after.kind == "absent"}
    made = manifest.made.union(*(other.made for other in others.values()))
    needed = plan.needed.union(*(other.listed for other in others.values()))
    for directory in sorted(made - needed, key=lambda path: path.count("/"), reverse=True):
        if read_node(directory, content=False).kind == "directory":
            left = {entry.path for entry in os.scandir(directory) if not TEMPORARY.fullmatch(entry.name)}
            if left <= gone:
                plan.emptied.append(directory)
                gone.add(directory)
    plan.wanted.made |= {path for path in manifest.made if path not in gone and os.path.isdir(path)}
    return plan


def _plan_directories(plan: Plan, request: Request, root: str, owners: Owners) -> None:
    explicit = {directory.path: directory for directory in request.directories}
    paths = [*(file.path for file in request.files), *explicit]
    implied = {parent for path in paths for parent in parents(path)}
    if paths:
        implied.add(".")
    for path in sorted(implied | set(explicit), key=lambda path: (path != ".", path.count("/"), path)):
        live = root if path == "." else f"{root}/{path}"
        wanted = explicit.get(path) or Directory(path, "root", "root", 0o755)
        if path != ".":
            _refuse_links(root, [path])  # outermost first, so all above it are checked
        before = read_node(live, content=False)
        plan.needed.add(live)
        if path in explicit:
            plan.wanted.listed.add(live)
        elif before.kind == "directory":
            continue  # not asked about its owner and mode
        after = Node(
            "directory",
            owners.number("owner", wanted.owner, live),
            owners.number("group", wanted.group, live),
            wanted.mode,
        )
        if before != after:
            plan.directories.append(Change(live, before, after, f"{wanted.owner}:{wanted.group}", secret=False))
            if before.kind == "absent":
                plan.wanted.made.add(live)


def _plan_files(
    plan: Plan, request: Request, root: str, manifest: Manifest, others: Mapping[str, Manifest], owners: Owners
) -> None:
    owned_by = {path: name for name, other in others.items() for path in other.files}
    for file in request.files:
        live = f"{root}/{file.path}"
        if live in owned_by:
            msg = f"{live} belongs to {owned_by[live]!r}; {request.name!r} cannot have it too. Remove it from one."
            raise TreeError(msg, path=file.path)
        before = read_node(live)
        if before.kind in ("directory", "other"):
            what = "a directory" if before.kind == "directory" else "no regular file"
            msg = f"{live} is {what} and cannot be replaced by a file. Move it away."
            raise TreeError(msg, path=file.path)
        after = Node(
            "file",
            owners.number("owner", file.owner, live),
            owners.number("group", file.group, live),
            file.mode,
            file.content,
        )
        owned = manifest.files.get(live)
        foreign = owned is None and before.kind != "absent"
        # what was secret, or what a stranger kept from others' eyes, is not shown as the "before" of a diff either
        closed = foreign and before.kind == "file" and not before.mode & stat.S_IROTH
        secret = file.secret or closed or bool(owned and owned["secret"])
        adopted = bool(owned and owned["adopted"])
        if before != after:
            change = Change(live, before, after, f"{file.owner}:{file.group}", secret)
            plan.changes.append(change)
            if foreign:
                plan.adopted.append(change)
                adopted = True
        plan.wanted.files[live] = {"secret": file.secret, "adopted": adopted}


def _plan_removals(plan: Plan, request: Request, manifest: Manifest, store: Store) -> None:
    for path, record in sorted(manifest.files.items()):
        if path in plan.wanted.files:
            continue
        if record["adopted"]:
            plan.restored.append(path)
        directory = os.path.dirname(path)
        if os.path.realpath(directory) != directory or not os.path.isdir(directory):
            continue  # its directory is gone, or was replaced by a link to somebody else's
        before = read_node(path)
        if before.kind not in ("file", "link", "absent"):
            continue  # somebody put something else there: not ours any more
        after = read_node(store.original_path(request.name, path)) if record["adopted"] else ABSENT
        if before != after:
            closed = after.kind == "file" and not after.mode & stat.S_IROTH
            plan.changes.append(Change(path, before, after, "", secret=record["secret"] or closed))


# ------------------------------------------------------------------------------------------------- stage and test


def _copy_tree(source: str, target: str, root: str, stage: str) -> None:
    """Copy what configuration consists of: directories, files, links. Links into the live tree lead into the copy."""
    for entry in os.scandir(source):
        if TEMPORARY.fullmatch(entry.name):
            continue
        copy = f"{target}/{entry.name}"
        node = read_node(entry.path)
        if node.kind == "directory":
            os.mkdir(copy, 0o700)
            _copy_tree(entry.path, copy, root, stage)
            set_directory(copy, node.uid, node.gid, node.mode)
        elif node.kind == "link":
            points_to = os.fsdecode(node.content)
            if points_to == root or points_to.startswith(root + "/"):
                points_to = stage + points_to[len(root) :]
            write_node(copy, Node("link", node.uid, node.gid, content=os.fsencode(points_to)))
        elif node.kind == "file":
            write_node(copy, node)


@contextlib.contextmanager
def staged(root: str, plan: Plan) -> Iterator[str]:
    """A copy of root as it would be after the plan, beside root; removed at the end."""
    parent = os.path.dirname(root)
    while not os.path.isdir(parent):  # a bare host: as near as can be
        parent = os.path.dirname(parent)
    stage = temporary_path(parent)
    os.mkdir(stage, 0o700)
    descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # says to other runs that this one lives
        live_root = read_node(root, content=False)
        if live_root.kind == "directory":
            _copy_tree(root, stage, root, stage)
        for change in plan.directories:
            copy = stage + change.path[len(root) :]
            if change.path == root:
                live_root = change.after
            elif change.before.kind == "absent":
                make_directory(copy, change.after.uid, change.after.gid, change.after.mode)
            else:
                set_directory(copy, change.after.uid, change.after.gid, change.after.mode)
        for change in plan.changes:
            if not change.path.startswith(root + "/"):
                continue  # of an earlier root of the same caller
            copy = stage + change.path[len(root) :]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
            if change.after.kind != "absent":
                write_node(copy, change.after)
        for directory in plan.emptied:
            if directory.startswith(root + "/"):
                os.rmdir(stage + directory[len(root) :])
        set_directory(stage, live_root.uid, live_root.gid, live_root.mode)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(descriptor)


def secret_words(contents: Iterable[bytes]) -> list[str]:
    """What a program might quote of secret files: lines, values, words that look random. The longest first."""
    words: set[str] = set()
    for content in contents:
        for line in content.decode(errors="replace").splitlines():
            plain = line.strip()
            words.add(plain)
            value = re.split(r"[=:]" if re.search(r"[=:]", plain) else r"\s", plain, maxsplit=1)[-1].strip()
            words.update((value, value.strip("\"',;")))
            words.update(
                word
                for word in re.split(r"[\s\"'=,;]+", plain)
                if len(word) >= 8 and re.search(r"[0-9A-Z]", word) and not word.startswith("/")
            )
    return sorted((word for word in words if len(word) >= 6), key=len, reverse=True)


def readable_output(output: str, stage: str, root: str, words: Sequence[str]) -> str:
    """A program's output for people: live paths, no secrets, the end of it when it is long."""
    text = output.replace(stage, root)
    for word in words:
        text = text.replace(word, "(secret)")
    text = text.strip()
    return text if len(text) <= OUTPUT_LIMIT else "(...)\n" + text[-OUTPUT_LIMIT:]


def guilty_file(output: str, stage: str, known: Iterable[str]) -> Optional[str]:
    """The file (relative) that a program names first, preferring one that we are about to write."""
    lines = sorted(output.splitlines(), key=lambda line: "warn" in line.lower())  # stable: warnings to the end
    named = [name.rstrip(".") for name in re.findall(re.escape(stage) + r"/([\w@%+=./-]+)", "\n".join(lines))]
    wanted = set(known)
    return next((path for path in named if path in wanted), next(iter(named), None))


def _run(argv: Sequence[str], chdir: Optional[str], user: Optional[pwd.struct_passwd], timeout: int) -> tuple[int, str]:
    """Run a program, bounded in time, with a small fixed environment; its exit code and all that it printed."""
    account = user or pwd.getpwuid(os.geteuid())
    identity: dict[str, Any] = {}
    if user is not None and user.pw_uid != os.geteuid():
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    environment = {
        "PATH": SEARCH_PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "LC_ALL": "C.UTF-8",
    }
    with tempfile.TemporaryFile() as output:  # not a pipe: a child left in the background could hold that open
        process = subprocess.Popen(
            list(argv),
            cwd=chdir or "/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **identity,
        )
        note = ""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
            process.wait()
            note = f"\n(did not end within {timeout} seconds and was stopped)"
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace") + note


def run_tests(request: Request, plan: Plan, *, check: bool) -> list[str]:
    """Run the tests on a staged copy. Returns what check mode could not test yet."""
    unchecked: list[str] = []
    if not request.tests:
        return unchecked
    root = os.path.realpath(request.root)
    words = secret_words(file.content for file in request.files if file.secret)
    with staged(root, plan) as stage:
        for test in request.tests:
            obstacle = _obstacle(test, stage)
            if obstacle and check:
                unchecked.append(f"test {test.name}: {obstacle}")
                continue
            if obstacle:
                msg = f"test {test.name!r} cannot run: {obstacle}. Nothing was changed."
                raise TreeError(msg, test=test.name)
            argv = [part.replace("{root}", stage) for part in test.argv]
            argv[0] = shutil.which(argv[0], path=SEARCH_PATH) or argv[0]
            chdir = test.chdir.replace("{root}", stage) if test.chdir else None
            try:
                code, output = _run(argv, chdir, pwd.getpwnam(test.user) if test.user else None, request.timeout)
            except OSError as error:  # no right to run it, or a script whose interpreter is missing
                code, output = 126, f"{test.argv[0]}: {error.strerror}"
            if code in (126, 127) and check:  # a wrapper that did not find its program
                unchecked.append(f"test {test.name}: {test.argv[0]} cannot run its program yet")
            elif code != 0:
                relative = guilty_file(output, stage, (file.path for file in request.files)) or test.file
                text = readable_output(output, stage, root, words)
                blamed = f"{root}/{relative}" if relative else root
                shown = " ".join(part.replace("{root}", root) for part in test.argv)
                msg = f"{blamed}: test {test.name!r} failed ({shown}: exit code {code}). Nothing was changed.\n{text}"
                raise TreeError(msg, file=blamed, test=test.name, rc=code, output=text)
    return unchecked


def _obstacle(test: Test, stage: str) -> str:
    """Why a test cannot run on this host, or nothing."""
    if test.user:
        try:
            pwd.getpwnam(test.user)
        except KeyError:
            return f"user {test.user} does not exist"
    if test.chdir and not os.path.isdir(test.chdir.replace("{root}", stage)):
        return f"directory {test.chdir} does not exist"
    if shutil.which(test.argv[0].replace("{root}", stage), path=SEARCH_PATH) is None:
        return f"program {test.argv[0]} does not exist"
    return ""


# ---------------------------------------------------------------------------------------------------------- swap


def swap(plan: Plan, label: Callable[[str, str], None]) -> None:
    """Do what the plan says. On any exception undo it and raise it again.

    Everything that can fail slowly (space, rights) comes before the first rename. `label(temporary, target)` gives a
    new file what else it needs before it goes live (SELinux context).
    """
    undo: list[Callable[[], object]] = []
    temporaries: dict[str, str] = {}
    backups: dict[str, str] = {}
    try:
        for change in plan.directories:
            _apply_directory(change, undo)
            label(change.path, change.path)
        for change in plan.changes:
            if change.after.kind != "absent":
                temporaries[change.path] = temporary_path(os.path.dirname(change.path))
                write_node(temporaries[change.path], change.after, durable=True)
                label(temporaries[change.path], change.path)
            if change.before.kind != "absent":
                backups[change.path] = _back_up(change)
        for change in plan.changes:
            backup = backups.get(change.path)
            if change.after.kind == "absent":
                os.unlink(change.path)
            else:
                os.rename(temporaries[change.path], change.path)
            undo.append(_undoing(change.path, backup))
        for directory in {os.path.dirname(change.path) for change in plan.changes}:
            sync_directory(directory)
    except BaseException as error:
        try:
            for step in reversed(undo):
                step()
        except OSError as failure:
            raise UndoError(failure) from error
        raise
    finally:
        for path in (*temporaries.values(), *backups.values()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    for directory in plan.emptied:
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def _apply_directory(change: Change, undo: list[Callable[[], object]]) -> None:
    after, before = change.after, change.before
    if before.kind == "absent":
        os.makedirs(os.path.dirname(change.path), exist_ok=True)
        make_directory(change.path, after.uid, after.gid, after.mode)
        undo.append(lambda: os.rmdir(change.path))
    else:
        undo.append(lambda: set_directory(change.path, before.uid, before.gid, before.mode))
        set_directory(change.path, after.uid, after.gid, after.mode)


def _back_up(change: Change) -> str:
    backup = temporary_path(os.path.dirname(change.path))
    try:
        os.link(change.path, backup, follow_symlinks=False)
    except OSError:  # a file system without hard links
        write_node(backup, change.before)
    return backup


def _undoing(path: str, backup: Optional[str]) -> Callable[[], object]:
    if backup is None:
        return lambda: os.unlink(path)
    return lambda: os.rename(backup, path)


# ------------------------------------------------------------------------------------------------------ the report


def describe(plan: Plan) -> list[dict[str, str]]:
    """The plan in the form that Ansible prints as a diff."""
    found: list[dict[str, str]] = []
    for change in (*plan.directories, *plan.changes):
        before, after = _attributes(change.before, ""), _attributes(change.after, change.owners)
        if _shown(change.before) != _shown(change.after):
            if change.secret:
                what = "removed" if change.after.kind == "absent" else "changed"
                texts = ("", f"(secret content {what})\n")
            else:
                texts = (_shown(change.before), _shown(change.after))
            found.append(_entry(change.path, *texts))
        if before and after and _numbers(change.before) != _numbers(change.after):
            found.append(_entry(change.path, before, after))
    found += [_entry(directory, "directory\n", "") for directory in plan.emptied]
    return found


def _entry(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _shown(node: Node) -> str:
    if node.kind == "absent":
        return ""
    if node.kind == "directory":
        return "directory\n"
    if node.kind == "link":
        return f"link to {os.fsdecode(node.content)}\n"
    digest = hashlib.sha256(node.content).hexdigest()
    if b"\0" in node.content:
        return f"(binary content, {len(node.content)} bytes, sha256 {digest})\n"
    if len(node.content) > DIFF_LIMIT:
        return f"({len(node.content)} bytes, sha256 {digest})\n"
    return node.content.decode(errors="replace")


def _numbers(node: Node) -> tuple[int, int, int]:
    return (node.uid, node.gid, node.mode)


def _attributes(node: Node, owners: str) -> str:
    if node.mode < 0:
        return ""
    if not owners:
        owners = f"{_name_of(pwd.getpwuid, node.uid)}:{_name_of(grp.getgrgid, node.gid)}"
    return f"mode {node.mode:04o}, owner {owners}\n"


def _name_of(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


# ------------------------------------------------------------------------------------------------------------- all


def apply(
    request: Request,
    *,
    check: bool = False,
    diff: bool = False,
    state_directory: str = STATE_DIRECTORY,
    label: Callable[[str, str], None] = lambda _temporary, _target: None,
    lock_seconds: float = LOCK_SECONDS,
) -> dict[str, Any]:
    """Bring the host to what the request says; the task's result."""
    store = Store(state_directory)
    owners = Owners(check=check)
    root = os.path.realpath(request.root)
    with store.locked(check=check, seconds=lock_seconds):
        manifest = store.load(request.name)
        others = store.others(request.name)
        if not check:
            places = {str(parent) for parent in Path(root).parents} | {state_directory}
            if manifest.pending is not None:
                places |= {os.path.dirname(path) for path in manifest.files}
            remove_leftovers(places)
        plan = make_plan(request, manifest, others, store, owners)

        # an interrupted run's changes were never reported, so they are ours to report now
        pending = manifest.pending or {"changed": [], "removed": []}
        gone = {change.path for change in plan.changes if change.after.kind == "absent"}
        placed = {change.path for change in plan.changes} - gone
        changed = {path for path in pending["changed"] if path in plan.wanted.files} | placed
        removed = {path for path in pending["removed"] if path not in plan.wanted.files} | gone
        removed -= changed
        acts = bool(plan.changes or plan.directories or plan.emptied or manifest.pending is not None)

        unchecked = run_tests(request, plan, check=check) if acts else []
        if not check:
            if acts:
                _commit(request, store, manifest, plan, {"changed": sorted(changed), "removed": sorted(removed)}, label)
            elif manifest.text() != plan.wanted.text():
                store.save(request.name, plan.wanted)
            for path in plan.restored:
                store.drop_original(request.name, path)
    return {
        "changed": acts,
        "changed_files": sorted(_relative(path, root) for path in changed),
        "removed_files": sorted(_relative(path, root) for path in removed),
        "diff": describe(plan) if diff else [],
        "unchecked": owners.missing + unchecked,
    }


def _relative(path: str, root: str) -> str:
    return path[len(root) + 1 :] if path.startswith(root + "/") else path


def _commit(
    request: Request,
    store: Store,
    manifest: Manifest,
    plan: Plan,
    pending: dict[str, list[str]],
    label: Callable[[str, str], None],
) -> None:
    """Swap under a manifest that, at any moment, names everything that may be ours."""
    for change in plan.adopted:
        store.keep_original(request.name, change.path, change.before)
    union = Manifest(
        {**manifest.files, **plan.wanted.files},
        manifest.made | plan.wanted.made,
        manifest.listed | plan.wanted.listed,
        pending,
    )
    store.save(request.name, union)
    try:
        swap(plan, label)
    except UndoError as error:
        msg = f"could not put the new files in place ({error.__cause__}), nor the old ones back ({error}). Run again."
        raise TreeError(msg) from error
    except Exception as error:
        store.save(request.name, manifest)
        msg = f"could not put the new files in place, the old ones are back: {error}"
        raise TreeError(msg) from error
    store.save(request.name, plan.wanted)
