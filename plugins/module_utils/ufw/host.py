# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What module ufw reads from a host and does on it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .blocks import UfwError
from .files import parse_profiles, parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible.module_utils.basic import AnsibleModule

RULES = {4: Path("/etc/ufw/user.rules"), 6: Path("/etc/ufw/user6.rules")}
DEFAULTS = Path("/etc/default/ufw")
CONF = Path("/etc/ufw/ufw.conf")
BEFORE = {4: Path("/etc/ufw/before.rules"), 6: Path("/etc/ufw/before6.rules")}
APPLICATIONS = Path("/etc/ufw/applications.d")
PROFILES = APPLICATIONS / "wsgi-fleet"
LOCK = Path("/run/ufw.lock")  # ufw's own
PROGRAMS = (
    *("ufw", "iptables", "ip6tables", "iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"),
)
WAIT = 60  # seconds; nothing that we call takes longer than two


def read(path: Path) -> str:
    """The text of a file of ufw, empty where ufw is not installed."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


class Host:
    """What is on the host; every method asks anew."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.tools = {name: module.get_bin_path(name) for name in PROGRAMS}
        query = ("dpkg-query", "--show", "--showformat", "${db:Status-Status}", "ufw")
        self.installed = self.run(*query).stdout == "installed"  # and not half of it

    def run(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A program's result; UfwError when it hangs."""
        try:
            return subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=WAIT,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise UfwError(
                f"{' '.join(argv)} did not end within {WAIT} seconds; see what holds {LOCK} and run again"
            ) from None

    def must(self, *argv: str, stdin: str | None = None) -> None:
        done = self.run(*argv, stdin=stdin)
        if done.returncode:
            output = (done.stderr + done.stdout).strip()
            raise UfwError(f"{' '.join(argv)} failed (code {done.returncode}): {output}")

    def ufw(self, *arguments: str) -> None:
        self.must(str(self.tools["ufw"]), *arguments)

    def kernel(self, family: int) -> str | None:
        """The rules that the kernel has; None when it cannot be asked."""
        tool = self.tools["iptables" if family == 4 else "ip6tables"]
        if not tool:
            return None
        done = self.run(tool, "-S")
        return done.stdout if done.returncode == 0 else None

    def saved(self, family: int) -> str | None:
        """The kernel's rules in the form that iptables-restore reads; None when it has none of this family."""
        tool = self.tools["iptables-save" if family == 4 else "ip6tables-save"]
        if not tool or self.kernel(family) is None:
            return None
        done = self.run(tool, "-t", "filter")
        if done.returncode:
            raise UfwError(f"{tool} failed (code {done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def nat(self) -> str:
        """The rules by which Docker leads packets to containers."""
        return self.run(str(self.tools["iptables"]), "-t", "nat", "-S", "DOCKER").stdout

    def profiles(self) -> dict[str, str]:
        """The ports of each application profile, those of packages and others."""
        found: dict[str, str] = {}
        for path in sorted(APPLICATIONS.glob("[!.]*")):
            if path.is_file():
                found.update(parse_profiles(path.read_text(encoding="utf-8", errors="replace")))
        return found

    def has_ipv6(self) -> bool:
        return Path("/proc/sys/net/ipv6").exists() and (not self.tools["ip6tables"] or self.kernel(6) is not None)

    def boots(self) -> bool:
        """Whether systemd loads the rules at boot, and has done so."""
        done = self.run("systemctl", "show", "--property=UnitFileState,ActiveState", "--value", "ufw.service")
        return set(done.stdout.split()) == {"enabled", "active"}

    def settings(self) -> dict[str, str]:
        return parse_settings(read(DEFAULTS) + "\n" + read(CONF))

    def replace(self, path: Path, text: str, mode: int = 0o600) -> None:
        """Puts a new text in place of a file in one step; owner and mode of one that is there stay."""
        new = path.with_name(f".{path.name}.wsgi-fleet")  # one name, so that killed runs leave one file at most
        new.unlink(missing_ok=True)
        new.touch(mode=mode)
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.module.atomic_move(str(new), str(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps ufw commands of others away from its files."""
        with LOCK.open("w") as file:
            deadline = time.monotonic() + WAIT
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                    if time.monotonic() > deadline:
                        raise UfwError(
                            f"another program has held {LOCK} for {WAIT} seconds; end it and run again"
                        ) from None
                    time.sleep(0.2)
            yield
