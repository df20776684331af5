"""What we know of mod_wsgi-express: its options by type, and which of them are not the operator's to set.

The table comes from `mod_wsgi.express.options` of 6.1.1. Options for what the web server in front does (TLS, files,
access) and for debugging are missing.
"""

from __future__ import annotations

from typing import Any

from ._checks import Check, Where, boolean, choice, integer
from ._hosted import Hosted, check_hosted

OLDEST_PYTHON = (3, 10)

_COUNTS = ("processes", "threads", "daemon_backlog")
_SECONDS = ("connect_timeout", "queue_timeout", "shutdown_timeout", "socket_timeout", "startup_timeout")
# 0 is off, without limit, or the system's own.
_OR_NONE = (
    *("body_max_timeout", "body_min_rate", "body_timeout", "header_max_timeout", "header_min_rate", "header_timeout"),
    *("cpu_time_limit", "deadlock_timeout", "eviction_timeout", "graceful_timeout", "inactivity_timeout"),
    *("interrupt_timeout", "request_timeout", "restart_interval", "maximum_requests", "limit_request_body"),
    *("header_buffer_size", "receive_buffer_size", "response_buffer_size", "send_buffer_size"),
    *("response_flush_delay", "response_socket_timeout"),
)
SETTINGS: dict[str, Check] = {
    **dict.fromkeys((*_COUNTS, *_SECONDS), integer(1)),
    **dict.fromkeys(_OR_NONE, integer(0)),
    **dict.fromkeys(("chunked_request", "compress_responses", "enable_sendfile", "orphan_interpreter"), boolean),
    "log_level": choice("debug", "info", "notice", "warn", "error", "crit"),
    "map_head_to_get": choice("Auto", "Off", "On"),
}
_LISTENS = "is derived; give port on the record for a TCP socket"
_CALLABLE = "is derived; give callable on the record"
_ENV = "belongs on the record; give env or secrets there"
_FRONT = "is for the web server in front; give it under nginx on the record, where that knows it"
_LOGS = "is derived: supervisor has the log; leave it out"
_LEAVE = "is derived; leave it out"
_BELIEVED = "is derived: the web server in front is believed; leave it out"
DERIVED = {
    **dict.fromkeys(("host", "port"), _LISTENS),
    **dict.fromkeys(("application_type", "callable_object", "entry_point", "mount_point"), _CALLABLE),
    **dict.fromkeys(("passenv", "setenv"), _ENV),
    **dict.fromkeys(("document_root", "http2", "https_port", "server_alias", "server_name", "url_alias"), _FRONT),
    **dict.fromkeys(("access_log", "log_directory", "log_to_terminal", "rotate_logs"), _LOGS),
    **dict.fromkeys(("group", "include_file", "pid_file", "server_root", "user", "working_directory"), _LEAVE),
    **dict.fromkeys(("disable_reloading", "reload_on_changes"), "is derived: a release never changes; leave it out"),
    "keep_alive_timeout": "is derived: every connection has one request; leave it out",
    "max_clients": "is derived from processes and threads; leave it out",
    "server_backlog": "belongs to supervisor, which holds the socket; give supervisor.socket_backlog on the record",
    **dict.fromkeys(("trust_proxy", "trust_proxy_header"), _BELIEVED),
    "workers": "is gunicorn's; give instances for Apaches and processes for each of them",
}
MOD_WSGI = Hosted("mod_wsgi-express", SETTINGS, DERIVED, "6.1.1", (6, 0, 0), "have other options")


def check_mod_wsgi(value: object, where: Where) -> dict[str, Any] | None:
    """Check the part of a record about mod_wsgi; returns {version, instances, stop_timeout, settings}."""
    return check_hosted(MOD_WSGI, value, where)


def complete_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Add what a production team would choose to the settings that the operator gave."""
    return {
        "processes": 1,
        "threads": 8,
        "socket_timeout": 60,
        # As long as role supervisor waits; mod_wsgi's own 15 are not much for a host that has just started.
        "startup_timeout": 60,
        # What the web server in front lets in.
        "limit_request_body": 0,
        "chunked_request": True,
        **given,
    }
