"""What goes with an application, what stays, and why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release import custody, removal
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError

NAME = "no-such-user"


class Host:
    """As much of a host as is asked here; its user is never there."""

    def __init__(self, place: Path, check: bool) -> None:
        self.check = check
        self.cache = place / "cache"
        self.config = place / "etc"
        self.manifest = {NAME: {"root": str(place / "srv"), "logs": str(place / "log")}}
        self.actions: list[str] = []
        self.left: list[str] = []
        self.warnings: list[str] = []
        self.removed = {NAME: False}
        self.saved = 0

    def act(self, text: str) -> bool:
        self.actions.append(text)
        return not self.check

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def save_manifest(self) -> None:
        self.saved += 1


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """All that an application may have."""
    home = tmp_path / "srv" / NAME
    for directory in (home / "releases/1234/src", home / "shared/uploads", tmp_path / "log" / NAME, tmp_path / "etc"):
        directory.mkdir(parents=True)
    (home / "releases/1234/release.json").touch()
    (home / "shared/uploads/photo").touch()
    (tmp_path / "log" / NAME / "gunicorn_0.log").touch()
    (tmp_path / "precious").touch()
    (home / "shared/link").symlink_to(tmp_path)
    (home / "current").symlink_to("releases/1234")
    (tmp_path / "cache/git" / f"{NAME}.git").mkdir(parents=True)
    return tmp_path


def run(action: Callable[..., None], place: Path, *, check: bool = False, keep_data: bool = False) -> Host:
    host = Host(place, check)
    host.removed = {NAME: keep_data}
    action(host, NAME, host.manifest[NAME])
    return host


def paths(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_erase_takes_all_of_it_and_nothing_else(place: Path) -> None:
    before = paths(place)
    foreseen = run(removal.erase, place, check=True)
    assert paths(place) == before
    host = run(removal.erase, place)
    assert paths(place) == ["cache", "cache/git", "etc", "log", "precious", "srv"]
    assert host.actions == foreseen.actions
    assert (host.manifest, host.saved, host.left) == ({}, 1, [])
    assert (len(foreseen.manifest), foreseen.saved) == (1, 0)


def test_what_was_half_erased_is_erased(place: Path) -> None:
    (place / "srv" / NAME / "shared").rename(place / "away")
    assert run(removal.erase, place).manifest == {}
    assert not (place / "srv" / NAME).exists()


def test_retire_keeps_data_and_logs(place: Path) -> None:
    host = run(removal.retire, place)
    assert [path for path in paths(place) if path.startswith("srv")] == [
        "srv",
        f"srv/{NAME}",
        f"srv/{NAME}/shared",
        f"srv/{NAME}/shared/link",
        f"srv/{NAME}/shared/uploads",
        f"srv/{NAME}/shared/uploads/photo",
    ]
    assert (place / "log" / NAME / "gunicorn_0.log").exists()
    assert len(host.manifest) == 1
    assert host.left == [f"{place}/srv/{NAME}/shared: holds data of {NAME}, so it stays, with its owner"]
    assert host.warnings == []
    assert run(removal.retire, place).actions == []


def test_erase_keeps_data_where_that_is_asked_for(place: Path) -> None:
    shared = place / "srv" / NAME / "shared"
    foreseen = run(removal.erase, place, check=True, keep_data=True)
    host = run(removal.erase, place, keep_data=True)
    assert paths(place) == sorted(
        ["cache", "cache/git", "etc", "log", "precious", "srv", f"srv/{NAME}"]
        + [f"srv/{NAME}/shared{path}" for path in ("", "/link", "/uploads", "/uploads/photo")]
    )
    assert host.actions == foreseen.actions
    assert host.left == [f"{shared}: holds data of {NAME}, so it stays, root's since its user went"]
    assert len(host.manifest) == 1
    assert run(removal.erase, place, keep_data=True).actions == []
    # what holds nothing is nothing to keep
    (shared / "link").unlink()
    shutil.rmtree(shared / "uploads")
    foreseen = run(removal.erase, place, check=True, keep_data=True)
    host = run(removal.erase, place, keep_data=True)
    assert host.actions == foreseen.actions
    assert (host.manifest, host.left, shared.parent.exists()) == ({}, [], False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of an application, of root, of both, and of somebody else."""
    shared = tmp_path / "shared"
    (shared / "uploads").mkdir(parents=True)
    (shared / "link").symlink_to("/etc/passwd")
    owners = {
        ".": (4711, 4712),
        "uploads": (4711, 4712),
        "uploads/photo": (4711, 4712),
        "link": (4711, 4712),
        "settings": (0, 4712),
        "key": (0, 0),
        "report": (4711, 33),
        "other": (5000, 5000),
    }
    for name, (uid, gid) in owners.items():
        path = shared / name
        if not path.exists():
            path.touch()
        os.chown(path, uid, gid, follow_symlinks=False)
    return shared


def owners(shared: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(shared)): (path.lstat().st_uid, path.lstat().st_gid) for path in shared.rglob("*")}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_data_are_roots_while_their_user_is_away(data: Path) -> None:
    before = owners(data)
    others = custody.strangers(data, 4711, 4712)
    assert others == {"settings": [0, None], "key": [0, 0], "report": [None, 33], "other": [5000, 5000]}
    custody.give_to_root(data, 4711, 4712)
    away = {name: (0 if uid == 4711 else uid, 0 if gid == 4712 else gid) for name, (uid, gid) in before.items()}
    assert owners(data) == away
    assert (data.stat().st_uid, data.stat().st_gid) == (0, 0)

    (data / "came meanwhile").touch()
    os.chown(data / "came meanwhile", 6000, 6000)
    # by another number, and from the middle
    custody.take_back(data / "uploads", others, 4811, 4812)
    custody.take_back(data, others, 4811, 4812)
    new = {4711: 4811, 4712: 4812}
    expected = {name: (new.get(uid, uid), new.get(gid, gid)) for name, (uid, gid) in before.items()}
    assert owners(data) == {**expected, "came meanwhile": (6000, 6000)}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("killed", [False, True])
