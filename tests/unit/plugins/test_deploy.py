"""Who may deploy, what is kept of a release, what the playbooks of a deploy decide, and how logs are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.wsgi.fleet.plugins.action import lock as action
from ansible_collections.wsgi.fleet.plugins.module_utils import locks
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _deploy, _projections
from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.modules import releases, watch

# --- what is known of a release


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("a1", "b2", "c3"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "env").write_text("export A=1\n")
    (tmp_path / "etc" / "env").chmod(0o640)
    (tmp_path / "etc" / "run").write_text("#!/bin/sh\n")
    return tmp_path


def test_good_release_keeps_its_configuration(home: Path) -> None:
    release, live = home / "releases" / "a1", home / "etc"
    assert not standing.is_good(release, live)
    standing.mark_good(release, live)
    assert standing.is_good(release, live)
    assert (release / "config" / "env").stat().st_mode & 0o777 == 0o640
    (live / "env").write_text("export A=2\n")
    assert not standing.is_good(release, live)
    assert standing.restore_config(release, live, check=True) == ["env"]
    assert (live / "env").read_text() == "export A=2\n"
    assert standing.restore_config(release, live, check=False) == ["env"]
    assert (live / "env").read_text() == "export A=1\n"
    assert (live / "env").stat().st_mode & 0o777 == 0o640
    assert standing.restore_config(release, live, check=False) == []
    assert sorted(path.name for path in live.iterdir()) == ["env", "run"]


def test_configuration_that_was_kept_in_part_is_not_put_back(home: Path) -> None:
    release, live = home / "releases" / "a1", home / "etc"
    standing.mark_good(release, live)
    (release / "config" / "run").unlink()  # as if killed while copying
    (live / "env").write_text("export A=2\n")
    assert standing.restore_config(release, live, check=False) == []
    assert (live / "env").read_text() == "export A=2\n"


def test_last_good_passes_over_bad_and_unknown_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"])
    monkeypatch.setattr(standing, "now", lambda: next(times))
    all_releases, live = home / "releases", home / "etc"
    assert standing.last_good(all_releases) == ""
    standing.mark_good(all_releases / "b2", live)
    standing.mark_good(all_releases / "a1", live)
    assert standing.last_good(all_releases) == "a1"
    assert standing.last_good(all_releases, without="a1") == "b2"
    standing.mark_bad(all_releases / "a1", "answered 500")
    assert standing.last_good(all_releases) == "b2"
    assert standing.read_state(all_releases / "a1")["reason"] == "answered 500"
    assert (all_releases / "a1" / "state.json").stat().st_mode & 0o777 == 0o600


def test_list_says_what_is_live_and_what_is_bad(home: Path) -> None:
    for name, built in (("a1", "2026-01-01"), ("b2", "2026-01-02")):
        marker = {"id": name, "built": built, "source": f"git {name}"}
        (home / "releases" / name / "release.json").write_text(json.dumps(marker))
    standing.mark_bad(home / "releases" / "b2", "answered 500")
    (home / "current").symlink_to("releases/a1")
    rows = releases.look(home)  # c3 is not complete
    assert [(row["release"], row["live"], row["verdict"], row["reason"]) for row in rows] == [
        ("b2", False, "bad", "answered 500"),
        ("a1", True, "not judged", ""),
    ]
    table = _deploy.release_rows(["app1"], {"app1": {"releases_found": {"releases": rows}}})
    assert [row["state"] for row in table] == ["bad", "live, not judged"]


# --- the lock

HOLDER = {"id": "m:7:1", "machine": "m", "pid": 7, "until": 1000.0}


@pytest.mark.parametrize(
    ("mine", "dead", "now", "force", "held"),
    [
        ("m:8:1", [], 500.0, False, True),
        ("m:7:1", [], 500.0, False, False),  # our own
        ("m:8:1", ["m:7:1"], 500.0, False, False),
        ("m:8:1", [], 1001.0, False, False),
        ("m:8:1", [], 500.0, True, False),
    ],
)
def test_lock_of_another_living_run(
    tmp_path: Path, mine: str, dead: list[str], now: float, force: bool, held: bool
) -> None:
    (tmp_path / "shop.json").write_text(json.dumps(HOLDER))
    (tmp_path / "odd.json").write_text("no lock")
    files = {name: tmp_path / f"{name}.json" for name in ("shop", "odd", "free")}
    assert list(locks.others(files, mine, dead, now, force=force)) == (["shop"] if held else [])


def test_run_is_dead_when_its_process_is_gone_or_another() -> None:
    me: dict[str, Any] = action.this_run(os.getpid())
    assert not action.is_dead(me)
    assert action.is_dead({**me, "id": f"{me['machine']}:{me['pid']}:1"})  # its number was used again
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert action.is_dead({**me, "pid": ended.pid, "id": f"{me['machine']}:{ended.pid}:5"})
    assert action.is_dead({**me, "pid": ended.pid, "id": f"{me['machine']}:{ended.pid}:"})  # it had ended before
    assert not action.is_dead({**me, "machine": "another", "pid": ended.pid})  # who knows


def test_what_a_killed_run_leaves_takes_no_lock() -> None:
    with subprocess.Popen(["sleep", "60"]) as foster:  # a process that is there, and no Ansible: it adopted us
        try:
            for pid in (foster.pid, 2**22 + 1):
                with pytest.raises(AnsibleActionFail, match="has ended"):
                    action.this_run(pid)
        finally:
            foster.kill()


# --- what the playbooks decide

PLAN = {
    "apps": {"shop": {}, "status": {}},
    "hosts": {
        "app1": {"apps": ["shop", "status"], "inner": True, "edge": False},
        "both": {"apps": ["shop"], "inner": True, "edge": True},
    },
}


@pytest.mark.parametrize(
    ("only", "chosen"),
    [([], ["shop", "status"]), ("status, shop", ["shop", "status"]), (["status"], ["status"])],
)
def test_chosen_apps(only: Any, chosen: list[str]) -> None:
    assert _deploy.chosen_apps(PLAN, only) == chosen


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, ""),
        ({"wsgi_rollout": "50%", "wsgi_drain": "true", "wsgi_apps_only": "shop"}, ""),
        ({"wsgi_rollout": [1, "25%", "100%"], "wsgi_canary_seconds": "0", "wsgi_canary_errors": "2.5"}, ""),
        ({"wsgi_release": {"shop": "3f2a9c0d1e4b"}}, ""),
        (
            {"wsgi_apps_only": "shop,shopp"},
            "wsgi_apps_only: 'shopp' is no app of this inventory; known are shop, status",
        ),
        ({"wsgi_apps_only": ""}, "wsgi_apps_only[0]: is empty"),
        ({"wsgi_rollout": []}, "wsgi_rollout: is an empty list"),
        ({"wsgi_rollout": [0]}, "wsgi_rollout: '0' is no batch"),
        ({"wsgi_rollout": ["120%"]}, "wsgi_rollout: '120%' is no batch"),
        ({"wsgi_rollout": [True]}, "wsgi_rollout: 'True' is no batch"),
        ({"wsgi_canary_seconds": "soon"}, "wsgi_canary_seconds: is 'soon', must be a number from 0 to 3600"),
        ({"wsgi_canary_errors": 101}, "wsgi_canary_errors: is '101'"),
        ({"wsgi_bad_releases": "ignore"}, "wsgi_bad_releases: is 'ignore', must be one of refuse, retry, keep"),
        ({"wsgi_drain": "perhaps"}, "wsgi_drain: is 'perhaps', must be true or false"),
        ({"wsgi_release": {"shopp": "3f2a9c0d1e4b"}}, "wsgi_release: 'shopp' is no app"),
        ({"wsgi_release": {"shop": "v1"}}, "wsgi_release.shop: is 'v1', must be the id of a release"),
        ({"wsgi_release": "3f2a9c0d1e4b"}, "wsgi_release: is a string, must be a mapping"),
        ({"wsgi_rollouts": ["1"]}, "wsgi_rollouts: is no known key; did you mean wsgi_rollout?"),
    ],
)
def test_options_of_a_deploy(asked: dict[str, Any], message: str) -> None:
    found = _deploy.deploy_errors(asked, PLAN)
    assert len(found) == bool(message)
    assert message in "".join(found)


def test_problems_and_lost_hosts_stop_all_others() -> None:
    hostvars: dict[str, Any] = {
        "app1": {"deploy_ready": True},
        "app2": {"deploy_problem": "Build: no space"},
        "app3": {},
    }
    assert _deploy.deploy_problems(list(hostvars), hostvars) == ["app2: Build: no space"]
    found = _deploy.deploy_problems(list(hostvars), hostvars, "deploy_ready")
    assert found == ["app2: Build: no space", "app3: could not be reached, or ended before it had to"]
    report = _deploy.deploy_report(found, list(hostvars), hostvars)
    assert "look at them first:\napp1: could not be reached any more" in report
    for known in hostvars.values():
        known["deploy_back"] = True
    assert "all hosts serve what was good" in _deploy.deploy_report(found, list(hostvars), hostvars)
    del hostvars["app1"]["deploy_back"]
    hostvars["app1"]["deploy_stuck"] = "Run: FATAL"
    assert "look at them first:\napp1: Run: FATAL" in _deploy.deploy_report(found, list(hostvars), hostvars)


def test_release_is_blamed_only_where_every_host_could_build_it() -> None:
    hostvars: dict[str, Any] = {
        "app1": {"deploy_built": True},
        "app2": {"deploy_built": True, "deploy_problem": "Ask what is live: shop: answered 500"},
        "app3": {"deploy_built": True},  # lost since
        "app4": {"deploy_built": True, "app_judged": {"unreachable": True}, "deploy_problem": "could not be reached"},
    }
    assert _deploy.deploy_blame(list(hostvars), hostvars) == "app2: Ask what is live: shop: answered 500"
    hostvars["app3"] = {"deploy_problem": "Build: No space left on device"}
    assert _deploy.deploy_blame(list(hostvars), hostvars) == ""


def test_access_logs_are_those_of_the_host_itself() -> None:
    assert _projections.access_logs(PLAN, "app1", ["shop"]) == {"shop": "/var/log/nginx/shop.access.log"}
    assert _projections.access_logs(PLAN, "both", ["shop"]) == {"shop": "/var/log/nginx/shop_inner.access.log"}


# --- the watch

LINE = '192.0.2.1 - - [01/Mar/2026:12:00:00 +0000] "{}" {} 12 "-" "agent \\"x\\" 500" host=x\n'


def test_status_is_told_from_other_numbers() -> None:
    lines = [LINE.format("GET /a?b=\\x22 HTTP/1.1", 200), LINE.format("GET / HTTP/1.1", 502), "rubbish", '"" 400 0']
    assert watch.count(lines) == {"requests": 3, "errors": 1}


def test_only_what_is_added_counts_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(LINE.format("GET / HTTP/1.1", 500))
    log = watch.Log(path)
    assert log.added() == []
    with path.open("a") as stream:
        stream.write(LINE.format("GET / HTTP/1.1", 200))
    assert watch.count(log.added()) == {"requests": 1, "errors": 0}
    path.rename(tmp_path / "access.log.1")
    path.write_text(LINE.format("GET / HTTP/1.1", 503))
    assert watch.count(log.added()) == {"requests": 1, "errors": 1}
    assert watch.Log(tmp_path / "none").added() == []


@pytest.mark.parametrize(
    ("upstream", "counts"),
    [
        ('upstream_addr="192.0.2.31:8001"', 1),
        ('upstream_addr="192.0.2.31:8002, 192.0.2.31:8001"', 1),
        ('upstream_addr="192.0.2.31:8001, 192.0.2.11:80"', 0),
        ('upstream_addr="192.0.2.31:80010"', 0),
        ('upstream_addr="-"', 0),
    ],
)
def test_only_what_a_server_answered_counts(upstream: str, counts: int) -> None:
    line = LINE.format("GET /", 500).strip()
    assert watch.count([f"{line} {upstream}"], ["192.0.2.31:8001"]) == {"requests": counts, "errors": counts}
    json_line = f'{{"request":"GET /","status":502,"upstream":{upstream.partition("=")[2]},"x":1}}'
    assert watch.count([json_line], ["192.0.2.31:8001"]) == {"requests": counts, "errors": counts}
