"""Says which version it is, takes what is posted, and breaks as its files tell it to."""

import os
import socket
import time
from pathlib import Path

HERE = Path(__file__).parent
VERSION = (HERE / "version").read_text().strip()


def broken(kind):
    """A file of that name makes it so: on all hosts when it is empty, else on the host that it names."""
    path = HERE / kind
    return path.exists() and path.read_text().strip() in ("", socket.gethostname())


if broken("import"):
    raise RuntimeError("this release does not start")


def app(environ, start_response):
    if broken("hang"):
        time.sleep(60)
    body = f"{VERSION} {len(environ['wsgi.input'].read())}".encode()
    status = "500 Internal Server Error" if broken("error") or "BROKEN" in os.environ else "200 OK"
    start_response(
        status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("X-Host", socket.gethostname())]
    )
    return [body]
