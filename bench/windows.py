#!/usr/bin/env python3
"""What a Windows host gives: time to the first answer, runs with nothing to do, and requests per second.

Makes a balancer (Debian 13) and one host of Windows programs under Wine (molecule/shared/windows/README.md), with one
application behind the balancer: with one instance, then with four, asked over 50 and over 500 connections. Wine is not
Windows: the numbers compare instances with each other, and this version with the next. Prints a page and keeps it in
bench/results/. Ends with an error when a request failed.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import HOSTS_HERE, RESULTS, ROOT, SUBNET, Run, head, play

BALANCER, WINDOWS = f"{SUBNET}.10", f"{SUBNET}.31"
SITE = "web.bench.example"
INSTANCES = (1, 4)
CONNECTIONS = (50, 500)
SECONDS = 20
TIMES = 3  # runs with nothing to do: the middle one counts
CACHE = ROOT / ".cache/windows"

INVENTORY = f"""\
balancers:
  hosts:
    lb1: {{ansible_host: {BALANCER}}}
linux_apps:
windows_apps:
  hosts:
    win1: {{ansible_host: {WINDOWS}}}
  vars:
    ansible_connection: winrig
    winrig_container: fleet-bench-win1
    waitress_windows_python:
      version: 3.13.2
      archive: {CACHE}/python.zip
      checksum: "sha256:{{{{ lookup('ansible.builtin.file', '{CACHE}/python.zip.sha256') }}}}"
    waitress_windows_wheelhouse: {CACHE}/wheels
all:
  vars:
{textwrap.indent(HOSTS_HERE, "    ")}
"""


@dataclass
class Load:
    """What visitors got over so many connections from so many instances."""

    instances: int
    connections: int
    seconds: float
    seen: dict[str, Any]


def site(inventory: Path, instances: int) -> Run:
    """Bring the fleet to so many instances."""
    record = {
        "name": "web",
        "domains": [SITE],
        "hosts": ["windows_apps"],
        "server": "waitress",
        "port": 8001,
        "source": {"path": str(ROOT / "molecule/waitress_windows/files/web")},
        "callable": "web:app",
        "waitress": {"instances": instances},
        "nginx": {"tls": {"mode": "off"}},
    }
    return play("site.yml", inventory, "-e", json.dumps({"wsgi_apps": [record]}))


def answers() -> bool:
    """Whether a visitor gets an answer."""
    connection = http.client.HTTPConnection(BALANCER, timeout=1)
    try:
        connection.request("GET", "/", headers={"Host": SITE})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def from_bare_hosts(inventory: Path) -> tuple[float, Run]:
    """Seconds until the first visitor was answered, and the whole run."""
    found: list[Run] = []
    thread = threading.Thread(target=lambda: found.append(site(inventory, INSTANCES[0])))
    started = time.monotonic()
    thread.start()
    while not answers() and thread.is_alive():
        time.sleep(0.2)
    seconds = time.monotonic() - started
    thread.join()
    return (seconds, found[0]) if found else sys.exit("the fleet was not made")


def load(work: Path, instances: int, connections: int) -> Load:
    """Visitors for a while."""
    stop = work / "stop"
    stop.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "molecule/shared/visitors.py", BALANCER, SITE, stop, connections, 0]
    started = time.monotonic()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as visitors:
        time.sleep(SECONDS)
        seconds = time.monotonic() - started
        stop.touch()
        output, _ = visitors.communicate(timeout=60)
    return Load(instances, connections, seconds, json.loads(output))


def measure(work: Path) -> tuple[list[str], list[Load]]:
    """All of it: lines of a table of runs, and the loads."""
    inventory = work / "hosts.yml"
    inventory.write_text(INVENTORY)
    loads: list[Load] = []
    try:
        play("molecule/shared/destroy.yml", inventory)
        play("molecule/waitress_windows/create.yml", inventory)
        first, run = from_bare_hosts(inventory)
        rows = [
            ("bare hosts, to the first answer", f"{first:.1f}", ""),
            ("bare hosts", f"{run.seconds:.1f}", run.tasks),
        ]
        for instances in INSTANCES:
            if instances > 1:
                more = site(inventory, instances)
                rows.append((f"{instances} instances", f"{more.seconds:.1f}", str(more.tasks)))
            unchanged = sorted((site(inventory, instances) for _ in range(TIMES)), key=lambda run: run.seconds)
            if any(run.changed for run in unchanged):
                sys.exit("a run with nothing to do changed something")
            middle = unchanged[TIMES // 2]
            rows.append((f"nothing to do, {instances} instance(s)", f"{middle.seconds:.1f}", str(middle.tasks)))
            loads += [load(work, instances, connections) for connections in CONNECTIONS]
            print(rows[-1], loads[-len(CONNECTIONS) :], file=sys.stderr, flush=True)
    finally:
        play("molecule/shared/destroy.yml", inventory)
    return [f"| {' | '.join(map(str, row))} |" for row in rows], loads


def report(runs: list[str], loads: list[Load]) -> str:
    """The measurements as a page."""
    lines = [
        *head("A Windows host under Wine"),
        "One application (8 threads an instance) behind a balancer on Linux; visitors and hosts share the cores.",
        f"With nothing to do, the middle one of {TIMES}.",
        "",
        "| site.yml | seconds | tasks |",
        "|---|---|---|",
        *runs,
        "",
        f"Visitors for {SECONDS} seconds without pause, GET and POST of 20 kB in turn. Milliseconds.",
        "",
        "| instances | connections | requests per second | failed | p50 | p99 | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in loads:
        seen = each.seen
        times = [f"{seen[name] * 1000:.0f}" for name in ("p50", "p99", "max")]
        rate = f"{seen['requests'] / each.seconds:.0f}"
        cells = [each.instances, each.connections, rate, sum(seen["failed"].values()), *times]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, complain or keep."""
    os.environ["ANSIBLE_CONNECTION_PLUGINS"] = str(ROOT / "molecule/shared/windows/connection")
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        runs, loads = measure(Path(work))
    page = report(runs, loads)
    print(page)
    failed = [f"{each.instances}, {each.connections}: {each.seen['failed']}" for each in loads if each.seen["failed"]]
    if failed:
        sys.exit("\n".join(failed))
    (RESULTS / "windows.md").write_text(page)


if __name__ == "__main__":
    main()
