"""Configuration that goes live as a whole or not at all, on real hosts with a real nginx."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from probes import ROOT, ansible_environment, fetch, run_playbook, wait_until

testinfra_hosts = ["ansible://systems_under_test"]

HERE = ROOT / "molecule" / "tree"
INPUTS = yaml.safe_load((HERE / "inventory" / "hosts.yml").read_text())["systems_under_test"]["vars"]
SECRET = INPUTS["tree_secret"]
LEFTOVERS = "find / -xdev -regextype egrep -regex '.*/\\.wsgi-fleet-[0-9a-f]{16}\\.dpkg-new'"


def name(host):
    return host.backend.get_hostname()


def inventories(host):
    return [Path(host.backend.ansible_inventory).parent, ROOT / "molecule" / "shared" / "inventory", HERE / "inventory"]


def arguments(host, *options, **variables):
    return ["--limit", name(host), "--diff", *options, "--extra-vars", json.dumps(variables)]


# Test hosts are born anew with every scenario, at the same addresses.
SETTINGS = {
    "ANSIBLE_SSH_COMMON_ARGS": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
}


def apply(host, *options, **variables):
    """Run the scenario's playbook on one host, with other inputs."""
    return run_playbook(
        "molecule/tree/converge.yml",
        *arguments(host, *options, **variables),
        inventories=inventories(host),
        **SETTINGS,
    )


def changed(run):
    """Whether a run that must not fail has changed something."""
    assert run.returncode == 0, run.stdout + run.stderr
    return int(run.stdout.rpartition("changed=")[2].split()[0]) > 0


def refused(run):
    """What a run that must fail says, in one line."""
    assert run.returncode == 2, run.stdout + run.stderr
    return " ".join((run.stdout + run.stderr).split())


def tree(host, check=False, **options):
    """The module's own answer, for a set of files apart from nginx's."""
    return host.ansible("wsgi.fleet.tree", json.dumps(options), check=check)


def files(*changes, without=()):
    """The scenario's files, some of them different."""
    by_path = {file["path"]: file for file in INPUTS["tree_files"] if file["path"] not in without}
    return [*(by_path | {change["path"]: change for change in changes}).values()]


def state(host):
    """All that is under /etc/nginx, with owners, modes, inodes, times and contents."""
    return host.check_output("find /etc/nginx -printf '%p %u:%g %m %i %T@ %l\\n' | sort; cat /etc/nginx/*/* | md5sum")


@pytest.fixture
def address(host):
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture(autouse=True)
def _restored(host):
    """Whatever a test does, the scenario's own state comes back, and nothing is left lying about."""
    yield
    if changed(apply(host)):
        assert not changed(apply(host))
    assert host.check_output(LEFTOVERS) == ""


# --- what was converged


def test_nginx_serves_what_was_put_there(host, address):
    host.check_output("systemctl reload-or-restart nginx")
    for port in (8081, 8082):
        answer = wait_until(lambda port=port: fetch(address, "x", port=port), 10)
        foreign, shown, digest = answer.text.split()
        assert (foreign, shown) == ("foreign", str(port)), "the file that is not ours is still read"
        assert re.fullmatch("[0-9a-f]{64}", digest)


def test_owners_and_modes(host):
    seen = {path: host.file(f"/etc/nginx/tls{path}") for path in ("", "/readable", "/closed")}
    assert {path: (file.user, file.group, oct(file.mode)) for path, file in seen.items()} == {
        "": ("root", "www-data", "0o750"),
        "/readable": ("root", "www-data", "0o640"),
        "/closed": ("root", "root", "0o600"),
    }


def test_second_run_touches_nothing(host):
    before = state(host)
    assert not changed(apply(host))
    assert not changed(apply(host, "--check"))
    assert state(host) == before


# --- changes


def test_a_change_then_back(host):
    before = state(host)
    other = files({"path": "sites-enabled/one.conf", "template": "site.conf.j2", "vars": {"port": 8083}})
    assert changed(apply(host, "--check", tree_files=other))
    assert state(host) == before, "check mode touched something"
    run = apply(host, tree_files=other)
    assert changed(run)
    assert "+    listen 8083;" in run.stdout
    assert "-    listen 8081;" in run.stdout
    assert "8083" in host.check_output("nginx -T")


