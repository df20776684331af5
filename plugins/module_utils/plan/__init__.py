"""The plan: the one place where `wsgi_apps` and the groups are interpreted.

Pure functions of the inventory: records and groups in, each role's list out. Nothing here reads a file, a clock or a
network, so that every decision of the fleet can be seen in a unit test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import Where, kind
from ._deploy import chosen_apps, deploy_blame, deploy_errors, deploy_problems, deploy_report, release_rows
from ._fronts import APACHE, apache_sites, check_fronts, fronts
from ._maintenance import maintenance_errors, nginx_maintenance
from ._programs import check_names
from ._projections import (
    access_logs,
    acme_certificates,
    app_apps,
    app_removed,
    edge_logs,
    gunicorn_instances,
    inner_endpoints,
    migrating,
    mod_wsgi_instances,
    nginx_challenges,
    nginx_sites,
    python_packages,
    python_versions,
    served_otherwise,
    supervisor_programs,
    ufw_rules,
    waitress_instances,
    wheelhouse_hosts,
)
from ._record import read_record
from ._topology import (
    allot_ports,
    check_acme,
    check_backups,
    check_domains,
    check_hosts,
    check_protocols,
    http_port,
    lay_out,
    members,
    place,
    read_hosts,
)
from ._windows import check_windows, windows_apps, windows_firewall_rules, windows_removed, windows_sites

__all__ = [
    "PlanError",
    "access_logs",
    "acme_certificates",
    "apache_sites",
    "app_apps",
    "app_removed",
    "chosen_apps",
    "deploy_blame",
    "deploy_errors",
    "deploy_problems",
    "deploy_report",
    "edge_logs",
    "find_errors",
    "gunicorn_instances",
    "inner_endpoints",
    "maintenance_errors",
    "make_plan",
    "members",
    "migrating",
    "mod_wsgi_instances",
    "nginx_challenges",
    "nginx_maintenance",
    "nginx_sites",
    "python_packages",
    "python_versions",
    "release_rows",
    "served_otherwise",
    "supervisor_programs",
    "ufw_rules",
    "waitress_instances",
    "wheelhouse_hosts",
    "windows_apps",
    "windows_firewall_rules",
    "windows_removed",
    "windows_sites",
]

Groups = Mapping[str, Sequence[str]]


class PlanError(ValueError):
    """The records or the groups cannot work; holds every problem, one to a line."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


def find_errors(apps: object, groups: Groups, hostvars: Mapping[str, Any]) -> list[str]:
    """Return every problem of the inventory, in the order of the records; no message holds a secret."""
    return _plan(apps, groups, hostvars)[1]


def make_plan(apps: object, groups: Groups, hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Interpret the records and the groups; raises PlanError with every problem."""
    plan, messages = _plan(apps, groups, hostvars)
    if messages:
        raise PlanError(messages)
    return plan


def _plan(apps: object, groups: Groups, hostvars: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    messages: list[str] = []
    known = _read_records(apps, messages)
    records = [record for record in known if record["state"] != "absent"]
    going = [record for record in known if record["state"] == "absent"]
    hosts, wrong_hosts = read_hosts(groups, hostvars)
    messages += wrong_hosts
    layout = lay_out(records, groups, messages)
    check_domains(records, layout, messages)
    check_protocols(records, layout, messages)
    check_names(records, messages)
    ports = allot_ports(records, layout, hosts, messages)
    windows_ports = check_windows(records, layout, hosts, messages)
    check_hosts(layout, hosts, messages)
    check_backups(records, layout, hosts, messages)
    check_fronts(records, layout, messages)
    check_acme(records, layout, hosts, messages)
    leaving = place(going, groups, messages)
    apache = fronts(layout, known, leaving)

    running: dict[str, list[str]] = {name: [] for name in hosts}
    for record in records:
        for host in layout.apps[record["name"]]:
            running[host].append(record["name"])
    removed: dict[str, list[str]] = {name: [] for name in hosts}
    for record in going:
        for host in leaving[record["name"]]:
            removed[host].append(record["name"])
    return {
        "apps": {
            record["name"]: {
                **{key: value for key, value in record.items() if key != "port"},
                **({"port": ports[record["name"]]} if record["name"] in ports else {}),
                **({"windows_port": windows_ports[record["name"]]} if record["name"] in windows_ports else {}),
                "hosts": layout.apps[record["name"]],
            }
            for record in records
        },
        "removed": {
            record["name"]: {"keep_data": record["keep_data"], "hosts": leaving[record["name"]]} for record in going
        },
        "balancers": layout.balancers,
        "hosts": {
            name: {
                "address": host.address,
                "http_port": http_port(name, host, layout),
                "share": {
                    **({"weight": host.weight} if host.weight > 1 else {}),
                    **({"backup": True} if host.backup else {}),
                },
                "apps": running[name],
                "removed": removed[name],
                "balancer": name in layout.balancers,
                # Faces the clients: a balancer, or an app host of a fleet that has none.
                "edge": name in layout.balancers or not layout.balancers,
                # Answers balancers other than itself.
                "inner": bool(running[name] and layout.others(name)),
                **({"windows": True} if name in layout.windows else {}),
                **({"front": APACHE} if name in apache else {}),
            }
            for name, host in hosts.items()
        },
    }, messages


def _read_records(apps: object, messages: list[str]) -> list[dict[str, Any]]:
    """Return the records that are good enough to check who meets where; what is wrong with any is reported."""
    if not isinstance(apps, (list, tuple)):
        Where(messages, "wsgi_apps").fail(f"is {kind(apps)}, must be a list of records")
        return []
    records: dict[str, dict[str, Any]] = {}
    for index, value in enumerate(apps):
        record = read_record(value, index, messages)
        if record is None or not record["name"] or record["hosts"] is None:
            continue
        if record["state"] != "absent" and record["domains"] is None:
            continue
        same = [name for name in records if name.replace("_", "-") == record["name"].replace("_", "-")]
        if same:
            Where(messages, f"wsgi_apps[{index}]", "name").fail(
                f"{record['name']!r} is taken by app {same[0]} (- and _ count as the same); give each app its own name"
            )
            continue
        records[record["name"]] = record
    return list(records.values())
