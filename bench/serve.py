#!/usr/bin/env python3
"""How many requests the deployed stack serves, and how fast, beside what people copy from tutorials.

Makes three hosts (Debian 13): one that site.yml converges, one with the configurations of tutorials, and one that asks
with Debian's wrk. A view that does nothing and the example shop are asked over 50, 500 and 1,000 connections, all ways
in turn, three times. Prints a table and keeps it in bench/results/.

    bench/serve.py                     # all of it: ten minutes
    bench/serve.py --times 1 --seconds 2 --connections 50     # whether it works; keeps nothing
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import statistics
import sys
import tarfile
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import RESULTS, ROOT, Host, head, hosts_here, play

FLEET = "serve"
SUBNET = "10.213.71"
OURS, COPIES, LOAD = f"{SUBNET}.21", f"{SUBNET}.31", f"{SUBNET}.41"
CONNECTIONS = (50, 500, 1000)
TIMES = 3  # of which the middle one counts
SECONDS = 3  # of each measurement, after one that warms up
APPS = ("noop", "shop")
WHAT = {"noop": "A view that does nothing", "shop": "The example shop's front page (Flask, a template)"}
ALONE = {"noop": 8101, "shop": 8102}

NOOP = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


def inventory(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The three hosts; the records are the first one's."""
    alone = [{"port": port, "from": LOAD, "comment": "gunicorn alone"} for port in ALONE.values()]
    return {
        "linux_apps": {"hosts": {"ours": {"ansible_host": OURS}}, "vars": {"wsgi_apps": records, "ufw_rules": alone}},
        "others": {"hosts": {"copies": {"ansible_host": COPIES}, "load": {"ansible_host": LOAD}}},
    }


def sources(work: Path) -> dict[str, Path]:
    """The two applications, as an operator has them."""
    noop, shop = work / "noop", work / "shop"
    noop.mkdir()
    (noop / "wsgi.py").write_text(NOOP)
    (noop / "requirements.txt").write_text("")
    shutil.copytree(ROOT / "examples" / "shop", shop)
    return {"noop": noop, "shop": shop}


@dataclass(frozen=True)
class Way:
    """A way to serve both applications."""

    name: str
    what: str
    address: str
    server: str = "gunicorn"
    alone: bool = False

    def url(self, app: str) -> str:
        return f"http://{self.address}:{ALONE[app]}/" if self.alone else f"http://{self.address}/"

    def host(self, app: str) -> str:
        return f"{app}-{self.name}.bench.example"


WAYS = (
    Way("ours", "wsgi.fleet's defaults: nginx, two gunicorn masters with 3 gthread workers each", OURS),
    Way("alone", "the same gunicorn without nginx: one master with as many workers, on TCP", OURS, alone=True),
    Way("sync", "gunicorn, 4 sync workers on TCP, behind nginx's defaults", COPIES),
    Way("gevent", "gunicorn, 4 gevent workers on TCP, nginx with `Host $host:80` and no keepalive to it", COPIES),
    Way("waitress", "4 processes of waitress, an upstream of nginx", COPIES, server="waitress"),
    Way("socket", "gunicorn, 3 sync workers on a Unix socket, behind nginx's defaults", COPIES),
)

# As tutorials have them: https://docs.gunicorn.org/en/latest/deploy.html, https://flask.palletsprojects.com/deploying/,
# and what the large hosters' guides for Flask and Django say. nginx.conf stays the distribution's.
COPY = """\
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -yq nginx python3-venv >/dev/null
mkdir -p /opt/copies
base64 -d >/tmp/copies.tar <<'END'
{archive}
END
tar -xf /tmp/copies.tar -C /opt/copies
python3 -m venv /opt/copies/venv
/opt/copies/venv/bin/pip install -q "gunicorn[gevent]=={gunicorn}" waitress -r /opt/copies/shop/requirements.in
chmod -R a+rX /opt/copies

start() {{ # UNIT APP COMMAND...
  unit=$1 app=$2; shift 2
  systemd-run -q --unit="$unit" --uid=www-data --gid=www-data --working-directory="/opt/copies/$app" \\
    --property=LimitNOFILE=65536 --property=RuntimeDirectory="$unit" "$@"
}}
site() {{ # NAME UPSTREAM HOST
  cat >"/etc/nginx/sites-enabled/$1" <<END
${{4:-}}
server {{
    listen 80;
    server_name $1.bench.example;
    location / {{
        proxy_pass http://$2;
        proxy_set_header Host $3;
        proxy_set_header X-Real-IP \\$remote_addr;
        proxy_set_header X-Forwarded-For \\$proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto \\$scheme;
    }}
}}
END
}}
bin=/opt/copies/venv/bin
port=8000
for app in {apps}; do
  start $app-sync $app $bin/gunicorn -w 4 -b 127.0.0.1:$((port + 1)) wsgi:app
  site $app-sync 127.0.0.1:$((port + 1)) '$host'
  start $app-gevent $app $bin/gunicorn -k gevent -w 4 -b 127.0.0.1:$((port + 2)) wsgi:app
  site $app-gevent 127.0.0.1:$((port + 2)) '$host:80'
  servers=
  for n in 3 4 5 6; do
    start $app-waitress-$n $app $bin/waitress-serve --listen=127.0.0.1:$((port + n)) wsgi:app
    servers="$servers server 127.0.0.1:$((port + n));"
  done
  site $app-waitress ${{app}}_waitress '$http_host' "upstream ${{app}}_waitress {{ $servers }}"
  start $app-socket $app $bin/gunicorn --workers 3 --bind unix:/run/$app-socket/web.sock -m 007 wsgi:app
  site $app-socket unix:/run/$app-socket/web.sock '$host'
  port=$((port + 100))
done
systemctl reload nginx
"""

