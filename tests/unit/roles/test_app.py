"""What role app writes: the file that serves the live release, run by a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("live", "served_by"),
    [
        (["gunicorn"], "gunicorn -c x"),  # what is wanted now has not gone live
        (["waitress-serve"], "python wsgi_host.py"),
        (["gunicorn", "waitress-serve"], "python wsgi_host.py"),
        ([], "python wsgi_host.py"),  # it may be anything
    ],
)
def test_live_release_is_served_by_what_it_has(tmp_path: Path, live: list[str], served_by: str) -> None:
    programs = tmp_path / "srv/shop/current/venv/bin"
    programs.mkdir(parents=True)
    for name in live:
        (programs / name).touch(mode=0o755)
    run = tmp_path / "etc/shop/run"
    run.parent.mkdir(parents=True)
    run.write_text('#!/bin/sh\necho "$@"\n')
    run.chmod(0o755)
    app = {
        "name": "shop",
        "start": ["python", "wsgi_host.py"],
        "start_otherwise": [
            {"without": "waitress-serve", "program": "gunicorn", "command": ["gunicorn", "-c", "x"]},
        ],
    }
    variables = {
        "ansible_managed": "managed",
        "app_apps": [app],
        "__app_name": "shop",
        "app_root": f"{tmp_path}/srv",
        "app_config_dir": f"{tmp_path}/etc",
    }
    template = trust_as_template((ROOT / "roles/app/templates/start.j2").read_text())
    text = Templar(loader=DataLoader(), variables=variables).template(template, escape_backslashes=False)
    start = tmp_path / "start"
    start.write_text(text)
    done = subprocess.run(["sh", start], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == served_by
