"""Windows hosts in the plan: who runs what, on which ports, and what each host is given."""

from __future__ import annotations

import copy

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet
from ansible_collections.wsgi.fleet.plugins.module_utils.plan import _status
from test_plan import PEM, ROOT, as_module_options

SHOP = {
    "name": "shop",
    "domains": ["shop.example.com"],
    "source": {"path": "/shop"},
    "callable": "wsgi:app",
    "server": "waitress",
    "hosts": ["windows_apps"],
    "port": 8001,
    "nginx": {"tls": {"mode": "off"}},
}
FILES = {"mode": "files", "certificate": PEM("CERTIFICATE"), "key": PEM("PRIVATE KEY")}
ADDRESSES = {"lb1": "192.0.2.1", "lb2": "192.0.2.2", "app1": "192.0.2.11", "win1": "192.0.2.31", "win2": "192.0.2.32"}
HOSTS = {name: {"ansible_host": address} for name, address in ADDRESSES.items()}


def groups(balancers="lb1"):
    return {"balancers": balancers.split(), "linux_apps": ["app1"], "windows_apps": ["win1", "win2"]}


def make(*records, balancers="lb1"):
    return fleet.make_plan(list(records), groups(balancers), HOSTS)


def errors(*records, balancers="lb1"):
    return fleet.find_errors(list(records), groups(balancers), HOSTS)


@pytest.mark.parametrize(
    ("hosts", "runs"),
    [
        (["windows_apps"], ["win1", "win2"]),
        (["win2"], ["win2"]),
        (["linux_apps", "win1"], ["app1", "win1"]),
        (["linux_apps"], ["app1"]),
    ],
)
def test_waitress_runs_on_both_systems(hosts, runs):
    assert make({**SHOP, "hosts": hosts})["apps"]["shop"]["hosts"] == runs


@pytest.mark.parametrize(
    ("front", "servers"),
    [
        ("none", ["192.0.2.31:8001", "192.0.2.31:8002", "192.0.2.32:8001", "192.0.2.32:8002"]),
        ("nginx", ["192.0.2.31:80", "192.0.2.32:80"]),
    ],
)
def test_balancers_reach_the_instances_or_their_nginx(front, servers):
    site = fleet.nginx_sites(make({**SHOP, "front": front}), "lb1")[0]
    assert [server["address"] for server in site["upstream"]["servers"]] == servers


def test_a_mixed_fleet_is_one_upstream():
    site = fleet.nginx_sites(make({**SHOP, "hosts": ["linux_apps", "win1"]}), "lb1")[0]
    assert [server["address"] for server in site["upstream"]["servers"]] == [
        "192.0.2.11:80",
        "192.0.2.31:8001",
        "192.0.2.31:8002",
    ]


@pytest.mark.parametrize(
    ("front", "balancers", "rules"),
    [
        ("none", "lb1", [("8001-8002", ["192.0.2.1"])]),
        ("none", "lb1 lb2", [("8001-8002", ["192.0.2.1", "192.0.2.2"])]),
        ("none", "", [("8001-8002", ["any"])]),
        ("nginx", "lb1", [("80", ["192.0.2.1"])]),
        ("nginx", "", [("80", ["any"])]),
    ],
)
def test_the_firewall_follows_from_the_topology(front, balancers, rules):
    plan = make({**SHOP, "front": front}, balancers=balancers)
    assert [(rule["port"], rule["from"]) for rule in fleet.windows_firewall_rules(plan, "win1")] == rules


def test_one_instance_is_one_port():
    plan = make({**SHOP, "waitress": {"instances": 1}})
    assert fleet.windows_firewall_rules(plan, "win1")[0]["port"] == "8001"


@pytest.mark.parametrize(
    ("front", "balancers", "address", "trusted"),
    [
        ("nginx", "lb1", "127.0.0.1", "127.0.0.1"),
        ("none", "lb1", "0.0.0.0", "192.0.2.1"),
        ("none", "lb1 lb2", "0.0.0.0", "*"),
        ("none", "", "0.0.0.0", None),
    ],
)
def test_who_is_believed_about_clients(front, balancers, address, trusted):
    app = fleet.windows_apps(make({**SHOP, "front": front}, balancers=balancers), "win1")[0]
    assert (app["address"], app["waitress"].get("trusted_proxy")) == (address, trusted)


def test_connections_stay_below_what_select_takes():
    assert fleet.windows_apps(make(SHOP), "win1")[0]["waitress"]["connection_limit"] == 480
    assert errors({**SHOP, "waitress": {"connection_limit": 481}}) == [
        "app shop: waitress.connection_limit: is 481, but Windows hosts take 480 at most; give more instances instead"
    ]


