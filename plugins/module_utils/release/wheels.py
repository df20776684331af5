# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wheels of what a release has installed: the same content, on other hosts, without an index.

A wheel is made again from its installed files, which its own RECORD names. So nothing is fetched a second time, what
was compiled here needs no compiler there, and what is sent is what was checked against the hashes of its requirements.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError

# Written by an installer, or made again by it.
_OF_INSTALLER = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
_SIGNATURES = {"RECORD.jws", "RECORD.p7s"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """One wheel of a release. The file's name is unique for its content."""

    name: str
    version: str
    file: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_list(text: str) -> list[Wheel]:
    """The wheels of one release, as a wheelhouse names them."""
    try:
        return parse_wheels(json.loads(text)["wheels"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"is no list of wheels ({error!r})") from error


def parse_wheels(entries: Iterable[Mapping[str, Any]]) -> list[Wheel]:
    """Read records of wheels. Files of these names are made, and these lines are given to uv."""
    wheels = [Wheel(*(str(entry[key]) for key in ("name", "version", "file", "sha256"))) for entry in entries]
    for wheel in wheels:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.!+-]*\.whl", wheel.file):
            raise ValueError(f"{wheel.file!r} cannot be the name of a wheel")
        if not re.fullmatch(r"[0-9a-f]{64}", wheel.sha256):
            raise ValueError(f"{wheel.file} has no checksum")
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", f"{wheel.name}=={wheel.version}"):
            raise ValueError(f"{wheel.file} has no name and version")
    return wheels


def write_list(app: str, release: str, wheels: Iterable[Wheel]) -> str:
    """The same, as text."""
    return json.dumps({"app": app, "id": release, "wheels": [asdict(wheel) for wheel in wheels]}, indent=1) + "\n"


def platform_of(python: str, machine: str) -> str:
    """The directory of a wheelhouse: `cp311-x86_64`, of `cpython-311`."""
    return f"{python.replace('cpython-', 'cp')}-{machine}"


def pack_release(release: Path, target: Path) -> list[Wheel]:
    """Make the wheels of all that a release has installed, below `target`."""
    venv = release / "venv"
    found = sorted(venv.glob("lib/python3*/site-packages/*.dist-info"))
    return [pack(info, venv, target) for info in found]


def pack(info: Path, venv: Path, target: Path) -> Wheel:
    """Make one wheel from the installed files that belong to a `.dist-info` directory."""
    metadata = HeaderParser().parsestr((info / "METADATA").read_text(encoding="utf-8", errors="surrogateescape"))
    name, version = str(metadata["Name"]), str(metadata["Version"])
    members = dict(_members(info, venv))
    text = (info / "WHEEL").read_text(encoding="utf-8")
    content = _zip(members, f"{info.name}/RECORD")
    sha256 = hashlib.sha256(content).hexdigest()
    distribution = re.sub(r"[-_.]+", "_", name)
    # A build number of the content: a project may give itself one version for ever.
    file = f"{distribution}-{info.name[: -len('.dist-info')].partition('-')[2]}-0{sha256[:12]}-{tag_of(text)}.whl"
    path = target / file
    if not path.exists():
        draft = path.with_name(f".{file}.new")
        draft.write_bytes(content)
        draft.replace(path)
    return Wheel(name, version, file, sha256)


def tag_of(text: str) -> str:
    """The tags in a wheel's name, from those in its WHEEL: `py2.py3-none-any`."""
    tags = [tag.split("-") for tag in HeaderParser().parsestr(text).get_all("Tag", [])]
    if not tags or any(len(tag) != 3 for tag in tags):
        raise ReleaseError("pack", "a package says in its WHEEL file for nothing that it knows of where it runs")
    parts = [list(dict.fromkeys(part)) for part in zip(*tags)]
    if set(product(*parts)) != {tuple(tag) for tag in tags}:
        parts = [[part] for part in tags[0]]
    return "-".join(".".join(part) for part in parts)


def _members(info: Path, venv: Path) -> Iterator[tuple[str, tuple[bytes, bool]]]:
    """What is in the wheel: name, content, and whether it is executable."""
    site = info.parent
    data = f"{info.name[: -len('.dist-info')]}.data"
    entry_points = _entry_points(info)
    with (info / "RECORD").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    for row in rows:
        path = Path(os.path.normpath(site / row[0]))
        if not path.is_relative_to(venv):
            raise ReleaseError("pack", f"{info.name} has put {path} outside of its environment")
        if path.suffix == ".pyc" or not path.is_file():
            continue
        content, executable = path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR)
        if path.is_relative_to(site):
            name = path.relative_to(site)
            if name.parent.name == info.name and name.name in _OF_INSTALLER | _SIGNATURES:
                continue
            yield name.as_posix(), (content, executable)
        elif path.parent == venv / "bin":
            if path.name not in entry_points:
                yield f"{data}/scripts/{path.name}", (_without_interpreter(content, venv), True)
        elif path.is_relative_to(venv / "include"):
            yield f"{data}/headers/{_header(path.relative_to(venv / 'include'))}", (content, executable)
        else:
            yield f"{data}/data/{path.relative_to(venv).as_posix()}", (content, executable)


