"""The firewall's port for HTTP/3: it follows from a record, and is open on hosts only that speak it."""

from __future__ import annotations

import json
import secrets
import socket

import yaml
from probes import ROOT, fetch, run_playbook, thorough

SANDBOX = ROOT / "inventories" / "sandbox"
INVENTORIES = [SANDBOX, ROOT / "molecule" / "site" / "inventory"]
BALANCER, APP1, APP2 = "10.213.65.10", "10.213.65.21", "10.213.65.22"
SHOP = "shop.sandbox.example"
RECORDS = yaml.safe_load((SANDBOX / "group_vars/all/apps.yml").read_text())["wsgi_apps"]
WITH_HTTP3 = [{**record, "nginx": {**record.get("nginx", {}), "http3": True}} for record in RECORDS]

testinfra_hosts = ["ansible://lb1"]
pytestmark = thorough


def greets(address):
    """What a client of QUIC meets: "open" (a server names its versions), "refused" or "dropped" (no answer)."""
    unknown = bytes.fromhex("c0 1a2a3a4a 08") + secrets.token_bytes(8) + b"\x08" + secrets.token_bytes(8)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.connect((address, 443))
        for _ in range(4):
            try:
                client.send(unknown.ljust(1200, b"\0"))
                return "open" if client.recv(1500)[1:5] == bytes(4) else "something else"
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                continue
    return "dropped"


def converge(*arguments):
    done = run_playbook("site.yml", *arguments, inventories=INVENTORIES)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_firewall_opens_udp_where_http3_is():
    addresses = BALANCER, APP1, APP2
    assert [greets(address) for address in addresses] == ["dropped"] * 3
    try:
        converge("-e", json.dumps({"wsgi_apps": WITH_HTTP3}))
        assert [greets(address) for address in addresses] == ["open", "dropped", "dropped"]
        assert fetch(BALANCER, SHOP, tls=True).headers["alt-svc"].startswith('h3=":443"')
    finally:
        converge()
    assert [greets(address) for address in addresses] == ["dropped"] * 3
