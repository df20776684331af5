"""The fleet of this scenario, and versions of its application."""

from __future__ import annotations

import pytest
from deploying import HOSTS, SCENARIO


@pytest.fixture
def fleet(host):
    return {
        name: host.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory) for name in HOSTS
    }


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Writes a version of the application; returns its directory."""

    def write(version, **files):
        directory = tmp_path_factory.mktemp("app")
        (directory / "wsgi.py").write_text((SCENARIO / "files" / "app" / "wsgi.py").read_text())
        (directory / "version").write_text(version)
        for name, content in files.items():
            (directory / name.replace("__", ".")).write_text(content)
        return directory

    return write


@pytest.fixture(scope="session")
def one(source):
    return source("one")


@pytest.fixture(scope="session")
def two(source):
    return source("two")
