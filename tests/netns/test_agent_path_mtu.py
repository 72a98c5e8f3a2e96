"""A narrow link that no host has: routers tell the hosts, and the agents tell the pods (RFC 1191)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Pod
from flannel_udp.lab.plan import UNDERLAY_GATEWAY, Plan
from tests.support.agents import drops_of, start_agents, subnet_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.routers import put_routers_between, set_middle_mtu
from tests.support.taps import IcmpErrors, Tap, quoted_id, send_raw
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

OUTER_HEADER_BYTES = 28
SOME_BYTES = 8 << 20
N_FLOWS = 12  # as many hardly ever all fall to one of two workers


@contextmanager
def routed_lab(host_mtu: int, middle_mtu: int, *arguments: str) -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=3, agents=(), underlay_mtu=host_mtu)) as lab:
        put_routers_between(lab, middle_mtu)
        start_agents(lab.hosts[:2], *arguments)
        yield lab


def datagram(source: Pod, target: Pod, size: int, port: int = 1000, flags: str = "DF") -> IP:
    """Return an IPv4 packet of `size` bytes, numbered with its port."""
    payload = UDP(sport=port, dport=9) / bytes(size - 28)
    return IP(src=str(source.ip), dst=str(target.ip), id=port, flags=flags) / payload


def told_mtu(source: Pod, target: Pod, size: int, port: int = 1000) -> int:
    """Send packets of `size` bytes until the sender is told that they are too big; return the MTU it is told."""
    told = []
    with IcmpErrors(source) as errors:

        def is_told() -> bool:
            send_raw(source, datagram(source, target, size, port))
            error = errors.next(timeout_s=0.1)
            # Others are of TCP, which may run beside, or late ones about an earlier flow.
            if error is not None and (error["IP in ICMP"].proto, quoted_id(error)) == (socket.IPPROTO_UDP, port):
                assert (error[ICMP].type, error[ICMP].code) == (3, 4)
                assert error.src == str(subnet_of(source.host).network_address + 1)  # the pods' gateway
                told.append(error[ICMP].nexthopmtu)
            return bool(told)

        wait_for("an ICMP error", is_told)
    return int(told[0])


def arrives(source: Pod, target: Pod, packet: IP, within_s: float = PATIENCE_S) -> bool:
    """Send a packet once and tell whether it arrives: with two workers a later one, of another flow, may be faster."""
    with Tap(target, "eth0") as tap:
        send_raw(source, packet)
        return wait_until(
            lambda: packet.id in [IP(seen).id for seen in tap.packets() if seen[9] == socket.IPPROTO_UDP], within_s
        )


def pods_of(lab: Lab) -> tuple[Pod, Pod]:
    return lab.hosts[0].pods[0], lab.hosts[1].pods[0]


@pytest.mark.parametrize("mtu", [1400, 1500, 9000])
def test_a_path_as_wide_as_the_interfaces_is_used_in_full_and_nothing_is_too_big(mtu: int) -> None:
    with routed_lab(mtu, mtu) as lab:
        one, other = pods_of(lab)
        with Transfer(one, other, SOME_BYTES), Transfer(other, one, SOME_BYTES):
            pass
        for source, target in ((one, other), (other, one)):
            assert arrives(source, target, datagram(source, target, mtu - OUTER_HEADER_BYTES, 2000))
            assert drops_of(source.host, "out") == {}


@pytest.fixture(
    scope="module",
    params=[(9000, 1500, 1), (9000, 1400, 2), (1500, 1400, 1), (1500, 1400, 2)],
    ids=lambda case: f"hosts {case[0]}, middle {case[1]}, workers {case[2]}",
)
def narrow(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, int]]:
    """A lab with a narrow link in the middle, and what an inner packet may have there."""
    host_mtu, middle_mtu, n_workers = request.param
    with routed_lab(host_mtu, middle_mtu, "--workers", str(n_workers)) as lab:
        yield lab, middle_mtu - OUTER_HEADER_BYTES


def test_tcp_completes_both_ways_at_once(narrow: tuple[Lab, int]) -> None:
    one, other = pods_of(narrow[0])
    with Transfer(one, other, SOME_BYTES), Transfer(other, one, SOME_BYTES):
        pass


def test_both_sides_pods_are_told_exactly_what_fits(narrow: tuple[Lab, int]) -> None:
    lab, inner_mtu = narrow
    one, other = pods_of(lab)
    largest = lab.plan.underlay_mtu - OUTER_HEADER_BYTES
    for source, target in ((one, other), (other, one)):
        for port in range(2000, 2000 + N_FLOWS):
            assert told_mtu(source, target, largest, port) == inner_mtu
        before = drops_of(source.host, "out")["too_big"]
        assert told_mtu(source, target, inner_mtu + 1) == inner_mtu
        assert drops_of(source.host, "out")["too_big"] > before
        assert arrives(source, target, datagram(source, target, inner_mtu, 3000))


def test_what_may_be_fragmented_arrives_whole(narrow: tuple[Lab, int]) -> None:
    lab, inner_mtu = narrow
    one, other = pods_of(lab)
    assert told_mtu(one, other, inner_mtu + 1) == inner_mtu
    assert arrives(one, other, datagram(one, other, inner_mtu + 1, 3001, flags=""))


@pytest.mark.parametrize("host_does", ["has a new route", "knows of a wider path"])
def test_a_path_that_grows_is_used_in_full_before_the_kernel_would_forget(host_does: str) -> None:
    """It keeps what a router told for ten minutes, unless something changes."""
    with routed_lab(9000, 1400) as lab:
        one, other = pods_of(lab)
        largest = 9000 - OUTER_HEADER_BYTES
        assert told_mtu(one, other, largest) == 1400 - OUTER_HEADER_BYTES
        set_middle_mtu(lab, 9000)
        if host_does == "has a new route":
            one.host.configure(f"route add {other.host.underlay} via {UNDERLAY_GATEWAY} metric 7")
        else:  # of which nobody is told
            one.host.configure("route flush cache")
        wait_for("the path is used", lambda: arrives(one, other, datagram(one, other, largest, 4000), 0.5))


def grow(*transfers: Transfer) -> None:
    """Wait until some more has arrived of each."""
    wanted = [transfer.received_bytes + SOME_BYTES for transfer in transfers]
    # TCP that was told of a smaller MTU begins again slowly.
    wait_for("all go on", lambda: all(each.received_bytes > n for each, n in zip(transfers, wanted, strict=True)))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_path_that_shrinks_twice_while_tcp_runs_stops_nothing(n_workers: int) -> None:
    with routed_lab(9000, 9000, "--workers", str(n_workers)) as lab:
        one, other = pods_of(lab)
        with (
            Transfer(one, other, SOME_BYTES, endless=True) as there,
            Transfer(other, one, SOME_BYTES, endless=True) as back,
        ):
            grow(there, back)
            for mtu in (1500, 1400):
                set_middle_mtu(lab, mtu)
                grow(there, back)
                for source, target in ((one, other), (other, one)):
                    assert told_mtu(source, target, mtu - OUTER_HEADER_BYTES + 1) == mtu - OUTER_HEADER_BYTES
