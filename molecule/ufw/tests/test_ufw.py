"""The firewall as those see it who knock from outside, and as the kernel holds it."""

from __future__ import annotations

import json

import pytest
from firewall import (
    ad_hoc,
    bridge_address,
    changes,
    echoes,
    kernel,
    led_on,
    meets,
    name,
    neighbour,
    neighbour_address,
    reaches,
    restored,
)
from probes import connects, thorough, wait_until

testinfra_hosts = ["ansible://systems_under_test"]

# --- what was converged


@pytest.mark.parametrize(
    ("port", "meets"),
    [
        (22, "open"),
        (8001, "open"),
        (8002, "open"),  # from ufw_fleet_rules
        (8003, "refused"),
        (8004, "open"),
        (8006, "open"),
        (8007, "dropped"),  # allowed from another address
        (8008, "dropped"),  # denied before it is allowed
        (8010, "dropped"),  # allowed from an IPv6 network
        (8011, "dropped"),  # allowed on another interface
        (8012, "dropped"),  # not named at all
        (8014, "open"),  # by an application profile
        (8015, "open"),
        (8016, "dropped"),  # UDP only there
        (8017, "open"),  # and logged
        (8018, "refused"),
        (8020, "open"),  # to the host's own address
        (8021, "dropped"),  # to another
        (8022, "open"),  # by the interface that we come by
        (8023, "dropped"),  # UDP only
    ],
)
def test_ports_over_ipv4(address, port, meets):
    assert connects(address, port) == meets


@pytest.mark.parametrize(
    ("port", "meets"),
    [
        (22, "open"),
        (8001, "open"),
        (8003, "refused"),
        (8008, "open"),
        (8010, "dropped"),
        (8012, "dropped"),
        (8015, "open"),
    ],
)
def test_ports_over_ipv6(host, address, port, meets):
    assert connects(bridge_address(host, address), port) == meets


@pytest.mark.parametrize(
    ("port", "meets"),
    [
        (8003, "refused"),
        (8004, "dropped"),  # TCP only
        (8016, "open"),  # by an application profile
        (8023, "open"),
        (8025, "open"),  # the last of a range
    ],
)
def test_ports_over_udp(host, address, port, meets):
    assert echoes(address, port) == meets
    if meets != "dropped":
        assert echoes(bridge_address(host, address), port) == meets


def test_everything_listens(host):
    """Else a dropped port would prove nothing."""
    ports = range(8000, 8030)
    for probe in (connects, echoes):
        assert meets(host, "127.0.0.1", ports, probe) == ["open"] * len(ports)


def test_rules_for_packets_that_leave(host, address):
    target = neighbour_address(host)
    assert reaches(host, target, 8004) == "open"
    assert reaches(host, target, 8005) == "refused"
    assert connects(target, 8005) == "open"


def test_pings(host, address):
    there = neighbour(host)
    local = host.check_output("ip -6 -o addr show dev eth0 scope link").split()[3].partition("/")[0]
    assert there.run(f"ping -c 1 -W 2 {address}").rc == 0
    assert there.run(f"ping -6 -c 1 -W 2 {local}%eth0").rc == 1
    assert reaches(there, f"{local}%eth0", 8001) == "open"  # IPv6 itself is well


def logged(host, prefix):
    """How many packets the rules that log with this prefix have matched."""
    lines = host.check_output("iptables -nvxL ufw-user-logging-input").splitlines()
    return [int(line.split()[0]) for line in lines if prefix in line]


def test_rules_that_log(host, address):
    allowed, blocked = logged(host, "[UFW ALLOW]"), logged(host, "[UFW BLOCK]")
    assert [connects(address, port) for port in (8017, 8018)] == ["open", "refused"]
    assert sum(logged(host, "[UFW ALLOW]")) == sum(allowed) + 1
    assert sum(logged(host, "[UFW BLOCK]")) == sum(blocked) + 1


