"""What role nginx writes and refuses, rendered as Ansible renders it. What nginx makes of it is molecule's part."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.wsgi.fleet.plugins.filter.maintenance_change import maintenance_change
from ansible_collections.wsgi.fleet.plugins.filter.nginx_view import nginx_ports, nginx_view
from ansible_collections.wsgi.fleet.plugins.filter.with_defaults import with_defaults

ROLE = Path(__file__).parents[3] / "roles" / "nginx"
SITE: dict[str, Any] = {
    "name": "shop",
    "server_names": ["shop.example.com"],
    "upstream": {"servers": [{"address": "unix:/run/shop.sock"}]},
}
LOOK = {"changed": False, "installed": True, "version": "1.26.3", "ipv6": True, "certificate": "AB12"}
LOOK |= {"openssl": "3.0.17", "stand_ins": False, "enabled": True, "running": "", "maintenance": ""}
LOOK |= {"modules": [], "caches": [], "resolvers": ["192.0.2.53"], "found": False}


def load(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


def options() -> dict[str, Any]:
    return load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def trusted(value: Any) -> Any:
    """Values as Ansible loads them from a role's files: their templates are live."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def templar(sites: list[dict[str, Any]], look: dict[str, Any] | None = None, **variables: Any) -> Templar:
    base = {
        "ansible_managed": "managed",
        "ansible_facts": {"os_family": "Debian"},
        "ansible_check_mode": False,
        "ansible_search_path": [str(ROLE)],
        "tree_digest": "d1635",
        "__nginx_look": {"stdout": json.dumps({**LOOK, **(look or {})})},
    }
    files = {**load("defaults/main.yml"), **load("vars/main.yml")}
    made = Templar(loader=DataLoader(), variables={**base, **trusted(files), "nginx_sites": sites, **variables})
    # only Ansible itself finds a collection's filter
    ours = {"nginx_view": nginx_view, "nginx_ports": nginx_ports, "with_defaults": with_defaults}
    made._engine.environment.filters.update({f"wsgi.fleet.{name}": filter_ for name, filter_ in ours.items()})
    return made


def evaluate(expression: str, *args: Any, **kwargs: Any) -> Any:
    return templar(*args, **kwargs).template(trust_as_template("{{ " + expression + " }}"))


def render(template: str, *args: Any, **kwargs: Any) -> str:
    text = (ROLE / "templates" / template).read_text()
    engine = templar(*args, **kwargs)
    rendered = engine.template(trust_as_template(text), escape_backslashes=False, overrides={"trim_blocks": True})
    return str(rendered or "")


def render_file(path: str, sites: list[dict[str, Any]], look: dict[str, Any] | None = None) -> str:
    """One of nginx's files, the way the tree action gets it."""
    (file,) = [file for file in evaluate("__nginx_files", sites, look) if file["path"] == path]
    return render(file["template"], [], look, **file["vars"])


