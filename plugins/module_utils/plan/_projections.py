"""What each role of one host is given. Cheap: they read the finished plan and decide nothing that depends on others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from . import _mod_wsgi
from ._programs import background_programs
from ._servers import CONFIG, FILES, server_of, start_otherwise
from ._topology import HTTP_PORT, HTTPS_PORT
from ._waitress import complete_settings, trusting
from .site_options import edge_options, inner_options

Plan = Mapping[str, Any]
Records = list[dict[str, Any]]

_RUN = "/run/wsgi-fleet"
_LOG = "/var/log/wsgi-fleet"
_FRONT_LOGS = {"nginx": "/var/log/nginx", "apache": "/var/log/apache2"}
_ROOT = "/srv"
_ACME = "/var/lib/wsgi-fleet/acme"
# The group of nginx and of Apache, which alone may connect to an app's socket.
_WEB_GROUP = "www-data"
# More than a server needs to end gracefully.
_STOP_MARGIN = 10
_BACKLOG = 2048
# What every nginx is told of a site as the record has it, on Linux and on Windows.
SITE_KEYS = (
    *("client_max_body_size", "proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"),
    "error_pages",
)


def _apps(plan: Plan, host: str) -> Records:
    """Return the apps that run on a host; none on a host that the plan does not know."""
    return [plan["apps"][name] for name in plan["hosts"].get(host, {}).get("apps", ())]


def python_versions(plan: Plan, host: str) -> list[str]:
    """Return the versions of Python that the apps of a host ask for, oldest first."""
    versions = {app["python"] for app in _apps(plan, host) if "python" in app}
    return sorted(versions, key=lambda version: [int(number) for number in version.split(".")])


def python_packages(plan: Plan, host: str) -> list[str]:
    """Return the packages of the distribution that the servers of a host's apps need."""
    return sorted({package for app in _apps(plan, host) for package in server_of(app).packages})


def app_apps(plan: Plan, host: str) -> Records:
    """Return the records of role app."""
    keys = (
        *("name", "source", "python", "requirements", "env", "secrets", "keep_releases"),
        *("migrate", "hooks", "health_timeout"),
    )
    return [
        {
            **{key: app[key] for key in keys if key in app},
            "packages": [server_of(app).requirement(app), *app["packages"]],
            "start": server_of(app).start(app),
            "start_otherwise": start_otherwise(app),
            # The server imports the app and reads its settings in the new release, before that goes live.
            "check": server_of(app).check(app),
            "serve": server_of(app).trial(app) if app["trial"] else [],
            "probes": live_probes(plan, host, app),
            **_public(app),
        }
        for app in _apps(plan, host)
    ]


def _public(app: dict[str, Any]) -> dict[str, Any]:
    """Return what nginx must be allowed to read."""
    folders = app["nginx"]["static"]
    public = sorted({folder["release"] for folder in folders if "release" in folder})
    shared = any("shared" in folder for folder in folders)
    return {**({"public": public} if public else {}), **({"public_shared": True} if shared else {})}


def migrating(plan: Plan, host: str, hosts: Sequence[str], only: Sequence[str] = ()) -> list[str]:
    """Return the apps that this host migrates for the fleet: it is the first of `hosts` that run them."""
    return [
        app["name"]
        for app in _apps(plan, host)
        if "migrate" in app
        and (not only or app["name"] in only)
        and next((name for name in app["hosts"] if name in hosts), None) == host
    ]


