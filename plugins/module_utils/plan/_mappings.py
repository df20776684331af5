"""Checks of the mappings of a record: source, nginx and supervisor."""

from __future__ import annotations

import re
from typing import Any

from ._checks import (
    Field,
    Fields,
    Where,
    boolean,
    choice,
    integer,
    kind,
    list_of,
    mapping,
    read_fields,
    show,
    string,
    suggest,
)
from ._values import check_domain, check_pem, relative
from .origins import pattern_problem
from .site_options import HASH_BY, RETRY, SITE, check_hsts

_SHA256 = r"sha256:[0-9a-f]{64}"
_ORIGIN = r"https?://[a-z0-9.*-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?"
_SUBDOMAINS = r"https?://\*(\.[a-z0-9-]+){2,}(:\d{1,5})?"
_NO_SPACE = r"[^\s\x00-\x1f-][^\s\x00-\x1f]*"
# A URL may carry a token in more ways than a message could mask: none is shown.
_REPOSITORY = r"((https?|ssh|git|file)://|/|([\w.-]+@)?[\w.-]+:(?!:))\S+"
_SUBDIRECTORY = Field(relative("a directory"))
_LOGIN: Fields = {
    "username": Field(string("a name")),
    "password": Field(string("a password or token", secret=True)),
}
_SOURCES: dict[str, Fields] = {
    "git": {
        "git": Field(string("the URL of a repository (https://, ssh://, user@host:path)", _REPOSITORY, secret=True)),
        "version": Field(
            string("a branch, a tag or a full commit", r"(?!-)(?!.*\.\.)[^\s~^:?*\[\\]+"),
            required="a branch, a tag or a full commit",
        ),
        "subdirectory": _SUBDIRECTORY,
        **_LOGIN,
        "ssh_key": Field(check_pem("PRIVATE KEY", secret=True)),
        "ssh_known_hosts": Field(string("lines as ssh-keyscan prints them")),
    },
    "archive": {
        "archive": Field(string("a file on the control node or a URL, without spaces", _NO_SPACE, secret=True)),
        "checksum": Field(string("sha256: and 64 hexadecimal digits in lower case", _SHA256)),
        "subdirectory": _SUBDIRECTORY,
        **_LOGIN,
    },
    "path": {
        "path": Field(string("a directory on the control node")),
        "subdirectory": _SUBDIRECTORY,
        "exclude": Field(list_of(string('a pattern such as "*.sqlite3"'), "a list of patterns")),
    },
    "package": {
        "package": Field(
            string("the name of a package", r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[A-Za-z0-9._, -]+\])?")
        ),
        "version": Field(
            string('an exact version such as "1.4.2"', r"[0-9][0-9A-Za-z.!+_-]*"),
            required='an exact version such as "1.4.2"',
        ),
    },
}


def check_source(value: object, where: Where) -> dict[str, Any] | None:
    """Check where the code comes from: exactly one kind of source, with the keys of that kind."""
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping with one of {', '.join(_SOURCES)}")
        return None
    kinds = [name for name in _SOURCES if name in value]
    if len(kinds) != 1:
        found = " and ".join(kinds) if kinds else "none of them"
        hint = "".join(
            f"; {key} is no known key, {suggest(str(key), _SOURCES)}"
            for key in value
            if not any(key in fields for fields in _SOURCES.values())
        )
        where.fail(f"must have exactly one of {', '.join(_SOURCES)}, has {found}{hint}")
        return None
    source = read_fields(value, _SOURCES[kinds[0]], where)
    archive = source.get("archive")
    if archive and re.match(r"https?://", archive) and "checksum" not in value:
        where.at("checksum").fail("is missing; what comes over the network needs sha256: and its 64 hexadecimal digits")
    if ("username" in value) != ("password" in value):
        missing = "username" if "password" in value else "password"
        where.at(missing).fail("is missing; username and password belong together")
    return source


