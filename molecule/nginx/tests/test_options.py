"""What options of sites do to requests, asked from outside."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import socket
import ssl
import time
from collections import Counter

import pytest
from probes import fetch, thorough, wait_until
from serving import CACHE, asked, inside, where


@pytest.fixture
def address(host):
    return where(host)


def as_client(client):
    """The headers of a request that comes from this address, where the site believes everybody."""
    return {"X-Forwarded-For": client}


def statuses(address, name, path, count, **headers):
    return [fetch(address, name, path, headers=headers).status for _ in range(count)]


# servers


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_clients_are_sent_to_the_canonical_host(address, tls):
    scheme = "https" if tls else "http"
    for name in ("a.canonical.example.com", "WWW.canonical.example.com"):
        answer = fetch(address, name, "/a?b=c", tls=tls, method="POST", body=b"kept")
        assert (answer.status, answer.headers["location"]) == (308, f"{scheme}://canonical.example.com/a?b=c")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert asked(fetch(address, "canonical.example.com", tls=tls))["backend"] == "one"
    files = {
        name: fetch(address, name, "/static/old.css", tls=tls).status
        for name in ("canonical.example.com", "a.canonical.example.com")
    }
    assert list(files.values()) == [200, 308]
    # who asks for its health is not sent anywhere
    assert asked(fetch(address, "a.canonical.example.com", "/healthz", tls=tls))["path"] == "/healthz"


def test_visitors_come_back_to_their_server(address):
    servers = Counter()
    for _ in range(16):
        first = fetch(address, "sticky.example.com", tls=True)
        cookie, *flags = first.headers["set-cookie"].split("; ")
        assert set(flags) == {"Path=/", "HttpOnly", "SameSite=Lax", "Secure"}
        server = asked(first)["backend"]
        servers[server] += 1
        again = [fetch(address, "sticky.example.com", headers={"Cookie": f"a=b; {cookie}"}) for _ in range(3)]
        assert {asked(answer)["backend"] for answer in again} == {server}
        assert not any("set-cookie" in answer.headers for answer in again)
    assert set(servers) == {"one", "two"}
    assert "Secure" not in fetch(address, "sticky.example.com").headers["set-cookie"]


def test_equal_requests_go_to_the_same_server(address):
    """One of the three servers is dead; its share goes to others, and stays there."""
    seen = {}
    for tenant in "abcdefghijkl":
        answers = [fetch(address, "tenants.example.com", headers={"X-Tenant": tenant}) for _ in range(3)]
        (seen[tenant],) = {asked(answer)["backend"] for answer in answers}
    assert set(seen.values()) == {"one", "two"}
    # without the header, the address counts
    for client in ("203.0.113.1", "203.0.113.2", "2001:db8::1"):
        answers = [fetch(address, "tenants.example.com", headers=as_client(client)) for _ in range(3)]
        assert len({asked(answer)["backend"] for answer in answers}) == 1


def test_requests_that_change_things_are_sent_again_where_that_is_said(address):
    path = f"/again-{time.monotonic_ns()}"
    answers = [fetch(address, "impatient.example.com", path, method="POST", body=b"x") for _ in range(6)]
    assert {answer.status for answer in answers} == {200}


def through_a_proxy(address, port, client, path="/", name="proxied.example.com"):
    """What a server answers when a proxy that passes bytes on says who the client is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPConnection(name, timeout=10)
    connection.sock = socket.create_connection((address, port), 10)
    connection.sock.sendall(f"PROXY TCP{6 if ':' in client else 4} {client} {client} 4711 {port}\r\n".encode())
    if port == 8444:
        connection.sock = context.wrap_socket(connection.sock, server_hostname="proxied.example.com")
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"X-Forwarded-For": "203.0.113.1", "X-Forwarded-Proto": "gopher"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["headers"] if answer.status == 200 else {}


