"""Further runs, with other records and broken ones. The order counts: each begins where one ended."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from building import (
    apply,
    as_user,
    changed,
    inventories,
    live,
    python,
    records,
    releases,
    said,
    secrets_lie_nowhere_else,
)
from probes import ROOT, ansible_environment, thorough, wait_until

testinfra_hosts = ["ansible://debian13"]  # one is enough: what differs between systems is in test_app.py


def test_second_run_changes_nothing_and_asks_little(host):
    done = apply(host)
    assert changed(done) == 0
    asked = re.findall(r"^TASK \[wsgi.fleet.app : (?!Validating|Refuse|Install git)", done.stdout, re.MULTILINE)
    assert len(asked) == 4


def test_check_mode_tells_of_a_new_commit_and_does_nothing(host):
    commit(host, 4)
    before = host.check_output("find /srv /etc/wsgi-fleet /var/lib/wsgi-fleet | sort | sha256sum")
    done = apply(host, "--check", "-v")
    assert changed(done) == 2  # built and switched
    assert re.search(r"shop: build release [0-9a-f]{12} from git main", done.stdout)
    assert re.search(r"shop: current: [0-9a-f]{12} -> [0-9a-f]{12}", done.stdout)
    assert host.check_output("find /srv /etc/wsgi-fleet /var/lib/wsgi-fleet | sort | sha256sum") == before


def commit(host, version):
    """Push one to the branch main."""
    identity = "-c user.name=t -c user.email=t@example.com"
    host.check_output(
        "su -s /bin/sh git -c 'set -e; cd /home/git; rm -rf work; git clone -q shop.git work; cd work; "
        f"echo VERSION = {version} > wsgi.py; git {identity} commit -qam v{version}; git push -q'"
    )


def test_new_commit_is_a_new_release_and_the_old_one_stays(host):
    old = live(host, "shop")
    assert changed(apply(host, "-vvv")) == 3  # next, current, and that it is good
    assert python(host, "shop", "import wsgi; print(wsgi.VERSION)") == "4"
    assert releases(host, "shop") == {old, live(host, "shop")}


def test_return_to_an_old_commit_and_other_environment_build_nothing(host):
    before = {app: releases(host, app) for app in ("shop", "tagged")}
    shop = next(record for record in records() if record["name"] == "shop")["source"]
    done = apply(
        host,
        apps={
            "shop": {"source": shop | {"version": "light"}},
            "tagged": {"env": {"COLOUR": "red"}, "secrets": {"SECRET_KEY": "Hard-to-guess-4717"}},
        },
    )
    assert changed(done) == 4  # next, the environment file, current, and that it is good
    assert "build release" not in done.stdout
    assert python(host, "shop", "import wsgi; print(wsgi.VERSION)") == "3"
    assert python(host, "tagged", "import os; print(os.environ['COLOUR'], os.environ['SECRET_KEY'][-4:])") == "red 4717"
    assert changed(apply(host)) == 4
    assert {app: releases(host, app) for app in ("shop", "tagged")} == before


@thorough
def test_only_so_many_releases_are_kept(host):
    first = live(host, "tagged")
    for tag in ("v2", "v3"):
        apply(host, apps={"tagged": {"source": {"git": "/home/git/shop.git", "version": tag}}})
    assert python(host, "tagged", "import wsgi; print(wsgi.VERSION)") == "3"
    assert len(releases(host, "tagged")) == 2
    assert first not in releases(host, "tagged")


def test_failures_are_told_together_and_the_healthy_are_built(host):
    bad = "0" * 64
    sources = ROOT / ".cache/app"
    wrong_hash = sources / "wrong"
    wrong_hash.mkdir(exist_ok=True)
    (wrong_hash / "requirements.txt").write_text(f"itsdangerous==2.2.0 --hash=sha256:{bad}\n")
    fetched = next(record for record in records() if record["name"] == "fetched")["source"]
    shop = next(record for record in records() if record["name"] == "shop")["source"]
    done = apply(
        host,
        "-vvv",
        apps={
            "fetched": {"source": fetched | {"checksum": f"sha256:{bad}"}},
            "pinned": {
                "source": {"git": "http://reader:Hard-to-guess-0000@127.0.0.1:8000/shop.git", "version": "main"}
            },
            "copied": {"packages": ["itsdangerous==2.2.0"]},
            "tagged": {"source": {"git": "/home/git/shop.git", "version": "v9"}},
            "shop": {"source": shop | {"ssh_known_hosts": "127.0.0.1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGdh"}},
            "forged": {"source": {"path": str(wrong_hash)}},
            "foreign": {"source": {"package": "itsdangerous", "version": "2.2.0"}},
            "short": {"source": {"git": "/home/git/shop.git", "version": "0123abc"}},
            "healthy": {"source": {"package": "itsdangerous", "version": "2.1.2"}},
        },
    )
    text = said(done)
    assert "8 of 11 applications failed; the others are done" in text
    assert (
        f"its checksum is sha256:{host.check_output('sha256sum /home/git/built.zip').split()[0]}, not sha256:{bad}"
        in text
    )
    assert "pinned: resolve: git ls-remote ended with status 128" in text
    assert "copied: install: uv pip install ended with status 1" in text
    assert "contradict each other" in text
    assert "tagged: resolve: the repository has no branch or tag 'v9'" in text
    assert "shop: resolve:" in text
    assert "Host key verification failed" in text
    assert "forged: install:" in text
    assert "ash mismatch" in text
    assert "foreign: prepare: the host has a user 'foreign'" in text
    assert "looks like a shortened commit" in text
    assert not re.search(r"healthy: (prepare|resolve|venv|fetch|install|build):", text)
    assert host.file("/srv/healthy/next/release.json").is_file
    assert releases(host, "forged") == set()
    # what was live stays so
    assert python(host, "shop", "import wsgi; print(wsgi.VERSION)") == "4"
    assert python(host, "fetched", "import witness; print('ok')") == "ok"


def test_what_is_gone_from_the_list_is_removed(host):
    host.check_output("touch /srv/packaged/shared/upload /var/log/wsgi-fleet/pinned/access.log")
    host.check_output("chown pinned /var/log/wsgi-fleet/pinned/access.log")
    assert host.user("healthy").exists  # of the test before
    done = apply(host, apps={"packaged": None, "pinned": None})
    assert changed(done) >= 2
    for app in ("healthy", "forged", "short", "pinned"):
        assert not host.user(app).exists, app
        assert not host.group(app).exists, app
        assert not host.file(f"/srv/{app}").exists, app
        assert not host.file(f"/etc/wsgi-fleet/{app}").exists, app
    # data stay with their owner, logs with root
    assert host.check_output("ls -A /srv/packaged /srv/packaged/shared").split() == [
        "/srv/packaged:",
        "shared",
        "/srv/packaged/shared:",
        "upload",
    ]
    assert host.user("packaged").exists
    assert host.file("/var/log/wsgi-fleet/pinned/access.log").user == "root"
    assert host.file("/srv/foreign").user == "foreign"
    assert changed(apply(host, apps={"packaged": None, "pinned": None})) == 0


PRIVATE_WHEEL = """
import pathlib, zipfile
place = pathlib.Path("/home/git/simple/private-thing")
place.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(place / "private_thing-1.0-py3-none-any.whl", "w") as wheel:
    info = "private_thing-1.0.dist-info"
    wheel.writestr("private_thing.py", "")
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: private-thing\\nVersion: 1.0\\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(f"{info}/RECORD", f"private_thing.py,,\\n{info}/METADATA,,\\n{info}/WHEEL,,\\n{info}/RECORD,,\\n")
"""


@pytest.mark.parametrize(
    "variable", ["UV_INDEX", *(pytest.param(name, marks=thorough) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"))]
)
def test_password_of_a_private_index_lies_nowhere(host, variable):
    host.check_output("python3 -c %s", PRIVATE_WHEEL)
    private = {"source": {"package": "private-thing", "version": "1.0"}, "keep_releases": 2}
    index = {variable: "http://reader:Hard-to-guess-4711@127.0.0.1:8000/simple/"}
    host.check_output("rm -rf /var/cache/wsgi-fleet/uv /srv/private/releases")
    done = apply(host, "-vvv", apps={"private": private}, app_uv_environment=index)  # looks at what it says
    assert changed(done) >= 1
    assert python(host, "private", "import private_thing; print('ok')") == "ok"
    secrets_lie_nowhere_else(host)
    # nor when it goes wrong
    wrong = {"source": {"package": "private-thing", "version": "2.0"}}
    text = said(apply(host, "-vvv", apps={"private": wrong}, app_uv_environment=index))
    assert "private: install: uv pip install ended with status 1" in text
    secrets_lie_nowhere_else(host)


OFFLINE = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/nobody-is-there/", "UV_HTTP_TIMEOUT": "5"}


@thorough
def test_wheelhouse_is_enough_for_a_host_without_an_index(host):
    house = ROOT / ".cache/app" / f"wheelhouse-{host.backend.get_hostname()}"
    shutil.rmtree(house, ignore_errors=True)
    apps = ["shop", "packed", "fetched", "copied"]
    before = {app: json.loads(host.file(f"/srv/{app}/current/release.json").content_string) for app in apps}

    assert changed(apply(host, "--check", playbook="wheels", app_wheelhouse=str(house))) == 1
    assert not house.exists()
    assert changed(apply(host, playbook="wheels", app_wheelhouse=str(house))) == 1
    assert changed(apply(host, playbook="wheels", app_wheelhouse=str(house))) == 0
    version = {"debian12": "cp311-x86_64", "debian13": "cp313-x86_64"}[host.backend.get_hostname()]
    assert [path.name for path in house.iterdir()] == [version]
    assert len(list((house / version).glob("built-1.0-*.whl"))) == 1  # the application itself

    # A host that has nothing, and nobody to ask.
    forget = f"rm -rf /var/cache/wsgi-fleet/uv; cd /srv; rm -rf {' '.join(f'{app}/releases/*' for app in apps)}"
    host.check_output(forget)
    new = {"unknown": {"source": {"package": "itsdangerous", "version": "2.1.1"}}}
    lacking = "unknown: wheels: the wheelhouse has no list"
    assert lacking in said(apply(host, "--check", apps=new, app_wheelhouse=str(house)))
    done = apply(host, apps=new, app_wheelhouse=str(house), app_uv_environment=OFFLINE)
    text = said(done)  # what is not in it fails by itself
    assert lacking in text
    assert "1 of 8 applications failed" in text
    assert len(re.findall(r"^.*take .*\.whl$", done.stdout, re.MULTILINE)) == len(
        {wheel for app in apps for wheel in lists(house / version, before[app]["id"])}
    )
    changed(apply(host, app_wheelhouse=str(house), app_uv_environment=OFFLINE))
    for app in apps:
        now = json.loads(host.file(f"/srv/{app}/current/release.json").content_string)
        assert (now["id"], now["installed"]) == (before[app]["id"], before[app]["installed"])
        assert now["wheels"] == lists(house / version, now["id"])
    assert python(host, "fetched", "import witness; print(witness.USER)") == "wsgi-build"
    assert host.run("/etc/wsgi-fleet/shop/run gunicorn --version").stdout.startswith("gunicorn")
    assert as_user(host, "shop", "ls /var/lib/wsgi-fleet/wheels").rc != 0  # other applications' code

    # It has them now: nothing is sent twice.
    host.check_output("rm -rf /srv/shop/releases/*")
    done = apply(host, app_wheelhouse=str(house), app_uv_environment=OFFLINE)
    assert changed(done) >= 1
    assert "shop: build release" in done.stdout
    assert ".whl" not in done.stdout
    assert changed(apply(host, app_wheelhouse=str(house), app_uv_environment=OFFLINE)) == 0

    # What arrives damaged is not taken.
    host.check_output(forget + " /var/lib/wsgi-fleet/wheels")
    for wheel in (house / version).glob("itsdangerous-*.whl"):
        wheel.write_bytes(wheel.read_bytes() + b"x")
    assert "is not what its list says" in said(apply(host, app_wheelhouse=str(house), app_uv_environment=OFFLINE))
    assert changed(apply(host)) >= 1  # with an index all is well again
    assert changed(apply(host)) == 0


def lists(place, release):
    return [wheel["file"] for wheel in json.loads((place / f"{release}.json").read_text())["wheels"]]


@thorough
def test_data_of_an_absent_application_wait_for_it(host):
    """They are nobody's but root's meanwhile: another user may get the number."""
    leaving = {"leaving": {"source": {"package": "itsdangerous", "version": "2.2.0"}}}
    show = "cd /srv/leaving && find . -path './shared*' -printf '%p %u:%g %m\\n' | sort"
    apply(host, apps=leaving)
    host.check_output(
        "mkdir /srv/leaving/shared/media && touch /srv/leaving/shared/media/photo /var/log/wsgi-fleet/leaving/x"
    )
    host.check_output("chown -R leaving:leaving /srv/leaving/shared/media && touch /srv/leaving/shared/of-root")
    host.check_output("cd /srv/leaving/shared && install -o root -g leaving -m 640 /dev/null of-both")
    before = host.check_output(show)

    absent = [{"name": "leaving"}]
    assert changed(apply(host, app_removed=absent)) == 2  # run files; all else
    assert {line.split()[1] for line in host.check_output(show).splitlines()} == {"root:root"}
    assert not host.user("leaving").exists
    assert not host.group("leaving").exists
    assert not host.file("/var/log/wsgi-fleet/leaving").exists
    assert not host.file("/srv/leaving/releases").exists
    assert changed(apply(host, app_removed=absent)) == 0
    assert changed(apply(host)) == 0

    host.check_output("useradd --system somebody-else")  # takes the number
    assert changed(apply(host, apps=leaving)) >= 1
    assert host.check_output(show) == before
    assert changed(apply(host, apps=leaving)) == 0
    apply(host, app_removed=[{"name": "leaving", "keep_data": False}])
    assert not host.file("/srv/leaving").exists
    host.check_output("userdel somebody-else")


@thorough
def test_absent_application_goes_with_its_data_and_nothing_else(host):
    leaving = {"leaving": {"source": {"package": "itsdangerous", "version": "2.2.0"}, "secrets": {"A": "b"}}}
    apply(host, apps=leaving)
    places = "/srv /etc/wsgi-fleet /var/lib/wsgi-fleet /var/log/wsgi-fleet"
    host.check_output("touch /srv/leaving/shared/upload /var/log/wsgi-fleet/leaving/x.log /srv/leaving/notes")
    # What role app never made: a user with his home, and a directory that looks like an application's.
    host.check_output("mkdir -p /srv/stranger/shared")
    absent = [{"name": name, "keep_data": False} for name in ("leaving", "foreign", "stranger")]

    before = host.check_output(f"find {places} | sort | sha256sum")
    foreseen = apply(host, "--check", app_removed=absent)
    assert changed(foreseen) == 2
    assert host.check_output(f"find {places} | sort | sha256sum") == before
    assert host.user("leaving").exists

    done = apply(host, app_removed=absent)
    assert changed(done) == 2  # environment and run files; all else
    lines = re.compile(r"leaving: (?:remove|give) .*")
    assert lines.findall(done.stdout) == lines.findall(foreseen.stdout) != []
    assert "/srv/leaving is left: wsgi.fleet did not make what it holds (notes)" in re.sub(
        r"\s+", " ", done.stdout + done.stderr
    )
    assert host.check_output("ls -A /srv/leaving") == "notes"
    assert host.file("/srv/leaving").group == "root"
    assert not host.user("leaving").exists
    assert not host.group("leaving").exists
    for path in ("/etc/wsgi-fleet/leaving", "/var/log/wsgi-fleet/leaving"):
        assert not host.file(path).exists, path
    assert host.user("foreign").exists
    assert host.file("/srv/foreign").is_directory
    assert host.file("/srv/stranger/shared").is_directory
    assert changed(apply(host, app_removed=absent)) == 0
    host.check_output("rm -r /srv/leaving /srv/stranger")


def test_killed_build_is_mended(host):
    slow = ROOT / ".cache/app/slow"
    slow.mkdir(exist_ok=True)
    (slow / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (slow / "setup.py").write_text(
        "import os, time\nfrom setuptools import setup\n"
        "if not os.path.exists('/tmp/go'):\n    time.sleep(300)\nsetup(name='slow', py_modules=[])\n"
    )
    command = ["ansible-playbook", "molecule/app/converge.yml", "--limit", host.backend.get_hostname()]
    command += [f"--inventory={path}" for path in inventories(host)]
    command += ["-e", json.dumps({"app_apps": [{"name": "slow", "source": {"path": str(slow)}}]})]
    environment = ansible_environment(
        ANSIBLE_SSH_COMMON_ARGS="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    )
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pattern = "pgrep -u wsgi-build -f 'setup.py|setuptools|build_meta'"
        wait_until(lambda: host.run(pattern).rc == 0, 90, "the build to hang")
        # the module dies, what it started lives on
        builder = host.check_output("pgrep -o -u wsgi-build")
        host.check_output(f"kill -9 $(awk '/^PPid/ {{print $2}}' /proc/{builder}/status)")
    finally:
        run.kill()
        run.wait()
    assert host.run("pgrep -u wsgi-build").rc == 0
    assert len(releases(host, "slow")) == 1
    assert not host.file("/srv/slow/next").exists
    host.check_output("touch /tmp/go")
    assert changed(apply(host, apps={"slow": {"source": {"path": str(slow)}}})) >= 1
    assert host.file("/srv/slow/current/release.json").is_file
    assert host.run("pgrep -u wsgi-build").rc == 1
    host.check_output("rm /tmp/go")


def test_what_comes_back_finds_its_data(host):
    assert host.file("/srv/packaged/shared/upload").exists
    assert host.file("/srv/packaged/shared").user == "packaged"
    assert python(host, "packaged", "import itsdangerous; print('ok')") == "ok"


def test_records_are_refused_before_anything_happens(host):
    before = host.check_output("find /srv /etc/wsgi-fleet /var/lib/wsgi-fleet | sort | sha256sum")
    text = said(
        apply(
            host,
            apps={
                "shop": {"source": {"git": "/x", "vresion": "main"}},
                "tagged": {"source": {"archive": "http://127.0.0.1:8000/built.zip"}},
                "pinned": {"env": {"NOT-A-NAME": "x"}, "keep_releases": 1},
            },
        )
    )
    assert "vresion" in text
    assert host.check_output("find /srv /etc/wsgi-fleet /var/lib/wsgi-fleet | sort | sha256sum") == before
