"""Records of programs into sections of supervisord: what is written, and what is refused."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.filter.supervisor_tree import (
    command_line,
    environment,
    literal,
    native,
    supervisor_tree,
)

LAUNCHER = "/etc/supervisord/launch"
LOGS = "/var/log/supervisord"


def tree(*programs: dict[str, Any], groups: Any = (), web: Any = None) -> dict[str, Any]:
    return supervisor_tree(programs, groups, LAUNCHER, LOGS, web)


def options(**record: Any) -> dict[str, str]:
    """The options that one program gets."""
    result = tree({"name": "shop", "command": "run", **record})
    assert result["problems"] == []
    return result["files"][0]["vars"]["__supervisor_options"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("100%", "100%%"),
        ("%(program_name)s_%(process_num)02d", "%(program_name)s_%(process_num)02d"),
        ("%(ENV_HOME)s", "%(ENV_HOME)s"),
        ("%(nothing)s", "%%(nothing)s"),
        ("%(process_num)x", "%%(process_num)x"),
        ("%d%%", "%%d%%%%"),
    ],
)
def test_percent_signs_are_literal_but_for_expansions(text: str, written: str) -> None:
    assert literal(text) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", '"plain"'),
        ("", '""'),
        ("a, b=c", '"a, b=c"'),
        ('say "hi" now', "'say \"hi\" now'"),
        ("it's", '"it\'s"'),
        ("50%", '"50%%"'),
        ("  around  ", '"  around  "'),
        ("#first", '"#first"'),
        ("both ' and \" here", None),
        ('"at the ends"', None),
        ("ends'", None),
        ("a ; b", None),
        ("a #b", None),
        ("two\nlines", None),
        ("%(here)s", None),
    ],
)
def test_values_that_supervisor_can_hold_are_written_in_its_notation(value: str, written: str | None) -> None:
    assert native(value) == written


@pytest.mark.parametrize(
    "value",
    [
        "both ' and \" here",
        '"ends"',
        "a ; b # c",
        "line\nbreak\n",
        "żółw €",
        "$HOME `id` $(id) \\0101 \\",
        "%(here)s %",
        "\t",
    ],
)
def test_other_values_are_what_the_launcher_makes_of_them(value: str) -> None:
    text, launched = environment({"ODD": value, "ALWAYS": "'odd'"})
    assert launched
    encoded = text.partition('WSGI_FLEET_ENVIRONMENT="')[2].rstrip('"')
    script = 'eval "$(printf %b "$1")"; printf "%s|" "$ALWAYS"; printf "%s" "${ODD-}"'
    done = subprocess.run(["sh", "-c", script, "sh", encoded], capture_output=True, text=True, check=True)
    assert done.stdout == f"'odd'|{value if native(value) is None else ''}"


@pytest.mark.parametrize("command", ["run it", "sh -c 'a; b'", "sh -c 'a ; b # c'", "run ' #' ;", "run \"x ; y\" '' ż"])
def test_command_keeps_its_words_and_begins_no_comment(command: str) -> None:
    line = command_line(command)
    assert shlex.split(line) == shlex.split(command)
    assert " ;" not in line
    assert " #" not in line


def test_a_plain_program() -> None:
    found = options(stopwaitsecs=40, autorestart=True, exitcodes=[0, 2], user=None)
    assert found.pop("environment").startswith('WSGI_FLEET_SECTION="')
    assert found == {
        "command": "run",
        "stdout_logfile": "/var/log/supervisord/shop.log",
        "redirect_stderr": "true",
        "stdout_logfile_maxbytes": "0",
        "stopwaitsecs": "40",
        "autorestart": "true",
        "exitcodes": "0,2",
    }


def test_watching_puts_the_launcher_in_front() -> None:
    found = options(watch=["/srv/shop/current", "/etc/it's 100%"])
    assert shlex.split(found["command"]) == [LAUNCHER, "/srv/shop/current", "/etc/it's 100%%", "--", "run"]
    assert shlex.split(options(ready=True)["command"]) == [LAUNCHER, "--ready", "--", "run"]
    assert shlex.split(options(ready=False)["command"]) == ["run"]


def test_several_processes_get_names_of_their_own() -> None:
    assert options(numprocs=2)["process_name"] == "%(program_name)s_%(process_num)d"
    assert options(numprocs=2, process_name="p%(process_num)d")["process_name"] == "p%(process_num)d"
    assert "process_name" not in options(numprocs=1)


@pytest.mark.parametrize(
    ("record", "logs"),
    [
        ({}, ["/var/log/supervisord/shop.log"]),
        ({"redirect_stderr": False}, ["/var/log/supervisord/shop.err.log", "/var/log/supervisord/shop.log"]),
        ({"stdout_logfile": "/x/%(process_num)d-100%.log", "redirect_stderr": True}, ["/x/*-100%.log"]),
        ({"stdout_logfile": "NONE", "stderr_logfile": "/dev/stderr"}, []),
        ({"stdout_logfile_maxbytes": "10MB"}, []),
        ({"stdout_syslog": True}, []),
        ({"type": "eventlistener", "events": ["TICK_60"]}, ["/var/log/supervisord/shop.log"]),
    ],
)
def test_logrotate_gets_what_supervisord_does_not_rotate(record: dict[str, Any], logs: list[str]) -> None:
    assert tree({"name": "shop", "command": "run", **record})["logs"] == logs


def test_a_difference_that_supervisord_overlooks_is_in_the_environment() -> None:
    base = {"type": "fcgi-program", "socket": "unix:///run/shop.sock"}
    one = options(**base, socket_mode="0660")["environment"]
    assert one != options(**base, socket_mode="0666")["environment"]
    assert one == options(**base, socket_mode="0660")["environment"]


def test_secrets_make_their_file_secret() -> None:
    result = tree(
        {"name": "a", "command": "run", "environment": {"KEY": "value"}},
        {"name": "b", "command": "run"},
        web={"username": "operator", "password": "Correct-horse"},
    )
    assert {file["path"]: file.get("secret") for file in result["files"]} == {
        "conf.d/a.conf": True,
        "conf.d/b.conf": False,
        "web.conf": True,
    }
    assert {file["mode"] for file in result["files"]} == {"0600"}
    assert "Correct-horse" not in str(result)


def test_groups_and_how_long_everything_takes_to_stop() -> None:
    """Supervisord stops group after group, the members of one at the same time."""
    programs = [
        {"name": "a", "command": "run", "stopwaitsecs": 40},
        {"name": "b", "command": "run"},
        {"name": "c", "command": "run", "stopwaitsecs": 5},
    ]
    result = tree(*programs, groups=[{"name": "ab", "programs": ["a", "b"]}])
    assert result["groups"] == ["ab", "c"]
    assert result["stop_seconds"] == 45
    assert result["files"][-1]["vars"]["__supervisor_options"] == {"programs": "a,b", "priority": "999"}


FCGI = {"type": "fcgi-program", "socket": "unix:///run/shop.sock"}
LISTENER = {"type": "eventlistener", "events": ["TICK_60"]}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"name": "a shop"}, "name: may hold letters, digits, '_', '.' and '-' only"),
        ({"command": " "}, "command: is empty; name the program to run"),
        ({"command": "sh -c 'x"}, "command: No closing quotation; close every quote"),
        ({"command": "sh -c 'x\ny'"}, "command: supervisord cannot hold a line break; put it into a script"),
        ({"directory": "/srv/a ;b"}, "directory: supervisord cannot hold '/srv/a ;b'"),
        ({"user": ""}, "user: supervisord cannot hold ''"),
        ({"environment": {"A-B": "x"}}, "environment: 'A-B' is no name of a variable; use letters, digits and '_'"),
        ({"environment": {"A": "x\0"}}, "environment: A holds a NUL character, which no process can be given"),
        ({"watch": ["current"]}, "watch: 'current' must be absolute"),
        ({"socket": "unix:///x"}, "socket: only a record of type fcgi-program can have it"),
        ({"events": ["TICK_5"]}, "events: only a record of type eventlistener can have it"),
        (
            {"type": "fcgi-program"},
            "socket: '' is no address to listen on; write unix:///run/NAME.sock or tcp://HOST:PORT",
        ),
        ({**FCGI, "socket": "unix://run/x"}, "socket: 'unix://run/x' is no address to listen on"),
        ({**FCGI, "socket": "tcp://h:80", "socket_mode": "0600"}, "socket_mode: only a unix:// socket has one"),
        ({"type": "eventlistener"}, "events: name what it listens to, such as PROCESS_STATE"),
        ({**LISTENER, "redirect_stderr": True}, "redirect_stderr: must be false"),
        ({"stopasgroup": True, "killasgroup": False}, "killasgroup: must be true when stopasgroup is"),
        (
            {"numprocs": 2, "process_name": "x"},
            "process_name: 'x' must hold %(process_num)d when numprocs is more than 1",
        ),
    ],
)
def test_a_bad_program_is_refused(record: dict[str, Any], problem: str) -> None:
    record = {"name": "shop", "command": "run", **record}
    (found,) = tree(record)["problems"]
    assert found.startswith(f"supervisor_programs: {record['name']}: {problem}")


@pytest.mark.parametrize(
    ("names", "groups", "problem"),
    [
        (["a", "a"], [], "supervisor_programs: 'a' is there twice; every name must be its own"),
        (["a"], [{"name": "g", "programs": ["b"]}], "supervisor_groups: g: programs: there is no program 'b'"),
        (["l"], [{"name": "g", "programs": ["l"]}], "supervisor_groups: g: programs: 'l' is an eventlistener"),
        (
            ["a"],
            [{"name": "g", "programs": ["a"]}, {"name": "h", "programs": ["a"]}],
            "supervisor_groups: h: programs: 'a' is in group 'g' already",
        ),
        (
            ["a", "b"],
            [{"name": "b", "programs": ["a"]}],
            "supervisor_groups: b: name: a program outside of groups has it",
        ),
        (
            ["a", "b"],
            [{"name": "g", "programs": ["a"]}, {"name": "g", "programs": ["b"]}],
            "supervisor_groups: 'g' is there twice",
        ),
    ],
)
def test_records_that_do_not_fit_together_are_refused(names: list[str], groups: Any, problem: str) -> None:
    programs = [{"name": name, "command": "run", **(LISTENER if name == "l" else {})} for name in names]
    (found,) = tree(*programs, groups=groups)["problems"]
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("web", "problem"),
    [
        ({"username": "user", "password": "123"}, "password: is shorter than 8 characters; choose a longer one"),
        ({"username": "user", "password": ""}, "password: is shorter than 8 characters"),
        ({"username": "", "password": "Correct-horse"}, "username: is empty"),
        ({"username": "Correct-horse", "password": "Correct-horse"}, "password: is the username; choose another"),
        ({"username": "x", "password": "Correct-horse", "address": "::1"}, "address: '::1' is no IPv4 address"),
    ],
)
def test_a_web_page_that_anybody_could_open_is_refused(web: dict[str, str], problem: str) -> None:
    (found,) = tree(web=web)["problems"]
    assert found.startswith(f"supervisor_inet_http_server: {problem}")
    assert "Correct-horse" not in found


def test_the_web_page_is_on_loopback_unless_told_otherwise() -> None:
    web = {"username": "operator", "password": "Correct-horse"}
    (file,) = tree(web=web)["files"]
    assert file["vars"]["__supervisor_options"]["port"] == "127.0.0.1:9001"
    (file,) = tree(web={**web, "address": "*", "port": 99})["files"]
    assert file["vars"]["__supervisor_options"]["port"] == "*:99"


def test_all_problems_are_told_at_once() -> None:
    result = tree(
        {"name": "a", "command": ""}, {"name": "b", "command": "run", "stopasgroup": True, "killasgroup": False}
    )
    assert len(result["problems"]) == 2
    assert result["files"] == []
