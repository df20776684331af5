"""Records of applications: what is refused, and what the others mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.release.records import (
    app_record,
    app_secrets,
    parse_app,
    problems,
    safe_relative,
    split_credentials,
)

GIT = {"git": "https://git.example.com/shop.git", "version": "main"}
SUM = "sha256:" + "0123456789abcdef" * 4


def app(**given: Any) -> dict[str, Any]:
    return {"name": "shop", "source": GIT, **given}


@pytest.mark.parametrize(
    "record",
    [
        app(),
        app(source={**GIT, "version": "v1.4.2", "subdirectory": "web/app", "ssh_key": "KEY", "ssh_known_hosts": "x"}),
        app(source={"git": "git@git.example.com:shop.git", "version": "refs/tags/v1"}),
        app(source={"git": "ssh://git@git.example.com:2222/shop.git", "version": "feature/x"}),
        app(source={"git": "/srv/git/shop.git", "version": "HEAD"}),
        app(source={"archive": "shop.tar.gz"}),
        app(source={"archive": "https://example.com/shop.zip", "checksum": SUM, "username": "u", "password": "p"}),
        app(source={"path": "files/shop", "exclude": ["*.sqlite3"]}),
        app(source={"package": "httpbin[mainapp]", "version": "0.10.4"}),
        app(python="3.11", requirements=["requirements/prod.txt"], packages=["gunicorn==27.0.1"], keep_releases=2),
        app(env={"A": "x", "B": 1, "C": 1.5}, secrets={"D": "y"}),
        app(source={**GIT, "subdirectory": None}, python=None, env=None),  # what omit leaves
    ],
)
def test_right_records(record: dict[str, Any]) -> None:
    assert problems([record]) == []


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("shop", "apps[0]: expected a record (a dictionary), got a text"),
        ({"source": GIT}, "apps[0].name: None cannot be the name of a system user"),
        (app(name="Shop"), "apps[0].name: 'Shop' cannot be"),
        (app(name="../etc"), "apps[0].name: '../etc' cannot be"),
        (app(name="shop\n"), "apps[0].name: 'shop\\n' cannot be"),
        (app(python=3.1), 'shop.python: 3.1 is not a version in quotes such as "3.11"'),
        (app(python="python3"), "shop.python: 'python3' is not a version"),
        (app(keep_releases=1), "shop.keep_releases: 1 is not a whole number of 2 or more"),
        (app(keep_releases=True), "shop.keep_releases: True is not"),
        (app(requirements="requirements.txt"), "shop.requirements: expected a list of strings"),
        (app(requirements=["../x"]), "shop.requirements: '../x' is not the name of a file inside the source"),
        (app(requirements=["--index-url=x"]), "shop.requirements: '--index-url=x' is not the name"),
        (app(packages=["--index-url https://x"]), "shop.packages: '--index-url https://x' is not a requirement"),
        (app(packages=["x @ https://me:hidden@x/y.whl"]), "shop.packages: one of them holds a password"),
        (app(env=["A"]), "shop.env: expected a dictionary of variables, got a list"),
        (app(env={"A-B": "x"}), "shop.env.A-B: is not a name for an environment variable"),
        (app(env={"1A": "x"}), "shop.env.1A: is not a name"),
        (app(env={"A;id": "x"}), "shop.env.A;id: is not a name"),
        (app(env={"PATH": "x"}), "shop.env.PATH: is set by wsgi.fleet itself"),
        (app(env={"A": True}), "shop.env.A: is a boolean; an environment variable is a text (in quotes) or a number"),
        (app(secrets={"A": ["hidden"]}), "shop.secrets.A: is a list;"),
        (app(secrets={"A": "hid\0den"}), "shop.secrets.A: holds a zero byte"),
        (app(env={"A": 1}, secrets={"A": "hidden"}), "shop.secrets.A: is in `env` as well"),
        ({"name": "shop"}, "shop.source: expected a dictionary with one of git, archive, path, package; got nothing"),
        (app(source={}), "shop.source: expected exactly one of git, archive, path, package; got none of them"),
        (
            app(source={**GIT, "path": "x"}),
            "shop.source: expected exactly one of git, archive, path, package; got git, path",
        ),
        (app(source={"git": "/x", "vresion": "main"}), "shop.source.vresion: is not an option of a source of kind git"),
        (app(source={**GIT, "vresion": "main"}), "did you mean 'version'?"),
        (app(source={**GIT, "checksum": SUM}), "shop.source.checksum: is not an option of a source of kind git"),
        (app(source={"git": "/x"}), "shop.source.version: is missing; wanted: a branch, a tag or a commit"),
        (app(source={**GIT, "version": 1.2}), "shop.source.version: expected a text that is not empty, got a number"),
        (app(source={**GIT, "version": "--upload-pack=x"}), "shop.source.version: '--upload-pack=x' is not a branch"),
        (app(source={**GIT, "version": "a..b"}), "shop.source.version: 'a..b' is not a branch"),
        (app(source={**GIT, "git": "ext::sh -c id"}), "shop.source.git: is not an address of a repository"),
        (app(source={**GIT, "git": "--upload-pack=x"}), "shop.source.git: is not an address"),
        (app(source={**GIT, "subdirectory": "/etc"}), "shop.source.subdirectory: '/etc' is not a directory inside"),
        (app(source={"archive": "https://x/y"}), "shop.source.checksum: is missing; a downloaded archive needs one"),
        (app(source={"archive": "x", "checksum": "md5:0"}), "shop.source.checksum: 'md5:0' is not of the form sha256:"),
        (app(source={"path": "x", "exclude": "*.db"}), "shop.source.exclude: expected a list of patterns"),
        (app(source={"package": "x y", "version": "1"}), "shop.source.package: 'x y' is not the name of a package"),
        (app(source={"package": "x", "version": ">=1"}), "shop.source.version: '>=1' is not one exact version"),
        (app(source={**GIT, "password": "hidden"}), "shop.source.username: and password belong together"),
    ],
)
def test_wrong_records(record: Any, expected: str) -> None:
    found = problems([record])
    assert [text for text in found if expected in text], found
    assert "hidden" not in " ".join(found)
    assert "hid\0den" not in " ".join(found)


def test_all_problems_are_told_at_once() -> None:
    found = problems([app(python=3), app(), {"name": "x", "source": {"git": "/x"}}])
    assert [text.partition(":")[0] for text in found] == ["shop.python", "shop.name", "x.source.version"]
    assert problems({"name": "shop"}) == ["apps: expected a list of records, got a dictionary"]


def test_sources_do_not_matter_where_nothing_is_built() -> None:
    assert problems([{"name": "shop"}], sources=False) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x/y.git", ("https://x/y.git", "", "")),
        ("https://me:p%40ss@x:8443/y?z=1", ("https://x:8443/y?z=1", "me", "p@ss")),
        ("https://token@x/y", ("https://x/y", "x-access-token", "token")),
        ("https://me:a@b@x/y", ("https://x/y", "me", "a@b")),
    ],
)
def test_credentials_leave_the_address(url: str, expected: tuple[str, str, str]) -> None:
    assert split_credentials(url) == expected


def test_what_goes_to_the_host() -> None:
    record = app(
        source={"git": "https://me:hidden@x/y.git", "version": "main", "subdirectory": "./web/"},
        env={"A": "b"},
        secrets={"C": "d"},
    )
    sent = app_record(parse_app(record))
    assert sent == {
        "name": "shop",
        "source": {
            "git": "https://x/y.git",
            "version": "main",
            "subdirectory": "web",
        },
        "keep_releases": 5,
        "health_timeout": 30,
    }
    assert app_secrets(parse_app(record)) == {"username": "me", "password": "hidden"}
    assert parse_app(sent, app_secrets(parse_app(record))) == parse_app(record)
    assert "hidden" not in repr(parse_app(record))
    assert "hidden" not in json.dumps(sent)


@pytest.mark.parametrize("path", ["a", "a/b", "a/..b", "./a", "."])
def test_safe_paths(path: str) -> None:
    assert safe_relative(path)


@pytest.mark.parametrize("path", ["", " ", "..", "a/../..", "/a", "~/a", "-a", "a\nb", "a\\..\\b"])
def test_unsafe_paths(path: str) -> None:
    assert not safe_relative(path)


@pytest.mark.parametrize(
    ("source", "remote"),
    [
        (GIT, True),
        ({"package": "x", "version": "1"}, True),
        ({"archive": "HTTPS://x/y", "checksum": SUM}, True),
        ({"archive": "x"}, False),
        ({"path": "x"}, False),
    ],
)
def test_who_brings_it(source: dict[str, str], remote: bool) -> None:
    assert parse_app(app(source=source)).source.remote is remote
