"""An app's background programs: the check of a record's `programs`, and what supervisord is to run for them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import Field, Fields, Where, boolean, choice, integer, list_of, mapping, show, string
from ._mappings import SUPERVISOR, refuse_derived
from ._values import check_command

# No underscore: it stands between a program's name and the number of its process, in logs too.
_NAME = r"[a-z][a-z0-9-]{0,30}"
_NAME_WANTED = "a lower case letter, then up to 30 of a-z, 0-9 and -"
# supervisor's own default; the web program's too, unless its record says otherwise.
_PRIORITY = 999


def _check_name(value: object, where: Where) -> str | None:
    name = string(_NAME_WANTED, _NAME)(value, where)
    if name == "web":
        where.fail("'web' is what the app's own log is called; choose another name, such as worker")
        return None
    return name


def _check_command(value: object, where: Where) -> list[str] | None:
    words = check_command(value, where)
    if words and any(re.search(r"[\x00-\x1f\x7f]", word) for word in words):
        where.fail("holds a line break or control character; put it into a script of the source")
        return None
    return words


_GIVEN_BY_APP = {
    "process_name": "is derived; leave it out",
    "numprocs_start": "is derived; leave it out",
    "user": "is derived: the app's own user; leave it out",
    "directory": "is derived: where the app itself is started; leave it out",
    "environment": "belongs on the record; give env or secrets there",
    "watch": "is derived; leave it out",
    **dict.fromkeys(("socket", "socket_backlog", "socket_owner", "socket_mode"), "is for the app itself; leave it out"),
}
_PROGRAM: Fields = {
    "name": Field(_check_name, required="a name such as worker"),
    "command": Field(_check_command, required="a command such as 'celery -A wsgi.celery worker'"),
    "numprocs": Field(integer(1), 1),
    **{name: field for name, field in SUPERVISOR.items() if name != "socket_backlog"},
    "stopsignal": Field(choice("TERM", "HUP", "INT", "QUIT", "KILL", "USR1", "USR2"), "TERM"),
    # A job at hand may take its time to end.
    "stopwaitsecs": Field(integer(1), 60),
    "stopasgroup": Field(boolean),
    "killasgroup": Field(boolean),
}


def _check_program(value: object, where: Where) -> dict[str, Any] | None:
    program = mapping(_PROGRAM)(refuse_derived(value, _GIVEN_BY_APP, where), where)
    if program and program.get("stopasgroup") and program.get("killasgroup") is False:
        where.at("killasgroup").fail("is false with stopasgroup true, which supervisor refuses; leave one of them out")
    return program


def check_programs(value: object, where: Where) -> list[Any] | None:
    """Check the background programs of one app."""
    seen: set[str] = set()

    def check(value: object, where: Where) -> dict[str, Any] | None:
        program = _check_program(value, where)
        if program is None or program["name"] is None:
            return None
        if program["name"] in seen:
            where.at("name").fail(f"{show(program['name'])} is there twice; give each program its own name")
            return None
        seen.add(program["name"])
        return program

    return list_of(check, "a list of {name, command}")(value, where)


def check_names(records: Sequence[Mapping[str, Any]], messages: list[str]) -> None:
    """Refuse what supervisord would call by one name: APP, and APP-PROGRAM."""
    owners = {record["name"]: f"app {record['name']}" for record in records}
    for record in records:
        for index, program in enumerate(record["programs"] or ()):
            name = program_name(record["name"], program["name"])
            if name in owners and owners[name] != f"app {record['name']}":
                where = Where(messages, f"app {record['name']}", f"programs[{index}].name")
                where.fail(f"would be called {name} by supervisor, as {owners[name]} is; choose another name")
            owners.setdefault(name, f"program {program['name']} of app {record['name']}")


def program_name(app: str, program: str) -> str:
    """Return what supervisord calls a background program."""
    return f"{app}-{program}"


def background_programs(app: Mapping[str, Any], config: str, root: str, logs: str) -> list[dict[str, Any]]:
    """Return the records of role supervisor for the background programs of one app."""
    name = app["name"]
    defaults: dict[str, Any] = {
        "type": "program",
        "process_name": "%(program_name)s_%(process_num)d",
        "user": name,
        "directory": f"{root}/{name}",
        "autorestart": "true",
        "startsecs": 5,
        # After the web part, which proves the release.
        "priority": app["supervisor"].get("priority", _PRIORITY) + 1,
        "killasgroup": True,
        "redirect_stderr": True,
        "watch": [f"{root}/{name}/current", f"{config}/env", f"{config}/run"],
    }
    return [
        {
            **defaults,
            "stdout_logfile": f"{logs}/{name}/{program['name']}_%(process_num)d.log",
            **program,
            "name": program_name(name, program["name"]),
            "command": shlex.join([f"{config}/run", *program["command"]]),
        }
        for program in app["programs"]
    ]
