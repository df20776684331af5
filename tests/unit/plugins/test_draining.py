"""Servers that leave upstreams and come back, in files as role nginx writes them."""

from __future__ import annotations

from ansible_collections.wsgi.fleet.plugins.module_utils.draining import has_drained, mark, set_servers

SITE = """\
upstream shop {
    zone shop 68k;
    least_conn;
    server 192.0.2.11:80 weight=1 max_fails=1 fail_timeout=10s;
    server 192.0.2.12:80 weight=1 max_fails=1 fail_timeout=10s backup;
    keepalive 32;
}

server {
    server_name shop.example.com;
    listen 80;
}
"""


def test_server_goes_and_comes_back() -> None:
    drained, alone = set_servers(SITE, ["192.0.2.11:80"], down=True)
    assert alone == []
    assert "server 192.0.2.11:80 weight=1 max_fails=1 fail_timeout=10s down;" in drained
    assert drained.count(" down;") == 1
    assert has_drained(drained)
    assert set_servers(drained, ["192.0.2.11:80"], down=True) == (drained, [])
    assert set_servers(drained, ["192.0.2.11:80"], down=False) == (SITE, [])
    assert not has_drained(SITE)


def test_address_is_not_the_beginning_of_another() -> None:
    assert set_servers(SITE, ["192.0.2.1:80"], down=True) == (SITE, [])
    assert set_servers(SITE, ["192.0.2.11:8"], down=True) == (SITE, [])


def test_instances_of_a_host_go_together() -> None:
    both = ["192.0.2.11:80", "192.0.2.12:80"]
    assert set_servers(SITE, both, down=True) == (SITE, ["shop"])  # nobody would be left
    more = SITE.replace("    keepalive", "    server 192.0.2.13:80;\n    keepalive")
    drained, alone = set_servers(more, both, down=True)
    assert (drained.count(" down;"), alone) == (2, [])
    assert set_servers(drained, both, down=False) == (more, [])


def test_last_server_stays() -> None:
    drained, _ = set_servers(SITE, ["192.0.2.12:80"], down=True)
    assert set_servers(drained, ["192.0.2.11:80"], down=True) == (drained, ["shop"])
    one = SITE.replace("    server 192.0.2.12:80 weight=1 max_fails=1 fail_timeout=10s backup;\n", "")
    assert set_servers(one, ["192.0.2.11:80"], down=True) == (one, ["shop"])


def test_configuration_says_that_it_is_not_what_was_written() -> None:
    text = f"location = /config {{\n    return 200 {'a1' * 32};\n}}\n"
    drained = mark(text, drained=True)
    assert f"return 200 drained-{'a1' * 32};" in drained
    assert mark(drained, drained=True) == drained
    assert mark(drained, drained=False) == text
