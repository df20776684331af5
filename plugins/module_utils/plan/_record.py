"""The schema of one record of `wsgi_apps`: what its keys may hold, their defaults, and what fits together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from . import _gunicorn, _mod_wsgi, _waitress, site_options
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
)
from ._mappings import NGINX, check_source, check_supervisor
from ._programs import check_programs
from ._servers import SERVERS, refuse_others, server_of
from ._values import (
    NAME,
    check_callable,
    check_command,
    check_domain,
    check_env,
    check_name,
    check_package,
    check_python,
    check_secrets,
    relative,
)


def _check_workers(value: object, where: Where) -> object:
    wanted = "auto or a whole number of 1 or more"
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return int(value)
    shown = str(value) if isinstance(value, int) and not isinstance(value, bool) else kind(value)
    where.fail(f"is {show(value) if isinstance(value, str) else shown}, must be {wanted}")
    return None


def _check_port(value: object, where: Where) -> object:
    if isinstance(value, str):
        return choice("auto")(value, where)
    return integer(1024, 65535)(value, where)


_HOOKS: Fields = {
    point: Field(list_of(check_command, "a list of commands"))
    for point in ("before_build", "after_build", "before_switch", "after_switch", "after_rollback")
}
_RECORD: Fields = {
    "name": Field(check_name, required="a name that is the system user too, such as shop"),
    "state": Field(choice("present", "absent"), "present"),
    "keep_data": Field(boolean),
    "domains": Field(
        list_of(check_domain, "a list of host names", empty=False),
        required="a list of host names, such as [shop.example.com]",
    ),
    "source": Field(check_source, required="a mapping with one of git, archive, path, package"),
    "callable": Field(check_callable, required="module:object, such as wsgi:app"),
    "hosts": Field(
        list_of(string("the name of a group or a host"), "a list of groups and hosts", empty=False), ["linux_apps"]
    ),
    "server": Field(choice(*SERVERS), "gunicorn"),
    "python": Field(check_python),
    "requirements": Field(list_of(relative("a file of requirements"), "a list of files of requirements"), []),
    "packages": Field(list_of(check_package, "a list of requirements"), []),
    "workers": Field(_check_workers, "auto"),
    "masters": Field(integer(1, 8), 2),
    "gunicorn": Field(_gunicorn.check_gunicorn, {"version": _gunicorn.DEFAULT_VERSION, "settings": {}}),
    "waitress": Field(_waitress.check_waitress, _waitress.check_waitress({}, Where([], ""))),
    "mod_wsgi": Field(_mod_wsgi.check_mod_wsgi, _mod_wsgi.check_mod_wsgi({}, Where([], ""))),
    "front": Field(choice("nginx", "apache", "none"), "none"),
    "port": Field(_check_port),
    "health": Field(string('a path such as "/healthz"', r"/[!-~]*")),
    "health_timeout": Field(integer(1, 600), 30),
    "trial": Field(boolean, True),
    "migrate": Field(check_command),
    "hooks": Field(mapping(_HOOKS), {}),
    "env": Field(check_env, {}),
    "secrets": Field(check_secrets, {}),
    "keep_releases": Field(integer(2), 5),
    "nginx": Field(mapping(NGINX)),
    "supervisor": Field(check_supervisor, {}),
    "programs": Field(check_programs, []),
}


# What an app that goes away must say. Its other keys may stand as they stood, and are checked.
_ABSENT: Fields = {
    **{name: Field(field.check) for name, field in _RECORD.items()},
    "name": _RECORD["name"],
    "hosts": _RECORD["hosts"],
    "keep_data": Field(boolean, True),
}


def read_record(value: object, index: int, messages: list[str]) -> dict[str, Any] | None:
    """Check one record and fill in its defaults; what is wrong is None, or out of its list."""
    label = f"wsgi_apps[{index}]"
    if not isinstance(value, dict):
        Where(messages, label).fail(f"is {kind(value)}, must be a record with name, domains, source and callable")
        return None
    name = value.get("name")
    if isinstance(name, str) and re.fullmatch(NAME, name):
        label = f"app {name}"
    where = Where(messages, label)
    if value.get("state") == "absent":
        read = read_fields(value, _ABSENT, where)
        return {key: read[key] for key in ("name", "hosts", "state", "keep_data", "front") if key in read}
    record = read_fields(value, _RECORD, where)
    if "keep_data" in value:
        where.at("keep_data").fail("is of use with state absent only; leave it out")
    if "nginx" not in value:
        record["nginx"] = mapping(NGINX)({}, where)
    if record["server"]:
        refuse_others(value, record["server"], where)
        for name, server in SERVERS.items():
            if name != record["server"]:
                record = {key: member for key, member in record.items() if key not in server.keys}
    _check_together(record, where)
    return record


def _check_together(record: dict[str, Any], where: Where) -> None:
    """Check what depends on more than one key, and complete what follows from others."""
    for name in sorted(set(record["env"] or ()) & set(record["secrets"] or ())):
        where.at("secrets").at(name).fail("is in env as well; keep it in one of them")
    gunicorn = record.get("gunicorn")
    if gunicorn and gunicorn["version"]:
        gunicorn["settings"] = _gunicorn.complete_settings(
            str(record["name"]), gunicorn["version"], _without_wrong(gunicorn["settings"])
        )
    served = _served(record)
    if served:
        server_of(record).fits(record, where)
        _check_times(record, where)
    if record["nginx"] and record["nginx"]["tls"]:
        if record["nginx"]["tls"]["mode"] == "acme":
            _check_acme(record["domains"] or (), where.at("domains"))
        _complete_nginx(record["nginx"], server_of(record).answer_time(record) if served else 60, where.at("nginx"))
        _check_site(record, where.at("nginx"))


def _check_acme(domains: Sequence[str], where: Where) -> None:
    for index, domain in enumerate(domains):
        if domain.startswith("*"):
            where.item(index).fail(
                f"is {show(domain)}, which ACME cannot prove over HTTP; name the hosts, or give nginx.tls files"
            )


def _served(record: dict[str, Any]) -> bool:
    """Whether what the record says of its server is good enough to work with."""
    about = record.get(record["server"] or "")
    return bool(about and about["version"])


def _without_wrong(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out numbers that a check refused, so that what is derived from them can still be worked out."""
    numbers = {name for name, kind_ in _gunicorn.SETTINGS.items() if kind_ == "int"}
    return {name: value for name, value in settings.items() if value is not None or name not in numbers}


