"""What the sites answer, from outside and from the host itself."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import time
from collections import Counter

import pytest
from probes import connects, fetch, wait_until
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
    limits = "prlimit --pid %s --nofile --output SOFT --noheadings --raw"
    assert {host.check_output(limits, process.pid) for process in processes} == {"16384"}
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


def test_backup_takes_over(address):
    assert backends(address, "spare.example.com", 6) == {"two": 6}


def test_a_failing_server_is_passed_over(address):
    assert backends(address, "retried.example.com", 12) == {"one": 12}


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


def test_log_tells_the_times_and_is_rotated(host, address):
    log = "/var/log/nginx/shop.access.log"
    fetch(address, "shop.example.com", "/logged-before")
    line = host.check_output("grep logged-before %s", log)
    assert re.search(r' host=shop.example.com .*request_time=\d+\.\d+ .*upstream_addr="unix:/run/backend.sock"', line)
    assert re.search(r'upstream_response_time="\d+\.\d+"', line)
    host.check_output("logrotate --force /etc/logrotate.d/nginx")
    wait_until(
        lambda: (fetch(address, "shop.example.com", "/logged-after"), "logged-after" in host.file(log).content_string)[
            1
        ]
    )
    assert "logged-before" not in host.file(log).content_string
    assert "logged-before" in host.file(log + ".1").content_string
    assert {host.file(path).mode for path in (log, log + ".1")} == {0o640}


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
