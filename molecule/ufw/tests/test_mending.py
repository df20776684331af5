"""What goes wrong with a firewall or its input, and what a run makes of it."""

from __future__ import annotations

import time

import pytest
from firewall import ad_hoc, apply, changes, controller, kernel, neighbour, reaches, replaced, restored
from probes import connects, thorough

testinfra_hosts = ["ansible://debian13"]  # one is enough: test_ufw.py holds both against the same measure


HARM = [
    "ufw disable",
    "nft flush ruleset",
    "iptables -A ufw-user-input -p tcp --dport 8012 -j ACCEPT",
    "sed -i /8001/d /etc/ufw/user.rules",
]
MORE_HARM = [
    "sed -i s/IPV6=yes/IPV6=no/ /etc/default/ufw",
    "systemctl disable --now ufw",
    "iptables -P INPUT ACCEPT; iptables -F; ip6tables -P INPUT ACCEPT; ip6tables -F",
    "iptables -F ufw-before-input; iptables -P INPUT ACCEPT",
    "iptables -R ufw-user-input 2 -p tcp --dport 8012 -j ACCEPT",
    "ip6tables -D ufw6-user-input -p tcp --dport 8001 -j ACCEPT",
    "sed -i s/ENABLED=yes/ENABLED=no/ /etc/ufw/ufw.conf",
    "sed -i s/LOGLEVEL=low/LOGLEVEL=full/ /etc/ufw/ufw.conf",
]


@pytest.mark.parametrize("harm", [*HARM, *(pytest.param(harm, marks=thorough) for harm in MORE_HARM)])
def test_harm_is_seen_and_mended(host, address, harm):
    healthy = kernel(host)
    host.check_output(harm)
    assert changes(host) >= 1
    assert kernel(host) == healthy
    assert [connects(address, port) for port in (22, 8001, 8012)] == ["open", "open", "dropped"]
    assert host.service("ufw").is_enabled


def test_harm_is_told_in_check_mode(host):
    host.check_output("iptables -A ufw-user-input -p tcp --dport 8012 -j ACCEPT")
    harmed = kernel(host)
    asked = apply(host, check=True)
    assert "IPv4: chain ufw-user-input has" in asked.stdout
    assert "changed=1" in asked.stdout
    assert kernel(host) == harmed
    assert changes(host) == 1


def test_host_is_not_lost_when_the_rules_do_not_load(host, address):
    """Here a reload leaves the door shut and no way to the rules."""
    healthy = kernel(host)
    script = 'case "$*" in reload) iptables -P INPUT DROP; exec iptables -F INPUT ;; esac; exec /usr/sbin/ufw "$@"'
    with restored(host):
        with replaced(host, "ufw", script):
            done = apply(host, ufw_default_incoming="reject")
        assert done.returncode != 0
        assert "The host took back the firewall that it had before" in " ".join(done.stdout.split())
        assert [connects(address, port) for port in (22, 8012)] == ["open", "dropped"]
        assert kernel(host) == healthy


# Programs that take the place of real ones and kill the module where it calls them.
KILLS = {
    "before anything": ("ufw", 'case "$*" in logging*) kill -9 $PPID; exit 1 ;; esac; exec /usr/sbin/ufw "$@"'),
    "with rules in the files only": (
        "iptables-restore",
        'case "$*" in *--wait*) kill -9 $PPID; exit 1 ;; esac; exec /usr/sbin/iptables-restore "$@"',
    ),
    "before IPv6 is loaded": (
        "ip6tables-restore",
        'case "$*" in *--wait*) kill -9 $PPID; exit 1 ;; esac; exec /usr/sbin/ip6tables-restore "$@"',
    ),
    "before the reload": ("ufw", 'case "$*" in reload) kill -9 $PPID; exit 1 ;; esac; exec /usr/sbin/ufw "$@"'),
    "in the middle of the reload": (
        "ufw",
        'case "$*" in reload) kill -9 $PPID; /usr/sbin/ufw disable; exit 1 ;; esac; exec /usr/sbin/ufw "$@"',
    ),
}


WORST = ("in the middle of the reload",)


@pytest.mark.parametrize("moment", [name if name in WORST else pytest.param(name, marks=thorough) for name in KILLS])
def test_killed_run_leaves_ssh_open_and_is_mended(host, address, moment):
    program, script = KILLS[moment]
    other = {
        "ufw_rules": [{"port": 8013, "proto": "tcp"}],
        "ufw_logging": "medium" if "before anything" in moment else "low",
        "ufw_default_incoming": "reject" if "reload" in moment else "deny",
    }
    with restored(host):
        with replaced(host, program, script):
            assert apply(host, **other).returncode != 0
        assert connects(address, 22) == "open"
        assert changes(host, **other) >= 1
        closed = "refused" if "reload" in moment else "dropped"
        assert [connects(address, port) for port in (22, 8013, 8001)] == ["open", "open", closed]


