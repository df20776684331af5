"""Certificates as clients are given them, and what becomes of them when things go wrong."""

from __future__ import annotations

import base64
import functools
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import HOME, SECRET, SSH, age, forget_failures, is_issued, known, leads_elsewhere, served, where
from probes import ROOT, Visitors, fetch, run_playbook, thorough, wait_until
from tls import resumption, scan

testinfra_hosts = ["ansible://systems_under_test"]


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


# --- what was converged


@pytest.mark.parametrize("site", ["good", "other", "staff"])
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
    ask = "systemctl show wsgi-fleet-acme.timer -p NextElapseUSecRealtime --value"
    moment = host.check_output(ask)
    assert moment
    host.check_output("systemctl daemon-reload")
    assert host.check_output(ask) == moment
    (other,) = {"debian12", "debian13"} - {name(host)}
    assert known(host, other).check_output(ask) != moment


def test_challenge_path_is_open_and_nothing_else(address):
    path = "/.well-known/acme-challenge/none"
    assert fetch(address, "good.example.test", path).status == 404  # no redirection to HTTPS
    assert fetch(address, "good.example.test", "/").status == 308
    assert fetch(address, "good.example.test", "/.well-known/acme-challenge/../../live/good.pem").status in (
        400,
        404,
        308,
    )


@pytest.fixture
def challenge(host):
    """The path of a proof that this host alone has."""
    path = f"/.well-known/acme-challenge/of-{name(host)}"
    file = f"{HOME}/challenges{path}"
    host.check_output(
        f"mkdir -p {HOME}/challenges/.well-known/acme-challenge && echo proof >{file} && chmod 644 {file}"
    )
    yield path
    host.check_output(f"rm {file}")


def test_challenge_path_is_open_where_a_site_is_not(host, address, challenge):
    """On the host that has the proof, and through the other, which asks it."""
    password = {"Authorization": "Basic " + base64.b64encode(b"ann:secret").decode()}
    assert fetch(address, "staff.example.test", headers=password).text == "page"
    for site, status in (("staff.example.test", 401), ("inside.example.test", 403)):
        for one in ("debian12", "debian13"):
            answer = fetch(where(host, one), site, challenge)
            assert (answer.status, answer.text) == (200, "proof\n")
            assert fetch(where(host, one), site, challenge + "-not").status == 404
        for path in ("/", "/.well-known/", "/.well-known/acme-challenges"):
            assert fetch(address, site, path).status == status
            assert fetch(address, site, path, tls=True).status == status


def test_second_run_changes_nothing(host):
    changed, said = apply(host)
    assert changed == 0
    assert "bad" not in said.partition("Get what is due")[2]  # it failed minutes ago: the server is left in peace


# --- what happens later


RENEWAL = "wsgi-fleet-acme.service"


def test_renewal_by_the_timers_service(host, address, tmp_path):
    """It is served without a restart, no visitor is lost, and what is not due stays as it is."""
    nginx, other = host.check_output("cat /run/nginx.pid"), serial(served(address, "other.example.test"))
    with Visitors(tmp_path, address, "good.example.test", "tls", "get", connections=10, pause=0.05) as visitors:
        age(host, address, "good")
        assert host.check_output("/etc/wsgi-fleet/acme/renew --due") == "good"
        host.run(f"systemctl start {RENEWAL}")
        wait_until(lambda: is_issued(served(address, "good.example.test")), 10, "the new certificate")
    assert visitors.seen["failed"] == {}
    assert visitors.seen["requests"] > 50
    assert set(visitors.seen["answers"]) == {"page"}
    assert serial(served(address, "other.example.test")) == other
    assert host.check_output("cat /run/nginx.pid") == nginx


@thorough
def test_one_that_cannot_be_renewed_stops_no_other(host, address):
    """It keeps what it had; the host tells which one and why, and gets it once it can."""
    age(host, address, "good", "other")
    old = served(address, "good.example.test")
    with leads_elsewhere(host, "good.example.test"):
        begun = host.check_output("date +%s")
        assert host.run(f"systemctl start {RENEWAL}").rc != 0
        wait_until(lambda: is_issued(served(address, "other.example.test")), 10, "the new certificate")
    assert served(address, "good.example.test") == old
    assert served(address, "www.good.example.test") == old
    assert host.check_output(f"systemctl is-failed {RENEWAL}") == "failed"
    told = host.check_output(f"journalctl --unit {RENEWAL} --since @{begun} --output cat")
    assert "got: other" in told
    failure = host.file(f"{HOME}/failed/good").content_string
    for text in (failure, told.partition("missed: good: ")[2].partition("\n")[0]):
        assert "Type: connection" in text
        assert "/.well-known/acme-challenge/" in text
    assert not host.file(f"{HOME}/failed/other").exists
    assert host.check_output("systemctl is-active wsgi-fleet-acme.timer") == "active"
    assert host.check_output("/etc/wsgi-fleet/acme/renew --due") == ""  # in peace for a while
    forget_failures(host)
    assert host.check_output("/etc/wsgi-fleet/acme/renew --due").split() == ["bad", "good"]
    host.run(f"systemctl start {RENEWAL}")
    wait_until(lambda: is_issued(served(address, "good.example.test")), 10, "the new certificate")
    assert not host.file(f"{HOME}/failed/good").exists


@thorough
def test_wrong_key_of_an_external_account_is_told(host, address):
    """By a host that has no account yet, and whose certificate of before stays."""
    if name(host) == "debian13":
        wrong = SECRET[::-1]
        accounts = f"{HOME}/certbot/accounts"
        age(host, address, "good")
        old = served(address, "good.example.test")
        host.check_output(f"mv {accounts} /root/accounts")
        try:
            begun = host.check_output("date +%s")
            _, said = apply(host, acme_eab_hmac_key=wrong)
            assert "Without a new certificate on debian13" in said
            assert "external account binding" in said.partition("good: ")[2]
            assert served(address, "good.example.test") == old
            told = host.check_output(f"journalctl --since @{begun} --output cat")
            logs = host.check_output(f"grep -rh '' {HOME}/messages {HOME}/failed /var/log/wsgi-fleet")
            assert "eab-hmac-key" in host.file("/etc/wsgi-fleet/acme/certbot.ini").content_string
            assert wrong not in said + told + logs
        finally:
            host.check_output(f"rm -rf {accounts} && mv /root/accounts {accounts}")
            forget_failures(host)
            apply(host)
        wait_until(lambda: is_issued(served(address, "good.example.test")), 10, "the new certificate")


@thorough
def test_server_is_down(host, address):
    """What is served stays; the reason is told; when the server is back, a run brings what is due."""
    if name(host) == "debian12":
        age(host, address, "good")
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

COMPANY = "company.example.test"
AUTHORITY = ROOT / ".cache" / "acme" / "company-ca.crt"


def test_sessions_resume_without_tickets_and_nothing_is_stapled(address):
    """Tickets have a key that a reload does not change; and we ask no OCSP responder."""
    told = resumption(address, COMPANY)
    assert "session ticket" not in told
    assert "OCSP response: no response sent" in told


def test_intermediate_profile(address):
    code, found = scan(address, COMPANY, AUTHORITY, "intermediate")
    assert code == 0, found
    assert scan(address, COMPANY, AUTHORITY, "modern")[0] != 0  # it tells them apart


def test_modern_profile(host, address):
    if name(host) == "debian13":
        apply(host, nginx_tls_profile="modern")
        try:
            code, found = scan(address, COMPANY, AUTHORITY, "modern")
            assert code == 0, found
        finally:
            apply(host)
