#!/usr/bin/env python3
"""How long site.yml takes, and how many tasks: first run, nothing to do, new code.

Makes its own hosts (Debian 13, one application each, no balancer) for each fleet size, and measures each
kind of run with Ansible's usual transport and with mitogen. Prints a table and keeps it in bench/results/.

    bench/converge.py            # fleets of 1, 2, 4 and 8 hosts
    bench/converge.py 1 2        # other sizes
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBNET = "10.213.67"
TRANSPORTS = {"ssh": "linear", "ssh + mitogen": "wsgi.fleet.mitogen"}
RECAP = re.compile(r"^\S+\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)

INVENTORY = """\
linux_apps:
  hosts:
{hosts}
  vars:
    sandbox_root: {root}
    sandbox_fleet: bench
    sandbox_subnet: {subnet}.0/24
    sandbox_ip: "{{{{ ansible_host }}}}"
    sandbox_suite: trixie
    ansible_user: ansible
    ansible_ssh_private_key_file: {root}/.cache/ssh/fleet-bench
    ansible_ssh_host_key_checking: false
    ansible_ssh_common_args: -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR
    wsgi_apps:
      - name: shop
        domains: [shop.bench.example]
        source: {{path: {app}}}
        callable: wsgi:app
        health: /healthz
"""


@dataclass
class Run:
    """One run of a playbook: its seconds, and the most that one host had of tasks and of changes."""

    seconds: float
    tasks: int
    changed: int


def play(playbook: str, inventory: Path, strategy: str) -> Run:
    """Run `playbook`, or say what it said and stop."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORKS": "20",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_STRATEGY": strategy,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    }
    started = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(ROOT / playbook)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    recap = [[int(number) for number in match] for match in RECAP.findall(done.stdout)]
    if done.returncode or not recap:
        sys.exit(f"{playbook} failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return Run(seconds, max(row[0] for row in recap), max(row[1] for row in recap))


def measure(count: int, work: Path) -> list[tuple[str, int, str, Run]]:
    """All measurements on a fleet of `count` hosts: transport, hosts, kind of run, result."""
    app = work / "shop"
    shutil.copytree(ROOT / "examples" / "shop", app, dirs_exist_ok=True)
    hosts = "\n".join(f"    app{n}: {{ansible_host: {SUBNET}.{20 + n}}}" for n in range(1, count + 1))
    inventory = work / "hosts.yml"
    inventory.write_text(INVENTORY.format(hosts=hosts, root=ROOT, subnet=SUBNET, app=app))
    rows = []
    try:
        for transport, strategy in TRANSPORTS.items():
            play("molecule/shared/destroy.yml", inventory, "linear")
            play("molecule/shared/create.yml", inventory, "linear")
            rows.append((transport, count, "first run", play("site.yml", inventory, strategy)))
            unchanged = play("site.yml", inventory, strategy)
            if unchanged.changed:
                sys.exit("a run with nothing to do changed something")
            rows.append((transport, count, "nothing to do", unchanged))
            with (app / "wsgi.py").open("a") as code:
                code.write(f"# {time.time_ns()}\n")
            rows.append((transport, count, "new code", play("site.yml", inventory, strategy)))
            for row in rows[-3:]:
                print(f"{row[1]} hosts, {row[0]}, {row[2]}: {row[3].seconds:.1f} s", file=sys.stderr, flush=True)
    finally:
        play("molecule/shared/destroy.yml", inventory, "linear")
    return rows


def report(rows: list[tuple[str, int, str, Run]]) -> str:
    """The measurements as a page."""
    version = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    today = datetime.datetime.now(datetime.timezone.utc).date()
    lines = [
        f"# site.yml on {today}",
        "",
        f"{version}, Python {platform.python_version()}, {os.cpu_count()} cores for the control node and all hosts.",
        "One application on each host. Tasks are those of one host, facts included.",
        "One run each.",
        "",
        "| hosts | run | transport | seconds | seconds per host | tasks | changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for transport, count, kind, run in sorted(rows, key=lambda row: (row[1], row[2], row[0])):
        cells = (count, kind, transport, f"{run.seconds:.1f}", f"{run.seconds / count:.1f}", run.tasks, run.changed)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, keep; what is measured is kept at once."""
    rows: list[tuple[str, int, str, Run]] = []
    for size in [int(size) for size in sys.argv[1:]] or [1, 2, 4, 8]:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            rows += measure(size, Path(work))
        (ROOT / "bench" / "results" / "converge.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
