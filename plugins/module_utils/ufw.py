"""What the ufw module knows: rule records, ufw's rule files, the kernel's rules, and who speaks SSH with this host.

Pure functions on text and lists; only the last part (SSH) looks at /proc.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The comment of a rule is what makes it ours; ufw keeps it (as hex) beside the rule.
OWNER = "wsgi.fleet"
SSH = f"{OWNER}: keep SSH open"
FAMILIES = (4, 6)
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
TARGETS = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT"}
POLICIES = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT"}
DIRECTIONS = {"incoming": "input", "outgoing": "output", "routed": "forward"}
LOG_LEVELS = ("off", "low", "medium", "high", "full")

TUPLE = "### tuple ###"
RULES, END_RULES = "### RULES ###", "### END RULES ###"
LOGGING, END_LOGGING = "### LOGGING ###", "### END LOGGING ###"


class UfwError(Exception):
    """Something that the operator has to read; the text says what, where and the fix."""


@dataclass(frozen=True)
class Block:
    """One rule as ufw stores it: the words that ufw reads back, and the lines that iptables-restore loads.

    words: action, proto, dport, dst, sport, src, [dst app, src app,] direction.
    """

    words: tuple[str, ...]
    comment: str
    lines: tuple[str, ...]

    @property
    def ours(self) -> bool:
        """Whether the comment says that it is one of our rules."""
        return self.comment == OWNER or self.comment.startswith(f"{OWNER}:")

    def same(self, other: Block) -> bool:
        """Whether both mean the same, however their lines are spelled."""
        return (self.words, self.comment) == (other.words, other.comment) and canonical_all(
            self.lines
        ) == canonical_all(other.lines)

    def __str__(self) -> str:
        """For people: `allow in 80/tcp from 192.0.2.1 to any on eth0  # comment`."""
        action, proto, dport, dst, sport, src = self.words[:6]
        direction, _, interface = self.words[-1].partition("_")
        parts = [action.replace(":", " "), direction]
        if dport != "any" or proto != "any":
            parts.append(f"{dport}/{proto}")
        parts += ["from", "any" if src in ANYWHERE.values() else src]
        if sport != "any":
            parts.append(f"port {sport}")
        parts += ["to", "any" if dst in ANYWHERE.values() else dst]
        if interface:
            parts.append(f"on {interface}")
        return " ".join(parts) + (f"  # {self.comment}" if self.comment else "")


# ---------------------------------------------------------------------------------------------------------------------
# Records: what people write


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


def record_errors(record: dict[str, Any], ipv6: bool = True) -> list[str]:
    """All that is wrong with one rule record (types and choices are already checked)."""
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
    port, proto = record.get("port"), record["proto"]
    if port is not None:
        try:
            port = parse_port(port)
        except ValueError as error:
            errors.append(f"port: {error}")
        else:
            if ":" in port and proto == "any":
                errors.append(f"proto: a range of ports ({port}) needs a protocol; write proto: tcp or proto: udp")
    interface = record.get("interface")
    if interface is not None and (
        not re.fullmatch(r"[A-Za-z0-9_.+,=%@-]{1,15}", interface) or interface in (".", "..")
    ):
        errors.append(
            f"interface: '{interface}' is no name of an interface; write one as `ip link` shows it, such as eth0 "
            "(at most 15 characters, no alias such as eth0:1)"
        )
    if record["action"] == "limit" and (proto != "tcp" or record["direction"] != "in"):
        errors.append("action: limit counts new TCP connections from outside; write proto: tcp and direction: in")
    if port is None and interface is None and record["from"] == record["to"] == "any":
        errors.append(
            "it matches everything; name a port, an address or an interface "
            "(what happens to all the rest is the matter of the default policies)"
        )
    comment = record.get("comment") or ""
    if not comment.isprintable() or "'" in comment or len(comment) > 200:
        errors.append("comment: write at most 200 printable characters on one line, without apostrophes")
    return errors


def describe_record(record: dict[str, Any]) -> str:
    """The keys that were given, in the order of the documentation."""
    usual = {"proto": "any", "from": "any", "to": "any", "direction": "in", "action": "allow"}
    keys = ("action", "direction", "port", "proto", "from", "to", "interface", "comment")
    given = [f"{key}: {record[key]}" for key in keys if record.get(key) not in (None, usual.get(key))]
    return "{" + ", ".join(given) + "}"


def check_records(records: Sequence[dict[str, Any]], ipv6: bool = True) -> list[str]:
    """All that is wrong with all records, each line naming the record."""
    return [
        f"rules[{index}] {describe_record(record)}: {error}"
        for index, record in enumerate(records)
        for error in record_errors(record, ipv6)
    ]


def record_families(record: dict[str, Any]) -> tuple[int, ...]:
    """The families of addresses that a (valid) record speaks of."""
    named = {parse_address(record[key])[0] for key in ("from", "to")} - {0}
    return tuple(named) if named else FAMILIES


def render(record: dict[str, Any], family: int) -> Block:
    """One (valid) record as ufw itself would store it for this family."""
    action, proto, direction = record["action"], record["proto"], record["direction"]
    dport = parse_port(record["port"]) if record.get("port") is not None else "any"
    ends = {}
    for key in ("from", "to"):
        named, address = parse_address(record[key])
        ends[key] = ANYWHERE[family] if named == 0 else address
    interface = record.get("interface")
    comment = (record.get("comment") or "").strip()
    if not Block((), comment, ()).ours:
        comment = f"{OWNER}: {comment}" if comment else OWNER
    words = (
        action,
        proto,
        dport,
        ends["to"],
        "any",
        ends["from"],
        f"{direction}_{interface}" if interface else direction,
    )

    def line(protocol: str) -> list[str]:
        parts = [("-i" if direction == "in" else "-o"), interface] if interface else []
        parts += ["-p", protocol] if protocol != "any" else []
        parts += ["-m", "multiport", "--dports", dport] if ":" in dport else []
        parts += ["-d", ends["to"]] if ends["to"] != ANYWHERE[family] else []
        parts += ["--dport", dport] if dport != "any" and ":" not in dport else []
        parts += ["-s", ends["from"]] if ends["from"] != ANYWHERE[family] else []
        return parts

    prefix = "ufw6" if family == 6 else "ufw"
    chain = f"{prefix}-user-{'input' if direction == 'in' else 'output'}"
    lines: list[list[str]] = []
    # iptables knows ports of one protocol only, so `any` with a port is two lines
    for protocol in ("tcp", "udp") if proto == "any" and dport != "any" else (proto,):
        match = line(protocol)
        if action == "limit":
            recent = [*match, "-m", "conntrack", "--ctstate", "NEW", "-m", "recent"]
            lines.append([*recent, "--set"])
            lines.append([*recent, "--update", "--seconds", "30", "--hitcount", "6", "-j", f"{prefix}-user-limit"])
            lines.append([*match, "-j", f"{prefix}-user-limit-accept"])
        else:
            reset = ["--reject-with", "tcp-reset"] if action == "reject" and protocol == "tcp" else []
            lines.append([*match, "-j", TARGETS[action], *reset])
    return Block(words, comment, tuple(" ".join(["-A", chain, *parts]) for parts in lines))


def render_all(records: Iterable[dict[str, Any]], family: int) -> list[Block]:
    """The records of one family in their order; of two that match the same packets only the first ever counts."""
    blocks: dict[tuple[str, ...], Block] = {}
    for record in records:
        if family in record_families(record):
            block = render(record, family)
            blocks.setdefault(block.words[1:], block)
    return list(blocks.values())


def ssh_records(ports: Iterable[int], sources: Sequence[str], action: str) -> list[dict[str, Any]]:
    """The rules that keep SSH open."""
    return [
        {
            "port": str(port),
            "proto": "tcp",
            "from": source,
            "to": "any",
            "direction": "in",
            "action": action,
            "comment": SSH,
        }
        for port in sorted(set(ports))
        for source in sources
    ]


# ---------------------------------------------------------------------------------------------------------------------
# ufw's files


def parse_rules(text: str) -> list[Block]:
    """The rules of a user.rules file, ours and foreign ones, in their order."""
    blocks: list[Block] = []
    for line in section(text, RULES, END_RULES) or ():
        if line.startswith(TUPLE):
            words, _, code = line[len(TUPLE) :].partition(" comment=")
            comment = bytes.fromhex(code.strip()[: len(code.strip()) // 2 * 2]).decode("utf-8", "backslashreplace")
            blocks.append(Block(tuple(words.split()), comment, ()))
        elif line.strip() and blocks:
            blocks[-1] = replace(blocks[-1], lines=(*blocks[-1].lines, line))
    return blocks


def section(text: str, start: str, end: str) -> list[str] | None:
    """The lines between two marks; None when a mark is missing, as in a file that ufw has not written yet."""
    lines = text.splitlines()
    if start not in lines or end not in lines:
        return None
    return lines[lines.index(start) + 1 : lines.index(end)]


def replace_rules(text: str, blocks: Sequence[Block]) -> str:
    """The file with these rules in place of its own, byte for byte as ufw writes it."""
    if section(text, RULES, END_RULES) is None:
        raise UfwError("there is no list of rules in it")
    head, _, rest = text.partition(f"{RULES}\n")
    tail = rest.partition(f"{END_RULES}\n")[2]
    body = ""
    for block in blocks:
        comment = f" comment={block.comment.encode().hex()}" if block.comment else ""
        body += "\n".join(["", f"{TUPLE} {' '.join(block.words)}{comment}", *block.lines, ""])
    return f"{head}{RULES}\n{body}\n{END_RULES}\n{tail}"


def merge_rules(current: Sequence[Block], wanted: Sequence[Block]) -> list[Block]:
    """The wanted order: SSH first; ours in their order; a foreign rule that stood before one of ours stays before."""
    ssh = [block for block in wanted if block.comment == SSH]
    rules = [block for block in wanted if block.comment != SSH]
    ours = [block for block in current if block.ours]
    if (
        len(ours) == len(wanted)
        and all(old.same(new) for old, new in zip(ours, wanted))
        and all(block.ours for block in current[: len(ssh)])
    ):
        return list(current)
    places = [index for index, block in enumerate(current) if block.ours and block.comment != SSH]
    end = places[-1] if places else len(current)
    before = [block for block in current[:end] if not block.ours]
    after = [block for block in current[end:] if not block.ours]
    return [*ssh, *before, *rules, *after]


def missing_limit(text: str, blocks: Sequence[Block]) -> bool:
    """Whether a rule wants to limit where ufw found that the kernel cannot (the file has no chain for it)."""
    chains = {line.split()[0][1:] for line in text.splitlines() if line.startswith(":")}
    return any(block.words[0].startswith("limit") for block in blocks) and not any(
        chain.endswith("-user-limit") for chain in chains
    )


def logging_level(text: str) -> str | None:
    """The level that the file's own rules have; None when ufw has not written any yet."""
    lines = section(text, LOGGING, END_LOGGING)
    if not lines:
        return None
    audits = [line for line in lines if '"[UFW AUDIT] "' in line]
    if not audits:
        return "low" if any("LOG " in line for line in lines) else "off"
    if "--ctstate NEW" in audits[0]:
        return "medium"
    return "high" if "--limit" in audits[0] else "full"


