"""What stands in front of the apps on each Linux host: which hosts have Apache, and what it does not do for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import Where
from ._mappings import NGINX
from ._projections import Plan, Records, nginx_sites
from ._topology import Layout

APACHE = "apache"
NGINX_FRONT = "nginx"
_DEFAULTS = {name: field.default for name, field in NGINX.items()}
# What Apache does for clients, of a record's key `nginx`. Behind balancers the rest is theirs.
_DONE = {
    *("client_max_body_size", "proxy_connect_timeout", "proxy_read_timeout", "http2", "https_redirect", "hsts"),
    *("headers", "error_pages", "tls", "static", "trusted_proxies"),
}
# What has to be done on the host itself, behind balancers as well.
_INNER = ("proxy_send_timeout", "cache")
_INNER_PATHS = (
    *("client_max_body_size", "proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"),
    *("streaming", "websocket", "cache"),
)
# What role apache is told of a site.
_SITE = (
    *("name", "server_names", "http_port", "https_port", "http2", "https_redirect", "tls", "trusted_proxies"),
    *("client_max_body_size", "proxy_connect_timeout", "proxy_read_timeout", "default_headers", "headers", "hsts"),
    *("static", "release", "error_pages"),
)


def front_of(record: Mapping[str, Any]) -> str:
    """Return what stands in front of an app on a Linux host."""
    return APACHE if record.get("front") == APACHE else NGINX_FRONT


def fronts(layout: Layout, records: Sequence[Mapping[str, Any]], leaving: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the hosts that have Apache: some app there says so, or one that goes while no other runs there."""
    running = {host for hosts in layout.apps.values() for host in hosts}
    found = {host for record in records if front_of(record) == APACHE for host in layout.apps.get(record["name"], ())}
    return found | {
        host
        for record in records
        if front_of(record) == APACHE
        for host in leaving.get(record["name"], ())
        if host in layout.linux and host not in running and host not in layout.balancers
    }


def check_fronts(records: Sequence[dict[str, Any]], layout: Layout, messages: list[str]) -> None:
    """Refuse hosts with two fronts, hosts that cannot have Apache, and what Apache does not do."""
    others: dict[str, str] = {}
    for record in records:
        if front_of(record) != APACHE:
            for host in layout.apps[record["name"]]:
                others.setdefault(host, record["name"])
    for record in records:
        if front_of(record) == APACHE:
            where = Where(messages, f"app {record['name']}")
            _check_hosts(record, layout, others, where.at("front"))
            if record["nginx"]:
                _check_options(record["nginx"], bool(layout.balancers), where.at("nginx"))


def _check_hosts(record: Mapping[str, Any], layout: Layout, others: Mapping[str, str], where: Where) -> None:
    for host in layout.apps[record["name"]]:
        if host in layout.windows:
            where.fail(
                f"is apache, which is for Linux hosts only, but the app runs on {host}; "
                "take the Windows hosts out of hosts, or set it to nginx or none"
            )
            return
        if host in layout.balancers:
            where.fail(
                f"is apache, but host {host} is a balancer too, and nginx has its ports; "
                "take it out of balancers or of hosts, or set front to nginx"
            )
            return
        if host in others:
            where.fail(
                f"is apache, but app {others[host]}'s is nginx, and both run on host {host}, and one has its ports; "
                "give both apps the same front, or hosts of their own"
            )
            return


def _check_options(nginx: Mapping[str, Any], balanced: bool, where: Where) -> None:
    remedy = "leave it out, or set front to nginx"
    for key in _INNER if balanced else (key for key in nginx if key not in (*_DONE, "paths")):
        if nginx.get(key) and nginx[key] != _DEFAULTS.get(key):
            also = "" if key in _INNER else ", or put balancers in front, which do it"
            where.at(key).fail(f"is nothing that front apache does; {remedy}{also}")
    for index, path in enumerate(nginx.get("paths") or ()):
        for key in _INNER_PATHS if balanced else (key for key in path if key not in ("path", "match")):
            if path.get(key):
                where.at("paths").item(index).at(key).fail(f"is nothing that front apache does; {remedy}")
    if balanced:
        return
    if nginx["tls"] and nginx["tls"]["mode"] == "acme":
        where.at("tls.mode").fail(
            "is acme, which front apache does not do; give files or self_signed, or set front to nginx"
        )
    for name, value in (nginx.get("headers") or {}).items():
        if "\\" in value:
            where.at("headers").at(name).fail(
                "holds a backslash, which Apache does not send as it is; write it without"
            )


def apache_sites(plan: Plan, host: str) -> Records:
    """Return the sites of role apache: those that nginx would have, each with its one server."""
    return [
        {**{key: site[key] for key in _SITE if key in site}, "server": site["upstream"]["servers"][0]["address"]}
        for site in nginx_sites(plan, host)
    ]
