"""Certificates as clients are given them, and what becomes of them when things go wrong."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import SECRET, SSH, is_issued, served
from probes import ROOT, ansible_environment, fetch, run_playbook, thorough, wait_until

testinfra_hosts = ["ansible://systems_under_test"]

HOME = "/var/lib/wsgi-fleet/acme"


def name(host):
    return host.backend.get_hostname()


@pytest.fixture
def address(host):
    return host.ansible.get_variables()["ansible_host"]


def inventories(host):
    folders = [ROOT / "molecule" / "shared" / "inventory", ROOT / "molecule" / "acme" / "inventory"]
    return [Path(host.backend.ansible_inventory).parent, *folders]


def apply(host, *options, **variables):
    """Run the roles on one host, and return how many tasks changed something, and all that was said."""
    extra = ["--limit", name(host), "--extra-vars", json.dumps(variables), "--diff", *options]
    where = {"ANSIBLE_SSH_COMMON_ARGS": SSH, "MOLECULE_PROJECT_DIRECTORY": str(ROOT)}
    done = run_playbook("molecule/acme/converge.yml", *extra, inventories=inventories(host), **where)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in said
    return int(done.stdout.rpartition("changed=")[2].split()[0]), said


def serial(text):
    return next(line for line in text.splitlines() if line.startswith("serial="))


@contextmanager
def unreachable_server(host):
    host.check_output("cp /etc/hosts /root/hosts && echo 127.0.0.1 ca >>/etc/hosts")
    try:
        yield
    finally:
        host.check_output("cat /root/hosts >/etc/hosts")


def forget_failures(host):
    """An operator who has mended the cause need not wait."""
    host.check_output(f"rm -f {HOME}/failed/*")


# --- what was converged


@pytest.mark.parametrize("site", ["good", "other"])
def test_certificate_is_served(address, site):
    """Debian 13 too: all names lead to Debian 12, which passed the challenges on."""
    text = served(address, f"{site}.example.test")
    assert is_issued(text)
    assert f"DNS:{site}.example.test" in text
    assert "id-ecPublicKey" in text


def test_one_certificate_has_all_names_of_a_site(address):
    text = served(address, "www.good.example.test")
    assert "DNS:good.example.test, DNS:www.good.example.test" in text


def test_name_that_cannot_be_proven_keeps_the_stand_in(host, address):
    assert not is_issued(served(address, "bad.example.test"))
    assert host.file(f"{HOME}/live/bad.pem").is_symlink
    assert "bad.example.test" in host.file(f"{HOME}/failed/bad").content_string


def test_keys_are_for_root_only(host):
    modes = host.check_output(f"find {HOME} /etc/wsgi-fleet/acme -type f -name '*.pem' -printf '%m %p\\n'").splitlines()
    assert {line.split()[0] for line in modes if "privkey" in line or "/live/" in line} == {"600"}
    assert host.file("/etc/wsgi-fleet/acme/certbot.ini").mode == 0o600


def test_timer_has_a_moment_of_its_own(host):
    assert host.service("wsgi-fleet-acme.timer").is_enabled
    assert host.service("wsgi-fleet-acme.timer").is_running
    text = host.check_output("systemctl show wsgi-fleet-acme.timer -p RandomizedDelayUSec -p FixedRandomDelay")
    assert sorted(text.splitlines()) == ["FixedRandomDelay=yes", "RandomizedDelayUSec=12h"]


def test_challenge_path_is_open_and_nothing_else(address):
    path = "/.well-known/acme-challenge/none"
    assert fetch(address, "good.example.test", path).status == 404  # no redirection to HTTPS
    assert fetch(address, "good.example.test", "/").status == 308
    assert fetch(address, "good.example.test", "/.well-known/acme-challenge/../../live/good.pem").status in (
        400,
        404,
        308,
    )


def test_second_run_changes_nothing(host):
    changed, said = apply(host)
    assert changed == 0
    assert "bad" not in said.partition("Get what is due")[2]  # it failed minutes ago: the server is left in peace


# --- what happens later


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


@contextmanager
def aged(host, address, site):
    """The site's certificate is near its end."""
    live = f"{HOME}/live/{site}.pem"
    program = shlex.quote(AGED)
    host.check_output(
        f"(umask 077; head -n 1 {live}; python3 -W ignore -c {program}) >/root/aged && mv /root/aged {live}"
    )
    host.check_output("systemctl reload nginx")
    wait_until(lambda: not is_issued(served(address, f"{site}.example.test")), 10, "the aged certificate")
    yield


