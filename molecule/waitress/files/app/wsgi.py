"""Says who serves it and who asked, takes its time, gives much, and breaks as its environment tells it to."""

import json
import os
import sys
import time

LARGE = 60_000_000
ASKED = ("REMOTE_ADDR", "HTTP_HOST", "SERVER_PORT", "wsgi.url_scheme", "wsgi.multithread")


def app(environ, start_response):
    server = "gunicorn" if "gunicorn" in sys.modules else "waitress"
    path = environ["PATH_INFO"]
    taken = len(environ["wsgi.input"].read())
    if path.startswith("/sleep/"):
        time.sleep(float(path[7:]))
    body = f"{server}-{os.getpid()} {os.environ.get('GREETING', 'hello')} {taken}".encode()
    if path == "/asked":
        body = json.dumps({name: environ[name] for name in ASKED}).encode()
    status = "500 Internal Server Error" if os.environ.get("BREAKS_UNDER") == server else "200 OK"
    length = LARGE if path == "/large" else len(body)
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(length))])
    return (b"x" * 100_000 for _ in range(LARGE // 100_000)) if path == "/large" else [body]


def make(name):
    return app
