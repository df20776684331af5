"""What the sites answer behind Apache, from outside and from the hosts."""

from __future__ import annotations

import json
import re
import socket
import ssl

import pytest
import testinfra
from probes import ROOT, fetch
from tls import resumption, scan

CERTIFICATE = ROOT / ".cache" / "apache" / "company.crt"
AUTHORITY = ROOT / ".cache" / "apache" / "company-ca.crt"
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


@pytest.fixture
def address(host):
    return host.backend.get_variables()["ansible_host"]


@pytest.fixture
def own(address):
    """Our own address, as the host sees it."""
    with socket.create_connection((address, 80)) as connection:
        return connection.getsockname()[0]


def seen(answer):
    """What the application saw of a request."""
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


def handshake(address, name, *protocols, **limits):
    """The certificate, the chosen protocol and the version of TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    for what, value in limits.items():
        setattr(context, what, value)
    with socket.create_connection((address, 443), 10) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        return tls.getpeercert(binary_form=True), tls.selected_alpn_protocol(), tls.version()


def test_apache_runs_alone_now_and_at_boot_and_finds_nothing_wrong(host):
    assert host.run("apache2ctl -t").rc == 0
    assert host.service("apache2").is_running
    assert host.service("apache2").is_enabled
    assert host.check_output("ps -o user= -C apache2 | sort | uniq").split() == ["root", "www-data"]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("name", ["shop.example", "a.b.shop.example", "SHOP.example"])
def test_serves_a_site(address, name, tls, own):
    asked = seen(fetch(address, name, "/a%20b%2Fc//d?e=%2F&f", tls=tls))
    assert asked["uri"] == "/a%20b%2Fc//d?e=%2F&f"
    assert asked["headers"]["host"].lower() == name.lower()
    assert (asked["client"], asked["scheme"]) == (own, "https" if tls else "http")


def test_serves_the_other_host(host, request):
    hosts = testinfra.get_hosts(
        ["ansible://systems_under_test"], ansible_inventory=request.config.option.ansible_inventory
    )
    (other,) = [known for known in hosts if known.backend.host != host.backend.host]
    address = host.backend.get_variables()["ansible_host"]
    for url in (
        f"https://shop.example/x --resolve shop.example:443:{address}",
        f"http://shop.example/x --resolve shop.example:80:{address}",
    ):
        asked = json.loads(other.check_output(f"curl -sSk {url}"))
        assert asked["client"] == other.backend.get_variables()["ansible_host"]


@pytest.mark.parametrize("more", [{}, {"Connection": "close, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto"}])
@pytest.mark.parametrize(("name", "tls"), [("shop.example", False), ("full.example", True)])
def test_a_client_cannot_forge_who_it_is(address, name, tls, own, more):
    asked = seen(fetch(address, name, tls=tls, headers={**FORGED, **more}))
    assert asked["client"] == own
    if name == "shop.example":  # waitress takes what it believes out of the headers
        told = {
            key: value for key, value in asked["headers"].items() if key[:2] == "x-" or key in ("forwarded", "proxy")
        }
        assert told == {
            "x-forwarded-for": own,
            "x-real-ip": own,
            "x-forwarded-proto": "http",
            "x-forwarded-host": name,
        }
    else:
        assert "forwarded" not in asked["headers"]
        assert asked["scheme"] == "https"


@pytest.mark.parametrize(
    ("sent", "client", "scheme"),
    [
        ({"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}, "203.0.113.9", "https"),
        ({"X-Forwarded-For": "2001:db8::9", "X-Forwarded-Proto": "http"}, "2001:db8::9", "http"),
        # what comes before the last address that is not trusted is the client's own word
        ({"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 127.0.0.1"}, "203.0.113.9", "http"),
        ({"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher"}, "203.0.113.9", "http"),
    ],
)
def test_a_trusted_proxy_is_believed(address, sent, client, scheme):
    asked = seen(fetch(address, "behind.example", headers=sent))
    assert (asked["client"], asked["headers"]["x-real-ip"], asked["scheme"]) == (client, client, scheme)


def test_a_request_cannot_name_two_hosts(address):
    with socket.create_connection((address, 80), 5) as client:
        client.sendall(b"GET http://shop.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b" 200 OK" in answer
    assert b"evil.example" not in answer


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("name", ["other.example", "192.0.2.1", "example", "wsgi-fleet.invalid", "localhost"])
def test_unknown_names_are_refused(address, name, tls):
    assert fetch(address, name, tls=tls).status == 421


def test_a_name_is_refused_that_has_no_https(address):
    assert fetch(address, "shop.example", tls=True, headers={"Host": "behind.example"}).status == 421


def test_http_is_sent_to_https(address):
    answer = fetch(address, "www.full.example", "/a%2Fb//c?d=%2F", method="POST", body=b"kept")
    assert (answer.status, answer.headers["location"]) == (308, "https://www.full.example/a%2Fb//c?d=%2F")


def test_certificates_and_protocols(address):
    certificate, protocol, version = handshake(address, "full.example", "h2", "http/1.1")
    assert certificate == ssl.PEM_cert_to_DER_cert(CERTIFICATE.read_text())
    assert (protocol, version) == ("http/1.1", "TLSv1.3")  # http2 is false there
    certificate, protocol, _ = handshake(address, "shop.example", "h2", "http/1.1")
    assert certificate != ssl.PEM_cert_to_DER_cert(CERTIFICATE.read_text())
    assert protocol == "h2"
    assert handshake(address, "shop.example", maximum_version=ssl.TLSVersion.TLSv1_2)[2] == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        handshake(address, "shop.example", minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_sessions_resume_without_tickets_and_nothing_is_stapled(address):
    """Tickets have a key that a reload does not change; and we ask no OCSP responder."""
    told = resumption(address, "full.example")
    assert "session ticket" not in told
    assert "OCSP response: no response sent" in told


def test_intermediate_profile(address):
    code, found = scan(address, "full.example", AUTHORITY, "intermediate")
    assert code == 0, found


def test_http2_reaches_the_application(host):
    said = host.check_output(
        "curl -sSk --http2 -w '%{http_version}' https://shop.example/x --resolve shop.example:443:127.0.0.1"
    )
    assert said.endswith("2")
    assert json.loads(said[:-1])["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("size", "headers", "status"),
    [(1024, {}, 200), (1025, {}, 413), (10, {"Transfer-Encoding": "chunked"}, 411)],
)
def test_a_body_has_a_limit(address, size, headers, status):
    body = b"x" * size if not headers else b"5\r\nhello\r\n0\r\n\r\n"
    answer = fetch(address, "full.example", tls=True, method="POST", body=body, headers=headers)
    assert answer.status == status
    if status == 413:
        assert answer.text == "too large"
    large = fetch(address, "shop.example", method="POST", body=b"x" * 3_000_000)
    assert seen(large)["taken"] == 3_000_000


def test_a_late_answer_is_an_error_with_a_page(address):
    answer = fetch(address, "full.example", "/?sleep=6", tls=True)
    assert (answer.status, answer.text) == (502, "<p>Soon back: ”down“ 100% </p>")
    assert 1.5 < answer.seconds < 5.5
    assert answer.headers["x-frame-options"] == "DENY"
    assert fetch(address, "full.example", "/.wsgi-fleet/pages/413.html", tls=True).status == 403
    # an error of the application is its own
    assert "greeting" in fetch(address, "full.example", "/?status=502%20Own", tls=True).text


def test_every_answer_has_headers_of_security_unless_the_application_says_otherwise(address):
    headers = fetch(address, "shop.example").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
    assert "strict-transport-security" not in headers
    assert headers["server"] == "Apache"  # and not the application's
    for path in ("/", "/static/none.css", "/.wsgi-fleet/pages/413.html"):
        headers = fetch(address, "full.example", path, tls=True).headers
        assert headers["x-frame-options"] == "DENY"
        assert "referrer-policy" not in headers
        assert headers["content-security-policy"] == "default-src 'self' \"x\" 50%"
        assert headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
    for status in ("200 OK", "404 Own"):
        path = (
            f"/?status={status.replace(' ', '%20')}&say=X-Frame-Options:SAMEORIGIN|Strict-Transport-Security:max-age=1"
        )
        headers = fetch(address, "full.example", path, tls=True).headers
        assert (headers["x-frame-options"], headers["strict-transport-security"]) == ("SAMEORIGIN", "max-age=1")


def test_static_files(host, address):
    answer = fetch(address, "full.example", "/static/site.css", tls=True, headers={"Accept-Encoding": "gzip"})
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "text/css"
    host.check_output(
        "install -d -m 755 /srv/full/shared/media && echo there > /srv/full/shared/media/x.txt"
        " && ln -sf /etc/hostname /srv/full/shared/media/link && chown -h full /srv/full/shared/media/link"
    )
    answer = fetch(address, "full.example", "/media/x.txt", tls=True)
    assert (answer.text, answer.headers["cache-control"]) == ("there\n", "public, max-age=60")
    assert fetch(address, "full.example", "/media/link", tls=True).status == 403
    assert fetch(address, "full.example", "/media/", tls=True).status in (403, 404)
    for path in ("/static/../../wsgi.py", "/static/%2e%2e/%2e%2e/wsgi.py", "/static/..%2f..%2fwsgi.py"):
        answer = fetch(address, "full.example", path, tls=True)
        assert "start_response" not in answer.text


def test_what_the_live_release_does_not_have_is_looked_for_in_the_next(host, address):
    name = f"/static/{host.backend.host}.css"
    assert fetch(address, "full.example", name, tls=True).status == 404
    live = host.check_output("readlink /srv/full/next")
    try:
        host.check_output("install -D -m 644 /dev/null /srv/full/releases/made/src/build/static%s", name[7:])
        host.check_output("chmod -R o+rX /srv/full/releases/made && ln -sfn releases/made /srv/full/next")
        assert fetch(address, "full.example", name, tls=True).status == 200
    finally:
        host.check_output("ln -sfn %s /srv/full/next && rm -r /srv/full/releases/made", live)


def test_all_paths_are_the_applications(address):
    for path in ("/server-status", "/icons/", "/static", "/cgi-bin/x"):
        assert seen(fetch(address, "full.example", path, tls=True))["uri"] in (path, None)


def test_answers_are_compressed_for_those_who_want_it(address):
    answer = fetch(address, "shop.example", "/?pad=5000", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) < 1000
    assert "content-encoding" not in fetch(address, "shop.example", "/?pad=5000").headers


def test_the_log_has_times_and_is_not_for_everybody(host, address):
    fetch(address, "shop.example", "/logged?sleep=0.3", headers={"User-Agent": 'a"b'})
    log = host.file("/var/log/apache2/shop.access.log").content_string
    line = [line for line in log.splitlines() if "/logged" in line][-1]
    found = re.search(
        r'"GET /logged\S* HTTP/1.1" 200 \d+ .* host=shop.example peer=[\d.]+ tls=- '
        r"request_us=(\d+) first_byte_us=(\d+)$",
        line,
    )
    assert found, line
    assert all(250_000 < int(time) < 5_000_000 for time in found.groups())
    assert host.run("runuser -u nobody -- cat /var/log/apache2/shop.access.log").rc != 0


def test_keys_are_not_for_everybody(host):
    assert (
        host.check_output(
            "stat -c '%U %a' /etc/apache2/wsgi-fleet/tls/full.key /etc/ssl/wsgi-fleet/self-signed.pem"
        ).split("\n")
        == ["root 600"] * 2
    )
