"""What an operator may ask of a maintenance, and what a host's nginx is told then."""

from __future__ import annotations

import base64
import json
import random
import re
from datetime import datetime, timezone

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wsgi.fleet.plugins.filter.maintenance_change import maintenance_change
from ansible_collections.wsgi.fleet.plugins.filter.plan import FilterModule
from ansible_collections.wsgi.fleet.plugins.module_utils import maintenance
from ansible_collections.wsgi.fleet.plugins.module_utils import plan as fleet

NOW = "2026-11-21T12:00:00Z"
LATER = "2026-11-21T14:00:00Z"
FILTERS = FilterModule().filters()


def plan(balancers="lb1"):
    apps = [
        {
            "name": name,
            "domains": [f"{name}.example.com"],
            "source": {"package": name, "version": "1.0"},
            "callable": "app:app",
            "hosts": hosts,
        }
        for name, hosts in (("shop", ["app1"]), ("status", ["app1", "app2"]))
    ]
    names = {"lb1": 1, "app1": 11, "app2": 12}
    groups = {"balancers": balancers.split(), "linux_apps": ["app1", "app2"]}
    return fleet.make_plan(apps, groups, {name: {"ansible_host": f"192.0.2.{n}"} for name, n in names.items()})


# --- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"wsgi_maintenance": "on"}, {"closed": True}),
        ({"wsgi_maintenance": True}, {"closed": True}),
        ({"wsgi_maintenance": "off", "wsgi_maintenance_reason": "over"}, {"closed": False}),
        ({"wsgi_maintenance": False}, {"closed": False}),
        (
            {
                "wsgi_maintenance": "on",
                "wsgi_maintenance_allow": "192.0.2.7, 2001:db8::/32",
                "wsgi_maintenance_until": "2026-11-21T15:00:00+01:00",
                "wsgi_maintenance_retry_after": "600",
                "wsgi_maintenance_reason": 'New "database" & <more>',
            },
            {
                "closed": True,
                "allow": ["192.0.2.7/32", "2001:db8::/32"],
                "until": LATER,
                "retry_after": 600,
                "reason": 'New "database" & <more>',
            },
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_allow": ["192.0.2.0/24"]},
            {"closed": True, "allow": ["192.0.2.0/24"]},
        ),
        (
            {"wsgi_maintenance": True, "wsgi_maintenance_until": datetime(2026, 11, 21, 14, tzinfo=timezone.utc)},
            {"closed": True, "until": LATER},
        ),
        ({"wsgi_maintenance": "on", "wsgi_maintenance_retry_after": 5}, {"closed": True, "retry_after": 5}),
    ],
)
def test_every_app_is_meant(given, wanted):
    assert fleet.maintenance_errors(given, plan(), NOW) == []
    assert fleet.nginx_maintenance(plan(), "lb1", given, NOW) == [
        {"name": name, **wanted} for name in ("shop", "status")
    ]


@pytest.mark.parametrize("only", ["status", " status ", ["status"]])
def test_or_only_some(only):
    given = {"wsgi_maintenance": "on", "wsgi_apps_only": only}
    assert fleet.nginx_maintenance(plan(), "lb1", given, NOW) == [{"name": "status", "closed": True}]


