# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What has become of a release after it was built: good, bad or not yet known, and the configuration it was good with.

A release directory holds, besides what the build made:

    state.json   verdict ("good" or "bad"), since (UTC), reason, config (digest of the copies);
                 checked, tried, well: digest of the configuration with which its check passed, it answered on trial,
                 it answered when live; migrated; settled (found to be good since it went live);
                 returned (live by going back)
    config/      copies of /etc/wsgi-fleet/APP (env, run, start ...) as they were when it was found to be good
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

STATE = "state.json"
CONFIG = "config"
GOOD, BAD = "good", "bad"


def read_state(release: Path) -> dict[str, Any]:
    """What is known of a release; empty when nothing is."""
    try:
        state = json.loads((release / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(release: Path, **changes: object) -> None:
    """Change what is known of a release, in one step."""
    draft = release / f".{STATE}"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({**read_state(release), **changes}, indent=1, sort_keys=True) + "\n")
    draft.replace(release / STATE)


def now() -> str:
    """The time as it is written everywhere: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def config_digest(directory: Path) -> str:
    """A hash over names and contents of the plain files in a directory; empty when there is none."""
    if not directory.is_dir():
        return ""
    whole = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")):
        content = path.read_bytes()
        whole.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def is_good(release: Path, live: Path) -> bool:
    """Whether a release is known to be good with just the configuration that is live."""
    state = read_state(release)
    return state.get("verdict") == GOOD and state.get("config") == config_digest(live)


def mark_good(release: Path, live: Path) -> None:
    """Note that a release is good, and keep the configuration that it is good with."""
    draft = release / f".{CONFIG}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    _copy_files(live, draft)
    os.chown(draft, 0, release.stat().st_gid)
    draft.chmod(0o750)
    write_state(release, config="")  # until the copies are whole
    shutil.rmtree(release / CONFIG, ignore_errors=True)
    draft.replace(release / CONFIG)
    write_state(release, verdict=GOOD, since=now(), reason="", config=config_digest(release / CONFIG))


def mark_bad(release: Path, reason: str) -> None:
    """Note that a release is bad, and why."""
    write_state(release, verdict=BAD, since=now(), reason=reason)


def restore_config(release: Path, live: Path, *, check: bool) -> list[str]:
    """Put the kept configuration back in place; the names of the files that differ."""
    state, kept = read_state(release), release / CONFIG
    if not state.get("config") or state["config"] != config_digest(kept):
        return []  # never found to be good, or not kept whole
    different = [
        path.name
        for path in sorted(kept.iterdir())
        if not (live / path.name).is_file() or (live / path.name).read_bytes() != path.read_bytes()
    ]
    if not check:
        _copy_files(kept, live, only=different)
    return different


def _copy_files(source: Path, target: Path, only: Optional[list[str]] = None) -> None:
    """Copy plain files with owner and mode, each replaced by a rename."""
    for path in source.iterdir():
        if not path.is_file() or path.name.startswith(".") or (only is not None and path.name not in only):
            continue
        status = path.stat()
        draft = target / f".{path.name}.new"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_bytes(path.read_bytes())
        os.chown(draft, status.st_uid, status.st_gid)
        draft.chmod(status.st_mode & 0o7777)
        draft.replace(target / path.name)


def last_good(releases: Path, *, without: str = "") -> str:
    """The id of the release that was found to be good most recently; empty when there is none."""
    found = [
        (str(state.get("since", "")), path.name)
        for path in (releases.iterdir() if releases.is_dir() else ())
        for state in [read_state(path)]
        if path.name != without and state.get("verdict") == GOOD
    ]
    return max(found)[1] if found else ""


def row(app: str, release: Path, marker: Mapping[str, Any], live: str) -> dict[str, Any]:
    """What to tell people of a complete release."""
    state = read_state(release)
    return {
        "app": app,
        "release": release.name,
        "live": release.name == live,
        "verdict": state.get("verdict") or "not judged",
        "since": state.get("since", ""),
        "built": marker.get("built", ""),
        "source": marker.get("source", ""),
        "reason": state.get("reason", ""),
    }
