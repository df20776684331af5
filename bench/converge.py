#!/usr/bin/env python3
"""How long site.yml takes, and how many tasks: first run, nothing to do, new code.

Makes its own hosts (Debian 13, one application each, no balancer) for each fleet size, and measures each
kind of run with Ansible's usual transport and with mitogen. Prints a table and keeps it in bench/results/.

    bench/converge.py            # fleets of 1, 2, 4 and 8 hosts
    bench/converge.py 1 2        # other sizes
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from running import HOSTS_HERE, RESULTS, ROOT, SUBNET, Run, head, play

TRANSPORTS = {"ssh": "linear", "ssh + mitogen": "wsgi.fleet.mitogen"}
TIMES = 3  # runs with nothing to do: the middle one counts

INVENTORY = """\
linux_apps:
  hosts:
{hosts}
  vars:
{here}
    wsgi_apps:
      - name: shop
        domains: [shop.bench.example]
        source: {{path: {app}}}
        callable: wsgi:app
        health: /healthz
"""


def measure(count: int, work: Path) -> list[tuple[str, int, str, Run]]:
    """All measurements on a fleet of `count` hosts: transport, hosts, kind of run, result."""
    app = work / "shop"
    shutil.copytree(ROOT / "examples" / "shop", app, dirs_exist_ok=True)
    hosts = "\n".join(f"    app{n}: {{ansible_host: {SUBNET}.{20 + n}}}" for n in range(1, count + 1))
    inventory = work / "hosts.yml"
    inventory.write_text(INVENTORY.format(hosts=hosts, here=textwrap.indent(HOSTS_HERE, "    "), app=app))
    rows = []
    try:
        for transport, strategy in TRANSPORTS.items():
            play("molecule/shared/destroy.yml", inventory)
            play("molecule/shared/create.yml", inventory)
            rows.append((transport, count, "first run", play("site.yml", inventory, strategy=strategy)))
            unchanged = [play("site.yml", inventory, strategy=strategy) for _ in range(TIMES)]
            if any(run.changed for run in unchanged):
                sys.exit("a run with nothing to do changed something")
            rows.append((transport, count, "nothing to do", sorted(unchanged, key=lambda run: run.seconds)[TIMES // 2]))
            with (app / "wsgi.py").open("a") as code:
                code.write(f"# {time.time_ns()}\n")
            rows.append((transport, count, "new code", play("site.yml", inventory, strategy=strategy)))
            for row in rows[-3:]:
                print(f"{row[1]} hosts, {row[0]}, {row[2]}: {row[3].seconds:.1f} s", file=sys.stderr, flush=True)
    finally:
        play("molecule/shared/destroy.yml", inventory)
    return rows


def report(rows: list[tuple[str, int, str, Run]]) -> str:
    """The measurements as a page."""
    lines = [
        *head("site.yml"),
        "One application on each host. Tasks are those of one host, facts included.",
        f"One run each; with nothing to do, the middle one of {TIMES}.",
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
        (RESULTS / "converge.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
