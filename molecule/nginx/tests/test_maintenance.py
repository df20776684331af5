"""The project's own playbooks close and open sites that are being served."""

from __future__ import annotations

import functools
import json
import re
import socket
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from probes import fetch, thorough, wait_until
from runs import each, file_on, state
from serving import asked, where

FLEET = [Path(__file__).parents[1] / "fleet"]
ON = ("-e", "wsgi_maintenance=on")
OFF = ("-e", "wsgi_maintenance=off")
FILES = "/etc/nginx/wsgi-fleet/maintenance"
# of the release, of the next one, of none, and of the application's shared files
FILES_OF_SITE = ("/static/old.css", "/static/new.css", "/static/none.css", "/media/upload.html")


def only(*names):
    return ("-e", f"wsgi_apps_only={','.join(names)}")


def status(host, name, path="/", **kwargs):
    return fetch(where(host), f"{name}.example.com", path, **kwargs).status


@pytest.fixture(scope="module")
def maintain(run):
    return functools.partial(run, "playbooks/maintenance.yml", inventory=FLEET)


@pytest.fixture(scope="module")
def show(run):
    """The status playbook, which asks as this machine does."""
    return functools.partial(run, "playbooks/status.yml", inventory=FLEET)


@pytest.fixture
def opened(hosts, maintain):
    """Nothing is in maintenance, before and after."""
    assert not any(host.file(FILES).exists for host in hosts)
    before = each(state, hosts)
    yield
    maintain(*OFF).changes()
    assert each(state, hosts) == before


@pytest.mark.usefixtures("opened")
def test_on_and_off(hosts, maintain, play, show):
    reason = ("-e", '{"wsgi_maintenance_reason": "We move <b>house</b> & \\"home\\""}')
    some = (*ON, *only("shop", "secure", "api"), *reason)
    before = each(state, hosts)

    told = maintain(*some, "--check", "--diff")
    assert told.changes() == [2, 2]
    assert told.said.count("+shop $wsgi_fleet_maintenance_1; # since ") == 2
    assert each(state, hosts) == before
    assert [status(host, "shop") for host in hosts] == [200, 200]

    masters = [host.check_output("systemctl show -P MainPID nginx") for host in hosts]
    assert maintain(*some).changes() == [2, 2]
    assert [host.check_output("systemctl show -P MainPID nginx") for host in hosts] == masters
    for host in hosts:
        is_closed(host)
        assert status(host, "balanced") == 200
        assert status(host, "behind", port=8000) == 200  # a site without the switch

    closed = each(state, hosts)
    assert maintain(*some).changes() == [0, 0]

    left = play()
    assert left.changes() == [0, 0]
    told = " ".join(left.said.split())
    assert (
        len(re.findall(r"In maintenance on \S+, and left so: api since \S+Z, secure since \S+, shop since ", told)) == 2
    )
    assert each(state, hosts) == closed

    shown = show()
    assert shown.code == 0, shown.said
    for app, answer in (("shop", 503), ("secure", 503), ("api", 200)):
        assert len(re.findall(rf"(?m)^ +\S+ +{app} .* {answer} in \d+ ms; maintenance since \S+Z$", shown.said)) == 2
    assert not re.search(r" balanced .*maintenance", shown.said)

    assert maintain(*OFF).changes() == [2, 2]
    for host in hosts:
        assert (status(host, "shop"), status(host, "secure", tls=True)) == (200, 200)
        assert [status(host, "api", path) for path in FILES_OF_SITE] == [200, 200, 404, 200]
        assert not host.file(FILES).exists
    assert each(state, hosts) == before


