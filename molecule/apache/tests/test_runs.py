"""Runs again, breaks, deploys under load, and changes the front. The order counts; the last leaves all as it was."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import probes
import pytest
import testinfra
import yaml
from probes import ROOT, connects, fetch, run_playbook, thorough, wait_until
from test_apache import AUTHORITY
from tls import handshakes, scan

SCENARIO = ROOT / "molecule" / "apache"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
CONFIG = "curl -s http://127.0.0.1:8079/config"

testinfra_hosts = ["ansible://debian13"]


@pytest.fixture(scope="module")
def other(request):
    """The other host, which becomes an application host behind this one."""
    inventory = request.config.option.ansible_inventory
    return testinfra.get_host("ansible://debian12", ansible_inventory=inventory)


def play(host, playbook, *arguments, inventory=None, **variables):
    """Run a playbook of the project, against the host of the test alone unless another inventory says which."""
    own = [ROOT / "molecule/shared/inventory", SCENARIO / "inventory", Path(host.backend.ansible_inventory)]
    only = [] if inventory else [f"--limit={host.backend.host}"]
    return run_playbook(
        playbook,
        *only,
        *arguments,
        "-e",
        json.dumps(variables),
        inventories=[inventory] if inventory else own,
        MOLECULE_PROJECT_DIRECTORY=str(ROOT),
    )


def records(**changes):
    """The scenario's applications, with `changes` laid over the first."""
    inventory = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())
    found = inventory["linux_apps"]["vars"]["records"]
    found[0] |= changes
    return found


def changes(done):
    """How many tasks changed something on each host, of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return {name: int(changed) for name, _, changed, _, _ in RECAP.findall(done.stdout) if name != "localhost"}


def said(done):
    return " ".join((done.stdout + done.stderr).split())


def address(host):
    return host.backend.get_variables()["ansible_host"]


def processes(host):
    return set(host.run("pgrep -x apache2 -U root").stdout.split())


class Visitors(probes.Visitors):
    def __init__(self, host, directory):
        super().__init__(directory, address(host), "shop.example", connections=10, pause=0.05)


def test_no_request_is_lost_in_reloads_and_deploys(host, tmp_path):
    before = processes(host)
    with Visitors(host, tmp_path) as visitors:
        for _ in range(3):
            host.check_output("systemctl reload apache2")
            time.sleep(1)
        greeting = {"env": {"GREETING": "again"}}
        done = play(host, "playbooks/deploy.yml", wsgi_apps=records(**greeting), wsgi_apps_only="shop")
        assert changes(done)["debian13"] > 0
    assert visitors.seen["failed"] == {}
    assert visitors.seen["requests"] > 50
    assert processes(host) == before  # reloaded, never restarted
    assert json.loads(fetch(address(host), "shop.example").text)["greeting"] == "again"


@thorough
def test_a_release_that_is_not_well_behind_apache_never_stays(host):
    before = fetch(address(host), "shop.example").text
    broken = records(env={"BROKEN": "500 Broken"}, trial=False, health_timeout=3)
    done = play(host, "playbooks/deploy.yml", wsgi_apps=broken, wsgi_apps_only="shop")
    assert done.returncode == 2
    assert "500" in said(done)
    assert json.loads(fetch(address(host), "shop.example").text)["greeting"] == json.loads(before)["greeting"]


def test_what_is_wrong_is_refused_before_anything_changes(host):
    """A key of another certificate, and a file of somebody else's."""
    before = host.check_output(CONFIG)
    command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    key = subprocess.run(command, capture_output=True, text=True, check=True)
    wrong = records()
    wrong[1]["nginx"]["tls"]["key"] = key.stdout
    done = play(host, "site.yml", "--tags=apache", wsgi_apps=wrong)
    assert done.returncode == 2
    assert "The key is not that of the certificate" in said(done)
    assert key.stdout.split("\n")[1] not in said(done)
    other = "/etc/apache2/sites-enabled/theirs.conf"
    host.check_output(f"printf 'Nonsense on\\n' > {other}")
    try:
        changed = records(nginx={"client_max_body_size": "9m"})
        done = play(host, "site.yml", "--tags=apache", wsgi_apps=changed)
        assert done.returncode == 2
        assert "Nonsense" in said(done)
        assert other in said(done)
    finally:
        host.check_output(f"rm {other}")
    assert host.check_output(CONFIG) == before
    assert fetch(address(host), "full.example", tls=True).status == 200


