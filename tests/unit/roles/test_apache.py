"""What role apache writes and refuses, rendered as Ansible renders it. What Apache makes of it is molecule's part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.wsgi.fleet.plugins.filter.apache_view import apache_problems, apache_view
from ansible_collections.wsgi.fleet.plugins.filter.with_defaults import with_defaults

ROLE = Path(__file__).parents[3] / "roles" / "apache"
SITE: dict[str, Any] = {"name": "shop", "server_names": ["shop.example.com"], "server": "unix:/run/shop.sock"}
LOOK = {"changed": False, "installed": True, "openssl": "3.0.17", "certificate": "AB12", "enabled": True}
LOOK |= {"running": "", "rivals": []}


def load(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


def trusted(value: Any) -> Any:
    """Values as Ansible loads them from a role's files: their templates are live."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def templar(sites: list[dict[str, Any]], **variables: Any) -> Templar:
    base = {
        "ansible_managed": "managed",
        "ansible_facts": {"os_family": "Debian"},
        "ansible_check_mode": False,
        "ansible_search_path": [str(ROLE)],
        "tree_digest": "d1635",
        "__apache_look": {"stdout": json.dumps({**LOOK, **variables.pop("look", {})})},
    }
    files = {**load("defaults/main.yml"), **load("vars/main.yml")}
    made = Templar(loader=DataLoader(), variables={**base, **trusted(files), "apache_sites": sites, **variables})
    # only Ansible itself finds a collection's filters
    ours = {"apache_view": apache_view, "apache_problems": apache_problems, "with_defaults": with_defaults}
    made._engine.environment.filters.update({f"wsgi.fleet.{name}": filter_ for name, filter_ in ours.items()})
    return made


def evaluate(expression: str, *args: Any, **kwargs: Any) -> Any:
    return templar(*args, **kwargs).template(trust_as_template("{{ " + expression + " }}"))


def written(*changes: dict[str, Any], **variables: Any) -> dict[str, str]:
    """Every file of these sites, the way the tree action gets it."""
    sites = [{**SITE, **change} for change in changes or ({},)]
    texts = {}
    for file in evaluate("__apache_files", sites, **variables):
        if "content" in file:
            texts[file["path"]] = file["content"]
            continue
        engine = templar(sites, **{**variables, **file.get("vars", {})})
        source = trust_as_template((ROLE / "templates" / file["template"]).read_text())
        made = engine.template(source, escape_backslashes=False, overrides={"trim_blocks": True})
        texts[file["path"]] = str(made)
    return texts


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_defaults_of_a_site_are_those_of_the_specification() -> None:
    options = load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]["apache_sites"]["options"]
    found = {name: option["default"] for name, option in options.items() if "default" in option}
    assert load("vars/main.yml")["__apache_site_defaults"] == {**found, "tls": {"mode": "self_signed"}}


def test_a_name_counts_more_than_a_pattern_and_a_long_pattern_more_than_a_short_one() -> None:
    texts = written(
        {"server_names": ["*.example.com", "shop.example.net"]},
        {"name": "other", "server_names": ["*.shop.example.com", "a.example.com"]},
    )
    names = [path for path in texts if "wildcards" in path or path.startswith("sites-enabled/")]
    assert names == [
        "sites-enabled/000-default.conf",
        "sites-enabled/shop.conf",
        "wsgi-fleet/wildcards/242-shop-0.conf",
        "sites-enabled/other.conf",
        "wsgi-fleet/wildcards/237-other-0.conf",
    ]
    assert "ServerName shop.example.net" in lines(texts["sites-enabled/shop.conf"])
    assert "ServerAlias *.example.com" in lines(texts["wsgi-fleet/wildcards/242-shop-0.conf"])


def test_a_key_is_secret_and_private_and_compared() -> None:
    site = {**SITE, "tls": {"mode": "files", "certificate": "C", "key": "K"}}
    files = {file["path"]: file for file in evaluate("__apache_files", [site])}
    assert files["wsgi-fleet/tls/shop.key"] | {"content": ""} == {
        "path": "wsgi-fleet/tls/shop.key",
        "content": "",
        "mode": "0600",
        "secret": True,
    }
    assert [test["name"] for test in evaluate("__apache_tests", [site])] == ["apache2 -t", "the certificate of shop"]


@pytest.mark.parametrize(("openssl", "curves"), [("3.0.17", "X25519:"), ("3.5.4", "X25519MLKEM768:X25519:")])
def test_profiles_of_mozilla(openssl: str, curves: str) -> None:
    for profile, protocols in (("intermediate", "+TLSv1.2 +TLSv1.3"), ("modern", "+TLSv1.3")):
        texts = written(look={"openssl": openssl}, apache_tls_profile=profile)
        found = lines(texts["apache2.conf"])
        assert f"SSLProtocol -all {protocols}" in found
        assert [line for line in found if line.startswith(f"SSLOpenSSLConfCmd Curves {curves}")]
        assert any(line.startswith("SSLCipherSuite") for line in found) is (profile == "intermediate")


