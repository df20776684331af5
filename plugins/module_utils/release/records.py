# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The records of applications: what may be in one, and what it means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Optional
from urllib.parse import unquote, urlsplit, urlunsplit

KINDS = ("git", "archive", "path", "package")

# What each kind of source may say besides its own key.
_SOURCE_KEYS = {
    "git": ("version", "subdirectory", "username", "password", "ssh_key", "ssh_known_hosts"),
    "archive": ("checksum", "subdirectory", "username", "password"),
    "path": ("exclude", "subdirectory"),
    "package": ("version",),
}

# The moments at which commands of the application's own run.
HOOKS = ("before_build", "after_build", "before_switch", "after_switch", "after_rollback")

# Set by the `run` file of every application, after its own variables.
_RESERVED_ENV = ("HOME", "LOGNAME", "PATH", "USER", "VIRTUAL_ENV")

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}\Z")
_PYTHON = re.compile(r"[0-9]+\.[0-9]+\Z")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[A-Za-z0-9._, -]+\])?\Z")
_GIT_URL = re.compile(r"(?:(?:https?|ssh|git|file)://|/|(?:[\w.-]+@)?[\w.-]+:(?!:))\S+\Z")
_HTTP = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """Where the code of an application comes from. `digest` is worked out on the controller."""

    kind: str
    location: str
    version: str = ""
    checksum: str = ""
    subdirectory: str = ""
    exclude: tuple[str, ...] = ()
    ssh_key: str = field(default="", repr=False)
    ssh_known_hosts: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    digest: str = ""

    @property
    def remote(self) -> bool:
        """Whether the host fetches it by itself (else the controller brings it)."""
        return self.kind in ("git", "package") or (self.kind == "archive" and bool(_HTTP.match(self.location)))

    @property
    def secrets(self) -> list[str]:
        return [value for value in (self.password, self.ssh_key) if value]


@dataclass(frozen=True)
class App:
    """One application, as far as its releases go."""

    name: str
    source: Source
    python: str = ""
    requirements: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()
    migrate: tuple[str, ...] = ()
    hooks: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    probes: Sequence[Mapping[str, Any]] = ()
    health_timeout: int = 30
    keep_releases: int = 5
    public: tuple[str, ...] = ()
    public_shared: bool = False


def parse_app(record: Mapping[str, Any], secrets: Optional[Mapping[str, str]] = None) -> App:
    """Read a record that `problems` has found to be right; `secrets` are those that came beside it."""
    source = {key: value for key, value in (record.get("source") or {}).items() if value is not None}
    source.update(secrets or {})
    kind = next((kind for kind in KINDS if kind in source), "")
    location = str(source.get(kind, ""))
    username, password = str(source.get("username") or ""), str(source.get("password") or "")
    if _HTTP.match(location):
        location, url_username, url_password = split_credentials(location)
        username, password = username or url_username, password or url_password
    return App(
        name=str(record["name"]),
        source=Source(
            kind=kind,
            location=location,
            version=str(source.get("version") or ""),
            checksum=str(source.get("checksum") or ""),
            subdirectory="/".join(PurePosixPath(source.get("subdirectory") or "").parts),
            exclude=tuple(source.get("exclude") or ()),
            ssh_key=str(source.get("ssh_key") or ""),
            ssh_known_hosts=str(source.get("ssh_known_hosts") or ""),
            username=username,
            password=password,
            digest=str(source.get("digest") or ""),
        ),
        python=str(record.get("python") or ""),
        requirements=tuple(record.get("requirements") or ()),
        packages=tuple(record.get("packages") or ()),
        check=tuple(record.get("check") or ()),
        serve=tuple(record.get("serve") or ()),
        migrate=tuple(record.get("migrate") or ()),
        hooks={point: commands for point, commands in (record.get("hooks") or {}).items() if commands},
        probes=tuple(record.get("probes") or ()),
        health_timeout=int(record.get("health_timeout") or 30),
        keep_releases=int(record.get("keep_releases") or 5),
        public=tuple(record.get("public") or ()),
        public_shared=bool(record.get("public_shared")),
    )


# Never in the records that the module gets: it logs its parameters, and of those only top-level ones can be left out.
_SECRET_KEYS = ("username", "password", "ssh_key")


