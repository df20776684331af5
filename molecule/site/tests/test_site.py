"""Requests to the converged fleet, as its users and its operators see it."""

from __future__ import annotations

import hashlib
import re
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from probes import ROOT, ansible_environment, connects, fetch, run_playbook, thorough, wait_until

INVENTORIES = [ROOT / "inventories" / "sandbox", ROOT / "molecule" / "site" / "inventory"]
BALANCER = "10.213.65.10"
APP_HOSTS = {"app1": "10.213.65.21", "app2": "10.213.65.22"}
SHOP = "shop.sandbox.example"
HTTPBIN = "httpbin.sandbox.example"

testinfra_hosts = ["ansible://lb1"]


def masters(host, app):
    """Process ids of the gunicorn masters of `app`: those whose parent is supervisord."""
    supervisord = host.check_output("systemctl show -P MainPID supervisord")
    return [
        process.pid
        for process in host.process.filter(ppid=int(supervisord), user=app)
        if "gunicorn" in host.check_output(f"tr '\\0' ' ' </proc/{process.pid}/cmdline")
    ]


@pytest.fixture
def app1(host):
    return host.get_host("ansible://app1", ansible_inventory=host.backend.ansible_inventory)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("site", "path"), [(SHOP, "/healthz"), (HTTPBIN, "/get")])
def test_both_applications_answer_through_the_balancer(site, path, tls):
    assert fetch(BALANCER, site, path, tls=tls).status == 200


def test_every_application_host_gets_requests():
    seen = {fetch(BALANCER, SHOP, "/whoami").text.split('"hostname"')[1].split('"')[1] for _ in range(40)}
    assert seen == set(APP_HOSTS)


def test_unknown_names_are_refused():
    with pytest.raises(ssl.SSLError):
        fetch(BALANCER, "other.example", tls=True)
    with pytest.raises(Exception, match="closed connection without response"):
        fetch(BALANCER, "other.example")


def test_application_hosts_answer_balancers_only():
    assert {name: connects(address, 80) for name, address in APP_HOSTS.items()} == dict.fromkeys(APP_HOSTS, "dropped")


def test_no_request_waits_for_a_sleeping_one():
    with ThreadPoolExecutor(9) as pool:
        sleeper = pool.submit(fetch, BALANCER, SHOP, "/sleep?seconds=4")
        time.sleep(0.5)
        others = list(pool.map(lambda _: fetch(BALANCER, SHOP, "/healthz"), range(8)))
        assert not sleeper.done()
        assert [answer.status for answer in others] == [200] * 8
        assert max(answer.seconds for answer in others) < 2
        assert sleeper.result().status == 200


@pytest.mark.parametrize(
    ("origin", "allowed"), [("https://partner.sandbox.example", True), ("https://evil.example", False)]
)
def test_preflight_of_a_browser(origin, allowed):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = fetch(BALANCER, SHOP, "/upload", method="OPTIONS", headers=headers, tls=True)
    if allowed:
        assert answer.status == 204
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)


def test_upload_beyond_the_default_limit_of_nginx():
    body = b"0123456789abcdef" * (20 * 1024 * 1024 // 16)
    answer = fetch(BALANCER, SHOP, "/upload", method="POST", body=body, tls=True, timeout=60)
    assert answer.status == 200
    assert hashlib.sha256(body).hexdigest() in answer.text


def test_upload_beyond_the_limit_of_the_record_is_refused():
    headers = {"Content-Length": str(60 * 1024 * 1024)}
    assert fetch(BALANCER, SHOP, "/upload", method="POST", body=b"", headers=headers).status == 413


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_application_sees_the_client_and_the_scheme(scheme):
    forged = {"X-Forwarded-For": "198.51.100.99", "X-Forwarded-Proto": "gopher", "X-Real-IP": "198.51.100.98"}
    text = fetch(BALANCER, SHOP, "/whoami", tls=scheme == "https", headers=forged).text
    assert '"remote_addr":"10.213.65.1"' in text.replace(" ", "")  # this machine's address on the fleet's network
    assert f'"scheme":"{scheme}"' in text.replace(" ", "")
    assert '"remote_addr":"198.51.100' not in text.replace(" ", "")


def test_installed_collection_gives_the_same_result(tmp_path):
    # No configuration but the path: what somebody has who took the collection from Galaxy.
    elsewhere = ansible_environment(ANSIBLE_CONFIG="", ANSIBLE_COLLECTIONS_PATH=str(tmp_path))
    build = ["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, env=ansible_environment(), check=True)
    (archive,) = tmp_path.glob("wsgi-fleet-*.tar.gz")
    install = ["ansible-galaxy", "collection", "install", str(archive), "--no-deps", "--offline"]
    subprocess.run([*install, "--collections-path", str(tmp_path)], cwd=tmp_path, env=elsewhere, check=True)
    done = subprocess.run(
        ["ansible-playbook", "wsgi.fleet.site", *(f"--inventory={path}" for path in INVENTORIES)],
        cwd=tmp_path,
        env=elsewhere,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, done.stdout


@thorough
def test_mitogen_gives_the_same_result():
    done = run_playbook("site.yml", inventories=INVENTORIES, ANSIBLE_STRATEGY="wsgi.fleet.mitogen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mitogen cannot be used" not in done.stderr
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, done.stdout


def test_supervisor_brings_a_killed_master_back(app1):
    before = masters(app1, "shop")
    assert len(before) == 2
    app1.check_output(f"kill -KILL {before[0]}")
    wait_until(lambda: len(set(masters(app1, "shop")) - set(before)) == 1, what="a new master")
    wait_until(lambda: len(masters(app1, "shop")) == 2, what="two masters")
    assert fetch(BALANCER, SHOP, "/healthz").status == 200


def test_gunicorn_brings_a_killed_worker_back(app1):
    master = masters(app1, "shop")[0]
    workers = app1.check_output(f"pgrep -P {master}").split()
    app1.check_output(f"kill -KILL {workers[0]}")
    wait_until(
        lambda: len(set(app1.check_output(f"pgrep -P {master}").split()) - set(workers)) >= 1, what="a new worker"
    )
    assert masters(app1, "shop")[0] == master


def test_secrets_are_for_their_application_only(app1):
    assert app1.file("/etc/wsgi-fleet/shop/env").mode == 0o640
    assert app1.run("runuser -u httpbin -- cat /etc/wsgi-fleet/shop/env").rc != 0
    assert app1.run("runuser -u shop -- cat /etc/wsgi-fleet/shop/env").rc == 0
    assert app1.run("runuser -u shop -- touch /srv/shop/current/src/x").rc != 0
    assert app1.run("runuser -u httpbin -- ls /srv/shop/current/").rc != 0


def test_fleet_serves_again_after_a_reboot(app1):
    """Last, as it ends every process: the other application host serves meanwhile, this one comes back without help."""
    boot = app1.check_output("cut -d' ' -f22 /proc/1/stat")
    app1.run("systemd-run sh -c 'sleep 1; systemctl reboot'")  # or the connection may end before the answer
    wait_until(lambda: app1.check_output("cut -d' ' -f22 /proc/1/stat") != boot, 60, "the host to come back")
    wait_until(lambda: len(masters(app1, "shop")) == 2 and len(masters(app1, "httpbin")) == 2, 60, "the applications")
    assert wait_until(
        lambda: '"app1"' in fetch(BALANCER, SHOP, "/whoami").text, 60, "the balancer to find the host again"
    )
