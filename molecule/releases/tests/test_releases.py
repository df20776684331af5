"""Deploys, rolls back and breaks, with visitors on the site. The order counts: each test begins where one ended."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import time

import pytest
from deploying import BALANCER, SITE, Visitors, begin, changes, follow, live, play, said, version
from probes import fetch, thorough

testinfra_hosts = ["ansible://lb1"]
pytestmark = pytest.mark.usefixtures("fleet")


def test_fleet_is_made_with_everything_good(one, fleet):
    changes(play("site", one))
    assert version() == "one"
    for host in fleet.values():
        state = json.loads(host.check_output("cat /srv/web/current/state.json"))
        assert state["verdict"] == "good"
        assert host.file("/srv/web/current/config/env").mode == 0o640


def test_deploy_in_which_nothing_changed_does_nothing(one, fleet):
    before = live(fleet)
    assert set(changes(play("deploy", one)).values()) == {0}
    assert live(fleet) == before


def test_new_version_loses_no_request(two, fleet, tmp_path):
    with Visitors(tmp_path, pause=0.1) as visitors:
        done = play("deploy", two)
    changes(done)
    for host in fleet.values():  # its packages are those of the release before, not once more the same
        links = "stat -c '%h %U' /srv/web/current/venv/lib/python3*/site-packages/gunicorn/*.py"
        assert set(host.check_output(links).splitlines()) == {"2 root"}
    assert version() == "two"
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"one", "two"}


@thorough
def test_reload_of_nginx_on_all_hosts_loses_no_request(fleet, tmp_path):
    """It closes connections that balancers have just sent a request over: GET is repeated, POST may not be."""
    with Visitors(tmp_path, pause=0) as visitors:
        for _ in range(4):
            for host in fleet.values():
                host.check_output("systemctl reload nginx")
            time.sleep(1)
    assert visitors.seen["failed"] == {}, visitors.seen
    assert visitors.seen["requests"] > 1000


def test_rollback_goes_to_the_one_before_and_site_stays_there(two, fleet, tmp_path):
    with Visitors(tmp_path) as visitors:
        changes(play("rollback", two))
    assert version() == "one"
    assert visitors.seen["failed"] == {}, visitors.seen
    listed = said(play("releases", two))
    assert "live, good" in listed
    assert "rolled back" in listed
    before = live(fleet)
    done = play("site", two)  # the inventory still asks for the one that was left
    assert set(changes(done).values()) == {0}
    assert "is bad since" in said(done)
    assert live(fleet) == before
    refused = play("deploy", two)
    assert refused.returncode != 0
    assert "wsgi_bad_releases=retry" in said(refused)
    assert live(fleet) == before
    changes(play("deploy", two, options={"wsgi_bad_releases": "retry"}))
    assert version() == "two"


BROKEN = {
    "does not install": ({"requirements__txt": "no-such-package-of-ours==1.0\n"}, {}, "no-such-package-of-ours"),
    "does not import": ({"import": ""}, {}, "this release does not start"),
    "bad gunicorn setting": ({}, {"gunicorn": {"statsd_host": "no port: here"}}, "statsd_host"),
    "migration fails": ({}, {"migrate": "python -c \"raise SystemExit('no such table')\""}, "no such table"),
    "answers 500": ({"error": ""}, {}, "answered 500"),
    "hangs": ({"hang": ""}, {}, "timed out"),
    "is well on one host only": ({"error": "app2"}, {}, "app2: "),
    "hook fails": (
        {},
        {"hooks": {"before_switch": ["python -c \"raise SystemExit('not on a Friday')\""]}},
        "not on a Friday",
    ),
    "hook after it fails": ({}, {"hooks": {"after_switch": ["python -c \"raise SystemExit('late')\""]}}, "late"),
}


OFTEN = ("is well on one host only", "hook after it fails")


@pytest.mark.parametrize("kind", [kind if kind in OFTEN else pytest.param(kind, marks=thorough) for kind in BROKEN])
def test_broken_release_is_never_seen(kind, source, fleet, tmp_path):
    files, more, message = BROKEN[kind]
    before = live(fleet)
    with Visitors(tmp_path) as visitors:
        done = play("deploy", source(f"broken:{kind}".replace(" ", "-"), **files), **more)
    assert done.returncode != 0
    assert message in said(done)
    assert visitors.seen["failed"] == {}, visitors.seen
    if kind != "hook after it fails":  # that one runs when the release has visitors already
        assert set(visitors.seen["answers"]) == {"two"}, visitors.seen
    assert version() == "two"
    assert {n: t.splitlines()[:2] for n, t in live(fleet).items()} == {n: t.splitlines()[:2] for n, t in before.items()}
    assert [line for line in live(fleet)["app1"].splitlines() if "/etc/" in line] == [
        line for line in before["app1"].splitlines() if "/etc/" in line
    ]


@thorough
@pytest.mark.usefixtures("fleet")
def test_nothing_is_cached_of_the_release_that_was_left(two, source):
    """Of what is asked while processes of both answer: there, and on the way back."""
    cached = {"nginx": {"tls": {"mode": "off"}, "cache": {"seconds": 600}}}
    changes(play("site", two, **cached))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for playbook, directory, after in (("deploy", source("three"), "three"), ("rollback", two, "two")):
            run = pool.submit(play, playbook, directory, **cached)
            paths = []
            while not run.done():
                paths += [f"/?{playbook}{len(paths) + number}" for number in range(3)]
                list(pool.map(lambda path: fetch(BALANCER, SITE, path), paths[-3:]))
            changes(run.result())
            assert len(paths) > 200
            assert {fetch(BALANCER, SITE, path).text.split()[0] for path in paths * 3} == {after}
    assert [fetch(BALANCER, SITE, "/?twice").headers["x-cache-status"] for _ in range(4)][-2:] == ["HIT", "HIT"]
    changes(play("site", two))


@thorough
def test_changed_configuration_goes_back_with_the_release(two, fleet):
    before = live(fleet)
    hooks = {"after_switch": ["false"]}
    done = play("deploy", two, env={"GREETING": "hello"}, hooks=hooks)
    assert done.returncode != 0
    assert "serve what was good before" in said(done)
    assert [text.splitlines()[-3:] for text in live(fleet).values()] == [
        text.splitlines()[-3:] for text in before.values()
    ]


@thorough
def test_changed_configuration_that_is_not_well_is_never_seen(two, fleet, tmp_path):
    before = live(fleet)
    with Visitors(tmp_path) as visitors:
        done = play("deploy", two, env={"BROKEN": "yes"})
    assert done.returncode != 0
    assert "over a trial socket answered 500" in said(done)
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"two"}
    assert live(fleet) == before
    assert version() == "two"


@thorough
def test_migration_runs_once_for_the_fleet(source, fleet):
    directory = source("three")
    migrate = "sh -c 'echo ran >> $HOME/migrations'"
    changes(play("deploy", directory, migrate=migrate))
    assert version() == "three"
    assert fleet["app1"].check_output("cat /srv/web/shared/migrations") == "ran"
    assert not fleet["app2"].file("/srv/web/shared/migrations").exists
    changes(play("rollback", directory, migrate=migrate))
    assert fleet["app1"].check_output("cat /srv/web/shared/migrations") == "ran"
    assert version() == "two"


def test_second_deploy_is_refused_and_a_dead_one_does_not_stand_in_the_way(two, fleet):
    holder = {"id": "other:1:1", "machine": "other", "pid": 1, "who": "alice", "where": "control9", "purpose": "hotfix"}
    lock = "/var/lib/wsgi-fleet/locks/web.json"
    content = json.dumps({**holder, "since": "2026-03-01T12:00:00Z", "until": time.time() + 600})
    fleet["app2"].check_output(f"echo '{content}' > {lock}")
    before = live(fleet)
    for playbook in ("deploy", "rollback"):
        done = play(playbook, two)
        assert done.returncode != 0
        assert "web is locked by alice on control9 since 2026-03-01T12:00:00Z (hotfix)" in said(done)
        assert live(fleet) == before
        assert not fleet["app1"].file(lock).exists
    changes(play("deploy", two, options={"wsgi_break_locks": True}))
    assert not fleet["app2"].file(lock).exists


def test_killed_deploy_is_mended_by_the_next(source, fleet, tmp_path):
    """In the worst moment: the release is switched, its processes are not. test_trouble.py does it at every task."""
    directory = source("killed")
    with Visitors(tmp_path) as visitors:
        run = begin("deploy", directory)
        follow(run, "Run what the configuration says")
        time.sleep(0.5)
        run.send_signal(signal.SIGKILL)
        run.wait()
        changes(play("deploy", directory))
    assert version() == "killed"
    assert visitors.seen["failed"] == {}, visitors.seen
    for host in fleet.values():
        assert json.loads(host.check_output("cat /srv/web/current/state.json"))["verdict"] == "good"


ASK_WHO_ANSWERS = f"""
import os, urllib.request
ask = urllib.request.Request("http://{BALANCER}/", headers={{"Host": "{SITE}"}})
hosts = {{urllib.request.urlopen(ask).headers["X-Host"] for _ in range(20)}}
open(os.environ["HOME"] + "/answered", "w").write(" ".join(sorted(hosts)))
"""


def test_drained_host_gets_nothing_new_and_comes_back(source, fleet, host, tmp_path):
    """The hook runs on each host while that one changes; it sees who answers visitors."""
    with Visitors(tmp_path) as visitors:
        hooks = {"before_switch": [["python", "-c", ASK_WHO_ANSWERS]]}
        changes(play("deploy", source("drained"), options={"wsgi_drain": True}, hooks=hooks))
    assert version() == "drained"
    assert visitors.seen["failed"] == {}, visitors.seen
    assert fleet["app1"].check_output("cat /srv/web/shared/answered") == "app2"
    assert fleet["app2"].check_output("cat /srv/web/shared/answered") == "app1"
    assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == {"app1", "app2"}
    assert host.run("grep -rn ' down;' /etc/nginx/sites-enabled").rc == 1


@thorough
def test_host_that_a_killed_run_left_drained_is_brought_back_by_site(two, fleet, host):
    server = fleet["app2"].ansible.get_variables()["ansible_host"] + ":80"
    host.check_output(f"sed -i 's/server {server} [^;]*/& down/' /etc/nginx/sites-enabled/web.conf")
    host.check_output("sed -i 's/return 200 /&drained-/' /etc/nginx/sites-enabled/default && systemctl reload nginx")
    time.sleep(1)
    assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == {"app1"}
    changes(play("site", two))
    assert {fetch(BALANCER, SITE).headers["x-host"] for _ in range(20)} == {"app1", "app2"}


def test_unknown_names_and_batches_are_refused_before_anything(two, fleet):
    before = live(fleet)
    done = play("deploy", two, options={"wsgi_apps_only": "shop", "wsgi_rollout": ["a few"]})
    assert done.returncode != 0
    assert "wsgi_apps_only: 'shop' is no app of this inventory; known are web" in said(done)
    assert "wsgi_rollout: 'a few' is no batch" in said(done)
    assert live(fleet) == before
