"""What visitors notice when a host fails, or the balancer is reloaded. Runs after test_site.py, on the same fleet."""

from __future__ import annotations

import json
import time

import probes
import pytest
from probes import fetch, run_as_root, thorough, wait_until

BALANCER = "10.213.65.10"
SHOP = "shop.sandbox.example"

testinfra_hosts = ["ansible://lb1"]


class Visitors(probes.Visitors):
    def __init__(self, directory):
        super().__init__(directory, BALANCER, SHOP, "tls", "get", connections=50, pause=0.1)


@pytest.fixture
def app1(host):
    """What podman calls it. Both hosts answer before, and after."""

    def both():
        return {json.loads(fetch(BALANCER, SHOP, "/whoami").text)["hostname"] for _ in range(20)} == {"app1", "app2"}

    one = host.get_host("ansible://app1", ansible_inventory=host.backend.ansible_inventory)
    wait_until(both, 60, "both hosts to answer")
    yield one.ansible.get_variables()["sandbox_container_name"]
    wait_until(both, 60, "both hosts to answer again")


def quick():
    try:
        return fetch(BALANCER, SHOP, timeout=2).status == 200
    except TimeoutError:
        return False


def test_reloads_of_the_balancer_are_not_noticed(host, tmp_path):
    with Visitors(tmp_path) as visitors:
        host.check_output("for n in $(seq 20); do systemctl reload nginx; sleep 0.2; done")
    assert visitors.seen["failed"] == {}, visitors.seen


@thorough
def test_host_that_loses_its_power_fails_no_request(app1, tmp_path):
    with Visitors(tmp_path) as visitors:
        run_as_root("podman", "kill", app1)
        try:
            time.sleep(4)
            assert fetch(BALANCER, SHOP).status == 200
        finally:
            run_as_root("podman", "start", app1)
    assert visitors.seen["failed"] == {}, visitors.seen


def test_frozen_host_holds_up_few_requests(app1, tmp_path):
    with Visitors(tmp_path) as visitors:
        run_as_root("podman", "pause", app1)
        try:
            time.sleep(1)
            assert sum(quick() for _ in range(20)) > 15
        finally:
            run_as_root("podman", "unpause", app1)
    assert visitors.seen["failed"] == {}, visitors.seen
