"""Applications on Windows, behind a balancer on Linux. The order counts: each test begins where one ended.

The programs are Windows' own, under Wine; molecule/shared/windows/README.md says what that proves and what it does not.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import probes
import pytest
import yaml
from probes import ROOT, connects, fetch, run_playbook, thorough, wait_until

SCENARIO = ROOT / "molecule" / "waitress_windows"
BALANCER, WINDOWS = "10.213.70.10", "10.213.70.31"
SHOP, API, WEB = "shop.example.com", "api.example.com", "web.example.com"
CONTAINER = "fleet-waitress-windows-win1"
EVERYWHERE = {("posix", "app1"), ("nt", "win1"), ("nt", "win2")}
DATA = "/srv/wine/drive_c/ProgramData/wsgi-fleet"
CODE = "/srv/wine/drive_c/Program Files/wsgi-fleet"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
TOKEN = "Hard-to-guess-4711"
BLUE = {"env": {"COLOUR": "blue"}}  # as the shop is from some test on


def guest(*command, container=CONTAINER):
    """Run a program in the container; its output."""
    done = subprocess.run(["podman", "exec", container, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def windows(program):
    """Run some Python in the rig's own interpreter; what it prints."""
    command = ["podman", "exec", "-i", CONTAINER, "/rig/guest/python", "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def states():
    """The state of each of our services, as the Service Control Manager has it."""
    return json.loads(
        windows("""
import json, re, subprocess, winreg
found = {}
with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\\CurrentControlSet\\Services") as key:
    for name in (winreg.EnumKey(key, number) for number in range(winreg.QueryInfoKey(key)[0])):
        with winreg.OpenKey(key, name) as service:
            try:
                if "wsgi_host.py" not in winreg.QueryValueEx(service, "ImagePath")[0]:
                    continue
            except OSError:
                continue
        said = subprocess.run(["sc", "query", name], capture_output=True, text=True).stdout
        found[name] = int(re.search(r"STATE\\s*:\\s*(\\d)", said)[1])
print(json.dumps(found))
""")
    )


def control(action, name):
    windows(f"import subprocess; subprocess.run(['sc', '{action}', '{name}'], capture_output=True)")


def get(site, path="/", **options):
    return fetch(BALANCER, site, path, **options)


def port_of(app, number=0):
    """The TCP port of an instance, from its configuration."""
    config = json.loads(guest("cat", f"{DATA}/{app}/config/{app}-{number}.json"))
    return int(config["waitress"]["listen"].rpartition(":")[2])


def records(**changes):
    """The scenario's records with changes to some: shop={...}; None leaves one out."""
    found = []
    for record in yaml.safe_load((SCENARIO / "inventory/group_vars/all.yml").read_text())["wsgi_apps"]:
        change = changes.get(record["name"], {})
        if change is not None:
            source = SCENARIO / "files" / ("web" if record["name"] == "web" else "shop")
            found.append({**record, "source": {"path": str(source)}, **change})
    return found


def play(playbook, *arguments, inventory=SCENARIO / "inventory", options=(), more=(), **changes):
    """Run a playbook of the project with changed records, or more of them."""
    variables = {"wsgi_apps": [*records(**changes), *more], "wsgi_canary_seconds": 2, **dict(options)}
    return run_playbook(
        f"playbooks/{playbook}.yml",
        "-e",
        json.dumps(variables),
        *arguments,
        inventories=[inventory],
        ANSIBLE_CONNECTION_PLUGINS=str(ROOT / "molecule/shared/windows/connection"),
        ANSIBLE_PRIVATE_KEY_FILE=str(ROOT / ".cache/ssh/fleet-waitress-windows"),
        ANSIBLE_REMOTE_USER="ansible",
        ANSIBLE_HOST_KEY_CHECKING="false",
        ANSIBLE_SSH_COMMON_ARGS="-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
    )


def deploy(**changes):
    """Bring the Windows host to changed records."""
    return play("site", "--limit", "win1", **changes)


def changes(done):
    """Changed tasks of each host, of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert TOKEN not in done.stdout + done.stderr
    return {host: int(changed) for host, _, changed, _, _ in RECAP.findall(done.stdout)}


def said(done):
    return " ".join((done.stdout + done.stderr).split())


class Visitors(probes.Visitors):
    def __init__(self, directory, site=SHOP, methods="both"):
        super().__init__(directory, BALANCER, site, methods, connections=20, pause=0.2)


def processes(site=SHOP, number=60):
    """The processes that answer, with what they say first."""
    return {tuple(get(site).text.split()[:2]) for _ in range(number)}


# -- serving


@pytest.mark.parametrize("site", [SHOP, API])
def test_both_applications_answer_through_the_balancer(site):
    assert get(site, "/healthz").text == "well"


def test_requests_are_spread_over_four_instances():
    assert len(processes()) == 4


def test_the_application_knows_its_client():
    client = "10.213.70.1"  # where this runs, on the hosts' network
    assert get(SHOP).text.split()[2:] == ["http", SHOP, client]
    assert get(API).text.split()[2:] == ["http", API, client]


def test_a_client_cannot_make_up_who_it_is():
    forged = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https", "Forwarded": "for=198.51.100.7"}
    assert get(SHOP, headers=forged).text.split()[2:] == ["http", SHOP, "10.213.70.1"]


def test_the_application_has_its_environment_and_its_release():
    about = json.loads(get(SHOP, "/about").text)
    assert about["token"] == len(TOKEN)
    assert about["prefix"].endswith(rf"\shop\releases\{about['release']}\venv")
    assert get(SHOP).text.startswith("green ")


def test_four_requests_of_a_second_end_together():
    port = port_of("api")
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: fetch(WINDOWS, API, "/sleep/1", port=port).status, range(4)))
    assert done == [200] * 4
    assert time.monotonic() - started < 1.9


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=thorough)])
def test_one_that_sleeps_keeps_nobody_waiting(seconds):
    port = port_of("api")
    with ThreadPoolExecutor(1) as pool:
        sleeper = pool.submit(fetch, WINDOWS, API, f"/sleep/{seconds}", port=port, timeout=seconds + 10)
        time.sleep(0.5)
        assert fetch(WINDOWS, API, "/healthz", port=port).seconds < 1
        assert not sleeper.done()
        assert sleeper.result().text == "woke"


def test_unknown_names_are_refused_by_nginx():
    with pytest.raises(Exception, match="closed connection without response"):
        fetch(WINDOWS, "other.example")


def test_instances_behind_nginx_are_not_to_be_reached():
    assert connects(WINDOWS, 80) == "open"
    assert connects(WINDOWS, port_of("shop")) == "refused"


# -- how Windows is told to run them; nothing of it has an effect under Wine


def test_services_are_configured_as_windows_wants_them():
    found = json.loads(
        windows("""
import json, winreg
with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\\CurrentControlSet\\Services\\shop-2") as key:
    names = ["ObjectName", "Start", "ImagePath", "ServiceSidType", "PreshutdownTimeout"]
    names.append("FailureActionsOnNonCrashFailures")
    found = {name: winreg.QueryValueEx(key, name)[0] for name in names}
    found["FailureActions"] = winreg.QueryValueEx(key, "FailureActions")[0].hex()
print(json.dumps(found))
""")
    )
    assert found.pop("ImagePath").startswith('"C:\\Program Files\\wsgi-fleet\\python\\3.13.2-')
    actions = b"".join(value.to_bytes(4, "little") for value in (86400, 0, 0, 3, 20, 1, 1000, 1, 5000, 1, 30000)).hex()
    assert found == {
        "ObjectName": "NT SERVICE\\shop-2",
        "Start": 2,
        "ServiceSidType": 1,
        "PreshutdownTimeout": 70000,
        "FailureActionsOnNonCrashFailures": 1,
        "FailureActions": actions,
    }


def test_rights_are_those_of_least_privilege():
    record = json.loads(guest("cat", "/srv/wine/drive_c/windows/rig.json"))
    root, data = r"C:\Program Files\wsgi-fleet", r"C:\ProgramData\wsgi-fleet"
    assert record["inheritance"] == {root: "absent", data: "absent"}
    mine = {key.rpartition("|")[0]: value for key, value in record["rights"].items() if key.endswith("\\shop-1")}
    assert mine == {rf"{data}\shop\config": "allow ReadAndExecute", rf"{data}\shop\var": "allow Modify"}


def firewall():
    return json.loads(
        windows("""
import json, winreg
path = r"SYSTEM\\CurrentControlSet\\Services\\SharedAccess\\Parameters\\FirewallPolicy\\FirewallRules"
with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
    rules = [winreg.EnumValue(key, number)[1] for number in range(winreg.QueryInfoKey(key)[1])]
print(json.dumps(rules))
""")
    )


def test_the_firewall_lets_balancers_in_and_nobody_else():
    rules = firewall()
    assert len(rules) == 3
    assert all(f"RA4={BALANCER}|" in rule for rule in rules)
    ports = {f"{port_of(app)}-{port_of(app, 1)}" for app in ("api", "web")}
    assert {re.search(r"LPort=([\d-]+)", rule)[1] for rule in rules} == {"80", *ports}


def test_secrets_are_in_one_file_only():
    found = guest("grep", "-rl", TOKEN, DATA, CODE).splitlines()
    release = json.loads(get(SHOP, "/about").text)["release"]
    assert {path.removeprefix(DATA) for path in found} == {
        "/shop/config/secrets/environment.json",
        f"/shop/config/good/{release}/environment.json",
    }


# -- stopping, and what breaks


def test_what_runs_survives_a_stop():
    """A request of 20 s and 60 MB to a slow client; new connections are refused at once meanwhile."""
    port = port_of("api", 1)
    with ThreadPoolExecutor(2) as pool:
        request = pool.submit(fetch, WINDOWS, API, "/sleep/20", port=port, timeout=60)
        download = pool.submit(slow_download, port, 60)
        time.sleep(2)
        control("stop", "api-1")
        stopped = time.monotonic()
        wait_until(lambda: connects(WINDOWS, port) == "refused", 5, "a closed port")
        assert time.monotonic() - stopped < 5
        assert not request.done()
        assert request.result().text == "woke"
        assert download.result() == 60 << 20
    wait_until(lambda: states()["api-1"] == 1, 20, "the service's end")
    assert get(API, "/healthz").text == "well"  # the other instance
    control("start", "api-1")
    wait_until(lambda: fetch(WINDOWS, API, "/healthz", port=port).status == 200, 30, "its start")


def slow_download(port, megabytes):
    """Take a download at some 5 MB/s; how many bytes came."""
    with socket.create_connection((WINDOWS, port), 30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(f"GET /download/{megabytes} HTTP/1.0\r\nHost: {API}\r\n\r\n".encode())
        head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
        assert head.split()[1] == b"200"
        got = len(body)
        while data := connection.recv(65536):
            got += len(data)
            time.sleep(len(data) / 5e6)
        return got


def test_a_killed_instance_costs_no_request_and_the_next_run_mends_it(tmp_path):
    victim = int(get(SHOP).text.split()[1])
    with Visitors(tmp_path, methods="get") as visitors:  # a POST that a process dies over is not asked for again
        windows(f"import os; os.kill({victim}, 9)")
        time.sleep(3)
    assert visitors.seen["failed"] == {}, visitors.seen
    assert len(processes()) == 3
    assert list(states().values()).count(1) == 1  # Wine knows no failure actions
    assert changes(deploy())["win1"] == 1
    assert len(processes()) == 4


def test_a_rolling_restart_costs_no_request(tmp_path):
    before = processes()
    with Visitors(tmp_path) as visitors:
        changed = changes(deploy(shop=BLUE))
    assert changed["win1"] == 1
    assert visitors.seen["failed"] == {}, visitors.seen
    # The restarts lay inside: visitors met both, and in the end nobody of before.
    assert set(visitors.seen["answers"]) == {"green", "blue"}
    after = processes()
    assert {colour for colour, _ in after} == {"blue"}
    assert len(after) == 4
    assert not {process for _, process in before} & {process for _, process in after}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What the record of the shop says with a release that does not start."""
    directory = tmp_path_factory.mktemp("broken")
    (directory / "shop.py").write_text(f"raise SystemExit('no database')  # {time.time()}\n")
    return {**BLUE, "source": {"path": str(directory)}}


def test_a_release_that_does_not_start_never_takes_the_place(tmp_path, broken):
    with Visitors(tmp_path) as visitors:
        done = deploy(shop=broken)
    assert done.returncode != 0
    assert "no database" in said(done)
    assert "is live again" in said(done)
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"blue"}


