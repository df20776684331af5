#!/usr/bin/env python3
"""What visitors notice when hosts fail: requests that fail, for how long, and how long answers take.

Makes a balancer and two application hosts (Debian 13), keeps fifty connections busy over TLS, and lets one thing after
the other go wrong. Prints a table and keeps it in bench/results/. Ends with an error when a request failed where none
may: when a host is killed or rebooted, when a disk is full, and when nginx is reloaded.

    bench/faults.py                    # all of it: five minutes
    bench/faults.py --only killed      # faults whose name has this in it; keeps nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import RESULTS, ROOT, Host, head, hosts_here, play

FLEET = "faults"
SUBNET = "10.213.72"
BALANCER, APP1, APP2 = f"{SUBNET}.10", f"{SUBNET}.21", f"{SUBNET}.22"
SITE = "web.bench.example"
CONNECTIONS = 50
AFTER = 3  # seconds for which visitors stay when a fault is over

# Answers at once, or as late as a file says.
APP = """\
import time
from pathlib import Path

DELAY = Path("/srv/web/shared/delay")


def app(environ, start_response):
    if DELAY.exists():
        time.sleep(float(DELAY.read_text()))
    body = f"done {len(environ['wsgi.input'].read())}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

# All that grows on a server, on one file system of its own with little room left.
SMALL = """\
mkdir -p /run/small
room=$(du -sm /var/log /var/lib/nginx /srv/web/shared 2>/dev/null | awk '{ used += $1 } END { print used + 64 }')
mount -t tmpfs -o size=${room}m,mode=755 tmpfs /run/small
for place in /var/log /var/lib/nginx /srv/web/shared; do
  [ -d $place ] || continue
  mkdir -p /run/small$place
  cp -a $place/. /run/small$place
  chown --reference=$place /run/small$place
  chmod --reference=$place /run/small$place
  mount --bind /run/small$place $place
done
"""
# Not a word comes or goes, as when a cable is pulled; but SSH's does.
CUT = "iptables {0} INPUT -p tcp --dport 80 -j DROP; iptables {0} OUTPUT -p tcp --sport 80 -j DROP"
FILL = "dd if=/dev/zero of=/run/small/filler bs=64k 2>/dev/null || true"
EMPTY = "rm -f /run/small/filler"
RESTART = "systemctl restart nginx; ! systemctl is-active --quiet supervisord || systemctl restart supervisord"


@dataclass
class Fault:
    """Something that goes wrong, and after `seconds` is put right again."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]
    seconds: float = 8
    spares: bool = False
    """Whether no request may fail."""
    post: bool = False
    """Whether visitors POST as well: 20 kB, every other time."""


@dataclass
class Seen:
    """What the visitors of a fault saw, and when it began."""

    fault: Fault
    began: float
    seen: dict[str, Any]

    def until(self, what: str) -> str:
        """How long after its beginning there was still one."""
        last = self.seen[f"last_{what}"]
        return f"{max(last - self.began, 0):.1f} s" if last else "-"


def podman(*command: str) -> str:
    """Do to a host what only the machine can do that it lives on."""
    sudo = ["sudo", "-n"] if os.getuid() else []
    done = subprocess.run([*sudo, "podman", *command], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def container(name: str) -> str:
    """The name that podman has for a host."""
    return f"fleet-{FLEET}-{name}"


def in_mounts_of(name: str, script: str) -> None:
    """Mount as the machine may, where the host sees it."""
    sudo = ["sudo", "-n"] if os.getuid() else []
    pid = podman("inspect", "--format", "{{.State.Pid}}", container(name))
    inside = ["nsenter", "--target", pid, "--mount", "sh", "-euc", script]
    subprocess.run([*sudo, *inside], check=True, capture_output=True, timeout=60)


class Fleet:
    """A balancer and two application hosts."""

    def __init__(self, work: Path) -> None:
        self.work = work
        source = work / "app"
        source.mkdir()
        (source / "wsgi.py").write_text(APP)
        (source / "requirements.txt").write_text("")
        record = {"name": "web", "domains": [SITE], "source": {"path": str(source)}, "callable": "wsgi:app"}
        hosts = {
            "balancers": {"hosts": {"lb1": {"ansible_host": BALANCER}}},
            "linux_apps": {"hosts": {"app1": {"ansible_host": APP1}, "app2": {"ansible_host": APP2}}},
            "all": {"vars": {"wsgi_apps": [record]}},
        }
        self.inventory = work / "hosts.yml"
        self.inventory.write_text(json.dumps(hosts) + "\n")
        (work / "group_vars").mkdir()
        (work / "group_vars" / "all.yml").write_text(hosts_here(FLEET, SUBNET))
        self.lb1, self.app1 = Host(FLEET, BALANCER, work), Host(FLEET, APP1, work)

    def visit(self, fault: Fault) -> Seen:
        """Let a fault happen with visitors on the site."""
        stop = self.work / "stop"
        stop.unlink(missing_ok=True)
        program = [sys.executable, ROOT / "molecule/shared/visitors.py"]
        given = [BALANCER, SITE, str(stop), str(CONNECTIONS), "0", "tls", *([] if fault.post else ["get"])]
        with subprocess.Popen([*program, *given], stdout=subprocess.PIPE, text=True) as visitors:
            try:
                time.sleep(2)
                began = time.time()
                try:
                    fault.begin()
                    time.sleep(max(0, fault.seconds - (time.time() - began)))
                finally:
                    fault.end()
                time.sleep(AFTER)
            finally:
                stop.touch()
            output, _ = visitors.communicate(timeout=60)
        return Seen(fault, began, json.loads(output))

    def whole(self) -> None:
        """Wait until both hosts answer the balancer, and have done so for long enough to be asked again."""
        script = f"curl -so /dev/null --max-time 5 -w '%{{http_code}}' -H 'Host: {SITE}' http://ADDRESS/ || true"
        deadline = time.monotonic() + 60
        for address in (APP1, APP2):
            while True:
                said = self.ask(script.replace("ADDRESS", address))
                if said == "200":
                    break
                if time.monotonic() > deadline:
                    sys.exit(f"{address} does not answer: {said}")
                time.sleep(1)
        time.sleep(11)

    def ask(self, script: str) -> str:
        """What the balancer says to a script."""
        said: str = self.lb1.run(script)
        return said.strip()

    def reload(self) -> None:
        """Reload the balancer's nginx twenty times."""
        self.lb1.run("for n in $(seq 20); do systemctl reload nginx; sleep 0.3; done")

    def reboot(self) -> None:
        self.app1.run("systemd-run -q sh -c 'sleep 0.5; systemctl reboot'")

    def faults(self) -> list[Fault]:
        """All that goes wrong, one after the other."""
        app1 = container("app1")

        def nothing() -> None:
            pass

        return [
            Fault("none", nothing, nothing, spares=True),
            Fault(
                "an application host loses its power",
                lambda: podman("kill", app1),
                lambda: podman("start", app1),
                spares=True,
            ),
            Fault("an application host is rebooted", self.reboot, nothing, 12, spares=True),
            Fault("the balancer's nginx is reloaded 20 times", self.reload, nothing, spares=True),
            Fault(
                "an application host is frozen",
                lambda: podman("pause", app1),
                lambda: podman("unpause", app1),
                seconds=10,
            ),
            Fault(
                "an application host is cut off",
                lambda: self.app1.run(CUT.format("-I")),
                lambda: self.app1.run(CUT.format("-D")),
                seconds=10,
            ),
            Fault(
                "an application host answers 300 ms late",
                lambda: self.app1.run("echo 0.3 >/srv/web/shared/delay"),
                lambda: self.app1.run("rm /srv/web/shared/delay"),
            ),
            Fault(
                "an application host's disk is full",
                lambda: self.app1.run(FILL),
                lambda: self.app1.run(EMPTY),
                spares=True,
                post=True,
            ),
            Fault(
                "the balancer's disk is full",
                lambda: self.lb1.run(FILL),
                lambda: self.lb1.run(EMPTY),
                spares=True,
                post=True,
            ),
        ]