@thorough
def test_firewall_waits_for_its_turn(host):
    """Ufw's own lock is honoured, and somebody else's command is not undone."""
    host.check_output(
        "systemd-run --collect --unit hold python3 -c 'import fcntl,time\n"
        'lock=open("/run/ufw.lock","w"); fcntl.lockf(lock, fcntl.LOCK_EX); time.sleep(8)\'',
    )
    started = time.monotonic()
    with restored(host):
        assert changes(host, ufw_rules=[{"port": 8013, "proto": "tcp"}]) == 1
        assert time.monotonic() - started > 6


@thorough
def test_sshd_moves_to_another_port(host, address):
    move = "printf 'Port %s\\n' {} > /etc/ssh/sshd_config.d/10-port.conf && systemctl restart ssh"
    try:
        host.check_output(move.format("22 2022"))
        assert changes(host) == 1
        assert connects(address, 2022) == "open"
        host.check_output(move.format("2022"))
        assert changes(host, ansible_port=2022) == 1
        assert connects(address, 2022) == "open"
        assert connects(address, 22) == "dropped"  # it would be refused if it were still allowed
        assert changes(host, ansible_port=2022) == 0
    finally:
        back = "rm -f /etc/ssh/sshd_config.d/10-port.conf && ufw allow 22/tcp comment back && systemctl restart ssh"
        ad_hoc(host, "ansible.builtin.shell", back, "--extra-vars", "ansible_port=2022")
    changes(host)
    host.check_output("ufw delete allow 22/tcp comment back")
    assert changes(host) == 0
    assert connects(address, 22) == "open"
    assert connects(address, 2022) == "dropped"


@thorough
def test_emergency_block_holds_when_rules_change(host, address):
    us = controller(host)
    assert connects(address, 8001) == "open"
    host.check_output(f"ufw prepend deny from {us}")
    try:
        more = [{"port": 8001, "proto": "tcp"}, {"port": 8013, "proto": "tcp"}]
        with restored(host):
            assert changes(host, ufw_rules=more) == 1
            assert {port: connects(address, port) for port in (22, 8001, 8013)} == {
                22: "open",  # or we could not lift it
                8001: "dropped",
                8013: "dropped",
            }
    finally:
        host.check_output(f"ufw delete deny from {us}")
    assert connects(address, 8001) == "open"


@thorough
def test_ssh_from_some_networks_only(host, address):
    with restored(host):
        assert changes(host, ufw_ssh_from=["10.0.0.0/8", "2001:db8::/32"]) == 1
        held = kernel(host)
        assert "-A ufw-user-input -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT" in held
        assert "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT" not in held
        assert "-A ufw6-user-input -s 2001:db8::/32 -p tcp -m tcp --dport 22 -j ACCEPT" in held
        assert connects(address, 22) == "open"


@thorough
def test_ssh_from_this_machine_only(host, address):
    there = neighbour(host)
    assert reaches(there, address, 22) == "open"
    with restored(host):
        assert changes(host, ufw_ssh_from=[controller(host)]) == 1
        assert connects(address, 22) == "open"
        assert {port: reaches(there, address, port) for port in (22, 8001)} == {22: "dropped", 8001: "open"}
    assert reaches(there, address, 22) == "open"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"ufw_rules": [{"port": 80, "proto": "tcp"}, {"port": "8000:8010"}]},
            "rules[1] {port: 8000:8010}: proto: a range of ports (8000:8010) needs a protocol",
        ),
        ({"ufw_ssh_from": ["192.0.2.0/24"]}, "which is not in ['192.0.2.0/24']; add its network"),
        pytest.param(
            {"ufw_fleet_rules": [{"port": 80, "from": "lb1.example.com"}]},
            "{port: 80, from: lb1.example.com}: from: 'lb1.example.com' is no address",
            marks=thorough,
        ),
        pytest.param({"ufw_rules": [{"prot": "tcp", "port": 80}]}, "prot", marks=thorough),
        pytest.param({"ufw_rules": [{"port": 80, "action": "alow"}]}, "alow", marks=thorough),
        pytest.param({"ufw_ssh_from": []}, "ssh_from: the list is empty", marks=thorough),
        pytest.param(
            {"ufw_ipv6": False},
            "{port: 8010, proto: tcp, from: 2001:db8::/32}: from: 2001:db8::/32 is IPv6, which is switched off",
            marks=thorough,
        ),
    ],
)
def test_wrong_input_changes_nothing(host, variables, message):
    before = kernel(host)
    done = apply(host, **variables)
    assert done.returncode != 0
    assert message in " ".join(done.stdout.replace("\\n", "\n").split())
    assert kernel(host) == before