def is_closed(host):
    """The three sites are, each in its way."""
    address = where(host)
    for kwargs in (
        {},
        {"tls": True},
        {"method": "POST", "body": b"x" * 10000},
        {"method": "PUT"},
        {"method": "DELETE"},
        {"path": "/any?a=b"},
        {"path": "/healthz"},
        {"headers": {"Accept": "application/json", "Range": "bytes=0-1", "Accept-Encoding": "gzip"}},
    ):
        answer = fetch(address, "shop.example.com", **kwargs)
        assert (answer.status, answer.headers["retry-after"]) == (503, "300"), kwargs
        assert answer.headers["content-type"] == "text/html"
        assert answer.headers["cache-control"] == "no-store"
        assert "<title>503 Service Unavailable" in answer.text
        assert "<p>We move &lt;b&gt;house&lt;/b&gt; &amp; &#34;home&#34;</p>" in answer.text
    assert fetch(address, "shop.example.com", method="HEAD").body == b""
    assert fetch(address, "shop.example.com", "/.wsgi-fleet/maintenance.html").status == 404

    own = fetch(address, "secure.example.com", tls=True)
    assert (own.status, own.headers["retry-after"]) == (503, "300")
    assert own.text == "<p>Closed: ”later“ {{ $x </p>"
    sent_on = fetch(address, "secure.example.com", "/a", method="POST")
    assert (sent_on.status, sent_on.headers["location"]) == (308, "https://secure.example.com/a")

    origin = {"Origin": "https://app.example.com"}
    for tls in (False, True):
        assert asked(fetch(address, "api.example.com", "/healthz?full=1", tls=tls))["path"] == "/healthz?full=1"
        assert asked(fetch(address, "api.example.com", "/a%20b", tls=tls))["path"] == "/a%20b"
        for path in ("/", "/healthz/", "/healthzz", "/HEALTHZ", *FILES_OF_SITE):
            answer = fetch(address, "api.example.com", path, tls=tls)
            assert (answer.status, answer.headers["retry-after"]) == (503, "300"), path
            assert answer.headers["cache-control"] == "no-store"
            assert "<h1>Down for maintenance</h1>" in answer.text
    # pages of other origins see why, and not only that something failed
    assert fetch(address, "api.example.com", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
    preflight = {**origin, "Access-Control-Request-Method": "PUT"}
    assert fetch(address, "api.example.com", method="OPTIONS", headers=preflight).status == 204


def local(host, address, headers=None):
    """What the shop answers to its own host: status and Retry-After."""
    program = (
        "import http.client, json, sys; address, headers = json.loads(sys.argv[1]);"
        "connection = http.client.HTTPConnection(address, 80, timeout=5);"
        "connection.request('GET', '/', headers={'Host': 'shop.example.com', **headers});"
        "answer = connection.getresponse(); print(json.dumps([answer.status, answer.getheader('Retry-After')]))"
    )
    return json.loads(host.check_output("python3 -c %s %s", program, json.dumps([address, headers or {}])))


@thorough
@pytest.mark.usefixtures("opened")
def test_testers_and_time_to_come_back(hosts, maintain):
    def api_since(host):
        return json.loads(host.file(f"{FILES}/state.json").content_string)["api"]["since"]

    with socket.create_connection((where(hosts[0]), 80)) as own:
        client = own.getsockname()[0]
    assert maintain(*ON, *only("api")).changes() == [2, 2]
    since = each(api_since, hosts)
    testers = json.dumps({"wsgi_maintenance_allow": [client, "2001:db8::/32"]})
    assert maintain(*ON, *only("shop"), "-e", "wsgi_maintenance_retry_after=77", "-e", testers).changes() == [2, 2]
    for host in hosts:
        for tls in (False, True):
            assert status(host, "shop", tls=tls) == 200
            assert status(host, "api", tls=tls) == 503
        assert local(host, "127.0.0.1") == local(host, "::1") == [503, "77"]
        # what a client writes itself does not let it in
        assert local(host, "127.0.0.1", {"X-Forwarded-For": client, "X-Real-IP": client}) == [503, "77"]
    assert each(api_since, hosts) == since
    assert maintain(*OFF, *only("api")).changes() == [2, 2]
    assert [(status(host, "api"), local(host, "127.0.0.1")[0]) for host in hosts] == [(200, 503)] * 2


@thorough
@pytest.mark.usefixtures("opened")
def test_it_ends_by_itself(hosts, maintain, show):
    end = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=30)
    text = end.astimezone(timezone(timedelta(hours=1))).isoformat()
    assert maintain(*ON, "-e", f"wsgi_maintenance_until={text}").changes() == [2, 2]
    closed = each(state, hosts)
    for host in hosts:
        for name in ("shop", "balanced"):
            answer = fetch(where(host), f"{name}.example.com")
            assert (answer.status, answer.headers["retry-after"]) == (503, format_datetime(end, usegmt=True))
        assert f'<time datetime="{end:%Y-%m-%dT%H:%M:%SZ}">' in answer.text
    for host in hosts:
        wait_until(lambda host=host: status(host, "shop") == 200, 45, "the end")
        assert abs((datetime.now(timezone.utc) - end).total_seconds()) < 3
        assert [status(host, name) for name in ("balanced", "api")] == [200, 200]
    assert each(state, hosts) == closed
    shown = show()
    assert shown.code == 0, shown.said
    assert len(re.findall(r" shop .* 200 in \d+ ms; maintenance is over, since \S+ until ", shown.said)) == 2


