"""Kernel routes end with the lease, by an address that the kernel removes; until then no packet is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest

from flannel_udp.backend.lease_end import LABEL, LATENESS_S, LeaseEnd
from flannel_udp.backend.routes import Hop, RouteSet
from flannel_udp.lab import netns
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S, promised

pytestmark = NEEDS_NETNS

ETH0 = 42
FIRST = IPv4Address("10.1.15.0")
"""The first address of our subnet, 10.1.15.0/24."""
THEIRS = IPv4Network("10.1.16.0/24")
PEER = IPv4Address("192.0.2.2")
TUNNEL = 77
"""flannel0's index."""
MAKE_TUNNEL = (
    f"link add flannel0 index {TUNNEL} type veth peer name far1",
    "link set far1 up",
    "link set flannel0 up",
    f"address add {FIRST}/32 dev flannel0",
)


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_link("eth0", ETH0)
        made.ip("address add 192.0.2.1/16 dev eth0")
        yield made


def in_s(seconds: float) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) + seconds


def held(host: OneHost, end_s: float | None) -> LeaseEnd:
    end = LeaseEnd()
    end.hold(FIRST)
    host.call(end.live_until, end_s)
    return end


def routed(host: OneHost, end: LeaseEnd) -> RouteSet:
    routes = RouteSet()
    host.call(routes.load, {THEIRS: Hop(PEER, ETH0, end.source)})
    return routes


def ours(host: OneHost) -> list[str]:
    """Return our addresses, each with its lifetimes."""
    shown = host.show("-4 address show dev lo")
    return [f"{line} {shown[i + 1]}" for i, line in enumerate(shown) if line.endswith(LABEL)]


def valid_s(host: OneHost) -> int:
    (line,) = ours(host)
    return valid_s_in(line)


def valid_s_in(line: str) -> int:
    return int(line.partition("valid_lft ")[2].partition("sec")[0])


def wait_for_the_end(host: OneHost) -> None:
    """Wait for the kernel to remove our routes: nobody of ours is there to do anything."""
    assert netns.wait_until(lambda: not host.routes("proto 82"), PATIENCE_S)


def test_where_a_tunnel_device_has_the_address_too_both_end(host: OneHost) -> None:
    host.ip(*MAKE_TUNNEL)
    end = LeaseEnd(lambda: TUNNEL)
    end.hold(FIRST)
    host.call(end.live_until, in_s(3600))
    assert end.fault is None
    lives = [line for line in host.show("-4 address show") if line.startswith("valid_lft") and "forever" not in line]
    assert len(lives) == 2
    # The second one was asked for a moment later, and the kernel shows whole seconds.
    assert abs(valid_s_in(lives[0]) - valid_s_in(lives[1])) <= promised(5)
    routed(host, end)
    host.call(end.live_until, in_s(LATENESS_S + 3))
    wait_for_the_end(host)
    assert str(FIRST) not in "".join(host.show("-4 address show"))


def test_a_tunnel_device_s_address_stays_where_the_lease_has_no_end_any_more(host: OneHost) -> None:
    host.ip(*MAKE_TUNNEL)
    end = LeaseEnd(lambda: TUNNEL)
    end.hold(FIRST)
    host.call(end.live_until, in_s(3600))
    end.hold(None)
    host.call(end.remove_former)
    assert ours(host) == []
    assert any("valid_lft forever" in line for line in host.show("-4 address show dev flannel0"))


# The end


def test_the_address_is_for_nothing_else(host: OneHost) -> None:
    held(host, in_s(3600.9))
    (line,) = ours(host)
    assert line.startswith("inet 10.1.15.0/32 scope host dynamic lo:flannel valid_lft ")
    # Never later than asked for, and the look before the last one (decision 0017) is 13 s sooner.
    assert 3590 < valid_s_in(line) <= 3601 - LATENESS_S
    assert f"preferred_lft {valid_s_in(line) - 13}sec" in line


def test_when_the_lease_ends_the_kernel_removes_our_routes_and_no_other(host: OneHost) -> None:
    host.ip("route add 10.9.0.0/16 via 192.0.2.9", "route add 10.8.0.0/16 via 192.0.2.9 src 192.0.2.1")
    end = held(host, in_s(3600))
    routed(host, end)
    assert "10.1.16.0/24 via 192.0.2.2 dev eth0 proto 82 src 10.1.15.0" in host.routes()
    host.call(end.live_until, in_s(LATENESS_S + 3))
    wait_for_the_end(host)
    assert host.routes() == ["10.8.0.0/16 via 192.0.2.9 dev eth0 src 192.0.2.1", "10.9.0.0/16 via 192.0.2.9 dev eth0"]
    assert ours(host) == []


def test_a_lease_that_is_over_ends_at_once(host: OneHost) -> None:
    end = held(host, in_s(60))
    routed(host, end)
    host.call(end.live_until, in_s(LATENESS_S + 0.5))
    assert ours(host) == []
    assert host.routes() == []


