"""An application with server mod_wsgi on one of the hosts, behind Apache. The order counts; in the end it is gone."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import probes
import pytest
import testinfra
from probes import fetch, thorough, wait_until
from test_apache import FORGED
from test_runs import address, changes, play, records, said

SITE = "express.example"
SOCKET = "/run/wsgi-fleet/express.sock"

testinfra_hosts = ["ansible://debian13"]
# The host compiles mod_wsgi.
pytestmark = thorough


def express(**changes):
    """The scenario's records, and one more, with `changes` laid over it; None takes a key away."""
    found = records()
    record = {
        "name": "express",
        "domains": [SITE],
        "source": found[0]["source"],
        "callable": 'wsgi:make("made")',
        "server": "mod_wsgi",
        "mod_wsgi": {"threads": 4},
        "front": "apache",
        "health": "/healthz",
        **changes,
    }
    return [*found, {key: value for key, value in record.items() if value is not None}]


def deploy(host, playbook="playbooks/deploy.yml", **changes):
    return play(host, playbook, wsgi_apps=express(**changes), wsgi_apps_only="express", wsgi_bad_releases="retry")


def processes(host):
    """Process ids of the programs that have an Apache each."""
    return set(host.run("pgrep -u express -f '^python.*/express_host.py'").stdout.split())


def apaches(host):
    """Process ids of the Apaches that these have started."""
    return set(host.run("pgrep -u express -x apache2 -P %s", ",".join(processes(host)) or "0").stdout.split())


class Visitors(probes.Visitors):
    def __init__(self, host, directory):
        super().__init__(directory, address(host), SITE, connections=10, pause=0.05)


@pytest.fixture(scope="module", autouse=True)
def served(request):
    host = testinfra.get_host(testinfra_hosts[0], ansible_inventory=request.config.option.ansible_inventory)
    assert changes(play(host, "site.yml", wsgi_apps=express()))["debian13"] > 0
    yield
    assert changes(play(host, "site.yml", wsgi_apps=records()))["debian13"] > 0
    assert processes(host) == set()
    assert not host.file("/etc/wsgi-fleet/express").exists


def test_second_run_changes_nothing(host):
    assert changes(play(host, "site.yml", wsgi_apps=express())) == {"debian13": 0}


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_application_sees_the_client_and_not_who_stands_between(host, tls):
    answer = fetch(address(host), SITE, "/a%20b%2Fc?e=%2F&f", tls=tls, headers=FORGED)
    assert answer.status == 200
    seen = json.loads(answer.text)
    own = host.check_output("ip -4 route show default").split()[2]  # we are on the machine that is its gateway
    assert (seen["client"], seen["scheme"], seen["port"]) == (own, *(("https", "443") if tls else ("http", "80")))
    assert seen["uri"] == "/a%20b%2Fc?e=%2F&f"
    assert seen["headers"]["host"] == SITE
    assert seen["greeting"] == "made"


def test_bodies_arrive_whole(host):
    answer = fetch(address(host), SITE, "/?pad=3000000", method="POST", body=b"x" * 9_000_000)
    assert json.loads(answer.text)["taken"] == 9_000_000
    assert len(answer.body) > 3_000_000


def test_apaches_are_the_applications_own_and_listen_for_this_host_alone(host):
    assert len(processes(host)) == 2
    assert len(apaches(host)) == 2
    owner = f"uid:{host.user('express').uid}"
    listening = [line.split()[3] for line in host.check_output("ss -Hltne").splitlines() if owner in line.split()]
    assert len(listening) == 2
    assert all(place.startswith("127.0.0.1:") for place in listening)


def test_restart_cuts_neither_a_long_request_nor_a_slow_download(host):
    before = processes(host)
    script = f"""
        told='%{{http_code}} %{{size_download}}\\n'
        ask() {{ curl -sS --max-time 60 --unix-socket {SOCKET} -o /dev/null -w "$told" "$@"; }}
        cd $(mktemp -d)
        for n in 1 2; do
            ask http://x/?sleep=8 > long$n &
            ask --limit-rate 3M 'http://x/?pad=30000000' > slow$n &
        done
        sleep 1
        supervisorctl restart express:express_0 express:express_1 >&2
        wait
        cat long* slow*
    """
    done = host.run("sh -c %s", script)
    print(done.stderr)
    answers = re.findall(r"(\d{3}) (\d+)", done.stdout)
    assert [(status, int(size) > 30_000_000) for status, size in answers] == [("200", False)] * 2 + [("200", True)] * 2
    assert not before & processes(host)


def test_killed_process_comes_back_and_leaves_no_apache_behind(host):
    pid = sorted(processes(host))[0]
    host.check_output(f"kill -9 {pid}")
    wait_until(lambda: len(processes(host) - {pid}) == len(apaches(host)) == 2)
    wait_until(lambda: "1" not in host.check_output("ps -U express -o ppid=").split())
    assert fetch(address(host), SITE).status == 200


def test_deploy_loses_no_request(host, tmp_path):
    before = processes(host)
    with Visitors(host, tmp_path) as visitors:
        assert changes(deploy(host, env={"GREETING": "again"}))["debian13"] > 0
    assert visitors.seen["failed"] == {}
    assert visitors.seen["requests"] > 50
    assert not before & processes(host)
    assert json.loads(fetch(address(host), SITE).text)["greeting"] == "again"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"callable": "wsgi:nosuch"}, "cannot import name 'nosuch' from 'wsgi'"),
        ({"env": {"BROKEN": "500 Broken"}}, "over a trial socket answered 500"),
    ],
    ids=["no such callable", "no good answer"],
)
def test_what_is_not_well_never_goes_live(host, wrong, words):
    before = processes(host)
    done = deploy(host, **wrong)
    assert done.returncode == 2
    assert words in said(done)
    assert fetch(address(host), SITE).status == 200
    assert processes(host) & before


def test_server_changes_and_comes_back_without_a_lost_request(host, tmp_path):
    changes(deploy(host))  # good, so that there is something to go back to
    with Visitors(host, tmp_path) as visitors:
        changes(deploy(host, server="gunicorn", mod_wsgi=None, workers=2))
        assert processes(host) == set()
        changes(deploy(host, "playbooks/rollback.yml", server="gunicorn", mod_wsgi=None, workers=2))
        assert len(processes(host)) == 2
    assert visitors.seen["failed"] == {}


def test_waiting_requests_go_to_whoever_is_free(host):
    """Two Apaches with four threads each: eight requests at a time, and the ninth waits."""
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(fetch, address(host), SITE, "/?sleep=1") for _ in range(8)]
        assert {request.result().status for request in asked} == {200}
    assert time.monotonic() - begun < 1.9
