"""The groups: which hosts run an app, which balance, how they reach each other, and on which ports."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from ._checks import Where, boolean, integer, suggest

BALANCERS = "balancers"
LINUX = "linux_apps"
WINDOWS = "windows_apps"

HTTP_PORT = 80
HTTPS_PORT = 443
# Where a host that balances answers the other balancers: on 80 it would balance their requests once more.
INNER_HTTP_PORT = 8080
# What our own roles listen on: nginx's status server and supervisor's web page.
OUR_PORTS = {8079: "nginx's status page", 9001: "supervisor's web page"}
# Below the kernel's range for outgoing connections (32768 and up), which would take a port away at times.
_AUTO_FIRST, _AUTO_COUNT = 20000, 10000


class Host(NamedTuple):
    """What the plan must know of a host."""

    address: str
    http_port: Optional[int]
    ssh_port: int
    weight: int = 1
    backup: bool = False


class Layout(NamedTuple):
    """Who runs what, after all names are resolved."""

    linux: list[str]
    windows: list[str]
    balancers: list[str]
    apps: dict[str, list[str]]  # app -> its hosts, sorted

    def others(self, host: str) -> list[str]:
        """Return the balancers that reach this host over the network."""
        return [balancer for balancer in self.balancers if balancer != host]


def members(groups: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return the hosts of those groups that the inventory has, each once, group after group."""
    return list(dict.fromkeys(str(host) for name in names for host in groups.get(name) or ()))


def fleet(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the hosts that the plan is about."""
    return sorted(members(groups, [BALANCERS, LINUX, WINDOWS]))


def read_hosts(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> tuple[dict[str, Host], list[str]]:
    """Read what is needed of each host's variables, once: this is the slow part of a big inventory."""
    hosts: dict[str, Host] = {}
    messages: list[str] = []
    for name in fleet(groups):
        variables = hostvars[name]
        where = Where(messages, f"host {name}")
        hosts[name] = Host(
            address=str(variables.get("wsgi_address") or variables.get("ansible_host") or name),
            http_port=_port(variables.get("wsgi_http_port"), where.at("wsgi_http_port")),
            ssh_port=_port(variables.get("ansible_port"), where.at("ansible_port")) or 22,
            weight=_weight(variables.get("wsgi_weight"), where.at("wsgi_weight")),
            backup=_backup(variables.get("wsgi_backup"), where.at("wsgi_backup")),
        )
    return hosts, messages


def _port(value: object, where: Where) -> int | None:
    if value is None or value == "":
        return None
    # From an INI inventory or a command line, a number may come as text.
    if not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, str) and value.isdigit())):
        port = int(value)
        if 1 <= port <= 65535:
            return port
    where.fail("must be a port from 1 to 65535")
    return None


def _weight(value: object, where: Where) -> int:
    if value is None or value == "":
        return 1
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    return integer(1, 65535)(value, where) or 1


def _backup(value: object, where: Where) -> bool:
    if value is None or value == "":
        return False
    # An INI inventory has True and false as text.
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    return bool(boolean(value, where))


def lay_out(records: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]], messages: list[str]) -> Layout:
    """Resolve where each app runs."""
    linux = sorted(map(str, groups.get(LINUX) or ()))
    windows = sorted(map(str, groups.get(WINDOWS) or ()))
    balancers = sorted(map(str, groups.get(BALANCERS) or ()))
    for name, members in ((LINUX, linux), (BALANCERS, balancers)):
        for host in members:
            if host in windows:
                Where(messages, f"host {host}").fail(f"is in {name} and in {WINDOWS}; keep it in one of them")
    apps = place(records, groups, messages)
    return Layout(linux=linux, windows=windows, balancers=balancers, apps=apps)


def place(
    records: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[str]], messages: list[str]
) -> dict[str, list[str]]:
    """Resolve the hosts of each record."""
    linux = set(map(str, groups.get(LINUX) or ()))
    windows = set(map(str, groups.get(WINDOWS) or ()))
    return {
        record["name"]: _hosts_of(record, groups, linux, windows, Where(messages, f"app {record['name']}", "hosts"))
        for record in records
    }


