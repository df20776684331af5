"""What the status playbook asks, and how it shows the answers."""

from __future__ import annotations

import json

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _status, make_plan

NOW = "2026-11-21T12:00:00Z"
APP = {
    "name": "shop",
    "domains": ["*.shop.example.com"],
    "source": {"package": "shop", "version": "1.0"},
    "callable": "shop:app",
    "health": "/healthz",
}


def plan(balancers=(), **app):
    hosts = {"lb1": {"ansible_host": "192.0.2.1"}, "app1": {"ansible_host": "192.0.2.11"}}
    return make_plan([APP | app], {"balancers": list(balancers), "linux_apps": ["app1"]}, hosts)


def test_balancer_is_asked_over_tls_and_app_host_by_itself():
    fleet = plan(["lb1"])
    expected = {"name": "shop", "address": "192.0.2.1", "port": 443, "host": "any.shop.example.com", "path": "/healthz"}
    expected |= {"below": 400}
    assert _status.edge_probes(fleet, "lb1") == [expected | {"tls": True, "verify": False}]
    assert _status.inner_probes(fleet, "lb1") == []
    assert _status.edge_probes(fleet, "app1") == []
    assert _status.inner_probes(fleet, "app1") == [expected | {"address": "127.0.0.1", "port": 80}]


def test_app_host_without_balancer_is_the_edge():
    assert [target["port"] for target in _status.edge_probes(plan(), "app1")] == [443]
    assert [target["port"] for target in _status.edge_probes(plan(nginx={"tls": {"mode": "off"}}), "app1")] == [80]
    assert _status.inner_probes(plan(), "app1") == []


@pytest.mark.parametrize(
    ("status", "error", "text", "good"),
    [
        (200, "", "200 in 12 ms", True),
        (302, "", "302 in 12 ms", True),
        (404, "", "404 in 12 ms", False),
        (0, "refused", "no answer: refused", False),
    ],
)
def test_rows_join_answers_and_releases(status, error, text, good):
    answer = {"name": "shop", "url": "http://shop/", "status": status, "error": error, "seconds": 0.0123}
    answer["good"] = good
    looks = {"app1": "other/current releases/1\nshop/current releases/0123"}
    rows = _status.status_rows({"app1": [answer]}, {"app1": []}, looks, NOW)
    row = {"host": "app1", "app": "shop", "release": "0123", "url": "http://shop/", "certificate": "-"}
    assert rows == [row | {"status": text, "good": good}]


@pytest.mark.parametrize(
    ("days", "certificate", "good"), [(89, "89 days", True), (0, "0 days", True), (-1, "has ended", False)]
)
def test_rows_tell_how_long_certificates_last(days, certificate, good):
    answer = {"name": "shop", "url": "https://shop/", "status": 200, "error": "", "seconds": 0.0123, "good": True}
    [row] = _status.status_rows({"app1": [answer | {"days_left": days}]}, {"app1": []}, {}, NOW)
    assert (row["certificate"], row["good"]) == (certificate, good)


def test_authority_of_a_company_is_trusted():
    tls = {"mode": "acme", "ca": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"}
    [target] = _status.edge_probes(plan(["lb1"], nginx={"tls": tls}, domains=["shop.example.com"]), "lb1")
    assert (target["verify"], target["ca"]) == (True, tls["ca"])


ENTRY = {"since": "2026-11-21T11:00:00Z", "until": None, "retry_after": None, "reason": None, "allow": []}


@pytest.mark.parametrize(
    ("status", "until", "text", "good"),
    [
        (503, None, "503 in 12 ms; maintenance since 2026-11-21T11:00:00Z", True),
        (200, None, "200 in 12 ms; maintenance since 2026-11-21T11:00:00Z", True),
        (502, None, "502 in 12 ms; maintenance since 2026-11-21T11:00:00Z", False),
        (0, None, "no answer: refused; maintenance since 2026-11-21T11:00:00Z", False),
        (
            503,
            "2026-11-21T12:00:01Z",
            "503 in 12 ms; maintenance since 2026-11-21T11:00:00Z until 2026-11-21T12:00:01Z",
            True,
        ),
        (
            503,
            "2026-11-21T12:00:00Z",
            "503 in 12 ms; maintenance is over, since 2026-11-21T11:00:00Z until 2026-11-21T12:00:00Z",
            False,
        ),
    ],
)
def test_maintenance_is_shown_and_is_no_fault_of_the_edge(status, until, text, good):
    answer = {"name": "shop", "url": "http://shop/", "status": status, "error": "refused", "seconds": 0.0123}
    answer["good"] = status == 200
    closed = {"status": 503, "good": False}
    other = {**answer, "name": "other", **closed}
    looks = {"app1": "shop/current releases/0123\n" + json.dumps({"shop": ENTRY | {"until": until}})}
    rows = _status.status_rows({"app1": [answer, other]}, {"app1": [answer | closed]}, looks, NOW)
    assert [(row["status"], row["good"]) for row in rows] == [
        (text, good),
        ("503 in 12 ms", False),
        ("503 in 12 ms", False),  # as a balancer has it
    ]
    assert [row["release"] for row in rows] == ["0123", "-", "0123"]


def test_table_aligns_columns():
    rows = [{"host": "app1", "status": 200}, {"host": "a", "status": 5}]
    assert _status.table(rows, ["host", "status"]) == "HOST  STATUS\napp1  200\na     5"


def test_balancers_ask_every_server_themselves():
    hosts = {name: {"ansible_host": f"192.0.2.{n}"} for n, name in enumerate(("lb1", "app1", "app2"), 1)}
    groups = {"balancers": ["lb1", "app2"], "linux_apps": ["app1", "app2"]}
    fleet = make_plan([APP, {**APP, "name": "api", "domains": ["api.example.com"], "hosts": ["app1"]}], groups, hosts)
    asked = {
        host: [
            (target["name"], target["address"], target["port"], target["host"])
            for target in _status.backend_probes(fleet, host)
        ]
        for host in hosts
    }
    shop, api = ("any.shop.example.com", "api.example.com")
    assert asked == {
        "lb1": [
            ("app1 shop", "192.0.2.2", 80, shop),
            ("app2 shop", "192.0.2.3", 8080, shop),
            ("app1 api", "192.0.2.2", 80, api),
        ],
        "app2": [("app1 shop", "192.0.2.2", 80, shop), ("app1 api", "192.0.2.2", 80, api)],
        "app1": [],
    }


def test_servers_that_a_balancer_does_not_reach_are_shown():
    answer = {"url": "http://shop/", "status": 200, "error": "", "seconds": 0.0123, "good": True}
    bad = {**answer, "good": False}
    backends = {
        "lb1": [{**answer, "name": "app1 shop"}, {**bad, "name": "app2 shop", "status": 0, "error": "timed out"}],
        "lb2": [{**bad, "name": "app1 shop", "status": 502}],
    }
    rows = _status.status_rows({}, {}, {"app2": "shop/current releases/0123"}, NOW, backends)
    assert [(row["host"], row["app"], row["release"], row["status"], row["good"]) for row in rows] == [
        ("app2", "shop", "0123", "asked by lb1: no answer: timed out", False),
        ("app1", "shop", "-", "asked by lb2: 502 in 12 ms", False),
    ]