def render_site(changes: dict[str, Any] | None = None, look: dict[str, Any] | None = None) -> str:
    """The file of one site."""
    return render_file("sites-enabled/shop.conf", [{**SITE, **(changes or {})}], look)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_defaults_of_a_site_are_those_of_the_specification() -> None:
    def defaults(spec: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, option in spec.items():
            if "options" in option and option["type"] == "dict":
                found[name] = defaults(option["options"])
            elif "default" in option:
                found[name] = option["default"]
        return found

    assert load("vars/main.yml")["__nginx_site_defaults"] == defaults(options()["nginx_sites"]["options"])


def test_defaults_of_a_server_are_those_of_the_specification() -> None:
    spec = options()["nginx_sites"]["options"]["upstream"]["options"]["servers"]["options"]
    server = {"address": "192.0.2.1:80", **{name: o["default"] for name, o in spec.items() if "default" in o}}
    written = {"servers": [server]}
    assert render_site({"upstream": written}) == render_site({"upstream": {"servers": [{"address": "192.0.2.1:80"}]}})


def test_records_are_checked_with_their_defaults() -> None:
    """What is wrong, and how it is said: tests/unit/plugins/test_nginx_problems.py."""
    own = {
        "nginx_status_port": 443,
        "nginx_self_signed_days": 1,
        "nginx_log_rotate": {"keep": 0, "max_size": "much"},
        "nginx_sites": [{**SITE, "client_max_body_size": "x"}],
    }
    given = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    # Ansible itself, for it alone finds a collection's filter; without facts
    argv = [
        str(Path(sys.executable).parent / "ansible"),
        "localhost",
        "-m",
        "ansible.builtin.debug",
        "-a",
        "var=__nginx_problems",
    ]
    argv += [f"--extra-vars=@{path}" for path in given] + [f"--extra-vars={json.dumps(own)}"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROLE.parents[1] / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_CALLBACK_RESULT_FORMAT"] = "json"
    said = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout
    assert json.loads(said.partition("=>")[2])["__nginx_problems"] == [
        "this role knows Debian, not an unknown system: gather facts first",
        "nginx_self_signed_days: 1 is out of range; give 3 to 3650",
        "nginx_log_rotate.keep: 0 is out of range; give 1 to 1000",
        "nginx_log_rotate.max_size: much is no size; give one like 512k, 100m or 1g",
        "nginx_status_port: 443 is a site's port too; give one that no site uses",
        "nginx_sites[0] (shop): client_max_body_size: x is no size; give one like 512k, 10m or 1g",
    ]


def test_a_key_is_secret_and_private() -> None:
    site = {**SITE, "tls": {"mode": "files", "certificate": "CERT\n", "key": "KEY"}}
    files = {file["path"]: file for file in evaluate("__nginx_files", [site])}
    key = {"path": "wsgi-fleet/tls/shop.key", "content": "KEY\n", "mode": "0600", "secret": True}
    assert files["wsgi-fleet/tls/shop.key"] == key
    assert files["wsgi-fleet/tls/shop.crt"] == {"path": "wsgi-fleet/tls/shop.crt", "content": "CERT\n"}
    assert options()["nginx_sites"]["options"]["tls"]["options"]["key"]["no_log"] is True


def test_a_certificate_that_somebody_else_keeps() -> None:
    site = {**SITE, "tls": {"mode": "host_file", "file": "/var/lib/acme/shop.pem"}}
    assert "ssl_certificate_key /var/lib/acme/shop.pem;" in lines(render_site(site))
    assert evaluate("__nginx_self_signed_names", [site]) == ["shop.example.com"]  # for the stand-in
    assert evaluate("__nginx_host_files", [site]) == ["/var/lib/acme/shop.pem"]


def test_a_stand_in_gives_way(tmp_path: Path) -> None:
    file = tmp_path / "live" / "shop.pem"
    assert host(tmp_path, "shop.example.com", mode="check", files=[file])["stand_ins"] is True
    assert not file.is_symlink()
    assert host(tmp_path, "shop.example.com", files=[file])["changed"] is True
    assert "PRIVATE KEY" in file.read_text()
    assert host(tmp_path, "shop.example.com", files=[file])["changed"] is False
    file.unlink()
    file.write_text("theirs")
    assert host(tmp_path, "shop.example.com", files=[file])["changed"] is False
    assert file.read_text() == "theirs"


@pytest.mark.parametrize("redirect", [True, False])
def test_challenges_are_answered_over_http(redirect: bool) -> None:
    given = {"nginx_challenges": {"directory": "/var/lib/acme", "peers": ["192.0.2.2:80"]}}
    site = {**SITE, "https_redirect": redirect}
    [file] = [file for file in evaluate("__nginx_files", [site], **given) if file["path"] == "sites-enabled/shop.conf"]
    text = render(file["template"], [site], **file["vars"], **given)
    assert text.count("include wsgi-fleet/challenges.conf;") == 1
    assert text.index("include wsgi-fleet/challenges.conf;") < text.index("location / {")
    assert "root /var/lib/acme;" in lines(render("challenges.conf.j2", [site], **given))
    assert "server 192.0.2.2:80;" in lines(render("nginx.conf.j2", [site], **given))
    assert "challenge" not in render("nginx.conf.j2", [site])


@pytest.mark.parametrize(
    ("openssl", "curves"),
    [
        ("3.0.17", "X25519:prime256v1:secp384r1"),
        ("3.5.4", "X25519MLKEM768:X25519:prime256v1:secp384r1"),
        ("", "X25519:prime256v1:secp384r1"),
    ],
)
def test_profiles_of_mozilla(openssl: str, curves: str) -> None:
    written = lines(render("nginx.conf.j2", [SITE], {"openssl": openssl}))
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in written
    assert f"ssl_ecdh_curve {curves};" in written
    assert "ssl_session_tickets off;" in written
    modern = lines(render("nginx.conf.j2", [SITE], {"openssl": openssl}, nginx_tls_profile="modern"))
    assert "ssl_protocols TLSv1.3;" in modern
    assert not [line for line in modern if line.startswith("ssl_ciphers")]


@pytest.mark.parametrize(
    ("version", "http2", "listen", "directive"),
    [
        ("1.22.1", True, "listen 443 ssl http2;", []),
        ("1.22.1", False, "listen 443 ssl;", []),
        ("1.25.0", True, "listen 443 ssl http2;", []),
        ("1.25.1", True, "listen 443 ssl;", ["http2 on;"]),
        ("1.26.3", False, "listen 443 ssl;", ["http2 off;"]),
        ("", True, "listen 443 ssl;", ["http2 on;"]),
    ],
)
def test_http2_is_said_as_the_version_wants_it(version: str, http2: bool, listen: str, directive: list[str]) -> None:
    written = lines(render_site({"http2": http2}, {"version": version}))
    assert [line for line in written if line.startswith("listen 443")] == [listen]
    assert [line for line in written if line.startswith("http2")] == directive


@pytest.mark.parametrize("version", ["1.22.1", "1.26.3"])
def test_a_port_has_one_set_of_protocols(version: str) -> None:
    """Nginx warns, or worse, when two servers say different things of one port."""
    sites = [SITE, {**SITE, "name": "old", "server_names": ["old.example.com"], "http2": False}]
    look = {"version": version}
    texts = [render_file("sites-enabled/default", sites, look)]
    for file in evaluate("__nginx_files", sites, look):
        if file["path"].endswith(".conf") and file["path"].startswith("sites-enabled/"):
            texts.append(render(file["template"], sites, look, **file["vars"]))
    listens = [line for text in texts for line in lines(text) if "listen 443" in line]
    said = {line.split(" default_server")[0].rstrip(";") for line in listens}
    assert len(said) == 1


@pytest.mark.parametrize("ipv6", [True, False])
def test_listens_on_ipv6_only_where_there_is_ipv6(ipv6: bool) -> None:
    for text in (render_site({}, {"ipv6": ipv6}), render_file("sites-enabled/default", [SITE], {"ipv6": ipv6})):
        assert ("listen [::]:80" in text) is ipv6
        assert ("listen [::]:443" in text) is ipv6
        assert "listen 80" in text


def test_a_new_certificate_is_a_new_configuration() -> None:
    assert render_file("sites-enabled/default", [SITE]) != render_file(
        "sites-enabled/default", [SITE], {"certificate": "CD34"}
    )


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        ({"balance": "round_robin"}, []),
        ({}, ["least_conn;"]),
        ({"balance": "ip_hash"}, ["ip_hash;"]),
        ({"balance": "random_two"}, ["random two least_conn;"]),
    ],
)
def test_balance(upstream: dict[str, Any], expected: list[str]) -> None:
    written = lines(render_site({"upstream": {**SITE["upstream"], **upstream}}))
    block = written[written.index("upstream shop {") + 2 :]
    assert block[: next(index for index, line in enumerate(block) if line.startswith("server "))] == expected


