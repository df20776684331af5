"""Windows hosts: what is worked out for them, and their half of win_release with services of our own."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml
from ansible_collections.wsgi.fleet.plugins.action import win_release
from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import MARKER
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import (
    front,
    gate,
    live,
    program,
    releases,
    scm,
    services,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, read

ROOT = Path(__file__).resolve().parents[3]
OLD, NEW = "0" * 12, "1" * 12
APP = {"name": "shop", "source": {"path": "/x"}, "callable": "shop:app", "port": 8001}


# -- what is worked out


def option_defaults(options):
    found = {}
    for name, option in options.items():
        if option.get("options") and option.get("type") == "dict" and "default" in option:
            found[name] = option_defaults(option["options"]) or option["default"]
        elif "default" in option:
            found[name] = option["default"]
    return found


def test_defaults_are_those_of_the_specification():
    spec = yaml.safe_load((ROOT / "roles/waitress_windows/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]["waitress_windows_apps"]["options"]
    assert option_defaults(options) == services.DEFAULTS


WHERE = services.place("C:\\Program Files\\fleet\\", r"C:\data", r"C:\Program Files\py\python.exe", "host")


def test_instances_have_consecutive_ports_and_files_of_their_own():
    found = services.instances(WHERE, services.complete({**APP, "instances": 3, "env": {"N": 5}}), NEW)
    assert [instance["service"] for instance in found] == ["shop-0", "shop-1", "shop-2"]
    assert [instance["config"]["waitress"]["listen"] for instance in found] == [
        "127.0.0.1:8001",
        "127.0.0.1:8002",
        "127.0.0.1:8003",
    ]
    assert found[1]["config"]["log_file"] == r"C:\data\shop\var\logs\shop-1.log"
    assert found[1]["config"]["environment"]["N"] == "5"
    assert found[1]["config"]["environment"]["WSGI_FLEET_RELEASE"] == NEW


@pytest.mark.parametrize(
    ("address", "listen", "asked"),
    [
        ("0.0.0.0", "0.0.0.0:8001", "127.0.0.1"),
        ("::", "[::]:8001", "::1"),
        ("192.0.2.5", "192.0.2.5:8001", "192.0.2.5"),
    ],
)
def test_an_instance_is_asked_where_it_listens(address, listen, asked):
    app = services.complete({**APP, "address": address})
    assert services.instances(WHERE, app, NEW)[0]["config"]["waitress"]["listen"] == listen
    wanted = {"host": "localhost", "path": "/", "below": 500, "address": asked, "port": 8001}
    assert services.probe_at(app["health"], listen) == wanted


def test_command_lines_are_quoted_and_names_unique():
    apps = [services.complete(APP), services.complete({**APP, "name": "shop-0", "port": 9001})]
    found = services.services(WHERE, apps, {"config": {"stop_timeout": 60}})
    python, host = r"C:\Program Files\py\python.exe", r"C:\Program Files\fleet\bin\wsgi_host.py"
    assert found[0]["path"] == rf'"{python}" -I -S "{host}" "C:\data\shop\config\shop-0.json"'
    assert len({service["display_name"] for service in found}) == len(found) == 5


def test_a_service_reads_its_configuration_and_writes_its_var_only():
    found = services.rights(WHERE, [services.complete({**APP, "instances": 1})], None)
    assert found == [
        {"path": r"C:\data\shop\config", "service": "shop-0", "rights": "ReadAndExecute"},
        {"path": r"C:\data\shop\var", "service": "shop-0", "rights": "Modify"},
    ]


@pytest.mark.parametrize(
    ("python", "host", "same"),
    [(WHERE.python, "host", True), (WHERE.python, "other host", False), (r"C:\py314\python.exe", "host", False)],
)
def test_another_interpreter_or_host_is_another_configuration(python, host, same):
    assert (services.place(WHERE.root, WHERE.data, python, host) == WHERE) is same


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("v2.30|Action=Allow|Active=TRUE|Dir=In|LPort=80|Name=shop|EmbedCtxt=wsgi.fleet|", "shop"),
        ("v2.30|Action=Allow|Active=TRUE|Dir=In|LPort=80|Name=shop|EmbedCtxt=other|", ""),
        ("v2.30|Action=Allow|Active=TRUE|Dir=In|LPort=80|Name=shop|", ""),
    ],
)
def test_our_firewall_rules_are_known_by_their_group(rule, name):
    assert scm.read_rule(rule, "wsgi.fleet") == name


def test_the_program_that_travels_is_whole_and_hides_nothing_else(capsys, monkeypatch):
    sent = win_release.payload(
        {"state": "none", "root": "r", "data": "d", "check": True, "environment": {}, "timeout": 1}
    )
    assert sent.isascii()
    before = {name: module for name, module in sys.modules.items() if name.startswith("ansible_collections.wsgi")}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    finders = list(sys.meta_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=SimpleNamespace(read=lambda: sent.encode())))
    try:
        with pytest.raises(KeyError, match="none"):  # all is imported, and then there is no such state
            exec(win_release._BOOT, {})
    finally:
        sys.meta_path[:] = finders
        sys.modules.update(before)


# -- what runs


class Machine:
    """A Service Control Manager whose services answer what their configuration says."""

    def __init__(self, host):
        self.host = host
        self.pids = {}
        self.times = {}
        self.next = 100
        self.log = []
        self.asked = []
        self.broken = set()  # releases that do not answer
        self.dead = set()  # and that do not start

    def config(self, name):
        return json.loads(read(self.host.config("shop") / f"{name}.json"))

    def status(self, name):
        return scm.Status(4 if name in self.pids else 1, self.pids.get(name, 0), 0)

    def started_at(self, pid):
        return self.times[pid]

    def stop(self, name, timeout):
        self.log.append(f"stop {name}")
        self.pids.pop(name, None)

    def start(self, name, timeout):
        release = self.config(name)["venv"].split("/")[-2]
        self.log.append(f"start {name} {release[0]}")
        if release in self.dead:
            raise ReleaseError("start", f"service {name} did not start")
        self.next += 1
        self.pids[name], self.times[self.next] = self.next, time.time()

    def control(self, name, code):
        return True

    def ask(self, probe):
        """Answer as who listens there."""
        for name in self.pids:
            config = self.config(name)
            if config["waitress"]["listen"].endswith(f":{probe['port']}"):
                self.asked.append((name, probe["port"]))
                return "is answered with 500" if config["venv"].split("/")[-2] in self.broken else ""
        return "no answer"


@pytest.fixture
def host(tmp_path):
    host = Host(root=tmp_path / "root", data=tmp_path / "data", python="python.exe")
    for release in (OLD, NEW):
        directory = host.releases("shop") / release
        directory.mkdir(parents=True)
        marker = {"built": f"2026-01-0{1 + int(release[0])}T00:00:00Z", "source": f"path {release[0]}"}
        (directory / MARKER).write_text(json.dumps(marker))
    return host


@pytest.fixture
def machine(host, monkeypatch):
    machine = Machine(host)
    monkeypatch.setattr(live, "ask", machine.ask)
    days = iter(range(1, 100))
    monkeypatch.setattr(standing, "now", lambda: f"2026-03-{next(days):02}T12:00:00Z")
    return machine


def prepare(host, machine, release, **changes):
    app = services.complete({**APP, "health_timeout": 0, "trial": False, **changes})
    where = services.place(str(host.root), str(host.data), "python.exe", "host")
    request = {**app, "id": release, "subdirectory": "", "instances": services.instances(where, app, release)}
    for instance in request["instances"]:
        instance["config"]["log_file"] = str(host.data / "shop.log")
    machine.log.clear()
    machine.asked.clear()
    host.actions.clear()
    return live.Switch(host, machine, request)


def switch(host, machine, release, **changes):
    """What site.yml does."""
    prepare(host, machine, release, **changes).make_live()
    log = list(machine.log)
    prepare(host, machine, release, **changes).settle()
    return log


def state(host, release):
    return standing.read_state(host.releases("shop") / release)


def test_instances_restart_one_after_the_other_and_once(host, machine):
    assert switch(host, machine, OLD) == ["stop shop-0", "start shop-0 0", "stop shop-1", "start shop-1 0"]
    assert switch(host, machine, OLD) == []
    assert host.actions == []
    assert switch(host, machine, NEW) == ["stop shop-0", "start shop-0 1", "stop shop-1", "start shop-1 1"]
    assert releases.live_release(host, "shop") == NEW


def test_a_release_that_does_not_answer_takes_the_others_back(host, machine):
    switch(host, machine, OLD)
    machine.broken.add(NEW)
    with pytest.raises(ReleaseError, match=f"release {OLD} is live again"):
        switch(host, machine, NEW)
    assert machine.log == [
        "stop shop-0",
        "start shop-0 1",
        "stop shop-0",
        "start shop-0 0",
    ]  # the second was not touched
    with pytest.raises(ReleaseError, match="was found to be bad"):
        releases.judge_bad(host, "shop", NEW, "refuse")
    assert releases.judge_bad(host, "shop", NEW, "keep")
    assert not releases.judge_bad(host, "shop", NEW, "retry")
    assert not releases.judge_bad(host, "shop", OLD, "refuse")
    assert switch(host, machine, OLD) == []


def test_a_release_that_does_not_start_says_why_in_its_log(host, machine):
    switch(host, machine, OLD)
    machine.dead.add(NEW)
    (host.data / "shop.log").write_text("SystemExit: no database\n")
    with pytest.raises(ReleaseError) as caught:
        switch(host, machine, NEW)
    assert "shop-0 did not start\nthe end of its log:\nSystemExit: no database\n" in caught.value.problem
    assert f"release {OLD} is live again" in caught.value.problem
    assert str(host.data / "shop.log") in caught.value.fix


def test_without_a_good_release_there_is_none_to_go_back_to(host, machine):
    machine.broken.add(NEW)
    with pytest.raises(ReleaseError, match="no good release to go back to"):
        switch(host, machine, NEW)


def test_bad_settings_do_not_make_a_good_release_bad(host, machine):
    switch(host, machine, OLD)
    machine.broken.add(OLD)
    with pytest.raises(ReleaseError):
        switch(host, machine, OLD, env={"COLOUR": "red"})
    assert state(host, OLD)["verdict"] == "good"
    machine.broken.clear()
    assert machine.config("shop-0")["environment"].get("COLOUR") is None


def test_secrets_restart_every_instance_and_do_not_show(host, machine):
    switch(host, machine, OLD)
    host.diff.clear()
    assert len(switch(host, machine, OLD, secrets={"TOKEN": "hard-to-guess"})) == 4
    assert "hard-to-guess" not in json.dumps([host.diff, host.actions])


def test_what_runs_is_mended(host, machine):
    """A killed run leaves a new configuration and old processes; a crash leaves none."""
    switch(host, machine, OLD)
    machine.times[machine.pids["shop-1"]] -= 3600
    assert switch(host, machine, OLD) == ["stop shop-1", "start shop-1 0"]
    del machine.pids["shop-0"]
    assert switch(host, machine, OLD) == ["stop shop-0", "start shop-0 0"]


def test_check_mode_changes_nothing(host, machine):
    switch(host, machine, OLD)
    host.check = True
    before = {path: path.read_bytes() for path in host.data.rglob("*") if path.is_file()}
    prepare(host, machine, NEW, trial=True).make_live()
    assert [action for action in host.actions if action.startswith("restart")] == ["restart shop-0", "restart shop-1"]
    prepare(host, machine, NEW).settle()
    assert {path: path.read_bytes() for path in host.data.rglob("*") if path.is_file()} == before


def test_more_instances_start_and_the_running_ones_stay(host, machine):
    switch(host, machine, OLD)
    assert switch(host, machine, OLD, instances=3) == ["stop shop-2", "start shop-2 0"]


def test_a_new_release_answers_where_nobody_looks_before_visitors_meet_it(host, machine):
    switch(host, machine, OLD)
    twice = ["stop shop-0", "start shop-0 1", "stop shop-0", "start shop-0 1", "stop shop-1", "start shop-1 1"]
    prepare(host, machine, NEW, trial=True).make_live()
    assert machine.log == twice
    (first, aside), (second, known), last = machine.asked
    assert (first, second, known, last) == ("shop-0", "shop-0", 8001, ("shop-1", 8002))
    assert aside not in (8001, 8002)
    assert live.TRIAL not in json.dumps([machine.config("shop-0"), machine.config("shop-1")])


def test_a_release_that_fails_its_trial_meets_no_visitor(host, machine):
    switch(host, machine, OLD)
    machine.broken.add(NEW)
    with pytest.raises(ReleaseError, match=f"release {OLD} is live again"):
        prepare(host, machine, NEW, trial=True).make_live()
    assert [port for _, port in machine.asked] == [machine.asked[0][1], 8001]
    assert machine.asked[0][1] not in (8001, 8002)
    assert state(host, NEW)["verdict"] == "bad"


@pytest.mark.parametrize(
    ("live_now", "instances", "log"),
    [("", 2, 4), (OLD, 1, 2), (NEW, 2, 4)],  # nobody to disturb; the only one; the same release, configured anew
)
def test_no_trial_where_it_is_of_no_use(host, machine, live_now, instances, log):
    if live_now:
        switch(host, machine, live_now, instances=instances)
    prepare(host, machine, NEW, trial=True, instances=instances, env={"A": "b"}).make_live()
    assert len(machine.log) == log


def test_a_run_killed_in_a_trial_is_mended(host, machine):
    switch(host, machine, OLD)
    started = machine.start

    def killed(name, timeout):
        started(name, timeout)
        raise KeyboardInterrupt

    machine.start = killed
    with pytest.raises(KeyboardInterrupt):
        prepare(host, machine, NEW, trial=True).make_live()
    machine.start = started
    assert live.TRIAL in machine.config("shop-0")["environment"]
    again = prepare(host, machine, NEW, trial=True)
    assert again.live == OLD  # as long as the last instance is
    again.refuse_another_layout()
    again.make_live()
    assert machine.config("shop-0")["waitress"]["listen"] == "127.0.0.1:8001"
    assert len(machine.log) == 6


# -- and back


def give_up(host, machine, left="", to="", reason="x", previous=False, **changes):
    prepare(host, machine, left, **changes).give_up(to, left, reason, previous=previous)


def test_a_host_leaves_a_release_that_was_well_there_and_bad_elsewhere(host, machine):
    switch(host, machine, OLD, secrets={"TOKEN": "one"})
    prepare(host, machine, NEW, secrets={"TOKEN": "two"}).make_live()  # not settled: the fleet is not done
    give_up(host, machine, left=NEW, reason="win2: answered 500", secrets={"TOKEN": "two"})
    assert releases.live_release(host, "shop") == OLD
    assert json.loads(read(host.config("shop") / "secrets" / live.SECRETS)) == {"TOKEN": "one"}
    assert (state(host, NEW)["verdict"], state(host, NEW)["reason"]) == ("bad", "win2: answered 500")
    give_up(host, machine, left=NEW, reason="win2: answered 500")
    assert (machine.log, host.actions) == ([], [])


def test_a_host_that_has_not_switched_calls_it_bad_too_and_goes_on(host, machine):
    switch(host, machine, OLD)
    give_up(host, machine, left=NEW, reason="")  # it could not be built somewhere: nothing speaks against it
    assert state(host, NEW).get("verdict") is None
    give_up(host, machine, left=NEW, reason="app1: answered 500")
    assert machine.log == []
    assert state(host, NEW)["verdict"] == "bad"


def test_rollback_goes_to_the_one_before_that_is_not_bad(host, machine):
    third = "2" * 12
    (host.releases("shop") / third).mkdir()
    (host.releases("shop") / third / MARKER).write_text('{"built": "2026-01-03T00:00:00Z"}')
    for release in (OLD, NEW, third):
        switch(host, machine, release)
    give_up(host, machine, reason="rolled back", previous=True)
    prepare(host, machine, "").settle()
    assert releases.live_release(host, "shop") == NEW
    give_up(host, machine, reason="rolled back", previous=True)
    assert releases.live_release(host, "shop") == OLD
    rows = [(row["release"], row["live"], row["verdict"]) for row in releases.listed(host, "shop")]
    assert rows == [(third, False, "bad"), (NEW, False, "bad"), (OLD, True, "good")]
    with pytest.raises(ReleaseError, match="no other release was found to be good here"):
        give_up(host, machine, previous=True)
    give_up(host, machine, to=NEW, previous=True)
    assert releases.live_release(host, "shop") == NEW


def test_rollback_keeps_instances_and_ports_as_they_are_now(host, machine):
    switch(host, machine, OLD, instances=2)
    switch(host, machine, NEW, instances=3, port=9001)
    give_up(host, machine, previous=True)
    found = [machine.config(f"shop-{number}") for number in range(3)]
    assert {config["venv"].split("/")[-2] for config in found} == {OLD}
    assert [config["waitress"]["listen"][-4:] for config in found] == ["9001", "9002", "9003"]
    assert [config["service"] for config in found] == ["shop-0", "shop-1", "shop-2"]


def test_rollback_to_what_does_not_run_any_more_leaves_what_does(host, machine):
    switch(host, machine, OLD)
    switch(host, machine, NEW)
    machine.broken.add(OLD)
    with pytest.raises(ReleaseError, match=f"release {NEW} is live again"):
        give_up(host, machine, previous=True)
    assert releases.live_release(host, "shop") == NEW
    assert state(host, NEW)["verdict"] == "good"


def test_what_was_never_good_is_nothing_to_go_back_to(host, machine):
    switch(host, machine, OLD)
    with pytest.raises(ReleaseError, match=f"release {NEW} was never good here") as caught:
        give_up(host, machine, to=NEW, previous=True)
    assert OLD in caught.value.fix


def test_nothing_is_good_before_it_runs_as_configured(host, machine):
    prepare(host, machine, NEW).make_live()
    del machine.pids["shop-1"]
    with pytest.raises(ReleaseError, match="shop-1 should run"):
        prepare(host, machine, NEW).settle()
    assert state(host, NEW).get("verdict") is None


def test_a_bad_release_does_not_keep_the_live_one_from_being_mended(host, machine):
    switch(host, machine, OLD)
    del machine.pids["shop-1"]
    prepare(host, machine, NEW).mend()
    assert machine.log == ["stop shop-1", "start shop-1 0"]


@pytest.mark.parametrize("changes", [{"instances": 3}, {"port": 9001}, {"address": "0.0.0.0"}])
def test_a_deploy_brings_no_instances_and_no_ports(host, machine, changes):
    with pytest.raises(ReleaseError, match="has the instances none; wanted are shop-0 on 127"):
        prepare(host, machine, OLD).refuse_another_layout()
    switch(host, machine, OLD)
    prepare(host, machine, NEW).refuse_another_layout()
    with pytest.raises(ReleaseError, match="wanted are shop-0 on") as caught:
        prepare(host, machine, NEW, **changes).refuse_another_layout()
    assert "run site.yml" in caught.value.fix


# -- a whole request


LOCK = {"names": ["shop"], "purpose": "", "seconds": 9, "break_locks": False, "holder": {"id": "me"}}


@pytest.fixture
def run(host, machine, monkeypatch):
    """What the host answers to a state, with NEW as the release that is wanted."""
    monkeypatch.setattr(scm, "Services", lambda: machine)
    monkeypatch.setattr(scm, "owned_services", lambda program: ["shop-0", "shop-1", "old-0"])
    monkeypatch.setattr(scm, "firewall_rules", lambda group: [])

    def run(state, release=NEW, back=(), **changes):
        where = services.place(str(host.root), str(host.data), "python.exe", "host")
        app = prepare(host, machine, release).app
        request = {
            "state": state,
            "check": False,
            "root": where.root,
            "data": where.data,
            "environment": {},
            "timeout": 1,
            "bad": "keep",
            "service_host": "x",
            "rules": [],
            "removed": [],
            "brought": True,
            "front": None,
            "only": [],
            "wheels": "",
            "apps": [{**app, "kind": "package", "description": "x"}],
            "services": services.services(where, [services.complete(APP)], None),
            "rights": services.rights(where, [services.complete(APP)], None),
            "return": {"to": {}, "previous": False, "reason": "x", **dict(back)},
            "maintenance": {"status_port": 1, "files": {}, "digest": ""},
            "lock": LOCK,
            **changes,
        }
        answer = program.Run(request, "python.exe").answer()
        json.dumps(answer)
        return answer

    return run


def test_site_and_deploy_from_the_first_to_the_last_step(run, machine, host, gate_of_windows):
    site = run("built", OLD)
    assert (site["pending"], site["obsolete_services"]) == (["shop"], ["old-0"])
    assert run("live", OLD)["changed"]
    assert not run("finished", OLD)["changed"]
    assert run("built", OLD)["pending"] == []
    assert not run("live", OLD)["changed"]
    only = {"only": ["shop"]}
    assert run("held")["holders"] == {}
    assert run("held", lock={**LOCK, "holder": {"id": "other"}})["msg"] == "another run holds the lock"
    deploy = run("built", **only)
    assert (deploy["pending"], deploy["apps"]["shop"]) == (["shop"], {"id": NEW, "live": OLD})
    assert run("live", **only)["apps"]["shop"]["live"] == NEW
    assert state(host, NEW).get("verdict") is None
    back = run("returned", back={"reason": "win2: answered 500"}, **only)
    assert (back["changed"], back["apps"]["shop"]["live"]) == (True, OLD)
    assert not run("finished", **only)["changed"]
    rows = [(row["release"], row["live"], row["verdict"]) for row in run("listed")["releases"]]
    assert rows == [(NEW, False, "bad"), (OLD, True, "good")]
    refused = run("built", bad="refuse", **only)
    assert "win2: answered 500" in refused["msg"]
    kept = run("built")
    assert (kept["pending"], kept["warnings"]) == ([], [f"shop: release {NEW} is bad, so {OLD} stays"])
    assert not run("live")["changed"]
    assert run("built", bad="retry", **only)["pending"] == ["shop"]
    run("live", bad="retry", **only)
    run("finished", **only)
    assert state(host, NEW)["verdict"] == "good"
    assert run("returned", "", back={"previous": True}, **only)["apps"]["shop"]["live"] == OLD
    run("released")
    assert not (host.data / "locks/shop.json").exists()


def test_a_deploy_of_others_leaves_an_application_alone(run, machine):
    run("live", OLD)
    machine.log.clear()
    for step in ("built", "live", "returned", "finished"):
        assert not run(step, only=["other"]).get("failed")
    assert machine.log == []


# -- the lock


@pytest.fixture
def gate_of_windows(monkeypatch):
    calls = []
    fake = SimpleNamespace(LK_LOCK=1, LK_UNLCK=0, locking=lambda number, mode, size: calls.append(mode))
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    return calls


def test_a_lock_on_windows_is_that_of_linux(tmp_path, gate_of_windows):
    directory = tmp_path / "locks"
    wanted = {"names": ["shop", "api"], "purpose": "deploy", "seconds": 60, "break_locks": False}
    mine, other = ({**wanted, "holder": {"id": name, "who": name}} for name in ("mine", "other"))
    assert gate.hold(directory, mine, check=True) == {}
    assert not directory.exists()
    assert gate.hold(directory, mine, check=False) == {}
    assert gate.hold(directory, mine, check=False) == {}
    held = gate.hold(directory, other, check=False)
    assert {name: holder["who"] for name, holder in held.items()} == {"shop": "mine", "api": "mine"}
    gate.release(directory, other, check=False)
    assert gate.hold(directory, {**other, "dead": ["mine"]}, check=False) == {}
    gate.release(directory, other, check=False)
    assert sorted(path.name for path in directory.iterdir()) == [".lock"]
    assert gate_of_windows.count(1) == gate_of_windows.count(0) > 0


def test_old_releases_go_and_unfinished_ones_too(host):
    (host.releases("shop") / ("2" * 12)).mkdir()
    (host.releases("shop") / ("3" * 12)).mkdir()
    (host.releases("shop") / ("3" * 12) / MARKER).write_text('{"built": "2025-01-01T00:00:00Z"}')
    releases.prune(host, "shop", 2, {NEW})
    assert sorted(path.name for path in host.releases("shop").iterdir()) == [OLD, NEW]


# -- nginx in front


def front_request(**files):
    files = {name.replace("nginx__", "nginx.").replace("__", "/"): {"content": text} for name, text in files.items()}
    config = {"service": services.NGINX, "log_file": "x.log", "start_timeout": 1, "stop_timeout": 1}
    config["command"] = ["nginx.exe"]
    digest = json.dumps(files)
    told = {"files": files, "digest": digest, "status_port": 1}
    return {"id": "1", "config": config, "service_file": json.dumps(config), **told}


class Nginx(front.Front):
    """A running nginx that has the configuration of its last start or reload."""

    runs: ClassVar[dict] = {}
    reloads = True

    def __init__(self, host, machine, request, part=front.CONFIG):
        machine.config = lambda name: {"venv": "/0/venv"}
        machine.control = self.control
        super().__init__(host, machine, request, part)

    def control(self, name, code):
        if Nginx.reloads:
            Nginx.runs[self.part] = self.front["digest"]
        self.host.actions.append("reloaded")

    def _restart(self):
        self.host.actions.append("restarted")
        self.manager.start(self.service.name, 1)
        Nginx.runs[self.part] = self.front["digest"]

    def _answer(self):
        return Nginx.runs.get(self.part)


@pytest.fixture
def nginx(host, machine, monkeypatch):
    monkeypatch.setattr(front, "_RELOAD_SECONDS", 0.1)
    monkeypatch.setattr(Nginx, "runs", {front.MAINTENANCE: ""})
    monkeypatch.setattr(Nginx, "reloads", True)
    monkeypatch.setattr(Host, "run", lambda self, argv, step, **_: refuse(argv))

    def refuse(argv):
        staged = Path(argv[-1])
        assert staged.is_file()
        if "bad" in staged.read_text():
            raise ReleaseError("nginx", f"{staged}: unknown directive")

    def apply(**files):
        host.actions.clear()
        Nginx(host, machine, front_request(**files)).make_live()
        return [action for action in host.actions if not action.startswith("write")]

    return apply


def test_nginx_is_reloaded_for_what_is_new_and_left_alone_otherwise(nginx):
    assert nginx(nginx__conf="one") == ["restarted"]
    assert nginx(nginx__conf="one") == []
    assert nginx(nginx__conf="two")[1:] == ["reloaded"]


def test_nginx_is_restarted_when_a_reload_is_not_taken_up(nginx, host):
    nginx(nginx__conf="one")
    Nginx.reloads = False
    assert nginx(nginx__conf="two")[1:] == ["reloaded", "restarted"]
    assert "was restarted" in host.warnings[0]


def test_what_nginx_refuses_changes_nothing(nginx, host):
    nginx(nginx__conf="one")
    with pytest.raises(ReleaseError, match="the old one stays"):
        nginx(nginx__conf="bad")
    assert (host.data / "nginx/conf/nginx.conf").read_text() == "one"
    assert not (host.data / "nginx/conf.new").exists()


def test_files_that_are_not_wanted_any_more_go(nginx, host):
    nginx(nginx__conf="one", sites__old__conf="old")
    assert (host.data / "nginx/conf/sites/old/conf").is_file()
    nginx(nginx__conf="one")
    assert not (host.data / "nginx/conf/sites/old/conf").exists()


# -- who is in maintenance

MAP = "# managed\n/maintenance {};\n\nshop $wsgi_fleet_maintenance_1; # since 2026-03-01T12:00:00Z\n"
CLOSED = {"batches.conf": "geo 1", "sites.map": MAP, "sites.pages": "shop 1", "state.json": '{"shop": {}}\n'}


@pytest.fixture
def close(nginx, host, run, monkeypatch):
    """Closes sites by these files, or opens them without any; what the host answers."""
    monkeypatch.setattr(front, "Front", Nginx)

    def close(files=CLOSED, check=False):
        given = {f"maintenance/{name}": {"content": text} for name, text in files.items()}
        told = win_release._maintenance({"status_port": 1, "files": given})
        return run("maintained", maintenance=told, check=check, apps=[])

    nginx(nginx__conf="one")
    return close


def conf(host):
    """The files that nginx has, but for their contents."""
    directory = host.data / "nginx/conf"
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


RELOADED = [f"reload {services.NGINX}", "reloaded"]
IN_PLACE = ["maintenance", *(f"maintenance/{name}" for name in CLOSED), "nginx.conf"]


def done(answer):
    """What was done, by the names of the files alone."""
    return [action.replace("\\", "/").rpartition("/")[2] for action in answer["actions"]]


def test_maintenance_is_files_of_its_own_and_one_reload(close, host):
    assert done(close()) == [*CLOSED, *RELOADED]
    assert conf(host) == IN_PLACE
    assert close()["actions"] == []
    another = close({**CLOSED, "sites.pages": "shop 2"})
    assert done(another) == ["sites.pages", *RELOADED]
    assert [(diff["before"], diff["after"]) for diff in another["diff"]] == [("shop 1", "shop 2")]
    opened = close({})
    assert done(opened) == [*CLOSED, *RELOADED]
    assert [diff["after"] for diff in opened["diff"]] == [""] * 4
    assert conf(host) == ["nginx.conf"]
    assert close({})["actions"] == []


def test_check_mode_says_what_maintenance_would_do(close, host):
    told = close(check=True)
    assert done(told) == [*CLOSED, RELOADED[0]]
    assert any("# since 2026-03-01T12:00:00Z" in diff["after"] for diff in told["diff"])
    assert conf(host) == ["nginx.conf"]


def test_what_nginx_refuses_closes_nothing(close, host, monkeypatch):
    def refuse(self, argv, step, **_):
        assert (Path(argv[-1]).parent / "maintenance/sites.map").is_file()  # it is asked about all of it
        raise ReleaseError("nginx", "unknown variable")

    monkeypatch.setattr(Host, "run", refuse)
    assert close()["msg"] == "nginx: nginx: refuses its configuration; the old one stays: unknown variable"
    assert conf(host) == ["nginx.conf"]


def test_sites_and_maintenance_leave_each_other_alone(close, nginx, host):
    close()
    assert nginx(nginx__conf="two", sites__shop="shop")[-1] == "reloaded"
    assert conf(host) == sorted([*IN_PLACE, "sites", "sites/shop"])
    close({})
    assert conf(host) == ["nginx.conf", "sites", "sites/shop"]


@pytest.mark.parametrize("after", [CLOSED, {**CLOSED, "batches.conf": "geo 2", "sites.pages": "shop 2"}, {}])
@pytest.mark.parametrize("before", [{}, {**CLOSED, "batches.conf": "geo 3", "sites.pages": "shop 3"}])
@pytest.mark.parametrize("step", range(6))
def test_a_maintenance_that_was_killed_half_way_is_mended(close, host, monkeypatch, before, after, step):
    """Nginx could start with what is there at that moment: nothing refers to other definitions than there are."""
    close(before)
    left = iter(range(step))

    def fragile(function):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(front, "replace", fragile(front.replace))
        patched.setattr(Path, "unlink", fragile(Path.unlink))
        patched.setattr(Host, "run", lambda *_, **__: "")
        patched.setattr(Nginx, "_test", lambda *_: None)
        try:
            close(after)
        except KeyboardInterrupt:
            directory = host.data / "nginx/conf/maintenance"
            pages = read(directory / "sites.pages")
            assert pages is None or pages[-1:] == read(directory / "batches.conf")[-1:]
    close(after)
    assert conf(host) == (IN_PLACE if after else ["nginx.conf"])
    assert close(after)["actions"] == []


def test_a_reload_that_a_killed_run_owes_is_made(close):
    close()
    Nginx.runs[front.MAINTENANCE] = ""
    assert done(close()) == RELOADED


def test_the_role_reminds_of_a_maintenance_and_status_shows_it(close, run, host, monkeypatch):
    monkeypatch.setattr(front, "get", lambda probe: (200, "") if probe["path"] == "/maintenance" else (0, "refused"))
    told = {"id": "1"}
    assert run("finished", apps=[], front=told)["in_maintenance"] == ""
    assert run("asked", apps=[])["look"] == ""
    close()
    assert run("finished", apps=[], front=told)["in_maintenance"] == "shop since 2026-03-01T12:00:00Z"
    answer = run("asked")
    assert answer["look"].splitlines()[-1] == '{"shop": {}}'
    found = answer["maintenance"]
    assert (found["known"], base64.b64decode(found["state"])) == (True, b'{"shop": {}}\n')
    front.service_file(host).unlink()
    assert not run("asked")["maintenance"]["known"]  # whoever answers there, it is not ours


@pytest.mark.parametrize(("status", "known"), [(200, True), (404, False), (0, False)])
def test_nginx_of_another_configuration_knows_no_maintenance(close, run, monkeypatch, status, known):
    monkeypatch.setattr(front, "get", lambda probe: (status, ""))
    assert run("asked", apps=[])["maintenance"]["known"] is known


@pytest.mark.parametrize(
    ("output", "taken"),
    [
        ("[notice] x\nnginx: [emerg] bind() to 127.0.0.1:8079 failed (10013: Access denied)\n", True),
        ('nginx: [emerg] unknown directive "stub_status" in nginx.conf:59', False),
        ("[emerg] bind() to 0.0.0.0:80 failed\n[emerg] unknown directive", False),
        ("something else", False),
    ],
)
def test_ports_in_use_do_not_make_a_configuration_wrong(output, taken):
    assert front.only_ports_are_taken(output) is taken
