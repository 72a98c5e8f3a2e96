"""A cluster goes over to another backend: nothing of the former one stays, nothing of anybody else's goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.backend.remains import find_flannelds_routes, remove_remains
from flannel_udp.backend.table import BACKENDS
from flannel_udp.host.rtnetlink import Route
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.probe import ping
from flannel_udp.model import Entry, Lease, LeaseAttrs, Subnet
from tests.support.agents import Agent, Log, restart_agents, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import mac_of
from tests.support.flow import Flow
from tests.support.kernel_state import kernel_state, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

OURS, THEIRS = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
N_PACKETS = 1000
ADMINISTRATORS = ("10.244.250.0/24 via 192.0.2.2 dev eth0", f"198.51.100.0/24 via {UNDERLAY_GATEWAY} dev eth0")
"""Routes of an administrator's: one inside the overlay through a peer, one to somewhere else."""


# From one backend of ours to another


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    """Two hosts that ran alloc, which leaves nothing; on the first one are the administrator's routes."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "alloc"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        lab.hosts[0].configure(*(f"route add {route}" for route in ADMINISTRATORS))
        yield lab


@pytest.fixture(scope="module")
def bare(duo: Lab) -> set[str]:
    """What the first host's kernel has while alloc runs."""
    return kernel_state(duo.hosts[0])


def of_tunnel(device: str, own: Host) -> set[str]:
    first = subnet_of(own).network_address
    return {
        f"link {device}",
        f"address {device} inet {first}/32",
        f"route local {first} dev {device} table local proto kernel scope host src {first}",
    }


def of_udp(own: Host, _peer: Host) -> set[str]:
    return {*of_tunnel("flannel0", own), f"route {OVERLAY} dev flannel0"}


def of_vxlan_by_us(own: Host, _peer: Host) -> set[str]:
    return {*of_tunnel("flannel.1", own), f"route {OVERLAY} dev flannel.1"}


def of_vxlan_by_the_kernel(own: Host, peer: Host) -> set[str]:
    subnet = subnet_of(peer)
    return {
        *of_tunnel("flannel.1", own),
        f"route {subnet} via {subnet.network_address} dev flannel.1 proto 82 onlink",
        f"neighbour {subnet.network_address} dev flannel.1 lladdr {mac_of(peer)} PERMANENT",
    }


def of_ipip_by_us(own: Host, _peer: Host) -> set[str]:
    return {*of_tunnel("flannel.ipip", own), f"route {OVERLAY} dev flannel.ipip"}


def of_host_gw(own: Host, peer: Host) -> set[str]:
    first = subnet_of(own).network_address
    return {
        f"address lo inet {first}/32",
        f"route local {first} dev lo table local proto kernel scope host src {first}",
        f"route {subnet_of(peer)} via {peer.underlay} dev eth0 proto 82 src {first}",
    }


def of_alloc(_own: Host, _peer: Host) -> set[str]:
    return set()


KERNEL, US = ("--datapath=kernel",), ("--datapath=userspace",)
WAYS: Mapping[str, tuple[str, tuple[str, ...], Callable[[Host, Host], set[str]]]] = {
    "udp": ("udp", (), of_udp),
    "vxlan by us": ("vxlan", US, of_vxlan_by_us),
    "vxlan by the kernel": ("vxlan", KERNEL, of_vxlan_by_the_kernel),
    "ipip by us": ("ipip", US, of_ipip_by_us),
    "host-gw": ("host-gw", (), of_host_gw),
    "alloc": ("alloc", (), of_alloc),
}
"""Backend, the agents' arguments, and what our agent has on its host."""

JOURNEY = (
    ("udp", Host.stop_agent),
    ("vxlan by the kernel", Host.stop_agent),
    ("host-gw", Host.kill_agent),
    ("udp", Host.stop_agent),
    ("vxlan by us", Host.kill_agent),
    ("vxlan by the kernel", Host.kill_agent),
    ("vxlan by us", Host.stop_agent),
    ("host-gw", Host.stop_agent),
    ("alloc", Host.kill_agent),
    ("vxlan by the kernel", Host.stop_agent),
    ("ipip by us", Host.kill_agent),
    ("host-gw", Host.stop_agent),
    ("udp", Host.stop_agent),
    ("alloc", Host.stop_agent),
)
"""Where to, and how the agents before end."""


