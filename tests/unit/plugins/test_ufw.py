"""The ufw module's logic, as tables. What ufw writes was taken down from ufw 0.36.2 itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils import ufw


def record(**given: Any) -> dict[str, Any]:
    """A record with the module's defaults; `source` stands for the key `from`."""
    base = {
        "port": None,
        "proto": "any",
        "from": "any",
        "to": "any",
        "interface": None,
        "direction": "in",
        "action": "allow",
        "comment": None,
    }
    if "source" in given:
        given["from"] = given.pop("source")
    return base | given


# --- records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "http"}, "port: 'http' is no port; write a number from 1 to 65535, or a range such as '8000:8010'"),
        (
            {"port": "80,443", "proto": "tcp"},
            (
                "port: '80,443' is no port; write a number from 1 to 65535, or a range such as '8000:8010' "
                "(one record for each port)"
            ),
        ),
        ({"port": "True"}, "port: 'True' is no port; write a number from 1 to 65535, or a range such as '8000:8010'"),
        ({"port": "0"}, "port: '0' is out of range; ports go from 1 to 65535"),
        ({"port": "70000"}, "port: '70000' is out of range; ports go from 1 to 65535"),
        (
            {"port": "9000:8000", "proto": "tcp"},
            "port: '9000:8000' is no range; write the lower port first, as in '8000:8010'",
        ),
        (
            {"port": "8000:8010"},
            "proto: a range of ports (8000:8010) needs a protocol; write proto: tcp or proto: udp",
        ),
        (
            {"source": "lb1.example.com"},
            (
                "from: 'lb1.example.com' is no address; write 'any', an address such as 192.0.2.7 or a network such as "
                "192.0.2.0/24 (a firewall rule cannot hold a host name)"
            ),
        ),
        (
            {"source": "192.0.2.7/24"},
            "from: '192.0.2.7/24' is neither a network nor a host; write 192.0.2.0/24 or 192.0.2.7",
        ),
        (
            {"to": "fe80::1%eth0"},
            "to: 'fe80::1%eth0' carries a zone; leave it out and name the interface with the key 'interface'",
        ),
        (
            {"source": "::ffff:192.0.2.7"},
            "from: '::ffff:192.0.2.7' is an IPv4 address in IPv6 clothes; write 192.0.2.7",
        ),
        (
            {"source": "192.0.2.7", "to": "2001:db8::1"},
            "from, to: one is IPv4 and the other IPv6; no packet is both, write two records",
        ),
        (
            {"port": "22", "interface": "eth0:1"},
            (
                "interface: 'eth0:1' is no name of an interface; write one as `ip link` shows it, such as eth0 "
                "(at most 15 characters, no alias such as eth0:1)"
            ),
        ),
        (
            {"port": "22", "action": "limit"},
            "action: limit counts new TCP connections from outside; write proto: tcp and direction: in",
        ),
        (
            {"port": "25", "proto": "tcp", "action": "limit", "direction": "out"},
            "action: limit counts new TCP connections from outside; write proto: tcp and direction: in",
        ),
        (
            {},
            (
                "it matches everything; name a port, an address or an interface (what happens to all the rest is the "
                "matter of the default policies)"
            ),
        ),
        (
            {"port": "80", "comment": "bob's\nrule"},
            "comment: write at most 200 printable characters on one line, without apostrophes",
        ),
    ],
)
def test_wrong_record(given: dict[str, Any], message: str) -> None:
    assert ufw.record_errors(record(**given)) == [message]


def test_all_errors_are_told_at_once_with_their_records() -> None:
    good = record(port="80", proto="tcp")
    assert ufw.check_records([good, record(port="x", source="y"), good, record(port="0", comment="c")]) == [
        (
            "rules[1] {port: x, from: y}: from: 'y' is no address; write 'any', an address such as 192.0.2.7 or a "
            "network such as 192.0.2.0/24 (a firewall rule cannot hold a host name)"
        ),
        (
            "rules[1] {port: x, from: y}: port: 'x' is no port; write a number from 1 to 65535, or a range such as "
            "'8000:8010'"
        ),
        "rules[3] {port: 0, comment: c}: port: '0' is out of range; ports go from 1 to 65535",
    ]