def _check_times(record: dict[str, Any], where: Where) -> None:
    wait = (record["supervisor"] or {}).get("stopwaitsecs")
    key, seconds = server_of(record).stop_time(record)
    if wait is not None and wait <= seconds:
        where.at("supervisor.stopwaitsecs").fail(
            f"is {wait}, must be more than {key} ({seconds}), or supervisor kills workers that still answer"
        )


def _complete_nginx(nginx: dict[str, Any], answer_time: int, where: Where) -> None:
    mode = nginx["tls"]["mode"]
    if nginx.get("https_redirect") and mode == "off":
        where.at("https_redirect").fail("is true, but tls.mode is off, so nothing answers there; set one of them")
    # Only a certificate that browsers trust: a redirect to a self-signed one would lock everybody out.
    nginx.setdefault("https_redirect", mode in ("files", "acme"))
    nginx.setdefault("proxy_read_timeout", answer_time)
    if nginx.get("hsts") and mode == "off":
        where.at("hsts").fail("is given, but tls.mode is off; browsers take it over HTTPS only. Leave it out")


def _check_site(record: dict[str, Any], where: Where) -> None:
    nginx = record["nginx"]
    if (nginx["balance"] == "hash") != ("hash_by" in nginx):
        missing = "hash_by" not in nginx
        where.at("hash_by").fail(
            "is missing; balance hash needs what requests are told apart by, such as visitor or address"
            if missing
            else "is of use with balance hash only; set that, or leave it out"
        )
    site_options.check_certificates(nginx, where)
    if nginx["proxy_protocol"] and not nginx["trusted_proxies"]:
        where.at("proxy_protocol").fail(site_options.PROXIED)
    domains, canonical = record["domains"] or (), nginx.get("canonical")
    if canonical and canonical.startswith("*"):
        where.at("canonical").fail(f"is {show(canonical)}; clients cannot be sent to a wildcard, give one name")
    elif canonical and canonical not in domains and not any(_covers(domain, canonical) for domain in domains):
        where.at("canonical").fail(f"is {show(canonical)}, which is not among domains; add it there")
    health = urlsplit(record.get("health") or "/").path
    for index, path in enumerate(nginx["paths"] or ()):
        if path["match"] == "exact" and path["path"] == unquote(health) != "/":
            where.at("paths").item(index).at("path").fail(
                f"is {show(path['path'])}, the health path, which is open as it is; leave it out"
            )


def _covers(domain: str, name: str) -> bool:
    return domain.startswith("*.") and name.endswith(domain[1:])
