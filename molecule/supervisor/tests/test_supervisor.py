"""Asks hosts whose programs supervisord runs. The order counts: each test leaves everything as it found it."""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from probes import ROOT, ansible_environment, connects, run_playbook, wait_until

SCENARIO = ROOT / "molecule" / "supervisor"
VARIABLES = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())["systems_under_test"]["vars"]
PASSWORD = VARIABLES["supervisor_inet_http_server"]["password"]
SOCKET = "/run/wsgi-fleet/web.sock"
ALL = ["listener", "pair:left", "pair:right", "ticker", "web:web_0", "web:web_1"]

testinfra_hosts = ["ansible://debian12", "ansible://debian13"]


def address(host):
    return host.ansible.get_variables()["ansible_host"]


def inventories(host):
    return [ROOT / "molecule" / "shared" / "inventory", SCENARIO / "inventory", Path(host.backend.ansible_inventory)]


def play(host, *arguments, change=None, **variables):
    """Apply the role to this host; `change` lays options over programs by name, None in it removes the program."""
    programs = copy.deepcopy(VARIABLES["supervisor_programs"])
    for name, options in (change or {}).items():
        known = [program for program in programs if program["name"] == name]
        if options is None:
            programs.remove(known[0])
        elif known:
            known[0].update(options)
        else:
            programs.append({"name": name, **options})
    extra = {"role_under_test": "supervisor", "supervisor_programs": programs, **variables}
    limit = f"--limit={host.backend.host}"
    return run_playbook(
        "molecule/shared/converge.yml",
        *("-e", json.dumps(extra), limit, *arguments),
        inventories=inventories(host),
    )


def changed(done):
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def pids(host, names=ALL):
    """Process numbers by name, of what runs."""
    lines = host.run("supervisorctl status").stdout.splitlines()
    found = {words[0]: int(words[3].rstrip(",")) for words in map(str.split, lines) if words[1] == "RUNNING"}
    return {name: found[name] for name in names if name in found}


def environment(host, pid):
    """The environment of a process, read as its own user: root in a container may not look into that of others."""
    user = host.check_output(f"stat -c %U /proc/{pid}")
    encoded = host.check_output(f"runuser -u {user} -- base64 -w0 /proc/{pid}/environ")
    return dict(entry.split("=", 1) for entry in base64.b64decode(encoded).decode().split("\0") if entry)


def answer(host):
    return host.check_output(f"curl -sS --unix-socket {SOCKET} http://web/").split()[0]


def files(host):
    return host.check_output(
        "find /etc/supervisord /etc/systemd/system /etc/logrotate.d -type f -printf '%p %T@ %m %u\\n' | sort"
    )


class Load:
    """Requests without a pause for as long as this is open; afterwards `count` tells what was answered."""

    def __init__(self, host):
        self.host = host
        self.count = {}

    def __enter__(self):
        self.host.run("rm -f /tmp/stop /tmp/load.json")
        script = base64.b64encode((SCENARIO / "files" / "load.py").read_bytes()).decode()
        self.host.check_output(f"echo {script} | base64 -d > /tmp/load.py")
        command = f"python3 /tmp/load.py {SOCKET} /tmp/stop > /tmp/load.json"
        self.host.check_output(f"systemd-run --unit=load --collect sh -c '{command}'")
        return self

    def __exit__(self, *_):
        self.host.check_output("touch /tmp/stop")
        wait_until(lambda: self.host.run("systemctl is-active load").stdout.strip() != "active", 30, "the load to end")
        self.count = json.loads(self.host.check_output("cat /tmp/load.json"))


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


def test_change_of_a_program_touches_that_one_only(host):
    before = pids(host)
    changed(play(host, change={"ticker": {"umask": "077"}}))
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"ticker"}
    assert "0077" in host.check_output(f"grep Umask /proc/{after['ticker']}/status")
    changed(play(host))


def test_new_owner_of_a_socket_is_noticed(host):
    """What supervisord itself would overlook."""
    changed(play(host, change={"web": {"socket_owner": "web:www-data", "socket_backlog": 256}}))
    assert host.check_output(f"stat -c '%U:%G' {SOCKET}") == "web:www-data"
    changed(play(host))
    assert host.check_output(f"stat -c '%U:%G' {SOCKET}") == "web:adm"


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


def test_changed_content_of_a_watched_file_is_rolled_out(host):
    before = pids(host)
    with Load(host) as load:
        host.check_output("echo greeting=goodbye > /srv/web/settings")
        changed(play(host))
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"web:web_0", "web:web_1"}
    assert set(load.count) == {"two"}, load.count


def test_broken_release_stops_the_roll_at_its_first_process(host):
    before = pids(host)
    bad = "/srv/web/releases/bad"
    host.check_output(f"mkdir -p {bad} && echo 'raise SystemExit(\"no such table: orders\")' > {bad}/server.py")
    with Load(host) as load:
        host.check_output("ln -sfn releases/bad /srv/web/current")
        done = play(host)
        assert done.returncode != 0
        said = " ".join((done.stdout + done.stderr).split())
        assert "web:web_0 did not come up: it is FATAL" in said
        assert "no such table: orders" in said
        assert "web:web_1 still runs" in said
        again = play(host)  # still broken: the one that serves is left alone
        assert again.returncode != 0
    assert set(load.count) == {"two"}, load.count
    assert pids(host)["web:web_1"] == before["web:web_1"]

    host.check_output("ln -sfn releases/one /srv/web/current")
    with Load(host) as load:
        changed(play(host))
    assert not any(name.startswith("failed") for name in load.count), load.count
    assert answer(host) == "one"
    assert sorted(pids(host)) == ALL
    assert changed(play(host)) == 0