def _hosts_of(
    record: dict[str, Any],
    groups: Mapping[str, Sequence[str]],
    linux: set[str],
    windows: set[str],
    where: Where,
) -> list[str]:
    hosts: set[str] = set()
    good = bool(record["hosts"])  # else what was wrong with them is reported already
    # What is to go may have been anywhere.
    able = linux | windows if record.get("server") == "waitress" or record["state"] == "absent" else linux
    for name in record["hosts"]:
        if name in groups or name == LINUX:
            # A group may hold more than app hosts (a site with its balancer): take what can run the app.
            hosts.update(str(host) for host in groups.get(name) or () if host in able)
        elif name in able:
            hosts.add(name)
        else:
            good = False
            if name in windows:
                where.fail(f"{name} is in {WINDOWS}, where no server but waitress runs; set server to waitress")
            elif any(name in members for members in groups.values()):
                where.fail(f"{name} is not in {LINUX}; add it there, or take it out here")
            else:
                where.fail(f"{name} is neither a group nor a host of the inventory; {suggest(name, [*groups, *linux])}")
    if good and not hosts and record["state"] != "absent":
        names = ", ".join(record["hosts"])
        if any(str(host) in windows for name in record["hosts"] for host in groups.get(name) or ()):
            where.fail(f"the app runs on no host: {names} has Windows hosts only; set server to waitress")
        else:
            where.fail(
                f"the app runs on no host: no host of {names} is in {LINUX}; add hosts to {LINUX} in the inventory"
            )
    return sorted(hosts)


def http_port(name: str, host: Host, layout: Layout) -> int:
    """Return the port on which nginx of an app host answers."""
    if host.http_port is not None:
        return host.http_port
    return INNER_HTTP_PORT if name in layout.balancers and layout.others(name) else HTTP_PORT


def check_hosts(layout: Layout, hosts: Mapping[str, Host], messages: list[str]) -> None:
    """Check addresses and ports of the hosts, as far as this topology needs them."""
    running = {host for members in layout.apps.values() for host in members}
    seen: dict[tuple[str, int], str] = {}
    for name in sorted({*running, *layout.balancers}):
        where = Where(messages, f"host {name}")
        host = hosts[name]
        if name in running:
            _check_http_port(name, host, layout, where)
        if name in layout.balancers and running - {name}:
            _check_address(host.address, "from which it reaches the app hosts", where)
        elif name in running and layout.others(name):
            _check_address(host.address, "that the balancers reach", where)
        if name in running and layout.others(name):
            endpoint = host.address, http_port(name, host, layout)
            if endpoint in seen:
                where.fail(
                    f"address {host.address}, port {endpoint[1]} is that of host {seen[endpoint]}; "
                    "give each host its own wsgi_address"
                )
            seen.setdefault(endpoint, name)


def _check_address(address: str, purpose: str, where: Where) -> None:
    remedy = f"set wsgi_address to the address {purpose}"
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        where.fail(f"address {address!r} is no IP address; {remedy}")
        return
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        where.fail(f"address {address!r} cannot be reached from other hosts; {remedy}")


def _check_http_port(name: str, host: Host, layout: Layout, where: Where) -> None:
    port = http_port(name, host, layout)
    taken = {**OUR_PORTS, HTTPS_PORT: "HTTPS", host.ssh_port: "SSH"}
    place = where.at("wsgi_http_port")
    if port in taken:
        place.fail(f"is {port}, which is taken by {taken[port]}; choose another port")
    elif port == HTTP_PORT and name in layout.balancers and layout.others(name):
        place.fail(
            f"is {HTTP_PORT}, where this host balances itself; "
            f"choose another port, or leave it out for {INNER_HTTP_PORT}"
        )


def check_acme(
    records: Sequence[dict[str, Any]], layout: Layout, hosts: Mapping[str, Host], messages: list[str]
) -> None:
    """Check that an ACME server reaches the hosts that clients reach on port 80, and these each other."""
    told: set[str] = set()
    for record in records:
        nginx, name = record["nginx"] or {}, record["name"]
        if (nginx.get("tls") or {}).get("mode") != "acme":
            continue
        edge = layout.balancers or [host for host in layout.apps[name] if host not in layout.windows]
        if not layout.balancers:
            for host in edge:
                before = len(messages)
                if host not in told:
                    _check_asked(name, host, edge, layout, hosts[host], Where(messages, f"host {host}"))
                if len(messages) > before:
                    told.add(host)
        if len(edge) > 1 and nginx.get("proxy_protocol"):
            Where(messages, f"app {name}", "nginx.proxy_protocol").fail(
                f"is true with tls acme on {', '.join(edge)}: an ACME server may ask any of them, which then asks the "
                "others, but these take the PROXY protocol only. Give tls files, or let who is in front say the client "
                "by X-Forwarded-For (trusted_proxies alone)"
            )


