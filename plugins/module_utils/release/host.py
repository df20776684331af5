# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host's side: its users, directories, programs and links."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import grp
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.release.custody import take_back
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import (
    ReleaseError,
    environment_secrets,
    scrub,
    suggest_fix,
    tail,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import MARKER
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import Store, parse_wheels

BUILDER = "wsgi-build"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNKNOWN = "unknown"

# What an operator may have set for the whole host or play.
PASSED_ON = frozenset(
    f(name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
    for f in (str.lower, str.upper)
)

# Beside the link to the live release, from before it changes until who runs is found to be well. Processes of two
# releases answer meanwhile: whoever caches answers by that link, as role nginx does, keeps none.
CHANGING = "current.changing"
# What an application's directory holds; anything else in there is not ours.
OUR_NAMES = frozenset({"releases", "shared", "current", "next", ".current.new", ".next.new", CHANGING})

# The directories above a release may be passed through by anybody and listed by nobody but root and the application:
# the builder must get to the release that it builds. The release itself is closed to all but the application.
PASSAGE = 0o751
WEB_GROUP = "www-data"


# What only the module release asks for.
_UNASKED: Mapping[str, Any] = {
    "config_dir": "/etc/wsgi-fleet",
    "log_dir": "/var/log/wsgi-fleet",
    "environment": "{}",
    "uploads": {},
    "wheels": {},
    "wheel_archive": None,
    "removed": [],
}


@dataclass(frozen=True)
class Account:
    """A user and its group; both are -1 in check mode while the user is not there."""

    uid: int
    gid: int


class Host:
    """The files, users and programs of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        params = {**_UNASKED, **module.params}
        self.check: bool = module.check_mode
        self.warn = module.warn
        self.root = Path(params["root"])
        self.config = Path(params["config_dir"])
        self.logs = Path(params["log_dir"])
        self.cache = Path(params["cache_dir"])
        self.state = Path(params["state_dir"])
        self.uv = params["uv"]
        self.timeout: int = params["timeout"]
        self.uploads: Mapping[str, str] = params["uploads"]
        self.settings = {str(name): str(value) for name, value in json.loads(params["environment"] or "{}").items()}
        self.offline = bool(params["wheelhouse"])
        self.wheels = {name: parse_wheels(entries) for name, entries in params["wheels"].items()}
        self.wheel_archive: str = params["wheel_archive"] or ""
        self.store = Store(self.state / "wheels")
        self.secrets = environment_secrets(self.settings)
        self.removed = {entry["name"]: bool(entry["keep_data"]) for entry in params["removed"]}
        self.actions: list[str] = []
        self.left: list[str] = []
        self.builder = Account(-1, -1)
        self.manifest: dict[str, Any] = {}

    def act(self, text: str) -> bool:
        """Note a change; say whether to make it."""
        self.actions.append(text)
        return not self.check

    # -- one run at a time, and what earlier ones made ---------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out, and read the list of what we made."""
        if not self.check:
            self.state.mkdir(mode=0o755, parents=True, exist_ok=True)
            lock = (self.state / "app.lock").open("a+")
            for _attempt in range(30):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(1)
            else:
                raise ReleaseError(
                    "lock",
                    f"another run has been working on this host's releases for 30 seconds ({self.state}/app.lock)",
                    "wait until it has finished, then run again",
                )
        with contextlib.suppress(FileNotFoundError):
            self.manifest = json.loads((self.state / "app.json").read_text()).get("apps", {})
        yield

    def save_manifest(self) -> None:
        target = self.state / "app.json"
        draft = target.with_name(".app.json.new")
        draft.write_text(json.dumps({"apps": self.manifest}, indent=1, sort_keys=True) + "\n")
        sync(draft)
        draft.replace(target)

    # -- users and directories ---------------------------------------------------------------------------------

    def prepare_builder(self) -> None:
        self.builder = self.ensure_user(BUILDER, self.cache, "builds the releases of applications")
        self.ensure_directory(self.cache, self.builder.uid, self.builder.gid, 0o700)

    def prepare(self, app: App) -> None:
        """The user and the directories of one application."""
        home = self.root / app.name / "shared"
        known = self.manifest.get(app.name)
        if known is None:
            self.refuse_foreign(app.name, home)
        elif known["root"] != str(self.root):
            raise ReleaseError(
                "prepare",
                f"the application lives in {known['root']}/{app.name}, not in {self.root}",
                "take it out of the inventory, run, and then put it in with the new root",
            )
        entry = {**(known or {}), "root": str(self.root), "logs": str(self.logs)}
        if known != entry:
            self.manifest[app.name] = entry
            if not self.check:
                self.save_manifest()  # before anything is made: an interrupted run must leave nothing unknown
        account = self.ensure_user(app.name, home, f"runs the application {app.name}")
        self.ensure_directory(self.root / app.name, 0, account.gid, PASSAGE)
        self.ensure_directory(self.root / app.name / "releases", 0, account.gid, PASSAGE)
        # The web server may get to what lies in there, but not see what that is.
        web = group_id(WEB_GROUP) if app.public_shared else account.gid
        self.ensure_directory(home, account.uid, web, 0o710 if app.public_shared else 0o750)
        if "kept" in entry and self.act(f"{app.name}: give it back what it stored before it was removed"):
            take_back(home, entry["kept"], account.uid, account.gid)
            self.manifest[app.name] = {name: value for name, value in entry.items() if name != "kept"}
            self.save_manifest()
        # Root's: supervisord opens the logs as root, and must not find a link there that the application has made.
        self.ensure_directory(self.logs / app.name, 0, group_id("adm"), 0o750)

    def refuse_foreign(self, name: str, home: Path) -> None:
        """Never take over a user or a directory that somebody else made."""
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            if user.pw_dir != str(home) or user.pw_uid == 0:
                raise ReleaseError(
                    "prepare",
                    f"the host has a user {name!r} (uid {user.pw_uid}, home {user.pw_dir}), not made by wsgi.fleet",
                    "give the application another name, or remove that user",
                )
        directory = self.root / name
        if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
            raise ReleaseError("prepare", f"{directory} is there and is no directory", "move it away")
        foreign = (
            sorted(path.name for path in directory.iterdir() if path.name not in OUR_NAMES)
            if directory.is_dir()
            else []
        )
        if foreign:
            raise ReleaseError(
                "prepare",
                f"{directory} is there already, not made by wsgi.fleet (it holds {', '.join(foreign[:5])})",
                "give the application another name, or move that directory away",
            )

    def ensure_user(self, name: str, home: Path, comment: str) -> Account:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
        with contextlib.suppress(KeyError):
            group = grp.getgrnam(name)
            raise ReleaseError(
                "prepare",
                f"the host has a group {name!r} already (gid {group.gr_gid}), but no such user",
                "give the application another name, or remove that group",
            )
        if not self.act(f"{name}: make system user"):
            return Account(-1, -1)
        self.command(
            [
                *("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home)),
                *("--shell", no_login(), "--comment", f"{comment} (wsgi.fleet)", name),
            ],
            "prepare",
        )
        user = pwd.getpwnam(name)
        return Account(user.pw_uid, user.pw_gid)

    def ensure_directory(self, path: Path, uid: int, gid: int, mode: int) -> None:
        try:
            info = path.lstat()
        except FileNotFoundError:
            if self.act(f"{path}: make directory"):
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                path.mkdir(mode=0o700)
                os.chown(path, uid, gid)
                path.chmod(mode)
            return
        if not stat.S_ISDIR(info.st_mode):
            raise ReleaseError("prepare", f"{path} is no directory", "move it away")
        if -1 not in (uid, gid) and (info.st_uid, info.st_gid) != (uid, gid) and self.act(f"{path}: correct owner"):
            os.chown(path, uid, gid)
        if stat.S_IMODE(info.st_mode) != mode and self.act(f"{path}: correct mode to {mode:04o}"):
            path.chmod(mode)

    # -- running programs --------------------------------------------------------------------------------------

    def environment(self, extra: Optional[Mapping[str, str]] = None) -> dict[str, str]:
        """For everything that fetches or builds. Not the caller's own, but for proxies."""
        return {
            "UV_SYSTEM_CERTS": "1",
            **{name: value for name, value in os.environ.items() if name in PASSED_ON},
            **self.settings,
            "PATH": SYSTEM_PATH,
            "HOME": str(self.cache),
            "USER": BUILDER,
            "LOGNAME": BUILDER,
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.cache / "tmp"),
            "UV_CACHE_DIR": str(self.cache / "uv"),
            "UV_LINK_MODE": "copy",  # a linked file would be the cache's own: writable by whatever is built later
            "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",  # what is sealed does not change, whatever its time says
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROGRESS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            **(extra or {}),
        }

    def command(
        self,
        argv: Sequence[str],
        step: str,
        *,
        cwd: Optional[Path] = None,
        environment: Optional[Mapping[str, str]] = None,
        secrets: Sequence[str] = (),
        unprivileged: bool = False,
        timeout: int = 0,
    ) -> str:
        """Run a program and return its output; `unprivileged` as the builder, in a session that ends with it."""
        limit = timeout or self.timeout
        account: dict[str, Any] = {}
        if unprivileged:
            account = {"user": self.builder.uid, "group": self.builder.gid, "extra_groups": [], "umask": 0o022}
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd or "/",
                env=dict(environment) if environment is not None else {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                **account,
            )
        except FileNotFoundError as error:
            raise ReleaseError(step, f"the host has no program {argv[0]}", f"install {Path(argv[0]).name}") from error
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise ReleaseError(step, f"{Path(argv[0]).name} has not finished after {limit} seconds") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        text: str = output.decode(errors="replace")
        if process.returncode != 0:
            hidden = [*self.secrets, *secrets]
            said = scrub(errors.decode(errors="replace") + "\n" + text, hidden)
            words = " ".join(word for word in argv[1:3] if re.fullmatch(r"[a-z][a-z-]*", word))
            problem = f"{Path(argv[0]).name} {words} ended with status {process.returncode}\n{tail(said)}"
            raise ReleaseError(step, problem, suggest_fix(said))
        return text

    def stop_builder(self) -> None:
        """End whatever runs as the builder: we hold the lock, so it is left of a dead run or of a finished build."""
        for _attempt in range(50):
            alive = processes_of(self.builder.uid)
            if not alive:
                return
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise ReleaseError(
            "build", f"processes of {BUILDER} do not end: {alive}", "look at them with ps, then run again"
        )

    # -- links -------------------------------------------------------------------------------------------------

    def linked(self, name: str, link: str) -> str:
        """The id that `next` or `current` points to, if that release is complete."""
        try:
            target = (self.root / name / link).readlink()
        except OSError:
            return ""
        return target.name if is_complete(self.root / name / "releases" / target.name) else ""

    def set_link(self, name: str, link: str, release: str) -> None:
        directory = self.root / name
        draft = directory / f".{link}.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("releases") / release)
        draft.replace(directory / link)
        sync(directory)


# -- small things ----------------------------------------------------------------------------------------------


def group_id(name: str) -> int:
    """The group's number; root's where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return 0


def no_login() -> str:
    """The shell of those who may not log in."""
    return next((path for path in ("/usr/sbin/nologin", "/sbin/nologin") if Path(path).exists()), "/bin/false")


def sync(path: Path) -> None:
    """Wait until it is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def processes_of(uid: int) -> list[int]:
    """The ids of a user's living processes."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if path.stat().st_uid == uid and (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(path.name))
    return found


def read_marker(release: Path) -> dict[str, Any]:
    """What is known of a complete release; empty when it is not one."""
    try:
        marker = json.loads((release / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and marker.get("id") == release.name else {}


def is_complete(release: Path) -> bool:
    """Whether a release was built to its end."""
    return bool(read_marker(release))


def remove_release(release: Path) -> None:
    """The marker first: a release that is half gone must not look complete."""
    (release / MARKER).unlink(missing_ok=True)
    shutil.rmtree(release)


def find_interpreter(version: str) -> str:
    """The real path of the wanted interpreter; empty when the host does not have it."""
    found = (
        shutil.which(f"python{version}", path=SYSTEM_PATH) if version else shutil.which("python3", path="/usr/bin:/bin")
    )
    return str(Path(found).resolve()) if found else ""


def seal(release: Path, gid: int) -> None:
    """Give a release to root, readable by the application's group only. Links are not followed."""
    for _directory, names, files, handle in os.fwalk(release, follow_symlinks=False):
        for name in (*names, *files):
            mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
            os.chown(name, 0, gid, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISREG(mode):
                os.chmod(name, 0o750 if mode & 0o111 else 0o640, dir_fd=handle)
            elif stat.S_ISDIR(mode):
                os.chmod(name, 0o750, dir_fd=handle)  # noqa: S103 - the group is the application
    os.chown(release, 0, gid)
    release.chmod(0o750)


def share_files(release: Path, other: Path) -> None:
    """Have files that two sealed releases have in common, byte by byte, be one on the disk and in memory.

    What the file system refuses (too many links, another device) stays a copy. Links are not followed.
    """
    for directory, _names, files, _handle in os.fwalk(release, follow_symlinks=False):
        twins = other / Path(directory).relative_to(release)
        if not twins.is_dir() or twins.resolve() != other.resolve() / twins.relative_to(other):
            continue
        for name in files:
            mine, twin = Path(directory, name), twins / name
            if _is_same(mine, twin):
                draft = mine.with_name(f".{name}.wsgi-fleet")
                with contextlib.suppress(OSError):
                    os.link(twin, draft)
                    draft.replace(mine)


def _is_same(one: Path, other: Path) -> bool:
    """Whether these are two regular files with the same owner, mode and content."""
    try:
        mine, theirs = one.lstat(), other.lstat()
    except FileNotFoundError:
        return False
    return (
        stat.S_ISREG(mine.st_mode)
        and mine.st_ino != theirs.st_ino
        and (mine.st_mode, mine.st_uid, mine.st_gid, mine.st_size)
        == (theirs.st_mode, theirs.st_uid, theirs.st_gid, theirs.st_size)
        and filecmp.cmp(one, other, shallow=False)
    )


def is_published(release: Path, public: Sequence[str]) -> bool:
    """Whether everybody can get to these directories of a release, or to none."""
    if stat.S_IMODE(release.stat().st_mode) != (PASSAGE if public else 0o750):
        return False
    return all(path.stat().st_mode & 0o005 == 0o005 for path in _public(release, public))


def publish(release: Path, public: Sequence[str]) -> None:
    """Let everybody read these directories of the source, and nothing else of the release.

    The way to them is opened last: what is interrupted before shows as not done.
    """
    for directory in _public(release, public):
        for _directory, _names, files, handle in os.fwalk(directory, topdown=False, follow_symlinks=False):
            for name in files:
                if stat.S_ISREG(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    os.chmod(name, 0o644, dir_fd=handle)
            os.fchmod(handle, 0o755)
        for path in directory.parents:
            if path == release:
                break
            path.chmod(PASSAGE)
    release.chmod(PASSAGE if public else 0o750)


def _public(release: Path, public: Sequence[str]) -> list[Path]:
    source = release / "src"
    inside = [path for path in (source / name for name in public) if path.is_dir()]
    # a link may lead anywhere, and the source is somebody else's
    return [path for path in inside if path.resolve() == source.resolve() / path.relative_to(source)]
