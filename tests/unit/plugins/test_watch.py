"""What a deploy sees in the logs of nginx."""

from __future__ import annotations

import pytest
from ansible_collections.wsgi.fleet.plugins.modules.watch import count

TEXT = '192.0.2.1 - {user} [21/Nov/2026:12:00:00 +0000] "{request}" {status} 12 "-" "curl" host=shop.example.com'
JSON = '{{"time":"2026-11-21T12:00:00Z","user":"{user}","request":"{request}","status":{status},"bytes":12}}'


@pytest.mark.parametrize("line", [TEXT, JSON], ids=["text", "json"])
@pytest.mark.parametrize(
    ("user", "asked"),
    [
        ("-", "GET / HTTP/1.1"),
        ("-", r"GET /\x22 200 HTTP/1.1"),
        ("-", ""),  # no request at all
        # what a client says cannot pass for the status
        (" 200 {", "GET / HTTP/1.1"),
        (r"\x22request\x22:\x22", r"GET /?a=\",\"status\":200,\" HTTP/1.1"),
    ],
)
def test_the_status_is_that_of_the_answer(line: str, user: str, asked: str) -> None:
    lines = [line.format(user=user, request=asked, status=status) for status in (500, 404, 502)]
    assert count([*lines, "", "\0"]) == {"requests": 3, "errors": 2}
