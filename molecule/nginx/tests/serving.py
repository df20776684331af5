"""What the tests of nginx share: asking it, from outside and from its host."""

from __future__ import annotations

import http.client
import json
import socket
import ssl

import pytest
from probes import ROOT, fetch

CACHE = ROOT / ".cache" / "nginx"
CERTIFICATE = CACHE / "certificate.pem"
KEY = CACHE / "key.pem"


def where(host):
    """The host's address."""
    return host.ansible.get_variables()["ansible_host"]


def asked(answer):
    """What a backend says it was asked."""
    assert answer.status == 200, answer
    return json.loads(answer.body)


def inside(host, port, name, path="/", address="127.0.0.1", **headers):
    """What a backend says it was asked, when the host itself asks nginx."""
    program = (
        "import http.client, json, sys; address, port, name, path, headers = json.loads(sys.argv[1]);"
        "connection = http.client.HTTPConnection(address, port, timeout=5);"
        "connection.request('GET', path, headers={'Host': name, **headers});"
        "print(connection.getresponse().read().decode())"
    )
    return json.loads(host.check_output("python3 -c %s %s", program, json.dumps([address, port, name, path, headers])))


def certificate(address, name, **kwargs):
    """The certificate that is served, and the connection's TLS version and application protocol."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    for option, value in kwargs.items():
        setattr(context, option, value)
    with socket.create_connection((address, 443), 5) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
        return pem.strip(), tls.version(), tls.selected_alpn_protocol()


def digest(host):
    return inside_text(host, "/config")


def inside_text(host, path):
    program = "import sys, urllib.request as r; print(r.urlopen('http://127.0.0.1:8079' + sys.argv[1]).read().decode())"
    return host.check_output("python3 -c %s %s", program, path)


def is_refused(address, name, **kwargs):
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(address, name, **kwargs)
    return True
