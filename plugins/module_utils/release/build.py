# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One release, from its source to its marker."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from ansible.module_utils.urls import open_url
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, suggest_fix
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import (
    PASSED_ON,
    Host,
    publish,
    remove_release,
    seal,
    share_files,
    sync,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import (
    MARKER,
    describe,
    is_project,
    release_id,
    uses_hashes,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import App
from ansible_collections.wsgi.fleet.plugins.module_utils.release.sources import extract, file_checksum
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import Wheel, requirements


@dataclass
class Job:
    """One application in this run."""

    app: App
    tag: str = ""
    interpreter: str = ""
    identity: str = ""
    commit: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)
    failure: Optional[ReleaseError] = None

    @property
    def id(self) -> str:
        return release_id(self.inputs) if self.inputs else ""

    @property
    def description(self) -> str:
        return describe(self.app.source, self.identity)


def attempt(job: Job, function: Callable[..., object], *arguments: object) -> None:
    """One application's failure is its own."""
    if job.failure:
        return
    try:
        function(*arguments)
    except ReleaseError as error:
        job.failure = error
    except OSError as error:
        said = [str(part) for part in (error.strerror or error, error.filename) if part]
        job.failure = ReleaseError("build", ": ".join(said), suggest_fix(str(error)))


# -- building --------------------------------------------------------------------------------------------------


class Builder:
    """Builds one release."""

    def __init__(self, host: Host, job: Job) -> None:
        self.host = host
        self.job = job
        self.app = job.app
        self.release = host.root / job.app.name / "releases" / job.id
        self.source = self.release / "src"
        self.venv = self.release / "venv"
        self.python = str(self.venv / "bin/python")

    def run(
        self,
        argv: Sequence[str],
        step: str,
        *,
        cwd: Optional[Path] = None,
        environment: Optional[Mapping[str, str]] = None,
    ) -> str:
        return self.host.command(
            argv,
            step,
            cwd=cwd,
            environment=environment or self.host.environment(),
            secrets=self.app.source.secrets,
            unprivileged=True,
        )

    def build(self) -> None:
        """Build it; leave nothing behind when that fails."""
        host = self.host
        if self.release.exists():
            remove_release(self.release)
        scratch(host)
        try:
            self.own(self.release, 0o700)
            self.own(self.source, 0o755)
            self.fetch()
            project = self.enter()
            self.run(
                [host.uv, "venv", "--no-project", "--python", self.job.interpreter, str(self.venv)],
                "venv",
                cwd=self.release,
            )
            self.install(project)
            self.compile_source()
            installed = self.installed()
            host.stop_builder()
            seal(self.release, grp.getgrnam(self.app.name).gr_gid)
            publish(self.release, self.app.public)
            live = host.linked(self.app.name, "current")
            if live:
                share_files(self.venv, host.root / self.app.name / "releases" / live / "venv")
            self.mark(installed)
        except BaseException:
            host.stop_builder()
            remove_release(self.release)
            raise

    def own(self, path: Path, mode: int) -> None:
        own(self.host, path, mode)

    # -- the source --

    def fetch(self) -> None:
        source = self.app.source
        if source.kind == "git":
            self.check_out()
        elif source.kind != "package":
            if source.remote:
                archive = self.release / "download"
                self.download(archive)
            else:
                archive = Path(self.host.uploads[self.app.name])
            extract(archive, self.source, strip=source.kind == "archive")
            if source.remote:
                archive.unlink()
            for directory, names, files in os.walk(self.source):
                for name in (*names, *files):
                    os.chown(Path(directory, name), self.host.builder.uid, self.host.builder.gid, follow_symlinks=False)

    def check_out(self) -> None:
        """Fetch one commit, without its history where the server allows that, and write its files."""
        source, commit = self.app.source, self.job.commit
        repositories = self.host.cache / "git"
        mirror = repositories / f"{self.app.name}.git"
        for path in (repositories, mirror):
            if not path.is_dir():
                self.own(path, 0o700)
        with git_environment(self.host, self.app) as environment:
            git = ["git", f"--git-dir={mirror}"]
            self.run([*git, "init", "--quiet", "--bare"], "fetch", environment=environment)
            fetch = [*git, "fetch", "--quiet", "--force", "--no-tags"]
            try:
                refs = [f"{commit}:refs/wsgi-fleet/source"]
                self.run([*fetch, "--depth=1", source.location, *refs], "fetch", environment=environment)
            except ReleaseError:  # a server that gives no single commits: all of it, then
                refs = ["+refs/heads/*:refs/wsgi-fleet/heads/*", "+refs/tags/*:refs/wsgi-fleet/tags/*"]
                deepen = ["--unshallow"] if (mirror / "shallow").is_file() else []
                self.run([*fetch, *deepen, source.location, *refs], "fetch", environment=environment)
                try:
                    self.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], "fetch")
                except ReleaseError as error:
                    raise ReleaseError(
                        "fetch",
                        f"commit {commit} is in no branch and no tag of the repository",
                        "correct source.version, or push that commit",
                    ) from error
        tree = [*git, f"--work-tree={self.source}"]
        if self.run([*git, "ls-tree", commit], "fetch"):
            self.run([*tree, "checkout", "--quiet", "--force", commit, "--", "."], "fetch", cwd=self.source)
        if (self.source / ".gitmodules").is_file():
            self.host.warn(f"{self.app.name}: the repository has submodules, which are not fetched")

    def download(self, target: Path) -> None:
        source = self.app.source
        environment = self.host.environment()
        with swapped_environment({name: value for name, value in environment.items() if name in PASSED_ON}):
            try:
                with (
                    target.open("wb") as stream,
                    open_url(
                        source.location,
                        url_username=source.username or None,
                        url_password=source.password or None,
                        force_basic_auth=bool(source.username),
                        timeout=60,
                        http_agent="wsgi.fleet",
                    ) as answer,
                ):
                    shutil.copyfileobj(answer, stream, 1 << 20)
            except (OSError, HTTPException, ValueError) as error:  # urllib's own errors are OSErrors
                text = scrub(str(error), [*self.host.secrets, *source.secrets])
                raise ReleaseError(
                    "fetch", f"{source.location} cannot be downloaded: {text}", suggest_fix(text)
                ) from error
        found = file_checksum(target)
        if found != source.checksum:
            raise ReleaseError(
                "fetch",
                f"{source.location} is not the file that was wanted: its checksum is {found}, not {source.checksum}",
                "find out why it differs before you change source.checksum",
            )

    def enter(self) -> Path:
        """Where the application lies in its source; `app` names the place for whoever starts it."""
        subdirectory = self.app.source.subdirectory
        project = self.source / subdirectory
        if not project.is_dir() or not project.resolve().is_relative_to(self.source):
            raise ReleaseError("fetch", f"the source has no directory {subdirectory!r}", "correct source.subdirectory")
        (self.release / "app").symlink_to(Path("src") / subdirectory)
        return project

    # -- the virtual environment --

    def install(self, project: Path) -> None:
        app, source = self.app, self.app.source
        if self.host.offline:
            install_wheels(self.host, self.host.wheels[app.name], self.python)
            return
        if source.kind == "package":
            self.pip([f"{source.location}=={source.version}", *app.packages], project)
            return
        if not app.requirements and self.find_lock(project):
            self.run(
                [
                    *(self.host.uv, "sync", "--frozen", "--no-dev", "--no-editable", "--compile-bytecode"),
                    *("--python", self.python),
                ],
                "install",
                cwd=project,
                environment=self.host.environment({"UV_PROJECT_ENVIRONMENT": str(self.venv)}),
            )
            self.add_packages(project)
            return
        files = list(app.requirements) or (["requirements.txt"] if (project / "requirements.txt").is_file() else [])
        if files:
            named = [argument for name in files for argument in ("-r", name)]
            if uses_hashes(files, lambda name: self.read(project, name)):
                self.pip(["--require-hashes", *named], project)
                self.add_packages(project)
            else:
                self.pip([*named, *app.packages], project)
            return
        pyproject = project / "pyproject.toml"
        installable = is_project(self.read(project, "pyproject.toml")) if pyproject.is_file() else False
        if installable or (project / "setup.py").is_file():
            self.pip([str(project), *app.packages], project)
        elif app.packages:
            self.pip(list(app.packages), project)

    def pip(self, arguments: Sequence[str], project: Path) -> None:
        self.run(
            [self.host.uv, "pip", "install", "--python", self.python, "--compile-bytecode", *arguments],
            "install",
            cwd=project,
        )

    def add_packages(self, project: Path) -> None:
        """Beside locked requirements: these must not move, so they bind what is added."""
        if not self.app.packages:
            return
        locked = self.host.cache / "tmp" / "locked.txt"
        locked.write_text("".join(f"{line}\n" for line in self.installed()))
        locked.chmod(0o644)
        self.pip(["--constraints", str(locked), *self.app.packages], project)

    def installed(self) -> list[str]:
        listing = self.run(
            [self.host.uv, "pip", "list", "--python", self.python, "--format", "json"], "install", cwd=self.release
        )
        return [f"{item['name']}=={item['version']}" for item in json.loads(listing)]

    def find_lock(self, project: Path) -> bool:
        """Whether uv has locked this project, or the workspace around it."""
        around = [project, *(path for path in project.parents if path.is_relative_to(self.source))]
        return any((path / "uv.lock").is_file() for path in around)

    def read(self, project: Path, name: str) -> str:
        """A file of the source: we are root, so never what a link may lead to outside."""
        path = (project / name).resolve()
        if not path.is_relative_to(self.source) or not path.is_file():
            raise ReleaseError(
                "install", f"the source has no file {name!r}", "correct the application's `requirements`"
            )
        return path.read_text(errors="replace")

    def compile_source(self) -> None:
        """The application cannot write here, so do it now; files that are no Python 3 stay as they are."""
        self.run(["/bin/sh", "-c", '"$0" -m compileall -qq src || true', self.python], "compile", cwd=self.release)

    def mark(self, installed: list[str]) -> None:
        """Declare it complete: everything is on the disk before the marker is."""
        marker = {
            "id": self.job.id,
            "app": self.app.name,
            "source": self.job.description,
            "inputs": self.job.inputs,
            "interpreter": self.job.interpreter,
            "installed": installed,
            "wheels": [wheel.file for wheel in self.host.wheels.get(self.app.name, ())],
            "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        draft = self.release / f".{MARKER}"
        draft.write_text(json.dumps(marker, indent=1, sort_keys=True) + "\n")
        os.chown(draft, 0, self.release.stat().st_gid)
        draft.chmod(0o640)
        os.sync()
        draft.replace(self.release / MARKER)
        sync(self.release)


def own(host: Host, path: Path, mode: int) -> None:
    """Make a directory for the builder."""
    path.mkdir(mode=0o700)
    os.chown(path, host.builder.uid, host.builder.gid)
    path.chmod(mode)


def scratch(host: Host) -> None:
    """An empty place for temporary files."""
    directory = host.cache / "tmp"
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)
    own(host, directory, 0o700)


