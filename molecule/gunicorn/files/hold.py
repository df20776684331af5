#!/usr/bin/env python3
"""Opens a Unix socket, as supervisord does, and hands it to a command as file descriptor 0; stays when that ends.

Usage: hold.py SOCKET COMMAND...
"""

import signal
import socket
import subprocess
import sys
import time

listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen(64)
with subprocess.Popen(sys.argv[2:], stdin=listener) as child:
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    child.wait()
print("ended", flush=True)
time.sleep(600)
