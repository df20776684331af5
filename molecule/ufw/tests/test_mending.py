"""What goes wrong with a firewall, and what a run makes of it."""

from __future__ import annotations

import time

import pytest
from firewall import ad_hoc, apply, changes, kernel, replaced, restored, root
from probes import connects

testinfra_hosts = ["ansible://debian13"]  # one is enough: test_ufw.py holds both against the same measure


@pytest.mark.parametrize(
    "harm",
    [
        "ufw disable",
        "systemctl disable --now ufw",
        "iptables -P INPUT ACCEPT; iptables -F; ip6tables -P INPUT ACCEPT; ip6tables -F",
        "nft flush ruleset",
        "iptables -F ufw-before-input; iptables -P INPUT ACCEPT",
        "iptables -A ufw-user-input -p tcp --dport 8012 -j ACCEPT",
        "iptables -R ufw-user-input 2 -p tcp --dport 8012 -j ACCEPT",
        "ip6tables -D ufw6-user-input -p tcp --dport 8001 -j ACCEPT",
        "sed -i /8001/d /etc/ufw/user.rules",
        "sed -i s/ENABLED=yes/ENABLED=no/ /etc/ufw/ufw.conf",
        "sed -i s/LOGLEVEL=low/LOGLEVEL=full/ /etc/ufw/ufw.conf",
        "sed -i s/IPV6=yes/IPV6=no/ /etc/default/ufw",
    ],
)
def test_harm_is_seen_and_mended(host, address, harm):
    healthy = kernel(host)
    root(host, harm)
    assert changes(host) >= 1
    assert kernel(host) == healthy
    assert [connects(address, port) for port in (22, 8001, 8012)] == ["open", "open", "dropped"]
    assert host.service("ufw").is_enabled


def test_harm_is_told_in_check_mode(host):
    root(host, "iptables -A ufw-user-input -p tcp --dport 8012 -j ACCEPT")
    harmed = kernel(host)
    asked = apply(host, check=True)
    assert "IPv4: chain ufw-user-input has" in asked.stdout
    assert "changed=1" in asked.stdout
    assert kernel(host) == harmed
    assert changes(host) == 1


def test_host_is_not_lost_when_the_rules_do_not_load(host, address):
    """Here a reload leaves the door shut and no way to the rules."""
    script = 'case "$*" in reload) iptables -P INPUT DROP; exec iptables -F INPUT ;; esac; exec /usr/sbin/ufw "$@"'
    with restored(host):
        with replaced(host, "ufw", script):
            done = apply(host, ufw_default_incoming="reject")
        assert done.returncode != 0
        assert "SSH would have been closed, so the firewall was switched off" in " ".join(done.stdout.split())
        assert connects(address, 22) == "open"


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


@pytest.mark.parametrize("moment", KILLS)
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


def test_firewall_waits_for_its_turn(host):
    """Ufw's own lock is honoured, and somebody else's command is not undone."""
    root(
        host,
        "systemd-run --collect --unit hold python3 -c 'import fcntl,time\n"
        'lock=open("/run/ufw.lock","w"); fcntl.lockf(lock, fcntl.LOCK_EX); time.sleep(8)\'',
    )
    started = time.monotonic()
    with restored(host):
        assert changes(host, ufw_rules=[{"port": 8013, "proto": "tcp"}]) == 1
        assert time.monotonic() - started > 6


def test_sshd_moves_to_another_port(host, address):
    move = "printf 'Port %s\\n' {} > /etc/ssh/sshd_config.d/10-port.conf && systemctl restart ssh"
    try:
        root(host, move.format("22 2022"))
        assert changes(host) == 1
        assert connects(address, 2022) == "open"
        root(host, move.format("2022"))
        assert changes(host, ansible_port=2022) == 1
        assert connects(address, 2022) == "open"
        assert connects(address, 22) == "dropped"  # it would be refused if it were still allowed
        assert changes(host, ansible_port=2022) == 0
    finally:
        back = "rm -f /etc/ssh/sshd_config.d/10-port.conf && ufw allow 22/tcp && systemctl restart ssh"
        ad_hoc(host, "ansible.builtin.shell", back, "--extra-vars", "ansible_port=2022")
    changes(host)
    root(host, "ufw delete allow 22/tcp")
    assert changes(host) == 0
    assert connects(address, 22) == "open"
    assert connects(address, 2022) == "dropped"
