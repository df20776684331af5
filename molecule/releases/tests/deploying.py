"""What the tests of this scenario share: playbooks run as an operator would, and visitors meanwhile."""

from __future__ import annotations

import json
import re
import subprocess

import probes
from probes import ROOT, ansible_environment, fetch, run_playbook

SCENARIO = ROOT / "molecule" / "releases"
INVENTORIES = [ROOT / "inventories" / "sandbox", SCENARIO / "inventory"]
BALANCER = "10.213.68.10"
SITE = "web.sandbox.example"
HOSTS = ("app1", "app2")
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def record(directory, **more):
    return {
        "name": "web",
        "domains": [SITE],
        "source": {"path": str(directory)},
        "callable": "wsgi:app",
        "health": "/",
        "health_timeout": 6,
        "secrets": {"TOKEN": "Hard-to-guess-4711"},
        "nginx": {"tls": {"mode": "off"}},
        **more,
    }


def variables(directory, more, options):
    return json.dumps({"wsgi_apps": [record(directory, **more)], "wsgi_canary_seconds": 2, **options})


def play(playbook, directory, *arguments, options=(), **more):
    extra = variables(directory, more, dict(options))
    return run_playbook(f"playbooks/{playbook}.yml", "-e", extra, *arguments, inventories=INVENTORIES)


def begin(playbook, directory, options=(), **more):
    """The same, not waited for: its output can be read while it runs."""
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", *(f"--inventory={path}" for path in INVENTORIES)]
    return subprocess.Popen(
        [*command, "-e", variables(directory, more, dict(options))],
        cwd=ROOT,
        env=ansible_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def follow(run, moment):
    """Read what a run says up to `moment`; what was read."""
    lines = []
    for line in run.stdout:
        lines.append(line)
        if moment in line:
            return "".join(lines)
    raise AssertionError(f"the run ended before '{moment}':\n{''.join(lines)[-4000:]}")


def changes(done):
    """Changed tasks of each host, of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return {host: int(changed) for host, _, changed, _, _ in RECAP.findall(done.stdout)}


def said(done):
    return " ".join((done.stdout + done.stderr).split())


def version(address=BALANCER):
    return fetch(address, SITE).text.split()[0]


def live(fleet):
    """Releases and processes of each host."""
    show = "readlink /srv/web/current /srv/web/next; pgrep -u web | sort; sha256sum /etc/wsgi-fleet/web/*"
    return {name: host.check_output(show) for name, host in fleet.items()}


class Visitors(probes.Visitors):
    def __init__(self, directory, pause=0.5):
        super().__init__(directory, BALANCER, SITE, connections=50, pause=pause)
