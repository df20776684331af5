"""What the tests of gunicorn share: running the role, and gunicorn itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import yaml
from probes import ROOT, run_playbook

SCENARIO = ROOT / "molecule" / "gunicorn"
CONFIG = "/etc/wsgi-fleet"
SOCKET = "/srv/demo/sockets/demo.sock"
WORKERS = {"sync": 8001, "gthread": 8002, "gevent": 8003, "tornado": 8004, "eventlet": 8005}
EXCLUDED = {"wsgi_app", "config", "check_config", "print_config", "daemon"}


def odd_settings():
    instances = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())["systems_under_test"]["vars"]
    (odd,) = [i for i in instances["gunicorn_instances"] if isinstance(i, dict) and i["name"] == "odd"]
    settings = copy.deepcopy(odd["settings"])
    settings["access_log_format"] = settings["access_log_format"].replace('{{ "{{" }}', "{{")
    return settings


def play(host, *arguments, instances=None):
    extra = {"role_under_test": "gunicorn", **({} if instances is None else {"gunicorn_instances": instances})}
    paths = [ROOT / "molecule" / "shared" / "inventory", SCENARIO / "inventory", Path(host.backend.ansible_inventory)]
    return run_playbook(
        "molecule/shared/converge.yml",
        *("-e", json.dumps(extra), f"--limit={host.backend.host}", *arguments),
        inventories=paths,
    )


def start(host, unit, command):
    host.run(f"systemctl stop {unit}; systemctl reset-failed {unit}")
    host.check_output(
        f"systemd-run --unit={unit} --uid=demo --gid=demo --working-directory=/srv/demo"
        f" --property=KillMode=mixed --property=TimeoutStopSec=20 {command}"
    )


def venv(name):
    return "/srv/demo/venv-25" if name == "eventlet" else "/srv/demo/venv"


def instance(**settings):
    return {
        "name": "sync",
        "user": "demo",
        "group": "demo",
        "callable": "demo:app",
        "venv": "/srv/demo/venv",
        "directory": "/srv/demo",
        "settings": settings,
    }
