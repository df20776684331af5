"""What the tests of supervisor share: running the role, and asking supervisord."""

from __future__ import annotations

import base64
import copy
import json
import re
from pathlib import Path

import yaml
from probes import ROOT, run_playbook, wait_until

SCENARIO = ROOT / "molecule" / "supervisor"
VARIABLES = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())["systems_under_test"]["vars"]
PASSWORD = VARIABLES["supervisor_inet_http_server"]["password"]
SOCKET = "/run/wsgi-fleet/web.sock"
ALL = ["listener", "pair:left", "pair:right", "ticker", "web:web_0", "web:web_1"]


def address(host):
    return host.ansible.get_variables()["ansible_host"]


def inventories(host):
    return [ROOT / "molecule" / "shared" / "inventory", SCENARIO / "inventory", Path(host.backend.ansible_inventory)]


def play(host, *arguments, change=None, **variables):
    """Apply the role to this host; `change` lays options over programs by name, None in it removes the program."""
    programs = copy.deepcopy(VARIABLES["supervisor_programs"])
    for name, options in (change or {}).items():
        known = [program for program in programs if program["name"] == name]
        if options is None:
            programs.remove(known[0])
        elif known:
            known[0].update(options)
        else:
            programs.append({"name": name, **options})
    extra = {"role_under_test": "supervisor", "supervisor_programs": programs, **variables}
    limit = f"--limit={host.backend.host}"
    return run_playbook(
        "molecule/shared/converge.yml",
        *("-e", json.dumps(extra), limit, *arguments),
        inventories=inventories(host),
    )


def changed(done):
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def pids(host, names=ALL):
    """Process numbers by name, of what runs."""
    wait_until(lambda: "STARTING" not in host.run("supervisorctl status").stdout, 10, "what has just begun")
    lines = host.run("supervisorctl status").stdout.splitlines()
    found = {words[0]: int(words[3].rstrip(",")) for words in map(str.split, lines) if words[1] == "RUNNING"}
    return {name: found[name] for name in names if name in found}


def environment(host, pid):
    """The environment of a process, read as its own user: root in a container may not look into that of others."""
    user = host.check_output(f"stat -c %U /proc/{pid}")
    encoded = host.check_output(f"runuser -u {user} -- base64 -w0 /proc/{pid}/environ")
    return dict(entry.split("=", 1) for entry in base64.b64decode(encoded).decode().split("\0") if entry)


def answer(host):
    return host.check_output(f"curl -sS --unix-socket {SOCKET} http://web/").split()[0]


def files(host):
    return host.check_output(
        "find /etc/supervisord /etc/systemd/system /etc/logrotate.d -type f -printf '%p %T@ %m %u\\n' | sort"
    )


class Load:
    """Requests without a pause for as long as this is open; afterwards `count` tells what was answered.

    `slowest` is the longest time that an answer took, in seconds.
    """

    def __init__(self, host):
        self.host = host
        self.count = {}
        self.slowest = 0.0

    def __enter__(self):
        self.host.run("rm -f /tmp/stop /tmp/load.json")
        script = base64.b64encode((SCENARIO / "files" / "load.py").read_bytes()).decode()
        self.host.check_output(f"echo {script} | base64 -d > /tmp/load.py")
        command = f"python3 /tmp/load.py {SOCKET} /tmp/stop > /tmp/load.json"
        self.host.check_output(f"systemd-run --unit=load --collect sh -c '{command}'")
        return self

    def __exit__(self, *_):
        self.host.check_output("touch /tmp/stop")
        wait_until(lambda: self.host.run("systemctl is-active load").stdout.strip() != "active", 30, "the load to end")
        said = json.loads(self.host.check_output("cat /tmp/load.json"))
        self.count, self.slowest = said["count"], said["slowest"]