def test_a_site_that_is_gone_from_the_list_is_gone_from_the_host(host):
    run = apply(host, tree_files=files(without=["sites-enabled/two.conf"]))
    assert changed(run)
    assert not host.file("/etc/nginx/sites-enabled/two.conf").exists
    assert host.file("/etc/nginx/conf.d/foreign.conf").exists
    assert "8082" not in host.check_output("nginx -T")


def test_taken_over_files_come_back(host):
    """nginx.conf was the package's before it was ours."""
    assert changed(apply(host, tree_files=[], tree_tests=[]))
    assert host.check_output("dpkg --verify nginx-common nginx-light nginx") == ""
    assert host.file("/etc/nginx/sites-available").exists
    host.check_output("nginx -t")


def test_drift_is_repaired(host):
    host.check_output(
        "chmod 0666 /etc/nginx/tls/closed; chown www-data /etc/nginx/nginx.conf; chmod 0777 /etc/nginx/tls"
    )
    run = apply(host)
    assert changed(run)
    assert "mode 0666, owner root:root" in run.stdout
    test_owners_and_modes(host)


# --- what is refused


def test_a_bad_file_is_named_and_nothing_is_touched(host):
    before = state(host)
    bad = {"path": "sites-enabled/bad.conf", "content": "server {\n  listen 8090;\n  lisen 1;\n}\n"}
    other = {"path": "sites-enabled/one.conf", "content": "server { listen 8091; }\n"}
    text = refused(apply(host, tree_files=files(other, bad)))
    assert "/etc/nginx/sites-enabled/bad.conf: test 'nginx' failed (nginx -t -c /etc/nginx/nginx.conf" in text
    assert 'unknown directive "lisen" in /etc/nginx/sites-enabled/bad.conf:3' in text
    assert "Nothing was changed" in text
    assert "dpkg-new" not in text, "staged paths must not be shown"
    assert state(host) == before
    host.check_output("nginx -t")
    assert "bad.conf:3" in refused(apply(host, "--check", tree_files=files(other, bad)))


def test_a_test_as_a_user_counts(host):
    before = state(host)
    closed = {**files()[3], "group": "root"}
    assert "/etc/nginx: test 'test' failed" in refused(apply(host, tree_files=files(closed)))
    assert state(host) == before


def test_wrong_requests(host):
    before = state(host)
    for file, message in (
        ({"content": "", "owner": "shop"}, "/etc/nginx/x: owner 'shop' does not exist on this host"),
        ({"content": "", "mode": 420}, "files[0] (x): mode 420 is no quoted octal mode"),
        ({"template": "missing.j2"}, "file 'x' from 'missing.j2': Could not find or access"),
        ({"template": "site.conf.j2"}, "file 'x' from 'site.conf.j2': 'port' is undefined"),
    ):
        assert message in refused(apply(host, tree_files=[{"path": "x", **file}], tree_tests=[]))
    assert state(host) == before


def test_a_rename_that_fails_is_undone(host):
    """/etc/hosts is a mount point in the test hosts: the kernel refuses to replace it."""
    options = {
        "name": "etc",
        "root": "/etc",
        "files": [{"path": path, "content": "x"} for path in ("aaa-fleet/first", "hosts", "zzz-fleet")],
    }
    before = host.check_output("cat /etc/hosts")
    result = tree(host, **options)
    assert "could not put the new files in place, the old ones are back: [Errno 16]" in result["msg"]
    assert not host.file("/etc/aaa-fleet").exists
    assert not host.file("/etc/zzz-fleet").exists
    assert host.check_output("cat /etc/hosts") == before
    assert tree(host, **{**options, "files": []})["changed"] is False


# --- bare hosts


