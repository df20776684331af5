# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The guard: a change of the firewall that nobody confirms by a new connection is taken back by the host itself.

Before the change, the files and the kernel's rules are put aside, and a timer of systemd is set that puts them back. It
depends on nobody: neither on the control node nor on the process that changes the firewall. A host that boots with an
unconfirmed change puts the files back before ufw loads them.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import UfwError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .host import Host

HOME = Path("/var/lib/wsgi-fleet/ufw")
BOOT_UNIT = Path("/etc/systemd/system/wsgi-fleet-ufw-guard.service")
BOOT_LINK = Path("/etc/systemd/system/multi-user.target.wants/wsgi-fleet-ufw-guard.service")
WAIT = 60  # seconds that another run may take with the firewall

# $1 is the name of the change that a timer was set for, or `boot`. Everything may be done twice: a host that loses its
# power meanwhile does it again.
UNDO = """\
#!/bin/sh
# Made by wsgi.fleet (ufw): takes a change of the firewall back that nobody confirmed.
set -u
home=$(dirname "$0")
exec 9>"$home/lock"
flock -w 120 9
[ -d "$home/guard" ] || exit 0
[ "$1" = boot ] || [ "$1" = "$(cat "$home/guard/name")" ] || exit 0
cp -a "$home/guard/files/." /
failed=0
if [ "$1" != boot ]; then
    for tool in iptables-restore ip6tables-restore; do
        [ ! -e "$home/guard/$tool" ] || "$tool" <"$home/guard/$tool" || failed=1
    done
fi
rm -rf "$home/undone"
mv "$home/guard" "$home/undone"
rm -f /etc/systemd/system/multi-user.target.wants/wsgi-fleet-ufw-guard.service
rm -f /etc/systemd/system/wsgi-fleet-ufw-guard.service
logger -t wsgi-fleet-ufw "the change of the firewall was not confirmed and has been taken back" || :
exit "$failed"
"""
BOOT = f"""\
# Made by wsgi.fleet (ufw), and gone as soon as the firewall is confirmed.
[Unit]
Description=Take an unconfirmed change of the firewall back
DefaultDependencies=no
After=local-fs.target
Before=ufw.service network-pre.target
[Service]
Type=oneshot
ExecStart=/bin/sh {HOME}/undo boot
[Install]
WantedBy=multi-user.target
"""
# What a kernel without any rules has.
OPEN = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


class Guard:
    """What is put aside, and the timer; all of it is on the host, none of it in this process."""

    def __init__(self, host: Host, home: Path = HOME) -> None:
        self.host = host
        self.home = home
        self.here = home / "guard"

    @property
    def pending(self) -> bool:
        """Whether a change waits for its confirmation, of this run or of one before."""
        return self.here.is_dir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the timer and other runs away."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o755)
        with (self.home / "lock").open("w") as file:
            deadline = time.monotonic() + WAIT
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UfwError(f"another run has held {self.home}/lock for {WAIT} seconds") from None
                    time.sleep(0.2)
            yield

    def arm(self, seconds: int, files: list[Path], came_by: list[str]) -> str:
        """Puts aside what is there now and sets the timer. Returns the name of the change.

        Where a change still waits for its confirmation, what it put aside is kept: that is what was good last.
        """
        name = f"{time.time_ns():x}"
        adopted = self.pending
        if adopted:
            self._stop()
        else:
            new = self.home / "new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            for path in files:
                if path.exists():
                    aside = new / "files" / path.relative_to("/")
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, aside)
            for family in (4, 6):
                text = self.host.saved(family)
                if text is not None:
                    (new / f"ip{'6' if family == 6 else ''}tables-restore").write_text(text or OPEN)
            (new / "name").write_text(f"{name}\n")
            (self.home / "undo").write_text(UNDO)
            new.rename(self.here)
        (self.here / "name").write_text(f"{name}\n")
        (self.here / "change.json").write_text(json.dumps({"by": came_by}))
        BOOT_UNIT.write_text(BOOT)
        BOOT_LINK.parent.mkdir(exist_ok=True)
        BOOT_LINK.unlink(missing_ok=True)
        BOOT_LINK.symlink_to(BOOT_UNIT)
        try:
            self._start(name, seconds)
        except UfwError as error:
            if not adopted:
                self._forget()
            raise UfwError(
                f"{error}. Without its timer, nobody would take the change back, so nothing was changed; where "
                "systemd-run cannot work, guard_seconds: 0 goes without"
            ) from None
        return name

    def _unit(self, name: str) -> str:
        return f"wsgi-fleet-ufw-guard-{name}"

    def _start(self, name: str, seconds: int) -> None:
        # a second is exact enough; systemd's own minute is not
        options = (f"--unit={self._unit(name)}", f"--on-active={seconds}", "--timer-property=AccuracySec=1s", "--quiet")
        self.host.must("systemd-run", *options, "/bin/sh", f"{self.home}/undo", name)

    def restart(self, name: str) -> None:
        """Gives the control node all of its time once the change is made."""
        self.host.must("systemctl", "restart", f"{self._unit(name)}.timer")

    def _stop(self) -> None:
        """Without the lock, a timer that runs already waits for it, and finds nothing to do."""
        name = (self.here / "name").read_text().strip()
        self.host.run("systemctl", "stop", f"{self._unit(name)}.timer")

    def _forget(self) -> None:
        BOOT_LINK.unlink(missing_ok=True)
        BOOT_UNIT.unlink(missing_ok=True)
        shutil.rmtree(self.here, ignore_errors=True)

    def confirm(self, name: str, came_by: list[str]) -> dict[str, Any]:
        """What a control node has achieved that says it came back: `confirmed`, or why not.

        came_by: its connection; where that cannot be known, all that there are, and one of them must be new.
        """
        with self.alone():
            if not self.pending or (self.here / "name").read_text().strip() != name:
                undone = self.home / "undone" / "name"
                taken_back = undone.exists() and undone.read_text().strip() == name
                return {"confirmed": False, "why": "taken back" if taken_back else "another run"}
            before = json.loads((self.here / "change.json").read_text())["by"]
            if before and set(came_by) <= set(before):
                return {"confirmed": False, "why": "same connection"}
            self._stop()
            self._forget()
            return {"confirmed": True, "why": ""}

    def drop(self) -> None:
        """Takes what is there as confirmed."""
        self._stop()
        self._forget()

    def undo(self) -> bool:
        """Takes the change back now; whether that went well."""
        name = (self.here / "name").read_text().strip()
        self.host.run("systemctl", "stop", f"{self._unit(name)}.timer")
        return self.host.run("/bin/sh", f"{self.home}/undo", name).returncode == 0
