# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""SSH: by which port this run came in, and on which ports logins are possible. Looks at /proc."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .blocks import SSH
from .records import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ESTABLISHED, LISTEN = "01", "0A"  # states in /proc/net/tcp
ROOT_UID = 0  # anybody can call a program of his own sshd


class Connection(NamedTuple):
    """An SSH connection: the client's address, the port on this host, the client's port."""

    client: str
    port: int
    client_port: int


def ssh_connection(pid: int, proc: Path = Path("/proc")) -> Connection | None:
    """The SSH connection that `pid` descends from.

    sudo and su drop SSH_CONNECTION from the environment, so the parents are asked as well, up to sshd's child.
    """
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        try:
            environment = (proc / str(pid) / "environ").read_bytes()
            status = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:  # ended, or another user's and we are not root
            return None
        for entry in environment.split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION="):
                words = entry.decode(errors="replace").partition("=")[2].split()
                address = words[0].partition("%")[0] if words else ""
                # sshd writes UNKNOWN where it was not given a network connection
                if len(words) != 4 or address == "UNKNOWN":
                    return None
                return Connection(address, int(words[3]), int(words[1]))
        pid = int(status.rpartition(")")[2].split()[1])  # after the name, which may hold spaces and brackets
    return None


def came_by(pid: int, sockets: Iterable[Socket], ports: Iterable[int], proc: Path = Path("/proc")) -> list[str]:
    """What tells the SSH connection that `pid` came by from others: client and its port. Empty without SSH.

    Root in a container may not look into the processes of others; then it is one of all connections that there are.
    """
    connection = ssh_connection(pid, proc)
    if connection:
        return [f"{connection.client} {connection.client_port}"]
    try:
        parent = int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        while parent > 1:
            (proc / str(parent) / "environ").read_bytes()
            parent = int((proc / str(parent) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except PermissionError:
        return sorted({known.client for known in sockets if known.state == ESTABLISHED and known.port in ports})
    except OSError:  # ended
        pass
    return []


@dataclass(frozen=True)
class Socket:
    """A line of /proc/net/tcp or tcp6."""

    local: str
    port: int
    remote: str
    state: str
    inode: str
    remote_port: int

    @property
    def client(self) -> str:
        """The other end, spelled as in `came_by`."""
        return f"{self.remote} {self.remote_port}"


def read_sockets(proc: Path = Path("/proc")) -> list[Socket]:
    """All TCP sockets of this host."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            table = (proc / "net" / name).read_text()
        except OSError:  # no such family on this host
            continue
        for line in table.splitlines()[1:]:
            words = line.split()
            local, _, port = words[1].partition(":")
            remote, _, remote_port = words[2].partition(":")
            found.append(Socket(unpack(local), int(port, 16), unpack(remote), words[3], words[9], int(remote_port, 16)))
    return found


def unpack(text: str) -> str:
    """An address of /proc/net: hexadecimal, each 4 bytes in the order of the machine."""
    quads = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(quad.to_bytes(4, sys.byteorder) for quad in quads))
    return str(getattr(address, "ipv4_mapped", None) or address)


def peers(ports: Iterable[int], sockets: Iterable[Socket]) -> list[str]:
    """The addresses of all who have a connection with one of these ports."""
    return sorted({known.remote for known in sockets if known.state == ESTABLISHED and known.port in ports})


def sshd_ports(sockets: Iterable[Socket], proc: Path = Path("/proc")) -> set[int]:
    """The ports on which root's sshd listens for logins from other hosts.

    Not those of its sessions: a session may listen for a forwarded port (`ssh -R`), which is nobody's login.
    """
    listening = {
        known.inode: known.port
        for known in sockets
        if known.state == LISTEN and not ipaddress.ip_address(known.local).is_loopback
    }
    ports: set[int] = set()
    for process in proc.glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() != "sshd" or process.stat().st_uid != ROOT_UID:
                continue
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            if title.startswith(b"sshd: ") and b"[listener]" not in title:
                continue  # a session
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:  # ended meanwhile
            continue
        ports |= {listening[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in listening}
    return ports


def ssh_problems(clients: list[str], sources: list[str], ipv6: bool) -> list[str]:
    """Whether the wanted firewall would lock out the connection of this run."""
    problems = []
    networks = []
    for index, source in enumerate(sources):
        try:
            family, address = parse_address(source)
        except ValueError as error:
            problems.append(f"ssh_from[{index}]: {error}")
        else:
            networks.append(ipaddress.ip_network(address) if family else None)
    if problems:
        return problems
    if not sources:
        return ["ssh_from: the list is empty; name the networks that may use SSH, or write [any]"]
    addresses = [ipaddress.ip_address(client) for client in clients]
    shown = " or ".join(clients)
    if addresses and not any(network is None or address in network for network in networks for address in addresses):
        problems.append(f"ssh_from: this connection comes from {shown}, which is not in {sources}; add its network")
    if addresses and not ipv6 and all(address.version == 6 for address in addresses):
        problems.append(f"ipv6: this connection comes from {shown} over IPv6; do not switch IPv6 off")
    return problems


def ssh_records(ports: Iterable[int], sources: Sequence[str], action: str) -> list[dict[str, Any]]:
    """The rules that keep SSH open."""
    return [
        {
            "port": str(port),
            "proto": "tcp",
            "from": source,
            "to": "any",
            "direction": "in",
            "action": action,
            "comment": SSH,
        }
        for port in sorted(set(ports))
        for source in sources
    ]
