"""The probe against real servers on loopback and on a Unix socket."""

from __future__ import annotations

import http.server
import socketserver
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.probing import ask, days_left, url_of

TARGET = {"name": "x", "address": None, "port": None, "socket": None, "host": "shop.example", "path": "/", "tls": False}
TARGET["verify"] = True


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Host"] == "shop.example"
        self.send_response(int(self.path.strip("/") or 200) if known else 421)
        self.end_headers()
        self.wfile.write(b"body")

    def log_message(self, *_):
        pass

    def address_string(self):
        return "client"


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 204, 302, 404, 503])
def test_status_is_returned(status):
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)) as (address, port):
        answer = ask(TARGET | {"address": address, "port": port, "path": f"/{status}"}, 5)
    assert (answer["status"], answer["error"]) == (status, "")


def test_unix_socket(tmp_path):
    path = str(tmp_path / "site.sock")
    with serving(UnixServer(path, Site)):
        assert ask(TARGET | {"socket": path}, 5)["status"] == 200


@pytest.mark.parametrize(("verify", "status"), [(False, 200), (True, 0)])
def test_tls_asks_for_the_host_by_name(tmp_path, verify, status):
    pem = tmp_path / "pair.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=shop.example",
            "-keyout",
            "key",
            "-out",
            "crt",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    pem.write_text((tmp_path / "key").read_text() + (tmp_path / "crt").read_text())
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as (address, port):
        answer = ask(TARGET | {"address": address, "port": port, "tls": True, "verify": verify}, 5)
    assert answer["status"] == status
    assert names == ["shop.example"]
    assert ("certificate" in answer["error"]) is verify
    assert answer.get("days_left") == (None if verify else 0)  # it has a day, less the moment that this took
    trusted = {"ca": (tmp_path / "crt").read_text(), "verify": True}
    assert days_left(ssl.PEM_cert_to_DER_cert(trusted["ca"]), time.time() + 3 * 86400) == -3


@pytest.mark.parametrize("text", [b"", b"0", b"0\x82\xff\xff", bytes(40)])
def test_no_certificate_has_no_days(text):
    assert days_left(text, 0) is None


def test_no_answer_is_an_answer_with_its_reason():
    answer = ask(TARGET | {"address": "127.0.0.1", "port": 1}, 5)
    assert answer["status"] == 0
    assert "refused" in answer["error"]


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ({"path": "/healthz"}, "http://shop.example/healthz"),
        ({"tls": True}, "https://shop.example/"),
        ({"tls": True, "port": 8443}, "https://shop.example:8443/"),
        ({"port": 80}, "http://shop.example/"),
    ],
)
def test_url_is_what_a_person_would_type(target, url):
    assert url_of(TARGET | target) == url
