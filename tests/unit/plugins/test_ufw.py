"""The ufw module's logic, as tables. What ufw writes was taken down from ufw 0.36.2 itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw import blocks, files, guard, kernel, records, ssh


def record(**given: Any) -> dict[str, Any]:
    """A record with the module's defaults; `source` stands for the key `from`."""
    base = {
        "port": None,
        "proto": "any",
        "from": "any",
        "to": "any",
        "app": None,
        "interface": None,
        "out_interface": None,
        "direction": "in",
        "action": "allow",
        "log": None,
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
            {"port": "80", "out_interface": "eth1"},
            "out_interface: only packets that are passed on come in and leave; write direction: routed",
        ),
        (
            {"port": "80", "app": "WWW"},
            "app: the profile says ports and protocols; leave out port and proto",
        ),
        ({"app": "[WWW]"}, "app: '[WWW]' is no name of a profile; write one as `ufw app list` shows it"),
        (
            {"port": "80", "proto": "tcp", "direction": "routed", "action": "limit"},
            "action: limit counts new TCP connections from outside; write proto: tcp and direction: in",
        ),
        (
            {"port": "80", "comment": "bob's\nrule"},
            "comment: write at most 200 printable characters on one line, without apostrophes",
        ),
    ],
)
def test_wrong_record(given: dict[str, Any], message: str) -> None:
    assert records.record_errors(record(**given)) == [message]


