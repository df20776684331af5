#!/usr/bin/python
# Copyright: The wsgi.fleet maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build, prove, switch and judge the releases of all applications of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Build, prove, switch and judge the releases of Python applications
version_added: 0.1.0
description:
  - Makes each application's system user and directories, and builds its release, source and virtual environment, into
    a directory of its own, C(ROOT/APP/releases/ID). The id is a hash of everything that decides what is in it (content
    of the source, interpreter, requirements). Equal inputs build nothing, and an old release is there to go back to.
  - Takes all applications of a host at once. When nothing is to do, that is one round trip.
  - A release counts once its C(release.json) is there, which is written last. What was interrupted is built again.
  - Packages may run any code while they are built, so fetching and building happen as the user C(wsgi-build), which can
    read no application's secrets. The result belongs to root; the application can read it and not write it.
  - One application's failure does not keep the others from being built; all failures are reported together at the end.
options:
  state:
    description:
      - V(built) makes users and directories, builds what is missing, and points C(ROOT/APP/next) to it.
      - V(checked) runs the hooks C(after_build) and O(apps[].check) in what C(next) points to. It changes nothing.
      - V(migrated) runs O(apps[].migrate) in it, once for each release. Call it on one host of a fleet.
      - V(tried) starts O(apps[].serve) there, beside the live release and out of reach of visitors. It must answer. The
        live release is tried too, when its configuration has changed.
      - V(switched) points C(ROOT/APP/current) to what C(next) points to, by one atomic rename. What was not checked and
        tried before is so now.
      - V(judged) runs the hooks C(after_switch) and asks all of O(apps[].probes).
      - V(finished) does that where it was not done, and notes that what is live is good; the configuration that it is
        good with is kept beside it. Then it removes all but the last O(apps[].keep_releases) complete releases, never
        the live one, the next and the one that was good before, and what was made for applications that are gone.
      - V(returned) points both links to the release that was good last, and puts its configuration back in place.
        What is left by that is bad, if there is a O(reason).
    type: str
    choices: [built, checked, migrated, tried, switched, judged, finished, returned]
    default: built
  only:
    description: Names of the applications to do something for. Empty means all.
    type: list
    elements: str
    default: []
  bad:
    description:
      - For V(state=built) - what to do about a release that is wanted, but was found to be bad, while another is live.
      - V(keep) warns and keeps what is live, V(refuse) fails, V(retry) forgets that it was bad.
    type: str
    choices: [keep, refuse, retry]
    default: keep
  to:
    description: For V(state=returned) - ids of releases by name of the application, instead of the last good ones.
    type: dict
    default: {}
  previous:
    description: For V(state=returned) - leave the live release even when it is good.
    type: bool
    default: false
  reason:
    description: For V(state=returned) - why a release is left. Without a reason, what is left does not count as bad.
    type: str
    default: ""
  apps:
    description: The applications. What else such a record holds (C(env), C(secrets)) does not leave the controller.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the application, of its system user and of its directories.
        type: str
        required: true
      source:
        description: Where the code comes from; exactly one of V(git), V(archive), V(path) and V(package).
        type: dict
        suboptions:
          git:
            description: Address of a repository. Credentials in an https address are taken out of it before use.
            type: str
          archive:
            description:
              - A tar (plain, gz, bz2, xz) or zip file on the controller, or the http(s) address of one.
              - When all of it lies in one directory, that directory is the source.
            type: str
          path:
            description:
              - A directory on the controller, copied without version control data, virtual environments and caches.
              - C(.gitignore) is not looked at, since what is built and ignored there is often what must be deployed.
            type: path
          package:
            description: Name of a package in the index.
            type: str
          version:
            description: Branch, tag or full commit of O(apps[].source.git); exact version of O(apps[].source.package).
            type: str
          checksum:
            description: C(sha256:) and 64 hexadecimal digits. Required when O(apps[].source.archive) is an address.
            type: str
          subdirectory:
            description: Where in the source the application lies; it is started there.
            type: str
          exclude:
            description: More patterns of what stays behind when O(apps[].source.path) is copied.
            type: list
            elements: str
          ssh_key:
            description: Private key that may read O(apps[].source.git).
            type: str
          ssh_known_hosts:
            description: Lines for C(known_hosts). Without them the host's own C(/etc/ssh/ssh_known_hosts) counts.
            type: str
          username:
            description: User for an http(s) address.
            type: str
          password:
            description: Password or token for an http(s) address.
            type: str
          digest:
            description: Set by the action plugin.
            type: str
      python:
        description: Version of the interpreter, such as V("3.11"). Without it, the distribution's C(python3).
        type: str
      requirements:
        description:
          - Requirement files, relative to the source. Without any, the first of these that is there decides -
            C(uv.lock), C(requirements.txt), C(pyproject.toml), C(setup.py).
        type: list
        elements: str
      packages:
        description: Requirements to install as well, such as the server.
        type: list
        elements: str
      check:
        description:
          - Command that must succeed in a release before V(switched) makes it live, such as a trial import.
          - It runs through C(CONFIG_DIR/APP/run --next), so as the application's user and with its environment.
        type: list
        elements: str
      serve:
        description:
          - Command of a server that takes connections from the listening socket that it finds in its standard input.
          - Without it, a release goes live without having answered anything.
        type: list
        elements: str
      probes:
        description:
          - Where the live application must give a good answer.
          - Host and path of the first are asked for on O(apps[].serve), too.
        type: list
        elements: dict
        suboptions:
          name:
            description: What to call it in an error.
            type: str
            required: true
          address:
            description: Address to connect to.
            type: str
          port:
            description: Port to connect to. Default is 80, or 443 with TLS.
            type: int
          socket:
            description: Unix socket to connect to, instead of an address.
            type: path
          host:
            description: Host to ask for.
            type: str
            required: true
          path:
            description: Path to ask for.
            type: str
            default: /
          below:
            description: An answer is good from status 200 on and below this one.
            type: int
            default: 400
          tls:
            description: Whether to speak TLS.
            type: bool
            default: false
          verify:
            description: Whether to check the certificate.
            type: bool
            default: true
          ca:
            description: Certificates in PEM of authorities that are trusted on top of the system's.
            type: str
      health_timeout:
        description: Seconds within which the application must answer after a start.
        type: int
        default: 30
      migrate:
        description: Command that brings the application's data up to date for a release.
        type: list
        elements: str
      hooks:
        description: Commands by the moment at which they run, each a list of words. A failure ends the release there.
        type: dict
        suboptions:
          before_build:
            description: Before a release is built, in the live one. Passed over where none is live.
            type: list
            elements: list
          after_build:
            description: In the new release, before any host switches to it.
            type: list
            elements: list
          before_switch:
            description: In the new release, when it is proven and about to go live.
            type: list
            elements: list
          after_switch:
            description: When the new release runs, before it is found to be good.
            type: list
            elements: list
          after_rollback:
            description: When an older release runs again.
            type: list
            elements: list
      keep_releases:
        description: How many complete releases to keep.
        type: int
        default: 5
      public:
        description:
          - Directories of the source that everybody on the host may read, such as a web server.
          - The rest of a release stays closed.
        type: list
        elements: str
        default: []
      public_shared:
        description: Whether the group C(www-data) may pass through the shared directory, without listing it.
        type: bool
        default: false
  removed:
    description:
      - Applications that V(state=finished) takes away on purpose. What this module did not make is not touched.
      - V(state=built) only looks at them for RV(settled).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the application; not in O(apps).
        type: str
        required: true
      keep_data:
        description:
          - Whether C(shared) stays when it holds something. It is root's then, and goes back to the application when
            that comes back. User and logs go in any case.
          - Of applications that are missing in O(apps) and are not here either, data, user and logs stay.
        type: bool
        default: true
  root:
    description: Directory of the applications.
    type: path
    default: /srv
  config_dir:
    description: Directory of their C(run) files.
    type: path
    default: /etc/wsgi-fleet
  log_dir:
    description: Directory of their logs.
    type: path
    default: /var/log/wsgi-fleet
  cache_dir:
    description: Directory of C(wsgi-build), for the cache of packages and of repositories.
    type: path
    default: /var/cache/wsgi-fleet
  state_dir:
    description: Where the list of what was made is kept.
    type: path
    default: /var/lib/wsgi-fleet
  uv:
    description: The uv program on the host.
    type: path
    default: /opt/wsgi-fleet/uv/bin/uv
  environment:
    description:
      - A dictionary of environment variables for fetching and building (indexes, proxies). Values may be secret.
      - Certificates are looked up in the host's own store unless C(UV_SYSTEM_CERTS) says otherwise here.
    type: json
    default: "{}"
  timeout:
    description: Seconds that one step of a build may take.
    type: int
    default: 1800
  wheelhouse:
    description:
      - Directory on the controller with wheels, as M(wsgi.fleet.wheels) fills it. Nothing is then fetched from an index
        or built on the host; it gets the wheels of its releases that it does not have yet.
      - A release for which the wheelhouse has no list fails.
    type: path
  wheels:
    description: Set by the action plugin.
    type: dict
    default: {}
  wheel_archive:
    description: Set by the action plugin.
    type: path
  next:
    description: For V(state=switched) in check mode - the RV(apps) that V(state=built) returned.
    type: dict
    default: {}
  uploads:
    description: Set by the action plugin.
    type: dict
    default: {}
  credentials:
    description: Set by the action plugin, which takes all secrets out of O(apps).
    type: json
    default: "{}"
