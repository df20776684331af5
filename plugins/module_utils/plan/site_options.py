"""What can be said of a site beyond its servers and its certificate: one schema for the record and for role nginx."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from ._checks import (
    Check,
    Field,
    Fields,
    TextCheck,
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
from ._values import check_pem

NAME_OF_HEADER = r"[A-Za-z0-9_-]+"
# As it may stand in quotes in nginx's configuration.
PATH = r'/[^\x00-\x1f\x7f"\\]*'
_KEY = r"address|uri|host|(header|cookie):[A-Za-z0-9_-]+"
_HASH_KEY = f"visitor|{_KEY}"
_SIZE = r"[0-9]+[kKmMgG]?"
# One part of a path, which leads nowhere else.
_FOLDER = r"(?!\.\.?(/|$))[A-Za-z0-9_.-]+"
_MEMORY = r"[1-9][0-9]*[kKmMgG]"
_SECONDS = integer(1, 86400)
_YEAR = 31536000
# Formats of crypt(3) on Debian, and those that nginx knows by itself.
_HASH = r"\$(2[aby]|5|6|7|y|gy|apr1)\$[!-9;-~]+|\{SSHA\}[A-Za-z0-9+/=]+"
# What every answer of a site says when neither the application nor the record says otherwise.
DEFAULT_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}
_FIXED = "is not nginx's to add to every answer; leave it out"
_NOT_HEADERS = {
    "strict-transport-security": "belongs in hsts",
    "set-cookie": _FIXED,
    "connection": _FIXED,
    "content-encoding": _FIXED,
    "content-length": _FIXED,
    "content-type": _FIXED,
    "date": _FIXED,
    "location": _FIXED,
    "server": _FIXED,
    "transfer-encoding": _FIXED,
    "upgrade": _FIXED,
}
_HEADER_VALUES = {
    "x-content-type-options": ("nosniff",),
    "x-frame-options": ("DENY", "SAMEORIGIN"),
}
# In a policy these are hosts of that name when their quotes are missing.
_CSP_WORD = re.compile(
    r"(self|none|unsafe-inline|unsafe-eval|unsafe-hashes|strict-dynamic|report-sample|wasm-unsafe-eval"
    r"|(nonce|sha256|sha384|sha512)-\S+)"
)


def check_network(value: object, where: Where) -> str | None:
    """Accept an address or a network, without bits that nobody looks at."""
    text = string("an address or a network such as 192.0.2.0/24")(value, where)
    if text is None:
        return None
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            where.fail(f"is {show(text)}, must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32")
        else:
            where.fail(f"is {show(text)}, which has bits beyond its mask; write {meant}")
        return None
    return text


_NETWORKS = list_of(check_network, "a list of addresses and networks")


def check_headers(value: object, where: Where) -> dict[str, str] | None:
    """Accept headers that every answer gets; an empty value takes one of the default ones away."""
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping of header names to values")
        return None
    headers: dict[str, str] = {}
    for name, member in value.items():
        place = where.at(str(name))
        if not isinstance(name, str) or not re.fullmatch(NAME_OF_HEADER, name):
            place.fail('is no name of a header; use letters, digits and "-"')
        elif name.lower() in {known.lower() for known in headers}:
            place.fail("is there twice (case does not count); keep one")
        elif name.lower() in _NOT_HEADERS:
            place.fail(_NOT_HEADERS[name.lower()])
        elif name.lower().startswith("access-control-"):
            place.fail("belongs in cors")
        else:
            text = _header_value(name, member, place)
            if text is not None:
                headers[str(name)] = text
    return headers


def _header_value(name: str, value: object, where: Where) -> str | None:
    if value == "":
        if name.lower() in {known.lower() for known in DEFAULT_HEADERS}:
            return ""
        where.fail("is empty; leave it out")
        return None
    text = string("the header's value")(value, where)
    if text is None:
        return None
    if not re.fullmatch(r"[ -~]+", text) or "$" in text:
        where.fail("holds a character that no header of nginx can carry (a line break, $, or one beyond ASCII)")
        return None
    allowed = _HEADER_VALUES.get(name.lower())
    if allowed and text not in allowed:
        where.fail(f"is {show(text)}, must be {' or '.join(allowed)}")
        return None
    if name.lower().startswith("content-security-policy"):
        for word in text.replace(";", " ; ").split():
            if _CSP_WORD.fullmatch(word):
                where.fail(f"has {word} without its quotes, which is a host of that name; write '{word}'")
                return None
    return text


_HSTS: Fields = {
    "max_age": Field(integer(0, 10 * _YEAR), required="seconds for which browsers insist on HTTPS, such as 31536000"),
    "include_subdomains": Field(boolean, False),
    "preload": Field(boolean, False),
}


def check_hsts(value: object, where: Where) -> dict[str, Any] | None:
    """Accept for how long browsers shall insist on HTTPS."""
    hsts = mapping(_HSTS)(value, where)
    if hsts and hsts["preload"] and (not hsts["include_subdomains"] or (hsts["max_age"] or 0) < _YEAR):
        where.at("preload").fail(
            f"is true, which browsers take only with include_subdomains and max_age of {_YEAR} or more"
        )
    return hsts


def key(words: str = _KEY) -> TextCheck:
    """Accept what requests are told apart by."""
    also = "visitor, " if words == _HASH_KEY else ""
    return string(f"one of {also}address, uri, host, header:NAME, cookie:NAME", words)


_REQUESTS: Fields = {
    "key": Field(key(), "address"),
    "rate": Field(string('a rate such as "10r/s" or "30r/m"', r"[1-9][0-9]{0,5}r/[sm]"), required='a rate, "10r/s"'),
    "burst": Field(integer(0, 100000), 0),
    "delay": Field(integer(0, 100000)),
}
_CONNECTIONS: Fields = {
    "key": Field(key(), "address"),
    "max": Field(integer(1, 65535), required="how many connections at a time"),
}
_LIMITS: Fields = {
    "requests": Field(list_of(mapping(_REQUESTS), "a list of {key, rate, burst, delay}"), []),
    "connections": Field(list_of(mapping(_CONNECTIONS), "a list of {key, max}"), []),
    "status": Field(integer(400, 599), 429),
    "dry_run": Field(boolean, False),
    "allow": Field(_NETWORKS, []),
    "zone_size": Field(string('a size such as "10m"', _MEMORY), "10m"),
}


def check_limits(value: object, where: Where) -> dict[str, Any] | None:
    """Accept how much one client may ask."""
    limits = mapping(_LIMITS)(value, where)
    for index, limit in enumerate((limits or {}).get("requests") or ()):
        delay, burst = limit.get("delay"), limit["burst"]
        if delay is not None and burst is not None and delay > burst:
            where.at("requests").item(index).at("delay").fail(
                f"is {delay}, more than burst ({burst}); give how many requests of the burst are not delayed"
            )
    return limits


def _check_users(value: object, where: Where) -> dict[str, str] | None:
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping of names to hashes of passwords")
        return None
    users: dict[str, str] = {}
    for name, member in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!-9;-~]+", name) or name.startswith("#"):
            where.fail("has a name that is none; use letters, digits and signs, but no colon, space, or # first")
            continue
        wanted = 'a hash of the password as "openssl passwd -6" or "htpasswd -nB" makes it'
        text = string(wanted, _HASH, secret=True)(member, where.at(name))
        if text is not None:
            users[str(name)] = text
    return users


_ACCESS: Fields = {
    "allow": Field(_NETWORKS, []),
    "deny": Field(_NETWORKS, []),
    "users": Field(_check_users, {}),
    "realm": Field(string("a few words", r'[^"\\$\x00-\x1f\x7f]+'), "Restricted"),
    "satisfy": Field(choice("all", "any"), "all"),
    "certificate": Field(boolean, False),
}


def check_access(value: object, where: Where) -> dict[str, Any] | None:
    """Accept who may ask at all."""
    access = mapping(_ACCESS)(value, where)
    if access and access["satisfy"] == "any" and not ((access["allow"] or access["deny"]) and access["users"]):
        where.at("satisfy").fail("is any, which needs networks (allow or deny) and users; give both, or leave it out")
    return access


_CACHE: Fields = {
    "seconds": Field(_SECONDS, required="for how many seconds an answer is kept"),
    "statuses": Field(list_of(integer(200, 599), "a list of status codes", empty=False), [200, 301, 308, 404]),
    "key": Field(list_of(key(), "a list of address, header:NAME, cookie:NAME"), []),
    "bypass_cookies": Field(
        list_of(string('the name of a cookie, or "*"', r"[A-Za-z0-9_-]+|\*"), "a list of names"), ["*"]
    ),
    "bypass_headers": Field(list_of(string("the name of a header", NAME_OF_HEADER), "a list of names"), []),
    "stale": Field(boolean, True),
    "max_size": Field(string('a size such as "100m"', _MEMORY), "100m"),
}


def check_cache(value: object, where: Where) -> dict[str, Any] | None:
    """Accept what nginx may answer from what it answered before; false is nothing."""
    if value is False:
        return {}
    return mapping(_CACHE)(value, where)


def _check_path(value: object, where: Where) -> str | None:
    path = string('a path such as "/upload/"', PATH)(value, where)
    if path and path.startswith("/.wsgi-fleet/"):
        where.fail(f"is {show(path)}, where nginx keeps its own pages; choose another")
        return None
    return path


def _check_folder(value: object, where: Where) -> str | None:
    path = _check_path(value, where)
    if path and (path == "/" or not path.endswith("/") or "//" in path or "/../" in path):
        where.fail(f'is {show(path)}, must be a path such as "/static/", with a slash at its end')
        return None
    return path


def _check_directory(value: object, where: Where) -> str | None:
    return string("a directory, relative, such as build/static", r"(?!\.\.?(/|$))[\w.-]+(/(?!\.\.?(/|$))[\w.-]+)*")(
        value, where
    )


_RETRY_ON = (
    *("error", "timeout", "invalid_header"),
    *("http_403", "http_404", "http_429", "http_500", "http_502", "http_503", "http_504"),
)
RETRY: Fields = {
    "conditions": Field(
        list_of(choice(*_RETRY_ON), f"a list of {', '.join(_RETRY_ON)}"), ["error", "timeout", "http_502"]
    ),
    "tries": Field(integer(1, 10), 3),
    "timeout": Field(_SECONDS),
    "non_idempotent": Field(boolean, False),
}
_SIZED: Check = string('a size such as "10m"', _SIZE)
_SNIPPET = string("lines of nginx's configuration")
_PATH: Fields = {
    "path": Field(_check_path, required='a path such as "/upload/"'),
    "match": Field(choice("prefix", "exact"), "prefix"),
    "client_max_body_size": Field(_SIZED),
    "client_body_timeout": Field(_SECONDS),
    "proxy_connect_timeout": Field(_SECONDS),
    "proxy_send_timeout": Field(_SECONDS),
    "proxy_read_timeout": Field(_SECONDS),
    "streaming": Field(boolean, False),
    "websocket": Field(boolean, False),
    "limits": Field(check_limits),
    "access": Field(check_access),
    "cache": Field(check_cache),
    "snippet": Field(_SNIPPET),
}


def check_paths(value: object, where: Where) -> list[Any] | None:
    """Accept paths that are served otherwise than the rest, each once."""
    paths = list_of(mapping(_PATH), "a list of {path, ...}")(value, where)
    seen: set[tuple[str, str]] = set()
    for index, path in enumerate(paths or ()):
        place = where.item(index)
        same = path["match"], path["path"]
        if path["path"] and same in seen:
            place.at("path").fail(f"is {show(path['path'])}, which another has; give each path once")
        seen.add(same)
        if path["match"] == "prefix" and path["path"] == "/":
            place.at("path").fail('is "/", which is the whole site; give its keys on the site')
        if path.get("cache") and (path["streaming"] or path["websocket"]):
            place.at("cache").fail("is of no use with streaming or websocket, which pass by; keep one of them")
    return paths


_STATIC: Fields = {
    "path": Field(_check_folder, required='a path such as "/static/"'),
    "release": Field(_check_directory),
    "shared": Field(_check_directory),
    "max_age": Field(integer(0, _YEAR)),
    "immutable": Field(boolean, False),
}


def check_static(value: object, where: Where) -> list[Any] | None:
    """Accept folders of files that nginx serves itself, each from one place."""
    folders = list_of(mapping(_STATIC), "a list of {path, release or shared, max_age, immutable}")(value, where)
    seen: set[str] = set()
    for index, folder in enumerate(folders or ()):
        place = where.item(index)
        if ("release" in folder) == ("shared" in folder):
            place.fail("must have one of release and shared: the directory's path in the source, or in shared/")
        if folder["immutable"] and "max_age" in folder:
            place.at("max_age").fail("is of no use with immutable, which is a year; keep one of them")
        if folder["immutable"] and "shared" in folder:
            place.at("immutable").fail("is true for shared, whose files may change; give max_age")
        if folder["path"] and folder["path"] in seen:
            place.at("path").fail(f"is {show(folder['path'])}, which another has; give each path once")
        seen.add(folder["path"])
    return folders


PROXIED = "is true, which needs trusted_proxies: who in front may say so; give their addresses"
HASH_BY = key(_HASH_KEY)
# What the record says of a site, and role nginx is told as it is.
SITE: Fields = {
    "client_body_timeout": Field(_SECONDS),
    "headers": Field(check_headers, {}),
    "limits": Field(check_limits),
    "access": Field(check_access),
    "client_ca": Field(check_pem("CERTIFICATE", secret=False)),
    "cache": Field(check_cache),
    "paths": Field(check_paths, []),
    "static": Field(check_static, []),
    "snippet": Field(_SNIPPET),
    "trusted_proxies": Field(_NETWORKS, []),
}
_OF_ROLE: Fields = {
    **SITE,
    "canonical": Field(string("a host name", r"[A-Za-z0-9_.-]+"), ""),
    "hsts": Field(check_hsts, {}),
    "cache": Field(check_cache, {}),
    "client_ca": Field(check_pem("CERTIFICATE", secret=False), ""),
    "snippet": Field(_SNIPPET, ""),
}


def check_certificates(site: Mapping[str, Any], where: Where) -> None:
    """Check that clients' certificates are asked for where they can be given, and not in vain."""
    asking = [("access", site.get("access") or {})]
    asking += [(f"paths[{index}].access", path.get("access") or {}) for index, path in enumerate(site["paths"] or ())]
    wanted = [place for place, access in asking if access.get("certificate")]
    given = bool(site.get("client_ca"))
    if wanted and not given:
        where.at(wanted[0]).at("certificate").fail("needs client_ca: the CA's certificate as PEM text; give it")
    if given and not wanted:
        where.at("client_ca").fail(
            "is of no use while nothing asks for it; set access.certificate, for all or for a path"
        )
    if given and site["tls"] and site["tls"]["mode"] in ("off", False):
        where.at("client_ca").fail(
            "is given, but tls.mode is off, so no client can show a certificate; set one of them"
        )