def test_no_keepalive_when_none_is_wanted() -> None:
    assert "keepalive" not in render_site({"upstream": {**SITE["upstream"], "keepalive": 0}})


@pytest.mark.parametrize(
    ("port", "target"),
    [(443, "return 308 https://$host$request_uri;"), (8443, "return 308 https://$host:8443$request_uri;")],
)
def test_redirect_goes_to_the_port(port: int, target: str) -> None:
    written = lines(render_site({"https_redirect": True, "https_port": port}))
    assert target in written
    assert written.count("listen 80;") == 1


def test_a_bare_off_is_off() -> None:
    """YAML reads it as false."""
    assert render_site({"tls": {"mode": False}}) == render_site({"tls": {"mode": "off"}})
    assert "443" not in render_site({"tls": {"mode": False}})
    assert evaluate("__nginx_self_signed_names", [{**SITE, "tls": {"mode": False}}]) == []


def test_the_switch_is_in_every_site_that_has_one() -> None:
    written = lines(render_site({"maintenance": {"open_paths": ["/healthz", "/a b", "/healthz"]}}))
    assert written.count("if ($wsgi_fleet_maintenance) {") == 1
    assert [line for line in written if line.startswith("location = ")] == [
        'location = "/healthz" {',
        'location = "/a b" {',
        "location = /.wsgi-fleet/maintenance.html {",
    ]
    assert written.count("proxy_pass http://$site_shop_pool;") == 3
    without = render_site({"maintenance": {"switch": False, "open_paths": ["/healthz"], "page": "x"}})
    assert "maintenance" not in without
    assert "wsgi_fleet_site" not in without
    assert "location =" not in without