def app_record(app: App) -> dict[str, Any]:
    """The record that goes to the host: nothing but what the module needs, and no secret."""
    source: dict[str, Any] = {app.source.kind: app.source.location}
    for key in ("version", "checksum", "subdirectory", "ssh_known_hosts", "digest"):
        if getattr(app.source, key):
            source[key] = getattr(app.source, key)
    record: dict[str, Any] = {"name": app.name, "source": source, "keep_releases": app.keep_releases}
    if app.python:
        record["python"] = app.python
    if app.requirements:
        record["requirements"] = list(app.requirements)
    if app.packages:
        record["packages"] = list(app.packages)
    for key in ("check", "serve", "migrate", "probes"):
        if getattr(app, key):
            record[key] = list(getattr(app, key))
    if app.public:
        record["public"] = list(app.public)
    if app.public_shared:
        record["public_shared"] = True
    if app.hooks:
        record["hooks"] = dict(app.hooks)
    record["health_timeout"] = app.health_timeout
    return record


def app_secrets(app: App) -> dict[str, str]:
    """What goes to the host beside the record."""
    return {key: getattr(app.source, key) for key in _SECRET_KEYS if getattr(app.source, key)}


def split_credentials(url: str) -> tuple[str, str, str]:
    """Take user name and password out of an http(s) address: a process list shows addresses.

    A lone user name is how access tokens are written; it counts as the password of nobody in particular.
    """
    parts = urlsplit(url)
    userinfo, separator, host = parts.netloc.rpartition("@")
    if not separator:
        return url, "", ""
    username, colon, password = userinfo.partition(":")
    username, password = unquote(username), unquote(password)
    if not colon:
        username, password = "x-access-token", username
    return urlunsplit(parts._replace(netloc=host)), username, password


def problems(apps: object, *, sources: bool = True) -> list[str]:
    """Everything that is wrong with the records, in order; no value of a secret is ever repeated.

    What does not build anything does not look at the sources.
    """
    if not isinstance(apps, (list, tuple)):
        return [f"apps: expected a list of records, got {_type(apps)}"]
    found: list[str] = []
    seen: set[str] = set()
    for position, record in enumerate(apps):
        if not isinstance(record, Mapping):
            found.append(f"apps[{position}]: expected a record (a dictionary), got {_type(record)}")
            continue
        name = record.get("name")
        if not isinstance(name, str) or not _NAME.match(name):
            found.append(
                f"apps[{position}].name: {name!r} cannot be the name of a system user; wanted: a lower case letter, "
                "then up to 30 of a-z, 0-9, _ and -"
            )
            continue
        if name in seen:
            found.append(f"{name}.name: is there twice; give every application a name of its own")
        seen.add(name)
        found += [f"{name}.{text}" for text in _record_problems(record)]
        if sources:
            found += [f"{name}.{text}" for text in _source_problems(record.get("source"))]
    return found


def _record_problems(record: Mapping[str, Any]) -> Iterator[str]:
    python = record.get("python")
    if python is not None and not (isinstance(python, str) and _PYTHON.match(python)):
        yield f'python: {python!r} is not a version in quotes such as "3.11"'
    keep = record.get("keep_releases", 5)
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 2):
        yield f"keep_releases: {keep!r} is not a whole number of 2 or more (the live release and one to go back to)"
    for key in ("requirements", "packages"):
        values = record.get(key) or []
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            yield f"{key}: expected a list of strings"
            continue
        for value in values:
            if key == "requirements" and not safe_relative(value):
                yield f"requirements: {value!r} is not the name of a file inside the source"
            if re.search(r"https?://[^/@\s]+@", value):
                yield f"{key}: one of them holds a password; the index and its password belong in app_uv_environment"
            elif key == "packages" and (not value.strip() or value.lstrip().startswith("-") or "\n" in value):
                yield f"packages: {value!r} is not a requirement such as 'gunicorn==27.0.1'"
    for value in record.get("public") or []:
        if not isinstance(value, str) or not safe_relative(value):
            yield f"public: {value!r} is not a directory inside the source"
    for key in ("check", "serve", "migrate"):
        if not _is_command(record.get(key) or []):
            yield f"{key}: expected a command as a list of strings"
    yield from _hook_problems(record.get("hooks") or {})
    for key in ("env", "secrets"):
        yield from _environment_problems(key, record.get(key))
    for name in sorted(set(record.get("env") or ()) & set(record.get("secrets") or ())):
        yield f"secrets.{name}: is in `env` as well; keep it in one of the two"


