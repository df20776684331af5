# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings a host's firewall from what is there to what is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import files, kernel, records
from .blocks import DIRECTIONS, FAMILIES, POLICIES, SSH, Block, UfwError
from .host import BEFORE, CONF, DEFAULTS, PROFILES, RULES, Host, read

if TYPE_CHECKING:
    from .guard import Guard

LOAD_AT_BOOT = "load the firewall at boot"


class Firewall:
    """Brings the host from what is there to what is wanted."""

    def __init__(self, host: Host, want: dict[str, Any]) -> None:
        self.host = host
        self.want = want
        self.ipv6: bool = want["ipv6"]
        self.families = FAMILIES if self.ipv6 else (4,)
        self.policies: dict[str, str] = {name: want[f"default_{name}"] for name in DIRECTIONS}
        profiles = want["profiles"]
        self.wanted = {family: records.render_all(want["records"], family, profiles) for family in self.families}

    # What is there

    def policy_settings(self) -> dict[str, str]:
        return {
            f"DEFAULT_{chain.upper()}_POLICY": f'"{POLICIES[self.policies[name]]}"'
            for name, chain in DIRECTIONS.items()
        }

    def wrong_policies(self) -> list[str]:
        have = self.host.settings()
        return [key for key, value in self.policy_settings().items() if have.get(key) != value.strip('"').lower()]

    def wrong_ipv6(self) -> bool:
        return (self.host.settings().get("IPV6") == "yes") != self.ipv6

    def wrong_logging(self) -> bool:
        """The level of the setting and of the rules that ufw wrote for it: a killed ufw may leave only one."""
        level = self.want["logging"]
        return self.host.settings().get("LOGLEVEL") != level or any(
            files.logging_level(read(RULES[family])) != level for family in self.families
        )

    def enabled(self) -> bool:
        return self.host.settings().get("ENABLED") == "yes"

    def merged(self, family: int) -> tuple[list[Block], list[Block]]:
        current = files.parse_rules(read(RULES[family]))
        return current, files.merge_rules(current, self.wanted[family])

    def wrong_ping(self) -> list[int]:
        """The families whose before.rules let others ping than are wanted; none where that is left to the host."""
        if self.want["ping_from"] is None:
            return []
        return [
            family
            for family in self.families
            if files.found_ping(read(BEFORE[family])) != files.ping_lines(self.want["ping_from"], family)
        ]

    def ping_problems(self, held: str, family: int) -> list[str]:
        if self.want["ping_from"] is None:
            return []
        return kernel.ping_problems(held, family, files.ping_lines(self.want["ping_from"], family))

    def wrong_profiles(self) -> bool:
        return read(PROFILES) != files.write_profiles(self.want["applications"])

    def tightens(self) -> bool:
        """Whether what is to be done may shut somebody out: all but further rules that allow, and logging."""
        return (
            not self.enabled()
            or self.wrong_ipv6()
            or bool(self.wrong_policies() or self.wrong_ping() or self.kernel_problems())
            or not all(files.only_opens(*self.merged(family)) for family in self.families)
        )

    def frame_problems(self) -> list[str]:
        """What the kernel lacks of ufw's own frame around the rules."""
        problems: list[str] = []
        for family in FAMILIES:
            held = self.host.kernel(family)
            if family in self.families:
                problems += (
                    [f"IPv{family}: the rules cannot be read"]
                    if held is None
                    else kernel.frame_problems(held, family, self.policies) + self.ping_problems(held, family)
                )
            elif held is not None:
                problems += kernel.closed_problems(held)
        return problems

    def rules_problems(self, family: int) -> list[str]:
        """Which rules of ufw's file the kernel does not have, or has beside them."""
        return kernel.rules_problems(self.host.kernel(family) or "", family, read(RULES[family]))

    def kernel_problems(self) -> list[str]:
        """All in which the kernel differs from what ufw's files say."""
        return self.frame_problems() or [problem for family in self.families for problem in self.rules_problems(family)]

    # What is to be done

    def actions(self) -> list[str]:
        """What would be done now, in the order of `apply`."""
        if not self.host.installed:
            count = sum(len(blocks) for blocks in self.wanted.values())
            return [f"write {count} rules", "switch the firewall on", LOAD_AT_BOOT]
        done = []
        if self.wrong_ipv6():
            done.append(f"switch IPv6 {'on' if self.ipv6 else 'off'}")
        if self.wrong_logging():
            done.append(f"set logging to {self.want['logging']}")
        for family in self.families:
            current, merged = self.merged(family)
            if current != merged:
                done.append(f"write the rules of IPv{family}")
        if self.wrong_profiles():
            done.append("write the application profiles")
        if self.wrong_ping():
            done.append("set who may ping")
        if self.wrong_policies():
            done.append("set the default policies")
        if not self.enabled():
            done.append("switch the firewall on")
        elif not done:
            done += [f"load what the kernel lacks ({problem})" for problem in self.kernel_problems()]
        if not self.host.boots():
            done.append(LOAD_AT_BOOT)
        return done

    def picture(self, after: bool) -> str:
        """Settings and rules, for the diff."""
        have = self.host.settings()
        words = {value.lower(): name for name, value in POLICIES.items()}
        lines = []
        if after:
            lines += ["status: active"]
            lines += [f"default {name}: {policy}" for name, policy in self.policies.items()]
            lines += [f"logging: {self.want['logging']}", f"ipv6: {'on' if self.ipv6 else 'off'}"]
        elif self.host.installed:
            lines += [f"status: {'active' if self.enabled() else 'inactive'}"]
            lines += [
                f"default {name}: {words.get(have.get(f'DEFAULT_{chain.upper()}_POLICY', ''), 'unknown')}"
                for name, chain in DIRECTIONS.items()
            ]
            lines += [f"logging: {have.get('LOGLEVEL')}", f"ipv6: {'on' if have.get('IPV6') == 'yes' else 'off'}"]
            if self.enabled():
                lines += [f"not in the kernel: {problem}" for problem in self.kernel_problems()]
        for family in self.families:
            before = read(BEFORE[family])
            pings = (
                files.ping_lines(self.want["ping_from"], family)
                if after and self.want["ping_from"] is not None
                else None
            )
            lines += [
                f"v{family} ping: {line.partition('echo-request ')[2]}" for line in pings or files.found_ping(before)
            ]
            current, merged = self.merged(family)
            lines += [f"v{family} {block}" for block in (merged if after else current)]
        return "\n".join(lines) + "\n" if lines else ""

    # Doing it

    def apply(self) -> None:
        """All that differs. Half a firewall must not lock everybody out: what would close SSH is switched off."""
        was_shut = self.shut()
        try:
            self.change()
        except UfwError as error:
            if was_shut or not self.shut():
                raise
            self.host.ufw("disable")
            raise UfwError(f"{error}. SSH would have been closed, so the firewall was switched off") from None

    def guarded(self, guard: Guard, seconds: int, came_by: list[str]) -> str:
        """The same under guard: what fails is taken back at once. Returns the name of the change, to be confirmed."""
        with guard.alone():
            name = guard.arm(seconds, [*RULES.values(), *BEFORE.values(), DEFAULTS, CONF], came_by)
            try:
                self.change()
                guard.restart(name)
                return name
            except UfwError as error:
                failure = str(error)
        # the lock is the guard's now
        if guard.undo():
            raise UfwError(f"{failure}. The host took back the firewall that it had before, and that is in force")
        if self.shut():
            self.host.ufw("disable")
            raise UfwError(f"{failure}. SSH would have been closed, so the firewall was switched off")
        raise UfwError(f"{failure}. What was there before could not be brought back whole; see `ufw status`")

    def change(self) -> None:
        """Rules with SSH first, then policies, enabling last: a kill between any two leaves SSH open."""
        if self.wrong_ipv6():
            self.host.replace(DEFAULTS, files.change_settings(read(DEFAULTS), {"IPV6": "yes" if self.ipv6 else "no"}))
        if self.wrong_logging():
            # ufw rewrites its rule files for that, in the form and with the chains that this host can have. It fails
            # after that where the kernel lacks chains, which `load` mends.
            done = self.host.run(str(self.host.tools["ufw"]), "logging", self.want["logging"])
            if self.wrong_logging():
                raise UfwError(f"ufw logging {self.want['logging']} failed: {done.stderr}{done.stdout}".strip())
        if self.wrong_profiles():
            text = files.write_profiles(self.want["applications"])
            if text:
                self.host.replace(PROFILES, text, mode=0o644)
            else:
                PROFILES.unlink()
        with self.host.locked():
            for family in self.families:
                self.write_rules(family)
        for family in self.wrong_ping():
            wanted = files.ping_lines(self.want["ping_from"], family)
            try:
                self.host.replace(BEFORE[family], files.change_ping(read(BEFORE[family]), wanted))
            except UfwError as error:
                raise UfwError(f"{BEFORE[family]}: {error}; put the file of the package back in place") from None
        if self.wrong_policies():
            self.host.replace(DEFAULTS, files.change_settings(read(DEFAULTS), self.policy_settings()))
        if not self.enabled():
            self.host.ufw("--force", "enable")
        problems = self.load()
        if problems:
            raise UfwError(
                "the kernel does not hold the rules although ufw loaded them: "
                + "; ".join(problems)
                + ". Look for another program that manages the firewall, and for errors in `ufw reload`"
            )
        if not self.host.boots():
            self.host.must("systemctl", "enable", "--now", "ufw.service")

    def shut(self) -> bool:
        """Whether our rules for SSH do not work now (those of others may)."""
        return any(
            kernel.ssh_is_shut(held, family, [block for block in self.wanted[family] if block.comment == SSH])
            for family in self.families
            for held in [self.host.kernel(family)]
            if held is not None
        )

    def write_rules(self, family: int) -> None:
        text = read(RULES[family])
        current, merged = self.merged(family)
        if current == merged:
            return
        if files.missing_limit(text, merged):
            raise UfwError(
                f"the kernel of this host cannot limit connections of IPv{family} (module xt_recent); "
                "use the action allow"
            )
        try:
            text = files.replace_rules(text, merged)
        except UfwError as error:
            raise UfwError(f"{RULES[family]}: {error}; put the file of the package back in place") from None
        self.restore(family, text, "--test")
        self.host.replace(RULES[family], text)

    def restore(self, family: int, text: str, *options: str) -> None:
        """Hand rules to the kernel, which takes all of them or none."""
        if text:
            tool = self.host.tools["iptables-restore" if family == 4 else "ip6tables-restore"]
            self.host.must(str(tool), "--noflush", *(options or ("--wait", "10")), stdin=text)

    def load(self) -> list[str]:
        """Makes the kernel hold what the files say; returns what it still lacks.

        Differences in rules are loaded in one transaction of the kernel, as `ufw allow` does it. Only a broken frame or
        new policies take `ufw reload`, which takes the firewall down for a moment.
        """
        if self.frame_problems():
            for family in self.families:
                self.restore(family, kernel.mend_jumps(self.host.kernel(family) or "", family))
            self.host.ufw("reload")
        for family in self.families:
            if self.rules_problems(family):
                with self.host.locked():
                    self.restore(family, read(RULES[family]))
        return self.kernel_problems()
