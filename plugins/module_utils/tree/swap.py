"""The moment in which files go live."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH104, PTH106, PTH108, PTH120
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import (
    make_directory,
    make_parents,
    set_directory,
    sync_directory,
    temporary_path,
    write_node,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.plan import Change, Plan


class UnfinishedError(Exception):
    """Something is left for the next run to mend: the manifest stays as it is during a swap."""


def swap(plan: Plan, label: Callable[[str, str], None]) -> None:
    """Do what the plan says. On any exception undo it and raise it again.

    Everything that can fail slowly (space, rights) comes before the first rename. `label(temporary, target)` gives a
    new file what else it needs before it goes live (SELinux context).
    """
    undo: list[Callable[[], object]] = []
    temporaries: dict[str, str] = {}
    backups: dict[str, str] = {}
    try:
        for change in plan.directories:
            _apply_directory(change, undo)
            label(change.path, change.path)
        undo.append(lambda: _discard((*temporaries.values(), *backups.values())))
        for change in plan.changes:
            directory = os.path.dirname(change.path)
            if change.after.kind != "absent":
                temporaries[change.path] = temporary_path(directory)
                write_node(temporaries[change.path], change.after, durable=True)
                label(temporaries[change.path], change.path)
            if change.before.kind != "absent":
                backups[change.path] = temporary_path(directory)
                _back_up(change, backups[change.path])
        for change in plan.changes:
            if change.after.kind == "absent":
                os.unlink(change.path)
            else:
                os.rename(temporaries[change.path], change.path)
            undo.append(_undoing(change.path, backups.get(change.path)))
        for directory in {os.path.dirname(change.path) for change in plan.changes}:
            sync_directory(directory)
    except BaseException as error:
        try:
            for step in reversed(undo):
                step()
        except OSError as failure:
            msg = f"could not put the new files in place ({error}), nor all old ones back ({failure})"
            raise UnfinishedError(msg) from error
        raise
    try:
        _discard(backups.values())
    except OSError as error:
        msg = f"the new files are in place, but copies of the old ones cannot be removed ({error})"
        raise UnfinishedError(msg) from error
    for directory in plan.emptied:
        with contextlib.suppress(OSError):  # somebody has just put something there: theirs now
            os.rmdir(directory)


def _discard(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _apply_directory(change: Change, undo: list[Callable[[], object]]) -> None:
    after, before = change.after, change.before
    if before.kind == "absent":
        make_parents(change.path)
        undo.append(lambda: _remove_directory(change.path))
        make_directory(change.path, after.uid, after.gid, after.mode)
    else:
        undo.append(lambda: set_directory(change.path, before.uid, before.gid, before.mode))
        set_directory(change.path, after.uid, after.gid, after.mode)


def _remove_directory(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _back_up(change: Change, backup: str) -> None:
    try:
        os.link(change.path, backup, follow_symlinks=False)
    except OSError:  # a file system without hard links
        write_node(backup, change.before)


def _undoing(path: str, backup: Optional[str]) -> Callable[[], object]:
    if backup is None:
        return lambda: os.unlink(path)
    return lambda: os.rename(backup, path)
