# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the options of a site mean in nginx's own words, so that its template only has to write them down.

nginx inherits some directives into a location only while that says none of the kind itself (add_header,
proxy_set_header, limit_req, allow ...). Whatever has to hold everywhere is said in every location that says
anything of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.plan import site_options

_VISITOR = "wsgi_visitor"
_YEAR = 31536000
# Methods that nginx does not repeat once a request is sent: RFC 9110 does not call them idempotent.
_ONCE = ("LOCK", "PATCH", "POST")
_STALE = "error timeout updating http_500 http_502 http_503 http_504"
Entries = Iterable[tuple[str, str]]


def quoted(text: str) -> str:
    """Write a text as one word of nginx's configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_name(address: str) -> bool:
    """Whether a server is given by its name, and neither by an address nor by a socket."""
    return not re.match(r"unix:|\[|[0-9.]+:", address)


def variable(key: str) -> str:
    """Return nginx's variable that holds a key of a request."""
    kind, _, name = key.partition(":")
    if kind == "header":
        return _header("http", name)
    return f"$cookie_{name}" if kind == "cookie" else {"uri": "$request_uri", "host": "$host"}.get(key, "$remote_addr")


def _header(kind: str, name: str) -> str:
    return f"${kind}_" + name.lower().replace("-", "_")


