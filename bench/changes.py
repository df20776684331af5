#!/usr/bin/env python3
"""What visitors notice while the fleet changes: requests that fail, and how long answers take.

Makes a balancer and two application hosts (Debian 13), keeps fifty connections busy with GET and POST (20 kB) over
TLS, and changes one thing after the other beneath them. Prints a table and keeps it in bench/results/. Ends with an
error when a request failed, or when a playbook found nothing to change.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import HOSTS_HERE, RESULTS, ROOT, SUBNET, Run, head, play

BALANCER = f"{SUBNET}.10"
SITE = "web.bench.example"
CONNECTIONS = 50
QUIET = 60  # seconds without a change, to compare with

INVENTORY = f"""\
balancers:
  hosts:
    lb1: {{ansible_host: {BALANCER}}}
linux_apps:
  hosts:
    app1: {{ansible_host: {SUBNET}.21}}
    app2: {{ansible_host: {SUBNET}.22}}
all:
  vars:
{textwrap.indent(HOSTS_HERE, "    ")}
"""


@dataclass
class Change:
    """One change under load: its name, the playbook that brings it (none: wait), and what it took and did."""

    name: str
    playbook: str
    run: Run
    seen: dict[str, Any]


def certificate(work: Path, name: str) -> dict[str, str]:
    """A self-signed certificate and its key, as an operator would hand them over."""
    key, cert = work / f"{name}.key", work / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "30", "-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return {"mode": "files", "certificate": cert.read_text(), "key": key.read_text()}


class Fleet:
    """A fleet of one application, whose record and source change."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.inventory = work / "hosts.yml"
        self.inventory.write_text(INVENTORY)
        self.source = work / "app"
        self.source.mkdir()
        (self.source / "wsgi.py").write_text((ROOT / "molecule/releases/files/app/wsgi.py").read_text())
        self.write(version="one")
        (self.source / "requirements.txt").write_text("itsdangerous==2.1.2\n")
        self.record: dict[str, Any] = {
            "name": "web",
            "domains": [SITE],
            "source": {"path": str(self.source)},
            "callable": "wsgi:app",
            "nginx": {"tls": certificate(work, "first")},
        }
        self.changes: list[Change] = []

    def write(self, version: str) -> None:
        """New code: the application answers with its version."""
        (self.source / "version").write_text(version)

    def play(self, playbook: str) -> Run:
        """Run a playbook with the record as it is now."""
        variables = self.work / "apps.json"
        variables.write_text(json.dumps({"wsgi_apps": [self.record], "wsgi_canary_seconds": 5}))
        return play(f"playbooks/{playbook}.yml", self.inventory, "-e", f"@{variables}")

    def change(self, name: str, playbook: str = "") -> None:
        """Bring a change with visitors on the site."""
        stop = self.work / "stop"
        stop.unlink(missing_ok=True)
        program = [sys.executable, ROOT / "molecule/shared/visitors.py"]
        given = [BALANCER, SITE, str(stop), str(CONNECTIONS), "0", "tls"]
        with subprocess.Popen([*program, *given], stdout=subprocess.PIPE, text=True) as visitors:
            try:
                time.sleep(1 if playbook else QUIET)
                run = self.play(playbook) if playbook else Run(QUIET, 0, 0)
            finally:
                stop.touch()
            output, _ = visitors.communicate(timeout=60)
        self.changes.append(Change(name, playbook, run, json.loads(output)))
        print(f"{name}: {self.changes[-1]}", file=sys.stderr, flush=True)

    def problems(self) -> list[str]:
        """What should not have been."""
        found = [f"{change.name}: failed: {change.seen['failed']}" for change in self.changes if change.seen["failed"]]
        idle = [change.name for change in self.changes if change.playbook and not change.run.changed]
        return found + [f"{name}: the playbook changed nothing" for name in idle]


def measure(work: Path) -> Fleet:
    """All changes, one after the other."""
    fleet = Fleet(work)
    try:
        play("molecule/shared/destroy.yml", fleet.inventory)
        play("molecule/shared/create.yml", fleet.inventory)
        fleet.play("site")
        fleet.change("none")
        fleet.write(version="two")
        fleet.change("code", "deploy")
        (fleet.source / "requirements.txt").write_text("itsdangerous==2.2.0\n")
        fleet.change("a dependency", "deploy")
        fleet.record["gunicorn"] = {"threads": 6}
        fleet.change("gunicorn's settings", "deploy")
        fleet.record["nginx"]["client_max_body_size"] = "20m"
        fleet.change("nginx's settings", "site")
        fleet.record["nginx"]["tls"] = certificate(work, "second")
        fleet.change("the certificate", "site")
        fleet.change("back to the release before", "rollback")
    finally:
        play("molecule/shared/destroy.yml", fleet.inventory)
    return fleet


def report(changes: list[Change]) -> str:
    """The measurements as a page."""
    lines = [
        *head("Changes under load"),
        "A balancer and two application hosts, one application. Visitors run on the same cores as all else, and ask",
        f"without pause over {CONNECTIONS} connections (TLS, keep-alive; GET and POST of 20 kB in turn). Milliseconds.",
        "",
        "| change | playbook | seconds | tasks | requests | failed | p50 | p99 | p99.9 | longest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for change in changes:
        seen = change.seen
        times = [f"{seen[name] * 1000:.0f}" for name in ("p50", "p99", "p999", "max")]
        run = [change.playbook, f"{change.run.seconds:.1f}", change.run.tasks]
        cells = [change.name, *run, seen["requests"], sum(seen["failed"].values()), *times]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    total = sum(change.seen["requests"] for change in changes if change.playbook)
    return "\n".join([*lines, "", f"{total} requests while something changed."]) + "\n"


def main() -> None:
    """Measure, print, keep, and complain."""
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        fleet = measure(Path(work))
    page = report(fleet.changes)
    print(page)
    problems = fleet.problems()
    if problems:
        sys.exit("\n".join(problems))
    (RESULTS / "changes.md").write_text(page)


if __name__ == "__main__":
    main()
