"""Asks what site.yml has made, stops it with everybody inside, and changes it under load. The order counts."""

from __future__ import annotations

import copy
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import probes
import pytest
import yaml
from probes import ROOT, fetch, run_playbook, thorough, wait_until

SCENARIO = ROOT / "molecule" / "waitress"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
SOCKET = "/run/wsgi-fleet/demo.sock"

testinfra_hosts = ["ansible://debian13"]


def records(**changes):
    """The scenario's applications, with `changes` laid over the first; None takes a key away."""
    inventory = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())
    demo, one = copy.deepcopy(inventory["linux_apps"]["vars"]["wsgi_apps"])
    for record in (demo, one):
        record["source"] = {"path": str(SCENARIO / "files" / "app")}
    demo = {key: value for key, value in {**demo, **changes}.items() if value is not None}
    return [demo, one]


def play(host, playbook, **changes):
    """Run a playbook of the project against the host of the test alone."""
    only = {} if playbook == "site.yml" else {"wsgi_apps_only": "demo", "wsgi_bad_releases": "retry"}
    extra = json.dumps({"wsgi_apps": records(**changes), **only})
    inventories = [ROOT / "molecule/shared/inventory", SCENARIO / "inventory", Path(host.backend.ansible_inventory)]
    return run_playbook(playbook, "-e", extra, f"--limit={host.backend.host}", inventories=inventories)


