"""What the tests of role app share: running it, and looking at releases."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from probes import ROOT, run_playbook

SCENARIO = ROOT / "molecule" / "app"
APPS = ["shop", "tagged", "pinned", "packed", "fetched", "copied", "packaged"]
SECRETS = re.compile(r"Hard-to-guess-\d+|BEGIN OPENSSH PRIVATE KEY")


def inventories(host):
    return [
        Path(host.backend.ansible_inventory).parent,
        ROOT / "molecule" / "shared" / "inventory",
        SCENARIO / "inventory",
    ]


def records():
    return yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text())["systems_under_test"]["vars"]["app_apps"]


def apply(host, *arguments, apps=None, playbook="converge", **variables):
    """Run the roles on this host. `apps` lays other values over the inventory's records; None takes one away."""
    changes = apps or {}
    wanted = [
        record | (changes.get(record["name"]) or {})
        for record in records()
        if changes.get(record["name"], {}) is not None
    ]
    wanted += [{"name": name, **record} for name, record in changes.items() if record and name not in APPS]
    done = run_playbook(
        f"molecule/app/{playbook}.yml",
        "--limit",
        host.backend.get_hostname(),
        "--diff",
        "-e",
        json.dumps({"app_apps": wanted, **variables}),
        *arguments,
        inventories=inventories(host),
        ANSIBLE_SSH_COMMON_ARGS="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    )
    assert not SECRETS.search(done.stdout + done.stderr)
    return done


def changed(done):
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def said(done):
    """What a run that failed told, without the line breaks of the terminal."""
    assert done.returncode != 0, done.stdout[-3000:]
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def live(host, app):
    return Path(host.check_output(f"readlink -f /srv/{app}/current")).name


def releases(host, app):
    return set(host.check_output(f"ls -A /srv/{app}/releases").split())


def python(host, app, code):
    return host.check_output(f"/etc/wsgi-fleet/{app}/run python -c %s", code)


def as_user(host, user, command):
    return host.run("setpriv --reuid=%s --regid=%s --init-groups sh -c %s", user, user, command)


def secrets_lie_nowhere_else(host):
    places = "/srv /var/cache/wsgi-fleet /var/lib/wsgi-fleet /dev/shm /var/log /run/log"
    found = host.run(f"grep -rlE 'Hard-to-guess-47[0-9][0-9]|OPENSSH PRIVAT[E]' {places}").stdout.split()
    # A good release keeps the environment that it was good with, for the application alone.
    kept = [path for path in found if re.fullmatch(r"/srv/[a-z]+/releases/[0-9a-f]+/config/env", path)]
    assert sorted(found) == sorted(kept)
    for path in kept:
        assert host.check_output(f"stat -c '%U:%G %a' {path}") == f"root:{path.split('/')[2]} 640"