attributes:
  check_mode:
    description: Reports what would be made and built. An id is unknown while the host has no git to ask with.
    support: full
  diff_mode:
    description: One line for every step.
    support: full
author:
  - The wsgi.fleet maintainers
"""

EXAMPLES = r"""
- name: Build the releases of two applications
  wsgi.fleet.release:
    apps:
      - name: shop
        source: {git: "https://git.example.com/shop.git", version: v1.4.2}
        packages: [gunicorn==27.0.1]
      - name: status
        source: {path: files/status}
        python: "3.11"

- name: Make them live
  wsgi.fleet.release:
    state: switched
    apps: "{{ apps }}"
"""

RETURN = r"""
apps:
  description: What each application has now, by name.
  returned: when O(state) is V(built), V(switched) or V(returned)
  type: dict
  sample:
    shop: {id: 3f2a9c0d1e4b, previous: 9b1c5a7d2f60, source: git v1.4.2 (0123456789ab), built: true}
actions:
  description: What was done, one line each.
  returned: always
  type: list
  elements: str
  sample: ["shop: build release 3f2a9c0d1e4b from git v1.4.2 (0123456789ab)"]
failures:
  description: What went wrong, by application.
  returned: on failure
  type: list
  elements: dict
  sample: [{app: shop, step: install, problem: No solution found, fix: align the versions}]