@pytest.mark.parametrize(
    ("way", "end"), JOURNEY, ids=[f"{number} to {way}" for number, (way, _) in enumerate(JOURNEY, 1)]
)
def test_nothing_of_the_former_backend_stays_and_nothing_else_goes(
    duo: Lab, bare: set[str], way: str, end: Callable[[Host], None]
) -> None:
    """In this order: each case goes on from where the one before has ended."""
    h1, h2 = duo.hosts
    kind, arguments, of_ours = WAYS[way]
    hand, subnet, log = by_hand(duo), subnet_of(h1), Log(h1)
    for host in duo.hosts:
        end(host)
    hand.choose_backend(kind)
    restart_agents(duo.hosts, *arguments)
    wait_for("what the former one left is gone", lambda: kernel_state(h1) == bare | of_ours(h1, h2))
    assert subnet_of(h1) == subnet
    value = json.loads(hand.subnets()[str(subnet).replace("/", "-")])
    assert value.get("BackendType") == (None if kind in ("udp", "alloc") else kind)
    assert h1.control("/v1/status")["backend"]["type"] == kind
    if kind == "alloc":
        assert ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.5) == [None]
    else:  # the other host's routes may come later
        wait_for("traffic", lambda: ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.5) != [None])
    assert log.lines("not ours") == []


# From flanneld's backends to ours


@pytest.fixture(scope="module")
def flannelds() -> Iterator[Lab]:
    """Two hosts that carry packets by hand-made routes, as flanneld's host-gw makes them; no agent of ours runs."""
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        for host, subnet in zip(lab.hosts, (OURS, THEIRS), strict=True):
            host.attach_pods(subnet, 1500)
        lab.hosts[0].configure(*(f"route add {route}" for route in ADMINISTRATORS))
        yield lab


@pytest.fixture
def h1(flannelds: Lab) -> Iterator[Host]:
    """The host that goes over to our agent; afterwards nothing of either is there."""
    h1, h2 = flannelds.hosts
    before = kernel_state(h1)
    h2.configure(f"route add {OURS} via {h1.underlay}")
    yield h1
    for vni in (1, 7):
        h1.run(["ip", "link", "del", f"flannel.{vni}"], check=False)
    h1.run(["ip", "route", "del", str(THEIRS)], check=False)
    h1.configure("route flush proto 82", "address flush dev lo label lo:flannel")
    h2.configure(f"route flush {OURS}")
    wait_for("all is as before", lambda: kernel_state(h1) == before)


def register(lab: Lab, host: Host, subnet: IPv4Network, kind: str, **data: object) -> None:
    """Write a host's entry as its flanneld would, with a lease that ends tomorrow."""
    named = {"BackendType": kind, **data} if kind else {}
    ends = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    entry = {"PublicIP": str(host.underlay), "PublicIPv6": None, **named, "Expires": ends}
    by_hand(lab).put(str(subnet).replace("/", "-"), json.dumps(entry))


@contextmanager
def gone_over(lab: Lab, former: str, kind: str, *, peer: str | None = None, **data: object) -> Iterator[Agent]:
    """Let the cluster go over to `kind`, and our agent run on h1, whose entry still says what it was before.

    The other host has gone over already, unless `peer` says what it is.
    """
    h1, h2 = lab.hosts
    by_hand(lab).choose_backend(kind)
    register(lab, h1, OURS, former, **data)
    register(lab, h2, THEIRS, ("host-gw" if kind == "host-gw" else "") if peer is None else peer)
    with Agent(h1) as agent:
        agent.wait_ready()
        assert subnet_of(h1) == OURS
        yield agent


def make_vxlan(host: Host, vni: int = 1) -> None:
    """Make what flanneld's vxlan makes, for one peer."""
    device, peer = f"flannel.{vni}", THEIRS.network_address
    host.configure(
        f"link add {device} type vxlan id {vni} local {host.underlay} dev eth0 dstport 8472 nolearning",
        f"address add {OURS.network_address}/32 dev {device}",
        f"link set {device} up",
        f"neighbour add {peer} lladdr 8e:64:7c:7f:e7:c9 dev {device} nud permanent",
        f"route add {THEIRS} via {peer} dev {device} onlink",
    )


@pytest.mark.parametrize("kind", ["udp", "host-gw"])
def test_flannelds_vxlan_device_goes_with_all_that_is_on_it_where_our_entry_names_it(
    flannelds: Lab, h1: Host, kind: str
) -> None:
    expected = kernel_state(h1) | WAYS[kind][2](*flannelds.hosts)
    make_vxlan(h1)
    with gone_over(flannelds, "vxlan", kind, BackendData={"VNI": 1, "VtepMAC": "0a:00:00:00:00:01"}) as agent:
        wait_for("it is gone, and ours is there", lambda: kernel_state(h1) == expected)
        agent.wait_for_line("removed what an earlier run left: flanneld's device flannel.1")


