"""Serves a directory to whoever knows the password."""

import base64
import functools
import http.server

EXPECTED = "Basic " + base64.b64encode(b"reader:Hard-to-guess-4711").decode()


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("Authorization") == EXPECTED:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="sources"')
        self.send_header("Content-Length", "0")
        self.end_headers()


http.server.ThreadingHTTPServer(("127.0.0.1", 8000), functools.partial(Handler, directory="/home/git")).serve_forever()