def test_check_on_a_bare_host(host):
    options = {
        "name": "bare",
        "root": "/etc/fleet-bare/deep",
        "files": [{"path": "shop/env", "content": "x", "owner": "root", "group": "shop", "mode": "0640"}],
        "directories": [{"path": "shop", "owner": "shop"}],
        "tests": [
            {"argv": ["no-such-program"]},
            {"argv": ["true"], "user": "shop", "name": "as shop"},
            {"argv": ["grep", "-q", "x", "{root}/shop/env"]},
        ],
    }
    result = tree(host, check=True, **options)
    assert (result["changed"], result["changed_files"]) == (True, ["shop/env"])
    assert result["unchecked"] == [
        "owner shop does not exist yet",
        "group shop does not exist yet",
        "test no-such-program: program no-such-program does not exist",
        "test as shop: user shop does not exist",
    ]
    assert not host.file("/etc/fleet-bare").exists
    assert not host.file("/var/lib/wsgi-fleet/tree/bare.json").exists


# --- secrets


def test_secrets_stay_secret(host):
    since = host.check_output("date '+%Y-%m-%d %H:%M:%S'")
    secret = "Geheim-0815-und-mehr"
    wanted = [{**file, "content": f"# {secret}\n"} if file.get("secret") else file for file in files()]
    runs = [
        apply(host, "-vvv", "--check", tree_files=wanted),
        apply(host, "-vvv", tree_files=wanted),
        apply(host, "-vvv", tree_files=[file for file in wanted if file["path"] != "tls/closed"], tree_tests=[]),
    ]
    assert all(changed(run) for run in runs)
    leak = [{"argv": ["sh", "-c", "cat {root}/tls/readable; false"], "name": "leak"}]
    runs.append(apply(host, "-vvv", tree_files=files(wanted[3], {"path": "x", "content": ""}), tree_tests=leak))
    assert "(secret)" in refused(runs[-1])
    broken = {"path": "y", "secret": True, "template": "secret.j2", "vars": {"value": secret}}
    runs.append(apply(host, "-vvv", tree_files=[broken], tree_tests=[]))
    assert "file 'y' from 'secret.j2': " in refused(runs[-1])
    for run in runs:
        assert secret not in run.stdout + run.stderr
    assert secret not in host.check_output(f"journalctl --since '{since}'")
    assert "wsgi.fleet.tree" in host.check_output(f"journalctl --since '{since}'"), "the journal was not asked well"
    assert "secret content changed" in runs[1].stdout
    assert "secret content removed" in runs[2].stdout


# --- interrupted


def test_killed_while_testing(host):
    """The module dies by SIGKILL: nothing live has changed, the next run does the work and tidies up."""
    before = state(host)
    other = files({"path": "sites-enabled/one.conf", "template": "site.conf.j2", "vars": {"port": 8084}})
    sleeping = [{"argv": ["sleep", "4321"]}]
    command = ["ansible-playbook", "molecule/tree/converge.yml", *(f"--inventory={p}" for p in inventories(host))]
    run = subprocess.Popen(
        [*command, *arguments(host, tree_files=other, tree_tests=sleeping)],
        cwd=ROOT,
        env=ansible_environment(**SETTINGS),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        sleep = wait_until(lambda: host.run("pgrep -fx 'sleep 4321'").stdout.strip(), 60, "the test to run")
        host.check_output(f"kill -9 $(ps -o ppid= -p {sleep})")
        assert run.wait(60) == 2
    finally:
        run.kill()
    host.check_output(f"kill {sleep}")
    assert state(host) == before
    assert len(host.check_output(LEFTOVERS).splitlines()) == 1
    assert changed(apply(host, tree_files=other))
    assert host.check_output(LEFTOVERS) == ""
    assert "8084" in host.check_output("nginx -T")


def test_two_runs_at_once_take_turns(host):
    slow = [{"argv": ["sleep", "2"]}]
    sites = [
        {"path": f"sites-enabled/{port}.conf", "content": f"server {{ listen {port}; }}\n"} for port in (8085, 8086)
    ]
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda site: apply(host, tree_files=files(site), tree_tests=slow), sites))
    assert all(changed(run) for run in runs)
    assert time.monotonic() - started > 4
    assert len(host.check_output("ls /etc/nginx/sites-enabled/808?.conf").splitlines()) == 1
