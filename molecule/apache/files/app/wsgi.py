"""Says what it was asked, takes its time, and answers as it is told to."""

import json
import os
import time
import urllib.parse


def app(environ, start_response):
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    taken = len(environ["wsgi.input"].read())
    time.sleep(float(query.get("sleep", 0)))
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    seen = {
        "pid": os.getpid(),
        "uri": environ.get("REQUEST_URI") or environ.get("RAW_URI"),
        "client": environ.get("HTTP_X_FORWARDED_FOR") or environ["REMOTE_ADDR"],
        "scheme": environ["wsgi.url_scheme"],
        "port": environ["SERVER_PORT"],
        "headers": headers,
        "taken": taken,
        "greeting": os.environ.get("GREETING", "hello"),
    }
    body = json.dumps(seen).encode() + b" " * int(query.get("pad", 0))
    said = [tuple(header.split(":", 1)) for header in query.get("say", "").split("|") if header]
    status = os.environ.get("BROKEN") or query.get("status", "200 OK")
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *said])
    return [body]


def make(greeting):
    os.environ.setdefault("GREETING", greeting)
    return app