# The same settings and environment as behind nginx; who asks may be anybody, so no header of theirs counts.
STAND_ALONE = """\
conf=/etc/wsgi-fleet/{app}/gunicorn.conf.py
workers=$(($(sed -n 's/^workers = //p' $conf) * 2))
systemd-run -q --unit=alone-{app} --uid={app} --property=LimitNOFILE=65536 --property=StandardOutput=null \\
  /etc/wsgi-fleet/{app}/run gunicorn -c $conf --bind 0.0.0.0:{port} --workers $workers
"""

ASK = r"""
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.3f, "p50": %.2f, "p99": %.2f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""

# Clock ticks that all processes of a host have had, those that ended included.
TICKS = """\
cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | awk '{ t += $12 + $13 + $14 + $15 } END { printf "%d", t }' || true
"""
TICK = 0.01


@dataclass
class Measure:
    """What one run of wrk saw, and what the host had to do for it."""

    rate: float
    p50: float
    p99: float
    errors: int
    requests: int
    cpu: float
    """Milliseconds of the server's CPU for a request, nginx included."""


class Rig:
    """The hosts, made and ready."""

    def __init__(self, work: Path, records: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
        self.options = options
        self.inventory = work / "hosts.yml"
        hosts = inventory(records)
        self.inventory.write_text(json.dumps(hosts) + "\n")
        (work / "group_vars").mkdir()
        (work / "group_vars" / "all.yml").write_text(hosts_here(FLEET, SUBNET))
        self.ours, self.copies, self.load = (Host(FLEET, address, work) for address in (OURS, COPIES, LOAD))

    def make(self) -> None:
        """Make the hosts, and give the one that asks its wrk."""
        self.destroy()
        play("molecule/shared/create.yml", self.inventory)
        play("site.yml", self.inventory)
        self.load.run("apt-get update -q >/dev/null; DEBIAN_FRONTEND=noninteractive apt-get install -yq wrk >/dev/null")
        self.load.run(f"cat >/root/ask.lua <<'END'\n{ASK}END\n")

    def destroy(self) -> None:
        play("molecule/shared/destroy.yml", self.inventory)

    def ask(self, url: str, name: str, connections: int, seconds: int) -> dict[str, Any]:
        """Let wrk ask."""
        wrk = f"wrk -t1 -c{connections} -d{seconds}s --timeout 10s -s /root/ask.lua -H 'Host: {name}' {url}"
        said = self.load.run(f"ulimit -n 8192; {wrk}", timeout=60)
        seen: dict[str, Any] = json.loads(said.splitlines()[-1])
        return seen

    def measure(self, server: Host, url: str, name: str, connections: int, warm: bool = True) -> Measure:
        """Warm up, then measure."""
        if warm:
            self.ask(url, name, connections, 1)
        before = int(server.run(TICKS))
        seen = self.ask(url, name, connections, self.options.seconds)
        spent = (int(server.run(TICKS)) - before) * TICK
        requests = max(seen["requests"], 1)
        return Measure(
            seen["requests"] / seen["seconds"],
            seen["p50"],
            seen["p99"],
            seen["errors"],
            seen["requests"],
            1000 * spent / requests,
        )


def middle(measures: Sequence[Measure]) -> Measure:
    """The middle of each number; errors are all that were seen."""
    of = {name: statistics.median(getattr(one, name) for one in measures) for name in ("rate", "p50", "p99", "cpu")}
    return Measure(**of, errors=sum(one.errors for one in measures), requests=sum(one.requests for one in measures))


Results = dict[tuple[str, str, int], list[Measure]]


def archive(paths: dict[str, Path]) -> str:
    """The applications as one text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, path in paths.items():
            tar.add(path, name)
    return base64.encodebytes(packed.getvalue()).decode()


def version_of_gunicorn(rig: Rig) -> str:
    """That of ours, for all."""
    said: str = rig.ours.run("/srv/noop/current/venv/bin/gunicorn --version")
    return said.split()[-1].rstrip(")")


def measure(work: Path, options: argparse.Namespace) -> Results:
    """All measurements."""
    paths = sources(work)
    records = [
        {
            "name": app,
            "domains": [f"{app}-ours.bench.example"],
            "source": {"path": str(paths[app])},
            "callable": "wsgi:app",
        }
        for app in APPS
    ]
    rig = Rig(work, records, options)
    try:
        rig.make()
        rig.copies.run(
            COPY.format(archive=archive(paths), gunicorn=version_of_gunicorn(rig), apps=" ".join(APPS)), timeout=600
        )
        for app in APPS:
            rig.ours.run(STAND_ALONE.format(app=app, port=ALONE[app]))
        time.sleep(3)
        results: Results = {}
        for turn in range(options.times):
            for app in APPS:
                for connections in options.connections:
                    for way in WAYS:
                        server = rig.ours if way.address == OURS else rig.copies
                        seen = rig.measure(server, way.url(app), way.host(app), connections)
                        if seen.errors >= seen.requests:
                            sys.exit(f"{app} does not work the way {way.name}: {seen}")
                        results.setdefault((app, way.name, connections), []).append(seen)
                        print(f"{turn + 1}: {app}, {way.name}, {connections}: {seen}", file=sys.stderr, flush=True)
        return results
    finally:
        if not options.keep:
            rig.destroy()


def table(results: Results, app: str, connections: Sequence[int]) -> list[str]:
    """The measurements of one application."""
    lines = [
        f"## {WHAT[app]}",
        "",
        "| connections | way | requests/s | p50 | p99 | errors | of requests | CPU per request |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number in connections:
        for way in WAYS:
            seen = middle(results[app, way.name, number])
            cells = [number, way.name, f"{seen.rate:.0f}", f"{seen.p50:.0f}", f"{seen.p99:.0f}"]
            cells += [seen.errors, seen.requests, f"{seen.cpu:.2f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def conclusions(results: Results, app: str, connections: Sequence[int]) -> list[str]:
    """How ours compares."""
    lines = []
    for number in connections:
        rate = {way.name: middle(results[app, way.name, number]).rate for way in WAYS}
        best = max(
            (way.name for way in WAYS if way.address == COPIES and way.server == "gunicorn"), key=rate.__getitem__
        )
        lines.append(
            f"- {number} connections: {rate['ours'] / rate[best]:.2f} x the best copy with gunicorn ({best}), "
            f"{rate['ours'] / rate['waitress']:.2f} x waitress; {rate['ours'] / rate['alone']:.2f} of gunicorn alone."
        )
    return [*lines, ""]


def report(results: Results, options: argparse.Namespace) -> str:
    """The measurements as a page."""
    intro = f"""
        Every way is asked by wrk (one thread, HTTP without TLS, keep-alive) from a host of its own; that host and the
        servers share these cores, so a way that costs little CPU also leaves more to the one who asks. All ways in
        turn, {options.times} times {options.seconds} s after 1 s to warm up; the middle one counts, errors are summed.
        An error is a connection refused or broken, a status from 400 on, or no answer within 10 s. Milliseconds; CPU is
        that of the server's host with all that runs there.
        """
    lines = [*head("Serving"), *textwrap.wrap(" ".join(intro.split()), 120), ""]
    lines += ["| way | |", "|---|---|", *(f"| {way.name} | {way.what} |" for way in WAYS), ""]
    for app in APPS:
        lines += table(results, app, options.connections) + conclusions(results, app, options.connections)
    return "\n".join(lines).rstrip("\n") + "\n"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS))
    parser.add_argument("--keep", action="store_true", help="leave the hosts")
    return parser.parse_args()


def main() -> None:
    """Measure, print, keep what was measured in full."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        results = measure(Path(work), options)
    page = report(results, options)
    print(page)
    if (options.times, options.seconds, tuple(options.connections)) == (TIMES, SECONDS, CONNECTIONS):
        (RESULTS / "serve.md").write_text(page)


if __name__ == "__main__":
    main()
