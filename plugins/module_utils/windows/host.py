# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Windows host: where things lie, what was done there, and how programs are run and files written."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import (
    ReleaseError,
    environment_secrets,
    scrub,
    suggest_fix,
    tail,
)


@dataclass
class Host:
    """The host in this run."""

    root: Path  # code, which services may read
    data: Path  # configuration, and what services write
    python: str
    check: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: int = 900
    actions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    @property
    def service_host(self) -> Path:
        return self.root / "bin" / "wsgi_host.py"

    def app(self, name: str) -> Path:
        """Where the code of an application is."""
        return self.root / "apps" / name

    def releases(self, name: str) -> Path:
        """Where the releases of an application are."""
        return self.app(name) / "releases"

    def config(self, name: str) -> Path:
        """Where the configuration of an application is."""
        return self.data / name / "config"

    def run(self, argv: Sequence[str], step: str, *, cwd: Path, secrets: Sequence[str] = ()) -> str:
        """Run a program to its end; its output, or a ReleaseError with what it said."""
        # What is set for the machine's own Python is not meant for this one.
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PYTHON")}
        environment.update(self.environment)
        try:
            done = subprocess.run(
                list(argv),
                cwd=str(cwd),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ReleaseError(step, f"{Path(argv[0]).name} was not done after {self.timeout} s") from error
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            text = scrub(output, [*secrets, *environment_secrets(self.environment)])
            raise ReleaseError(
                step, f"{Path(argv[0]).name} ended with {done.returncode}:\n{tail(text)}", suggest_fix(text)
            )
        return output

    def write(self, path: Path, content: bytes, *, shown: bool = True) -> bool:
        """Write a file in one step where it differs; say so."""
        if not self.tell(path, content, shown=shown):
            return False
        if not self.check:
            replace(path, content)
        return True

    def tell(self, path: Path, content: Optional[bytes], *, shown: bool = True) -> bool:
        """Say what becomes of a file that is not so yet, and show it unless it is secret or nobody's business."""
        before = read(path)
        if before == content:
            return False
        self.actions.append(f"{'remove' if content is None else 'write'} {path}")
        if shown:
            self.diff.append(
                {
                    "before_header": str(path),
                    "after_header": str(path),
                    "before": (before or b"").decode("utf-8", "replace"),
                    "after": (content or b"").decode("utf-8", "replace"),
                }
            )
        return True


def read(path: Path) -> Optional[bytes]:
    """Return what is in a file; nothing where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it sees the old or the new text, and after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, or a file."""

    def again(function: Callable[..., Any], name: str, _: object) -> None:
        # Windows removes no file that is marked as read-only.
        with contextlib.suppress(OSError):
            Path(name).chmod(stat.S_IWRITE)
        function(name)

    if path.is_dir():
        shutil.rmtree(path, onerror=again)
    elif path.exists():
        path.unlink()
