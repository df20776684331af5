# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules as people write them: what is wrong with them, and how ufw would store them."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any

from .blocks import ANYWHERE, FAMILIES, OWNER, POLICIES, Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def parse_address(text: str) -> tuple[int, str]:
    """Returns (family, address as ufw writes it); family 0 is `any`. ValueError says what would be right."""
    if text == "any":
        return 0, "any"
    if "%" in text:
        raise ValueError(f"'{text}' carries a zone; leave it out and name the interface with the key 'interface'")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            loose = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(
                f"'{text}' is no address; write 'any', an address such as 192.0.2.7 or a network such as "
                "192.0.2.0/24 (a firewall rule cannot hold a host name)"
            ) from None
        raise ValueError(
            f"'{text}' is neither a network nor a host; write {loose} or {text.partition('/')[0]}"
        ) from None
    address = network.network_address
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"'{text}' is an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}")
    kind = socket.AF_INET if network.version == 4 else socket.AF_INET6
    spelled = socket.inet_ntop(kind, address.packed)  # as ufw spells it
    return network.version, spelled if network.prefixlen == network.max_prefixlen else f"{spelled}/{network.prefixlen}"


def parse_port(text: str) -> str:
    """Returns the port or range as ufw writes it. ValueError says what would be right."""
    match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", text)
    if not match:
        remedy = "a number from 1 to 65535, or a range such as '8000:8010'"
        if "," in text:
            remedy += " (one record for each port)"
        raise ValueError(f"'{text}' is no port; write {remedy}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"'{text}' is out of range; ports go from 1 to 65535")
    if match[2] is None:
        return str(first)
    if first >= last:
        raise ValueError(f"'{text}' is no range; write the lower port first, as in '8000:8010'")
    return f"{first}:{last}"


_INTERFACE = re.compile(r"[A-Za-z0-9_.+,=%@-]{1,15}")
PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]{0,63}")


def record_errors(record: Mapping[str, Any], ipv6: bool = True, profiles: Mapping[str, str] | None = None) -> list[str]:
    """All that is wrong with one rule record (types and choices are already checked).

    profiles: the ports of each application profile of the host; None when they are not known yet.
    """
    return [
        *_address_errors(record, ipv6),
        *_port_errors(record),
        *_interface_errors(record),
        *_application_errors(record, profiles),
        *_action_errors(record),
    ]


def _address_errors(record: Mapping[str, Any], ipv6: bool) -> list[str]:
    errors: list[str] = []
    families: dict[str, int] = {}
    for key in ("from", "to"):
        try:
            families[key] = parse_address(record[key])[0]
        except ValueError as error:
            errors.append(f"{key}: {error}")
    if {4, 6} <= set(families.values()):
        errors.append("from, to: one is IPv4 and the other IPv6; no packet is both, write two records")
    if not ipv6:
        errors += [
            f"{key}: {record[key]} is IPv6, which is switched off; switch ipv6 on or drop the record"
            for key, family in families.items()
            if family == 6
        ]
    return errors


def _port_errors(record: Mapping[str, Any]) -> list[str]:
    if record.get("port") is None:
        return []
    try:
        port = parse_port(record["port"])
    except ValueError as error:
        return [f"port: {error}"]
    if ":" in port and record["proto"] == "any" and not record.get("app"):
        return [f"proto: a range of ports ({port}) needs a protocol; write proto: tcp or proto: udp"]
    return []


def _interface_errors(record: Mapping[str, Any]) -> list[str]:
    errors = []
    for key in ("interface", "out_interface"):
        name = record.get(key)
        if name is not None and (not _INTERFACE.fullmatch(name) or name in (".", "..")):
            errors.append(
                f"{key}: '{name}' is no name of an interface; write one as `ip link` shows it, such as eth0 "
                "(at most 15 characters, no alias such as eth0:1)"
            )
    if record.get("out_interface") is not None and record["direction"] != "routed":
        errors.append("out_interface: only packets that are passed on come in and leave; write direction: routed")
    return errors


def _application_errors(record: Mapping[str, Any], profiles: Mapping[str, str] | None) -> list[str]:
    app = record.get("app")
    if app is None:
        return []
    errors = []
    if record.get("port") is not None or record["proto"] != "any":
        errors.append("app: the profile says ports and protocols; leave out port and proto")
    if not PROFILE.fullmatch(app):
        errors.append(f"app: '{app}' is no name of a profile; write one as `ufw app list` shows it")
    elif profiles is not None and app not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        errors.append(f"app: there is no profile '{app}'; give it in applications, or take one that is there: {known}")
    return errors


def _action_errors(record: Mapping[str, Any]) -> list[str]:
    errors = []
    if record["action"] == "limit" and (record["proto"] != "tcp" or record["direction"] != "in"):
        errors.append("action: limit counts new TCP connections from outside; write proto: tcp and direction: in")
    names = ("port", "app", "interface", "out_interface")
    if all(record.get(key) is None for key in names) and record["from"] == record["to"] == "any":
        errors.append(
            "it matches everything; name a port, an address or an interface "
            "(what happens to all the rest is the matter of the default policies)"
        )
    comment = record.get("comment") or ""
    if not comment.isprintable() or "'" in comment or len(comment) > 200:
        errors.append("comment: write at most 200 printable characters on one line, without apostrophes")
    return errors


def describe_record(record: Mapping[str, Any]) -> str:
    """The keys that were given, in the order of the documentation."""
    usual = {"proto": "any", "from": "any", "to": "any", "direction": "in", "action": "allow"}
    keys = (
        *("action", "direction", "port", "proto", "app", "from", "to", "interface", "out_interface", "log"),
        "comment",
    )
    given = [f"{key}: {record[key]}" for key in keys if record.get(key) not in (None, usual.get(key))]
    return "{" + ", ".join(given) + "}"


