"""What the tests of certificates share: asking for them as clients do."""

from __future__ import annotations

import socket
import ssl
import subprocess

SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
SECRET = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"  # of the external account


def where(host, name):
    """The address of one of the scenario's hosts."""
    other = host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
    return other.ansible.get_variables()["ansible_host"]


def served(address, name):
    """What openssl says of the certificate that a client is given."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((address, 443), 5) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
    asked = ["openssl", "x509", "-noout", "-issuer", "-serial", "-ext", "subjectAltName", "-text"]
    return subprocess.run(asked, input=pem, capture_output=True, text=True, check=True).stdout


def is_issued(text):
    """Whether the ACME server has made it."""
    return "CN = Pebble Intermediate CA" in text or "CN=Pebble Intermediate CA" in text
