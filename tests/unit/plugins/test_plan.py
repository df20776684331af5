"""What the plan makes of right records: defaults, topologies, ports, and what each role of each host is given."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.wsgi.fleet.plugins.filter.plan import FilterModule
from ansible_collections.wsgi.fleet.plugins.filter.supervisor_tree import supervisor_tree
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _mod_wsgi, _waitress
from waitress.adjustments import Adjustments

ROOT = Path(__file__).resolve().parents[3]
SHOP = {
    "name": "shop",
    "domains": ["shop.example.com"],
    "source": {"git": "https://git.example.com/shop.git", "version": "v1"},
    "callable": "wsgi:app",
}
PEM = "-----BEGIN {0}-----\nMIIB\n-----END {0}-----\n".format
# Every key of a record, each with a value that is no default.
FULL = {
    **SHOP,
    "hosts": ["app1"],
    "server": "gunicorn",
    "python": "3.13",
    "requirements": ["requirements/prod.txt"],
    "packages": ["redis==7.0.1"],
    "workers": 7,
    "masters": 3,
    "gunicorn": {
        "version": "26.2.0",
        "worker_class": "gevent",
        "timeout": 120,
        "graceful_timeout": 60,
        "keepalive": 75,
    },
    "port": 8000,
    "health": "/healthz?full=1",
    "env": {"DEBUG": False, "SIZE": 5, "RATIO": 0.5, "TEXT": "it's %d {{ x }}"},
    "secrets": {"KEY": 'it\'s "secret"'},
    "keep_releases": 3,
    "nginx": {
        "client_max_body_size": "50m",
        "proxy_connect_timeout": 2,
        "proxy_send_timeout": 20,
        "proxy_read_timeout": 200,
        "balance": "ip_hash",
        "keepalive": 8,
        "max_fails": 5,
        "fail_timeout": 30,
        "http2": False,
        "https_redirect": True,
        "error_pages": [{"codes": [502, 504], "content": "<h1>Soon</h1>"}],
        "maintenance_page": "<h1>Closed</h1>",
        "cors": {
            "origins": ["https://partner.example.net:8443"],
            "methods": ["GET"],
            "headers": ["X-Token"],
            "expose_headers": ["X-Total"],
            "credentials": True,
            "max_age": 60,
        },
        "tls": {"mode": "files", "certificate": PEM("CERTIFICATE"), "key": PEM("PRIVATE KEY")},
    },
    "supervisor": {
        "stopwaitsecs": 90,
        "autorestart": False,
        "stdout_logfile_maxbytes": 0,
        "exitcodes": [0, 3],
        "umask": "027",
    },
    "programs": [
        {"name": "worker", "command": "celery -A wsgi.celery worker", "numprocs": 2, "stopsignal": "INT"},
        {"name": "beat", "command": "celery -A wsgi.celery beat", "priority": 5, "redirect_stderr": False},
    ],
}


def addresses(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(names, 1)}


def make(
    *records: dict[str, Any],
    apps: str = "app1 app2",
    balancers: str = "",
    hosts: Mapping[str, Mapping[str, Any]] | None = None,
    **groups: list[str],
) -> dict[str, Any]:
    groups = {"linux_apps": apps.split(), "balancers": balancers.split(), **groups}
    hosts = {**addresses(*sorted({*apps.split(), *balancers.split()})), **(hosts or {})}
    return fleet.make_plan(list(records) or [SHOP], groups, hosts)


def upstreams(plan: dict[str, Any], host: str) -> dict[str, list[str]]:
    """The addresses behind each site of a host."""
    sites = fleet.nginx_sites(plan, host)
    return {site["name"]: [server["address"] for server in site["upstream"]["servers"]] for site in sites}


def doors(plan: dict[str, Any], host: str) -> list[tuple[int, str]]:
    """Who may reach which port of a host."""
    return [(rule["port"], rule["from"]) for rule in fleet.ufw_rules(plan, host)]


WAITRESS = {
    **SHOP,
    "server": "waitress",
    "waitress": {
        "version": "3.0.1",
        "instances": 4,
        "stop_timeout": 60,
        "threads": 16,
        "channel_timeout": 30,
        "trusted_proxy_headers": ["x-forwarded-for"],
        "ident": None,
    },
    "port": 8000,
}


# --- defaults --------------------------------------------------------------------------------------------------


def test_four_keys_are_enough():
    plan = make(SHOP, apps="app1")
    request = {"host": "shop.example.com", "path": "/", "below": 500}
    assert fleet.python_versions(plan, "app1") == []
    assert fleet.app_apps(plan, "app1") == [
        {
            "name": "shop",
            "source": SHOP["source"],
            "requirements": [],
            "packages": ["gunicorn==27.0.1"],
            "start": ["gunicorn", "-c", "/etc/wsgi-fleet/shop/gunicorn.conf.py"],
            "start_otherwise": [
                {
                    "without": "gunicorn",
                    "program": "waitress-serve",
                    "command": [
                        "python",
                        "/etc/wsgi-fleet/shop/wsgi_host.py",
                        "/etc/wsgi-fleet/shop/waitress.json",
                    ],
                },
                {
                    "without": "gunicorn",
                    "program": "mod_wsgi-express",
                    "command": [
                        "python",
                        "/etc/wsgi-fleet/shop/express_host.py",
                        "/etc/wsgi-fleet/shop/mod_wsgi.json",
                    ],
                },
            ],
            "check": ["gunicorn", "--check-config", "-c", "/etc/wsgi-fleet/shop/gunicorn.conf.py"],
            "serve": ["gunicorn", "--workers", "1", "-c", "/etc/wsgi-fleet/shop/gunicorn.conf.py"],
            "probes": [
                {"name": "its socket", "socket": "/run/wsgi-fleet/shop.sock", **request},
                {"name": "nginx", "address": "127.0.0.1", "port": 80, **request, "below": 504},
            ],
            "health_timeout": 30,
            "hooks": {},
            "env": {},
            "secrets": {},
            "keep_releases": 5,
        }
    ]
    [instance] = fleet.gunicorn_instances(plan, "app1", 4)
    assert {key: value for key, value in instance.items() if key != "settings"} == {
        "name": "shop",
        "user": "shop",
        "group": "shop",
        "callable": "wsgi:app",
        "runner": ["/etc/wsgi-fleet/shop/run", "--next"],
    }
    assert instance["settings"] == {
        "bind": "fd://0",
        "workers": 5,
        "worker_class": "gthread",
        "threads": 4,
        "timeout": 30,
        "graceful_timeout": 30,
        "keepalive": 5,
        "max_requests": 10000,
        "max_requests_jitter": 1000,
        "worker_tmp_dir": "/dev/shm",
        "errorlog": "-",
        "proc_name": "shop",
        "control_socket_disable": True,
    }
    assert fleet.supervisor_programs(plan, "app1") == [
        {
            "name": "shop",
            "type": "fcgi-program",
            "command": "/etc/wsgi-fleet/shop/start",
            "numprocs": 2,
            "process_name": "%(program_name)s_%(process_num)d",
            "socket": "unix:///run/wsgi-fleet/shop.sock",
            "socket_owner": "shop:www-data",
            "socket_mode": "0660",
            "socket_backlog": 2048,
            "user": "shop",
            "directory": "/srv/shop",
            "autorestart": "true",
            "startsecs": 5,
            "ready": True,
            "stopsignal": "TERM",
            "stopwaitsecs": 40,
            "stopasgroup": False,
            "killasgroup": True,
            "stdout_logfile": "/var/log/wsgi-fleet/shop/web_%(process_num)d.log",
            "redirect_stderr": True,
            "watch": [
                "/srv/shop/current",
                "/etc/wsgi-fleet/shop/env",
                "/etc/wsgi-fleet/shop/run",
                "/etc/wsgi-fleet/shop/start",
                "/etc/wsgi-fleet/shop/gunicorn.conf.py",
                "/etc/wsgi-fleet/shop/waitress.json",
                "/etc/wsgi-fleet/shop/wsgi_host.py",
                "/etc/wsgi-fleet/shop/mod_wsgi.json",
                "/etc/wsgi-fleet/shop/express_host.py",
            ],
        }
    ]
    assert fleet.nginx_sites(plan, "app1") == [
        {
            "name": "shop",
            "server_names": ["shop.example.com"],
            "http_port": 80,
            "https_port": 443,
            "http2": True,
            "https_redirect": False,
            "tls": {"mode": "self_signed"},
            "maintenance": {"open_paths": []},
            "trusted_proxies": [],
            "upstream": {
                "servers": [{"address": "unix:/run/wsgi-fleet/shop.sock", "max_fails": 3, "fail_timeout": 10}],
                "balance": "least_conn",
                "keepalive": 512,
                "keepalive_timeout": 4,
            },
            "client_max_body_size": "10m",
            "proxy_connect_timeout": 2,
            "proxy_send_timeout": 60,
            "proxy_read_timeout": 35,
            "error_pages": [],
        }
    ]
    assert doors(plan, "app1") == [(80, "any"), (443, "any")]


def test_every_key_arrives():
    plan = make(FULL)
    assert fleet.python_versions(plan, "app1") == ["3.13"]
    [app] = fleet.app_apps(plan, "app1")
    assert app["packages"] == ["gunicorn[gevent]==26.2.0", "redis==7.0.1"]
    assert app["env"] == {"DEBUG": "false", "SIZE": "5", "RATIO": "0.5", "TEXT": "it's %d {{ x }}"}
    assert app["secrets"] == FULL["secrets"]
    assert (app["python"], app["keep_releases"]) == ("3.13", 3)
    assert app["requirements"] == ["requirements/prod.txt"]
    [instance] = fleet.gunicorn_instances(plan, "app1", 64)
    assert instance["settings"]["workers"] == 3  # 7 over 3 masters, rounded up
    assert instance["settings"]["timeout"] == 120
    assert "threads" not in instance["settings"]
    program, *_ = fleet.supervisor_programs(plan, "app1")
    assert (program["numprocs"], program["socket"]) == (3, "tcp://127.0.0.1:8000")
    assert "socket_owner" not in program
    assert "socket_mode" not in program
    assert (program["stopwaitsecs"], program["autorestart"], program["umask"]) == (90, "false", "027")
    [site] = fleet.nginx_sites(plan, "app1")
    nginx = FULL["nginx"]
    for key in ("http2", "https_redirect", "error_pages", "cors", "tls", "client_max_body_size", "proxy_read_timeout"):
        assert site[key] == nginx[key]
    assert site["maintenance"] == {"open_paths": ["/healthz"], "page": "<h1>Closed</h1>"}
    assert site["upstream"] == {
        "servers": [{"address": "127.0.0.1:8000", "max_fails": 5, "fail_timeout": 30}],
        "balance": "ip_hash",
        "keepalive": 8,
        "keepalive_timeout": 60,
    }


_LOG_FORMAT = '%({x-real-ip}i)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(L)s'


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"worker_class": "sync"}, {"worker_class": "sync"}),
        ({"threads": 16}, {"worker_class": "gthread", "threads": 16}),
        ({"max_requests": 500}, {"max_requests": 500, "max_requests_jitter": 50}),
        ({"max_requests": 0}, {"max_requests": 0, "max_requests_jitter": 0}),
        ({"max_requests_jitter": 7}, {"max_requests": 10000, "max_requests_jitter": 7}),
        ({"accesslog": None, "statsd_prefix": ""}, {"accesslog": None, "statsd_prefix": ""}),
        ({"accesslog": "-"}, {"accesslog": "-", "access_log_format": _LOG_FORMAT}),
        ({"accesslog": "-", "access_log_format": "%(U)s"}, {"accesslog": "-", "access_log_format": "%(U)s"}),
        ({"control_socket": "/run/x.ctl"}, {"control_socket": "/run/x.ctl"}),
        ({"worker_class": "uvicorn_worker.UvicornWorker"}, {"worker_class": "uvicorn_worker.UvicornWorker"}),
    ],
)
def test_gunicorn_settings_are_completed(given, wanted):
    settings = make({**SHOP, "gunicorn": given})["apps"]["shop"]["gunicorn"]["settings"]
    assert settings == settings | wanted
    assert ("threads" in settings) == (settings["worker_class"] == "gthread")
    assert ("control_socket_disable" in settings) == ("control_socket" not in given)
    assert ("access_log_format" in settings) == bool(given.get("accesslog"))


@pytest.mark.parametrize(
    ("given", "packages"),
    [
        ({}, "gunicorn==27.0.1"),
        ({"worker_class": "gevent"}, "gunicorn[gevent]==27.0.1"),
        ({"worker_class": "tornado"}, "gunicorn[tornado]==27.0.1"),
        ({"worker_class": "eventlet"}, "gunicorn[eventlet]==25.3.0"),
        ({"worker_class": "eventlet", "version": "25.1.0"}, "gunicorn[eventlet]==25.1.0"),
        ({"version": "23.0.0"}, "gunicorn==23.0.0"),
    ],
)
def test_gunicorn_comes_pinned_with_what_its_workers_need(given, packages):
    plan = make({**SHOP, "gunicorn": given})
    assert fleet.app_apps(plan, "app1")[0]["packages"] == [packages]
    old = given.get("version") == "23.0.0"  # has no control socket to switch off
    assert ("control_socket_disable" in plan["apps"]["shop"]["gunicorn"]["settings"]) != old


@pytest.mark.parametrize(
    ("workers", "masters", "vcpus", "each"),
    [
        ("auto", 2, 1, 2),
        ("auto", 2, 4, 5),
        ("auto", 1, 4, 9),
        ("auto", 8, 1, 1),
        (1, 2, 64, 1),
        (8, 2, 1, 4),
        (9, 2, 1, 5),
    ],
)
def test_workers_are_shared_out(workers, masters, vcpus, each):
    plan = make({**SHOP, "workers": workers, "masters": masters})
    assert fleet.gunicorn_instances(plan, "app1", vcpus)[0]["settings"]["workers"] == each


@pytest.mark.parametrize(
    ("gunicorn", "read", "keepalive"),
    [
        ({"timeout": 100}, 105, {"keepalive": 512, "keepalive_timeout": 4}),
        ({"timeout": 0}, 3600, {"keepalive": 512, "keepalive_timeout": 4}),
        ({"keepalive": 1}, 35, {"keepalive": 0}),
        ({"keepalive": 3600}, 35, {"keepalive": 512, "keepalive_timeout": 60}),
    ],
)
def test_nginx_times_follow_gunicorn(gunicorn, read, keepalive):
    [site] = fleet.nginx_sites(make({**SHOP, "gunicorn": gunicorn}), "app1")
    assert site["proxy_read_timeout"] == read
    assert {key: value for key, value in site["upstream"].items() if key.startswith("keepalive")} == keepalive


def test_waitress_needs_no_more_than_its_name():
    plan = make({**SHOP, "server": "waitress"}, apps="app1")
    assert fleet.gunicorn_instances(plan, "app1", 4) == []
    [app] = fleet.app_apps(plan, "app1")
    config = "/etc/wsgi-fleet/shop"
    assert app["packages"] == ["waitress==3.0.2"]
    assert app["start"] == app["serve"] == ["python", f"{config}/wsgi_host.py", f"{config}/waitress.json"]
    assert [(other["without"], other["program"], other["command"]) for other in app["start_otherwise"]] == [
        ("waitress-serve", "gunicorn", ["gunicorn", "-c", f"{config}/gunicorn.conf.py"]),
        ("waitress-serve", "mod_wsgi-express", ["python", f"{config}/express_host.py", f"{config}/mod_wsgi.json"]),
    ]
    assert app["check"] == ["python", f"{config}/wsgi_host.py", "--check", f"{config}/waitress.json"]
    assert fleet.waitress_instances(plan, "app1") == [
        {
            "name": "shop",
            "user": "shop",
            "group": "shop",
            "callable": "wsgi:app",
            "runner": [f"{config}/run", "--next"],
            "listen_fd": 0,
            "stop_timeout": 30,
            "settings": {
                "trusted_proxy": "localhost",
                "trusted_proxy_headers": ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"],
                "threads": 8,
                "connection_limit": 1000,
                "asyncore_use_poll": True,
                "channel_timeout": 120,
                "cleanup_interval": 10,
                "backlog": 2048,
            },
        }
    ]
    [site] = fleet.nginx_sites(plan, "app1")
    assert (site["proxy_read_timeout"], site["upstream"]["keepalive_timeout"]) == (60, 60)
    # the same program for supervisord: its processes are replaced one after the other
    assert fleet.supervisor_programs(plan, "app1") == fleet.supervisor_programs(make(SHOP, apps="app1"), "app1")
    assert {"workers", "masters", "gunicorn"}.isdisjoint(plan["apps"]["shop"])
    assert fleet.served_otherwise(plan, "app1", "gunicorn") == ["shop"]
    assert fleet.served_otherwise(plan, "app1", "waitress") == []


def test_every_key_of_waitress_arrives():
    plan = make({**WAITRESS, "supervisor": {"socket_backlog": 64}, "trial": False}, apps="app1")
    [app] = fleet.app_apps(plan, "app1")
    assert (app["packages"], app["serve"]) == (["waitress==3.0.1"], [])
    [instance] = fleet.waitress_instances(plan, "app1")
    assert instance["stop_timeout"] == 60
    assert instance["settings"] == {
        "trusted_proxy": "127.0.0.1",
        "trusted_proxy_headers": ["x-forwarded-for"],
        "threads": 16,
        "connection_limit": 1000,
        "asyncore_use_poll": True,
        "channel_timeout": 30,
        "cleanup_interval": 10,
        "ident": None,
        "backlog": 64,
    }
    [program] = fleet.supervisor_programs(plan, "app1")
    assert (program["numprocs"], program["stopwaitsecs"], program["socket"]) == (4, 70, "tcp://127.0.0.1:8000")
    assert fleet.nginx_sites(plan, "app1")[0]["upstream"]["keepalive_timeout"] == 29


@pytest.mark.parametrize(
    ("given", "trusted"),
    [
        ({"trusted_proxy": None}, {"trusted_proxy": None}),
        ({"trusted_proxy": ""}, {"trusted_proxy": ""}),
        (
            {"trusted_proxy": "*", "trusted_proxy_headers": ["forwarded"]},
            {"trusted_proxy": "*", "trusted_proxy_headers": ["forwarded"]},
        ),
    ],
)
def test_whom_waitress_believes_may_be_said(given, trusted):
    plan = make({**SHOP, "server": "waitress", "waitress": given})
    settings = fleet.waitress_instances(plan, "app1")[0]["settings"]
    assert {key: value for key, value in settings.items() if key.startswith("trusted")} == trusted


def test_settings_of_waitress_are_those_of_its_role():
    spec = yaml.safe_load((ROOT / "roles" / "waitress" / "meta" / "argument_specs.yml").read_text())
    instance = spec["argument_specs"]["main"]["options"]["waitress_instances"]["options"]
    own = {"backlog", "host", "port", "listen", "ipv4", "ipv6", "unix_socket", "unix_socket_perms"}
    assert set(instance["settings"]["options"]) - own == set(_waitress.SETTINGS)
    assert own < set(_waitress.DERIVED)
    known = {*_waitress.SETTINGS, *_waitress.DERIVED} - {"workers", "socket_options"}
    assert known == set(Adjustments._param_map)


def test_mod_wsgi_needs_no_more_than_its_name():
    plan = make({**SHOP, "server": "mod_wsgi", "front": "apache"}, apps="app1")
    [app] = fleet.app_apps(plan, "app1")
    config = "/etc/wsgi-fleet/shop"
    assert app["packages"] == ["mod_wsgi==6.1.1"]
    assert app["start"] == app["serve"] == ["python", f"{config}/express_host.py", f"{config}/mod_wsgi.json"]
    assert app["check"] == ["python", f"{config}/express_host.py", "--check", f"{config}/mod_wsgi.json"]
    assert fleet.mod_wsgi_instances(plan, "app1") == [
        {
            "name": "shop",
            "user": "shop",
            "group": "shop",
            "callable": "wsgi:app",
            "runner": [f"{config}/run", "--next"],
            "stop_timeout": 30,
            "options": {
                "processes": 1,
                "threads": 8,
                "socket_timeout": 60,
                "startup_timeout": 60,
                "limit_request_body": 0,
                "chunked_request": True,
                "trust_proxy_header": ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto"],
            },
        }
    ]
    assert fleet.apache_sites(plan, "app1")[0]["server"] == "unix:/run/wsgi-fleet/shop.sock"
    [site] = fleet.nginx_sites(plan, "app1")
    assert (site["proxy_read_timeout"], site["upstream"]["keepalive"]) == (65, 0)
    # the same program for supervisord as with any server
    assert fleet.supervisor_programs(plan, "app1") == fleet.supervisor_programs(make(SHOP, apps="app1"), "app1")
    assert fleet.served_otherwise(plan, "app1", "mod_wsgi") == []
    assert fleet.gunicorn_instances(plan, "app1", 4) == fleet.waitress_instances(plan, "app1") == []


def test_every_key_of_mod_wsgi_arrives():
    given = {"version": "6.1.0", "instances": 3, "stop_timeout": 50, "threads": 4, "socket_timeout": 90}
    plan = make({**SHOP, "server": "mod_wsgi", "mod_wsgi": given}, apps="app1")
    assert fleet.app_apps(plan, "app1")[0]["packages"] == ["mod_wsgi==6.1.0"]
    [instance] = fleet.mod_wsgi_instances(plan, "app1")
    assert instance["stop_timeout"] == 50
    assert (instance["options"]["threads"], instance["options"]["socket_timeout"]) == (4, 90)
    [program] = fleet.supervisor_programs(plan, "app1")
    assert (program["numprocs"], program["stopwaitsecs"]) == (3, 60)
    assert fleet.nginx_sites(plan, "app1")[0]["proxy_read_timeout"] == 95


def test_settings_of_mod_wsgi_are_those_of_its_role():
    spec = yaml.safe_load((ROOT / "roles" / "mod_wsgi" / "meta" / "argument_specs.yml").read_text())
    instance = spec["argument_specs"]["main"]["options"]["mod_wsgi_instances"]["options"]
    assert set(instance["options"]["options"]) - {"trust_proxy_header"} == set(_mod_wsgi.SETTINGS)
    assert {"trust_proxy_header"} < set(_mod_wsgi.DERIVED)
    assert not set(_mod_wsgi.SETTINGS) & set(_mod_wsgi.DERIVED)


@pytest.mark.parametrize(
    ("server", "packages"), [("gunicorn", []), ("waitress", []), ("mod_wsgi", ["apache2-bin", "apache2-dev"])]
)
def test_hosts_get_the_packages_that_their_servers_need(server, packages):
    plan = make({**SHOP, "server": server, "hosts": ["app1"]}, {**SHOP, "name": "other", "domains": ["other.example"]})
    assert fleet.python_packages(plan, "app1") == packages
    assert fleet.python_packages(plan, "app2") == []


@pytest.mark.parametrize(
    "target", ["wsgi:app", "shop.web:create_app()", 'a.b:make("x y", n=[1, {"k": None}])', 'wsgi:make("it\'s 5 % ;")']
)
def test_callable_reaches_gunicorn_as_it_is_and_leaves_the_program_alone(target):
    plan = make({**SHOP, "callable": target})
    assert fleet.gunicorn_instances(plan, "app1", 2)[0]["callable"] == target
    # A program that changes is stopped and started; a watched file that changes lets its masters take turns.
    assert fleet.supervisor_programs(plan, "app1") == fleet.supervisor_programs(make(SHOP), "app1")


def test_background_programs_run_as_the_app_and_come_after_it():
    command = "celery -A wsgi.celery worker -n worker%(process_num)d@%h"
    programs = [{"name": "worker", "command": command}, {"name": "beat", "command": "celery beat", "stopwaitsecs": 5}]
    web, worker, beat = fleet.supervisor_programs(make({**SHOP, "programs": programs}), "app1")
    assert web["name"] == "shop"
    assert worker == {
        "name": "shop-worker",
        "type": "program",
        "command": "/etc/wsgi-fleet/shop/run celery -A wsgi.celery worker -n 'worker%(process_num)d@%h'",
        "numprocs": 1,
        "process_name": "%(program_name)s_%(process_num)d",
        "user": "shop",
        "directory": "/srv/shop",
        "autorestart": "true",
        "startsecs": 5,
        "stopsignal": "TERM",
        "stopwaitsecs": 60,
        "killasgroup": True,
        "priority": 1000,
        "stdout_logfile": "/var/log/wsgi-fleet/shop/worker_%(process_num)d.log",
        "redirect_stderr": True,
        "watch": ["/srv/shop/current", "/etc/wsgi-fleet/shop/env", "/etc/wsgi-fleet/shop/run"],
    }
    assert (beat["name"], beat["stopwaitsecs"]) == ("shop-beat", 5)
    web, worker, _ = fleet.supervisor_programs(
        make({**SHOP, "programs": programs, "supervisor": {"priority": 10}}), "app1"
    )
    assert (web["priority"], worker["priority"]) == (10, 11)


def test_supervisor_takes_background_programs():
    plan = make({**FULL, "programs": [*FULL["programs"], {"name": "odd", "command": "sh -c 'echo \"$0\" ; exit' %d"}]})
    tree = supervisor_tree(fleet.supervisor_programs(plan, "app1"), [], "/launch", "/var/log/supervisord")
    assert tree["problems"] == []
    assert tree["groups"] == ["shop", "shop-beat", "shop-odd", "shop-worker"]
    assert "/var/log/wsgi-fleet/shop/worker_*.log" in tree["logs"]


@pytest.mark.parametrize("off", ["off", False])
def test_a_bare_yaml_off_is_off(off):
    plan = make({**SHOP, "nginx": {"tls": {"mode": off}}})
    assert fleet.nginx_sites(plan, "app1")[0]["tls"] == {"mode": "off"}
    assert doors(plan, "app1") == [(80, "any")]


def test_https_is_forced_with_a_certificate_that_browsers_trust():
    tls = {"mode": "files", "certificate": PEM("CERTIFICATE"), "key": PEM("EC PRIVATE KEY")}
    assert fleet.nginx_sites(make({**SHOP, "nginx": {"tls": tls}}), "app1")[0]["https_redirect"] is True
    tls = {"nginx": {"tls": tls, "https_redirect": False}}
    assert fleet.nginx_sites(make({**SHOP, **tls}), "app1")[0]["https_redirect"] is False


ACME = {**SHOP, "nginx": {"tls": {"mode": "acme"}}}


def test_certificates_by_acme_are_for_the_hosts_that_clients_reach():
    plan = make({**ACME, "hosts": ["linux_apps"]}, balancers="lb1")
    [site] = fleet.nginx_sites(plan, "lb1")
    assert site["tls"] == {"mode": "host_file", "file": "/var/lib/wsgi-fleet/acme/live/shop.pem"}
    assert site["https_redirect"] is True
    assert fleet.acme_certificates(plan, "lb1") == [{"name": "shop", "domains": SHOP["domains"]}]
    assert fleet.nginx_challenges(plan, "lb1") == {"directory": "/var/lib/wsgi-fleet/acme/challenges", "peers": []}
    assert fleet.acme_certificates(plan, "app1") == []
    assert fleet.nginx_challenges(plan, "app1") == {}


def test_hosts_for_the_same_names_pass_challenges_on():
    plan = make(ACME)
    assert fleet.nginx_challenges(plan, "app1")["peers"] == ["192.0.2.2:80"]
    assert fleet.nginx_challenges(plan, "app2")["peers"] == ["192.0.2.1:80"]
    assert fleet.nginx_challenges(make(SHOP), "app1") == {}


# --- topologies ------------------------------------------------------------------------------------------------

SOCKET = "unix:/run/wsgi-fleet/shop.sock"


def test_without_balancers_every_app_host_faces_the_clients():
    plan = make(SHOP, hosts={"app2": {"ansible_host": "some.name", "wsgi_http_port": 8080}})
    assert upstreams(plan, "app1") == upstreams(plan, "app2") == {"shop": [SOCKET]}
    assert doors(plan, "app1") == [(80, "any"), (443, "any")]
    assert doors(plan, "app2") == [(8080, "any"), (443, "any")]
    assert fleet.nginx_sites(plan, "app2")[0]["http_port"] == 8080


def test_behind_one_balancer_app_hosts_answer_only_the_balancer():
    plan = make({**FULL, "hosts": ["linux_apps"]}, balancers="lb1")
    [inner] = fleet.nginx_sites(plan, "app1")
    assert (inner["tls"], inner["https_redirect"], inner["http2"]) == ({"mode": "off"}, False, False)
    assert inner["trusted_proxies"] == ["192.0.2.3"]
    assert "cors" not in inner  # one of the two must answer, and only one may
    # What nginx itself answers passes the balancer as it is: a page, a refusal.
    assert inner["error_pages"] == FULL["nginx"]["error_pages"]
    assert inner["client_max_body_size"] == "50m"
    [edge] = fleet.nginx_sites(plan, "lb1")
    assert [server["address"] for server in edge["upstream"]["servers"]] == ["192.0.2.1:80", "192.0.2.2:80"]
    assert edge["cors"] == FULL["nginx"]["cors"]
    assert edge["tls"]["mode"] == "files"
    assert edge["trusted_proxies"] == []
    assert fleet.ufw_rules(plan, "app2") == [
        {
            "port": 80,
            "proto": "tcp",
            "from": "192.0.2.3",
            "action": "allow",
            "comment": "wsgi.fleet: http from balancer lb1",
        }
    ]
    assert doors(plan, "lb1") == [(80, "any"), (443, "any")]
    assert fleet.app_apps(plan, "lb1") == fleet.supervisor_programs(plan, "lb1") == []


def test_two_balancers():
    plan = make(SHOP, balancers="lb1 lb2")
    assert upstreams(plan, "lb1") == upstreams(plan, "lb2") == {"shop": ["192.0.2.1:80", "192.0.2.2:80"]}
    assert doors(plan, "app1") == [(80, "192.0.2.3"), (80, "192.0.2.4")]
    assert fleet.nginx_sites(plan, "app1")[0]["trusted_proxies"] == ["192.0.2.3", "192.0.2.4"]


def test_one_host_that_does_both():
    plan = make(SHOP, apps="app1 app2", balancers="app1")
    assert upstreams(plan, "app1") == {"shop": [SOCKET, "192.0.2.2:80"]}
    assert upstreams(plan, "app2") == {"shop": [SOCKET]}
    assert doors(plan, "app1") == [(80, "any"), (443, "any")]
    assert doors(plan, "app2") == [(80, "192.0.2.1")]
    assert [site["name"] for site in fleet.nginx_sites(plan, "app1")] == ["shop"]


def test_two_hosts_that_do_both_never_balance_a_request_twice():
    plan = make(SHOP, balancers="app1 app2")
    assert upstreams(plan, "app1") == {"shop": [SOCKET, "192.0.2.2:8080"], "shop_inner": [SOCKET]}
    assert upstreams(plan, "app2") == {"shop": [SOCKET, "192.0.2.1:8080"], "shop_inner": [SOCKET]}
    edge, inner = fleet.nginx_sites(plan, "app1")
    assert (edge["http_port"], inner["http_port"]) == (80, 8080)
    assert (edge["trusted_proxies"], inner["trusted_proxies"]) == ([], ["192.0.2.2"])
    assert doors(plan, "app1") == [(80, "any"), (443, "any"), (8080, "192.0.2.2")]


def test_an_app_on_a_part_of_the_hosts():
    api = {**SHOP, "name": "api", "domains": ["api.example.com"], "hosts": ["app2", "east"]}
    plan = make(SHOP, api, apps="app1 app2 app3", balancers="lb1", east=["app3", "lb1"])
    assert upstreams(plan, "lb1") == {
        "shop": ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"],
        "api": ["192.0.2.2:80", "192.0.2.3:80"],
    }
    assert list(upstreams(plan, "app1")) == ["shop"]
    assert list(upstreams(plan, "app2")) == ["shop", "api"]


def test_ipv6_and_other_ports():
    hosts = {
        "app1": {"wsgi_address": "2001:db8::1", "ansible_host": "192.0.2.1", "wsgi_http_port": 8080},
        "lb1": {"ansible_host": "2001:db8::9", "wsgi_http_port": 8888},
    }
    plan = make(SHOP, apps="app1", balancers="lb1", hosts=hosts)
    assert upstreams(plan, "lb1") == {"shop": ["[2001:db8::1]:8080"]}
    assert doors(plan, "app1") == [(8080, "2001:db8::9")]
    assert doors(plan, "lb1") == [(80, "any"), (443, "any")]  # the variable is one of app hosts
    assert fleet.nginx_sites(plan, "app1")[0]["trusted_proxies"] == ["2001:db8::9"]


def test_the_last_app_can_go():
    plan = fleet.make_plan([], {"linux_apps": ["app1"], "balancers": ["lb1"]}, {"app1": {}, "lb1": {}})
    for host in ("app1", "lb1"):
        assert fleet.nginx_sites(plan, host) == fleet.ufw_rules(plan, host) == fleet.app_apps(plan, host) == []


PROJECTS = (
    fleet.app_apps,
    fleet.nginx_sites,
    fleet.python_versions,
    fleet.supervisor_programs,
    fleet.ufw_rules,
    lambda plan, host: fleet.gunicorn_instances(plan, host, 4),
)


def test_an_absent_app_runs_nowhere_and_is_taken_away_where_it_ran():
    gone = {"name": "old", "state": "absent"}
    part = {**gone, "name": "part", "hosts": ["app2"], "keep_data": False}
    plan = make(SHOP, gone, part, balancers="lb1")
    without = make(SHOP, balancers="lb1")
    for host in ("app1", "app2", "lb1"):
        assert [project(plan, host) for project in PROJECTS] == [project(without, host) for project in PROJECTS]
    old = {"name": "old", "keep_data": True}
    assert fleet.app_removed(plan, "app1") == [old]
    assert fleet.app_removed(plan, "app2") == [old, {"name": "part", "keep_data": False}]
    assert fleet.app_removed(plan, "lb1") == fleet.app_removed(plan, "db1") == []


def test_an_absent_app_leaves_its_names_and_ports_to_others():
    gone = {**FULL, "state": "absent", "hosts": ["linux_apps"]}
    heir = {**SHOP, "name": "shop-worker", "port": 8000}
    assert fleet.find_errors([gone, heir], {"linux_apps": ["app1"]}, {"app1": {}}) == []


def test_an_absent_app_may_name_a_group_that_is_empty():
    groups = {"linux_apps": ["app1"], "east": []}
    assert fleet.find_errors([{"name": "old", "state": "absent", "hosts": ["east"]}], groups, {"app1": {}}) == []


def test_a_host_that_the_plan_does_not_know_gets_nothing():
    plan = make(SHOP)
    for project in (
        fleet.app_apps,
        fleet.app_removed,
        fleet.nginx_sites,
        fleet.python_versions,
        fleet.supervisor_programs,
        fleet.ufw_rules,
    ):
        assert project(plan, "db1") == []
    assert fleet.gunicorn_instances(plan, "db1", 4) == []


def test_versions_of_python_are_in_order_and_once():
    records = [
        {**SHOP, "name": f"app{n}", "domains": [f"{n}.example"], "python": version}
        for n, version in enumerate(["3.13", "3.10", "3.13", "3.9"])
    ]
    records[3]["gunicorn"] = {"version": "23.0.0"}
    assert fleet.python_versions(make(*records), "app1") == ["3.9", "3.10", "3.13"]


# --- ports -----------------------------------------------------------------------------------------------------


def ports(*records: dict[str, Any], **options: Any) -> dict[str, int]:
    return {name: app["port"] for name, app in make(*records, **options)["apps"].items()}


def app(name: str, port: Any = "auto") -> dict[str, Any]:
    return {**SHOP, "name": name, "domains": [f"{name}.example"], "port": port}


def test_automatic_ports_are_stable_and_do_not_clash():
    names = [f"app{number}" for number in range(400)]  # as many as will meet in 10,000 places
    allotted = ports(*map(app, names))
    assert len(set(allotted.values())) == len(names)
    assert all(20000 <= port < 30000 for port in allotted.values())
    shuffled = random.Random(1).sample(names, len(names))
    assert ports(*map(app, shuffled), apps="app2 app1") == allotted
    moved = [name for name, port in ports(app("new"), *map(app, names)).items() if allotted.get(name, port) != port]
    assert len(moved) <= 1


def test_automatic_ports_avoid_what_is_taken():
    free = ports(app("api"))["api"]
    assert ports(app("api"), app("other", free))["api"] == free + 1
    assert ports(app("api"), hosts={"app2": {"ansible_port": free}})["api"] == free + 1
    assert ports(app("api"), hosts={"app2": {"wsgi_http_port": free}})["api"] == free + 1


# --- wheels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("systems", "chosen"),
    [
        ({"app1": "12 x", "app2": "12 x", "app3": "12 x"}, ["app1", "app2"]),
        ({"app1": "12 x", "app2": "13 x", "app3": "13 x"}, ["app1", "app2"]),
        ({"app1": "12 x", "app2": "12 x", "app3": "13 x"}, ["app1", "app2", "app3"]),
        ({"app3": "12 x", "lb1": "12 x"}, ["app3"]),
        ({}, []),
    ],
)
def test_one_host_of_each_kind_fills_the_wheelhouse(systems, chosen):
    api = {**SHOP, "name": "api", "domains": ["api.example.com"], "hosts": ["app2"]}
    plan = make(SHOP, api, apps="app1 app2 app3", balancers="lb1")
    assert fleet.wheelhouse_hosts(plan, systems) == chosen


# --- shape -----------------------------------------------------------------------------------------------------


class Inventory(Mapping[str, Any]):
    """Host variables that count how often each host is read: in a real run a read takes a millisecond."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> dict[str, Any]:
        self.reads[name] += 1
        number = self.names.index(name)
        return {"ansible_host": f"10.0.{number // 250}.{number % 250 + 1}"}

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("only hosts of the groups may be read")

    def __len__(self) -> int:
        raise AssertionError("only hosts of the groups may be read")


