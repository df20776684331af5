"""What a release is made of: identities, sources on their way, and how failures are told."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.action.release import merge
from ansible_collections.wsgi.fleet.plugins.module_utils.release import errors, identity, sources
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App, parse_app

C1, C2, C3 = "1" * 40, "2" * 40, "3" * 40


def app(**given: Any) -> App:
    return parse_app({"name": "shop", "source": {"git": "/x", "version": "main"}, **given})


# --- ids


def the_id(one: App, commit: str = C1, python: str = "cpython-311") -> str:
    return identity.release_id(
        identity.release_inputs(one, identity.source_identity(one.source, commit), python),
    )


def test_id_is_stable() -> None:
    """A new release of this collection must not rebuild every application of every fleet."""
    assert the_id(app(packages=["gunicorn==27.0.1"])) == "1f2f38b45606"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (app(), app(source={"git": "/elsewhere", "version": "v1"}), True),  # the same commit under other names
        (app(), app(keep_releases=9), True),
        (app(packages=["a", "b"]), app(packages=["b", "a", "b"]), True),
        (app(), app(packages=["a"]), False),
        (app(requirements=["a", "b"]), app(requirements=["b", "a"]), False),
        (app(), app(source={"git": "/x", "version": "main", "subdirectory": "web"}), False),
    ],
)
def test_what_decides_the_id(one: App, other: App, same: bool) -> None:
    assert (the_id(one) == the_id(other)) is same


def test_commit_and_interpreter_decide_the_id() -> None:
    assert len({the_id(app()), the_id(app(), C2), the_id(app(), C1, "cpython-313")}) == 3


@pytest.mark.parametrize(
    ("source", "commit", "expected", "told"),
    [
        ({"git": "/x", "version": "v1"}, C1, f"git:{C1}", "git v1 (111111111111)"),
        ({"git": "/x", "version": C1}, C1, f"git:{C1}", f"git {C1}"),
        ({"package": "Flask_App", "version": "1.0"}, "", "package:flask-app==1.0", "package Flask_App 1.0"),
        ({"archive": "/a/x.tgz", "digest": "sha256:abc"}, "", "archive:sha256:abc", "archive x.tgz (abc)"),
        ({"archive": "https://h/x.tgz?a=b", "checksum": "sha256:abc"}, "", "archive:sha256:abc", "archive x.tgz (abc)"),
        ({"path": "/a/shop", "digest": "sha256:abc"}, "", "path:sha256:abc", "path shop (abc)"),
    ],
)
def test_source_identity(source: dict[str, str], commit: str, expected: str, told: str) -> None:
    parsed = app(source=source).source
    assert identity.source_identity(parsed, commit) == expected
    assert identity.describe(parsed, expected) == told


LISTING = f"""{C1}\trefs/heads/main
{C2}\trefs/tags/v1
{C3}\trefs/tags/v1^{{}}
{C2}\trefs/tags/light
{C1}\trefs/heads/both
{C2}\trefs/tags/both
{C1}\trefs/heads/alike
{C1}\trefs/tags/alike
{C3}\trefs/heads/x/refs/heads/other
{C1}\tHEAD
"""


@pytest.mark.parametrize(
    ("version", "commit"),
    [
        ("main", C1),
        ("v1", C3),  # an annotated tag is not a commit
        ("light", C2),
        ("alike", C1),
        ("refs/tags/both", C2),
        ("refs/heads/both", C1),
        ("HEAD", C1),
    ],
)
def test_resolve_ref(version: str, commit: str) -> None:
    assert identity.resolve_ref(LISTING, version) == commit


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("both", "is both a branch and a tag"),
        ("v9", "has no branch or tag 'v9'"),
        ("other", "has no branch or tag 'other'"),
        ("0123abc", "looks like a shortened commit"),
    ],
)
def test_resolve_ref_refuses(version: str, problem: str) -> None:
    with pytest.raises(ReleaseError, match=problem) as caught:
        identity.resolve_ref(LISTING, version)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("version", "commit"),
    [(C1, True), ("a" * 64, True), (C1[:12], False), (C1.replace("1", "g"), False), ("main", False)],
)
def test_is_commit(version: str, commit: bool) -> None:
    assert identity.is_commit(version) is commit


@pytest.mark.parametrize(
    ("executable", "tag"), [("/usr/bin/python3.11", "cpython-311"), ("/usr/bin/python3", ""), ("", "")]
)
def test_interpreter_tag(executable: str, tag: str) -> None:
    assert identity.interpreter_tag(executable) == tag


@pytest.mark.parametrize(
    ("files", "hashed"),
    [
        ({"r.txt": "flask==3.0\n"}, False),
        ({"r.txt": "flask==3.0 --hash=sha256:00\n"}, True),
        ({"r.txt": "flask==3.0 \\\n    --hash=sha256:00\n"}, True),
        ({"r.txt": "# flask==3.0 --hash=sha256:00\nflask==3.0 # no --hash= here\n"}, False),
        ({"r.txt": "-r base/b.txt\n", "base/b.txt": "-r c.txt\n", "base/c.txt": "a==1 --hash=sha256:00"}, True),
        ({"r.txt": "-r r.txt\n--requirement=b.txt", "b.txt": "a"}, False),
        ({"r.txt": "-r https://example.com/r.txt\n"}, False),
    ],
)
def test_uses_hashes(files: dict[str, str], hashed: bool) -> None:
    assert identity.uses_hashes(["r.txt"], files.__getitem__) is hashed


@pytest.mark.parametrize(
    ("text", "project"),
    [("[project]\nname = 'x'", True), ("[build-system]\n", True), ("[tool.ruff]\n", False), ("[tool.project]", False)],
)
def test_is_project(text: str, project: bool) -> None:
    assert identity.is_project(text) is project


@pytest.mark.parametrize(
    ("protected", "keep", "gone"),
    [
        (["r4"], 5, []),
        (["r4"], 2, ["r1", "r2"]),
        (["r1"], 2, ["r2", "r3"]),  # gone back to an old one: it is live
        (["r1", "r2"], 2, ["r3", "r4"]),
        (["r1", "r2"], 3, ["r3"]),
        (["", "r4"], 2, ["r1", "r2"]),
        ([], 2, ["r1", "r2"]),
    ],
)
def test_obsolete(protected: list[str], keep: int, gone: list[str]) -> None:
    times = {"r1": "2026-01-01", "r2": "2026-01-02", "r3": "2026-01-03", "r4": "2026-01-04"}
    assert identity.obsolete(times, protected, keep) == gone


# --- directories of the controller


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("wsgi.py", False),
        (".git", True),
        ("a/b/__pycache__", True),
        ("a/x.pyc", True),
        ("a/x.pyi", False),
        (".env", False),
        ("db.sqlite3", True),
        ("docs/build", True),
        ("x/docs/build", False),
    ],
)
def test_is_excluded(name: str, left: bool) -> None:
    assert sources.is_excluded(name, [*sources.EXCLUDED, "*.sqlite3", "docs/build"]) is left


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg" / "__pycache__").mkdir(parents=True)
    (root / "pkg" / "__pycache__" / "x.pyc").touch()
    (root / "empty").mkdir()
    (root / "pkg" / "wsgi.py").write_text("app = 1\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o700)
    (root / "link").symlink_to("pkg/wsgi.py")
    return root


def test_tree_is_packed_and_unpacked_whole(tree: Path, tmp_path: Path) -> None:
    entries = sources.walk_tree(tree)
    assert [(entry.kind, entry.name) for entry in entries] == [("l", "link"), ("f", "pkg/wsgi.py"), ("x", "run")]
    assert sources.pack_tree(entries, tmp_path / "packed") == sources.tree_digest(entries)
    target = tmp_path / "target"
    target.mkdir()
    sources.extract(tmp_path / "packed", target, strip=False)
    assert sources.tree_digest(sources.walk_tree(target)) == sources.tree_digest(entries)
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "pkg/wsgi.py").stat().st_mode) == 0o644


def test_tree_with_one_directory_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "tree/pkg").mkdir(parents=True)
    (tmp_path / "tree/pkg/x.py").touch()
    (tmp_path / "target").mkdir()
    sources.pack_tree(sources.walk_tree(tmp_path / "tree"), tmp_path / "packed")
    sources.extract(tmp_path / "packed", tmp_path / "target", strip=False)
    assert (tmp_path / "target/pkg/x.py").is_file()


def test_times_do_not_count_and_the_rest_does(tree: Path) -> None:
    def digest() -> str:
        return sources.tree_digest(sources.walk_tree(tree))

    before = digest()
    os.utime(tree / "run", (1, 1))
    (tree / "empty" / "__pycache__").mkdir()
    assert digest() == before
    seen = {before}
    (tree / "run").chmod(0o644)
    seen.add(digest())
    (tree / "run").write_text("#!/bin/bash\n")
    seen.add(digest())
    (tree / "run").rename(tree / "start")
    seen.add(digest())
    (tree / "link").unlink()
    (tree / "link").symlink_to("start")
    seen.add(digest())
    assert len(seen) == 5


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "pkg/../../x"])
def test_links_out_of_the_tree_are_refused(tree: Path, target: str) -> None:
    (tree / "out").symlink_to(target)
    with pytest.raises(ReleaseError, match="outside of the source"):
        sources.walk_tree(tree)
    sources.walk_tree(tree, ["out"])


def test_pipes_are_refused(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(ReleaseError, match="no file, link or directory"):
        sources.walk_tree(tree)


# --- archives


def tar(path: Path, *members: tuple[str, Any], mode: str = "w:gz") -> Path:
    """Members: a name and a text, or a name and what to set on its TarInfo."""
    with tarfile.open(path, mode) as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, str):
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what.encode()))
                continue
            for key, value in what.items():
                setattr(info, key, value)
            archive.addfile(info)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_one_directory_around_everything_is_dropped(tmp_path: Path, target: Path, mode: str) -> None:
    sources.extract(tar(tmp_path / "x", ("shop-1/a.py", "x"), ("shop-1/b/c.py", "y"), mode=mode), target, strip=True)
    assert sorted(path.name for path in target.iterdir()) == ["a.py", "b"]


@pytest.mark.parametrize("members", [[("a.py", "x")], [("a/x", "x"), ("b/y", "y")], [("a/x", "x"), ("b", "y")]])
def test_other_archives_stay_as_they_are(tmp_path: Path, target: Path, members: list[tuple[str, str]]) -> None:
    sources.extract(tar(tmp_path / "x", *members), target, strip=True)
    assert all((target / name).is_file() for name, _ in members)


def test_zip_with_modes_and_links(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for name, mode, text in (("s/run", 0o100755, "x"), ("s/a.py", 0o100644, "y"), ("s/link", 0o120777, "a.py")):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, text)
    sources.extract(tmp_path / "x", target, strip=True)
    assert os.access(target / "run", os.X_OK)
    assert (target / "link").read_text() == "y"


def test_hard_links_become_files(tmp_path: Path, target: Path) -> None:
    members = [("s/a", "x"), ("s/b", {"type": tarfile.LNKTYPE, "linkname": "s/a"})]
    sources.extract(tar(tmp_path / "x", *members), target, strip=True)
    assert (target / "b").read_text() == "x"
    assert (target / "b").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("/etc/x", "x")], "would be written outside"),
        ([("a/../../x", "x")], "would be written outside"),
        ([("a\\..\\x", "x")], "would be written outside"),
        ([("d", {"type": tarfile.CHRTYPE})], "no file, directory or link"),
        ([("p", {"type": tarfile.FIFOTYPE})], "no file, directory or link"),
        ([("l", {"type": tarfile.SYMTYPE, "linkname": "/etc"})], "outside of the release"),
        ([("a/l", {"type": tarfile.SYMTYPE, "linkname": "../../x"})], "outside of the release"),
        ([("h", {"type": tarfile.LNKTYPE, "linkname": "../x"})], "would be written outside"),
        ([("h", {"type": tarfile.LNKTYPE, "linkname": "etc"})], "a file that it lacks"),
        ([("l", {"type": tarfile.SYMTYPE, "linkname": "d"}), ("l/x", "x")], "both as a link and as something else"),
        ([("a", "x"), ("a/b", "x")], "as a file and as a directory"),
    ],
)
def test_archives_that_are_up_to_something(
    tmp_path: Path, target: Path, members: list[tuple[str, Any]], problem: str
) -> None:
    with pytest.raises(ReleaseError, match=problem):
        sources.extract(tar(tmp_path / "x", *members), target, strip=False)
    assert not (tmp_path / "x.py").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "x"]


def test_damaged_archives(tmp_path: Path, target: Path) -> None:
    whole = tar(tmp_path / "x", ("a", "x" * 9999), ("b", "y" * 9999)).read_bytes()
    (tmp_path / "x").write_bytes(whole[:-30])
    with pytest.raises(ReleaseError, match=r"damaged|neither"):
        sources.extract(tmp_path / "x", target, strip=True)
    (tmp_path / "x").write_text("hello")
    with pytest.raises(ReleaseError, match="neither a tar nor a zip"):
        sources.extract(tmp_path / "x", target, strip=True)


# --- failures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fatal: https://me:hidden@x/y failed", "fatal: https://********@x/y failed"),
        ("token hidden-token here", "token ******** here"),
        ("ssh://git@x/y", "ssh://********@x/y"),
        ("no secret https://x/y@z", "no secret https://x/y@z"),
    ],
)
def test_scrub(text: str, expected: str) -> None:
    assert errors.scrub(text, ["hidden-token", "1"]) == expected


def test_environment_secrets() -> None:
    found = errors.environment_secrets(
        {"UV_DEFAULT_INDEX": "https://me:p%40ss@x/simple", "A_TOKEN": "abcdef", "UV_HTTP_TIMEOUT": "60"},
    )
    assert {"p@ss", "p%40ss", "abcdef"} <= set(found)
    assert not {"60", "me"} & set(found)


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        ("error: invalid peer certificate: UnknownIssuer\nNo solution found", "authority"),
        ("git@x: Permission denied (publickey).", "ssh_key"),
        ("Host key verification failed.", "ssh_known_hosts"),
        ("No solution found when resolving dependencies", "align"),
        ("x.c:1: fatal error: Python.h: No such file or directory", "python_build_packages"),
        ("something else", ""),
    ],
)
def test_suggest_fix(output: str, fix: str) -> None:
    assert fix in errors.suggest_fix(output)
    assert bool(fix) == bool(errors.suggest_fix(output))


def test_failure_message() -> None:
    failures = [{"app": "shop", "step": "install", "problem": "uv said\nno", "fix": "align"}]
    assert errors.failure_message(failures, 2) == (
        "1 of 2 applications failed; the others are done.\nshop: install: uv said\n    no\n    Fix: align"
    )
    assert errors.failure_message(failures, 1) == "shop: install: uv said\n    no\n    Fix: align"


def test_two_answers_become_one() -> None:
    first = {
        "changed": True,
        "apps": {"a": 1},
        "actions": ["x"],
        "failures": [{"app": "b", "step": "s", "problem": "p"}],
    }
    second = {"changed": True, "apps": {"c": 2}, "actions": ["y"], "wanted": []}
    merged = merge(dict(first, failed=True), dict(second), 3)
    assert merged["apps"] == {"a": 1, "c": 2}
    assert merged["actions"] == ["x", "y"]
    assert merged["failed"]
    assert merged["msg"].startswith("1 of 3 applications failed")
    assert merge({"changed": True, "actions": ["x"]}, {"failed": True, "msg": "crash"}, 1)["changed"]
