"""Options of nginx in a record: what becomes of them, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet
from ansible_collections.wsgi.fleet.plugins.module_utils.plan._status import edge_probes

ROOT = Path(__file__).parents[3]
HOSTS = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("app1", "app2", "lb1", "lb2"), 1)}
SHOP = {
    "name": "shop",
    "domains": ["shop.example.com", "*.shop.example.net"],
    "source": {"git": "https://git.example.com/shop.git", "version": "v1"},
    "callable": "wsgi:app",
    "health": "/healthz?full=1",
}
HASH = "$6$salt$UbpRHW4nQn2B3EHpR/XZ8sEYNvRXX."
# Every key that role nginx is given as it is, each with a value that is no default.
GIVEN: dict[str, Any] = {
    "canonical": "shop.example.com",
    "headers": {"X-Frame-Options": "DENY", "Referrer-Policy": "", "Content-Security-Policy": "default-src 'self'"},
    "hsts": {"max_age": 63072000, "include_subdomains": True, "preload": True},
    "limits": {
        "requests": [{"key": "header:X-Api-Key", "rate": "10r/s", "burst": 20, "delay": 5}],
        "connections": [{"key": "address", "max": 10}],
        "status": 503,
        "dry_run": True,
        "allow": ["192.0.2.0/24", "2001:db8::7"],
        "zone_size": "1m",
    },
    "access": {
        "allow": ["192.0.2.0/24"],
        "deny": ["192.0.2.7"],
        "users": {"ann": HASH},
        "realm": "Shop",
        "satisfy": "any",
        "certificate": True,
    },
    "client_ca": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "snippet": "location = /x { return 204; }",
}
PATHS: list[dict[str, Any]] = [
    {"path": "/upload/", "client_max_body_size": "1g", "client_body_timeout": 300, "proxy_read_timeout": 900},
    {"path": "/events", "match": "exact", "streaming": True},
    {"path": "/socket", "websocket": True},
    {"path": "/login", "limits": {"requests": [{"rate": "1r/s"}]}, "access": {}},
    {"path": "/news", "cache": {"seconds": 5}},
]
BESIDE: dict[str, Any] = {
    "cache": {"seconds": 1, "key": ["header:Accept-Language"], "bypass_cookies": ["session"], "stale": False},
    "static": [
        {"path": "/static/", "release": "build/static", "immutable": True},
        {"path": "/media/", "shared": "media", "max_age": 60},
    ],
}


def plan(nginx: dict[str, Any], balancers: list[str], **hosts: dict[str, Any]) -> dict[str, Any]:
    groups = {"linux_apps": ["app1", "app2"], "balancers": balancers}
    known = {name: {**HOSTS[name], **hosts.get(name, {})} for name in HOSTS}
    return fleet.make_plan([{**copy.deepcopy(SHOP), "nginx": nginx}], groups, known)


def errors(nginx: dict[str, Any], **hosts: dict[str, Any]) -> list[str]:
    known = {name: {**HOSTS[name], **hosts.get(name, {})} for name in HOSTS}
    groups = {"linux_apps": ["app1", "app2"], "balancers": ["lb1"]}
    return fleet.find_errors([{**copy.deepcopy(SHOP), "nginx": nginx}], groups, known)


def sites(made: dict[str, Any], host: str) -> dict[str, dict[str, Any]]:
    return {site["name"]: site for site in fleet.nginx_sites(made, host)}


def names(paths: list[dict[str, Any]]) -> list[str]:
    return [path["path"] for path in paths]


def test_what_concerns_clients_is_said_at_the_edge():
    made = plan({**GIVEN, "paths": PATHS, "trusted_proxies": ["198.51.100.0/24"]}, ["lb1"])
    edge, inner = sites(made, "lb1")["shop"], sites(made, "app1")["shop"]
    assert {key: edge[key] for key in GIVEN} == GIVEN
    assert edge["trusted_proxies"] == ["198.51.100.0/24"]
    assert inner["trusted_proxies"] == ["192.0.2.3"]  # the balancer, and nobody else
    assert not set(GIVEN) & set(inner)
    assert inner["default_headers"] is False  # they would pass for the application's own
    # and what a request needs on its whole way is said on all of it
    assert names(edge["paths"]) == names(PATHS)
    assert names(inner["paths"]) == ["/upload/", "/events", "/socket", "/news"]
    assert (inner["paths"][0]["proxy_read_timeout"], inner["paths"][0]["client_body_timeout"]) == (900, 300)


def test_time_for_bodies_is_given_on_the_whole_way():
    made = plan({"client_body_timeout": 300}, ["lb1"])
    assert [sites(made, host)["shop"]["client_body_timeout"] for host in ("lb1", "app1")] == [300, 300]
    assert sites(plan({"client_body_timeout": 300}, []), "app1")["shop"]["client_body_timeout"] == 300
    assert "client_body_timeout" not in sites(plan({}, []), "app1")["shop"]


def test_what_is_cached_or_served_from_a_release_is_so_beside_it():
    """There a new release is seen at once."""
    nginx = {**BESIDE, "paths": PATHS}
    made = plan(nginx, ["lb1"])
    edge, inner = sites(made, "lb1")["shop"], sites(made, "app1")["shop"]
    assert not {"cache", "static", "release"} & set(edge)
    assert [path["path"] for path in edge["paths"] if "cache" in path] == []
    assert inner["release"] == "/srv/shop/current"
    assert inner["cache"]["seconds"] == 1
    assert inner["static"] == [{**folder, "immutable": "immutable" in folder} for folder in BESIDE["static"]]
    assert [path["path"] for path in inner["paths"] if "cache" in path] == ["/news"]
    # the health path is the application's to answer, whatever is cached
    assert inner["maintenance"] == {"switch": False, "open_paths": ["/healthz"]}
    [app] = fleet.app_apps(made, "app1")
    assert (app["public"], app["public_shared"]) == (["build/static"], True)
    alone = sites(plan(nginx, []), "app1")["shop"]
    assert {key: alone[key] for key in ("cache", "static", "release")} == {
        key: inner[key] for key in ("cache", "static", "release")
    }


def test_a_record_that_says_nothing():
    made = plan({}, ["lb1"])
    edge, inner = sites(made, "lb1")["shop"], sites(made, "app1")["shop"]
    for site in (edge, inner):
        assert not {*GIVEN, *BESIDE, "paths", "release"} & set(site)
    assert "default_headers" not in edge
    assert edge["upstream"]["balance"] == "least_conn"
    assert [set(server) for server in edge["upstream"]["servers"]] == [{"address", "max_fails", "fail_timeout"}] * 2


PEM = "-----BEGIN {0}-----\nMIIB\n-----END {0}-----\n".format
FILES = {"mode": "files", "certificate": PEM("CERTIFICATE"), "key": PEM("PRIVATE KEY")}


@pytest.mark.parametrize(
    ("nginx", "max_age"),
    [
        ({"tls": FILES}, None),  # who has been told so cannot be told otherwise for that long
        ({"tls": FILES, "hsts": {"max_age": 31536000}}, 31536000),
        ({"tls": FILES, "hsts": {"max_age": 0}}, 0),
    ],
)
def test_browsers_are_told_to_stay_with_https_only_where_that_is_asked_for(nginx, max_age):
    assert sites(plan(nginx, []), "app1")["shop"].get("hsts", {}).get("max_age") == max_age


def test_ways_to_balance():
    retry = {"conditions": ["error"], "tries": 2, "timeout": 9, "non_idempotent": True}
    nginx = {"balance": "hash", "hash_by": "visitor", "retry": retry}
    upstream = sites(plan(nginx, ["lb1"]), "lb1")["shop"]["upstream"]
    assert (upstream["balance"], upstream["hash_by"], upstream["retry"]) == ("hash", "visitor", retry)
    inner = sites(plan(nginx, ["lb1"]), "app1")["shop"]["upstream"]
    assert (inner["balance"], "hash_by" in inner, "retry" in inner) == ("round_robin", False, False)


def test_the_proxy_protocol_is_spoken_at_the_edge_and_to_it():
    made = plan({"proxy_protocol": True, "trusted_proxies": ["198.51.100.7"]}, ["lb1"])
    assert sites(made, "lb1")["shop"]["proxy_protocol"] is True
    assert "proxy_protocol" not in sites(made, "app1")["shop"]
    assert [target["proxy_protocol"] for target in edge_probes(made, "lb1")] == [True]
    assert "proxy_protocol" not in edge_probes(plan({}, ["lb1"]), "lb1")[0]


def test_applications_of_one_port_speak_one_protocol():
    shop = {**SHOP, "nginx": {"proxy_protocol": True, "trusted_proxies": ["198.51.100.7"]}}
    api = {**SHOP, "name": "api", "domains": ["api.example.com"]}
    differs = "app api: nginx.proxy_protocol: differs from app shop's on host {}; say the same for one port"
    for balancers, hosts, host in ((["lb1"], ["app2"], "lb1"), ([], ["linux_apps"], "app1"), ([], ["app2"], "")):
        groups = {"linux_apps": ["app1", "app2"], "balancers": balancers}
        found = fleet.find_errors([{**shop, "hosts": ["app1"]}, {**api, "hosts": hosts}], groups, HOSTS)
        assert found == ([differs.format(host)] if host else [])


def test_http3_needs_its_own_door():
    made = plan({"http3": True}, ["lb1"])
    assert sites(made, "lb1")["shop"]["http3"] is True
    assert "http3" not in sites(made, "app1")["shop"]
    doors = {(rule["port"], rule["proto"]) for rule in fleet.ufw_rules(made, "lb1")}
    assert doors == {(80, "tcp"), (443, "tcp"), (443, "udp")}
    assert (443, "udp") not in {(rule["port"], rule["proto"]) for rule in fleet.ufw_rules(plan({}, ["lb1"]), "lb1")}
    assert len(fleet.ufw_rules(plan({"http3": True, "tls": {"mode": "off"}}, ["lb1"]), "lb1")) == 1


def test_connections_to_a_server_are_limited_where_requests_are_spread():
    for balancers, host in ((["lb1"], "lb1"), ([], "app1")):
        servers = sites(plan({"max_conns": 40}, balancers), host)["shop"]["upstream"]["servers"]
        assert {server["max_conns"] for server in servers} == {40}
    # behind balancers, it is they who count
    [server] = sites(plan({"max_conns": 40}, ["lb1"]), "app1")["shop"]["upstream"]["servers"]
    assert "max_conns" not in server


ACME = {"tls": {"mode": "acme"}}
PROXIED = {**ACME, "proxy_protocol": True, "trusted_proxies": ["198.51.100.7"]}
MEET = (
    "app shop: nginx.proxy_protocol: is true with tls acme on lb1, lb2: an ACME server may ask any of them, which then "
    "asks the others, but these take the PROXY protocol only. Give tls files, or let who is in front say the client by "
    "X-Forwarded-For (trusted_proxies alone)"
)
NAMELESS = (
    "host app1: address 'app1.example.com' is no IP address; set wsgi_address to the address at which app2 reaches it"
)
PORT = (
    "host app1: wsgi_http_port: is 8080, but an ACME server asks on port 80 whether app shop's names lead here; "
    "leave it out, or give the app nginx.tls files"
)


@pytest.mark.parametrize(
    ("nginx", "balancers", "hosts", "messages"),
    [
        (ACME, [], {}, []),
        (ACME, [], {"app1": {"wsgi_http_port": 8080}}, [PORT]),
        ({}, [], {"app1": {"wsgi_http_port": 8080}}, []),
        (ACME, ["lb1"], {"app1": {"wsgi_http_port": 8080}}, []),  # clients reach the balancer
        (
            ACME,
            [],
            {"app1": {"ansible_host": "app1.example.com"}},
            [NAMELESS],
        ),
        ({}, [], {"app1": {"ansible_host": "app1.example.com"}}, []),
        (PROXIED, ["lb1"], {}, []),  # one host asks itself
        (
            PROXIED,
            ["lb1", "lb2"],
            {},
            [MEET],
        ),
    ],
)
def test_acme_servers_must_reach_the_edge(nginx, balancers, hosts, messages):
    groups = {"linux_apps": ["app1", "app2"], "balancers": balancers}
    known = {name: {**HOSTS[name], **hosts.get(name, {})} for name in HOSTS}
    record = {**copy.deepcopy(SHOP), "domains": ["shop.example.com"], "nginx": nginx}
    assert fleet.find_errors([record], groups, known) == messages


def test_hosts_without_an_application_in_common_do_not_ask_each_other():
    records = [
        {**copy.deepcopy(SHOP), "name": name, "domains": [f"{name}.example.com"], "hosts": hosts, "nginx": ACME}
        for name, hosts in (("shop", ["app1"]), ("api", ["app2"]), ("all", ["app1", "app2"]))
    ]
    groups = {"linux_apps": ["app1", "app2"]}
    apart, together = fleet.make_plan(records[:2], groups, HOSTS), fleet.make_plan(records, groups, HOSTS)
    assert fleet.nginx_challenges(apart, "app1")["peers"] == []
    assert fleet.nginx_challenges(together, "app1")["peers"] == ["192.0.2.2:80"]


@pytest.mark.parametrize(("weight", "backup"), [(3, True), ("3", "True")], ids=["yaml", "ini"])
def test_hosts_have_their_share(weight, backup):
    shares = {"app1": {"wsgi_weight": weight}, "app2": {"wsgi_backup": backup}}
    made = plan({}, ["lb1", "app1"], **shares)
    servers = {
        host: {s["address"]: (s.get("weight", 1), s.get("backup", False)) for s in site["upstream"]["servers"]}
        for host in ("lb1", "app1")
        for site in [sites(made, host)["shop"]]
    }
    assert servers["lb1"] == {"192.0.2.1:8080": (3, False), "192.0.2.2:80": (1, True)}
    # a balancer that runs the application itself has its own share too
    assert servers["app1"] == {"unix:/run/wsgi-fleet/shop.sock": (3, False), "192.0.2.2:80": (1, True)}
    # what answers the balancers has one server
    assert sites(made, "app2")["shop"]["upstream"]["servers"][0].get("backup") is None


@pytest.mark.parametrize(
    ("nginx", "hosts", "message"),
    [
        ({}, {"app1": {"wsgi_weight": 0}}, "host app1: wsgi_weight: is 0, must be a whole number from 1 to 65535"),
        ({}, {"app1": {"wsgi_backup": "yes"}}, "host app1: wsgi_backup: is a string, must be true or false"),
        (
            {},
            {"app1": {"wsgi_backup": True}, "app2": {"wsgi_backup": True}},
            "app shop: hosts: are all backups (wsgi_backup); leave one of app1, app2 to answer",
        ),
        (
            {"balance": "ip_hash"},
            {"app2": {"wsgi_backup": True}},
            (
                "app shop: nginx.balance: is ip_hash, which knows no backup hosts, but app2 is one (wsgi_backup); "
                "use round_robin or least_conn"
            ),
        ),
    ],
)
def test_shares_that_cannot_be(nginx, hosts, message):
    assert errors(nginx, **hosts) == [message]


def test_probes_name_the_host_that_is_served():
    """Another one would only be sent there."""
    made = plan({"canonical": "www.shop.example.net"}, [])
    assert {probe["host"] for probe in fleet.app_apps(made, "app1")[0]["probes"]} == {"www.shop.example.net"}


@pytest.mark.parametrize("host", ["lb1", "app1"])
def test_the_role_takes_all_of_it(host):
    spec = yaml.safe_load((ROOT / "roles/nginx/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    made = plan(
        {**GIVEN, **BESIDE, "paths": PATHS, "trusted_proxies": ["::1"], "balance": "hash", "hash_by": "uri"}, ["lb1"]
    )
    given = {"nginx_sites": fleet.nginx_sites(made, host)}
    checked = ArgumentSpecValidator({"nginx_sites": spec["options"]["nginx_sites"]}).validate(given)
    assert checked.error_messages == []


NETWORK = "must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32"
KEY = "must be one of address, uri, host, header:NAME, cookie:NAME"
LINE = "holds a character that no header of nginx can carry (a line break, $, or one beyond ASCII)"
RATE = {"requests": [{"rate": "1r/s"}]}
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"balance": "hash"},
        "hash_by: is missing; balance hash needs what requests are told apart by, such as visitor or address",
    ),
    ({"hash_by": "visitor"}, "hash_by: is of use with balance hash only; set that, or leave it out"),
    (
        {"balance": "hash", "hash_by": "cookie"},
        "hash_by: is 'cookie', must be one of visitor, address, uri, host, header:NAME, cookie:NAME",
    ),
    ({"client_body_timeout": "5m"}, "client_body_timeout: is a string, must be a whole number from 1 to 86400"),
    (
        {"paths": [{"path": "/a", "client_body_timeout": 0}]},
        "paths[0].client_body_timeout: is 0, must be a whole number from 1 to 86400",
    ),
    ({"retry": {"tries": 0}}, "retry.tries: is 0, must be a whole number from 1 to 10"),
    ({"retry": {"on": ["error"]}}, "retry.on: is no known key; known are conditions, non_idempotent, timeout, tries"),
    ({"canonical": "www.example.com"}, "canonical: is 'www.example.com', which is not among domains; add it there"),
    (
        {"canonical": "*.shop.example.net"},
        "canonical: is '*.shop.example.net'; clients cannot be sent to a wildcard, give one name",
    ),
    ({"headers": ["X-A: b"]}, "headers: is a list, must be a mapping of header names to values"),
    ({"headers": {"Strict-Transport-Security": "max-age=1"}}, "headers.Strict-Transport-Security: belongs in hsts"),
    ({"headers": {"Access-Control-Allow-Origin": "*"}}, "headers.Access-Control-Allow-Origin: belongs in cors"),
    ({"headers": {"X A": "b"}}, 'headers.X A: is no name of a header; use letters, digits and "-"'),
    ({"headers": {"X-A": "b", "x-a": "c"}}, "headers.x-a: is there twice (case does not count); keep one"),
    ({"headers": {"X-A": "a\nSet-Cookie: b"}}, f"headers.X-A: {LINE}"),
    ({"headers": {"X-A": "$host"}}, f"headers.X-A: {LINE}"),
    ({"headers": {"X-A": ""}}, "headers.X-A: is empty; leave it out"),
    ({"headers": {"X-Frame-Options": "deny"}}, "headers.X-Frame-Options: is 'deny', must be DENY or SAMEORIGIN"),
    (
        {"headers": {"Content-Security-Policy": "default-src self;"}},
        "headers.Content-Security-Policy: has self without its quotes, which is a host of that name; write 'self'",
    ),
    ({"hsts": {}}, "hsts.max_age: is missing; give seconds for which browsers insist on HTTPS, such as 31536000"),
    (
        {"hsts": {"max_age": 60, "include_subdomains": True, "preload": True}},
        "hsts.preload: is true, which browsers take only with include_subdomains and max_age of 31536000 or more",
    ),
    (
        {"tls": {"mode": "off"}, "hsts": {"max_age": 60}},
        "hsts: is given, but tls.mode is off; browsers take it over HTTPS only. Leave it out",
    ),
    ({"limits": {"requests": [{"burst": 5}]}}, 'limits.requests[0].rate: is missing; give a rate, "10r/s"'),
    (
        {"limits": {"requests": [{"rate": "10/s"}]}},
        'limits.requests[0].rate: is \'10/s\', must be a rate such as "10r/s" or "30r/m"',
    ),
    ({"limits": {"requests": [{"rate": "1r/s", "key": "$x"}]}}, f"limits.requests[0].key: is '$x', {KEY}"),
    (
        {"limits": {"requests": [{"rate": "1r/s", "burst": 2, "delay": 3}]}},
        "limits.requests[0].delay: is 3, more than burst (2); give how many requests of the burst are not delayed",
    ),
    ({"limits": {**RATE, "status": 200}}, "limits.status: is 200, must be a whole number from 400 to 599"),
    ({"limits": {**RATE, "allow": ["localhost"]}}, f"limits.allow[0]: is 'localhost', {NETWORK}"),
    (
        {"access": {"allow": ["192.0.2.1/24"]}},
        "access.allow[0]: is '192.0.2.1/24', which has bits beyond its mask; write 192.0.2.0/24",
    ),
    (
        {"access": {"satisfy": "any", "users": {"ann": HASH}}},
        "access.satisfy: is any, which needs networks (allow or deny) and users; give both, or leave it out",
    ),
    (
        {"access": {"users": {"a:b": HASH}}},
        "access.users: has a name that is none; use letters, digits and signs, but no colon, space, or # first",
    ),
    (
        {"access": {"certificate": True}},
        "access.certificate: needs client_ca: the CA's certificate as PEM text; give it",
    ),
    (
        {"paths": [{"path": "/a", "access": {"certificate": True}}]},
        "paths[0].access.certificate: needs client_ca: the CA's certificate as PEM text; give it",
    ),
    (
        {"client_ca": PEM("CERTIFICATE")},
        "client_ca: is of no use while nothing asks for it; set access.certificate, for all or for a path",
    ),
    (
        {"client_ca": PEM("CERTIFICATE"), "access": {"certificate": True}, "tls": {"mode": "off"}},
        "client_ca: is given, but tls.mode is off, so no client can show a certificate; set one of them",
    ),
    ({"cache": {"statuses": [200]}}, "cache.seconds: is missing; give for how many seconds an answer is kept"),
    (
        {"cache": {"seconds": 1, "bypass_headers": ["X A"]}},
        "cache.bypass_headers[0]: is 'X A', must be the name of a header",
    ),
    ({"trusted_proxies": ["lb.example.com"]}, f"trusted_proxies[0]: is 'lb.example.com', {NETWORK}"),
    (
        {"proxy_protocol": True},
        "proxy_protocol: is true, which needs trusted_proxies: who in front may say so; give their addresses",
    ),
    ({"paths": [{"path": "upload"}]}, "paths[0].path: is 'upload', must be a path such as \"/upload/\""),
    ({"paths": [{"path": "/"}]}, 'paths[0].path: is "/", which is the whole site; give its keys on the site'),
    (
        {"paths": [{"path": "/a", "streaming": True}, {"path": "/a", "websocket": True}]},
        "paths[1].path: is '/a', which another has; give each path once",
    ),
    (
        {"paths": [{"path": "/healthz", "match": "exact", "access": {}}]},
        "paths[0].path: is '/healthz', the health path, which is open as it is; leave it out",
    ),
    (
        {"paths": [{"path": "/.wsgi-fleet/pages/"}]},
        "paths[0].path: is '/.wsgi-fleet/pages/', where nginx keeps its own pages; choose another",
    ),
    (
        {"paths": [{"path": "/a", "streaming": True, "cache": {"seconds": 1}}]},
        "paths[0].cache: is of no use with streaming or websocket, which pass by; keep one of them",
    ),
    ({"paths": [{"path": "/a", "tiemout": 1}]}, None),
    (
        {"static": [{"path": "/static", "release": "s"}]},
        "static[0].path: is '/static', must be a path such as \"/static/\", with a slash at its end",
    ),
    (
        {"static": [{"path": "/static/", "release": "../x"}]},
        "static[0].release: is '../x', must be a directory, relative, such as build/static",
    ),
    (
        {"static": [{"path": "/static/"}]},
        "static[0]: must have one of release and shared: the directory's path in the source, or in shared/",
    ),
    (
        {"static": [{"path": "/m/", "shared": "m", "immutable": True}]},
        "static[0].immutable: is true for shared, whose files may change; give max_age",
    ),
    ({"snippet": ""}, "snippet: is empty, must be lines of nginx's configuration"),
    (
        {"cors": {"origins": ["https://*.com"]}},
        (
            "cors.origins[0]: is 'https://*.com'; a * stands for the subdomains of a domain only, "
            'as in "https://*.example.com"'
        ),
    ),
]


@pytest.mark.parametrize(("nginx", "message"), WRONG, ids=[json.dumps(nginx)[:70] for nginx, _ in WRONG])
def test_wrong_options_are_refused_in_these_words(nginx, message):
    found = errors(nginx)
    if message is None:
        assert len(found) == 1, found
    else:
        assert found == [f"app shop: nginx.{message}"]


def test_hashes_of_passwords_are_not_shown():
    said = errors({"access": {"users": {"ann": "s3cret", "bob": 5}}})
    assert len(said) == 2
    assert "s3cret" not in json.dumps(said)