def measure(work: Path, only: Sequence[str], keep: bool) -> list[Seen]:
    """All faults, one after the other."""
    fleet = Fleet(work)
    try:
        play("molecule/shared/destroy.yml", fleet.inventory)
        play("molecule/shared/create.yml", fleet.inventory)
        play("site.yml", fleet.inventory)
        fleet.lb1.run("apt-get install -yq curl >/dev/null")
        all_seen = []
        small = False
        for fault in fleet.faults():
            if only and not any(word in fault.name for word in only):
                continue
            if "disk" in fault.name and not small:
                small = True
                for name, host in (("app1", fleet.app1), ("lb1", fleet.lb1)):
                    in_mounts_of(name, SMALL)
                    host.run(RESTART)
            fleet.whole()
            all_seen.append(fleet.visit(fault))
            print(f"{fault.name}: {all_seen[-1].seen}", file=sys.stderr, flush=True)
        return all_seen
    finally:
        if not keep:
            play("molecule/shared/destroy.yml", fleet.inventory)


def report(all_seen: Sequence[Seen]) -> str:
    """The measurements as a page."""
    intro = f"""
        A balancer and two application hosts, one application that answers at once. Visitors run on the same cores as
        all else, and ask without pause over {CONNECTIONS} connections (TLS, keep-alive; GET, and where disks are full
        also POST of 20 kB). A fault lasts 8 to 12 seconds, and visitors stay for {AFTER} more. "Failed until" and "slow
        until" count from its beginning to the last request that failed, and to the last that took more than a second.
        Milliseconds.
        """
    lines = [*head("Faults under load"), *textwrap.wrap(" ".join(intro.split()), 120), ""]
    lines += [
        "| fault | requests | failed | failed until | slow until | p50 | p99 | p99.9 | longest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in all_seen:
        seen = one.seen
        times = [f"{seen[name] * 1000:.0f}" for name in ("p50", "p99", "p999", "max")]
        failed = sum(seen["failed"].values())
        cells = [one.fault.name, seen["requests"], failed, one.until("failure"), one.until("slow"), *times]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, keep, and complain."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--keep", action="store_true", help="leave the hosts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        all_seen = measure(Path(work), options.only, options.keep)
    page = report(all_seen)
    print(page)
    problems = [
        f"{one.fault.name}: {one.seen['failed']}" for one in all_seen if one.fault.spares and one.seen["failed"]
    ]
    if problems:
        sys.exit("\n".join(problems))
    if not options.only:
        (RESULTS / "faults.md").write_text(page)


if __name__ == "__main__":
    main()