@thorough
def test_a_reload_that_is_owed_is_made_up_for(host):
    config = "/etc/apache2/sites-enabled/000-default.conf"
    wanted = host.check_output(CONFIG)
    host.check_output(
        f"cp -p {config} /tmp/kept && sed -i s/{wanted}/{'0' * 64}/ {config} && systemctl reload apache2 && sleep 2"
    )
    host.check_output(f"cp -p /tmp/kept {config}")
    assert host.check_output(CONFIG) == "0" * 64
    assert changes(play(host, "site.yml", "--tags=apache")) == {"debian13": 1}
    assert host.check_output(CONFIG) == wanted
    assert changes(play(host, "site.yml", "--tags=apache")) == {"debian13": 0}


def gives_tickets(host):
    return "session ticket" in handshakes(address(host), "full.example", "-tls1_2")


@thorough
def test_what_somebody_changed_and_reloaded_is_undone_where_it_runs(host):
    config = "/etc/apache2/apache2.conf"
    host.check_output(f"sed -i 's/^SSLSessionTickets Off$/SSLSessionTickets On/' {config} && systemctl reload apache2")
    wait_until(lambda: gives_tickets(host))
    assert changes(play(host, "site.yml", "--tags=apache"))["debian13"] > 0
    wait_until(lambda: not gives_tickets(host))
    assert changes(play(host, "site.yml", "--tags=apache")) == {"debian13": 0}


@thorough
def test_modern_profile(host):
    site = "full.example"
    code, found = scan(address(host), site, AUTHORITY, "modern")
    assert code != 0
    assert "certificate" not in found.rpartition("FAILED - Not compliant")[2]  # it is the configuration that differs
    try:
        assert changes(play(host, "site.yml", "--tags=apache", apache_tls_profile="modern"))["debian13"] > 0
        code, found = scan(address(host), site, AUTHORITY, "modern")
        assert code == 0, found
        assert "alert protocol version" in handshakes(address(host), site, "-tls1_2")
        assert fetch(address(host), site, tls=True).status == 200
    finally:
        restored = play(host, "site.yml", "--tags=apache")
    assert changes(restored)["debian13"] > 0
    assert "Cipher is ECDHE" in handshakes(address(host), site, "-tls1_2")


def test_status_is_told_and_maintenance_refused(host):
    done = play(host, "playbooks/status.yml")
    assert changes(done) == {"debian13": 0}
    assert re.search(r"debian13 +shop .*https://shop.example/healthz .* 200 in", done.stdout)
    done = play(host, "playbooks/maintenance.yml", wsgi_maintenance="on")
    assert done.returncode == 2
    assert "app shop has Apache in front where clients come in (host debian12)" in said(done)


@pytest.fixture
def balanced(host, other, tmp_path):
    """Another inventory: this host is the balancer of the other."""
    known = json.loads((Path(host.backend.ansible_inventory) / "hosts.yml").read_text())["all"]["hosts"]
    apps = records()
    # Apache behind balancers: what clients meet is theirs
    apps[1]["nginx"] |= {"canonical": "full.example", "limits": {"connections": [{"max": 99}]}}
    path = tmp_path / "hosts.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "all": {"hosts": known, "vars": {"scenario": str(ROOT), "wsgi_apps": apps}},
                "linux_apps": {"hosts": {"debian12": {}}},
                "balancers": {"hosts": {"debian13": {}}},
            }
        )
    )
    return path


