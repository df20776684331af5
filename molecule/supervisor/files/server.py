#!/usr/bin/env python3
"""Serves HTTP on the listening socket that is file descriptor 0; on TERM it finishes its requests and leaves."""

import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RELEASE = Path(__file__).resolve().parent.name


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.02)  # long enough for a careless stop to cut it off
        body = f"{RELEASE} {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "-"

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for the requests under way

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, _ = self.socket.accept()
        connection.setblocking(True)
        return connection, ("-", 0)


def main() -> None:
    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=os.dup(0))
    server.socket.setblocking(False)  # the other process may have been faster
    if RELEASE == "slow":
        time.sleep(5)
    Path("/proc/self/comm").write_text("web-ready")
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {RELEASE}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()


main()
