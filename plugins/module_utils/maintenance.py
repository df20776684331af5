"""What a maintenance is made of: its times, its testers, who is in it, and what nginx has to be told.

Pure functions of what was asked, what was there and what time it is. Run on the controller only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any, Optional

RETRY_AFTER = 300  # seconds, where neither an end nor anything else is said
RETRY_AFTER_RANGE = (1, 604800)
REASON_LENGTH = 500  # nginx takes no parameter of more than 4096 bytes, and the page is one
REASON = re.compile(rf"[^\x00-\x1f\x7f]{{1,{REASON_LENGTH}}}")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")

Entry = dict[str, Any]
State = dict[str, Entry]


def read_time(text: str) -> datetime:
    """Read a time that means the same everywhere; ValueError says what is wrong with it."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        msg = "must be a time with its zone, such as 2026-11-21T14:00:00Z or 2026-11-21T15:00:00+01:00"
        raise ValueError(msg) from None
    if time.tzinfo is None:
        msg = f"has no zone; write {text}Z for UTC, or give an offset such as +01:00"
        raise ValueError(msg)
    return time.astimezone(timezone.utc).replace(microsecond=0)


def write_time(time: datetime) -> str:
    """Write a time as it is kept."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def read_network(text: str) -> str:
    """Read an address or a network; ValueError says what is wrong with it."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        msg = "is no address or network; give one such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
        raise ValueError(msg) from None
    msg = f"is an address with the length of a network; give {meant} for all of it, or {text.partition('/')[0]} alone"
    raise ValueError(msg)


def from_then_on(seconds: int) -> str:
    """Return a regular expression for whole numbers of `seconds` or more: nginx compares no numbers, but it matches."""
    digits = str(seconds)
    longer = f"[0-9]{{{len(digits) + 1},}}"
    greater = [
        f"{digits[:place]}[{int(digit) + 1}-9][0-9]{{{len(digits) - place - 1}}}"
        for place, digit in enumerate(digits)
        if digit != "9"
    ]
    return "|".join([digits, *greater, longer])


def is_over(entry: Entry, now: datetime) -> bool:
    """Whether a maintenance has come to the end that was given to it."""
    return bool(entry["until"]) and read_time(entry["until"]) <= now


def problems(records: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    """Return what is wrong with the records, for the specification says no more than their types."""
    found: list[str] = []
    low, high = RETRY_AFTER_RANGE
    for index, record in enumerate(records):
        at = f"maintenance[{index}] ({record['name']})"
        if not NAME.fullmatch(record["name"]):
            found.append(
                f'{at}: name: is no name of a site; give lower-case letters, digits, "-" and "_", a letter first'
            )
        for network in record.get("allow") or ():
            try:
                read_network(network)
            except ValueError as error:
                found.append(f"{at}: allow: {network} {error}")
        if record.get("until"):
            try:
                if read_time(record["until"]) <= now:
                    found.append(f"{at}: until: {record['until']} is over (it is {write_time(now)}); give a later time")
            except ValueError as error:
                found.append(f"{at}: until: {record['until']} {error}")
        if not REASON.fullmatch(record.get("reason") or "-"):
            found.append(f"{at}: reason: give one line of up to {REASON_LENGTH} characters")
        if not low <= int(record.get("retry_after", low)) <= high:
            found.append(f"{at}: retry_after: {record['retry_after']} is out of range; give {low} to {high} seconds")
    return found


def change(before: State, records: Sequence[Mapping[str, Any]], keep_others: bool, now: datetime) -> State:
    """Return who is in maintenance afterwards. One that goes on keeps the time since when it does."""
    running = {name: entry for name, entry in before.items() if not is_over(entry, now)}
    after = dict(running) if keep_others else {}
    for record in records:
        name = record["name"]
        if not record["closed"]:
            after.pop(name, None)
            continue
        until = record.get("until")
        after[name] = {
            "since": running[name]["since"] if name in running else write_time(now),
            "until": write_time(read_time(until)) if until else None,
            "retry_after": int(record["retry_after"]) if record.get("retry_after") else None,
            "reason": record.get("reason") or None,
            "allow": sorted({read_network(network) for network in record.get("allow") or ()}),
        }
    return dict(sorted(after.items()))


def batches(state: State) -> list[dict[str, Any]]:
    """Sort the sites by what nginx has to be told of them: those of one command are one batch."""
    found: list[dict[str, Any]] = []
    for name, entry in state.items():
        batch = {
            "allow": entry["allow"],
            "reason": entry["reason"],
            "until": entry["until"],
            "over": from_then_on(int(read_time(entry["until"]).timestamp())) if entry["until"] else "",
            "retry_after": _retry_after(entry["retry_after"], entry["until"]),
        }
        site = {"name": name, **entry}
        same: Optional[dict[str, Any]] = next(
            (other for other in found if all(other[key] == value for key, value in batch.items())), None
        )
        if same:
            same["sites"].append(site)
        else:
            found.append({"number": len(found) + 1, **batch, "sites": [site]})
    return found


def _retry_after(seconds: Optional[int], until: Optional[str]) -> str:
    if seconds:
        return str(seconds)
    return format_datetime(read_time(until), usegmt=True) if until else str(RETRY_AFTER)


def describe(entry: Entry) -> str:
    """Say since when a site is in maintenance, and until when."""
    return f"since {entry['since']}" + (f" until {entry['until']}" if entry["until"] else "")
