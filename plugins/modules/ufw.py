#!/usr/bin/python
# GNU General Public License v3.0 or later (see LICENSE)
"""Makes ufw hold exactly these rules of ours, and the kernel hold what ufw holds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ufw
short_description: Keep a host's ufw firewall as described
version_added: 0.1.0
author: The wsgi.fleet maintainers
description:
  - Compares the whole firewall with a list of rules in one call, and applies what differs.
    (C(community.general.ufw) takes one rule a call and cannot find rules that are wanted no more.)
  - Rules of ours carry a comment that begins with C(wsgi.fleet). Those that are not listed any more are removed;
    all other rules stay as they are.
  - SSH is kept open on every port where the host's sshd listens for logins, and on the port that the connection
    of this very run came in by. These rules stand before all others.
  - What the kernel has loaded is compared as well. Rules that somebody flushed are loaded again.
  - All rules of a family of addresses change at once. Nothing is ever reset.
  - The unit C(ufw.service) is enabled and started, so that the rules are loaded at boot.
  - Where the package ufw is missing or half installed, nothing is done, and RV(lacks) says so.
attributes:
  check_mode:
    description: Reports what would change; on a host where ufw is not installed yet, too.
    support: full
  diff_mode:
    description: Shows the settings and all rules before and after.
    support: full
  platform:
    description: Where it runs.
    platforms: linux
    support: full
options:
  rules:
    description:
      - The rules, in the order in which they are evaluated. The first that matches a packet counts.
      - Rules of others keep their places. One that stands before a rule of ours stays before all of ours, so that
        C(ufw prepend deny from ...) in an emergency holds.
    type: list
    elements: dict
    default: []
    options:
      port:
        description: Port, or range such as V(8000:8010), on the receiving side. Left out, all ports.
        type: str
      proto:
        description: Protocol. V(any) with a port means TCP and UDP. A range needs one of them.
        type: str
        choices: [tcp, udp, any]
        default: any
      from:
        description: Sender, an address or network of either family.
        type: str
        default: any
      to:
        description: Receiver, an address or network of either family.
        type: str
        default: any
      interface:
        description: Network interface by which the packets come (or leave, with O(rules[].direction=out)).
        type: str
      direction:
        description: Whether the rule is for packets to this host or from it.
        type: str
        choices: [in, out]
        default: in
      action:
        description:
          - What happens to a matching packet. V(deny) drops it without a word, V(reject) answers.
          - V(limit) allows TCP connections, but not the sixth in 30 seconds from one address.
        type: str
        choices: [allow, deny, reject, limit]
        default: allow
      comment:
        description: Why the rule is there. C(wsgi.fleet) is put in front of it.
        type: str
  default_incoming:
    description: What happens to packets to this host that no rule matches.
    type: str
    choices: [allow, deny, reject]
    default: deny
  default_outgoing:
    description: What happens to packets from this host that no rule matches.
    type: str
    choices: [allow, deny, reject]
    default: allow
  default_routed:
    description: What happens to packets through this host that no rule matches.
    type: str
    choices: [allow, deny, reject]
    default: deny
  logging:
    description: How much ufw logs. V(low) is what it blocks, at most three a minute.
    type: str
    choices: ['off', low, medium, high, full]
    default: low
  ipv6:
    description:
      - Whether IPv6 is filtered by the rules. V(false) closes IPv6 altogether but for the loopback interface.
      - A host without IPv6 is left without; rules for IPv6 addresses are then passed over with a warning.
    type: bool
    default: true
  ssh_rule:
    description: Action of the rules that keep SSH open. Ansible itself may open more connections than V(limit) allows.
    type: str
    choices: [allow, limit]
    default: allow
  ssh_from:
    description: Addresses and networks that may use SSH. One of them must hold the address that Ansible comes from.
    type: list
    elements: str
    default: [any]
  ssh_fallback:
    description: Port to keep open for SSH when neither an sshd nor the connection of this run can be found on the host.
    type: int
    default: 22
"""

