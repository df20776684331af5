"""What role nginx writes and refuses, rendered as Ansible renders it. What nginx makes of it is molecule's part."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[3] / "roles" / "nginx"
SITE: dict[str, Any] = {
    "name": "shop",
    "server_names": ["shop.example.com"],
    "upstream": {"servers": [{"address": "unix:/run/shop.sock"}]},
}
LOOK = {"changed": False, "installed": True, "version": "1.26.3", "ipv6": True, "certificate": "AB12"}


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
    files = {**load("defaults/main.yml"), **load("vars/main.yml"), **load("vars/Debian.yml")}
    return Templar(loader=DataLoader(), variables={**base, **trusted(files), "nginx_sites": sites, **variables})


def evaluate(expression: str, *args: Any, **kwargs: Any) -> Any:
    return templar(*args, **kwargs).template(trust_as_template("{{ " + expression + " }}"))


def render(template: str, *args: Any, **kwargs: Any) -> str:
    text = (ROLE / "templates" / template).read_text()
    engine = templar(*args, **kwargs)
    rendered = engine.template(trust_as_template(text), escape_backslashes=False, overrides={"trim_blocks": True})
    return str(rendered or "")


def render_site(changes: dict[str, Any] | None = None, look: dict[str, Any] | None = None) -> str:
    """The file of one site, the way the tree action gets it."""
    files = evaluate("__nginx_files", [{**SITE, **(changes or {})}], look)
    (file,) = [file for file in files if file["path"] == "sites-enabled/shop.conf"]
    return render(file["template"], [], look, **file["vars"])


def problems(sites: list[dict[str, Any]], **variables: Any) -> list[str]:
    return render("problems.j2", sites, **variables).splitlines()


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_defaults_of_a_site_are_those_of_the_specification() -> None:
    def defaults(spec: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, option in spec.items():
            if option["type"] == "dict":
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


def test_right_records_are_taken() -> None:
    site = {
        **SITE,
        "server_names": ["shop.example.com", "*.example.org", "xn--bcher-kva.example", "192.0.2.7", "localhost"],
        "upstream": {
            "servers": [
                {"address": "unix:/run/wsgi-fleet/shop.sock", "weight": 3},
                {"address": "192.0.2.11:80", "backup": True},
                {"address": "[2001:db8::11]:8000", "max_fails": 0},
            ],
            "balance": "round_robin",
        },
        "trusted_proxies": ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32", "::1"],
        "cors": {"origins": ["https://app.example.com", "http://localhost:3000"], "headers": ["X-Token", "*"]},
        "client_max_body_size": "0",
        "error_pages": [{"codes": [502, 504], "content": "sorry"}, {"codes": [413], "content": "too big"}],
    }
    other = {**SITE, "name": "blog", "server_names": ["blog.example.com"], "tls": {"mode": False}, "https_port": 80}
    # one name may be two sites', on ports of their own
    third = {**SITE, "name": "admin", "http_port": 8000, "https_port": 8443}
    assert problems([site, other, third]) == []


AT = "nginx_sites[0] (shop): "
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "Shop"},
        'nginx_sites[0] (Shop): name: give lower-case letters, digits, "-" and "_", a letter first, 63 at most',
    ),
    ({"server_names": []}, AT + "server_names: none given; give at least one host name"),
    (
        {"server_names": ["a.example; return 200"]},
        AT + "server_names: a.example; return 200 is no host name; give one like shop.example.com or *.example.com",
    ),
    (
        {"server_names": ["shop.*"]},
        AT + "server_names: shop.* is no host name; give one like shop.example.com or *.example.com",
    ),
    ({"http_port": 0}, AT + "http_port: 0 is out of range; give 1 to 65535"),
    ({"https_port": 65536}, AT + "https_port: 65536 is out of range; give 1 to 65535"),
    ({"http_port": 443}, AT + "http_port: 443 is an https_port too; one port speaks one of the two"),
    ({"http_port": 8079}, "nginx_status_port: 8079 is a site's port too; give one that no site uses"),
    (
        {"tls": {"mode": "files", "certificate": "pem"}},
        AT + "tls: mode is files; give certificate and key, or set mode to self_signed",
    ),
    (
        {"tls": {"certificate": "pem", "key": "pem"}},
        AT + "tls: certificate and key are given, but mode is self_signed; set mode to files",
    ),
    (
        {"tls": {"mode": "off"}, "https_redirect": True},
        AT + "https_redirect: there is no HTTPS to go to, tls.mode is off; set https_redirect to false",
    ),
    ({"upstream": {"servers": []}}, AT + "upstream.servers: none given; give at least one address"),
    (
        {"upstream": {"servers": [{"address": "app1.example.com:80"}]}},
        AT + "upstream.servers[0].address: app1.example.com:80 is none; "
        "give unix:/path, 192.0.2.11:8000 or [2001:db8::11]:8000",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1"}]}},
        AT + "upstream.servers[0].address: 192.0.2.1 is none; give unix:/path, 192.0.2.11:8000 or [2001:db8::11]:8000",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80", "weight": 0}]}},
        AT + "upstream.servers[0].weight: 0 is out of range; give 1 to 65535",
    ),
    (
        {"upstream": {"servers": [{"address": "192.0.2.1:80", "backup": True}], "balance": "ip_hash"}},
        AT + "upstream.servers[0].backup: nginx has no backup servers with balance ip_hash; "
        "use round_robin or least_conn",
    ),
    (
        {"upstream": {**SITE["upstream"], "keepalive": -1}},
        AT + "upstream.keepalive: -1 is out of range; give 0 to 65535",
    ),
    (
        {"trusted_proxies": ["lb1.example.com"]},
        AT + "trusted_proxies: lb1.example.com is no address or network; give one like 192.0.2.1 or 2001:db8::/32",
    ),
    ({"client_max_body_size": "10 MB"}, AT + "client_max_body_size: 10 MB is no size; give one like 512k, 10m or 1g"),
    ({"proxy_read_timeout": 0}, AT + "proxy_read_timeout: 0 is out of range; give 1 to 86400"),
    (
        {"cors": {"origins": ["*"], "credentials": True}},
        AT + "cors: credentials with the origin * would give every page its visitors' accounts; list the origins",
    ),
    ({"cors": {"origins": ["*", "https://a.example"]}}, AT + "cors.origins: * is every origin; give it alone"),
    (
        {"cors": {"origins": ["https://a.example/"]}},
        AT + "cors.origins: https://a.example/ is no origin; "
        "give scheme, host and port only, like https://app.example.com",
    ),
    (
        {"cors": {"origins": ["https://a.example"], "methods": ["GET, PUT"]}},
        AT + 'cors.methods: GET, PUT is none; give names of letters, digits and "-"',
    ),
    (
        {"error_pages": [{"codes": [200], "content": ""}]},
        AT + "error_pages[0].codes: 200 is out of range; give 400 to 599",
    ),
    (
        {"error_pages": [{"codes": [502], "content": ""}, {"codes": [502], "content": ""}]},
        AT + "error_pages: 502 has two pages; give it one",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[-40:] for _, message in WRONG])
def test_wrong_records_are_refused(changes: dict[str, Any], message: str) -> None:
    assert problems([{**SITE, **changes}]) == [message]


def test_sites_that_get_in_each_others_way_are_refused() -> None:
    sites = [SITE, {**SITE, "name": "other"}, {**SITE, "name": "ot_her", "server_names": ["b"]}]
    sites.append({**SITE, "name": "ot-her", "server_names": ["c"], "http_port": 8000})
    twice = "nginx_sites[1] (other): server_names: shop.example.com on port {} is given twice, first for shop; "
    assert problems(sites) == [
        twice.format(80) + "give it to one site",
        twice.format(443) + "give it to one site",
        'nginx_sites[3] (ot-her): name: taken by nginx_sites[2] ("-" and "_" count as the same); give another',
    ]


@pytest.mark.parametrize(("family", "named"), [("RedHat", "RedHat"), (None, "an unknown system: gather facts first")])
def test_other_systems_are_refused(family: str | None, named: str) -> None:
    facts = {"os_family": family} if family else {}
    assert problems([], ansible_facts=facts) == [f"this role knows Debian, not {named}"]


def test_a_key_is_secret_and_private() -> None:
    site = {**SITE, "tls": {"mode": "files", "certificate": "CERT\n", "key": "KEY"}}
    files = {file["path"]: file for file in evaluate("__nginx_files", [site])}
    key = {"path": "wsgi-fleet/tls/shop.key", "content": "KEY\n", "mode": "0600", "secret": True}
    assert files["wsgi-fleet/tls/shop.key"] == key
    assert files["wsgi-fleet/tls/shop.crt"] == {"path": "wsgi-fleet/tls/shop.crt", "content": "CERT\n"}
    assert options()["nginx_sites"]["options"]["tls"]["options"]["key"]["no_log"] is True


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
    texts = [render("default.j2", sites, look)]
    for file in evaluate("__nginx_files", sites, look):
        if file["path"].endswith(".conf") and file["path"].startswith("sites-enabled/"):
            texts.append(render(file["template"], sites, look, **file["vars"]))
    listens = [line for text in texts for line in lines(text) if "listen 443" in line]
    said = {line.split(" default_server")[0].rstrip(";") for line in listens}
    assert len(said) == 1


@pytest.mark.parametrize("ipv6", [True, False])
def test_listens_on_ipv6_only_where_there_is_ipv6(ipv6: bool) -> None:
    for text in (render_site({}, {"ipv6": ipv6}), render("default.j2", [SITE], {"ipv6": ipv6})):
        assert ("listen [::]:80" in text) is ipv6
        assert ("listen [::]:443" in text) is ipv6
        assert "listen 80" in text


def test_a_new_certificate_is_a_new_configuration() -> None:
    assert render("default.j2", [SITE]) != render("default.j2", [SITE], {"certificate": "CD34"})


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


# files/host.sh


def host(directory: Path, *names: str, mode: str = "apply", days: int = 825, packages: str = "") -> dict[str, Any]:
    (directory / "log").mkdir(exist_ok=True)
    owner = f"{directory.owner()}:{directory.group()}"
    argv = ["sh", "-s", "--", mode, packages, directory / "etc", directory / "log", owner, directory / "tls/pair.pem"]
    program = (ROLE / "files/host.sh").read_bytes()
    run = subprocess.run([*argv, str(days), "shop", "--", *names], input=program, check=True, capture_output=True)
    answer = json.loads(run.stdout)
    assert isinstance(answer, dict)
    return answer


def openssl(*argv: str | Path) -> str:
    return subprocess.run(["openssl", *argv], check=True, capture_output=True, text=True).stdout


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


def test_the_packages_welcome_page_is_kept_off_a_bare_host(tmp_path: Path) -> None:
    host(tmp_path, packages="no-such-package")
    default = tmp_path / "etc/sites-enabled/default"
    assert default.read_text() == ""
    default.write_text("theirs")
    host(tmp_path, packages="no-such-package")
    assert default.read_text() == "theirs"
