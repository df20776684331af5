# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says what nginx could not serve, or would serve otherwise than meant."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nginx_problems
short_description: What is wrong with records of sites
description:
  - Checks what the specification of the role cannot say, each record for itself and all of them against each other.
  - Lets no text pass that could end a directive of nginx, for texts go into the configuration as they are.
  - Says all that is wrong at once.
version_added: 0.1.0
author: The wsgi.fleet maintainers
positional: status_port, self_signed_days, system, systems, peers, log_rotate
options:
  _input:
    description: Records as C(nginx_sites) of the role P(wsgi.fleet.nginx#role) has them, with all defaults filled in.
    type: list
    elements: dict
    required: true
  status_port:
    description: TCP port on which nginx speaks of itself.
    type: int
    required: true
  self_signed_days:
    description: Days that a self-signed certificate is valid.
    type: int
    required: true
  system:
    description: The host's family of systems, as the facts have it; none when there are no facts.
    type: str
    required: true
  systems:
    description: Families of systems that the role knows.
    type: list
    elements: str
    required: true
  peers:
    description: Other hosts that are asked for answers to ACME servers, as C(nginx_challenges) of the role has them.
    type: list
    elements: str
    default: []
  log_rotate:
    description: When logs are put aside, as C(nginx_log_rotate) of the role has it.
    type: dict
    default: {}
"""

EXAMPLES = r"""
problems: "{{ sites | wsgi.fleet.nginx_problems(8079, 825, ansible_facts['os_family'] | default(none), ['Debian']) }}"
"""

RETURN = r"""
_value:
  description:
    - One line for each problem, with the record, the key, what is wrong and what would be right.
    - Empty when all is well.
  type: list
  elements: str
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.nginx_view import has_https
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import site_options
from ansible_collections.wsgi.fleet.plugins.module_utils.plan.origins import pattern_problem

LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
HOST = re.compile(rf"(?=.{{1,253}}$)(\*\.)?({LABEL})(\.{LABEL})*")
# one with a dot: nginx knows no search domains
NAMED = re.compile(rf"(?=.{{1,253}}:)({LABEL}\.)+[A-Za-z]({LABEL})?:\d{{1,5}}")
ADDRESS = re.compile(r"(unix:/[A-Za-z0-9_./@-]+|\d{1,3}(\.\d{1,3}){3}:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5})")
SIZE = re.compile(r"\d+[kKmMgG]?")
LOG_SIZE = re.compile(r"[1-9]\d*[kKmMgG]")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9.:_\[\]-]+|\*(\.[a-z0-9-]+){2,}(:\d{1,5})?)")
TOKEN = re.compile(r"[A-Za-z0-9_-]+")
PATH = re.compile(r'/[^\x00-\x1f\x7f"\\]*')
FILE = re.compile(r"/[A-Za-z0-9_./@-]+")
HEADER = re.compile(r"([A-Za-z0-9_-]+|\*)")

PORTS = (1, 65535)
SECONDS = (1, 86400)
# default, range
SERVER_RANGES = {
    "weight": (1, 1, 65535),
    "max_conns": (0, 0, 65535),
    "max_fails": (1, 0, 65535),
    "fail_timeout": (10, *SECONDS),
}
NO_BACKUP = ("ip_hash", "random_two", "hash")  # ways to balance


def fits(form: re.Pattern[str], value: object) -> bool:
    """Whether a value has the form; YAML may have read a number where text is meant."""
    return form.fullmatch(str(value)) is not None


def out_of_range(key: str, value: object, low: int, high: int) -> Iterator[str]:
    """The problem of what is no number, or one that is too low or too high."""
    if isinstance(value, bool) or not isinstance(value, int):
        yield f"{key}: {value!r} is no whole number; give one, without quotes"
    elif value < low or value > high:
        yield f"{key}: {value} is out of range; give {low} to {high}"


def ports_of(site: Mapping[str, Any]) -> list[int]:
    """The ports that a site answers on, each once."""
    return list(dict.fromkeys([site["http_port"], *([site["https_port"]] if has_https(site) else [])]))


def covers(name: str, host: str) -> bool:
    """Whether a host name, which may begin with a wildcard, is that of a host."""
    return name == host or (name.startswith("*.") and host.endswith(name[1:]))


