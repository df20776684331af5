# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whose an application's data are while its user is away: root's, for the next user may get the old one's number."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional


def strangers(directory: Path, uid: int, gid: int) -> dict[str, list[Optional[int]]]:
    """What is not wholly the application's: user and group by path below the directory; none is the application's."""
    found = {}
    for path, info, _ in _below(directory):
        if (info.st_uid, info.st_gid) != (uid, gid):
            found[str(path)] = [
                None if info.st_uid == uid else info.st_uid,
                None if info.st_gid == gid else info.st_gid,
            ]
    return found


def give_to_root(directory: Path, uid: int, gid: int) -> None:
    """Give to root what the application owns, and leave the rest alone. Can be taken up again anywhere."""
    for path, info, handle in _below(directory):
        owner, group = 0 if info.st_uid == uid else -1, 0 if info.st_gid == gid else -1
        if (owner, group) != (-1, -1):
            os.chown(path.name, owner, group, dir_fd=handle, follow_symlinks=False)
    os.chown(directory, 0, 0)


def take_back(directory: Path, others: Mapping[str, list[Optional[int]]], uid: int, gid: int) -> None:
    """Give the application its data again, by what `strangers` said. What came meanwhile and is not root's stays so."""
    for path, info, handle in _below(directory):
        owner, group = others.get(str(path), [None, None])
        new = (
            uid if owner is None and info.st_uid == 0 else -1,
            gid if group is None and info.st_gid == 0 else -1,
        )
        if new != (-1, -1):
            os.chown(path.name, *new, dir_fd=handle, follow_symlinks=False)


def _below(directory: Path) -> Iterator[tuple[Path, os.stat_result, int]]:
    """All entries: path from there, what they are, and the open directory that holds them. Links are not followed."""
    for parent, names, files, handle in os.fwalk(directory, follow_symlinks=False):
        for name in (*names, *files):
            path = Path(parent, name).relative_to(directory)
            yield path, os.stat(name, dir_fd=handle, follow_symlinks=False), handle