def _check_cors(value: object, where: Where) -> dict[str, Any] | None:
    cors = mapping(_CORS)(value, where)
    if cors is None or not isinstance(value, dict):
        return cors
    if "origins" not in value and "origin_patterns" not in value:
        where.at("origins").fail("is missing; give a list of origins, or origin_patterns")
    for index, pattern in enumerate(cors.get("origin_patterns") or ()):
        problem = pattern_problem(pattern, bool(cors.get("credentials")))
        if problem:
            where.at("origin_patterns").item(index).fail(f"is {show(pattern)}; it {problem}")
    if "*" in (cors.get("origins") or []):
        if cors.get("origin_patterns"):
            where.at("origin_patterns").fail('is of no use with origins "*"; leave one of them out')
        if cors["origins"] != ["*"]:
            where.at("origins").fail('holds "*" and others; give either "*" alone or the exact origins')
        if cors.get("credentials"):
            where.at("credentials").fail('is true with origins "*", which browsers refuse; name the exact origins')
    return cors


def _check_origin(value: object, where: Where) -> str | None:
    if value == "*":
        return "*"
    origin = string('an origin such as "https://shop.example.com" (no path), or "*"', _ORIGIN)(value, where)
    if origin and "*" in origin and not re.fullmatch(_SUBDOMAINS, origin):
        where.fail(f'is {show(origin)}; a * stands for the subdomains of a domain only, as in "https://*.example.com"')
        return None
    return origin


def _check_tls(value: object, where: Where) -> dict[str, Any] | None:
    tls = mapping(_TLS)(value, where)
    if not isinstance(value, dict) or tls is None or tls["mode"] is None:
        return tls
    for key in ("certificate", "key"):
        if tls["mode"] == "files" and key not in value:
            where.at(key).fail("is missing; mode files needs the certificate and its key as PEM text")
        if tls["mode"] != "files" and key in value:
            where.at(key).fail(f"is of no use with mode {tls['mode']}; set mode to files, or leave it out")
    if "ca" in value and tls["mode"] not in ("files", "acme"):
        where.at("ca").fail(f"is of no use with mode {tls['mode']}; set mode to files or acme, or leave it out")
    return tls


def _check_error_pages(value: object, where: Where) -> list[Any] | None:
    pages = list_of(mapping(_ERROR_PAGE), "a list of {codes, content}")(value, where)
    seen: set[int] = set()
    for index, page in enumerate(pages or ()):
        for code in (page or {}).get("codes") or ():
            if code in seen:
                where.item(index).at("codes").fail(f"has {code}, which another page has; give each code one page")
            seen.add(code)
    return pages


def _check_autorestart(value: object, where: Where) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return choice("true", "false", "unexpected")(value, where)


def _check_size(value: object, where: Where) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(int(value))
    return string('a size such as "50MB"', r"[0-9]+(KB|MB|GB)?")(value, where)


