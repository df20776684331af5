"""Runs of playbooks on all hosts of the scenario: what came of them, and what they left."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from probes import ROOT
from serving import digest

INVENTORIES = [ROOT / "molecule" / "shared" / "inventory", Path(__file__).parents[1] / "inventory"]


@dataclass
class Run:
    """A run of the role on all hosts."""

    code: int
    said: str
    errors: str
    names: list[str]

    def recap(self, what):
        """One number of the recap, of each host."""
        return [int(re.search(rf"(?m)^{name} +: .*\b{what}=(\d+)", self.said)[1]) for name in self.names]

    def changes(self):
        """The run succeeded; the number of changes on each host."""
        assert self.code == 0, self.said + self.errors
        return self.recap("changed")

    def refusals(self):
        """The run failed on each host; what it said there."""
        assert self.code == 2, self.said + self.errors
        assert self.recap("failed") == [1] * len(self.names), self.said + self.errors
        # a host's message goes on as long as lines are indented
        texts = ["".join(re.findall(rf"(?m)^fatal: \[{n}\].*(?:\n(?:[ \t].*)?)*", self.said)) for n in self.names]
        return [" ".join(text.split()) for text in texts]


@contextlib.contextmanager
def file_on_controller(path, variables):
    path.write_text(json.dumps(variables))
    path.chmod(0o600)
    try:
        yield path
    finally:
        path.unlink()


@contextlib.contextmanager
def file_on(hosts, path, content):
    try:
        for host in hosts:
            host.check_output("mkdir -p $(dirname %s) && printf %%s %s > %s", path, content, path)
        yield
    finally:
        for host in hosts:
            host.check_output("rm -f %s", path)


def each(ask, hosts):
    """What every host answers."""
    return [ask(host) for host in hosts]


def state(host):
    """What is in place, and what runs."""
    service = host.run("systemctl is-active nginx; systemctl is-enabled nginx").stdout
    files = host.check_output("find /etc/nginx /etc/ssl/wsgi-fleet -type f -exec sha256sum {} + | sort")
    return service, files, digest(host)
