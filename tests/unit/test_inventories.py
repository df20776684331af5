"""The inventories that we ship can be planned, by the literal command and without reaching a host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("inventory", ["prod", "inventories/sandbox"])
def test_inventory_can_be_planned(inventory):
    # Of all tasks only those of the plan are tagged `always`.
    command = [Path(sys.executable).parent / "ansible-playbook", "site.yml", "-i", inventory, "--tags", "nothing-else"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": "ansible.cfg"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Make the plan" in done.stdout
    assert "unreachable=1" not in done.stdout
