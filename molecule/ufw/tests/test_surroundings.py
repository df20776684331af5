"""What a firewall has around it: packets for others, Docker, a kernel without IPv6."""

from __future__ import annotations

from firewall import apply, changes, led_on, neighbour_address, replaced, restored
from probes import connects, thorough

testinfra_hosts = ["ansible://debian13"]  # one is enough: test_ufw.py holds both against the same measure


def test_rules_for_packets_that_are_passed_on(host, address):
    """As on a host that publishes others' services."""
    assert host.check_output("cat /proc/sys/net/ipv4/ip_forward") == "1"  # the sandbox allows no other value
    ports = 9001, 9002, 9004
    with led_on(host, neighbour_address(host), ports):
        assert [connects(address, port) for port in ports] == ["open", "refused", "dropped"]


def test_docker_is_told_of(host):
    rule = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"
    host.check_output(f"iptables -N DOCKER && iptables -t nat -N DOCKER && iptables -t nat {rule}")
    try:
        told = apply(host, check=True)
        assert "Docker publishes 8080/tcp on this host, past ufw" in " ".join((told.stdout + told.stderr).split())
        assert "changed=0" in told.stdout
    finally:
        host.check_output("iptables -X DOCKER && iptables -t nat -F DOCKER && iptables -t nat -X DOCKER")


@thorough
def test_host_without_ipv6(host, address):
    with restored(host), replaced(host, "ip6tables", "exit 3"):
        told = apply(host)
        assert told.returncode == 0
        assert "This host has no IPv6; passed over: {port: 8010" in " ".join((told.stdout + told.stderr).split())
        assert [connects(address, port) for port in (22, 8001, 8012)] == ["open", "open", "dropped"]
        assert changes(host) == 0
