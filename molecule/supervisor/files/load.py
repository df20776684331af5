#!/usr/bin/env python3
"""Asks a web server on a Unix socket over and over, until a file is there.

Prints what was answered how often, and how many seconds the slowest answer took.

Usage: load.py SOCKET STOPFILE
"""

import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

COUNT: Counter[str] = Counter()
SECONDS: list[float] = []


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(sys.argv[1])


def ask() -> None:
    while not Path(sys.argv[2]).exists():
        connection = Connection("web")
        started = time.monotonic()
        try:
            connection.request("GET", "/")
            COUNT[connection.getresponse().read().decode().split()[0]] += 1
        except (OSError, http.client.HTTPException, IndexError) as error:
            COUNT[f"failed: {error!r}"] += 1
        finally:
            connection.close()
            SECONDS.append(time.monotonic() - started)


threads = [threading.Thread(target=ask) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"count": COUNT, "slowest": max(SECONDS)}))