@pytest.mark.parametrize(("port", "scheme"), [(8001, "http"), (8444, "https")])
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
def test_a_proxy_says_who_the_client_is_before_anything_else(host, address, port, scheme, client):
    status, headers = through_a_proxy(address, port, client)
    assert status == 200
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == (client, scheme)
    assert through_a_proxy(address, port, "192.0.2.7")[0] == 403
    # who does not is not heard, but for the host itself
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError, ssl.SSLError)):
        fetch(address, "proxied.example.com", port=port, tls=port == 8444)
    if port == 8001:
        for own in ("127.0.0.1", "::1"):
            assert inside(host, port, "proxied.example.com", address=own)["headers"]["x-forwarded-for"] == own


def test_only_a_trusted_proxy_says_who_the_client_is(address):
    with socket.create_connection((address, 8003)) as own:
        client = own.getsockname()[0]
    for forged in ("192.0.2.1", "127.0.0.1", "2001:db8::1"):
        status, headers = through_a_proxy(address, 8003, forged, name="guarded.example.com")
        assert (status, headers["x-forwarded-for"], headers["x-real-ip"]) == (200, client, client)


# headers


def test_every_answer_has_security_headers(address):
    wanted = {
        "x-content-type-options": "nosniff",
        "x-frame-options": "SAMEORIGIN",
        "referrer-policy": "strict-origin-when-cross-origin",
    }
    for name, path in (
        ("shop.example.com", "/"),
        ("shop.example.com", "/status?404"),
        ("shop.example.com", "/.wsgi-fleet/pages/x"),
        ("down.example.com", "/"),  # a page of nginx's own
        ("cached.example.com", "/static/old.css"),
        ("private.example.com", "/"),  # a refusal
    ):
        headers = fetch(address, name, path).headers
        assert {key: headers.get(key) for key in wanted} == wanted, (name, path)
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}
    for path in ("/", "/static/old.css"):
        answer = fetch(address, "api.example.com", path, method="OPTIONS", headers=preflight)
        assert {key: answer.headers.get(key) for key in ("", *wanted)} == {"": None, **wanted}, path
        assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, "GET, PUT")
        assert answer.headers["vary"] == "Origin"
    sent_on = fetch(address, "secure.example.com")
    assert (sent_on.status, {key: sent_on.headers.get(key) for key in wanted}) == (308, wanted)
    # which browsers take over HTTPS only
    assert "strict-transport-security" not in sent_on.headers
    assert fetch(address, "secure.example.com", tls=True).headers["strict-transport-security"] == "max-age=600"
    preflight["Origin"] = "https://a.example.org"
    for tls in (False, True):
        answer = fetch(address, "careful.example.com", method="OPTIONS", headers=preflight, tls=tls)
        assert (answer.status, answer.headers["x-frame-options"]) == (204, "DENY")
        assert ("strict-transport-security" in answer.headers) is tls


def test_a_record_has_the_last_word_on_headers_but_for_the_application(address):
    for path in ("/", "/snippet", "/teapot", "/large/"):
        headers = fetch(address, "careful.example.com", path, tls=True).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"] == "default-src 'self'; img-src 'self' data:"
        assert headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
        assert "referrer-policy" not in headers
        assert headers.get("x-snippet") == ("yes" if path == "/snippet" else None)
    assert "strict-transport-security" not in fetch(address, "careful.example.com").headers
    assert fetch(address, "private.example.com").headers["x-robots-tag"] == "noindex"
    said = "/says?X-Frame-Options=ALLOWALL&Strict-Transport-Security=max-age%3D1"
    headers = fetch(address, "careful.example.com", said, tls=True).headers
    assert (headers["x-frame-options"], headers["strict-transport-security"]) == ("ALLOWALL", "max-age=1")


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("https://a.example.org", True),
        ("https://a-1.b.example.org", True),
        ("https://example.org", False),
        ("https://.example.org", False),
        ("https://evil-example.org", False),
        ("https://a.example.org.evil.example", False),
        ("https://a.example.org:8443", False),
        ("http://a.example.org", False),
        ("https://evil.example/.example.org", False),
    ],
)
def test_cors_of_subdomains(address, origin, may):
    preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    for path in ("/", "/large/"):
        headers = fetch(address, "careful.example.com", path, headers={"Origin": origin}).headers
        assert headers.get("access-control-allow-origin") == (origin if may else None)
        answer = fetch(address, "careful.example.com", path, method="OPTIONS", headers=preflight)
        assert answer.status == (204 if may else 200)


