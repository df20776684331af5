#!/usr/bin/env python3
"""How long a balancer of many sites takes to converge: first run, nothing to do, one site changed.

Makes one balancer (Debian 13) for applications whose host is never reached, and runs site.yml on it with 1 and with 400
records. Prints a table and keeps it in bench/results/.

    bench/sites.py             # 1 and 400 sites
    bench/sites.py 100 200     # other numbers; keeps nothing
"""

from __future__ import annotations

import http.client
import sys
import tempfile
import textwrap
from pathlib import Path

from running import HOSTS_HERE, RESULTS, SUBNET, Run, head, play

COUNTS = (1, 400)
TIMES = 3  # runs with nothing to do: the middle one counts

INVENTORY = """\
balancers:
  hosts:
    lb1: {{ansible_host: {subnet}.10}}
  vars:
{here}
linux_apps:
  hosts:
    app1: {{ansible_host: 192.0.2.9}} # its part is not played
all:
  vars:
    wsgi_apps:
{records}
"""
RECORD = """\
- name: shop{number}
  domains: [shop{number}.bench.example, www.shop{number}.bench.example]
  source: {{package: shop, version: "1.0"}}
  callable: shop:app
  health: /healthz
  nginx:
    client_max_body_size: {size}m
    limits: {{requests: [{{rate: 50r/s, burst: 100}}]}}
    cors: {{origins: ["https://app{number}.bench.example"]}}
"""


def write(inventory: Path, count: int, changed: int = -1) -> None:
    """Write down a balancer with so many sites, one of which says something else."""
    records = "".join(RECORD.format(number=number, size=20 if number == changed else 10) for number in range(count))
    here = textwrap.indent(HOSTS_HERE, "    ")
    text = INVENTORY.format(subnet=SUBNET, here=here, records=textwrap.indent(records, "      "))
    inventory.write_text(text)


def answer(address: str, name: str) -> int:
    """The status that a site answers with, over HTTP."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/", headers={"Host": name})
    return connection.getresponse().status


def measure(count: int, work: Path) -> list[tuple[int, str, Run]]:
    """All measurements with so many sites: number, kind of run, result."""
    inventory = work / "hosts.yml"
    write(inventory, count)
    rows = []

    def converge(kind: str) -> Run:
        run = play("site.yml", inventory, "--limit", "balancers")
        print(f"{count} sites, {kind}: {run}", file=sys.stderr, flush=True)
        return run

    try:
        play("molecule/shared/destroy.yml", inventory, "--limit", "balancers")
        play("molecule/shared/create.yml", inventory, "--limit", "balancers")
        rows.append((count, "first run", converge("first run")))
        unchanged = [converge("nothing to do") for _ in range(TIMES)]
        if any(run.changed for run in unchanged):
            sys.exit("a run with nothing to do changed something")
        rows.append((count, "nothing to do", sorted(unchanged, key=lambda run: run.seconds)[TIMES // 2]))
        write(inventory, count, changed=count // 2)
        rows.append((count, "one site changed", converge("one site changed")))
        if not rows[-1][2].changed:
            sys.exit("a changed site changed nothing")
        if (status := answer(f"{SUBNET}.10", f"shop{count - 1}.bench.example")) not in (502, 504):
            sys.exit(f"the last site is not served: {status}")  # its application is nowhere, says nginx
    finally:
        play("molecule/shared/destroy.yml", inventory, "--limit", "balancers")
    return rows


def report(rows: list[tuple[int, str, Run]]) -> str:
    """The measurements as a page."""
    lines = [
        *head("A balancer of many sites"),
        "site.yml on one balancer; each site has two names, a limit and CORS. Tasks include the one for facts.",
        f"One run each; with nothing to do, the middle one of {TIMES}.",
        "",
        "| sites | run | seconds | tasks | changed |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {count} | {kind} | {run.seconds:.1f} | {run.tasks} | {run.changed} |" for count, kind, run in sorted(rows)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, keep."""
    rows: list[tuple[int, str, Run]] = []
    counts = [int(count) for count in sys.argv[1:]] or list(COUNTS)
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            rows += measure(count, Path(work))
    if len({(kind, run.tasks) for _, kind, run in rows}) > len({kind for _, kind, _ in rows}):
        sys.exit(f"more sites take more tasks:\n{report(rows)}")
    if counts == list(COUNTS):
        (RESULTS / "sites.md").write_text(report(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
