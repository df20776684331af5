"""What to ask of each host to see that the fleet serves, and how to show the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import maintenance

from ._projections import endpoints, health_request
from ._topology import HTTP_PORT, HTTPS_PORT

Plan = Mapping[str, Any]


def edge_probes(plan: Plan, host: str) -> list[dict[str, Any]]:
    """Return the targets of module probe as clients reach them: one for each app that `host` answers clients for."""
    known = plan["hosts"][host]
    if not known["edge"]:
        return []
    targets = []
    for name in plan["apps"] if known["balancer"] else known["apps"]:
        nginx = plan["apps"][name]["nginx"]
        tls = nginx["tls"]
        mode = tls["mode"]
        target = _target(plan["apps"][name], known["address"], HTTP_PORT if known["balancer"] else known["http_port"])
        if known.get("windows") and plan["apps"][name]["front"] == "none":
            target["port"], mode = plan["apps"][name]["windows_port"], "off"
        if mode != "off":
            target |= {"port": HTTPS_PORT, "tls": True, "verify": mode != "self_signed"}
            target |= {"ca": tls["ca"]} if "ca" in tls else {}
        if nginx["proxy_protocol"]:
            target["proxy_protocol"] = True
        targets.append(target)
    return targets


def inner_probes(plan: Plan, host: str) -> list[dict[str, Any]]:
    """Return the targets of module probe as balancers reach them, to be asked on `host` itself: others are shut out."""
    known = plan["hosts"][host]
    if not known["inner"] or known.get("windows"):
        return []
    return [_target(plan["apps"][name], "127.0.0.1", known["http_port"]) for name in known["apps"]]


def backend_probes(plan: Plan, host: str) -> list[dict[str, Any]]:
    """Return the targets of module probe that a balancer asks itself: each app on each of its other hosts.

    Their names are those of host and app.
    """
    if not plan["hosts"][host]["balancer"]:
        return []
    return [
        {**_target(app, address.strip("[]"), int(port)), "name": f"{name} {app['name']}"}
        for app in plan["apps"].values()
        for name in app["hosts"]
        if name != host
        for address, _, port in (place.rpartition(":") for place in endpoints(plan, app, name))
    ]


def _target(app: Mapping[str, Any], address: str, port: int) -> dict[str, Any]:
    return {"name": app["name"], "address": address, "port": port, **health_request(app)}


Answers = Mapping[str, Sequence[Mapping[str, Any]]]


def status_rows(
    edge: Answers, inner: Answers, looks: Mapping[str, str], now: str, backends: Answers | None = None
) -> list[dict[str, Any]]:
    """Return a row for each answer: host, app, release, url, certificate, status, and whether it is good.

    `edge` and `inner` are each host's results of module probe. A host's look has lines `APP/current releases/ID`
    and, where apps are in maintenance, one of JSON that says so. `backends` are what balancers got by `backend_probes`:
    those that answer well need no row.
    """
    rows = []
    for host, results in edge.items():
        releases, closed = _read_look(looks.get(host, ""))
        time = maintenance.read_time(now)
        for result, entry in [
            *((result, closed.get(result["name"])) for result in results),
            *((result, None) for result in inner.get(host, ())),  # clients are turned away at the edge only
        ]:
            status = result["status"]
            lasts = entry is not None and not maintenance.is_over(entry, time)
            note = ("maintenance " if lasts else "maintenance is over, ") + maintenance.describe(entry) if entry else ""
            text = _said(result)
            rows.append(
                {
                    "host": host,
                    "app": result["name"],
                    "release": releases.get(result["name"], "-"),
                    "url": result["url"],
                    "certificate": _lasts(result.get("days_left")),
                    "status": f"{text}; {note}" if note else text,
                    "good": (result["good"] or (lasts and status == 503)) and result.get("days_left", 0) >= 0,
                }
            )
    for balancer, results in (backends or {}).items():
        for result in results:
            if not result["good"]:
                host, app = result["name"].split(" ")
                rows.append(
                    {
                        "host": host,
                        "app": app,
                        "release": _read_look(looks.get(host, ""))[0].get(app, "-"),
                        "url": result["url"],
                        "certificate": "-",
                        "status": f"asked by {balancer}: {_said(result)}",
                        "good": False,
                    }
                )
    return rows


def _said(result: Mapping[str, Any]) -> str:
    """Say what came back, and after which time."""
    if not result["status"]:
        return f"no answer: {result['error']}"
    return f"{result['status']} in {round(result['seconds'] * 1000)} ms"


def _lasts(days: int | None) -> str:
    """Say how long a certificate is good for."""
    if days is None:
        return "-"
    return f"{days} days" if days >= 0 else "has ended"


def _read_look(text: str) -> tuple[dict[str, str], maintenance.State]:
    releases, closed = {}, {}
    for line in text.splitlines():
        if line.startswith("{"):
            closed = json.loads(line)
            continue
        path, _, target = line.partition(" ")
        releases[path.split("/")[0]] = target.rpartition("/")[2]
    return releases, closed


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return `rows` as text in aligned columns under their names."""
    lines = [[column.upper() for column in columns], *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
