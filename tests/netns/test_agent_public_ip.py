"""`--public-ip` without a flag that names an interface: the interface that has the address, or a NAT in front of us."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

OWN, NAT = "198.51.100.7", "203.0.113.77"


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with the default route over eth0, and another NIC."""
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        host = lab.hosts[0]
        host.configure(
            "link add eth1 type veth peer name far1",
            "link set eth1 up",
            "link set far1 up",
            f"addr add {OWN}/24 dev eth1",
        )
        yield host


def bound_to(host: Host) -> tuple[str, str]:
    status: Any = host.control("/v1/status")
    return status["interface"]["name"], status["interface"]["address"]


def registered(host: Host) -> str:
    (entry,) = json.loads(host.plan.registry_file.read_text())["subnets"].values()
    return str(entry["PublicIP"])


def test_an_own_address_chooses_its_interface_and_is_waited_for_when_it_goes(host: Host) -> None:
    with Agent(host, f"--public-ip={OWN}", iface="") as agent:
        agent.wait_ready()
        assert bound_to(host) == ("eth1", OWN)
        assert registered(host) == OWN
        host.configure(f"addr del {OWN}/24 dev eth1")
        agent.wait_for_line(f"no traffic: interface eth1 has lost its address {OWN}, which is --public-ip: waiting")
        assert not host.is_ready()
        host.configure(f"addr add {OWN}/24 dev eth1")
        agent.wait_ready()
        assert bound_to(host) == ("eth1", OWN)
        # It moves to another NIC: so do we.
        host.configure(f"addr del {OWN}/24 dev eth1", f"addr add {OWN}/32 dev eth0")
        wait_for("followed", lambda: host.is_ready() and bound_to(host) == ("eth0", OWN))
        assert agent.stop() == 0


def test_an_address_that_comes_later_is_moved_to(host: Host) -> None:
    host.configure(f"addr del {OWN}/24 dev eth1")
    with Agent(host, f"--public-ip={OWN}", iface="") as agent:
        agent.wait_ready()
        assert bound_to(host) == ("eth0", str(host.underlay))
        said = [line for line in agent.said() if "NAT" in line]
        fault = "no interface has this address: a NAT in front of us"
        assert said == [f"--public-ip={OWN}: {fault}; going on with default route"]
        host.configure(f"addr add {OWN}/24 dev eth1")
        wait_for("followed", lambda: host.is_ready() and bound_to(host) == ("eth1", OWN))


@pytest.mark.parametrize(
    "lines",
    [
        [f"addr add {NAT}/32 dev lo"],
        ["link set eth1 down", f"addr add {NAT}/32 dev eth1"],
    ],
    ids=["loopback", "down"],
)
def test_one_that_comes_where_no_packet_leaves_moves_nothing(host: Host, lines: list[str]) -> None:
    with Agent(host, f"--public-ip={NAT}", iface="") as agent:
        agent.wait_ready()
        host.configure(*lines)
        host.configure("link set flannel0 mtu 1300")  # once that is put right the host was looked at
        wait_for("a look", lambda: host.control("/v1/status")["host_repairs"]["mtu"] == 1)
        assert host.is_ready()
        assert bound_to(host) == ("eth0", str(host.underlay))
        assert not [line for line in agent.said() if "no traffic" in line or "the external address is" in line]


def test_one_that_is_not_local_leaves_the_default_route(host: Host) -> None:
    with Agent(host, f"--public-ip={NAT}", iface="") as agent:
        agent.wait_ready()
        assert bound_to(host) == ("eth0", str(host.underlay))
        assert registered(host) == NAT
