"""What the status playbook asks, and how it shows the answers."""

from __future__ import annotations

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _status, make_plan

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
    rows = _status.status_rows({"app1": [answer]}, {"app1": "other/current releases/1\nshop/current releases/0123"})
    assert rows == [
        {"host": "app1", "app": "shop", "release": "0123", "url": "http://shop/", "status": text, "good": good}
    ]


def test_table_aligns_columns():
    rows = [{"host": "app1", "status": 200}, {"host": "a", "status": 5}]
    assert _status.table(rows, ["host", "status"]) == "HOST  STATUS\napp1  200\na     5"