def parse_settings(text: str) -> dict[str, str]:
    """KEY=value lines of /etc/default/ufw and ufw.conf, read as ufw reads them."""
    found = re.findall(r'^(\w+)="?(\w+)"?', text, re.MULTILINE)
    return {key: value.lower() for key, value in found}


def change_settings(text: str, settings: dict[str, str]) -> str:
    """The text with these KEY=value lines; all other lines as they were."""
    for key, value in settings.items():
        line = f"{key}={value}"
        text, count = re.subn(rf"^{key}=.*$", line, text, flags=re.MULTILINE)
        if not count:
            text = f"{text.rstrip()}\n{line}\n"
    return text


# ---------------------------------------------------------------------------------------------------------------------
# The kernel

# Kernel tools print the name or the number, by what /etc/protocols holds.
PROTOCOLS = {"tcp": "6", "udp": "17", "ah": "51", "esp": "50", "gre": "47", "igmp": "2", "ipv6": "41", "vrrp": "112"}
# Options that `iptables -S` prints although they are the default, or that only load a match.
SILENT = re.compile(
    r"-m \S+|-p all|--name DEFAULT|--mask (255\.255\.255\.255|ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff)|--rsource"
    r"|--reject-with icmp6?-port-unreachable|--limit-burst 5"
)