EXAMPLES = r"""
- name: Let the balancers in
  wsgi.fleet.ufw:
    rules:
      - {from: 203.0.113.0/24, action: deny, comment: scanners}
      - {port: 80, proto: tcp, from: 192.0.2.10, comment: http from lb1}
"""

RETURN = r"""
actions:
  description: What was done, or would be, in order.
  returned: success
  type: list
  elements: str
  sample: [write 3 rules of IPv4, switch the firewall on]
lacks:
  description: Packages to install before calling this again; in check mode the rest of the answer foresees that.
  returned: success
  type: list
  elements: str
  sample: [ufw]
ssh_ports:
  description: The ports on which SSH is kept open.
  returned: success
  type: list
  elements: int
  sample: [22]
"""

import errno
import fcntl
import ipaddress
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils import ufw

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = {4: Path("/etc/ufw/user.rules"), 6: Path("/etc/ufw/user6.rules")}
DEFAULTS = Path("/etc/default/ufw")
CONF = Path("/etc/ufw/ufw.conf")
LOCK = Path("/run/ufw.lock")  # ufw's own
LOAD_AT_BOOT = "load the firewall at boot"
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
        self.tools = {
            name: module.get_bin_path(name)
            for name in ("ufw", "iptables", "ip6tables", "iptables-restore", "ip6tables-restore")
        }
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
            raise ufw.UfwError(
                f"{' '.join(argv)} did not end within {WAIT} seconds; see what holds {LOCK} and run again"
            ) from None

    def must(self, *argv: str, stdin: str | None = None) -> None:
        done = self.run(*argv, stdin=stdin)
        if done.returncode:
            output = (done.stderr + done.stdout).strip()
            raise ufw.UfwError(f"{' '.join(argv)} failed (code {done.returncode}): {output}")

    def ufw(self, *arguments: str) -> None:
        self.must(str(self.tools["ufw"]), *arguments)

    def kernel(self, family: int) -> str | None:
        """The rules that the kernel has; None when it cannot be asked."""
        tool = self.tools["iptables" if family == 4 else "ip6tables"]
        if not tool:
            return None
        done = self.run(tool, "-S")
        return done.stdout if done.returncode == 0 else None

    def has_ipv6(self) -> bool:
        return Path("/proc/sys/net/ipv6").exists() and (not self.tools["ip6tables"] or self.kernel(6) is not None)

    def boots(self) -> bool:
        """Whether systemd loads the rules at boot, and has done so."""
        done = self.run("systemctl", "show", "--property=UnitFileState,ActiveState", "--value", "ufw.service")
        return set(done.stdout.split()) == {"enabled", "active"}

    def settings(self) -> dict[str, str]:
        return ufw.parse_settings(read(DEFAULTS) + "\n" + read(CONF))

    def replace(self, path: Path, text: str) -> None:
        """Puts a new text in place of a file in one step; owner and mode stay."""
        new = path.with_name(f".{path.name}.wsgi-fleet")  # one name, so that killed runs leave one file at most
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
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
                        raise ufw.UfwError(
                            f"another program has held {LOCK} for {WAIT} seconds; end it and run again"
                        ) from None
                    time.sleep(0.2)
            yield