def test_ipv6_address_while_ipv6_is_off() -> None:
    wrong = record(port="80", source="2001:db8::1")
    assert ufw.record_errors(wrong) == []
    assert ufw.record_errors(wrong, ipv6=False) == [
        "from: 2001:db8::1 is IPv6, which is switched off; switch ipv6 on or drop the record"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any", (0, "any")),
        ("192.0.2.7", (4, "192.0.2.7")),
        ("192.0.2.7/32", (4, "192.0.2.7")),
        ("10.0.0.0/255.0.0.0", (4, "10.0.0.0/8")),
        ("0.0.0.0/0", (4, "0.0.0.0/0")),
        ("2001:DB8:0::0/32", (6, "2001:db8::/32")),
        ("2001:db8::1/128", (6, "2001:db8::1")),
    ],
)
def test_addresses_are_spelled_as_ufw_spells_them(text: str, expected: tuple[int, str]) -> None:
    assert ufw.parse_address(text) == expected


@pytest.mark.parametrize(
    ("given", "family", "words", "lines"),
    [
        (
            {"port": "80", "proto": "tcp"},
            4,
            "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in",
            ["-A ufw-user-input -p tcp --dport 80 -j ACCEPT"],
        ),
        (
            {"port": "80"},
            6,
            "allow any 80 ::/0 any ::/0 in",
            ["-A ufw6-user-input -p tcp --dport 80 -j ACCEPT", "-A ufw6-user-input -p udp --dport 80 -j ACCEPT"],
        ),
        (
            {"port": "8000:8010", "proto": "udp", "source": "10.0.0.0/8", "to": "192.0.2.1", "action": "deny"},
            4,
            "deny udp 8000:8010 192.0.2.1 any 10.0.0.0/8 in",
            ["-A ufw-user-input -p udp -m multiport --dports 8000:8010 -d 192.0.2.1 -s 10.0.0.0/8 -j DROP"],
        ),
        (
            {"port": "53", "action": "reject", "interface": "eth0"},
            4,
            "reject any 53 0.0.0.0/0 any 0.0.0.0/0 in_eth0",
            [
                "-A ufw-user-input -i eth0 -p tcp --dport 53 -j REJECT --reject-with tcp-reset",
                "-A ufw-user-input -i eth0 -p udp --dport 53 -j REJECT",
            ],
        ),
        (
            {"source": "2001:db8::/32", "action": "reject"},
            6,
            "reject any any ::/0 any 2001:db8::/32 in",
            ["-A ufw6-user-input -s 2001:db8::/32 -j REJECT"],
        ),
        (
            {"to": "192.0.2.9", "direction": "out", "interface": "eth1", "proto": "tcp"},
            4,
            "allow tcp any 192.0.2.9 any 0.0.0.0/0 out_eth1",
            ["-A ufw-user-output -o eth1 -p tcp -d 192.0.2.9 -j ACCEPT"],
        ),
        (
            {"port": "22", "proto": "tcp", "action": "limit"},
            6,
            "limit tcp 22 ::/0 any ::/0 in",
            [
                "-A ufw6-user-input -p tcp --dport 22 -m conntrack --ctstate NEW -m recent --set",
                (
                    "-A ufw6-user-input -p tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --seconds 30 "
                    "--hitcount 6 -j ufw6-user-limit"
                ),
                "-A ufw6-user-input -p tcp --dport 22 -j ufw6-user-limit-accept",
            ],
        ),
    ],
)
def test_rules_are_written_as_ufw_writes_them(given: dict[str, Any], family: int, words: str, lines: list[str]) -> None:
    block = ufw.render(record(**given), family)
    assert (" ".join(block.words), list(block.lines)) == (words, lines)


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (None, "wsgi.fleet"),
        ("http", "wsgi.fleet: http"),
        ("wsgi.fleet: http", "wsgi.fleet: http"),
        ("wsgi.fleets", "wsgi.fleet: wsgi.fleets"),
    ],
)
def test_our_rules_are_marked(comment: str | None, expected: str) -> None:
    block = ufw.render(record(port="80", comment=comment), 4)
    assert block.comment == expected
    assert block.ours


def test_one_family_or_both() -> None:
    records = [record(port="80"), record(port="81", source="192.0.2.1"), record(port="82", to="2001:db8::1")]
    assert [block.words[2] for block in ufw.render_all(records, 4)] == ["80", "81"]
    assert [block.words[2] for block in ufw.render_all(records, 6)] == ["80", "82"]