@thorough
def test_a_release_that_did_not_start_is_not_tried_again(broken):
    done = deploy(shop=broken)
    assert changes(done)["win1"] == 0
    assert "is bad, so" in said(done)


def test_after_a_power_cut_everything_comes_back_by_itself():
    guest("/rig/guest/power", "cut")
    assert connects(WINDOWS, 80) == "refused"
    guest("/rig/guest/power", "on")
    wait_until(lambda: set(states().values()) == {4}, 60, "every service")
    assert {colour for colour, _ in processes()} == {"blue"}
    assert get(API, "/healthz").text == "well"


@thorough
def test_a_run_after_that_changes_nothing_but_what_was_asked():
    done = deploy(shop=BLUE)
    assert changes(done)["win1"] == 0


def test_status_shows_every_instance():
    done = play("status", shop=BLUE)
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("lb1", "win1"))]
    assert [row[:2] for row in rows].count(["win1", "shop"]) == 4
    assert [row[:2] for row in rows].count(["win1", "api"]) == 2
    release = json.loads(get(SHOP, "/about").text)["release"]
    assert {row[2] for row in rows if row[:2] == ["win1", "shop"]} == {release}


def test_wrong_records_are_refused_before_anything_changes():
    done = deploy(shop={"hooks": {"after_build": ["true"]}, "port": 8079})
    assert done.returncode != 0
    assert "No host was touched" in said(done)
    assert "app shop: hooks: is for Linux hosts only" in said(done)
    assert "app shop: port: is 8079" in said(done)


