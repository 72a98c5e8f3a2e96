"""Our agent's IPIP beside a peer that is not ours: a loop in C over a raw socket, and what a kernel's tunnel sends."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet

from flannel_udp.dataplane.reference import fault_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import checksum
from tests.support.agents import Agent, drops_of, peers_of, subnet_of, unanswered, wait_for
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.mixed import THEIRS
from tests.support.naive_ipip import NaiveIpip
from tests.support.patience import PATIENCE_S
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

PROTOCOL = 4
RARELY_S = 0.05
"""Between two packets: the foreign end has the default socket buffer, 280 small packets, for when it cannot run."""
PORT = 9_000
TRANSFER_BYTES = 4 << 20


@contextmanager
def lab_of(cards: str) -> Iterator[Lab]:
    """h1 runs our agent, h2 nothing yet; its lease is written as flanneld's would be."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "ipip"}}
    with Lab(Plan(fresh_name(), hosts=2, agents=(), config=config, offload=cards)) as lab:
        h1, h2 = lab.hosts
        value = f'{{"PublicIP":"{h2.underlay}","PublicIPv6":null,"BackendType":"ipip"}}'
        by_hand(lab).put_leased(str(THEIRS).replace("/", "-"), value)
        with Agent(h1, "--datapath=userspace") as agent:
            agent.wait_ready()
            h1.attach_pods()
            wait_for("the peer", lambda: peers_of(h1) == {str(THEIRS): str(h2.underlay)})
            yield lab


@pytest.fixture(scope="module")
def beside() -> Iterator[Lab]:
    """The loop on h2; no card joins or cuts anything, so a capture shows the wire."""
    with lab_of("plain") as lab:
        h1, h2 = lab.hosts
        with NaiveIpip(h2, THEIRS, {subnet_of(h1): h1.underlay}):
            yield lab


def test_pods_reach_each_other_both_ways(beside: Lab) -> None:
    assert unanswered(beside.pods()) == []


def test_tcp_flows_both_ways(beside: Lab) -> None:
    ours, theirs = beside.pods()
    with Transfer(ours, theirs, TRANSFER_BYTES), Transfer(theirs, ours, TRANSFER_BYTES):
        pass
    assert drops_of(beside.hosts[0], "in") == {}


def test_nothing_is_lost_and_every_byte_is_right_in_both_directions(beside: Lab) -> None:
    ours, theirs = beside.pods()
    with Tap(beside.hosts[1], "eth0") as wire:
        with Flow(ours, theirs, RARELY_S) as flow, Flow(theirs, ours, RARELY_S) as back:
            flow.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            ours.run(["ping", "-c3", "-i0.1", "-s", "1452", str(theirs.ip)])
            theirs.run(["ping", "-c3", "-i0.1", "-s", "3000", str(ours.ip)])
        outer = [packet for packet in map(IP, wire.packets()) if packet.proto == PROTOCOL]
    assert (flow.missing, back.missing) == ([], [])
    assert {(packet.src, packet.dst) for packet in outer} == {("192.0.2.1", "192.0.2.2"), ("192.0.2.2", "192.0.2.1")}
    for packet in outer:
        assert (packet.version, packet.ihl, packet.flags.MF, packet.frag) == (4, 5, False, 0)
        assert packet.len == 20 + len(bytes(packet.payload)) <= 1_500
        assert fault_of(bytes(packet.payload)) is None
    inner = [packet.payload for packet in outer if packet.src == "192.0.2.1" and packet.payload.haslayer(UDP)]
    assert inner
    for each in inner:  # a pod's kernel leaves the checksum to the card: a foreign peer must get it finished
        again = each.copy()
        del again.chksum, again[UDP].chksum
        assert bytes(again) == bytes(each)
        assert each.ttl == 63  # one hop, of the host: the tunnel is none


# What a kernel's tunnel leaves for a network card to finish


def mac_of(host: Host) -> bytes:
    (link,) = json.loads(host.run(["ip", "-json", "link", "show", "eth0"]).stdout)
    return bytes.fromhex(link["address"].replace(":", ""))