def test_paths_have_their_own_limits_of_size_and_time(address):
    big = {"method": "POST", "body": b"x" * 1_500_000}
    refused = fetch(address, "careful.example.com", "/small", method="POST", body=b"x" * 1100)
    assert (refused.status, refused.body) == (413, b"too large")
    assert asked(fetch(address, "careful.example.com", "/large/file", **big))["size"] == 1_500_000
    assert fetch(address, "careful.example.com", "/large", method="POST", body=b"x" * 1100).status == 413
    assert fetch(address, "careful.example.com", "/slow?2").status == 504
    assert asked(fetch(address, "careful.example.com", "/slow/patient?2"))["path"] == "/slow/patient?2"


def test_snippets_are_in_force(address):
    answer = fetch(address, "careful.example.com", "/teapot")
    assert (answer.status, answer.body) == (418, b"short and stout")


# The name has to be one that resolves: it is what the client says in the handshake.
HTTP3 = """
hosts=$(cat /etc/hosts) && into=$(mktemp -d)
echo "$1 $2" >>/etc/hosts
timeout 20 gtlsclient -q --exit-on-all-streams-close --download="$into" "$2" 443 "https://$2$3" >/dev/null
printf '%s\\n' "$hosts" >/etc/hosts
cat "$into"/*
"""


def test_http3(host, hosts, address):
    """Where the host's nginx has it, asked by its neighbour."""
    secure = fetch(address, "sticky.example.com", tls=True).headers.get("alt-svc")
    sockets = host.check_output("ss -Hlnu 'sport = 443'")
    if "--with-http_v3_module" not in host.check_output("nginx -V 2>&1"):
        assert (secure, sockets) == (None, "")
        return
    assert secure == 'h3=":443"; ma=86400'
    for name, tls in (("sticky.example.com", False), ("shop.example.com", True)):
        assert "alt-svc" not in fetch(address, name, tls=tls).headers
    [neighbour] = [other for other in hosts if where(other) != address]
    neighbour.check_output("dpkg -s ngtcp2-client || apt-get install -y --no-install-recommends ngtcp2-client")

    def ask(name, path):
        return neighbour.run("sh -c %s sh %s %s %s", HTTP3, address, name, path)

    seen = json.loads(ask("sticky.example.com", "/a?b").stdout)
    assert (seen["path"], seen["headers"]["host"]) == ("/a?b", "sticky.example.com")
    assert (seen["headers"]["x-forwarded-for"], seen["headers"]["x-forwarded-proto"]) == (where(neighbour), "https")
    # no other site of the port, and no unknown name
    for name in ("shop.example.com", "other.example.com"):
        assert ask(name, "/").rc != 0


# limits


def new_client():
    """An address that no earlier run of the tests has used up."""
    return f"2001:db8:{time.time_ns() & 0xFFFF:x}:{time.time_ns() >> 16 & 0xFFFF:x}::1"


def test_rate_limit(address):
    one, other = as_client(new_client()), as_client(new_client())
    assert statuses(address, "limited.example.com", "/", 6, **one) == [200] * 3 + [429] * 3
    assert statuses(address, "limited.example.com", "/any", 2, **other) == [200] * 2
    refused = fetch(address, "limited.example.com", headers=one)
    assert (refused.status, refused.headers["x-frame-options"]) == (429, "SAMEORIGIN")
    # paths of their own, the path that stays open, and those who are let through
    assert statuses(address, "limited.example.com", "/free/", 5, **one) == [200] * 5
    assert statuses(address, "limited.example.com", "/healthz", 5, **one) == [200] * 5
    assert statuses(address, "limited.example.com", "/", 6, **as_client("192.0.2.9")) == [200] * 6
    assert statuses(address, "limited.example.com", "/", 1, **one) == [429]


