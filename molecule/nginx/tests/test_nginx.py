"""What the sites answer, from outside and from the host itself, and what runs of the role do to a serving nginx."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from probes import ROOT, connects, fetch, run_playbook, wait_until

CERTIFICATE = ROOT / ".cache" / "nginx" / "certificate.pem"
KEY = ROOT / ".cache" / "nginx" / "key.pem"
NEW = {
    "name": "new",
    "server_names": ["new.example.com"],
    "upstream": {"servers": [{"address": "127.0.0.1:9101"}]},
}
SSH = "-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"


@pytest.fixture
def address(host):
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture
def play(host):
    """Run the role once more on this host, with other variables."""
    inventories = [ROOT / "molecule" / "shared" / "inventory", Path(__file__).parents[1] / "inventory"]

    def run(*arguments, **variables):
        variables["role_under_test"] = "nginx"
        return run_playbook(
            "molecule/shared/converge.yml",
            *("--limit", host.backend.host, "--extra-vars", json.dumps(variables), *arguments),
            inventories=[*inventories, Path(host.backend.ansible_inventory)],
            ANSIBLE_HOST_KEY_CHECKING="false",
            ANSIBLE_INJECT_FACT_VARS="false",
            ANSIBLE_PIPELINING="true",
            ANSIBLE_SSH_ARGS=SSH,
        )

    return run


@pytest.fixture
def restored(play):
    """The scenario's own state comes back afterwards, whatever the test left."""
    yield
    done(play())


def done(run):
    """The run succeeded; its number of changes."""
    assert run.returncode == 0, run.stdout + run.stderr
    return int(re.search(r"changed=(\d+)", run.stdout)[1])


def refused(run):
    """The run failed; what it said."""
    assert run.returncode == 2, run.stdout + run.stderr
    return " ".join((run.stdout + run.stderr).split())


def asked(answer):
    """What a backend says it was asked."""
    assert answer.status == 200, answer
    return json.loads(answer.body)


def inside(host, port, name, path="/", address="127.0.0.1", **headers):
    """What a backend says it was asked, when the host itself asks nginx."""
    program = (
        "import http.client, json, sys; address, port, name, path, headers = json.loads(sys.argv[1]);"
        "connection = http.client.HTTPConnection(address, port, timeout=5);"
        "connection.request('GET', path, headers={'Host': name, **headers});"
        "print(connection.getresponse().read().decode())"
    )
    return json.loads(host.check_output("python3 -c %s %s", program, json.dumps([address, port, name, path, headers])))


