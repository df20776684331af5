"""The pages. Those beside `/` are there to look at the fleet from outside, and for its tests."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, abort, current_app, jsonify, render_template, request

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64 * 1024  # bytes
FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP", "Forwarded")

pages = Blueprint("pages", __name__)


def release_of(path: Path) -> str:
    """The release that a file belongs to: ID in .../releases/ID/..."""
    parts = path.parts
    return parts[parts.index("releases") + 1] if "releases" in parts[:-1] else "development"


# asked once: `current` may lead elsewhere while this process still runs the old code
RELEASE = release_of(Path(__file__).resolve())


def number(name: str, default: float, most: float) -> float:
    """A number from the query, between 0 and `most`."""
    try:
        value = float(request.args.get(name, default))
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        abort(400, f"{name} must be a number from 0 to {most:g}")
    return value


def client() -> dict[str, Any]:
    """Who asked, and who answers."""
    return {
        "remote_addr": request.remote_addr,
        "scheme": request.scheme,
        "host": request.host,
        "forwarded": {name: request.headers[name] for name in FORWARDED if name in request.headers},
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "release": RELEASE,
    }


@pages.get("/")
def index() -> str:
    """The page for people."""
    return render_template("index.html", **client())


@pages.get("/healthz")
def healthz() -> Response:
    """Whether this process can answer."""
    return jsonify(status="ok")


@pages.get("/whoami")
def whoami() -> Response:
    """The same as the page, for programs."""
    return jsonify(client())


@pages.get("/config")
def config() -> Response:
    """Whether the secret has arrived; never the secret."""
    return jsonify(secret_key=bool(current_app.config["SECRET_KEY"]))


@pages.get("/sleep")
def sleep() -> Response:
    """A slow page."""
    seconds = number("seconds", 1, 60)
    time.sleep(seconds)
    return jsonify(slept=seconds)


@pages.post("/upload")
def upload() -> Response:
    """Size and hash of the body, of which no more than one chunk is in memory at a time."""
    size, digest = 0, hashlib.sha256()
    while chunk := request.stream.read(CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return jsonify(size=size, sha256=digest.hexdigest())


@pages.get("/stream")
def stream() -> Response:
    """Lines that come one by one."""
    count, pause = int(number("count", 5, 100)), number("pause", 0.5, 10)

    def lines() -> Iterator[str]:
        for line in range(count):
            if line:
                time.sleep(pause)
            yield f"{line}\n"

    # nginx would otherwise collect the lines
    return Response(lines(), mimetype="text/plain", headers={"X-Accel-Buffering": "no"})