FOLDERS = [{"path": "/static/", "release": "static"}, {"path": "/media/", "shared": "media"}]


def static_location(path: str, changes: dict[str, Any]) -> list[str]:
    text = render_site({"release": "/srv/shop/current", "static": FOLDERS, **changes})
    return lines(text.partition(f"location {path} {{\n")[2].partition("\n    }\n")[0])


@pytest.mark.parametrize("path", ['"/static/"', '"/media/"'])
def test_static_files_are_closed_with_their_site(path: str) -> None:
    wanted = ["if ($wsgi_fleet_maintenance) {", "error_page 503 /.wsgi-fleet/maintenance.html;", "return 503;", "}"]
    written = static_location(path, {})
    assert written[: len(wanted) + 1] == [
        *wanted,
        f'alias "/srv/shop/{"current/src/static" if "static" in path else "shared/media"}/";',
    ]
    assert "if (" not in " ".join(static_location(path, {"maintenance": {"switch": False}}))
    assert "if ($host != shop.example.com) {" in static_location(path, {"canonical": "shop.example.com"})


def test_refusals_of_static_files_have_the_sites_pages() -> None:
    written = static_location('"/static/"', {"error_pages": [{"codes": [404, 429], "content": "x"}]})
    pages = [line for line in written if line.startswith("error_page 4")]
    # the first that fits counts
    assert pages == ["error_page 404 = @site_shop_static_0;", "error_page 404 429 /.wsgi-fleet/pages/404-429.html;"]


def test_static_files_count_once_for_limits() -> None:
    limits = {"limits": {"requests": [{"rate": "1r/s"}]}}
    assert "limit_req zone=site_shop_site_requests_0;" in static_location('"/static/"', limits)
    assert "limit_req zone=site_shop_site_requests_0;" in static_location('"/media/"', limits)
    assert "limit_" not in " ".join(static_location("@site_shop_static_0", limits))


def test_redirections_say_the_security_headers() -> None:
    text = render_site({"https_redirect": True, "hsts": {"max_age": 9}})
    redirecting = lines(text.partition("server {\n")[2].partition("\n}\n")[0])
    assert "return 308 https://$host$request_uri;" in redirecting
    assert "add_header X-Frame-Options $site_shop_header_2 always;" in redirecting
    assert "add_header Strict-Transport-Security $site_shop_hsts always;" in redirecting
    # nothing of it over plain HTTP
    assert 'map $scheme:$upstream_http_strict_transport_security $site_shop_hsts {\n    default "";\n    https:' in text


@pytest.mark.parametrize("seconds", [0, 300])
def test_a_site_has_its_own_time_for_bodies(seconds: int) -> None:
    written = lines(render_site({"client_body_timeout": seconds, "paths": [{"path": "/a", "client_body_timeout": 7}]}))
    assert [line for line in written if "body_timeout" in line] == [
        *(["client_body_timeout 300s;"] if seconds else []),
        "client_body_timeout 7s;",
    ]


@pytest.mark.parametrize("page", ["", "<p>Closed</p>"])
def test_the_page_is_the_sites_own_or_comes_with_the_switch(page: str) -> None:
    site = {**SITE, "maintenance": {"page": page}}
    files = {file["path"]: file for file in evaluate("__nginx_files", [site])}
    own = "wsgi-fleet/pages/shop/maintenance.html"
    assert files.get(own) == ({"path": own, "content": page} if page else None)
    written = lines(render_site(site))
    assert (f"alias /etc/nginx/{own};" in written) is bool(page)
    assert ("return 503 $wsgi_fleet_maintenance_page;" in written) is not bool(page)


def maintain(records: list[dict[str, Any]], now: str = "2026-11-21T12:00:00Z") -> dict[str, str]:
    """The files that the entry point maintenance writes."""
    given = {"nginx_maintenance": records, "__nginx_maintenance_change": maintenance_change(records, "", now, True)}
    look = {"known": True, "running": "", "now": now, "state": ""}
    variables = {**given, "__nginx_maintenance_look": {"stdout": json.dumps(look)}}
    files = evaluate("__nginx_maintenance_files", [], **variables)
    return {
        file["path"]: file["content"]
        if "content" in file
        else render(file["template"], [], **variables, **file["vars"])
        for file in files
    }


