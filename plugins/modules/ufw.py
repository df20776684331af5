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
  - What switches the firewall on or tightens it is guarded. The host takes it back by itself, unless the run comes back
    by a new connection in time and confirms it. No control node is needed for that; a reboot takes it back as well.
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
      app:
        description:
          - An application profile instead of port and proto, one of O(applications) or one that is on the host.
        type: str
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
      out_interface:
        description: Network interface by which packets leave that the host passes on, O(rules[].direction=routed).
        type: str
      direction:
        description: Whether the rule is for packets to this host, from it, or through it to others.
        type: str
        choices: [in, out, routed]
        default: in
      action:
        description:
          - What happens to a matching packet. V(deny) drops it without a word, V(reject) answers.
          - V(limit) allows TCP connections, but not the sixth in 30 seconds from one address.
        type: str
        choices: [allow, deny, reject, limit]
        default: allow
      log:
        description: Whether what matches is logged, new connections or all packets; at most three lines a minute.
        type: str
        choices: [new, all]
      comment:
        description: Why the rule is there. C(wsgi.fleet) is put in front of it.
        type: str
  applications:
    description: Application profiles, written to C(/etc/ufw/applications.d/wsgi-fleet).
    type: list
    elements: dict
    default: []
    options:
      name:
        description: Its name.
        type: str
        required: true
      ports:
        description: Ports and protocols, such as V(80,443/tcp) or V(80,443/tcp|53).
        type: str
        required: true
      title:
        description: Its title; the name without one.
        type: str
      description:
        description: Its description; the name without one.
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
  ping_from:
    description:
      - Addresses and networks whose pings are answered; an empty list is nobody.
      - Not given, the lines for it in C(before.rules) are left as they are. Everything else there always is.
    type: list
    elements: str
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
  guard_seconds:
    description:
      - Seconds until a change is taken back that was not confirmed, 10 to 3600; V(0) goes without a guard.
      - Further rules that allow, and logging, need none.
    type: int
    default: 60
  confirm:
    description: Name of a guarded change. Confirms it, and does nothing else. For the action plugin.
    type: str
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
confirmed:
  description: With O(confirm), whether the change is confirmed.
  returned: with O(confirm)
  type: bool
  sample: true
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

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw import files, records, ssh
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw.blocks import LOG_LEVELS, UfwError
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw.firewall import Firewall
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw.guard import Guard
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw.host import Host
from ansible_collections.wsgi.fleet.plugins.module_utils.ufw.kernel import published_ports

DOCKER = "-N DOCKER"  # as `iptables -S` shows its chain

POLICY = {"type": "str", "choices": ["allow", "deny", "reject"]}
ARGUMENTS: dict[str, Any] = {
    "rules": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "port": {"type": "str"},
            "proto": {"type": "str", "choices": ["tcp", "udp", "any"], "default": "any"},
            "app": {"type": "str"},
            "from": {"type": "str", "default": "any"},
            "to": {"type": "str", "default": "any"},
            "interface": {"type": "str"},
            "out_interface": {"type": "str"},
            "direction": {"type": "str", "choices": ["in", "out", "routed"], "default": "in"},
            "action": {"type": "str", "choices": ["allow", "deny", "reject", "limit"], "default": "allow"},
            "log": {"type": "str", "choices": ["new", "all"]},
            "comment": {"type": "str"},
        },
    },
    "applications": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "ports": {"type": "str", "required": True},
            "title": {"type": "str"},
            "description": {"type": "str"},
        },
    },
    "default_incoming": {**POLICY, "default": "deny"},
    "default_outgoing": {**POLICY, "default": "allow"},
    "default_routed": {**POLICY, "default": "deny"},
    "logging": {"type": "str", "choices": list(LOG_LEVELS), "default": "low"},
    "ipv6": {"type": "bool", "default": True},
    "ping_from": {"type": "list", "elements": "str"},
    "ssh_rule": {"type": "str", "choices": ["allow", "limit"], "default": "allow"},
    "ssh_from": {"type": "list", "elements": "str", "default": ["any"]},
    "ssh_fallback": {"type": "int", "default": 22},
    "guard_seconds": {"type": "int", "default": 60},
    "confirm": {"type": "str"},
}