# -- deploys, on hosts of both kinds


@pytest.fixture
def web(tmp_path):
    """Writes a version of the application; returns what its record says then."""

    def write(version, bad=""):
        directory = tmp_path / version
        directory.mkdir()
        (directory / "web.py").write_text((SCENARIO / "files/web/web.py").read_text())
        (directory / "version").write_text(version)
        if bad:
            (directory / "bad").write_text(bad)
        return {"source": {"path": str(directory)}}

    return write


ONLY_WEB = {"wsgi_apps_only": "web", "wsgi_drain": True}


def web_answers(number=60):
    """Version, kind and name of the hosts that answer."""
    return {tuple(get(WEB).text.split()[:3]) for _ in range(number)}


def everywhere(version):
    return {(version, *host) for host in EVERYWHERE}


def locks():
    return [
        guest("sh", "-c", f"ls {DATA}/locks", container=f"fleet-waitress-windows-{host}").split()
        for host in ("win1", "win2")
    ]


def test_a_deploy_goes_over_hosts_of_both_kinds_and_loses_no_request(tmp_path, web):
    assert web_answers() == everywhere("one")
    with Visitors(tmp_path, WEB) as visitors:
        done = play("deploy", options=ONLY_WEB, web=web("two"), shop=BLUE)
    changed = changes(done)
    assert min(changed[host] for host in ("app1", "win1", "win2")) > 0
    assert web_answers() == everywhere("two")
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"one", "two"}
    switched = re.findall(
        r"^changed: \[(\w+)\]$", done.stdout.partition("Make the next releases live")[2], re.MULTILINE
    )
    hosts = [host for host in switched if host in ("app1", "win1", "win2")]
    assert list(dict.fromkeys(hosts)) == ["app1", "win1", "win2"]  # one after the other, and Linux first
    assert locks() == [[], []]
    assert get(SHOP).text.startswith("blue ")


