# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking the servers of one host out of nginx's upstreams for a while, in the files as role nginx has written them.

The configuration says at /config which one it is, so that role nginx sees whether the running one is what it wrote.
What is changed here says so there too: whatever becomes of the run that drained, role nginx puts its files back and
reloads.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_UPSTREAM = re.compile(r"^upstream\s+(?P<name>\S+)\s*\{(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL)
_SERVER = re.compile(r"^(?P<head>\s*server\s+(?P<address>\S+?)(?:\s[^;]*?)??)(?P<down>\s+down)?;", re.MULTILINE)
_DIGEST = re.compile(r"(?P<head>return 200 )(?P<mark>drained-)?(?P<digest>[0-9a-f]{64});")


def set_servers(text: str, addresses: Collection[str], *, down: bool) -> tuple[str, list[str]]:
    """Change servers in all upstreams of a file; the new text, and the upstreams that would have no server left."""
    alone: list[str] = []

    def upstream(match: re.Match[str]) -> str:
        body = match["body"]
        servers = list(_SERVER.finditer(body))
        others = [server for server in servers if server["address"] not in addresses]
        if down and not any(server["down"] is None for server in others):
            if len(others) < len(servers):
                alone.append(match["name"])
            return match[0]

        def server(found: re.Match[str]) -> str:
            if found["address"] not in addresses:
                return found[0]
            return f"{found['head']}{' down' if down else ''};"

        return match[0].replace(body, _SERVER.sub(server, body))

    return _UPSTREAM.sub(upstream, text), alone


def has_drained(text: str) -> bool:
    """Whether any upstream of a file has a server that is down."""
    return any(server["down"] for match in _UPSTREAM.finditer(text) for server in _SERVER.finditer(match["body"]))


def mark(text: str, *, drained: bool) -> str:
    """Say at /config that something is drained, or that all is as it was written."""
    return _DIGEST.sub(lambda found: f"{found['head']}{'drained-' if drained else ''}{found['digest']};", text)