def test_tls_and_cors_are_the_edges():
    shop = {**SHOP, "front": "nginx", "nginx": {"tls": FILES, "cors": {"origins": ["https://a.example"]}}}
    edge = fleet.windows_sites(make(shop, balancers=""), "win1")[0]
    assert edge["certificate"] == FILES["certificate"]
    assert edge["https_redirect"]
    assert edge["cors"]["origins"] == ["https://a.example"]
    assert edge["trusted_proxies"] == []
    inner = fleet.windows_sites(make(shop), "win1")[0]
    assert "certificate" not in inner
    assert "cors" not in inner
    assert inner["trusted_proxies"] == ["192.0.2.1"]
    ports = [rule["port"] for rule in fleet.windows_firewall_rules(make(shop, balancers=""), "win1")]
    assert ports == ["80", "443"]


def test_patterns_of_origins_are_for_linux():
    shop = {**SHOP, "front": "nginx", "nginx": {"tls": FILES, "cors": {"origin_patterns": [r"https://a\.example"]}}}
    assert errors(shop) == []  # the balancer's business
    with pytest.raises(fleet.PlanError, match="origin_patterns: are for Linux hosts only, but clients reach win1"):
        make(shop, balancers="")


def test_ports_are_found_by_name_alone_and_do_not_meet():
    apps = [{**SHOP, "name": name, "domains": [f"{name}.example.com"]} for name in ("a", "b", "c")]
    apps = [{key: value for key, value in app.items() if key != "port"} for app in apps]
    plan = make(*apps)
    ports = {name: plan["apps"][name]["windows_port"] for name in ("a", "b", "c")}
    assert len({*ports.values(), *(port + 1 for port in ports.values())}) == 6
    assert make(*reversed(apps))["apps"]["b"]["windows_port"] == ports["b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"server": "gunicorn"},
            "app shop: hosts: the app runs on no host: windows_apps has Windows hosts only; set server to waitress",
        ),
        (
            {"hooks": {"after_build": ["x"]}},
            (
                "app shop: hooks: is for Linux hosts only, but the app runs on win1; "
                "leave it out, or take the Windows hosts out of hosts"
            ),
        ),
        (
            {"migrate": "flask db upgrade"},
            (
                "app shop: migrate: is for Linux hosts only, but the app runs on win1; "
                "leave it out, or take the Windows hosts out of hosts"
            ),
        ),
        (
            {"programs": [{"name": "worker", "command": "celery"}]},
            (
                "app shop: programs: is for Linux hosts only, but the app runs on win1; "
                "leave it out, or take the Windows hosts out of hosts"
            ),
        ),
        (
            {"port": 5985},
            (
                "app shop: port: is 5985, and an instance needs 5985, which is taken by WinRM on host win1; "
                "choose another, or auto"
            ),
        ),
        (
            {"port": 8078},
            (
                "app shop: port: is 8078, and an instance needs 8079, "
                "which is taken by nginx's status page on host win1; "
                "choose another, or auto"
            ),
        ),
        (
            {"port": 65535},
            "app shop: port: is 65535, but 2 instances need as many ports up to 65535; choose a lower one",
        ),
        (
            {"front": "apache"},
            (
                "app shop: front: is apache, which is for Linux hosts only, but the app runs on win1; "
                "take the Windows hosts out of hosts, or set it to nginx or none"
            ),
        ),
    ],
)
def test_wrong_records_are_refused_in_these_words(change, message):
    assert errors({**SHOP, **change}) == [message]


def test_instances_of_two_apps_do_not_share_a_port():
    other = {**SHOP, "name": "other", "domains": ["other.example.com"], "port": 8002}
    assert errors(SHOP, other) == [
        (
            "app other: port: is 8002, and an instance needs 8002, which is taken by app shop on host win1; "
            "choose another, or auto"
        )
    ]
    assert errors({**SHOP, "hosts": ["win1"]}, {**other, "hosts": ["win2"]}) == []


def test_self_signed_needs_a_balancer():
    shop = {**SHOP, "front": "nginx", "nginx": {}}
    assert errors(shop) == []
    assert errors(shop, balancers="") == [
        "app shop: nginx.tls: is self_signed, for which Windows hosts have no certificate; give mode files or off"
    ]


def test_a_balancer_is_a_linux_host():
    wrong = "host win1: is in balancers and in windows_apps; keep it in one of them"
    assert errors(SHOP, balancers="win1")[0] == wrong


