# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What decides the content of a release, and its name."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Callable
from urllib.parse import urlsplit

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App, Source

# Part of every id: raise it when the same inputs would from now on be built into something else.
FORMAT = 1

MARKER = "release.json"


_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")


def source_identity(source: Source, commit: str = "") -> str:
    """The content that a source stands for, in one line."""
    if source.kind == "git":
        return f"git:{commit}"
    if source.kind == "package":
        return f"package:{re.sub(r'[-_.]+', '-', source.location).lower()}=={source.version}"
    return f"{source.kind}:{source.digest or source.checksum}"


def release_inputs(app: App, identity: str, python: str) -> dict[str, Any]:
    """Everything that decides what is in a release. Nothing else may: no clock, no host, no address."""
    return {
        "format": FORMAT,
        "source": identity,
        "subdirectory": app.source.subdirectory,
        "python": python,
        "requirements": list(app.requirements),
        "packages": sorted(set(app.packages)),
    }


def release_id(inputs: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the inputs' hash."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def describe(source: Source, identity: str = "") -> str:
    """The source for people: `git main (0123456789ab)`."""
    short = identity.partition(":")[2].replace("sha256:", "")[:12]
    if source.kind == "package":
        return f"package {source.location} {source.version}"
    label = source.version if source.kind == "git" else PurePosixPath(urlsplit(source.location).path).name
    return f"{source.kind} {label}" + (f" ({short})" if short and short != label[:12] else "")


def is_commit(version: str) -> bool:
    """Whether a version is a full commit id, which needs no question to the server."""
    return bool(_COMMIT.match(version))


def wanted_refs(version: str) -> list[str]:
    """The refs that a version may mean, as patterns for `git ls-remote`."""
    if version == "HEAD" or version.startswith("refs/"):
        return [version, f"{version}^{{}}"]
    return [f"refs/heads/{version}", f"refs/tags/{version}", f"refs/tags/{version}^{{}}"]


def resolve_ref(listing: str, version: str) -> str:
    """The commit that `git ls-remote` gives for a branch or a tag; an annotated tag is followed to its commit."""
    refs = {}
    for line in listing.splitlines():
        commit, _, ref = line.partition("\t")
        refs[ref.strip()] = commit.strip()
    if version == "HEAD" or version.startswith("refs/"):
        commit = refs.get(f"{version}^{{}}") or refs.get(version, "")
    else:
        branch = refs.get(f"refs/heads/{version}", "")
        tag = refs.get(f"refs/tags/{version}^{{}}") or refs.get(f"refs/tags/{version}", "")
        if branch and tag and branch != tag:
            raise ReleaseError(
                "resolve",
                f"{version!r} is both a branch and a tag of the repository",
                f"write version: refs/heads/{version} or refs/tags/{version}",
            )
        commit = tag or branch
    if is_commit(commit):
        return commit
    if re.fullmatch(r"[0-9a-f]{7,63}", version):
        raise ReleaseError(
            "resolve",
            f"the repository has no branch or tag {version!r}, which looks like a shortened commit",
            "write all 40 digits of the commit: a short one may come to mean another",
        )
    raise ReleaseError(
        "resolve",
        f"the repository has no branch or tag {version!r}",
        "correct source.version, or push that branch or tag",
    )


def interpreter_tag(executable: str) -> str:
    """`cpython-311` for /usr/bin/python3.11; empty when the name does not say."""
    match = re.search(r"python(\d+)\.(\d+)\Z", executable)
    return f"cpython-{match[1]}{match[2]}" if match else ""


_HASH = re.compile(r"(?:^|\s)--hash[=\s]")
_INCLUDE = re.compile(r"^\s*(?:-r|--requirement)[=\s]\s*(\S+)", re.MULTILINE)


def uses_hashes(names: Iterable[str], read: Callable[[str], str]) -> bool:
    """Whether any line of the requirement files, or of a file that they include, pins a hash: then all must."""
    todo, seen = list(names), set()
    while todo:
        name = posixpath.normpath(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        text = read(name)
        if any(_HASH.search(line.partition(" #")[0]) for line in text.splitlines() if not line.startswith("#")):
            return True
        for included in _INCLUDE.findall(text):
            if "://" not in included:
                todo.append(posixpath.join(posixpath.dirname(name), included))
    return False


def is_project(pyproject: str) -> bool:
    """Whether a pyproject.toml describes something to install, or only configures tools."""
    return bool(re.search(r"^\s*\[\s*(?:project|build-system)\s*\]", pyproject, re.MULTILINE))


def obsolete(releases: Mapping[str, str], protected: Iterable[str], keep: int) -> list[str]:
    """Which complete releases to remove: `releases` gives the time at which each was built.

    The protected ones (live and next) always stay and count among those kept; the newest of the others fill up.
    """
    guarded = {name for name in protected if name in releases}
    others = sorted((name for name in releases if name not in guarded), key=lambda name: (releases[name], name))
    spare = max(keep - len(guarded), 0)
    return others[: max(len(others) - spare, 0)]
