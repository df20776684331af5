"""Applications on Windows hosts: what cannot run there, their ports, and what role waitress_windows is given."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import Where
from ._projections import SITE_KEYS, Plan, Records, health_request, instance_ports, maintenance_switch
from ._servers import server_of
from ._topology import HTTPS_PORT, OUR_PORTS, Host, Layout
from ._waitress import trusting

# What one reaches Windows itself by.
_SYSTEM_PORTS = {22: "SSH", 135: "RPC", 445: "SMB", 3389: "Remote Desktop", 5985: "WinRM", 5986: "WinRM"}
# Below the range for outgoing connections (49152 and up), and not in the one that Linux hosts are given automatically.
_AUTO_FIRST, _AUTO_COUNT = 30000, 10000
# CPython's select() on Windows knows 512 sockets, the listening one and waitress' own among them.
_MOST_CONNECTIONS = 480
_LINUX_ONLY = ("programs", "migrate", "hooks")


def check_windows(
    records: Sequence[dict[str, Any]], layout: Layout, hosts: Mapping[str, Host], messages: list[str]
) -> dict[str, int]:
    """Refuse what Windows hosts cannot do; return the first port of each app that runs on one."""
    ports: dict[str, int] = {}
    running = {
        record["name"]: [host for host in layout.apps[record["name"]] if host in layout.windows] for record in records
    }
    taken = {name: _reserved(hosts[name]) for name in layout.windows}
    # What is wrong with a record's server is reported already.
    ours = [record for record in records if running[record["name"]] and record.get("waitress")]
    for record in ours:
        where = Where(messages, f"app {record['name']}")
        for key in _LINUX_ONLY:
            if record.get(key):
                where.at(key).fail(
                    f"is for Linux hosts only, but the app runs on {running[record['name']][0]}; "
                    f"leave it out, or take the Windows hosts out of hosts"
                )
        limit = record["waitress"]["settings"].get("connection_limit", 0)
        if limit > _MOST_CONNECTIONS:
            where.at("waitress.connection_limit").fail(
                f"is {limit}, but Windows hosts take {_MOST_CONNECTIONS} at most; give more instances instead"
            )
        if record["front"] == "nginx" and record["nginx"]["tls"]["mode"] == "self_signed" and not layout.balancers:
            where.at("nginx.tls").fail(
                "is self_signed, for which Windows hosts have no certificate; give mode files or off"
            )
        if (
            record["front"] == "nginx"
            and not layout.balancers
            and (record["nginx"].get("cors") or {}).get("origin_patterns")
        ):
            where.at("nginx.cors.origin_patterns").fail(
                f"are for Linux hosts only, but clients reach {running[record['name']][0]}; give origins"
            )
        if isinstance(record.get("port"), int):
            ports[record["name"]] = record["port"]
            _take(record, record["port"], running[record["name"]], taken, where.at("port"))
    for record in sorted(ours, key=lambda record: str(record["name"])):
        if record["name"] not in ports:
            ports[record["name"]] = _free(record, running[record["name"]], taken)
    return ports


def _reserved(host: Host) -> dict[int, str]:
    return {**OUR_PORTS, **_SYSTEM_PORTS, host.http_port or 80: "nginx", HTTPS_PORT: "HTTPS"}


def _span(record: Mapping[str, Any], first: int) -> range:
    return range(first, first + server_of(record).processes(record))


def _take(
    record: Mapping[str, Any], first: int, hosts: Sequence[str], taken: dict[str, dict[int, str]], where: Where
) -> None:
    span = _span(record, first)
    if span[-1] > 65535:
        where.fail(f"is {first}, but {len(span)} instances need as many ports up to 65535; choose a lower one")
    for host in hosts:
        for port in span:
            if port in taken[host]:
                where.fail(
                    f"is {first}, and an instance needs {port}, which is taken by {taken[host][port]} on host {host}; "
                    "choose another, or auto"
                )
                return
            taken[host][port] = f"app {record['name']}"


def _free(record: Mapping[str, Any], hosts: Sequence[str], taken: dict[str, dict[int, str]]) -> int:
    """Choose ports by the app's name alone, as far as they are free."""
    start = zlib.crc32(str(record["name"]).encode())
    for step in range(_AUTO_COUNT):
        first = _AUTO_FIRST + (start + step) % _AUTO_COUNT
        span = _span(record, first)
        if not any(port in taken[host] for host in hosts for port in span):
            for host in hosts:
                taken[host].update(dict.fromkeys(span, f"app {record['name']}"))
            return first
    raise ValueError("no port is left")  # more apps than ports