def canonical(line: str) -> tuple[str, ...]:
    """A rule of iptables as a sorted list of options, the same for what ufw writes and for what the kernel shows."""
    options: list[list[str]] = []
    for word in shlex.split(line):
        if word.startswith("-") or not options:
            options.append([word])
        else:
            options[-1].append(word)
    result = []
    for option, *values in options:
        value = " ".join(values)
        if option in ("-s", "-d"):
            value = re.sub(r"(/32|/255\.255\.255\.255)$" if ":" not in value else r"/128$", "", value)
        elif option == "-p":
            value = PROTOCOLS.get(value, value)
        elif option == "--limit":
            value = value.replace("/minute", "/min")
        elif option == "--comment":
            value = value.translate({ord(quote): None for quote in "'\"\\"})
        spelled = f"{option} {value}".strip()
        if not SILENT.fullmatch(spelled):
            result.append(spelled)
    return tuple(sorted(result))


def canonical_all(lines: Iterable[str]) -> list[tuple[str, ...]]:
    """Each line in that form, in the same order."""
    return [canonical(line) for line in lines]


def chains(lines: Iterable[str], prefix: str) -> dict[str, list[tuple[str, ...]]]:
    """The rules of ufw's own chains for its users' rules, by chain."""
    names = [f"{prefix}-user-{suffix}" for suffix in ("input", "output", "forward", "limit", "limit-accept")]
    found: dict[str, list[tuple[str, ...]]] = {name: [] for name in names}
    for line in lines:
        words = line.split(None, 2)
        if len(words) > 2 and words[0] == "-A" and words[1] in found:
            found[words[1]].append(canonical(line))
    return found


