"""Checks of single values of a record, and of its environment."""

from __future__ import annotations

import ast
import ipaddress
import keyword
import re
import shlex
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from ._checks import (
    TextCheck,
    Where,
    kind,
    list_of,
    plain,
    show,
    string,
)

# What a shell would understand. Where no shell is, such words would reach the program.
_SHELL = {"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1"}
NAME = r"[a-z][a-z0-9_-]{0,30}"
# The name becomes a user and a group: one of these would hand the app somebody else's files or rights.
_RESERVED = {
    "the system's own accounts": (
        "root daemon bin sys sync games man lp mail news uucp proxy backup list irc nobody nogroup sshd messagebus"
    ),
    "groups that carry rights": (
        "adm sudo wheel admin shadow disk docker lxd staff users operator tty kmem video audio dialout ssl-cert "
        "utmp netdev plugdev crontab"
    ),
    "services": "www-data nginx apache postgres mysql redis rabbitmq memcache munin supervisor supervisord ntp chrony",
    "those who run this": "ansible deploy wsgi wsgi-build wsgi-fleet",
    "files that others own": "default current next releases shared",
}
RESERVED_NAMES = {name: why for why, names in _RESERVED.items() for name in names.split()}

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BY_RUN = "is set by the app's run script; leave it out"
_RESERVED_ENV = {
    "PATH": _BY_RUN,
    "HOME": _BY_RUN,
    "PWD": _BY_RUN,
    "USER": _BY_RUN,
    "LOGNAME": _BY_RUN,
    "VIRTUAL_ENV": _BY_RUN,
    "PYTHONHOME": "would break the release's own Python; leave it out",
    "BASH_ENV": "would run a script before the app; leave it out",
    "ENV": "would run a script before the app; leave it out (give it another name)",
    "IFS": "would break the app's run script; leave it out",
    "GUNICORN_CMD_ARGS": "would override gunicorn's configuration; give gunicorn on the record",
    "GUNICORN_FD": "would make gunicorn take other sockets; leave it out",
    "GUNICORN_PID": "would make gunicorn take other sockets; leave it out",
    "LISTEN_FDS": "would make gunicorn take other sockets; leave it out",
    "LISTEN_PID": "would make gunicorn take other sockets; leave it out",
}
_RESERVED_ENV_PREFIXES = ("SUPERVISOR_", "WSGI_FLEET_")

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = "a host name such as shop.example.com"


def check_name(value: object, where: Where) -> str | None:
    """Check an app's name."""
    wanted = "a lower case letter, then up to 30 of a-z, 0-9, _ and - (it is also the system user)"
    name = string(wanted, NAME)(value, where)
    if name and re.search("[_-]inner$", name):
        where.fail(f"{show(name)} ends in inner, as only sites between balancers do; choose another name")
        return None
    if name in RESERVED_NAMES:
        where.fail(f"{show(name)} is reserved ({RESERVED_NAMES[name]}); choose another name, such as {name}-app")
        return None
    return name


def check_domain(value: object, where: Where) -> str | None:
    """Check a server name as nginx will match it."""
    domain = string(_DOMAIN)(value, where)
    if domain is None:
        return None
    wrong = _wrong_domain(domain)
    if wrong:
        where.fail(f"is {show(domain)}, {wrong}")
        return None
    return domain


def _wrong_domain(domain: str) -> str:
    if _is_ip(domain):
        return f"an IP address; must be {_DOMAIN}"
    if "/" in domain or ":" in domain:
        return f"must be {_DOMAIN}, without scheme, port and path"
    if not domain.isascii():
        return "must be written in its ASCII form (punycode, xn--...)"
    if domain != domain.lower():
        return f"must be in lower case: {domain.lower()}"
    if domain.endswith("."):
        return f"must be without the dot at its end: {domain.rstrip('.')}"
    if len(domain) > 253:
        return "is longer than 253 characters"
    labels = domain.split(".")
    if labels[0] == "*" and len(labels) > 1:
        labels = labels[1:]
    if not all(_LABEL.fullmatch(label) for label in labels):
        return f"must be {_DOMAIN} (labels of a-z, 0-9 and -, up to 63 each) or a wildcard such as *.example.com"
    return ""


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def check_callable(value: object, where: Where) -> str | None:
    """Check `module:object` by gunicorn's own grammar (gunicorn.util.import_app)."""
    target = string("module:object or module:factory(), such as wsgi:app")(value, where)
    if target is None:
        return None
    wrong = _wrong_callable(target)
    if wrong:
        where.fail(f"is {show(target)}, {wrong}")
        return None
    return target


def _wrong_callable(target: str) -> str:
    module, colon, attribute = target.partition(":")
    if not colon or not attribute:
        return f"which names no object in the module; write module:object, such as {module or 'wsgi'}:app"
    if "/" in module or module.endswith(".py"):
        dotted = module[:-3] if module.endswith(".py") else module
        return f"which is a file; write its module, such as {dotted.strip('./').replace('/', '.')}:{attribute}"
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in module.split(".")):
        return "whose module is no dotted Python name; write module:object, such as shop.wsgi:app"
    if re.search(r"[\x00-\x1f\x7f]", attribute):
        return "which holds a control character; take it out"
    try:
        expression = ast.parse(attribute, mode="eval").body
        if isinstance(expression, ast.Name):
            return ""
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
            for argument in [*expression.args, *(named.value for named in expression.keywords)]:
                ast.literal_eval(argument)
            if all(named.arg for named in expression.keywords):
                return ""
    except (SyntaxError, ValueError):
        pass
    return (
        "where only the name of an object, or one call of it with literal arguments, can be served; "
        'write module:object, module:factory() or module:factory("value")'
    )


