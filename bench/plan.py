#!/usr/bin/env python3
"""Times the plan and its projections on made-up fleets, and prints a table in milliseconds. No hosts, no Ansible."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collections"))

from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet

SIZES = ((10, 5), (100, 20), (1000, 20))
BALANCERS = 4
VCPUS = 4


def inventory(hosts: int, apps: int) -> tuple[list[dict[str, Any]], dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Return records, groups and host variables of a fleet; every app runs on every app host, the most there can be."""
    names = [f"app{number}" for number in range(hosts - BALANCERS)] + [f"lb{number}" for number in range(BALANCERS)]
    records = [
        {
            "name": f"shop{number}",
            "domains": [f"shop{number}.example.com"],
            "source": {"package": "httpbin", "version": "0.10.4"},
            "callable": "httpbin:app",
            "port": "auto",
            "secrets": {"KEY": "x" * 40},
        }
        for number in range(apps)
    ]
    groups = {"linux_apps": names[:-BALANCERS], "balancers": names[-BALANCERS:]}
    return records, groups, {name: {"ansible_host": f"10.0.{n // 250}.{n % 250 + 1}"} for n, name in enumerate(names)}


def milliseconds(work: Callable[[], object]) -> float:
    """Return the best of five: what the work takes when nothing else runs."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best * 1000


def measure(hosts: int, apps: int) -> dict[str, float]:
    """Time everything on one fleet."""
    records, groups, variables = inventory(hosts, apps)
    plan = fleet.make_plan(records, groups, variables)
    return {
        "plan_errors": milliseconds(lambda: fleet.find_errors(records, groups, variables)),
        "plan": milliseconds(lambda: fleet.make_plan(records, groups, variables)),
        "app_apps, app host": milliseconds(lambda: fleet.app_apps(plan, "app0")),
        "gunicorn_instances, app host": milliseconds(lambda: fleet.gunicorn_instances(plan, "app0", VCPUS)),
        "supervisor_programs, app host": milliseconds(lambda: fleet.supervisor_programs(plan, "app0")),
        "nginx_sites, app host": milliseconds(lambda: fleet.nginx_sites(plan, "app0")),
        "ufw_rules, app host": milliseconds(lambda: fleet.ufw_rules(plan, "app0")),
        "nginx_sites, balancer": milliseconds(lambda: fleet.nginx_sites(plan, "lb0")),
        "ufw_rules, balancer": milliseconds(lambda: fleet.ufw_rules(plan, "lb0")),
    }


def main() -> None:
    """Print one column for each size."""
    columns = {f"{hosts} x {apps}": measure(hosts, apps) for hosts, apps in SIZES}
    print(f"{'hosts x apps, ms':32}" + "".join(f"{name:>12}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:32}" + "".join(f"{column[row]:12.3f}" for column in columns.values()))


if __name__ == "__main__":
    main()
