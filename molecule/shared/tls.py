"""What the scenarios' tests share about TLS: asking as clients do, and as a scanner does."""

from __future__ import annotations

import subprocess
from pathlib import Path

from probes import ROOT, ansible_environment, wait_until


def handshakes(address: str, name: str, *options: str) -> str:
    """What openssl's client tells of a connection, and of those that `options` add."""
    command = ["openssl", "s_client", "-connect", f"{address}:443", "-servername", name, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def resumption(address: str, name: str) -> str:
    """The same of connections over TLS 1.2, of which one or more took up the session of another."""

    def ask() -> str:
        told = handshakes(address, name, "-tls1_2", "-status", "-reconnect")
        return told if "Reused, TLSv1.2" in told else ""

    # openssl comes back at once, and a busy server has not put the session away yet
    return str(wait_until(ask, 10, "a session that is taken up again"))


def scan(address: str, name: str, authority: Path, profile: str) -> tuple[int, str]:
    """What a scanner finds against one of Mozilla's recommendations; 0 is nothing. scanner.yml installs it."""
    program = ROOT / ".cache" / "scanner" / "bin" / "sslyze"
    words = [program, "--sni", name, "--mozilla_config", profile, "--certinfo_ca_file", authority, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ansible_environment())
    return done.returncode, done.stdout