def ping_errors(sources: list[str]) -> list[str]:
    """All that is wrong with the list of those who may ping."""
    errors = []
    for index, source in enumerate(sources):
        try:
            records.parse_address(source)
        except ValueError as error:
            errors.append(f"ping_from[{index}]: {error}")
    return errors


def known_profiles(options: dict[str, Any], host: Host) -> dict[str, str] | None:
    """The ports of all profiles that there will be; None when the host has none yet."""
    given = {one["name"]: one["ports"] for one in options["applications"]}
    return {**host.profiles(), **given} if host.installed else None


def input_errors(options: dict[str, Any], host: Host) -> list[str]:
    """All that is wrong with the options."""
    errors = files.application_errors(options["applications"])
    errors += records.check_records(options["rules"], options["ipv6"], known_profiles(options, host))
    if options["guard_seconds"] and not 10 <= options["guard_seconds"] <= 3600:
        errors.append("guard_seconds: write 10 to 3600, or 0 to go without")
    return errors + ping_errors(options["ping_from"] or [])


def main() -> None:
    """Check the input, compare, apply."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    options = module.params
    host = Host(module)
    guard = Guard(host)
    connection = ssh.ssh_connection(os.getpid())
    sockets = ssh.read_sockets()
    ports = ssh.sshd_ports(sockets) | ({connection.port} if connection else set())
    if options["confirm"]:
        module.exit_json(changed=False, **guard.confirm(options["confirm"], ssh.came_by(os.getpid(), sockets, ports)))

    # root in a container may not look into the processes of others: there it is one of those who are logged in
    clients = [connection.client] if connection else ssh.peers(ports, sockets)
    errors = input_errors(options, host)
    errors += ssh.ssh_problems(clients, options["ssh_from"], options["ipv6"])
    if errors:
        module.fail_json(msg="\n".join(["Nothing was changed.", *errors]))

    ports = ports or {options["ssh_fallback"]}
    wanted = ssh.ssh_records(ports, options["ssh_from"], options["ssh_rule"]) + options["rules"]
    ipv6 = options["ipv6"]
    if ipv6 and not host.has_ipv6():
        ipv6 = False
        for record in wanted:
            if records.record_families(record) == (6,):
                module.warn(f"This host has no IPv6; passed over: {records.describe_record(record)}")

    profiles = known_profiles(options, host)
    firewall = Firewall(host, {**options, "ipv6": ipv6, "records": wanted, "profiles": profiles})
    lacks = [] if host.installed else ["ufw"]
    if lacks and not module.check_mode:
        module.exit_json(changed=False, actions=[], lacks=lacks, ssh_ports=sorted(ports))
    result: dict[str, Any] = {"lacks": lacks, "ssh_ports": sorted(ports), "diff": {}}
    try:
        actions = firewall.actions()
        if actions:
            result["diff"] = {"before": firewall.picture(after=False), "after": firewall.picture(after=True)}
        if guard.pending:
            actions.append("confirm what an earlier run changed")
        if actions and not module.check_mode:
            if options["guard_seconds"] and (guard.pending or firewall.tightens()):
                name = firewall.guarded(guard, options["guard_seconds"], ssh.came_by(os.getpid(), sockets, ports))
                result["guard"] = {"name": name, "seconds": options["guard_seconds"]}
            else:
                firewall.apply()
                if guard.pending:
                    guard.drop()
    except UfwError as error:
        module.fail_json(msg=str(error))
    for line in docker_warnings(host):
        module.warn(line)
    module.exit_json(changed=bool(actions), actions=actions, **result)


def docker_warnings(host: Host) -> list[str]:
    """What operators of a Docker host must know; costs nothing where there is no Docker."""
    if DOCKER not in (host.kernel(4) or "").splitlines():
        return []
    ports = published_ports(host.nat())
    if not ports:
        return []
    told = f"Docker publishes {', '.join(ports)} on this host, past ufw: its rules come before ufw's. "
    return [f"{told}Publish on 127.0.0.1 with nginx in front, or filter in Docker's own chain DOCKER-USER"]


if __name__ == "__main__":
    main()
