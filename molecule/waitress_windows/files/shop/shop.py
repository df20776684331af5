"""An application that says how it runs, and that can take its time."""

import os
import sys
import time

from flask import Flask, Response, request

app = Flask(__name__)
BLOCK = b"0123456789abcdef" * 4096


@app.route("/", methods=["GET", "POST"])
def index():
    request.get_data()
    return f"{os.environ.get('COLOUR', 'none')} {os.getpid()} {request.scheme} {request.host} {request.remote_addr}"


@app.get("/about")
def about():
    token = os.environ.get("TOKEN", "")
    return {"prefix": sys.prefix, "release": os.environ["WSGI_FLEET_RELEASE"], "token": len(token)}


@app.get("/healthz")
def healthz():
    return "well"


@app.get("/sleep/<int:seconds>")
def sleep(seconds):
    time.sleep(seconds)
    return "woke"


@app.get("/download/<int:megabytes>")
def download(megabytes):
    return Response((BLOCK for _ in range(megabytes * 16)), headers={"Content-Length": megabytes << 20})


@app.get("/crash")
def crash():
    os._exit(3)