@thorough
def test_a_release_that_is_bad_on_the_last_host_is_left_by_all(tmp_path, web):
    broken = web("three", bad="win2")
    with Visitors(tmp_path, WEB) as visitors:
        done = play("deploy", options=ONLY_WEB, web=broken, shop=BLUE)
    assert done.returncode != 0
    assert "serve what was good before: win2: " in said(done)
    assert "is answered with 500" in said(done)
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"two", "three"}  # others had it already
    assert web_answers() == everywhere("two")
    assert locks() == [[], []]
    refused = play("deploy", options=ONLY_WEB, web=broken, shop=BLUE)
    assert refused.returncode != 0
    assert said(refused).count("wsgi_bad_releases=retry") >= 2  # of both kinds
    assert web_answers() == everywhere("two")


def test_a_lock_on_a_windows_host_keeps_others_out(web):
    holder = {"id": "other:1:1", "machine": "other", "pid": 1, "who": "alice", "where": "control9", "purpose": "hotfix"}
    content = json.dumps({**holder, "since": "2026-03-01T12:00:00Z", "until": time.time() + 600})
    guest("sh", "-c", f"echo '{content}' > {DATA}/locks/web.json", container="fleet-waitress-windows-win2")
    done = play("deploy", options=ONLY_WEB, web=web("locked"), shop=BLUE)
    assert done.returncode != 0
    assert "win2: web is locked by alice on control9 since 2026-03-01T12:00:00Z (hotfix)" in said(done)
    assert locks() == [[], ["web.json"]]
    assert web_answers() == everywhere("two")