class Firewall:
    """Brings the host from what is there to what is wanted."""

    def __init__(self, host: Host, want: dict[str, Any]) -> None:
        self.host = host
        self.want = want
        self.ipv6: bool = want["ipv6"]
        self.families = ufw.FAMILIES if self.ipv6 else (4,)
        self.policies: dict[str, str] = {name: want[f"default_{name}"] for name in ufw.DIRECTIONS}
        self.wanted = {family: ufw.render_all(want["records"], family) for family in self.families}

    # What is there

    def policy_settings(self) -> dict[str, str]:
        return {
            f"DEFAULT_{chain.upper()}_POLICY": f'"{ufw.POLICIES[self.policies[name]]}"'
            for name, chain in ufw.DIRECTIONS.items()
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
            ufw.logging_level(read(RULES[family])) != level for family in self.families
        )

    def enabled(self) -> bool:
        return self.host.settings().get("ENABLED") == "yes"

    def merged(self, family: int) -> tuple[list[ufw.Block], list[ufw.Block]]:
        current = ufw.parse_rules(read(RULES[family]))
        return current, ufw.merge_rules(current, self.wanted[family])

    def frame_problems(self) -> list[str]:
        """What the kernel lacks of ufw's own frame around the rules."""
        problems: list[str] = []
        for family in ufw.FAMILIES:
            kernel = self.host.kernel(family)
            if family in self.families:
                problems += (
                    [f"IPv{family}: the rules cannot be read"]
                    if kernel is None
                    else ufw.frame_problems(kernel, family, self.policies)
                )
            elif kernel is not None:
                problems += ufw.closed_problems(kernel)
        return problems

    def rules_problems(self, family: int) -> list[str]:
        """Which rules of ufw's file the kernel does not have, or has beside them."""
        return ufw.rules_problems(self.host.kernel(family) or "", family, read(RULES[family]))

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
        words = {value.lower(): name for name, value in ufw.POLICIES.items()}
        lines = []
        if after:
            lines += ["status: active"]
            lines += [f"default {name}: {policy}" for name, policy in self.policies.items()]
            lines += [f"logging: {self.want['logging']}", f"ipv6: {'on' if self.ipv6 else 'off'}"]
        elif self.host.installed:
            lines += [f"status: {'active' if self.enabled() else 'inactive'}"]
            lines += [
                f"default {name}: {words.get(have.get(f'DEFAULT_{chain.upper()}_POLICY', ''), 'unknown')}"
                for name, chain in ufw.DIRECTIONS.items()
            ]
            lines += [f"logging: {have.get('LOGLEVEL')}", f"ipv6: {'on' if have.get('IPV6') == 'yes' else 'off'}"]
            if self.enabled():
                lines += [f"not in the kernel: {problem}" for problem in self.kernel_problems()]
        for family in self.families:
            current, merged = self.merged(family)
            lines += [f"v{family} {block}" for block in (merged if after else current)]
        return "\n".join(lines) + "\n" if lines else ""

    # Doing it

    def apply(self) -> None:
        """All that differs. Half a firewall must not lock everybody out: what would close SSH is switched off."""
        was_shut = self.shut()
        try:
            self.change()
        except ufw.UfwError as error:
            if was_shut or not self.shut():
                raise
            self.host.ufw("disable")
            raise ufw.UfwError(f"{error}. SSH would have been closed, so the firewall was switched off") from None

    def change(self) -> None:
        """Rules with SSH first, then policies, enabling last: a kill between any two leaves SSH open."""
        if self.wrong_ipv6():
            self.host.replace(DEFAULTS, ufw.change_settings(read(DEFAULTS), {"IPV6": "yes" if self.ipv6 else "no"}))
        if self.wrong_logging():
            # ufw rewrites its rule files for that, in the form and with the chains that this host can have. It fails
            # after that where the kernel lacks chains, which `load` mends.
            done = self.host.run(str(self.host.tools["ufw"]), "logging", self.want["logging"])
            if self.wrong_logging():
                raise ufw.UfwError(f"ufw logging {self.want['logging']} failed: {done.stderr}{done.stdout}".strip())
        with self.host.locked():
            for family in self.families:
                self.write_rules(family)
        if self.wrong_policies():
            self.host.replace(DEFAULTS, ufw.change_settings(read(DEFAULTS), self.policy_settings()))
        if not self.enabled():
            self.host.ufw("--force", "enable")
        problems = self.load()
        if problems:
            raise ufw.UfwError(
                "the kernel does not hold the rules although ufw loaded them: "
                + "; ".join(problems)
                + ". Look for another program that manages the firewall, and for errors in `ufw reload`"
            )
        if not self.host.boots():
            self.host.must("systemctl", "enable", "--now", "ufw.service")

    def shut(self) -> bool:
        """Whether our rules for SSH do not work now (those of others may)."""
        return any(
            ufw.ssh_is_shut(kernel, family, [block for block in self.wanted[family] if block.comment == ufw.SSH])
            for family in self.families
            for kernel in [self.host.kernel(family)]
            if kernel is not None
        )

    def write_rules(self, family: int) -> None:
        text = read(RULES[family])
        current, merged = self.merged(family)
        if current == merged:
            return
        if ufw.missing_limit(text, merged):
            raise ufw.UfwError(
                f"the kernel of this host cannot limit connections of IPv{family} (module xt_recent); "
                "use the action allow"
            )
        try:
            text = ufw.replace_rules(text, merged)
        except ufw.UfwError as error:
            raise ufw.UfwError(f"{RULES[family]}: {error}; put the file of the package back in place") from None
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
                self.restore(family, ufw.mend_jumps(self.host.kernel(family) or "", family))
            self.host.ufw("reload")
        for family in self.families:
            if self.rules_problems(family):
                with self.host.locked():
                    self.restore(family, read(RULES[family]))
        return self.kernel_problems()


