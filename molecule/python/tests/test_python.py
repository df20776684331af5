"""The interpreters and uv, used as applications use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from probes import ROOT, run_playbook, thorough

testinfra_hosts = ["ansible://systems_under_test"]

INVENTORIES = [ROOT / "molecule/shared/inventory", ROOT / "molecule/python/inventory"]
UV = "/opt/wsgi-fleet/uv/bin/uv"
SECRET = "Hard-to-guess-4712"


@pytest.fixture
def name(host):
    return host.backend.get_hostname()


@pytest.fixture
def apply(host, name):
    """Apply the role to this host with other values."""

    def run(*arguments, **variables):
        return run_playbook(
            "molecule/shared/converge.yml",
            *arguments,
            "--limit",
            name,
            "-e",
            json.dumps({"role_under_test": "python", **variables}),
            inventories=[Path(host.backend.ansible_inventory).parent, *INVENTORIES],
            ANSIBLE_SSH_COMMON_ARGS="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        )

    return run


def test_distribution_interpreter_makes_environments(host):
    probe = host.check_output("mktemp -d")
    host.check_output(f"python3 -m venv {probe} && {probe}/bin/python -m pip --version && rm -r {probe}")


def test_interpreter_of_an_explicit_version_is_there(host, name):
    assert host.package("python3.11-venv").is_installed == (name == "debian12")
    assert host.package("python3.11-dev").is_installed == (name == "debian12")


def test_extension_module_can_be_compiled(host):
    host.check_output(
        "cd /tmp && echo '#include <Python.h>' > probe.c && gcc -c $(python3-config --includes) -o probe.o probe.c"
    )


def test_uv_is_the_pinned_one_and_everybody_may_use_it(host):
    assert host.check_output(f"runuser -u nobody -- {UV} --version").startswith("uv 0.13.8")


def test_uv_trusts_what_the_system_trusts(host):
    out = host.check_output(
        f"cd /tmp && UV_SYSTEM_CERTS=1 {UV} venv --quiet --clear --cache-dir /tmp/cache /tmp/uv-probe && "
        f"UV_SYSTEM_CERTS=1 {UV} pip install --quiet --cache-dir /tmp/cache --python /tmp/uv-probe itsdangerous && "
        "/tmp/uv-probe/bin/python -c 'import itsdangerous; print(itsdangerous.__name__)'"
    )
    assert out == "itsdangerous"


def test_system_python_is_left_alone(host):
    assert host.run("ls /usr/lib/python3.*/EXTERNALLY-MANAGED").rc == 0
    assert host.check_output("find /usr/local/lib -path '*-packages/*' | wc -l") == "0"
    assert not host.package("python3-pip").is_installed


def test_version_that_the_distribution_lacks_is_refused_with_those_that_it_has(host, name, apply):
    before = host.check_output("dpkg-query -W | sha256sum")
    run = apply(python_versions=["3.5"])
    assert run.returncode != 0
    assert "python3.5" in run.stdout
    assert f"have: {'3.11' if name == 'debian12' else '3.13'}." in run.stdout.replace("\n", " ").replace("  ", " ")
    assert host.check_output("dpkg-query -W | sha256sum") == before


@thorough
def test_another_uv_version_takes_the_place_of_the_first(host, apply):
    run = apply(python_uv_version="0.13.7")
    assert run.returncode == 0, run.stdout
    assert host.check_output(f"{UV} --version").startswith("uv 0.13.7")
    assert SECRET not in run.stdout + run.stderr
    run = apply("-vvv")
    assert run.returncode == 0, run.stdout
    assert SECRET not in run.stdout + run.stderr
    assert host.check_output(f"{UV} --version").startswith("uv 0.13.8")


def test_uv_version_that_does_not_exist_leaves_the_old_one_and_tells(host, apply):
    run = apply(python_uv_version="0.0.0")
    assert run.returncode != 0
    assert "uv 0.0.0 cannot be installed" in run.stdout
    assert "No matching distribution" in run.stdout
    assert host.check_output(f"{UV} --version").startswith("uv 0.13.8")


def test_killed_installation_is_mended(host, apply):
    # as a kill leaves it: some of the new environment, no marker, the link as before
    host.check_output("rm /opt/wsgi-fleet/uv-0.13.8/.complete /opt/wsgi-fleet/uv-0.13.8/bin/uv")
    run = apply()
    assert run.returncode == 0, run.stdout
    assert host.check_output(f"{UV} --version").startswith("uv 0.13.8")
    assert host.check_output("ls /opt/wsgi-fleet") == "uv\nuv-0.13.8"
    assert "changed=0" in apply().stdout