def test_killed_roll_goes_on_where_it_stopped(host):
    """A run that died between stop and start of the first process."""
    before = pids(host)
    host.check_output("ln -sfn releases/two /srv/web/current")
    host.check_output("supervisorctl stop web:web_0")
    changed(play(host))
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"web:web_0", "web:web_1"}
    assert changed(play(host)) == 0


def test_killed_process_comes_back_by_itself_and_is_not_restarted_again(host):
    before = pids(host)
    host.check_output(f"kill -9 {before['web:web_1']}")
    wait_until(lambda: pids(host).get("web:web_1", before["web:web_1"]) != before["web:web_1"], 20, "the process")
    after = pids(host)
    assert changed(play(host)) == 0
    assert pids(host) == after


def test_what_somebody_stopped_is_started(host):
    before = pids(host)
    host.check_output("supervisorctl stop pair:left")
    assert changed(play(host)) == 1
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"pair:left"}


def test_unreadable_watch_is_an_error_and_no_restart_for_ever(host):
    host.check_output("echo greeting=hi > /srv/web/settings; chmod 0600 /srv/web/settings")
    host.check_output("chown root:root /srv/web/settings")
    done = play(host)
    assert done.returncode != 0
    assert "must be able to read all of these" in " ".join((done.stdout + done.stderr).split())
    host.check_output("chown root:web /srv/web/settings; chmod 0640 /srv/web/settings")
    changed(play(host))
    assert changed(play(host)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": {"user": "nosuchuser"}}, "[program:left] user: Invalid user name nosuchuser"),
        ({"listener": {"events": ["NO_SUCH_EVENT"]}}, "[eventlistener:listener]"),
        ({"left": {"stdout_logfile": "/no/such/directory/log"}}, "[program:left]"),
        ({"web": {"socket": None}}, "supervisor_programs: web: socket:"),
        ({"left": {"stopwaitsec": 5}}, "stopwaitsec"),
    ],
    ids=["user", "event", "log", "no socket", "typing error"],
)
def test_bad_record_is_refused_before_anything_changes(host, change, words):
    before = pids(host), files(host)
    done = play(host, change=change)
    assert done.returncode != 0
    assert words in " ".join((done.stdout + done.stderr).split())
    assert (pids(host), files(host)) == before


def test_socket_that_cannot_be_opened_is_told_and_others_go_on(host):
    before = pids(host)
    taken = {"type": "fcgi-program", "command": "/bin/sleep 1h", "socket": "tcp://0.0.0.0:22"}
    done = play(host, change={"taken": taken, "left": {"stopwaitsecs": 7}})
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "taken cannot be added" in said
    assert "Address already in use" in said
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"pair:left", "pair:right"}
    changed(play(host))
    assert sorted(pids(host)) == ALL
    assert changed(play(host)) == 0


def test_removed_program_is_gone_and_the_rest_goes_on(host):
    before = pids(host)
    groups = [{"name": "pair", "programs": ["left"], "priority": 500}]
    changed(play(host, change={"right": None, "ticker": None}, supervisor_groups=groups))
    after = pids(host)
    assert set(before) - set(after) == {"pair:right", "ticker"}
    assert [name for name in ("web:web_0", "web:web_1", "listener") if before[name] != after[name]] == []
    assert not host.file("/etc/supervisord/conf.d/ticker.conf").exists
    assert host.run(f"kill -0 {before['ticker']}").rc != 0
    changed(play(host))
    assert sorted(pids(host)) == ALL


def test_logs_are_rotated_and_go_on(host):
    before = pids(host)
    host.check_output("logrotate --force /etc/logrotate.d/supervisord")
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


def test_secrets_are_not_shown(host):
    secret = "Not-for-your-eyes-4711"
    web = {**VARIABLES["supervisor_inet_http_server"], "password": f"{secret}-web"}
    done = play(
        host,
        *("-vvv", "--diff", "--check"),
        change={"left": {"environment": {"TOKEN": f"{secret}-token", "ODD": f"'{secret}\"-odd"}}},
        supervisor_inet_http_server=web,
        supervisor_environment={"PIP_INDEX_URL": f"https://user:{secret}@example.com/simple"},
        supervisor_version="4.2.5",
    )
    # The tests' own -e is on the command line, which -vvv does not repeat.
    assert done.returncode == 0, done.stdout[-3000:]
    assert secret not in done.stdout + done.stderr


def test_change_of_supervisord_itself_restarts_it_once(host):
    before = pids(host)
    changed(play(host, supervisor_loglevel="debug"))
    after = pids(host)
    assert not set(before.values()) & set(after.values())
    assert sorted(after) == ALL
    assert changed(play(host, supervisor_loglevel="debug")) == 0
    changed(play(host))


def test_killed_supervisord_comes_back_with_everything(host):
    before = pids(host)
    host.check_output("systemctl kill --signal=KILL --kill-who=main supervisord")
    # Where a container has cgroups of version 1, systemd does not see that all are gone, and waits TimeoutStopSec.
    wait_until(lambda: sorted(pids(host)) == ALL, 120, "the programs")
    assert not set(before.values()) & set(pids(host).values())
    assert host.run(f"kill -0 {before['pair:left']}").rc != 0
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