lacks:
  description:
    - Programs that the host must have before the sources can be fetched. Unless it is empty, nothing was done; install
      them, and call the module again.
  returned: when O(state) is V(built)
  type: list
  elements: str
  sample: [git, ssh]
left:
  description: What was left of applications that are gone, and why.
  returned: when O(state) is V(finished)
  type: list
  elements: str
  sample: ["/srv/shop: wsgi.fleet did not make what it holds: notes.txt"]
settled:
  description: Whether the other states would find nothing to do, so that they need not be called.
  returned: when O(state) is V(built)
  type: bool
wheel_lists:
  description: The lists in the wheelhouse that the host wants. For the action plugin.
  returned: when O(wheelhouse) is given and O(state) is V(built)
  type: dict
  sample: {shop: cp311-x86_64/3f2a9c0d1e4b}
stored:
  description: Wheels that the host has. For the action plugin.
  returned: when O(wheelhouse) is given and O(state) is V(built)
  type: list
  elements: str
wanted:
  description: Applications whose source the controller must bring. For the action plugin.
  returned: when O(state) is V(built)
  type: list
  elements: str
"""

import concurrent.futures
import copy
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.probing import TARGET
from ansible_collections.wsgi.fleet.plugins.module_utils.release.build import (
    Builder,
    Job,
    attempt,
    git_environment,
    remove_forgotten_keys,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.errors import (
    ReleaseError,
    failure_message,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.host import (
    SYSTEM_PATH,
    UNKNOWN,
    Host,
    find_interpreter,
    is_complete,
    is_published,
    publish,
    read_marker,
    remove_release,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.identity import (
    MARKER,
    interpreter_tag,
    is_commit,
    obsolete,
    release_inputs,
    resolve_ref,
    source_identity,
    wanted_refs,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.live import (
    before_build,
    checked,
    finished,
    judged,
    migrated,
    returned,
    switched,
    tried,
)
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import HOOKS, App, parse_app
from ansible_collections.wsgi.fleet.plugins.module_utils.release.removal import erase, retire
from ansible_collections.wsgi.fleet.plugins.module_utils.release.standing import BAD, last_good, read_state, write_state
from ansible_collections.wsgi.fleet.plugins.module_utils.release.wheels import platform_of, read_archive

# -- what is built, and what is not needed any more ------------------------------------------------------------


def identify(host: Host, job: Job) -> None:
    """Work out the job's id. In check mode it may stay unknown."""
    app = job.app
    job.interpreter = find_interpreter(app.python)
    job.tag = f"cpython-{app.python.replace('.', '')}" if app.python else interpreter_tag(job.interpreter)
    if not job.interpreter and not host.check:
        raise ReleaseError(
            "venv",
            f"the host has no interpreter python{app.python or '3'}",
            "install it (role python, python_versions), or give the application another `python`",
        )
    if not job.tag:
        raise ReleaseError(
            "venv", f"the version of {job.interpreter or 'python3'} is not clear", "give the application a `python`"
        )
    if app.source.kind == "git":
        job.commit = resolve_commit(host, app)
        if not job.commit:
            return
    job.identity = source_identity(app.source, job.commit)
    job.inputs = release_inputs(app, job.identity, job.tag)