def relative(what: str) -> TextCheck:
    """Accept a path that stays inside the source."""

    def check(value: object, where: Where) -> str | None:
        path = string(what)(value, where)
        if path is None:
            return None
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or path.startswith("-") or re.search(r"[\x00-\x1f\\]", path):
            where.fail(f"is {show(path)}, must be {what}, relative to the source and inside it")
            return None
        return path

    return check


def check_package(value: object, where: Where) -> str | None:
    """Check an extra requirement: one line, no option, and no server (those have keys of their own)."""
    requirement = string('a requirement such as "redis==7.0.1"')(value, where)
    if requirement is None:
        return None
    if not re.match(r"[A-Za-z0-9]", requirement) or "\n" in requirement:
        where.fail(f'is {show(requirement)}, must be one requirement such as "redis==7.0.1", without options')
        return None
    server = re.match(r"(gunicorn|waitress|mod[-_.]wsgi)(?![A-Za-z0-9._-])", requirement, re.IGNORECASE)
    if server:
        key = re.sub(r"[-.]", "_", server[1].lower())
        where.fail(f"is {server[1]}, whose version belongs in {key}.version")
        return None
    return requirement


def check_command(value: object, where: Where) -> list[str] | None:
    """Accept a command: one line, split as a shell would, or a list of words. Never shown, for it may hold a token."""
    if isinstance(value, (list, tuple)):
        checked = [string("a word of a command")(word, where.item(index)) for index, word in enumerate(value)]
        words = [word for word in checked if word is not None]
        if len(words) < len(checked):
            return None
    else:
        line = string("a command: one line such as flask db upgrade, or a list of words", secret=True)(value, where)
        if line is None:
            return None
        if re.search(r"[\x00-\x1f\x7f]", line):
            where.fail("holds a line break or control character; put it into a script of the source")
            return None
        try:
            words = shlex.split(line)
        except ValueError:
            where.fail("has a quote that is not closed; close it")
            return None
    wrong = _wrong_command(words)
    if wrong:
        where.fail(wrong)
        return None
    return words


def _wrong_command(words: list[str]) -> str:
    if not words:
        return "is empty; name the program to run"
    if words[0].startswith("-") or "=" in words[0]:
        return "begins with an option or a variable, must begin with a program; variables belong in env on the record"
    for word in words:
        if word in _SHELL:
            return f"holds {word}, but no shell runs it; put it into a script of the source"
    return ""


def check_app_names(value: object, where: Where) -> list[Any] | None:
    """Accept names of apps: a list, or a text with commas as one writes it on a command line."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    check = list_of(string("the name of an app"), "names of apps with commas between, such as shop,status", empty=False)
    return check(value, where)


def refuse_unknown_apps(names: Iterable[str], known: Iterable[str], where: Where) -> None:
    """Report names that no app of the plan has."""
    for name in names:
        if name not in known:
            where.fail(f"{show(name)} is no app of this inventory; known are {', '.join(sorted(known)) or 'none'}")


def check_python(value: object, where: Where) -> str | None:
    """Check the version of the interpreter."""
    if isinstance(value, float):
        where.fail('is a number with a point, which YAML may have shortened (3.10 becomes 3.1); quote it: "3.13"')
        return None
    return string('a version such as "3.13"', r"3\.\d{1,2}")(value, where)


def check_pem(label: str, secret: bool) -> TextCheck:
    """Accept PEM text with a block of this kind; never shows it."""

    def check(value: object, where: Where) -> str | None:
        text = string("PEM text (a lookup of the file will do)", secret=True)(value, where)
        if text is None:
            return None
        if not re.search(rf"-----BEGIN ([A-Z0-9]+ )*{label}-----", text):
            where.fail(f"holds no {label} block, must be PEM text (a lookup of the file will do)")
            return None
        if secret and "ENCRYPTED" in text:
            where.fail("is encrypted, and nobody could type its passphrase; give the key without one")
            return None
        return text

    return check


def _check_environment(value: object, where: Where, scalars: bool) -> dict[str, str] | None:
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping of names to {'values' if scalars else 'strings'}")
        return None
    environment: dict[str, str] = {}
    for name, member in value.items():
        place = where.at(str(name))
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            place.fail("is no name of an environment variable; use letters, digits and _, not a digit first")
        elif name in _RESERVED_ENV:
            place.fail(_RESERVED_ENV[name])
        elif name.startswith(_RESERVED_ENV_PREFIXES):
            place.fail("starts with SUPERVISOR_ or WSGI_FLEET_, which are taken; choose another name")
        else:
            text = _environment_text(member, place, scalars)
            if text is not None:
                environment[str(name)] = text
    return environment


def _environment_text(value: object, where: Where, scalars: bool) -> str | None:
    if isinstance(value, str):
        if "\0" in value:
            where.fail("holds a NUL character, which no file or environment can carry")
            return None
        return str(value)
    if scalars and isinstance(value, bool):
        return "true" if value else "false"  # as YAML writes it
    if scalars and isinstance(value, (int, float)):
        return str(plain(value))
    wanted = "a string, a number or a boolean" if scalars else "a string (put it in quotes)"
    where.fail(f"is {kind(value)}, must be {wanted}")
    return None


def check_env(value: object, where: Where) -> dict[str, str] | None:
    """Check the public part of the environment."""
    return _check_environment(value, where, scalars=True)


def check_secrets(value: object, where: Where) -> dict[str, str] | None:
    """Check the secret part of the environment; no message holds a value."""
    return _check_environment(value, where, scalars=False)