def send_unfinished(sender: Host, receiver: Host, outer: Packet, csum_start: int, csum_offset: int) -> None:
    """Let a host send a packet whose inner checksum the card is to finish, by packet(7) with a virtio-net header."""
    sol_packet, packet_vnet_hdr, needs_csum = 263, 15, 1
    with sender.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0x0800))
        sock.setsockopt(sol_packet, packet_vnet_hdr, 1)
        head = struct.pack("=BBHHHH", needs_csum, 0, 0, 0, 14 + csum_start, csum_offset)
        sock.send(head + mac_of(receiver) + mac_of(sender) + b"\x08\x00" + bytes(outer))


@pytest.fixture(scope="module")
def kernels() -> Iterator[Lab]:
    """A host whose tunnel is the kernel's, as far as what it sends goes; over veth checksums stay unfinished."""
    with lab_of("whole") as lab:
        yield lab


def unfinished(packet: Packet) -> Packet:
    """Return the packet with the pseudo-header's sum for its checksum, as far as a kernel gets before a card."""
    whole = packet.copy()
    segment = bytes(whole.payload)
    pseudo = IP(bytes(whole)).src, IP(bytes(whole)).dst
    head = b"".join(map(socket.inet_aton, pseudo)) + struct.pack("!BBH", 0, whole.proto, len(segment))
    whole.payload.chksum = ~checksum(head) & 0xFFFF
    del whole.chksum
    return IP(bytes(whole))


def test_a_checksum_that_was_only_begun_is_finished_for_the_pod(kernels: Lab) -> None:
    h1, h2 = kernels.hosts
    pod = h1.pods[0]
    inner = unfinished(IP(src=str(THEIRS[2]), dst=str(pod.ip)) / UDP(sport=7, dport=PORT) / b"from a kernel's tunnel")
    assert IP(bytes(inner))[UDP].chksum == inner[UDP].chksum
    outer = IP(src=str(h2.underlay), dst=str(h1.underlay)) / inner
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(pod.ip), PORT))
        sock.settimeout(PATIENCE_S)
        send_unfinished(h2, h1, outer, csum_start=40, csum_offset=6)
        assert sock.recv(100) == b"from a kernel's tunnel"
    assert h1.control("/v1/status")["counters"]["offloaded_in"]["partial_checksums"] >= 1


def test_a_wrong_checksum_is_not_taken_for_one_that_was_begun(kernels: Lab) -> None:
    h1, h2 = kernels.hosts
    pod = h1.pods[0]
    bad = IP(src=str(THEIRS[2]), dst=str(pod.ip)) / UDP(sport=7, dport=PORT, chksum=0x1234) / b"damaged"
    good = IP(src=str(THEIRS[2]), dst=str(pod.ip)) / UDP(sport=7, dport=PORT) / b"sound"
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(pod.ip), PORT))
        sock.settimeout(PATIENCE_S)
        with h2.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as raw:
            raw.sendto(bytes(bad), (str(h1.underlay), 0))
            raw.sendto(bytes(good), (str(h1.underlay), 0))
        assert sock.recv(100) == b"sound"


@pytest.mark.parametrize("flags", ["S", "PA"])
def test_tcp_with_a_begun_checksum_reaches_the_pods_kernel(kernels: Lab, flags: str) -> None:
    h1, h2 = kernels.hosts
    pod = h1.pods[0]
    inner = unfinished(IP(src=str(THEIRS[2]), dst=str(pod.ip)) / TCP(sport=7, dport=PORT, flags=flags) / bytes(100))
    with Tap(pod, "eth0") as tap:
        send_unfinished(h2, h1, IP(src=str(h2.underlay), dst=str(h1.underlay)) / inner, csum_start=40, csum_offset=16)

        def answered() -> bool:
            return any(each.src == str(pod.ip) and each.haslayer(TCP) for each in map(IP, tap.packets()))

        wait_for("the pod's kernel answers with a reset: it has found no fault", answered)