def certificate(address, name, **kwargs):
    """The certificate that is served, and the connection's TLS version and application protocol."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    for option, value in kwargs.items():
        setattr(context, option, value)
    with socket.create_connection((address, 443), 5) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
        return pem.strip(), tls.version(), tls.selected_alpn_protocol()


def master(host):
    return host.check_output("systemctl show -P MainPID nginx")


def digest(host):
    return inside_text(host, "/config")


def inside_text(host, path):
    program = "import sys, urllib.request as r; print(r.urlopen('http://127.0.0.1:8079' + sys.argv[1]).read().decode())"
    return host.check_output("python3 -c %s %s", program, path)


def is_refused(address, name, **kwargs):
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(address, name, **kwargs)
    return True


# what the sites answer


def test_nginx_finds_nothing_wrong_or_outdated(host):
    result = host.run("nginx -t")
    assert result.rc == 0
    assert "warn" not in result.stderr


def test_runs_now_and_at_boot_with_many_files(host):
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled
    workers = host.process.filter(user="www-data", comm="nginx")
    assert workers
    assert "client_body_timeout 61s;" in host.check_output("nginx -T")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("name", ["shop.example.com", "a.shop.example.com", "SHOP.example.com"])
def test_serves_a_site(address, name, tls):
    seen = asked(fetch(address, name, "/a%20b?c=%2F&d", tls=tls))
    assert seen["backend"] == "socket"
    assert seen["path"] == "/a%20b?c=%2F&d"
    assert seen["headers"]["host"].lower() == name.lower()
    assert seen["headers"]["x-forwarded-proto"] == ("https" if tls else "http")


def test_serves_over_ipv6(host):
    assert inside(host, 80, "shop.example.com", address="::1")["headers"]["x-forwarded-for"] == "::1"


@pytest.mark.parametrize("name", ["other.example.com", "192.0.2.1", "localhost", "example.com"])
@pytest.mark.parametrize("port", [80, 8000, 8080])
def test_unknown_names_are_refused(address, name, port):
    assert is_refused(address, name, port=port)


@pytest.mark.parametrize("name", ["other.example.com", None], ids=["other", "none"])
def test_unknown_names_are_refused_before_the_handshake(address, name):
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        certificate(address, name)


def test_unknown_names_are_refused_after_the_handshake(address):
    assert is_refused(address, "shop.example.com", tls=True, headers={"Host": "other.example.com"})


def test_a_site_answers_on_its_own_port_only(address):
    assert is_refused(address, "behind.example.com", port=80)
    assert fetch(address, "behind.example.com", port=8000).status == 200


FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Real-IP": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "Forwarded": "for=203.0.113.9;proto=https",
    "Proxy": "http://evil.example",
}


@pytest.mark.parametrize(("name", "port"), [("shop.example.com", 80), ("behind.example.com", 8000)])
def test_a_client_cannot_forge_who_it_is(address, name, port):
    headers = asked(fetch(address, name, port=port, headers=FORGED))["headers"]
    with socket.create_connection((address, port)) as own:
        client = own.getsockname()[0]
    assert {key: value for key, value in headers.items() if key.startswith("x-") or key in ("forwarded", "proxy")} == {
        "x-forwarded-for": client,
        "x-real-ip": client,
        "x-forwarded-proto": "http",
        "x-forwarded-host": name,
    }


@pytest.mark.parametrize(
    ("sent", "client", "scheme"),
    [
        ({"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}, "203.0.113.9", "https"),
        ({"X-Forwarded-For": "2001:db8::9", "X-Forwarded-Proto": "http"}, "2001:db8::9", "http"),
        # what comes before the last address that is not trusted is the client's own word
        ({"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 127.0.0.1"}, "203.0.113.9", "http"),
        ({"X-Forwarded-Proto": "gopher"}, "127.0.0.1", "http"),
        ({}, "127.0.0.1", "http"),
    ],
)
def test_a_trusted_proxy_is_believed(host, sent, client, scheme):
    headers = inside(host, 8000, "behind.example.com", **sent)["headers"]
    assert (headers["x-forwarded-for"], headers["x-real-ip"]) == (client, client)
    assert headers["x-forwarded-proto"] == scheme


def test_the_port_in_the_host_is_kept(address):
    seen = asked(
        fetch(address, "other-port.example.com", port=8443, tls=True, headers={"Host": "other-port.example.com:8443"})
    )
    assert seen["headers"]["host"] == "other-port.example.com:8443"


def test_a_request_cannot_name_two_hosts(address):
    with socket.create_connection((address, 80), 5) as client:
        client.sendall(b"GET http://shop.example.com/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b" 200 OK" in answer
    assert b"evil.example" not in answer


@pytest.mark.parametrize(
    ("name", "port", "target"),
    [
        ("secure.example.com", 80, "https://secure.example.com/a?b=c"),
        ("other-port.example.com", 8080, "https://other-port.example.com:8443/a?b=c"),
    ],
)
def test_http_is_sent_to_https(address, name, port, target):
    answer = fetch(address, name, "/a?b=c", port=port, method="POST", body=b"kept")
    assert (answer.status, answer.headers["location"]) == (308, target)


def test_self_signed_certificate_has_the_names(address):
    pem, _, _ = certificate(address, "shop.example.com")
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=pem, check=True, capture_output=True, text=True
    ).stdout
    names = set(re.findall(r"DNS:([^,\s]+)", text))
    assert {"shop.example.com", "*.shop.example.com", "api.example.com"} <= names
    assert "secure.example.com" not in names
    assert "behind.example.com" not in names


def test_given_certificate_is_served(address):
    assert certificate(address, "secure.example.com")[0] == CERTIFICATE.read_text().strip()


@pytest.mark.parametrize("path", ["/etc/ssl/wsgi-fleet/self-signed.pem", "/etc/nginx/wsgi-fleet/tls/secure.key"])
def test_keys_are_for_root_only(host, path):
    file = host.file(path)
    assert (file.user, file.mode) == ("root", 0o600)


def test_tls_versions(address):
    assert certificate(address, "shop.example.com")[1] == "TLSv1.3"
    older = certificate(address, "shop.example.com", maximum_version=ssl.TLSVersion.TLSv1_2)
    assert older[1] == "TLSv1.2"
    oldest = subprocess.run(
        ["openssl", "s_client", "-connect", f"{address}:443", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert oldest.returncode == 1
    assert "protocol version" in oldest.stderr


def test_http2(host, address):
    assert certificate(address, "shop.example.com")[2] == "h2"
    by_server = "1.22" not in host.run("nginx -v").stderr
    # before 1.25.1 it belongs to the port
    assert certificate(address, "secure.example.com")[2] == ("http/1.1" if by_server else "h2")
    answer = subprocess.run(
        [
            "curl",
            "-sk",
            "--http2",
            "--connect-to",
            f"::{address}:",
            "-w",
            "\n%{http_version}",
            "https://shop.example.com/",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert answer[1] == "2"
    assert json.loads(answer[0])["headers"]["host"] == "shop.example.com"


def test_body_size(address):
    assert asked(fetch(address, "secure.example.com", tls=True, method="POST", body=b"x" * 1000))["size"] == 1000
    assert fetch(address, "secure.example.com", tls=True, method="POST", body=b"x" * 1100).status == 413
    assert asked(fetch(address, "shop.example.com", method="POST", body=b"x" * 5_000_000))["size"] == 5_000_000
    assert (
        fetch(address, "shop.example.com", method="POST", body=b"x", headers={"Content-Length": "99999999"}).status
        == 413
    )


def test_large_cookies_pass(address):
    assert len(fetch(address, "shop.example.com", "/cookies").headers["set-cookie"]) > 12000


def backends(address, name, count):
    return Counter(asked(fetch(address, name))["backend"] for _ in range(count))


def test_requests_spread(address):
    assert backends(address, "balanced.example.com", 20) == {"one": 10, "two": 10}


def test_requests_spread_by_weight(address):
    assert backends(address, "weighted.example.com", 20) == {"one": 15, "two": 5}


def test_backup_takes_over(address):
    assert backends(address, "spare.example.com", 6) == {"two": 6}


def test_a_failing_server_is_passed_over(address):
    assert backends(address, "retried.example.com", 12) == {"one": 12}


def test_what_changes_things_is_sent_once(host, address):
    path = f"/once-{time.monotonic_ns()}"
    statuses = Counter(fetch(address, "retried.example.com", path, method="POST").status for _ in range(12))
    assert statuses[502] >= 3
    assert statuses[200] + statuses[502] == 12
    # the one that answered 502 was the last one asked; only one that took no connection was passed over
    lines = host.check_output("grep -F %s /var/log/nginx/retried.access.log", path).splitlines()
    assert len(lines) == 12
    assert all(re.search(r'upstream_addr="(127.0.0.1:9199, )?127.0.0.1:910[13]"', line) for line in lines)


def test_a_slow_answer_is_not_asked_for_again(address):
    answer = fetch(address, "slow.example.com", "/slow?3")
    assert answer.status == 504
    assert answer.seconds < 1.9


def test_error_page(address):
    answer = fetch(address, "down.example.com", "/any")
    assert (answer.status, answer.headers["content-type"]) == (502, "text/html")
    assert answer.text == "<p>Soon back: ”down“ {{ 100% </p>"
    assert fetch(address, "down.example.com", "/.wsgi-fleet/pages/502-504.html").status == 404


def test_the_applications_own_errors_pass(address):
    answer = fetch(address, "shop.example.com", "/status?503")
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
    assert json.loads(answer.body)["backend"] == "socket"


def cors(answer):
    """The headers that tell browsers what other origins may do."""
    return {key[15:]: value for key, value in answer.headers.items() if key.startswith("access-control-")}


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000"])
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/status?404", 404)])
def test_cors_allowed_origin(address, origin, path, status):
    answer = fetch(address, "api.example.com", path, headers={"Origin": origin})
    assert answer.status == status
    assert cors(answer) == {"allow-origin": origin, "allow-credentials": "true", "expose-headers": "X-Total"}
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null", None]
)
def test_cors_other_origins(address, origin):
    headers = {"Origin": origin} if origin else {}
    answer = fetch(address, "api.example.com", headers=headers)
    assert (answer.status, cors(answer)) == (200, {})
    assert "Origin" in answer.headers["vary"]
    preflight = {**headers, "Access-Control-Request-Method": "PUT"}
    # not nginx's to answer: the application is asked
    answer = fetch(address, "api.example.com", method="OPTIONS", headers=preflight)
    assert (asked(answer)["method"], cors(answer)) == ("OPTIONS", {})


def test_cors_preflight(address):
    headers = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}
    answer = fetch(address, "api.example.com", "/thing", method="OPTIONS", headers=headers)
    assert (answer.status, answer.body) == (204, b"")
    assert cors(answer) == {
        "allow-origin": "https://app.example.com",
        "allow-credentials": "true",
        "allow-methods": "GET, PUT",
        "allow-headers": "X-Token, Content-Type",
        "max-age": "60",
    }
    assert "Origin" in answer.headers["vary"]


def test_cors_options_that_is_no_preflight(address):
    answer = fetch(address, "api.example.com", method="OPTIONS", headers={"Origin": "https://app.example.com"})
    assert asked(answer)["method"] == "OPTIONS"


def test_cors_for_everybody(address):
    assert cors(fetch(address, "public.example.com", headers={"Origin": "https://any.example"})) == {
        "allow-origin": "*"
    }
    assert cors(fetch(address, "public.example.com")) == {}


def test_cors_is_the_applications_when_not_said(address):
    assert cors(fetch(address, "shop.example.com")) == {"allow-origin": "https://of-the-app.example"}


def test_compression(address):
    headers = {"Accept-Encoding": "gzip"}
    big = fetch(address, "shop.example.com", "/big", headers=headers)
    assert big.headers["content-encoding"] == "gzip"
    assert len(big.body) < 1000
    assert "Accept-Encoding" in big.headers["vary"]
    for path in ("/", "/image"):
        assert "content-encoding" not in fetch(address, "shop.example.com", path, headers=headers).headers
    assert "content-encoding" not in fetch(address, "shop.example.com", "/big").headers


def test_the_version_is_not_told(address):
    assert fetch(address, "down.example.com").headers["server"] == "nginx"


def test_log_tells_the_times_and_is_rotated(host, address):
    log = "/var/log/nginx/shop.access.log"
    fetch(address, "shop.example.com", "/logged-before")
    line = host.check_output("grep logged-before %s", log)
    assert re.search(r' host=shop.example.com .*request_time=\d+\.\d+ .*upstream_addr="unix:/run/backend.sock"', line)
    assert re.search(r'upstream_response_time="\d+\.\d+"', line)
    host.check_output("logrotate --force /etc/logrotate.d/nginx")
    wait_until(
        lambda: (fetch(address, "shop.example.com", "/logged-after"), "logged-after" in host.file(log).content_string)[
            1
        ]
    )
    assert "logged-before" not in host.file(log).content_string
    assert "logged-before" in host.file(log + ".1").content_string
    assert {host.file(path).mode for path in (log, log + ".1")} == {0o640}


def test_errors_are_logged_by_site(host, address):
    path = f"/refused-{time.monotonic_ns()}"
    fetch(address, "down.example.com", path)
    log = host.file("/var/log/nginx/down.error.log")
    assert re.search(rf"Connection refused.*{path}", log.content_string)
    assert log.mode == 0o640


def test_status_is_for_the_host_itself(host, address):
    assert "Active connections:" in inside_text(host, "/status")
    assert re.fullmatch(r"[0-9a-f]{64}", digest(host).strip())
    assert connects(address, 8079) == "refused"


# what runs of the role do


def test_a_run_without_changes_is_short(play):
    run = play()
    assert done(run) == 0
    # three are not the role's: facts, the inclusion of the role, the check of its variables
    assert int(re.search(r" ok=(\d+)", run.stdout)[1]) - 3 <= 7


def test_a_site_comes_and_goes_without_a_restart(host, address, play):
    pid = master(host)
    served, _, _ = certificate(address, "shop.example.com")

    told = play("--check", "--diff", more_sites=[NEW])
    assert done(told) >= 2
    assert "server_name new.example.com;" in told.stdout
    assert is_refused(address, "new.example.com")
    assert certificate(address, "shop.example.com")[0] == served

    assert done(play(more_sites=[NEW])) >= 2
    assert fetch(address, "new.example.com").status == 200
    assert certificate(address, "new.example.com")[0] != served
    assert done(play(more_sites=[NEW])) == 0

    assert done(play()) >= 2
    assert is_refused(address, "new.example.com")
    assert not host.file("/etc/nginx/sites-enabled/new.conf").exists
    assert master(host) == pid


BAD = [
    {
        "(new): server_names: no name is no host name; give one like": {"server_names": ["no name"]},
        "shop.example.com on port 80 is given twice, first for shop": {"server_names": ["shop.example.com"]},
        "(new): cors: credentials with the origin *": {"cors": {"origins": ["*"], "credentials": True}},
    },
    {"server_nmaes": {"server_nmaes": ["a.example.com"]}, "http_port": {"http_port": "eighty"}},
]


@pytest.mark.parametrize("changes", BAD, ids=["values", "keys and types"])
def test_bad_records_are_refused_before_anything_changes(host, play, changes):
    listing = "find /etc/nginx /etc/ssl/wsgi-fleet /var/log/nginx -printf '%p %i %T@\\n' | grep -v '\\.log ' | sort"
    before = host.check_output(listing)
    said = refused(play(more_sites=[{**NEW, **change} for change in changes.values()]))
    assert [message for message in changes if message not in said] == []
    assert host.check_output(listing) == before


@contextlib.contextmanager
def file_on(host, path, content):
    host.check_output("mkdir -p $(dirname %s) && printf %%s %s > %s", path, content, path)
    try:
        yield
    finally:
        host.check_output("rm -f %s", path)


def test_files_of_others_stay_and_are_served(host, address, play):
    path = "/etc/nginx/sites-enabled/theirs"
    with file_on(host, path, "server { listen 80; server_name theirs.example.com; return 200 theirs; }"):
        assert done(play(more_sites=[NEW])) >= 2
        assert fetch(address, "theirs.example.com").text == "theirs"
        assert host.file(path).exists
        assert done(play()) >= 2
        assert fetch(address, "theirs.example.com").text == "theirs"


@pytest.mark.usefixtures("restored")
def test_a_broken_file_of_others_stops_the_change(host, address, play):
    before = digest(host)
    with file_on(host, "/etc/nginx/conf.d/theirs.conf", "no_such_directive on;"):
        said = refused(play(more_sites=[NEW]))
        assert "/etc/nginx/conf.d/theirs.conf" in said
        assert "no_such_directive" in said
        assert not host.file("/etc/nginx/sites-enabled/new.conf").exists
        assert fetch(address, "shop.example.com").status == 200
        assert digest(host) == before


def test_a_certificate_that_is_none_stops_the_change(host, address, play):
    tls = {"mode": "files", "certificate": CERTIFICATE.read_text(), "key": "no key"}
    said = refused(play(more_sites=[{**NEW, "tls": tls}]))
    assert "/etc/nginx/wsgi-fleet/tls/new.key" in said
    assert fetch(address, "secure.example.com", tls=True).status == 200


@pytest.mark.usefixtures("restored")
def test_a_key_is_not_shown(host, play):
    key = KEY.read_text()
    tls = {"mode": "files", "certificate": CERTIFICATE.read_text(), "key": key}
    # as a variable of the inventory: what is on a command line is no secret
    with file_on_controller({"more_sites": [{**NEW, "tls": tls}]}) as path:
        for mode in (["--check"], []):
            run = play("-vvv", "--diff", "--extra-vars", f"@{path}", *mode)
            assert done(run) >= 2
            assert not [line for line in key.splitlines()[1:-1] if line in run.stdout + run.stderr]
    assert host.file("/etc/nginx/wsgi-fleet/tls/new.key").mode == 0o600


@contextlib.contextmanager
def file_on_controller(variables):
    path = ROOT / ".cache" / "nginx" / "variables.json"
    path.write_text(json.dumps(variables))
    path.chmod(0o600)
    try:
        yield path
    finally:
        path.unlink()


@pytest.mark.usefixtures("restored")
def test_a_reload_that_did_not_happen_is_made_up_for(host, address, play):
    """As when a run is killed after the files are in place and before nginx is told."""
    pid, before = master(host), digest(host)
    drop_in = "/etc/systemd/system/nginx.service.d/test.conf"
    with file_on(host, drop_in, "[Service]\nExecReload=\nExecReload=/bin/false\n"):
        host.check_output("systemctl daemon-reload")
        assert "does not run the configuration" in refused(play(more_sites=[NEW]))
        assert digest(host) == before
        assert is_refused(address, "new.example.com")
    host.check_output("systemctl daemon-reload")
    assert done(play("--check", more_sites=[NEW])) == 1
    assert done(play(more_sites=[NEW])) == 1
    assert fetch(address, "new.example.com").status == 200
    assert master(host) == pid


@pytest.mark.usefixtures("restored")
def test_a_configuration_that_nginx_does_not_take_up_is_told(host, address, play):
    """Its check passes a port that somebody else has; only the log tells."""
    before = digest(host)
    said = refused(play(more_sites=[{**NEW, "http_port": 22}], nginx_reload_timeout=3))
    assert "does not run the configuration" in said
    assert re.search(r"bind\(\) to \S+:22 failed", said)
    assert digest(host) == before
    assert fetch(address, "shop.example.com").status == 200


def test_a_stopped_nginx_is_started(host, address, play):
    host.check_output("systemctl disable --now nginx")
    assert done(play("--check")) == 1
    assert not host.service("nginx").is_running
    assert done(play()) == 1
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled
    assert fetch(address, "shop.example.com").status == 200


def test_a_new_self_signed_certificate_is_served(host, address, play):
    pid, before = master(host), certificate(address, "shop.example.com")[0]
    host.check_output("rm /etc/ssl/wsgi-fleet/self-signed.pem")
    assert done(play()) >= 2
    assert certificate(address, "shop.example.com")[0] != before
    assert master(host) == pid


@pytest.mark.usefixtures("restored")
def test_a_host_without_ipv6(host, address, play):
    addresses = re.findall(r"inet6 (\S+)", host.check_output("ip -6 address show dev eth0"))
    host.check_output("ip -6 address flush dev eth0 && ip -6 address flush dev lo")
    try:
        assert done(play()) >= 2
        assert "[::]" not in host.check_output("ss -Hltn 'sport = 80 or sport = 443'")
        assert fetch(address, "shop.example.com").status == 200
    finally:
        for device, name in [("lo", "::1/128"), *(("eth0", name) for name in addresses)]:
            host.check_output("ip -6 address add %s dev %s", name, device)
    assert done(play()) >= 2
    assert "[::]:80" in host.check_output("ss -Hltn 'sport = 80'")


@pytest.mark.usefixtures("restored")
def test_no_site_at_all(host, address, play):
    with file_on_controller({"sites": []}) as path:
        assert done(play("--extra-vars", f"@{path}")) >= 2
    assert connects(address, 80) == connects(address, 443) == "refused"
    assert digest(host)
