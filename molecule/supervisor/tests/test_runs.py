"""Other records and releases, and what goes wrong with them. The order counts, as in test_programs.py."""

from __future__ import annotations

import pytest
from probes import thorough, wait_until
from supervising import ALL, SOCKET, VARIABLES, Load, answer, changed, files, pids, play

testinfra_hosts = ["ansible://debian13"]  # one is enough: supervisord and all of ours are the same on both


def test_change_of_a_program_touches_that_one_only(host):
    before = pids(host)
    changed(play(host, change={"ticker": {"umask": "077"}}))
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"ticker"}
    assert "0077" in host.check_output(f"grep Umask /proc/{after['ticker']}/status")
    changed(play(host))


@thorough
def test_new_owner_of_a_socket_is_noticed(host):
    """What supervisord itself would overlook."""
    changed(play(host, change={"web": {"socket_owner": "web:www-data", "socket_backlog": 256}}))
    assert host.check_output(f"stat -c '%U:%G' {SOCKET}") == "web:www-data"
    changed(play(host))
    assert host.check_output(f"stat -c '%U:%G' {SOCKET}") == "web:adm"


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


@thorough
def test_slow_release_leaves_nobody_waiting(host):
    """The next process goes on serving until this one has loaded, however long that takes."""
    host.check_output("cp -a /srv/web/releases/two /srv/web/releases/slow")
    served = answer(host)
    with Load(host) as load:
        host.check_output("ln -sfn releases/slow /srv/web/current")
        changed(play(host))
    assert set(load.count) == {served, "slow"}, load.count
    assert load.slowest < 2.5, load.slowest  # it takes five seconds to load
    host.check_output("ln -sfn releases/two /srv/web/current")
    changed(play(host))


@thorough
def test_change_of_supervisord_itself_restarts_it_once(host):
    before = pids(host)
    changed(play(host, supervisor_loglevel="debug"))
    after = pids(host)
    assert not set(before.values()) & set(after.values())
    assert sorted(after) == ALL
    assert changed(play(host, supervisor_loglevel="debug")) == 0
    changed(play(host))


@thorough
def test_killed_supervisord_comes_back_with_everything(host):
    before = pids(host)
    host.check_output("systemctl kill --signal=KILL --kill-who=main supervisord")
    # Where a container has cgroups of version 1, systemd does not see that all are gone, and waits TimeoutStopSec.
    wait_until(lambda: sorted(pids(host)) == ALL, 120, "the programs")
    assert not set(before.values()) & set(pids(host).values())
    assert host.run(f"kill -0 {before['pair:left']}").rc != 0
    assert changed(play(host)) == 0


def test_what_somebody_stopped_is_started(host):
    before = pids(host)
    host.check_output("supervisorctl stop pair:left")
    assert changed(play(host)) == 1
    after = pids(host)
    assert {name for name in ALL if before[name] != after.get(name)} == {"pair:left"}


@thorough
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


@thorough
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


@thorough
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