def resolve_commit(host: Host, app: App) -> str:
    """The commit that a branch or a tag names now."""
    source = app.source
    if is_commit(source.version):
        return source.version
    if host.check and (host.builder.uid < 0 or not shutil.which("git", path=SYSTEM_PATH)):
        return ""  # a bare host: nothing to ask with
    with git_environment(host, app) as environment:
        listing = host.command(
            ["git", "ls-remote", source.location, *wanted_refs(source.version)],
            "resolve",
            environment=environment,
            secrets=source.secrets,
            unprivileged=True,
            timeout=min(host.timeout, 120),
        )
    return resolve_ref(listing, source.version)


def missing_programs(jobs: list[Job]) -> list[str]:
    """What must be installed before these sources can be fetched."""
    needed = ("git", "ssh") if any(job.app.source.kind == "git" for job in jobs) else ()
    return [program for program in needed if not shutil.which(program, path=SYSTEM_PATH)]


def built(host: Host, jobs: list[Job], all_jobs: list[Job], bad: str) -> dict[str, Any]:
    """Users, directories, releases and `next` of the chosen ones among all jobs."""
    lacks = missing_programs(jobs)
    if lacks and not host.check:
        return {"apps": {}, "wanted": [], "lacks": lacks, "settled": False}
    host.prepare_builder()
    if not host.check:
        remove_forgotten_keys()
        host.stop_builder()  # before any key or password is in its hands
        if host.wheel_archive:
            take_wheels(host, host.wheel_archive)
    for job in jobs:
        attempt(job, host.prepare, job.app)
    # Servers answer slowly: ask for all at once.
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda job: attempt(job, identify, host, job), jobs))
    wanted: list[str] = []
    places: dict[str, str] = {}
    apps: dict[str, Any] = {}
    for job in jobs:
        if job.failure:
            continue
        name = job.app.name
        previous = host.linked(name, "next")
        exists = bool(job.id) and is_complete(host.root / name / "releases" / job.id)
        if not exists and job.id and host.offline and name not in host.wheels:
            places[name] = f"{platform_of(job.tag, platform.machine())}/{job.id}"
        if not exists and not host.check and lacks_something(host, job):
            wanted.append(name)
            continue
        live = host.linked(name, "current")
        verdict = read_state(host.root / name / "releases" / job.id) if exists else {}
        if verdict.get("verdict") == BAD and live not in ("", job.id):
            if bad == "keep":
                host.warn(
                    f"{name}: release {job.id} is bad since {verdict['since']}, so {live} stays: {verdict['reason']}"
                )
                apps[name] = {"id": previous, "previous": previous, "source": job.description, "built": False}
                continue
            attempt(job, judge, host, job, verdict, bad)
            if job.failure:
                continue
        label = job.id or f"({UNKNOWN} id)"
        if not exists and not host.check:
            attempt(job, before_build, host, job.app)
        if not exists and not job.failure and host.act(f"{name}: build release {label} from {job.description}"):
            attempt(job, Builder(host, job).build)
        if job.failure:
            continue
        if (previous != job.id or not job.id) and host.act(f"{name}: next: {previous or 'none'} -> {label}"):
            host.set_link(name, "next", job.id)
        publish_releases(host, job.app)
        apps[name] = {"id": job.id or None, "previous": previous, "source": job.description, "built": not exists}
    result = {"apps": apps, "wanted": wanted, "lacks": lacks, "settled": not wanted and settled(host, jobs, all_jobs)}
    return {**result, "wheel_lists": places, "stored": host.store.names()} if places else result


