# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a site of role apache may hold, and what it means in Apache's own words, for its template to write down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.plan import site_options
from ansible_collections.wsgi.fleet.plugins.module_utils.plan._checks import (
    Check,
    Field,
    Fields,
    Where,
    boolean,
    integer,
    list_of,
    read_fields,
    string,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.plan._mappings import NGINX

_YEAR = 31536000
_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_PORT = integer(1, 65535)
_SITE: Fields = {
    "name": Field(string("lower-case letters, digits, - and _, a letter first", r"[a-z][a-z0-9_-]{0,62}")),
    "server_names": Field(
        list_of(
            string(
                "a host name like shop.example.com or *.example.com", rf"(?=.{{1,253}}$)(\*\.)?{_LABEL}(\.{_LABEL})*"
            ),
            "a list of host names",
            empty=False,
        )
    ),
    "server": Field(
        string(
            "unix:/path, 192.0.2.11:8000 or [2001:db8::11]:8000",
            r"unix:/[A-Za-z0-9_./@-]+|\d{1,3}(\.\d{1,3}){3}:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}",
        )
    ),
    "http_port": Field(_PORT),
    "https_port": Field(_PORT),
    "https_redirect": Field(boolean),
    "default_headers": Field(boolean),
    "release": Field(string("an absolute path", r"/[A-Za-z0-9_./-]*[A-Za-z0-9_-]")),
    **{
        name: NGINX[name]
        for name in (
            *("http2", "tls", "trusted_proxies", "client_max_body_size", "proxy_connect_timeout", "proxy_read_timeout"),
            *("headers", "hsts", "static", "error_pages"),
        )
    },
}


def check_headers(headers: Mapping[str, str], where: Where) -> None:
    """Refuse what Apache would read otherwise than it is written."""
    for name, value in headers.items():
        if "\\" in value:
            where.at(name).fail("holds a backslash, which Apache does not send as it is; write it without")


def find_problems(sites: Sequence[Mapping[str, Any]], status_port: int, self_signed_days: int) -> list[str]:
    """Return everything that Apache could not serve, or would serve otherwise than meant."""
    messages: list[str] = []
    _check(_PORT, status_port, Where(messages, "apache_status_port"))
    _check(integer(3, 3650), self_signed_days, Where(messages, "apache_self_signed_days"))
    secure = {site["https_port"] for site in sites if _has_https(site)}
    names: dict[str, int] = {}
    served: dict[tuple[str, int], str] = {}
    for index, site in enumerate(sites):
        where = Where(messages, f"apache_sites[{index}] ({site['name']})")
        _check_site(site, where)
        name = str(site["name"]).replace("_", "-")
        if name in names:
            where.at("name").fail(
                f'is taken by apache_sites[{names[name]}] ("-" and "_" count as the same); give another'
            )
        names[name] = index
        if site["http_port"] in secure:
            where.at("http_port").fail(f"is {site['http_port']}, an https_port too; one port speaks one of the two")
        for port in _ports(site):
            if port == status_port:
                where.fail(f"port {port} is apache_status_port; give that another")
            for host in site["server_names"]:
                key = str(host).lower(), port
                if key in served:
                    where.at("server_names").fail(f"{host} on port {port} is {served[key]}'s; give it to one site")
                served.setdefault(key, str(site["name"]))
    return messages


def _check(check: Check, value: object, where: Where) -> None:
    check(value, where)


def _has_https(site: Mapping[str, Any]) -> bool:
    return site["tls"]["mode"] in ("self_signed", "files")


def _ports(site: Mapping[str, Any]) -> Iterator[int]:
    yield site["http_port"]
    if _has_https(site):
        yield site["https_port"]


def _check_site(site: Mapping[str, Any], where: Where) -> None:
    given = {name: value for name, value in site.items() if value not in ("", {})}
    read = read_fields(given, _SITE, where)
    check_headers(read.get("headers") or {}, where.at("headers"))
    if site["static"] and not site["release"]:
        where.at("release").fail("is missing; static needs the link to the application's live release")
    if site["tls"]["mode"] == "acme":
        where.at("tls").fail("is acme, which this role does not do; give mode files, self_signed or off")
    if not _has_https(site):
        if site["https_redirect"]:
            where.at("https_redirect").fail("is true, but tls.mode is off, so nothing answers there; set one of them")
        if site["hsts"]:
            where.at("hsts").fail("is given, but tls.mode is off; browsers take it over HTTPS only. Leave it out")


def view(site: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template of a right site needs."""
    server = site["server"]
    plain = site["name"].replace("_", "-")
    return {
        "id": plain,
        "files": _files(site),
        # the name behind the socket tells servers apart, and goes nowhere
        "server": f"{server}|http://{plain}/" if server.startswith("unix:") else f"http://{server}/",
        "trusted": " || ".join(f"%{{CONN_REMOTE_ADDR}} -ipmatch '{net}'" for net in site["trusted_proxies"]),
        "headers": _headers(site),
        "hsts": _hsts(site["hsts"]),
        "body": _bytes(site["client_max_body_size"]),
        "pages": _pages(site["error_pages"]),
        "static": list(_static(site)),
    }


def _files(site: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a site and the names in each: Apache takes the first that fits, so patterns come last."""
    full = [name for name in site["server_names"] if "*" not in name]
    found = [{"path": f"sites-enabled/{site['name']}.conf", "names": full}] if full else []
    for number, name in enumerate(name for name in site["server_names"] if "*" in name):
        path = f"wsgi-fleet/wildcards/{255 - len(name):03d}-{site['name']}-{number}.conf"
        found.append({"path": path, "names": [name]})
    return found


def _headers(site: Mapping[str, Any]) -> list[dict[str, str]]:
    given = site_options.DEFAULT_HEADERS if site["default_headers"] else {}
    named = {name.lower(): (name, value) for name, value in (*given.items(), *site["headers"].items())}
    return [{"name": name, "value": _quoted(value)} for _, (name, value) in sorted(named.items()) if value]


def _quoted(text: str) -> str:
    """Write a header's value as Apache reads it, which has formats of its own."""
    return '"' + text.replace("%", "%%").replace('"', '\\"') + '"'


def _hsts(hsts: Mapping[str, Any]) -> str:
    if not hsts:
        return ""
    words = [f"max-age={hsts['max_age']}"]
    words += ["includeSubDomains"] if hsts.get("include_subdomains") else []
    words += ["preload"] if hsts.get("preload") else []
    return "; ".join(words)


def _bytes(size: str) -> int:
    unit = _UNITS.get(size[-1].lower())
    return int(size[:-1]) * unit if unit else int(size)


def _pages(pages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = {code: f"{'-'.join(map(str, page['codes']))}.html" for page in pages for code in page["codes"]}
    # nginx's 504 (no answer in time) is 502 with Apache, and nginx's 502 (nobody takes connections) is 503
    for wanted, said in ((504, 502), (502, 503)):
        if wanted in found:
            found.setdefault(said, found[wanted])
    return [{"code": code, "file": file} for code, file in sorted(found.items())]


def _static(site: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the folders that Apache serves itself; what a new page asks for may be in the next release still."""
    base = site["release"].rpartition("/")[0]
    for folder in site["static"]:
        release = folder.get("release")
        age = _YEAR if folder.get("immutable") else folder.get("max_age", 3600)
        yield {
            "path": folder["path"],
            "pattern": re.escape(folder["path"]),
            "directory": f"{base}/current/src/{release}" if release else f"{base}/shared/{folder['shared']}",
            "next": f"{base}/next/src/{release}" if release else "",
            "age": f'"public, max-age={age}{", immutable" if folder.get("immutable") else ""}"',
        }