def test_of_two_rules_for_the_same_packets_the_first_counts() -> None:
    records = [record(port="80", action="deny"), record(port="80", comment="too late"), record(port="80", proto="tcp")]
    assert [str(block) for block in ufw.render_all(records, 4)] == [
        "deny in 80/any from any to any  # wsgi.fleet",
        "allow in 80/tcp from any to any  # wsgi.fleet",
    ]


# --- files

HEAD = "*filter\n:ufw-user-input - [0:0]\n:ufw-user-limit - [0:0]\n:ufw-user-limit-accept - [0:0]\n### RULES ###\n"
LOW = '-A ufw-logging-deny -j LOG --log-prefix "[UFW BLOCK] " -m limit --limit 3/min --limit-burst 10\n'
TAIL = f"\n### LOGGING ###\n{LOW}### END LOGGING ###\nCOMMIT\n"
FILE = f"""{HEAD}
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=777367692e666c6565743a206b65657020535348206f70656e
-A ufw-user-input -p tcp --dport 22 -j ACCEPT

### tuple ### allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 WWW%20Full - in
-A ufw-user-input -p tcp -m multiport --dports 80,443 -j ACCEPT -m comment --comment 'dapp_WWW%20Full'

### tuple ### route:deny_log udp 53 192.0.2.1 any 10.0.0.0/8 in_eth0!out_eth1 comment=c3bc
-A ufw-user-logging-forward -i eth0 -o eth1 -p udp -d 192.0.2.1 --dport 53 -s 10.0.0.0/8 -j RETURN
-A ufw-user-forward -i eth0 -o eth1 -p udp -d 192.0.2.1 --dport 53 -s 10.0.0.0/8 -j DROP

### END RULES ###
{TAIL}"""
# as the package brings it: ufw has not written it yet
FRESH = "*filter\n:ufw-user-input - [0:0]\n### RULES ###\n-A ufw-user-limit -j REJECT\nCOMMIT\n"


def test_file_survives_reading_and_writing() -> None:
    blocks = ufw.parse_rules(FILE)
    assert [(block.comment, block.ours, len(block.lines)) for block in blocks] == [
        ("wsgi.fleet: keep SSH open", True, 1),
        ("", False, 1),
        ("ü", False, 2),
    ]
    assert ufw.replace_rules(FILE, blocks) == FILE
    assert ufw.parse_rules(ufw.replace_rules(FILE, [])) == []
    assert ufw.replace_rules(ufw.replace_rules(FILE, []), blocks) == FILE


def test_file_that_ufw_has_not_written_yet() -> None:
    assert ufw.parse_rules(FRESH) == ufw.parse_rules("") == []
    assert ufw.logging_level(FRESH) is None
    with pytest.raises(ufw.UfwError):
        ufw.replace_rules(FRESH, [])


def test_limit_needs_its_chain() -> None:
    limit = [ufw.render(record(port="22", proto="tcp", action="limit"), 4)]
    assert not ufw.missing_limit(FILE, limit)
    assert ufw.missing_limit(FILE.replace(":ufw-user-limit - [0:0]\n", ""), limit)
    assert not ufw.missing_limit("", ufw.parse_rules(FILE))


def audit(more: str) -> str:
    return f'-I ufw-before-logging-input -j LOG --log-prefix "[UFW AUDIT] "{more}\n'


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ("", None),
        ("-I ufw-user-logging-input -j RETURN\n", "off"),
        (LOW, "low"),
        (LOW + audit(" -m conntrack --ctstate NEW -m limit --limit 3/min --limit-burst 10"), "medium"),
        (LOW + audit(" -m limit --limit 3/min --limit-burst 10"), "high"),
        (LOW + audit(""), "full"),
    ],
)
def test_logging_level_of_a_file(lines: str, level: str | None) -> None:
    assert ufw.logging_level(FILE.replace(LOW, lines)) == level


def test_settings() -> None:
    text = '# DEFAULT_INPUT_POLICY="ACCEPT"\nIPV6=yes\nDEFAULT_INPUT_POLICY="DROP"\n'
    assert ufw.parse_settings(text) == {"IPV6": "yes", "DEFAULT_INPUT_POLICY": "drop"}
    assert ufw.change_settings(text, {"IPV6": "no", "NEW": '"X"'}) == (
        '# DEFAULT_INPUT_POLICY="ACCEPT"\nIPV6=no\nDEFAULT_INPUT_POLICY="DROP"\nNEW="X"\n'
    )


# --- order


