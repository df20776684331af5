"""What runs of the role do to a serving nginx. Each run is one for all hosts: runs are what takes the time here."""

from __future__ import annotations

import json
import re

import pytest
from probes import connects, fetch, thorough, wait_until
from runs import each, file_on
from serving import CERTIFICATE, KEY, certificate, digest, is_refused, where

NEW = {
    "name": "new",
    "server_names": ["new.example.com"],
    "upstream": {"servers": [{"address": "127.0.0.1:9101"}]},
    "limits": {"requests": [{"rate": "1r/m"}]},
    "paths": [{"path": "/cached", "cache": {"seconds": 60}}],
}
GIVEN = {
    **NEW,
    "name": "given",
    "server_names": ["given.example.com"],
    "limits": {},
    "tls": {"mode": "files", "certificate": CERTIFICATE.read_text(), "key": KEY.read_text()},
}


def shop_status(host):
    return fetch(where(host), "shop.example.com").status


def shop_certificate(host):
    return certificate(where(host), "shop.example.com")[0]


def master(host):
    return host.check_output("systemctl show -P MainPID nginx")


@pytest.mark.usefixtures("restored")
def test_sites_come_and_go_without_a_restart(hosts, play):
    """Beside a file of others, which stays and is served; and no run shows a key."""
    masters, served = each(master, hosts), each(shop_certificate, hosts)
    theirs = "/etc/nginx/sites-enabled/theirs"
    loud = ("-vvv", "--diff")
    with file_on(hosts, theirs, "server { listen 80; server_name theirs.example.com; return 200 theirs; }"):
        told = play("--check", *loud, more_sites=[NEW, GIVEN])
        assert min(told.changes()) >= 2
        assert told.said.count("server_name new.example.com;") >= 2
        assert all(is_refused(where(host), "new.example.com") for host in hosts)
        assert each(shop_certificate, hosts) == served

        applied = play(*loud, more_sites=[NEW, GIVEN])
        assert min(applied.changes()) >= 2
        for host, old in zip(hosts, served, strict=True):
            assert fetch(where(host), "new.example.com").status == 200
            assert certificate(where(host), "new.example.com")[0] not in (old, CERTIFICATE.read_text().strip())
            assert certificate(where(host), "given.example.com")[0] == CERTIFICATE.read_text().strip()
            assert host.file("/etc/nginx/wsgi-fleet/tls/given.key").mode == 0o600
            assert fetch(where(host), "theirs.example.com").text == "theirs"
        for run in (told, applied):
            assert "given.key" in run.said
            assert not [line for line in KEY.read_text().splitlines()[1:-1] if line in run.said + run.errors]

            assert host.file("/var/lib/nginx/cache_site_new_path_0").is_directory

        again = play(more_sites=[NEW, GIVEN])
        assert again.changes() == [0, 0]
        # two are not the role's: its inclusion, the check of its variables
        assert max(again.recap("ok")) - 2 <= 7

        assert min(play().changes()) >= 2
        for host in hosts:
            assert is_refused(where(host), "new.example.com")
            assert not host.file("/etc/nginx/sites-enabled/new.conf").exists
            assert not host.file("/etc/nginx/wsgi-fleet/tls/given.key").exists
            assert host.check_output("ls -d /var/lib/nginx/cache_site_*").split() == [
                f"/var/lib/nginx/cache_site_{name}"
                for name in ("cached_path_0", "cached_path_1", "cached_path_2", "cached_site", "kept_inner_site")
            ]
            assert host.file(theirs).exists
            assert fetch(where(host), "theirs.example.com").text == "theirs"
    assert each(master, hosts) == masters


@thorough
@pytest.mark.usefixtures("restored")
def test_what_is_counted_can_change(hosts, play):
    """Which nginx refuses for a zone that it has."""
    by_key = {**NEW, "limits": {"requests": [{"rate": "1r/m", "key": "header:X-Key"}]}}
    for site in (NEW, by_key):
        assert min(play(more_sites=[site]).changes()) >= 2
    for host in hosts:
        codes = [fetch(where(host), "new.example.com", headers={"X-Key": key}).status for key in "aab"]
        assert codes == [200, 429, 200]


