"""One view for each thing that a fleet must get right."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from flask import Blueprint, Response, abort, render_template, request

views = Blueprint("views", __name__)

MAX_PAUSE = 60  # seconds
CHUNK = 1 << 16  # bytes


def release() -> str:
    """The release that this process runs from: releases/ID/src."""
    return Path(__file__).resolve().parents[2].name


@views.get("/")
def home() -> str:
    """A page for people."""
    return render_template("home.html", hostname=socket.gethostname(), release=release())


@views.get("/healthz")
def health() -> dict[str, str]:
    """Whether this process can serve."""
    return {"status": "ok"}


@views.get("/whoami")
def whoami() -> dict[str, object]:
    """What the application knows of its client and of itself."""
    return {
        "remote_addr": request.remote_addr,
        "scheme": request.scheme,
        "host": request.host,
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "release": release(),
    }


@views.get("/config")
def config() -> dict[str, bool]:
    """Whether the secret arrived; never which."""
    return {"SECRET_KEY": bool(os.environ.get("SECRET_KEY"))}


def pause(default: float) -> float:
    """The seconds that the client asks for, within bounds."""
    seconds = request.args.get("seconds", default, type=float)
    if not 0 <= seconds <= MAX_PAUSE:
        abort(400, f"seconds must be from 0 to {MAX_PAUSE}")
    return seconds


@views.get("/sleep")
def sleep() -> dict[str, float]:
    """A slow view: `?seconds=4`."""
    seconds = pause(1)
    time.sleep(seconds)
    return {"slept": seconds}


@views.post("/upload")
def upload() -> dict[str, object]:
    """Read the body piece by piece; answer its size in bytes and its hash."""
    size, digest = 0, hashlib.sha256()
    while chunk := request.stream.read(CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


@views.get("/stream")
def stream() -> Response:
    """Five lines with pauses between them: `?seconds=0.2`."""
    seconds = pause(0.2)

    def lines() -> Iterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            time.sleep(seconds)

    return Response(lines(), mimetype="text/plain", headers={"X-Accel-Buffering": "no"})