def _header(path: Path) -> str:
    """A header is installed as include/site/python3.11/NAME/file; uv leaves it at include/NAME or below."""
    parts = path.parts
    if len(parts) > 3 and parts[0] == "site":
        parts = parts[3:]
    return PurePosixPath(*parts).as_posix()


def _entry_points(info: Path) -> set[str]:
    """The commands that an installer makes by itself."""
    path = info / "entry_points.txt"
    names: set[str] = set()
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif "=" in line and not line.startswith(("#", ";")) and section in ("console_scripts", "gui_scripts"):
            names.add(line.partition("=")[0].strip())
    return names


def _without_interpreter(content: bytes, venv: Path) -> bytes:
    """A script whose first line names this environment's Python gets that of the next one."""
    python = re.escape(os.fsencode(venv / "bin"))
    short = re.match(rb"#!" + python + rb"/python[0-9.]*(w?)[^\n]*\n", content)
    long = re.match(rb"#!/bin/sh\n'''exec' '?" + python + rb"/python[^\n]*\n' '''\n", content)
    found = short or long
    return b"#!python\n" + content[found.end() :] if found else content


def _zip(members: Mapping[str, tuple[bytes, bool]], record: str) -> bytes:
    """The same bytes for the same content, whenever and wherever they are packed."""
    rows = io.StringIO()
    lines = csv.writer(rows, lineterminator="\n")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(members):
            content, executable = members[name]
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow([name, f"sha256={digest}", len(content)])
            _add(archive, name, content, executable)
        lines.writerow([record, "", ""])
        _add(archive, record, rows.getvalue().encode(), executable=False)
    return stream.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes, executable: bool) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def requirements(wheels: Iterable[Wheel]) -> str:
    """What uv installs: these files and no others."""
    return "".join(f"{wheel.requirement}\n" for wheel in wheels)


# -- in a wheelhouse on the controller, and in the store of a host ----------------------------------------------


def known_lists(wheelhouse: Path) -> list[str]:
    """The releases, as PLATFORM/ID, whose wheels are all there."""
    found = []
    for path in sorted(wheelhouse.glob("*/*.json")):
        try:
            wheels = read_list(path.read_text())
        except (OSError, ValueError):
            continue  # written anew
        if all((path.parent / wheel.file).is_file() for wheel in wheels):
            found.append(f"{path.parent.name}/{path.stem}")
    return found


def find_wheels(wheelhouse: Path, place: str) -> list[Wheel]:
    """The wheels of the release PLATFORM/ID; raises when the wheelhouse does not have them all."""
    path = wheelhouse / f"{place}.json"
    remedy = "fill it: ansible-playbook wsgi.fleet.wheelhouse with this inventory"
    try:
        wheels = read_list(path.read_text())
    except FileNotFoundError:
        raise ReleaseError("wheels", f"the wheelhouse has no list {path}", remedy) from None
    except ValueError as error:
        raise ReleaseError("wheels", f"{path} {error}", "remove it, and " + remedy) from None
    missing = [wheel.file for wheel in wheels if not (path.parent / wheel.file).is_file()]
    if missing:
        raise ReleaseError("wheels", f"the wheelhouse lacks {', '.join(missing)} in {path.parent}", remedy)
    return wheels


def write_archive(files: Mapping[str, Path], target: Path) -> None:
    """Put files into one tar, by name."""
    with tarfile.open(target, "w") as archive:
        for name in sorted(files):
            archive.add(files[name], name, recursive=False)


def read_archive(
    archive: Path, wheels: Iterable[Wheel], target: Path, *, gid: Optional[int] = None, folder: str = ""
) -> list[str]:
    """Take these wheels, and nothing else, out of a tar; what is not what its list says is refused.

    With a group, they are for its members alone.
    """
    wanted = {f"{folder}/{wheel.file}" if folder else wheel.file: wheel for wheel in wheels}
    taken = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            wheel = wanted.get(member.name)
            stream = tar.extractfile(member) if wheel and member.isfile() else None
            if wheel is None or stream is None:
                continue
            draft = target / f".{wheel.file}.new"
            digest = hashlib.sha256()
            with draft.open("wb") as copy:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    copy.write(block)
                if gid is not None:
                    os.fchmod(copy.fileno(), 0o640)
                    os.fchown(copy.fileno(), -1, gid)
                os.fsync(copy.fileno())
            if digest.hexdigest() != wheel.sha256:
                draft.unlink()
                raise ReleaseError("wheels", f"{wheel.file} is not what its list says", "fill the wheelhouse anew")
            draft.replace(target / wheel.file)
            taken.append(wheel.file)
    return taken


class Store:
    """The wheels that a host has. They are root's, and the builder may read them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """The files that are there."""
        return sorted(path.name for path in self.directory.glob("*.whl")) if self.directory.is_dir() else []

    def link(self, wheels: Iterable[Wheel], target: Path) -> None:
        """A directory with the wheels of one release alone: among several of one version uv would take any."""
        target.mkdir(mode=0o755)
        for wheel in wheels:
            (target / wheel.file).symlink_to(self.directory / wheel.file)
