"""Answers with its version, the kind of its host and who it is; on hosts named in the file `bad` with an error."""

import os
import platform
from pathlib import Path

HERE = Path(__file__).parent
VERSION = (HERE / "version").read_text().strip()
BAD = (HERE / "bad").read_text().split() if (HERE / "bad").exists() else []
NODE = platform.node().lower()
ERROR = NODE in BAD or os.name in BAD


def app(environ, start_response):
    environ["wsgi.input"].read()
    body = f"{VERSION} {os.name} {NODE} {os.getpid()}".encode()
    start_response("500 Oh no" if ERROR else "200 OK", [("Content-Length", str(len(body)))])
    return [body]
