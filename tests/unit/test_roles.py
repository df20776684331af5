"""What every role promises in its files: one interface, said once and kept to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def entry_points(role: Path) -> dict[str, Any]:
    return yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]


def options(role: Path) -> dict[str, Any]:
    """The role's variables over all entry points, with their specifications."""
    return {name: spec for entry in entry_points(role).values() for name, spec in entry.get("options", {}).items()}


def nested(options: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, spec in options.items():
        found.append((f"{path}{name}", spec))
        found += nested(spec.get("options", {}), f"{path}{name}.")
    return found


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_defaults_are_those_of_the_specification(role: Path) -> None:
    documented = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    assert (yaml.safe_load((role / "defaults" / "main.yml").read_text()) or {}) == documented


def test_every_entry_point_is_there(role: Path) -> None:
    assert {f"{name}.yml" for name in entry_points(role)} <= {path.name for path in (role / "tasks").iterdir()}


def test_every_option_is_typed_and_described(role: Path) -> None:
    poor = [name for name, spec in nested(options(role)) if not spec.get("description") or "type" not in spec]
    assert poor == []


def test_variables_carry_the_name_of_their_role(role: Path) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role.name}_")] == []


def test_readme_names_every_variable(role: Path) -> None:
    readme = (role / "README.md").read_text()
    assert [name for name in options(role) if f"`{name}`" not in readme] == []


# Hosts of its own are not worth their time.
TESTED_WITH = {"mod_wsgi": "apache"}


def test_role_is_tested_on_hosts(role: Path) -> None:
    scenario = ROOT / "molecule" / TESTED_WITH.get(role.name, role.name)
    assert (scenario / "molecule.yml").is_file()
    assert list((scenario / "tests").glob(f"test_{role.name if role.name in TESTED_WITH else '*'}.py"))


def test_table_of_contents_is_short(role: Path) -> None:
    assert len((role / "tasks" / "main.yml").read_text().splitlines()) <= 60
