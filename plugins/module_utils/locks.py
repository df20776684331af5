# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that say who works on an application, on hosts of either kind. The caller keeps others out meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def files(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the locks of these names are."""
    return {name: directory / f"{name.replace('/', '_')}.json" for name in names}


def read(path: Path) -> dict[str, Any]:
    """Who holds a lock; empty when nobody does, or when the file is no lock."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and "id" in holder else {}


def others(
    paths: Mapping[str, Path], mine: str, dead: Sequence[str], now: float, *, force: bool
) -> dict[str, dict[str, Any]]:
    """The locks that other, living runs hold."""
    found = {}
    for name, path in paths.items():
        holder = read(path)
        if holder and holder["id"] != mine and holder["id"] not in dead and holder.get("until", 0) > now and not force:
            found[name] = holder
    return found


def take(paths: Mapping[str, Path], holder: Mapping[str, Any], now: float, seconds: float) -> None:
    """Write who holds these locks from now on."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    for path in paths.values():
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({**holder, "since": since, "until": now + seconds}) + "\n")
        draft.replace(path)


def give_back(paths: Mapping[str, Path], mine: str) -> None:
    """Remove those of these locks that a run holds."""
    for path in paths.values():
        if read(path).get("id") == mine:
            path.unlink()
