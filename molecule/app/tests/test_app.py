"""Releases as the system shows them. The order counts: what changes something comes after what only looks."""

from __future__ import annotations

import json

import pytest
from building import APPS, as_user, live, python, secrets_lie_nowhere_else

testinfra_hosts = ["ansible://systems_under_test"]


@pytest.mark.parametrize("app", APPS)
def test_release_is_complete_and_live(host, app):
    marker = json.loads(host.file(f"/srv/{app}/current/release.json").content_string)
    assert marker["id"] == live(host, app)
    assert host.check_output(f"readlink /srv/{app}/current") == host.check_output(f"readlink /srv/{app}/next")
    assert any(line.startswith("itsdangerous==2.") for line in marker["installed"])


@pytest.mark.parametrize(
    ("app", "code", "answer"),
    [
        ("shop", "import wsgi, gunicorn; print(wsgi.VERSION, gunicorn.__version__)", "3 27.0.1"),
        ("tagged", "import wsgi; print(wsgi.VERSION)", "1"),
        ("pinned", "import wsgi; print(wsgi.VERSION)", "2"),
        (
            "packed",
            "import wsgi, os; print(wsgi.itsdangerous.__name__, os.path.basename(os.getcwd()))",
            "itsdangerous backend",
        ),
        ("fetched", "import itsdangerous, witness; print('ok')", "ok"),
        ("copied", "import wsgi, importlib.metadata as m; print(m.version('itsdangerous')[:3])", "2.1"),
        ("packaged", "import itsdangerous; print('ok')", "ok"),
    ],
)
def test_code_and_packages_are_those_of_the_record(host, app, code, answer):
    assert python(host, app, code) == answer


def test_wanted_interpreter_is_used(host):
    wanted = {"debian12": "3.11", "debian13": "3.13"}[host.backend.get_hostname()]
    for app in ("tagged", "shop"):
        assert python(host, app, "import sys; print('%d.%d' % sys.version_info[:2])") == wanted


def test_locked_project_gets_no_development_packages(host):
    assert "No module" in host.run("/etc/wsgi-fleet/copied/run python -c 'import iniconfig'").stderr


def test_caches_and_excluded_files_stay_behind(host):
    assert (
        host.check_output("find /srv/copied/current/src -name 'left-behind*' -o -name node_modules -o -name .venv")
        == ""
    )


def test_executable_files_stay_executable(host):
    assert host.check_output("/etc/wsgi-fleet/shop/run ./tool") == "tool"


def test_environment_arrives_unharmed(host):
    out = python(host, "shop", "import json, os; print(json.dumps(dict(os.environ)))")
    seen = json.loads(out)
    assert seen["GREETING"] == 'it\'s "50%" $HOME `id` \\n'
    assert seen["WORKERS"] == "3"
    assert seen["SECRET_KEY"] == "Hard-to-guess-4714 'quoted'"
    assert seen["HOME"] == "/srv/shop/shared"


def test_commands_run_as_the_application(host):
    assert python(
        host, "shop", "import getpass, os; print(getpass.getuser(), os.getgid() == os.stat('/srv/shop/shared').st_gid)"
    ) == ("shop True")


def test_run_says_what_it_needs(host):
    assert host.run("/etc/wsgi-fleet/shop/run").rc == 64


# --- who may do what


def test_builds_see_nothing_of_applications(host):
    assert (
        python(host, "fetched", "import witness; print(witness.USER, witness.READ, witness.SECRETS)")
        == "wsgi-build [] []"
    )


@pytest.mark.parametrize("place", ["current/src", "current/venv/lib", "current", "releases", "."])
def test_application_cannot_write_its_code(host, place):
    assert as_user(host, "shop", f"touch /srv/shop/{place}/x").rc != 0
    assert host.check_output("find -P /srv/shop/releases -user shop -o ! -type l -perm /022 -o -perm /6000") == ""


def test_application_can_write_what_it_shares(host):
    assert as_user(host, "shop", "touch /srv/shop/shared/x && rm /srv/shop/shared/x").rc == 0


def test_application_cannot_plant_a_link_where_root_opens_logs(host):
    assert as_user(host, "shop", "ln -s /etc/cron.d/x /var/log/wsgi-fleet/shop/gunicorn.log").rc != 0


def test_code_is_compiled_since_the_application_cannot(host):
    for place in ("src", "venv/lib/python3*/site-packages/gunicorn"):
        assert host.run(f"ls /srv/shop/current/{place}/__pycache__/*.pyc").rc == 0


@pytest.mark.parametrize("user", ["tagged", "nobody", "foreign"])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/wsgi-fleet/shop/env",
        "/srv/shop/current/src/wsgi.py",
        "/srv/shop/shared",
        "/srv/shop",
        "/var/log/wsgi-fleet/shop",
    ],
)
def test_others_cannot_read(host, user, path):
    group = "nogroup" if user == "nobody" else user
    assert host.run("setpriv --reuid=%s --regid=%s --clear-groups test -r %s", user, group, path).rc == 1


def test_secrets_lie_nowhere_else(host):
    secrets_lie_nowhere_else(host)


def test_cache_is_the_builders_own(host):
    assert host.file("/var/cache/wsgi-fleet").mode == 0o700
    assert host.user("wsgi-build").shell == "/usr/sbin/nologin"


# --- more runs