@pytest.mark.parametrize(
    ("former", "peer"),
    [("host-gw", ""), ("host-gw", "host-gw"), ("vxlan", ""), ("ipip", "")],
    ids=["gone over", "not yet", "vxlan's direct one", "ipip's direct one"],
)
def test_flannelds_routes_through_hosts_go_where_our_entry_names_it(
    flannelds: Lab, h1: Host, former: str, peer: str
) -> None:
    expected = kernel_state(h1) | of_udp(*flannelds.hosts)
    h1.configure(f"route add {THEIRS} via 192.0.2.2")
    with gone_over(flannelds, former, "udp", peer=peer) as agent:
        wait_for("they are gone, and ours is there", lambda: kernel_state(h1) == expected)
        agent.wait_for_line("removed what an earlier run left: flanneld's routes: 1")


def test_a_route_like_flannelds_that_comes_when_the_agent_is_ready_is_an_administrators(h1: Host) -> None:
    ours, theirs = IPv4Network("10.244.7.0/24"), THEIRS
    former = LeaseAttrs(None, backend_type="host-gw")
    attrs = LeaseAttrs(IPv4Address("192.0.2.2"), backend_type="alloc")

    async def leases() -> list[Lease]:
        return [Lease(Subnet(at), attrs, Entry(str(at).replace("/", "-"), b"", 1)) for at in (ours, theirs)]

    def sweep(left: Collection[Route]) -> list[str]:
        removing = remove_remains(BACKENDS["alloc"], {}, former, left, leases, versions=(4,), routes=True, alone=True)
        return asyncio.run(removing)

    h1.configure(f"route add {theirs} via 192.0.2.2")
    finding = find_flannelds_routes(BACKENDS["alloc"], [OVERLAY], former)
    left = call_inside(h1.namespace, lambda: asyncio.run(finding))
    h1.configure(f"route add {ours} via 192.0.2.2")
    assert call_inside(h1.namespace, lambda: sweep(left)) == ["flanneld's routes: 1"]
    stand = [at for at in (ours, theirs) if h1.run(["ip", "route", "show", "exact", str(at)]).stdout]
    assert stand == [ours]
    assert call_inside(h1.namespace, lambda: sweep(left)) == []
    h1.configure(f"route del {ours}")


@pytest.mark.parametrize("former", ["", "alloc"], ids=["nothing", "another"])
def test_where_our_entry_names_nothing_or_another_nothing_of_flannelds_is_touched(
    flannelds: Lab, h1: Host, former: str
) -> None:
    make_vxlan(h1, vni=7)
    h1.configure(f"route replace {THEIRS} via 192.0.2.2")
    expected = kernel_state(h1) | of_udp(*flannelds.hosts)
    h1.configure("route add 10.244.9.0/24 via 192.0.2.2 proto 82")  # of ours, so that there is something to remove
    with gone_over(flannelds, former, "udp") as agent:
        agent.wait_for_line("removed what an earlier run left: our routes to peers: 1")
        wait_for("ours is there", lambda: kernel_state(h1) == expected)
        assert len([line for line in agent.said() if "removed" in line]) == 1


def test_flannelds_host_gw_is_taken_over_without_losing_a_packet(flannelds: Lab, h1: Host) -> None:
    h2 = flannelds.hosts[1]
    h1.configure(f"route add {THEIRS} via 192.0.2.2")
    with (
        Flow(h1.pods[0], h2.pods[0], interval_s=0.001) as there,
        Flow(h2.pods[0], h1.pods[0], interval_s=0.001) as back,
    ):
        there.wait_for_one_sent_from_now()
        with gone_over(flannelds, "host-gw", "host-gw") as agent:
            wait_for("the route is ours", lambda: bool(ours_of(h1)))
            assert ours_of(h1) == [f"{THEIRS} via 192.0.2.2 dev eth0 src {OURS[0]}"]
            there.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            wait_for("many packets", lambda: there.sent + back.sent > N_PACKETS)
            assert f"route {THEIRS} via 192.0.2.2 dev eth0" not in kernel_state(h1)
            assert not any("not ours" in line for line in agent.said())
        there.end()
        back.end()
    assert (there.missing, back.missing) == ([], [])
