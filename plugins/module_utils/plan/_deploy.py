"""What deploy.yml and its kin decide: which applications, whether to go on, and what to say in the end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import Check, Field, Fields, Where, choice, kind, read_fields, show, string
from ._values import check_app_names, refuse_unknown_apps

Plan = Mapping[str, Any]

_BATCH = r"[1-9][0-9]*|([1-9][0-9]?|100)%"


def _check_rollout(value: object, where: Where) -> list[str] | None:
    batches = value if isinstance(value, (list, tuple)) else [value]
    if not batches:
        where.fail("is an empty list, must hold batches such as [1, '25%', '100%']")
    for batch in batches:
        if isinstance(batch, bool) or not re.fullmatch(_BATCH, str(batch)):
            where.fail(f"{show(str(batch))} is no batch; give a number of hosts such as 1, or a share such as 25%")
    return [str(batch) for batch in batches]


def _number(high: int) -> Check:
    """Accept a number from 0 on, also as the text that a command line makes of it."""

    def check(value: object, where: Where) -> float | None:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) > high:
            where.fail(f"is {show(text)}, must be a number from 0 to {high}")
            return None
        return float(text)

    return check


def _check_flag(value: object, where: Where) -> bool | None:
    if not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        where.fail(f"is {show(str(value))}, must be true or false")
        return None
    return str(value).lower() == "true"


def _check_release(value: object, where: Where) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        where.fail(f"is {kind(value)}, must be a mapping of apps to releases, such as {{shop: 3f2a9c0d1e4b}}")
        return None
    check = string("the id of a release, which playbooks/releases.yml shows", r"[0-9a-f]{12}")
    return {str(name): check(release, where.at(str(name))) or "" for name, release in value.items()}


_OPTIONS: Fields = {
    "wsgi_apps_only": Field(check_app_names),
    "wsgi_release": Field(_check_release),
    "wsgi_rollout": Field(_check_rollout),
    "wsgi_canary_seconds": Field(_number(3600)),
    "wsgi_canary_errors": Field(_number(100)),
    "wsgi_bad_releases": Field(choice("refuse", "retry", "keep")),
    "wsgi_drain": Field(_check_flag),
    "wsgi_drain_timeout": Field(_number(3600)),
    "wsgi_purpose": Field(string("a few words")),
    "wsgi_break_locks": Field(_check_flag),
}


def deploy_errors(given: Mapping[str, Any], plan: Plan) -> list[str]:
    """Return everything that is wrong with the options of a deploy or a rollback."""
    messages: list[str] = []
    where = Where(messages, "")
    options = read_fields(dict(given), _OPTIONS, where)
    for name in ("wsgi_apps_only", "wsgi_release"):
        refuse_unknown_apps(options.get(name) or (), plan["apps"], where.at(name))
    return messages


def chosen_apps(plan: Plan, only: object) -> list[str]:
    """Return the names of the apps to act on, in the order of the plan; an empty list of names means all."""
    wanted = check_app_names(only, Where([], "")) if only else None
    return [name for name in plan["apps"] if wanted is None or name in wanted]


def deploy_problems(hosts: Sequence[str], hostvars: Mapping[str, Any], passed: str = "") -> list[str]:
    """Return what went wrong so far, a text for each host; a host without the fact `passed` was lost on the way."""
    found = []
    for host in hosts:
        problem = hostvars[host].get("deploy_problem", "")
        if not problem and passed and passed not in hostvars[host]:
            problem = "could not be reached, or ended before it had to"
        if problem:
            found.append(f"{host}: {problem}")
    return found


def deploy_blame(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> str:
    """Return what speaks against the release itself, which nothing does as long as a host could not build it.

    An index, a disk or a network may have failed then. Nor does a host that was lost on the way say anything of it.
    """
    if any("deploy_built" not in hostvars[host] for host in hosts):
        return ""
    lost = {
        host
        for host in hosts
        for name in ("app_switched", "app_judged", "waitress_windows_live")
        if hostvars[host].get(name, {}).get("unreachable")
    }
    return "\n".join(deploy_problems([host for host in hosts if host not in lost], hostvars))


def deploy_report(problems: Sequence[str], hosts: Sequence[str], hostvars: Mapping[str, Any]) -> str:
    """Return what to tell the operator at the end of a deploy that failed."""
    lost = "could not be reached any more; run the deploy again when it can, which brings it to where all others are"
    stuck = [
        f"{host}: {hostvars[host].get('deploy_stuck', lost)}" for host in hosts if "deploy_back" not in hostvars[host]
    ]
    if not stuck:
        return "\n".join(["The deploy failed, and all hosts serve what was good before:", *problems])
    look = "These hosts did not get back to what was good before; look at them first:"
    return "\n".join(["The deploy failed:", *problems, look, *stuck])


def release_rows(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each release that the hosts have found, for filter table."""
    rows = []
    for host in hosts:
        known = hostvars[host]
        found = known["waitress_windows_listed"] if "waitress_windows_listed" in known else known["releases_found"]
        for release in found["releases"]:
            state = f"live, {release['verdict']}" if release["live"] else release["verdict"]
            rows.append(
                {
                    "host": host,
                    **{key: release[key] for key in ("app", "release", "source")},
                    "state": state,
                    "since": release["since"] or f"built {release['built']}",
                    "reason": release["reason"].partition("\n")[0],
                }
            )
    return rows