def test_wrong_values_are_refused_before_anything_changes(hosts, maintain):
    before = each(state, hosts)
    wrong = {
        "wsgi_maintenance: is 'maybe', must be on or off": ("wsgi_maintenance", "maybe"),
        "wsgi_apps_only: 'shpo' is no app of this inventory; known are api, balanced, secure, shop": (
            "wsgi_apps_only",
            "shop,shpo",
        ),
        "wsgi_maintenance_allow[0]: '192.0.2.5/24' is an address with the length of a network": (
            "wsgi_maintenance_allow",
            "192.0.2.5/24",
        ),
        "wsgi_maintenance_until: is '14:00', must be a time": ("wsgi_maintenance_until", "14:00"),
        "wsgi_maintenance_retry_after: is a string, must be a whole number": ("wsgi_maintenance_retry_after", "soon"),
        "wsgi_maintenance_page: is no known key": ("wsgi_maintenance_page", "x"),
    }
    arguments = [word for name, value in wrong.values() for word in ("-e", f"{name}={value}")]
    done = maintain(*arguments)
    assert done.code == 2
    said = " ".join(done.said.split())
    assert "Nothing was closed or opened. What was asked for has 6 problem(s):" in said
    assert [message for message in wrong if message not in said] == []
    assert "wsgi_maintenance: is missing; give on or off" in maintain().said
    assert each(state, hosts) == before


@thorough
@pytest.mark.usefixtures("opened")
def test_a_killed_run_is_mended(hosts, maintain):
    """As when it is killed after the files are in place and before nginx is told; and off again from there."""
    drop_in = "/etc/systemd/system/nginx.service.d/test.conf"
    try:
        with file_on(hosts, drop_in, "[Service]\nExecReload=\nExecReload=/bin/false\n"):
            for host in hosts:
                host.check_output("systemctl daemon-reload")
            for said in maintain(*ON).refusals():
                assert "does not run the configuration" in said
            assert [status(host, "shop") for host in hosts] == [200, 200]
    finally:
        for host in hosts:
            host.check_output("systemctl daemon-reload")
    assert maintain(*ON, "--check").changes() == [1, 1]
    assert maintain(*ON).changes() == [1, 1]
    assert [status(host, "shop") for host in hosts] == [503, 503]
    # a killed "off" leaves all of it, the page too
    with file_on(hosts, drop_in, "[Service]\nExecReload=\nExecReload=/bin/false\n"):
        for host in hosts:
            host.check_output("systemctl daemon-reload")
        maintain(*OFF).refusals()
    for host in hosts:
        host.check_output("systemctl daemon-reload")
        assert "<h1>Down for maintenance</h1>" in fetch(where(host), "shop.example.com").text
    assert maintain(*ON).changes() == [2, 2]
    # a restart does not lose it
    for host in hosts:
        host.check_output("systemctl restart nginx")
    assert [status(host, "shop") for host in hosts] == [503, 503]


def test_a_host_that_cannot_be_switched_is_named(hosts, maintain):
    before = each(state, hosts)
    for host in hosts:
        host.check_output("systemctl stop nginx")
    try:
        for said in maintain(*ON).refusals():
            assert "Nothing was closed or opened on debian1" in said
            assert "nginx does not say on 127.0.0.1:8079/maintenance what it goes by" in said
    finally:
        for host in hosts:
            host.check_output("systemctl start nginx")
    assert each(state, hosts) == before


@pytest.mark.usefixtures("opened")
@thorough
@pytest.mark.parametrize("name", ["shop", "secure"])
def test_every_request_meets_the_one_or_the_other(hosts, maintain, name):
    """While the switch is thrown, on and off: an answer of the application or the page, and none that is half of it."""
    seen = [[] for _ in hosts]
    done = threading.Event()

    def ask(host, answers):
        while not done.wait(0.01):
            answer = fetch(where(host), f"{name}.example.com", tls=True)
            answers.append(
                (answer.status, "retry-after" in answer.headers, b"losed" in answer.body or b"Down for" in answer.body)
            )

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(hosts, seen, strict=True)]
    slow = [
        threading.Thread(target=lambda host=host: long.append(status(host, name, "/slow?7", tls=True)))
        for host in hosts
    ]
    long = []
    for thread in (*threads, *slow):
        thread.start()
    try:
        maintain(*ON, *only(name)).changes()
        maintain(*OFF, *only(name)).changes()
    finally:
        done.set()
        for thread in (*threads, *slow):
            thread.join()
    is_open, is_closed = (200, False, False), (503, True, True)
    for answers in seen:
        # In the instant of a reload old and new workers both take connections, so they may alternate.
        assert set(answers) == {is_open, is_closed}
        assert answers[0] == answers[-1] == is_open
    assert long == [200, 200]  # begun before