def test_maintenance_writes_what_nginx_goes_by() -> None:
    until = "2026-11-21T14:00:00Z"
    records: list[dict[str, Any]] = [
        {
            "name": "shop",
            "closed": True,
            "reason": 'New <b>racks</b> & "more" for $5 in C:\\x',
            "until": until,
            "allow": ["192.0.2.0/24"],
        },
        {"name": "a-b_c", "closed": True},
    ]
    files = maintain(records)
    directory = "wsgi-fleet/maintenance"
    assert set(files) == {f"{directory}/{name}" for name in ("batches.conf", "sites.map", "sites.pages", "state.json")}
    assert lines(files[f"{directory}/sites.pages"])[-2:] == [
        "a-b_c $wsgi_fleet_maintenance_1_page;",
        "shop $wsgi_fleet_maintenance_2_page;",
    ]
    written = lines(files[f"{directory}/sites.map"])
    assert written[written.index("/maintenance d1635;") + 1 :] == [
        "a-b_c $wsgi_fleet_maintenance_1; # since 2026-11-21T12:00:00Z",
        f"shop $wsgi_fleet_maintenance_2; # since 2026-11-21T12:00:00Z until {until}",
    ]
    batches = lines(files[f"{directory}/batches.conf"])
    assert "192.0.2.0/24 1;" in batches
    assert 'default "300";' in batches
    assert 'default "Sat, 21 Nov 2026 14:00:00 GMT";' in batches
    page = files[f"{directory}/batches.conf"].partition("geo $wsgi_fleet_maintenance_2_page {")[2]
    assert "<title>503 Service Unavailable" in page
    assert r"<p>New &lt;b&gt;racks&lt;/b&gt; &amp; &#34;more&#34; for $5 in C:\\x</p>" in page
    assert rf"<time datetime=\"{until}\">2026-11-21 14:00 UTC</time>" in page
    assert "http" not in page  # nothing of it comes from elsewhere
    assert maintain([{"name": "shop", "closed": False}]) == {}


def test_the_role_tells_what_is_in_maintenance(tmp_path: Path) -> None:
    assert host(tmp_path)["maintenance"] == ""
    records = [{"name": name, "closed": True, "until": "2026-11-21T14:00:00Z"} for name in ("shop", "a-b_c")]
    for path, content in maintain([*records[:1], {"name": "a-b_c", "closed": True}]).items():
        file = tmp_path / "etc" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    since = "since 2026-11-21T12:00:00Z"
    assert host(tmp_path)["maintenance"] == f"a-b_c {since}, shop {since} until 2026-11-21T14:00:00Z"


@pytest.mark.parametrize(
    ("status", "body", "known", "running"),
    [(200, "ab" * 32, True, "ab" * 32), (200, "", True, ""), (404, "<html>", False, ""), (0, "", False, "")],
)
def test_maintenance_looks_at_files_and_at_what_runs(
    tmp_path: Path, status: int, body: str, known: bool, running: str
) -> None:
    state = tmp_path / "state.json"
    with answering("/maintenance", status, body) as port:
        argv = ["sh", "-s", "--", str(state), str(port)]
        program = (ROLE / "files/maintenance.sh").read_bytes()
        for text in ("", '{"shop": {}}\n'):
            if text:
                state.write_text(text)
            said = json.loads(subprocess.run(argv, input=program, check=True, capture_output=True).stdout)
            assert (said["known"], said["running"]) == (known, running)
            assert base64.b64decode(said["state"]).decode() == text
            assert abs(datetime.fromisoformat(said["now"]).timestamp() - time.time()) < 5


# files/host.sh


