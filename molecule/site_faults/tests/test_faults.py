"""What goes wrong in operation. The order counts: each test starts from where the one before it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
import yaml
from probes import ROOT, ansible_environment, connects, fetch, run_playbook

INVENTORIES = [ROOT / "inventories" / "sandbox", ROOT / "molecule" / "site_faults" / "inventory"]
BALANCER = "10.213.66.10"
HOSTS = ("lb1", "app1", "app2")
SHOP = "shop.sandbox.example"
HTTPBIN = "httpbin.sandbox.example"
SECRET = "Hard-to-guess-4711"

testinfra_hosts = ["ansible://lb1"]

RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def apps(**changes):
    """The sandbox's records by name, with `changes` laid over them; None takes one away."""
    text = (INVENTORIES[0] / "group_vars" / "all" / "apps.yml").read_text()
    records = yaml.safe_load(text.replace("{{ sandbox_root }}", str(ROOT)))["wsgi_apps"]
    for record in records:
        if record["name"] == "shop":
            record["secrets"] = {"SECRET_KEY": SECRET}
    return [
        record | (changes.get(record["name"]) or {})
        for record in records
        if changes.get(record["name"], {}) is not None
    ]


def site(*arguments, records=None, **variables):
    extra = json.dumps({"wsgi_apps": apps() if records is None else records, **variables})
    return run_playbook("site.yml", "-e", extra, *arguments, inventories=INVENTORIES)


