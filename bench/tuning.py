#!/usr/bin/env python3
"""What each setting of gunicorn and nginx brings or costs, one at a time, beside the defaults.

Every candidate is an application of its own on one host (a view that does nothing), which differs from the first in one
thing. It is asked in turn with the first, so that whatever else the machine does meets both. Prints a table and keeps
it in bench/results/.

    bench/tuning.py                        # all of it: nine minutes
    bench/tuning.py --only threads         # candidates whose name has this in it; keeps nothing
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import RESULTS, head
from serve import OURS, Measure, Rig, middle, sources

CONNECTIONS = (50, 500)
TIMES = 3  # turns of the defaults and a candidate; the middle of their ratios counts
SECONDS = 1  # of each measurement


@dataclass(frozen=True)
class Candidate:
    """What is tried: keys of the record, or a sed script for a file of nginx that no option reaches."""

    name: str
    record: dict[str, Any] = field(default_factory=dict)
    site: str = ""
    """For the candidate's own site."""
    nginx: str = ""
    """For all of nginx; in force only while this candidate is asked."""


DEFAULTS = Candidate("the defaults")
CANDIDATES = (
    Candidate("the defaults once more"),
    Candidate("gunicorn: access log", {"gunicorn": {"accesslog": "-"}}),
    Candidate("gunicorn: 1 thread", {"gunicorn": {"threads": 1}}),
    Candidate("gunicorn: 2 threads", {"gunicorn": {"threads": 2}}),
    Candidate("gunicorn: 8 threads", {"gunicorn": {"threads": 8}}),
    Candidate("gunicorn: sync workers", {"gunicorn": {"worker_class": "sync"}}),
    Candidate("gunicorn: gevent workers", {"gunicorn": {"worker_class": "gevent"}}),
    Candidate("gunicorn: 1 master", {"masters": 1}),
    Candidate("gunicorn: 2 workers", {"workers": 2}),
    Candidate("gunicorn: 4 workers", {"workers": 4}),
    Candidate("gunicorn: max_requests 0", {"gunicorn": {"max_requests": 0}}),
    Candidate("gunicorn: TCP instead of a Unix socket", {"port": "auto"}),
    Candidate("nginx: keepalive 0", {"nginx": {"keepalive": 0}}),
    Candidate("nginx: keepalive 32", {"nginx": {"keepalive": 32}}),
    Candidate("nginx: keepalive 128", {"nginx": {"keepalive": 128}}),
    Candidate("nginx: keepalive 2048", {"nginx": {"keepalive": 2048}}),
    Candidate(
        "nginx: access_log buffer=64k", site=r"s/(access_log .*) wsgi_fleet;/\1 wsgi_fleet buffer=64k flush=1s;/"
    ),
    Candidate("nginx: no access_log", site=r"s/access_log .*;/access_log off;/"),
    Candidate("nginx: proxy_buffering off", site=r"s/(include wsgi-fleet.proxy.conf;)/\1 proxy_buffering off;/"),
    Candidate(
        "nginx: reuseport", nginx=r"sites-enabled/default s/default_server backlog/default_server reuseport backlog/"
    ),
    Candidate("nginx: multi_accept", nginx=r"nginx.conf s/(worker_connections .*;)/\1 multi_accept on;/"),
    Candidate("nginx: worker_processes 1", nginx=r"nginx.conf s/worker_processes .*;/worker_processes 1;/"),
    Candidate("nginx: open_file_cache", nginx=r"nginx.conf s/(sendfile on;)/\1 open_file_cache max=1000;/"),
)

SITE = "sed -i -E '{script}' /etc/nginx/sites-enabled/{app}.conf"
# A reload is done when nobody is left who worked by the old configuration; all connections to it are closed by then.
SWITCH = """\
cd /etc/nginx
cp -a {file} /root/kept
sed -i -E '{script}' {file}
! cmp -s {file} /root/kept
nginx -t 2>/dev/null
systemctl reload nginx
sleep 1
"""
BACK = "cd /etc/nginx; cp -a /root/kept {file}; systemctl reload nginx; sleep 1"

