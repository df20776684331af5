#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What visitors get, as nginx sees it, for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: watch
short_description: Watch the share of server errors in access logs of nginx for a while
description:
  - Reads what is added to each log within O(seconds), and fails when too many of the requests were answered with a
    status of 500 or more. Requests that a health check makes count like all others.
  - Changes nothing.
version_added: 0.1.0
author: The wsgi.fleet maintainers
options:
  logs:
    description: Path of the access log by the name of its application. A log that is not there yet counts as empty.
    type: dict
    required: true
  upstreams:
    description: Servers as upstreams have them. When some are given, only requests count that one of these answered.
    type: list
    elements: str
    default: []
  seconds:
    description: For how long.
    type: int
    default: 30
  max_errors:
    description: Percent of the requests that may end with a status of 500 or more.
    type: float
    default: 5
  min_requests:
    description: With fewer requests than these nothing is concluded.
    type: int
    default: 20
attributes:
  check_mode:
    description: Returns at once, since nothing has gone live.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: See whether the new release does well with real visitors
  wsgi.fleet.watch:
    logs: {shop: /var/log/nginx/shop.access.log}
    seconds: 60
"""

RETURN = r"""
apps:
  description: Number of requests, and of those answered with a status of 500 or more, by name of the application.
  returned: always
  type: dict
  sample: {shop: {requests: 412, errors: 0}}
"""

import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# The status follows the request, which is the first quoted text in a line, or has its name where lines are JSON.
STATUS = re.compile(r'(?:(?!\{)[^"]*|\{.*?"request":)"(?:[^"\\]|\\.)*"(?: |,"status":)(\d{3})[ ,]')
# Who answered: the last one, when several were asked.
UPSTREAM = re.compile(r'(?:upstream_addr=|"upstream":)"(?:[^"]*, )?([^", ]+)"')


class Log:
    """What is added to a log from now on, its rotation included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inode, self.size = self._look()

    def _look(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_size

    def added(self) -> list[str]:
        """The lines since this was made."""
        inode, size = self._look()
        if not inode:
            return []
        begin = self.size if inode == self.inode and size >= self.size else 0
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return stream.read().decode(errors="replace").splitlines()


def count(lines: Iterable[str], upstreams: Collection[str] = ()) -> dict[str, int]:
    """Requests and errors among lines of a log."""

    def counts(line: str) -> bool:
        answered = UPSTREAM.search(line)
        return not upstreams or bool(answered and answered[1] in upstreams)

    found = [int(match[1]) for match in map(STATUS.match, filter(counts, lines)) if match]
    return {"requests": len(found), "errors": sum(status >= 500 for status in found)}


def main() -> None:
    """Watch, count, judge."""
    module = AnsibleModule(
        argument_spec={
            "logs": {"type": "dict", "required": True},
            "upstreams": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "int", "default": 30},
            "max_errors": {"type": "float", "default": 5},
            "min_requests": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    options = module.params
    logs = {name: Log(Path(path)) for name, path in options["logs"].items()}
    if not module.check_mode:
        time.sleep(options["seconds"])
    apps = {name: count(log.added(), options["upstreams"]) for name, log in logs.items()}
    bad = [
        f"{name}: {seen['errors']} of {seen['requests']} requests ended with a server error "
        f"within {options['seconds']} seconds ({options['max_errors']:g} percent may)"
        for name, seen in apps.items()
        if seen["requests"] >= options["min_requests"]
        and seen["errors"] * 100 > options["max_errors"] * seen["requests"]
    ]
    if bad:
        module.fail_json(msg="\n".join(bad), apps=apps)
    module.exit_json(changed=False, apps=apps)


if __name__ == "__main__":
    main()
