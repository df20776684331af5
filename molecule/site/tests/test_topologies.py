"""The same hosts in another order: two balancers, one of which runs the applications too, and shares that differ."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml
from probes import ROOT, connects, fetch, run_playbook, thorough, wait_until

SANDBOX = ROOT / "inventories" / "sandbox"
INVENTORIES = [SANDBOX, ROOT / "molecule" / "site" / "inventory"]
LB1, APP1, APP2 = "10.213.65.10", "10.213.65.21", "10.213.65.22"
SHOP = "shop.sandbox.example"
IN_TURN = [
    {**record, "nginx": {**record.get("nginx", {}), "balance": "round_robin"}}
    for record in yaml.safe_load((SANDBOX / "group_vars/all/apps.yml").read_text())["wsgi_apps"]
]

testinfra_hosts = ["ansible://lb1"]
pytestmark = thorough


def answered_by(address, requests=20):
    """How many requests each application host has answered."""
    texts = [fetch(address, SHOP, "/whoami").text for _ in range(requests)]
    return Counter(re.search(r'"hostname": ?"(\w+)"', text)[1] for text in texts)


@pytest.fixture
def converge(tmp_path):
    """Runs site.yml with more in its inventory: variables of hosts. Afterwards the fleet is as it was."""

    def run(*arguments, **hosts):
        more = {"balancers": {"hosts": {"app1": {}}}, "linux_apps": {"hosts": hosts}}
        (tmp_path / "more.yml").write_text(json.dumps(more))
        done = run_playbook("site.yml", *arguments, inventories=[*INVENTORIES, tmp_path / "more.yml"])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        return {int(changed) for changed in re.findall(r"changed=(\d+)", done.stdout)}

    yield run
    done = run_playbook("site.yml", inventories=INVENTORIES)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_two_balancers_one_of_which_runs_applications(converge, host, tmp_path):
    assert max(converge(app1={})) > 0
    assert converge(app1={}) == {0}
    for address in (LB1, APP1):
        assert set(answered_by(address)) == {"app1", "app2"}
        assert fetch(address, SHOP, "/healthz", tls=True).status == 200
        whole = fetch(address, SHOP, "/whoami", headers={"X-Forwarded-For": "198.51.100.9"}).text
        assert '"remote_addr":"10.213.65.1"' in whole.replace(" ", "")
    assert [connects(APP1, 8080), connects(APP2, 80)] == ["dropped", "dropped"]  # those are for balancers
    told = run_playbook("playbooks/status.yml", inventories=[*INVENTORIES, tmp_path / "more.yml"])
    assert told.returncode == 0, told.stdout

    in_turn = ("-e", json.dumps({"wsgi_apps": IN_TURN}))
    converge(*in_turn, app1={"wsgi_weight": 3})
    assert [answered_by(address) for address in (LB1, APP1)] == [{"app1": 15, "app2": 5}] * 2

    converge(*in_turn, app2={"wsgi_backup": True})
    assert [answered_by(address) for address in (LB1, APP1)] == [{"app1": 20}] * 2
    app1 = host.get_host("ansible://app1", ansible_inventory=host.backend.ansible_inventory)
    app1.check_output("systemctl stop supervisord")
    try:
        assert [answered_by(address) for address in (LB1, APP1)] == [{"app2": 20}] * 2
    finally:
        app1.check_output("systemctl start supervisord")
    wait_until(lambda: set(answered_by(LB1, 4)) == {"app1"}, 60, "the host whose turn it is")
