"""What options of a site become in nginx's words. What nginx makes of them is molecule's part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.utils.vars import merge_hash
from ansible_collections.wsgi.fleet.plugins.filter.nginx_view import nginx_ports, nginx_view

ROLE = Path(__file__).parents[3] / "roles" / "nginx"
DEFAULTS = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__nginx_site_defaults"]
SITE = {"name": "a-b", "server_names": ["a.example"], "upstream": {"servers": [{"address": "unix:/run/a.sock"}]}}


def view(modules: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    made = nginx_view(merge_hash(merge_hash(DEFAULTS, SITE), changes), "/cached", modules)["view"]
    assert isinstance(made, dict)
    return made


def maps(made: dict[str, Any]) -> dict[str, list[str]]:
    return {block["head"]: block["entries"] for block in made["blocks"]}


def places(made: dict[str, Any]) -> dict[str, list[str]]:
    return {location["match"]: location["lines"] for location in made["locations"]}


def test_a_site_that_says_nothing_is_one_location() -> None:
    made = view(maintenance={"switch": False, "open_paths": ["/healthz"]})
    assert places(made) == {"/": []}
    assert (made["zones"], made["files"], made["caches"], made["static"]) == ([], [], [], [])
    assert [name for name, _ in made["headers"]] == ["Referrer-Policy", "X-Content-Type-Options", "X-Frame-Options"]
    assert view(default_headers=False)["headers"] == []


@pytest.mark.parametrize(
    ("upstream", "line"),
    [
        ({"balance": "round_robin"}, ""),
        ({"balance": "least_conn"}, "least_conn"),
        ({"balance": "random_two"}, "random two least_conn"),
        ({"balance": "hash", "hash_by": "address"}, "hash $remote_addr consistent"),
        ({"balance": "hash", "hash_by": "uri"}, "hash $request_uri consistent"),
        ({"balance": "hash", "hash_by": "cookie:Sid"}, "hash $site_a_b_hash_key consistent"),
        ({"balance": "hash", "hash_by": "visitor"}, "hash $site_a_b_visitor consistent"),
    ],
)
def test_balance(upstream: dict[str, Any], line: str) -> None:
    lines = view(upstream=upstream)["pools"][0]["lines"]
    assert lines[0] == line if line else lines[0].startswith("server ")


TWO = {"servers": [{"address": "192.0.2.1:80", "max_fails": 3, "weight": 2}, {"address": "192.0.2.2:80"}]}
LINES = [
    "server 192.0.2.1:80 weight=2 max_fails=3 fail_timeout=10s",
    "server 192.0.2.2:80 weight=1 max_fails=1 fail_timeout=10s",
]
RESERVE = [
    "server 192.0.2.1:80 weight=2 max_fails=0 fail_timeout=10s backup",
    "server 192.0.2.2:80 weight=1 max_fails=0 fail_timeout=10s backup",
]


def test_what_must_not_be_repeated_goes_over_a_connection_of_its_own() -> None:
    made = view(upstream=TWO)
    kept, fresh = made["pools"]
    assert (kept["name"], fresh["name"]) == ("a-b", "a-b.fresh")
    assert kept["lines"][-2:] == ["keepalive 512", "keepalive_timeout 4s"]
    assert kept["lines"][:-2] == fresh["lines"]
    entries = maps(made)["map $request_method $site_a_b_pool"]
    assert entries == ["default a-b", "LOCK a-b.fresh", "PATCH a-b.fresh", "POST a-b.fresh"]
    assert made["target"] == "http://$site_a_b_pool"
    limited = {"servers": [{**server, "max_conns": 9} for server in TWO["servers"]]}
    assert [pool["name"] for pool in view(upstream=limited)["pools"]] == ["a-b"]
    (only,) = view(upstream={**TWO, "keepalive": 0})["pools"]
    assert only["lines"] == fresh["lines"]


def test_servers_that_all_failed_are_asked_nevertheless() -> None:
    assert view(upstream={**TWO, "keepalive": 0})["pools"][0]["lines"] == ["least_conn", *LINES, *RESERVE]


@pytest.mark.parametrize(
    "upstream",
    [
        {**TWO, "balance": "ip_hash"},
        {"servers": [TWO["servers"][0], {"address": "192.0.2.2:80", "backup": True}]},
        {"servers": TWO["servers"][:1]},
        {"servers": [{"address": "192.0.2.1:80", "max_conns": 9}, {"address": "192.0.2.2:80"}]},
    ],
    ids=["nginx has no backup", "there is a reserve", "there is one", "they are limited"],
)
def test_no_last_resort(upstream: dict[str, Any]) -> None:
    lines = view(upstream=upstream)["pools"][0]["lines"]
    assert len([line for line in lines if line.startswith("server ")]) == len(upstream["servers"])


def test_a_request_without_its_key_is_told_apart_by_address() -> None:
    made = maps(view(upstream={"balance": "hash", "hash_by": "cookie:Sid"}))
    assert made["map $cookie_Sid $site_a_b_hash_key"] == ["default $cookie_Sid", '"" $remote_addr']
    made = maps(view(upstream={"balance": "hash", "hash_by": "header:X-Api-Key"}))
    assert made["map $http_x_api_key $site_a_b_hash_key"] == ["default $http_x_api_key", '"" $remote_addr']


@pytest.mark.parametrize(
    ("retry", "lines"),
    [
        ({}, ["error timeout http_502", "3", "15s"]),
        ({"conditions": []}, ["off", "3", "15s"]),
        ({"conditions": [], "non_idempotent": True}, ["off", "3", "15s"]),
        (
            {"conditions": ["error"], "tries": 2, "timeout": 7, "non_idempotent": True},
            ["error non_idempotent", "2", "7s"],
        ),
    ],
)
def test_retry(retry: dict[str, Any], lines: list[str]) -> None:
    names = ("proxy_next_upstream", "proxy_next_upstream_tries", "proxy_next_upstream_timeout")
    assert view(upstream={"retry": retry})["retry"] == [f"{name} {line}" for name, line in zip(names, lines)]


@pytest.mark.parametrize(("connect", "read", "seconds"), [(2, 60, 15), (10, 60, 30), (2, 8, 8), (10, 20, 20)])
def test_time_for_retries(connect: int, read: int, seconds: int) -> None:
    made = view(upstream={"retry": {}}, proxy_connect_timeout=connect, proxy_read_timeout=read)
    assert made["retry"][-1] == f"proxy_next_upstream_timeout {seconds}s"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({}, ""),
        ({"burst": 5}, " burst=5 nodelay"),
        ({"burst": 5, "delay": 2}, " burst=5 delay=2"),
        ({"burst": 5, "delay": 0}, " burst=5"),
    ],
)
def test_bursts(limit: dict[str, int], words: str) -> None:
    made = view(limits={"requests": [{"rate": "1r/s", **limit}]})
    assert places(made)["/"][0] == f"limit_req zone=site_a_b_site_requests_0{words}"


def test_a_zone_keeps_its_variable_whatever_is_counted() -> None:
    """For nginx refuses to reload when that changes."""
    for key in ("address", "uri", "header:X-A"):
        for allow in ([], ["192.0.2.1"]):
            [zone] = view(limits={"requests": [{"rate": "1r/s", "key": key}], "allow": allow})["zones"]
            assert zone == "limit_req_zone $site_a_b_site_requests_0_key zone=site_a_b_site_requests_0:10m rate=1r/s"


def test_a_path_takes_the_place_of_what_the_site_says() -> None:
    made = view(
        limits={"requests": [{"rate": "1r/s"}]},
        access={"deny": ["192.0.2.1"]},
        paths=[
            {"path": "/a/", "limits": {"connections": [{"max": 1}], "dry_run": True}},
            {"path": "/b", "match": "exact", "access": {}},
        ],
        maintenance={"open_paths": ["/healthz"]},
    )
    found = places(made)
    site = [
        "limit_req zone=site_a_b_site_requests_0",
        "limit_req_status 429",
        "limit_conn_status 429",
        "deny 192.0.2.1",
    ]
    own = ["limit_conn site_a_b_path_0_connections_0 1", "limit_req_status 429", "limit_req_dry_run on"]
    assert found["/"] == found['= "/a"'] == site  # nginx would send /a to /a/ by itself
    assert found['"/a/"'] == [*own, "limit_conn_status 429", "limit_conn_dry_run on", "deny 192.0.2.1"]
    assert found['= "/b"'] == site[:-1]
    assert found['= "/healthz"'] == []


def test_hashes_of_passwords_are_secret() -> None:
    made = view(access={"users": {"bob": "$6$b", "ann": "$6$a"}})
    assert made["files"] == [
        {
            "path": "wsgi-fleet/users/a-b-site",
            "content": "ann:$6$a\nbob:$6$b\n",
            "group": "www-data",
            "mode": "0640",
            "secret": True,
        }
    ]
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    options = spec["nginx_sites"]["options"]
    for access in (options["access"], options["paths"]["options"]["access"]):
        assert access["options"]["users"]["no_log"] is True


def test_a_cache_knows_the_release() -> None:
    made = view(release="/srv/a/current", cache={"seconds": 5, "key": ["header:Accept-Language"], "stale": False})
    assert made["caches"] == ["cache_site_a_b_site"]
    lines = places(made)["/"]
    assert lines[0] == "root /srv/a/current"
    assert 'proxy_cache_key "$realpath_root|$scheme://$wsgi_fleet_host$request_uri|$http_accept_language"' in lines
    assert not any("stale" in line for line in lines)
    without = places(view(cache={"seconds": 5}))["/"]
    assert 'proxy_cache_key "$scheme://$wsgi_fleet_host$request_uri"' in without


def test_what_flows_is_neither_kept_nor_held_back() -> None:
    made = places(view(cache={"seconds": 5}, paths=[{"path": "/s", "streaming": True, "proxy_read_timeout": 9}]))
    assert made['"/s"'] == [
        "proxy_send_timeout 3600s",
        "proxy_read_timeout 9s",
        "proxy_buffering off",
        "proxy_request_buffering off",
        "gzip off",
    ]


@pytest.mark.parametrize(
    ("changes", "modules", "offered"),
    [
        ({"http3": True}, ("http_v3",), True),
        ({"http3": True}, (), False),
        ({"http3": True, "tls": {"mode": "off"}}, ("http_v3",), False),
        ({}, ("http_v3",), False),
    ],
)
def test_http3_is_offered_where_nginx_has_it(changes: dict[str, Any], modules: tuple[str, ...], offered: bool) -> None:
    made = view(modules, **changes)
    assert made["http3"] is offered
    assert ("Alt-Svc" in dict(made["headers"])) is offered


def test_files_that_were_compressed_before_are_served_as_the_host_can() -> None:
    folder = {"path": "/static/", "release": "static"}
    for modules in ((), ("http_v3",), ("brotli_static",)):
        [made] = view(modules, release="/srv/a/current", static=[folder])["static"]
        assert made["lines"] == ["gzip_static on", *(["brotli_static on"] if "brotli_static" in modules else [])]
        assert (made["directory"], made["next"]) == ("/srv/a/current/src/static", "/srv/a/next/src")


def test_a_name_is_looked_up_while_nginx_runs() -> None:
    """As a variable: nginx does not start with a name in an upstream block that does not resolve."""
    made = view(upstream={"servers": [{"address": "app.example.com:8000"}]})
    assert (made["target"], made["named"]) == ("http://$site_a_b_server", True)
    assert maps(made)["map $host $site_a_b_server"] == ['default "app.example.com:8000"']
    for address in ("unix:/run/a.sock", "192.0.2.1:80", "[2001:db8::1]:80"):
        made = view(upstream={"servers": [{"address": address}]})
        assert (made["target"], made["named"]) == ("http://$site_a_b_pool", False)


def test_a_preflight_is_told_all_once() -> None:
    made = view(
        cors={"origins": ["https://b.example"], "expose_headers": ["X-A"]},
        hsts={"max_age": 9},
        upstream={"balance": "hash", "hash_by": "visitor"},
        maintenance={"switch": False},
    )
    [gate] = made["locations"][0]["gates"]
    assert (gate["when"], gate["lines"][-1]) == ("$site_a_b_preflight", "return 204")
    said = [line.split()[1] for line in gate["lines"][:-1]]
    own = ["Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers", "Max-Age"]
    others = ["Referrer-Policy", "X-Content-Type-Options", "X-Frame-Options", "Strict-Transport-Security"]
    assert said == [*(f"Access-Control-{name}" for name in own), "Vary", *others]


def test_who_is_answered_before_anything_else() -> None:
    made = view(
        access={"certificate": True},
        canonical="a.example",
        maintenance={"open_paths": ["/healthz"]},
        static=[{"path": "/static/", "release": "static"}],
        release="/srv/a/current",
    )
    gates = ["$wsgi_fleet_maintenance", "$host != a.example", "$ssl_client_verify != SUCCESS"]
    for location in (made["locations"][0], made["static"][0]):
        assert [gate["when"] for gate in location["gates"]] == gates
    assert made["locations"][1]["gates"] == []


def test_patterns_of_origins_are_for_the_whole_origin() -> None:
    made = view(cors={"origins": ["https://b.example"], "origin_patterns": [r"https://pr-\d{1,5}\.example\.com"]})
    assert made["cors"] is True
    assert maps(made)["map $http_origin $site_a_b_origin"] == [
        'default ""',
        '"https://b.example" "https://b.example"',
        r'"~^(?:https://pr-\\d{1,5}\\.example\\.com)$" $http_origin',
    ]
    assert view(cors={"origin_patterns": [r"https://b\.example"]})["cors"] is True
    assert view()["cors"] is False


def test_a_port_is_what_its_sites_want() -> None:
    sites = [
        merge_hash(DEFAULTS, change)
        for change in (
            {"http_port": 8080, "tls": {"mode": "off"}, "proxy_protocol": True, "http3": True},
            {"http2": False},
            {"http3": True, "https_port": 8443},
        )
    ]

    def said(modules: tuple[str, ...], by_server: bool) -> list[tuple[int, set[str]]]:
        ports = nginx_ports(sites, modules, by_server)
        return [(port["port"], {name for name in port if name != "port" and port[name]}) for port in ports]

    http = [(80, set()), (8080, {"proxied"})]
    assert said((), True) == [*http, (443, {"tls"}), (8443, {"tls"})]
    assert said(("http_v3",), False) == [*http, (443, {"tls"}), (8443, {"tls", "http2", "http3"})]
