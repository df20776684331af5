"""wsgi.fleet.tree: what may be asked for, and how it travels."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.wsgi.fleet.plugins.action.tree import source_problems
from ansible_collections.wsgi.fleet.plugins.module_utils.tree.request import (
    ARGUMENTS,
    build_request,
    pack,
    parse_mode,
    request_problems,
    tree_digest,
    unpack,
)
from ansible_collections.wsgi.fleet.plugins.modules import tree as module


def checked(**arguments: Any) -> dict[str, Any]:
    """As Ansible hands it over: types checked, defaults filled in."""
    result = ArgumentSpecValidator(ARGUMENTS).validate(
        {"name": "nginx", "root": "/etc/nginx", "files": [{"path": "a", "content": "x"}], **arguments}
    )
    assert not result.error_messages
    return dict(result.validated_parameters)


def problems(**arguments: Any) -> list[str]:
    return request_problems(checked(**arguments))


@pytest.mark.parametrize(
    ("mode", "number"),
    [("0644", 0o644), ("0600", 0o600), ("02750", 0o2750), ("2750", 0o2750), ("01777", 0o1777), ("0000", 0)],
)
def test_modes(mode: str, number: int) -> None:
    assert parse_mode(mode) == number


@pytest.mark.parametrize("mode", [0o644, "644", "420", "0888", "rw-r--r--", "u=rw", "", "000644", None, True, 0.5])
def test_modes_that_could_mean_two_things_are_refused(mode: object) -> None:
    with pytest.raises(ValueError, match="is no quoted octal mode"):
        parse_mode(mode)


@pytest.mark.parametrize(
    "path",
    ["nginx.conf", "sites-enabled/shop.conf", ".hidden", "a b", "ü/ö", "...", "a..b", "-x", "a/b/c/d", ".wsgi"],
)
def test_good_paths(path: str) -> None:
    assert problems(files=[{"path": path, "content": ""}]) == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/etc/passwd", "path is no path of a file relative to root"),
        ("", "path is no path of a file relative to root"),
        ("a/", "path is no path of a file relative to root"),
        ("../a", "path may not hold '.', '..' or an empty part"),
        ("a/../../b", "path may not hold '.', '..' or an empty part"),
        ("./a", "path may not hold '.', '..' or an empty part"),
        (".", "path may not hold '.', '..' or an empty part"),
        ("a//b", "path may not hold '.', '..' or an empty part"),
        ("a\nb", "path holds a control character"),
        ("a\0b", "path holds a control character"),
        ("x/.wsgi-fleet-1", "path may not begin with .wsgi-fleet-: our temporary files do"),
    ],
)
def test_bad_paths(path: str, problem: str) -> None:
    assert problems(files=[{"path": path, "content": ""}]) == [f"files[0] ({path}): {problem}"]


A = {"path": "a", "content": ""}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"files": []}, []),
        ({"directories": [{"path": "."}, {"path": "x/y"}]}, []),
        ({"tests": [{"argv": ["true"], "chdir": "{root}/x", "file": "a", "when_changed": ["a"]}]}, []),
        ({"name": "Nginx"}, ["name: 'Nginx' may hold small letters, digits, '-' and '_' only"]),
        ({"name": "../x"}, ["name: '../x' may hold small letters, digits, '-' and '_' only"]),
        ({"root": "etc"}, ["root: 'etc' is no plain absolute directory such as /etc/nginx"]),
        ({"root": "/"}, ["root: '/' is no plain absolute directory such as /etc/nginx"]),
        ({"root": "/etc/../x"}, ["root: '/etc/../x' is no plain absolute directory such as /etc/nginx"]),
        ({"root": "/etc/"}, ["root: '/etc/' is no plain absolute directory such as /etc/nginx"]),
        ({"timeout": 0}, ["timeout: must be at least 1 second"]),
        ({"files": [A, A]}, ["files[1] (a): files[0] (a) has the same path"]),
        ({"directories": [{"path": "a"}]}, ["files[0] (a): directories[0] (a) has the same path"]),
        (
            {"files": [A, {"path": "a/b/c", "content": ""}]},
            ["files[1] (a/b/c): a is a file in the same request, it cannot hold other files"],
        ),
        (
            {"directories": [{"path": "a/b"}]},
            ["directories[0] (a/b): a is a file in the same request, it cannot hold other files"],
        ),
        (
            {"files": [{**A, "mode": 420}], "directories": [{"path": "d", "mode": "755"}]},
            [
                "directories[0] (d): mode '755' is no quoted octal mode such as \"0644\"",
                'files[0] (a): mode 420 is no quoted octal mode such as "0644"',
            ],
        ),
        ({"tests": [{"argv": []}]}, ["tests[0] (): argv must name a program"]),
        ({"tests": [{"argv": ["x"], "file": "b"}]}, ["tests[0] (x): 'b' is not among the files"]),
        (
            {"tests": [{"argv": ["x"], "name": "t", "when_changed": ["a", "c"]}]},
            ["tests[0] (t): 'c' is not among the files"],
        ),
        (
            {"tests": [{"argv": ["x"], "chdir": "conf"}]},
            ["tests[0] (x): chdir 'conf' must be absolute or begin with {root}"],
        ),
    ],
)
def test_requests(arguments: dict[str, Any], expected: list[str]) -> None:
    assert problems(**arguments) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({"template": "a.j2"}, []),
        ({"content": ""}, []),
        ({"src": "a"}, []),
        ({}, ["files[0] (a): needs exactly one of template, content, src; has none"]),
        (
            {"template": "a.j2", "content": "x"},
            ["files[0] (a): needs exactly one of template, content, src; has template, content"],
        ),
        ({"content": {"a": 1}}, ["files[0] (a): content must be text, not dict; use a filter such as to_nice_json"]),
        ({"content": 5}, ["files[0] (a): content must be text, not int; use a filter such as to_nice_json"]),
    ],
)
def test_sources(file: dict[str, Any], expected: list[str]) -> None:
    assert source_problems(checked(files=[{"path": "a", **file}])["files"]) == expected


def test_contents_survive_the_journey() -> None:
    contents = [b"", b"text\n", "ü€😀".encode(), bytes(range(256)) * 3, b"x" * 100_000]
    assert unpack(pack(contents)) == contents
    assert len(pack([b"upstream shop { server unix:/run/shop.sock; }\n" * 20] * 400)) < 20_000


def test_request_is_typed() -> None:
    request = build_request(
        checked(files=[{"path": "a", "content": "x", "mode": "0600", "secret": True}], tests=[{"argv": ["true", "x"]}]),
        [b"x"],
    )
    (file,) = request.files
    assert (file.path, file.content, file.owner, file.group, file.mode, file.secret) == (
        "a", b"x", "root", "root", 0o600, True,
    )  # fmt: skip
    assert request.tests[0].name == "true"


def test_digest() -> None:
    files = checked(files=[{"path": "a", "content": ""}, {"path": "b", "content": ""}])["files"]
    digest = tree_digest(files, [b"1", b"2"])
    assert len(digest) == 64
    assert digest == tree_digest(files[::-1], [b"2", b"1"]), "order must not matter"
    others = [
        tree_digest(files, [b"2", b"1"]),
        tree_digest(files[:1], [b"1"]),
        tree_digest([{**files[0], "path": "c"}, files[1]], [b"1", b"2"]),
        tree_digest([{**files[0], "mode": "0600"}, files[1]], [b"1", b"2"]),
        tree_digest([{**files[0], "owner": "shop"}, files[1]], [b"1", b"2"]),
        tree_digest([{**files[0], "group": "shop"}, files[1]], [b"1", b"2"]),
    ]
    assert len({digest, *others}) == len(others) + 1


def documented(options: dict[str, Any]) -> dict[str, Any]:
    """The documentation's options in the form of an argument spec."""
    kept = ("type", "elements", "default", "required")
    return {
        name: {key: option[key] for key in kept if key in option}
        | ({"options": documented(option["suboptions"])} if "suboptions" in option else {})
        for name, option in options.items()
    }


def test_documentation_says_what_is_checked() -> None:
    def plain(spec: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {k: plain(v) if k == "options" else v for k, v in option.items() if k != "no_log"}
            for name, option in spec.items()
        }

    assert documented(yaml.safe_load(module.DOCUMENTATION)["options"]) == plain(ARGUMENTS)
