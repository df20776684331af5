"""Patterns of origins: what they let in, and what is refused."""

from __future__ import annotations

import re

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet
from ansible_collections.wsgi.fleet.plugins.module_utils.plan.origins import pattern_problem

PREVIEWS = r"https://pr-\d+\.preview\.example\.com"
RIGHT = [
    (PREVIEWS, "https://pr-7.preview.example.com", "https://pr-7.previewxexample.com"),
    (r"https://(?:shop|blog)[.]example[.]com", "https://blog.example.com", "https://shop.example.com.evil.example"),
    (r"https?://[a-z0-9-]+\.example\.com(:\d+)?", "http://a.example.com:8443", "https://evil.example/a.example.com"),
    (
        r"https://([a-z0-9-]+\.){1,3}example\.co\.uk:8443",
        "https://a.b.example.co.uk:8443",
        "https://example.co.uk:8443",
    ),
    (r"https://([a-z]+\.){1,2}example\.net(:\d+)?", "https://a.b.example.net", "https://evilexample.net"),
    (r"https://([a-z]+\.)*example\.net", "https://example.net", "https://evilexample.net"),
    (r"https://pr-(\d+\.)+example\.net", "https://pr-1.2.example.net", "https://pr-example.net"),
    (r"http://example\.com(?::[0-9]{1,5})?", "http://example.com", "http://evilexample.com"),
]


@pytest.mark.parametrize(("pattern", "meant", "other"), RIGHT)
def test_right_patterns(pattern, meant, other):
    assert pattern_problem(pattern, credentials=True) == pattern_problem(pattern, credentials=False) == ""
    # anchored as nginx is given it
    assert re.search(f"^(?:{pattern})$", meant)
    assert not re.search(f"^(?:{pattern})$", other)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r".*", "must begin with https://"),
        (r"pr-\d+\.example\.com", "must begin with https://"),
        (r"[a-z]+://example\.com", "must begin with https://"),
        (r"https://.*\.example\.com", "a . that stands for any character"),
        (r"https://pr-1.example\.com", "a . that stands for any character"),
        (r"^https://a\.example\.com", "must begin"),
        (r"https://a\.example\.com$", "leave it out"),
        (r"https://a\.example\.com/", "has a path"),
        (r"https://a\.example\.com|https://b\.example\.com", "a pattern of its own"),
        (r"https://(?i)a\.example\.com", "has (?i, which"),
        (r"https://(?!a)\.example\.com", "has (?!, which"),
        (r"https://\S+\.example\.com", "a capital"),
        ('https://a" {}', "a quotation mark"),
        (r"https://a b\.example\.com", "a space"),
        (r"https://\\.example\.com", r"has \\, which"),
        (r"https://(a)\1\.example\.com", r"has \1, which"),
        (r"https://(a\.example\.com", "is no regular expression"),
        (r"https://a++\.example\.com**", "is no regular expression"),
    ],
)
@pytest.mark.parametrize("credentials", [True, False])
def test_wrong_patterns(pattern, words, credentials):
    assert words in pattern_problem(pattern, credentials)


@pytest.mark.parametrize(
    "pattern",
    [
        r"https://[^/]+",
        r"https://([a-z]+|b\.)example\.com",
        r"https://[a-z]+([a-z]+\.)*example\.com",
        r"https://[a-z]+([a-z]+\.)?example\.com",
        r"https://[a-z]+([a-z]+\.){0,2}example\.com",
        r"https://[a-z0-9.-]+",
        r"https://[a-z0-9-]+example\.com",
        r"https://[a-z.]+\.com",
        r"https://\.?example\.com",
        r"https://a\.example\.com[^/]*",
        r"https://a\.exa?mple\.com",
        r"https://a\.example\.com\w",
        r"https://(a\.example\.com|[^/]+)",
        r"https://a\.example\.com:[^/]+",
    ],
)
def test_credentials_need_a_domain(pattern):
    assert pattern_problem(pattern, credentials=False) == ""
    assert "must end with a whole domain" in pattern_problem(pattern, credentials=True)


@pytest.mark.parametrize(
    ("cors", "message"),
    [
        ({"origin_patterns": [PREVIEWS], "credentials": True}, None),
        ({"origins": ["https://example.com"], "origin_patterns": [PREVIEWS]}, None),
        ({}, "origins: is missing; give a list of origins, or origin_patterns"),
        ({"origin_patterns": []}, "origin_patterns: is an empty list, must be a list of regular expressions"),
        (
            {"origin_patterns": PREVIEWS},
            "origin_patterns: is a string, must be a list of regular expressions; write [value] for a list of one",
        ),
        (
            {"origin_patterns": [7]},
            "origin_patterns[0]: is a whole number, must be a regular expression (put it in quotes)",
        ),
        (
            {"origins": ["*"], "origin_patterns": [PREVIEWS]},
            'origin_patterns: is of no use with origins "*"; leave one of them out',
        ),
        (
            {"origin_patterns": ["https://[^/]+"], "credentials": True},
            (
                r"origin_patterns[0]: is 'https://[^/]+'; it must end with a whole domain, as \.example\.com does, for "
                "credentials "
                "are true: pages of strangers whose names match could act for its visitors"
            ),
        ),
    ],
)
def test_records(cors, message):
    record = {
        "name": "shop",
        "domains": ["shop.example.com"],
        "source": {"package": "shop", "version": "1.0"},
        "callable": "shop:app",
        "nginx": {"cors": cors},
    }
    groups, hosts = {"linux_apps": ["app1"]}, {"app1": {}}
    assert fleet.find_errors([record], groups, hosts) == ([f"app shop: nginx.cors.{message}"] if message else [])
    if not message:
        [site] = fleet.nginx_sites(fleet.make_plan([record], groups, hosts), "app1")
        assert site["cors"]["origin_patterns"] == [PREVIEWS]
