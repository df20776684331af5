"""wsgi.fleet.tree: what happens on the host, in a directory of our own."""

from __future__ import annotations

import fcntl
import getpass
import grp
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Union
from unittest.mock import patch

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.tree import trial
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.engine import apply
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import TEMPORARY, temporary_path
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import Directory, File, Request, TreeError, Trial

USER = getpass.getuser()
GROUP = grp.getgrgid(os.getegid()).gr_name
Content = Union[str, bytes, File]


class Host:
    """A host as far as the engine sees one: a root, a state directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "etc" / "nginx"
        self.root.parent.mkdir()
        self.state = base / "state"

    def request(
        self,
        files: dict[str, Content],
        *,
        name: str = "nginx",
        directories: dict[str, int] | None = None,
        tests: tuple[Trial, ...] = (),
        timeout: int = 5,
        keep: tuple[str, ...] = (),
    ) -> Request:
        return Request(
            name=name,
            root=str(self.root),
            files=tuple(
                replace(content, path=path) if isinstance(content, File) else file(content, path=path)
                for path, content in files.items()
            ),
            directories=tuple(Directory(path, USER, GROUP, mode) for path, mode in (directories or {}).items()),
            tests=tests,
            timeout=timeout,
            keep=keep,
        )

    def apply(self, files: dict[str, Content], **options: Any) -> dict[str, Any]:
        keywords = {key: options.pop(key) for key in ("check", "lock_seconds", "label") if key in options}
        return apply(self.request(files, **options), diff=True, state_directory=str(self.state), **keywords)

    def put(self, path: str, content: str = "foreign\n", mode: int = 0o644) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)
        return target

    def manifest(self, name: str = "nginx") -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.state / f"{name}.json").read_text())
        return loaded

    def everything(self, top: Path | None = None) -> dict[str, str]:
        """All that is under root (or `top`): path -> mode and content."""
        top = top or self.root
        found = {}
        for path in sorted([top, *top.rglob("*")]):
            mode = f"{stat.S_IMODE(path.lstat().st_mode):04o}"
            if path.is_symlink():
                what = f"-> {path.readlink()}"
            elif path.is_dir():
                what = f"{mode}/"
            else:
                what = f"{mode} {path.read_text()}"
            if path.exists() or path.is_symlink():
                found[str(path.relative_to(top))] = what
        return found

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.base.rglob("*") if TEMPORARY.fullmatch(path.name)]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    previous = os.umask(0o077)  # as on a hardened host: no mode may depend on it
    host = Host(tmp_path)
    yield host
    os.umask(previous)
    assert host.leftovers() == []


def file(content: str | bytes, *, path: str = "", mode: int = 0o644, secret: bool = False, owner: str = USER) -> File:
    data = content if isinstance(content, bytes) else content.encode()
    return File(path, data, owner, GROUP, mode, secret)


def command(*argv: str, name: str = "t", **options: Any) -> Trial:
    values = {"chdir": None, "user": None, "file": None, "when_changed": frozenset(), **options}
    return Trial(argv=argv, name=name, **values)


def shell(script: str, **options: Any) -> Trial:
    return command("sh", "-c", script, **options)


# ------------------------------------------------------------------------------------------------ the plain way


def test_first_run_then_nothing_to_do(host: Host) -> None:
    wanted: dict[str, Content] = {"a.conf": "a\n", "sites/b.conf": file("b\n", mode=0o600)}
    result = host.apply(wanted)
    assert result["changed"] is True
    assert result["changed_files"] == ["a.conf", "sites/b.conf"]
    assert host.everything() == {".": "0755/", "a.conf": "0644 a\n", "sites": "0755/", "sites/b.conf": "0600 b\n"}

    inodes = [path.stat().st_ino for path in host.root.rglob("*")]
    assert host.apply(wanted) == {
        "changed": False, "changed_files": [], "removed_files": [], "diff": [], "unchecked": [],
    }  # fmt: skip
    assert inodes == [path.stat().st_ino for path in host.root.rglob("*")]


def test_missing_parents_of_root_are_open_to_all(host: Host) -> None:
    host.root = host.base / "opt" / "x" / "conf"
    host.apply({"a": "a"}, tests=(command("grep", "a", "{root}/a"),))
    assert stat.S_IMODE((host.base / "opt").stat().st_mode) == 0o755
    assert stat.S_IMODE(host.root.parent.stat().st_mode) == 0o755


def test_only_what_differs_is_touched(host: Host) -> None:
    host.apply({"a": "1", "b": "1"})
    before = (host.root / "a").stat().st_ino
    result = host.apply({"a": "1", "b": "2"})
    assert result["changed_files"] == ["b"]
    assert (host.root / "a").stat().st_ino == before


def test_check_mode_reports_and_touches_nothing(host: Host) -> None:
    result = host.apply({"a": "a\n", "x/b": "b"}, check=True)
    assert result["changed"] is True
    assert result["changed_files"] == ["a", "x/b"]
    assert not host.root.exists()
    assert not host.state.exists()
    host.apply({"a": "a\n", "x/b": "b"})
    before = host.everything(host.base)
    result = host.apply({"a": "2"}, check=True, directories={".": 0o700})
    assert (result["changed_files"], result["removed_files"]) == (["a"], ["x/b"])
    assert host.everything(host.base) == before


def test_drift_is_repaired_and_shown_without_content(host: Host) -> None:
    host.apply({"a": file("text\n", mode=0o600)}, directories={"d": 0o750})
    (host.root / "a").chmod(0o666)
    (host.root / "d").chmod(0o777)
    result = host.apply({"a": file("text\n", mode=0o600)}, directories={"d": 0o750})
    assert result["changed_files"] == ["a"]
    assert [(entry["before"], entry["after"]) for entry in result["diff"]] == [
        (f"mode 0777, owner {USER}:{GROUP}\n", f"mode 0750, owner {USER}:{GROUP}\n"),
        (f"mode 0666, owner {USER}:{GROUP}\n", f"mode 0600, owner {USER}:{GROUP}\n"),
    ]
    assert host.everything()["a"] == "0600 text\n"
    assert host.everything()["d"] == "0750/"


def test_every_new_file_is_labelled_before_it_is_live(host: Host) -> None:
    seen: list[tuple[bool, str]] = []

    def label(temporary: str, target: str) -> None:
        seen.append((Path(target).exists() and temporary != target, str(Path(target).relative_to(host.root))))

    host.apply({"a": "a", "d/b": "b"}, label=label)
    assert seen == [(False, "."), (False, "d"), (False, "a"), (False, "d/b")]


# ---------------------------------------------------------------------------------------------- what is removed


def test_stale_files_go_and_foreign_ones_stay(host: Host) -> None:
    host.apply({"sites/a": "a", "sites/b": "b", "old/deep/c": "c"})
    host.put("sites/foreign")
    host.put("old/foreign")
    result = host.apply({"sites/a": "a"})
    assert result["removed_files"] == ["old/deep/c", "sites/b"]
    assert host.everything() == {
        ".": "0755/", "old": "0755/", "old/foreign": "0644 foreign\n", "sites": "0755/", "sites/a": "0644 a",
        "sites/foreign": "0644 foreign\n",
    }  # fmt: skip


def test_directories_that_we_made_go_with_their_last_file(host: Host) -> None:
    host.put("there/foreign").unlink()  # a directory that is not ours
    wanted: dict[str, Content] = {"there/a": "a", "ours/deep/b": "b", "keep/c": "c"}
    host.apply(wanted, directories={"listed": 0o755})
    result = host.apply({"keep/c": "c"}, directories={"listed": 0o755})
    assert sorted(host.everything()) == [".", "keep", "keep/c", "listed", "there"]
    assert [e["before_header"][len(str(host.root)) :] for e in result["diff"] if e["before"] == "directory\n"] == [
        "/ours/deep", "/ours",
    ]  # fmt: skip
    assert host.apply({"keep/c": "c"})["changed"] is True  # the listed one goes as well
    assert host.apply({"keep/c": "c"})["changed"] is False
    host.apply({})
    assert host.apply({})["changed"] is False
    assert sorted(host.everything()) == [".", "there"]


def test_callers_share_a_directory(host: Host) -> None:
    def app(files: dict[str, Content], *listed: str) -> dict[str, Any]:
        return host.apply(files, name="app", directories=dict.fromkeys(listed, 0o755))

    app({"shop/env": "1", "blog/env": "1"}, ".", "shop", "blog")
    host.apply({"shop/conf": "1", "blog/conf": "1"}, name="gunicorn")
    app({"blog/env": "1"}, ".", "blog")
    assert sorted(host.everything()) == [".", "blog", "blog/conf", "blog/env", "shop", "shop/conf"]
    host.apply({"blog/conf": "1"}, name="gunicorn")  # the last file of a directory that the other made
    assert sorted(host.everything()) == [".", "blog", "blog/conf", "blog/env"]
    assert app({"blog/env": "1"}, ".", "blog")["changed"] is False
    with pytest.raises(TreeError, match=r"/blog/env belongs to 'app'; 'gunicorn' cannot have it too"):
        host.apply({"blog/conf": "1", "blog/env": "2"}, name="gunicorn")


def test_what_is_to_be_kept_stays_and_stays_ours(host: Host) -> None:
    host.apply({"shop/conf": "1", "shop2/conf": "1", "blog/conf": "1"})
    assert host.apply({"blog/conf": "2"}, keep=("shop",))["removed_files"] == ["shop2/conf"]
    assert host.apply({"blog/conf": "2"}, keep=("shop",))["changed"] is False
    host.put("shop/conf", "put back from a copy")
    assert host.apply({"blog/conf": "2"}, keep=("shop",))["changed"] is False
    assert host.everything()["shop/conf"] == "0644 put back from a copy"
    assert host.apply({"blog/conf": "2"})["removed_files"] == ["shop/conf"]
    assert sorted(host.everything()) == [".", "blog", "blog/conf"]


def test_files_under_an_earlier_root_go_too(host: Host) -> None:
    host.apply({"a": "a"})
    first = host.root
    host.root = host.base / "etc" / "other"
    result = host.apply({"a": "a"}, tests=(command("test", "-f", "{root}/a"),))
    assert result["changed_files"] == ["a"]
    assert result["removed_files"] == [str(first / "a")]
    assert not first.exists()


def test_what_somebody_else_put_in_place_of_ours_is_not_removed(host: Host) -> None:
    host.apply({"d/a": "a", "e/b": "b", "c": "c"})
    (host.root / "d/a").unlink()
    (host.root / "d").rmdir()
    elsewhere = host.put("real/a")
    (host.root / "d").symlink_to("real")
    (host.root / "e/b").unlink()
    host.put("e/b/x")
    result = host.apply({})
    assert elsewhere.read_text() == "foreign\n"
    assert (host.root / "e/b/x").exists()
    assert result["removed_files"] == ["c"]


# ----------------------------------------------------------------------------------------- what was there before


def test_adopted_file_is_kept_and_comes_back(host: Host) -> None:
    host.put("a", "original\n", 0o640)
    (host.root / "link").symlink_to("/nowhere")
    host.apply({"a": "ours\n", "link": "ours\n"})
    host.apply({"a": "ours 2\n", "link": "ours\n"})
    assert host.everything() == {".": "0700/", "a": "0644 ours 2\n", "link": "0644 ours\n"}
    result = host.apply({})
    assert (result["changed_files"], result["removed_files"]) == (["a", "link"], [])
    assert host.everything() == {".": "0700/", "a": "0640 original\n", "link": "-> /nowhere"}
    assert not [path for path in (host.state / "nginx.orig").rglob("*") if not path.is_dir()]
    assert host.apply({})["changed"] is False


def test_a_link_is_replaced_and_not_followed(host: Host) -> None:
    target = host.put("../target", "target\n")
    (host.root / "a").symlink_to("../target")
    host.apply({"a": "ours\n"})
    assert target.read_text() == "target\n"
    assert not (host.root / "a").is_symlink()


def test_no_writing_through_a_linked_directory(host: Host) -> None:
    outside = host.base / "outside"
    outside.mkdir()
    host.put("x")
    (host.root / "d").symlink_to(outside)
    for files, directories in (({"d/a": "a"}, {}), ({}, {"d": 0o755}), ({"d/e/f": "a"}, {}), ({}, {"d/e": 0o755})):
        with pytest.raises(TreeError, match=r"/d must be a directory but is a link to .*/outside"):
            host.apply(files, directories=directories)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "wanted", "message"),
    [
        ("a/x", "a", "/a is a directory and cannot be replaced by a file. Move it away."),
        ("a", "a/x", "/a must be a directory but is none. Move it away."),
    ],
)
def test_files_and_directories_do_not_replace_each_other(host: Host, make: str, wanted: str, message: str) -> None:
    host.put(make)
    with pytest.raises(TreeError, match="Move it away") as error:
        host.apply({wanted: "x"})
    assert str(error.value) == f"{host.root}{message}"
    assert (host.root / make).read_text() == "foreign\n"


def test_a_socket_is_neither_replaced_nor_staged(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.put("x")
    monkeypatch.chdir(host.root)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(TreeError, match="/s is no regular file and cannot be replaced"):
            host.apply({"s": "x"})
        host.apply({"a": "a"}, tests=(shell("test ! -e {root}/s && test -f {root}/x"),))


def test_root_that_is_no_directory(host: Host) -> None:
    host.root.write_text("")
    with pytest.raises(TreeError, match=r"root .* is not a directory"):
        host.apply({"a": "a"})


def test_unknown_owner(host: Host) -> None:
    files: dict[str, Content] = {"a": "a", "b": file("b", owner="nobody-knows")}
    with pytest.raises(TreeError, match=r"/b: owner 'nobody-knows' does not exist on this host. Create it first"):
        host.apply(files)
    assert not host.root.exists()
    result = host.apply(files, check=True)
    assert result["changed_files"] == ["a", "b"]
    assert result["unchecked"] == ["owner nobody-knows does not exist yet"]


# --------------------------------------------------------------------------------------------------------- diffs


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("old\n", "new\n", ("old\n", "new\n")),
        (None, "new\n", ("", "new\n")),
        ("old\n", None, ("old\n", "")),
        ("old\n", file("new\n", secret=True), ("", "(secret content changed)\n")),
        (file("old\n", secret=True), "new\n", ("", "(secret content changed)\n")),
        (None, file("new\n", secret=True), ("", "(secret content changed)\n")),
        (file("old\n", secret=True), None, ("", "(secret content removed)\n")),
        (None, b"\0\1", ("", f"(binary content, 2 bytes, sha256 {hashlib.sha256(bytes([0, 1])).hexdigest()})\n")),
        (None, b"\xff\n", ("", "\ufffd\n")),
        (None, "x" * 104449, ("", f"(104449 bytes, sha256 {hashlib.sha256(b'x' * 104449).hexdigest()})\n")),
    ],
)
def test_diffs(host: Host, before: Content | None, after: Content | None, shown: tuple[str, str]) -> None:
    host.apply({"keep": ""} if before is None else {"keep": "", "a": before})
    (entry,) = host.apply({"keep": ""} if after is None else {"keep": "", "a": after})["diff"]
    assert entry["before_header"] == entry["after_header"] == f"{host.root}/a"
    assert (entry["before"], entry["after"]) == shown


def test_a_stranger_s_closed_file_is_not_shown(host: Host) -> None:
    host.put("a", "his password\n", 0o600)
    assert "password" not in str(host.apply({"a": "ours\n"}, check=True))
    host.apply({"a": "ours\n"})
    result = host.apply({})  # it comes back
    assert result["changed_files"] == ["a"]
    assert "password" not in str(result)


# --------------------------------------------------------------------------------------------------------- tests


def test_tests_see_the_whole_new_state(host: Host) -> None:
    host.put("conf.d/foreign", "f\n", 0o640)
    (host.root / "abs").symlink_to(host.root / "conf.d/foreign")
    (host.root / "rel").symlink_to("conf.d/foreign")
    (host.root / "out").symlink_to("/etc/hostname")
    host.apply({"stale": "s", "gone/x": "x"})
    seen = host.base / "seen"
    script = f"cd {{root}} && pwd > {seen} && find . -printf '%p %m %l\\n' | sort >> {seen}"
    host.apply({"new/a": file("a", mode=0o600)}, directories={".": 0o750, "new": 0o711}, tests=(shell(script),))
    stage, *lines = seen.read_text().splitlines()
    assert lines == [
        ". 750 ", f"./abs 777 {stage}/conf.d/foreign", "./conf.d 700 ", "./conf.d/foreign 640 ", "./new 711 ",
        "./new/a 600 ", "./out 777 /etc/hostname", "./rel 777 conf.d/foreign",
    ]  # fmt: skip
    assert Path(stage).parent == host.root.parent
    assert TEMPORARY.fullmatch(Path(stage).name)


def test_a_long_command_is_shortened(host: Host) -> None:
    with pytest.raises(TreeError, match=r"failed \(sh -c : x x .* x \.\.\.: exit code 3\)") as error:
        host.apply({"a": "a"}, tests=(shell(":" + " x" * 500 + "\nexit 3"),))
    assert len(str(error.value)) < 400


def test_a_stage_in_use_is_locked(host: Host) -> None:
    host.apply({"a": "a"}, tests=(shell("! flock -n {root} true"),))


def test_refused_files_change_nothing(host: Host) -> None:
    host.apply({"a": "good\n", "stale": "s"})
    before = host.everything(host.base)
    bad = shell("echo 'emerg: bad {root}/sites/a.conf:3' >&2; exit 7", name="nginx", file="a")
    with pytest.raises(TreeError) as error:
        host.apply({"a": "new\n", "sites/a.conf": "bad\n"}, tests=(command("true"), bad, shell("exit 99")))
    guilty = f"{host.root}/sites/a.conf"
    failed, printed = str(error.value).splitlines()
    assert failed.startswith(f"{guilty}: test 'nginx' failed (sh -c echo 'emerg: bad {guilty}:3'")
    assert failed.endswith("exit code 7). Nothing was changed.")
    assert printed == f"emerg: bad {guilty}:3"
    assert error.value.details == {"file": guilty, "test": "nginx", "rc": 7}
    assert host.everything(host.base) == before


def test_no_test_when_nothing_changes(host: Host) -> None:
    host.apply({"a": "a"})
    assert host.apply({"a": "a"}, tests=(command("false"),))["changed"] is False


def test_tests_of_some_files_only(host: Host) -> None:
    ran = host.base / "ran"
    tests = tuple(shell(f"echo {x} >> {ran}", when_changed=frozenset({x})) for x in ("a", "b"))
    host.apply({"a": "1", "b": "1"}, tests=tests)
    host.apply({"a": "1", "b": "2"}, tests=tests)
    assert ran.read_text() == "a\nb\nb\n"
    manifest = host.manifest()
    manifest["pending"] = {"changed": [], "removed": []}
    (host.state / "nginx.json").write_text(json.dumps(manifest))
    host.apply({"a": "1", "b": "2"}, tests=tests)
    assert ran.read_text() == "a\nb\nb\na\nb\n"


@pytest.mark.parametrize(
    ("test", "obstacle"),
    [
        (command("no-such-program"), "program no-such-program does not exist"),
        (command("/no/such/program"), "program /no/such/program does not exist"),
        (command("true", user="nobody-knows"), "user nobody-knows does not exist"),
        (command("true", chdir="/no/such/place"), "directory /no/such/place does not exist"),
    ],
)
def test_what_cannot_run(host: Host, test: Trial, obstacle: str) -> None:
    with pytest.raises(TreeError, match=f"test 't' cannot run: {obstacle}. Nothing was changed."):
        host.apply({"a": "a"}, tests=(test,))
    assert not host.root.exists()
    assert host.apply({"a": "a"}, tests=(test,), check=True)["unchecked"] == [f"test t: {obstacle}"]


@pytest.mark.parametrize("code", [126, 127])
def test_a_wrapper_without_its_program(host: Host, code: int) -> None:
    test = shell(f"exit {code}")
    assert host.apply({"a": "a"}, tests=(test,), check=True)["unchecked"] == ["test t: sh cannot run yet"]
    with pytest.raises(TreeError, match=f"exit code {code}"):
        host.apply({"a": "a"}, tests=(test,))


def test_script_without_interpreter(host: Host) -> None:
    script = host.put("script", "#!/no/such/interpreter\n", 0o755)
    with pytest.raises(TreeError, match="No such file or directory"):
        host.apply({"a": "a"}, tests=(command(str(script)),))
    assert host.apply({"a": "a"}, tests=(command(str(script)),), check=True)["changed"] is True


def test_a_test_that_hangs_is_stopped_with_its_children(host: Host) -> None:
    pid = host.base / "pid"
    started = time.monotonic()
    with pytest.raises(TreeError, match=r"did not end within 1 seconds and was stopped"):
        host.apply({"a": "a"}, tests=(shell(f"echo before; sleep 60 & echo $! > {pid}; wait"),), timeout=1)
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and running(int(pid.read_text())):
        time.sleep(0.05)
    assert not running(int(pid.read_text()))
    assert not host.root.exists()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_in_the_background_does_not_hold_us_up(host: Host) -> None:
    started = time.monotonic()
    host.apply({"a": "a"}, tests=(shell("setsid sleep 3 & exit 0"),))
    assert time.monotonic() - started < 2


def test_environment_of_tests_is_small_and_fixed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    seen = host.base / "seen"
    host.apply({"a": "a"}, tests=(shell(f"env > {seen}; pwd >> {seen}"),))
    lines = seen.read_text().splitlines()
    names = {line.split("=")[0] for line in lines[:-1]} - {"PWD", "OLDPWD", "_", "SHLVL"}
    assert names == {"PATH", "HOME", "USER", "LOGNAME", "LC_ALL"}
    assert lines[-1] == "/"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_tests_run_as_their_user(host: Host) -> None:
    host.base.chmod(0o755)
    for parent in host.base.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    host.root.parent.chmod(0o755)
    (host.base / "etc/nginx").mkdir(mode=0o755)
    script = "test $(id -un):$HOME:$(id -G) = nobody:/nonexistent:65534 && cat {root}/open && ! cat {root}/closed"
    files: dict[str, Content] = {"open": "x", "closed": file("x", mode=0o600)}
    host.root.chmod(0o755)
    host.apply(files, tests=(shell(script, user="nobody"),))
    assert host.everything()["open"] == "0644 x"


@pytest.mark.parametrize(
    ("output", "blamed"),
    [
        ("error in S/a.conf:3", "a.conf"),
        ("S/nginx.conf includes S/sites/b", "sites/b"),
        ("[warn] conflicting name in S/a.conf:1\n[emerg] bad S/sites/b:1\nS/nginx.conf test failed", "sites/b"),
        ("bad S/foreign.conf.", "foreign.conf"),
        ("bad S/foreign then S/nginx.conf", "foreign"),
        ("[warn] S/a.conf", "a.conf"),
        ("nothing", None),
    ],
)
def test_who_is_to_blame(output: str, blamed: str | None) -> None:
    stage = "/etc/.wsgi-fleet-1.dpkg-new"
    assert trial.guilty_file(output.replace("S", stage), stage, ["a.conf", "sites/b"]) == blamed


@pytest.mark.parametrize(
    ("content", "output", "shown"),
    [
        ("password = hunter2secret\n", "bad line: 'password = hunter2secret'", "bad line: '(secret)'"),
        ("password = hunter2secret\n", "got hunter2secret", "got (secret)"),
        ("password = plainword\n", "got 'plainword'", "got '(secret)'"),
        ("export URL='postgres://u:p4ssw0rd@db/x'\n", "postgres://u:p4ssw0rd@db/x", "(secret)"),
        ('header "Bearer Abc123def456"; # x\n', "unknown Abc123def456", "unknown (secret)"),
        ("-----BEGIN-----\nMIIEvQIBADANBg\n", "near MIIEvQIBADANBg", "near (secret)"),
        ("ab = x\n", "ab x", "ab x"),
        ("", "all of it", "all of it"),
        ("\xff\xfe=\x80garbage123\n", "fine", "fine"),
    ],
)
def test_secrets_are_cut_out_of_output(content: str, output: str, shown: str) -> None:
    words = trial.secret_words([content.encode("latin-1")])
    assert trial.readable_output(output, "/stage", "/live", words) == shown


def test_long_output_keeps_its_end() -> None:
    shown = trial.readable_output("x" * 10_000 + "the end", "/stage", "/live", [])
    assert shown.startswith("(...)\n")
    assert shown.endswith("the end")
    assert len(shown) < 6100


# ------------------------------------------------------------------------------------------- broken and mended


OLD: dict[str, Content] = {"a": "old a", "b": "old b", "dir/gone": "old gone", "dir2/x": "old x"}
NEW: dict[str, Content] = {
    "a": "new a",
    "b": file("old b", mode=0o600),
    "dir2/x": "new x",
    "new/deep/y": "new y",
    "taken": "t",
}
SYSTEM_CALLS = ("open", "mkdir", "rename", "unlink", "rmdir", "link", "symlink", "fsync", "fchmod", "fchown", "write")


def prepared(base: Path) -> Host:
    base.mkdir()
    host = Host(base)
    host.apply(OLD)
    host.put("foreign", "foreign")
    host.put("taken", "his", 0o640)
    return host


@contextmanager
def at_call(number: int, action: Any) -> Iterator[list[int]]:
    """Do `action` instead of the number-th system call that could change something."""
    count = [0]
    real = {name: getattr(os, name) for name in SYSTEM_CALLS}

    def wrapper(name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_CREAT | os.O_DIRECTORY):
                return real[name](*arguments, **keywords)
            count[0] += 1
            if count[0] == number:
                action()
            return real[name](*arguments, **keywords)

        return call

    with patch.multiple(os, **{name: wrapper(name) for name in SYSTEM_CALLS}):
        yield count


def number_of_calls(base: Path) -> int:
    host = prepared(base)
    with at_call(0, None) as count:
        host.apply(NEW, tests=(command("true"),))
    return count[0]


def test_killed_anywhere_is_mended_by_the_next_run(tmp_path: Path) -> None:
    calls = number_of_calls(tmp_path / "count")
    assert calls > 60
    goal = prepared(tmp_path / "goal")
    old = goal.everything()
    goal.apply(NEW, tests=(command("true"),))
    new = goal.everything()
    for number in range(1, calls + 1):
        host = prepared(tmp_path / str(number))
        pid = os.fork()
        if pid == 0:
            with at_call(number, lambda: os._exit(9)):
                host.apply(NEW, tests=(command("true"),))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9

        where = f"killed before call {number} of {calls}"
        live = {path: what for path, what in host.everything().items() if not TEMPORARY.fullmatch(Path(path).name)}
        for path, what in live.items():
            assert what in (old.get(path), new.get(path)), f"{where}: {path} is {what}"
        assert live["foreign"] == "0644 foreign"
        done = live == new and host.manifest()["pending"] is None

        result = host.apply(NEW, tests=(command("true"),))
        assert host.everything() == new, where
        assert host.leftovers() == [], where
        if not done:  # the killed run said nothing, so this one says it all
            assert result["changed_files"] == ["a", "b", "dir2/x", "new/deep/y", "taken"], where
            assert result["removed_files"] == ["dir/gone"], where
        assert host.apply(NEW)["changed"] is False, where

        host.apply({})  # nothing was orphaned, nothing lost
        assert host.everything() == {".": new["."], "foreign": "0644 foreign", "taken": "0640 his"}, where


def test_killed_then_wanted_otherwise(tmp_path: Path) -> None:
    """What the killed run had put there is removed when the next one does not want it."""
    calls = number_of_calls(tmp_path / "count")
    for number in range(1, calls + 1, 4):
        host = prepared(tmp_path / str(number))
        pid = os.fork()
        if pid == 0:
            with at_call(number, lambda: os._exit(9)):
                host.apply(NEW, tests=(command("true"),))
            os._exit(0)
        os.waitpid(pid, 0)
        host.apply({"a": "other"})
        assert sorted(host.everything()) == [".", "a", "foreign", "taken"], f"killed before call {number} of {calls}"
        assert host.everything()["taken"] == "0640 his"
        assert host.leftovers() == []


def test_failed_anywhere_is_undone_at_once(tmp_path: Path) -> None:
    """A call that fails once: the old state is back, or said to be not; the next run mends what is left."""
    calls = number_of_calls(tmp_path / "count")
    undone = 0
    for number in range(1, calls + 1):
        host = prepared(tmp_path / str(number))
        old = host.everything()

        def fail() -> None:
            raise OSError(28, "No space left on device")

        where = f"call {number} of {calls} failed"
        message = ""
        try:
            with at_call(number, fail):
                host.apply(NEW, tests=(command("true"),))
        except (TreeError, OSError) as error:
            message = str(error)
        assert not message or "No space left on device" in message, where
        if "the old ones are back" in message:
            undone += 1
            assert host.everything() == old, where
            assert host.leftovers() == [], where
            assert host.manifest()["pending"] is None
        host.apply(NEW, tests=(command("true"),))
        assert host.apply(NEW)["changed"] is False, where
        assert host.leftovers() == [], where
        host.apply({})
        assert host.everything() == {".": old["."], "foreign": "0644 foreign", "taken": "0640 his"}, where
    assert undone > 20


def test_file_system_without_hard_links(tmp_path: Path) -> None:
    host = prepared(tmp_path / "x")
    old = host.everything()
    host.put("zz/blocked")

    def no_link(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(95, "Operation not supported")

    real = os.rename

    def broken(source: str, target: str) -> None:
        if target.endswith("/taken") and "state" not in target and Path(source).read_bytes() == b"t":
            raise OSError(5, "Input/output error")
        real(source, target)

    with patch.object(os, "link", no_link), patch.object(os, "rename", broken):
        with pytest.raises(TreeError, match=r"the old ones are back: .*Input/output error"):
            host.apply(NEW)
        assert {path: what for path, what in host.everything().items() if "zz" not in path} == old
    assert host.leftovers() == []


def test_leftovers_of_the_dead_go_and_the_living_keep_theirs(host: Host) -> None:
    host.apply({"a": "a"})
    dead, alive = Path(temporary_path(str(host.root.parent))), Path(temporary_path(str(host.root.parent)))
    for stage in (dead, alive):
        (stage / "x").mkdir(parents=True)
    foreign = host.root.parent / ".wsgi-fleet-backup"
    foreign.mkdir()
    descriptor = os.open(alive, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert host.apply({"a": "a"})["changed"] is False
    assert (dead.exists(), alive.exists(), foreign.exists()) == (False, True, True)
    os.close(descriptor)
    host.apply({"a": "a"})
    assert not alive.exists()


def test_one_run_at_a_time(host: Host) -> None:
    host.apply({"a": "a"})
    descriptor = os.open(host.state / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for check in (False, True):
        with pytest.raises(TreeError, match=r"another run has held .*/state/lock for more than 0 seconds"):
            host.apply({"a": "b"}, lock_seconds=0.2, check=check)
    os.close(descriptor)
    assert host.apply({"a": "b"}, lock_seconds=0.2)["changed"] is True


def test_manifest_that_cannot_be_read(host: Host) -> None:
    host.apply({"a": "a"})
    for text in ("", "{}", "[]", "{"):
        (host.state / "nginx.json").write_text(text)
        with pytest.raises(TreeError, match=r"nginx.json cannot be read as a manifest .* Move it away"):
            host.apply({"a": "b"})


def test_state_is_closed_to_others(host: Host) -> None:
    host.put("a", "his", 0o644)
    host.apply({"a": "ours"})
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((host.state / "nginx.json").stat().st_mode) == 0o600


def test_four_hundred_files(host: Host) -> None:
    files: dict[str, Content] = {f"sites/{number}.conf": f"server {number}\n" * 50 for number in range(400)}
    tests = (command("test", "-f", "{root}/sites/399.conf"),)
    assert len(host.apply(files, tests=tests)["changed_files"]) == 400
    started = time.monotonic()
    assert host.apply(files, tests=tests)["changed"] is False
    assert time.monotonic() - started < 2
