"""Applications on Windows, behind a balancer on Linux. The order counts: each test begins where one ended.

The programs are Windows' own, under Wine; molecule/shared/windows/README.md says what that proves and what it does not.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from probes import ROOT, connects, fetch, run_playbook, wait_until

SCENARIO = ROOT / "molecule" / "waitress_windows"
BALANCER, WINDOWS = "10.213.70.10", "10.213.70.31"
SHOP, API = "shop.example.com", "api.example.com"
CONTAINER = "fleet-waitress-windows-win1"
DATA = "/srv/wine/drive_c/ProgramData/wsgi-fleet"
CODE = "/srv/wine/drive_c/Program Files/wsgi-fleet"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
TOKEN = "Hard-to-guess-4711"


def guest(*command):
    """Run a program in the container; its output."""
    done = subprocess.run(["podman", "exec", CONTAINER, *command], capture_output=True, text=True, timeout=120)
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
            found.append({**record, "source": {"path": str(SCENARIO / "files/shop")}, **change})
    return found


def play(playbook, *arguments, **changes):
    """Run a playbook of the project with changed records."""
    extra = json.dumps({"wsgi_apps": records(**changes)})
    return run_playbook(
        f"playbooks/{playbook}.yml",
        "-e",
        extra,
        *arguments,
        inventories=[SCENARIO / "inventory"],
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


class Visitors:
    """People on the site meanwhile."""

    def __init__(self, directory, site=SHOP):
        self.stop = directory / "stop"
        script = ROOT / "molecule/shared/visitors.py"
        command = [sys.executable, script, BALANCER, site, self.stop, "20", "0.2"]
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        time.sleep(2)
        return self

    def __exit__(self, *_):
        time.sleep(2)
        self.stop.touch()
        self.seen = json.loads(self.process.communicate(timeout=60)[0])


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


def test_one_that_sleeps_keeps_nobody_waiting():
    port = port_of("api")
    with ThreadPoolExecutor(1) as pool:
        sleeper = pool.submit(fetch, WINDOWS, API, "/sleep/6", port=port)
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
    assert len(rules) == 2
    assert all(f"RA4={BALANCER}|" in rule for rule in rules)
    assert {re.search(r"LPort=([\d-]+)", rule)[1] for rule in rules} == {"80", f"{port_of('api')}-{port_of('api', 1)}"}


def test_secrets_are_in_one_file_only():
    found = guest("grep", "-rl", TOKEN, DATA, CODE).splitlines()
    assert {path.removeprefix(DATA) for path in found} == {
        "/shop/config/secrets/environment.json",
        "/shop/config/good/environment.json",
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
    with Visitors(tmp_path) as visitors:
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
        changed = changes(deploy(shop={"env": {"COLOUR": "blue"}}))
    assert changed["win1"] == 1
    assert visitors.seen["failed"] == {}, visitors.seen
    # The restarts lay inside: visitors met both, and in the end nobody of before.
    assert set(visitors.seen["answers"]) == {"green", "blue"}
    after = processes()
    assert {colour for colour, _ in after} == {"blue"}
    assert len(after) == 4
    assert not {process for _, process in before} & {process for _, process in after}


def test_going_back_to_a_release_that_is_kept_takes_no_build(tmp_path):
    blue = {"env": {"COLOUR": "blue"}}
    first = json.loads(get(SHOP, "/about").text)["release"]
    (tmp_path / "shop.py").write_text((SCENARIO / "files/shop/shop.py").read_text() + f"# {time.time()}\n")
    assert changes(deploy(shop={**blue, "source": {"path": str(tmp_path)}}))["win1"] == 2
    assert json.loads(get(SHOP, "/about").text)["release"] != first
    fixed = json.dumps({"wsgi_release": {"shop": first}})
    assert (
        changes(play("site", "--limit", "win1", "-e", fixed, shop={**blue, "source": {"path": "/nowhere"}}))["win1"]
        == 1
    )
    assert json.loads(get(SHOP, "/about").text)["release"] == first


def test_a_release_that_does_not_start_never_takes_the_place(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "shop.py").write_text(f"raise SystemExit('no database')  # {time.time()}\n")
    shop = {"env": {"COLOUR": "blue"}, "source": {"path": str(broken)}}
    with Visitors(tmp_path) as visitors:
        done = deploy(shop=shop)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "no database" in said
    assert "is live again" in said
    assert visitors.seen["failed"] == {}, visitors.seen
    assert set(visitors.seen["answers"]) == {"blue"}
    assert "was found to be bad" in deploy(shop=shop).stdout


def test_after_a_power_cut_everything_comes_back_by_itself():
    guest("/rig/guest/power", "cut")
    assert connects(WINDOWS, 80) == "refused"
    guest("/rig/guest/power", "on")
    wait_until(lambda: set(states().values()) == {4}, 60, "every service")
    assert {colour for colour, _ in processes()} == {"blue"}
    assert get(API, "/healthz").text == "well"


def test_a_run_after_that_changes_nothing_but_what_was_asked():
    done = deploy(shop={"env": {"COLOUR": "blue"}})
    assert changes(done)["win1"] == 0


def test_status_shows_every_instance():
    done = play("status", shop={"env": {"COLOUR": "blue"}})
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("lb1", "win1"))]
    assert [row[:2] for row in rows].count(["win1", "shop"]) == 4
    assert [row[:2] for row in rows].count(["win1", "api"]) == 2
    release = json.loads(get(SHOP, "/about").text)["release"]
    assert {row[2] for row in rows if row[:2] == ["win1", "shop"]} == {release}


def test_wrong_records_are_refused_before_anything_changes():
    done = deploy(shop={"hooks": {"after_build": ["true"]}, "port": 8079})
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "No host was touched" in said
    assert "app shop: hooks: is for Linux hosts only" in said
    assert "app shop: port: is 8079" in said


def test_an_application_goes_away():
    port = port_of("api")
    absent = {"state": "absent", "keep_data": False}
    assert changes(play("site", api=absent, shop={"env": {"COLOUR": "blue"}}))["win1"] > 0
    assert connects(WINDOWS, port) == "refused"
    assert [name for name in states() if name.startswith("api")] == []
    assert guest("sh", "-c", f"ls -d '{CODE}/apps/api' '{DATA}/api' 2>/dev/null || true") == ""
    assert len(firewall()) == 1
    assert get(SHOP, "/healthz").text == "well"
    with pytest.raises(Exception, match="closed connection without response"):
        get(API)
