# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rules that the kernel holds, as `iptables -S` shows them, and what is wrong with them."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from .blocks import DIRECTIONS, POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .blocks import Block

# Kernel tools print the name or the number, by what /etc/protocols holds.
PROTOCOLS = {"tcp": "6", "udp": "17", "ah": "51", "esp": "50", "gre": "47", "igmp": "2", "ipv6": "41", "vrrp": "112"}
USER_CHAINS = (
    *("input", "output", "forward", "limit", "limit-accept"),
    *("logging-input", "logging-output", "logging-forward"),
)
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


def same(one: Block, other: Block) -> bool:
    """Whether both mean the same, however their lines are spelled."""
    return (one.words, one.comment) == (other.words, other.comment) and canonical_all(one.lines) == canonical_all(
        other.lines
    )


def chains(lines: Iterable[str], prefix: str) -> dict[str, list[tuple[str, ...]]]:
    """The rules of ufw's own chains for its users' rules, by chain."""
    names = [f"{prefix}-user-{suffix}" for suffix in USER_CHAINS]
    found: dict[str, list[tuple[str, ...]]] = {name: [] for name in names}
    for line in lines:
        words = line.split(None, 2)
        if len(words) > 2 and words[0] == "-A" and words[1] in found:
            found[words[1]].append(canonical(line))
        elif len(words) > 2 and words[0] == "-I" and words[1] in found:  # in files only, where logging is off
            found[words[1]].insert(0, canonical(line.replace("-I", "-A", 1)))
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


def ping_problems(kernel: str, family: int, wanted: Sequence[str]) -> list[str]:
    """Whether others than wanted may ping, going by the output of `iptables -S`."""
    prefix, number = ("ufw6", "128") if family == 6 else ("ufw", "8")
    start = f"-A {prefix}-before-input "
    loaded = [line for line in kernel.splitlines() if line.startswith(start) and f"-type {number} " in line]
    spelled = [
        line.replace("-p icmpv6 --icmpv6-type echo-request", "-p ipv6-icmp --icmpv6-type 128").replace(
            "-p icmp --icmp-type echo-request", "-p icmp --icmp-type 8"
        )
        for line in wanted
    ]
    right = canonical_all(loaded) == canonical_all(spelled)
    return [] if right else [f"IPv{family}: chain {prefix}-before-input has other rules for pings than the file"]


def published_ports(nat: str) -> list[str]:
    """The ports that Docker publishes, from `iptables -t nat -S DOCKER`, such as 8080/tcp; not those on loopback."""
    found = []
    for line in nat.splitlines():
        match = re.search(r"-A DOCKER .*-p (tcp|udp|sctp) .*--dport (\S+) .*-j DNAT", line)
        if match and "-d 127." not in line:
            found.append(f"{match[2]}/{match[1]}")
    return sorted(set(found), key=lambda port: (int(re.split("[:/]", port)[0]), port))
