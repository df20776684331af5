"""Apache in front: which hosts have it, what its role is given, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet
from ansible_collections.wsgi.fleet.plugins.module_utils.plan._mappings import NGINX

ROOT = Path(__file__).parents[3]
HOSTS = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("app1", "app2", "lb1"), 1)}
SHOP: dict[str, Any] = {
    "name": "shop",
    "domains": ["shop.example.com", "*.shop.example.net"],
    "source": {"git": "https://git.example.com/shop.git", "version": "v1"},
    "callable": "wsgi:app",
    "front": "apache",
}
PEM = "-----BEGIN {0}-----\nMIIB\n-----END {0}-----\n".format
# All that Apache does, each with a value that is no default.
DONE: dict[str, Any] = {
    "client_max_body_size": "50m",
    "proxy_connect_timeout": 2,
    "proxy_read_timeout": 200,
    "http2": False,
    "https_redirect": True,
    "hsts": {"max_age": 63072000, "include_subdomains": True, "preload": True},
    "headers": {"X-Frame-Options": "DENY", "Referrer-Policy": ""},
    "error_pages": [{"codes": [502], "content": "down"}],
    "tls": {"mode": "files", "certificate": PEM("CERTIFICATE"), "key": PEM("PRIVATE KEY")},
    "static": [{"path": "/static/", "release": "build/static", "immutable": True}],
    "trusted_proxies": ["192.0.2.0/24"],
}
# All the rest, in the same way.
NOT_DONE: dict[str, Any] = {
    "client_body_timeout": 300,
    "proxy_send_timeout": 20,
    "balance": "ip_hash",
    "retry": {"tries": 1},
    "keepalive": 8,
    "max_fails": 5,
    "max_conns": 50,
    "fail_timeout": 30,
    "http3": True,
    "canonical": "shop.example.com",
    "maintenance_page": "closed",
    "cors": {"origins": ["https://a.example"]},
    "proxy_protocol": True,
    "limits": {"connections": [{"max": 5}]},
    "access": {"deny": ["192.0.2.7"]},
    "cache": {"seconds": 1},
    "snippet": "x;",
}
PATH, WHAT = "nginx.paths[0]", ("websocket", "access")
BACKSLASH = "holds a backslash, which Apache does not send as it is; write it without"
NO = "is nothing that front apache does; leave it out, or set front to nginx"
ELSE = f"{NO}, or put balancers in front, which do it"


def given(*changes: dict[str, Any], balancers: str = "", apps: str = "app1 app2") -> tuple[Any, ...]:
    records = [{**copy.deepcopy(SHOP), **change} for change in changes or ({},)]
    return records, {"linux_apps": apps.split(), "balancers": balancers.split()}, HOSTS


def front(plan: dict[str, Any], host: str) -> Any:
    return plan["hosts"][host].get("front", "nginx")


def test_a_host_has_what_its_apps_say() -> None:
    other = {"name": "other", "domains": ["other.example.com"], "front": "nginx", "hosts": ["app2"]}
    plan = fleet.make_plan(*given({"hosts": ["app1"]}, other))
    assert (front(plan, "app1"), front(plan, "app2")) == ("apache", "nginx")


def test_a_host_keeps_apache_when_its_last_app_goes() -> None:
    gone = {"name": "shop", "state": "absent", "hosts": ["app1"], "front": "apache"}
    other = {**SHOP, "name": "other", "hosts": ["app2"], "front": "nginx"}
    plan = fleet.make_plan([gone, other], {"linux_apps": ["app1", "app2"]}, HOSTS)
    assert (front(plan, "app1"), front(plan, "app2")) == ("apache", "nginx")
    assert fleet.apache_sites(plan, "app1") == []


def test_role_apache_is_told_of_a_site_that_faces_clients() -> None:
    (site,) = fleet.apache_sites(fleet.make_plan(*given({"nginx": DONE})), "app1")
    assert site == {
        "name": "shop",
        "server_names": ["shop.example.com", "*.shop.example.net"],
        "server": "unix:/run/wsgi-fleet/shop.sock",
        "http_port": 80,
        "https_port": 443,
        "release": "/srv/shop/current",
        **DONE,
    } | {"static": [{**DONE["static"][0]}]}
    spec = yaml.safe_load((ROOT / "roles/apache/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]["apache_sites"]["options"]
    assert ArgumentSpecValidator(options).validate(site).error_messages == []


def test_role_apache_is_told_of_a_site_behind_balancers() -> None:
    nginx = {**NOT_DONE, "trusted_proxies": ["203.0.113.0/24"]}
    nginx = {key: value for key, value in nginx.items() if key not in ("cache", "proxy_send_timeout")}
    paths = [{"path": "/login", "limits": {}, "access": {}}]
    change = {
        "port": 8001,
        "nginx": {**nginx, "paths": paths, "tls": {"mode": "acme"}},
        "domains": ["shop.example.com"],
    }
    plan = fleet.make_plan(*given(change, balancers="lb1"))
    assert fleet.apache_sites(plan, "app1") == [
        {
            "name": "shop",
            "server_names": ["shop.example.com"],
            "server": "127.0.0.1:8001",
            "http_port": 80,
            "https_port": 443,
            "http2": False,
            "https_redirect": False,
            "tls": {"mode": "off"},
            "trusted_proxies": ["192.0.2.3"],
            "client_max_body_size": "10m",
            "proxy_connect_timeout": 2,
            "proxy_read_timeout": 35,
            "default_headers": False,
            "error_pages": [],
        }
    ]
    assert front(plan, "lb1") == "nginx"
    assert fleet.apache_sites(plan, "nobody") == []


def test_every_option_is_done_or_refused() -> None:
    assert set(DONE) | set(NOT_DONE) | {"paths", "hash_by", "client_ca"} == set(NGINX)
    errors = fleet.find_errors(*given({"nginx": {**NOT_DONE, "trusted_proxies": ["192.0.2.7"]}}))
    refused = {message.split(": ")[1].removeprefix("nginx.") for message in errors}
    assert refused == set(NOT_DONE)
    assert fleet.find_errors(*given({"nginx": DONE})) == []


@pytest.mark.parametrize(
    ("nginx", "balancers", "messages"),
    [
        ({"cors": {"origins": ["https://a.example"]}}, "", [f"nginx.cors: {ELSE}"]),
        ({"proxy_send_timeout": 61}, "", [f"nginx.proxy_send_timeout: {NO}"]),
        ({"proxy_send_timeout": 61}, "lb1", [f"nginx.proxy_send_timeout: {NO}"]),
        ({"cache": {"seconds": 1}}, "lb1", [f"nginx.cache: {NO}"]),
        ({"paths": [{"path": "/a", "streaming": True}]}, "lb1", [f"nginx.paths[0].streaming: {NO}"]),
        ({"paths": [{"path": "/a", "access": {}, "websocket": True}]}, "", [f"{PATH}.{key}: {NO}" for key in WHAT]),
        ({"headers": {"X-A": "a\\b"}}, "", [f"nginx.headers.X-A: {BACKSLASH}"]),
        ({"headers": {"X-A": "a\\b"}}, "lb1", []),
    ],
)  # fmt: skip
def test_what_apache_does_not_do_is_refused(nginx: dict[str, Any], balancers: str, messages: list[str]) -> None:
    assert fleet.find_errors(*given({"nginx": nginx}, balancers=balancers)) == [
        f"app shop: {text}" for text in messages
    ]


def test_no_certificates_from_acme() -> None:
    change = {"nginx": {"tls": {"mode": "acme"}}, "domains": ["shop.example.com"]}
    assert fleet.find_errors(*given(change)) == [
        (
            "app shop: nginx.tls.mode: is acme, which front apache does not do; "
            "give files or self_signed, or set front to nginx"
        )
    ]


@pytest.mark.parametrize("front", ["nginx", "none", None])
def test_a_host_has_one_front(front: str | None) -> None:
    other = {"name": "other", "domains": ["other.example.com"], **({"front": front} if front else {})}
    records, groups, hosts = given({}, other)
    if not front:
        del records[1]["front"]
    assert fleet.find_errors(records, groups, hosts) == [
        (
            "app shop: front: is apache, but app other's is nginx, and both run on host app1, and one has its ports; "
            "give both apps the same front, or hosts of their own"
        )
    ]


def test_a_balancer_has_nginx() -> None:
    assert fleet.find_errors(*given(balancers="app1")) == [
        (
            "app shop: front: is apache, but host app1 is a balancer too, and nginx has its ports; "
            "take it out of balancers or of hosts, or set front to nginx"
        )
    ]


def test_what_asks_and_watches_knows_who_is_in_front() -> None:
    plan = fleet.make_plan(*given())
    assert [probe["name"] for probe in fleet.app_apps(plan, "app1")[0]["probes"]] == ["its socket", "apache"]
    assert fleet.access_logs(plan, "app1", ["shop"]) == {"shop": "/var/log/apache2/shop.access.log"}


def test_maintenance_is_refused_where_clients_meet_apache() -> None:
    other = {"name": "other", "domains": ["other.example.com"], "front": "nginx", "hosts": ["app2"]}
    records = given({"hosts": ["app1"]}, other)
    plan, now = fleet.make_plan(*records), "2026-11-21T12:00:00Z"
    said = [
        (
            "wsgi_apps_only: app shop has Apache in front where clients come in (host app1); "
            "only nginx knows maintenance; "
            "name the other apps here, put balancers in front of it, or set its front to nginx"
        )
    ]
    assert fleet.maintenance_errors({"wsgi_maintenance": "on"}, plan, now) == said
    assert fleet.maintenance_errors({"wsgi_maintenance": "off", "wsgi_apps_only": "shop"}, plan, now) == said
    assert fleet.maintenance_errors({"wsgi_maintenance": "on", "wsgi_apps_only": "other"}, plan, now) == []
    behind = fleet.make_plan(*given(balancers="lb1"))
    assert fleet.maintenance_errors({"wsgi_maintenance": "on"}, behind, now) == []
