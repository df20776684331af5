"""The tasks for Windows hosts against the modules' own sources, which no Windows is needed for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import ansible_collections
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
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
    for file in sorted((ROOT / "roles/waitress_windows/tasks").glob("*.yml"))
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