def big() -> tuple[list[dict[str, Any]], dict[str, list[str]], Inventory]:
    names = [f"app{number}" for number in range(996)] + [f"lb{number}" for number in range(4)]
    groups = {"linux_apps": names[:996], "balancers": names[996:], "all": [*names, *(f"db{n}" for n in range(500))]}
    return [app(f"shop{number}") for number in range(20)], groups, Inventory(names)


def test_each_host_is_read_once_and_no_other():
    records, groups, hosts = big()
    fleet.make_plan(records, groups, hosts)
    assert hosts.reads == Counter(hosts.names)


def test_apps_on_the_same_hosts_share_their_upstream():
    plan = fleet.make_plan(*big())
    servers = [site["upstream"]["servers"] for site in fleet.nginx_sites(plan, "lb0")]
    assert {len(members) for members in servers} == {996}
    assert len({id(member) for members in servers for member in members}) == 996


class Watched(dict):  # type: ignore[type-arg]
    """A dictionary that remembers which keys were read."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def test_a_projection_of_an_app_host_reads_that_host_and_the_balancers_only():
    plan = fleet.make_plan(*big())
    plan["hosts"] = Watched(plan["hosts"])
    for project in (
        fleet.app_apps,
        fleet.nginx_sites,
        fleet.python_versions,
        fleet.supervisor_programs,
        fleet.ufw_rules,
    ):
        project(plan, "app7")
    assert plan["hosts"].read == {"app7", "lb0", "lb1", "lb2", "lb3"}


def test_the_plan_is_plain_data_and_the_input_stays_as_it_was():
    records = [copy.deepcopy(FULL), app("api")]
    before = copy.deepcopy(records)
    plan = make(*records, balancers="lb1")
    assert records == before
    assert json.loads(json.dumps(plan)) == plan
    for name in ("app_apps", "nginx_sites", "supervisor_programs", "ufw_rules"):
        first = getattr(fleet, name)(plan, "app1")
        assert getattr(fleet, name)(plan, "app1") == first
    assert json.loads(json.dumps(plan)) == plan


def test_the_order_of_hosts_does_not_matter():
    records = [app("shop"), app("api", 8000)]
    assert make(*records, apps="app1 app2 app3", balancers="lb1 lb2") == make(
        *records,
        apps="app3 app1 app2",
        balancers="lb2 lb1",
    )
    records, groups, hosts = big()
    plan = fleet.make_plan(records, groups, hosts)
    assert plan["apps"]["shop0"]["hosts"] == sorted(groups["linux_apps"])  # upstreams stand still between runs


# --- interfaces ------------------------------------------------------------------------------------------------


def as_module_options(options: dict[str, Any]) -> dict[str, Any]:
    """A role's options as ansible-core validates them."""
    keep = ("type", "elements", "choices", "required", "no_log")
    return {
        name: {key: value for key, value in option.items() if key in keep}
        | ({"options": as_module_options(option["options"])} if "options" in option else {})
        for name, option in options.items()
    }


