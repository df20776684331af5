"""What goes wrong around a deploy: others, networks, disks, power. The fleet goes on serving what it served."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest
from deploying import BALANCER, HOSTS, SITE, Visitors, begin, changes, follow, live, play, said, version
from probes import connects, fetch, run_as_root, thorough, wait_until

testinfra_hosts = ["ansible://lb1"]
pytestmark = pytest.mark.usefixtures("fleet")


def verdicts(fleet):
    return [json.loads(host.check_output("cat /srv/web/current/state.json"))["verdict"] for host in fleet.values()]


@thorough
def test_check_mode_says_what_a_deploy_would_do(source, fleet):
    before = live(fleet)
    assert set(changes(play("deploy", source("checked"), "--check", "--diff")).values()) != {0}
    assert live(fleet) == before


@thorough
def test_second_deploy_at_the_same_time_is_refused(source, fleet):
    first = begin("deploy", source("first"))
    follow(first, "Build the releases")
    second = play("deploy", source("second"))
    assert second.returncode != 0
    assert "web is locked by " in said(second)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output[-4000:]
    assert version() == "first"
    assert verdicts(fleet) == ["good", "good"]


def cut_off(host):
    """Sshd is gone from now on, and comes back after a while."""
    host.check_output("systemd-run sh -c 'sleep 40; systemctl start ssh'")
    host.run("systemd-run sh -c 'systemctl stop ssh.service ssh.socket; pkill sshd'")


def reboot(host):
    host.run("systemd-run sh -c 'sleep 0.5; systemctl reboot'")


@thorough
@pytest.mark.parametrize("trouble", [cut_off, reboot])
def test_host_that_is_lost_in_the_middle_stops_the_deploy(trouble, source, fleet, tmp_path):
    served = version()
    address = fleet["app2"].ansible.get_variables()["ansible_host"]
    boot = fleet["app2"].check_output("cut -d' ' -f22 /proc/1/stat")
    directory = source(f"lost-by-{trouble.__name__}")
    with Visitors(tmp_path) as visitors:
        run = begin("deploy", directory)
        follow(run, "See whether all hosts may go on")
        trouble(fleet["app2"])
        output, _ = run.communicate(timeout=300)
        assert run.returncode != 0
        assert re.search(r"^ *app2: .*could not be reached", output, re.MULTILINE), output[-4000:]
        assert "look at them first" in output
        assert version() == served
        wait_until(lambda: connects(address, 22) == "open", 90, "app2")
    assert not [reason for reason in visitors.seen["failed"] if reason.startswith("GET")], visitors.seen
    if trouble is reboot:
        assert fleet["app2"].check_output("cut -d' ' -f22 /proc/1/stat") != boot
    else:
        assert visitors.seen["failed"] == {}, visitors.seen
        assert set(visitors.seen["answers"]) == {served}
    changes(play("deploy", directory))  # it was the host's fault: the release is not bad
    assert version() == directory.joinpath("version").read_text()
    assert verdicts(fleet) == ["good", "good"]


FULL = """
set -eu
mkdir /run/small
mount -t tmpfs -o size=300m,mode=755 tmpfs /run/small
cp -a /srv/web/releases/. /run/small
chown --reference=/srv/web/releases /run/small
chmod --reference=/srv/web/releases /run/small
dd if=/dev/zero of=/run/small/filler bs=1M 2>/dev/null || true
mount --bind /run/small /srv/web/releases
"""


@thorough
def test_full_disk_on_one_host_stops_the_deploy(source, fleet, tmp_path):
    before = live(fleet)
    served = version()
    name = fleet["app2"].ansible.get_variables()["sandbox_container_name"]
    pid = run_as_root("podman", "inspect", "--format", "{{.State.Pid}}", name).strip()
    inside = ["nsenter", "--target", pid, "--mount", "sh", "-c"]
    directory = source("too-much", data="x" * 100_000)
    run_as_root(*inside, FULL)
    try:
        with Visitors(tmp_path) as visitors:
            done = play("deploy", directory)
        assert done.returncode != 0
        assert "app2: " in said(done)
        assert "No space left on device" in said(done)
        assert visitors.seen["failed"] == {}, visitors.seen
        assert set(visitors.seen["answers"]) == {served}
        assert live(fleet) == before
    finally:
        run_as_root(*inside, "umount /srv/web/releases; umount /run/small; rmdir /run/small")
    changes(play("deploy", directory))
    assert version() == "too-much"


def boots(fleet):
    return {name: host.check_output("cut -d' ' -f22 /proc/1/stat") for name, host in fleet.items()}


@thorough
def test_hosts_reboot_one_after_the_other_and_nobody_notices(source, fleet, host, tmp_path):
    served, before = version(), boots(fleet)
    assert set(changes(play("reboot", source(served), "--check")).values()) != {0}
    assert boots(fleet) == before
    with Visitors(tmp_path) as visitors:
        changes(play("reboot", source(served)))
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {served}
    after = boots(fleet)
    assert [name for name in HOSTS if after[name] == before[name]] == []
    assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == set(HOSTS)
    assert host.run("grep -rn ' down;' /etc/nginx/sites-enabled").rc == 1
    assert [one.check_output("ls /var/lib/wsgi-fleet/locks") for one in fleet.values()] == ["", ""]


@thorough
def test_host_that_is_not_well_after_its_reboot_ends_it_for_others(source, fleet, tmp_path):
    served, before = version(), boots(fleet)
    fleet["app1"].check_output("systemctl mask nginx")
    try:
        with Visitors(tmp_path) as visitors:
            done = play("reboot", source(served))
        assert done.returncode != 0
        assert "app1: See that every application answers" in said(done)
        assert "app2: could not be reached, or ended before it had to" in said(done)
        assert visitors.seen["failed"] == {}, visitors.seen
        assert boots(fleet)["app2"] == before["app2"]
        assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == {"app2"}
    finally:
        fleet["app1"].check_output("systemctl unmask nginx")
    changes(play("site", source(served)))
    assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == set(HOSTS)


@thorough
def test_deploy_killed_at_each_step_is_mended_by_the_next(source, fleet, tmp_path):
    whole = play("deploy", source("whole"), options={"wsgi_canary_seconds": 0})
    changes(whole)
    steps = len(re.findall(r"^TASK \[", whole.stdout, re.MULTILINE))
    with Visitors(tmp_path) as visitors:
        for step in range(steps):
            directory = source(f"killed-at-{step}")
            run = begin("deploy", directory, options={"wsgi_canary_seconds": 0})
            for _ in range(step + 1):
                reached = follow(run, "TASK [")
            time.sleep(0.3)
            run.send_signal(signal.SIGKILL)
            run.wait()
            assert version() in (f"killed-at-{step}", f"killed-at-{step - 1}", "whole")
            changes(play("deploy", directory, options={"wsgi_canary_seconds": 0}))
            assert version() == f"killed-at-{step}", reached
            assert verdicts(fleet) == ["good", "good"], reached
            shutil.rmtree(directory)
    assert visitors.seen["failed"] == {}, visitors.seen