def test_a_bare_off_is_off() -> None:
    texts = written({"tls": {"mode": False}})
    assert "443" not in texts["apache2.conf"] + texts["sites-enabled/shop.conf"]
    assert evaluate("__apache_self_signed_names", [{**SITE, "tls": {"mode": False}}]) == []


def test_a_new_certificate_is_a_new_configuration() -> None:
    before, after = (written(look={"certificate": print_}) for print_ in ("AB12", "CD34"))
    assert before["sites-enabled/000-default.conf"] != after["sites-enabled/000-default.conf"]


@pytest.mark.parametrize(
    ("changed", "running", "expected"),
    [(False, "d1", False), (False, "d0", True), (False, "", True), (True, "d1", True)],
)
def test_reloads_for_another_digest_and_for_files_that_were_not_as_written(
    changed: bool, running: str, expected: bool
) -> None:
    tree = {"changed": changed, "digest": "d1"}
    assert evaluate("__apache_reload", [], look={"running": running}, __apache_tree=tree) is expected


def test_only_those_that_were_set_up_here_give_way() -> None:
    rivals = [{"unit": "nginx.service", "trees": ["nginx_maintenance", "nginx"], "root": "/etc/nginx"}]
    assert evaluate("__apache_rival_signs", [], apache_instead_of=rivals) == "nginx.service:nginx"
    assert evaluate("__apache_rivals", [], apache_instead_of=rivals) == []
    assert evaluate("__apache_rivals", [], apache_instead_of=rivals, look={"rivals": ["nginx.service"]}) == rivals


def test_everything_wrong_is_said_at_once() -> None:
    sites = [
        {
            **SITE,
            "server_names": ["shop.example.com", "a b"],
            "server": "shop:80",
            "client_max_body_size": "much",
            "headers": {"X-Path": "C:\\x"},
            "static": [{"path": "/static/", "release": "static"}],
            "hsts": {"max_age": 5},
            "tls": {"mode": "off"},
            "https_redirect": True,
        },
        {**SITE, "http_port": 8079, "https_port": 80},
    ]
    shop = "apache_sites[0] (shop)"
    assert evaluate("__apache_problems", sites, apache_self_signed_days=1) == [
        "apache_self_signed_days: is 1, must be a whole number from 3 to 3650",
        "apache_sites[0] (shop): server_names[1]: is 'a b', must be a host name like shop.example.com or *.example.com",
        "apache_sites[0] (shop): server: is 'shop:80', must be unix:/path, 192.0.2.11:8000 or [2001:db8::11]:8000",
        "apache_sites[0] (shop): client_max_body_size: is 'much', must be a size such as \"10m\"",
        f"{shop}: headers.X-Path: holds a backslash, which Apache does not send as it is; write it without",
        "apache_sites[0] (shop): release: is missing; static needs the link to the application's live release",
        f"{shop}: https_redirect: is true, but tls.mode is off, so nothing answers there; set one of them",
        "apache_sites[0] (shop): hsts: is given, but tls.mode is off; browsers take it over HTTPS only. Leave it out",
        "apache_sites[0] (shop): http_port: is 80, an https_port too; one port speaks one of the two",
        'apache_sites[1] (shop): name: is taken by apache_sites[0] ("-" and "_" count as the same); give another',
        "apache_sites[1] (shop): port 8079 is apache_status_port; give that another",
        "apache_sites[1] (shop): server_names: shop.example.com on port 80 is shop's; give it to one site",
    ]


@pytest.mark.parametrize(
    ("size", "number"), [("0", None), ("512", 512), ("8k", 8192), ("10M", 10485760), ("1g", 1 << 30)]
)
def test_a_body_has_a_limit_in_bytes(size: str, number: int | None) -> None:
    text = written({"client_max_body_size": size})["sites-enabled/shop.conf"]
    assert ("Content-Length" in text) is (number is not None)
    assert number is None or f"-gt {number}" in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([[502, 504]], {502: "502-504", 503: "502-504", 504: "502-504"}),
        ([[504]], {502: "504", 503: "504", 504: "504"}),
        ([[502], [503]], {502: "502", 503: "503"}),
        ([[413]], {413: "413"}),
    ],
)
def test_pages_are_shown_for_what_apache_says(given: list[list[int]], shown: dict[int, str]) -> None:
    pages = [{"codes": codes, "content": "x"} for codes in given]
    found = [
        line.split()
        for line in lines(written({"error_pages": pages, "tls": {"mode": "off"}})["sites-enabled/shop.conf"])
    ]
    pages_of = {int(line[1]): line[2] for line in found if line[0] == "ErrorDocument"}
    assert pages_of == {code: f"/.wsgi-fleet/pages/{name}.html" for code, name in shown.items()}


def test_a_server_by_tcp_or_by_socket() -> None:
    for server, url in (
        ("127.0.0.1:8001", "http://127.0.0.1:8001/"),
        ("unix:/run/a.sock", "unix:/run/a.sock|http://a-b/"),
    ):
        text = written({"name": "a_b", "server": server})["sites-enabled/a_b.conf"]
        assert f'ProxyPass "/" "{url}" nocanon retry=0 disablereuse=On' in text