@pytest.mark.parametrize(
    ("role", "variable", "project"),
    [
        ("app", "app_apps", fleet.app_apps),
        ("app", "app_removed", fleet.app_removed),
        ("gunicorn", "gunicorn_instances", lambda plan, host: fleet.gunicorn_instances(plan, host, 4)),
        ("waitress", "waitress_instances", fleet.waitress_instances),
        ("mod_wsgi", "mod_wsgi_instances", fleet.mod_wsgi_instances),
        ("nginx", "nginx_sites", fleet.nginx_sites),
        ("python", "python_versions", fleet.python_versions),
        ("python", "python_packages", fleet.python_packages),
        ("supervisor", "supervisor_programs", fleet.supervisor_programs),
        ("ufw", "ufw_fleet_rules", fleet.ufw_rules),
    ],
)
def test_roles_take_what_they_are_given(role, variable, project):
    spec = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    option = spec["argument_specs"]["main"]["options"][variable]
    validator = ArgumentSpecValidator(as_module_options({variable: option}))
    plans = [
        make(
            SHOP,
            {**FULL, "name": "full", "domains": ["full.example"]},
            {**WAITRESS, "name": "other", "domains": ["other.example"], "port": 8001},
            {**SHOP, "name": "third", "domains": ["third.example"], "server": "mod_wsgi"},
            {"name": "old", "state": "absent"},
            balancers=names,
        )
        for names in ("", "app1 lb1")
    ]
    for plan in plans:
        for host in plan["hosts"]:
            given = project(plan, host)
            assert validator.validate({variable: copy.deepcopy(given)}).error_messages == []


