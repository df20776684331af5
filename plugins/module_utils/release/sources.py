# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sources on their way: directories packed on the controller, archives unpacked on the host."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import hashlib
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Callable, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError

# Left behind when a directory of the controller is packed: history, environments and caches of the machine at hand.
EXCLUDED = (
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    "__pycache__",
    "*.py[co]",
    "*.egg-info",
    ".tox",
    ".nox",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "node_modules",
    ".DS_Store",
)


@dataclass(frozen=True)
class Entry:
    """One file or symbolic link of a tree; empty directories do not count."""

    name: str
    path: Path
    kind: str  # f: file, x: executable file, l: symbolic link
    target: str = ""


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path stays behind: a pattern with a slash is about the whole path, others about any part's name."""
    base = posixpath.basename(name)
    return any(fnmatch.fnmatchcase(name if "/" in pattern else base, pattern.strip("/")) for pattern in patterns)


def walk_tree(root: Path, exclude: Sequence[str] = ()) -> list[Entry]:
    """What a directory holds, in a fixed order."""
    patterns = (*EXCLUDED, *exclude)
    entries: list[Entry] = []

    def walk(directory: Path, prefix: str) -> None:
        for path in sorted(directory.iterdir()):
            name = prefix + path.name
            if is_excluded(name, patterns):
                continue
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                target = str(path.readlink())
                if not _inside(name, target):
                    raise ReleaseError(
                        "pack",
                        f"{path} is a link to {target}, outside of the source",
                        "the host does not have that file: put it in, or list the link in source.exclude",
                    )
                entries.append(Entry(name, path, "l", target))
            elif stat.S_ISDIR(mode):
                walk(path, f"{name}/")
            elif stat.S_ISREG(mode):
                entries.append(Entry(name, path, "x" if mode & 0o111 else "f"))
            else:
                raise ReleaseError("pack", f"{path} is no file, link or directory", "list it in source.exclude")

    walk(root, "")
    return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def tree_digest(entries: Iterable[Entry]) -> str:
    """`sha256:...` over names, kinds and contents; times and owners are not part of it."""
    digest = hashlib.sha256()
    for entry in entries:
        _digest_entry(digest, entry, entry.target.encode() if entry.kind == "l" else _file_digest(entry.path))
    return f"sha256:{digest.hexdigest()}"


def _digest_entry(digest: hashlib._Hash, entry: Entry, content: bytes) -> None:
    digest.update(b"%s\0%s\0%d\0%s\0" % (entry.kind.encode(), os.fsencode(entry.name), len(content), content))


def _file_digest(path: Path) -> bytes:
    return bytes.fromhex(file_checksum(path).partition(":")[2])


def file_checksum(path: Path) -> str:
    """`sha256:...` of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def pack_tree(entries: Sequence[Entry], target: Path) -> str:
    """Write the entries into a tar.gz and return the digest of what really went in."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(target.open("wb"))
        zipped = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, compresslevel=5))
        archive = stack.enter_context(tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT))
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            if entry.kind == "l":
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
                archive.addfile(info)
                _digest_entry(digest, entry, entry.target.encode())
                continue
            info.mode = 0o755 if entry.kind == "x" else 0o644
            info.size = entry.path.stat().st_size
            with entry.path.open("rb") as stream:
                reader = _Digesting(stream)
                archive.addfile(info, reader)
            _digest_entry(digest, entry, reader.digest.digest())
    return f"sha256:{digest.hexdigest()}"


class _Digesting:
    """A reader that hashes what passes through."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        self.digest.update(block)
        return block


@dataclass(frozen=True)
class _Member:
    parts: tuple[str, ...]
    kind: str  # d: directory, f: file, x: executable file, l: symbolic link, h: hard link
    target: str
    open: Callable[[], Optional[IO[bytes]]]


def extract(archive: Path, target: Path, *, strip: bool) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into an empty directory.

    Names that leave it, devices and the like are refused. Links are made last, so that no file can be written
    through one. `strip` drops the one directory in which everything lies, as archives of releases have it.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                _write(list(_tar_members(tar)), target, strip)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _write(list(_zip_members(zipped)), target, strip)
        else:
            raise ReleaseError("unpack", f"{archive.name} is neither a tar nor a zip archive")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ReleaseError("unpack", f"the archive is damaged: {error}") from error
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise ReleaseError("unpack", f"the archive holds one name as a file and as a directory: {error}") from error


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise ReleaseError("unpack", f"the archive holds {name!r}, which would be written outside of the release")
    return path.parts


def _inside(name: str, target: str) -> bool:
    """Whether a link called `name` stays in the tree."""
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return not (posixpath.isabs(target) or reached == ".." or reached.startswith("../"))


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar.getmembers():
        parts = _parts(info.name)
        if info.isdir():
            kind = "d"
        elif info.isreg():
            kind = "x" if info.mode & 0o111 else "f"
        elif info.issym():
            kind = "l"
        elif info.islnk():
            kind = "h"
        else:
            raise ReleaseError("unpack", f"the archive holds {info.name!r}, which is no file, directory or link")

        def opener(info: tarfile.TarInfo = info) -> Optional[IO[bytes]]:
            return tar.extractfile(info)

        yield _Member(parts, kind, info.linkname, opener)


def _zip_members(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for info in zipped.infolist():
        mode = info.external_attr >> 16
        target = ""
        if info.is_dir():
            kind = "d"
        elif stat.S_ISLNK(mode):
            kind, target = "l", zipped.read(info).decode("utf-8", "surrogateescape")
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            kind = "x" if mode & 0o111 else "f"
        else:
            raise ReleaseError("unpack", f"the archive holds {info.filename!r}, which is no file, directory or link")

        def opener(info: zipfile.ZipInfo = info) -> IO[bytes]:
            return zipped.open(info)

        yield _Member(_parts(info.filename), kind, target, opener)


def _write(members: list[_Member], target: Path, strip: bool) -> None:
    skip = 1 if strip and _has_single_directory(members) else 0
    links: list[tuple[Path, str]] = []
    for member in members:
        parts = member.parts[skip:]
        if not parts:
            continue
        path = target.joinpath(*parts)
        if member.kind == "d":
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.kind == "l":
            if not _inside("/".join(parts), member.target):
                raise ReleaseError(
                    "unpack",
                    f"the archive holds a link {'/'.join(parts)!r} to {member.target!r}, outside of the release",
                )
            links.append((path, member.target))
            continue
        path.unlink(missing_ok=True)  # a later member of the same name counts
        if member.kind == "h":
            origin = target.joinpath(*_parts(member.target)[skip:])
            if not origin.is_file():
                raise ReleaseError("unpack", f"the archive's {'/'.join(parts)!r} is linked to a file that it lacks")
            path.write_bytes(origin.read_bytes())
            path.chmod(origin.stat().st_mode & 0o777)
            continue
        stream = member.open()
        if stream is None:  # cannot be: the member is a file
            raise ReleaseError("unpack", f"the archive's {'/'.join(parts)!r} cannot be read")
        with stream, path.open("xb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        path.chmod(0o755 if member.kind == "x" else 0o644)
    for path, link_target in links:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            raise ReleaseError("unpack", f"the archive holds {path.name!r} both as a link and as something else")
        path.symlink_to(link_target)


def _has_single_directory(members: Sequence[_Member]) -> bool:
    tops = {member.parts[0] for member in members if member.parts}
    return len(tops) == 1 and all(len(member.parts) > 1 or member.kind == "d" for member in members if member.parts)
