"""The firewall must not lock anybody out: what is not confirmed by a new connection, the host takes back by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from firewall import (
    ad_hoc,
    apply,
    bridge_address,
    changes,
    command,
    kernel,
    name,
    neighbour_address,
    reaches,
    replaced,
    restored,
)
from probes import ROOT, connects, thorough, wait_until

testinfra_hosts = ["ansible://debian13"]

GUARD = "/var/lib/wsgi-fleet/ufw/guard"
UNDO = "/var/lib/wsgi-fleet/ufw/undo"
KILL = 'case "$*" in *--wait*) kill -9 $PPID; exit 1 ;; esac; exec /usr/sbin/iptables-restore "$@"'
FEWER = {"ufw_rules": [{"port": 8001, "proto": "tcp"}], "ufw_fleet_rules": []}
CONVERGED = yaml.safe_load((ROOT / "molecule/ufw/inventory/hosts.yml").read_text())["systems_under_test"]["vars"]
NO_NEW_SSH = "-A ufw-before-input -p tcp --dport 22 -m conntrack --ctstate NEW -j DROP"


def said(done):
    return " ".join(done.stdout.split())


def is_settled(host):
    """Whether nothing waits for a confirmation, and no timer for its time."""
    timers = host.check_output("systemctl list-units --all --plain --no-legend 'wsgi-fleet-ufw-guard-*'")
    boot = host.check_output("find /etc/systemd/system -name 'wsgi-fleet-ufw*'")
    return not host.file(GUARD).exists and not timers and not boot


def test_change_is_confirmed_and_leaves_nothing(host, address):
    with restored(host):
        assert changes(host, **FEWER) == 1
        assert is_settled(host)
        assert connects(address, 8004) == "dropped"
    assert is_settled(host)


def test_rules_that_only_open_need_no_guard(host):
    """A guard costs a connection; a deployment that opens a port should not pay for it."""
    more = [*CONVERGED["ufw_rules"], {"port": 8019, "proto": "tcp"}]
    with restored(host):
        host.check_output("rm %s", UNDO)
        assert changes(host, ufw_rules=more) == 1
        assert not host.file(UNDO).exists
    assert host.file(UNDO).exists  # to close it again is guarded


@thorough
def test_change_without_a_guard(host, address):
    with restored(host):
        host.check_output("rm %s", UNDO)
        assert changes(host, **FEWER, ufw_guard_seconds=0) == 1
        assert not host.file(UNDO).exists
        assert is_settled(host)
        assert [connects(address, port) for port in (22, 8001, 8004)] == ["open", "open", "dropped"]


@thorough
def test_run_without_a_guard_confirms_what_one_before_has_changed(host, address):
    """The module dies between its guard and the kernel's rules."""
    with restored(host):
        with replaced(host, "iptables-restore", KILL):
            assert apply(host, **FEWER, ufw_guard_seconds=30).returncode != 0
        assert not is_settled(host)
        assert changes(host, **FEWER, ufw_guard_seconds=0) == 1
        assert is_settled(host)
        time.sleep(30)
        assert [connects(address, port) for port in (22, 8001, 8004)] == ["open", "open", "dropped"]


@pytest.fixture
def forwarder(host):
    """Another way to sshd, which sshd knows nothing of: port 2200, as a container or a load balancer would have it."""
    program = (
        "import asyncio\n"
        "async def pipe(reader, writer):\n"
        "    while data := await reader.read(65536):\n"
        "        writer.write(data)\n"
        "    writer.close()\n"
        "async def serve(reader, writer):\n"
        "    inner = await asyncio.open_connection('127.0.0.1', 22)\n"
        "    await asyncio.gather(pipe(reader, inner[1]), pipe(inner[0], writer))\n"
        "async def main():\n"
        "    await (await asyncio.start_server(serve, '0.0.0.0', 2200)).serve_forever()\n"
        "asyncio.run(main())\n"
    )
    host.check_output("systemd-run --unit forwarder --collect python3 -c %s", program)
    yield 2200
    host.check_output("systemctl stop forwarder")


def test_ssh_by_a_port_that_sshd_does_not_know(host, address, forwarder):
    host.check_output("ufw disable")
    with restored(host):
        wait_until(lambda: connects(address, forwarder) == "open", 10, "the forwarder")
        done = apply(host, ansible_port=forwarder, ufw_guard_seconds=12)
        assert done.returncode != 0
        assert "so the host took the change back" in said(done)
        assert connects(address, forwarder) == "open"
        assert connects(address, 8012) == "open"  # as it was: switched off
        assert "inactive" in host.check_output("ufw status")
        assert is_settled(host)