def blocks(names: str) -> list[ufw.Block]:
    """S = SSH; 1, 2, 3 = ours; a, b, c = foreign."""
    comments = {"S": ufw.SSH, **{name: f"wsgi.fleet: {name}" for name in "123"}}
    return [ufw.Block(("allow", "tcp", name), comments.get(name, name), ()) for name in names.split()]


@pytest.mark.parametrize(
    ("current", "wanted", "expected"),
    [
        ("", "S 1 2", "S 1 2"),
        ("a b", "S 1 2", "S a b 1 2"),  # what was there before us stays before us
        ("S a 1 b 2 c", "S 1 2", "S a 1 b 2 c"),  # nothing of ours differs: nothing moves
        ("S 1 2 a", "S 1 2 3", "S 1 2 3 a"),
        ("S 1 a 2 b", "S 2 1", "S a 2 1 b"),  # a stood before one of ours
        ("a S 1", "S 1", "S a 1"),  # prepended by hand: before all of ours but SSH
        ("S 1 2 a", "S", "S a"),
        ("S a", "S 1", "S a 1"),
        ("S 1 1 a", "S 1", "S 1 a"),  # added twice
        ("1 a", "S 1", "S 1 a"),
        ("S a", "S", "S a"),
    ],
)
def test_order(current: str, wanted: str, expected: str) -> None:
    merged = ufw.merge_rules(blocks(current), blocks(wanted))
    assert merged == blocks(expected)
    assert ufw.merge_rules(merged, blocks(wanted)) == merged


def test_spoiled_lines_of_a_rule_are_written_anew() -> None:
    wanted = [ufw.render(record(port="80", proto="tcp"), 4)]
    spoiled = [ufw.Block(wanted[0].words, wanted[0].comment, ("-A ufw-user-input -p tcp --dport 81 -j ACCEPT",))]
    spelled = [ufw.Block(wanted[0].words, wanted[0].comment, ("-A ufw-user-input -p 6 -m tcp --dport 80 -j ACCEPT",))]
    assert ufw.merge_rules(spoiled, wanted) == wanted
    assert ufw.merge_rules(spelled, wanted) == spelled


# --- kernel


@pytest.mark.parametrize(
    ("filed", "shown"),
    [
        ("-A c -p tcp --dport 80 -j ACCEPT", "-A c -p tcp -m tcp --dport 80 -j ACCEPT"),
        (
            "-A c -p tcp -m multiport --dports 8000:8010 -d 192.0.2.1 -s 10.0.0.0/8 -j DROP",
            "-A c -s 10.0.0.0/8 -d 192.0.2.1/32 -p tcp -m multiport --dports 8000:8010 -j DROP",
        ),
        ("-A c -s 2001:db8::1 -j ACCEPT", "-A c -s 2001:db8::1/128 -j ACCEPT"),
        (
            "-A c -p udp --dport 53 -j REJECT",
            "-A c -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable",
        ),
        (
            "-A c -p tcp --dport 22 -m conntrack --ctstate NEW -m recent --set",
            (
                "-A c -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --set --name DEFAULT "
                "--mask 255.255.255.255 --rsource"
            ),
        ),
        (
            '-A c -m limit --limit 3/minute -j LOG --log-prefix "[UFW LIMIT BLOCK] "',
            '-A c -m limit --limit 3/min -j LOG --log-prefix "[UFW LIMIT BLOCK] "',
        ),
        (
            "-A c -p tcp --dport 80 -j ACCEPT -m comment --comment 'dapp_WWW%20Full'",
            "-A c -p tcp -m tcp --dport 80 -m comment --comment \"\\'dapp_WWW%20Full\\'\" -j ACCEPT",
        ),
        ("-A c -p gre -j ACCEPT", "-A c -p 47 -j ACCEPT"),
    ],
)
def test_file_and_kernel_spell_the_same_rule(filed: str, shown: str) -> None:
    assert ufw.canonical(filed) == ufw.canonical(shown)


@pytest.mark.parametrize(
    "other",
    [
        "-A c -p tcp --dport 81 -j ACCEPT",
        "-A c -p udp --dport 80 -j ACCEPT",
        "-A c -p tcp --dport 80 -j DROP",
        "-A c -p tcp --dport 80 -s 192.0.2.1 -j ACCEPT",
        "-A c -p tcp --dport 80 -i eth0 -j ACCEPT",
        "-A c -p tcp --sport 80 -j ACCEPT",
    ],
)
def test_other_rules_differ(other: str) -> None:
    assert ufw.canonical("-A c -p tcp --dport 80 -j ACCEPT") != ufw.canonical(other)