def install_wheels(host: Host, wheels: Sequence[Wheel], python: str) -> None:
    """Install exactly these into an environment. There is nothing to resolve, and nothing is asked of any index."""
    if not wheels:
        return
    links, listed = host.cache / "tmp/wheels", host.cache / "tmp/wheels.txt"
    host.store.link(wheels, links)
    listed.write_text(requirements(wheels))
    listed.chmod(0o644)
    host.command(
        [
            *(host.uv, "pip", "install", "--python", python, "--compile-bytecode", "--offline", "--no-index"),
            *("--find-links", str(links), "--no-deps", "--require-hashes", "-r", str(listed)),
        ],
        "install",
        environment=host.environment(),
        unprivileged=True,
    )


@contextlib.contextmanager
def swapped_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Proxies for urllib, which looks nowhere else for them."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


KEYS = "wsgi-fleet-keys-"


def memory() -> str:
    """Where a file is gone with the power."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108


def remove_forgotten_keys() -> None:
    """What a killed run could not remove itself."""
    for path in Path(memory()).glob(f"{KEYS}*"):
        if not Path("/proc", path.name[len(KEYS) :].partition("-")[0]).exists():
            shutil.rmtree(path)


@contextlib.contextmanager
def git_environment(host: Host, app: App) -> Iterator[dict[str, str]]:
    """Credentials for git: by environment and by a file in memory that lives as long as the command."""
    source = app.source
    extra: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if source.username:
            parts = urlsplit(source.location)
            answer = r'printf "username=%s\npassword=%s\n" "$WSGI_FLEET_USER" "$WSGI_FLEET_PASSWORD"'
            helper = f'!f() {{ test "$1" = get && {answer}; }}; f'
            place = f"credential.{parts.scheme}://{parts.netloc}.helper"
            first = int(host.settings.get("GIT_CONFIG_COUNT", "0"))
            extra = {
                "GIT_CONFIG_COUNT": str(first + 2),
                f"GIT_CONFIG_KEY_{first}": place,
                f"GIT_CONFIG_VALUE_{first}": "",
                f"GIT_CONFIG_KEY_{first + 1}": place,
                f"GIT_CONFIG_VALUE_{first + 1}": helper,
                "WSGI_FLEET_USER": source.username,
                "WSGI_FLEET_PASSWORD": source.password,
            }
        ssh = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=30"]
        if source.ssh_key or source.ssh_known_hosts:
            prefix = f"{KEYS}{os.getpid()}-"
            private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=memory())))
            for name, text in (("key", source.ssh_key), ("known_hosts", source.ssh_known_hosts)):
                if text:
                    path = private / name
                    path.touch(mode=0o600)
                    path.write_text(text.strip() + "\n")
                    os.chown(path, host.builder.uid, host.builder.gid)
            os.chown(private, host.builder.uid, host.builder.gid)
        if source.ssh_key:
            ssh += ["-oIdentitiesOnly=yes", f"-oIdentityFile={private / 'key'}"]
        if source.ssh_known_hosts:
            ssh += [f"-oUserKnownHostsFile={private / 'known_hosts'}", "-oGlobalKnownHostsFile=/dev/null"]
        extra["GIT_SSH_COMMAND"] = shlex.join(ssh)
        yield host.environment(extra)