def test_rollback_goes_back_on_all_hosts_and_site_stays_there(tmp_path, web):
    two = web("two")
    with Visitors(tmp_path, WEB) as visitors:
        changes(play("rollback", options={"wsgi_apps_only": "web", "wsgi_break_locks": True}, web=two, shop=BLUE))
    assert visitors.seen["failed"] == {}, visitors.seen
    # Not drained, so the balancer met servers that were just restarting: it asks them again after fail_timeout.
    wait_until(lambda: web_answers() == everywhere("one"), 30, "all hosts")
    assert locks() == [[], []]
    done = play("site", web=two, shop=BLUE)
    assert set(changes(done).values()) == {0}
    assert "is bad" in said(done)
    listed = play("releases", options={"wsgi_apps_only": "web"}, shop=BLUE).stdout
    rows = [line.split() for line in listed.splitlines() if line.strip().startswith(("app1", "win1", "win2"))]
    live = [row[0] for row in rows if row[1] == "web" and row[3:5] == ["live,", "good"]]
    assert live == ["app1", "win1", "win2"]
    assert [row[0] for row in rows if row[1] == "web" and "rolled" in row] == ["app1", "win1", "win2"]


@thorough
def test_a_change_of_server_that_fails_leaves_the_old_one_able_to_start():
    app1 = ("podman", "exec", "fleet-waitress-windows-app1")
    wrong = {"server": "gunicorn", "waitress": None, "gunicorn": {"statsd_host": "no port: here"}}
    record = next(record for record in records() if record["name"] == "web")
    record = {key: value for key, value in {**record, **wrong}.items() if value is not None}
    done = play("site", "--limit", "app1", web=None, more=[record], shop=BLUE)
    assert done.returncode != 0
    assert "statsd_host" in said(done)
    program = (
        "from urllib.request import Request, urlopen; "
        f"print(urlopen(Request('http://127.0.0.1/', headers={{'Host': '{WEB}'}})).read().decode())"
    )
    ask = ["python3", "-c", program]
    before = subprocess.run([*app1, *ask], capture_output=True, text=True, check=True).stdout
    supervisorctl = subprocess.run([*app1, "supervisorctl", "restart", "web:*"], capture_output=True, text=True)
    assert supervisorctl.returncode == 0, supervisorctl.stdout + supervisorctl.stderr

    def answer():
        return subprocess.run([*app1, *ask], capture_output=True, text=True).stdout

    after = wait_until(lambda: answer() if answer().startswith("one posix app1") else "", 20, "an answer")
    assert after.split()[3] != before.split()[3]  # another process, of the same release