def test_hosts_that_clients_reach_are_meant_with_what_they_serve():
    given = {"wsgi_maintenance": "on"}

    def names(fleet_plan, host):
        return [record["name"] for record in fleet.nginx_maintenance(fleet_plan, host, given, NOW)]

    assert [names(plan(), host) for host in ("lb1", "app1", "app2", "other")] == [["shop", "status"], [], [], []]
    assert [names(plan(""), host) for host in ("app1", "app2")] == [["shop", "status"], ["status"]]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({}, ["wsgi_maintenance: is missing; give on or off"]),
        ({"wsgi_maintenance": "On"}, ["wsgi_maintenance: is 'On', must be on or off"]),
        ({"wsgi_maintenance": 1}, ["wsgi_maintenance: is a whole number, must be on or off"]),
        (
            {"wsgi_maintenance": "on", "wsgi_apps_only": "shop,stauts,"},
            [
                "wsgi_apps_only[2]: is empty, must be the name of an app",
                "wsgi_apps_only: 'stauts' is no app of this inventory; known are shop, status",
            ],
        ),
        ({"wsgi_maintenance": "on", "wsgi_apps_only": []}, ["wsgi_apps_only: is an empty list, must be names of apps"]),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_alow": "192.0.2.7"},
            ["wsgi_maintenance_alow: is no known key; did you mean wsgi_maintenance_allow?"],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_allow": "192.0.2.5/24,lb1"},
            ["give 192.0.2.0/24 for all of it, or 192.0.2.5 alone", "'lb1' is no address or network"],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_until": "2026-11-21T14:00:00"},
            ["wsgi_maintenance_until: is '2026-11-21T14:00:00', has no zone; write 2026-11-21T14:00:00Z"],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_until": "in two hours"},
            ["wsgi_maintenance_until: is 'in two hours', must be a time with its zone"],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_until": "2026-11-21T12:59:59+01:00"},
            ["wsgi_maintenance_until: is 2026-11-21T11:59:59Z, which is over (it is 2026-11-21T12:00:00Z)"],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_retry_after": "soon", "wsgi_maintenance_reason": "a\nb"},
            [
                "wsgi_maintenance_retry_after: is a string, must be a whole number from 1 to 604800",
                "wsgi_maintenance_reason: is 'a\\nb', must be one line",
            ],
        ),
        (
            {"wsgi_maintenance": "on", "wsgi_maintenance_retry_after": 0},
            ["wsgi_maintenance_retry_after: is 0, must be a whole number from 1"],
        ),
    ],
)
def test_wrong_values_are_refused(given, messages):
    found = fleet.maintenance_errors(given, plan(), NOW)
    assert len(found) == len(messages)
    assert [(message, text) for message, text in zip(messages, found, strict=True) if message not in text] == []
    with pytest.raises(AnsibleFilterError):
        FILTERS["nginx_maintenance"](plan(), "lb1", given, NOW)


# --- what the site is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("health", "paths"),
    [("/", []), ("/?x=1", []), ("/healthz", ["/healthz"]), ("/healthz?full=1", ["/healthz"]), ("/a%20b", ["/a b"])],
)
def test_the_health_path_stays_open_unless_it_is_the_front_page(health, paths):
    app = {"name": "shop", "domains": ["shop.example.com"], "callable": "a:b", "health": health}
    app["source"] = {"package": "shop", "version": "1.0"}
    made = fleet.make_plan([app], {"linux_apps": ["app1"]}, {"app1": {"ansible_host": "192.0.2.1"}})
    assert [site["maintenance"] for site in fleet.nginx_sites(made, "app1")] == [{"open_paths": paths}]


def test_only_sites_for_clients_have_the_switch():
    both = plan("app1")
    switches = {site["name"]: site["maintenance"].get("switch", True) for site in fleet.nginx_sites(both, "app2")}
    assert switches == {"status": False}
    app1 = plan("lb1 app1")
    switches = {site["name"]: site["maintenance"].get("switch", True) for site in fleet.nginx_sites(app1, "app1")}
    assert switches == {"shop": True, "status": True, "shop_inner": False, "status_inner": False}


# --- what a host's nginx is told -----------------------------------------------------------------------------------


def encoded(state):
    return base64.b64encode(json.dumps(state).encode()).decode()


def changed(records, before=None, keep_others=True, now=NOW):
    found = maintenance_change(records, encoded(before) if before is not None else "", now, keep_others)
    assert found["problems"] == []
    return found


SHOP = {"name": "shop", "closed": True}
CLOSED = {"since": "2026-11-21T11:00:00Z", "until": None, "retry_after": None, "reason": None, "allow": []}


def test_closing_again_changes_nothing():
    first = changed([{**SHOP, "until": LATER, "allow": ["192.0.2.9", "192.0.2.0/25"], "reason": "x"}])
    assert first["state"]["shop"]["since"] == NOW
    assert first["state"]["shop"]["allow"] == ["192.0.2.0/25", "192.0.2.9/32"]
    again = [{**SHOP, "until": LATER, "allow": ["192.0.2.0/25", "192.0.2.9"], "reason": "x"}]
    assert changed(again, first["state"], now="2026-11-21T13:00:00Z") == first


