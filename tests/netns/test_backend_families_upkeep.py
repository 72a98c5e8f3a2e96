"""What a host has for IPv6 is kept right as that of IPv4 is, and each family goes its own way past the tunnel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from flannel_udp.lab.sites import Router
from tests.support.agents import wait_for, wait_for_pings
from tests.support.by_hand_vxlan import mac_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.vxlan_state import has_device

pytestmark = NEEDS_NETNS

DEVICE = "flannel-v6.1"


def lines(host: Host, command: str) -> set[str]:
    return {line.strip().partition(" expires")[0] for line in host.run(command.split()).stdout.splitlines()}


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "DirectRouting": True}}
    plan = Plan(
        *(fresh_name(), 3),
        families="46",
        config=config,
        routers={"r1": Router()},
        behind={"h3": "r1"},
        agent_args=("--datapath=kernel",),
    )
    with Lab(plan) as lab:
        wait_for_pings(lab, (4, 6))
        yield lab


def state_of(host: Host) -> set[str]:
    """Return what there is of IPv6 for the peers, and of the device."""
    if not has_device(host, DEVICE):
        return set()
    return {
        *lines(host, "ip -6 route show proto 82"),
        *lines(host, f"ip -6 neighbour show dev {DEVICE} nud permanent"),
        *lines(host, f"bridge fdb show dev {DEVICE}"),
        *(" ".join(line.split()[1:4]) for line in lines(host, f"ip -o address show dev {DEVICE}")),
        mac_of(host, DEVICE),
        *(word for word in lines(host, f"ip link show {DEVICE}") if "mtu 1430" in word and "UP" in word),
    }


def without_index(state: set[str]) -> set[str]:
    return {line.partition(": ")[2] if "mtu" in line else line for line in state}


def test_peers_on_the_link_get_a_route_and_the_others_the_tunnel_by_each_family(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    assert lines(h1, "ip -6 route show proto 82") == {
        f"{h2.subnet_of(6)} via {h2.underlay_of(6)} dev eth0 metric 1024",
        f"{h3.subnet_of(6)} via {str(h3.subnet_of(6)).split('/')[0]} dev {DEVICE} metric 1024 onlink",
    }
    ways = {peer["subnet"]: peer["datapath"] for peer in h1.control("/v1/peers")}
    assert ways == {str(host.subnet_of(v)): way for host, way in ((h2, "direct"), (h3, "tunnel")) for v in (4, 6)}


def test_one_family_may_be_on_the_link_where_the_other_is_not(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    before = without_index(state_of(h1))

    def ways() -> dict[str, str]:
        return {peer["subnet"]: peer["datapath"] for peer in h1.control("/v1/peers")}

    h1.configure(f"route add {h2.underlay_of(6)} via 2001:db8::fe")
    try:
        wait_for("the tunnel by IPv6", lambda: ways()[str(h2.subnet_of(6))] == "tunnel")
        assert ways()[str(h2.subnet_of(4))] == "direct"
        tunnelled = f"{h2.subnet_of(6)} via {str(h2.subnet_of(6)).split('/')[0]} dev {DEVICE} metric 1024 onlink"
        wait_for("its route", lambda: tunnelled in state_of(h1))
    finally:
        h1.configure(f"route del {h2.underlay_of(6)} via 2001:db8::fe")
    wait_for("direct again", lambda: ways()[str(h2.subnet_of(6))] == "direct")
    wait_for("all is as before", lambda: without_index(state_of(h1)) == before)


UNDONE: dict[str, Callable[[Host, Host], list[str]]] = {
    "the device deleted": lambda _, __: [f"link del {DEVICE}"],
    "the device down": lambda _, __: [f"link set {DEVICE} down"],
    "another MAC": lambda _, __: [f"link set {DEVICE} address 0a:00:00:00:00:99"],
    "another MTU": lambda _, __: [f"link set {DEVICE} mtu 1300"],
    "no address": lambda host, _: [f"address del {str(host.subnet_of(6)).split('/')[0]}/128 dev {DEVICE}"],
    "no neighbour": lambda _, far: [f"neighbour del {str(far.subnet_of(6)).split('/')[0]} dev {DEVICE}"],
    "no route": lambda _, far: [f"route del {far.subnet_of(6)}"],
}


@pytest.mark.parametrize("what", UNDONE)
def test_what_somebody_undoes_is_put_right(trio: Lab, what: str) -> None:
    host, _, far = trio.hosts
    before = without_index(state_of(host))
    host.configure(*UNDONE[what](host, far))
    wait_for("it is as before", lambda: without_index(state_of(host)) == before)
    wait_for("traffic", lambda: None not in ping_matrix(trio.pods(), 0.5, 6).values())


def test_ipv6_that_is_switched_off_on_the_device_is_switched_on_again(trio: Lab) -> None:
    host = trio.hosts[0]
    before = without_index(state_of(host))
    host.run(["sysctl", "-w", f"net/ipv6/conf/{DEVICE}/disable_ipv6=1"])
    wait_for("it is as before", lambda: without_index(state_of(host)) == before)


def test_ipv4_is_none_the_worse_while_ipv6_has_no_device(trio: Lab) -> None:
    host = trio.hosts[0]
    assert host.control("/v1/status")["ready"]
    wait_for_pings(trio, (4, 6))