@thorough
def test_nginx_takes_over_from_apache_and_balances_to_apache(host, other, balanced):
    done = play(host, "site.yml", inventory=balanced)
    assert changes(done)["debian13"] > 0
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled
    assert not host.service("apache2").is_running
    assert not host.service("apache2").is_enabled
    # its sites and keys are gone, the package's own files are back
    assert host.run("test -e /etc/apache2/wsgi-fleet || test -e /etc/apache2/sites-enabled/shop.conf").rc == 1
    assert "wsgi.fleet" not in host.file("/etc/apache2/apache2.conf").content_string
    assert host.file("/etc/apache2/sites-enabled/000-default.conf").is_symlink
    # the other host has Apache still, for the balancer alone
    assert other.service("apache2").is_running
    assert connects(address(other), 80) == "dropped"
    assert connects(address(other), 443) == "dropped"
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    answer = fetch(address(host), "shop.example", "/a%2Fb", tls=True, headers=headers)
    seen = json.loads(answer.text)
    own = host.check_output("ip -4 route show default").split()[2]  # we are on the machine that is its gateway
    assert (seen["client"], seen["scheme"], seen["uri"]) == (own, "https", "/a%2Fb")
    assert answer.headers["server"] == "nginx"
    assert fetch(address(host), "full.example", "/static/site.css", tls=True).status == 200
    assert fetch(address(host), "full.example", tls=True, method="POST", body=b"x" * 2000).status == 413


@thorough
def test_behind_a_balancer_all_playbooks_work(host, other, balanced):
    assert changes(play(host, "playbooks/status.yml", inventory=balanced)) == {"debian12": 0, "debian13": 0}
    greeting = {"env": {"GREETING": "from behind"}}
    options = {"wsgi_apps": records(**greeting), "wsgi_apps_only": "shop"}
    done = play(host, "playbooks/deploy.yml", inventory=balanced, **options)
    assert changes(done)["debian12"] > 0
    assert json.loads(fetch(address(host), "shop.example", tls=True).text)["greeting"] == "from behind"
    done = play(host, "playbooks/maintenance.yml", inventory=balanced, wsgi_maintenance="on", wsgi_apps_only="shop")
    assert changes(done)["debian13"] > 0
    assert fetch(address(host), "shop.example", tls=True).status == 503
    changes(play(host, "playbooks/maintenance.yml", inventory=balanced, wsgi_maintenance="off"))
    assert fetch(address(host), "shop.example", tls=True).status == 200
    assert changes(play(host, "site.yml", "--tags=apache,nginx", inventory=balanced)) == {"debian12": 0, "debian13": 0}


@thorough
def test_nginx_goes_on_when_apache_cannot_have_its_port(host):
    """A foreign program on the port that only Apache is to have: found when it starts, not in its check."""
    host.check_output("systemd-run --unit=foreign python3 -m http.server --bind 127.0.0.1 8077 && sleep 1")
    try:
        done = play(host, "site.yml", "--tags=apache", apache_status_port=8077)
        assert done.returncode == 2
        assert "nginx.service serves again" in said(done)
        assert host.service("nginx").is_running
        assert host.service("nginx").is_enabled
    finally:
        host.check_output("systemctl stop foreign")


@thorough
def test_apache_takes_over_from_nginx(host, other):
    done = play(host, "site.yml", "--tags=ufw,apache,nginx", "--limit=all")
    assert changes(done)["debian13"] > 0
    assert host.service("apache2").is_running
    assert host.service("apache2").is_enabled
    assert not host.service("nginx").is_running
    assert not host.service("nginx").is_enabled
    assert host.run("test -e /etc/nginx/wsgi-fleet || test -e /etc/nginx/sites-enabled/shop.conf").rc == 1
    for one in (host, other):
        assert fetch(address(one), "shop.example", tls=True).headers["server"] == "Apache"
    assert changes(play(host, "site.yml", "--tags=apache,nginx", "--limit=all")) == {"debian12": 0, "debian13": 0}
