"""Windows hosts: what is worked out for them, and their half of win_release with services of our own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.wsgi.fleet.plugins.action import win_release
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import MARKER
from ansible_collections.wsgi.fleet.plugins.module_utils.windows import front, live, releases, scm, services
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
    assert found[1]["probe"] == {"host": "localhost", "path": "/", "below": 500, "address": "127.0.0.1", "port": 8002}


@pytest.mark.parametrize(
    ("address", "listen", "asked"),
    [
        ("0.0.0.0", "0.0.0.0:8001", "127.0.0.1"),
        ("::", "[::]:8001", "::1"),
        ("192.0.2.5", "192.0.2.5:8001", "192.0.2.5"),
    ],
)
def test_an_instance_is_asked_where_it_listens(address, listen, asked):
    found = services.instances(WHERE, services.complete({**APP, "address": address}), NEW)[0]
    assert (found["config"]["waitress"]["listen"], found["probe"]["address"]) == (listen, asked)


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
        release = self.config(f"shop-{probe['port'] - 8001}")["venv"].split("/")[-2]
        return "is answered with 500" if release in self.broken else ""


@pytest.fixture
def host(tmp_path):
    host = Host(root=tmp_path / "root", data=tmp_path / "data", python="python.exe")
    for release in (OLD, NEW):
        directory = host.releases("shop") / release
        directory.mkdir(parents=True)
        (directory / MARKER).write_text(json.dumps({"built": f"2026-01-0{1 + int(release[0])}T00:00:00Z"}))
    return host


@pytest.fixture
def machine(host, monkeypatch):
    machine = Machine(host)
    monkeypatch.setattr(live, "ask", machine.ask)
    return machine


def switch(host, machine, release, **changes):
    app = services.complete({**APP, "health_timeout": 0, **changes})
    where = services.place(str(host.root), str(host.data), "python.exe", "host")
    request = {**app, "id": release, "subdirectory": "", "instances": services.instances(where, app, release)}
    for instance in request["instances"]:
        instance["config"]["log_file"] = str(host.data / "shop.log")
    machine.log.clear()
    host.actions.clear()
    live.Switch(host, machine, request).make_live()
    return machine.log


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
        releases.refuse_bad(host, "shop", NEW, "refuse")
    releases.refuse_bad(host, "shop", NEW, "retry")
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
    releases.refuse_bad(host, "shop", OLD, "refuse")


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
    assert switch(host, machine, NEW) == []
    assert [action for action in host.actions if action.startswith("restart")] == ["restart shop-0", "restart shop-1"]
    assert {path: path.read_bytes() for path in host.data.rglob("*") if path.is_file()} == before


def test_more_instances_start_and_the_running_ones_stay(host, machine):
    switch(host, machine, OLD)
    assert switch(host, machine, OLD, instances=3) == ["stop shop-2", "start shop-2 0"]


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
    digest = json.dumps(files)
    return {"id": "1", "config": config, "service_file": "{}", "files": files, "digest": digest, "status_port": 1}


class Nginx(front.Front):
    """A running nginx that has the configuration of its last start or reload."""

    runs = ""
    reloads = True

    def __init__(self, host, machine, request):
        machine.config = lambda name: {"venv": "/0/venv"}
        machine.control = self.control
        super().__init__(host, machine, request)

    def control(self, name, code):
        if Nginx.reloads:
            Nginx.runs = self.front["digest"]
        self.host.actions.append("reloaded")

    def _restart(self):
        self.host.actions.append("restarted")
        self.manager.start(self.service.name, 1)
        Nginx.runs = self.front["digest"]

    def _answer(self):
        return Nginx.runs


@pytest.fixture
def nginx(host, machine, monkeypatch):
    monkeypatch.setattr(front, "_RELOAD_SECONDS", 0.1)
    monkeypatch.setattr(Nginx, "runs", "")
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
