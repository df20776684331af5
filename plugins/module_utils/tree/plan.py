"""From what is wanted and what is there to what has to change. Touches nothing."""

# Paths are plain strings for system calls: pathlib normalizes, and follows links, where this must not.
# ruff: noqa: PTH112, PTH120
from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.wsgi.fleet.plugins.module_utils.tree.nodes import ABSENT, TEMPORARY, Node, Owners, read_node
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import Directory, Request, TreeError, parents
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.store import Manifest, Store

DIFF_LIMIT = 104448  # bytes; what ansible.builtin.copy shows at most


@dataclass(frozen=True)
class Change:
    """One path that shall become different."""

    path: str
    before: Node
    after: Node
    owners: str  # of `after`, for people: "root:shop"
    secret: bool


@dataclass
class Plan:
    """Everything a run will do. Made without touching anything."""

    changes: list[Change] = field(default_factory=list)
    directories: list[Change] = field(default_factory=list)  # to make or to correct, outermost first
    needed: set[str] = field(default_factory=set)  # directories that this request cannot do without
    emptied: list[str] = field(default_factory=list)  # to remove, innermost first
    adopted: list[Change] = field(default_factory=list)  # foreign files that we replace
    restored: list[str] = field(default_factory=list)  # owned paths whose original comes back, or is forgotten
    wanted: Manifest = field(default_factory=Manifest)


def _refuse_links(root: str, directories: Iterable[str]) -> None:
    """Below root every directory must be one: whoever could plant a link could lead our writes elsewhere."""
    for parent in directories:
        node = read_node(f"{root}/{parent}", content=False)
        if node.kind == "link":
            target = os.fsdecode(node.content)
            msg = f"{root}/{parent} must be a directory but is a link to {target}; links are not followed. Remove it."
            raise TreeError(msg, path=parent)
        if node.kind not in ("absent", "directory"):
            msg = f"{root}/{parent} must be a directory but is none. Move it away."
            raise TreeError(msg, path=parent)


def make_plan(
    request: Request, manifest: Manifest, others: Mapping[str, Manifest], store: Store, owners: Owners
) -> Plan:
    """Compare the host with the request."""
    plan = Plan()
    root = os.path.realpath(request.root)
    if read_node(root, content=False).kind not in ("absent", "directory"):
        msg = f"root {request.root} is not a directory. Move it away, or correct root."
        raise TreeError(msg)
    _plan_directories(plan, request, root, owners)
    _plan_files(plan, request, root, manifest, others, owners)
    _plan_removals(plan, request, manifest, store)

    # Callers share directories: whoever removes the last file removes a directory that any of them has made.
    gone = {change.path for change in plan.changes if change.after.kind == "absent"}
    made = manifest.made.union(*(other.made for other in others.values()))
    needed = plan.needed.union(*(other.listed for other in others.values()))
    for directory in sorted(made - needed, key=lambda path: path.count("/"), reverse=True):
        if read_node(directory, content=False).kind == "directory":
            left = {entry.path for entry in os.scandir(directory) if not TEMPORARY.fullmatch(entry.name)}
            if left <= gone:
                plan.emptied.append(directory)
                gone.add(directory)
    plan.wanted.made |= {path for path in manifest.made if path not in gone and os.path.isdir(path)}
    return plan


def _plan_directories(plan: Plan, request: Request, root: str, owners: Owners) -> None:
    explicit = {directory.path: directory for directory in request.directories}
    paths = [*(file.path for file in request.files), *explicit]
    implied = {parent for path in paths for parent in parents(path)}
    if paths:
        implied.add(".")
    for path in sorted(implied | set(explicit), key=lambda path: (path != ".", path.count("/"), path)):
        live = root if path == "." else f"{root}/{path}"
        wanted = explicit.get(path) or Directory(path, str(os.geteuid()), str(os.getegid()), 0o755)
        if path != ".":
            _refuse_links(root, [path])  # outermost first, so all above it are checked
        before = read_node(live, content=False)
        plan.needed.add(live)
        if path in explicit:
            plan.wanted.listed.add(live)
        elif before.kind == "directory":
            continue  # not asked about its owner and mode
        after = Node(
            "directory",
            owners.number("owner", wanted.owner, live),
            owners.number("group", wanted.group, live),
            wanted.mode,
        )
        if before != after:
            plan.directories.append(Change(live, before, after, f"{wanted.owner}:{wanted.group}", secret=False))
            if before.kind == "absent":
                plan.wanted.made.add(live)


