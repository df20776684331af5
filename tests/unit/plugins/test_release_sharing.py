"""Files that two releases have in common."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release import host


@pytest.fixture
def releases(tmp_path: Path) -> tuple[Path, Path]:
    """A live release and a new one, with one file that differs in each way in which files can."""
    files = {
        "same.py": ("print(1)", "print(1)"),
        "package/same.so": ("x" * 70000, "x" * 70000),
        "other content": ("one", "two"),
        "other length": ("one", "three"),
        "other mode": ("one", "one"),
        "only new": (None, "one"),
        "link there": (None, "one"),
        "beyond/secret": (None, "root:x"),
    }
    live, new = tmp_path / "live", tmp_path / "new"
    for name, texts in files.items():
        for release, text in zip((live, new), texts, strict=True):
            if text is not None:
                (release / name).parent.mkdir(parents=True, exist_ok=True)
                (release / name).write_text(text)
    (live / "other mode").chmod(0o755)
    (live / "link there").symlink_to("other length")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("root:x")
    (live / "beyond").symlink_to(tmp_path / "outside")
    return live, new


def content(release: Path) -> dict[str, tuple[str, int]]:
    files = (path for path in release.rglob("*") if path.is_file())
    return {str(path.relative_to(release)): (path.read_text(), path.stat().st_mode) for path in files}


def test_equal_files_become_one_and_others_stay(releases: tuple[Path, Path]) -> None:
    live, new = releases
    before = content(live), content(new)
    host.share_files(new, live)
    assert (content(live), content(new)) == before
    shared = {name for name in before[1] if (new / name).stat().st_nlink > 1}
    assert shared == {"same.py", "package/same.so"}
    assert all((new / name).samefile(live / name) for name in shared)
    host.share_files(new, live)  # once more finds nothing to do
    assert content(new) == before[1]


def test_what_the_file_system_refuses_stays_a_copy(
    releases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, new = releases

    def refuse(*_: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    before = content(new)
    host.share_files(new, live)
    assert content(new) == before
    assert (new / "same.py").stat().st_nlink == 1