BAD = [
    {
        "(new): server_names: no name is no host name; give one like": {"server_names": ["no name"]},
        "shop.example.com on port 80 is given twice, first for shop": {"server_names": ["shop.example.com"]},
        "(new): limits.requests[0].rate: is '1/s'": {"limits": {"requests": [{"rate": "1/s"}]}},
        "(new): access.allow[0]: is '10.0.0.1/8', which has bits": {"access": {"allow": ["10.0.0.1/8"]}},
        "(new): canonical: www.example.com is not among server_names": {"canonical": "www.example.com"},
        "(new): cors: credentials with the origin *": {"cors": {"origins": ["*"], "credentials": True}},
    },
    {"server_nmaes": {"server_nmaes": ["a.example.com"]}, "http_port": {"http_port": "eighty"}},
]


@pytest.mark.parametrize("changes", BAD, ids=["values", "keys and types"])
def test_bad_records_are_refused_before_anything_changes(hosts, play, changes):
    def listing(host):
        command = "find /etc/nginx /etc/ssl/wsgi-fleet /var/log/nginx -printf '%p %i %T@\\n' | grep -v '\\.log ' | sort"
        return host.check_output(command)

    before = each(listing, hosts)
    for said in play(more_sites=[{**NEW, **change} for change in changes.values()]).refusals():
        assert [message for message in changes if message not in said] == []
    assert each(listing, hosts) == before


@pytest.mark.usefixtures("restored")
def test_a_broken_file_of_others_stops_the_change(hosts, play):
    before = each(digest, hosts)
    with file_on(hosts, "/etc/nginx/conf.d/theirs.conf", "no_such_directive on;"):
        # without a name for the self-signed certificate, so that there is nothing to restore
        for said in play(more_sites=[GIVEN]).refusals():
            assert "/etc/nginx/conf.d/theirs.conf" in said
            assert "no_such_directive" in said
        for host in hosts:
            assert not host.file("/etc/nginx/sites-enabled/given.conf").exists
            assert shop_status(host) == 200
        assert each(digest, hosts) == before


@pytest.mark.usefixtures("restored")
def test_a_certificate_that_is_none_stops_the_change(hosts, play):
    tls = {**GIVEN["tls"], "key": "no key"}
    for said in play(more_sites=[{**NEW, "tls": tls}]).refusals():
        assert "/etc/nginx/wsgi-fleet/tls/new.key" in said
    for host in hosts:
        assert fetch(where(host), "secure.example.com", tls=True).status == 200


@thorough
@pytest.mark.usefixtures("restored")
def test_a_snippet_that_is_none_stops_the_change(hosts, play):
    before = each(digest, hosts)
    wrong = {**GIVEN, "paths": [{"path": "/a", "snippet": "}\nlocation /b {"}]}
    for said in play(more_sites=[wrong]).refusals():
        assert "/etc/nginx/wsgi-fleet/snippets/given-path_0.conf:1" in said
    assert each(digest, hosts) == before
    assert each(shop_status, hosts) == [200, 200]


@thorough
@pytest.mark.usefixtures("restored")
def test_what_the_host_has_is_used_and_logs_can_be_json(hosts, play):
    """A module that others have installed."""
    file, package = "/srv/cached/current/src/build/static/big.css.br", "libnginx-mod-http-brotli-static"
    try:
        for host in hosts:
            host.check_output("apt-get install -y %s && echo as-brotli > %s", package, file)
        assert min(play(nginx_log_format="json").changes()) >= 2
        for host in hosts:
            headers = {"Accept-Encoding": "gzip, br", "User-Agent": 'a "b" \\'}
            answer = fetch(where(host), "cached.example.com", "/static/big.css", headers=headers)
            assert (answer.headers["content-encoding"], answer.text) == ("br", "as-brotli\n")
            fetch(where(host), "limited.example.com", "/status?404", headers=headers)
            log = "/var/log/nginx/limited.access.log"
            entry = json.loads(host.check_output("tail -n 1 %s", log))
            assert (entry["status"], entry["request"]) == (404, "GET /status?404 HTTP/1.1")
            assert (entry["upstream"], entry["upstream_status"], entry["host"]) == (
                "127.0.0.1:9101",
                "404",
                "limited.example.com",
            )
            assert entry["agent"] == headers["User-Agent"]
    finally:
        for host in hosts:
            host.check_output("rm -f %s && apt-get purge -y %s", file, package)


@pytest.mark.usefixtures("restored")
def test_a_reload_that_did_not_happen_is_made_up_for(hosts, play):
    """As when a run is killed after the files are in place and before nginx is told."""
    masters, before = each(master, hosts), each(digest, hosts)
    drop_in = "/etc/systemd/system/nginx.service.d/test.conf"
    try:
        with file_on(hosts, drop_in, "[Service]\nExecReload=\nExecReload=/bin/false\n"):
            for host in hosts:
                host.check_output("systemctl daemon-reload")
            for said in play(more_sites=[NEW]).refusals():
                assert "does not run the configuration" in said
            assert each(digest, hosts) == before
            assert all(is_refused(where(host), "new.example.com") for host in hosts)
    finally:
        for host in hosts:
            host.check_output("systemctl daemon-reload")
    assert play(more_sites=[NEW]).changes() == [1, 1]
    for host in hosts:
        assert fetch(where(host), "new.example.com").status == 200
    assert each(master, hosts) == masters


