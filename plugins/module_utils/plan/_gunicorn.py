"""What we know of gunicorn: its settings by type, since when, and which of them are not the operator's to set.

The table comes from `gunicorn.config.KNOWN_SETTINGS` of 22.0.0 to 27.0.1 (each validator sorted into one of the kinds
below, a name's first release kept in SINCE). No setting of 22.0.0 but one (gone in 23.0) is missing from 27.0.1.
A gunicorn reads over names in its configuration file that it does not know: a wrong name must be refused here.
"""

from __future__ import annotations

import re
from typing import Any

from ._checks import Where, boolean, integer, kind, list_of, plain, show, string, suggest

DEFAULT_VERSION = "27.0.1"
# The newest release that still has the eventlet worker.
DEFAULT_VERSION_EVENTLET = "25.3.0"
OLDEST_VERSION = (22, 0)
WORKER_CLASSES = ("sync", "gthread", "gevent", "tornado", "eventlet")
# Worker classes that need a package; gunicorn has an extra of the same name, which knows the oldest good version.
EXTRAS = ("gevent", "tornado", "eventlet")

_KINDS = {
    "int": (
        "asgi_disconnect_grace_period cert_reqs control_socket_mode dirty_graceful_timeout dirty_threads dirty_timeout "
        "dirty_workers graceful_timeout http2_initial_window_size http2_max_concurrent_streams http2_max_frame_size "
        "http2_max_header_list_size keepalive limit_request_field_size limit_request_fields limit_request_line "
        "max_requests max_requests_jitter threads timeout umask websocket_max_message_size worker_connections"
    ),
    "bool": (
        "capture_output casefold_http_method control_socket_disable disable_redirect_access_to_syslog "
        "do_handshake_on_connect enable_backlog_metric enable_stdio_inheritance initgroups permit_obsolete_folding "
        "permit_unconventional_http_method permit_unconventional_http_version preload_app reload sendfile spew "
        "strip_header_spaces suppress_ragged_eofs syslog"
    ),
    "str": (
        "access_log_format accesslog asgi_lifespan asgi_loop ca_certs ciphers control_socket dogstatsd_tags errorlog "
        "forwarded_allow_ips forwarder_headers header_map http2_cleartext http_parser http_protocols logconfig "
        "logconfig_json logger_class loglevel proc_name proxy_allow_ips pythonpath reload_engine root_path ssl_version "
        "statsd_host statsd_prefix syslog_addr syslog_facility syslog_prefix tmp_upload_dir uwsgi_allow_ips "
        "worker_class worker_tmp_dir"
    ),
    "list": "dirty_apps reload_extra_files",
    "dict": "logconfig_dict secure_scheme_headers",
    "hook": (
        "child_exit dirty_post_fork dirty_worker_exit dirty_worker_init nworkers_changed on_dirty_starting on_exit "
        "on_reload on_starting post_fork post_request post_worker_init pre_exec pre_fork pre_request ssl_context "
        "when_ready worker_abort worker_exit worker_int"
    ),
}
SETTINGS = {name: kind_ for kind_, names in _KINDS.items() for name in names.split()}

_SINCE_NAMES = {
    (23, 0): "forwarder_headers permit_obsolete_folding",
    (24, 0): "asgi_lifespan asgi_loop root_path uwsgi_allow_ips",
    (24, 1): "enable_backlog_metric",
    (25, 0): (
        "asgi_disconnect_grace_period dirty_apps dirty_graceful_timeout dirty_threads dirty_timeout dirty_workers "
        "http2_initial_window_size http2_max_concurrent_streams http2_max_frame_size http2_max_header_list_size "
        "http_protocols"
    ),
    (25, 1): "control_socket control_socket_disable control_socket_mode",
    (25, 2): "http_parser",
    (26, 2): "http2_cleartext",
    (27, 0): "websocket_max_message_size",
}
SINCE = {name: release for release, names in _SINCE_NAMES.items() for name in names.split()}

_SYSTEM = "is derived from the app; leave it out"
_TLS = "does not belong here: nginx ends TLS; give nginx.tls on the record"
_HTTP = "cannot be set: nginx speaks plain HTTP to gunicorn; leave it out"
DERIVED = {
    "backlog": "belongs to supervisor, which holds the socket; give supervisor.socket_backlog on the record",
    "bind": "is derived; give port on the record for a TCP socket",
    "certfile": _TLS,
    "chdir": _SYSTEM,
    "check_config": "is for a command line; leave it out",
    "config": _SYSTEM,
    "daemon": "would hide gunicorn from supervisor; leave it out",
    "default_proc_name": "is gunicorn's own; give proc_name",
    "group": _SYSTEM,
    "keyfile": _TLS,
    "paste": "would replace the app; give callable on the record",
    "pidfile": "is not needed: supervisor knows its processes; leave it out",
    "print_config": "is for a command line; leave it out",
    "protocol": _HTTP,
    "proxy_protocol": _HTTP,
    "raw_env": "would show in process lists and files; give env or secrets on the record",
    "raw_paste_global_conf": "is of use with paste only; leave it out",
    "reuse_port": "cannot be set: supervisor holds the socket; leave it out",
    "user": _SYSTEM,
    "workers": "belongs on the record: workers there is the total on one host, over all masters",
    "wsgi_app": "belongs on the record; give callable there",
}

_CHECKS = {
    "int": integer(0),
    "bool": boolean,
    "list": list_of(string(), "a list of strings"),
}
# A name from here is either right, or told where it belongs.
_SUGGESTED = [*(name for name, kind_ in SETTINGS.items() if kind_ != "hook"), *DERIVED, "version"]
_VERSION = re.compile(r"\d+(\.\d+){0,3}((a|b|rc)\d+)?(\.post\d+)?")


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    numbers = [int(number) for number in re.findall(r"\d+", version)] + [0]
    return numbers[0], numbers[1]