def frame_jumps(chain: str, prefix: str) -> list[str]:
    """The jumps by which one of the kernel's own chains hands its packets to ufw, in their order."""
    steps = ("before-logging", "before", "after", "after-logging", "reject", "track")
    return [f"-A {chain.upper()} -j {prefix}-{step}-{chain}" for step in steps]


def found_jumps(lines: Iterable[str], chain: str, prefix: str) -> list[str]:
    """Those of them that are there."""
    return [line for line in lines if line.startswith(f"-A {chain.upper()} -j {prefix}-")]


def frame_problems(kernel: str, family: int, policies: dict[str, str]) -> list[str]:
    """What is wrong with ufw's frame (policies, jumps into its chains) in the output of `iptables -S`."""
    lines = kernel.splitlines()
    prefix = "ufw6" if family == 6 else "ufw"
    icmp = "icmp6" if family == 6 else "icmp"
    problems = []
    for direction, chain in DIRECTIONS.items():
        policy = POLICIES[policies[direction]]
        jump = f"-A {prefix}-before-{chain} -j {prefix}-user-{chain}"
        rejects = [line for line in lines if line.startswith(f"-A {prefix}-reject-{chain} ")]
        wanted = [f"-A {prefix}-reject-{chain} -j REJECT --reject-with {icmp}-port-unreachable"]
        if f"-P {chain.upper()} {'ACCEPT' if policy == 'ACCEPT' else 'DROP'}" not in lines:
            problems.append(f"the policy of {chain.upper()} is not {policies[direction]}")
        if found_jumps(lines, chain, prefix) != frame_jumps(chain, prefix):
            problems.append(f"chain {chain.upper()} does not lead to ufw's chains")
        if jump not in lines:
            problems.append(f"chain {prefix}-before-{chain} does not lead to the rules")
        if rejects != (wanted if policy == "REJECT" else []):
            problems.append(f"chain {prefix}-reject-{chain} is not for the policy {policies[direction]}")
    return [f"IPv{family}: {problem}" for problem in problems]


def mend_jumps(kernel: str, family: int) -> str:
    """Input for `iptables-restore --noflush` that lays the jumps into ufw's chains anew; empty when they are right.

    ufw lays them only when it finds none of its chains, so no `ufw reload` helps after `iptables --flush`.
    """
    lines = kernel.splitlines()
    prefix = "ufw6" if family == 6 else "ufw"
    if f"-N {prefix}-before-logging-input" not in lines:
        return ""
    declared, script = [], []
    for chain in DIRECTIONS.values():
        found, wanted = found_jumps(lines, chain, prefix), frame_jumps(chain, prefix)
        if found != wanted:
            declared += [f":{line.split()[-1]} - [0:0]" for line in wanted if f"-N {line.split()[-1]}" not in lines]
            script += [line.replace("-A", "-D", 1) for line in found] + wanted
    return "\n".join(["*filter", *declared, *script, "COMMIT", ""]) if script else ""