_HEADER = r"[A-Za-z0-9_-]+"
_SECONDS = integer(1, 86400)
_CORS: Fields = {
    "origins": Field(list_of(_check_origin, "a list of origins", empty=False)),
    "origin_patterns": Field(list_of(string("a regular expression"), "a list of regular expressions", empty=False)),
    "methods": Field(list_of(string("a method such as GET", r"[A-Z]+"), "a list of methods", empty=False)),
    "headers": Field(list_of(string("the name of a header", _HEADER), "a list of header names")),
    "expose_headers": Field(list_of(string("the name of a header", _HEADER), "a list of header names")),
    "credentials": Field(boolean),
    "max_age": Field(integer(0, 86400)),
}
_TLS: Fields = {
    "mode": Field(choice("self_signed", "files", "acme", "off"), "self_signed"),
    "certificate": Field(check_pem("CERTIFICATE", secret=False)),
    "key": Field(check_pem("PRIVATE KEY", secret=True)),
    "ca": Field(check_pem("CERTIFICATE", secret=False)),
}
_ERROR_PAGE: Fields = {
    "codes": Field(
        list_of(integer(400, 599), "a list of status codes", empty=False), required="a list of status codes"
    ),
    "content": Field(
        string("the text of the page (a lookup of the file will do)"),
        required="the text of the page (a lookup of the file will do)",
    ),
}
NGINX: Fields = {
    "client_max_body_size": Field(string('a size such as "10m"', r"[0-9]+[kKmMgG]?"), "10m"),
    # Seconds. A host that does not even accept is given up on early; the next one is asked.
    "proxy_connect_timeout": Field(_SECONDS, 5),
    "proxy_send_timeout": Field(_SECONDS, 60),
    "proxy_read_timeout": Field(_SECONDS),
    "balance": Field(choice("round_robin", "least_conn", "ip_hash", "random_two", "hash"), "least_conn"),
    "hash_by": Field(HASH_BY),
    "retry": Field(mapping(RETRY)),
    "keepalive": Field(integer(0, 65535), 32),
    # With nginx's own 1, one dropped connection on every host in the same seconds takes the whole site down.
    "max_fails": Field(integer(0, 65535), 3),
    "fail_timeout": Field(_SECONDS, 10),
    "max_conns": Field(integer(1, 65535)),
    "http2": Field(boolean, True),
    "http3": Field(boolean, False),
    "https_redirect": Field(boolean),
    "canonical": Field(check_domain),
    "hsts": Field(check_hsts),
    "error_pages": Field(_check_error_pages, []),
    "maintenance_page": Field(string("the text of the page (a lookup of the file will do)")),
    "cors": Field(_check_cors),
    "tls": Field(_check_tls, {"mode": "self_signed"}),
    "proxy_protocol": Field(boolean, False),
    **SITE,
}
_LOG = string("the absolute path of a file, or NONE", r"/.+|NONE")
SUPERVISOR: Fields = {
    "priority": Field(integer(0)),
    "autostart": Field(boolean),
    "autorestart": Field(_check_autorestart),
    "exitcodes": Field(list_of(integer(0, 255), "a list of exit codes")),
    "startsecs": Field(integer(0)),
    "startretries": Field(integer(0)),
    "stopwaitsecs": Field(integer(1)),
    "socket_backlog": Field(integer(1)),
    "umask": Field(string('an octal number such as "022"', r"[0-7]{3,4}")),
    "redirect_stderr": Field(boolean),
    "stdout_logfile": Field(_LOG),
    "stdout_logfile_maxbytes": Field(_check_size),
    "stdout_logfile_backups": Field(integer(0)),
    "stdout_capture_maxbytes": Field(_check_size),
    "stdout_events_enabled": Field(boolean),
    "stdout_syslog": Field(boolean),
    "stderr_logfile": Field(_LOG),
    "stderr_logfile_maxbytes": Field(_check_size),
    "stderr_logfile_backups": Field(integer(0)),
    "stderr_capture_maxbytes": Field(_check_size),
    "stderr_events_enabled": Field(boolean),
    "stderr_syslog": Field(boolean),
}
_GRACEFUL = "cannot be changed: a restart without a dropped request depends on it; leave it out"
_SUPERVISOR_DERIVED = {
    "command": "is derived; give callable on the record",
    "process_name": "is derived; leave it out",
    "numprocs": "belongs on the record; give masters there",
    "numprocs_start": "is derived; leave it out",
    "socket": "is derived; give port on the record for a TCP socket",
    "socket_owner": "is derived; leave it out",
    "socket_mode": "is derived; leave it out",
    "user": "is derived: the app's own user; leave it out",
    "directory": "is derived; leave it out",
    "environment": "belongs on the record; give env or secrets there",
    "stopsignal": _GRACEFUL,
    "stopasgroup": _GRACEFUL,
    "killasgroup": _GRACEFUL,
}


def check_supervisor(value: object, where: Where) -> dict[str, Any] | None:
    """Check the operator's options of the program; those that are derived are refused with where they belong."""
    return mapping(SUPERVISOR)(refuse_derived(value, _SUPERVISOR_DERIVED, where), where)


def refuse_derived(value: object, derived: dict[str, str], where: Where) -> object:
    """Refuse what follows from other keys, in words that say from which; return what is left to check."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if key in derived:
            where.at(str(key)).fail(derived[key])
    return {key: member for key, member in value.items() if key not in derived}