def test_renewal_by_the_timers_service(host, address):
    """It is served without a restart, and what is not due stays as it is."""
    nginx, other = host.check_output("cat /run/nginx.pid"), serial(served(address, "other.example.test"))
    with aged(host, address, "good"):
        assert host.check_output("/etc/wsgi-fleet/acme/renew --due") == "good"
        host.run("systemctl start wsgi-fleet-acme.service")
        wait_until(lambda: is_issued(served(address, "good.example.test")), 10, "the new certificate")
    assert serial(served(address, "other.example.test")) == other
    assert host.check_output("cat /run/nginx.pid") == nginx


@thorough
def test_server_is_down(host, address):
    """What is served stays; the reason is told; when the server is back, a run brings what is due."""
    if name(host) == "debian12":
        with aged(host, address, "good"):
            before = serial(served(address, "good.example.test"))
            with unreachable_server(host):
                changed, said = apply(host)
                assert changed == 0
                assert "Without a new certificate on debian12" in said
                assert "good: " in said
                assert "refused" in said
            assert serial(served(address, "good.example.test")) == before
            assert apply(host)[0] == 0  # not at once again: public servers shut those out who ask too often
            forget_failures(host)
            assert apply(host)[0] == 1
            wait_until(lambda: is_issued(served(address, "good.example.test")), 10, "the new certificate")
        assert apply(host)[0] == 0


def serves_rsa(address, site):
    return "Public Key Algorithm: rsaEncryption" in served(address, site)


@thorough
def test_other_kind_of_key_and_other_names(host, address):
    if name(host) == "debian13":
        wanted = [
            {"name": "good", "domains": ["good.example.test"]},
            {"name": "other", "domains": ["other.example.test", "www.good.example.test"]},
        ]
        changed, said = apply(host, acme_key_type="rsa", acme_certificates=wanted)
        assert changed >= 2
        for site, names in (
            ("good", "DNS:good.example.test"),
            ("other", "DNS:other.example.test, DNS:www.good.example.test"),
        ):
            served_rsa = functools.partial(serves_rsa, address, f"{site}.example.test")
            wait_until(served_rsa, 10, site)
            text = served(address, f"{site}.example.test")
            assert is_issued(text)
            assert sorted(names.split(", ")) == sorted(
                word.strip() for word in text.partition("Alternative Name:")[2].splitlines()[1].split(",")
            )
        assert "bad: is not wanted any more, but the web server still asks for it" in said
        assert host.file(f"{HOME}/live/bad.pem").exists
        forget_failures(host)
        apply(host)
        wait_until(lambda: "id-ecPublicKey" in served(address, "good.example.test"), 10, "the old kind")


def test_wrong_input_is_refused(host):
    if name(host) == "debian13":
        wrong = {"acme_certificates": [{"name": "Bad", "domains": ["*.example.test"]}], "acme_server": "http://ca"}
        with pytest.raises(AssertionError) as refused:
            apply(host, **wrong)
        said = " ".join(str(refused.value).split())
        for message in ("(Bad): name: give", "*.example.test is no name that can be proven", "is no https:// URL"):
            assert message in said


# --- profiles


def scan(address, profile):
    """What a scanner finds against one of Mozilla's recommendations."""
    program = ROOT / ".cache" / "acme" / "scanner" / "bin" / "sslyze"
    authority = ROOT / ".cache" / "acme" / "company-ca.crt"
    words = [
        program,
        "--sni",
        "company.example.test",
        "--mozilla_config",
        profile,
        "--certinfo_ca_file",
        authority,
        address,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ansible_environment())
    return done.returncode, done.stdout


def test_intermediate_profile(address):
    code, found = scan(address, "intermediate")
    assert code == 0, found
    assert scan(address, "modern")[0] != 0  # it tells them apart


def test_modern_profile(host, address):
    if name(host) == "debian13":
        apply(host, nginx_tls_profile="modern")
        try:
            code, found = scan(address, "modern")
            assert code == 0, found
        finally:
            apply(host)
