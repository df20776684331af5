"""What of a release everybody may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import is_published, publish, seal


@pytest.fixture
def release(tmp_path: Path) -> Path:
    made = tmp_path / "abc"
    for path in ("src/build/static/css/a.css", "src/build/secret.txt", "src/wsgi.py", "venv/bin/python"):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(path)
    (made / "src/build/static/link").symlink_to("../secret.txt")
    (made / "src/away").symlink_to("/etc")
    seal(made, os.getgid())
    return made


def for_everybody(release: Path) -> set[str]:
    """What somebody else can read, the directories on the way included."""
    found = set()

    def look(path: Path) -> None:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o004:
            found.add(str(path.relative_to(release)))
        elif stat.S_ISDIR(mode) and mode & 0o001:
            for child in path.iterdir():
                look(child)

    look(release)
    return found


def test_only_what_is_public_can_be_read(release: Path) -> None:
    assert is_published(release, [])
    assert not is_published(release, ["build/static"])
    assert for_everybody(release) == set()
    publish(release, ["build/static"])
    assert is_published(release, ["build/static"])
    assert for_everybody(release) == {"src/build/static/css/a.css"}
    publish(release, [])
    assert is_published(release, [])
    assert for_everybody(release) == set()


def test_what_is_not_there_or_leads_away_is_left_alone(release: Path) -> None:
    mode = Path("/etc").stat().st_mode
    publish(release, ["none", "away", "away/ssl"])
    assert is_published(release, ["none", "away", "away/ssl"])
    assert for_everybody(release) == set()
    assert Path("/etc").stat().st_mode == mode


def test_what_is_interrupted_shows(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "chmod", fail)
    with pytest.raises(KeyboardInterrupt):
        publish(release, ["build/static"])
    monkeypatch.undo()
    assert not is_published(release, ["build/static"])