def test_what_was_not_the_users_is_remembered_once(data: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    user = type("User", (), {"pw_uid": 4711, "pw_gid": 4712, "pw_dir": str(data)})
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda _: user)
    host, entry = Host(data.parent, check=False), {}
    if killed:  # after a part of it
        entry = {"kept": custody.strangers(data, 4711, 4712)}
        os.chown(data / "uploads", 0, 0)
    removal.hand_over(host, NAME, entry, data)
    assert entry["kept"] == {"settings": [0, None], "key": [0, 0], "report": [None, 33], "other": [5000, 5000]}
    assert host.saved == (0 if killed else 1)
    assert owners(data)["uploads"] == owners(data)["uploads/photo"] == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("action", [removal.retire, removal.erase])
def test_what_somebody_else_put_there_is_left_and_told(place: Path, action: Callable[..., None]) -> None:
    home, config = place / "srv" / NAME, place / "etc" / NAME
    config.mkdir()
    (config / "theirs").touch()
    (home / "notes").touch()
    os.chown(home, 0, 4711)
    (home / "shared/link").unlink()
    (home / "shared/uploads/photo").unlink()
    (home / "shared/uploads").rmdir()
    host = run(action, place)
    assert [path.name for path in home.iterdir()] == ["notes"]
    assert home.stat().st_gid == 0
    assert host.left[0] == f"{home}: wsgi.fleet did not make what it holds (notes)"
    assert (config / "theirs").exists()
    assert host.manifest == {}
    if action is removal.erase:
        assert host.left[1:] == [f"{config}: wsgi.fleet did not make what it holds (theirs)"]


def test_erase_does_not_follow_a_link_that_stands_for_a_directory(place: Path) -> None:
    shared = place / "srv" / NAME / "shared"
    shared.rename(place / "elsewhere")
    shared.symlink_to(place / "elsewhere")
    host = run(removal.erase, place)
    assert (place / "elsewhere/uploads/photo").exists()
    assert host.left == [f"{shared}: it is a link to {place}/elsewhere by now; remove both, then run again"]
    assert host.warnings
    assert len(host.manifest) == 1  # it is gone on with by the next run


def test_what_a_link_leads_to_keeps_its_owner(place: Path) -> None:
    shared = place / "srv" / NAME / "shared"
    shared.rename(place / "elsewhere")
    shared.symlink_to(place / "elsewhere")
    if os.geteuid() == 0:
        os.chown(place / "elsewhere", 4711, 4712)
    before = (place / "elsewhere").stat().st_uid
    host = run(removal.erase, place, keep_data=True)
    assert (place / "elsewhere").stat().st_uid == before
    assert host.left == [f"{shared}: it is a link to {place}/elsewhere by now; remove it, then run again"]
    assert f"{NAME}: remove system user" not in host.actions
    assert len(host.manifest) == 1


def test_erase_stops_at_other_file_systems(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = place / "srv" / NAME / "shared"
    monkeypatch.setattr(removal, "mounts_in", lambda path, _: [f"{path}/disk"] if path == shared else [])
    host = run(removal.erase, place)
    assert (shared / "uploads/photo").exists()
    assert host.left == [f"{shared}: a file system is mounted at {shared}/disk; unmount it, then run again"]
    assert len(host.manifest) == 1


def test_nothing_goes_while_its_processes_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda _: type("User", (), {"pw_uid": os.getuid(), "pw_dir": "/"}))
    before = paths(place)
    with pytest.raises(ReleaseError, match="cannot be removed while its processes run"):
        run(removal.erase, place)
    assert paths(place) == before


def test_another_user_of_that_name_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda _: type("User", (), {"pw_uid": 4711, "pw_dir": "/home/other"}))
    host = run(removal.erase, place)
    assert f"{NAME}: remove system user" not in host.actions
    assert host.left == [f"/home/other: user {NAME} has his home there, so he is not the one that wsgi.fleet made"]


@pytest.mark.parametrize(
    ("point", "counts"),
    [
        ("/srv/a/shared", True),
        ("/srv/a/shared/in/it", True),
        (r"/srv/a/shared/with\040space", True),
        ("/srv/a", False),
        ("/srv/a/shared2", False),
        ("/", False),
    ],
)
def test_mounts_are_found(point: str, counts: bool) -> None:
    line = f"36 35 98:0 / {point} rw,noatime master:1 - ext3 /dev/root rw"
    assert bool(removal.mounts_in(Path("/srv/a/shared"), [line])) is counts


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        ([], ""),
        ([{"name": "old", "keep_data": False}], ""),
        ("old", "expected a list of records"),
        (["old"], "expected a list of records"),
        ([{"name": "shop"}], "shop: is in the applications as well"),
    ],
)
def test_list_of_what_to_remove_is_checked(removed: object, problem: str) -> None:
    found = removal.removal_problems(removed, [{"name": "shop"}])
    assert (problem in found[0]) if problem else found == []
