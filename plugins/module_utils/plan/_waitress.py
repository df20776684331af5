"""What we know of waitress: its settings by type, and which of them are not the operator's to set.

The table comes from `waitress.adjustments.Adjustments` of 2.1.2 to 3.0.2, which have the same settings.
"""

from __future__ import annotations

from typing import Any

from ._checks import Check, Where, boolean, choice, integer, list_of, string
from ._hosted import Hosted, check_hosted

# The version that Python needs to be: 3.0 is for 3.9 and newer.
OLDEST_PYTHON = (3, 9)

_HEADERS = (
    "forwarded",
    "x-forwarded-by",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
)


def _text(value: object, where: Where) -> str | None:
    # None and an empty string switch a setting off (ident, url_prefix, trusted_proxy).
    return None if value is None else "" if value == "" else string()(value, where)


_NUMBER, _FROM_ONE = integer(0), integer(1)
SETTINGS: dict[str, Check] = {
    "asyncore_loop_timeout": _FROM_ONE,
    "asyncore_use_poll": boolean,
    # One less is how long nginx keeps idle connections.
    "channel_timeout": integer(2),
    "channel_request_lookahead": _NUMBER,
    "cleanup_interval": _FROM_ONE,
    "clear_untrusted_proxy_headers": boolean,
    "connection_limit": integer(10),
    "expose_tracebacks": boolean,
    "ident": _text,
    "inbuf_overflow": _FROM_ONE,
    "log_socket_errors": boolean,
    "log_untrusted_proxy_headers": boolean,
    "max_request_body_size": _FROM_ONE,
    "max_request_header_size": _FROM_ONE,
    "outbuf_high_watermark": _FROM_ONE,
    "outbuf_overflow": _FROM_ONE,
    "recv_bytes": _FROM_ONE,
    "server_name": string(),
    "threads": _FROM_ONE,
    "trusted_proxy": _text,
    "trusted_proxy_count": _FROM_ONE,
    "trusted_proxy_headers": list_of(choice(*_HEADERS), "a list of headers"),
    "url_prefix": _text,
    "url_scheme": choice("http", "https"),
}
_LISTENS = "is derived; give port on the record for a TCP socket"
DERIVED = {
    "backlog": "belongs to supervisor, which holds the socket; give supervisor.socket_backlog on the record",
    **dict.fromkeys(("host", "port", "listen", "ipv4", "ipv6", "sockets"), _LISTENS),
    **dict.fromkeys(("unix_socket", "unix_socket_perms"), "is derived; leave it out"),
    "send_bytes": "is about to leave waitress; leave it out",
    "socket_options": "is nothing that waitress would read; leave it out",
    "workers": "is gunicorn's; give instances for processes and threads for each of them",
}
WAITRESS = Hosted("waitress", SETTINGS, DERIVED, "3.0.2", (2, 1, 2), "let requests be smuggled past nginx")


def check_waitress(value: object, where: Where) -> dict[str, Any] | None:
    """Check waitress' part of a record; returns {version, instances, stop_timeout, settings}."""
    checked = check_hosted(WAITRESS, value, where)
    if checked:
        _check_proxy(checked["settings"], where)
    return checked


def _check_proxy(settings: dict[str, Any], where: Where) -> None:
    headers = settings.get("trusted_proxy_headers") or []
    if "forwarded" in headers and len(headers) > 1:
        where.at("trusted_proxy_headers").fail(
            "holds forwarded and others; waitress takes either forwarded or the others"
        )
    if "trusted_proxy" in settings and not settings["trusted_proxy"]:
        for name in ("trusted_proxy_headers", "trusted_proxy_count"):
            if settings.get(name):
                where.at(name).fail("is of no use without trusted_proxy; leave one of them out")


def complete_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Add what a production team would choose on Linux to the settings that the operator gave."""
    return {
        "threads": 8,
        # The idle connections of a few nginx workers use up waitress' own 100, and then nobody gets in any more.
        "connection_limit": 1000,
        "asyncore_use_poll": True,  # select() knows no more than 1024
        # nginx closes idle connections before (see nginx_sites); what a client left behind goes soon after.
        "channel_timeout": 120,
        "cleanup_interval": 10,
        **given,
    }


def trusting(settings: dict[str, Any], proxy: str) -> dict[str, Any]:
    """Add whom to believe about clients, where the operator did not say: nginx, and the headers that it sends."""
    trusted = {"trusted_proxy": proxy, **settings}
    if trusted["trusted_proxy"]:
        trusted.setdefault("trusted_proxy_headers", ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"])
    return trusted
