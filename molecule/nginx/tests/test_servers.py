"""Servers of a site: several on one host, one that has a name, those on other hosts, and what is cached of them."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from probes import fetch, thorough, wait_until
from serving import asked, where


@pytest.fixture
def address(host):
    return where(host)


def test_processes_of_one_host_have_their_share(address):
    found = Counter(asked(fetch(address, "instances.example.com"))["backend"] for _ in range(20))
    assert found == {"socket": 15, "second": 5}


def test_no_server_has_more_connections_than_it_takes(address):
    """Three at a time are served, each where there is room; for a fourth there is none, and it is told at once."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = [pool.submit(fetch, address, "crowded.example.com", "/slow?2") for _ in range(3)]
        time.sleep(1)
        refused = fetch(address, "crowded.example.com")
    assert (refused.status, refused.seconds < 0.5) == (502, True)
    assert Counter(asked(answer.result())["backend"] for answer in slow) == {"socket": 2, "second": 1}
    assert fetch(address, "crowded.example.com").status == 200


def names(host, *known):
    """The names that the host's name server knows."""
    host.check_output("mkdir -p /run/names && rm -f /run/names/*")
    for name in known:
        host.check_output("echo 127.0.0.1 > /run/names/%s", name)


def statuses(address):
    return fetch(address, "named.example.com", timeout=20).status, fetch(address, "shop.example.com").status


def test_a_name_that_does_not_resolve_stops_its_own_site_alone(host, address):
    """Not when nginx starts, nor when it reloads, nor at boot, when not even the name server is there."""
    try:
        for servers in ("start", "stop"):
            host.check_output("systemctl %s names", servers)
            names(host)
            for how in ("restart", "reload"):
                host.check_output("systemctl %s nginx", how)
                assert wait_until(lambda: statuses(address) == (502, 200), 20, how)
    finally:
        host.check_output("systemctl start names")
        names(host, "app.names.test")
    # it comes back without nginx being told
    assert wait_until(lambda: statuses(address) == (200, 200), 20, "the name")
    assert asked(fetch(address, "named.example.com", "/timed?a=b"))["path"] == "/timed?a=b"
    # and moves: nobody is at its new address
    host.check_output("echo 127.0.0.9 > /run/names/app.names.test")
    assert wait_until(lambda: statuses(address) == (502, 200), 20, "its new address")
    names(host, "app.names.test")
    assert "could not be resolved" in host.file("/var/log/nginx/named.error.log").content_string


PATTERNS = {
    "https://pr-7.preview.example.com": True,
    "https://a.b.example.net:8443": True,
    "https://app.example.com": True,
    "https://pr-7.preview.example.com.evil.example": False,
    "https://evil.example/https://pr-7.preview.example.com": False,
    "https://pr-7xpreview.example.com": False,
    "https://pr-123456.preview.example.com": False,
    "http://pr-7.preview.example.com": False,
    "https://evilexample.net": False,
    "https://a.b.c.example.net": False,
    "null": False,
}


@pytest.mark.parametrize(("origin", "let_in"), PATTERNS.items())
def test_origins_by_patterns(address, origin, let_in):
    headers = {"Origin": origin}
    answer = fetch(address, "previews.example.com", headers=headers)
    preflight = fetch(
        address, "previews.example.com", method="OPTIONS", headers={**headers, "Access-Control-Request-Method": "GET"}
    )
    said = [a.headers.get("access-control-allow-origin") for a in (answer, preflight)]
    assert (said, preflight.status) == (([origin] * 2, 204) if let_in else ([None] * 2, 200))
    assert answer.headers.get("access-control-allow-credentials") == ("true" if let_in else None)


# what is cached behind a balancer: each host's site kept asks the other host


def kept(address, path):
    answer = fetch(address, "kept.example.com", path)
    return answer.headers["x-cache-status"], asked(answer)["number"]


def switch(host, release):
    host.check_output("ln -s releases/%s /srv/cached/.new && mv -T /srv/cached/.new /srv/cached/current", release)


def test_a_deploy_is_a_purge(hosts):
    """Through a balancer: after the switch nothing old is served, and after the way back nothing new."""
    balancer, server = hosts
    path = f"/deploy?{time.monotonic_ns()}"
    first, again = kept(where(balancer), path), kept(where(balancer), path)
    assert (first[0], again) == ("MISS", ("HIT", first[1]))
    try:
        switch(server, "new")
        deployed, again = kept(where(balancer), path), kept(where(balancer), path)
        assert (deployed[0], again) == ("MISS", ("HIT", deployed[1]))
        assert deployed[1] != first[1]
    finally:
        switch(server, "old")
    assert kept(where(balancer), path) == ("HIT", first[1])


def test_files_come_through_a_balancer(hosts):
    """As the host that has them says, which nobody says again."""
    for balancer in hosts:
        for path, text in (("/static/old.css", "body { color: old }\n"), ("/static/new.css", "body { color: new }\n")):
            answer = fetch(where(balancer), "kept.example.com", path)
            assert (answer.status, answer.text) == (200, text)
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        packed = {"Accept-Encoding": "gzip"}
        answer = fetch(where(balancer), "kept.example.com", "/static/big.css", headers=packed)
        assert (answer.headers["content-encoding"], len(answer.body) < 200) == ("gzip", True)
        assert fetch(where(balancer), "kept.example.com", "/static/none.css").status == 404


@thorough
def test_what_old_releases_left_in_the_cache_does_not_grow(hosts):
    """More than fits, of two releases: the oldest goes, whatever release it is of."""
    balancer, server = hosts
    folder = "/var/lib/nginx/cache_site_kept_inner_site"
    try:
        for release in ("old", "new"):
            switch(server, release)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: fetch(where(balancer), "kept.example.com", f"/big?{n}"), range(200)))
    finally:
        switch(server, "old")
    # 5 kB each; the filesystem's blocks count
    wait_until(lambda: int(server.check_output("du -sk --apparent-size %s", folder).split()[0]) < 1100, 25, "the cache")


def test_balancers_ask_each_server_by_itself(hosts, run):
    inventory = [Path(__file__).parents[1] / "balanced"]
    by_name = {host.backend.host: host for host in hosts}
    balancer, server = by_name["debian12"], by_name["debian13"]
    well = run("playbooks/status.yml", inventory=inventory)
    assert well.code == 0, well.said + well.errors
    assert "asked by" not in well.said
    # the server is well, and so is what it says of itself
    balancer.check_output("ip route add unreachable %s", where(server))
    try:
        cut = run("playbooks/status.yml", inventory=inventory)
    finally:
        balancer.check_output("ip route del unreachable %s", where(server))
    assert cut.code == 2
    rows = [line.split(maxsplit=5) for line in cut.said.splitlines() if "http://shop.example.com/" in line]
    told = {(row[0], row[5].strip()[:20]) for row in rows}
    assert ("debian13", "asked by debian12: n") in told, cut.said
    assert any(host == "debian13" and status.startswith("200 in") for host, status in told), cut.said
    assert json.dumps("1 of 3 answers are bad")[1:-1] in cut.said