@thorough
def test_a_deploy_says_what_it_would_do_and_brings_no_instances():
    before = processes()
    shop = {"env": {"COLOUR": "red"}}
    done = play("deploy", "--check", "--diff", "--limit", "win1", options={"wsgi_apps_only": "shop"}, shop=shop)
    assert changes(done)["win1"] > 0
    assert processes() == before
    more = {**BLUE, "waitress": {"instances": 5, "threads": 4, "stop_timeout": 60}}
    done = play("deploy", "--limit", "win1", options={"wsgi_apps_only": "shop"}, shop=more)
    assert done.returncode != 0
    assert "wanted are shop-0 on 127.0.0.1:8001" in said(done)
    assert "run site.yml" in said(done)
    assert processes() == before


@thorough
def test_an_application_comes_from_an_archive_a_repository_and_a_package(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "web.py").write_text((SCENARIO / "files/web/web.py").read_text())
    (code / "version").write_text("four")
    subprocess.run(["tar", "-czf", tmp_path / "code.tar.gz", "-C", tmp_path, "code"], check=True)
    git = ["git", "-C", str(code), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"], ["tag", "v4"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    wheels = tmp_path / "wheels"
    shutil.copytree(ROOT / ".cache/windows/wheels", wheels)
    write_wheel(wheels / "packed-4.0-py3-none-any.whl", (code / "web.py").read_text())
    sources = {
        "archived": ({"archive": str(tmp_path / "code.tar.gz")}, "web:app"),
        "cloned": ({"git": str(code), "version": "v4"}, "web:app"),
        "packed": ({"package": "packed", "version": "4.0"}, "packed:app"),
    }
    common = {"hosts": ["win1"], "server": "waitress", "waitress": {"instances": 1}, "nginx": {"tls": {"mode": "off"}}}
    more = [
        {"name": name, "domains": [f"{name}.example.com"], "source": source, "callable": entry, **common}
        for name, (source, entry) in sources.items()
    ]
    options = {"waitress_windows_wheelhouse": str(wheels)}
    changes(play("site", "--limit", "win1", more=more, options=options, shop=BLUE))
    for name in sources:
        answer = fetch(WINDOWS, f"{name}.example.com", port=port_of(name))
        assert answer.text.split()[:3] == ["four", "nt", "win1"], name
    assert changes(play("site", "--limit", "win1", more=more, options=options, shop=BLUE))["win1"] == 0


def write_wheel(path, code):
    """A package of one module."""
    info = "packed-4.0.dist-info"
    files = {
        "packed/__init__.py": code,
        "packed/version": "four",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: packed\nVersion: 4.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))


def test_an_application_goes_away():
    port = port_of("api")
    absent = {"state": "absent", "keep_data": False}
    assert changes(play("site", api=absent, shop=BLUE))["win1"] > 0
    assert connects(WINDOWS, port) == "refused"
    assert [name for name in states() if name.startswith("api")] == []
    assert guest("sh", "-c", f"ls -d '{CODE}/apps/api' '{DATA}/api' 2>/dev/null || true") == ""
    assert len(firewall()) == 2
    assert get(SHOP, "/healthz").text == "well"
    with pytest.raises(Exception, match="closed connection without response"):
        get(API)


