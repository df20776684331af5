"""A copy of the directory as it will be, and the programs that must accept it."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH102, PTH106, PTH108, PTH112, PTH120
from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import (
    TEMPORARY,
    Node,
    make_directory,
    read_node,
    set_directory,
    temporary_path,
    write_node,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.plan import Plan
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import Request, TreeError, Trial

OUTPUT_LIMIT = 6000  # characters of a failed test's output
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _copy_tree(source: str, target: str, root: str, stage: str) -> None:
    """Copy what configuration consists of: directories, files, links. Links into the live tree lead into the copy."""
    for entry in os.scandir(source):
        if TEMPORARY.fullmatch(entry.name):
            continue
        copy = f"{target}/{entry.name}"
        node = read_node(entry.path)
        if node.kind == "directory":
            os.mkdir(copy, 0o700)
            _copy_tree(entry.path, copy, root, stage)
            set_directory(copy, node.uid, node.gid, node.mode)
        elif node.kind == "link":
            points_to = os.fsdecode(node.content)
            if points_to == root or points_to.startswith(root + "/"):
                points_to = stage + points_to[len(root) :]
            write_node(copy, Node("link", node.uid, node.gid, content=os.fsencode(points_to)))
        elif node.kind == "file":
            write_node(copy, node)


@contextlib.contextmanager
def staged(root: str, plan: Plan) -> Iterator[str]:
    """A copy of root as it would be after the plan, beside root; removed at the end."""
    parent = os.path.dirname(root)
    while not os.path.isdir(parent):  # a bare host: as near as can be
        parent = os.path.dirname(parent)
    stage = temporary_path(parent)
    os.mkdir(stage, 0o700)
    descriptor = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # says to other runs that this one lives
        live_root = read_node(root, content=False)
        if live_root.kind == "directory":
            _copy_tree(root, stage, root, stage)
        for change in plan.directories:
            copy = stage + change.path[len(root) :]
            if change.path == root:
                live_root = change.after
            elif change.before.kind == "absent":
                make_directory(copy, change.after.uid, change.after.gid, change.after.mode)
            else:
                set_directory(copy, change.after.uid, change.after.gid, change.after.mode)
        for change in plan.changes:
            if not change.path.startswith(root + "/"):
                continue  # of an earlier root of the same caller
            copy = stage + change.path[len(root) :]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
            if change.after.kind != "absent":
                write_node(copy, change.after)
        for directory in plan.emptied:
            if directory.startswith(root + "/"):
                os.rmdir(stage + directory[len(root) :])
        set_directory(stage, live_root.uid, live_root.gid, live_root.mode)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(descriptor)


def secret_words(contents: Iterable[bytes]) -> list[str]:
    """What a program might quote of secret files: lines, values, words that look random. The longest first."""
    words: set[str] = set()
    for content in contents:
        for line in content.decode(errors="replace").splitlines():
            plain = line.strip()
            words.add(plain)
            value = re.split(r"[=:]" if re.search(r"[=:]", plain) else r"\s", plain, maxsplit=1)[-1].strip()
            words.update((value, value.strip("\"',;")))
            words.update(
                word
                for word in re.split(r"[\s\"'=,;]+", plain)
                if len(word) >= 8 and re.search(r"[0-9A-Z]", word) and not word.startswith("/")
            )
    return sorted((word for word in words if len(word) >= 6), key=len, reverse=True)


def readable_output(output: str, stage: str, root: str, words: Sequence[str]) -> str:
    """A program's output for people: live paths, no secrets, the end of it when it is long."""
    text = output.replace(stage, root)
    for word in words:
        text = text.replace(word, "(secret)")
    text = text.strip()
    return text if len(text) <= OUTPUT_LIMIT else "(...)\n" + text[-OUTPUT_LIMIT:]


def guilty_file(output: str, stage: str, known: Iterable[str]) -> Optional[str]:
    """The file (relative) that a program names first, preferring one that we are about to write."""
    lines = sorted(output.splitlines(), key=lambda line: "warn" in line.lower())  # stable: warnings to the end
    named = [name.rstrip(".") for name in re.findall(re.escape(stage) + r"/([\w@%+=./-]+)", "\n".join(lines))]
    wanted = set(known)
    return next((path for path in named if path in wanted), next(iter(named), None))


def _run(argv: Sequence[str], chdir: Optional[str], user: Optional[pwd.struct_passwd], timeout: int) -> tuple[int, str]:
    """Run a program, bounded in time, with a small fixed environment; its exit code and all that it printed."""
    account = user or pwd.getpwuid(os.geteuid())
    identity: dict[str, Any] = {}
    if user is not None and user.pw_uid != os.geteuid():
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    environment = {
        "PATH": SEARCH_PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "LC_ALL": "C.UTF-8",
    }
    with tempfile.TemporaryFile() as output:  # not a pipe: a child left in the background could hold that open
        process = subprocess.Popen(
            list(argv),
            cwd=chdir or "/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **identity,
        )
        note = ""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
            process.wait()
            note = f"\n(did not end within {timeout} seconds and was stopped)"
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace") + note


def run_tests(request: Request, plan: Plan, *, check: bool, every: bool) -> list[str]:
    """Run the tests on a staged copy. Returns what check mode could not test yet."""
    root = os.path.realpath(request.root)
    changed = {change.path[len(root) + 1 :] for change in plan.changes}
    due = [test for test in request.tests if every or not test.when_changed or test.when_changed & changed]
    unchecked: list[str] = []
    if not due:
        return unchecked
    with staged(root, plan) as stage:
        for test in due:
            obstacle = _obstacle(test, stage)
            if obstacle and not check:
                msg = f"test {test.name!r} cannot run: {obstacle}. Nothing was changed."
                raise TreeError(msg, test=test.name)
            if not obstacle:
                obstacle = _run_test(test, request, root, stage, check=check)
            if obstacle:
                unchecked.append(f"test {test.name}: {obstacle}")
    return unchecked


def _run_test(test: Trial, request: Request, root: str, stage: str, *, check: bool) -> str:
    argv = [part.replace("{root}", stage) for part in test.argv]
    chdir = test.chdir.replace("{root}", stage) if test.chdir else None
    try:
        code, output = _run(argv, chdir, pwd.getpwnam(test.user) if test.user else None, request.timeout)
    except OSError as error:  # no right to run it, or a script whose interpreter is missing
        code, output = 126, f"{argv[0]}: {error.strerror}"
    if code == 0:
        return ""
    if code in (126, 127) and check:  # a wrapper that does not find its program
        return f"{test.argv[0]} cannot run yet"
    relative = guilty_file(output, stage, (file.path for file in request.files)) or test.file
    blamed = f"{root}/{relative}" if relative else root
    words = secret_words(file.content for file in request.files if file.secret)
    text = readable_output(output, stage, root, words)
    shown = textwrap.shorten(" ".join(test.argv).replace("{root}", root), 200, placeholder=" ...")
    msg = f"{blamed}: test {test.name!r} failed ({shown}: exit code {code}). Nothing was changed.\n{text}"
    raise TreeError(msg, file=blamed, test=test.name, rc=code)


def _obstacle(test: Trial, stage: str) -> str:
    """Why a test cannot run on this host, or nothing."""
    if test.user:
        try:
            pwd.getpwnam(test.user)
        except KeyError:
            return f"user {test.user} does not exist"
    if test.chdir and not os.path.isdir(test.chdir.replace("{root}", stage)):
        return f"directory {test.chdir} does not exist"
    if shutil.which(test.argv[0].replace("{root}", stage), path=SEARCH_PATH) is None:
        return f"program {test.argv[0]} does not exist"
    return ""