def test_linux_hosts_are_given_nothing_of_it_and_windows_hosts_nothing_of_theirs():
    plan = make({**SHOP, "hosts": ["linux_apps", "win1"]}, {"name": "old", "state": "absent", "hosts": ["win1"]})
    for project in (fleet.windows_apps, fleet.windows_sites, fleet.windows_firewall_rules, fleet.windows_removed):
        assert project(plan, "app1") == project(plan, "lb1") == project(plan, "elsewhere") == []
    assert fleet.windows_removed(plan, "win1") == [{"name": "old", "keep_data": True}]
    assert "windows" not in plan["hosts"]["app1"]


@pytest.mark.parametrize(("front", "port"), [("none", 8001), ("nginx", 80)])
def test_without_balancers_clients_are_asked_for(front, port):
    plan = make({**SHOP, "front": front}, balancers="")
    probe = _status.edge_probes(plan, "win1")[0]
    assert (probe["address"], probe["port"]) == ("192.0.2.31", port)
    assert _status.inner_probes(make(SHOP), "win1") == []


@pytest.mark.parametrize("hosts", [["windows_apps"], ["linux_apps", "win1"]])
def test_a_deploy_reaches_windows(hosts):
    assert fleet.deploy_errors({"wsgi_apps_only": "shop"}, make({**SHOP, "hosts": hosts})) == []


@pytest.mark.parametrize(
    ("front", "endpoints"), [("none", ["192.0.2.31:8001", "192.0.2.31:8002"]), ("nginx", ["192.0.2.31:80"])]
)
def test_balancers_drain_what_they_reach(front, endpoints):
    plan = make({**SHOP, "front": front})
    assert fleet.inner_endpoints(plan, "win1", ["shop"]) == endpoints
    assert fleet.inner_endpoints(plan, "win1", ["other"]) == []
    assert fleet.edge_logs(plan, "win1", ["shop", "other"]) == {"shop": "/var/log/nginx/shop.access.log"}


@pytest.mark.parametrize(
    ("front", "balancers", "only", "refused"),
    [
        ("none", "lb1", None, False),
        ("none", "", None, True),
        ("none", "", "shop", True),
        ("none", "", "linux", False),
        ("nginx", "", None, False),
    ],
)
def test_a_page_of_maintenance_needs_nginx(front, balancers, only, refused):
    linux = {**SHOP, "name": "linux", "domains": ["linux.example.com"], "hosts": ["linux_apps"]}
    asked = {"wsgi_maintenance": "on", **({"wsgi_apps_only": only} if only else {})}
    plan = make({**SHOP, "front": front}, linux, balancers=balancers)
    found = fleet.maintenance_errors(asked, plan, "2026-11-21T12:00:00Z")
    said = (
        "wsgi_apps_only: 'shop' meets its visitors on win1 without nginx, which alone has a page to close it with; "
        "set its front to nginx, put a balancer in front (group balancers), or name other apps"
    )
    assert found == [said] * refused


@pytest.mark.parametrize(
    ("balancers", "switch", "closed"),
    [("lb1", {"switch": False}, []), ("", {"open_paths": ["/healthz"], "page": "<p>Closed</p>"}, ["shop"])],
)
def test_the_switch_is_where_clients_come_in(balancers, switch, closed):
    nginx = {"tls": FILES, "maintenance_page": "<p>Closed</p>"}
    plan = make({**SHOP, "front": "nginx", "health": "/healthz", "nginx": nginx}, balancers=balancers)
    assert [site["maintenance"] for site in fleet.windows_sites(plan, "win1")] == [switch]
    records = fleet.nginx_maintenance(plan, "win1", {"wsgi_maintenance": "on"}, "2026-11-21T12:00:00Z")
    assert [record["name"] for record in records] == closed


@pytest.mark.parametrize("front", ["none", "nginx"])
@pytest.mark.parametrize("balancers", ["", "lb1"])
def test_the_role_takes_what_it_is_given(front, balancers):
    spec = yaml.safe_load((ROOT / "roles/waitress_windows/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    plan = make({**SHOP, "front": front, "nginx": {"tls": FILES}}, balancers=balancers)
    for variable, project in (
        ("waitress_windows_apps", fleet.windows_apps),
        ("waitress_windows_sites", fleet.windows_sites),
        ("waitress_windows_firewall_rules", fleet.windows_firewall_rules),
    ):
        given = {variable: copy.deepcopy(project(plan, "win1"))}
        validator = ArgumentSpecValidator(as_module_options({variable: options[variable]}))
        assert validator.validate(given).error_messages == []