def test_all_errors_are_told_at_once_with_their_records() -> None:
    good = record(port="80", proto="tcp")
    assert records.check_records([good, record(port="x", source="y"), good, record(port="0", comment="c")]) == [
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
    assert records.record_errors(wrong) == []
    assert records.record_errors(wrong, ipv6=False) == [
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
    assert records.parse_address(text) == expected


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
    [block] = records.render(record(**given), family)
    assert (" ".join(block.words), list(block.lines)) == (words, lines)


MATCH = "-p tcp -d 192.0.2.1 --dport 80 -s 10.0.0.0/8"
LOG = "-m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix"


@pytest.mark.parametrize(
    ("given", "words", "lines"),
    [
        (
            {"port": "80", "proto": "tcp", "direction": "routed", "interface": "eth0", "out_interface": "eth1"},
            "route:allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in_eth0!out_eth1",
            ["-A ufw-user-forward -i eth0 -o eth1 -p tcp --dport 80 -j ACCEPT"],
        ),
        (
            {"to": "192.0.2.1", "direction": "routed", "out_interface": "eth1", "action": "deny"},
            "route:deny any any 192.0.2.1 any 0.0.0.0/0 out_eth1",
            ["-A ufw-user-forward -o eth1 -d 192.0.2.1 -j DROP"],
        ),
        (
            {"port": "80", "proto": "tcp", "to": "192.0.2.1", "source": "10.0.0.0/8", "log": "new"},
            "allow_log tcp 80 192.0.2.1 any 10.0.0.0/8 in",
            [
                f'-A ufw-user-logging-input {MATCH} -m conntrack --ctstate NEW {LOG} "[UFW ALLOW] "',
                f"-A ufw-user-logging-input {MATCH} -j RETURN",
                f"-A ufw-user-input {MATCH} -j ufw-user-logging-input",
                f"-A ufw-user-input {MATCH} -j ACCEPT",
            ],
        ),
        (
            {"port": "80", "proto": "tcp", "direction": "routed", "action": "reject", "log": "all"},
            "route:reject_log-all tcp 80 0.0.0.0/0 any 0.0.0.0/0 in",
            [
                f'-A ufw-user-logging-forward -p tcp --dport 80 {LOG} "[UFW BLOCK] "',
                "-A ufw-user-logging-forward -p tcp --dport 80 -j RETURN",
                "-A ufw-user-forward -p tcp --dport 80 -j ufw-user-logging-forward",
                "-A ufw-user-forward -p tcp --dport 80 -j REJECT --reject-with tcp-reset",
            ],
        ),
        (
            {"app": "WWW Full"},
            "allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 WWW%20Full - in",
            ["-A ufw-user-input -p tcp -m multiport --dports 80,443 -j ACCEPT -m comment --comment 'dapp_WWW%20Full'"],
        ),
    ],
)
def test_routed_logged_and_named_rules(given: dict[str, Any], words: str, lines: list[str]) -> None:
    [block] = records.render(record(**given), 4, {"WWW Full": "443,80/tcp"})
    assert (" ".join(block.words), list(block.lines)) == (words, lines)


def test_profile_with_several_entries() -> None:
    profiles = {"Mail": "25/tcp|53|1000:1010,2000/udp"}
    assert [block.words[1:3] for block in records.render(record(app="Mail"), 4, profiles)] == [
        ("tcp", "25"),
        ("any", "53"),
        ("udp", "1000:1010,2000"),
    ]
    assert records.record_errors(record(app="Male"), profiles=profiles) == [
        "app: there is no profile 'Male'; give it in applications, or take one that is there: Mail"
    ]


def test_routed_rule_and_one_for_this_host_are_two() -> None:
    given = [record(port="80", proto="tcp"), record(port="80", proto="tcp", direction="routed", log="new")]
    assert [str(block) for block in records.render_all(given, 4)] == [
        "allow in 80/tcp from any to any  # wsgi.fleet",
        "route allow log new 80/tcp from any to any  # wsgi.fleet",
    ]


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
    [block] = records.render(record(port="80", comment=comment), 4)
    assert block.comment == expected
    assert block.ours


def test_one_family_or_both() -> None:
    given = [record(port="80"), record(port="81", source="192.0.2.1"), record(port="82", to="2001:db8::1")]
    assert [block.words[2] for block in records.render_all(given, 4)] == ["80", "81"]
    assert [block.words[2] for block in records.render_all(given, 6)] == ["80", "82"]


def test_of_two_rules_for_the_same_packets_the_first_counts() -> None:
    given = [record(port="80", action="deny"), record(port="80", comment="too late"), record(port="80", proto="tcp")]
    assert [str(block) for block in records.render_all(given, 4)] == [
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
    found = files.parse_rules(FILE)
    assert [(block.comment, block.ours, len(block.lines)) for block in found] == [
        ("wsgi.fleet: keep SSH open", True, 1),
        ("", False, 1),
        ("ü", False, 2),
    ]
    assert files.replace_rules(FILE, found) == FILE
    assert files.parse_rules(files.replace_rules(FILE, [])) == []
    assert files.replace_rules(files.replace_rules(FILE, []), found) == FILE


def test_file_that_ufw_has_not_written_yet() -> None:
    assert files.parse_rules(FRESH) == files.parse_rules("") == []
    assert files.logging_level(FRESH) is None
    with pytest.raises(blocks.UfwError):
        files.replace_rules(FRESH, [])


def test_limit_needs_its_chain() -> None:
    limit = records.render(record(port="22", proto="tcp", action="limit"), 4)
    assert not files.missing_limit(FILE, limit)
    assert files.missing_limit(FILE.replace(":ufw-user-limit - [0:0]\n", ""), limit)
    assert not files.missing_limit("", files.parse_rules(FILE))


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
    assert files.logging_level(FILE.replace(LOW, lines)) == level


def test_settings() -> None:
    text = '# DEFAULT_INPUT_POLICY="ACCEPT"\nIPV6=yes\nDEFAULT_INPUT_POLICY="DROP"\n'
    assert files.parse_settings(text) == {"IPV6": "yes", "DEFAULT_INPUT_POLICY": "drop"}
    assert files.change_settings(text, {"IPV6": "no", "NEW": '"X"'}) == (
        '# DEFAULT_INPUT_POLICY="ACCEPT"\nIPV6=no\nDEFAULT_INPUT_POLICY="DROP"\nNEW="X"\n'
    )


# --- order


def listed(names: str) -> list[blocks.Block]:
    """S = SSH; 1, 2, 3 = ours; a, b, c = foreign."""
    comments = {"S": blocks.SSH, **{name: f"wsgi.fleet: {name}" for name in "123"}}
    return [blocks.Block(("allow", "tcp", name), comments.get(name, name), ()) for name in names.split()]


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
    merged = files.merge_rules(listed(current), listed(wanted))
    assert merged == listed(expected)
    assert files.merge_rules(merged, listed(wanted)) == merged


def test_spoiled_lines_of_a_rule_are_written_anew() -> None:
    wanted = records.render(record(port="80", proto="tcp"), 4)
    spoiled = [blocks.Block(wanted[0].words, wanted[0].comment, ("-A ufw-user-input -p tcp --dport 81 -j ACCEPT",))]
    spelled = [
        blocks.Block(wanted[0].words, wanted[0].comment, ("-A ufw-user-input -p 6 -m tcp --dport 80 -j ACCEPT",))
    ]
    assert files.merge_rules(spoiled, wanted) == wanted
    assert files.merge_rules(spelled, wanted) == spelled


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [], True),
        ([{"port": "80"}], [{"port": "80"}, {"port": "81"}], True),
        ([{"port": "80"}], [{"port": "81"}, {"port": "80"}], True),
        ([{"port": "80"}], [{"port": "80"}, {"port": "81", "direction": "routed", "log": "new"}], True),
        ([{"port": "80"}], [], False),
        ([{"port": "80"}], [{"port": "80", "proto": "tcp"}], False),
        ([{"port": "80"}], [{"port": "80"}, {"port": "81", "action": "deny"}], False),
        ([{"port": "80"}], [{"port": "80"}, {"port": "81", "proto": "tcp", "action": "limit"}], False),
        ([{"port": "80"}, {"port": "81"}], [{"port": "81"}, {"port": "80"}], False),
    ],
)
def test_what_only_opens(before: list[dict[str, Any]], after: list[dict[str, Any]], expected: bool) -> None:
    old, new = ([records.render(record(**given), 4)[0] for given in side] for side in (before, after))
    assert files.only_opens(old, new) is expected