def check_gunicorn(value: object, where: Where) -> dict[str, Any] | None:
    """Check the settings of a record; returns {version, settings} with what the operator gave."""
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping of gunicorn's settings and version")
        return None
    settings = {
        str(name): _setting(str(name), member, where.at(str(name)))
        for name, member in value.items()
        if name != "version"
    }
    eventlet = settings.get("worker_class") == "eventlet"
    version = DEFAULT_VERSION_EVENTLET if eventlet else DEFAULT_VERSION
    if "version" in value:
        version = _version(value["version"], where.at("version"))
    if version:
        _fit_version(version, settings, where)
    return {"version": version, "settings": settings}


def _version(value: object, where: Where) -> str:
    version = string(f'an exact version such as "{DEFAULT_VERSION}"', _VERSION.pattern)(value, where)
    if version and release(version) < OLDEST_VERSION:
        where.fail(f"is {version}, must be 22.0.0 or newer (older ones let requests be smuggled past nginx)")
        return ""
    return version or ""


def _setting(name: str, value: object, where: Where) -> object:
    if name in DERIVED:
        where.fail(DERIVED[name])
        return None
    kind_ = SETTINGS.get(name)
    if kind_ is None:
        where.fail(f"is no setting of gunicorn; {suggest(name, _SUGGESTED)}")
        return None
    if kind_ == "hook":
        where.fail("is a server hook: Python code, which cannot be given as data; leave it out")
        return None
    if name == "worker_class":
        return _worker_class(value, where)
    if kind_ == "str":
        return _string(value, where)
    if kind_ == "dict":
        return _dict(value, where)
    return _CHECKS[kind_](value, where)


def _string(value: object, where: Where) -> str | None:
    # None switches a setting off (accesslog), and an empty string is a value to some (statsd_prefix).
    if value is None:
        return None
    if value == "":
        return ""
    return string()(value, where)


def _dict(value: object, where: Where) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        where.fail(f"is {kind(value)}, must be a mapping")
        return None
    try:
        result: dict[str, Any] = plain(value)
    except TypeError as error:
        where.fail(f"must hold plain data only: {error}")
        return None
    return result


def _worker_class(value: object, where: Where) -> str | None:
    wanted = f"one of {', '.join(WORKER_CLASSES)}, or the dotted path of a class"
    name = string(wanted)(value, where)
    if name is None or name in WORKER_CLASSES:
        return name
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return name
    where.fail(f"is {show(name)}, must be {wanted}")
    return None


def _fit_version(version: str, settings: dict[str, Any], where: Where) -> None:
    have = release(version)
    if settings.get("worker_class") == "eventlet" and have >= (26, 0):
        where.at("worker_class").fail(
            f"eventlet left gunicorn with 26.0, but gunicorn.version is {version}; "
            f'take gevent or gthread, or give version "{DEFAULT_VERSION_EVENTLET}"'
        )
    for name in settings:
        if SINCE.get(name, have) > have:
            since = ".".join(map(str, SINCE[name]))
            where.at(name).fail(f"needs gunicorn {since} or newer, but gunicorn.version is {version}; leave it out")


def complete_settings(name: str, version: str, given: dict[str, Any]) -> dict[str, Any]:
    """Add what a production team would choose to the settings that the operator gave."""
    worker_class = given.get("worker_class", "gthread")
    defaults: dict[str, Any] = {
        # Threads bear slow clients, uploads and databases; no app needs to be written for them.
        "worker_class": worker_class,
        # A worker that is silent this long is stuck; and it may finish what it does when it is told to stop.
        "timeout": 30,
        "graceful_timeout": 30,
        # Enough for the connections that a busy nginx uses again. nginx closes idle ones a second before (see
        # nginx_sites): were gunicorn the first to close, a POST that crosses the closing would be lost.
        "keepalive": 5,
        # Bounds what a slow leak can take; the jitter keeps workers from going all at once.
        "max_requests": 10000,
        "max_requests_jitter": given.get("max_requests", 10000) // 10,
        # The heartbeat file in memory: on a disk that stalls, gunicorn would kill healthy workers.
        "worker_tmp_dir": "/dev/shm",  # noqa: S108  # a file without a name, made safely by gunicorn
        # To supervisor's log file. Requests are in nginx's log, with the time that gunicorn took: to write each of them
        # here too, through supervisord, costs a third of the CPU of a quick answer (bench/results/tuning.md).
        "errorlog": "-",
        # Shown by ps and top where the app's packages have setproctitle.
        "proc_name": name,
        # forwarded_allow_ips stays gunicorn's own: a Unix socket is trusted always, TCP from 127.0.0.1 and ::1.
    }
    if worker_class == "gthread":
        defaults["threads"] = 4
    if given.get("accesslog"):
        # The peer is nginx, so the client is who nginx says; with the time that it took.
        defaults["access_log_format"] = '%({x-real-ip}i)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(L)s'
    if "control_socket" not in given and release(version) >= SINCE["control_socket"]:
        # A second way in that nobody here uses, under a home directory that two masters would share.
        defaults["control_socket_disable"] = True
    return {**defaults, **given}


def requirement(version: str, worker_class: str) -> str:
    """Return what to install: gunicorn, pinned, with the extra of its worker class."""
    extra = f"[{worker_class}]" if worker_class in EXTRAS else ""
    return f"gunicorn{extra}=={version}"