@pytest.mark.usefixtures("restored")
def test_what_somebody_changed_is_undone_where_it_runs(hosts, play):
    """He has reloaded nginx, which still says that it runs what the role had written."""
    masters, before = each(master, hosts), each(digest, hosts)
    for host in hosts:
        host.check_output(
            "sed -i '0,/location \\/ {/s//& return 410;/' /etc/nginx/sites-enabled/shop.conf && systemctl reload nginx"
        )
        wait_until(lambda host=host: shop_status(host) == 410, what="his word")
    assert each(digest, hosts) == before
    assert min(play().changes()) > 0
    assert each(shop_status, hosts) == [200, 200]
    assert each(master, hosts) == masters


@thorough
@pytest.mark.usefixtures("restored")
def test_a_reload_has_room_for_the_logs_of_hundreds_of_sites(hosts, play):
    """Four files for each, in a master that was started with a thousand."""
    many = [{**NEW, "name": f"new{number}", "server_names": [f"new{number}.example.com"]} for number in range(400)]
    masters = each(master, hosts)
    for host, pid in zip(hosts, masters, strict=True):
        host.check_output("prlimit --pid %s --nofile=1024:", pid)
    assert min(play("--check").changes()) == 1
    assert min(play(more_sites=many).changes()) >= 2
    for host in hosts:
        assert fetch(where(host), "new399.example.com").status == 200
    assert play(more_sites=many).changes() == [0, 0]
    assert each(master, hosts) == masters


@thorough
@pytest.mark.usefixtures("restored")
def test_a_configuration_that_nginx_does_not_take_up_is_told(hosts, play):
    """Its check passes a port that somebody else has; only the log tells."""
    before = each(digest, hosts)
    for said in play(more_sites=[{**NEW, "http_port": 22}], nginx_reload_timeout=3).refusals():
        assert "does not run the configuration" in said
        assert re.search(r"bind\(\) to \S+:22 failed", said)
    assert each(digest, hosts) == before
    assert each(shop_status, hosts) == [200, 200]


@thorough
@pytest.mark.usefixtures("restored")
def test_a_stopped_nginx_is_started(hosts, play):
    for host in hosts:
        host.check_output("systemctl disable --now nginx")
    assert play("--check").changes() == [1, 1]
    assert not any(host.service("nginx").is_running for host in hosts)
    assert play().changes() == [1, 1]
    for host in hosts:
        assert host.service("nginx").is_running
        assert host.service("nginx").is_enabled
        assert shop_status(host) == 200


@thorough
def test_a_new_self_signed_certificate_is_served(hosts, play):
    masters, before = each(master, hosts), each(shop_certificate, hosts)
    for host in hosts:
        host.check_output("rm /etc/ssl/wsgi-fleet/self-signed.pem")
    assert min(play().changes()) >= 2
    assert not set(each(shop_certificate, hosts)) & set(before)
    assert each(master, hosts) == masters


@thorough
@pytest.mark.usefixtures("restored")
def test_a_host_without_ipv6(hosts, play):
    addresses = [re.findall(r"inet6 (\S+)", host.check_output("ip -6 address show dev eth0")) for host in hosts]
    for host in hosts:
        host.check_output("ip -6 address flush dev eth0 && ip -6 address flush dev lo")
    try:
        assert min(play().changes()) >= 2
        for host in hosts:
            assert "[::]" not in host.check_output("ss -Hltn 'sport = 80 or sport = 443'")
            assert shop_status(host) == 200
    finally:
        for host, names in zip(hosts, addresses, strict=True):
            for device, name in [("lo", "::1/128"), *(("eth0", name) for name in names)]:
                host.check_output("ip -6 address add %s dev %s", name, device)
    assert min(play().changes()) >= 2
    for host in hosts:
        assert "[::]:80" in host.check_output("ss -Hltn 'sport = 80'")


@thorough
@pytest.mark.usefixtures("restored")
def test_no_site_at_all(hosts, play):
    assert min(play(sites=[]).changes()) >= 2
    for host in hosts:
        assert connects(where(host), 80) == connects(where(host), 443) == "refused"
        assert digest(host)