def publish_releases(host: Host, app: App) -> None:
    """Let the web server read what it serves of a release, as the record says it now."""
    directory = host.root / app.name / "releases"
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if is_complete(path) and not is_published(path, app.public):
            what = ", ".join(app.public) or "nothing"
            if host.act(f"{app.name}: let everybody read of release {path.name}: {what}"):
                publish(path, app.public)


def lacks_something(host: Host, job: Job) -> bool:
    """Whether the controller must bring the source or the wheels."""
    name = job.app.name
    return (not job.app.source.remote and name not in host.uploads) or (host.offline and name not in host.wheels)


def take_wheels(host: Host, archive: str) -> None:
    """Put what came into the store."""
    host.ensure_directory(host.store.directory, 0, host.builder.gid, 0o750)
    wheels = [wheel for wheels in host.wheels.values() for wheel in wheels]
    taken = read_archive(Path(archive), wheels, host.store.directory, gid=host.builder.gid)
    host.actions += [f"take {file}" for file in taken]


def judge(host: Host, job: Job, verdict: Mapping[str, Any], bad: str) -> None:
    """What to do about a release that was found to be bad and is wanted all the same."""
    if bad == "refuse":
        raise ReleaseError(
            "bad",
            f"release {job.id} ({job.description}) is bad since {verdict['since']}: {verdict['reason']}",
            "give the application another version; or try this one again: -e wsgi_bad_releases=retry",
        )
    if host.act(f"{job.app.name}: try {job.id} again, which was bad"):
        write_state(
            host.root / job.app.name / "releases" / job.id, verdict="", reason="", checked="", tried="", well=""
        )


def settled(host: Host, jobs: list[Job], all_jobs: list[Job]) -> bool:
    """Whether the states after this would find nothing to do; what a killed run left for them shows here."""
    if host.actions or any(job.failure for job in jobs):
        return False
    dry = copy.copy(host)
    dry.check, dry.actions, dry.left = True, [], []
    later = [Job(job.app) for job in jobs]
    switched(dry, later, {})
    finished(dry, later)
    pruned(dry, [Job(job.app) for job in all_jobs])
    return not dry.actions and not any(job.failure for job in later)


def pruned(host: Host, jobs: list[Job]) -> dict[str, Any]:
    """Remove what is not needed any more."""
    for job in jobs:
        attempt(job, prune, host, job.app)
    names = {job.app.name for job in jobs}
    for name in sorted(set(host.manifest) - names):
        job = Job(parse_app({"name": name}))
        jobs.append(job)
        attempt(job, erase if name in host.removed else retire, host, name, host.manifest[name])
    forget_wheels(host)
    return {"left": host.left}


def forget_wheels(host: Host) -> None:
    """Remove wheels of which no release was made."""
    roots = {Path(entry["root"]) for entry in host.manifest.values()}
    markers = [read_marker(path.parent) for root in roots for path in root.glob(f"*/releases/*/{MARKER}")]
    used = {file for marker in markers for file in marker.get("wheels", ())}
    for file in host.store.names():
        if file not in used and host.act(f"remove {file}, which no release has installed"):
            (host.store.directory / file).unlink()


def prune(host: Host, app: App) -> None:
    """Old releases, and what interrupted builds and removals left."""
    directory = host.root / app.name / "releases"
    if not directory.is_dir():
        return
    complete: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        marker = read_marker(path)
        if marker:
            complete[path.name] = marker.get("built", "")
        elif host.act(f"{app.name}: remove {path.name}, an incomplete release"):
            if path.is_dir() and not path.is_symlink():
                remove_release(path)
            else:
                path.unlink()
    current = host.linked(app.name, "current")
    kept = [current, host.linked(app.name, "next"), last_good(directory, without=current)]
    for release in obsolete(complete, kept, app.keep_releases):
        if host.act(f"{app.name}: remove release {release}"):
            remove_release(directory / release)


# -- the module ------------------------------------------------------------------------------------------------


STATES = ("built", "checked", "migrated", "tried", "switched", "judged", "finished", "returned")