# --- filters ---------------------------------------------------------------------------------------------------

FILTERS = FilterModule().filters()


def test_filters_are_the_functions():
    groups, hosts = {"linux_apps": ["app1"]}, {"app1": {}}
    assert FILTERS["plan_errors"]([SHOP], groups, hosts) == []
    plan = FILTERS["plan"]([SHOP], groups, hosts)
    assert [site["name"] for site in FILTERS["nginx_sites"](plan, "app1")] == ["shop"]
    with pytest.raises(AnsibleFilterError, match="app shop: workers: is 0"):
        FILTERS["plan"]([{**SHOP, "workers": 0}], groups, hosts)


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_is_documented(name):
    document = yaml.safe_load((ROOT / "plugins" / "filter" / f"{name}.yml").read_text())
    documentation = document["DOCUMENTATION"]
    assert documentation["name"] == name
    assert f"wsgi.fleet.{name}(" in document["EXAMPLES"]
    taken = ["_input", *(word.strip() for word in documentation["positional"].split(","))]
    assert list(documentation["options"]) == taken
    code = FILTERS[name].__code__
    assert list(code.co_varnames[1 : code.co_argcount]) == taken[1:]
    assert document["RETURN"]["_value"]["type"] in ("dict", "list", "str")


def test_members_are_of_the_groups_that_there_are():
    groups = {"balancers": ["lb1", "both"], "linux_apps": ["app1", "both"], "others": ["x"]}
    assert fleet.members(groups, ["balancers", "linux_apps", "windows_apps"]) == ["lb1", "both", "app1"]
    assert fleet.members(groups, ["windows_apps"]) == []