def check_records(
    records: Sequence[Mapping[str, Any]], ipv6: bool = True, profiles: Mapping[str, str] | None = None
) -> list[str]:
    """All that is wrong with all records, each line naming the record."""
    return [
        f"rules[{index}] {describe_record(record)}: {error}"
        for index, record in enumerate(records)
        for error in record_errors(record, ipv6, profiles)
    ]


def record_families(record: Mapping[str, Any]) -> tuple[int, ...]:
    """The families of addresses that a (valid) record speaks of."""
    named = {parse_address(record[key])[0] for key in ("from", "to")} - {0}
    return tuple(named) if named else FAMILIES


def render(record: Mapping[str, Any], family: int, profiles: Mapping[str, str] | None = None) -> list[Block]:
    """One (valid) record as ufw itself would store it for this family; a profile has a rule for each of its entries."""
    if record.get("app") is None:
        dport = parse_port(record["port"]) if record.get("port") is not None else "any"
        return [_block(record, family, dport, record["proto"])]
    return [_block(record, family, *entry) for entry in parse_ports((profiles or {}).get(record["app"], ""))]


def parse_ports(text: str) -> list[tuple[str, str]]:
    """The (ports, protocol) of an application profile such as `80,443/tcp|53`, as ufw writes them in rules."""
    entries = []
    for entry in filter(None, text.replace(" ", "").split("|")):
        ports, _, proto = entry.partition("/")
        ordered = sorted(ports.split(","), key=lambda port: [int(end) for end in re.findall(r"\d+", port)])
        entries.append((",".join(ordered), proto or "any"))
    return entries


def _block(record: Mapping[str, Any], family: int, dport: str, proto: str) -> Block:
    action, direction = record["action"], record["direction"]
    routed = direction == "routed"
    ends = {}
    for key in ("from", "to"):
        named, address = parse_address(record[key])
        ends[key] = ANYWHERE[family] if named == 0 else address
    came, leaves = record.get("interface"), record.get("out_interface")
    if direction == "out":
        came, leaves = None, came
    comment = (record.get("comment") or "").strip()
    if not Block((), comment, ()).ours:
        comment = f"{OWNER}: {comment}" if comment else OWNER
    log = {"new": "log", "all": "log-all"}.get(record.get("log") or "", "")
    app = (record.get("app") or "").replace(" ", "%20")
    way = "!".join(filter(None, [f"in_{came}" if came else "", f"out_{leaves}" if leaves else ""]))
    words = (
        ("route:" if routed else "") + action + (f"_{log}" if log else ""),
        *(proto, dport, ends["to"], "any", ends["from"]),
        *((app, "-") if app else ()),
        way or ("out" if direction == "out" else "in"),
    )

    def match(protocol: str) -> list[str]:
        several = "," in dport or ":" in dport
        parts = (["-i", came] if came else []) + (["-o", leaves] if leaves else [])
        parts += ["-p", protocol] if protocol != "any" else []
        parts += ["-m", "multiport", "--dports", dport] if several else []
        parts += ["-d", ends["to"]] if ends["to"] != ANYWHERE[family] else []
        parts += ["--dport", dport] if dport != "any" and not several else []
        parts += ["-s", ends["from"]] if ends["from"] != ANYWHERE[family] else []
        return parts

    prefix = "ufw6" if family == 6 else "ufw"
    suffix = {"in": "input", "out": "output", "routed": "forward"}[direction]
    chain, logging = f"{prefix}-user-{suffix}", f"{prefix}-user-logging-{suffix}"
    lines: list[list[str]] = []
    # iptables knows ports of one protocol only, so `any` with a port is two lines
    for protocol in ("tcp", "udp") if proto == "any" and dport != "any" else (proto,):
        known = match(protocol)
        if log:
            once = ["-m", "conntrack", "--ctstate", "NEW"] if log == "log" else []
            what = {"allow": "ALLOW", "limit": "LIMIT"}.get(action, "BLOCK")
            text = ["-m", "limit", "--limit", "3/min", "--limit-burst", "10", "-j", "LOG", "--log-prefix"]
            lines.append([logging, *known, *once, *text, f'"[UFW {what}] "'])
            lines.append([logging, *known, "-j", "RETURN"])
            lines.append([chain, *known, "-j", logging])
        name = ["-m", "comment", "--comment", f"'dapp_{app}'"] if app else []
        if action == "limit":
            recent = [chain, *known, "-m", "conntrack", "--ctstate", "NEW", "-m", "recent"]
            lines.append([*recent, "--set", *name])
            lines.append(
                [*recent, "--update", "--seconds", "30", "--hitcount", "6", "-j", f"{prefix}-user-limit", *name]
            )
            lines.append([chain, *known, "-j", f"{prefix}-user-limit-accept", *name])
        else:
            reset = ["--reject-with", "tcp-reset"] if action == "reject" and protocol == "tcp" else []
            lines.append([chain, *known, "-j", POLICIES[action], *reset, *name])
    return Block(words, comment, tuple(" ".join(["-A", *parts]) for parts in lines))


def render_all(
    records: Iterable[Mapping[str, Any]], family: int, profiles: Mapping[str, str] | None = None
) -> list[Block]:
    """The records of one family in their order; of two that match the same packets only the first ever counts."""
    blocks: dict[tuple[object, ...], Block] = {}
    for record in records:
        if family in record_families(record):
            for block in render(record, family, profiles):
                blocks.setdefault(block.matches, block)
    return list(blocks.values())
