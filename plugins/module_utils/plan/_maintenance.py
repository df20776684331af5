"""What an operator asks of a maintenance on the command line, and what of it concerns one host."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils import maintenance

from ._checks import Field, Fields, Where, integer, kind, list_of, read_fields, show, string
from ._values import check_app_names, refuse_unknown_apps

Plan = Mapping[str, Any]

_WORDS = {"on": True, "off": False}
_DETAILS = ("allow", "until", "retry_after", "reason")


def _check_switch(value: object, where: Where) -> bool | None:
    # A file of variables has a bare on as a boolean, a command line as a text.
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    where.fail(f"is {show(value) if isinstance(value, str) else kind(value)}, must be on or off")
    return None


def _check_network(value: object, where: Where) -> str | None:
    text = string("an address or a network")(value, where)
    try:
        return maintenance.read_network(text) if text else None
    except ValueError as error:
        where.fail(f"{show(str(text))} {error}")
        return None


def _check_networks(value: object, where: Where) -> list[Any] | None:
    if isinstance(value, str):
        value = [network.strip() for network in value.split(",")]
    return list_of(_check_network, "addresses and networks with commas between, such as 192.0.2.7,2001:db8::/32")(
        value, where
    )


def _check_until(value: object, where: Where) -> str | None:
    if isinstance(value, datetime):  # what a file of variables makes of a time without quotes
        value = value.isoformat()
    text = string("a time with its zone, such as 2026-11-21T14:00:00Z")(value, where)
    try:
        return maintenance.write_time(maintenance.read_time(text)) if text else None
    except ValueError as error:
        where.fail(f"is {show(str(text))}, {error}")
        return None


def _check_seconds(value: object, where: Where) -> int | None:
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    return integer(*maintenance.RETRY_AFTER_RANGE)(number, where)


_REQUEST: Fields = {
    "wsgi_maintenance": Field(_check_switch, required="on or off"),
    "wsgi_apps_only": Field(check_app_names),
    "wsgi_maintenance_allow": Field(_check_networks),
    "wsgi_maintenance_until": Field(_check_until),
    "wsgi_maintenance_retry_after": Field(_check_seconds),
    "wsgi_maintenance_reason": Field(
        string(f"one line of up to {maintenance.REASON_LENGTH} characters", maintenance.REASON.pattern)
    ),
}


def maintenance_errors(given: object, plan: Plan, now: str) -> list[str]:
    """Return everything that is wrong with what was asked for."""
    return _read(given, plan, now)[1]


def _read(given: object, plan: Plan, now: str) -> tuple[dict[str, Any], list[str]]:
    messages: list[str] = []
    where = Where(messages, "")
    request = read_fields(dict(given) if isinstance(given, Mapping) else {}, _REQUEST, where)
    only = request.get("wsgi_apps_only") or ()
    refuse_unknown_apps(only, plan["apps"], where.at("wsgi_apps_only"))
    for name, app in plan["apps"].items():
        facing = [host for host in app["hosts"] if plan["hosts"][host]["edge"]]
        if only and name not in only:
            continue
        bare = next((host for host in facing if plan["hosts"][host].get("windows") and app["front"] == "none"), None)
        apache = next((host for host in facing if plan["hosts"][host].get("front") == "apache"), None)
        if bare:
            where.at("wsgi_apps_only").fail(
                f"{show(name)} meets its visitors on {bare} without nginx, which alone has a page to close it with; "
                "set its front to nginx, put a balancer in front (group balancers), or name other apps"
            )
        if apache:
            where.at("wsgi_apps_only").fail(
                f"app {name} has Apache in front where clients come in (host {apache}); only nginx knows maintenance; "
                "name the other apps here, put balancers in front of it, or set its front to nginx"
            )
    until = request.get("wsgi_maintenance_until")
    if until and until <= now:
        where.at("wsgi_maintenance_until").fail(f"is {until}, which is over (it is {now}); give a later time")
    return request, messages


def nginx_maintenance(plan: Plan, host: str, given: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    """Return the records of the entry points maintenance: what clients reach here and was asked for."""
    request, messages = _read(given, plan, now)
    if messages:
        raise ValueError("; ".join(messages))
    known = plan["hosts"].get(host)
    if known is None or not known["edge"]:
        return []
    only: Optional[list[str]] = request.get("wsgi_apps_only")
    closed = request["wsgi_maintenance"]
    details = {key: request[f"wsgi_maintenance_{key}"] for key in _DETAILS if f"wsgi_maintenance_{key}" in request}
    return [
        {"name": name, "closed": closed, **(details if closed else {})}
        for name in (plan["apps"] if known["balancer"] else known["apps"])
        if only is None or name in only
    ]