PING4 = "-A ufw-before-input -p icmp --icmp-type echo-request"
PING6 = "-A ufw6-before-input -p icmpv6 --icmpv6-type echo-request"
BEFORE = f"*filter\n:ufw-before-input - [0:0]\n{PING4} -j ACCEPT\n{PING4[:16]}forward x\n\nCOMMIT\n"


def test_who_may_ping() -> None:
    assert files.ping_lines(["any"], 4) == [f"{PING4} -j ACCEPT"]
    some = ["192.0.2.0/24", "2001:db8::/32"]
    assert files.ping_lines(some, 4) == [f"{PING4} -s 192.0.2.0/24 -j ACCEPT", f"{PING4} -j DROP"]
    assert files.ping_lines(some, 6) == [f"{PING6} -s 2001:db8::/32 -j ACCEPT", f"{PING6} -j DROP"]
    changed = files.change_ping(BEFORE, files.ping_lines(some, 4))
    assert changed == BEFORE.replace(f"{PING4} -j ACCEPT", "\n".join(files.ping_lines(some, 4)))
    assert files.change_ping(changed, files.ping_lines(["any"], 4)) == BEFORE
    assert files.change_ping(BEFORE.replace(f"{PING4} -j ACCEPT\n", ""), files.ping_lines([], 4)) == (
        BEFORE.replace(f"{PING4} -j ACCEPT\n", "").replace("COMMIT", f"{PING4} -j DROP\nCOMMIT")
    )
    with pytest.raises(blocks.UfwError):
        files.change_ping("", files.ping_lines([], 4))


def test_pings_in_the_kernel() -> None:
    held = "-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT\n"
    assert kernel.ping_problems(held, 4, files.ping_lines(["any"], 4)) == []
    assert kernel.ping_problems(held, 4, files.ping_lines([], 4)) != []
    assert kernel.ping_problems("", 4, files.ping_lines(["any"], 4)) != []
    held = (
        "-A ufw6-before-input -s 2001:db8::/32 -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT\n"
        "-A ufw6-before-input -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DROP\n"
    )
    assert kernel.ping_problems(held, 6, files.ping_lines(["2001:db8::/32"], 6)) == []


def test_profiles() -> None:
    given = [{"name": "Shop", "ports": "80,443/tcp|53"}, {"name": "Mail", "title": "Post", "ports": "25/tcp"}]
    text = files.write_profiles(given)
    assert files.parse_profiles(text) == {"Shop": "80,443/tcp|53", "Mail": "25/tcp"}
    assert "title=Post\n" in text
    assert files.write_profiles([]) == ""
    assert files.parse_profiles("no section") == {}
    assert files.application_errors(given) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "80", "ports": "80"}, "name: write at most 64 letters, digits, spaces and any of _.+-"),
        ({"name": "a]b", "ports": "80"}, "name: write at most 64 letters, digits, spaces and any of _.+-"),
        ({"name": "Shop", "ports": ""}, "ports: '' is no port"),
        ({"name": "Shop", "ports": "http"}, "ports: 'http' is no port"),
        ({"name": "Shop", "ports": "80/sctp"}, "ports: 'sctp' is no protocol; write tcp or udp"),
        ({"name": "Shop", "ports": "80,443"}, "ports: several ports (80,443) need a protocol; write 80,443/tcp"),
        ({"name": "Shop", "ports": "80", "title": "a\nb"}, "title: write one line"),
    ],
)
def test_wrong_profiles(given: dict[str, Any], message: str) -> None:
    [error] = files.application_errors([given])
    assert error.startswith(f"applications[0] {{name: {given['name']}}}: {message}")