def test_ten_thousand_routes_go_with_one_message(host: OneHost) -> None:
    first = int(IPv4Address("10.128.0.0"))
    end, routes = held(host, in_s(60)), RouteSet()
    subnets = [IPv4Network((first + (i << 8), 24)) for i in range(10_000)]
    assert host.call(routes.load, {subnet: Hop(PEER, ETH0, end.source) for subnet in subnets}) == 10_000
    host.call(end.remove)
    assert host.routes() == []
    host.call(end.remove)


# Until then


def test_a_renewal_touches_no_route(host: OneHost) -> None:
    end = held(host, in_s(60))
    routes = routed(host, end)
    with host.news() as news:
        host.call(end.live_until, in_s(600))
        assert news() == ["new address"]
        assert host.call(routes.repair) == 0
    assert valid_s(host) > 550


def test_at_sigterm_the_routes_stay_for_good(host: OneHost) -> None:
    end = held(host, in_s(60))
    routed(host, end)
    host.call(end.live_until, None)
    assert ours(host) == ["inet 10.1.15.0/32 scope host lo:flannel valid_lft forever preferred_lft forever"]
    with host.news() as news:
        host.call(held(host, None).live_until, None)
        assert news() == []


def test_the_next_run_takes_over_what_the_last_one_left(host: OneHost) -> None:
    routed(host, held(host, in_s(60)))
    with host.news() as news:
        end = held(host, in_s(600))
        routed(host, end)
        host.call(end.remove_former)
        assert news() == ["new address"]
    assert valid_s(host) > 550


def test_as_long_as_all_is_well_nothing_is_written(host: OneHost) -> None:
    until_s = in_s(600.5)
    end = held(host, until_s)
    with host.news() as news:
        for _ in range(3):
            host.call(end.live_until, until_s)
        assert news() == []


def test_an_address_that_was_removed_or_changed_is_put_back(host: OneHost) -> None:
    until_s = in_s(600)
    end = held(host, until_s)
    routes = routed(host, end)
    host.ip("address change 10.1.15.0/32 dev lo label lo:flannel valid_lft 1000 preferred_lft 1000")
    host.call(end.live_until, until_s)
    assert valid_s(host) <= 600 - LATENESS_S

    host.ip("address del 10.1.15.0/32 dev lo")
    assert host.routes() == []  # it takes our routes along, whoever removes it
    host.call(end.live_until, until_s)
    assert host.call(routes.repair) == 1
    assert valid_s(host) > 500


def test_a_lease_without_end_has_no_address(host: OneHost) -> None:
    former = held(host, in_s(600))
    routed(host, former)
    end = LeaseEnd()
    end.hold(None)
    host.call(end.live_until, in_s(600))
    with host.news() as news:
        routed(host, end)
        host.call(end.remove_former)
        assert news()[:2] == ["new route", "deleted route"]
    assert ours(host) == []
    assert host.routes() == ["10.1.16.0/24 via 192.0.2.2 dev eth0 proto 82"]


def test_another_subnet_takes_over_before_the_former_address_goes(host: OneHost) -> None:
    end = held(host, in_s(600))
    routes = routed(host, end)
    end.hold(IPv4Address("10.1.99.0"))
    host.call(end.live_until, in_s(600))
    assert len(ours(host)) == 2
    host.call(routes.load, {THEIRS: Hop(PEER, ETH0, end.source)})
    host.call(end.remove_former)
    assert [line.split()[1] for line in ours(host)] == ["10.1.99.0/32"]
    assert host.routes() == ["10.1.16.0/24 via 192.0.2.2 dev eth0 proto 82 src 10.1.99.0"]


def test_the_bridge_of_the_pods_is_not_disturbed(host: OneHost) -> None:
    held(host, in_s(600))
    host.ip("link add cni0 type bridge", "link set cni0 up", "address add 10.1.15.1/24 dev cni0")
    end = held(host, in_s(600))
    assert end.fault is None
    assert host.show("route get 10.1.15.7")[0].startswith("10.1.15.7 dev cni0 src 10.1.15.1 ")
    host.call(end.remove)
    assert host.show("-4 address show dev cni0")[1] == "inet 10.1.15.1/24 scope global cni0"


# Somebody else's


@pytest.mark.parametrize(("device", "label"), [("eth0", "eth0"), ("lo", "lo")])
def test_an_address_of_somebody_else_is_named_and_left_alone(host: OneHost, device: str, label: str) -> None:
    host.ip(f"address add 10.1.15.0/32 dev {device} label {label}")
    end = held(host, in_s(600))
    assert end.fault == (
        f"10.1.15.0 is an address of {device}, and not ours, so that routes outlive the lease if the agent is killed: "
        "remove it there"
    )
    assert end.source is None
    host.call(end.remove)
    assert host.show(f"-4 address show dev {device} to 10.1.15.0/32")[-1] == "valid_lft forever preferred_lft forever"

    host.ip(f"address del 10.1.15.0/32 dev {device}")
    host.call(end.live_until, in_s(600))
    assert end.fault is None
    assert end.source == FIRST