@pytest.mark.parametrize("path", ["/static/old.css", "/static/new.css", "/media/upload.html"])
def test_static_files_count_for_the_rate_limit(address, path):
    """Once, also those that are looked for in the next release."""
    client = as_client(new_client())
    assert statuses(address, "limited.example.com", path, 2, **client) == [200] * 2
    assert statuses(address, "limited.example.com", "/", 1, **client) == [200]
    refused = fetch(address, "limited.example.com", path, headers=client)
    assert (refused.status, refused.text, refused.headers["x-frame-options"]) == (429, "not this one", "SAMEORIGIN")
    assert statuses(address, "limited.example.com", "/", 1, **client) == [429]
    none = fetch(address, "limited.example.com", "/static/none.css", headers=as_client("192.0.2.9"))
    assert (none.status, none.text) == (404, "not this one")


def test_a_queue_lets_requests_wait(address):
    client = as_client(new_client())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fetch(address, "limited.example.com", "/queue/", headers=client), range(8)))
    assert Counter(answer.status for answer in answers) == {200: 6, 429: 2}
    assert max(answer.seconds for answer in answers if answer.status == 200) > 2


def test_limits_by_key(address):
    client = new_client()
    ask = {**as_client(client), "X-Api-Key": f"one-{client}"}
    assert statuses(address, "limited.example.com", "/key/", 3, **ask) == [200, 503, 503]
    assert statuses(address, "limited.example.com", "/key/", 2, **{**ask, "X-Api-Key": client}) == [200, 503]
    # leaving it out is no way round
    assert statuses(address, "limited.example.com", "/key/", 3, **as_client(client)) == [200, 503, 503]


def test_limits_by_cookie_and_by_address(address):
    client, other = new_client(), new_client()
    ask = {**as_client(client), "Cookie": f"a=b; Sid={client}"}
    assert statuses(address, "limited.example.com", "/cookie/", 2, **ask) == [200, 429]
    # wherever it comes from
    assert statuses(address, "limited.example.com", "/cookie/", 1, **{**ask, **as_client(other)}) == [429]
    assert statuses(address, "limited.example.com", "/cookie/", 2, **as_client(client)) == [200, 429]
    path = f"/uri/{time.monotonic_ns()}"
    found = [statuses(address, "limited.example.com", path, 1, **as_client(name)) for name in (client, other)]
    assert found == [[200], [429]]
    assert statuses(address, "limited.example.com", path + "?a", 2, **as_client(other)) == [200, 429]


@thorough
def test_two_rates_hold_at_once(address):
    """Three at once, and five in the long run."""
    client = as_client(new_client())
    assert statuses(address, "limited.example.com", "/rates/", 4, **client) == [200, 200, 200, 429]
    time.sleep(3.2)
    assert statuses(address, "limited.example.com", "/rates/", 3, **client) == [200, 200, 429]


@thorough
def test_a_part_of_a_burst_waits(address):
    """Of six at once, one is in time, two go before it, two wait."""
    client = as_client(new_client())
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: fetch(address, "limited.example.com", "/delay/", headers=client), range(6)))
    assert Counter(answer.status for answer in answers) == {200: 5, 429: 1}
    times = sorted(answer.seconds for answer in answers if answer.status == 200)
    assert times[2] < 0.7 < times[3] < 1.6 < times[4] < 2.7


def test_a_dry_run_refuses_nothing_and_tells(host, address):
    path, client = f"/dry/{time.monotonic_ns()}", as_client(new_client())
    assert statuses(address, "limited.example.com", path, 3, **client) == [200] * 3
    log = "/var/log/nginx/limited.error.log"
    assert wait_until(lambda: "dry run" in host.check_output("grep -F %s %s", path, log))


def test_limit_of_connections(address):
    """Two of each client at a time."""
    client, other = as_client(new_client()), as_client(new_client())
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        # within the rate: its burst is two
        slow = [pool.submit(statuses, address, "limited.example.com", "/slow/?2", 1, **client) for _ in range(2)]
        time.sleep(0.7)
        assert statuses(address, "limited.example.com", "/slow/?0", 1, **client) == [429]
        assert statuses(address, "limited.example.com", "/slow/?0", 1, **other) == [200]
        assert [future.result() for future in slow] == [[200], [200]]


