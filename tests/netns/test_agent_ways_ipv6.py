"""UDP over IPv6 between two real agents: source ports, and a path whose routers know better what it carries."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6

from flannel_udp.dataplane.underlay import IP_PMTUDISC_DO, IPV6_MTU_DISCOVER
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Pod
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import tcp_rate
from flannel_udp.lab.sites import Router
from flannel_udp.lab.underlay import SITE
from tests.support.agents import drops_of, unanswered, wait_for, wait_for_pings
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.taps import Tap

pytestmark = NEEDS_NETNS

PORT = 8285
N_PORTS = 4
N_FLOWS = 40  # all miss one of four ports once in 25,000 runs
UDP_HEADERS_BYTES = 48
"""IPv6 and UDP: in front of a datagram's payload, and in front of an inner packet."""
PORT_OF_DATAGRAMS = 9001


@pytest.mark.parametrize("n_workers", [1, 2])
def test_flows_leave_from_all_source_ports_and_answers_come_to_the_one_port(n_workers: int) -> None:
    arguments = {"h1": ("--source-ports", str(N_PORTS), "--workers", str(n_workers))}
    with Lab(Plan(fresh_name(), hosts=2, families="46", host_args=arguments)) as lab:
        wait_for_pings(lab)
        ours, theirs = lab.pods()
        with Tap(lab.hosts[1], "eth0") as wire:
            for _ in range(N_FLOWS):
                with Flow(ours, theirs, version=6) as there, Flow(theirs, ours, version=6) as back:
                    there.wait_for_one_sent_from_now()
                    back.wait_for_one_sent_from_now()
                assert (there.missing, back.missing) == ([], [])
            outer = [packet for packet in map(IPv6, wire.packets(6)) if UDP in packet]
        out = {packet.sport for packet in outer if packet.src == str(lab.hosts[0].underlay_of(6))}
        assert PORT not in out
        assert len(out) == N_PORTS if n_workers == 1 else N_PORTS <= len(out) <= n_workers * N_PORTS
        assert {packet.dport for packet in outer} == {PORT}
        assert all(packet[UDP].chksum for packet in outer)  # RFC 8200 section 8.1
        for version in (4, 6):
            assert tcp_rate(ours, theirs, theirs.address(version), duration_s=0.2) > 0
            assert tcp_rate(theirs, ours, ours.address(version), duration_s=0.2) > 0


@pytest.fixture
def routed() -> Iterator[Lab]:
    """Two hosts with a router between them."""
    with Lab(Plan(fresh_name(), hosts=2, families="46", routers={"r1": Router()}, behind={"h2": "r1"})) as lab:
        wait_for_pings(lab)
        yield lab


def arrives(source: Pod, target: Pod, inner_bytes: int) -> bool:
    """Tell whether an inner packet of that length passes whole; its sender learns what fits, as programs do."""
    with (
        target.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        source.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        to = (str(target.address(6)), PORT_OF_DATAGRAMS)
        receiver.bind(to)
        receiver.settimeout(0.2)
        sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        try:
            sender.sendto(bytes(inner_bytes - UDP_HEADERS_BYTES), to)
            return len(receiver.recv(2000)) == inner_bytes - UDP_HEADERS_BYTES
        except TimeoutError:
            return False
        except OSError as error:
            assert error.errno == errno.EMSGSIZE
            return False


def told_mtu(source: Pod, target: Pod) -> int:
    """Return what the sender's kernel knows of the path."""
    shown = source.run(["ip", "-6", "route", "get", str(target.address(6))]).stdout
    return int(shown.partition(" mtu ")[2].split()[0]) if " mtu " in shown else 0


def test_what_a_router_says_of_the_path_pods_are_told_and_1280_bytes_always_pass(routed: Lab) -> None:
    one, other = routed.pods()
    wide = one.host.mtu
    assert wide == 1500 - UDP_HEADERS_BYTES
    wait_for("all of the link is used", lambda: arrives(one, other, wide))
    for middle_mtu, inner_mtu in ((1400, 1400 - UDP_HEADERS_BYTES), (1300, 1280), (1280, 1280)):
        routed.routers[0].configure(f"link set {SITE} mtu {middle_mtu}")

        def is_told(wanted: int = inner_mtu) -> bool:
            arrives(one, other, told_mtu(one, other) or wide)  # of more the pod's own kernel says no
            return told_mtu(one, other) == wanted

        wait_for("the pod is told", is_told)
        wait_for("what fits passes", lambda size=inner_mtu: arrives(one, other, size))  # type: ignore[misc]
        assert not arrives(one, other, inner_mtu + 1)
    assert drops_of(one.host, "out")["too_big"] >= 2
    assert unanswered(routed.pods(), 6) == []
    assert tcp_rate(one, other, other.address(6), duration_s=0.3) > 0