def test_profiles_are_there_for_people_too(host):
    assert "8014,8015/tcp" in host.check_output("ufw app info Knock")
    held = kernel(host)
    assert "-A ufw-user-input -s 192.0.2.0/24 -p udp -m multiport --dports 137,138 " in held
    assert "-A ufw-user-input -s 192.0.2.0/24 -p tcp -m multiport --dports 139,445 " in held


def test_limit(address):
    met = [connects(address, 8009) for _ in range(8)]
    assert met[0] == "open"
    assert met[-1] == "refused"


def test_ssh_is_open_where_sshd_listens_and_stands_first(host, address):
    ports = ["22", "2222"] if name(host) == "debian12" else ["22"]
    assert {connects(address, int(port)) for port in ports} == {"open"}
    for prefix in ("ufw", "ufw6"):
        rules = [line for line in kernel(host).splitlines() if line.startswith(f"-A {prefix}-user-input ")]
        assert [rule.split("--dport ")[1] for rule in rules[: len(ports)]] == [f"{port} -j ACCEPT" for port in ports]


def test_comments_are_shown_to_people(host):
    lines = [line.split("#") for line in host.check_output("ufw status").splitlines() if "#" in line]
    shown = {(rule.split()[0], comment.strip()) for rule, comment in lines}
    assert {
        ("22/tcp", "wsgi.fleet: keep SSH open"),
        ("8001/tcp", "wsgi.fleet: for all"),
        ("8002/tcp", "wsgi.fleet: http for balancers"),
        ("8023/udp", "wsgi.fleet"),
    } <= shown


def test_policies_in_the_kernel(host):
    lines = kernel(host).splitlines()
    for line in ("-P INPUT DROP", "-P FORWARD DROP", "-P OUTPUT ACCEPT"):
        assert lines.count(line) == 2  # IPv4 and IPv6


def test_rules_of_ipv6_in_the_kernel(host):
    held = kernel(host)
    assert "-A ufw6-user-input -s 2001:db8::/32 -p tcp -m tcp --dport 8010 -j ACCEPT" in held
    assert "192.0.2.7" not in [line for line in held.splitlines() if line.startswith("-A ufw6-")]


def test_service_loads_it_at_boot(host):
    assert host.service("ufw").is_enabled
    assert host.service("ufw").is_running


def test_ufw_would_write_the_same_files(host):
    """Ufw writes its files anew from what it reads in them."""
    show = "cat /etc/ufw/user.rules /etc/ufw/user6.rules"
    before = host.check_output(show)
    host.check_output("ufw logging low")
    assert host.check_output(show) == before


def test_second_run_by_another_port_changes_nothing(host):
    if name(host) == "debian12":
        assert changes(host, ansible_port=2222) == 0
    else:
        assert changes(host) == 0


# --- what others did


def test_stale_rules_go_and_foreign_ones_stay(host, address):
    host.check_output("ufw allow 8012/tcp && ufw allow proto udp from 203.0.113.9 to any port 53 comment 'by hand'")
    try:
        with restored(host):
            fewer = {"ufw_rules": [{"port": 8001, "proto": "tcp", "comment": "for all"}], "ufw_fleet_rules": []}
            assert changes(host, check=True, **fewer) == 1
            assert connects(address, 8004) == "open"  # it was only asked
            assert changes(host, **fewer) == 1
            assert {port: connects(address, port) for port in (22, 8001, 8002, 8004, 8012)} == {
                22: "open",
                8001: "open",
                8002: "dropped",
                8004: "dropped",
                8012: "open",
            }
            assert changes(host, **fewer) == 0
        assert connects(address, 8012) == "open"
        assert "by hand" in host.check_output("ufw status")
    finally:
        host.check_output("ufw delete allow 8012/tcp; ufw delete allow proto udp from 203.0.113.9 to any port 53")
    assert connects(address, 8012) == "dropped"
    assert changes(host) == 0


@thorough
def test_order_of_our_rules_changes(host, address):
    rules = [{"port": 8013, "from": "10.0.0.0/8", "action": "deny"}, {"port": 8013}]
    with restored(host):
        for order, met in ((rules, "dropped"), (rules[::-1], "open"), (rules, "dropped")):
            assert changes(host, ufw_rules=order) == 1
            assert connects(address, 8013) == met
            assert changes(host, ufw_rules=order) == 0


