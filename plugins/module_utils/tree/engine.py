"""One run from beginning to end."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH112, PTH120
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import Owners, remove_leftovers
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.plan import Plan, describe, make_plan
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import Request, TreeError
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.store import Manifest, Store
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.swap import UnfinishedError, swap
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.trial import run_tests

STATE_DIRECTORY = "/var/lib/wsgi-fleet/tree"
LOCK_SECONDS = 120.0


def apply(
    request: Request,
    *,
    check: bool = False,
    diff: bool = False,
    state_directory: str = STATE_DIRECTORY,
    label: Callable[[str, str], None] = lambda _temporary, _target: None,
    lock_seconds: float = LOCK_SECONDS,
) -> dict[str, Any]:
    """Bring the host to what the request says; the task's result."""
    store = Store(state_directory)
    owners = Owners(check=check)
    root = os.path.realpath(request.root)
    with store.locked(check=check, seconds=lock_seconds):
        manifest = store.load(request.name)
        others = store.others(request.name)
        if not check:
            places = {str(parent) for parent in Path(root).parents} | {state_directory}
            if manifest.pending is not None:
                places |= {os.path.dirname(path) for path in (*manifest.files, *manifest.made, *manifest.listed)}
            remove_leftovers(places)
        plan = make_plan(request, manifest, others, store, owners)

        # an interrupted run's changes were never reported, so they are ours to report now
        pending = manifest.pending or {"changed": [], "removed": []}
        gone = {change.path for change in plan.changes if change.after.kind == "absent"}
        placed = {change.path for change in plan.changes} - gone
        changed = {path for path in pending["changed"] if path in plan.wanted.files} | placed
        removed = {path for path in pending["removed"] if path not in plan.wanted.files} | gone
        removed -= changed
        acts = bool(plan.changes or plan.directories or plan.emptied or manifest.pending is not None)

        unchecked = run_tests(request, plan, check=check, every=manifest.pending is not None) if acts else []
        if not check:
            if acts:
                _commit(request, store, manifest, plan, {"changed": sorted(changed), "removed": sorted(removed)}, label)
            elif manifest.text() != plan.wanted.text():
                store.save(request.name, plan.wanted)
            for path in plan.restored:
                store.drop_original(request.name, path)
    return {
        "changed": acts,
        "changed_files": sorted(_relative(path, root) for path in changed),
        "removed_files": sorted(_relative(path, root) for path in removed),
        "diff": describe(plan) if diff else [],
        "unchecked": owners.missing + unchecked,
    }


def _relative(path: str, root: str) -> str:
    return path[len(root) + 1 :] if path.startswith(root + "/") else path


def _commit(
    request: Request,
    store: Store,
    manifest: Manifest,
    plan: Plan,
    pending: dict[str, list[str]],
    label: Callable[[str, str], None],
) -> None:
    """Swap under a manifest that, at any moment, names everything that may be ours."""
    for change in plan.adopted:
        store.keep_original(request.name, change.path, change.before)
    union = Manifest(
        {**manifest.files, **plan.wanted.files},
        manifest.made | plan.wanted.made,
        manifest.listed | plan.wanted.listed,
        pending,
    )
    store.save(request.name, union)
    try:
        swap(plan, label)
    except UnfinishedError as error:
        msg = f"{error}. Run again to mend it."
        raise TreeError(msg) from error
    except Exception as error:
        store.save(request.name, manifest)
        msg = f"could not put the new files in place, the old ones are back: {error}"
        raise TreeError(msg) from error
    plan.wanted.made |= {path for path in plan.emptied if path in manifest.made and os.path.isdir(path)}  # not empty
    store.save(request.name, plan.wanted)