def health_request(app: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to ask an app for, and below which status the answer is good.

    A redirection is an answer of a healthy app too: to its login page, say. Without a health path of its own, an app
    may even say that it has no such page, or that one must log in.
    """
    # A wildcard is no name that one could ask for.
    host = app["nginx"].get("canonical") or app["domains"][0].replace("*", "any")
    return {"host": host, "path": app.get("health", "/"), "below": 400 if "health" in app else 500}


def _front(known: Mapping[str, Any]) -> str:
    return str(known.get("front", "nginx"))


def live_probes(plan: Plan, host: str, app: Mapping[str, Any]) -> Records:
    """Return where an app must answer on a host: on its own socket, and through what stands in front."""
    known = plan["hosts"][host]
    ask = health_request(app)
    own = {"address": "127.0.0.1", "port": app["port"]} if "port" in app else {"socket": f"{_RUN}/{app['name']}.sock"}
    port = known["http_port"] if known["inner"] or not known["balancer"] else HTTP_PORT
    # A site with TLS is asked for without: that answers, if only with a redirection. In maintenance the front page is
    # closed at the edge, and its 503 is the right answer there.
    front = {
        "name": _front(known),
        "address": "127.0.0.1",
        "port": port,
        **ask,
        **({"below": 504} if ask["path"] == "/" else {}),
    }
    return [{"name": "its socket", **own, **ask}, front]


def app_removed(plan: Plan, host: str) -> Records:
    """Return what role app is to take away."""
    return [
        {"name": name, "keep_data": plan["removed"][name]["keep_data"]}
        for name in plan["hosts"].get(host, {}).get("removed", ())
    ]


def wheelhouse_hosts(plan: Plan, systems: Mapping[str, str]) -> list[str]:
    """Return the hosts that fill a wheelhouse: for every app, one of each system that it runs on."""
    chosen: list[str] = []
    done: set[tuple[str, str]] = set()
    for host in sorted(systems):
        runs = {(name, systems[host]) for name in plan["hosts"].get(host, {}).get("apps", ())}
        if runs - done:
            chosen.append(host)
            done |= runs
    return chosen


def _instance(app: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the servers' roles all want to know of an app."""
    return {
        "name": app["name"],
        "user": app["name"],
        "group": app["name"],
        "callable": app["callable"],
        "runner": [f"{CONFIG}/{app['name']}/run", "--next"],
    }


def gunicorn_instances(plan: Plan, host: str, vcpus: int) -> Records:
    """Return the instances of role gunicorn; only here the host's cores matter."""
    return [
        {
            **_instance(app),
            "settings": {
                **app["gunicorn"]["settings"],
                "bind": "fd://0",  # supervisord's socket
                "workers": workers_of_master(app["workers"], app["masters"], vcpus),
            },
        }
        for app in _apps(plan, host)
        if app["server"] == "gunicorn"
    ]


def waitress_instances(plan: Plan, host: str) -> Records:
    """Return the instances of role waitress."""
    return [
        {
            **_instance(app),
            "listen_fd": 0,  # supervisord's socket
            "stop_timeout": app["waitress"]["stop_timeout"],
            "settings": {
                # What waitress calls the peer at a Unix socket.
                **trusting(
                    complete_settings(app["waitress"]["settings"]), "127.0.0.1" if "port" in app else "localhost"
                ),
                "backlog": app["supervisor"].get("socket_backlog", _BACKLOG),
            },
        }
        for app in _apps(plan, host)
        if app["server"] == "waitress"
    ]


def mod_wsgi_instances(plan: Plan, host: str) -> Records:
    """Return the instances of role mod_wsgi."""
    return [
        {
            **_instance(app),
            "stop_timeout": app["mod_wsgi"]["stop_timeout"],
            "options": {
                **_mod_wsgi.complete_settings(app["mod_wsgi"]["settings"]),
                # Nobody but the web server in front gets to the socket.
                "trust_proxy_header": [f"X-Forwarded-{what}" for what in ("For", "Host", "Port", "Proto")],
            },
        }
        for app in _apps(plan, host)
        if app["server"] == "mod_wsgi"
    ]


def served_otherwise(plan: Plan, host: str, server: str) -> list[str]:
    """Return the apps of a host that another server serves: what one role wrote for them earlier stays.

    Their live release may still need it, or an older one that comes back with the configuration that it was good with.
    """
    return [app["name"] for app in _apps(plan, host) if app["server"] != server]


def workers_of_master(total: str | int, masters: int, vcpus: int) -> int:
    """Share an app's workers out to its masters, rounded up; auto is gunicorn's own rule of thumb."""
    wanted = 2 * int(vcpus) + 1 if total == "auto" else int(total)
    return max(1, -(-wanted // masters))


def _socket(app: dict[str, Any]) -> str:
    return f"127.0.0.1:{app['port']}" if "port" in app else f"unix:{_RUN}/{app['name']}.sock"


def supervisor_programs(plan: Plan, host: str) -> Records:
    """Return the programs of role supervisor: each app with as many processes as it has masters, and what it adds."""
    programs: Records = []
    for app in _apps(plan, host):
        programs.append(_program(app))
        programs += background_programs(app, f"{CONFIG}/{app['name']}", _ROOT, _LOG)
    return programs


def _program(app: dict[str, Any]) -> dict[str, Any]:
    name = app["name"]
    config = f"{CONFIG}/{name}"
    server = server_of(app)
    program = {
        "name": name,
        "type": "fcgi-program",
        "command": f"{config}/start",
        "numprocs": server.processes(app),
        "process_name": "%(program_name)s_%(process_num)d",
        "socket": f"tcp://127.0.0.1:{app['port']}" if "port" in app else f"unix://{_RUN}/{name}.sock",
        "socket_backlog": _BACKLOG,
        "user": name,
        "directory": f"{_ROOT}/{name}",
        "autorestart": "true",
        # A worker that cannot import the app ends its master within this time, and supervisor gives up soon.
        "startsecs": 5,
        "ready": True,
        "stopsignal": "TERM",
        "stopwaitsecs": server.stop_time(app)[1] + _STOP_MARGIN,
        # A master alone is asked to stop, and stops its workers gracefully; if it must be killed, they all are.
        "stopasgroup": False,
        "killasgroup": True,
        "stdout_logfile": f"{_LOG}/{name}/web_%(process_num)d.log",
        "redirect_stderr": True,
        "watch": [f"{_ROOT}/{name}/current", *(f"{config}/{file}" for file in FILES)],
    }
    if "port" not in app:
        program |= {"socket_owner": f"{name}:{_WEB_GROUP}", "socket_mode": "0660"}
    return {**program, **app["supervisor"]}


def nginx_sites(plan: Plan, host: str) -> Records:
    """Return the sites of role nginx: at the edge with TLS, behind balancers for them alone."""
    known = plan["hosts"].get(host)
    if known is None:
        return []
    sites: Records = []
    running = set(known["apps"])
    upstreams = _Upstreams(plan)
    if known["edge"]:
        port = HTTP_PORT if known["balancer"] else known["http_port"]
        apps = plan["apps"].values() if known["balancer"] else _apps(plan, host)
        for app in apps:
            own = app["name"] in running
            sites.append(_edge_site(app, port, upstreams.servers(app, host, own), own))
    if known["inner"]:
        trusted = [plan["hosts"][balancer]["address"] for balancer in plan["balancers"] if balancer != host]
        sites += [_inner_site(app, known, trusted) for app in _apps(plan, host)]
    return sites


class _Upstreams:
    """Servers of upstreams; apps that run on the same hosts share one list, for fleets of many hosts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hosts = plan["hosts"]
        self._balancers = set(plan["balancers"])
        self._shared: dict[tuple[Any, ...], Records] = {}

    def servers(self, app: dict[str, Any], host: str, own: bool) -> Records:
        """Return the servers of one app, seen from one host: its own socket first."""
        limits = {key: app["nginx"][key] for key in ("max_fails", "fail_timeout", "max_conns") if key in app["nginx"]}
        first = [{"address": _socket(app), **limits}] if own else []
        if host not in self._balancers:
            return first
        first = [{**server, **self._hosts[host]["share"]} for server in first]
        # Instances on Windows have ports of their own.
        key = (*limits.values(), *app["hosts"], app.get("windows_port"))
        if key not in self._shared:
            self._shared[key] = [
                {"address": address, **limits, **self._hosts[name]["share"]}
                for name in app["hosts"]
                if name != host
                for address in endpoints(self._plan, app, name)
            ]
        return first + self._shared[key]


def endpoints(plan: Plan, app: Mapping[str, Any], host: str) -> list[str]:
    """Return where balancers reach an app on a host: its nginx, or on Windows without one each instance."""
    known = plan["hosts"][host]
    ports = instance_ports(app) if known.get("windows") and app["front"] == "none" else [known["http_port"]]
    return [endpoint(known["address"], port) for port in ports]


def instance_ports(app: Mapping[str, Any]) -> range:
    """Return the ports of an app's instances on Windows."""
    first = int(app["windows_port"])
    return range(first, first + server_of(app).processes(app))


def endpoint(address: str, port: int) -> str:
    """Write an address and a port as nginx wants them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _site(app: dict[str, Any]) -> dict[str, Any]:
    nginx = app["nginx"]
    return {
        "name": app["name"],
        "server_names": app["domains"],
        "https_port": HTTPS_PORT,
        **{key: nginx[key] for key in SITE_KEYS},
    }


def _keepalive(app: dict[str, Any]) -> dict[str, int]:
    """Say how long nginx keeps idle connections: shorter than the server does, and than nginx on an app host (65 s)."""
    idle = min(server_of(app).idle_time(app) - 1, 60)
    return {"keepalive": app["nginx"]["keepalive"], "keepalive_timeout": idle} if idle > 0 else {"keepalive": 0}


def _release(app: dict[str, Any]) -> str:
    return f"{_ROOT}/{app['name']}/current"


def _edge_site(app: dict[str, Any], http_port: int, servers: Records, own: bool) -> dict[str, Any]:
    nginx = app["nginx"]
    site = {
        **_site(app),
        "http_port": http_port,
        "http2": nginx["http2"],
        **({"proxy_protocol": True} if nginx["proxy_protocol"] else {}),
        **({"http3": True} if nginx["http3"] and nginx["tls"]["mode"] != "off" else {}),
        "https_redirect": nginx["https_redirect"],
        "tls": _tls(app),
        "maintenance": maintenance_switch(app),
        "trusted_proxies": nginx["trusted_proxies"],
        "upstream": {
            "servers": servers,
            **{key: nginx[key] for key in ("balance", "hash_by", "retry") if key in nginx},
            **_keepalive(app),
        },
        **edge_options(nginx, _release(app) if own else ""),
    }
    if "cors" in nginx:
        site["cors"] = nginx["cors"]
    return site


def _tls(app: dict[str, Any]) -> dict[str, Any]:
    tls = app["nginx"]["tls"]
    if tls["mode"] == "acme":
        return {"mode": "host_file", "file": f"{_ACME}/live/{app['name']}.pem"}
    return {key: value for key, value in tls.items() if key != "ca"}


def acme_certificates(plan: Plan, host: str) -> Records:
    """Return the certificates that role acme is to get: of the apps that this host answers clients for."""
    return [
        {"name": app["name"], "domains": app["domains"]}
        for app in _edge_apps(plan, host)
        if app["nginx"]["tls"]["mode"] == "acme"
    ]


def nginx_challenges(plan: Plan, host: str) -> dict[str, Any]:
    """Return where role nginx finds the answers for an ACME server: on this host, and on others that clients reach."""
    if not acme_certificates(plan, host):
        return {}
    wanted = {certificate["name"] for certificate in acme_certificates(plan, host)}
    peers = [
        endpoint(known["address"], HTTP_PORT)
        for name, known in plan["hosts"].items()
        if name != host and any(other["name"] in wanted for other in acme_certificates(plan, name))
    ]
    return {"directory": f"{_ACME}/challenges", "peers": peers}


def _edge_apps(plan: Plan, host: str) -> Records:
    """Return the apps that a host answers clients for."""
    known = plan["hosts"].get(host)
    if known is None or not known["edge"]:
        return []
    return list(plan["apps"].values()) if known["balancer"] else _apps(plan, host)


def maintenance_switch(app: Mapping[str, Any]) -> dict[str, Any]:
    """Say what stays open: the health path, unless it is the front page, which clients are not to see then."""
    page = {"page": app["nginx"]["maintenance_page"]} if "maintenance_page" in app["nginx"] else {}
    return {"open_paths": _open_paths(app), **page}


def _open_paths(app: Mapping[str, Any]) -> list[str]:
    path = unquote(re.split("[?#]", app.get("health", "/"), maxsplit=1)[0])
    return [path] if path != "/" else []


def _inner_name(app: str, known: Mapping[str, Any]) -> str:
    """Name a site for the balancers; its edge site, if any, has the app's name. No app may be so called."""
    return f"{app}_inner" if known["edge"] else app


def access_logs(plan: Plan, host: str, only: Sequence[str]) -> dict[str, str]:
    """Return the access log of each of these apps, of the requests that this host's own processes answer."""
    known = plan["hosts"][host]
    names = {name: _inner_name(name, known) if known["inner"] else name for name in known["apps"] if name in only}
    return {name: f"{_FRONT_LOGS[_front(known)]}/{site}.access.log" for name, site in names.items()}


def edge_logs(plan: Plan, host: str, only: Sequence[str]) -> dict[str, str]:
    """Return the access log that balancers keep of each of these apps that run on a host."""
    return {name: f"{_FRONT_LOGS['nginx']}/{name}.access.log" for name in plan["hosts"][host]["apps"] if name in only}


def _inner_site(app: dict[str, Any], known: Mapping[str, Any], trusted: list[str]) -> dict[str, Any]:
    """Return a site for the balancers: TLS and CORS are theirs, and their word on the client is taken."""
    nginx = app["nginx"]
    limits = {key: nginx[key] for key in ("max_fails", "fail_timeout")}
    return {
        **_site(app),
        "name": _inner_name(app["name"], known),
        "http_port": known["http_port"],
        "http2": False,
        "https_redirect": False,
        "tls": {"mode": "off"},
        # Clients are turned away at the edge; a host that was one may still have the switch set.
        "maintenance": {"switch": False, "open_paths": _open_paths(app)},
        "trusted_proxies": trusted,
        "upstream": {
            "servers": [{"address": _socket(app), **limits}],
            "balance": "round_robin",
            **_keepalive(app),
        },
        **inner_options(nginx, _release(app)),
    }


def inner_endpoints(plan: Plan, host: str, only: Sequence[str] = ()) -> list[str]:
    """Return addresses and ports at which balancers reach these apps (all of them) on a host."""
    apps = [app for app in _apps(plan, host) if not only or app["name"] in only]
    return list(dict.fromkeys(place for app in apps for place in endpoints(plan, app, host)))


def ufw_rules(plan: Plan, host: str) -> Records:
    """Return the firewall rules that the topology needs; SSH is the role's own affair."""
    known = plan["hosts"].get(host)
    if known is None:
        return []
    rules: Records = []
    if known["edge"]:
        apps = list(plan["apps"].values()) if known["balancer"] else _apps(plan, host)
        if apps:
            port = HTTP_PORT if known["balancer"] else known["http_port"]
            rules.append(_rule(port, "any", "http from anywhere"))
        if any(app["nginx"]["tls"]["mode"] != "off" for app in apps):
            rules.append(_rule(HTTPS_PORT, "any", "https from anywhere"))
        if any(app["nginx"]["http3"] and app["nginx"]["tls"]["mode"] != "off" for app in apps):
            rules.append({**_rule(HTTPS_PORT, "any", "http3 from anywhere"), "proto": "udp"})
    if known["inner"]:
        for balancer in plan["balancers"]:
            if balancer != host:
                address = plan["hosts"][balancer]["address"]
                rules.append(_rule(known["http_port"], address, f"http from balancer {balancer}"))
    return rules


def _rule(port: int, source: str, comment: str) -> dict[str, Any]:
    return {"port": port, "proto": "tcp", "from": source, "action": "allow", "comment": f"wsgi.fleet: {comment}"}
