"""Files and tests of role mod_wsgi; what it shares with role waitress is tested there."""

from __future__ import annotations

import json

import pytest
from ansible_collections.wsgi.fleet.plugins.filter.mod_wsgi_tree import mod_wsgi_tree

SHOP = {
    "name": "shop",
    "user": "shop",
    "group": "web",
    "callable": "wsgi:app",
    "venv": "/srv/shop/venv",
    "directory": "/srv/shop/src",
}


def test_files_and_the_test_that_proves_them():
    tree = mod_wsgi_tree([{**SHOP, "stop_timeout": 5, "options": {"threads": 4, "processes": None}}], "express_host.py")
    host, config = tree["files"]
    assert host == {"path": "shop/express_host.py", "src": "express_host.py"}
    assert json.loads(config.pop("content")) == {
        "callable": "wsgi:app",
        "directory": "/srv/shop/src",
        "stop_timeout": 5,
        "options": {"threads": 4},
    }
    assert config == {"path": "shop/mod_wsgi.json", "group": "web", "mode": "0640"}
    [test] = tree["tests"]
    assert test["argv"] == [
        "/srv/shop/venv/bin/python",
        "{root}/shop/express_host.py",
        "--check",
        "{root}/shop/mod_wsgi.json",
    ]


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([{**SHOP, "venv": ""}], "shop: runner, venv: exactly one of both must say how to run mod_wsgi-express"),
        ([SHOP, SHOP], "'shop' is there twice; every name must be its own"),
    ],
)
def test_wrong_record(records, problem):
    assert mod_wsgi_tree(records, "x") == {"problems": [f"mod_wsgi_instances: {problem}"], "files": [], "tests": []}
