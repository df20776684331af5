"""The strategy that takes mitogen where it can be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("installed", [True, False])
def test_run_succeeds_with_and_without_mitogen(tmp_path, installed):
    if not installed:
        (tmp_path / "ansible_mitogen.py").write_text("raise ImportError('this version does not fit')")
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_STRATEGY": "wsgi.fleet.mitogen",
        "PYTHONPATH": str(tmp_path),
    }
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        "    - command: cat /proc/self/stat\n      register: it\n    - debug: {var: it.stdout}\n"
    )
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-v", play],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok=2" in done.stdout
    assert ("mitogen cannot be used (this version does not fit)" in done.stderr.replace("\n", " ")) is not installed
