"""Two of our packet paths that carry both IP versions on one device each, over the lab's veths.

h1: flannel0, a TUN ── Dataplane ── 192.0.2.1:8285,  [2001:db8::1]:8285 ── … ── Dataplane ── flannel0 :h2
    10.244.1.0, fd00:10:244:1::                                             10.244.2.0, fd00:10:244:2::
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.dataplane.adopted import adopted_from
from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.dataplane.encapsulation import UDP
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside, is_readable
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.model import Address, Delta, Peer, Subnet
from flannel_udp.options import DataplaneOptions
from tests.support.agents import wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

PORT, MTU = 8285, 1452
SUBNETS = [Subnet(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:10:244:{number}::/64")) for number in (1, 2)]
N_BYTES = 8 << 20


def outer6(number: int) -> IPv6Address:
    return IPv6Address(f"2001:db8::{number}")


def addresses_of(subnet: Subnet) -> dict[int, Address]:
    return {part.version: part.network_address for part in subnet.prefixes}


@contextmanager
def our_host(host: Host, number: int, peers: tuple[Peer, ...], versions: tuple[int, ...]) -> Iterator[Dataplane]:
    outer: dict[int, Address] = {4: host.underlay, 6: outer6(number)}
    host.run(["ip", "addr", "add", f"{outer[6]}/64", "dev", "eth0", "nodad"])

    def open_dataplane() -> Dataplane:
        return Dataplane([outer[version] for version in versions], PORT, DataplaneOptions(), lambda: None)

    dataplane = call_inside(host.namespace, open_dataplane)
    try:
        dataplane.set_mtu(MTU)
        host.run(["ip", "link", "set", "flannel0", "mtu", str(MTU), "up"])
        for version, address in addresses_of(SUBNETS[number - 1]).items():
            overlay = "10.244.0.0/16" if version == 4 else "fd00:10:244::/48"
            bits = 32 if version == 4 else 128
            host.run(["ip", "addr", "add", f"{address}/{bits}", "dev", "flannel0", *(["nodad"] if bits > 32 else [])])
            host.run(["ip", f"-{version}", "route", "add", overlay, "dev", "flannel0"])
        asyncio.run(dataplane.publish(SUBNETS[number - 1], [Delta(added=peers)], whole=True))
        call_inside(host.namespace, dataplane.start)  # its threads ask for path MTUs by sockets of their own
        yield dataplane
    finally:
        dataplane.close()


@contextmanager
def two_hosts(cards: str = "wire", versions: tuple[int, ...] = (4, 6)) -> Iterator[list[tuple[Host, Dataplane]]]:
    with Lab(Plan(fresh_name(), hosts=2, pods=0, agents=(), offload=cards)) as lab, ExitStack() as opened:
        made = []
        for number, host in enumerate(lab.hosts, 1):
            other = 3 - number
            ends: dict[int, Address] = {4: lab.hosts[other - 1].underlay, 6: outer6(other)}
            peers = tuple(Peer(part, ends[part.version]) for part in SUBNETS[other - 1].prefixes)
            peers = tuple(peer for peer in peers if peer.version in versions)
            made.append((host, opened.enter_context(our_host(host, number, peers, versions))))
        yield made


@pytest.mark.parametrize("cards", ["whole", "wire"])
def test_tcp_of_both_versions_passes_both_ways_on_one_device(cards: str) -> None:
    with two_hosts(cards) as ((h1, one), (h2, two)):
        for version in (4, 6):
            ours, theirs = addresses_of(SUBNETS[0])[version], addresses_of(SUBNETS[1])[version]
            transfer(h1, ours, h2, theirs)
            transfer(h2, theirs, h1, ours)
        for dataplane in (one, two):
            counters = dataplane.counters()
            assert counters["in"]["drops"] == {}
            assert counters["out"]["drops"].keys() <= {"not_unicast"}  # what the kernel says to all routers
            assert dataplane.offload.udp_segment
            assert dataplane.offload.join_tcp
            # Cut and joined by us or by the kernel, of either version: far fewer calls than there were packets.
            assert counters["system_calls"]["tun_writes"] * 2 < 4 * N_BYTES // MTU
            assert counters["system_calls"]["udp_sends"] * 2 < 4 * N_BYTES // MTU
            traffic = {peer.version: dataplane.traffic(peer) for peer in dataplane.sorted_peers()}
            assert set(traffic) == {4, 6}
            assert all(each.bytes_out > N_BYTES and each.bytes_in > N_BYTES for each in traffic.values())


@pytest.mark.parametrize("first", [4, 6])
def test_a_version_that_is_added_while_the_other_ones_tcp_travels_is_carried_as_if_there_from_the_start(
    first: int,
) -> None:
    late = 10 - first
    ours, theirs = (addresses_of(subnet) for subnet in SUBNETS)
    with two_hosts(versions=(first,)) as ((h1, one), (h2, two)), ThreadPoolExecutor(1) as pool:
        running = pool.submit(transfer, h1, ours[first], h2, theirs[first])
        for number, host, dataplane in ((1, h1, one), (2, h2, two)):
            before = dataplane.generation
            own = host.underlay if late == 4 else outer6(number)
            call_inside(host.namespace, partial(dataplane.add, own))
            assert dataplane.generation != before
            others = SUBNETS[2 - number]
            ends: dict[int, Address] = {4: (h2, h1)[number - 1].underlay, 6: outer6(3 - number)}
            peers = tuple(Peer(part, ends[part.version]) for part in others.prefixes)
            asyncio.run(dataplane.publish(SUBNETS[number - 1], [Delta(added=peers)], whole=True))
        running.result(PATIENCE_S)
        for version in (4, 6):
            transfer(h1, ours[version], h2, theirs[version])
            transfer(h2, theirs[version], h1, ours[version])
        for dataplane in (one, two):
            assert dataplane.counters()["in"]["drops"] == {}
            traffic = {peer.version: dataplane.traffic(peer) for peer in dataplane.sorted_peers()}
            assert all(each.bytes_out > N_BYTES and each.bytes_in > N_BYTES for each in traffic.values())
            assert {name.partition("-")[0] for name in dataplane.descriptors()} == {
                "tun", "udp", "udp6", "icmp", "icmp6"
            }  # fmt: skip


def test_ipv6_alone_is_carried_and_ipv4_is_dropped_by_name() -> None:
    with two_hosts(versions=(6,)) as ((h1, one), (h2, _)):
        transfer(h1, SUBNETS[0].v6[0], h2, SUBNETS[1].v6[0])  # type: ignore[index]
        h1.run(["ping", "-c1", "-W1", "10.244.2.0"], check=False)
        wait_for("it is counted", lambda: one.counters()["out"]["drops"].get("not_ipv6") == 1)


def test_a_congestion_mark_crosses_the_tunnel_by_ipv6_in_both_directions() -> None:
    with two_hosts() as ((h1, _), (h2, two)), h1.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        with h2.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            receiver.bind((str(addresses_of(SUBNETS[1])[6]), 0))
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 2)
            assert traffic_class(sender, receiver, b"plain") == 2
            # What a router of the underlay would do, the sender's own stack does here: all that leaves eth0 is marked.
            h1.run(["nft", "-f", "-"], stdin=MARK)
            assert traffic_class(sender, receiver, b"marked") == 3
        assert two.counters()["in"]["drops"] == {}


def traffic_class(sender: socket.socket, receiver: socket.socket, word: bytes) -> int:
    """Return what the traffic class of a datagram with this word is when it arrives.

    It is sent until one does: an address of IPv6 can be bound at once, but the kernel takes packets to it only when a
    worker of its own has put it into the routing table (addrconf_dad_work), which takes a while on a busy machine.
    """
    found: list[int] = []

    def arrives() -> bool:
        sender.sendto(word, receiver.getsockname())
        while not found and is_readable(receiver.fileno(), 1.0):
            said, told, _flags, _source = receiver.recvmsg(100, 100)
            found.extend(each[2][0] for each in told if said == word)
        return bool(found)

    wait_for("a datagram arrives", arrives)
    return found[0]


MARK = """
table ip6 congested {
    chain out {
        type filter hook output priority 0
        udp dport 8285 ip6 ecn set ce
    }
}
"""


def test_a_narrow_path_is_learned_by_ipv6_and_told_to_the_sender() -> None:
    with two_hosts() as ((h1, one), (h2, _)):
        h1.run(["ip", "-6", "route", "add", f"{outer6(2)}/128", "dev", "eth0", "mtu", "1400"])
        one.forget_path_mtus()
        transfer(h1, addresses_of(SUBNETS[0])[6], h2, addresses_of(SUBNETS[1])[6])
        assert one.counters()["out"]["drops"].get("too_big", 0) > 0
        route = h1.run(["ip", "-6", "route", "get", str(addresses_of(SUBNETS[1])[6])]).stdout
        assert "mtu 1352" in route  # 1400 less 48


def test_what_ipv6_must_carry_leaves_in_fragments_where_the_underlay_has_no_room() -> None:
    with two_hosts() as ((h1, one), (h2, _)):
        h1.run(["ip", "-6", "route", "add", f"{outer6(2)}/128", "dev", "eth0", "mtu", "1280"])
        one.forget_path_mtus()
        # An inner packet of 1,280 bytes: 40 for IPv6, 8 for ICMPv6.
        for _ in range(3):  # one by one: for the last of three ping waits no longer than twice what the others took
            h1.run(["ping", "-6", "-c1", "-s1232", "-Mdo", str(addresses_of(SUBNETS[1])[6])])
        transfer(h1, addresses_of(SUBNETS[0])[6], h2, addresses_of(SUBNETS[1])[6])


def test_another_dataplane_goes_on_with_the_descriptors_of_both_versions() -> None:
    with two_hosts() as ((h1, one), (h2, _)):
        one.stop()
        descriptors = {name: os.dup(fd) for name, fd in one.descriptors().items()}
        assert set(descriptors) == {"tun-0", "udp-0", "icmp", "udp6-0", "icmp6"}
        adopted = adopted_from(descriptors, 1, one.state(), UDP, (4, 6))

        def adopt() -> Dataplane:
            return Dataplane([h1.underlay, outer6(1)], PORT, DataplaneOptions(), lambda: None, adopted=adopted)

        next_one = call_inside(h1.namespace, adopt)
        try:
            peers = tuple(one.sorted_peers())
            asyncio.run(next_one.publish(SUBNETS[0], [Delta(added=peers)], whole=True))
            call_inside(h1.namespace, next_one.start)
            for version in (4, 6):
                transfer(h2, addresses_of(SUBNETS[1])[version], h1, addresses_of(SUBNETS[0])[version])
            assert next_one.counters()["in"]["packets"] > 0
        finally:
            next_one.close()


def test_sockets_of_one_version_are_bound_anew_while_the_other_goes_on() -> None:
    moved = IPv6Address("2001:db8::77")
    with two_hosts() as ((h1, one), (h2, two)):
        h1.run(["ip", "addr", "add", f"{moved}/64", "dev", "eth0", "nodad"])
        call_inside(h1.namespace, lambda: one.rebind(moved))
        peers = (Peer(SUBNETS[0].v6, moved),)  # type: ignore[arg-type]
        asyncio.run(two.publish(SUBNETS[1], [Delta(changed=peers)], whole=False))
        for version in (4, 6):
            transfer(h2, addresses_of(SUBNETS[1])[version], h1, addresses_of(SUBNETS[0])[version])


def transfer(source: Host, source_ip: Address, target: Host, target_ip: Address) -> None:
    """Send N_BYTES by TCP and hold what arrives to them."""
    family = socket.AF_INET if isinstance(source_ip, IPv4Address) else socket.AF_INET6
    sent = random.Random(20261129).randbytes(N_BYTES)
    received = bytearray()
    with target.socket(family, socket.SOCK_STREAM) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind((str(target_ip), 0))
        listener.listen(1)
        with source.socket(family, socket.SOCK_STREAM) as out:
            out.settimeout(PATIENCE_S)
            out.bind((str(source_ip), 0))
            out.connect(listener.getsockname())
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE_S)

            def receive() -> None:
                with connection:
                    while chunk := connection.recv(1 << 18):
                        received.extend(chunk)

            reader = threading.Thread(target=receive)
            reader.start()
            try:
                out.sendall(sent)
            finally:
                out.shutdown(socket.SHUT_WR)
                reader.join()
    assert received == sent
