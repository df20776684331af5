"""What the sites answer, from outside and from the host itself."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import ssl
import subprocess
import time
from collections import Counter

import pytest
from probes import connects, fetch, thorough, wait_until
from serving import CERTIFICATE, asked, certificate, digest, inside, inside_text, is_refused, where


@pytest.fixture
def address(host):
    return where(host)


def test_nginx_finds_nothing_wrong_or_outdated(host):
    result = host.run("nginx -t")
    assert result.rc == 0
    assert "warn" not in result.stderr


def test_runs_now_and_at_boot_with_many_files(host):
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled
    processes = host.process.filter(comm="nginx")
    assert {process.user for process in processes} == {"root", "www-data"}
    limits = [host.file(f"/proc/{process.pid}/limits").content_string for process in processes]
    assert {re.search(r"(?m)^Max open files +(\d+) ", text)[1] for text in limits} == {"16384"}
    assert host.check_output("systemctl show -P LimitNOFILE nginx") == "16384"
    assert "client_body_timeout 61s;" in host.check_output("nginx -T")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("name", ["shop.example.com", "a.shop.example.com", "SHOP.example.com"])
def test_serves_a_site(address, name, tls):
    seen = asked(fetch(address, name, "/a%20b?c=%2F&d", tls=tls))
    assert seen["backend"] == "socket"
    assert seen["path"] == "/a%20b?c=%2F&d"
    assert seen["headers"]["host"].lower() == name.lower()
    assert seen["headers"]["x-forwarded-proto"] == ("https" if tls else "http")


def test_serves_over_ipv6(host):
    assert inside(host, 80, "shop.example.com", address="::1")["headers"]["x-forwarded-for"] == "::1"


@pytest.mark.parametrize("name", ["other.example.com", "192.0.2.1", "localhost", "example.com"])
@pytest.mark.parametrize("port", [80, 8000, 8080])
def test_unknown_names_are_refused(address, name, port):
    assert is_refused(address, name, port=port)


@pytest.mark.parametrize("name", ["other.example.com", None], ids=["other", "none"])
def test_unknown_names_are_refused_before_the_handshake(address, name):
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        certificate(address, name)


def test_unknown_names_are_refused_after_the_handshake(address):
    assert is_refused(address, "shop.example.com", tls=True, headers={"Host": "other.example.com"})


def test_a_site_answers_on_its_own_port_only(address):
    assert is_refused(address, "behind.example.com", port=80)
    assert fetch(address, "behind.example.com", port=8000).status == 200


FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Real-IP": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "Forwarded": "for=203.0.113.9;proto=https",
    "Proxy": "http://evil.example",
}


@pytest.mark.parametrize(("name", "port"), [("shop.example.com", 80), ("behind.example.com", 8000)])
def test_a_client_cannot_forge_who_it_is(address, name, port):
    headers = asked(fetch(address, name, port=port, headers=FORGED))["headers"]
    with socket.create_connection((address, port)) as own:
        client = own.getsockname()[0]
    assert {key: value for key, value in headers.items() if key.startswith("x-") or key in ("forwarded", "proxy")} == {
        "x-forwarded-for": client,
        "x-real-ip": client,
        "x-forwarded-proto": "http",
        "x-forwarded-host": name,
    }


@pytest.mark.parametrize(
    ("sent", "client", "scheme"),
    [
        ({"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}, "203.0.113.9", "https"),
        ({"X-Forwarded-For": "2001:db8::9", "X-Forwarded-Proto": "http"}, "2001:db8::9", "http"),
        # what comes before the last address that is not trusted is the client's own word
        ({"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 127.0.0.1"}, "203.0.113.9", "http"),
        ({"X-Forwarded-Proto": "gopher"}, "127.0.0.1", "http"),
        ({}, "127.0.0.1", "http"),
    ],
)
def test_a_trusted_proxy_is_believed(host, sent, client, scheme):
    headers = inside(host, 8000, "behind.example.com", **sent)["headers"]
    assert (headers["x-forwarded-for"], headers["x-real-ip"]) == (client, client)
    assert headers["x-forwarded-proto"] == scheme


def test_the_port_in_the_host_is_kept(address):
    seen = asked(
        fetch(address, "other-port.example.com", port=8443, tls=True, headers={"Host": "other-port.example.com:8443"})
    )
    assert seen["headers"]["host"] == "other-port.example.com:8443"


def test_a_request_cannot_name_two_hosts(address):
    with socket.create_connection((address, 80), 5) as client:
        client.sendall(b"GET http://shop.example.com/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b" 200 OK" in answer
    assert b"evil.example" not in answer


@pytest.mark.parametrize(
    ("name", "port", "target"),
    [
        ("secure.example.com", 80, "https://secure.example.com/a?b=c"),
        ("other-port.example.com", 8080, "https://other-port.example.com:8443/a?b=c"),
    ],
)
def test_http_is_sent_to_https(address, name, port, target):
    answer = fetch(address, name, "/a?b=c", port=port, method="POST", body=b"kept")
    assert (answer.status, answer.headers["location"]) == (308, target)


def test_self_signed_certificate_has_the_names(address):
    pem, _, _ = certificate(address, "shop.example.com")
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem, check=True, capture_output=True, text=True
    ).stdout
    names = set(re.findall(r"DNS:([^,\s]+)", text))
    assert {"shop.example.com", "*.shop.example.com", "api.example.com"} <= names
    assert "secure.example.com" not in names
    assert "behind.example.com" not in names


def test_given_certificate_is_served(address):
    assert certificate(address, "secure.example.com")[0] == CERTIFICATE.read_text().strip()


@pytest.mark.parametrize("path", ["/etc/ssl/wsgi-fleet/self-signed.pem", "/etc/nginx/wsgi-fleet/tls/secure.key"])
def test_keys_are_for_root_only(host, path):
    file = host.file(path)
    assert (file.user, file.mode) == ("root", 0o600)


def test_tls_versions(address):
    assert certificate(address, "shop.example.com")[1] == "TLSv1.3"
    older = certificate(address, "shop.example.com", maximum_version=ssl.TLSVersion.TLSv1_2)
    assert older[1] == "TLSv1.2"
    oldest = subprocess.run(
        ["openssl", "s_client", "-connect", f"{address}:443", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert oldest.returncode == 1
    assert "protocol version" in oldest.stderr


def test_http2(host, address):
    assert certificate(address, "shop.example.com")[2] == "h2"
    by_server = "1.22" not in host.run("nginx -v").stderr
    # before 1.25.1 it belongs to the port
    assert certificate(address, "secure.example.com")[2] == ("http/1.1" if by_server else "h2")
    answer = subprocess.run(
        [
            "curl",
            "-sk",
            "--http2",
            "--connect-to",
            f"::{address}:",
            "-w",
            "\n%{http_version}",
            "https://shop.example.com/",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert answer[1] == "2"
    assert json.loads(answer[0])["headers"]["host"] == "shop.example.com"


def given_up(address, name, request, seconds):
    """After how long the connection of a client that sends no more is closed; None is not in that time."""
    with socket.create_connection((address, 80), seconds) as client:
        client.sendall(request % name.encode())
        began = time.monotonic()
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except TimeoutError:
            return None
        assert answer.partition(b"\r\n")[0] in (b"", b"HTTP/1.1 408 Request Time-out")
        return time.monotonic() - began


def test_a_body_that_comes_no_further_is_given_up(address):
    """In the time of the path, or of the site, or of the host."""

    def post(path):
        return b"POST " + path + b" HTTP/1.1\r\nHost: %s\r\nContent-Length: 100\r\n\r\n" + b"x" * 50

    asking = [
        ("careful.example.com", post(b"/hasty/a")),
        ("careful.example.com", post(b"/a")),
        ("flowing.example.com", post(b"/a")),
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        path, other, site = pool.map(lambda ask: given_up(address, *ask, 3), asking)
    assert 0.7 < path < 1.9
    assert other is None
    assert site > 1.7


@thorough
def test_a_header_that_comes_no_further_is_given_up(address):
    assert 5.5 < given_up(address, "shop.example.com", b"GET / HTTP/1.1\r\nHost: %s\r\n", 12) < 8


def test_body_size(address):
    assert asked(fetch(address, "secure.example.com", tls=True, method="POST", body=b"x" * 1000))["size"] == 1000
    assert fetch(address, "secure.example.com", tls=True, method="POST", body=b"x" * 1100).status == 413
    assert asked(fetch(address, "shop.example.com", method="POST", body=b"x" * 5_000_000))["size"] == 5_000_000
    assert (
        fetch(address, "shop.example.com", method="POST", body=b"x", headers={"Content-Length": "99999999"}).status
        == 413
    )


def test_large_cookies_pass(address):
    assert len(fetch(address, "shop.example.com", "/cookies").headers["set-cookie"]) > 12000


def backends(address, name, count):
    return Counter(asked(fetch(address, name))["backend"] for _ in range(count))


def test_requests_spread(address):
    assert backends(address, "balanced.example.com", 20) == {"one": 10, "two": 10}


def test_requests_spread_by_weight(address):
    assert backends(address, "weighted.example.com", 20) == {"one": 15, "two": 5}


def asked_servers(host, site, path):
    """Who was asked for each request of this path, as the site's log has it."""
    lines = host.check_output("grep -F %s %s", f" {path} ", f"/var/log/nginx/{site}.access.log").splitlines()
    return [re.search(r'upstream_addr="([^"]*)"', line)[1].split(", ") for line in lines]