def windows_apps(plan: Plan, host: str) -> Records:
    """Return the records of role waitress_windows."""
    return [
        {
            **{
                key: app[key]
                for key in ("name", "source", "callable", "requirements", "env", "secrets", "keep_releases")
                if key in app
            },
            "packages": [server_of(app).requirement(app), *app["packages"]],
            "instances": server_of(app).processes(app),
            # nginx in front is on the host itself; without, balancers and clients reach the instances.
            "address": "127.0.0.1" if app["front"] == "nginx" else "0.0.0.0",  # noqa: S104 - the firewall says to whom
            "port": app["windows_port"],
            "waitress": _settings(plan, app),
            "health": health_request(app),
            "health_timeout": app["health_timeout"],
            "trial": app["trial"],
            "stop_timeout": app["waitress"]["stop_timeout"],
        }
        for app in _apps(plan, host)
    ]


def _apps(plan: Plan, host: str) -> Records:
    known = plan["hosts"].get(host, {})
    return [plan["apps"][name] for name in known.get("apps", ())] if known.get("windows") else []


def _settings(plan: Plan, app: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        "threads": 8,
        "connection_limit": _MOST_CONNECTIONS,
        # nginx closes idle connections before; what a client left behind goes soon after.
        "channel_timeout": 120,
        "cleanup_interval": 10,
        **app["waitress"]["settings"],
    }
    if app["front"] == "nginx":
        return trusting(settings, "127.0.0.1")
    addresses = [plan["hosts"][name]["address"] for name in plan["balancers"]]
    if not addresses:
        return settings
    # waitress takes one address or any: with several balancers, the firewall alone says who may come.
    return trusting(settings, addresses[0] if len(addresses) == 1 else "*")


def windows_removed(plan: Plan, host: str) -> Records:
    """Return what role waitress_windows is to take away."""
    known = plan["hosts"].get(host, {})
    names = known.get("removed", ()) if known.get("windows") else ()
    return [{"name": name, "keep_data": plan["removed"][name]["keep_data"]} for name in names]


def windows_sites(plan: Plan, host: str) -> Records:
    """Return the sites of nginx on a Windows host: for clients, or behind balancers for them alone."""
    known = plan["hosts"].get(host, {})
    balancers = [plan["hosts"][name]["address"] for name in plan["balancers"]]
    sites = []
    for app in _apps(plan, host):
        if app["front"] != "nginx":
            continue
        nginx = app["nginx"]
        site = {
            "name": app["name"],
            "server_names": app["domains"],
            "http_port": known["http_port"],
            "servers": [f"127.0.0.1:{port}" for port in instance_ports(app)],
            "trusted_proxies": balancers,
            "maintenance": {"switch": False} if balancers else maintenance_switch(app),
            **{key: nginx[key] for key in SITE_KEYS},
        }
        if not balancers:
            site["balance"] = nginx["balance"]
            if "cors" in nginx:
                site["cors"] = nginx["cors"]
            if nginx["tls"]["mode"] == "files":
                site |= {"certificate": nginx["tls"]["certificate"], "key": nginx["tls"]["key"]}
                site["https_redirect"] = nginx["https_redirect"]
        sites.append(site)
    return sites


def windows_firewall_rules(plan: Plan, host: str) -> Records:
    """Return the firewall rules that the topology needs: balancers are let in, or clients where there are none."""
    known = plan["hosts"].get(host, {})
    balancers = [plan["hosts"][name]["address"] for name in plan["balancers"]]
    ports: dict[str, str] = {}
    for app in _apps(plan, host):
        if app["front"] != "nginx":
            span = instance_ports(app)
            ports[f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0])] = app["name"]
            continue
        ports[str(known["http_port"])] = "http"
        if not balancers and app["nginx"]["tls"]["mode"] == "files":
            ports[str(HTTPS_PORT)] = "https"
    return [
        {
            "name": f"wsgi.fleet: {what} ({port})",
            "port": port,
            "from": balancers or ["any"],
            "description": "for the balancers" if balancers else "for the clients",
        }
        for port, what in ports.items()
    ]
