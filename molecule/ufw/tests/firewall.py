"""What the firewall's tests share: running the role on one host, asking its kernel, knocking at ports."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

from probes import ROOT, ansible_environment, connects, run_playbook

CONVERGE = "molecule/shared/converge.yml"
SSH = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


def name(host):
    return host.backend.get_hostname()


def inventories(host):
    return [
        Path(host.backend.ansible_inventory).parent,
        ROOT / "molecule" / "shared" / "inventory",
        ROOT / "molecule" / "ufw" / "inventory",
    ]


def apply(host, *arguments, check=False, **variables):
    """Run the role on one host, and say what the recap says of it."""
    given = {"role_under_test": "ufw", **variables}
    options = ["--check", "--diff"] if check else ["--diff"]
    return run_playbook(
        CONVERGE,
        "--limit",
        name(host),
        "--extra-vars",
        json.dumps(given),
        *options,
        *arguments,
        inventories=inventories(host),
        ANSIBLE_SSH_COMMON_ARGS=SSH,
        ANSIBLE_GATHER_SUBSET="!all",
    )


def command(host, **variables):
    """The same as a process of one's own: environment and words."""
    options = ["--limit", name(host), "--extra-vars", json.dumps({"role_under_test": "ufw", **variables})]
    words = ["ansible-playbook", CONVERGE, *(f"--inventory={path}" for path in inventories(host)), *options]
    return ansible_environment(ANSIBLE_SSH_COMMON_ARGS=SSH, ANSIBLE_GATHER_SUBSET="!all"), words


def bridge_address(host, address):
    """The host's IPv6 address as this machine reaches it: link-local, by the bridge of its network."""
    local = host.check_output("ip -6 -o addr show dev eth0 scope link").split()[3].partition("/")[0]
    route = subprocess.run(["ip", "-j", "route", "get", address], capture_output=True, text=True, check=True)
    return f"{local}%{json.loads(route.stdout)[0]['dev']}"


def neighbour(host):
    """The other host."""
    other = "debian13" if name(host) == "debian12" else "debian12"
    return host.get_host(f"ansible://{other}", ansible_inventory=host.backend.ansible_inventory)


def neighbour_address(host):
    return neighbour(host).ansible.get_variables()["ansible_host"]


def controller(host):
    """This machine's address as the host sees it."""
    words = host.check_output("ss -Htn state established sport = :22").split()
    return [word for word in words if ":" in word][1].rpartition(":")[0].strip("[]").removeprefix("::ffff:")


def changes(host, **options):
    """The number of changed tasks of a run that must not fail."""
    done = apply(host, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.rpartition("changed=")[2].split()[0])


def kernel(host):
    """What the kernel holds for both families."""
    return host.check_output("iptables -S; ip6tables -S")


@contextmanager
def replaced(host, program, script):
    """A script in the place of a program, as the role finds it."""
    path = f"/usr/local/sbin/{program}"
    host.check_output("printf '#!/bin/sh\\n%%s\\n' %s > %s && chmod 755 %s", script, path, path)
    try:
        yield
    finally:
        host.check_output(f"rm {path}")


def echoes(address, port):
    """What a datagram meets: "open" (the listener sends it back), "refused" or "dropped" (no answer)."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as asking:
        asking.settimeout(0.5)
        asking.connect(place)
        for _ in range(4):  # a kernel refuses only so many in a second
            try:
                asking.send(b"knock")
                return "open" if asking.recv(100) == b"knock" else "something else"
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                continue
    return "dropped"


def meets(host, address, ports, probe=connects):
    """What `connects` or `echoes` says when a host asks at each of these ports."""
    source = f"from __future__ import annotations\nimport socket\n{inspect.getsource(probe)}"
    asked = f"for port in {list(ports)}: print({probe.__name__}({address!r}, port))"
    return host.check_output("python3 -c %s", f"{source}\n{asked}").split()


def reaches(host, address, port):
    return meets(host, address, [port])[0]


@contextmanager
def led_on(host, target, ports):
    """The host leads some of its ports on to a neighbour's, each to the one 1000 below."""
    for port in ports:
        leads = f"-p tcp --dport {port} -j DNAT --to-destination {target}:{port - 1000}"
        host.check_output(f"iptables -t nat -A PREROUTING {leads}")
    host.check_output(f"iptables -t nat -A POSTROUTING -d {target} -j MASQUERADE")
    try:
        yield
    finally:
        host.check_output("iptables -t nat -F PREROUTING && iptables -t nat -F POSTROUTING")


@contextmanager
def restored(host):
    """Whatever a test does, the scenario's own state comes back."""
    try:
        yield
    finally:
        changes(host)


def ad_hoc(host, module, arguments, *options, timeout=60):
    """Run one module on the host."""
    command = ["ansible", name(host), "--become", "-m", module, "-a", arguments, *options]
    done = subprocess.run(
        [*command, *(f"--inventory={path}" for path in inventories(host))],
        cwd=ROOT,
        env=ansible_environment(ANSIBLE_SSH_COMMON_ARGS=SSH),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