Pairs = list[tuple[Measure, Measure]]
"""The defaults and a candidate, in turn."""
Results = dict[tuple[str, int], Pairs]


def measure(work: Path, candidates: Sequence[Candidate], options: argparse.Namespace) -> Results:
    """All measurements."""
    source = str(sources(work)["noop"])
    apps = {candidate.name: f"c{number}" for number, candidate in enumerate([DEFAULTS, *candidates])}
    records = [
        {
            "name": apps[candidate.name],
            "domains": [f"{apps[candidate.name]}.bench.example"],
            "source": {"path": source},
            "callable": "wsgi:app",
            **candidate.record,
        }
        for candidate in (DEFAULTS, *candidates)
        if not candidate.nginx
    ]
    rig = Rig(work, records, options)

    def ask(app: str, connections: int) -> Measure:
        return rig.measure(rig.ours, f"http://{OURS}/", f"{app}.bench.example", connections, warm=False)

    results: Results = {}
    try:
        rig.make()
        edits = [SITE.format(script=one.site, app=apps[one.name]) for one in candidates if one.site]
        rig.ours.run("\n".join([*edits, "nginx -t 2>/dev/null", "systemctl reload nginx"]))
        for candidate in candidates:
            file, _, script = candidate.nginx.partition(" ")
            # One that is about all of nginx is the first application's.
            app = apps[DEFAULTS.name if candidate.nginx else candidate.name]
            for connections in options.connections:
                ask(app, connections)
                for _ in range(options.times):
                    base = ask(apps[DEFAULTS.name], connections)
                    if candidate.nginx:
                        rig.ours.run(SWITCH.format(file=file, script=script))
                    seen = ask(app, connections)
                    if candidate.nginx:
                        rig.ours.run(BACK.format(file=file))
                    results.setdefault((candidate.name, connections), []).append((base, seen))
                print(f"{candidate.name}, {connections}: {results[candidate.name, connections][-1]}", file=sys.stderr)
        return results
    finally:
        if not options.keep:
            rig.destroy()


def ratio(pairs: Pairs, name: str) -> str:
    """The middle of what candidates had of the defaults'."""
    return f"{statistics.median(getattr(seen, name) / (getattr(base, name) or 1) for base, seen in pairs):.2f}"


def report(results: Results, candidates: Sequence[Candidate], options: argparse.Namespace) -> str:
    """The measurements as a page."""
    intro = f"""
        One host with nginx and gunicorn as site.yml sets them up, and a view that does nothing, once for each candidate
        with that one thing changed. Asked by wrk from a host of its own on the same cores: the defaults and the
        candidate in turn, {options.times} times {options.seconds} s each. What counts is the middle of the ratios.
        CPU is that of nginx, gunicorn and supervisord for a request. What "the defaults once more" are off by is no
        gain for others either.
        """
    lines = [*head("Tuning"), *textwrap.wrap(" ".join(intro.split()), 120), ""]
    for number in options.connections:
        base = middle([first for one in candidates for first, _ in results[one.name, number]])
        lines += [
            f"## {number} connections",
            "",
            f"The defaults: {base.rate:.0f} requests/s, p99 {base.p99:.0f} ms, {base.cpu:.3f} ms of CPU for a request.",
            "",
            "| | requests/s | CPU | p99 | errors |",
            "|---|---|---|---|---|",
        ]
        for candidate in candidates:
            pairs = results[candidate.name, number]
            errors = middle([seen for _, seen in pairs]).errors
            cells = [candidate.name, *(f"x {ratio(pairs, name)}" for name in ("rate", "cpu", "p99")), str(errors)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Measure, print, keep what was measured in full."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--keep", action="store_true", help="leave the hosts")
    options = parser.parse_args()
    candidates = [one for one in CANDIDATES if not options.only or any(word in one.name for word in options.only)]
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        results = measure(Path(work), candidates, options)
    page = report(results, candidates, options)
    print(page)
    if not options.only and (options.times, tuple(options.connections)) == (TIMES, CONNECTIONS):
        (RESULTS / "tuning.md").write_text(page)


if __name__ == "__main__":
    main()
