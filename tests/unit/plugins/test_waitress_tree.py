"""Files and tests of role waitress, and records that it refuses."""

from __future__ import annotations

import json

import pytest
from ansible_collections.wsgi.fleet.plugins.filter.waitress_tree import waitress_tree

SHOP = {
    "name": "shop",
    "user": "shop",
    "group": "web",
    "callable": "wsgi:app",
    "venv": "/srv/shop/venv",
    "directory": "/srv/shop/src",
}


def test_files_and_the_test_that_proves_them():
    tree = waitress_tree([{**SHOP, "listen_fd": 0, "settings": {"threads": 4, "ident": None}}], "wsgi_host.py")
    host, config = tree["files"]
    assert host == {"path": "shop/wsgi_host.py", "src": "wsgi_host.py"}
    assert json.loads(config.pop("content")) == {
        "callable": "wsgi:app",
        "directory": "/srv/shop/src",
        "listen_fd": 0,
        "waitress": {"threads": 4, "ident": None},
    }
    assert config == {"path": "shop/waitress.json", "group": "web", "mode": "0640"}
    [test] = tree["tests"]
    assert test["argv"] == [
        "/srv/shop/venv/bin/python",
        "{root}/shop/wsgi_host.py",
        "--check",
        "{root}/shop/waitress.json",
    ]
    assert (test["user"], test["chdir"], test["file"]) == ("shop", "/srv/shop/src", "shop/waitress.json")


def test_runner_brings_its_own_python():
    record = {**SHOP, "venv": None, "directory": None, "runner": ["/srv/run", "--next"], "stop_timeout": 5}
    tree = waitress_tree([record], "wsgi_host.py")
    assert tree["tests"][0]["argv"][:3] == ["/srv/run", "--next", "python"]
    assert json.loads(tree["files"][1]["content"]) == {"callable": "wsgi:app", "stop_timeout": 5, "waitress": {}}


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([{**SHOP, "name": "a/b"}], "a/b: name: may hold letters, digits, '_', '.' and '-' only"),
        ([{**SHOP, "venv": ""}], "shop: runner, venv: exactly one of both must say how to run waitress"),
        ([{**SHOP, "runner": ["x"]}], "shop: runner, venv: exactly one of both must say how to run waitress"),
        ([{**SHOP, "directory": ""}], "shop: directory: is missing; with venv, name the directory of the application"),
        ([SHOP, SHOP], "'shop' is there twice; every name must be its own"),
        (
            [{**SHOP, "listen_fd": 0, "settings": {"port": 80}}],
            "shop: settings: port: is of no use with listen_fd; leave one of them out",
        ),
    ],
)
def test_wrong_record(records, problem):
    assert waitress_tree(records, "x") == {"problems": [f"waitress_instances: {problem}"], "files": [], "tests": []}
