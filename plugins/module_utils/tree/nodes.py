"""Files, links and directories, and the users they belong to."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH102, PTH104, PTH106, PTH108, PTH112, PTH115, PTH120, PTH123, PTH211
from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import secrets
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import TreeError

# Our temporary names end as dpkg's do: whatever reads a whole directory (logrotate, cron, run-parts) passes over them.
TEMPORARY_PREFIX = ".wsgi-fleet-"
TEMPORARY_SUFFIX = ".dpkg-new"
TEMPORARY = re.compile(r"\.wsgi-fleet-[0-9a-f]{16}\.dpkg-new")


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
    """Make one directory. It appears with its owner and mode, so that a kill leaves no half of it."""
    temporary = temporary_path(os.path.dirname(path))
    os.mkdir(temporary, 0o700)
    try:
        set_directory(temporary, uid, gid, mode)
        os.rename(temporary, path)
    except OSError:
        os.rmdir(temporary)
        raise


def make_parents(path: str) -> None:
    """Make what is missing above a path, open to all whatever the umask says."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_parents(parent)
        make_directory(parent, os.geteuid(), os.getegid(), 0o755)


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
