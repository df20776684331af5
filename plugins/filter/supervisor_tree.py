# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turns records of programs into the sections that supervisord reads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: supervisor_tree
short_description: Configuration of supervisord from records of programs
description:
  - Checks the records against each other and against what supervisord 4.3 can hold, and says all that is wrong at once.
  - Writes every value so that it reaches the program as it is in the record, see O(_input).
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: groups, launcher, log_dir, web
options:
  _input:
    description:
      - Records as C(supervisor_programs) of the role P(wsgi.fleet.supervisor#role) has them. Options of supervisor have
        supervisor's own names.
      - Percent signs are literal, but for supervisor's own expansions (C(process_num) and the like). Values of
        C(environment) are always literal, and may hold any character.
    type: list
    elements: dict
    required: true
  groups:
    description: Records of C(name), C(programs) and C(priority).
    type: list
    elements: dict
    required: true
  launcher:
    description: Path of the script that starts programs which watch something, on the host.
    type: str
    required: true
  log_dir:
    description: Directory of the logs of programs that name none.
    type: str
    required: true
  web:
    description: Record of C(username), C(password), C(address) and C(port) of the web page. Without it there is none.
    type: dict
"""

EXAMPLES = r"""
tree: "{{ supervisor_programs | wsgi.fleet.supervisor_tree([], '/etc/supervisord/launch', '/var/log/supervisord') }}"
"""

RETURN = r"""
_value:
  description:
    - C(problems), all that is wrong with the records; everything else is empty then.
    - C(files), for M(wsgi.fleet.tree).
    - C(groups), the names that supervisord will know.
    - C(logs), patterns of the log files that logrotate has to rotate.
    - C(stop_seconds), how long supervisord may need to stop everything.
  type: dict
"""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Optional

PROGRAM = "program"
FCGI = "fcgi-program"
LISTENER = "eventlistener"
SOCKET_OPTIONS = ("socket", "socket_backlog", "socket_owner", "socket_mode")
LISTENER_OPTIONS = ("events", "buffer_size", "result_handler")
# What is no option of supervisor, or written in a way of its own.
OURS = ("name", "type", "watch", "ready", "environment")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What stands for something else in an option of supervisor; every other percent sign is just that.
EXPANSION = re.compile(
    r"%(?!\((?:program_name|process_num|numprocs|group_name|host_node_name|here|ENV_\w+)\)[0-9]*[sd])"
)
# Where the parser of supervisord sees a comment or the end of the value.
UNSAFE = re.compile(r"\s[;#]|[\r\n\0]|\A\s|\s\Z")
IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}")
LOOPBACK = "127.0.0.1"
PASSWORD_LENGTH = 8
NO_FILE = re.compile(r"none|auto|off|syslog|/dev/.*", re.IGNORECASE)


def native(value: str) -> Optional[str]:
    """A value of `environment` in supervisor's notation, or None when it cannot be said there.

    supervisor 4.3 knows no escapes between quotes, strips quotes at both ends, and sees comments everywhere.
    """
    if UNSAFE.search(f'"{value}"') or "%(here)s" in value or value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
        return None
    quote = '"' if '"' not in value else "'"
    return None if quote in value else f"{quote}{value.replace('%', '%%')}{quote}"


def octal(text: str) -> str:
    """Text that survives every parser on its way, for `printf %b`."""
    return "".join(
        chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\0{byte:03o}" for byte in text.encode("utf-8")
    )


def environment(values: Mapping[str, str]) -> tuple[str, bool]:
    """The option `environment`, and whether the launcher has to set a part of it."""
    entries = []
    awkward = []
    for name, value in sorted(values.items()):
        said = native(value)
        if said is None:
            awkward.append(f"export {name}={shlex.quote(value)}\n")
        else:
            entries.append(f"{name}={said}")
    if awkward:
        entries.append(f'WSGI_FLEET_ENVIRONMENT="{octal("".join(awkward))}"')
    return ",".join(entries), bool(awkward)


def literal(text: str) -> str:
    """Double the percent signs that are no expansion."""
    return EXPANSION.sub("%%", text)


def command_line(command: str) -> str:
    """A command without what would begin a comment, with the same words."""
    if not UNSAFE.search(command.strip()):
        return command.strip()
    words = shlex.split(command)
    return " ".join(re.sub(r"([^A-Za-z0-9_@%+=:,./()-])", r"\\\1", word) or "''" for word in words)


def option_text(value: object) -> str:
    """How supervisor writes a value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return literal(str(value))


def log_options(record: Mapping[str, Any], log_dir: str) -> dict[str, Any]:
    """Where the output goes. Files are rotated by logrotate unless the record gives supervisor a size to do it."""
    name = record["name"]
    logs: dict[str, Any] = {}
    if record["type"] == LISTENER:  # its standard output is the protocol
        logs = {"stdout_logfile": "NONE", "stderr_logfile": f"{log_dir}/{name}.log"}
    elif record.get("stdout_syslog") or record.get("stderr_syslog"):
        logs = {"stdout_logfile": "NONE", "stderr_logfile": "NONE"}
    elif "stdout_logfile" in record or "stderr_logfile" in record or "redirect_stderr" in record:
        logs = {"stdout_logfile": f"{log_dir}/{name}.log", "stderr_logfile": f"{log_dir}/{name}.err.log"}
    else:
        logs = {"stdout_logfile": f"{log_dir}/{name}.log", "redirect_stderr": True}
    merged = {**logs, **record}
    if merged.get("redirect_stderr") and merged["type"] != LISTENER:
        logs.pop("stderr_logfile", None)
    for channel in ("stdout", "stderr"):
        if not NO_FILE.fullmatch(str(merged.get(f"{channel}_logfile", "none"))):
            logs[f"{channel}_logfile_maxbytes"] = 0
    return logs


def section(record: Mapping[str, Any], launcher: str, log_dir: str) -> dict[str, str]:
    """All options of one program, in supervisor's notation."""
    options = {**log_options(record, log_dir), **record}
    if options.get("numprocs", 1) > 1:
        options.setdefault("process_name", "%(program_name)s_%(process_num)d")
    variables, launched = environment({k: text_of(v) for k, v in (record.get("environment") or {}).items()})
    command = literal(command_line(options.pop("command")))
    if launched or record.get("watch") or record.get("ready"):
        paths = [shlex.quote(literal(path)) for path in record.get("watch") or []]
        command = " ".join([launcher, *(["--ready"] if record.get("ready") else []), *paths, "--", command])
    texts = {"command": command}
    texts.update({name: option_text(value) for name, value in options.items() if name not in OURS})
    # supervisord overlooks a change of some options (those of the socket, a log that becomes AUTO), but not of this.
    digest = hashlib.sha256("\n".join(f"{k}={v}" for k, v in sorted(texts.items())).encode()).hexdigest()[:12]
    texts["environment"] = ",".join(filter(None, [f'WSGI_FLEET_SECTION="{digest}"', variables]))
    return texts


def text_of(value: object) -> str:
    """A value of the environment as text; booleans as YAML writes them."""
    return option_text(value) if isinstance(value, bool) else str(value)


def log_patterns(options: Mapping[str, str]) -> list[str]:
    """The log files of a section that nobody else rotates, with * for what supervisor fills in."""
    patterns = []
    for channel in ("stdout", "stderr"):
        path = options.get(f"{channel}_logfile", "none")
        if NO_FILE.fullmatch(path) or options.get(f"{channel}_logfile_maxbytes") != "0":
            continue
        patterns.append(re.sub(r"%\(\w+\)[0-9]*[sd]", "*", path).replace("%%", "%"))
    return patterns


def record_problems(record: Mapping[str, Any]) -> list[str]:
    """What supervisord would refuse without naming the record, or quietly understand in another way."""
    problems = []
    kind = record["type"]
    if not NAME.fullmatch(record["name"]):
        problems.append("name: may hold letters, digits, '_', '.' and '-' only")
    for name, value in record.items():
        if name in (*OURS, "command") or not isinstance(value, str):
            continue
        if UNSAFE.search(value) or not value:
            problems.append(
                f"{name}: supervisord cannot hold {value!r}: it may not be empty, begin or end with a space, or "
                "hold a line break, ' ;' or ' #'"
            )
    try:
        words = shlex.split(record["command"])
    except ValueError as error:
        problems.append(f"command: {error}; close every quote")
    else:
        if not words:
            problems.append("command: is empty; name the program to run")
        if any(re.search(r"[\r\n\0]", word) for word in words):
            problems.append("command: supervisord cannot hold a line break; put it into a script")
    for name, value in (record.get("environment") or {}).items():
        if not VARIABLE.fullmatch(name):
            problems.append(f"environment: '{name}' is no name of a variable; use letters, digits and '_'")
        if "\0" in str(value):
            problems.append(f"environment: {name} holds a NUL character, which no process can be given")
    problems += [
        f"watch: '{path}' must be absolute, without spaces around, line breaks, ' ;' and ' #'"
        for path in record.get("watch") or []
        if not path.startswith("/") or UNSAFE.search(path)
    ]

    for names, owner in ((SOCKET_OPTIONS, FCGI), (LISTENER_OPTIONS, LISTENER)):
        if kind != owner:
            problems += [
                f"{name}: only a record of type {owner} can have it" for name in names if record.get(name) is not None
            ]
    if kind == FCGI:
        address = str(record.get("socket") or "")
        if not re.fullmatch(r"unix:///.+|tcp://[^\s:]+:[0-9]+", address):
            problems.append(
                f"socket: '{address}' is no address to listen on; write unix:///run/NAME.sock or tcp://HOST:PORT"
            )
        elif address.startswith("tcp:"):
            problems += [
                f"{name}: only a unix:// socket has one"
                for name in ("socket_owner", "socket_mode")
                if record.get(name) is not None
            ]
    if kind == LISTENER:
        if not record.get("events"):
            problems.append("events: name what it listens to, such as PROCESS_STATE")
        if record.get("redirect_stderr"):
            problems.append("redirect_stderr: must be false; the standard output of an eventlistener is the protocol")
    if record.get("stopasgroup") and record.get("killasgroup") is False:
        problems.append("killasgroup: must be true when stopasgroup is")
    process_name = record.get("process_name")
    if record.get("numprocs", 1) > 1 and process_name is not None and "%(process_num)" not in process_name:
        problems.append(f"process_name: '{process_name}' must hold %(process_num)d when numprocs is more than 1")
    return problems


def group_problems(programs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong between records."""
    problems = []
    kinds: dict[str, str] = {}
    for record in programs:
        if record["name"] in kinds:
            problems.append(f"supervisor_programs: '{record['name']}' is there twice; every name must be its own")
        kinds[record["name"]] = record["type"]
    homes: dict[str, str] = {}
    for group in groups:
        where = f"supervisor_groups: {group['name']}"
        if not NAME.fullmatch(group["name"]):
            problems.append(f"{where}: name: may hold letters, digits, '_', '.' and '-' only")
        for member in group["programs"]:
            if member not in kinds:
                problems.append(f"{where}: programs: there is no program '{member}'")
            elif kinds[member] == LISTENER:
                problems.append(f"{where}: programs: '{member}' is an eventlistener, which cannot be in a group")
            elif member in homes:
                problems.append(f"{where}: programs: '{member}' is in group '{homes[member]}' already")
            homes[member] = group["name"]
    names = [group["name"] for group in groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"supervisor_groups: '{name}' is there twice; every name must be its own")
    for name in names:
        if name in kinds and name not in homes:
            problems.append(f"supervisor_groups: {name}: name: a program outside of groups has it too; choose another")
    return problems


def web_problems(web: Mapping[str, Any]) -> list[str]:
    """Whoever can open the web page can stop every program: no access without a password of its own."""
    where = "supervisor_inet_http_server"
    problems = []
    username, password = str(web.get("username") or ""), str(web.get("password") or "")
    if not username or UNSAFE.search(username) or ":" in username:
        problems.append(f"{where}: username: is empty, or holds ':', ' ;' or ' #'; choose another")
    if len(password) < PASSWORD_LENGTH:
        problems.append(f"{where}: password: is shorter than {PASSWORD_LENGTH} characters; choose a longer one")
    elif password == username:
        problems.append(f"{where}: password: is the username; choose another")
    address = str(web.get("address") or LOOPBACK)
    if address != "*" and not IPV4.fullmatch(address):
        problems.append(f"{where}: address: '{address}' is no IPv4 address (supervisord knows no other) and not '*'")
    return problems


def web_options(web: Mapping[str, Any]) -> dict[str, str]:
    """The section of the web page. supervisord knows no better hash than this."""
    hashed = hashlib.sha1(str(web["password"]).encode()).hexdigest()  # noqa: S324
    return {
        "port": f"{web.get('address') or LOOPBACK}:{web.get('port') or 9001}",
        "username": literal(str(web["username"])),
        "password": f"{{SHA}}{hashed}",
    }


def stop_seconds(programs: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> int:
    """How long it may take to stop everything: supervisord stops one group after the other."""
    homes = {member: group["name"] for group in groups for member in group["programs"]}
    longest: dict[tuple[bool, str], int] = {}
    for record in programs:
        home = (record["name"] in homes, homes.get(record["name"], record["name"]))
        longest[home] = max(longest.get(home, 0), int(record.get("stopwaitsecs") or 10))
    return sum(longest.values())


def supervisor_tree(
    programs: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    launcher: str,
    log_dir: str,
    web: Optional[Mapping[str, Any]] = None,
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    records = [{"type": PROGRAM, **{k: v for k, v in record.items() if v is not None}} for record in programs]
    problems = [
        f"supervisor_programs: {record['name']}: {problem}" for record in records for problem in record_problems(record)
    ]
    problems += group_problems(records, groups) + (web_problems(web) if web else [])
    if problems:
        return {"problems": problems, "files": [], "groups": [], "logs": [], "stop_seconds": 0}

    files = []
    logs: list[str] = []
    for record in records:
        options = section(record, launcher, log_dir)
        logs += log_patterns(options)
        files.append(
            {
                "path": f"conf.d/{record['name']}.conf",
                "template": "section.conf.j2",
                "vars": {"__supervisor_section": f"{record['type']}:{record['name']}", "__supervisor_options": options},
                "mode": "0600",
                "secret": bool(record.get("environment")),
            }
        )
    for group in groups:
        options = {"programs": ",".join(group["programs"]), "priority": str(group.get("priority", 999))}
        files.append(
            {
                "path": f"conf.d/{group['name']}.group.conf",
                "template": "section.conf.j2",
                "vars": {"__supervisor_section": f"group:{group['name']}", "__supervisor_options": options},
                "mode": "0600",
            }
        )
    if web:
        variables = {"__supervisor_section": "inet_http_server", "__supervisor_options": web_options(web)}
        files.append(
            {"path": "web.conf", "template": "section.conf.j2", "vars": variables, "mode": "0600", "secret": True}
        )
    inside = {member for group in groups for member in group["programs"]}
    return {
        "problems": [],
        "files": files,
        "groups": sorted([g["name"] for g in groups] + [r["name"] for r in records if r["name"] not in inside]),
        "logs": sorted(set(logs)),
        "stop_seconds": stop_seconds(records, groups),
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"supervisor_tree": supervisor_tree}
