"""What the host's own routes, firewall and devices do to single packets of a batch; each for its own reason."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.dataplane.offload import enable_on_tunnel
from flannel_udp.dataplane.reference import OWN, ReferenceTable
from flannel_udp.dataplane.tunnel import open_tunnel
from flannel_udp.lab.netns import call_inside
from flannel_udp.model import Address, Prefix
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig, small_table
from tests.support.labs import NEEDS_NETNS, empty_namespace
from tests.support.refusals import Refusal, refused

pytestmark = NEEDS_NETNS

GOOD = "127.0.0.2"
N_PACKETS = 3  # to each of the others
# Where peers are, and what becomes of packets for them. Nothing at all is known of the first.
FAILING = {
    "198.51.100.1": "unreachable",  # ENETUNREACH
    "198.51.100.2": "unreachable",  # EHOSTUNREACH
    "198.51.100.3": "refused",  # EACCES
    "198.51.100.4": "unreachable",  # EINVAL
    "127.0.0.5": "refused",  # EPERM
}
SET_UP = (
    "ip link set lo up",
    "ip route add unreachable 198.51.100.2",
    "ip route add prohibit 198.51.100.3",
    "ip route add blackhole 198.51.100.4",
    "nft add table ip t",
    "nft add chain ip t out { type filter hook output priority 0 ; }",
    "nft add rule ip t out ip daddr 127.0.0.5 drop",
)


@pytest.fixture
def inside() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run a function in a namespace of its own."""
    with empty_namespace(*SET_UP) as name:
        yield lambda body: call_inside(name, body)


@pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"])
def test_peers_that_cannot_be_reached_cost_no_other_peer_a_packet(
    offload: Offload, inside: Callable[[Callable[[], None]], None]
) -> None:
    peers = [GOOD, *FAILING]
    routes: dict[Prefix, Address | str] = {
        IPv4Network(f"10.1.{2 + i}.0/24"): IPv4Address(peer) for i, peer in enumerate(peers)
    }
    routes[IPv4Network("10.1.1.0/24")] = OWN

    @inside
    def check() -> None:
        with EngineRig(ReferenceTable(routes), peers=[GOOD], offload=offload) as rig:
            sent = 0
            for i in range(1, len(peers)):
                for _ in range(N_PACKETS):
                    rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.{2 + i}.7") / UDP()))
                rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7", id=sent) / UDP()))
                sent += 1
            rig.poll()
            assert [IP(datagram).id for datagram in rig.to_peer(GOOD)] == list(range(sent))
            expected: dict[str, int] = {}
            for reason in FAILING.values():
                expected[reason] = expected.get(reason, 0) + N_PACKETS
            assert rig.drops("out") == expected
            assert rig.counters("out")["packets"] == sent
            assert rig.engine.segments == offload.udp_segment


def test_an_address_that_is_gone_is_named_as_what_cannot_be_sent_from(
    inside: Callable[[Callable[[], None]], None],
) -> None:
    @inside
    def check() -> None:
        subprocess.run(["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"], check=True)
        with EngineRig(small_table(), agent=IPv4Address("192.0.2.1")) as rig:
            subprocess.run(["ip", "addr", "del", "192.0.2.1/32", "dev", "lo"], check=True)
            rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP()))
            rig.poll()
            assert rig.drops("out") == {"unreachable": 1}


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_super_packets_are_tried_before_they_are_granted_and_nobody_sees_the_try(
    up: bool, inside: Callable[[Callable[[], None]], None]
) -> None:
    @inside
    def check() -> None:
        tunnel = open_tunnel(1)
        (fd,) = tunnel.filenos()
        try:
            if up:
                subprocess.run(["ip", "link", "set", tunnel.name, "up"], check=True)
                subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True)
            granted = [enable_on_tunnel(fd, Offload())]
            refused([Refusal("write", errno.EINVAL, {0: fd})], lambda: granted.append(enable_on_tunnel(fd, Offload())))
            assert granted == [Offload(), replace(Offload(), join_tcp=False, join_udp=False)]
            lines = [
                line.split()
                for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
                if line.startswith("Ip:")
            ]
            counted = dict(zip(*lines, strict=True))
            assert (counted["InDelivers"], counted["ForwDatagrams"]) == ("0", "0")
            assert counted["InReceives"] == ("2" if up else "0")
        finally:
            tunnel.close()


def test_a_tunnel_device_that_is_down_costs_packets_until_it_is_up_and_one_that_was_deleted_is_given_up(
    inside: Callable[[Callable[[], None]], None],
) -> None:
    packet = bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP())

    @inside
    def check() -> None:
        tunnel = open_tunnel(1)
        try:
            with EngineRig(small_table()) as rig:
                rig.engine.attach(tunnel.filenos()[0], rig.udp_fd)
                rig.from_peer(GOOD, packet)
                rig.poll()
                assert rig.drops("in") == {"device_down": 1}
                subprocess.run(["ip", "link", "set", tunnel.name, "up"], check=True)
                rig.from_peer(GOOD, packet)
                rig.poll()
                assert rig.counters("in")["packets"] == 1
                subprocess.run(["ip", "link", "del", tunnel.name], check=True)
                rig.from_peer(GOOD, packet)
                rig.poll()
                assert rig.engine.tun_errno == errno.EBADFD
        finally:
            tunnel.close()
