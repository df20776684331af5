"""What is refused before an ACME server is asked."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.filter.acme_problems import acme_problems

RECORD: dict[str, Any] = {"name": "shop", "domains": ["shop.example.com"]}
SETTINGS: dict[str, Any] = {"server": "https://ca:14000/dir", "renew_days": 30, "system": "Debian"}
AT = "acme_certificates[0] (shop): "


def test_what_is_right() -> None:
    more = {"email": "a@b.example", "eab_kid": "kid-1", "eab_hmac_key": "zWN_-=", "reload": ["true"]}
    assert acme_problems([RECORD, {**RECORD, "name": "blog_2"}], {**SETTINGS, **more}) == []
    assert acme_problems([], {**SETTINGS, "environment": {"https_proxy": "http://proxy:3128"}}) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "../shop"}, "acme_certificates[0] (../shop): name: give lower-case letters"),
        ({"domains": []}, AT + "domains: none given; give at least one"),
        ({"domains": ["*.example.com"]}, AT + "domains: *.example.com is no name that can be proven over HTTP"),
        ({"domains": ["localhost"]}, AT + "domains: localhost is no name that can be proven over HTTP"),
        ({"domains": ["a.example; reboot"]}, AT + "domains: a.example; reboot is no name that can be proven over HTTP"),
    ],
)
def test_wrong_record(change: dict[str, Any], problem: str) -> None:
    [found] = acme_problems([{**RECORD, **change}], SETTINGS)
    assert found.startswith(problem)


def test_name_given_twice() -> None:
    assert acme_problems([RECORD, RECORD], SETTINGS) == [
        "acme_certificates[1] (shop): name: given twice; give each certificate its own"
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"server": "http://ca/dir"}, "acme_server: http://ca/dir is no https:// URL of a directory"),
        ({"server": "https://ca/dir x"}, "acme_server: https://ca/dir x is no https:// URL of a directory"),
        ({"email": "me"}, "acme_email: me is no address"),
        ({"eab_kid": "a"}, "acme_eab_kid and acme_eab_hmac_key belong together; give both, or none of them"),
        ({"eab_kid": "a", "eab_hmac_key": "secret text"}, "acme_eab_hmac_key: holds what no such text holds"),
        ({"renew_days": 0}, "acme_renew_days: 0 is out of range; give 1 to 365"),
        ({"reload": []}, "acme_reload: is empty; give a command"),
        ({"environment": {"A B": "c"}}, "acme_environment: A B is no name of a variable"),
        ({"system": "RedHat"}, "this role knows Debian, not RedHat"),
    ],
)
def test_wrong_setting(change: dict[str, Any], problem: str) -> None:
    [found] = acme_problems([RECORD], {**SETTINGS, **change})
    assert found.startswith(problem)
    assert "secret text" not in found
