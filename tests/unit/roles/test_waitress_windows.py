"""What role waitress_windows hands to modules, and what it writes for nginx: no Windows is needed for that."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import ansible_collections
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar, trust_as_template
from ansible_collections.wsgi.fleet.plugins.filter.maintenance_change import maintenance_change
from test_nginx import trusted

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "waitress_windows"
RIG = ROOT / "molecule" / "shared" / "windows"
OURS = ("wsgi.fleet.", "ansible.builtin.")


def load(path):
    spec = importlib.util.spec_from_file_location(f"rig_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


winrig = load(RIG / "connection" / "winrig.py")
powershell = sys.modules["powershell"]


def source_of(module):
    namespace, collection, name = module.split(".")
    for place in ansible_collections.__path__:
        path = Path(place, namespace, collection, "plugins", "modules", f"{name}.ps1")
        if path.is_file():
            return path
    raise AssertionError(f"{module} is not installed")


TASKS = [
    (file.name, task["name"], module, task[module])
    for file in sorted((ROLE / "tasks").glob("*.yml"))
    for task in yaml.safe_load(file.read_text())
    for module in task
    if module.count(".") == 2 and not module.startswith(OURS)
]


@pytest.mark.parametrize(("file", "name", "module", "arguments"), TASKS, ids=[task[1] for task in TASKS])
def test_every_option_is_one_that_the_module_knows(file, name, module, arguments):
    path = source_of(module)
    spec, _ = winrig.specification(path.read_text(encoding="utf-8-sig"), path)
    assert set(arguments) <= set(spec["options"]), file
    required = {option for option, value in spec["options"].items() if value.get("required")}
    assert required <= set(arguments), file


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("$spec = @{ options = @{ a = @{ type = 'str' } } }", {"options": {"a": {"type": "str"}}}),
        ("$spec = @{ choices = 'a', 'b' # why\n n = 0x10; on = $true }", {"choices": ["a", "b"], "n": 16, "on": True}),
        ("$spec = @{ one_of = @(, @('a', 'b')) }", {"one_of": [["a", "b"]]}),
        ("$c = @('x')\n$spec = @{ choices = $c + 'y' + @('z') }", {"choices": ["x", "y", "z"]}),
        ("$spec = @{ text = \"a\"; list = [string[]]@('b'\n 'c') }", {"text": "a", "list": ["b", "c"]}),
    ],
)
def test_specifications_in_powershell_are_read(source, spec):
    call = "\n$module = [Ansible.Basic.AnsibleModule]::Create($args, $spec)"
    assert powershell.spec_of(source + call) == spec


def test_what_cannot_be_read_is_loud():
    with pytest.raises(ValueError, match="unknown variable"):
        powershell.spec_of("$spec = @{ a = $elsewhere }")


def test_a_module_without_a_specification_is_told_from_others():
    assert powershell.spec_of("$params = Parse-Args $args") is None


def test_every_stand_in_is_of_a_module_that_the_role_uses():
    text = (RIG / "guest" / "modules.py").read_text()
    used = {module.rpartition(".")[2] for _, _, module, _ in TASKS} | {"win_command"}
    assert {name for name in used if f"def {name}(a)" not in text} == set()


# -- what nginx is told

SITE = {"name": "shop", "server_names": ["shop.example.com"], "servers": ["127.0.0.1:8001"]}


@pytest.fixture(autouse=True)
def _lookups(monkeypatch):
    """Only Ansible itself finds a plugin by its full name."""
    get = lookup_loader.get
    monkeypatch.setattr(lookup_loader, "get", lambda name, **options: get(name.rpartition(".")[2], **options))


def evaluate(name, **variables):
    """A variable of the role, as Ansible works it out."""
    files = [yaml.safe_load((ROLE / path).read_text()) for path in ("defaults/main.yml", "vars/main.yml")]
    known = {"ansible_managed": "managed", "ansible_search_path": [str(ROLE)], "waitress_windows_nginx": {}}
    templar = Templar(loader=DataLoader(), variables={**known, **trusted(files[0] | files[1]), **variables})
    return templar.template(trust_as_template("{{ " + name + " }}"))


def written(**site):
    """The files of nginx for one site: the contents by name."""
    files = evaluate("__waitress_windows_front['files']", waitress_windows_sites=[{**SITE, **site}])
    return {name: file["content"] for name, file in files.items()}


def lines(text):
    return [line.strip() for line in text.splitlines()]


def test_the_switch_is_in_every_site_that_has_one():
    site = lines(written(maintenance={"open_paths": ["/healthz", '/a "b"', "/healthz", "/"]})["sites/shop.conf"])
    assert [line for line in site if line.startswith("location ")] == [
        "location / {",
        'location = "/healthz" {',
        r'location = "/a \"b\"" {',
        "location = /.wsgi-fleet/maintenance.html {",
    ]
    assert site.count("if ($wsgi_fleet_maintenance) {") == 1
    assert site.index("if ($wsgi_fleet_maintenance) {") < site.index('location = "/healthz" {')
    assert site.count("proxy_pass http://shop;") == 3
    assert "set $wsgi_fleet_site shop;" in site
    without = written(maintenance={"switch": False, "open_paths": ["/healthz"], "page": "x"})
    assert "maintenance" not in without["sites/shop.conf"]
    assert not [name for name in without if name.startswith("pages/")]
    assert set(lines(without["nginx.conf"])) >= {f"include maintenance/*.{kind};" for kind in ("conf", "map", "pages")}


@pytest.mark.parametrize("page", ["", "<p>Closed</p>"])
def test_the_page_is_the_sites_own_or_comes_with_the_switch(page):
    files = written(maintenance={"page": page})
    site, own = lines(files["sites/shop.conf"]), "pages/shop/maintenance.html"
    assert files.get(own, "") == page
    assert (f"alias conf/{own};" in site) is bool(page)
    assert ("return 503 $wsgi_fleet_maintenance_page;" in site) is not bool(page)


def test_pages_of_other_origins_see_why_a_site_is_closed():
    site = written(cors={"origins": ["https://a.example"]})["sites/shop.conf"]
    page = lines(site.partition("maintenance.html {")[2])
    assert "add_header Retry-After $wsgi_fleet_maintenance always;" in page
    assert "add_header Access-Control-Allow-Origin $site_shop_origin always;" in page


def test_maintenance_is_written_as_on_linux():
    records = [{"name": "shop", "closed": True, "reason": "{{ x }} $5 \u2026", "allow": ["192.0.2.7"]}]
    change = maintenance_change(records, "", "2026-11-21T12:00:00Z", True)
    files = evaluate("__waitress_windows_maintenance_files", __waitress_windows_maintenance_change=change)
    assert list(files) == [f"maintenance/{name}" for name in ("batches.conf", "sites.map", "sites.pages", "state.json")]
    assert "<p>{{ x }} $5 \u2026</p>" in files["maintenance/batches.conf"]["content"]
    assert "192.0.2.7/32 1;" in lines(files["maintenance/batches.conf"]["content"])
    assert lines(files["maintenance/sites.map"]["content"])[-3:] == [
        "/maintenance WSGI_FLEET_DIGEST;",
        "",
        "shop $wsgi_fleet_maintenance_1; # since 2026-11-21T12:00:00Z",
    ]
    assert json.loads(files["maintenance/state.json"]["content"]) == change["state"]
    opened = maintenance_change([{"name": "shop", "closed": False}], "", "2026-11-21T12:00:00Z", True)
    assert evaluate("__waitress_windows_maintenance_files", __waitress_windows_maintenance_change=opened) == {}


@pytest.mark.parametrize(("known", "problem"), [(True, "cannot be read"), (False, "apply the whole role (site.yml)")])
def test_maintenance_says_why_it_cannot_be(known, problem):
    change = {"problems": ["state.json of the maintenance cannot be read"]}
    look = {"maintenance": {"known": known}}
    variables = {"__waitress_windows_maintenance_change": change, "__waitress_windows_maintenance_look": look}
    [found] = evaluate("__waitress_windows_maintenance_problems", **variables)
    assert problem in found
