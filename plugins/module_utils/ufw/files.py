# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files that ufw keeps: rules, settings, and what it loads before its rules."""

from __future__ import annotations

import configparser
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from .blocks import SSH, Block, UfwError
from .kernel import same
from .records import PROFILE, parse_address, parse_port, parse_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TUPLE = "### tuple ###"
RULES, END_RULES = "### RULES ###", "### END RULES ###"
LOGGING, END_LOGGING = "### LOGGING ###", "### END LOGGING ###"


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
        and all(same(old, new) for old, new in zip(ours, wanted))
        and all(block.ours for block in current[: len(ssh)])
    ):
        return list(current)
    places = [index for index, block in enumerate(current) if block.ours and block.comment != SSH]
    end = places[-1] if places else len(current)
    before = [block for block in current[:end] if not block.ours]
    after = [block for block in current[end:] if not block.ours]
    return [*ssh, *before, *rules, *after]


def only_opens(current: Sequence[Block], wanted: Sequence[Block]) -> bool:
    """Whether nothing is lost on the way from the one list to the other, and nothing but rules that allow is new."""
    rest = list(current)
    for block in wanted:
        if rest and same(rest[0], block):
            rest.pop(0)
        elif not block.opens:
            return False
    return not rest


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
# What is loaded before the rules: of that, the answer to pings is ours

_PING = re.compile(r"-A ufw6?-before-input\s+-p icmp(v6)?\s+--icmp(v6)?-type echo-request\b.*")


def ping_lines(sources: Sequence[str], family: int) -> list[str]:
    """The lines of before.rules that let these addresses and networks ping, and nobody else."""
    start = "-A ufw6-before-input -p icmpv6 --icmpv6-type echo-request"
    if family == 4:
        start = "-A ufw-before-input -p icmp --icmp-type echo-request"
    networks = [parse_address(source) for source in sources]
    if any(address == "any" for _, address in networks):
        return [f"{start} -j ACCEPT"]
    return [*(f"{start} -s {address} -j ACCEPT" for kind, address in networks if kind == family), f"{start} -j DROP"]


def found_ping(text: str) -> list[str]:
    """Those that a before.rules file has."""
    return [line for line in text.splitlines() if _PING.fullmatch(line)]


def change_ping(text: str, wanted: Sequence[str]) -> str:
    """The file with the wanted lines in place of those that it has; everything else as it was."""
    if found_ping(text) == list(wanted):
        return text
    lines = text.splitlines()
    places = [index for index, line in enumerate(lines) if _PING.fullmatch(line)]
    if not places:  # somebody took them out: where the rules end
        if "*filter" not in lines or "COMMIT" not in lines[lines.index("*filter") :]:
            raise UfwError("there is no list of rules in it")
        places = [lines.index("COMMIT", lines.index("*filter"))]
    kept = [line for line in lines if not _PING.fullmatch(line)]
    return "\n".join([*kept[: places[0]], *wanted, *kept[places[0] :]]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Application profiles


def parse_profiles(text: str) -> dict[str, str]:
    """The ports of each profile of a file of applications.d; what ufw itself could not read is passed over."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    return {name: parser[name]["ports"] for name in parser.sections() if parser[name].get("ports")}


def write_profiles(applications: Sequence[Mapping[str, str]]) -> str:
    """Our file of applications.d; empty without an application."""
    sections = [
        f"[{one['name']}]\ntitle={one.get('title') or one['name']}\n"
        f"description={one.get('description') or one['name']}\nports={one['ports']}\n"
        for one in applications
    ]
    return "\n".join(["# Managed by wsgi.fleet (ufw). Changes here are lost.", "", *sections]) if sections else ""


def application_errors(applications: Sequence[Mapping[str, str]]) -> list[str]:
    """All that is wrong with the profiles that people want."""
    errors = []
    for index, one in enumerate(applications):
        where = f"applications[{index}] {{name: {one['name']}}}"
        if not PROFILE.fullmatch(one["name"]) or one["name"] == "all" or one["name"].isdigit():
            errors.append(
                f"{where}: name: write at most 64 letters, digits, spaces and any of _.+-, beginning with a letter"
            )
        for key in ("title", "description"):
            if not (one.get(key) or "").isprintable():
                errors.append(f"{where}: {key}: write one line")
        for ports, proto in parse_ports(one["ports"]) or [("", "")]:
            problem = _entry_problem(ports, proto)
            if problem:
                errors.append(f"{where}: ports: {problem}")
    return errors


def _entry_problem(ports: str, proto: str) -> str:
    try:
        for port in ports.split(","):
            parse_port(port)
    except ValueError as error:
        return str(error)
    if proto not in ("tcp", "udp", "any"):
        return f"'{proto}' is no protocol; write tcp or udp, as in 80,443/tcp|53/udp"
    if proto == "any" and ("," in ports or ":" in ports):
        return f"several ports ({ports}) need a protocol; write {ports}/tcp or {ports}/udp"
    return ""
