"""Settings of gunicorn, as data, into Python."""

from __future__ import annotations

import ast
import datetime
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.filter.gunicorn_tree import gunicorn_tree, python_literal

RUNNER = {"name": "shop", "user": "shop", "group": "shop", "callable": "wsgi:app", "runner": ["/etc/x/run", "--next"]}
VENV = {"name": "shop", "user": "u", "group": "g", "callable": "wsgi:app", "venv": "/v", "directory": "/d"}


def tree(instances: list[dict[str, Any]]) -> dict[str, Any]:
    return gunicorn_tree(instances, "import gunicorn")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -7,
        1.5,
        "",
        "plain",
        "both ' and \" here",
        "50% of %(x)s {{ y }}",
        "back\\slash \n\t\0",
        "żółw € \U0001f422",
        '"""',
        ["a", 1, None, [True]],
        {"a": {"b'": ["c"]}, "d": None},
        [],
        {},
    ],
)
def test_a_literal_is_the_value_again(value: Any) -> None:
    literal = python_literal(value)
    assert ast.literal_eval(literal) == value
    assert type(ast.literal_eval(literal)) is type(value)
    assert literal.isascii()
    assert "\n" not in literal


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 1), float("nan"), {1, 2}, b"bytes", object()])
def test_what_has_no_literal_is_refused(value: Any) -> None:
    result = tree([{**RUNNER, "settings": {"statsd_prefix": value}}])
    (problem,) = result["problems"]
    assert problem.startswith("gunicorn_instances: shop: settings: statsd_prefix: is a ")
    assert result["files"] == []


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({**RUNNER, "name": "a/b"}, "gunicorn_instances: a/b: name: may hold letters"),
        ({**RUNNER, "venv": "/v"}, "gunicorn_instances: shop: runner, venv: exactly one of both"),
        ({**RUNNER, "runner": []}, "gunicorn_instances: shop: runner, venv: exactly one of both"),
        ({**VENV, "directory": None}, "gunicorn_instances: shop: directory: is missing"),
        ({**RUNNER, "settings": {"x = 1; y": 2}}, "gunicorn_instances: shop: settings: 'x = 1; y' is no name"),
    ],
)
def test_a_bad_record_is_refused(record: dict[str, Any], problem: str) -> None:
    (found,) = tree([record])["problems"]
    assert found.startswith(problem)


def test_two_instances_cannot_share_a_name() -> None:
    assert tree([RUNNER, VENV])["problems"] == ["gunicorn_instances: 'shop' is there twice; every name must be its own"]


def test_the_file_is_for_the_group_and_in_the_order_of_names() -> None:
    (file,) = tree([{**RUNNER, "settings": {"workers": 2, "bind": "fd://0"}}])["files"]
    assert file == {
        "path": "shop/gunicorn.conf.py",
        "template": "gunicorn.conf.py.j2",
        "vars": {"__gunicorn_lines": ["bind = 'fd://0'", "workers = 2", "wsgi_app = 'wsgi:app'"]},
        "group": "shop",
        "mode": "0640",
        "secret": False,
    }


def test_environment_makes_the_file_secret() -> None:
    (file,) = tree([{**RUNNER, "settings": {"raw_env": ["A=1"]}}])["files"]
    assert file["secret"] is True


def test_gunicorn_itself_is_the_test() -> None:
    conf = "{root}/shop/gunicorn.conf.py"
    (test,) = tree([RUNNER])["tests"]
    assert test == {
        "name": "gunicorn --check-config for shop",
        "file": "shop/gunicorn.conf.py",
        "user": "shop",
        "argv": ["/etc/x/run", "--next", "python", "-c", "import gunicorn", "--config", conf],
        "when_changed": ["shop/gunicorn.conf.py"],
    }
    (test,) = tree([VENV])["tests"]
    assert test["argv"] == ["/v/bin/python", "-c", "import gunicorn", "--config", conf]
    assert test["chdir"] == "/d"