def tls_problems(site: Mapping[str, Any]) -> Iterator[str]:
    """A certificate without use, or a use without certificate."""
    tls = site["tls"]
    given = [bool(tls.get(key)) for key in ("certificate", "key")]
    if tls["mode"] == "files" and not all(given):
        yield "tls: mode is files; give certificate and key, or set mode to self_signed"
    if tls["mode"] != "files" and any(given):
        yield f"tls: certificate and key are given, but mode is {tls['mode']}; set mode to files"
    if (tls["mode"] == "host_file") != bool(tls.get("file")):
        yield "tls: mode host_file and file belong together; give both, or none of them"
    elif tls.get("file") and not fits(FILE, tls["file"]):
        yield f"tls.file: {tls['file']} is no absolute path of plain characters; give one like /var/lib/x/shop.pem"
    if site["https_redirect"] and not has_https(site):
        yield "https_redirect: there is no HTTPS to go to, tls.mode is off; set https_redirect to false"


def upstream_problems(upstream: Mapping[str, Any]) -> Iterator[str]:
    """Servers that cannot be asked."""
    if not upstream["servers"]:
        yield "upstream.servers: none given; give at least one address"
    seen: set[str] = set()
    for index, server in enumerate(upstream["servers"]):
        at = f"upstream.servers[{index}]"
        address = server["address"]
        if not fits(ADDRESS, address):
            if not fits(NAMED, address):
                yield (
                    f"{at}.address: {address} is none; give unix:/path, 192.0.2.11:8000, [2001:db8::11]:8000, "
                    "or a whole name with its port, app.example.com:8000"
                )
            yield from named_problems(at, server, upstream)
        elif address in seen:
            yield f"{at}.address: {address} is given twice; give it once, with a weight"
        seen.add(address)
        for key, (default, low, high) in SERVER_RANGES.items():
            yield from out_of_range(f"{at}.{key}", server.get(key, default), low, high)
        if server.get("backup") and upstream["balance"] in NO_BACKUP:
            yield (
                f"{at}.backup: nginx has no backup servers with balance {upstream['balance']}; "
                "use round_robin or least_conn"
            )
    yield from out_of_range("upstream.keepalive", upstream["keepalive"], 0, 65535)
    yield from out_of_range("upstream.keepalive_timeout", upstream["keepalive_timeout"], *SECONDS)


