# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One HTTP request to an address or a Unix socket, whatever DNS says: how module probe and the releases' gate ask."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Optional

MAX_BODY = 1 << 20  # bytes; enough to see that a body arrives

# The options of one target; `name` is a label.
TARGET: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "address": {"type": "str"},
    "port": {"type": "int"},
    "socket": {"type": "path"},
    "host": {"type": "str", "required": True},
    "path": {"type": "str", "default": "/"},
    "below": {"type": "int", "default": 400},
    "tls": {"type": "bool", "default": False},
    "verify": {"type": "bool", "default": True},
    "proxy_protocol": {"type": "bool", "default": False},
    "ca": {"type": "str"},
}


class Connection(http.client.HTTPConnection):
    """An HTTP connection to `target`'s address or socket that asks for `target`'s host."""

    def __init__(self, target: Mapping[str, Any], timeout: float) -> None:
        super().__init__(target["host"], timeout=timeout)
        self.target = target
        self.days_left: Optional[int] = None

    def connect(self) -> None:
        target = self.target
        if target.get("socket"):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(target["socket"])
        else:
            port = target["port"] or (443 if target["tls"] else 80)
            self.sock = socket.create_connection((target["address"], port), self.timeout)
        if target.get("proxy_protocol"):
            self.sock.sendall(b"PROXY UNKNOWN\r\n")  # we speak for ourselves
        if target.get("tls"):
            context = ssl.create_default_context()
            if target.get("ca"):
                context.load_verify_locations(cadata=target["ca"])
            if not target["verify"]:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock, server_hostname=target["host"])
            self.days_left = days_left(self.sock.getpeercert(binary_form=True) or b"", time.time())


def days_left(certificate: bytes, now: float) -> Optional[int]:
    """Whole days until a certificate (DER) ends, below zero when it has ended; None for what is no certificate.

    Python tells the dates of a certificate only after it has verified it, which no self-signed one stands.
    """
    try:
        end = _not_after(certificate)
    except (IndexError, ValueError, OverflowError):
        return None
    return int((end - now) // 86400)


def _not_after(certificate: bytes) -> float:
    """The end of its validity, which is the fourth field of what is signed, not counting an explicit version."""
    signed = _parts(_parts(certificate)[0][1])[0][1]
    fields = [content for tag, content in _parts(signed) if tag != 0xA0]
    _, (tag, text) = _parts(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"  # two digits for the year until 2049
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=timezone.utc).timestamp()


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """The elements that DER holds one after the other, as (tag, content)."""
    found, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("it ends in the middle")
        found.append((tag, data[at : at + length]))
        at += length
    return found


def url_of(target: Mapping[str, Any]) -> str:
    """The URL that a person would type for `target`."""
    scheme, usual = ("https", 443) if target.get("tls") else ("http", 80)
    port = target.get("port") or usual
    return f"{scheme}://{target['host']}{'' if port == usual else f':{port}'}{target['path']}"


def ask(target: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """One request; every way of failing is an answer with status 0."""
    answer: dict[str, Any] = {"name": target["name"], "url": url_of(target), "status": 0, "error": ""}
    started = time.monotonic()
    connection = Connection(target, timeout)
    try:
        connection.request("GET", target["path"], headers={"User-Agent": "wsgi.fleet probe", "Connection": "close"})
        response = connection.getresponse()
        response.read(MAX_BODY)
        answer["status"] = response.status
    except (OSError, http.client.HTTPException) as error:
        answer["error"] = str(error) or type(error).__name__
    finally:
        connection.close()
    if connection.days_left is not None:
        answer["days_left"] = connection.days_left
    answer["good"] = 200 <= answer["status"] < target.get("below", 400)
    answer["seconds"] = round(time.monotonic() - started, 3)
    return answer


def told(answer: Mapping[str, Any]) -> str:
    """An answer in words."""
    said = f"answered {answer['status']}" if answer["status"] else f"gave no answer ({answer['error']})"
    return f"{answer['url']} over {answer['name']} {said}"