def changes(done):
    """How many tasks changed something, of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    [(_, _, changed, _, _)] = RECAP.findall(done.stdout)
    return int(changed)


def said(done):
    return " ".join((done.stdout + done.stderr).split())


def address(host):
    return host.backend.get_variables()["ansible_host"]


def processes(host, app="demo"):
    """Process ids of what serves an application."""
    return set(host.run(f"pgrep -u {app} -f '/etc/wsgi-fleet/{app}/'").stdout.split())


def live(host):
    return host.check_output("readlink /srv/demo/current; pgrep -u demo | sort; sha256sum /etc/wsgi-fleet/demo/start")


class Visitors(probes.Visitors):
    def __init__(self, host, directory):
        super().__init__(directory, address(host), "demo.example", connections=20, pause=0.05)

    def met(self):
        """Who answered: waitress-4711 ..."""
        assert self.seen["failed"] == {}, self.seen
        return set(self.seen["answers"])


def test_application_sees_the_client_and_not_nginx(host):
    headers = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Proto": "http"}
    asked = json.loads(fetch(address(host), "one.example", "/asked", tls=True, headers=headers).text)
    own = host.check_output("ip -4 route show default").split()[2]  # we are on the machine that is its gateway
    assert asked == {
        "REMOTE_ADDR": own,
        "HTTP_HOST": "one.example",
        "SERVER_PORT": "443",
        "wsgi.url_scheme": "https",
        "wsgi.multithread": True,
    }
    asked = json.loads(fetch(address(host), "demo.example", "/asked", headers=headers).text)
    assert (asked["REMOTE_ADDR"], asked["wsgi.url_scheme"]) == (own, "http")  # the same by way of a Unix socket


def test_setting_reaches_waitress(host):
    assert fetch(address(host), "one.example", "/", tls=True, headers={"X-Long": "x" * 1500}).status == 200
    assert fetch(address(host), "one.example", "/", tls=True, headers={"X-Long": "x" * 2500}).status == 431


def test_processes_share_the_socket_and_are_the_applications_own(host):
    pids = processes(host)
    assert len(pids) == 2
    answered = {fetch(address(host), "demo.example", "/sleep/0").text.split()[0] for _ in range(5)}
    assert answered <= {f"waitress-{pid}" for pid in pids}
    assert host.check_output("stat -c '%U:%G %a' /etc/wsgi-fleet/demo/waitress.json") == "root:demo 640"
    assert host.run("runuser -u demo -- sh -c 'echo >> /etc/wsgi-fleet/demo/wsgi_host.py'").rc != 0
    for pid in pids:  # supervisord's socket is not the standard input of what the application starts
        assert host.check_output(f"runuser -u demo -- readlink /proc/{pid}/fd/0") == "/dev/null"


def together(host, site, paths, tls=False):
    """Seconds that requests take which begin together."""
    begun = time.monotonic()
    with ThreadPoolExecutor(len(paths)) as pool:
        asked = [pool.submit(fetch, address(host), site, path, tls=tls, timeout=30) for path in paths]
        assert {request.result().status for request in asked} == {200}
    return time.monotonic() - begun


def test_as_many_requests_at_once_as_there_are_threads(host):
    assert 1 <= together(host, "one.example", ["/sleep/1"] * 4, tls=True) < 1.9
    assert 2 <= together(host, "one.example", ["/sleep/1"] * 5, tls=True) < 2.9
    assert 1 <= together(host, "demo.example", ["/sleep/1"] * 16) < 1.9  # two processes with eight each


def test_long_request_is_in_nobodys_way(host):
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(fetch, address(host), "one.example", "/sleep/10", tls=True, timeout=30)
        time.sleep(0.5)
        assert together(host, "one.example", ["/"] * 5, tls=True) < 1
        assert not long.done()
        assert long.result().status == 200


def test_stop_cuts_neither_a_long_request_nor_a_slow_download(host):
    """Each of twenty seconds, at both processes; waitress alone would give them five."""
    before = processes(host)
    script = f"""
        told='%{{http_code}} %{{size_download}} %{{time_total}}\\n'
        ask() {{ curl -sS --max-time 60 --unix-socket {SOCKET} -o /dev/null -w "$told" $@; }}
        cd $(mktemp -d)
        for n in 1 2; do
            ask http://demo/sleep/20 > long$n &
            ask --limit-rate 3M http://demo/large > slow$n &
        done
        sleep 1
        supervisorctl restart demo:demo_0 demo:demo_1 >&2
        wait
        cat long* slow*
    """
    done = host.run("sh -c %s", script)
    print(done.stderr)
    answers = re.findall(r"(\d{3}) (\d+) ([\d.]+)", done.stdout)
    assert [(status, int(size) > 10_000_000) for status, size, _ in answers] == [("200", False)] * 2 + [
        ("200", True)
    ] * 2
    assert {size for _, size, _ in answers[2:]} == {"60000000"}
    assert all(float(seconds) > 18 for _, _, seconds in answers)
    assert not before & processes(host)  # they were really replaced meanwhile


@thorough
def test_request_that_takes_too_long_is_cut(host):
    """stop_timeout is 5 there."""
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(fetch, address(host), "one.example", "/sleep/20", tls=True, timeout=40)
        time.sleep(1)
        begun = time.monotonic()
        host.check_output("supervisorctl restart one:one_0")
        assert 4 < time.monotonic() - begun < 15
        assert long.result().status == 502
    assert "cut 1 request(s) that took more than 5 s" in host.check_output(
        "tail -n 20 /var/log/wsgi-fleet/one/web_0.log"
    )


def test_killed_process_comes_back(host):
    [pid] = processes(host, "one")
    host.check_output(f"kill -9 {pid}")
    wait_until(lambda: processes(host, "one") - {pid} and fetch(address(host), "one.example", tls=True).status == 200)


def test_new_configuration_loses_no_request(host, tmp_path):
    before = {f"waitress-{pid}" for pid in processes(host)}
    with Visitors(host, tmp_path) as visitors:
        assert changes(play(host, "site.yml", env={"GREETING": "moin"}, waitress={"threads": 6})) > 0
    after = {f"waitress-{pid}" for pid in processes(host)}
    assert not before & after
    assert visitors.met() == before | after  # all four of them while the visitors were there
    assert fetch(address(host), "demo.example").text.split()[1] == "moin"
    for pid in processes(host):
        assert host.check_output(f"cat /proc/{pid}/task/*/comm | wc -l") == str(
            6 + 2
        )  # requests, main loop, main thread


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"callable": "wsgi:nosuch"}, "callable: module 'wsgi' has no 'nosuch'"),
        pytest.param(
            {"callable": "wsgi:LARGE"}, "'wsgi:LARGE' is a int, nothing that waitress could call", marks=thorough
        ),
    ],
    ids=["no such callable", "no callable"],
)
def test_bad_configuration_never_goes_live(host, wrong, words):
    before, config = live(host), host.check_output("sha256sum /etc/wsgi-fleet/demo/waitress.json")
    done = play(host, "site.yml", **wrong)
    assert done.returncode != 0
    assert words in said(done)
    assert (live(host), host.check_output("sha256sum /etc/wsgi-fleet/demo/waitress.json")) == (before, config)


@thorough
def test_change_of_the_server_that_goes_wrong_is_undone(host, tmp_path):
    changes(play(host, "site.yml"))
    before = live(host)
    with Visitors(host, tmp_path) as visitors:
        done = play(host, "playbooks/deploy.yml", server="gunicorn", env={"BREAKS_UNDER": "gunicorn"})
    assert done.returncode != 0
    assert "answered 500" in said(done)
    assert {answer.split("-")[0] for answer in visitors.met()} == {"waitress"}
    assert live(host).splitlines()[0::3] == before.splitlines()[0::3]


@thorough
def test_server_changes_without_a_lost_request(host, tmp_path):
    with Visitors(host, tmp_path) as visitors:
        assert changes(play(host, "playbooks/deploy.yml", server="gunicorn")) > 0
        assert fetch(address(host), "demo.example").text.startswith("gunicorn-")
        assert changes(play(host, "playbooks/rollback.yml", server="gunicorn")) > 0
        assert fetch(address(host), "demo.example").text.startswith("waitress-")
    assert {answer.split("-")[0] for answer in visitors.met()} == {"gunicorn", "waitress"}


@thorough
def test_application_goes_with_all_that_was_its(host):
    changes(play(host, "site.yml", state="absent", keep_data=False))
    assert not host.file("/etc/wsgi-fleet/demo").exists
    assert not host.file("/srv/demo").exists
    assert processes(host) == set()
    assert fetch(address(host), "one.example", tls=True).status == 200
    assert changes(play(host, "site.yml", state="absent", keep_data=False)) == 0
