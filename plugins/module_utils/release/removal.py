# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Takes away what was made for an application. Only what the manifest names is ever touched."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.release.custody import give_to_root, strangers
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import (
    CHANGING,
    OUR_NAMES,
    Host,
    group_id,
    processes_of,
    remove_release,
)


def removal_problems(removed: object, apps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Everything that is wrong with the list of what to remove."""
    if not isinstance(removed, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in removed):
        return ["removed: expected a list of records with `name`, and `keep_data` where the data shall go"]
    present = {record.get("name") for record in apps}
    return [
        f"{entry.get('name')}: is in the applications as well as in what is removed; keep it in one of the two"
        for entry in removed
        if entry.get("name") in present
    ]


def retire(host: Host, name: str, entry: Mapping[str, Any]) -> None:
    """For one that nobody speaks of any more: remove what can be made again; data, their owner and logs stay."""
    home, logs = Path(entry["root"], name), Path(entry["logs"], name)
    shared = home / "shared"
    remove_releases(host, name, home)
    if holds_something(shared):
        owner = "root's since its user went" if "kept" in entry else "with its owner"
        host.left.append(f"{shared}: holds data of {name}, so it stays, {owner}")
        return
    retire_user(host, name, shared)
    retire_logs(host, name, logs)
    if shared.is_dir() and host.act(f"{name}: remove {shared}"):
        shared.rmdir()
    retire_home(host, name, home)
    forget(host, name)


def erase(host: Host, name: str, entry: dict[str, Any]) -> None:
    """Remove all of it, or all but its data. What cannot go safely stays, and is told with its reason."""
    home, logs = Path(entry["root"], name), Path(entry["logs"], name)
    shared = home / "shared"
    refuse_running(host, name)  # before anything goes: what runs may still write
    remove_releases(host, name, home)
    keep_data = host.removed[name]
    if keep_data and shared.is_symlink():  # whose data these are, is not ours to say
        leave(host, shared, f"it is a link to {shared.readlink()} by now; remove it, then run again")
        return
    gone = [remove_tree(host, name, path) for path in ((logs,) if keep_data else (shared, logs))]
    if not all(gone):
        return  # the owner stays with what is left, or the next user could get his number
    data = keep_data and holds_something(shared)
    if data:
        hand_over(host, name, entry, shared)
        host.left.append(f"{shared}: holds data of {name}, so it stays, root's since its user went")
    elif keep_data and shared.is_dir() and host.act(f"{name}: remove {shared}"):
        shared.rmdir()
    retire_user(host, name, shared)
    if data:
        give_home(host, name, home)
    else:
        retire_home(host, name, home)
    config = host.config / name
    if config.is_dir() and not host.check:  # what the roles had in there went before
        leave(host, config, foreign_reason(config))
    if not data:
        forget(host, name)


def holds_something(directory: Path) -> bool:
    """Whether it is there and not empty."""
    return directory.is_dir() and any(directory.iterdir())


def hand_over(host: Host, name: str, entry: dict[str, Any], shared: Path) -> None:
    """Give to root what the application's user owns, who is about to go; remember what was not his."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return
    if user.pw_dir != str(shared) or not host.act(f"{name}: give {shared} to root"):
        return
    if "kept" not in entry:  # else a run that was killed has begun with it
        entry["kept"] = strangers(shared, user.pw_uid, user.pw_gid)
        host.save_manifest()
    give_to_root(shared, user.pw_uid, user.pw_gid)


def leave(host: Host, path: Path, reason: str) -> None:
    """Tell what somebody has to look after himself."""
    host.left.append(f"{path}: {reason}")
    host.warn(f"{path} is left: {reason}")


def forget(host: Host, name: str) -> None:
    """Nothing is ours any more."""
    if not host.check:
        del host.manifest[name]
        host.save_manifest()


def remove_releases(host: Host, name: str, home: Path) -> None:
    """Links, releases and the copy of the repository."""
    if not host.check:
        (home / CHANGING).unlink(missing_ok=True)
    for link in (".current.new", ".next.new", "current", "next"):
        path = home / link
        if path.is_symlink() and host.act(f"{name}: remove {path}"):
            path.unlink()
    releases = home / "releases"
    if releases.is_dir() and host.act(f"{name}: remove {releases}"):
        for path in releases.iterdir():
            remove_release(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        releases.rmdir()
    mirror = host.cache / "git" / f"{name}.git"
    if mirror.is_dir() and host.act(f"{name}: remove {mirror}"):
        shutil.rmtree(mirror)


def remove_tree(host: Host, name: str, path: Path) -> bool:
    """Remove a directory with all that is in it, unless that would reach beyond it; say whether it is gone."""
    if path.is_symlink():
        leave(host, path, f"it is a link to {path.readlink()} by now; remove both, then run again")
        return False
    if not path.is_dir():
        return True
    mounts = mounts_in(path, Path("/proc/self/mountinfo").read_text().splitlines())
    if mounts:
        leave(host, path, f"a file system is mounted at {mounts[0]}; unmount it, then run again")
        return False
    if host.act(f"{name}: remove {path}, with what is in it"):
        shutil.rmtree(path)
    return True


def mounts_in(path: Path, mountinfo: Sequence[str]) -> list[str]:
    """Where other file systems begin, at a path and below it."""
    points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in mountinfo]
    return sorted(point for point in points if Path(point) == path or path in Path(point).parents)


def retire_home(host: Host, name: str, home: Path) -> None:
    """Remove the application's directory, or give it to root: the next group may get the same number."""
    if not home.is_dir():
        return
    if not foreign_in(home):
        if host.act(f"{name}: remove {home}"):
            home.rmdir()
        return
    leave(host, home, foreign_reason(home))
    give_home(host, name, home)


def give_home(host: Host, name: str, home: Path) -> None:
    """What stays of an application's directory is not its group's any more."""
    if home.stat().st_gid != 0 and host.act(f"{name}: give {home} to root"):
        os.chown(home, 0, 0)


def foreign_reason(directory: Path) -> str:
    """Why a directory stays."""
    return f"wsgi.fleet did not make what it holds ({', '.join(foreign_in(directory)[:5])})"


def foreign_in(home: Path) -> list[str]:
    """What somebody put of his own there."""
    return sorted(path.name for path in home.iterdir() if path.name not in OUR_NAMES)


def refuse_running(host: Host, name: str) -> None:
    """A user with processes cannot go. In check mode somebody else would have stopped them."""
    with contextlib.suppress(KeyError):
        running = processes_of(pwd.getpwnam(name).pw_uid)
        if running and not host.check:
            raise ReleaseError(
                "prune",
                f"user {name} cannot be removed while its processes run ({', '.join(map(str, running[:10]))})",
                "stop them (supervisor does, once the application is not in its programs any more), then run again",
            )


def retire_user(host: Host, name: str, home: Path) -> None:
    """Remove the user and its group, if it still is the one that was made."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return
    if user.pw_dir != str(home):
        leave(host, Path(user.pw_dir), f"user {name} has his home there, so he is not the one that wsgi.fleet made")
        return
    refuse_running(host, name)
    if host.act(f"{name}: remove system user"):
        host.command(["userdel", name], "prune")
        with contextlib.suppress(KeyError):
            grp.getgrnam(name)
            host.command(["groupdel", name], "prune")


def retire_logs(host: Host, name: str, directory: Path) -> None:
    """Logs stay for whoever must look something up. They go to root: the next user may get the same number."""
    if not directory.is_dir():
        return
    if not any(directory.iterdir()):
        if host.act(f"{name}: remove {directory}"):
            directory.rmdir()
    elif host.act(f"{name}: give {directory} to root"):
        for _path, names, files, handle in os.fwalk(directory, follow_symlinks=False):
            for entry in (*names, *files):
                os.chown(entry, 0, group_id("adm"), dir_fd=handle, follow_symlinks=False)
        os.chown(directory, 0, group_id("adm"))