def test_an_address_that_somebody_adds_to_another_device_is_noticed(host: OneHost) -> None:
    until_s = in_s(600)
    end = held(host, until_s)
    host.ip("address add 10.1.15.0/32 dev eth0")
    host.call(end.live_until, until_s)
    assert end.source is None


def test_where_the_kernel_takes_the_address_for_a_broadcast_routes_have_no_source(host: OneHost) -> None:
    # Before Linux 5.14 a bridge with 10.1.15.1/24 made this.
    host.ip("route add broadcast 10.1.15.0 dev lo table local")
    end = held(host, in_s(600))
    assert end.source is None
    assert end.fault is not None
    assert end.fault.startswith("10.1.15.0 is a broadcast address here, so that routes outlive the lease")


def test_without_capability_it_is_one_clear_line(host: OneHost) -> None:
    code = (
        "from ipaddress import *; from flannel_udp.errors import FlannelError\n"
        "from flannel_udp.backend.lease_end import LeaseEnd\n"
        "end = LeaseEnd(); end.hold(IPv4Address('10.1.15.0'))\n"
        "try: end.live_until(None)\n"
        "except FlannelError as error: print(error)\n"
    )
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(
        ["ip", "netns", "exec", host.name, *bare], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == (
        "keeping the address that ends the routes: needs CAP_NET_ADMIN in this network namespace: "
        "run as root or grant the capability\n"
    )


# Packets


class Cluster(NamedTuple):
    """pod 10.1.15.2 ── 10.1.15.1 host 192.0.2.1 ── 192.0.2.2 peer 10.1.16.2."""

    pod: OneHost
    host: OneHost
    peer: OneHost


@pytest.fixture
def cluster(host: OneHost) -> Iterator[Cluster]:
    with ExitStack() as stack:
        pod, peer = stack.enter_context(one_host()), stack.enter_context(one_host())
        host.ip(
            f"link set far0 netns {peer.name}",
            f"link add cni0 type veth peer name eth0 netns {pod.name}",
            "link set cni0 up",
            "address add 10.1.15.1/24 dev cni0",
        )
        pod.ip("link set eth0 up", "address add 10.1.15.2/24 dev eth0", "route add default via 10.1.15.1")
        peer.ip(
            "link set far0 up",
            "address add 192.0.2.2/16 dev far0",
            "address add 10.1.16.2/32 dev lo",
            "route add 10.1.15.0/24 via 192.0.2.1",
        )
        host.call(forward)
        yield Cluster(pod, host, peer)


def forward() -> None:
    with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:  # noqa: PTH123
        switch.write("1")


class Flow:
    """Datagrams from a pod, and from the host itself, to a pod of the peer's: each must arrive."""

    def __init__(self, cluster: Cluster, stack: ExitStack) -> None:
        self._far = stack.enter_context(cluster.peer.udp("10.1.16.2"))
        self._pod = stack.enter_context(cluster.pod.udp("10.1.15.2"))
        self._host = stack.enter_context(cluster.host.udp())

    def sources(self) -> tuple[str, str]:
        """Send one from the pod and one from the host, there and back; return what sources they had."""
        seen = {}
        for sock, word in ((self._pod, b"pod"), (self._host, b"host")):
            sock.sendto(word, self._far.getsockname())
            data, sender = self._far.recvfrom(100)
            self._far.sendto(data, sender)
            assert sock.recv(100) == word
            seen[word] = sender[0]
        return seen[b"pod"], seen[b"host"]


def test_no_packet_is_lost_through_renewals_and_changes_of_the_source(cluster: Cluster) -> None:
    host, end, routes = cluster.host, LeaseEnd(), RouteSet()
    with ExitStack() as stack:
        flow = Flow(cluster, stack)
        for turn in range(20):
            end.hold(None)
            host.call(routes.load, {THEIRS: Hop(PEER, ETH0)})
            host.call(end.remove_former)
            assert flow.sources() == ("10.1.15.2", "192.0.2.1")
            end.hold(FIRST)
            host.call(end.live_until, in_s(600 + turn))
            assert flow.sources() == ("10.1.15.2", "192.0.2.1")
            host.call(routes.load, {THEIRS: Hop(PEER, ETH0, end.source)})
            assert flow.sources() == ("10.1.15.2", "10.1.15.0")
            host.call(end.live_until, in_s(700 + turn))
            assert flow.sources() == ("10.1.15.2", "10.1.15.0")


def test_after_the_end_nothing_is_forwarded(cluster: Cluster) -> None:
    host, end = cluster.host, held(cluster.host, in_s(3600))
    routed(host, end)
    with ExitStack() as stack:
        flow = Flow(cluster, stack)
        assert flow.sources() == ("10.1.15.2", "10.1.15.0")
        host.call(end.live_until, in_s(LATENESS_S + 3))
        wait_for_the_end(host)
        far = stack.enter_context(cluster.peer.udp())
        pod = stack.enter_context(cluster.pod.udp())
        pod.sendto(b"too late", ("10.1.16.2", far.getsockname()[1]))
        pod.sendto(b"to the host", ("192.0.2.2", far.getsockname()[1]))
        assert far.recv(100) == b"to the host"
