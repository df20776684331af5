# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Repositories for hosts that have no git: the controller asks them, and packs one commit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import ReleaseError, scrub, suggest_fix, tail
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import is_commit, resolve_ref, wanted_refs
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import Source

_SECONDS = 300


def resolve(source: Source) -> str:
    """Return the commit that a branch or a tag means now."""
    if is_commit(source.version):
        return source.version
    with _environment(source) as environment:
        listing = _git(["ls-remote", source.location, *wanted_refs(source.version)], "resolve", source, environment)
    return resolve_ref(listing, source.version)


def check_out(source: Source, commit: str, target: Path) -> None:
    """Write a tar of one commit's files."""
    with tempfile.TemporaryDirectory() as directory, _environment(source) as environment:
        git = [f"--git-dir={directory}"]
        _git([*git, "init", "--quiet", "--bare"], "fetch", source, environment)
        fetch = [*git, "fetch", "--quiet", "--no-tags", source.location]
        try:
            _git([*fetch, "--depth=1", commit], "fetch", source, environment)
        except ReleaseError:  # a server that gives no single commits: all of it, then
            _git([*fetch, "+refs/*:refs/wsgi-fleet/*"], "fetch", source, environment)
        _git([*git, "archive", "--format=tar.gz", f"--output={target}", commit], "fetch", source, environment)


def _git(arguments: list[str], step: str, source: Source, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise ReleaseError(step, "the controller has no git, which fetches for Windows hosts", "install git") from error
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(step, f"git was not done after {_SECONDS} s") from error
    if done.returncode:
        text = scrub(tail(done.stderr), source.secrets)
        raise ReleaseError(step, text, suggest_fix(text))
    return done.stdout


@contextlib.contextmanager
def _environment(source: Source) -> Iterator[dict[str, str]]:
    """Give git its credentials where no process list shows them."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if source.password:
        login = b64encode(f"{source.username}:{source.password}".encode()).decode()
        environment |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {login}",
        }
    with tempfile.TemporaryDirectory() as directory:
        ssh = ["ssh", "-o", "BatchMode=yes"]
        if source.ssh_key:
            key = Path(directory, "key")
            key.touch(mode=0o600)
            key.write_text(source.ssh_key.rstrip("\n") + "\n")
            ssh += ["-i", str(key), "-o", "IdentitiesOnly=yes"]
        if source.ssh_known_hosts:
            hosts = Path(directory, "known_hosts")
            hosts.write_text(source.ssh_known_hosts.rstrip("\n") + "\n")
            ssh += ["-o", f"UserKnownHostsFile={hosts}", "-o", "StrictHostKeyChecking=yes"]
        yield {**environment, "GIT_SSH_COMMAND": " ".join(ssh)}
