"""Starts gunicorn with the files that the role wrote, and asks it over HTTP. The order counts."""

from __future__ import annotations

import json
import re
import time

import pytest
import yaml
from configuring import CONFIG, EXCLUDED, SOCKET, WORKERS, odd_settings, start, venv
from probes import ROOT, wait_until

testinfra_hosts = ["ansible://debian12", "ansible://debian13"]


@pytest.fixture
def serving(host):
    """Start gunicorn for an instance, and stop it at the end."""
    started = []

    def begin(name):
        command = f"{venv(name)}/bin/gunicorn --config {CONFIG}/{name}/gunicorn.conf.py demo:app"
        start(host, f"test-{name}", command)
        started.append(f"test-{name}")
        url = f"http://127.0.0.1:{WORKERS[name]}"
        wait_until(lambda: host.run(f"curl -sf {url}/").rc == 0, 30, f"{name} to answer")
        return url

    yield begin
    for unit in started:
        host.run(f"systemctl stop {unit}")


@pytest.mark.parametrize("name", WORKERS)
def test_every_kind_of_worker_serves(host, serving, name):
    url = serving(name)
    assert json.loads(host.check_output(f"curl -sS {url}/"))["scheme"] == "http"
    assert f"Using worker: {name}" in host.check_output(f"journalctl --unit=test-{name} --output=cat")


@pytest.mark.parametrize(("name", "longest"), [("gthread", 2.9), ("gevent", 2.9)])
def test_workers_do_several_things_at_once(host, serving, name, longest):
    """Four requests of 1.5 seconds on one worker."""
    url = serving(name)
    begun = time.monotonic()
    host.check_output(f"for i in 1 2 3 4; do curl -sS {url}/sleep & done; wait")
    assert 1.4 < time.monotonic() - begun < longest


def test_worker_is_replaced_after_its_requests(host, serving):
    url = serving("sync")
    pids = {json.loads(host.check_output(f"curl -sS {url}/"))["pid"] for _ in range(7) if not time.sleep(0.5)}
    assert len(pids) > 1


def test_every_setting_reaches_gunicorn_as_it_is(host):
    script = (
        "import sys, json; from gunicorn.app.wsgiapp import WSGIApplication as A;"
        f'sys.argv = ["x", "-c", "{CONFIG}/odd/gunicorn.conf.py", "demo:app"];'
        'print(json.dumps({n: s.value for n, s in A("").cfg.settings.items()}, default=str))'
    )
    output = host.check_output(f"cd /srv/demo && runuser -u demo -- /srv/demo/venv/bin/python -c '{script}'")
    found = json.loads(output)
    wanted = odd_settings()
    wanted["raw_env"] = [value.strip() for value in wanted["raw_env"]]  # gunicorn strips
    wanted["forwarded_allow_ips"] = ["*"]
    wanted["umask"] = 0o027
    assert {name: found[name] for name in wanted} == wanted


def test_settings_are_those_that_gunicorn_has(host):
    """All but hooks, and those that make no sense here."""
    script = 'from gunicorn import config as c; print(*[s.name for s in c.KNOWN_SETTINGS if "Hook" not in s.section])'
    known = set(host.check_output(f"/srv/demo/venv/bin/python -c '{script}'").split())
    spec = yaml.safe_load((ROOT / "roles" / "gunicorn" / "meta" / "argument_specs.yml").read_text())
    instance = spec["argument_specs"]["main"]["options"]["gunicorn_instances"]["options"]
    assert set(instance["settings"]["options"]) == known - EXCLUDED


def test_files_are_for_the_group_only(host):
    assert host.check_output(f"stat -c '%U:%G %a' {CONFIG}/odd/gunicorn.conf.py") == "root:demo 640"
    assert host.run(f"runuser -u nobody -- cat {CONFIG}/odd/gunicorn.conf.py").rc != 0
    assert host.run(f"runuser -u demo -- sh -c 'echo >> {CONFIG}/odd/gunicorn.conf.py'").rc != 0


@pytest.mark.parametrize(("hook", "stays"), [(True, True), (False, False)], ids=["hook", "no hook"])
def test_inherited_socket_stays_when_gunicorn_stops(host, hook, stays):
    """The second case proves that the hook is what does it: when it fails, gunicorn does not need the hook any more."""
    host.run("systemctl stop test-inherited; rm -rf /srv/demo/sockets")
    host.check_output("install -d -o demo -g demo /srv/demo/sockets /srv/demo/control")
    conf = f"{CONFIG}/inherited/gunicorn.conf.py"
    if not hook:
        host.check_output(f"sed '/^def when_ready/,$d' {conf} > /srv/demo/nohook.conf.py")
        conf = "/srv/demo/nohook.conf.py"
    command = f"/usr/bin/python3 /srv/demo/hold.py {SOCKET} /srv/demo/run --next gunicorn --config {conf} demo:app"
    start(host, "test-inherited", command)
    ask = f"curl -sf --unix-socket {SOCKET} http://demo/"
    wait_until(lambda: host.run(ask).rc == 0, 30, "an answer")
    assert json.loads(host.check_output(ask))["runner"] == "yes"
    if hook:
        # A thread of gunicorn's makes it, some time after the first answer.
        control = "stat -c '%a %F' /srv/demo/control/gunicorn.ctl"
        wait_until(lambda: host.run(control).stdout.strip() == "660 socket", 10, "the control socket")
    host.check_output("systemctl kill --kill-who=main --signal=TERM test-inherited")
    log = "journalctl --unit=test-inherited --output=cat --since=-60s"
    wait_until(lambda: "ended" in host.check_output(log).split("serving")[-1].splitlines(), 30, "gunicorn to stop")
    assert host.file(SOCKET).exists == stays
    # The holder of the socket outlives gunicorn, as it should; its end is not what is asked here.
    host.run("systemctl kill --signal=KILL test-inherited; systemctl stop test-inherited")
    host.run("journalctl --rotate --vacuum-time=1s")


def test_control_socket_is_off_where_it_is_off(host, serving):
    serving("sync")
    assert host.run("ss -lxH | grep -F gunicorn.ctl").rc == 1


def test_time_of_the_request_is_in_the_access_log(host):
    command = f"/srv/demo/run gunicorn --config {CONFIG}/odd/gunicorn.conf.py --access-logfile - demo:app"
    start(host, "test-odd", command)
    wait_until(lambda: host.run("curl -sf http://127.0.0.1:8006/").rc == 0, 30, "an answer")
    assert json.loads(host.check_output("curl -sS http://127.0.0.1:8006/"))["odd"] == '50% "of" żółw, it\'s C:\\new'
    log = host.check_output("journalctl --unit=test-odd --output=cat")
    assert re.search(r'"GET / HTTP/1.1" 200 \\ \{\{x\}\} \d+ µs', log)
    host.check_output("systemctl stop test-odd")
