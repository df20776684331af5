"""An application that tells how it runs, and that can take its time."""

import os
import sys
import time

from flask import Flask, Response, request

app = Flask(__name__)
BLOCK = b"0123456789abcdef" * 4096


@app.get("/")
def index():
    return {
        "pid": os.getpid(),
        "colour": os.environ.get("COLOUR"),
        "secret": os.environ.get("TOKEN", "")[:4],
        "service": os.environ.get("WSGI_FLEET_RELEASE"),
        "prefix": sys.prefix,
        "scheme": request.scheme,
        "remote": request.remote_addr,
        "host": request.host,
        "version": 1,
    }


@app.get("/healthz")
def healthz():
    return "well"


@app.get("/sleep/<float:seconds>")
def sleep(seconds):
    time.sleep(seconds)
    return "woke"


@app.get("/download/<int:megabytes>")
def download(megabytes):
    return Response((BLOCK for _ in range(megabytes * 16)), headers={"Content-Length": megabytes << 20})


@app.get("/crash")
def crash():
    os._exit(3)
