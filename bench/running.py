"""What the benchmarks share: running a playbook as an operator would, and the head of a page of results."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SUBNET = "10.213.67"
RECAP = re.compile(r"^\S+\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def busy_cores(seconds: float = 2) -> float:
    """How many cores of this machine work, on average over some seconds."""

    def idle() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, and waiting for a disk

    before, started = idle(), time.monotonic()
    time.sleep(seconds)
    return max(0.0, (os.cpu_count() or 1) - (idle() - before) / (time.monotonic() - started))


BUSY = busy_cores()  # before we add to it


def key_of(fleet: str) -> Path:
    """The key that opens the hosts of a fleet."""
    return ROOT / ".cache" / "ssh" / f"fleet-{fleet}"


def hosts_here(fleet: str, subnet: str) -> str:
    """How hosts that live on this machine are made and reached, to be indented as variables of all hosts."""
    return f"""\
sandbox_root: {ROOT}
sandbox_fleet: {fleet}
sandbox_subnet: {subnet}.0/24
sandbox_ip: "{{{{ ansible_host }}}}"
sandbox_suite: trixie
ansible_user: ansible
ansible_ssh_private_key_file: {key_of(fleet)}
ansible_ssh_host_key_checking: false
ansible_ssh_common_args: -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR
"""


HOSTS_HERE = hosts_here("bench", SUBNET)


class Host:
    """A host of a fleet that was made here, reached as Ansible reaches it."""

    def __init__(self, fleet: str, address: str, work: Path) -> None:
        self.address = address
        trusting = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        kept = ["ControlMaster=auto", f"ControlPath={work}/%h", "ControlPersist=60"]
        options = [*trusting, *kept, "ServerAliveInterval=5", "ServerAliveCountMax=2"]
        self.ssh = ["ssh", "-i", str(key_of(fleet)), *(word for option in options for word in ("-o", option))]

    def run(self, script: str, timeout: float = 300) -> str:
        """Run a script as root; return what it said, or stop."""
        command = [*self.ssh, f"ansible@{self.address}", "sudo bash -eu -o pipefail -s"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            sys.exit(f"{self.address} failed:\n{script[:2000]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout


@dataclass
class Run:
    """One run of a playbook: its seconds, and the most that one host had of tasks and of changes."""

    seconds: float
    tasks: int
    changed: int


def play(playbook: str, inventory: Path, *arguments: str, strategy: str = "linear") -> Run:
    """Run `playbook`, or say what it said and stop."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_STRATEGY": strategy,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    }
    started = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(ROOT / playbook), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    recap = [[int(number) for number in match] for match in RECAP.findall(done.stdout)]
    if done.returncode or not recap:
        sys.exit(f"{playbook} failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return Run(seconds, max(row[0] for row in recap), max(row[1] for row in recap))


def head(title: str) -> list[str]:
    """The first lines of a page: what was measured, when, and on what."""
    version = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    today = datetime.datetime.now(datetime.timezone.utc).date()
    machine = (
        f"{version}, Python {platform.python_version()}, {os.cpu_count()} cores for the control node and all hosts."
    )
    others = ": others went on. Compare lines, and do not take them for what the machine can do" if BUSY > 0.5 else ""
    return [f"# {title} on {today}", "", machine, f"Before it began, {BUSY:.1f} cores were busy{others}."]
