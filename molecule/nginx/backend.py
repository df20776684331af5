#!/usr/bin/python3
"""A server that says what it was asked. Its name says where it listens and how it is."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

WHERE = {
    "one": ("127.0.0.1", 9101),
    "two": ("127.0.0.1", 9102),
    "bad": ("127.0.0.1", 9103),
    "six": ("::1", 9104),
    "socket": "/run/backend.sock",
    "second": "/run/backend-second.sock",
}
NAME = sys.argv[1]
NUMBER = itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Say what was asked; paths ask for a certain kind of answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        if path.startswith("/slow"):
            time.sleep(float(query))
        if path == "/stream":
            self.stream()
            return
        if path == "/socket":
            self.become_a_socket()
            return
        status = 502 if NAME == "bad" else int(query) if path.endswith("/status") else 200
        if path == "/fails":  # of this server alone
            status = int(dict(parse_qsl(query)).get(NAME, 200))
        asked = {
            "backend": NAME,
            "client": self.client_address[1] if self.client_address else 0,
            "number": next(NUMBER),
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "size": len(body),
            "padding": "x" * (5000 if path in ("/big", "/image") else 0),
        }
        content = json.dumps(asked).encode()
        self.send_response(status)
        self.send_header("Content-Type", "image/png" if path == "/image" else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Access-Control-Allow-Origin", "https://of-the-app.example")
        if path == "/says":
            for name, value in parse_qsl(query):
                self.send_header(name, value)
        if path == "/cookies":
            self.send_header("Set-Cookie", "c=" + "x" * 12000)
        self.end_headers()
        self.wfile.write(content)

    def stream(self) -> None:
        """Say something at once, and more a little later."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
            time.sleep(1)
        self.close_connection = True

    def become_a_socket(self) -> None:
        """Change to another protocol, and say everything again in it."""
        if self.headers.get("Upgrade") != "websocket" or self.headers.get("Connection") != "upgrade":
            self.send_error(426)
            return
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "upgrade")
        self.end_headers()
        while line := self.rfile.readline():
            self.wfile.write(b"again: " + line)
            self.wfile.flush()
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_OPTIONS = answer  # noqa: N815

    def address_string(self) -> str:
        return "nginx"


class Server(ThreadingHTTPServer):
    address_family = (
        socket.AF_UNIX if isinstance(WHERE[NAME], str) else socket.AF_INET6 if NAME == "six" else socket.AF_INET
    )

    def server_bind(self) -> None:
        """The library's own looks up the host name, which a Unix socket does not have."""
        if isinstance(self.server_address, str):
            Path(self.server_address).unlink(missing_ok=True)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = NAME, 0
        if isinstance(self.server_address, str):
            Path(self.server_address).chmod(0o666)


Server(WHERE[NAME], Handler).serve_forever()
