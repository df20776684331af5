"""How a record's part about a server is checked that runs in a program of ours: waitress, mod_wsgi-express."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ._checks import Check, Where, integer, kind, string, suggest

_VERSION = re.compile(r"\d+(\.\d+){0,2}((a|b|rc)\d+)?(\.post\d+)?")
# Ours, beside the server's own.
_OWN: dict[str, Check] = {
    "instances": integer(1, 32),
    # Seconds within which requests that run may end when a process is told to stop.
    "stop_timeout": integer(1, 3600),
}


class Hosted(NamedTuple):
    """What is known of such a server."""

    name: str
    settings: Mapping[str, Check]
    derived: Mapping[str, str]
    """Settings that are not the operator's, with what to do instead."""
    default_version: str
    oldest_version: tuple[int, int, int]
    older: str
    """What is wrong with versions before that."""


def check_hosted(server: Hosted, value: object, where: Where) -> dict[str, Any] | None:
    """Check the server's part of a record; returns {version, instances, stop_timeout, settings}."""
    if not isinstance(value, dict):
        wanted = f"a mapping of {server.name}' settings, version, instances and stop_timeout"
        where.fail(f"is {kind(value)}, must be {wanted}")
        return None
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, member in value.items():
        name, place = str(key), where.at(str(key))
        if name == "version":
            given[name] = _version(server, member, place)
        elif name in _OWN:
            given[name] = _OWN[name](member, place)
        elif name in server.settings:
            settings[name] = server.settings[name](member, place)
        else:
            known = [*server.settings, *_OWN, *server.derived, "version"]
            place.fail(server.derived.get(name) or f"is no setting of {server.name}; {suggest(name, known)}")
    # What was refused must not keep the rest from being checked.
    given = {key: member for key, member in given.items() if member is not None}
    return {"version": server.default_version, "instances": 2, "stop_timeout": 30, **given, "settings": settings}


def _version(server: Hosted, value: object, where: Where) -> str | None:
    version = string(f'an exact version such as "{server.default_version}"', _VERSION.pattern)(value, where)
    numbers = [*map(int, re.findall(r"\d+", version or "")), 0, 0]
    if version and tuple(numbers[:3]) < server.oldest_version:
        oldest = ".".join(map(str, server.oldest_version))
        where.fail(f"is {version}, must be {oldest} or newer (older ones {server.older})")
        return None
    return version
