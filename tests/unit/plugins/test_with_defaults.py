"""The defaults of records, as Ansible's own filter would fill them in."""

from __future__ import annotations

from ansible.plugins.filter.core import combine
from ansible_collections.wsgi.fleet.plugins.filter.with_defaults import with_defaults

DEFAULTS = {"port": 80, "tls": {"mode": "off", "ca": {"days": 9}}, "list": [1], "cache": {}}
RECORDS = [
    {},
    {"name": "a", "port": 81},
    {"tls": {"mode": "files", "ca": {"name": "x"}}, "list": [2]},
    {"tls": None, "cache": {"zone": 1}, "port": {"no": "number"}},
]


def test_records_are_complete_and_defaults_stay_as_they_are() -> None:
    assert with_defaults(RECORDS, DEFAULTS) == [combine(DEFAULTS, record, recursive=True) for record in RECORDS]
    assert with_defaults([{}], DEFAULTS) == [DEFAULTS]
    assert with_defaults([], DEFAULTS) == []
