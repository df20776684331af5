"""Wrong records: each one is refused in words that name the record, the key, what is wrong, and what would be right."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import PlanError, find_errors, make_plan

GROUPS = {
    "all": ["app1", "app2", "db1", "win1"],
    "linux_apps": ["app1", "app2"],
    "windows_apps": ["win1"],
    "databases": ["db1"],
    "empty": [],
}
HOSTS = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(GROUPS["all"], 1)}
SHOP = {
    "name": "shop",
    "domains": ["shop.example.com"],
    "source": {"git": "https://git.example.com/shop.git", "version": "v1"},
    "callable": "wsgi:app",
}
MISSING = object()
SECRET = "s3cr3t-value"
PEM = "must be PEM text (a lookup of the file will do)"
DOMAIN = "must be a host name such as shop.example.com"
NAME = "must be a lower case letter, then up to 30 of a-z, 0-9, _ and - (it is also the system user)"
GRAMMAR = (
    "where only the name of an object, or one call of it with literal arguments, can be served; "
    'write module:object, module:factory() or module:factory("value")'
)


def shop(**changes: Any) -> dict[str, Any]:
    record = {**copy.deepcopy(SHOP), **changes}
    return {key: value for key, value in record.items() if value is not MISSING}


def errors(*records: Any) -> list[str]:
    return find_errors(list(records), GROUPS, HOSTS)


WRONG = [
    # what is missing, unknown, or of the wrong type
    ({"domains": MISSING}, "app shop: domains: is missing; give a list of host names, such as [shop.example.com]"),
    ({"source": MISSING}, "app shop: source: is missing; give a mapping with one of git, archive, path, package"),
    ({"callable": MISSING}, "app shop: callable: is missing; give module:object, such as wsgi:app"),
    ({"name": MISSING}, "wsgi_apps[0]: name: is missing; give a name that is the system user too, such as shop"),
    ({"domain": "x"}, "app shop: domain: is no known key; did you mean domains?"),
    ({"state": "gone"}, "app shop: state: is 'gone', must be one of present, absent"),
    ({"keep_data": True}, "app shop: keep_data: is of use with state absent only; leave it out"),
    ({"state": "absent", "keep_data": "no"}, "app shop: keep_data: is a string, must be true or false"),
    ({"state": "absent", "domains": ["x/y"]}, None),
    ({"state": "absent", "domain": "x"}, "app shop: domain: is no known key; did you mean domains?"),
    (
        {"state": "absent", "hosts": ["nowhere"]},
        (
            "app shop: hosts: nowhere is neither a group nor a host of the inventory; "
            "known are all, app1, app2, databases, empty, linux_apps, windows_apps"
        ),
    ),
    (
        {"python": 3.13},
        (
            "app shop: python: is a number with a point, which YAML may have shortened (3.10 becomes 3.1); "
            'quote it: "3.13"'
        ),
    ),
    ({"python": "3"}, "app shop: python: is '3', must be a version such as \"3.13\""),
    ({"server": "uwsgi"}, "app shop: server: is 'uwsgi', must be one of gunicorn, waitress, mod_wsgi"),
    ({"env": ["A=1"]}, "app shop: env: is a list, must be a mapping of names to values"),
    # name
    ({"name": "Shop"}, f"wsgi_apps[0]: name: is 'Shop', {NAME}"),
    ({"name": "s" * 32}, f"wsgi_apps[0]: name: is '{'s' * 32}', {NAME}"),
    ({"name": 7}, f"wsgi_apps[0]: name: is a whole number, {NAME} (put it in quotes)"),
    (
        {"name": "root"},
        ("app root: name: 'root' is reserved (the system's own accounts); choose another name, such as root-app"),
    ),
    (
        {"name": "sudo"},
        ("app sudo: name: 'sudo' is reserved (groups that carry rights); choose another name, such as sudo-app"),
    ),
    (
        {"name": "shop-inner"},
        ("app shop-inner: name: 'shop-inner' ends in inner, as only sites between balancers do; choose another name"),
    ),
    # domains
    (
        {"domains": "shop.example.com"},
        ("app shop: domains: is a string, must be a list of host names; write [value] for a list of one"),
    ),
    ({"domains": []}, "app shop: domains: is an empty list, must be a list of host names"),
    ({"domains": ["192.0.2.1"]}, f"app shop: domains[0]: is '192.0.2.1', an IP address; {DOMAIN}"),
    ({"domains": ["2001:db8::1"]}, f"app shop: domains[0]: is '2001:db8::1', an IP address; {DOMAIN}"),
    (
        {"domains": ["https://shop.example.com/"]},
        (f"app shop: domains[0]: is 'https://shop.example.com/', {DOMAIN}, without scheme, port and path"),
    ),
    (
        {"domains": ["Shop.example.com"]},
        ("app shop: domains[0]: is 'Shop.example.com', must be in lower case: shop.example.com"),
    ),
    (
        {"domains": ["bücher.example"]},
        ("app shop: domains[0]: is 'bücher.example', must be written in its ASCII form (punycode, xn--...)"),
    ),
    (
        {"domains": ["shop.example.com."]},
        ("app shop: domains[0]: is 'shop.example.com.', must be without the dot at its end: shop.example.com"),
    ),
    ({"domains": ["a." * 127]}, None),
    (
        {"domains": [f"{'a' * 64}.example"]},
        (
            f"app shop: domains[0]: is '{'a' * 60}...', {DOMAIN} (labels of a-z, 0-9 and "
            "-, up to 63 each) or a wildcard such as *.example.com"
        ),
    ),
    ({"domains": ["shop.*.com"]}, None),
    ({"domains": ["a.example", "a.example"]}, "app shop: domains[1]: 'a.example' is there twice"),
    # hosts
    (
        {"hosts": "app1"},
        ("app shop: hosts: is a string, must be a list of groups and hosts; write [value] for a list of one"),
    ),
    ({"hosts": []}, "app shop: hosts: is an empty list, must be a list of groups and hosts"),
    ({"hosts": ["ap1"]}, "app shop: hosts: ap1 is neither a group nor a host of the inventory; did you mean app1?"),
    ({"hosts": ["db1"]}, "app shop: hosts: db1 is not in linux_apps; add it there, or take it out here"),
    (
        {"hosts": ["win1"]},
        "app shop: hosts: win1 is in windows_apps, where no server but waitress runs; set server to waitress",
    ),
    (
        {"hosts": ["empty", "databases"]},
        (
            "app shop: hosts: the app runs on no host: no host of empty, databases is in "
            "linux_apps; add hosts to linux_apps in the inventory"
        ),
    ),
    # source
    (
        {"source": "https://git.example.com/shop.git"},
        ("app shop: source: is a string, must be a mapping with one of git, archive, path, package"),
    ),
    ({"source": {}}, "app shop: source: must have exactly one of git, archive, path, package, has none of them"),
    (
        {"source": {"gti": "x"}},
        (
            "app shop: source: must have exactly one of git, archive, path, package, has none of them; "
            "gti is no known key, did you mean git?"
        ),
    ),
    (
        {"source": {"git": "https://h/x.git", "path": "x", "version": "1"}},
        ("app shop: source: must have exactly one of git, archive, path, package, has git and path"),
    ),
    (
        {"source": {"git": "https://h/x.git"}},
        "app shop: source.version: is missing; give a branch, a tag or a full commit",
    ),
    (
        {"source": {"git": "https://h/x.git", "version": 1.10}},
        (
            "app shop: source.version: is a number with a point, must "
            "be a branch, a tag or a full commit (put it in quotes)"
        ),
    ),
    ({"source": {"git": "https://h/x.git", "version": "--upload-pack=x"}}, None),
    (
        {"source": {"git": "--upload-pack=x", "version": "v1"}},
        ("app shop: source.git: does not fit, must be the URL of a repository (https://, ssh://, user@host:path)"),
    ),
    (
        {"source": {"git": "https://h/x.git", "version": "v1", "subdirectory": "../x"}},
        ("app shop: source.subdirectory: is '../x', must be a directory, relative to the source and inside it"),
    ),
    ({"source": {"git": "https://h/x.git", "version": "v1", "checksum": "x"}}, None),
    (
        {"source": {"git": "https://h/x.git", "version": "v1", "username": "bot"}},
        ("app shop: source.password: is missing; username and password belong together"),
    ),
    (
        {"source": {"archive": "https://h/x.tar.gz"}},
        (
            "app shop: source.checksum: is missing; what comes over the network "
            "needs sha256: and its 64 hexadecimal digits"
        ),
    ),
    (
        {"source": {"archive": "x.tar.gz", "checksum": "md5:abc"}},
        ("app shop: source.checksum: is 'md5:abc', must be sha256: and 64 hexadecimal digits in lower case"),
    ),
    ({"source": {"package": "httpbin"}}, 'app shop: source.version: is missing; give an exact version such as "1.4.2"'),
    (
        {"source": {"package": "httpbin", "version": ">=1"}},
        ("app shop: source.version: is '>=1', must be an exact version such as \"1.4.2\""),
    ),
    # callable
    (
        {"callable": "wsgi"},
        ("app shop: callable: is 'wsgi', which names no object in the module; write module:object, such as wsgi:app"),
    ),
    (
        {"callable": "wsgi.py:app"},
        ("app shop: callable: is 'wsgi.py:app', which is a file; write its module, such as wsgi:app"),
    ),
    (
        {"callable": "shop/wsgi:app"},
        ("app shop: callable: is 'shop/wsgi:app', which is a file; write its module, such as shop.wsgi:app"),
    ),
    (
        {"callable": "my-shop:app"},
        (
            "app shop: callable: is 'my-shop:app', whose module is no dotted Python name; write "
            "module:object, such as shop.wsgi:app"
        ),
    ),
    ({"callable": "wsgi:app.wsgi"}, f"app shop: callable: is 'wsgi:app.wsgi', {GRAMMAR}"),
    ({"callable": "wsgi:create(x)"}, f"app shop: callable: is 'wsgi:create(x)', {GRAMMAR}"),
    ({"callable": "wsgi:create(**{})"}, None),
    ({"callable": "wsgi:a\nb"}, None),
    # build
    (
        {"requirements": ["/etc/passwd"]},
        (
            "app shop: requirements[0]: is '/etc/passwd', must be a file of requirements, "
            "relative to the source and inside it"
        ),
    ),
    (
        {"packages": ["--index-url=https://x"]},
        (
            "app shop: packages[0]: is '--index-url=https://x', must be one "
            'requirement such as "redis==7.0.1", without options'
        ),
    ),
    ({"packages": ["gunicorn==23.0"]}, "app shop: packages[0]: is gunicorn, whose version belongs in gunicorn.version"),
    (
        {"packages": [f"-x https://bot:{SECRET}@h/x"]},
        (
            "app shop: packages[0]: is '-x https://***@h/x', must be one "
            'requirement such as "redis==7.0.1", without options'
        ),
    ),
    ({"keep_releases": 1}, "app shop: keep_releases: is 1, must be a whole number of 2 or more"),
    # processes
    ({"workers": 0}, "app shop: workers: is 0, must be auto or a whole number of 1 or more"),
    ({"workers": True}, "app shop: workers: is a boolean, must be auto or a whole number of 1 or more"),
    ({"workers": "4"}, "app shop: workers: is '4', must be auto or a whole number of 1 or more"),
    ({"masters": 9}, "app shop: masters: is 9, must be a whole number from 1 to 8"),
    ({"port": 80}, "app shop: port: is 80, must be a whole number from 1024 to 65535"),
    ({"port": "any"}, "app shop: port: is 'any', must be one of auto"),
    (
        {"port": 9001},
        ("app shop: port: is 9001, which is taken by supervisor's web page on host app1; choose another, or auto"),
    ),
    (
        {"port": 8079},
        ("app shop: port: is 8079, which is taken by nginx's status page on host app1; choose another, or auto"),
    ),
    ({"health": "healthz"}, "app shop: health: is 'healthz', must be a path such as \"/healthz\""),
    # waitress
    (
        {"waitress": {}},
        "app shop: waitress: is about waitress, but server is gunicorn; leave it out, or set server to waitress",
    ),
    (
        {"server": "waitress", "masters": 3},
        "app shop: masters: is about gunicorn, but server is waitress; leave it out, or set server to gunicorn",
    ),
    (
        {"server": "waitress", "gunicorn": {"timeout": 3}},
        "app shop: gunicorn: is about gunicorn, but server is waitress; leave it out, or set server to gunicorn",
    ),
    (
        {"server": "waitress", "waitress": 4},
        (
            "app shop: waitress: is a whole number, "
            "must be a mapping of waitress' settings, version, instances and stop_timeout"
        ),
    ),
    (
        {"server": "waitress", "waitress": {"thread": 4}},
        "app shop: waitress.thread: is no setting of waitress; did you mean threads?",
    ),
    (
        {"server": "waitress", "waitress": {"threads": "4"}},
        "app shop: waitress.threads: is a string, must be a whole number of 1 or more",
    ),
    (
        {"server": "waitress", "waitress": {"instances": 0}},
        "app shop: waitress.instances: is 0, must be a whole number from 1 to 32",
    ),
    (
        {"server": "waitress", "waitress": {"port": 8080}},
        "app shop: waitress.port: is derived; give port on the record for a TCP socket",
    ),
    (
        {"server": "waitress", "waitress": {"backlog": 8}},
        (
            "app shop: waitress.backlog: belongs to supervisor, which holds the socket; "
            "give supervisor.socket_backlog on the record"
        ),
    ),
    (
        {"server": "waitress", "waitress": {"workers": 8}},
        "app shop: waitress.workers: is gunicorn's; give instances for processes and threads for each of them",
    ),
    (
        {"server": "waitress", "waitress": {"version": "2.1.1"}},
        (
            "app shop: waitress.version: is 2.1.1, must be 2.1.2 or newer (older ones "
            "let requests be smuggled past nginx)"
        ),
    ),
    (
        {"server": "waitress", "waitress": {"trusted_proxy_headers": ["x-real-ip"]}},
        (
            "app shop: waitress.trusted_proxy_headers[0]: is 'x-real-ip', must be one of forwarded, x-forwarded-by, "
            "x-forwarded-for, x-forwarded-host, x-forwarded-port, x-forwarded-proto"
        ),
    ),
    (
        {"server": "waitress", "waitress": {"trusted_proxy_headers": ["forwarded", "x-forwarded-for"]}},
        (
            "app shop: waitress.trusted_proxy_headers: holds forwarded and others; "
            "waitress takes either forwarded or the others"
        ),
    ),
    (
        {"server": "waitress", "waitress": {"trusted_proxy": "", "trusted_proxy_count": 2}},
        "app shop: waitress.trusted_proxy_count: is of no use without trusted_proxy; leave one of them out",
    ),
    (
        {"server": "waitress", "waitress": {"stop_timeout": 50}, "supervisor": {"stopwaitsecs": 50}},
        (
            "app shop: supervisor.stopwaitsecs: is 50, must be more than waitress.stop_timeout (50), "
            "or supervisor kills workers that still answer"
        ),
    ),
    (
        {"server": "waitress", "python": "3.8"},
        "app shop: python: is '3.8', but server waitress needs 3.9 or newer; choose a newer Python",
    ),
    (
        {"server": "waitress", "packages": ["Waitress>=3"]},
        "app shop: packages[0]: is Waitress, whose version belongs in waitress.version",
    ),
    # mod_wsgi
    (
        {"server": "mod_wsgi", "hosts": ["win1"]},
        "app shop: hosts: win1 is in windows_apps, where no server but waitress runs; set server to waitress",
    ),
    (
        {"mod_wsgi": {}},
        "app shop: mod_wsgi: is about mod_wsgi, but server is gunicorn; leave it out, or set server to mod_wsgi",
    ),
    (
        {"server": "mod_wsgi", "workers": 3},
        "app shop: workers: is about gunicorn, but server is mod_wsgi; leave it out, or set server to gunicorn",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": []},
        (
            "app shop: mod_wsgi: is a list, "
            "must be a mapping of mod_wsgi-express' settings, version, instances and stop_timeout"
        ),
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"process": 4}},
        "app shop: mod_wsgi.process: is no setting of mod_wsgi-express; did you mean processes?",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"threads": 0}},
        "app shop: mod_wsgi.threads: is 0, must be a whole number of 1 or more",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"port": 8080}},
        "app shop: mod_wsgi.port: is derived; give port on the record for a TCP socket",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"user": "root"}},
        "app shop: mod_wsgi.user: is derived; leave it out",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"version": "5.0.2"}},
        "app shop: mod_wsgi.version: is 5.0.2, must be 6.0.0 or newer (older ones have other options)",
    ),
    (
        {"server": "mod_wsgi", "mod_wsgi": {"stop_timeout": 50}, "supervisor": {"stopwaitsecs": 50}},
        (
            "app shop: supervisor.stopwaitsecs: is 50, must be more than mod_wsgi.stop_timeout (50), "
            "or supervisor kills workers that still answer"
        ),
    ),
    (
        {"server": "mod_wsgi", "python": "3.9"},
        "app shop: python: is '3.9', but server mod_wsgi needs 3.10 or newer; choose a newer Python",
    ),
    (
        {"server": "mod_wsgi", "packages": ["mod-wsgi==6.0.0"]},
        "app shop: packages[0]: is mod-wsgi, whose version belongs in mod_wsgi.version",
    ),
    # gunicorn
    ({"gunicorn": {"worker": 2}}, "app shop: gunicorn.worker: is no setting of gunicorn; did you mean workers?"),
    (
        {"gunicorn": {"workers": 2}},
        ("app shop: gunicorn.workers: belongs on the record: workers there is the total on one host, over all masters"),
    ),
    (
        {"gunicorn": {"bind": "0.0.0.0:80"}},
        ("app shop: gunicorn.bind: is derived; give port on the record for a TCP socket"),
    ),
    ({"gunicorn": {"daemon": True}}, "app shop: gunicorn.daemon: would hide gunicorn from supervisor; leave it out"),
    (
        {"gunicorn": {"post_fork": "x"}},
        ("app shop: gunicorn.post_fork: is a server hook: Python code, which cannot be given as data; leave it out"),
    ),
    ({"gunicorn": {"timeout": "30"}}, "app shop: gunicorn.timeout: is a string, must be a whole number of 0 or more"),
    ({"gunicorn": {"timeout": True}}, "app shop: gunicorn.timeout: is a boolean, must be a whole number of 0 or more"),
    ({"gunicorn": {"preload_app": 1}}, "app shop: gunicorn.preload_app: is a whole number, must be true or false"),
    (
        {"gunicorn": {"loglevel": False}},
        (
            "app shop: gunicorn.loglevel: is a boolean, must be a string (YAML reads a bare "
            "on, off, yes or no as a boolean: put it in quotes)"
        ),
    ),
    (
        {"gunicorn": {"secure_scheme_headers": []}},
        ("app shop: gunicorn.secure_scheme_headers: is a list, must be a mapping"),
    ),
    (
        {"gunicorn": {"worker_class": "gthreads"}},
        (
            "app shop: gunicorn.worker_class: is 'gthreads', must be one of sync, "
            "gthread, gevent, tornado, eventlet, or the dotted path of a class"
        ),
    ),
    (
        {"gunicorn": {"worker_class": "eventlet", "version": "26.0.0"}},
        (
            "app shop: gunicorn.worker_class: eventlet left "
            'gunicorn with 26.0, but gunicorn.version is 26.0.0; take gevent or gthread, or give version "25.3.0"'
        ),
    ),
    (
        {"gunicorn": {"version": 27.0}},
        (
            "app shop: gunicorn.version: is a number with a point, must be an exact version "
            'such as "27.0.1" (put it in quotes)'
        ),
    ),
    (
        {"gunicorn": {"version": "21.2.0"}},
        (
            "app shop: gunicorn.version: is 21.2.0, must be 22.0.0 or newer (older ones "
            "let requests be smuggled past nginx)"
        ),
    ),
    (
        {"gunicorn": {"version": "25.3.0", "websocket_max_message_size": 1}},
        (
            "app shop: gunicorn.websocket_max_message_size:"
            " needs gunicorn 27.0 or newer, but gunicorn.version is 25.3.0; leave it out"
        ),
    ),
    (
        {"python": "3.9"},
        (
            "app shop: python: is '3.9', but gunicorn 27.0.1 needs 3.10 or newer; choose a newer Python, or "
            'give gunicorn.version "23.0.0"'
        ),
    ),
    # environment
    (
        {"env": {"A-B": 1}},
        ("app shop: env.A-B: is no name of an environment variable; use letters, digits and _, not a digit first"),
    ),
    ({"env": {"PATH": "x"}}, "app shop: env.PATH: is set by the app's run script; leave it out"),
    (
        {"env": {"GUNICORN_CMD_ARGS": "-w 9"}},
        ("app shop: env.GUNICORN_CMD_ARGS: would override gunicorn's configuration; give gunicorn on the record"),
    ),
    (
        {"env": {"SUPERVISOR_ENABLED": 1}},
        (
            "app shop: env.SUPERVISOR_ENABLED: starts with SUPERVISOR_ or WSGI_FLEET_, which "
            "are taken; choose another name"
        ),
    ),
    ({"env": {"A": None}}, "app shop: env.A: is empty, must be a string, a number or a boolean"),
    ({"env": {"A": [SECRET]}}, "app shop: env.A: is a list, must be a string, a number or a boolean"),
    ({"env": {"A": f"{SECRET}\0"}}, "app shop: env.A: holds a NUL character, which no file or environment can carry"),
    ({"secrets": {"A": 5}}, "app shop: secrets.A: is a whole number, must be a string (put it in quotes)"),
    ({"secrets": {"A": {"b": SECRET}}}, "app shop: secrets.A: is a mapping, must be a string (put it in quotes)"),
    ({"secrets": SECRET}, "app shop: secrets: is a string, must be a mapping of names to strings"),
    ({"env": {"A": "1"}, "secrets": {"A": SECRET}}, "app shop: secrets.A: is in env as well; keep it in one of them"),
    # nginx
    ({"nginx": {"tsl": {}}}, "app shop: nginx.tsl: is no known key; did you mean tls?"),
    (
        {"nginx": {"client_max_body_size": "10 MB"}},
        ("app shop: nginx.client_max_body_size: is '10 MB', must be a size such as \"10m\""),
    ),
    (
        {"nginx": {"balance": "random"}},
        ("app shop: nginx.balance: is 'random', must be one of round_robin, least_conn, ip_hash, random_two, hash"),
    ),
    (
        {"nginx": {"proxy_read_timeout": 0}},
        ("app shop: nginx.proxy_read_timeout: is 0, must be a whole number from 1 to 86400"),
    ),
    (
        {"nginx": {"tls": {"mode": "letsencrypt"}}},
        ("app shop: nginx.tls.mode: is 'letsencrypt', must be one of self_signed, files, acme, off"),
    ),
    (
        {"nginx": {"tls": {"mode": "acme"}}, "domains": ["shop.example.com", "*.shop.example.com"]},
        (
            "app shop: domains[1]: is '*.shop.example.com', which ACME cannot prove over HTTP; name the hosts, "
            "or give nginx.tls files"
        ),
    ),
    (
        {"nginx": {"tls": {"mode": "off", "ca": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"}}},
        ("app shop: nginx.tls.ca: is of no use with mode off; set mode to files or acme, or leave it out"),
    ),
    (
        {"nginx": {"tls": {"mode": "off"}, "https_redirect": True}},
        ("app shop: nginx.https_redirect: is true, but tls.mode is off, so nothing answers there; set one of them"),
    ),
    (
        {"nginx": {"cors": {"origins": ["*"], "credentials": True}}},
        ('app shop: nginx.cors.credentials: is true with origins "*", which browsers refuse; name the exact origins'),
    ),
    (
        {"nginx": {"cors": {"origins": ["*", "https://a.example"]}}},
        ('app shop: nginx.cors.origins: holds "*" and others; give either "*" alone or the exact origins'),
    ),
    (
        {"nginx": {"cors": {"origins": ["https://a.example/"]}}},
        (
            "app shop: nginx.cors.origins[0]: is 'https://a.example/', "
            'must be an origin such as "https://shop.example.com" (no path), or "*"'
        ),
    ),
    (
        {"nginx": {"cors": {"origins": ["https://*.example"]}}},
        (
            "app shop: nginx.cors.origins[0]: is 'https://*.example'; a * stands for the subdomains of a domain only, "
            'as in "https://*.example.com"'
        ),
    ),
    (
        {"nginx": {"error_pages": [{"codes": [502], "content": "x", "file": "x"}]}},
        ("app shop: nginx.error_pages[0].file: is no known key; known are codes, content"),
    ),
    (
        {"nginx": {"maintenance_page": None}},
        "app shop: nginx.maintenance_page: is empty, must be the text of the page (a lookup of the file will do)",
    ),
    (
        {"nginx": {"error_pages": [{"codes": [200], "content": "x"}]}},
        ("app shop: nginx.error_pages[0].codes[0]: is 200, must be a whole number from 400 to 599"),
    ),
    (
        {"nginx": {"error_pages": [{"codes": [502], "content": "x"}, {"codes": [502], "content": "y"}]}},
        "app shop: nginx.error_pages[1].codes: has 502, which another page has; give each code one page",
    ),
    # supervisor
    ({"supervisor": {"command": "x"}}, "app shop: supervisor.command: is derived; give callable on the record"),
    (
        {"supervisor": {"stopasgroup": True}},
        (
            "app shop: supervisor.stopasgroup: cannot be changed: a restart without a "
            "dropped request depends on it; leave it out"
        ),
    ),
    ({"supervisor": {"startsec": 1}}, "app shop: supervisor.startsec: is no known key; did you mean startsecs?"),
    (
        {"supervisor": {"stopwaitsecs": 30}},
        (
            "app shop: supervisor.stopwaitsecs: is 30, must be more than "
            "gunicorn.graceful_timeout (30), or supervisor kills workers that still answer"
        ),
    ),
    (
        {"supervisor": {"umask": 18}},
        ('app shop: supervisor.umask: is a whole number, must be an octal number such as "022" (put it in quotes)'),
    ),
    # programs
    (
        {"migrate": "flask db upgrade && flask seed"},
        "app shop: migrate: holds &&, but no shell runs it; put it into a script of the source",
    ),
    (
        {"migrate": ["DEBUG=1", "flask"]},
        (
            "app shop: migrate: begins with an option or a variable, must begin with a program; "
            "variables belong in env on the record"
        ),
    ),
    ({"migrate": []}, "app shop: migrate: is empty; name the program to run"),
    (
        {"migrate": ["flask", 3]},
        "app shop: migrate[1]: is a whole number, must be a word of a command (put it in quotes)",
    ),
    ({"migrate": True}, None),
    ({"hooks": {"before_restart": ["true"]}}, None),
    (
        {"hooks": {"after_build": "true"}},
        "app shop: hooks.after_build: is a string, must be a list of commands; write [value] for a list of one",
    ),
    ({"hooks": {"after_build": ["x 'y"]}}, "app shop: hooks.after_build[0]: has a quote that is not closed; close it"),
    ({"trial": "no"}, None),
    ({"health_timeout": 0}, None),
    ({"programs": {"worker": "x"}}, "app shop: programs: is a mapping, must be a list of {name, command}"),
    (
        {"programs": [{"name": "worker"}]},
        "app shop: programs[0].command: is missing; give a command such as 'celery -A wsgi.celery worker'",
    ),
    (
        {"programs": [{"name": "a_b", "command": "x"}]},
        "app shop: programs[0].name: is 'a_b', must be a lower case letter, then up to 30 of a-z, 0-9 and -",
    ),
    (
        {"programs": [{"name": "web", "command": "x"}]},
        ("app shop: programs[0].name: 'web' is what the app's own log is called; choose another name, such as worker"),
    ),
    (
        {"programs": [{"name": "a", "command": "x"}, {"name": "a", "command": "y"}]},
        "app shop: programs[1].name: 'a' is there twice; give each program its own name",
    ),
    (
        {"programs": [{"name": "a", "command": "x 'y"}]},
        "app shop: programs[0].command: has a quote that is not closed; close it",
    ),
    (
        {"programs": [{"name": "a", "command": "QUEUE=fast worker"}]},
        (
            "app shop: programs[0].command: begins with an option or a variable, must begin with a program; "
            "variables belong in env on the record"
        ),
    ),
    (
        {"programs": [{"name": "a", "command": "--next worker"}]},
        (
            "app shop: programs[0].command: begins with an option or a variable, must begin with a program; "
            "variables belong in env on the record"
        ),
    ),
    (
        {"programs": [{"name": "a", "command": "x && y"}]},
        "app shop: programs[0].command: holds &&, but no shell runs it; put it into a script of the source",
    ),
    ({"programs": [{"name": "a", "command": " "}]}, "app shop: programs[0].command: is empty; name the program to run"),
    ({"programs": [{"name": "a", "command": "x\ny"}]}, None),
    (
        {"programs": [{"name": "a", "command": "x", "user": "root"}]},
        "app shop: programs[0].user: is derived: the app's own user; leave it out",
    ),
    ({"programs": [{"name": "a", "command": "x", "environment": {}}]}, None),
    ({"programs": [{"name": "a", "command": "x", "socket_backlog": 5}]}, None),
    ({"programs": [{"name": "a", "command": "x", "numprocs": 0}]}, None),
    (
        {"programs": [{"name": "a", "command": "x", "stopasgroup": True, "killasgroup": False}]},
        (
            "app shop: programs[0].killasgroup: is false with stopasgroup true, which supervisor refuses; "
            "leave one of them out"
        ),
    ),
]


def test_an_absent_app_needs_a_name_of_its_own_only():
    assert errors({"name": "shop", "state": "absent"}) == []
    assert errors(shop(), {"name": "shop", "state": "absent"}) == [
        "wsgi_apps[1]: name: 'shop' is taken by app shop (- and _ count as the same); give each app its own name"
    ]
    assert errors({"state": "absent"}) == [
        "wsgi_apps[0]: name: is missing; give a name that is the system user too, such as shop"
    ]


def test_programs_and_apps_have_names_of_their_own_in_supervisor():
    program = {"command": "x"}
    records = [
        shop(programs=[{"name": "job", **program}, {"name": "a-b", **program}]),
        shop(name="shop-job", domains=["job.example"]),
        shop(name="shop-a", domains=["a.example"], programs=[{"name": "b", **program}]),
    ]
    called = "would be called {} by supervisor, as {} is; choose another name"
    assert errors(*records) == [
        f"app shop: programs[0].name: {called.format('shop-job', 'app shop-job')}",
        f"app shop-a: programs[0].name: {called.format('shop-a-b', 'program a-b of app shop')}",
    ]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[json.dumps(change, default=str)[:60] for change, _ in WRONG]
)
def test_wrong_record_is_refused_in_these_words(change, message):
    """A message of None stands for one whose words matter less: that there is exactly one is enough."""
    found = errors(shop(**change))
    if message is None:
        assert len(found) == 1, found
    else:
        assert found == [message]


def test_tls_files_need_both_parts_and_never_show_them():
    pem = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\n"
    cases = {
        "certificate is missing": {"mode": "files", "key": pem},
        "key is missing": {"mode": "files", "certificate": "-----BEGIN CERTIFICATE-----\n"},
        "a key that is none": {"mode": "files", "certificate": pem, "key": SECRET},
        "an encrypted key": {"mode": "files", "key": pem.replace("RSA PRIVATE", "ENCRYPTED PRIVATE")},
        "of no use": {"mode": "off", "key": pem},
    }
    found = {name: errors(shop(nginx={"tls": tls})) for name, tls in cases.items()}
    assert found == {
        "certificate is missing": [
            "app shop: nginx.tls.certificate: is missing; mode files needs the certificate and its key as PEM text"
        ],
        "key is missing": [
            "app shop: nginx.tls.key: is missing; mode files needs the certificate and its key as PEM text"
        ],
        "a key that is none": [
            f"app shop: nginx.tls.certificate: holds no CERTIFICATE block, {PEM}",
            f"app shop: nginx.tls.key: holds no PRIVATE KEY block, {PEM}",
        ],
        "an encrypted key": [
            "app shop: nginx.tls.key: is encrypted, and nobody could type its passphrase; give the key without one",
            "app shop: nginx.tls.certificate: is missing; mode files needs the certificate and its key as PEM text",
        ],
        "of no use": ["app shop: nginx.tls.key: is of no use with mode off; set mode to files, or leave it out"],
    }


def test_secrets_are_in_no_message():
    """A secret wherever one may stand, and as much wrong around it as there can be."""
    record = shop(
        name="Shop",
        source={
            "git": f"https://bot:{SECRET}@git.example.com /x",
            "version": "-",
            "username": 1,
            "password": [SECRET],
            "ssh_key": SECRET,
        },
        env={"A": {SECRET}, "B": f"{SECRET}\0", "C D": SECRET},
        secrets={"A": (SECRET,), "B": f"{SECRET}\0", "C D": SECRET, "PATH": SECRET},
        nginx={"tls": {"mode": SECRET, "certificate": SECRET, "key": f"{SECRET}\0"}},
        programs=[{"name": "a", "command": f"{SECRET}=1 x"}, {"name": "b", "command": f"x '{SECRET}"}],
    )
    # What stands where a choice is wanted is shown: a secret is not wanted there, but in all other places.
    record["nginx"]["tls"]["mode"] = 1
    for value in (record, {**record, "env": SECRET, "secrets": [SECRET], "source": SECRET, "nginx": SECRET}):
        found = errors(value)
        assert len(found) > 4
        assert SECRET not in "\n".join(found)


def test_all_problems_come_at_once_and_in_order():
    found = errors(
        shop(workers=-1, env={"HOME": "x"}),
        "shop",
        shop(name="shop"),
        shop(name="api", domains=["shop.example.com"], hosts=["nowhere"], port=70000),
    )
    assert found == [
        "app shop: workers: is -1, must be auto or a whole number of 1 or more",
        "app shop: env.HOME: is set by the app's run script; leave it out",
        "wsgi_apps[1]: is a string, must be a record with name, domains, source and callable",
        "wsgi_apps[2]: name: 'shop' is taken by app shop (- and _ count as the same); give each app its own name",
        "app api: port: is 70000, must be a whole number from 1024 to 65535",
        (
            "app api: hosts: nowhere is neither a group nor a host of the inventory; "
            "known are all, app1, app2, databases, empty, linux_apps, windows_apps"
        ),
    ]


def test_plan_raises_with_the_same_words():
    with pytest.raises(PlanError) as caught:
        make_plan([shop(workers=0), shop(name="api")], GROUPS, HOSTS)
    assert str(caught.value).splitlines() == errors(shop(workers=0), shop(name="api"))


@pytest.mark.parametrize("apps", [None, {}, "shop", 7, {"shop": SHOP}])
def test_what_is_no_list_is_refused(apps):
    assert find_errors(apps, GROUPS, HOSTS) == [
        (
            f"wsgi_apps: is { {dict: 'a mapping', str: 'a string', int: 'a whole number'}.get(type(apps), 'empty') }, "
            "must be a list of records"
        )
    ]


def test_names_that_nginx_takes_for_one_are_refused():
    assert errors(shop(name="my-shop"), shop(name="my_shop", domains=["b.example"])) == [
        "wsgi_apps[1]: name: 'my_shop' is taken by app my-shop (- and _ count as the same); give each app its own name"
    ]


TOGETHER = [
    (
        "a domain of two apps on one host",
        [shop(), shop(name="api", hosts=["app2"])],
        GROUPS,
        ["app api: domains[0]: 'shop.example.com' is app shop's on host app2; give each domain to one app"],
    ),
    ("a domain of two apps that never meet", [shop(hosts=["app1"]), shop(name="api", hosts=["app2"])], GROUPS, []),
    (
        "a domain of two apps that meet at a balancer",
        [shop(hosts=["app1"]), shop(name="api", hosts=["app2"])],
        {**GROUPS, "balancers": ["db1"]},
        ["app api: domains[0]: 'shop.example.com' is app shop's on host db1; give each domain to one app"],
    ),
    (
        "a port of two apps on one host",
        [shop(port=8000), shop(name="api", domains=["b.example"], port=8000, hosts=["app2"])],
        GROUPS,
        ["app api: port: is 8000, which is app shop's on host app2; choose another, or auto"],
    ),
    (
        "a port of two apps that never meet",
        [shop(port=8000, hosts=["app1"]), shop(name="api", domains=["b.example"], port=8000, hosts=["app2"])],
        GROUPS,
        [],
    ),
    (
        "a host of both systems",
        [shop()],
        {**GROUPS, "windows_apps": ["app1"]},
        ["host app1: is in linux_apps and in windows_apps; keep it in one of them"],
    ),
    (
        "no host at all",
        [shop()],
        {"all": []},
        [
            (
                "app shop: hosts: the app runs on no host: no host of linux_apps is in linux_apps; "
                "add hosts to linux_apps in the inventory"
            )
        ],
    ),
]


@pytest.mark.parametrize(
    ("records", "groups", "messages"), [case[1:] for case in TOGETHER], ids=[c[0] for c in TOGETHER]
)
def test_what_does_not_fit_together(records, groups, messages):
    assert find_errors(records, groups, HOSTS) == messages


HOST_CASES = [
    (
        {"app1": {}},
        ["host app1: address 'app1' is no IP address; set wsgi_address to the address that the balancers reach"],
    ),
    (
        {"app1": {"ansible_host": "app1.example.com"}},
        [
            (
                "host app1: address 'app1.example.com' is no IP address; "
                "set wsgi_address to the address that the balancers reach"
            )
        ],
    ),
    (
        {"db1": {"ansible_host": "127.0.0.1"}},
        [
            (
                "host db1: address '127.0.0.1' cannot be reached from other hosts; "
                "set wsgi_address to the address from which it reaches the app hosts"
            )
        ],
    ),
    ({"app1": {"ansible_host": "app1.example.com", "wsgi_address": "10.0.0.1"}}, []),
    (
        {"app2": {"ansible_host": "192.0.2.1"}},
        ["host app2: address 192.0.2.1, port 80 is that of host app1; give each host its own wsgi_address"],
    ),
    ({"app2": {"ansible_host": "192.0.2.1", "wsgi_http_port": "8080"}}, []),
    (
        {"app1": {"ansible_host": "192.0.2.1", "wsgi_http_port": 0}},
        ["host app1: wsgi_http_port: must be a port from 1 to 65535"],
    ),
    (
        {"app1": {"ansible_host": "192.0.2.1", "wsgi_http_port": 2222, "ansible_port": 2222}},
        ["host app1: wsgi_http_port: is 2222, which is taken by SSH; choose another port"],
    ),
]


@pytest.mark.parametrize(("variables", "messages"), HOST_CASES)
def test_hosts_behind_balancers_need_addresses_and_free_ports(variables, messages):
    groups = {**GROUPS, "balancers": ["db1"]}
    assert find_errors([shop()], groups, {**HOSTS, **variables}) == messages


def test_no_address_is_needed_where_nobody_asks_for_it():
    names = {name: {} for name in HOSTS}
    assert find_errors([shop()], GROUPS, names) == []  # no balancers
    alone = {"linux_apps": ["app1"], "balancers": ["app1"]}
    assert find_errors([shop()], alone, names) == []  # it reaches its own app by the socket


def test_a_host_that_balances_too_answers_the_others_elsewhere():
    groups = {"linux_apps": ["app1", "app2"], "balancers": ["app1", "app2"]}
    hosts = {**HOSTS, "app1": {"ansible_host": "192.0.2.1", "wsgi_http_port": 80}}
    assert find_errors([shop()], groups, hosts) == [
        (
            "host app1: wsgi_http_port: is 80, where this host balances itself; "
            "choose another port, or leave it out for 8080"
        )
    ]