def find_problems(site: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with these options of a site as role nginx has it."""
    messages: list[str] = []
    _read_site(site, Where(messages, ""))
    return messages


def read_site(site: Mapping[str, Any]) -> dict[str, Any]:
    """Return a right site with the defaults of what is nested."""
    return _read_site(site, Where([], ""))


def _read_site(site: Mapping[str, Any], where: Where) -> dict[str, Any]:
    read = read_fields({name: site[name] for name in _OF_ROLE if site[name]}, _OF_ROLE, where)
    for name, check in (("limits", check_limits), ("access", check_access)):
        read.setdefault(name, check({}, where))
    upstream = site["upstream"]
    retry = mapping(RETRY)(upstream["retry"], where.at("upstream").at("retry"))
    if (upstream["balance"] == "hash") != bool(upstream.get("hash_by")):
        where.at("upstream").at("hash_by").fail("belongs to balance hash, and that needs it; give both or none")
    elif upstream["balance"] == "hash":
        HASH_BY(upstream["hash_by"], where.at("upstream").at("hash_by"))
    check_certificates({**read, "tls": site["tls"]}, where)
    if site["proxy_protocol"] and not read["trusted_proxies"]:
        where.at("proxy_protocol").fail(PROXIED)
    if read["static"] and not site["release"]:
        where.at("release").fail("is missing; static needs the link to the application's live release")
    if site["release"]:
        string("an absolute path", r"/[A-Za-z0-9_./-]*[A-Za-z0-9_-]")(site["release"], where.at("release"))
    return {**site, **read, "upstream": {**upstream, "retry": retry}}


# What a path's requests need on their whole way, and not only where clients come in.
_ALL_THE_WAY = (
    *("path", "match", "client_max_body_size", "client_body_timeout", "streaming", "websocket"),
    *("proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"),
)


def edge_options(nginx: dict[str, Any], release: str) -> dict[str, Any]:
    """Return what a site says to clients, as role nginx takes it; `release` is the app's link, where it runs here."""
    names = ("client_body_timeout", "headers", "hsts", "canonical", "limits", "access", "client_ca", "snippet")
    paths = [{name: path[name] for name in path if release or name != "cache"} for path in nginx["paths"]]
    return {
        **{name: nginx[name] for name in names if nginx.get(name)},
        **({"paths": paths} if paths else {}),
        **_cached(nginx, release),
    }


def inner_options(nginx: dict[str, Any], release: str) -> dict[str, Any]:
    """Return what a site behind balancers needs as well."""
    paths = [{name: path[name] for name in (*_ALL_THE_WAY, "cache") if path.get(name)} for path in nginx["paths"]]
    # those of which nothing but their names is left are served like all others
    paths = [path for path in paths if set(path) - {"path", "match"}]
    return {
        "default_headers": False,
        **({"client_body_timeout": nginx["client_body_timeout"]} if nginx.get("client_body_timeout") else {}),
        **({"paths": paths} if paths else {}),
        **_cached(nginx, release),
    }


def _cached(nginx: dict[str, Any], release: str) -> dict[str, Any]:
    """What is cached is cached beside the app: a new release shows there, and is a new key."""
    given = {name: nginx[name] for name in ("cache", "static") if nginx.get(name)}
    if not release or not (given or any(path.get("cache") for path in nginx["paths"])):
        return {}
    return {"release": release, **given}