def test_ports_that_docker_publishes() -> None:
    start = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport"
    nat = (
        "-N DOCKER\n-A DOCKER -i docker0 -j RETURN\n"
        f"{start} 8080 -j DNAT --to-destination 172.17.0.2:80\n"
        f"{start.replace('tcp', 'udp')} 53 -j DNAT --to-destination 172.17.0.2:53\n"
        f"{start.replace('DOCKER', 'DOCKER -d 127.0.0.1/32')} 5432 -j DNAT --to-destination 172.17.0.3:5432\n"
    )
    assert kernel.published_ports(nat) == ["53/udp", "8080/tcp"]
    assert kernel.published_ports("-N DOCKER\n") == []


# --- the guard


class FakeHost:
    """Remembers what it was asked to run."""

    def __init__(self, undo: int = 0) -> None:
        self.ran: list[str] = []
        self.undo = undo

    def run(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        self.ran.append(" ".join(argv))
        return subprocess.CompletedProcess(argv, 0, "", "")

    must = run

    def saved(self, family: int) -> str | None:
        return "*filter\nCOMMIT\n" if family == 4 else None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(guard, "BOOT_UNIT", tmp_path / "unit")
    monkeypatch.setattr(guard, "BOOT_LINK", tmp_path / "wants" / "unit")
    return tmp_path


FIRST, SECOND = ["192.0.2.7 50001"], ["192.0.2.7 50002"]


def test_guard_is_confirmed_by_a_new_connection_only(home: Path) -> None:
    host = FakeHost()
    one = guard.Guard(host, home)  # type: ignore[arg-type]
    assert not one.pending
    name = one.arm(30, [], FIRST)
    assert one.pending
    assert (home / "guard" / "iptables-restore").read_text() == "*filter\nCOMMIT\n"
    assert not (home / "guard" / "ip6tables-restore").exists()
    assert f"--unit=wsgi-fleet-ufw-guard-{name} --on-active=30" in host.ran[-1]
    assert one.confirm(name, FIRST) == {"confirmed": False, "why": "same connection"}
    assert one.confirm("other", SECOND) == {"confirmed": False, "why": "another run"}
    assert one.pending
    assert one.confirm(name, SECOND) == {"confirmed": True, "why": ""}
    assert not one.pending
    assert not (home / "unit").exists()
    assert not (home / "wants" / "unit").is_symlink()
    assert host.ran[-1] == f"systemctl stop wsgi-fleet-ufw-guard-{name}.timer"


def test_guard_where_nobody_knows_by_which_connection(home: Path) -> None:
    """Then one must be there that was not there before."""
    one = guard.Guard(FakeHost(), home)  # type: ignore[arg-type]
    name = one.arm(30, [], [*FIRST, "192.0.2.8 1"])
    assert one.confirm(name, ["192.0.2.8 1"])["why"] == "same connection"
    assert one.confirm(name, ["192.0.2.8 1", *SECOND])["confirmed"]


def test_guard_keeps_what_was_good_last(home: Path) -> None:
    rules = home / "rules"
    rules.write_text("good")
    one = guard.Guard(FakeHost(), home)  # type: ignore[arg-type]
    first = one.arm(30, [rules], [])
    rules.write_text("never confirmed")
    second = one.arm(30, [rules], [])
    assert first != second
    assert (home / "guard" / "files" / rules.relative_to("/")).read_text() == "good"
    assert one.confirm(first, []) == {"confirmed": False, "why": "another run"}
    assert one.confirm(second, []) == {"confirmed": True, "why": ""}


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
    assert kernel.canonical(filed) == kernel.canonical(shown)


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
    assert kernel.canonical("-A c -p tcp --dport 80 -j ACCEPT") != kernel.canonical(other)


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
-A ufw-user-logging-forward -s 10.0.0.0/8 -d 192.0.2.1/32 -i eth0 -o eth1 -p udp -m udp --dport 53 -j RETURN
""".replace(
    "{jumps}", "\n".join(line for chain in blocks.DIRECTIONS.values() for line in kernel.frame_jumps(chain, "ufw"))
)
POLICIES = {"incoming": "deny", "outgoing": "allow", "routed": "deny"}


def test_kernel_as_it_should_be() -> None:
    assert kernel.frame_problems(LOADED, 4, POLICIES) == []
    assert kernel.rules_problems(LOADED, 4, FILE) == []


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
    assert kernel.frame_problems(LOADED.replace(lost + "\n", ""), 4, POLICIES) == [problem]


def test_jumps_are_laid_anew() -> None:
    assert kernel.mend_jumps(LOADED, 4) == ""
    assert kernel.mend_jumps("-P INPUT ACCEPT\n", 4) == ""  # there ufw does it itself
    harmed = LOADED.replace("-A OUTPUT -j ufw-before-output\n", "")
    declared = [
        f":ufw-{step}-output - [0:0]"
        for step in ("before-logging", "before", "after", "after-logging", "reject", "track")
    ]
    wanted = kernel.frame_jumps("output", "ufw")
    gone = [line.replace("-A", "-D") for line in wanted if line != "-A OUTPUT -j ufw-before-output"]
    assert kernel.mend_jumps(harmed, 4).splitlines() == ["*filter", *declared, *gone, *wanted, "COMMIT"]
    known = harmed + "".join(f"-N {line.split()[0][1:]}\n" for line in declared)
    assert kernel.mend_jumps(known, 4).splitlines() == ["*filter", *gone, *wanted, "COMMIT"]


def test_kernel_without_a_rule_or_with_another_order() -> None:
    rule = "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT\n"
    assert kernel.rules_problems(LOADED.replace(rule, ""), 4, FILE) == [
        "IPv4: chain ufw-user-input has 1 rules that are not the 2 of the file"
    ]
    assert kernel.rules_problems(LOADED.replace(rule, "") + rule, 4, FILE) == [
        "IPv4: chain ufw-user-input has other rules than the file"
    ]
    assert kernel.frame_problems("-P INPUT ACCEPT\n", 4, POLICIES) != []


def test_reject_policy_has_a_rule_of_its_own() -> None:
    policies = {**POLICIES, "incoming": "reject"}
    line = "-A ufw-reject-input -j REJECT --reject-with icmp-port-unreachable"
    assert kernel.frame_problems(LOADED, 4, policies) == ["IPv4: chain ufw-reject-input is not for the policy reject"]
    assert kernel.frame_problems(f"{LOADED}{line}\n", 4, policies) == []
    assert kernel.frame_problems(f"{LOADED}{line}\n", 4, POLICIES) == [
        "IPv4: chain ufw-reject-input is not for the policy deny"
    ]


@pytest.mark.parametrize(
    ("held", "shut"),
    [
        (LOADED, False),
        ("-P INPUT ACCEPT\n", False),
        ("-P INPUT DROP\n", True),
        (LOADED.replace("--dport 22 ", "--dport 23 "), True),
        (LOADED.replace("-A INPUT -j ufw-before-input\n", ""), True),
        (LOADED.replace("-A ufw-before-input -j ufw-user-input\n", ""), True),
    ],
)
def test_whether_ssh_is_shut(held: str, shut: bool) -> None:
    rules = records.render_all(ssh.ssh_records([22], ["any"], "allow"), 4)
    assert kernel.ssh_is_shut(held, 4, rules) is shut


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
        ("192.0.2.7 51234 192.0.2.1 2222", ("192.0.2.7", 2222, 51234)),
        ("fe80::7%eth0 51234 fe80::1%eth0 22", ("fe80::7", 22, 51234)),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("", None),
    ],
)
def test_ssh_connection_is_found_above_sudo(tmp_path: Path, value: str, expected: tuple[str, int, int] | None) -> None:
    make_process(tmp_path, 10, 1, name="sshd", title="sshd: ansible@notty")
    make_process(tmp_path, 11, 10, environment=f"HOME=/home/ansible ;SSH_CONNECTION={value} ;LANG=C")
    make_process(tmp_path, 12, 11, name="su) (do", environment="SUDO_USER=ansible")
    make_process(tmp_path, 13, 12, name="python3", environment="SUDO_USER=ansible")
    assert ssh.ssh_connection(13, tmp_path) == expected


def test_no_ssh_connection(tmp_path: Path) -> None:
    make_process(tmp_path, 13, 1, name="python3", environment="A=b")
    assert ssh.ssh_connection(13, tmp_path) is None
    assert ssh.ssh_connection(99, tmp_path) is None


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
    monkeypatch.setattr(ssh, "ROOT_UID", tmp_path.stat().st_uid)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "net" / "tcp6").write_text(TCP6)
    listener = "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"
    make_process(tmp_path, 10, 1, name="sshd", title=listener, sockets="100 101 102 200 201")
    # sessions: one forwards a port for its user (ssh -R), which must not be opened for the world
    make_process(tmp_path, 11, 10, name="sshd", title="sshd: ansible@notty", sockets="103 104")
    make_process(tmp_path, 12, 10, name="sshd-session", title="sshd-session: ansible@notty", sockets="103 104")
    make_process(tmp_path, 13, 1, name="nginx", title="nginx: master", sockets="103")
    assert ssh.sshd_ports(ssh.read_sockets(tmp_path), tmp_path) == {22, 23, 2222}


def test_by_which_connection_a_run_came(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    sockets = ssh.read_sockets(tmp_path)
    make_process(tmp_path, 10, 1, environment="SSH_CONNECTION=192.0.2.9 51234 192.0.2.1 22")
    make_process(tmp_path, 11, 10)
    make_process(tmp_path, 12, 1)
    make_process(tmp_path, 13, 12)
    assert ssh.came_by(11, sockets, {22}, tmp_path) == ["192.0.2.9 51234"]
    assert ssh.came_by(13, sockets, {22}, tmp_path) == []
    (tmp_path / "12" / "environ").unlink()
    (tmp_path / "12" / "environ").mkdir()  # cannot be read, whoever runs this test
    assert ssh.came_by(13, sockets, {22}, tmp_path) == []


@pytest.mark.parametrize(
    ("clients", "sources", "ipv6", "message"),
    [
        (["192.0.2.7"], ["any"], False, None),
        (["192.0.2.7"], ["192.0.2.0/24"], True, None),
        (["2001:db8::7"], ["192.0.2.0/24", "2001:db8::/32"], True, None),
        (["192.0.2.7", "2001:db8::7"], ["2001:db8::/32"], True, None),  # one of them may be us
        ([], ["192.0.2.0/24"], False, None),
        (["2001:db8::7"], ["192.0.2.0/24"], True, "ssh_from: this connection comes from 2001:db8::7, which is not in"),
        (
            ["2001:db8::7"],
            ["any"],
            False,
            "ipv6: this connection comes from 2001:db8::7 over IPv6; do not switch IPv6 off",
        ),
        (["192.0.2.7"], [], True, "ssh_from: the list is empty"),
        (["192.0.2.7"], ["lb1"], True, "ssh_from[0]: 'lb1' is no address"),
    ],
)
def test_what_would_lock_this_run_out(clients: list[str], sources: list[str], ipv6: bool, message: str | None) -> None:
    found = ssh.ssh_problems(clients, sources, ipv6)
    assert [problem[: len(message or "")] for problem in found] == ([message] if message else [])


def test_peers(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "net" / "tcp6").write_text(TCP6)
    sockets = ssh.read_sockets(tmp_path)
    assert ssh.peers({22}, sockets) == ["192.0.2.7", "192.0.2.8"]
    assert ssh.peers({2222}, sockets) == []


def test_ports_of_another_users_sshd_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    make_process(tmp_path, 10, 1, name="sshd", title="sshd: me [listener]", sockets="100")
    monkeypatch.setattr(ssh, "ROOT_UID", 12345)
    assert ssh.sshd_ports(ssh.read_sockets(tmp_path), tmp_path) == set()
    monkeypatch.setattr(ssh, "ROOT_UID", tmp_path.stat().st_uid)
    assert ssh.sshd_ports(ssh.read_sockets(tmp_path), tmp_path) == {22}


def test_rules_for_ssh() -> None:
    made = ssh.ssh_records([2222, 22, 22], ["192.0.2.0/24", "2001:db8::/32"], "limit")
    assert [(made_one["port"], made_one["from"], made_one["action"]) for made_one in made] == [
        ("22", "192.0.2.0/24", "limit"),
        ("22", "2001:db8::/32", "limit"),
        ("2222", "192.0.2.0/24", "limit"),
        ("2222", "2001:db8::/32", "limit"),
    ]
    assert records.check_records(made) == []
