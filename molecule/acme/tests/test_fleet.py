"""One key of a record, and site.yml does the rest, on two balancers for one name. Last: it replaces their sites."""

from __future__ import annotations

import json
import ssl
import urllib.request

import pytest
from certificates import SECRET, SSH, age, is_issued, served, where
from probes import ROOT, connects, fetch, run_playbook, thorough, wait_until

testinfra_hosts = ["ansible://debian12"]


@pytest.fixture(scope="module")
def play(host):
    """Runs a playbook on the balancers, and returns what it said."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    root = f"https://{where(host, 'ca')}:15000/roots/0"
    (ROOT / ".cache" / "acme" / "root.crt").write_bytes(urllib.request.urlopen(root, context=context).read())

    def run(playbook, *options):
        places = [host.backend.ansible_inventory, ROOT / "molecule" / "acme" / "fleet"]
        environment = {"ANSIBLE_SSH_COMMON_ARGS": SSH, "MOLECULE_PROJECT_DIRECTORY": str(ROOT)}
        done = run_playbook(playbook, "--limit", "balancers", *options, inventories=places, **environment)
        said = done.stdout + done.stderr
        assert SECRET not in said
        return done.returncode, said

    return run


def changed(said):
    return {
        line.split()[0]: int(line.partition("changed=")[2].split()[0])
        for line in said.splitlines()
        if "changed=" in line
    }


def test_balancers_have_certificates_and_renew_them(host, play):
    code, said = play("site.yml", "--diff")
    assert code == 0, said
    for name in ("debian12", "debian13"):
        address = where(host, name)
        wait_until(lambda address=address: is_issued(served(address, "shop.example.test")), 10, name)
        assert [connects(address, port) for port in (80, 443, 8079)] == ["open", "open", "dropped"]
    assert host.check_output("/etc/wsgi-fleet/acme/renew --due") == ""
    assert host.service("wsgi-fleet-acme.timer").is_running
    assert not host.file("/var/lib/wsgi-fleet/acme/live/good.pem").exists  # of another inventory


@thorough
def test_second_run_changes_nothing(play):
    code, said = play("site.yml", "--diff")
    assert code == 0, said
    assert changed(said) == {"debian12": 0, "debian13": 0}


def test_status_tells_how_long_certificates_last(play):
    code, said = play("playbooks/status.yml")
    assert code != 0  # there is no application
    rows = [line.split() for line in said.splitlines() if "https://shop.example.test/" in line]
    for name in ("debian12", "debian13"):
        assert any(row[0] == name and row[4:6] == ["89", "days"] for row in rows), said


@thorough
def test_certificates_are_renewed_in_maintenance(host, play):
    site, address = "shop.example.test", where(host, "debian12")
    code, said = play("playbooks/maintenance.yml", "--extra-vars", "wsgi_maintenance=on")
    assert code == 0, said
    try:
        for tls in (False, True):
            answer = fetch(address, site, tls=tls)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
        assert fetch(address, site, "/.well-known/acme-challenge/none").status == 404
        age(host, address, "shop")
        host.check_output("systemctl start wsgi-fleet-acme.service")
        wait_until(lambda: is_issued(served(address, site)), 10, "the new certificate")
        assert fetch(address, site, tls=True).status == 503
    finally:
        code, said = play("playbooks/maintenance.yml", "--extra-vars", "wsgi_maintenance=off")
    assert code == 0, said
    assert "retry-after" not in fetch(address, site, tls=True).headers


@thorough
def test_the_last_certificate_takes_all_else_along(host, play):
    """An application that says nothing of ACME any more is enough."""
    source = {"package": "shop", "version": "1.0"}
    apps = [{"name": "shop", "domains": ["shop.example.test"], "source": source, "callable": "shop:app"}]
    for first in (True, False):
        code, said = play("site.yml", "--extra-vars", json.dumps({"wsgi_apps": apps}))
        assert code == 0, said
        assert {bool(number) for number in changed(said).values()} == {first}
    for name in ("debian12", "debian13"):
        assert not is_issued(served(where(host, name), "shop.example.test"))
    assert host.run("ls /etc/wsgi-fleet/acme /var/lib/wsgi-fleet/acme/live/shop.pem").stdout.strip() == ""
    assert "wsgi-fleet-acme" not in host.check_output("systemctl list-timers --all")
    assert host.run("nginx -t").rc == 0
