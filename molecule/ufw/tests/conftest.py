"""Fixtures of the firewall's tests."""

import pytest


@pytest.fixture
def address(host):
    return host.ansible.get_variables()["ansible_host"]