def arguments() -> dict[str, Any]:
    """The parameters, as DOCUMENTATION describes them."""
    source = {
        **{name: {"type": "str"} for name in ("git", "archive", "package", "version", "checksum", "subdirectory")},
        **{name: {"type": "str"} for name in ("ssh_known_hosts", "username", "digest")},
        "path": {"type": "path"},
        "exclude": {"type": "list", "elements": "str"},
        "ssh_key": {"type": "str", "no_log": True},
        "password": {"type": "str", "no_log": True},
    }
    app = {
        "name": {"type": "str", "required": True},
        "source": {"type": "dict", "options": source},
        "python": {"type": "str"},
        "requirements": {"type": "list", "elements": "str"},
        "packages": {"type": "list", "elements": "str"},
        "check": {"type": "list", "elements": "str"},
        "serve": {"type": "list", "elements": "str"},
        "migrate": {"type": "list", "elements": "str"},
        "hooks": {"type": "dict", "options": {point: {"type": "list", "elements": "list"} for point in HOOKS}},
        "probes": {"type": "list", "elements": "dict", "options": TARGET},
        "health_timeout": {"type": "int", "default": 30},
        "keep_releases": {"type": "int", "default": 5},
        "public": {"type": "list", "elements": "str", "default": []},
        "public_shared": {"type": "bool", "default": False},
    }
    return {
        "state": {"type": "str", "choices": list(STATES), "default": "built"},
        "apps": {"type": "list", "elements": "dict", "required": True, "options": app},
        "removed": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"name": {"type": "str", "required": True}, "keep_data": {"type": "bool", "default": True}},
        },
        "root": {"type": "path", "default": "/srv"},
        "config_dir": {"type": "path", "default": "/etc/wsgi-fleet"},
        "log_dir": {"type": "path", "default": "/var/log/wsgi-fleet"},
        "cache_dir": {"type": "path", "default": "/var/cache/wsgi-fleet"},
        "state_dir": {"type": "path", "default": "/var/lib/wsgi-fleet"},
        "uv": {"type": "path", "default": "/opt/wsgi-fleet/uv/bin/uv"},
        "environment": {"type": "json", "default": "{}", "no_log": True},
        "timeout": {"type": "int", "default": 1800},
        "next": {"type": "dict", "default": {}},
        "only": {"type": "list", "elements": "str", "default": []},
        "bad": {"type": "str", "choices": ["keep", "refuse", "retry"], "default": "keep"},
        "to": {"type": "dict", "default": {}},
        "previous": {"type": "bool", "default": False},
        "reason": {"type": "str", "default": ""},
        "wheelhouse": {"type": "path"},
        "wheels": {"type": "dict", "default": {}},
        "wheel_archive": {"type": "path"},
        "uploads": {"type": "dict", "default": {}},
        "credentials": {"type": "json", "default": "{}", "no_log": True},
    }


def main() -> None:
    """Wire the parameters to the work."""
    module = AnsibleModule(arguments(), supports_check_mode=True)
    if os.geteuid() != 0:
        module.fail_json(msg="Users, directories and releases are root's business here: run with become.")
    host = Host(module)
    secrets = json.loads(module.params["credentials"])
    jobs = [Job(parse_app(record, secrets.get(record["name"]))) for record in module.params["apps"]]
    umask = os.umask(0o022)  # root's own may be so strict that nobody could get to the releases
    try:
        result = work(host, jobs, module.params)
    except ReleaseError as error:
        module.fail_json(msg=failure_message([{"app": "host", **told(error)}], 1))
    finally:
        os.umask(umask)
    result["changed"] = bool(host.actions)
    result["actions"] = host.actions
    if host.actions:
        result["diff"] = [{"prepared": "".join(f"{line}\n" for line in host.actions)}]
    failures = [{"app": job.app.name, **told(job.failure)} for job in jobs if job.failure]
    if failures:
        concerned = [job for job in jobs if not module.params["only"] or job.app.name in module.params["only"]]
        module.fail_json(msg=failure_message(failures, len(concerned)), failures=failures, **result)
    module.exit_json(**result)


def work(host: Host, jobs: list[Job], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the wanted state asks for."""
    state, only = params["state"], params["only"]
    chosen = [job for job in jobs if not only or job.app.name in only]
    with host.locked():
        if state == "built":
            return built(host, chosen, jobs, params["bad"])
        if state == "checked":
            return checked(host, chosen)
        if state == "migrated":
            return migrated(host, chosen, params["next"])
        if state == "tried":
            return tried(host, chosen)
        if state == "switched":
            return switched(host, chosen, params["next"])
        if state == "judged":
            return judged(host, chosen)
        if state == "returned":
            return returned(host, chosen, params["to"], previous=params["previous"], reason=params["reason"])
        finished(host, chosen)
        return pruned(host, jobs)


def told(error: ReleaseError) -> dict[str, str]:
    """A failure as data."""
    return {"step": error.step, "problem": error.problem, "fix": error.fix}


if __name__ == "__main__":
    main()
