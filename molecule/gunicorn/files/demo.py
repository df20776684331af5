"""An application that says who serves it, and can take its time."""

import json
import os
import time


def app(environ, start_response):
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(1.5)
    body = json.dumps(
        {
            "pid": os.getpid(),
            "scheme": environ["wsgi.url_scheme"],
            "odd": os.environ.get("ODD"),
            "runner": os.environ.get("RUNNER"),
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