def view(site: Mapping[str, Any], caches: str, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return a site, checked and with its defaults, in nginx's words."""
    made = _View(site, caches, modules)
    made.add_cors()
    made.add_headers()
    target = made.target()
    pools = [] if made.named else made.pools()
    locations = made.locations()
    static = made.static(locations[0])
    if site["client_ca"]:
        made.files.append(
            {"path": f"wsgi-fleet/clients/{site['name']}.crt", "content": site["client_ca"].strip() + "\n"}
        )
    http3 = site["http3"] and has_https(site) and "http_v3" in modules
    if http3:
        made.headers.append(
            ["Alt-Svc", made.map("$https", "http3", on=quoted(f'h3=":{site["https_port"]}"; ma=86400'))]
        )
    if made.caches:
        made.headers.append(["X-Cache-Status", "$upstream_cache_status"])
    snippet = made.snippet(site["name"], site["snippet"]) if site["snippet"] else ""
    for location in (*locations, *static):
        location["gates"] = made.gates(location)
    return {
        "id": made.id,
        "scheme": made.scheme,
        "http3": http3,
        "target": target,
        "named": made.named,
        "pools": pools,
        "cors": made.cors,
        "retry": made.retry(),
        "blocks": made.blocks,
        "zones": made.zones,
        "headers": made.headers,
        "locations": locations,
        "static": static,
        "snippet": snippet,
        "files": made.files,
        "caches": made.caches,
        "changing": f"${made.id}_changing" if made.caches and site["release"] else "",
    }


def has_https(site: Mapping[str, Any]) -> bool:
    """Whether a site has a certificate."""
    return site["tls"]["mode"] in ("self_signed", "files", "host_file")


def ports(sites: Sequence[Mapping[str, Any]], modules: Sequence[str], http2_by_server: bool) -> list[dict[str, Any]]:
    """Return the ports of all sites, and what is said on each: `port`, `tls`, `http2`, `http3` and `proxied`."""
    found: dict[tuple[bool, int], dict[str, Any]] = {}
    for site in sites:
        for tls, number in ((False, site["http_port"]), *([(True, site["https_port"])] if has_https(site) else [])):
            port = found.setdefault(
                (tls, number), {"port": number, "tls": tls, "http2": False, "http3": False, "proxied": False}
            )
            port["http2"] |= tls and site["http2"] and not http2_by_server
            port["http3"] |= tls and site["http3"] and "http_v3" in modules
            port["proxied"] |= site["proxy_protocol"]
    return [found[key] for key in sorted(found)]


class _View:
    """Collects what one site needs outside and inside of its server block."""

    def __init__(self, site: Mapping[str, Any], directory: str, modules: Sequence[str]) -> None:
        self.site = site
        self.directory = directory
        self.modules = modules
        self.id = "site_" + site["name"].replace("-", "_")
        # by the PROXY protocol, others say nothing of it
        self.scheme = f"${self.id}_scheme" if site["trusted_proxies"] and not site["proxy_protocol"] else "$scheme"
        self.blocks: list[dict[str, Any]] = []
        self.zones: list[str] = []
        self.headers: list[list[str]] = []
        self.files: list[dict[str, Any]] = []
        self.caches: list[str] = []
        self.named = is_name(site["upstream"]["servers"][0]["address"])
        self.limited = any(server.get("max_conns") for server in site["upstream"]["servers"])
        self.keepalive = site["upstream"]["keepalive"] and not self.limited
        self.cors = bool(site["cors"]["origins"] or site["cors"]["origin_patterns"])

    def block(self, kind: str, source: str, name: str, entries: Entries) -> str:
        """Add a variable that follows from others; return it."""
        made = f"${self.id}_{name}"
        head = " ".join(word for word in (kind, source, made) if word)
        self.blocks.append({"head": head, "entries": [" ".join(entry) for entry in entries]})
        return made

    def map(self, source: str, name: str, **entries: str) -> str:
        """Add a map; its entry `empty` is that of the empty text."""
        given = [("default", entries.pop("default", '""'))]
        return self.block("map", source, name, [*given, *((_EMPTY.get(k, k), v) for k, v in entries.items())])

    # its servers

    def target(self) -> str:
        """Return whom to ask: its servers, or one by its name, which nginx then looks up when it is asked for."""
        name, upstream = self.site["name"], self.site["upstream"]
        if self.named:  # in an upstream block, one that does not resolve would keep nginx from starting
            entries = [("default", quoted(upstream["servers"][0]["address"]))]
            return f"http://{self.block('map', '$host', 'server', entries)}"
        if not self.keepalive:
            return f"http://{name}"
        entries = [("default", name), *((method, f"{name}.fresh") for method in _ONCE)]
        return f"http://{self.block('map', '$request_method', 'pool', entries)}"

    def pools(self) -> list[dict[str, Any]]:
        """Return the upstreams, each with its name and lines.

        A server that ends, or reads its configuration anew, closes the connections that are idle. A request that is on
        its way over one is lost: others are repeated, but one that must not be goes over a connection of its own.
        Where such a loss on all servers at once has them all counted as failed, they are asked nevertheless. Neither is
        for servers that are limited: each upstream counts for itself.
        """
        upstream = self.site["upstream"]
        servers = [_server(server) for server in upstream["servers"]]
        reserve = any(server.get("backup") for server in upstream["servers"])
        can = upstream["balance"] in ("round_robin", "least_conn") and not self.limited
        if len(servers) > 1 and can and not reserve:
            servers += [_server({**server, "max_fails": 0, "backup": True}) for server in upstream["servers"]]
        balance = self.balance()
        lines = [*([balance] if balance else []), *servers]
        pools = [{"name": self.site["name"], "lines": lines}]
        if self.keepalive:
            kept = [f"keepalive {upstream['keepalive']}", f"keepalive_timeout {upstream['keepalive_timeout']}s"]
            pools = [
                {"name": self.site["name"], "lines": [*lines, *kept]},
                {"name": f"{self.site['name']}.fresh", "lines": lines},
            ]
        return pools

    def balance(self) -> str:
        """Return how a server is chosen."""
        upstream = self.site["upstream"]
        if upstream["balance"] == "round_robin":
            return ""
        if upstream["balance"] == "random_two":
            return "random two least_conn"
        if upstream["balance"] == "hash":
            return f"hash {self.hash_key(upstream['hash_by'])} consistent"
        return str(upstream["balance"])

    def hash_key(self, key: str) -> str:
        """Give visitors a cookie of nginx's own; who lacks another key is told apart by address."""
        if key != "visitor":
            return self.or_address("hash_key", key, "$remote_addr")
        cookie = f"$cookie_{_VISITOR}"
        secure = self.map(self.scheme, "visitor_secure", https='"; Secure"')
        given = quoted(f"{_VISITOR}=$request_id; Path=/; HttpOnly; SameSite=Lax{secure}")
        self.headers.append(["Set-Cookie", self.map(cookie, "visitor_cookie", empty=given)])
        return self.map(cookie, "visitor", default=cookie, empty="$request_id")

    def or_address(self, name: str, key: str, address: str) -> str:
        """Return a key, or the client's address where the request has none: leaving it out is no way round."""
        if key == "address":
            return address
        if key in ("uri", "host"):
            return variable(key)
        return self.map(variable(key), name, default=variable(key), empty=address)

    def retry(self) -> list[str]:
        """Return when the next server is asked, how often and for how long."""
        retry = self.site["upstream"]["retry"]
        conditions = [*retry["conditions"], *(["non_idempotent"] if retry["non_idempotent"] else [])]
        # a server that does not take connections is soon passed over; a slow answer is not asked for again
        # a request that had run for a while when its server went down is
        usual = min(max(3 * self.site["proxy_connect_timeout"], 15), self.site["proxy_read_timeout"])
        return [
            f"proxy_next_upstream {' '.join(conditions) if retry['conditions'] else 'off'}",
            f"proxy_next_upstream_tries {retry['tries']}",
            f"proxy_next_upstream_timeout {retry.get('timeout', usual)}s",
        ]

    # what every answer says

    def add_headers(self) -> None:
        """Add security headers, for answers in which the application does not say them itself."""
        given = site_options.DEFAULT_HEADERS if self.site["default_headers"] else {}
        named = {name.lower(): (name, value) for name, value in (*given.items(), *self.site["headers"].items())}
        for number, (name, value) in enumerate(named[lower] for lower in sorted(named)):
            if value:
                own = _header("upstream_http", name)
                self.headers.append([name, self.map(own, f"header_{number}", empty=quoted(value))])
        hsts = self.site["hsts"]
        if hsts:
            words = [f"max-age={hsts['max_age']}"]
            words += ["includeSubDomains"] if hsts["include_subdomains"] else []
            words += ["preload"] if hsts["preload"] else []
            own = _header("upstream_http", "Strict-Transport-Security")
            said = self.block(
                "map", f"{self.scheme}:{own}", "hsts", [("default", '""'), ("https:", quoted("; ".join(words)))]
            )
            self.headers.append(["Strict-Transport-Security", said])

    def add_cors(self) -> None:
        """Add what tells browsers which other origins may: the request's, when it is one of them."""
        cors = self.site["cors"]
        if not self.cors:
            return
        entries = [("default", '"*"'), ('""', '""')]
        if "*" not in cors["origins"]:
            entries = [("default", '""'), *map(_origin, cors["origins"]), *map(_pattern, cors["origin_patterns"])]
        origin = self.block("map", "$http_origin", "origin", entries)
        credentials, exposed = "true" if cors["credentials"] else "", ", ".join(cors["expose_headers"])
        self.headers += [
            ["Access-Control-Allow-Origin", origin],
            [
                "Access-Control-Allow-Credentials",
                self.map(origin, "credentials", default=quoted(credentials), empty='""'),
            ],
            ["Access-Control-Expose-Headers", self.map(origin, "expose_headers", default=quoted(exposed), empty='""')],
            ["Vary", "Origin"],
        ]
        asked = f"$request_method:$http_access_control_request_method:{origin}"
        self.block("map", asked, "preflight", [("default", '""'), ('"~^OPTIONS:[^:]+:."', "1")])

    # what a location allows

    def limits(self, limits: Mapping[str, Any], name: str) -> list[str]:
        """Return how much one client may ask."""
        if not limits["requests"] and not limits["connections"]:
            return []
        size, lines = limits["zone_size"], []
        free = '""'
        if limits["allow"]:
            free = self.block("geo", "", f"{name}_free", [("default", "0"), *((net, "1") for net in limits["allow"])])
        for number, limit in enumerate(limits["requests"]):
            zone = f"{name}_requests_{number}"
            key = self.limit_key(zone, limit["key"], free)
            self.zones.append(f"limit_req_zone {key} zone={self.id}_{zone}:{size} rate={limit['rate']}")
            lines.append(f"limit_req zone={self.id}_{zone}{_burst(limit)}")
        for number, limit in enumerate(limits["connections"]):
            zone = f"{name}_connections_{number}"
            key = self.limit_key(zone, limit["key"], free)
            self.zones.append(f"limit_conn_zone {key} zone={self.id}_{zone}:{size}")
            lines.append(f"limit_conn {self.id}_{zone} {limit['max']}")
        for kind in ("req", "conn"):
            lines.append(f"limit_{kind}_status {limits['status']}")
            lines += [f"limit_{kind}_dry_run on"] if limits["dry_run"] else []
        return lines

    def limit_key(self, zone: str, key: str, free: str) -> str:
        """Return what requests are counted by; empty, they are not. nginx takes no other variable for a zone it has."""
        counted = self.or_address(f"{zone}_by", key, "$binary_remote_addr")
        return self.map(free, f"{zone}_key", default=counted, **({"1": '""'} if free != '""' else {}))

    def access(self, access: Mapping[str, Any], name: str) -> list[str]:
        """Return who may ask at all."""
        lines = [f"deny {net}" for net in access["deny"]] + [f"allow {net}" for net in access["allow"]]
        lines += ["deny all"] if access["allow"] else []
        if access["users"]:
            path = f"wsgi-fleet/users/{self.site['name']}-{name}"
            content = "".join(f"{user}:{word}\n" for user, word in sorted(access["users"].items()))
            # every request is checked by a worker, which is not root
            self.files.append({"path": path, "content": content, "group": "www-data", "mode": "0640", "secret": True})
            lines += [f"auth_basic {quoted(access['realm'])}", f"auth_basic_user_file {path}"]
        lines += ["satisfy any"] if access["satisfy"] == "any" else []
        return lines

    def cache(self, cache: Mapping[str, Any], name: str) -> list[str]:
        """Return what is answered from earlier answers. The release is part of the key: a new one starts anew."""
        if not cache:
            return []
        release = self.site["release"]
        zone = f"{self.id}_{name}"
        self.caches.append(f"cache_{zone}")
        self.zones.append(
            f"proxy_cache_path {self.directory}/cache_{zone} levels=1:2 keys_zone={zone}:10m "
            f"max_size={cache['max_size']} inactive=1d use_temp_path=off"
        )
        key = ["$realpath_root"] if release else []
        key += [f"{self.scheme}://$wsgi_fleet_host$request_uri", *map(variable, cache["key"])]
        passing = [_header("http", name) for name in ("Authorization", *cache["bypass_headers"])]
        passing += ["$wsgi_fleet_cookie" if name == "*" else f"$cookie_{name}" for name in cache["bypass_cookies"]]
        # between two releases, answers are of the one or the other, and the key tells of one
        passing += [f"${self.id}_changing"] if release else []
        return [
            *([f"root {release}"] if release else []),
            f"proxy_cache {zone}",
            f"proxy_cache_key {quoted('|'.join(key))}",
            f"proxy_cache_valid {' '.join(map(str, cache['statuses']))} {cache['seconds']}s",
            f"proxy_cache_bypass {' '.join(passing)}",
            f"proxy_no_cache {' '.join(passing)}",
            # one request fetches, the others wait for it or get what there was
            "proxy_cache_lock on",
            "proxy_cache_revalidate on",
            *([f"proxy_cache_use_stale {_STALE}", "proxy_cache_background_update on"] if cache["stale"] else []),
        ]

    # locations

    def locations(self) -> list[dict[str, Any]]:
        """Return all locations that ask the servers: the site's, those that stay open, and those served otherwise."""
        site = self.site
        rules: dict[str, Any] = {
            "limits": self.limits(site["limits"], "site"),
            "access": self.access(site["access"], "site"),
            "certificate": site["access"]["certificate"],
            "cache": self.cache(site["cache"], "site"),
        }
        found = [self.location("/", rules)]
        if site["maintenance"]["switch"] or site["canonical"] or site["paths"] or any(rules.values()):
            # whoever asks how the application is shall hear it from the application
            for path in dict.fromkeys(site["maintenance"]["open_paths"]):
                found.append({**self.location(f'= "{path}"', {}), "open": True})
        for number, path in enumerate(site["paths"]):
            name = f"path_{number}"
            own = dict(rules)
            if "access" in path:
                own["certificate"] = path["access"]["certificate"]
            for kind, make in (("limits", self.limits), ("access", self.access), ("cache", self.cache)):
                if kind in path:
                    own[kind] = make(path[kind], name)
            match = f'{"= " if path["match"] == "exact" else ""}"{path["path"]}"'
            found.append(self.location(match, own, path, name))
        taken = {location["match"] for location in found}
        for path in site["paths"]:
            bare = f'= "{path["path"][:-1]}"'
            if path["match"] == "prefix" and path["path"].endswith("/") and bare not in taken:
                # nginx would send clients on to the one with the slash, which is the application's to say
                found.append(self.location(bare, rules))
        return found

    def location(
        self, match: str, rules: Mapping[str, Any], own: Mapping[str, Any] | None = None, name: str = ""
    ) -> dict[str, Any]:
        """Return one location: its rules, and what it says otherwise than its site."""
        own = own or {}
        flows = own.get("streaming") or own.get("websocket")
        lines = [*rules.get("limits", []), *rules.get("access", []), *([] if flows else rules.get("cache", []))]
        lines += [f"client_max_body_size {own['client_max_body_size']}"] if "client_max_body_size" in own else []
        lines += [f"client_body_timeout {own['client_body_timeout']}s"] if "client_body_timeout" in own else []
        for timeout in ("proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"):
            # what flows may say nothing for long
            seconds = own.get(timeout, 3600 if flows and timeout != "proxy_connect_timeout" else 0)
            lines += [f"{timeout} {seconds}s"] if seconds else []
        lines += ["proxy_buffering off", "proxy_request_buffering off", "gzip off"] if flows else []
        heads = ["Upgrade $http_upgrade", "Connection $wsgi_fleet_connection"] if own.get("websocket") else []
        if any(line.startswith("auth_basic ") for line in lines):
            heads.append("Authorization $wsgi_fleet_authorization")  # the password was for nginx
        snippet = self.snippet(f"{self.site['name']}-{name}", own["snippet"]) if own.get("snippet") else ""
        return {
            "match": match,
            "open": False,
            "certificate": bool(rules.get("certificate")),
            "limits": rules.get("limits", []),
            "access": rules.get("access", []),
            "lines": lines,
            "proxy_headers": heads,
            "snippet": snippet,
        }

    def snippet(self, name: str, text: str) -> str:
        """Add a file of the operator's own words, which nginx then blames by its name."""
        path = f"wsgi-fleet/snippets/{name}.conf"
        self.files.append({"path": path, "content": text.rstrip("\n") + "\n"})
        return path

    def gates(self, location: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return who is answered before anything else, and how."""
        site, found = self.site, []
        if self.cors:
            found.append({"when": f"${self.id}_preflight", "lines": self.preflight()})
        if site["maintenance"]["switch"] and not location["open"]:
            lines = ["error_page 503 /.wsgi-fleet/maintenance.html", "return 503"]
            found.append({"when": "$wsgi_fleet_maintenance", "lines": lines})
        if site["canonical"] and not location["open"]:
            found.append({"when": f"$host != {site['canonical']}", "lines": [f"return 308 {self.canonical()}"]})
        if location["certificate"]:
            found.append({"when": "$ssl_client_verify != SUCCESS", "lines": ["return 403"]})
        return found

    def preflight(self) -> list[str]:
        """Return the answer to who asks whether another origin may."""
        cors = self.site["cors"]
        own = {
            "Access-Control-Allow-Origin": f"${self.id}_origin",
            "Access-Control-Allow-Credentials": f"${self.id}_credentials",
            "Access-Control-Allow-Methods": quoted(", ".join(cors["methods"])),
            "Access-Control-Allow-Headers": quoted(", ".join(cors["headers"])),
            "Access-Control-Max-Age": cors["max_age"],
            "Vary": "Origin",
        }
        others = [
            f"add_header {name} {value} always"
            for name, value in self.headers
            if name not in (*own, "Access-Control-Expose-Headers", "Set-Cookie")
        ]
        return [*(f"add_header {name} {value}" for name, value in own.items()), *others, "return 204"]

    def canonical(self) -> str:
        """Return where clients are sent that name another host of the site."""
        site = self.site
        # a proxy in front has ports of its own
        usual = site["trusted_proxies"] or (site["http_port"] == 80 and site["https_port"] == 443)
        return f"{self.scheme}://{site['canonical']}{'' if usual else ':$server_port'}$request_uri"

    def static(self, site: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the folders that nginx serves itself; what a new page asks for may be in the next release still."""
        base, found = self.site["release"].rpartition("/")[0], []
        for number, folder in enumerate(self.site["static"]):
            in_release = "release" in folder
            age = _YEAR if folder["immutable"] else folder.get("max_age", 3600)
            directory = f"{base}/current/src/{folder['release']}" if in_release else f"{base}/shared/{folder['shared']}"
            found.append(
                {
                    "path": folder["path"],
                    "open": False,
                    "certificate": site["certificate"],
                    "directory": directory,
                    "next": f"{base}/next/src" if in_release else "",
                    "rewrite": f'"^{re.escape(folder["path"])}(.*)$" "/{folder.get("release")}/$1"',
                    "name": f"@{self.id}_static_{number}",
                    # the next release is looked at for a request that is counted already
                    "limits": site["limits"],
                    "lines": [
                        *site["access"],
                        "gzip_static on",
                        *(["brotli_static on"] if "brotli_static" in self.modules else []),
                    ],
                    "age": f'"public, max-age={age}{", immutable" if folder["immutable"] else ""}"',
                }
            )
        return found


_EMPTY = {"empty": '""'}


def _burst(limit: Mapping[str, Any]) -> str:
    burst, delay = limit["burst"], limit.get("delay", limit["burst"])
    if not burst:
        return ""
    return f" burst={burst}" + (" nodelay" if delay == burst else f" delay={delay}" if delay else "")


def _server(server: Mapping[str, Any]) -> str:
    conns = server.get("max_conns")
    return (
        f"server {server['address']} weight={server.get('weight', 1)}{f' max_conns={conns}' if conns else ''}"
        f" max_fails={server.get('max_fails', 1)} fail_timeout={server.get('fail_timeout', 10)}s"
        f"{' backup' if server.get('backup') else ''}"
    )


def _pattern(pattern: str) -> tuple[str, str]:
    return quoted(f"~^(?:{pattern})$"), "$http_origin"


def _origin(origin: str) -> tuple[str, str]:
    scheme, wildcard, rest = origin.partition("://*.")
    if not wildcard:
        return quoted(origin), quoted(origin)
    return f'"~^{scheme}://(?:[a-z0-9-]+[.])+{rest.replace(".", "[.]")}$"', "$http_origin"
