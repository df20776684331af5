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
      tls:
        description: Whether to speak TLS.
        type: bool
        default: false
      verify:
        description: Whether the certificate must be trusted and match the host name.
        type: bool
        default: true
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
    error:
      description: Why there was no answer; empty when there was one.
      type: str
    seconds:
      description: Time to the end of the answer.
      type: float
"""

import http.client
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from ansible.module_utils.basic import AnsibleModule

MAX_BODY = 1 << 20  # bytes; enough to see that a body arrives


class Connection(http.client.HTTPConnection):
    """An HTTP connection to `target`'s address or socket that asks for `target`'s host."""

    def __init__(self, target: dict[str, Any], timeout: float) -> None:
        super().__init__(target["host"], timeout=timeout)
        self.target = target

    def connect(self) -> None:
        target = self.target
        if target["socket"]:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(target["socket"])
        else:
            port = target["port"] or (443 if target["tls"] else 80)
            self.sock = socket.create_connection((target["address"], port), self.timeout)
        if target["tls"]:
            context = ssl.create_default_context()
            if not target["verify"]:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname=target["host"])


def url_of(target: dict[str, Any]) -> str:
    """The URL that a person would type for `target`."""
    scheme, usual = ("https", 443) if target["tls"] else ("http", 80)
    port = target["port"] or usual
    return f"{scheme}://{target['host']}{'' if port == usual else f':{port}'}{target['path']}"


def ask(target: dict[str, Any], timeout: float) -> dict[str, Any]:
    """One request; every way of failing is an answer with status 0."""
    answer = {"name": target["name"], "url": url_of(target), "status": 0, "error": ""}
    started = time.monotonic()
    connection = Connection(target, timeout)
    try:
        connection.request("GET", target["path"], headers={"User-Agent": "wsgi.fleet probe", "Connection": "close"})
        response = connection.getresponse()
        response.read(MAX_BODY)
        answer["status"] = response.status
    except (OSError, http.client.HTTPException) as error:
        answer["error"] = str(error) or type(error).__name__
    finally:
        connection.close()
    answer["seconds"] = round(time.monotonic() - started, 3)
    return answer


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str"},
                    "port": {"type": "int"},
                    "socket": {"type": "path"},
                    "host": {"type": "str", "required": True},
                    "path": {"type": "str", "default": "/"},
                    "tls": {"type": "bool", "default": False},
                    "verify": {"type": "bool", "default": True},
                },
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