LOADED = """-P INPUT DROP
-P FORWARD DROP
-P OUTPUT ACCEPT
-N ufw-user-input
-N ufw-before-logging-input
{jumps}
-A ufw-before-input -j ufw-user-input
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-output -j ufw-user-output
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -p tcp -m multiport --dports 80,443 -m comment --comment "\\'dapp_WWW%20Full\\'" -j ACCEPT
-A ufw-user-forward -s 10.0.0.0/8 -d 192.0.2.1/32 -i eth0 -o eth1 -p udp -m udp --dport 53 -j DROP
-A ufw-user-logging-forward -j RETURN
""".replace("{jumps}", "\n".join(line for chain in ufw.DIRECTIONS.values() for line in ufw.frame_jumps(chain, "ufw")))
POLICIES = {"incoming": "deny", "outgoing": "allow", "routed": "deny"}


def test_kernel_as_it_should_be() -> None:
    assert ufw.frame_problems(LOADED, 4, POLICIES) == []
    assert ufw.rules_problems(LOADED, 4, FILE) == []


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        ("-P INPUT DROP", "IPv4: the policy of INPUT is not deny"),
        ("-A FORWARD -j ufw-before-forward", "IPv4: chain FORWARD does not lead to ufw's chains"),
        ("-A INPUT -j ufw-reject-input", "IPv4: chain INPUT does not lead to ufw's chains"),
        ("-A ufw-before-input -j ufw-user-input", "IPv4: chain ufw-before-input does not lead to the rules"),
    ],
)
def test_kernel_without_a_part_of_the_frame(lost: str, problem: str) -> None:
    assert ufw.frame_problems(LOADED.replace(lost + "\n", ""), 4, POLICIES) == [problem]


def test_jumps_are_laid_anew() -> None:
    assert ufw.mend_jumps(LOADED, 4) == ""
    assert ufw.mend_jumps("-P INPUT ACCEPT\n", 4) == ""  # there ufw does it itself
    harmed = LOADED.replace("-A OUTPUT -j ufw-before-output\n", "")
    declared = [
        f":ufw-{step}-output - [0:0]"
        for step in ("before-logging", "before", "after", "after-logging", "reject", "track")
    ]
    wanted = ufw.frame_jumps("output", "ufw")
    gone = [line.replace("-A", "-D") for line in wanted if line != "-A OUTPUT -j ufw-before-output"]
    assert ufw.mend_jumps(harmed, 4).splitlines() == ["*filter", *declared, *gone, *wanted, "COMMIT"]
    known = harmed + "".join(f"-N {line.split()[0][1:]}\n" for line in declared)
    assert ufw.mend_jumps(known, 4).splitlines() == ["*filter", *gone, *wanted, "COMMIT"]


def test_kernel_without_a_rule_or_with_another_order() -> None:
    ssh = "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT\n"
    assert ufw.rules_problems(LOADED.replace(ssh, ""), 4, FILE) == [
        "IPv4: chain ufw-user-input has 1 rules that are not the 2 of the file"
    ]
    assert ufw.rules_problems(LOADED.replace(ssh, "") + ssh, 4, FILE) == [
        "IPv4: chain ufw-user-input has other rules than the file"
    ]
    assert ufw.frame_problems("-P INPUT ACCEPT\n", 4, POLICIES) != []


def test_reject_policy_has_a_rule_of_its_own() -> None:
    policies = {**POLICIES, "incoming": "reject"}
    line = "-A ufw-reject-input -j REJECT --reject-with icmp-port-unreachable"
    assert ufw.frame_problems(LOADED, 4, policies) == ["IPv4: chain ufw-reject-input is not for the policy reject"]
    assert ufw.frame_problems(f"{LOADED}{line}\n", 4, policies) == []
    assert ufw.frame_problems(f"{LOADED}{line}\n", 4, POLICIES) == [
        "IPv4: chain ufw-reject-input is not for the policy deny"
    ]


@pytest.mark.parametrize(
    ("kernel", "shut"),
    [
        (LOADED, False),
        ("-P INPUT ACCEPT\n", False),
        ("-P INPUT DROP\n", True),
        (LOADED.replace("--dport 22 ", "--dport 23 "), True),
        (LOADED.replace("-A INPUT -j ufw-before-input\n", ""), True),
        (LOADED.replace("-A ufw-before-input -j ufw-user-input\n", ""), True),
    ],
)
def test_whether_ssh_is_shut(kernel: str, shut: bool) -> None:
    ssh = ufw.render_all(ufw.ssh_records([22], ["any"], "allow"), 4)
    assert ufw.ssh_is_shut(kernel, 4, ssh) is shut