def _is_command(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


def _hook_problems(hooks: object) -> Iterator[str]:
    if not isinstance(hooks, Mapping):
        yield f"hooks: expected a dictionary of lists of commands, got {_type(hooks)}"
        return
    for point, commands in hooks.items():
        if point not in HOOKS:
            yield f"hooks.{point}: is not a moment at which hooks run ({', '.join(HOOKS)})"
        elif not isinstance(commands or [], (list, tuple)) or not all(map(_is_command, commands or [])):
            yield f"hooks.{point}: expected a list of commands, each a list of strings"


def _environment_problems(key: str, values: object) -> Iterator[str]:
    if values is None:
        return
    if not isinstance(values, Mapping):
        yield f"{key}: expected a dictionary of variables, got {_type(values)}"
        return
    for name, value in values.items():
        if not isinstance(name, str) or not _VARIABLE.match(name):
            yield f"{key}.{name}: is not a name for an environment variable (letters, digits, _; no digit first)"
        elif name in _RESERVED_ENV:
            yield f"{key}.{name}: is set by wsgi.fleet itself ({', '.join(_RESERVED_ENV)} are)"
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            yield f"{key}.{name}: is {_type(value)}; an environment variable is a text (in quotes) or a number"
        elif isinstance(value, str) and "\0" in value:
            yield f"{key}.{name}: holds a zero byte, which no environment variable can"


def _source_problems(source: object) -> Iterator[str]:
    if not isinstance(source, Mapping):
        yield f"source: expected a dictionary with one of {', '.join(KINDS)}; got {_type(source)}"
        return
    source = {key: value for key, value in source.items() if value is not None}
    kinds = [kind for kind in KINDS if kind in source]
    if len(kinds) != 1:
        yield f"source: expected exactly one of {', '.join(KINDS)}; got {', '.join(kinds) or 'none of them'}"
        return
    kind = kinds[0]
    allowed = (kind, *_SOURCE_KEYS[kind])
    for key in source:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"source.{key}: is not an option of a source of kind {kind}{hint} (options: {', '.join(allowed)})"
        elif key == "exclude":
            if not isinstance(source[key], (list, tuple)) or not all(isinstance(item, str) for item in source[key]):
                yield "source.exclude: expected a list of patterns such as '*.sqlite3'"
        elif not isinstance(source[key], str) or not source[key].strip():
            yield f"source.{key}: expected a text that is not empty, got {_type(source[key])}"
            return
    if "subdirectory" in source and not safe_relative(source["subdirectory"]):
        yield f"source.subdirectory: {source['subdirectory']!r} is not a directory inside the source"
    if "checksum" in source and not _CHECKSUM.match(source["checksum"]):
        yield f"source.checksum: {source['checksum']!r} is not of the form sha256:<64 hexadecimal digits, lower case>"
    if kind in ("git", "package") and "version" not in source:
        wanted = "a branch, a tag or a commit" if kind == "git" else "the exact version to install"
        yield f"source.version: is missing; wanted: {wanted}"
    elif kind == "git" and re.search(r"\A-|[\s~^:?*\[\\]|\.\.", source["version"]):
        yield f"source.version: {source['version']!r} is not a branch, a tag or a commit"
    elif kind == "package" and not re.match(r"[0-9A-Za-z.!+_-]+\Z", source["version"]):
        yield f"source.version: {source['version']!r} is not one exact version such as '1.4.2'"
    if kind == "git" and not _GIT_URL.match(source["git"]):
        yield "source.git: is not an address of a repository (https://..., ssh://..., user@host:path, /path)"
    if kind == "package" and not _PACKAGE.match(source["package"]):
        yield f"source.package: {source['package']!r} is not the name of a package"
    if kind == "archive" and _HTTP.match(source["archive"]) and "checksum" not in source:
        yield "source.checksum: is missing; a downloaded archive needs one (sha256:...), or anybody could replace it"
    if ("username" in source) != ("password" in source):
        yield "source.username: and password belong together"


def _type(value: object) -> str:
    names = {str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "nothing"}
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, (list, tuple)):
        return "a list"
    return next((text for kind, text in names.items() if isinstance(value, kind)), type(value).__name__)


def safe_relative(path: str) -> bool:
    """Whether a path stays inside the directory that it is relative to, and is no option of a program."""
    return (
        bool(path.strip())
        and not path.startswith(("/", "-", "~"))
        and ".." not in PurePosixPath(path).parts
        and not any(char in path for char in "\0\n\\")
    )
