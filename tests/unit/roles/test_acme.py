"""Role acme's program `renew`, with a client that plays the server too. A real server is molecule's part."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "roles" / "acme" / "files" / "renew"
# Writes what certbot writes; names that begin with "bad" cannot be proven.
CERTBOT = """#!/bin/sh
echo "$*" >>"$HERE/asked"
while [ $# -gt 0 ]; do
    case $1 in
        --cert-name) name=$2 ;;
        -d) domains="$domains $2" ;;
    esac
    shift
done
case $domains in *' bad'*) echo '  Type:   connection'; echo '  Detail: nobody answers there'; exit 1 ;; esac
mkdir -p "$HERE/lib/acme/certbot/live/$name" && cd "$HERE/lib/acme/certbot/live/$name" || exit
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "${DAYS:-90}" -subj "/CN=$name" \\
    -keyout privkey.pem -out fullchain.pem 2>/dev/null
"""


class Host:
    def __init__(self, here: Path) -> None:
        self.here = here
        self.live = here / "lib" / "acme" / "live"
        (here / "etc").mkdir()
        (here / "bin").mkdir()
        self.settings()
        self.program = here / "renew"
        text = PROGRAM.read_text().replace("/etc/wsgi-fleet/acme", str(here / "etc"))
        self.program.write_text(text.replace("/var/lib/wsgi-fleet", str(here / "lib")).replace("/var/log", str(here)))
        (here / "bin" / "certbot").write_text(CERTBOT)
        (here / "bin" / "certbot").chmod(0o755)

    def settings(self, renew_days: int = 30, reload: str = "echo reloaded") -> None:
        (self.here / "etc" / "settings").write_text(f"renew_days={renew_days}\nreload='{reload}'\n")

    def want(self, *lines: str) -> None:
        (self.here / "etc" / "certificates").write_text("".join(f"{line}\n" for line in lines))

    def run(self, *options: str, **environment: str) -> tuple[int, list[str]]:
        path = f"{self.here / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", self.program, *options],
            env={"PATH": path, "HERE": str(self.here), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    def due(self) -> list[str]:
        return self.run("--due")[1]

    def asked(self) -> list[str]:
        return (self.here / "asked").read_text().splitlines()


SHOP = "shop https://ca/dir ecdsa shop.example.com www.example.com"
BLOG = "blog https://ca/dir ecdsa blog.example.com"
BAD = "bad https://ca/dir ecdsa bad.example.com"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_is_due_is_asked_for_once(host: Host) -> None:
    host.want(BLOG, SHOP)
    host.live.mkdir(parents=True)
    (host.live / "shop.pem").symlink_to("/etc/hostname")  # a stand-in
    assert host.due() == ["blog", "shop"]
    assert host.run() == (0, ["got: blog", "got: shop", "reloaded"])
    assert "--cert-name shop --key-type ecdsa" in host.asked()[1]
    assert host.asked()[1].endswith("-d shop.example.com -d www.example.com")
    for name in ("blog", "shop"):
        file = host.live / f"{name}.pem"
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text().count("-----BEGIN") == 2
    assert host.due() == []
    assert host.run() == (0, [])
    assert len(host.asked()) == 2


@pytest.mark.parametrize(
    "changed",
    [
        SHOP.replace("www.", "shop2."),
        SHOP.replace("https://ca/", "https://other/"),
        SHOP.replace("ecdsa", "rsa"),
    ],
)
def test_another_purpose_is_another_certificate(host: Host, changed: str) -> None:
    host.want(SHOP)
    host.run()
    host.want(changed)
    assert host.due() == ["shop"]
    assert host.run() == (0, ["got: shop", "reloaded"])


@pytest.mark.parametrize(
    ("days", "renew_days", "due"), [(90, 30, False), (29, 30, False), (90, 80, False), (1, 30, False), (90, 10, False)]
)
def test_new_ones_are_not_due_however_short_they_live(host: Host, days: int, renew_days: int, due: bool) -> None:
    host.settings(renew_days)
    host.want(SHOP)
    host.run(DAYS=str(days))
    assert bool(host.due()) is due


def test_one_that_ends_soon_is_renewed(host: Host) -> None:
    host.want(SHOP)
    host.run()
    (host.here / "bin" / "date").write_text(
        f'#!/bin/sh\n[ $# = 1 ] && echo {int(time.time()) + 61 * 86400} || exec /bin/date "$@"\n'
    )
    (host.here / "bin" / "date").chmod(0o755)
    assert host.due() == ["shop"]


def test_one_that_fails_stops_no_other_and_is_left_in_peace(host: Host) -> None:
    host.want(SHOP)
    host.run()
    before = (host.live / "shop.pem").read_text()
    host.want(BAD, BLOG, SHOP.replace("www.", "bad."))
    code, said = host.run()
    assert code == 3
    assert [line.partition(": ")[0] for line in said] == ["missed", "got", "missed", "reloaded"]
    assert "Detail: nobody answers there" in said[0]
    assert (host.live / "shop.pem").read_text() == before
    assert host.due() == []  # failed a moment ago
    asked = len(host.asked())
    code, said = host.run()
    assert (code, len(host.asked())) == (3, asked)
    assert "failed less than 15 minutes ago" in said[0]
    long_ago = time.time() - 1000
    os.utime(host.here / "lib" / "acme" / "failed" / "bad", (long_ago, long_ago))
    assert host.due() == ["bad"]
    host.want(BAD.replace("bad.", "good."), BLOG, SHOP)
    assert host.due() == ["bad"]  # something else is asked for
    assert host.run() == (0, ["got: bad", "reloaded"])
    assert host.due() == []


def test_one_that_is_not_wanted_goes(host: Host) -> None:
    host.want(BLOG, SHOP)
    host.run()
    host.want(SHOP)
    assert host.due() == ["blog"]
    assert host.run() == (0, ["reloaded", "removed: blog"])
    assert not (host.live / "blog.pem").exists()
    assert not (host.here / "lib" / "acme" / "certbot" / "live" / "blog").exists()
    assert host.due() == []


def test_one_that_is_still_served_stays(host: Host) -> None:
    host.want(BLOG, SHOP)
    host.run()
    host.settings(reload=f"test -e {host.live}/blog.pem")
    host.want(SHOP.replace("www.", "shop2."))
    code, said = host.run()
    assert (code, said[0]) == (3, "got: shop")
    assert said[1].startswith("missed: blog: is not wanted any more, but the web server still asks for it")
    assert len(said) == 2
    assert (host.live / "blog.pem").exists()
    assert host.due() == ["blog"]
    (host.live / "blog.pem").rename(host.live / ".blog.going")  # killed in the middle
    assert host.run()[0] == 3
    assert (host.live / "blog.pem").exists()


def test_a_reload_that_failed_is_made_up_for(host: Host) -> None:
    host.settings(reload="false")
    host.want(SHOP)
    code, said = host.run()
    assert (code, said[0]) == (3, "got: shop")
    assert "could not take up its new certificates" in said[1]
    assert host.due() == ["reload"]
    host.settings()
    assert host.run() == (0, ["reloaded"])
    assert host.due() == []


def test_broken_file_is_replaced(host: Host) -> None:
    host.want(SHOP)
    host.run()
    (host.live / "shop.pem").write_text(SHOP.partition(" ")[2] + "\nno certificate\n")
    run = subprocess.run(
        ["sh", host.program, "--due"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert run.stdout == "shop\n"


def test_nothing_is_wanted_any_more(host: Host) -> None:
    """The list is an empty line then."""
    host.want(SHOP)
    host.run()
    host.want("")
    assert host.due() == ["shop"]
    assert host.run() == (0, ["reloaded", "removed: shop"])
    assert host.due() == []
    assert list(host.live.iterdir()) == []
