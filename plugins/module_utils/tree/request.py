"""What a caller asks for: checked, typed, digested, packed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

DIGEST_TOKEN = "{{ tree_digest }}"  # noqa: S105 - a place holder
TEMPORARY_PREFIX = ".wsgi-fleet-"  # of our temporary files

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
            "when_changed": {"type": "list", "elements": "str", "default": []},
        },
    },
    "keep": {"type": "list", "elements": "str", "default": []},
    "problems": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "int", "default": 60},
}


class TreeError(Exception):
    """Something an operator can act upon; `details` goes into the task's result."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details


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
class Trial:
    argv: tuple[str, ...]
    chdir: Optional[str]
    user: Optional[str]
    file: Optional[str]
    name: str
    when_changed: frozenset[str]


@dataclass(frozen=True)
class Request:
    name: str
    root: str
    files: tuple[File, ...]
    directories: tuple[Directory, ...]
    tests: tuple[Trial, ...]
    timeout: int = 60
    keep: tuple[str, ...] = ()


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

    for index, path in enumerate(request["keep"]):
        if _path_problem(path):
            found.append(f"keep[{index}] ({path}): path {_path_problem(path)}")
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
        found += [
            f"{where}: {path!r} is not among the files"
            for path in (test["file"], *test["when_changed"])
            if path is not None and path not in files
        ]
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
            Trial(
                tuple(test["argv"]),
                test["chdir"],
                test["user"],
                test["file"],
                test["name"] or test["argv"][0],
                frozenset(test["when_changed"]),
            )
            for test in request["tests"]
        ),
        timeout=request["timeout"],
        keep=tuple(request["keep"]),
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
