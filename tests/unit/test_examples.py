"""The demo fleet's application, without a fleet."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from flask.testing import FlaskClient

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
# what gunicorn says of a client behind a Unix socket
BEHIND_NGINX = {"REMOTE_ADDR": ""}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.syspath_prepend(str(SHOP))
    monkeypatch.delenv("SECRET_KEY", raising=False)
    for name in [name for name in sys.modules if name == "wsgi" or name.partition(".")[0] == "shop"]:
        monkeypatch.delitem(sys.modules, name)
    import wsgi

    return wsgi.app.test_client()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for, none of which is made."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


def test_health(client: FlaskClient) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_page_says_who_answers_and_who_asked(client: FlaskClient) -> None:
    headers = {"X-Forwarded-For": "<b>192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example.com"}
    page = client.get("/", headers=headers, environ_base=BEHIND_NGINX)
    assert page.mimetype == "text/html"
    assert socket.gethostname() in page.text
    assert "https://shop.example.com/" in page.text
    assert "&lt;b&gt;192.0.2.7" in page.text


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ({}, ("", "http", "localhost")),
        (
            {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example.com"},
            ("192.0.2.7", "https", "shop.example.com"),
        ),
        # what stands before the last value was not written by our nginx
        (
            {"X-Forwarded-For": "198.51.100.9, 192.0.2.7", "X-Forwarded-Proto": "gopher, https"},
            ("192.0.2.7", "https", "localhost"),
        ),
        ({"X-Forwarded-For": "2001:db8::7", "X-Real-IP": "198.51.100.9"}, ("2001:db8::7", "http", "localhost")),
    ],
)
def test_client_as_nginx_tells_it(client: FlaskClient, headers: dict[str, str], seen: tuple[str, str, str]) -> None:
    answer = client.get("/whoami", headers=headers, environ_base=BEHIND_NGINX).json
    assert (answer["remote_addr"], answer["scheme"], answer["host"]) == seen
    assert answer["forwarded"] == headers
    assert answer["hostname"] == socket.gethostname()
    assert answer["pid"] > 0
    assert answer["release"] == "development"


@pytest.mark.parametrize(
    ("path", "release"),
    [
        ("/srv/shop/releases/0123456789ab/src/shop/views.py", "0123456789ab"),
        ("/home/me/shop/views.py", "development"),
        ("/home/me/releases", "development"),
    ],
)
def test_release_of_a_file(client: FlaskClient, path: str, release: str) -> None:
    from shop.views import release_of

    assert release_of(Path(path)) == release


def test_secret_is_never_shown(client: FlaskClient) -> None:
    assert client.get("/config").json == {"secret_key": False}
    client.application.config["SECRET_KEY"] = "hunter2"
    for path in ("/", "/config", "/whoami", "/healthz", "/env/SECRET_KEY"):
        assert "hunter2" not in client.get(path).text
    assert client.get("/config").json == {"secret_key": True}
    assert client.get("/env/SECRET_KEY").status_code == 404


def test_slow_page(client: FlaskClient, naps: list[float]) -> None:
    assert client.get("/sleep?seconds=2.5").json == {"slept": 2.5}
    assert naps == [2.5]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("/sleep?seconds=61", "seconds must be a number from 0 to 60"),
        ("/sleep?seconds=-1", "seconds must be a number from 0 to 60"),
        ("/sleep?seconds=nan", "seconds must be a number from 0 to 60"),
        ("/sleep?seconds=long", "seconds must be a number from 0 to 60"),
        ("/stream?count=101", "count must be a number from 0 to 100"),
        ("/stream?pause=11", "pause must be a number from 0 to 10"),
    ],
)
def test_nobody_keeps_a_worker_for_long(client: FlaskClient, naps: list[float], query: str, reason: str) -> None:
    answer = client.get(query)
    assert answer.status_code == 400
    assert reason in answer.text
    assert naps == []


class Body(io.BytesIO):
    """A request body that notes how much of it is asked for at a time."""

    largest = 0

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        given = super().readinto(buffer)
        self.largest = max(self.largest, given)
        return given

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        return data


def test_upload_is_not_read_at_once(client: FlaskClient) -> None:
    size = 5 * 1024 * 1024 + 1
    body = Body(bytes(size))
    answer = client.post("/upload", input_stream=body, content_length=size)
    assert answer.json == {"size": size, "sha256": hashlib.sha256(bytes(size)).hexdigest()}
    assert 0 < body.largest <= 64 * 1024


def test_empty_upload(client: FlaskClient) -> None:
    assert client.post("/upload").json == {"size": 0, "sha256": hashlib.sha256().hexdigest()}


def test_stream_comes_line_by_line(client: FlaskClient, naps: list[float]) -> None:
    answer = client.get("/stream?count=3&pause=0.2", buffered=False)
    lines = answer.iter_encoded()
    assert next(lines) == b"0\n"
    assert naps == []  # the first is out before the first pause
    assert list(lines) == [b"1\n", b"2\n"]
    assert naps == [0.2, 0.2]
    assert answer.headers["X-Accel-Buffering"] == "no"


def test_requirements_are_locked_with_hashes() -> None:
    text = (SHOP / "requirements.txt").read_text()
    entries = [entry for entry in text.replace("\\\n", " ").splitlines() if not entry.lstrip().startswith("#")]
    assert {entry.partition("==")[0] for entry in entries} >= {"flask", "werkzeug", "jinja2"}
    assert [entry for entry in entries if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)] == []
    assert "://" not in text  # they come from wherever the fleet's index is
