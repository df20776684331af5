"""What goes wrong in operation. The order counts: each test starts from where the one before it ended."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml
from probes import ROOT, ansible_environment, connects, fetch, run_playbook, thorough

INVENTORIES = [ROOT / "inventories" / "sandbox", ROOT / "molecule" / "site_faults" / "inventory"]
BALANCER = "10.213.66.10"
HOSTS = ("lb1", "app1", "app2")
SHOP = "shop.sandbox.example"
HTTPBIN = "httpbin.sandbox.example"
SECRET = "Hard-to-guess-4711"

testinfra_hosts = ["ansible://lb1"]
# pytest would run tests that use no host after all those that do; here the order counts.
pytestmark = pytest.mark.usefixtures("fleet")

RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def apps(**changes):
    """The sandbox's records by name, with `changes` laid over them."""
    text = (INVENTORIES[0] / "group_vars" / "all" / "apps.yml").read_text()
    records = yaml.safe_load(text.replace("{{ sandbox_root }}", str(ROOT)))["wsgi_apps"]
    for record in records:
        if record["name"] == "shop":
            record["secrets"] = {"SECRET_KEY": SECRET}
    return [record | changes.get(record["name"], {}) for record in records]


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
        # A trial leaves no more behind than the time of the directory in which it took place.
        " -not -path '/var/lib/systemd/*' -not -path '/etc/machine-id'"
        " \\( -type d -printf '%p %m %u\\n' -o -printf '%p %m %u %s %T@\\n' \\) 2>/dev/null | sort"
    )
    return {name: host.run(command).stdout for name, host in fleet.items()}


def difference(before, fleet):
    """What is other than it was: lines gone and lines new."""
    after = state(fleet)
    return {name: sorted(set(before[name].splitlines()) ^ set(after[name].splitlines())) for name in after}


UNTOUCHED = {name: [] for name in HOSTS}


def test_check_mode_on_bare_hosts_succeeds_and_changes_nothing(fleet):
    before = state(fleet)
    served_by_waitress = {
        "name": "api",
        "domains": ["api.sandbox.example"],
        "source": {"package": "httpbin", "version": "0.10.4"},
        "callable": "httpbin:app",
        "server": "waitress",
    }
    done = site("--check", "--diff", records=[*apps(), served_by_waitress])
    assert all(count > 5 for count in changes(done).values()), done.stdout[-3000:]
    assert difference(before, fleet) == UNTOUCHED
    assert SECRET not in done.stdout + done.stderr


# What is wrong with a record, and how the message of it begins; APP stands for the record's name.
WRONG = [
    ({"name": "Shop"}, "wsgi_apps[0]: name: is 'Shop'"),
    ({"name": "root"}, "app root: name: 'root' is reserved"),
    ({"domain": ["a.example"]}, "app APP: domain: is no known key; did you mean domains?"),
    ({"domains": []}, "app APP: domains: is an empty list"),
    ({"domains": ["not a host"]}, "app APP: domains[0]: is 'not a host'"),
    ({"domains": ["192.0.2.1"]}, "app APP: domains[0]: is '192.0.2.1', an IP address"),
    ({"source": {"git": "https://git.example.com/x.git"}}, "app APP: source.version: is missing"),
    ({"source": {"git": "x", "path": "y"}}, "app APP: source: must have exactly one of"),
    ({"source": {"archive": "https://files.example.com/x.tar.gz"}}, "app APP: source.checksum: is missing"),
    ({"source": {"package": "httpbin"}}, "app APP: source.version: is missing"),
    ({"callable": "wsgi.app"}, "app APP: callable: is 'wsgi.app'"),
    ({"callable": "wsgi:app.run()"}, "app APP: callable: is 'wsgi:app.run()'"),
    ({"hosts": ["nowhere"]}, "app APP: hosts: nowhere is neither a group nor a host"),
    ({"hosts": []}, "app APP: hosts: is an empty list"),
    ({"python": 3.1}, "app APP: python: is a number with a point"),
    ({"workers": 0}, "app APP: workers: is 0"),
    ({"workers": True}, "app APP: workers: is a boolean"),
    ({"gunicorn": {"worker_class": "eventlet", "version": "27.0.1"}}, "app APP: gunicorn.worker_class: eventlet left"),
    ({"gunicorn": {"time_out": 30}}, "app APP: gunicorn.time_out: is no setting of gunicorn; did you mean timeout?"),
    ({"gunicorn": {"bind": "0.0.0.0:80"}}, "app APP: gunicorn.bind: is derived"),
    ({"port": 80}, "app APP: port: is 80"),
    ({"health": "healthz"}, "app APP: health: is 'healthz'"),
    ({"env": {"A-B": "x"}}, "app APP: env.A-B: is no name"),
    ({"env": {"X": "1"}, "secrets": {"X": SECRET}}, "app APP: secrets.X: is in env as well"),
    ({"nginx": {"client_max_body_size": "10 apples"}}, "app APP: nginx.client_max_body_size: is '10 apples'"),
    ({"nginx": {"cors": {"origins": ["*"], "credentials": True}}}, "app APP: nginx.cors.credentials: is true"),
    ({"keep_releases": 0}, "app APP: keep_releases: is 0"),
]