def ssh_problems(clients: list[str], sources: list[str], ipv6: bool) -> list[str]:
    """Whether the wanted firewall would lock out the connection of this run."""
    problems = []
    networks = []
    for index, source in enumerate(sources):
        try:
            family, address = ufw.parse_address(source)
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


def main() -> None:
    """Check the input, compare, apply."""
    policy = {"type": "str", "choices": ["allow", "deny", "reject"]}
    module = AnsibleModule(
        argument_spec={
            "rules": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "str"},
                    "proto": {"type": "str", "choices": ["tcp", "udp", "any"], "default": "any"},
                    "from": {"type": "str", "default": "any"},
                    "to": {"type": "str", "default": "any"},
                    "interface": {"type": "str"},
                    "direction": {"type": "str", "choices": ["in", "out"], "default": "in"},
                    "action": {"type": "str", "choices": ["allow", "deny", "reject", "limit"], "default": "allow"},
                    "comment": {"type": "str"},
                },
            },
            "default_incoming": {**policy, "default": "deny"},
            "default_outgoing": {**policy, "default": "allow"},
            "default_routed": {**policy, "default": "deny"},
            "logging": {"type": "str", "choices": list(ufw.LOG_LEVELS), "default": "low"},
            "ipv6": {"type": "bool", "default": True},
            "ssh_rule": {"type": "str", "choices": ["allow", "limit"], "default": "allow"},
            "ssh_from": {"type": "list", "elements": "str", "default": ["any"]},
            "ssh_fallback": {"type": "int", "default": 22},
        },
        supports_check_mode=True,
    )
    options = module.params
    host = Host(module)
    sockets = ufw.read_sockets()
    connection = ufw.ssh_connection(os.getpid())
    ports = ufw.sshd_ports(sockets) | ({connection[1]} if connection else set())
    # root in a container may not look into the processes of others: there it is one of those who are logged in
    clients = [connection[0]] if connection else ufw.peers(ports, sockets)
    errors = ufw.check_records(options["rules"], options["ipv6"])
    errors += ssh_problems(clients, options["ssh_from"], options["ipv6"])
    if errors:
        module.fail_json(msg="\n".join(["Nothing was changed.", *errors]))

    ports = ports or {options["ssh_fallback"]}
    records = ufw.ssh_records(ports, options["ssh_from"], options["ssh_rule"]) + options["rules"]
    ipv6 = options["ipv6"]
    if ipv6 and not host.has_ipv6():
        ipv6 = False
        for record in records:
            if ufw.record_families(record) == (6,):
                module.warn(f"This host has no IPv6; passed over: {ufw.describe_record(record)}")

    firewall = Firewall(host, {**options, "ipv6": ipv6, "records": records})
    lacks = [] if host.installed else ["ufw"]
    if lacks and not module.check_mode:
        module.exit_json(changed=False, actions=[], lacks=lacks, ssh_ports=sorted(ports))
    try:
        actions = firewall.actions()
        diff = {"before": firewall.picture(after=False), "after": firewall.picture(after=True)} if actions else {}
        if actions and not module.check_mode:
            firewall.apply()
    except ufw.UfwError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(actions), actions=actions, lacks=lacks, ssh_ports=sorted(ports), diff=diff)


if __name__ == "__main__":
    main()