# who may


# one of the release, and one that is found in the next
FILES = ("/static/old.css", "/static/new.css")


def test_static_files_are_for_those_who_may(address):
    for path in FILES:
        assert fetch(address, "private.example.com", path).status == 401
        assert fetch(address, "private.example.com", path, headers=login("ann", "wrong")).status == 401
        answer = fetch(address, "private.example.com", path, headers=login("ann", "secret"))
        assert (answer.status, answer.text[:4]) == (200, "body")
        for client, status in (("198.51.100.1", 403), ("192.0.2.7", 403), ("192.0.2.1", 200)):
            assert fetch(address, "closed.example.com", path, headers=as_client(client)).status == status


def login(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("client", "status"),
    [
        ("192.0.2.1", 200),
        ("2001:db8::1", 200),
        ("192.0.2.7", 403),
        ("198.51.100.1", 403),
        ("2001:db9::1", 403),
    ],
)
def test_networks(address, client, status):
    answer = fetch(address, "closed.example.com", headers={**as_client(client), "Origin": "https://app.example.com"})
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert fetch(address, "closed.example.com", "/hook/x", headers=as_client(client)).status == 200
    assert fetch(address, "closed.example.com", "/healthz", headers=as_client(client)).status == 200
    assert fetch(address, "closed.example.com", "/healthz/x", headers=as_client(client)).status == status


def test_networks_or_passwords(address):
    ask = {"host": "closed.example.com", "path": "/either"}
    assert fetch(address, **ask, headers=as_client("192.0.2.1")).status == 200
    assert fetch(address, **ask, headers=as_client("198.51.100.1")).status == 401
    assert fetch(address, **ask, headers={**as_client("198.51.100.1"), **login("ann", "secret")}).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (login("ann", "secret"), 200),
        (login("bob", "secret"), 200),
        (login("ann", "wrong"), 401),
        (login("eve", "secret"), 401),
        (login("ann", ""), 401),
        ({"Authorization": "Bearer secret"}, 401),
    ],
    ids=["nobody", "ann", "bob", "wrong", "eve", "empty", "token"],
)
def test_passwords(address, headers, status):
    answer = fetch(address, "private.example.com", headers=headers)
    assert answer.status == status
    if status == 401:
        assert answer.headers["www-authenticate"] == 'Basic realm="Staff only"'
    else:
        given = asked(answer)["headers"]
        assert "authorization" not in given  # the password was for nginx
        assert given["x-forwarded-proto"] == "http"
        assert given["host"] == "private.example.com"


def test_hashes_are_for_nginx_only(host):
    file = host.file("/etc/nginx/wsgi-fleet/users/private-site")
    assert (file.user, file.group, file.mode) == ("root", "www-data", 0o640)


