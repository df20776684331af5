"""What is wrong with records of sites, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.utils.vars import merge_hash
from ansible_collections.wsgi.fleet.plugins.filter.nginx_problems import nginx_problems

SITE: dict[str, Any] = {
    "name": "shop",
    "server_names": ["shop.example.com"],
    "http_port": 80,
    "https_port": 443,
    "http2": True,
    "http3": False,
    "https_redirect": False,
    "tls": {"mode": "self_signed"},
    "upstream": {
        "servers": [{"address": "unix:/run/shop.sock"}],
        "balance": "least_conn",
        "retry": {},
        "keepalive": 512,
        "keepalive_timeout": 4,
    },
    "canonical": "",
    "default_headers": True,
    "headers": {},
    "hsts": {},
    "limits": {},
    "access": {},
    "client_ca": "",
    "cache": {},
    "paths": [],
    "static": [],
    "release": "",
    "snippet": "",
    "trusted_proxies": [],
    "proxy_protocol": False,
    "client_max_body_size": "10m",
    "client_body_timeout": 0,
    "proxy_connect_timeout": 2,
    "proxy_send_timeout": 60,
    "proxy_read_timeout": 60,
    "cors": {
        "origins": [],
        "origin_patterns": [],
        "methods": ["GET"],
        "headers": [],
        "expose_headers": [],
        "credentials": False,
        "max_age": 600,
    },
    "error_pages": [],
    "maintenance": {"switch": True, "open_paths": [], "page": ""},
}


def site(**changes: Any) -> dict[str, Any]:
    """A right site, but for the changes."""
    return merge_hash(SITE, changes)


def problems(
    *sites: dict[str, Any], status_port: int = 8079, days: int = 825, system: str | None = "Debian"
) -> list[str]:
    return nginx_problems(sites, status_port, days, system, ["Debian"])


def test_a_port_speaks_one_protocol() -> None:
    proxied = site(proxy_protocol=True, trusted_proxies=["192.0.2.1"])
    other = site(name="blog", server_names=["blog.example.com"], http_port=8080)
    assert problems(proxied, other) == [
        "nginx_sites[1] (blog): proxy_protocol: differs from that of shop on port 443; say the same for a port"
    ]
    assert problems(proxied, {**other, "https_port": 8443}) == []


def test_right_records_are_taken() -> None:
    changes = {
        "server_names": ["shop.example.com", "*.example.org", "xn--bcher-kva.example", "192.0.2.7", "localhost"],
        "upstream": {
            "servers": [
                {"address": "unix:/run/wsgi-fleet/shop.sock", "weight": 3},
                {"address": "192.0.2.11:80", "backup": True},
                {"address": "[2001:db8::11]:8000", "max_fails": 0, "max_conns": 100},
            ],
            "balance": "round_robin",
        },
        "trusted_proxies": ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32", "::1"],
        "cors": {"origins": ["https://app.example.com", "http://localhost:3000"], "headers": ["X-Token", "*"]},
        "client_max_body_size": "0",
        "error_pages": [{"codes": [502, 504], "content": "sorry"}, {"codes": [413], "content": "too big"}],
    }
    other = site(name="blog", server_names=["blog.example.com"], tls={"mode": False}, https_port=80)
    # YAML reads a bare 0 as a number; one name may be two sites', on ports of their own
    third = site(name="admin", http_port=8000, https_port=8443, client_max_body_size=0)
    assert problems(site(**changes), other, third) == []


AT = "nginx_sites[0] (shop): "
NETWORK = "must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32"
ADDRESSES = "give unix:/path, 192.0.2.11:8000, [2001:db8::11]:8000, or a whole name with its port, app.example.com:8000"
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "Shop"},
        'nginx_sites[0] (Shop): name: give lower-case letters, digits, "-" and "_", a letter first, 63 at most',
    ),
    ({"server_names": []}, AT + "server_names: none given; give at least one host name"),
    (
        {"server_names": ["a.example; return 200"]},
        AT + "server_names: a.example; return 200 is no host name; give one like shop.example.com or *.example.com",
    ),
    (
        {"server_names": ["shop.*"]},
        AT + "server_names: shop.* is no host name; give one like shop.example.com or *.example.com",
    ),
    ({"http_port": 0}, AT + "http_port: 0 is out of range; give 1 to 65535"),
    ({"https_port": 65536}, AT + "https_port: 65536 is out of range; give 1 to 65535"),
    ({"http_port": 443}, AT + "http_port: 443 is an https_port too; one port speaks one of the two"),
    ({"http_port": 8079}, "nginx_status_port: 8079 is a site's port too; give one that no site uses"),
    (
        {"tls": {"mode": "files", "certificate": "pem"}},
        AT + "tls: mode is files; give certificate and key, or set mode to self_signed",
    ),
    (
        {"tls": {"certificate": "pem", "key": "pem"}},
        AT + "tls: certificate and key are given, but mode is self_signed; set mode to files",
    ),
    (
        {"tls": {"mode": "off"}, "https_redirect": True},
        AT + "https_redirect: there is no HTTPS to go to, tls.mode is off; set https_redirect to false",
    ),
    ({"upstream": {"servers": []}}, AT + "upstream.servers: none given; give at least one address"),
    (
        {"upstream": {"servers": [{"address": "app1:80"}]}},
        AT + "upstream.servers[0].address: app1:80 is none; " + ADDRESSES,
    ),
    (
        {"upstream": {"servers": [{"address": "app1.example.com"}]}},
        AT + "upstream.servers[0].address: app1.example.com is none; " + ADDRESSES,
    ),
    (
        {"upstream": {"servers": [{"address": "app1.example.com:80", "max_conns": 5}]}},
        AT
        + "upstream.servers[0].max_conns: is of no use with a name, which is looked up while nginx runs; leave it out",
    ),
    (
        {"upstream": {"servers": [{"address": "app1.example.com:80"}], "balance": "ip_hash"}},
        AT + "upstream.balance: ip_hash needs addresses; a name is looked up while nginx runs",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80"}, {"address": "app1.example.com:80"}]}},
        AT + "upstream.servers[1].address: app1.example.com:80 is looked up while nginx runs, "
        "and so must be the only server",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80"}, {"address": "192.0.2.1:80"}]}},
        AT + "upstream.servers[1].address: 192.0.2.1:80 is given twice; give it once, with a weight",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80", "max_conns": -1}]}},
        AT + "upstream.servers[0].max_conns: -1 is out of range; give 0 to 65535",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1"}]}},
        AT + "upstream.servers[0].address: 192.0.2.1 is none; " + ADDRESSES,
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80", "weight": 0}]}},
        AT + "upstream.servers[0].weight: 0 is out of range; give 1 to 65535",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80", "backup": True}], "balance": "ip_hash"}},
        AT + "upstream.servers[0].backup: nginx has no backup servers with balance ip_hash; "
        "use round_robin or least_conn",
    ),
    (
        {"upstream": {"keepalive": -1}},
        AT + "upstream.keepalive: -1 is out of range; give 0 to 65535",
    ),
    (
        {"trusted_proxies": ["lb1.example.com"]},
        f"{AT}trusted_proxies[0]: is 'lb1.example.com', {NETWORK}",
    ),
    (
        {"maintenance": {"open_paths": ["/a", "healthz"]}},
        AT + 'maintenance.open_paths: healthz is no path; give one like /healthz, without " and \\',
    ),
    (
        {"maintenance": {"open_paths": ['/a" { return 200; }']}},
        AT + 'maintenance.open_paths: /a" { return 200; } is no path; give one like /healthz, without " and \\',
    ),
    ({"client_max_body_size": "10 MB"}, AT + "client_max_body_size: 10 MB is no size; give one like 512k, 10m or 1g"),
    ({"proxy_read_timeout": 0}, AT + "proxy_read_timeout: 0 is out of range; give 1 to 86400"),
    (
        {"cors": {"origins": ["*"], "credentials": True}},
        AT + "cors: credentials with the origin * would give every page its visitors' accounts; list the origins",
    ),
    (
        {"cors": {"origins": ["*"], "origin_patterns": [r"https://a\.example"]}},
        AT + "cors.origin_patterns: is of no use with the origin *; leave one of them out",
    ),
    (
        {"cors": {"origin_patterns": ["https://a.*"]}},
        AT + "cors.origin_patterns: https://a.* has a . that stands for any character; "
        r"write \. for a dot, and [a-z0-9-]+ for a part of a name",
    ),
    ({"cors": {"origins": ["*", "https://a.example"]}}, AT + "cors.origins: * is every origin; give it alone"),
    (
        {"cors": {"origins": ["https://a.example/"]}},
        AT + "cors.origins: https://a.example/ is no origin; "
        "give scheme, host and port only, like https://app.example.com",
    ),
    (
        {"cors": {"origins": ["https://a.example"], "methods": ["GET, PUT"]}},
        AT + 'cors.methods: GET, PUT is none; give names of letters, digits and "-"',
    ),
    (
        {"cors": {"headers": ["X-A: b"]}},
        AT + 'cors.headers: X-A: b is none; give names of letters, digits and "-"',
    ),
    ({"cors": {"max_age": 86401}}, AT + "cors.max_age: 86401 is out of range; give 0 to 86400"),
    (
        {"error_pages": [{"codes": [502, 504], "content": ""}, {"codes": [503, 200], "content": ""}]},
        AT + "error_pages[1].codes: 200 is out of range; give 400 to 599",
    ),
    ({"http_port": "80"}, AT + "http_port: '80' is no whole number; give one, without quotes"),
    ({"cors": {"max_age": None}}, AT + "cors.max_age: None is no whole number; give one, without quotes"),
    ({"client_max_body_size": "10m\n"}, AT + "client_max_body_size: 10m\n is no size; give one like 512k, 10m or 1g"),
    (
        {"error_pages": [{"codes": [200], "content": ""}]},
        AT + "error_pages[0].codes: 200 is out of range; give 400 to 599",
    ),
    (
        {"error_pages": [{"codes": [502], "content": ""}, {"codes": [502], "content": ""}]},
        AT + "error_pages: 502 has two pages; give it one",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[-40:] for _, message in WRONG])
def test_wrong_records_are_refused(changes: dict[str, Any], message: str) -> None:
    assert problems(site(**changes)) == [message]


def test_sites_that_get_in_each_others_way_are_refused() -> None:
    sites = [SITE, site(name="other"), site(name="ot_her", server_names=["b"])]
    sites.append(site(name="ot-her", server_names=["c"], http_port=8000))
    twice = "nginx_sites[1] (other): server_names: shop.example.com on port {} is given twice, first for shop; "
    assert problems(*sites) == [
        twice.format(80) + "give it to one site",
        twice.format(443) + "give it to one site",
        'nginx_sites[3] (ot-her): name: taken by nginx_sites[2] ("-" and "_" count as the same); give another',
    ]


@pytest.mark.parametrize(("family", "named"), [("RedHat", "RedHat"), (None, "an unknown system: gather facts first")])
def test_other_systems_are_refused(family: str | None, named: str) -> None:
    assert problems(system=family) == [f"this role knows Debian, not {named}"]


def test_hosts_that_are_asked_for_challenges_have_addresses() -> None:
    """A name that does not resolve would keep nginx from starting."""
    peers = ["192.0.2.12:80", "[2001:db8::12]:80", "app2.example.com:80", "unix:/run/x", "192.0.2.12"]
    assert nginx_problems([SITE], 8079, 825, "Debian", ["Debian"], peers) == [
        f"nginx_challenges.peers: {peer} is no address with a port; give one like 192.0.2.12:80" for peer in peers[2:]
    ]


def test_a_server_may_have_a_name() -> None:
    named = {"servers": [{"address": "shop.svc.example.com:8000"}]}
    assert (
        problems(site(upstream=named), site(name="b", server_names=["b"], upstream={**named, "balance": "round_robin"}))
        == []
    )


def test_the_roles_own_numbers_are_checked() -> None:
    assert problems(status_port=0, days=2) == [
        "nginx_status_port: 0 is out of range; give 1 to 65535",
        "nginx_self_signed_days: 2 is out of range; give 3 to 3650",
    ]
    # a port for HTTPS is nobody's where there is no HTTPS
    assert problems(site(https_port=8079, tls={"mode": "off"})) == []


def test_all_problems_are_said_at_once() -> None:
    wrong = [site(server_names=[], http_port=0, cors={"max_age": -1}), site(name="Blog", server_names=["a b"])]
    said = problems(*wrong, days=0, system="RedHat")
    assert [line.partition(": ")[0] for line in said] == [
        "this role knows Debian, not RedHat",
        "nginx_self_signed_days",
        *["nginx_sites[0] (shop)"] * 3,
        *["nginx_sites[1] (Blog)"] * 2,
    ]
