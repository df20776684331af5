"""nginx from a repository of the shape of that of nginx.org, which package.sh makes on the host."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from probes import fetch, thorough
from runs import each
from serving import is_refused, where

KEYS = """
set -e
apt-get install -y -q gnupg >/dev/null
rm -rf /root/keys; install -d -m 0700 /root/keys; export GNUPGHOME=/root/keys
gpg --batch --quiet --passphrase '' --quick-generate-key packages@example.com rsa2048 sign never
gpg --batch --armor --export-secret-keys
gpg --batch --armor --export
gpg --batch --with-colons --list-keys
"""
SERVE = "systemd-run --unit=repository python3 -m http.server --bind 127.0.0.1 --directory /srv/repository 8123"
OTHER = "0123456789ABCDEF0123456789ABCDEF01234567"


@pytest.fixture(scope="module")
def repository(hosts):
    """Variables of the role for a repository on each host, all signed by one key."""
    made = hosts[0].check_output("sh -c %s", KEYS)
    secret, public = re.findall(r"-----BEGIN PGP [^-]+-----.*?-----END PGP [^-]+-----", made, re.DOTALL)
    source = (Path(__file__).parents[1] / "package.sh").read_text()
    for host in hosts:
        host.check_output(
            "apt-get install -y -q gnupg >/dev/null; umask 077; printf '%%s\n' %s > /root/signing.asc", secret
        )
        suite = host.check_output(". /etc/os-release; echo $VERSION_CODENAME")
        host.check_output("sh -c %s package.sh %s", source, suite)
        host.check_output(SERVE)
    yield {
        "nginx_package": "nginx.org",
        "nginx_repository": "http://127.0.0.1:8123",
        "nginx_repository_key": public,
        "nginx_repository_fingerprints": [re.search(r"(?m)^fpr:+([0-9A-F]{40}):", made)[1]],
    }
    for host in hosts:
        host.run(
            "systemctl stop repository; rm -rf /srv/repository /root/keys /root/signing /root/signing.asc /root/debs"
        )


def version(host):
    return host.run("dpkg-query -W -f '${db:Status-Status} ${Version}' nginx").stdout


def remove(hosts):
    for host in hosts:
        host.check_output("DEBIAN_FRONTEND=noninteractive apt-get remove -y -q nginx nginx-common")


@thorough
def test_from_the_distribution_to_the_repository_and_back(hosts, play, repository):
    before = each(version, hosts)
    for said in play(**repository).refusals():
        assert "is that of distribution, but nginx_package is nginx.org; nothing was changed" in said
    assert each(version, hosts) == before
    try:
        remove(hosts)
        # a key that is not one of those that are known signs nothing
        for said in play(**{**repository, "nginx_repository_fingerprints": [OTHER]}).refusals():
            assert "127.0.0.1:8123" in said
        assert not any(text.startswith("installed") for text in each(version, hosts))

        assert min(play(**repository).changes()) >= 2
        for host in hosts:
            assert version(host) == "installed 9.9.9-1~test"
            assert fetch(where(host), "shop.example.com", tls=True).status == 200
            assert fetch(where(host), "cached.example.com").headers["x-cache-status"] == "MISS"
            assert is_refused(where(host), "localhost")  # its welcome page
            assert host.service("nginx").is_enabled
            host.check_output("logrotate --force /etc/logrotate.d/nginx")
            assert host.file("/var/log/nginx/shop.access.log").user == "www-data"
            # nothing else comes from there
            assert "990" in host.check_output("apt-cache policy nginx")
            assert re.search(r"-1 http://127.0.0.1:8123", host.check_output("apt-cache policy"))
        assert play(**repository).changes() == [0, 0]
        for said in play().refusals():
            assert "is that of nginx.org, but nginx_package is distribution" in said
    finally:
        with contextlib.suppress(AssertionError):
            remove(hosts)
        assert min(play().changes()) >= 2
    assert each(version, hosts) == before
    for host in hosts:
        assert fetch(where(host), "shop.example.com", tls=True).status == 200
        assert host.check_output("find /etc/apt -name '*wsgi-fleet*'") == ""
