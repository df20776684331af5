"""How releases go live, with real servers on real sockets; links and files are those of a temporary host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release import live, standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.build import Job
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import parse_app

# Answers on the socket that it finds in its standard input, as gunicorn does with fd://0.
SERVER = """
import socket, sys, time
status = sys.argv[1]
if status == "exit":
    sys.exit("no module named shop")
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    if status == "hang":
        time.sleep(60)
    connection.sendall(f"HTTP/1.0 {status} X\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    connection.close()
"""


class Host:
    """A host as release.host.Host makes one, in a directory, whose commands are only noted."""

    def __init__(self, root: Path, *, check: bool = False) -> None:
        self.root, self.config, self.logs = root / "srv", root / "etc", root / "log"
        self.check = check
        self.actions: list[str] = []
        self.commands: list[str] = []
        self.secrets = ["Hard-to-guess"]
        self.fails = ""

    def act(self, text: str) -> bool:
        self.actions.append(text)
        return not self.check

    def linked(self, name: str, link: str) -> str:
        path = self.root / name / link
        return path.readlink().name if path.is_symlink() else ""

    def set_link(self, name: str, link: str, release: str) -> None:
        path = self.root / name / link
        path.unlink(missing_ok=True)
        path.symlink_to(f"releases/{release}")

    def command(self, argv: list[str], step: str, timeout: int = 0) -> str:
        self.commands.append(f"{step}: {' '.join(argv[1:])}")
        if self.fails and self.fails in self.commands[-1]:
            raise ReleaseError(step, "it failed")
        return ""


@pytest.fixture
def host(tmp_path: Path) -> Any:
    made = Host(tmp_path)
    for name in ("old", "new"):
        release = made.root / "shop" / "releases" / name
        release.mkdir(parents=True)
        (release / "release.json").write_text(json.dumps({"id": name}))
    config = made.config / "shop"
    config.mkdir(parents=True)
    (config / "env").write_text("export A=1\n")
    (config / "run").write_text('#!/bin/sh\n[ "$1" != --next ] || shift\nexec "$@"\n')
    (config / "run").chmod(0o755)
    made.set_link("shop", "next", "new")
    return made


def job(serve: str = "", **more: Any) -> Job:
    record: dict[str, Any] = {
        "name": "shop",
        "probes": [{"name": "its socket", "socket": "/nowhere", "host": "shop", "path": "/healthz", "below": 400}],
        "health_timeout": 2,
        **more,
    }
    if serve:
        record["serve"] = [sys.executable, "-c", SERVER, serve]
    return Job(parse_app(record))


def state(host: Host, release: str) -> dict[str, Any]:
    return standing.read_state(host.root / "shop" / "releases" / release)


def make_good(host: Host, release: str) -> None:
    host.set_link("shop", "current", release)
    standing.mark_good(host.root / "shop" / "releases" / release, host.config / "shop")
    standing.write_state(host.root / "shop" / "releases" / release, settled=True)


def test_release_that_answers_goes_live(host: Any) -> None:
    one = job("204", check=["gunicorn", "--check-config"], hooks={"before_switch": [["flush"]]})
    live.switched(host, [one], {})
    assert one.failure is None
    assert host.linked("shop", "current") == "new"
    assert host.commands == ["check: --next gunicorn --check-config", "hook before_switch: --next flush"]
    live.switched(host, [one], {})
    assert len(host.actions) == 1


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        ("500", "http://shop/healthz over a trial socket answered 500"),
        ("404", "answered 404"),
        ("hang", "gave no answer (timed out)"),
        ("exit", "the server ended with status 1\nno module named shop"),
    ],
)
def test_release_that_is_not_well_does_not_go_live(host: Any, serve: str, said: str) -> None:
    make_good(host, "old")
    one = job(serve)
    live.switched(host, [one], {})
    assert one.failure is not None
    assert one.failure.step == "trial"
    assert said in one.failure.problem
    assert host.linked("shop", "current") == "old"


def test_trial_is_held_once_for_a_release_and_a_configuration(host: Any) -> None:
    live.tried(host, [job("200")])
    bad = job("500")  # would fail, if it were asked
    live.tried(host, [bad])
    assert bad.failure is None
    (host.config / "shop" / "env").write_text("export A=2\n")
    live.tried(host, [bad])
    assert bad.failure is not None


def test_live_release_is_tried_with_a_configuration_that_is_new(host: Any) -> None:
    make_good(host, "new")
    known = job("500")  # would fail, if it were asked
    live.tried(host, [known])
    assert known.failure is None
    (host.config / "shop" / "env").write_text("export A=2\n")
    well, bad = job("200"), job("500")
    live.tried(host, [bad])
    assert bad.failure is not None
    assert "what is new is not well, so it did not go live" in bad.failure.problem
    live.tried(host, [well])
    assert well.failure is None


def test_check_mode_tries_and_switches_nothing(host: Any) -> None:
    make_good(host, "old")
    host.check = True
    for step in (live.checked, live.tried):
        step(host, [job("500", check=["false"])])
    live.migrated(host, [job(migrate=["upgrade"])], {})
    live.switched(host, [job("500", check=["false"])], {})
    assert host.actions == ["shop: migrate with new", "shop: current: old -> new"]
    assert host.commands == []
    assert host.linked("shop", "current") == "old"


def test_migration_runs_once_and_again_after_it_failed(host: Any) -> None:
    one = job(migrate=["flask", "db", "upgrade"])
    host.fails = "upgrade"
    live.migrated(host, [one], {})
    assert one.failure is not None
    host.fails, again = "", job(migrate=["flask", "db", "upgrade"])
    for _ in range(2):
        live.migrated(host, [again], {})
    assert again.failure is None
    assert host.commands == ["migrate: --next flask db upgrade"] * 2


def test_unwell_release_is_not_good(host: Any) -> None:
    host.set_link("shop", "current", "new")
    (host.logs / "shop").mkdir(parents=True)
    (host.logs / "shop" / "gunicorn_0.log").write_text("Traceback: no such table\n")
    one = job()
    live.finished(host, [one])
    assert one.failure is not None
    assert "no such table" in one.failure.problem
    assert "verdict" not in state(host, "new")


def test_going_back_takes_the_configuration_along(host: Any) -> None:
    make_good(host, "old")
    (host.config / "shop" / "env").write_text("export A=2\n")
    host.set_link("shop", "current", "new")
    live.returned(host, [job()], {}, previous=False, reason="answered 500\nand more")
    assert [host.linked("shop", link) for link in ("current", "next")] == ["old", "old"]
    assert (host.config / "shop" / "env").read_text() == "export A=1\n"
    assert state(host, "new")["verdict"] == "bad"
    assert state(host, "new")["reason"] == "answered 500\nand more"
    assert not live.is_settled(host.root / "shop" / "releases" / "old", host.config / "shop")  # until it was asked
    before = list(host.actions)
    live.returned(host, [job()], {}, previous=False, reason="again")
    assert host.actions == before


def test_host_that_was_lost_does_not_make_a_release_bad(host: Any) -> None:
    make_good(host, "old")
    live.returned(host, [job()], {}, previous=False, reason="")
    assert host.linked("shop", "next") == "old"
    assert "verdict" not in state(host, "new")


def test_rollback_leaves_a_good_release_and_names_what_there_is(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"])
    monkeypatch.setattr(standing, "now", lambda: next(times))
    make_good(host, "old")
    make_good(host, "new")
    live.returned(host, [job()], {}, previous=True, reason="rolled back")
    assert host.linked("shop", "current") == "old"
    stuck = job()
    live.returned(host, [stuck], {}, previous=True, reason="rolled back")
    assert stuck.failure is not None
    assert "name one of those that are there: new, old" in stuck.failure.fix
    named = job()
    live.returned(host, [named], {"shop": "gone"}, previous=True, reason="x")
    assert named.failure is not None
    assert "release gone is not there" in named.failure.problem


def test_nobody_caches_answers_of_two_releases(host: Any) -> None:
    """From before the link changes, there and back, until who runs was found to be well; also when a run was killed."""
    changing = host.root / "shop" / "current.changing"
    make_good(host, "old")
    calm = job(probes=[])
    live.switched(Host(host.root.parent, check=True), [calm], {})
    assert not changing.exists()
    live.switched(host, [calm], {})
    assert changing.exists()
    live.judged(host, [job()])  # it does not answer
    assert changing.exists()
    live.judged(host, [calm])
    assert not changing.exists()

    live.returned(host, [calm], {}, previous=False, reason="bad")
    assert changing.exists()
    live.finished(host, [calm])
    assert not changing.exists()

    changing.touch()
    dry = Host(host.root.parent, check=True)
    live.finished(dry, [calm])
    assert dry.actions == ["shop: its answers may be cached again"]
    live.finished(host, [calm])
    assert not changing.exists()
    assert calm.failure is None