def ssh_is_shut(kernel: str, family: int, ssh: Sequence[Block]) -> bool:
    """Whether packets for SSH would meet a policy that is not `allow` before they meet our rules for SSH."""
    lines = kernel.splitlines()
    prefix = "ufw6" if family == 6 else "ufw"
    if "-P INPUT ACCEPT" in lines:
        return False
    wanted = canonical_all(line for block in ssh for line in block.lines)
    return (
        found_jumps(lines, "input", prefix) != frame_jumps("input", prefix)
        or f"-A {prefix}-before-input -j {prefix}-user-input" not in lines
        or chains(lines, prefix)[f"{prefix}-user-input"][: len(wanted)] != wanted
    )


def closed_problems(kernel: str) -> list[str]:
    """What is missing of ufw's closed door for IPv6 when IPv6 is switched off."""
    lines = set(kernel.splitlines())
    return [
        f"IPv6: the policy of {chain} is not deny" for chain in ("INPUT", "OUTPUT") if f"-P {chain} DROP" not in lines
    ]


def rules_problems(kernel: str, family: int, text: str) -> list[str]:
    """The chains whose rules in the kernel are not those of the file."""
    prefix = "ufw6" if family == 6 else "ufw"
    loaded, filed = chains(kernel.splitlines(), prefix), chains(text.splitlines(), prefix)
    return [
        f"IPv{family}: chain {name} has {len(loaded[name])} rules that are not the {len(filed[name])} of the file"
        if len(loaded[name]) != len(filed[name])
        else f"IPv{family}: chain {name} has other rules than the file"
        for name in filed
        if loaded[name] != filed[name]
    ]


# ---------------------------------------------------------------------------------------------------------------------
# SSH: which ports it really uses


ESTABLISHED, LISTEN = "01", "0A"  # states in /proc/net/tcp
ROOT_UID = 0  # anybody can call a program of his own sshd


def ssh_connection(pid: int, proc: Path = Path("/proc")) -> tuple[str, int] | None:
    """(client's address, port on this host) of the SSH connection that `pid` descends from.

    sudo and su drop SSH_CONNECTION from the environment, so the parents are asked as well, up to sshd's child.
    """
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        try:
            environment = (proc / str(pid) / "environ").read_bytes()
            status = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:  # ended, or another user's and we are not root
            return None
        for entry in environment.split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION="):
                words = entry.decode(errors="replace").partition("=")[2].split()
                address = words[0].partition("%")[0] if words else ""
                # sshd writes UNKNOWN where it was not given a network connection
                return (address, int(words[3])) if len(words) == 4 and address != "UNKNOWN" else None
        pid = int(status.rpartition(")")[2].split()[1])  # after the name, which may hold spaces and brackets
    return None


@dataclass(frozen=True)
class Socket:
    """A line of /proc/net/tcp or tcp6."""

    local: str
    port: int
    remote: str
    state: str
    inode: str


def read_sockets(proc: Path = Path("/proc")) -> list[Socket]:
    """All TCP sockets of this host."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            table = (proc / "net" / name).read_text()
        except OSError:  # no such family on this host
            continue
        for line in table.splitlines()[1:]:
            words = line.split()
            local, _, port = words[1].partition(":")
            remote = words[2].partition(":")[0]
            found.append(Socket(unpack(local), int(port, 16), unpack(remote), words[3], words[9]))
    return found


def unpack(text: str) -> str:
    """An address of /proc/net: hexadecimal, each 4 bytes in the order of the machine."""
    quads = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(quad.to_bytes(4, sys.byteorder) for quad in quads))
    return str(getattr(address, "ipv4_mapped", None) or address)


def peers(ports: Iterable[int], sockets: Iterable[Socket]) -> list[str]:
    """The addresses of all who have a connection with one of these ports."""
    return sorted({known.remote for known in sockets if known.state == ESTABLISHED and known.port in ports})


def sshd_ports(sockets: Iterable[Socket], proc: Path = Path("/proc")) -> set[int]:
    """The ports on which root's sshd listens for logins from other hosts.

    Not those of its sessions: a session may listen for a forwarded port (`ssh -R`), which is nobody's login.
    """
    listening = {
        known.inode: known.port
        for known in sockets
        if known.state == LISTEN and not ipaddress.ip_address(known.local).is_loopback
    }
    ports: set[int] = set()
    for process in proc.glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() != "sshd" or process.stat().st_uid != ROOT_UID:
                continue
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            if title.startswith(b"sshd: ") and b"[listener]" not in title:
                continue  # a session
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:  # ended meanwhile
            continue
        ports |= {listening[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in listening}
    return ports