def showing(address, client, path="/"):
    """The status for a client that shows a certificate in the TLS handshake, or none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client:
        context.load_cert_chain(CACHE / f"client-of-{client}.pem", CACHE / f"client-of-{client}.key")
    connection = http.client.HTTPSConnection("known.example.com", context=context, timeout=10)
    connection.sock = context.wrap_socket(
        socket.create_connection((address, 443), 10), server_hostname="known.example.com"
    )
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_certificates_of_clients(address):
    assert showing(address, "ca") == 200
    assert showing(address, "other") == 400
    assert showing(address, None) == 403
    assert showing(address, None, "/hook") == showing(address, None, "/healthz") == 200
    assert fetch(address, "known.example.com").status == 403  # over HTTP nobody can show one
    for path in FILES:
        assert (showing(address, "ca", path), showing(address, None, path)) == (200, 403)
    # and other sites of the port ask for none
    assert fetch(address, "shop.example.com", tls=True).status == 200


# caches


def cached(address, path, **headers):
    answer = fetch(address, "cached.example.com", path, headers=headers)
    return answer.headers.get("x-cache-status"), asked(answer)["number"]


def test_answers_are_kept_and_differ_by_what_is_said(address):
    path = f"/a?{time.monotonic_ns()}"
    (first, number), again = cached(address, path), cached(address, path)
    assert (first, again) == ("MISS", ("HIT", number))
    assert cached(address, path + "x")[0] == "MISS"
    assert cached(address, path, **{"Accept-Language": "de"})[0] == "MISS"
    assert cached(address, path)[0] == "HIT"
    assert cached(address, path, Cookie="wsgi_visitor=1")[0] == "HIT"
    # what may be somebody's own is not kept, and not given to others
    for headers in ({"Cookie": "a=b"}, {"Cookie": "wsgi_visitor=1; a=b"}, login("ann", "secret")):
        status, other = cached(address, path, **headers)
        assert (status, other > number) == ("BYPASS", True)
    assert cached(address, path) == ("HIT", number)
    posts = [asked(fetch(address, "cached.example.com", path, method="POST"))["number"] for _ in range(2)]
    assert number < posts[0] < posts[1]


@pytest.mark.parametrize("header", ["Set-Cookie=a%3Db", "Cache-Control=no-store", "Cache-Control=private"])
def test_the_application_can_forbid_it(address, header):
    path = f"/says?{header}&X-N={time.monotonic_ns()}"
    assert [cached(address, path)[0] for _ in range(2)] == ["MISS", "MISS"]


def test_a_path_keeps_answers_for_its_own_time(address):
    path = f"/brief?{time.monotonic_ns()}"
    assert [cached(address, path)[0] for _ in range(2)] == ["MISS", "HIT"]
    assert cached(address, path, Cookie="other=1")[0] == "HIT"
    assert cached(address, path, Cookie="session=1")[0] == "BYPASS"
    assert cached(address, path, **{"X-Fresh": "1"})[0] == "BYPASS"
    time.sleep(2.1)  # nginx counts whole seconds
    # the old one at once, and a new one is fetched behind it
    assert cached(address, path)[0] == "STALE"
    assert wait_until(lambda: cached(address, path)[0] == "HIT", 5)


def test_an_old_answer_is_better_than_none(host, address):
    path, strict = f"/brief?{time.monotonic_ns()}", f"/strict?{time.monotonic_ns()}"
    assert [cached(address, place)[0] for place in (path, strict, strict)] == ["MISS", "MISS", "HIT"]
    host.check_output("systemctl stop backend@one")
    try:
        time.sleep(2.1)  # nginx counts whole seconds
        assert {cached(address, path)[0] for _ in range(3)} <= {"STALE", "UPDATING"}
        assert fetch(address, "cached.example.com", strict).status == 502  # unless that is not wanted
        assert fetch(address, "cached.example.com", path + "x").status == 502
    finally:
        host.check_output("systemctl start backend@one")
        wait_until(lambda: fetch(address, "cached.example.com", "/healthz").status == 200)


@pytest.mark.parametrize(("status", "seen"), [(410, ["MISS", "HIT"]), (404, ["MISS", "MISS"])])
def test_answers_are_kept_by_their_status(address, status, seen):
    path = f"/gone/{time.monotonic_ns()}/status?{status}"
    answers = [fetch(address, "cached.example.com", path) for _ in range(2)]
    assert [answer.status for answer in answers] == [status] * 2
    assert [answer.headers["x-cache-status"] for answer in answers] == seen


def test_many_who_want_the_same_ask_the_server_once(address):
    path = f"/slow?1.{time.monotonic_ns()}"
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: cached(address, path), range(20)))
    assert len({number for _, number in answers}) == 1
    assert Counter(status for status, _ in answers) == {"MISS": 1, "HIT": 19}


def test_health_is_never_from_the_cache(address):
    numbers = [asked(fetch(address, "cached.example.com", "/healthz"))["number"] for _ in range(2)]
    assert numbers[0] < numbers[1]


def test_a_new_release_is_seen_at_once_and_an_old_one_comes_back(host, address):
    """As the application's role switches it, without a word to nginx."""
    path = f"/release?{time.monotonic_ns()}"

    def switch(release):
        host.check_output("ln -s releases/%s /srv/cached/.new && mv -T /srv/cached/.new /srv/cached/current", release)

    (_, old), _ = cached(address, path), cached(address, path)
    try:
        switch("new")
        assert cached(address, path)[0] == "MISS"
        status, number = cached(address, path)
        assert (status, number > old) == ("HIT", True)
        assert fetch(address, "cached.example.com", "/static/new.css").text == "body { color: new }\n"
        assert fetch(address, "cached.example.com", "/static/old.css").status == 404
    finally:
        switch("old")
    assert cached(address, path) == ("HIT", old)


