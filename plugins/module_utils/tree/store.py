"""What is ours on a host: manifests, and the originals of the files that we took over."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH103, PTH104, PTH108, PTH110, PTH120, PTH208
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import (
    Node,
    sync_directory,
    temporary_path,
    write_node,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import TreeError


@dataclass
class Manifest:
    """What one caller owns on this host, by absolute path."""

    files: dict[str, dict[str, bool]] = field(default_factory=dict)  # path -> {secret, adopted}
    made: set[str] = field(default_factory=set)  # directories that were not there before us
    listed: set[str] = field(default_factory=set)  # directories asked for by name: kept even when empty
    pending: Optional[dict[str, list[str]]] = None  # a swap has begun and was not seen to end

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(
            {
                "version": 1,
                "files": self.files,
                "made": sorted(self.made),
                "listed": sorted(self.listed),
                "pending": self.pending,
            },
            indent=1,
            sort_keys=True,
        )


class Store:
    """The manifests, the lock and the originals of adopted files."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def manifest_path(self, name: str) -> str:
        return f"{self.directory}/{name}.json"

    def original_path(self, name: str, path: str) -> str:
        return f"{self.directory}/{name}.orig{path}"

    def load(self, name: str) -> Manifest:
        """The manifest of a caller; an empty one when there is none."""
        path = Path(self.manifest_path(name))
        try:
            stored = json.loads(path.read_text())
            return Manifest(stored["files"], set(stored["made"]), set(stored["listed"]), stored["pending"])
        except FileNotFoundError:
            return Manifest()
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{path} cannot be read as a manifest ({error}). Move it away: the next run adopts its files."
            raise TreeError(msg) from error

    def others(self, name: str) -> dict[str, Manifest]:
        """The manifests of all other callers."""
        try:
            names = sorted(entry[:-5] for entry in os.listdir(self.directory) if entry.endswith(".json"))
        except FileNotFoundError:
            return {}
        return {other: self.load(other) for other in names if other != name}

    def save(self, name: str, manifest: Manifest) -> None:
        """Replace a manifest, so that it is on disk before this returns."""
        temporary = temporary_path(self.directory)
        node = Node("file", os.geteuid(), os.getegid(), 0o600, manifest.text().encode())
        write_node(temporary, node, durable=True)
        os.rename(temporary, self.manifest_path(name))
        sync_directory(self.directory)

    def keep_original(self, name: str, path: str, node: Node) -> None:
        """Keep a copy of what was there before we took a path over."""
        target = self.original_path(name, path)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        write_node(target, node, durable=True)

    def drop_original(self, name: str, path: str) -> None:
        """Forget a kept copy."""
        target = self.original_path(name, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        with contextlib.suppress(OSError):  # up to the first directory that is not empty
            os.removedirs(os.path.dirname(target))

    @contextlib.contextmanager
    def locked(self, *, check: bool, seconds: float) -> Iterator[None]:
        """One run at a time on a host. Check mode makes nothing, so on a bare host it goes without."""
        if check and not os.path.exists(f"{self.directory}/lock"):
            yield
            return
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        descriptor = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        msg = (
                            f"another run has held {self.directory}/lock for more than {seconds:.0f} seconds. "
                            "Let it end (or end it), then run again."
                        )
                        raise TreeError(msg) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)
