#!/usr/bin/python
"""Asks sites over HTTP, where they are and not where DNS says."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: probe
short_description: Ask sites for one answer each, over the network or a Unix socket
description:
  - Sends one GET request to each target, all at the same time, and says what came back.
  - The address to connect to and the host name to ask for are separate, for TLS (SNI) as well.
    So a host can be asked for a site before DNS knows it, and each host of a pool by itself.
  - Never changes anything, and does not fail when a site does. The caller decides what an answer means.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  targets:
    description: What to ask.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Label, returned as it is.
        type: str
        required: true
      address:
        description: IP address or name to connect to. Either this or O(targets[].socket) is needed.
        type: str
      port:
        description: TCP port; 80, or 443 with O(targets[].tls), when not given.
        type: int
      socket:
        description: Unix socket to connect to instead.
        type: path
      host:
        description: Host name to ask for, in the Host header and for TLS.
        type: str
        required: true
      path:
        description: Path and query to ask for.
        type: str
        default: /
      below:
        description: An answer is good from status 200 on and below this one.
        type: int
        default: 400
      tls:
        description: Whether to speak TLS.
        type: bool
        default: false
      verify:
        description: Whether the certificate must be trusted and match the host name.
        type: bool
        default: true
      proxy_protocol:
        description: Whether the server wants the PROXY protocol first.
        type: bool
        default: false
      ca:
        description: Certificates in PEM of authorities that are trusted on top of the system's.
        type: str
  timeout:
    description: Seconds that each target has, connecting included.
    type: float
    default: 10.0
attributes:
  check_mode:
    description: Asks in check mode too; nothing is changed either way.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: Ask the shop on a balancer that DNS does not know yet
  wsgi.fleet.probe:
    targets:
      - {name: shop, address: 192.0.2.11, host: shop.example.com, path: /healthz, tls: true}
  delegate_to: localhost
  register: answers
"""

RETURN = r"""
results:
  description: One answer for each target, in their order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The target's label.
      type: str
    url:
      description: What was asked for, as a person would write it.
      type: str
    status:
      description: HTTP status; 0 when there was no answer.
      type: int
    good:
      description: Whether the status is from 200 on and below O(targets[].below).
      type: bool
    error:
      description: Why there was no answer; empty when there was one.
      type: str
    days_left:
      description: Whole days until the certificate ends, below zero when it has ended. Verified or not; only with TLS.
      type: int
    seconds:
      description: Time to the end of the answer.
      type: float
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsgi.fleet.plugins.module_utils.probing import TARGET, ask


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": TARGET,
                "required_one_of": [("address", "socket")],
                "mutually_exclusive": [("address", "socket")],
            },
            "timeout": {"type": "float", "default": 10.0},
        },
        supports_check_mode=True,
    )
    targets = cast("list[dict[str, Any]]", module.params["targets"])
    timeout = cast("float", module.params["timeout"])
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(targets)))) as pool:
        results = list(pool.map(lambda target: ask(target, timeout), targets))
    module.exit_json(changed=False, results=results)


if __name__ == "__main__":
    main()