def test_wrong_records_are_refused_all_at_once_before_any_host_is_touched(fleet):
    before = state(fleet)
    good = {"source": {"package": "httpbin", "version": "0.10.4"}, "callable": "httpbin:app"}
    records = [
        {"name": f"app{n}", "domains": [f"app{n}.example"], **good, **wrong} for n, (wrong, _) in enumerate(WRONG)
    ]
    twice = {"name": "twice", "domains": ["twice.example"], **good}
    done = site(records=[*records, twice, twice, {**twice, "name": "other"}])
    assert done.returncode != 0
    expected = [message.replace("APP", f"app{n}") for n, (_, message) in enumerate(WRONG)]
    expected += ["name: 'twice' is taken by app twice", "app other: domains[0]: 'twice.example' is app twice's"]
    assert [message for message in expected if message not in done.stdout + done.stderr] == [], done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert difference(before, fleet) == UNTOUCHED


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
        # As its own user: a container's root may not look into other users' processes.
        show = (
            "for pid in $(pgrep -u shop -f [g]unicorn); do tr '\\0' '\\n' </proc/$pid/environ | grep ^SECRET_KEY; done"
        )
        shown = fleet[name].check_output(f"runuser -u shop -- sh -c {shlex.quote(show)}").splitlines()
        assert set(shown) == {f"SECRET_KEY={changed}"}


@thorough
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


@thorough
def test_release_that_does_not_import_does_not_go_live(fleet, tmp_path):
    broken = tmp_path / "shop"
    shutil.copytree(ROOT / "examples" / "shop", broken)
    with (broken / "wsgi.py").open("a") as code:
        code.write("import no_such_module\n")
    running = "readlink /srv/shop/current; pgrep -u shop | sort"
    before = fleet["app1"].check_output(running)
    done = site(records=apps(shop={"source": {"path": str(broken)}}))
    assert done.returncode != 0
    assert "No module named 'no_such_module'" in done.stdout + done.stderr
    assert fleet["app1"].check_output(running) == before
    assert fetch(BALANCER, SHOP, "/healthz").status == 200


GONE = {"state": "absent"}
RULE = {"port": 8888, "proto": "tcp", "action": "reject"}


def test_removed_application_is_gone(fleet):
    fleet["lb1"].check_output("ufw allow 7777/tcp")
    fleet["app1"].check_output("runuser -u httpbin -- touch /srv/httpbin/shared/upload")
    assert sum(changes(site(records=apps(httpbin=GONE), ufw_rules=[RULE])).values()) > 0
    with pytest.raises(Exception, match="closed connection without response"):
        fetch(BALANCER, HTTPBIN, "/get")
    assert fetch(BALANCER, SHOP, "/healthz").status == 200
    for name in ("app1", "app2"):
        host = fleet[name]
        assert host.run("pgrep -u httpbin").rc != 0
        assert not host.file("/etc/wsgi-fleet/httpbin").exists
        assert host.file("/srv/httpbin").exists == (name == "app1")
        assert not host.file("/var/log/wsgi-fleet/httpbin").exists
        assert not host.file("/run/wsgi-fleet/httpbin.sock").exists
        assert not host.user("httpbin").exists
        assert "httpbin" not in host.check_output(
            "/opt/wsgi-fleet/supervisor/bin/supervisorctl -c /etc/supervisord/supervisord.conf status || true"
        )
    kept = fleet["app1"].check_output("find /srv/httpbin -printf '%p %u:%g\\n' | sort").split("\n")
    assert [line.split()[0] for line in kept] == ["/srv/httpbin", "/srv/httpbin/shared", "/srv/httpbin/shared/upload"]
    assert {line.split()[1] for line in kept} == {"root:root"}


def test_removed_rule_is_gone_and_a_foreign_one_stays(fleet):
    assert connects(BALANCER, 8888) == "refused"
    changes(site(records=apps(httpbin=GONE)))
    assert connects(BALANCER, 8888) == "dropped"
    assert "7777" in fleet["lb1"].check_output("ufw status")
    assert changes(site(records=apps(httpbin=GONE))) == NOTHING
