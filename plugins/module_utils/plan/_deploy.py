"""What deploy.yml and its kin decide: which applications, whether to go on, and what to say in the end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Plan = Mapping[str, Any]

_LOGS = "/var/log/nginx"


def chosen_apps(plan: Plan, only: str | Sequence[str]) -> list[str]:
    """Return the names of the apps to act on, in the order of the plan; `only` is a list, or text with commas."""
    wanted = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only)
    wanted = [name for name in wanted if name]
    return [name for name in plan["apps"] if name in wanted or not wanted]


def deploy_errors(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the options of a deploy: `only`, `rollout`, `seconds`, `errors`, `bad`."""
    messages = []
    only = options["only"].split(",") if isinstance(options["only"], str) else options["only"]
    unknown = [name for name in only if name.strip() not in plan["apps"] and name.strip()]
    if unknown:
        messages.append(
            f"wsgi_apps_only: no app is called {', '.join(map(str, unknown))}; "
            f"there are {', '.join(plan['apps']) or 'none'}"
        )
    rollout = options["rollout"] if isinstance(options["rollout"], (list, tuple)) else [options["rollout"]]
    messages += [
        f"wsgi_rollout: {batch!r} is no batch; wanted: a number of hosts such as 1, or a share such as '25%'"
        for batch in rollout
        if not re.fullmatch(r"[1-9][0-9]*|([1-9][0-9]?|100)%", str(batch)) or isinstance(batch, bool)
    ]
    if not rollout:
        messages.append("wsgi_rollout: is an empty list; wanted: batches such as [1, '25%', '100%']")
    for name, high in (("seconds", 3600), ("errors", 100)):
        value = str(options[name])
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) or float(value) > high:
            messages.append(f"wsgi_canary_{name}: is {value}, must be a number from 0 to {high}")
    if options["bad"] not in ("keep", "refuse", "retry"):
        messages.append(f"wsgi_bad_releases: is {options['bad']}, must be one of keep, refuse, retry")
    return messages


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


def access_logs(plan: Plan, host: str, only: Sequence[str]) -> dict[str, str]:
    """Return the access log of nginx for each of these apps that a host runs."""
    known = plan["hosts"][host]
    # On a host that balances as well, the inner site has the requests that this host's own processes answer.
    suffix = "_inner" if known["inner"] and known["edge"] else ""
    return {name: f"{_LOGS}/{name}{suffix}.access.log" for name in known["apps"] if name in only}


def deploy_report(problems: Sequence[str], hosts: Sequence[str], hostvars: Mapping[str, Any], begun: bool) -> str:
    """Return what to tell the operator at the end of a deploy that failed."""
    stuck = [f"{host}: {hostvars[host]['deploy_stuck']}" for host in hosts if "deploy_stuck" in hostvars[host]]
    if not begun:
        return "\n".join(["Nothing was deployed.", *problems])
    if stuck:
        return "\n".join(
            [
                "The deploy failed:",
                *problems,
                "These hosts did not get back to what was good before; look at them first:",
                *stuck,
            ]
        )
    return "\n".join(["The deploy failed, and all hosts serve what was good before:", *problems])


def release_rows(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each release that the hosts have found (register `releases_found`), for filter table."""
    rows = []
    for host in hosts:
        for release in hostvars[host]["releases_found"]["releases"]:
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