def _check_asked(app: str, name: str, edge: Sequence[str], layout: Layout, host: Host, where: Where) -> None:
    port = http_port(name, host, layout)
    if port != HTTP_PORT:
        where.at("wsgi_http_port").fail(
            f"is {port}, but an ACME server asks on port {HTTP_PORT} whether app {app}'s names lead here; "
            "leave it out, or give the app nginx.tls files"
        )
    elif len(edge) > 1:
        _check_address(host.address, f"at which {next(other for other in edge if other != name)} reaches it", where)


def check_backups(
    records: Sequence[dict[str, Any]], layout: Layout, hosts: Mapping[str, Host], messages: list[str]
) -> None:
    """Check that an app has hosts that are asked at all times, and a way to balance that knows others."""
    if not layout.balancers:
        return
    for record in records:
        spare = [name for name in layout.apps[record["name"]] if hosts[name].backup]
        if not spare:
            continue
        where = Where(messages, f"app {record['name']}")
        balance = (record["nginx"] or {}).get("balance")
        if len(spare) == len(layout.apps[record["name"]]):
            where.at("hosts").fail(f"are all backups (wsgi_backup); leave one of {', '.join(spare)} to answer")
        elif balance not in (None, "round_robin", "least_conn"):
            where.at("nginx").at("balance").fail(
                f"is {balance}, which knows no backup hosts, but {spare[0]} is one (wsgi_backup); "
                "use round_robin or least_conn"
            )


def allot_ports(
    records: Sequence[dict[str, Any]], layout: Layout, hosts: Mapping[str, Host], messages: list[str]
) -> dict[str, int]:
    """Give every app that wants a TCP socket its port; an automatic one follows from the app's name alone."""
    ports: dict[str, int] = {}
    for record in records:
        port = record.get("port")
        if isinstance(port, int):
            _check_port(record["name"], port, ports, layout, hosts, messages)
            ports[record["name"]] = port
    taken = {*ports.values(), *OUR_PORTS}
    for name, host in hosts.items():
        taken |= {http_port(name, host, layout), host.ssh_port}
    for name in sorted(record["name"] for record in records if record.get("port") == "auto"):
        ports[name] = _free_port(name, taken)
        taken.add(ports[name])
    return ports


def _check_port(
    app: str, port: int, ports: dict[str, int], layout: Layout, hosts: Mapping[str, Host], messages: list[str]
) -> None:
    where = Where(messages, f"app {app}", "port")
    for other, taken in ports.items():
        shared = sorted(set(layout.apps[app]) & set(layout.apps[other]))
        if port == taken and shared:
            where.fail(f"is {port}, which is app {other}'s on host {shared[0]}; choose another, or auto")
    for host in layout.apps[app]:
        reserved = {
            **OUR_PORTS,
            http_port(host, hosts[host], layout): "nginx",
            hosts[host].ssh_port: "SSH",
        }
        if port in reserved:
            where.fail(f"is {port}, which is taken by {reserved[port]} on host {host}; choose another, or auto")
            return


def _free_port(name: str, taken: set[int]) -> int:
    start = zlib.crc32(name.encode())
    for step in range(_AUTO_COUNT):
        port = _AUTO_FIRST + (start + step) % _AUTO_COUNT
        if port not in taken:
            return port
    raise ValueError("no port is left")  # more apps than ports


def check_protocols(records: Sequence[dict[str, Any]], layout: Layout, messages: list[str]) -> None:
    """Refuse apps that meet at one port, of which one wants the PROXY protocol there and another does not."""
    seen: list[tuple[str, bool, list[str]]] = []
    for record in records:
        name, proxied = record["name"], (record["nginx"] or {}).get("proxy_protocol")
        if proxied is None:
            continue
        for other, differs, hosts in seen:
            shared = layout.balancers or sorted(set(layout.apps[name]) & set(hosts))
            if differs != proxied and shared:
                where = Where(messages, f"app {name}", "nginx.proxy_protocol")
                where.fail(f"differs from app {other}'s on host {shared[0]}; say the same for one port")
                break
        seen.append((name, proxied, layout.apps[name]))


def check_domains(records: Sequence[dict[str, Any]], layout: Layout, messages: list[str]) -> None:
    """Refuse a domain of two apps that meet in one nginx."""
    owners: dict[str, list[str]] = {}
    for record in records:
        name = record["name"]
        for index, domain in enumerate(record["domains"]):
            for other in owners.get(domain, ()):
                shared = layout.balancers or sorted(set(layout.apps[name]) & set(layout.apps[other]))
                if other != name and shared:
                    where = Where(messages, f"app {name}", f"domains[{index}]")
                    where.fail(f"{domain!r} is app {other}'s on host {shared[0]}; give each domain to one app")
            owners.setdefault(domain, []).append(name)