@contextlib.contextmanager
def answering(path: str, status: int, body: str) -> Iterator[int]:
    """The port of a server that answers so; status 0 takes no connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.protocol_version = "HTTP/1.1"  # as nginx answers, whatever it was asked in
            self.send_response(status if self.path == path else 404)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        if status:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()
        else:
            server.server_close()
            yield server.server_port


def host(
    directory: Path,
    *names: str,
    mode: str = "apply",
    days: int = 825,
    packages: str = "",
    port: int = 1,
    files: Sequence[Path] = (),
    source: str = "distribution",
    look_for: str = "",
    has: str = "none",
    shown: str = "",
    open_files: int = 16384,
    rules: str = "logs {\n}",
) -> dict[str, Any]:
    # what is installed and what systemd says, whatever this machine has
    programs = directory.with_name(f"{directory.name}-bin")
    programs.mkdir(exist_ok=True)
    query, systemctl = programs / "dpkg-query", programs / "systemctl"
    query.write_text(f'#!/bin/sh\nfor package; do :; done\ncase " {has} " in *" $package "*) echo installed;; esac\n')
    systemctl.write_text(f'#!/bin/sh\necho "$1" >>{programs}/asked\n[ "$1" != show ] || echo "{shown}"\n')
    for program in (query, systemctl):
        program.chmod(0o755)
    (directory / "log").mkdir(exist_ok=True)
    owner = f"{directory.owner()}:{directory.group()}"
    argv = ["sh", "-s", "--", mode, packages, directory / "etc", directory / "log", owner, directory / "tls/pair.pem"]
    program = b"".join((ROLE / "files" / name).read_bytes() for name in ("shared.sh", "host.sh"))
    argv += [str(days), str(port), directory / "cached", source, look_for, "", directory / "limits/ours.conf"]
    argv += [str(open_files), directory / "rules/nginx", rules]
    run = subprocess.run(
        [*argv, "shop", "--", *files, "--", *names],
        input=program,
        cwd=directory,  # it makes files: never among ours
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    answer = json.loads(run.stdout)
    assert isinstance(answer, dict)
    return answer


def test_nginx_from_elsewhere_is_not_replaced(tmp_path: Path) -> None:
    """For that takes the sites down for a while."""
    ours, theirs = "nginx nginx-common", "nginx"
    for mode in ("check", "apply"):
        for has, source in ((ours, "nginx.org"), (theirs, "distribution")):
            with pytest.raises(subprocess.CalledProcessError) as refused:
                host(tmp_path, "a.example", mode=mode, has=has, source=source)
            assert f"but nginx_package is {source}; nothing was changed" in refused.value.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    assert host(tmp_path, has=ours, packages="nginx")["installed"] is True
    assert host(tmp_path, has=theirs, packages="nginx", source="nginx.org")["installed"] is True


@pytest.mark.parametrize(
    ("source", "pages"), [("distribution", ["default"]), ("nginx.org", ["default", "default.conf"])]
)
def test_no_package_begins_with_its_welcome_page(tmp_path: Path, source: str, pages: list[str]) -> None:
    host(tmp_path, packages="nginx", source=source, mode="check")
    assert not (tmp_path / "etc").exists()
    host(tmp_path, packages="nginx", source=source)
    made = sorted(path for path in (tmp_path / "etc").rglob("*") if path.is_file())
    assert sorted(path.name for path in made) == pages
    assert {path.read_text() for path in made} == {""}
    assert (tmp_path / "cached").is_dir() == (source == "nginx.org")  # Debian's package makes it


def test_what_the_playbook_looks_for_is_found(tmp_path: Path) -> None:
    assert host(tmp_path)["found"] is False
    assert host(tmp_path, look_for=str(tmp_path / "renew"))["found"] is False
    (tmp_path / "renew").touch()
    assert host(tmp_path, look_for=str(tmp_path / "renew"))["found"] is True
    assert evaluate("nginx_found", [], {"found": True}) is True


def test_the_repository_is_pinned() -> None:
    files = evaluate(
        "__nginx_repository_files",
        [],
        nginx_repository_key="-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n",
        ansible_facts={"os_family": "Debian", "distribution_release": "trixie"},
    )
    texts = {file["path"]: file["content"] for file in files}
    source = texts["sources.list.d/wsgi-fleet-nginx.sources"].splitlines()
    assert "URIs: https://nginx.org/packages/debian" in source
    assert "Suites: trixie" in source
    [signed] = [line.split() for line in source if line.startswith("Signed-By")]
    assert signed[1] == "/etc/apt/keyrings/wsgi-fleet-nginx.asc"
    assert [len(fingerprint) for fingerprint in signed[2:]] == [40, 40, 40]
    assert texts["keyrings/wsgi-fleet-nginx.asc"].endswith("BLOCK-----\nx\n")
    paths = {file["path"] for file in evaluate("__nginx_files", [SITE], nginx_package="nginx.org")}
    assert "conf.d/default.conf" in paths
    assert "conf.d/default.conf" not in {file["path"] for file in evaluate("__nginx_files", [SITE])}


def test_what_was_cached_and_what_others_have_enabled_is_told(tmp_path: Path) -> None:
    for name in ("cache_site_shop_site", "cache_site_a_path_0", "proxy"):
        (tmp_path / "cached" / name).mkdir(parents=True)
    found = host(tmp_path)
    assert sorted(found["caches"]) == ["cache_site_a_path_0", "cache_site_shop_site"]
    assert "brotli_static" not in found["modules"]
    enabled = tmp_path / "etc/modules-enabled"
    enabled.mkdir(parents=True)
    (enabled / "50-mod-http-brotli-static.conf").touch()
    assert "brotli_static" in host(tmp_path)["modules"]


def openssl(*argv: str | Path) -> str:
    return subprocess.run(["openssl", *argv], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("body", "running"), [("ab" * 32, "ab" * 32), ("<html>", "")])
def test_the_running_configuration_is_asked_for(tmp_path: Path, body: str, running: str) -> None:
    with answering("/config", 200, body) as port:
        assert host(tmp_path, port=port)["running"] == running


def test_certificate_is_made_once(tmp_path: Path) -> None:
    first = host(tmp_path, "shop.example.com", "*.example.org", "192.0.2.1")
    assert first["changed"] is True
    assert host(tmp_path, "shop.example.com", "*.example.org", "192.0.2.1") == {**first, "changed": False}
    pair = tmp_path / "tls/pair.pem"
    assert pair.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in pair.parent.iterdir()] == ["pair.pem"]
    names = openssl("x509", "-in", pair, "-noout", "-ext", "subjectAltName").splitlines()[1].strip()
    assert names == "DNS:shop.example.com, DNS:*.example.org, IP Address:192.0.2.1"
    openssl("x509", "-in", pair, "-noout", "-checkend", str(824 * 86400))


@pytest.mark.parametrize("kept", [True, False], ids=["outside", "inside"])
def test_certificate_is_renewed_in_its_last_days(tmp_path: Path, kept: bool) -> None:
    first = host(tmp_path, "shop.example.com", days=25)  # its last third begins after 17 days
    pair = tmp_path / "tls/pair.pem"
    days = 10 if kept else 8
    soon = pair.with_name("soon")
    openssl("req", "-x509", "-key", pair, "-days", str(days), "-subj", "/CN=x", "-out", soon)
    pair.write_text("".join(pair.read_text().partition("-----END PRIVATE KEY-----\n")[:2]) + soon.read_text())
    second = host(tmp_path, "shop.example.com", days=25)
    assert second["changed"] is not kept
    assert second["certificate"] != first["certificate"]


@pytest.mark.parametrize("damage", ["names", "empty", "other key", "days", "gone"])
def test_certificate_is_made_again(tmp_path: Path, damage: str) -> None:
    first = host(tmp_path, "shop.example.com")
    pair = tmp_path / "tls/pair.pem"
    text = pair.read_text()
    if damage == "empty":
        pair.write_text("")
    elif damage == "gone":
        pair.unlink()
    elif damage == "other key":
        other = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        head, _, tail = text.partition("-----BEGIN PRIVATE KEY-----")
        pair.write_text(head + other + tail.partition("-----END PRIVATE KEY-----\n")[2])
    names = ["shop.example.com", "new.example.com"] if damage == "names" else ["shop.example.com"]
    days = 400 if damage == "days" else 825
    told = host(tmp_path, *names, mode="check", days=days)
    assert (told["changed"], told["certificate"]) == (True, "new")
    second = host(tmp_path, *names, days=days)
    assert second["changed"] is True
    assert second["certificate"] not in (first["certificate"], "new")
    assert host(tmp_path, *names, days=days)["changed"] is False


def test_leftovers_of_a_killed_run_go_away(tmp_path: Path) -> None:
    (tmp_path / "tls/.new.abcdef").mkdir(parents=True)
    host(tmp_path, "shop.example.com")
    assert [path.name for path in (tmp_path / "tls").iterdir()] == ["pair.pem"]


def test_check_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    told = host(tmp_path, "shop.example.com", mode="check", packages="no-such-package")
    assert (told["changed"], told["installed"], told["certificate"]) == (True, False, "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["log"]


def test_no_certificate_when_no_site_wants_one(tmp_path: Path) -> None:
    assert host(tmp_path)["certificate"] == ""
    assert not (tmp_path / "tls").exists()


def test_logs_are_not_for_everybody(tmp_path: Path) -> None:
    assert host(tmp_path)["changed"] is True
    logs = sorted((tmp_path / "log").iterdir())
    assert [(log.name, log.stat().st_mode & 0o777) for log in logs] == [
        ("shop.access.log", 0o640),
        ("shop.error.log", 0o640),
    ]
    log = logs[0]
    log.write_text("kept")
    assert host(tmp_path)["changed"] is False
    assert log.read_text() == "kept"


def test_rules_for_logs_are_written_where_nginx_is(tmp_path: Path) -> None:
    """Not before: dpkg would find a file in the place of its own."""
    file = tmp_path / "rules/nginx"
    host(tmp_path, packages="nginx")
    assert not file.exists()
    host(tmp_path)  # what else changes, once
    file.unlink()
    assert host(tmp_path, mode="check")["changed"] is True
    assert not file.exists()
    assert host(tmp_path)["changed"] is True
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("logs {\n}\n", 0o644)
    assert host(tmp_path)["changed"] is False
    assert host(tmp_path, rules="others")["changed"] is True
    assert [path.name for path in file.parent.iterdir()] == ["nginx"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["daily", "rotate 14"]),
        ({"frequency": "weekly", "keep": 3, "max_size": "100m"}, ["weekly", "rotate 3", "maxsize 100M"]),
        ({"max_size": "5K"}, ["daily", "rotate 14", "maxsize 5k"]),
    ],
)
def test_when_logs_are_rotated(given: dict[str, Any], said: list[str]) -> None:
    spec = options()["nginx_log_rotate"]["options"]
    defaults = {name: option["default"] for name, option in spec.items() if "default" in option}
    assert evaluate("__nginx_log_rotate", [], nginx_log_rotate=given) == {"max_size": "", **defaults, **given}
    written = lines(evaluate("__nginx_log_rules_text", [], nginx_log_rotate=given))
    assert written[1 : written.index("missingok")] == ["/var/log/nginx/*.log {", *said]
    assert "create 0640 www-data adm" in written


def test_a_running_master_gets_its_files(tmp_path: Path) -> None:
    """And is left those that it has, when fewer would do."""

    def limit() -> tuple[int, int]:
        return resource.prlimit(master.pid, resource.RLIMIT_NOFILE)

    asked = tmp_path.with_name(f"{tmp_path.name}-bin") / "asked"
    with subprocess.Popen(["prlimit", "--nofile=1024:", "sleep", "60"]) as master:
        try:
            waiting = f"MainPID={master.pid}\nNeedDaemonReload=yes"
            assert host(tmp_path, mode="check", shown=waiting)["changed"] is True
            assert limit()[0] == 1024
            assert not (tmp_path / "limits").exists()
            assert "daemon-reload" not in asked.read_text()

            assert host(tmp_path, shown=waiting)["changed"] is True
            assert limit() == (16384, 16384)
            assert "daemon-reload" in asked.read_text()
            assert (tmp_path / "limits/ours.conf").read_text().splitlines()[1:] == ["[Service]", "LimitNOFILE=16384"]
            assert host(tmp_path, shown=waiting)["changed"] is False

            assert host(tmp_path, open_files=8192, shown=waiting)["changed"] is True  # the unit's
            assert limit() == (16384, 16384)
        finally:
            master.kill()


def test_the_packages_welcome_page_is_kept_off_a_bare_host(tmp_path: Path) -> None:
    host(tmp_path, packages="no-such-package")
    default = tmp_path / "etc/sites-enabled/default"
    assert default.read_text() == ""
    default.write_text("theirs")
    host(tmp_path, packages="no-such-package")
    assert default.read_text() == "theirs"


def test_the_longest_page_is_within_what_nginx_takes() -> None:
    for character in ("\U0001f600", '"', "&", "\\"):
        files = maintain([{"name": "shop", "closed": True, "reason": character * 500, "until": "2026-11-21T14:00:00Z"}])
        page = files["wsgi-fleet/maintenance/batches.conf"].partition("_page {")[2].partition('default "')[2]
        assert len(page.encode()) < 4000  # NGX_CONF_BUFFER is 4096