def named_problems(at: str, server: Mapping[str, Any], upstream: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be said of a server that is looked up by its name while nginx runs."""
    said = [key for key in ("weight", "backup", "max_conns", "max_fails", "fail_timeout") if server.get(key)]
    if len(upstream["servers"]) > 1:
        yield f"{at}.address: {server['address']} is looked up while nginx runs, and so must be the only server"
    elif said:
        yield f"{at}.{said[0]}: is of no use with a name, which is looked up while nginx runs; leave it out"
    elif upstream["balance"] not in ("least_conn", "round_robin"):
        yield f"upstream.balance: {upstream['balance']} needs addresses; a name is looked up while nginx runs"


def cors_problems(cors: Mapping[str, Any]) -> Iterator[str]:
    """What lets in too many, or nobody."""
    origins = cors["origins"]
    if "*" in origins and cors["credentials"]:
        yield "cors: credentials with the origin * would give every page its visitors' accounts; list the origins"
    elif "*" in origins and len(origins) > 1:
        yield "cors.origins: * is every origin; give it alone"
    for origin in dict.fromkeys(origins):
        if origin != "*" and not fits(ORIGIN, origin):
            yield (
                f"cors.origins: {origin} is no origin; give scheme, host and port only, like https://app.example.com"
            )
    patterns = cors.get("origin_patterns") or ()
    if "*" in origins and patterns:
        yield "cors.origin_patterns: is of no use with the origin *; leave one of them out"
    for pattern in patterns:
        problem = pattern_problem(str(pattern), cors["credentials"])
        if problem:
            yield f"cors.origin_patterns: {pattern} {problem}"
    for key, form in (("methods", TOKEN), ("headers", HEADER), ("expose_headers", HEADER)):
        for word in cors[key]:
            if not fits(form, word):
                yield f'cors.{key}: {word} is none; give names of letters, digits and "-"'
    yield from out_of_range("cors.max_age", cors["max_age"], 0, 86400)


class Sites:
    """Goes through the sites and keeps what those before have taken."""

    def __init__(self, sites: Sequence[Mapping[str, Any]]) -> None:
        self.sites = sites
        self.https_ports = [site["https_port"] for site in sites if has_https(site)]
        self.names: dict[str, int] = {}
        self.servers: dict[str, str] = {}
        self.pages: set[tuple[str, int]] = set()
        self.proxied: dict[int, tuple[bool, str]] = {}

    def problems(self) -> Iterator[str]:
        """All problems of all sites, in their order."""
        for index, site in enumerate(self.sites):
            for problem in self.problems_of(index, site):
                yield f"nginx_sites[{index}] ({site['name']}): {problem}"

    def problems_of(self, index: int, site: Mapping[str, Any]) -> Iterator[str]:
        """All problems of one site."""
        yield from self.name_problems(index, site)
        yield from self.server_name_problems(site)
        yield from out_of_range("http_port", site["http_port"], *PORTS)
        yield from out_of_range("https_port", site["https_port"], *PORTS)
        if site["http_port"] in self.https_ports:
            yield f"http_port: {site['http_port']} is an https_port too; one port speaks one of the two"
        yield from self.proxy_problems(site)
        yield from tls_problems(site)
        yield from upstream_problems(site["upstream"])
        yield from site_options.find_problems(site)
        if site["canonical"] and not any(covers(name, site["canonical"]) for name in site["server_names"]):
            yield f"canonical: {site['canonical']} is not among server_names; add it there"
        size = site["client_max_body_size"]
        if not fits(SIZE, size):
            yield f"client_max_body_size: {size} is no size; give one like 512k, 10m or 1g"
        for key in ("proxy_connect_timeout", "proxy_send_timeout", "proxy_read_timeout"):
            yield from out_of_range(key, site[key], *SECONDS)
        yield from cors_problems(site["cors"])
        for path in site["maintenance"]["open_paths"]:
            if not fits(PATH, path):
                yield f'maintenance.open_paths: {path} is no path; give one like /healthz, without " and \\'
        yield from self.page_problems(site)

    def name_problems(self, index: int, site: Mapping[str, Any]) -> Iterator[str]:
        """A name that makes no file, or the upstream of another site."""
        if not fits(NAME, site["name"]):
            yield 'name: give lower-case letters, digits, "-" and "_", a letter first, 63 at most'
        name = str(site["name"]).replace("_", "-")
        if name in self.names:
            yield f'name: taken by nginx_sites[{self.names[name]}] ("-" and "_" count as the same); give another'
        self.names[name] = index

    def server_name_problems(self, site: Mapping[str, Any]) -> Iterator[str]:
        """Host names that are none, or that nginx would give to another site."""
        if not site["server_names"]:
            yield "server_names: none given; give at least one host name"
        for name in site["server_names"]:
            if not fits(HOST, name):
                yield f"server_names: {name} is no host name; give one like shop.example.com or *.example.com"
            for port in ports_of(site):
                key = f"{str(name).lower()} on port {port}"
                if key in self.servers:
                    yield f"server_names: {key} is given twice, first for {self.servers[key]}; give it to one site"
                self.servers.setdefault(key, site["name"])

    def proxy_problems(self, site: Mapping[str, Any]) -> Iterator[str]:
        """A port that is to speak the PROXY protocol, and not to speak it."""
        for port in ports_of(site):
            other, name = self.proxied.setdefault(port, (site["proxy_protocol"], site["name"]))
            if other != site["proxy_protocol"]:
                yield f"proxy_protocol: differs from that of {name} on port {port}; say the same for a port"

    def page_problems(self, site: Mapping[str, Any]) -> Iterator[str]:
        """Pages for what is no error, or for one error twice."""
        for index, page in enumerate(site["error_pages"]):
            for code in page["codes"]:
                yield from out_of_range(f"error_pages[{index}].codes", code, 400, 599)
                key = (str(site["name"]), code)
                if key in self.pages:
                    yield f"error_pages: {code} has two pages; give it one"
                self.pages.add(key)


def nginx_problems(
    sites: Sequence[Mapping[str, Any]],
    status_port: int,
    self_signed_days: int,
    system: Optional[str],
    systems: Sequence[str],
    peers: Sequence[str] = (),
    log_rotate: Optional[Mapping[str, Any]] = None,
) -> list[str]:
    """See DOCUMENTATION."""
    problems = []
    for peer in peers:
        if not fits(ADDRESS, peer) or str(peer).startswith("unix:"):
            problems.append(f"nginx_challenges.peers: {peer} is no address with a port; give one like 192.0.2.12:80")
    if system is None or system not in systems:
        named = "an unknown system: gather facts first" if system is None else system
        problems.append(f"this role knows {', '.join(systems)}, not {named}")
    problems += out_of_range("nginx_status_port", status_port, *PORTS)
    problems += out_of_range("nginx_self_signed_days", self_signed_days, 3, 3650)
    rotate = log_rotate or {}
    problems += out_of_range("nginx_log_rotate.keep", rotate.get("keep", 14), 1, 1000)
    if rotate.get("max_size") and not fits(LOG_SIZE, rotate["max_size"]):
        problems.append(f"nginx_log_rotate.max_size: {rotate['max_size']} is no size; give one like 512k, 100m or 1g")
    if any(status_port in ports_of(site) for site in sites):
        problems.append(f"nginx_status_port: {status_port} is a site's port too; give one that no site uses")
    return [*problems, *Sites(sites).problems()]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        """What Ansible may call."""
        return {"nginx_problems": nginx_problems}