@thorough
def test_rule_of_others_that_shuts_ssh(host, address):
    """It waits in before.rules for the next reload, which a new policy brings."""
    before = kernel(host)
    files = "cat /etc/ufw/user.rules /etc/ufw/user6.rules /etc/ufw/before.rules /etc/default/ufw /etc/ufw/ufw.conf"
    host.check_output("cp /etc/ufw/before.rules /root/")
    host.check_output("sed -i %s /etc/ufw/before.rules", f"/^# ok icmp codes for INPUT/i {NO_NEW_SSH}")
    texts = host.check_output(files)
    try:
        done = apply(host, ufw_default_incoming="reject", ufw_rules=[], ufw_guard_seconds=12)
        assert done.returncode != 0
        assert "the firewall that it had before is in force" in said(done)
        assert [connects(address, port) for port in (22, 8001, 8012)] == ["open", "open", "dropped"]
        assert kernel(host) == before
        assert host.check_output(files) == texts
        assert is_settled(host)
    finally:
        host.check_output("mv /root/before.rules /etc/ufw/before.rules")
    assert changes(host) == 0


def test_default_deny_with_an_empty_list(host, address):
    nothing = {"ufw_rules": [], "ufw_fleet_rules": [], "ufw_applications": [], "ufw_default_outgoing": "deny"}
    with restored(host):
        assert changes(host, **nothing) == 1
        assert [connects(address, port) for port in (22, 8001, 8002)] == ["open", "dropped", "dropped"]
        assert reaches(host, neighbour_address(host), 8004) == "dropped"


@thorough
def test_operator_takes_the_rule_for_ssh_away(host, address):
    """By hand, and then by a rule that denies it: neither the open connection nor a new one is lost."""
    denied = [{"port": 22, "proto": "tcp", "action": "deny"}, {"port": 22, "action": "deny"}, {"port": 8001}]
    with restored(host):
        host.check_output("ufw delete allow 22/tcp")
        assert connects(address, 22) == "dropped"
        assert changes(host, ufw_rules=denied) == 1
        assert [connects(address, port) for port in (22, 8001)] == ["open", "open"]


@thorough
@pytest.mark.parametrize(
    "variables",
    [{"ufw_ssh_from": ["10.0.0.0/8"]}, pytest.param({"ufw_ipv6": False}, marks=thorough)],
)
def test_host_that_is_reached_by_ipv6_only(host, address, variables):
    """Here others come by IPv4, and root may not see which of them all this run is: so the guard has to do it."""
    before = kernel(host)
    by_ipv6 = bridge_address(host, address)  # whose zone is nothing for a rule to that address
    done = apply(host, ansible_host=by_ipv6, ufw_rules=[], ufw_guard_seconds=12, **variables)
    assert done.returncode != 0
    refused = "do not switch IPv6 off", "which is not in ['10.0.0.0/8']", "so the host took the change back"
    assert any(message in said(done) for message in refused)
    assert kernel(host) == before
    assert is_settled(host)


def family(process):
    """A process of this machine and all that it has started, the oldest first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents.setdefault(int(words[1]), []).append(int(stat.parent.name))
    return [process, *(one for child in parents.get(process, ()) for one in family(child))]


def test_controller_dies_before_it_confirms(host, address):
    before = kernel(host)
    slow = 'case "$*" in *--wait*) sleep 5 ;; esac; exec /usr/sbin/iptables-restore "$@"'
    environment, words = command(host, **FEWER, ufw_guard_seconds=10)
    with replaced(host, "iptables-restore", slow):
        run = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: host.file(GUARD).exists, 60, "the guard")
            assert run.poll() is None
        finally:
            for process in family(run.pid):  # its workers have sessions of their own
                os.kill(process, signal.SIGKILL)
        run.wait()
        wait_until(lambda: "8004" not in kernel(host), 20, "the change, which nobody sees any more")
    wait_until(lambda: is_settled(host), 40, "the host")
    assert kernel(host) == before
    assert [connects(address, port) for port in (22, 8004)] == ["open", "open"]
    with restored(host):
        assert changes(host, **FEWER) == 1


@thorough
def test_reboot_takes_back_what_is_not_confirmed(host, address):
    """The module dies half-way, and the power fails before the guard's time is up."""
    before = kernel(host)
    with replaced(host, "iptables-restore", KILL):
        assert apply(host, **FEWER, ufw_guard_seconds=600).returncode != 0
    assert not is_settled(host)
    assert "8004" not in host.check_output("cat /etc/ufw/user.rules")
    arguments = {"boot_time_command": "cut -d' ' -f22 /proc/1/stat", "reboot_timeout": 120}
    ad_hoc(host, "ansible.builtin.reboot", json.dumps(arguments), timeout=180)
    wait_until(lambda: connects(address, 8004) == "open", 30, "the listener")
    assert kernel(host) == before
    assert is_settled(host)
    assert changes(host) == 0
    assert name(host) == "debian13"
