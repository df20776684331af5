"""The hosts, and what is run on them."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pytest
import testinfra
from probes import run_playbook
from runs import INVENTORIES, Run, each, file_on_controller, state
from serving import CACHE


@pytest.fixture(scope="module")
def hosts(request):
    inventory = request.config.option.ansible_inventory
    found = testinfra.get_hosts(["ansible://systems_under_test"], ansible_inventory=inventory)
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def run(request, hosts, tmp_path_factory):
    """Run a playbook on all hosts."""
    names = [host.backend.host for host in hosts]
    facts = str(tmp_path_factory.mktemp("facts"))

    def run(playbook, *arguments, inventory=(), **variables):
        # what is on a command line is no secret
        with file_on_controller(CACHE / "variables.json", variables) as path:
            done = run_playbook(
                playbook,
                *("--extra-vars", f"@{path}", *arguments),
                inventories=[*INVENTORIES, *inventory, Path(request.config.option.ansible_inventory)],
                ANSIBLE_CACHE_PLUGIN="jsonfile",
                ANSIBLE_CACHE_PLUGIN_CONNECTION=facts,
                ANSIBLE_CALLBACK_RESULT_FORMAT="yaml",
                ANSIBLE_GATHERING="smart",
                ANSIBLE_HOST_KEY_CHECKING="false",
                ANSIBLE_INJECT_FACT_VARS="false",
            )
        return Run(done.returncode, done.stdout, done.stderr, names)

    return run


@pytest.fixture(scope="module")
def play(run):
    """Run the role once more on all hosts, with other variables."""
    return functools.partial(run, "molecule/shared/converge.yml", role_under_test="nginx")


@pytest.fixture
def restored(hosts, play):
    """The scenario's own state comes back afterwards, whatever the test left."""
    before = each(state, hosts)
    yield
    with contextlib.suppress(AssertionError):  # nginx does not answer
        if each(state, hosts) == before:
            return
    play().changes()