# files


def test_files_of_the_release(address):
    answer = fetch(address, "cached.example.com", "/static/old.css")
    assert (answer.text, answer.headers["content-type"]) == ("body { color: old }\n", "text/css")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    known = {"If-None-Match": answer.headers["etag"]}
    assert fetch(address, "cached.example.com", "/static/old.css", headers=known).status == 304
    # a page of the next release, served by a host that has switched, asks for its files here
    assert fetch(address, "cached.example.com", "/static/new.css").text == "body { color: new }\n"


def test_files_that_were_compressed_before(address):
    answer = fetch(address, "cached.example.com", "/static/big.css", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(answer.body) < 200
    assert "content-encoding" not in fetch(address, "cached.example.com", "/static/big.css").headers


def test_shared_files(address):
    answer = fetch(address, "cached.example.com", "/media/upload.html")
    assert (answer.status, answer.headers["cache-control"]) == (200, "public, max-age=60")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/static/none.css", 404),
        ("/static/", 403),
        ("/static/../wsgi.py", 200),  # nginx takes it for /wsgi.py, which the application answers
        ("/static/..%2f..%2f..%2fwsgi.py", 400),
        ("/static../wsgi.py", 200),
        ("/media/passwd", 403),  # a link to a file of somebody else
    ],
)
def test_files_that_are_not_for_clients(address, path, status):
    answer = fetch(address, "cached.example.com", path)
    assert answer.status == status
    assert b"print" not in answer.body
    assert b"root:" not in answer.body
    assert "immutable" not in answer.headers.get("cache-control", "")
    if status == 200:
        assert json.loads(answer.body)["backend"] == "one"


# what flows


# through one nginx, and through two
flowing = pytest.mark.parametrize("name", ["flowing", pytest.param("kept", marks=thorough)])


def talk(address, name, path, request=b"", seconds=8.0):
    """The times and texts of what comes back."""
    began = time.monotonic()
    with socket.create_connection((address, 80), seconds) as client:
        head = f"GET {path} HTTP/1.1\r\nHost: {name}.example.com\r\n"
        client.sendall(head.encode() + request + b"\r\n")
        while piece := client.recv(65536):
            yield time.monotonic() - began, piece.decode(), client


@flowing
def test_events_arrive_when_they_are_sent(address, name):
    times = {}
    for seconds, piece, _ in talk(address, name, "/stream", b"Connection: close\r\n"):
        for number in range(3):
            if f"data: {number}" in piece:
                times[number] = seconds
    assert times[0] < 0.7
    assert 0.8 < times[1] < 1.7
    assert 1.8 < times[2] < 2.7


@flowing
def test_a_connection_becomes_a_socket(address, name):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    pieces = talk(address, name, "/socket", upgrade)
    _, head, client = next(pieces)
    assert head.startswith("HTTP/1.1 101 ")
    time.sleep(2.5)  # more than the site's time for answers
    client.sendall(b"hello\n")
    assert next(pieces)[1] == "again: hello\n"
    pieces.close()
    assert next(talk(address, name, "/socket", b"Connection: close\r\n"))[1].startswith("HTTP/1.1 426 ")
    # elsewhere nobody can
    assert next(talk(address, name, "/", upgrade))[1].startswith("HTTP/1.1 200 ")
