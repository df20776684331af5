"""The inventories that we ship, as far as that goes without reaching a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def ansible_playbook(*arguments):
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", *arguments],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": "ansible.cfg"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("inventory", ["prod", "inventories/sandbox"])
def test_inventory_can_be_planned(inventory):
    assert "failed=0" in ansible_playbook("playbooks/plan.yml", "-i", inventory)


@pytest.mark.parametrize("inventory", ["prod", "inventories/sandbox"])
def test_site_reaches_every_host_that_is_to_serve(inventory):
    listed = ansible_playbook("site.yml", "-i", inventory, "--list-hosts", "--list-tasks")
    hosts = yaml.safe_load((ROOT / inventory / "hosts.yml").read_text())
    for group in ("balancers", "linux_apps"):
        assert [host for host in hosts[group]["hosts"] if host not in listed] == []
    assert "wsgi.fleet.nginx" in listed