# --- other settings


@thorough
def test_other_settings(host, address):
    other = {
        "ufw_default_incoming": "reject",
        "ufw_default_outgoing": "reject",
        "ufw_default_routed": "allow",
        "ufw_logging": "medium",
        "ufw_ipv6": False,
        "ufw_ssh_rule": "limit",
        "ufw_rules": [{"port": 8001, "proto": "tcp"}],
        "ufw_fleet_rules": [],
    }
    there, by_ipv6 = neighbour_address(host), bridge_address(host, address)
    assert reaches(host, there, 8004) == "open"
    with led_on(host, there, [9004]):
        assert connects(address, 9004) == "dropped"
    with restored(host):
        assert changes(host, **other) == 1
        assert connects(address, 8001) == "open"
        assert connects(address, 8004) == "refused"
        assert connects(by_ipv6, 8001) == "dropped"
        assert reaches(host, there, 8004) == "refused"
        with led_on(host, there, [9004]):
            assert connects(address, 9004) == "open"
        held = kernel(host)
        assert "-P OUTPUT DROP" in held
        assert "-P FORWARD ACCEPT" in held
        assert "ufw6-user-input" not in host.check_output("ip6tables -S INPUT")
        assert "-P INPUT DROP" in host.check_output("ip6tables -S INPUT")
        assert "[UFW AUDIT] " in held
        assert "-A ufw-user-input -p tcp -m tcp --dport 22 -j ufw-user-limit-accept" in held
        assert changes(host, **other) == 0
        assert [connects(address, 22) for _ in range(8)][-1] == "refused"  # the sixth in 30 seconds, whoever knocks


@thorough
def test_default_allow(host, address):
    with restored(host):
        assert changes(host, ufw_default_incoming="allow") == 1
        assert {port: connects(address, port) for port in (22, 8003, 8008, 8012)} == {
            22: "open",
            8003: "refused",
            8008: "dropped",  # denied by a rule
            8012: "open",  # not named at all
        }
        assert connects(bridge_address(host, address), 8012) == "open"
        assert echoes(address, 8012) == "open"
        assert changes(host, ufw_default_incoming="allow") == 0


@thorough
@pytest.mark.parametrize("level", ["off", "high", "full"])
def test_logging(host, address, level):
    """From high on, what is blocked is logged without a limit; with full, all else as well."""
    with restored(host):
        assert changes(host, ufw_logging=level) == 1
        lines = [line for line in kernel(host).splitlines() if " LOG " in line and "-user-" not in line]
        limits = {
            prefix: {" -m limit " in line for line in lines if prefix in line}
            for prefix in ("[UFW BLOCK]", "[UFW AUDIT]")
        }
        assert (
            limits
            == {
                "off": {"[UFW BLOCK]": set(), "[UFW AUDIT]": set()},
                "high": {"[UFW BLOCK]": {False}, "[UFW AUDIT]": {True}},
                "full": {"[UFW BLOCK]": {False}, "[UFW AUDIT]": {False}},
            }[level]
        )
        before = sum(logged(host, "[UFW BLOCK]"))
        assert connects(address, 8018) == "refused"  # by a rule that logs, which off silences too
        assert sum(logged(host, "[UFW BLOCK]")) == before + (level != "off")
        assert changes(host, ufw_logging=level) == 0


# --- last, for it takes the longest


def test_reboot_keeps_everything(host, address):
    healthy = kernel(host)
    arguments = {"boot_time_command": "cut -d' ' -f22 /proc/1/stat", "reboot_timeout": 120}
    ad_hoc(host, "ansible.builtin.reboot", json.dumps(arguments), timeout=180)
    wait_until(lambda: connects(address, 8001) == "open", 30, "the listener")
    assert [connects(address, port) for port in (22, 8008, 8012)] == ["open", "dropped", "dropped"]
    assert kernel(host) == healthy
    assert changes(host) == 0