# -- without a balancer


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """An inventory in which win1 faces its visitors by itself, with a certificate; what its record says then."""
    directory = tmp_path_factory.mktemp("edge")
    shutil.copytree(SCENARIO / "inventory" / "group_vars", directory / "group_vars")
    hosts = yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text())
    hosts["windows_apps"]["hosts"].pop("win2")
    (directory / "hosts.yml").write_text(json.dumps({"windows_apps": hosts["windows_apps"]}))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "30", "-subj", f"/CN={SHOP}", "-addext", f"subjectAltName=DNS:{SHOP}"]
    others = tmp_path_factory.mktemp("certificate")
    key, certificate = others / "key.pem", others / "certificate.pem"
    subprocess.run([*command, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    nginx = {"tls": {"mode": "files", "certificate": certificate.read_text(), "key": key.read_text()}}
    return {"inventory": directory, "api": None, "web": None, "shop": {**BLUE, "nginx": nginx}}


def test_nginx_serves_https_with_a_certificate_of_ones_own(edge):
    done = play("site", **edge)
    changes(done)
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    answer = fetch(WINDOWS, SHOP, tls=True)
    assert answer.text.split()[2:4] == ["https", SHOP]
    redirected = fetch(WINDOWS, SHOP, "/about?x=1")
    assert (redirected.status, redirected.headers["location"]) == (308, f"https://{SHOP}/about?x=1")
    with socket.create_connection((WINDOWS, 443), 5) as raw:
        context = ssl.create_default_context(cadata=edge["shop"]["nginx"]["tls"]["certificate"])
        with context.wrap_socket(raw, server_hostname=SHOP) as connection:
            assert connection.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        fetch(WINDOWS, "other.example", tls=True)
    assert {re.search(r"LPort=(\d+)", rule)[1] for rule in firewall()} == {"80", "443"}


ON = {
    "wsgi_maintenance": "on",
    "wsgi_maintenance_reason": "We move <b>house</b>",
    "wsgi_maintenance_allow": [BALANCER],
}


def status_for_a_tester():
    """What the front page answers to an address that is let in."""
    program = f"""
import socket, ssl
raw = socket.create_connection(("{WINDOWS}", 443), 10)
with ssl._create_unverified_context().wrap_socket(raw, server_hostname="{SHOP}") as connection:
    connection.sendall(b"GET / HTTP/1.0\\r\\nHost: {SHOP}\\r\\n\\r\\n")
    print(connection.recv(99).split()[1].decode())
"""
    return int(guest("python3", "-c", program, container="fleet-waitress-windows-lb1"))


@thorough
def test_maintenance_says_what_it_would_do(edge):
    told = play("maintenance", "--check", "--diff", options=ON, **edge)
    assert changes(told)["win1"] == 1
    assert "+shop $wsgi_fleet_maintenance_1; # since " in told.stdout
    assert fetch(WINDOWS, SHOP, tls=True).status == 200


def test_maintenance_closes_a_site_where_clients_come_in(edge):
    assert changes(play("maintenance", options=ON, **edge))["win1"] == 1
    for method in ("GET", "POST"):
        closed = fetch(WINDOWS, SHOP, "/about?x=1", tls=True, method=method)
        assert (closed.status, closed.headers["retry-after"]) == (503, "300")
        assert closed.headers["content-type"] == "text/html"
        assert closed.headers["cache-control"] == "no-store"
        assert "<p>We move &lt;b&gt;house&lt;/b&gt;</p>" in closed.text
    assert fetch(WINDOWS, SHOP, "/healthz", tls=True).text == "well"
    assert fetch(WINDOWS, SHOP).status == 308
    assert status_for_a_tester() == 200
    assert changes(play("maintenance", options=ON, **edge))["win1"] == 0


@thorough
def test_site_leaves_a_maintenance_and_reminds_of_it_and_status_shows_it(edge):
    done = play("site", **edge)
    assert set(changes(done).values()) == {0}
    assert re.search(r"In maintenance on win1, and left so: shop since \S+Z", said(done))
    assert fetch(WINDOWS, SHOP, tls=True).status == 503
    tls = edge["shop"]["nginx"]["tls"]
    trusted = {**edge["shop"], "nginx": {"tls": {**tls, "ca": tls["certificate"]}}}
    shown = play("status", **{**edge, "shop": trusted})
    changes(shown)
    assert re.search(r"win1 +shop .* 200 in \d+ ms; maintenance since \S+Z", shown.stdout)


def test_maintenance_ends_and_leaves_nothing(edge):
    assert changes(play("maintenance", "-e", "wsgi_maintenance=off", **edge))["win1"] == 1
    assert fetch(WINDOWS, SHOP, tls=True).status == 200
    assert "maintenance" not in guest("ls", f"{DATA}/nginx/conf").split()


@thorough
def test_a_deploy_needs_no_balancer(edge, tmp_path):
    (tmp_path / "shop.py").write_text((SCENARIO / "files/shop/shop.py").read_text() + f"# {time.time()}\n")
    shop = {**edge["shop"], "source": {"path": str(tmp_path)}}
    before = json.loads(fetch(WINDOWS, SHOP, "/about", tls=True).text)["release"]
    assert changes(play("deploy", **{**edge, "shop": shop}))["win1"] > 0
    assert json.loads(fetch(WINDOWS, SHOP, "/about", tls=True).text)["release"] != before