DEAD, ONE, TWO = (f"127.0.0.1:{port}" for port in (9199, 9101, 9102))


def test_backup_takes_over_and_a_dead_server_is_left_alone_for_a_while(host, address):
    path = f"/spare-{time.monotonic_ns()}"
    assert [asked(fetch(address, "spare.example.com", path))["backend"] for _ in range(4)] == ["two"] * 4
    assert asked_servers(host, "spare", path) == [[DEAD, TWO], [TWO], [TWO], [TWO]]
    time.sleep(3.1)  # more than fail_timeout; nginx counts whole seconds
    assert [asked(fetch(address, "spare.example.com", path))["backend"] for _ in range(2)] == ["two"] * 2
    assert asked_servers(host, "spare", path)[4:] == [[DEAD, TWO], [TWO]]


def test_backup_is_not_asked_while_another_lives(address):
    """However busy that one is."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda _: fetch(address, "reserved.example.com", "/slow?0.5"), range(12))
        assert Counter(asked(answer)["backend"] for answer in answers) == {"one": 12}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("slow.example.com", {}), ("other-port.example.com", {"port": 8443, "tls": True})],
    ids=["least_conn", "random_two"],
)
def test_the_less_busy_server_is_asked(address, name, kwargs):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(fetch, address, name, "/slow/patient?1.5", **kwargs)
        time.sleep(0.5)
        quick = {asked(fetch(address, name, **kwargs))["backend"] for _ in range(6)}
        assert not slow.done()
        assert quick == {"one", "two"} - {asked(slow.result())["backend"]}


def test_clients_of_a_network_stay_with_their_server(address):
    seen = {}
    for network in range(12):
        clients = [f"203.0.{network}.{number}" for number in (1, 2, 1)]
        answers = [fetch(address, "hashed.example.com", headers={"X-Forwarded-For": client}) for client in clients]
        (seen[network],) = {asked(answer)["backend"] for answer in answers}
    assert set(seen.values()) == {"one", "two"}


@pytest.mark.parametrize("by", ["uri", "cookie"])
def test_equal_addresses_and_cookies_stay_with_their_server(address, by):
    seen = {}
    for number in range(12):
        path, headers = (f"/{number}?a", {}) if by == "uri" else ("/", {"Cookie": f"a=b; Sid={number}"})
        answers = [fetch(address, f"by-{by}.example.com", path, headers=headers) for _ in range(3)]
        (seen[number],) = {asked(answer)["backend"] for answer in answers}
    assert set(seen.values()) == {"one", "two"}


def test_a_failing_server_is_passed_over(address):
    assert backends(address, "retried.example.com", 12) == {"one": 12}


@pytest.mark.parametrize(("name", "tries"), [("twice", 2), ("once", 1)])
def test_as_many_servers_are_asked_as_is_said(host, address, name, tries):
    path = f"/tries-{time.monotonic_ns()}"
    assert [fetch(address, f"{name}.example.com", path).status for _ in range(3)] == [502] * 3
    assert [len(set(servers)) for servers in asked_servers(host, name, path)] == [tries] * 3


def test_an_error_of_a_server_is_passed_over_where_that_is_said(host, address):
    path = f"/fails?one=500&n={time.monotonic_ns()}"
    assert Counter(fetch(address, "balanced.example.com", path).status for _ in range(8)) == {200: 4, 500: 4}
    assert [asked(fetch(address, "weighted.example.com", path))["backend"] for _ in range(8)] == ["two"] * 8
    assert Counter(map(tuple, asked_servers(host, "weighted", path))) == {(ONE, TWO): 6, (TWO,): 2}
    # one that changes things is not asked for again
    statuses = Counter(fetch(address, "weighted.example.com", path, method="POST").status for _ in range(8))
    assert statuses == {200: 2, 500: 6}


def connections(address, name, count=8, **kwargs):
    """The ports from which a server was asked."""
    return [asked(fetch(address, name, **kwargs))["client"] for _ in range(count)]


def test_connections_to_a_server_are_kept_open(host, address):
    workers = len([process for process in host.process.filter(comm="nginx") if process.user == "www-data"])
    kept = connections(address, "balanced.example.com", 8 * workers)
    assert len(set(kept)) <= 4 * workers  # two servers, and each worker has its own; old ones may be at their end
    assert len(set(connections(address, "secure.example.com", tls=True))) == 8  # keepalive 0
    posted = connections(address, "balanced.example.com", method="POST", body=b"x")
    assert len(set(posted) - set(kept)) == 8


@thorough
def test_idle_connections_are_closed(host, address):
    [port] = connections(address, "reserved.example.com", 1)
    is_open = f"ss -Htn state established 'sport = :{port} and dport = :9101'"
    assert host.check_output(is_open)
    time.sleep(1)
    assert host.check_output(is_open)
    time.sleep(2.5)  # keepalive_timeout is two seconds
    assert host.check_output(is_open) == ""


def test_what_changes_things_is_sent_once(host, address):
    path = f"/once-{time.monotonic_ns()}"
    statuses = Counter(fetch(address, "retried.example.com", path, method="POST").status for _ in range(12))
    assert statuses[502] >= 3
    assert statuses[200] + statuses[502] == 12
    # the one that answered 502 was the last one asked; only one that took no connection was passed over
    lines = host.check_output("grep -F %s /var/log/nginx/retried.access.log", path).splitlines()
    assert len(lines) == 12
    assert all(re.search(r'upstream_addr="(127.0.0.1:9199, )?127.0.0.1:910[13]"', line) for line in lines)


def test_a_slow_answer_is_not_asked_for_again(address):
    answer = fetch(address, "slow.example.com", "/slow?3")
    assert answer.status == 504
    assert answer.seconds < 1.9


def test_error_page(address):
    answer = fetch(address, "down.example.com", "/any")
    assert (answer.status, answer.headers["content-type"]) == (502, "text/html")
    assert answer.text == "<p>Soon back: ”down“ {{ 100% </p>"
    assert fetch(address, "down.example.com", "/.wsgi-fleet/pages/502-504.html").status == 404


def test_the_applications_own_errors_pass(address):
    answer = fetch(address, "shop.example.com", "/status?503")
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
    assert json.loads(answer.body)["backend"] == "socket"


def cors(answer):
    """The headers that tell browsers what other origins may do."""
    return {key[15:]: value for key, value in answer.headers.items() if key.startswith("access-control-")}


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000"])
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/status?404", 404)])
def test_cors_allowed_origin(address, origin, path, status):
    answer = fetch(address, "api.example.com", path, headers={"Origin": origin})
    assert answer.status == status
    assert cors(answer) == {"allow-origin": origin, "allow-credentials": "true", "expose-headers": "X-Total"}
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null", None]
)
def test_cors_other_origins(address, origin):
    headers = {"Origin": origin} if origin else {}
    answer = fetch(address, "api.example.com", headers=headers)
    assert (answer.status, cors(answer)) == (200, {})
    assert "Origin" in answer.headers["vary"]
    preflight = {**headers, "Access-Control-Request-Method": "PUT"}
    # not nginx's to answer: the application is asked
    answer = fetch(address, "api.example.com", method="OPTIONS", headers=preflight)
    assert (asked(answer)["method"], cors(answer)) == ("OPTIONS", {})


def test_cors_preflight(address):
    headers = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}
    answer = fetch(address, "api.example.com", "/thing", method="OPTIONS", headers=headers)
    assert (answer.status, answer.body) == (204, b"")
    assert cors(answer) == {
        "allow-origin": "https://app.example.com",
        "allow-credentials": "true",
        "allow-methods": "GET, PUT",
        "allow-headers": "X-Token, Content-Type",
        "max-age": "60",
    }
    assert "Origin" in answer.headers["vary"]


def test_cors_options_that_is_no_preflight(address):
    answer = fetch(address, "api.example.com", method="OPTIONS", headers={"Origin": "https://app.example.com"})
    assert asked(answer)["method"] == "OPTIONS"


def test_cors_for_everybody(address):
    assert cors(fetch(address, "public.example.com", headers={"Origin": "https://any.example"})) == {
        "allow-origin": "*"
    }
    assert cors(fetch(address, "public.example.com")) == {}


def test_cors_is_the_applications_when_not_said(address):
    assert cors(fetch(address, "shop.example.com")) == {"allow-origin": "https://of-the-app.example"}


def test_compression(address):
    headers = {"Accept-Encoding": "gzip"}
    big = fetch(address, "shop.example.com", "/big", headers=headers)
    assert big.headers["content-encoding"] == "gzip"
    assert len(big.body) < 1000
    assert "Accept-Encoding" in big.headers["vary"]
    for path in ("/", "/image"):
        assert "content-encoding" not in fetch(address, "shop.example.com", path, headers=headers).headers
    assert "content-encoding" not in fetch(address, "shop.example.com", "/big").headers


def test_the_version_is_not_told(address):
    assert fetch(address, "down.example.com").headers["server"] == "nginx"


def test_log_tells_the_times(host, address):
    log = "/var/log/nginx/shop.access.log"
    fetch(address, "shop.example.com", "/logged-before")
    line = host.check_output("grep logged-before %s", log)
    assert re.search(r' host=shop.example.com .*request_time=\d+\.\d+ .*upstream_addr="unix:/run/backend.sock"', line)
    assert re.search(r'upstream_response_time="\d+\.\d+"', line)


def logged(host, address, path):
    """Nginx writes into the log that is there now."""
    log = "/var/log/nginx/shop.access.log"
    wait_until(lambda: (fetch(address, "shop.example.com", path), path in host.file(log).content_string)[1])


def test_logs_are_rotated_and_old_ones_go(host, address):
    """Two are kept."""
    log, rotate = "/var/log/nginx/shop.access.log", "logrotate --force /etc/logrotate.d/nginx"
    host.check_output("rm -f %s.*", log)
    for number in range(3):
        logged(host, address, f"/logged-{number}.")
        host.check_output(rotate)
    logged(host, address, "/logged-3.")
    assert host.check_output("ls %s*", log).split() == [log, f"{log}.1", f"{log}.2.gz"]
    texts = [host.check_output("zcat -f %s", path) for path in (log, f"{log}.1", f"{log}.2.gz")]
    assert [set(re.findall(r"/logged-(\d)\.", text)) for text in texts] == [{"3"}, {"2"}, {"1"}]
    for path in (log, f"{log}.1", f"{log}.2.gz"):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("www-data", "adm", 0o640)
    host.check_output("systemctl stop nginx")
    try:
        assert host.check_output(f"{rotate} 2>&1") == ""
    finally:
        host.check_output("systemctl start nginx")
    logged(host, address, "/logged-4.")
    assert "/logged-3." in host.file(f"{log}.1").content_string
    # between times, only what is too large
    host.check_output("truncate -s 6M %s && logrotate /etc/logrotate.d/nginx", log)
    assert host.file(f"{log}.1").size == 6 * 1024**2
    logged(host, address, "/logged-5.")
    host.check_output("logrotate /etc/logrotate.d/nginx && rm %s.1", log)
    assert "/logged-5." in host.file(log).content_string


def test_errors_are_logged_by_site(host, address):
    path = f"/refused-{time.monotonic_ns()}"
    fetch(address, "down.example.com", path)
    log = host.file("/var/log/nginx/down.error.log")
    assert re.search(rf"Connection refused.*{path}", log.content_string)
    assert log.mode == 0o640


def test_status_is_for_the_host_itself(host, address):
    assert "Active connections:" in inside_text(host, "/status")
    assert re.fullmatch(r"[0-9a-f]{64}", digest(host).strip())
    assert connects(address, 8079) == "refused"