def _plan_files(
    plan: Plan, request: Request, root: str, manifest: Manifest, others: Mapping[str, Manifest], owners: Owners
) -> None:
    owned_by = {path: name for name, other in others.items() for path in other.files}
    for file in request.files:
        live = f"{root}/{file.path}"
        if live in owned_by:
            msg = f"{live} belongs to {owned_by[live]!r}; {request.name!r} cannot have it too. Remove it from one."
            raise TreeError(msg, path=file.path)
        before = read_node(live)
        if before.kind in ("directory", "other"):
            what = "a directory" if before.kind == "directory" else "no regular file"
            msg = f"{live} is {what} and cannot be replaced by a file. Move it away."
            raise TreeError(msg, path=file.path)
        after = Node(
            "file",
            owners.number("owner", file.owner, live),
            owners.number("group", file.group, live),
            file.mode,
            file.content,
        )
        owned = manifest.files.get(live)
        foreign = owned is None and before.kind != "absent"
        # what was secret, or what a stranger kept from others' eyes, is not shown as the "before" of a diff either
        closed = foreign and before.kind == "file" and not before.mode & stat.S_IROTH
        secret = file.secret or closed or bool(owned and owned["secret"])
        adopted = bool(owned and owned["adopted"])
        if before != after:  # a stranger's file that is the same to the last bit simply becomes ours
            change = Change(live, before, after, f"{file.owner}:{file.group}", secret)
            plan.changes.append(change)
            if foreign:
                plan.adopted.append(change)
                adopted = True
        plan.wanted.files[live] = {"secret": file.secret, "adopted": adopted}


def _plan_removals(plan: Plan, request: Request, manifest: Manifest, store: Store) -> None:
    for path, record in sorted(manifest.files.items()):
        if path in plan.wanted.files:
            continue
        if any(path.startswith(f"{request.root}/{kept}/") for kept in request.keep):
            plan.wanted.files[path] = record
            continue
        if record["adopted"]:
            plan.restored.append(path)
        directory = os.path.dirname(path)
        if os.path.realpath(directory) != directory or not os.path.isdir(directory):
            continue  # its directory is gone, or was replaced by a link to somebody else's
        before = read_node(path)
        if before.kind not in ("file", "link", "absent"):
            continue  # somebody put something else there: not ours any more
        after = read_node(store.original_path(request.name, path)) if record["adopted"] else ABSENT
        if before != after:
            closed = after.kind == "file" and not after.mode & stat.S_IROTH
            plan.changes.append(Change(path, before, after, "", secret=record["secret"] or closed))


def describe(plan: Plan) -> list[dict[str, str]]:
    """The plan in the form that Ansible prints as a diff."""
    found: list[dict[str, str]] = []
    for change in (*plan.directories, *plan.changes):
        before, after = _attributes(change.before, ""), _attributes(change.after, change.owners)
        if _shown(change.before) != _shown(change.after):
            if change.secret:
                what = "removed" if change.after.kind == "absent" else "changed"
                texts = ("", f"(secret content {what})\n")
            else:
                texts = (_shown(change.before), _shown(change.after))
            found.append(_entry(change.path, *texts))
        if before and after and _numbers(change.before) != _numbers(change.after):
            found.append(_entry(change.path, before, after))
    found += [_entry(directory, "directory\n", "") for directory in plan.emptied]
    return found


def _entry(path: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _shown(node: Node) -> str:
    if node.kind == "absent":
        return ""
    if node.kind == "directory":
        return "directory\n"
    if node.kind == "link":
        return f"link to {os.fsdecode(node.content)}\n"
    digest = hashlib.sha256(node.content).hexdigest()
    if b"\0" in node.content:
        return f"(binary content, {len(node.content)} bytes, sha256 {digest})\n"
    if len(node.content) > DIFF_LIMIT:
        return f"({len(node.content)} bytes, sha256 {digest})\n"
    return node.content.decode(errors="replace")


def _numbers(node: Node) -> tuple[int, int, int]:
    return (node.uid, node.gid, node.mode)


def _attributes(node: Node, owners: str) -> str:
    if node.mode < 0:
        return ""
    if not owners:
        owners = f"{_name_of(pwd.getpwuid, node.uid)}:{_name_of(grp.getgrgid, node.gid)}"
    return f"mode {node.mode:04o}, owner {owners}\n"


def _name_of(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
