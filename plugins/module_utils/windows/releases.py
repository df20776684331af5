# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Releases on Windows: a directory with `src` and `venv`, complete once its marker is there."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.release import standing
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, suggest_fix
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import (
    MARKER,
    is_project,
    obsolete,
    uses_hashes,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract, file_checksum
from ansible_collections.wsgi.fleet.plugins.module_utils.windows.host import Host, remove, replace


def is_complete(release: Path) -> bool:
    """Whether a release was built to its end."""
    return (release / MARKER).is_file()


class Builder:
    """Builds one release."""

    def __init__(self, host: Host, app: Mapping[str, Any], wheels: str = "") -> None:
        self.host = host
        self.app = app
        self.wheels = wheels
        self.release = host.releases(app["name"]) / app["id"]
        self.source = self.release / "src"
        self.venv = self.release / "venv"
        self.python = str(self.venv / "Scripts" / "python.exe")
        self.secrets = [secret for secret in (app.get("password"),) if secret]

    def build(self) -> None:
        """Build it; leave nothing behind when that fails."""
        remove(self.release)
        self.source.mkdir(parents=True)
        try:
            self.fetch()
            project = self.enter()
            self.run([self.host.python, "-I", "-m", "venv", "--without-pip", str(self.venv)], "venv", self.release)
            self.install(project)
            self.run([self.python, "-I", "-c", _COMPILE, str(self.source)], "compile", self.release)
            self.mark()
        except BaseException:
            remove(self.release)
            raise

    def run(self, argv: list[str], step: str, cwd: Path) -> str:
        return self.host.run(argv, step, cwd=cwd, secrets=self.secrets)

    def fetch(self) -> None:
        """Bring the source to its place."""
        archive = Path(self.app["upload"]) if self.app.get("upload") else None
        if self.app.get("url"):
            archive = self.release / "download"
            self.download(archive)
        if archive is None:
            return  # a package needs no source
        extract(archive, self.source, strip=self.app["kind"] == "archive")
        if self.app.get("url"):
            archive.unlink()

    def download(self, target: Path) -> None:
        """Fetch an archive by its address, and compare it with its checksum."""
        url = self.app["url"]
        request = urllib.request.Request(url, headers={"User-Agent": "wsgi.fleet"})  # noqa: S310 - http(s), checked
        if self.app.get("username"):
            login = b64encode(f"{self.app['username']}:{self.app['password']}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer, target.open("wb") as stream:  # noqa: S310
                while block := answer.read(1 << 20):
                    stream.write(block)
        except (OSError, ValueError) as error:
            text = scrub(str(error), self.secrets)
            raise ReleaseError("fetch", f"{url} cannot be downloaded: {text}", suggest_fix(text)) from error
        found = file_checksum(target)
        if found != self.app["checksum"]:
            raise ReleaseError(
                "fetch",
                f"{url} is not the file that was wanted: its checksum is {found}, not {self.app['checksum']}",
                "find out why it differs before you change source.checksum",
            )

    def enter(self) -> Path:
        """Return where the application lies in its source."""
        project = Path(self.source, str(self.app["subdirectory"]))
        if not project.is_dir():
            raise ReleaseError(
                "fetch", f"the source has no directory {self.app['subdirectory']!r}", "correct source.subdirectory"
            )
        return project

    def install(self, project: Path) -> None:
        """Install what the application needs, in the same order of sources as on Linux; pip knows no uv.lock."""
        packages = list(self.app["packages"])
        if self.app["kind"] == "package":
            self.pip([self.app["package"], *packages], project)
            return
        files = list(self.app["requirements"])
        if not files and (project / "requirements.txt").is_file():
            files = ["requirements.txt"]
        if files:
            named = [argument for name in files for argument in ("-r", name)]
            if uses_hashes(files, lambda name: self.text(project, name)):
                self.pip(["--require-hashes", *named], project)
                self.add_packages(packages, project)
            else:
                self.pip([*named, *packages], project)
            return
        if (project / "uv.lock").is_file():
            raise ReleaseError(
                "install",
                "the source has a uv.lock and no requirements.txt; on Windows pip installs, which cannot read it",
                "add the requirements: uv export --no-dev --no-emit-project -o requirements.txt",
            )
        pyproject = project / "pyproject.toml"
        if (pyproject.is_file() and is_project(self.text(project, "pyproject.toml"))) or (
            project / "setup.py"
        ).is_file():
            self.pip([str(project), *packages], project)
        elif packages:
            self.pip(packages, project)

    def add_packages(self, packages: list[str], project: Path) -> None:
        """Beside locked requirements: these must not move, so they bind what is added."""
        if packages:
            locked = self.release / "locked.txt"
            locked.write_text(self.pip_freeze(project), encoding="utf-8")
            self.pip(["--constraint", str(locked), *packages], project)
            locked.unlink()

    def text(self, project: Path, name: str) -> str:
        path = project / name
        if not path.is_file():
            raise ReleaseError(
                "install", f"the source has no file {name!r}", "correct the application's `requirements`"
            )
        return path.read_text(encoding="utf-8", errors="replace")

    def pip(self, arguments: list[str], project: Path) -> None:
        """Let pip install into the environment; pip itself stays outside, in Python's own bundle."""
        offline = ["--no-index", "--find-links", self.wheels] if self.wheels else []
        options = ["--disable-pip-version-check", "--no-input", "--no-warn-script-location", *offline]
        self.run([self.python, self.bundled_pip(), "install", *options, *arguments], "install", project)

    def pip_freeze(self, project: Path) -> str:
        return self.run([self.python, self.bundled_pip(), "freeze", "--disable-pip-version-check"], "install", project)

    def bundled_pip(self) -> str:
        """Return pip as Python carries it: a wheel that can be run as it is."""
        bundle = Path(self.host.python).parent / "Lib" / "ensurepip" / "_bundled"
        wheels = sorted(bundle.glob("pip-*.whl"))
        if not wheels:
            raise ReleaseError(
                "install", f"{bundle} holds no pip", "take a complete Python: the embeddable package is none"
            )
        return str(wheels[-1] / "pip")

    def mark(self) -> None:
        """Declare it complete."""
        marker = {
            "id": self.app["id"],
            "app": self.app["name"],
            "source": self.app["description"],
            "inputs": self.app["inputs"],
            "interpreter": self.host.python,
            "installed": self.pip_freeze(self.release).split(),
            "built": standing.now(),
        }
        replace(self.release / MARKER, (json.dumps(marker, indent=1, sort_keys=True) + "\n").encode())


# Files that are no Python 3 stay as they are.
_COMPILE = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2)"


KEPT = "good"


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names of instances by their numbers."""
    return sorted(names, key=lambda name: (len(name), name))


def configured(host: Host, name: str) -> list[Path]:
    """Return the configuration of each instance, by number."""
    present = {path.name: path for path in host.config(name).glob("*.json")}
    return [present[name] for name in in_order(present)]


def live_release(host: Host, name: str) -> str:
    """Return the release that the last instance runs from, which is the last to change; empty when there is none."""
    paths = configured(host, name)
    return release_of(paths[-1].read_bytes()) if paths else ""


def release_of(config: bytes) -> str:
    """Return the release that an instance's configuration names."""
    venv = json.loads(config).get("venv")
    return Path(str(venv)).parent.name if venv else ""


def prune(host: Host, name: str, keep: int, protected: Iterable[str]) -> None:
    """Remove what was not built to its end, and the oldest of the complete releases."""
    directory = host.releases(name)
    present = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    built = {path.name: _built(path) for path in present if is_complete(path)}
    # Between two of the same second, the one that was written last is the newer one.
    going = [path.name for path in present if path.name not in built] + obsolete(built, protected, keep)
    for old in going:
        host.actions.append(f"remove release {old} of {name}")
        if host.check:
            continue
        try:
            # Without its marker it does not count any more, whatever is left of it.
            (directory / old / MARKER).unlink(missing_ok=True)
            remove(directory / old)
            remove(host.config(name) / KEPT / old)
        except OSError as error:
            host.warnings.append(f"{name}: release {old} cannot be removed now ({error}); the next run tries again")


def _built(release: Path) -> str:
    try:
        marker = json.loads((release / MARKER).read_text(encoding="utf-8"))
        return str(marker.get("built", ""))
    except (OSError, ValueError):
        return ""


def judge_bad(host: Host, name: str, release: str, bad: str) -> bool:
    """Whether what is live is to stay, for the release that is wanted was found to be bad; or refuse it."""
    live = live_release(host, name)
    state = standing.read_state(host.releases(name) / release)
    if state.get("verdict") != standing.BAD or live in ("", release) or bad == "retry":
        return False
    if bad == "keep":
        return True
    raise ReleaseError(
        "choose",
        f"release {release} was found to be bad at {state.get('since')}: {state.get('reason')}",
        "give the application another version; or try this one again: -e wsgi_bad_releases=retry",
    )


def listed(host: Host, name: str) -> list[dict[str, Any]]:
    """Return what is known of the complete releases, the youngest first, as module releases does."""
    home, live = host.releases(name), live_release(host, name)
    present = [path for path in home.iterdir() if is_complete(path)] if home.is_dir() else []
    rows = [standing.row(name, path, json.loads((path / MARKER).read_text()), live) for path in present]
    return sorted(rows, key=lambda row: str(row["built"]), reverse=True)


def environment_for_downloads(environment: Mapping[str, str]) -> None:
    """Let urllib use the proxies that pip uses."""
    for name, value in environment.items():
        if name.lower() in ("http_proxy", "https_proxy", "no_proxy"):
            os.environ[name] = value
