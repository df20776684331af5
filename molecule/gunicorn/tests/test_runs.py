"""Records that are refused, and instances that go."""

from __future__ import annotations

import pytest
from configuring import CONFIG, instance, play
from probes import thorough

testinfra_hosts = ["ansible://debian13"]  # one is enough: gunicorn is the same on both


BAD = {
    "unknown": (instance(wrokers=2), "wrokers"),
    "protocol": (instance(http_protocols="h9"), "Invalid"),
    "callable": ({**instance(), "callable": "demo:nosuch"}, "Failed to find attribute 'nosuch' in 'demo'"),
    "its package": ({**instance(worker_class="gevent"), "venv": "/srv/demo/venv-bare"}, "gevent"),
}
MORE_BAD = {
    "type": (instance(workers="many"), "many"),
    "excluded": (instance(daemon=True), "daemon"),
    "network": (instance(forwarded_allow_ips="10.0.0.1/8"), "has host bits set"),
    "negative": (instance(workers=-1), "Value must be positive"),
    "two ways": ({**instance(), "runner": ["/srv/demo/run"]}, "exactly one of both"),
    "worker": (instance(worker_class="nosuch"), "class uri 'nosuch' invalid or not found"),
}


@pytest.mark.parametrize("kind", [*BAD, *(pytest.param(kind, marks=thorough) for kind in MORE_BAD)])
def test_bad_record_is_refused_and_the_live_file_stays(host, kind):
    record, words = {**BAD, **MORE_BAD}[kind]
    before = host.check_output(f"find {CONFIG} -type f -printf '%p %T@ %s\\n' | sort")
    done = play(host, instances=[record])
    assert done.returncode != 0
    assert words in " ".join((done.stdout + done.stderr).split())
    assert host.check_output(f"find {CONFIG} -type f -printf '%p %T@ %s\\n' | sort") == before


def test_failed_test_names_file_and_program(host):
    said = " ".join(play(host, instances=[instance(http_protocols="h9")]).stdout.split())
    assert f"{CONFIG}/sync/gunicorn.conf.py" in said


def test_environment_is_not_shown(host):
    done = play(host, "-vvv", "--diff", "--check", instances=[instance(raw_env=["TOKEN=Not-for-your-eyes-4711"])])
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Not-for-your-eyes" not in done.stdout + done.stderr


def test_file_of_an_instance_that_is_gone_is_removed(host):
    assert play(host, instances=[instance()]).returncode == 0
    assert host.check_output(f"cd {CONFIG} && find . -type f") == "./sync/gunicorn.conf.py"
    assert play(host).returncode == 0
    assert len(host.check_output(f"find {CONFIG} -type f").split()) == 7