@pytest.mark.parametrize(
    ("records", "keep", "left"),
    [
        ([{"name": "shop", "closed": False}], True, ["status"]),
        ([{"name": "shop", "closed": False}], False, []),
        ([{"name": "new", "closed": True}], True, ["new", "shop", "status"]),
        ([{"name": "shop", "closed": True}], False, ["shop"]),
        ([], True, ["shop", "status"]),
    ],
)
def test_others_stay_as_they_are(records, keep, left):
    before = {"status": CLOSED, "shop": CLOSED}
    after = changed(records, before, keep)["state"]
    assert list(after) == left
    assert {entry["since"] for name, entry in after.items() if name != "new"} <= {CLOSED["since"]}


def test_what_is_over_is_forgotten_and_begins_anew():
    before = {"status": {**CLOSED, "until": NOW}, "shop": {**CLOSED, "until": "2026-11-21T11:30:00Z"}}
    assert changed([], before)["state"] == {}
    assert changed([SHOP], before)["state"] == {"shop": {**CLOSED, "since": NOW}}


def test_sites_of_one_command_are_one_batch():
    records = [{"name": name, "closed": True, "allow": ["192.0.2.7"]} for name in ("a", "b", "c")]
    one, two = changed([*records, {"name": "d", "closed": True, "until": LATER}])["batches"]
    assert [site["name"] for site in one["sites"]] == ["a", "b", "c"]
    assert (one["number"], one["allow"], one["over"], one["retry_after"]) == (1, ["192.0.2.7/32"], "", "300")
    assert (two["number"], two["allow"], two["retry_after"]) == (2, [], "Sat, 21 Nov 2026 14:00:00 GMT")
    assert changed([{**SHOP, "until": LATER, "retry_after": 60}])["batches"][0]["retry_after"] == "60"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"allow": ["192.0.2.7; return 200"]}, "(shop): allow: 192.0.2.7; return 200 is no address or network"),
        ({"until": "2026-11-21T11:00:00Z"}, "until: 2026-11-21T11:00:00Z is over (it is 2026-11-21T12:00:00Z)"),
        ({"until": "14:00"}, "until: 14:00 must be a time with its zone"),
        ({"reason": "a\nb"}, "reason: give one line of up to 500 characters"),
        ({"retry_after": 0}, "retry_after: 0 is out of range; give 1 to 604800 seconds"),
        ({"name": "shop 1"}, "maintenance[0] (shop 1): name: is no name of a site"),
    ],
)
def test_wrong_records_are_refused(record, message):
    found = maintenance_change([{**SHOP, **record}], "", NOW, True)
    assert [message in problem for problem in found["problems"]] == [True]
    assert (found["state"], found["batches"]) == ({}, [])


@pytest.mark.parametrize("text", ["{", "[]", '{"shop": {}}', '{"shop": []}'])
def test_a_spoilt_state_is_told(text):
    found = maintenance_change([SHOP], base64.b64encode(text.encode()).decode(), NOW, True)
    assert "state.json of the maintenance cannot be read" in found["problems"][0]


def test_from_then_on_compares_numbers():
    def holds(border, number):
        return re.search(rf"^0:({maintenance.from_then_on(border)})[.]", f"0:{number}.123") is not None

    borders = [1_795_269_600, 1_999_999_999, 2_000_000_000, 9_999_999_999, 1_000_000_000]
    generator = random.Random(7)
    borders += [generator.randrange(10**9, 10**10) for _ in range(50)]
    for border in borders:
        near = [
            border + step for step in (-(10**6), -11, -1, 0, 1, 9, 10, 99, 10**6, 10**9, 10**10) if border + step > 0
        ]
        numbers = near + [generator.randrange(10**9, 10**11) for _ in range(50)]
        assert [number for number in numbers if holds(border, number) != (number >= border)] == []


def test_times_are_kept_in_one_form():
    assert maintenance.read_time("2026-11-21T15:00:00.5+01:00") == datetime(2026, 11, 21, 14, tzinfo=timezone.utc)
    assert maintenance.write_time(maintenance.read_time("2026-11-21T15:00:00+01:00")) == LATER
