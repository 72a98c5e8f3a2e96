"""Hosts whose IPv6 is not as the lab's: virtual addresses, IPv6 off on new devices, no ip6tables, no default route."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, unanswered, wait_for, wait_for_peers, wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def pair() -> Iterator[Lab]:
    """Two hosts with both families, of which h2 runs an agent."""
    with Lab(Plan(fresh_name(), hosts=2, families="46", agents=("h2",))) as lab:
        yield lab


def attached(lab: Lab) -> None:
    lab.hosts[0].attach_pods()
    wait_for_peers(lab.hosts)


def test_a_virtual_address_that_came_later_is_not_the_hosts(pair: Lab) -> None:
    h1 = pair.hosts[0]
    h1.configure("address add 2001:db8::100/128 dev eth0 nodad")
    with Agent(h1) as agent:
        agent.wait_ready()
        assert h1.control("/v1/status")["public_ipv6"] == str(h1.underlay_of(6))
        h1.configure("address del 2001:db8::100/128 dev eth0")
        attached(pair)
        wait_for_pings(pair)


@pytest.mark.parametrize("backend", ["udp", "host-gw"])
def test_an_address_of_the_interface_as_public_ip_is_what_packets_leave_from(backend: str) -> None:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=2, families="46", agents=("h2",), config=config)) as lab:
        h1 = lab.hosts[0]
        others = {"--public-ip": "192.0.2.77", "--public-ipv6": "2001:db8::77"}
        h1.configure("address add 192.0.2.77/24 dev eth0", "address add 2001:db8::77/64 dev eth0 nodad")
        with Agent(h1, *(word for flag in others.items() for word in flag)) as agent:
            agent.wait_ready()
            interface = h1.control("/v1/status")["interface"]
            assert [interface["address"], interface["ipv6_address"]] == list(others.values())
            h1.attach_pods()
            wait_for_pings(lab)


def test_ipv6_that_is_off_on_new_devices_is_on_on_flannel0(pair: Lab) -> None:
    h1 = pair.hosts[0]
    h1.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
    with Agent(h1) as agent:
        agent.wait_ready()
        h1.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=0"])  # for the pods' bridge, which is not ours
        attached(pair)
        wait_for_pings(pair)
        h1.run(["sysctl", "-qw", "net.ipv6.conf.flannel0.disable_ipv6=1"])
        wait_for_pings(pair)


def test_without_ip6tables_ipv4_is_none_the_worse_and_the_lack_is_named(pair: Lab, tmp_path: Path) -> None:
    h1 = pair.hosts[0]
    for name in ("iptables", "iptables-restore"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    with Agent(h1, wrapper=("env", f"PATH={tmp_path}")) as agent:
        agent.wait_ready()
        attached(pair)
        assert unanswered(pair.pods()) == []
        assert h1.subnet_file.exists()
        (lack,) = h1.control("/v1/status")["problems"]
        assert lack.startswith("the firewall rules for IPv6 do not stand: ip6tables is not in PATH")
        assert lack.endswith(": install the package iptables")
        for name in ("ip6tables", "ip6tables-restore"):
            (tmp_path / name).symlink_to(str(shutil.which(name)))
        wait_for("all stand", lambda: not h1.control("/v1/status")["problems"])


# How iptables-legacy refuses a table that the kernel has not; all else is the real program's.
WITHOUT_NAT = """#!/bin/sh
text= which=
case "$0" in *restore) text=$(cat) which=restore ;; esac
case "$which$*$text" in
restore*nat*)
    echo "ip6tables-restore v1.8.9 (legacy): ip6tables-restore: unable to initialize table 'nat'" >&2
    exit 2
    ;;
*nat*)
    echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table \\`nat': Table does not exist" >&2
    exit 3
    ;;
esac
echo "$text" | REAL "$@"
"""
# And how it does so on a machine that was booted with ipv6.disable=1.
WITHOUT_IPV6 = """#!/bin/sh
why="can't initialize ip6tables table \\`filter': Address family not supported by protocol"
echo "ip6tables v1.8.9 (legacy): $why" >&2
exit 3
"""


def test_a_kernel_without_a_nat_table_for_ipv6_needs_it_for_masquerade_only(pair: Lab, tmp_path: Path) -> None:
    h1 = pair.hosts[0]
    for name in ("ip6tables", "ip6tables-restore"):
        tool = tmp_path / name
        tool.write_text(WITHOUT_NAT.replace("REAL", str(shutil.which(name))))
        tool.chmod(0o755)
    path = ("env", f"PATH={tmp_path}:{os.environ['PATH']}")
    with Agent(h1, wrapper=path) as agent:
        agent.wait_ready()
        assert h1.control("/v1/status")["problems"] == []
        assert agent.stop() == 0
    with Agent(h1, "--ip-masq", wrapper=path) as agent:
        agent.wait_ready()
        (lack,) = h1.control("/v1/status")["problems"]
        assert "the kernel's module for table nat is not loaded: modprobe -a ip6_tables ip6table_nat now" in lack


def test_where_ipv6_is_off_its_rules_are_not_missed(pair: Lab, tmp_path: Path) -> None:
    h1 = pair.hosts[0]
    h1.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
    for name in ("ip6tables", "ip6tables-restore"):
        tool = tmp_path / name
        tool.write_text(WITHOUT_IPV6)
        tool.chmod(0o755)
    with Agent(h1, wrapper=("env", f"PATH={tmp_path}:{os.environ['PATH']}")) as agent:
        agent.wait_ready()
        (lack,) = h1.control("/v1/status")["problems"]
        assert "takes no part in the overlay by IPv6" in lack
        assert not [line for line in agent.said() if "ip6tables" in line]


def test_with_ipv6_alone_and_no_default_route_the_line_tells_of_ipv6() -> None:
    with Lab(Plan(fresh_name(), hosts=1, families="6", agents=())) as lab:
        h1 = lab.hosts[0]
        h1.run(["ip", "-6", "route", "del", "default"])
        with Agent(h1, iface=None) as agent:
            line = agent.wait_for_line("finding the external interface failed: ")
            assert "this host has none for IPv6" in line
            assert "eth0 (2001:db8::1)" in line
