"""The example application, as its server calls it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "shop"))
    from wsgi import app

    yield app.test_client()
    for name in [name for name in sys.modules if name == "wsgi" or name.split(".")[0] == "shop"]:
        del sys.modules[name]


def test_health(client):
    assert client.get("/healthz").json == {"status": "ok"}


def test_upload_of_any_size_is_hashed(client):
    body = b"x" * 1_000_000
    assert client.post("/upload", data=body).json == {"size": 1_000_000, "sha256": hashlib.sha256(body).hexdigest()}


def test_one_proxy_is_believed_and_not_what_clients_put_before_it(client):
    headers = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7", "X-Forwarded-Proto": "https"}
    answer = client.get("/whoami", headers=headers).json
    assert (answer["remote_addr"], answer["scheme"]) == ("192.0.2.7", "https")


@pytest.mark.parametrize(("seconds", "status"), [("0", 200), ("61", 400), ("-1", 400)])
def test_pauses_have_bounds(client, seconds, status):
    assert client.get(f"/sleep?seconds={seconds}").status_code == status


def test_stream_is_made_of_lines(client):
    assert client.get("/stream?seconds=0").text.count("\n") == 5


def test_config_shows_no_secret(client, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hidden")
    assert client.get("/config").json == {"SECRET_KEY": True}
    assert "hidden" not in client.get("/config").text


def test_page_names_the_release(client):
    assert "from release" in client.get("/").text
