"""What the tests of certificates share: asking for them as clients do, and what the authority thinks of them."""

from __future__ import annotations

import json
import shlex
import socket
import ssl
import subprocess
from contextlib import contextmanager

from probes import wait_until

HOME = "/var/lib/wsgi-fleet/acme"
SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
SECRET = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"  # of the external account
# makes a certificate that has lived for 89 of its 90 days; certbot's own library is on the host
AGED = """
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "aged")])
now = datetime.datetime.utcnow()
made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=89))
made = made.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
kind = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
pem = serialization.Encoding.PEM
print(key.private_bytes(pem, *kind).decode() + made.public_bytes(pem).decode())
"""


def known(host, name):
    """Another of the scenario's hosts."""
    return host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)


def where(host, name):
    """The address of one of the scenario's hosts."""
    return known(host, name).ansible.get_variables()["ansible_host"]


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


def age(host, address, *sites):
    """Bring the sites' certificates near their end."""
    for site in sites:
        live = f"{HOME}/live/{site}.pem"
        program = shlex.quote(AGED)
        host.check_output(
            f"(umask 077; head -n 1 {live}; python3 -W ignore -c {program}) >/root/aged && mv /root/aged {live}"
        )
    host.check_output("systemctl reload nginx")
    for site in sites:
        wait_until(lambda name=f"{site}.example.test": not is_issued(served(address, name)), 10, "the aged certificate")


@contextmanager
def leads_elsewhere(host, name):
    """The name leads to the authority's own host, which has no web server."""

    def tell(path, **more):
        body = json.dumps({"host": f"{name}.", **more})
        authority.check_output("curl -sSf --data %s %s", body, f"http://127.0.0.1:8055/{path}")

    authority = known(host, "ca")
    tell("add-a", addresses=[where(host, "ca")])
    try:
        yield
    finally:
        tell("clear-a")


def forget_failures(host):
    """An operator who has mended the cause need not wait."""
    host.check_output(f"rm -f {HOME}/failed/*")