def changes(done):
    """Changed tasks of each host, of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return {host: int(changed) for host, _, changed, _, _ in RECAP.findall(done.stdout)}


NOTHING = dict.fromkeys(HOSTS, 0)


@pytest.fixture
def fleet(host):
    return {
        name: host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory) for name in HOSTS
    }


def state(fleet):
    """What a run could have changed: packages, and every file of the places where we put something."""
    command = (
        "dpkg-query -W -f '${Package} ${Version} ${Status}\\n';"
        "find /etc /opt /srv /usr/local /var/lib /var/log/nginx /run/wsgi-fleet -xdev"
        " -not -path '/var/lib/systemd/*' -not -path '/etc/machine-id' -printf '%p %m %u %s %T@\\n' 2>/dev/null | sort"
    )
    return {name: host.run(command).stdout for name, host in fleet.items()}


def test_check_mode_on_bare_hosts_succeeds_and_changes_nothing(fleet):
    before = state(fleet)
    done = site("--check", "--diff")
    assert all(count > 5 for count in changes(done).values()), done.stdout[-3000:]
    assert state(fleet) == before
    assert SECRET not in done.stdout + done.stderr


WRONG = [
    ({"name": "Shop"}, "name"),
    ({"name": "root"}, "root"),
    ({"domain": ["a.example"]}, "did you mean 'domains'"),
    ({"domains": []}, "domains"),
    ({"domains": ["not a host"]}, "not a host"),
    ({"domains": ["192.0.2.1"]}, "192.0.2.1"),
    ({"source": {"git": "https://git.example.com/x.git"}}, "version"),
    ({"source": {"git": "x", "path": "y"}}, "source"),
    ({"source": {"archive": "https://files.example.com/x.tar.gz"}}, "checksum"),
    ({"source": {"package": "httpbin"}}, "version"),
    ({"callable": "wsgi.app"}, "callable"),
    ({"callable": "wsgi:app.run()"}, "callable"),
    ({"hosts": ["nowhere"]}, "nowhere"),
    ({"hosts": []}, "no host"),
    ({"python": 3.1}, "python"),
    ({"workers": 0}, "workers"),
    ({"workers": True}, "workers"),
    ({"gunicorn": {"worker_class": "eventlet", "version": "27.0.1"}}, "eventlet"),
    ({"gunicorn": {"time_out": 30}}, "timeout"),
    ({"gunicorn": {"bind": "0.0.0.0:80"}}, "bind"),
    ({"port": 80}, "port"),
    ({"health": "healthz"}, "health"),
    ({"env": {"A-B": "x"}}, "A-B"),
    ({"env": {"X": "1"}, "secrets": {"X": SECRET}}, "X"),
    ({"nginx": {"client_max_body_size": "10 apples"}}, "client_max_body_size"),
    ({"nginx": {"cors": {"origins": ["*"], "credentials": True}}}, "credentials"),
    ({"keep_releases": 0}, "keep_releases"),
]


def test_wrong_records_are_refused_all_at_once_before_any_host_is_touched(fleet):
    before = state(fleet)
    good = {"source": {"package": "httpbin", "version": "0.10.4"}, "callable": "httpbin:app"}
    records = [
        {"name": f"app{n}", "domains": [f"app{n}.example"], **good, **wrong} for n, (wrong, _) in enumerate(WRONG)
    ]
    done = site(records=[*records, records[1]])
    assert done.returncode != 0
    output = (done.stdout + done.stderr).replace("\n", " ")
    for n, (wrong, word) in enumerate(WRONG):
        assert word in output, (n, wrong, output[-3000:])
        assert f"wsgi_apps[{n}]" in output or f"app{n}" in output, (n, wrong)
    assert SECRET not in output
    assert state(fleet) == before


@pytest.mark.parametrize(
    "task", ["wsgi.fleet.app : main", "wsgi.fleet.supervisor", "wsgi.fleet.nginx"], ids=["app", "supervisor", "nginx"]
)
def test_run_is_killed(task):
    """Kills the run some seconds into the role; what it left is for the next one."""
    command = ["ansible-playbook", "site.yml", *(f"--inventory={path}" for path in INVENTORIES)]
    command += ["-e", json.dumps({"wsgi_apps": apps()})]
    with subprocess.Popen(
        command, cwd=ROOT, env=ansible_environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        seen = 0
        for line in run.stdout:
            seen += line.startswith(f"TASK [{task.split(' : ')[0]}")
            if seen == 3:
                os.killpg(run.pid, signal.SIGKILL)
                break
        assert run.wait(30) == -signal.SIGKILL


def test_next_run_mends_what_killed_ones_left():
    done = site()
    assert sum(changes(done).values()) > 0
    assert fetch(BALANCER, SHOP, "/healthz").status == 200
    assert fetch(BALANCER, HTTPBIN, "/get").status == 200
    assert SECRET not in done.stdout + done.stderr


def test_second_run_changes_nothing_and_shows_no_secret():
    done = site("--diff", "-vvv")
    assert changes(done) == NOTHING
    assert SECRET not in done.stdout + done.stderr


def test_check_mode_after_convergence_reports_no_change():
    assert changes(site("--check", "--diff")) == NOTHING


def test_changed_secret_reaches_the_processes_and_no_output(fleet):
    changed = SECRET[::-1]
    done = site("--diff", "-vvv", records=apps(shop={"secrets": {"SECRET_KEY": changed}}))
    assert sum(changes(done).values()) > 0
    assert changed not in done.stdout + done.stderr
    for name in ("app1", "app2"):
        pids = fleet[name].check_output("pgrep -u shop -f gunicorn").split()
        for pid in pids:
            assert changed in fleet[name].run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout


def test_bad_gunicorn_setting_leaves_the_application_as_it_is(fleet):
    before = fleet["app1"].check_output(
        "readlink /srv/shop/current; pgrep -u shop | sort; cat /etc/wsgi-fleet/shop/gunicorn.conf.py"
    )
    done = site(records=apps(shop={"gunicorn": {"statsd_host": "no port: here"}}))
    assert done.returncode != 0
    assert "gunicorn.conf.py" in done.stdout + done.stderr
    now = fleet["app1"].check_output(
        "readlink /srv/shop/current; pgrep -u shop | sort; cat /etc/wsgi-fleet/shop/gunicorn.conf.py"
    )
    assert now == before
    assert fetch(BALANCER, SHOP, "/healthz").status == 200


def test_removed_application_is_gone(fleet):
    changes(site())
    assert sum(changes(site(records=apps(httpbin=None))).values()) > 0
    with pytest.raises(Exception, match="closed connection without response"):
        fetch(BALANCER, HTTPBIN, "/get")
    assert fetch(BALANCER, SHOP, "/healthz").status == 200
    for name in ("app1", "app2"):
        host = fleet[name]
        assert host.run("pgrep -u httpbin").rc != 0
        assert not host.file("/etc/wsgi-fleet/httpbin").exists
        assert not host.file("/srv/httpbin/current").exists
        assert not host.file("/run/wsgi-fleet/httpbin.sock").exists
        assert not host.user("httpbin").exists
        assert "httpbin" not in host.check_output(
            "/opt/wsgi-fleet/supervisor/bin/supervisorctl -c /etc/supervisord/supervisord.conf status || true"
        )
    assert changes(site(records=apps(httpbin=None))) == NOTHING


def test_removed_rule_is_gone_and_a_foreign_one_stays(fleet):
    fleet["lb1"].check_output("ufw allow 7777/tcp")
    rule = {"port": 8888, "proto": "tcp", "action": "reject"}
    records = apps(httpbin=None)
    changes(site(records=records, ufw_rules=[rule]))
    assert connects(BALANCER, 8888) == "refused"
    changes(site(records=records))
    assert connects(BALANCER, 8888) == "dropped"
    assert "7777" in fleet["lb1"].check_output("ufw status")
