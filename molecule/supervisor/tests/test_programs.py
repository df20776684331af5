"""Asks hosts whose programs supervisord runs. The order counts: each test leaves everything as it found it."""

from __future__ import annotations

import json
import subprocess

from probes import ROOT, ansible_environment, connects, thorough, wait_until
from supervising import (
    ALL,
    PASSWORD,
    SOCKET,
    VARIABLES,
    Load,
    address,
    answer,
    changed,
    environment,
    files,
    inventories,
    pids,
    play,
)

testinfra_hosts = ["ansible://debian12", "ansible://debian13"]


def test_everything_runs_as_recorded(host):
    assert sorted(pids(host)) == ALL
    states = dict(line.split()[:2] for line in host.run("supervisorctl status").stdout.splitlines())
    assert states["once"] == "EXITED"
    assert states["manual"] == "STOPPED"
    running = pids(host)
    assert host.check_output(f"stat -c %U /proc/{running['web:web_0']}") == "web"
    assert "0027" in host.check_output(f"grep Umask /proc/{running['ticker']}/status")
    # 15 + 10 + 10 (two of them at once) + 10 + 10 + 10 for the groups, 10 for supervisord
    assert host.check_output("systemctl show -p TimeoutStopUSec --value supervisord") == "1min 15s"
    assert host.check_output("systemctl is-enabled supervisord") == "enabled"


def test_supervisord_is_at_home_in_its_own_environment_only(host):
    assert host.run("python3 -c 'import supervisor'").rc != 0
    main = host.check_output("systemctl show -p MainPID --value supervisord")
    assert "/opt/wsgi-fleet/supervisor/4.3.0-" in host.check_output(f"tr '\\0' ' ' < /proc/{main}/cmdline")


def test_values_of_the_environment_arrive_as_they_are(host):
    (ticker,) = [program for program in VARIABLES["supervisor_programs"] if program["name"] == "ticker"]
    wanted = {**ticker["environment"], "NUMBER": "17", "SWITCH": "true"}
    found = environment(host, pids(host)["ticker"])
    assert {name: found.get(name) for name in wanted} == wanted
    arguments = host.check_output(f"tr '\\0' '|' < /proc/{pids(host)['ticker']}/cmdline")
    assert arguments.endswith("|100% ; done # really|")


def test_sockets_are_closed_to_others(host):
    assert host.check_output(f"stat -c '%U:%G %a' {SOCKET}") == "web:adm 660"
    assert host.check_output("stat -c '%U:%G %a' /run/supervisord.sock") == "root:root 700"
    assert host.run("runuser -u web -- cat /etc/supervisord/conf.d/ticker.conf").rc != 0
    backlogs = [line.split()[3] for line in host.check_output("ss -lxH").splitlines() if SOCKET in line]
    assert backlogs == ["512"]


def test_supervisorctl_takes_no_configuration_from_the_current_directory(host):
    assert host.run("cd $(mktemp -d) && echo '[x' > supervisord.conf && supervisorctl status ticker").rc == 0


def test_web_page_wants_the_password_and_is_not_for_outsiders(host):
    page = "http://127.0.0.1:9011/"
    ask = "curl -sS -o /dev/null -w '%{http_code}' "
    assert host.check_output(ask + page) == "401"
    assert host.check_output(f"{ask} -u operator:wrong {page}") == "401"
    assert host.check_output(f"{ask} -u operator:{PASSWORD} {page}") == "200"
    assert connects(address(host), 9011) != "open"
    assert host.run(f"grep -rq {PASSWORD} /etc /var/log/supervisord /opt/wsgi-fleet").rc == 1
    assert host.check_output("stat -c '%U %a' /etc/supervisord/web.conf") == "root 600"


def test_eventlistener_hears(host):
    assert "heard PROCESS_STATE_RUNNING" in host.check_output("cat /var/log/supervisord/listener.log")


def test_second_run_changes_nothing(host):
    before = pids(host), files(host)
    assert changed(play(host)) == 0
    assert (pids(host), files(host)) == before


def test_check_mode_tells_the_change_and_makes_none(host):
    before = pids(host), files(host)
    done = play(host, "--check", "--diff", change={"left": {"stopwaitsecs": 7}, "extra": {"command": "/bin/sleep 1h"}})
    assert changed(done) >= 2
    assert "+group pair: changed" in done.stdout
    assert "+group extra: added" in done.stdout
    assert (pids(host), files(host)) == before


def test_new_release_is_rolled_out_without_a_lost_request(host):
    before = pids(host)
    assert answer(host) == "one"
    with Load(host) as load:
        host.check_output("ln -sfn releases/two /srv/web/current")
        done = play(host)
        assert changed(done) == 1
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"web:web_0", "web:web_1"}
    assert set(load.count) == {"one", "two"}, load.count
    assert min(load.count.values()) > 50, load.count
    assert changed(play(host)) == 0
    assert pids(host) == after


def test_killed_process_comes_back_by_itself_and_is_not_restarted_again(host):
    before = pids(host)
    host.check_output(f"kill -9 {before['web:web_1']}")
    wait_until(lambda: pids(host).get("web:web_1", before["web:web_1"]) != before["web:web_1"], 20, "the process")
    after = pids(host)
    assert changed(play(host)) == 0
    assert pids(host) == after


@thorough
def test_logs_are_rotated_and_go_on(host):
    before = pids(host)
    host.check_output("logrotate --force /etc/logrotate.conf")
    assert host.file("/var/log/supervisord/ticker.log.1").exists
    wait_until(lambda: "tick" in host.check_output("cat /var/log/supervisord/ticker.log"), 10, "lines in the new log")
    size = host.file("/var/log/supervisord/ticker.log.1").size
    wait_until(lambda: host.file("/var/log/supervisord/ticker.log").size > 20, 20, "more lines in the new log")
    assert host.file("/var/log/supervisord/ticker.log.1").size == size
    for _ in range(4):
        host.check_output("sleep 1.1; logrotate --force /etc/logrotate.d/supervisord")
    rotated = host.check_output("ls /var/log/supervisord/ | grep '^ticker.log.' | sort").split()
    assert rotated == ["ticker.log.1", "ticker.log.2.gz", "ticker.log.3.gz"]
    assert pids(host) == before
    assert changed(play(host)) == 0


def test_reboot_brings_everything_back(host):
    done = subprocess.run(
        [
            *("ansible", host.backend.host, "--become", "-m", "ansible.builtin.reboot"),
            *("-a", json.dumps({"boot_time_command": "cut -d' ' -f22 /proc/1/stat", "reboot_timeout": 120})),
            *[f"--inventory={path}" for path in inventories(host)],
        ],
        cwd=ROOT,
        env=ansible_environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: sorted(pids(host)) == ALL, 30, "the programs")
    assert answer(host) == "two"
    assert changed(play(host)) == 0
