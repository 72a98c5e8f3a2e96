"""Our packet path and a kernel VXLAN device set up by hand, over the lab's veths: what the kernel leaves unfinished.

h1: flannel.1, a TUN ── Dataplane ── 192.0.2.1:8472 ──────── 192.0.2.2:8472 ── flannel.1, the kernel's :h2
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.model import Delta, Peer, Subnet
from flannel_udp.options import DataplaneOptions
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

OUR_NET, THEIR_NET = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
OUR_MAC, THEIR_MAC = 0x8E647CE7C901, 0x8E647CE7C902
PORT, MTU = 8472, 1450
N_BYTES = 8 << 20
DATAGRAM_BYTES = 1_000


def colons(mac: int) -> str:
    return mac.to_bytes(6, "big").hex(":")


@dataclass(frozen=True)
class Hop:
    vtep_mac: int


@contextmanager
def our_host(host: Host, peer: Host) -> Iterator[Dataplane]:
    """Run our packet path on a host; its TUN has the host's overlay address."""
    encapsulation = Encapsulation("vxlan", 1, OUR_MAC)

    def open_dataplane() -> Dataplane:
        return Dataplane(
            [host.underlay], PORT, DataplaneOptions(), lambda: None, encapsulation=encapsulation, device="flannel.1"
        )

    dataplane = call_inside(host.namespace, open_dataplane)
    try:
        dataplane.set_mtu(MTU)
        peers = (Peer(THEIR_NET, peer.underlay, Hop(THEIR_MAC)),)
        asyncio.run(dataplane.publish(Subnet(OUR_NET), [Delta(added=peers)], whole=True))
        host.run(["ip", "addr", "add", f"{OUR_NET[0]}/32", "dev", "flannel.1"])
        host.run(["ip", "link", "set", "flannel.1", "mtu", str(MTU), "up"])
        host.run(["ip", "route", "add", "10.244.0.0/16", "dev", "flannel.1"])
        dataplane.start()
        yield dataplane
    finally:
        dataplane.close()


def set_up_kernel_host(host: Host, peer: Host, checksum: str) -> None:
    """Set up what flanneld's vxlan would."""
    device = ["flannel.1", "type", "vxlan", "id", "1", "local", str(host.underlay), "dev", "eth0"]
    host.run(["ip", "link", "add", *device, "dstport", str(PORT), "nolearning", checksum])
    host.run(["ip", "link", "set", "flannel.1", "address", colons(THEIR_MAC), "mtu", str(MTU), "up"])
    host.run(["ip", "addr", "add", f"{THEIR_NET[0]}/32", "dev", "flannel.1"])
    host.run(["ip", "neigh", "add", str(OUR_NET[0]), "lladdr", colons(OUR_MAC), "dev", "flannel.1"])
    host.run(["bridge", "fdb", "append", colons(OUR_MAC), "dev", "flannel.1", "dst", str(peer.underlay), "self"])
    host.run(["ip", "route", "add", str(OUR_NET), "via", str(OUR_NET[0]), "dev", "flannel.1", "onlink"])


@pytest.fixture(params=["whole", "wire"])
def cards(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["udpcsum", "noudpcsum"])
def hosts(request: pytest.FixtureRequest, cards: str) -> Iterator[tuple[Host, Host, Dataplane]]:
    plan = Plan(fresh_name(), hosts=2, pods=0, agents=(), offload=cards)
    with Lab(plan) as lab:
        ours, theirs = lab.hosts
        set_up_kernel_host(theirs, ours, request.param)
        with our_host(ours, theirs) as dataplane:
            yield ours, theirs, dataplane


def test_tcp_from_a_kernel_peer_arrives_byte_by_byte_and_is_counted_as_unfinished(
    hosts: tuple[Host, Host, Dataplane], cards: str
) -> None:
    ours, theirs, dataplane = hosts
    transfer(theirs, THEIR_NET[0], ours, OUR_NET[0])
    counters = dataplane.counters()
    assert counters["offloaded_in"]["partial_checksums"] > 0
    assert (counters["offloaded_in"]["super_packets"] > 0) == (cards == "whole")
    assert counters["in"]["drops"] == {}
    # Uncut or joined: far fewer writes than there were packets.
    assert counters["system_calls"]["tun_writes"] * 2 < N_BYTES // MTU


def test_tcp_to_a_kernel_peer_arrives_byte_by_byte(hosts: tuple[Host, Host, Dataplane]) -> None:
    ours, theirs, dataplane = hosts
    transfer(ours, OUR_NET[0], theirs, THEIR_NET[0])
    assert dataplane.counters()["out"]["drops"].keys() <= {"not_ipv4"}  # the host asks for IPv6 routers
    assert dataplane.offload.udp_segment


def test_datagrams_that_a_kernel_peers_pod_sends_in_one_call_arrive_one_by_one(
    hosts: tuple[Host, Host, Dataplane], cards: str
) -> None:
    ours, theirs, dataplane = hosts
    datagrams = [bytes([number]) * DATAGRAM_BYTES for number in range(20)] + [b"the last one"]
    with (
        ours.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        theirs.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((str(OUR_NET[0]), 0))
        receiver.settimeout(PATIENCE_S)
        size = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", DATAGRAM_BYTES))]
        sender.sendmsg([b"".join(datagrams)], size, 0, receiver.getsockname())
        assert [receiver.recv(65_535) for _ in datagrams] == datagrams
    counters = dataplane.counters()
    assert counters["in"]["drops"] == {}
    assert counters["offloaded_in"]["super_packets"] == (cards == "whole")


def transfer(source: Host, source_ip: IPv4Address, target: Host, target_ip: IPv4Address) -> None:
    """Send N_BYTES by TCP and hold what arrives to them."""
    sent = random.Random(20261128).randbytes(N_BYTES)
    received = bytearray()
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind((str(target_ip), 0))
        listener.listen(1)
        with source.socket(socket.AF_INET, socket.SOCK_STREAM) as out:
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