# --- SSH


def make_process(
    proc: Path, pid: int, parent: int, *, name: str = "sh", title: str = "", environment: str = "", sockets: str = ""
) -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_text(title.replace(" ", "\0"))
    (folder / "environ").write_bytes(environment.replace(" ;", "\0").encode())
    for number, inode in enumerate(sockets.split()):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("192.0.2.7 51234 192.0.2.1 2222", ("192.0.2.7", 2222)),
        ("fe80::7%eth0 51234 fe80::1%eth0 22", ("fe80::7", 22)),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("", None),
    ],
)
def test_ssh_connection_is_found_above_sudo(tmp_path: Path, value: str, expected: tuple[str, int] | None) -> None:
    make_process(tmp_path, 10, 1, name="sshd", title="sshd: ansible@notty")
    make_process(tmp_path, 11, 10, environment=f"HOME=/home/ansible ;SSH_CONNECTION={value} ;LANG=C")
    make_process(tmp_path, 12, 11, name="su) (do", environment="SUDO_USER=ansible")
    make_process(tmp_path, 13, 12, name="python3", environment="SUDO_USER=ansible")
    assert ufw.ssh_connection(13, tmp_path) == expected


def test_no_ssh_connection(tmp_path: Path) -> None:
    make_process(tmp_path, 13, 1, name="python3", environment="A=b")
    assert ufw.ssh_connection(13, tmp_path) is None
    assert ufw.ssh_connection(99, tmp_path) is None


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 00000000:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   2: 0100007F:177A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0
   3: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0 0 10 0
   4: 010200C0:0016 070200C0:C822 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0 100 0 0 10 0
"""
TCP6 = """  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 00000000000000000000000000000000:0017 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 200 1
   1: 00000000000000000000000001000000:0018 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 201 1
   2: 0000000000000000FFFF0000010200C0:0016 0000000000000000FFFF0000080200C0:C822 01 0:0 00:0 0 0 0 202 1
"""


def test_ports_of_sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ufw, "ROOT_UID", tmp_path.stat().st_uid)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "net" / "tcp6").write_text(TCP6)
    listener = "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"
    make_process(tmp_path, 10, 1, name="sshd", title=listener, sockets="100 101 102 200 201")
    # sessions: one forwards a port for its user (ssh -R), which must not be opened for the world
    make_process(tmp_path, 11, 10, name="sshd", title="sshd: ansible@notty", sockets="103 104")
    make_process(tmp_path, 12, 10, name="sshd-session", title="sshd-session: ansible@notty", sockets="103 104")
    make_process(tmp_path, 13, 1, name="nginx", title="nginx: master", sockets="103")
    assert ufw.sshd_ports(ufw.read_sockets(tmp_path), tmp_path) == {22, 23, 2222}


def test_peers(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "net" / "tcp6").write_text(TCP6)
    sockets = ufw.read_sockets(tmp_path)
    assert ufw.peers({22}, sockets) == ["192.0.2.7", "192.0.2.8"]
    assert ufw.peers({2222}, sockets) == []


def test_ports_of_another_users_sshd_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    make_process(tmp_path, 10, 1, name="sshd", title="sshd: me [listener]", sockets="100")
    monkeypatch.setattr(ufw, "ROOT_UID", 12345)
    assert ufw.sshd_ports(ufw.read_sockets(tmp_path), tmp_path) == set()
    monkeypatch.setattr(ufw, "ROOT_UID", tmp_path.stat().st_uid)
    assert ufw.sshd_ports(ufw.read_sockets(tmp_path), tmp_path) == {22}


def test_rules_for_ssh() -> None:
    made = ufw.ssh_records([2222, 22, 22], ["192.0.2.0/24", "2001:db8::/32"], "limit")
    assert [(made_one["port"], made_one["from"], made_one["action"]) for made_one in made] == [
        ("22", "192.0.2.0/24", "limit"),
        ("22", "2001:db8::/32", "limit"),
        ("2222", "192.0.2.0/24", "limit"),
        ("2222", "2001:db8::/32", "limit"),
    ]
    assert ufw.check_records(made) == []
