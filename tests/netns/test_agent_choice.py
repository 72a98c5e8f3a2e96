"""What an agent never takes as its external interface or address, at the start or in need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from flannel_udp.host.upkeep import RETURN_S
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import write_sysctls
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

LINK_LOCAL = "169.254.99.7"
ETH9 = ("link add eth9 type veth peer name far9", "link set eth9 up", "link set far9 up")
BY_ETH9 = (
    f"addr add {LINK_LOCAL}/16 dev eth9 noprefixroute",
    f"route add default dev eth9 scope link src {LINK_LOCAL} metric 1000205",
)
"""What dhcpcd and avahi do where no DHCP server answers."""


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with the default route over eth0, and another NIC without any address."""
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        (host,) = lab.hosts
        host.configure(*ETH9)
        yield host


def eth0_is_back(host: Host) -> None:
    host.configure(f"addr add {host.underlay}/24 dev eth0", "route replace default via 192.0.2.254")


def used(host: Host) -> tuple[str, str]:
    """Return the agent's interface, and the public IP that the registry has."""
    (entry,) = json.loads(host.plan.registry_file.read_text())["subnets"].values()
    return host.control("/v1/status")["interface"]["name"], str(entry["PublicIP"])


@pytest.mark.parametrize("flag", ["lan0", "eth0@if7"])
def test_a_name_that_ip_takes_or_shows_is_one(host: Host, flag: str) -> None:
    host.configure("link property add dev eth0 altname wan0 altname lan0")
    with Agent(host, iface=flag) as agent:
        agent.wait_ready()
        assert used(host) == ("eth0", str(host.underlay))
        host.configure("link set eth0 down", "link set eth0 up", "route replace default via 192.0.2.254")
        wait_for("ready", host.is_ready)
        assert used(host) == ("eth0", str(host.underlay))


@pytest.mark.parametrize(
    ("flag", "lines", "goes"),
    [
        (None, BY_ETH9, "addr flush dev eth0"),
        ("eth0", [f"addr add {LINK_LOCAL}/16 dev eth0"], "addr del {}/24 dev eth0"),
    ],
    ids=["another default route", "beside the lost one"],
)
def test_to_a_link_local_address_no_agent_moves(host: Host, flag: str | None, lines: list[str], goes: str) -> None:
    own = ("eth0", str(host.underlay))
    host.configure(*lines)
    with Agent(host, iface=flag) as agent:
        agent.wait_ready()
        assert used(host) == own
        host.configure(goes.format(host.underlay))
        agent.wait_for_line(f"no traffic: interface eth0 has lost its address {host.underlay}")
        time.sleep(RETURN_S + 2.0)
        assert not host.is_ready()
        eth0_is_back(host)
        wait_for("ready", host.is_ready)
        assert used(host) == own
        assert not [line for line in agent.said() if "the external address is" in line]


def test_at_the_start_a_link_local_address_is_passed_over_until_there_is_another(host: Host) -> None:
    host.configure("addr flush dev eth0", *BY_ETH9)
    with Agent(host, iface=None) as agent:
        agent.wait_for_line(f"default route: {LINK_LOCAL} of eth9 is link-local: another host may have the same")
        assert host.control("/v1/status")["state"] == "waiting for the external interface"
        eth0_is_back(host)
        agent.wait_ready()
        assert used(host) == ("eth0", str(host.underlay))


def test_a_link_local_address_with_a_public_ip_is_taken(host: Host) -> None:
    """Others dial that one: what is in front of us translates it, or routes it here."""
    host.configure("addr flush dev eth0", *BY_ETH9)
    with Agent(host, "--public-ip=203.0.113.9", iface=None) as agent:
        agent.wait_ready()
        assert used(host) == ("eth9", "203.0.113.9")


ON_TUNNEL = "198.51.100.77"


@pytest.mark.parametrize(
    ("backend", "tunnel"),
    [({"Type": "vxlan"}, "flannel.1"), ({"Type": "ipip"}, "flannel.ipip"), ({"Type": "udp"}, "flannel0")],
    ids=["vxlan", "ipip", "udp"],
)
def test_a_tunnel_of_its_own_no_agent_takes(backend: dict[str, str], tunnel: str) -> None:
    config = {"Network": "10.244.0.0/16", "Backend": backend}
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=config)) as lab:
        (host,) = lab.hosts
        own = ("eth0", str(host.underlay))
        host.configure("route del default", "route add default via 192.0.2.254 metric 303")
        with Agent(host, iface=None) as agent:
            agent.wait_ready()
            host.configure(
                f"addr add {ON_TUNNEL}/24 dev {tunnel} noprefixroute",
                f"route add default via 198.51.100.254 dev {tunnel} metric 210 onlink",
            )
            host.configure("addr flush dev eth0")
            agent.wait_for_line(f"no traffic: interface eth0 has lost its address {host.underlay}")
            time.sleep(RETURN_S + 2.0)
            assert not host.is_ready()
            eth0_is_back(host)
            host.configure("route del default via 192.0.2.254 metric 0", "route add default via 192.0.2.254 metric 303")
            wait_for("ready", host.is_ready)
            assert used(host) == own
            subnet = host.subnet
            assert agent.stop() == 0
        with Agent(host, iface=None) as agent:
            agent.wait_ready()
            assert (used(host), host.subnet) == (own, subnet)
            assert [line for line in agent.said() if line.startswith("using interface")] == [
                f"using interface eth0, address {host.underlay}, public IP {host.underlay}"
            ]


def test_a_default_route_by_a_nexthop_object_is_seen(host: Host) -> None:
    write_sysctls(host.namespace, {"ipv4/nexthop_compat_mode": 0})
    host.configure("route del default", "nexthop add id 5 via 192.0.2.254 dev eth0", "route add default nhid 5")
    with Agent(host, iface=None) as agent:
        agent.wait_ready()
        assert used(host) == ("eth0", str(host.underlay))


def test_why_nothing_else_is_taken_is_said_once_another_would_be(host: Host) -> None:
    with Agent(host) as agent:
        agent.wait_ready()
        host.configure("link set eth0 down", "link set eth0 name ens3", "link set ens3 up")
        agent.wait_for_line("interface eth0 is called ens3 now")
        wait_for("ready", host.is_ready)
        host.configure("addr flush dev ens3", "addr add 192.0.2.77/24 dev ens3")
        waits = f"interface ens3 has lost its address {host.underlay}: waiting for it"
        agent.wait_for_line(f"no traffic: {waits}; nothing else is taken: --iface=eth0: no such interface")
        assert host.control("/v1/status")["state"].startswith(waits)
        host.configure("link set ens3 name eth0")
        wait_for("taken", lambda: host.is_ready() and used(host) == ("eth0", "192.0.2.77"))
        said = [line for line in agent.said() if line.startswith(f"no traffic: {waits}")]
        assert said[0] == f"no traffic: {waits}"
        assert len(said) == 2
