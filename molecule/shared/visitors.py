"""Visitors of a site: connections that stay open and ask, GET and POST in turn, until a file appears.

    visitors.py ADDRESS HOST STOP_FILE CONNECTIONS PAUSE [tls] [get]

With `get` they never POST. Prints one JSON object: requests, failed (reason: number), retried, answers (first word of
the body: number), the percentiles p50, p99, p999 and max of the seconds that an answer took, and when (as time.time()
has it) the last request failed and the last answer came that took more than a second, or null. A connection that the
server closed while it was idle is opened anew and the request repeated, as every browser does; anything else that is
not a 200 counts as failed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from pathlib import Path

BODY = b"x" * 20000
TIMEOUT = 30
SLOW = 1


class ClosedError(Exception):
    """The server had closed the connection before it read the request."""


def trusting() -> ssl.SSLContext:
    """Whoever answers: the certificates are made up."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Visitor:
    def __init__(self, address: str, host: str, pause: float, tls: bool, post: bool) -> None:
        self.address = address
        self.pause = pause
        self.options = {"port": 443, "ssl": trusting(), "server_hostname": host} if tls else {"port": 80}
        get = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.requests = [
            get,
            get
            if not post
            else f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY,
        ]
        self.stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, str]:
        """The status and the first word of the body."""
        fresh = self.stream is None
        if self.stream is None:
            self.stream = await asyncio.open_connection(self.address, **self.options)
        reader, writer = self.stream
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.leave()
            if not fresh and not getattr(error, "partial", b""):
                raise ClosedError from error
            raise
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close" or "content-length" not in headers:
            self.leave()
        return int(lines[0].split()[1]), body.decode(errors="replace").partition(" ")[0]

    def leave(self) -> None:
        if self.stream:
            self.stream[1].close()
        self.stream = None


async def visit(
    visitor: Visitor, stop: Path, seconds: list[float], failed: Counter, answers: Counter, more: Counter, last: dict
):
    def fail(reason: object) -> None:
        failed[f"{visitor.requests[number % 2][:4].decode().strip()}: {reason}"] += 1
        last["failure"] = time.time()

    number = 0
    while not stop.exists():
        number += 1
        await asyncio.sleep(visitor.pause)
        request = visitor.requests[number % 2]
        started = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                try:
                    status, word = await visitor.ask(request)
                except ClosedError:
                    more["retried"] += 1
                    status, word = await visitor.ask(request)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            visitor.leave()
            fail(type(error).__name__)
            continue
        seconds.append(time.monotonic() - started)
        if seconds[-1] > SLOW:
            last["slow"] = time.time()
        if status == 200:
            answers[word] += 1
        else:
            fail(status)


async def main() -> None:
    address, host, stop = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    connections, pause = int(sys.argv[4]), float(sys.argv[5])
    seconds: list[float] = []
    failed, answers, more = Counter(), Counter(), Counter()
    last: dict[str, float] = {}
    tls, post = "tls" in sys.argv[6:], "get" not in sys.argv[6:]
    visitors = [Visitor(address, host, pause, tls, post) for _ in range(connections)]
    await asyncio.gather(*[visit(visitor, stop, seconds, failed, answers, more, last) for visitor in visitors])
    seconds.sort()
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1}
    print(
        json.dumps(
            {
                "requests": sum(answers.values()) + sum(failed.values()),
                "failed": failed,
                "retried": more["retried"],
                "answers": answers,
                "last_failure": last.get("failure"),
                "last_slow": last.get("slow"),
                **{name: round(seconds[int(share * (len(seconds) - 1))], 4) for name, share in shares.items()},
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
