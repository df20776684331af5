# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One run at a time for each application, on Windows: the same files as on Linux, in the data directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils import locks


def hold(directory: Path, wanted: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Take locks, all or none; the holders of those that are not to be had."""
    paths = locks.files(directory, wanted["names"])
    now = time.time()
    if check and not directory.is_dir():
        return {}
    with _alone(directory):
        mine = str(wanted["holder"]["id"])
        held = locks.others(paths, mine, wanted.get("dead", ()), now, force=wanted["break_locks"])
        if not held and not check:
            locks.take(paths, {**wanted["holder"], "purpose": wanted["purpose"]}, now, wanted["seconds"])
    return held


def release(directory: Path, wanted: Mapping[str, Any], *, check: bool) -> None:
    """Give back what this run holds."""
    if check or not directory.is_dir():
        return
    with _alone(directory):
        locks.give_back(locks.files(directory, wanted["names"]), str(wanted["holder"]["id"]))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other runs out while files are read and written; fails after ten seconds."""
    import msvcrt  # Windows has it

    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+b") as stream:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined, unused-ignore]
        try:
            yield
        finally:
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined, unused-ignore]
