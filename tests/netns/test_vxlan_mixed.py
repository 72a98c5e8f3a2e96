"""One VXLAN of three kinds: the kernel's set up by hand as flanneld does it, our packet path, the kernel's by us.

h1 shares no code with the other two: what it understands is what flanneld's hosts understand.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from flannel_udp.files import subnet_env
from flannel_udp.lab import ethtool
from flannel_udp.lab.kernel_vxlan import VXLAN_PORT
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Node, Pod
from flannel_udp.lab.probe import checksum, ping_matrix
from tests.support.agents import subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import mac_of, vxlan_value
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS
from tests.support.mixed import vxlan_lab
from tests.support.patience import PATIENCE_S
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

MTU, NARROW_MTU = 1450, 1300
TRANSFER_BYTES = 2_000_000
PAIRS = list(permutations(("h1", "h2", "h3"), 2))
WITH_US = [pair for pair in PAIRS if "h2" in pair]
"""Each way between our packet path and a kernel."""

COMPLETE = {"tx-checksum-ip-generic": False}
"""A card that computes no checksum: the kernel does it, and what a capture shows is what goes over a real wire."""
SOL_UDP, UDP_SEGMENT = 17, 103


@pytest.fixture(scope="module", params=[("whole", True), ("wire", False)], ids=["whole", "wire"])
def mixed(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """With the cards that pass super-packets the peer by hand writes outer checksums, with the others none."""
    cards, udpcsum = request.param
    with vxlan_lab(cards, "etcd", udpcsum=udpcsum) as lab:
        yield lab


def pods_of(lab: Lab, *hosts: str) -> list[Pod]:
    return [lab.host(host).pods[0] for host in hosts]


def value_of(lab: Lab, host: Host) -> str:
    """Return what etcd says of a host."""
    return by_hand(lab).subnets()[str(subnet_of(host)).replace("/", "-")]


def vtep_mac(lab: Lab, host: Host) -> str:
    """Return the MAC that etcd gives a host."""
    mac: str = json.loads(value_of(lab, host))["BackendData"]["VtepMAC"]
    return mac


@contextmanager
def complete_checksums(interface: str, *nodes: Node) -> Iterator[None]:
    """Let what leaves the nodes by an interface have its checksums complete."""
    with ExitStack() as undone:
        for node in nodes:
            ethtool.set_features(node.namespace, interface, COMPLETE)
            undone.callback(ethtool.set_features, node.namespace, interface, dict.fromkeys(COMPLETE, True))
        yield


def test_every_pod_reaches_every_other_one(mixed: Lab) -> None:
    wait_for("traffic", lambda: None not in ping_matrix(mixed.pods(), timeout_s=0.5).values())
    assert len(ping_matrix(mixed.pods())) == len(PAIRS)


def test_etcd_holds_flannels_values_byte_for_byte(mixed: Lab) -> None:
    for host in mixed.hosts:
        mac = vtep_mac(mixed, host)
        assert value_of(mixed, host) == vxlan_value(host.underlay, mac)
        assert int(mac[:2], 16) & 3 == 2  # unicast, administered locally
        if host.name != "h2":
            assert mac == mac_of(host)
    assert len({vtep_mac(mixed, host) for host in mixed.hosts}) == len(mixed.hosts)


def test_device_address_and_mtu_are_alike_on_all_hosts(mixed: Lab) -> None:
    for host in mixed.hosts:
        (device,) = json.loads(host.run(["ip", "-json", "-4", "address", "show", "flannel.1"]).stdout)
        assert device["mtu"] == MTU
        assert [(each["local"], each["prefixlen"]) for each in device["addr_info"]] == [
            (str(subnet_of(host).network_address), 32)
        ]
    assert {subnet_env.require(host.subnet_file).mtu for host in mixed.hosts if host.runs_agent} == {MTU}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_largest_packet_passes_and_one_byte_more_does_not(mixed: Lab, pair: tuple[str, str]) -> None:
    source, target = pods_of(mixed, *pair)
    command = ["ping", "-c1", "-M", "do", str(target.ip), "-s"]
    source.run([*command, str(MTU - 28), "-W20"])  # IPv4 20, ICMP 8
    shown = source.run([*command, str(MTU - 27), "-W2"], check=False)
    assert shown.returncode != 0
    said = shown.stdout + shown.stderr
    assert "essage too long" in said
    assert set(re.findall(r"mtu ?= ?(\d+)", said)) <= {str(MTU)}  # iputils 20240905 does not say it any more


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_tcp_arrives_intact(mixed: Lab, pair: tuple[str, str]) -> None:
    source, target = pods_of(mixed, *pair)
    with Transfer(source, target, TRANSFER_BYTES):
        pass


@contextmanager
def narrowed(pod: Pod, others: Sequence[Pod]) -> Iterator[None]:
    """Give a pod and its bridge an MTU below the tunnel's while the block runs, as a CNI configuration may.

    The others forget what they learnt of it: a former stream's last segment, sent once more, is answered with that MTU.
    """

    def set_mtu(mtu: int) -> None:
        pod.run(["ip", "link", "set", "eth0", "mtu", str(mtu)])
        pod.host.run(["ip", "link", "set", "cni0", "mtu", str(mtu)])

    set_mtu(NARROW_MTU)
    try:
        yield
    finally:
        set_mtu(MTU)
        for other in others:
            other.run(["ip", "route", "flush", "cache"])


@pytest.mark.parametrize("pair", WITH_US, ids="-".join)
def test_tcp_reaches_a_pod_whose_mtu_is_below_the_tunnels(mixed: Lab, pair: tuple[str, str]) -> None:
    """Its host refuses what is cut longer: nearly all of a stream that a kernel peer sends uncut would be lost."""
    source, target = pods_of(mixed, *pair)
    with narrowed(target, mixed.pods()), Transfer(source, target, TRANSFER_BYTES):
        pass


# On the wire


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_datagram_is_what_scapy_would_make(mixed: Lab, pair: tuple[str, str]) -> None:
    source, target = pods_of(mixed, *pair)
    sender, receiver = source.host, target.host
    # At the bridge: the receiver's card may join what comes in before anybody sees it.
    with complete_checksums("eth0", sender), Tap(mixed.net, receiver.name) as wire:
        source.run(["ping", "-c3", "-i0.1", "-s", "500", str(target.ip)])
        with Flow(source, target) as flow:
            flow.wait_for_one_sent_from_now()
        with Transfer(source, target, 10_000):
            pass
        outer = [IP(packet) for packet in wire.packets()]
    datagrams = [packet for packet in outer if UDP in packet and packet.src == str(sender.underlay)]
    datagrams = [packet for packet in datagrams if packet[UDP].dport == VXLAN_PORT]
    # Agents ask each other's hosts by ICMP, too.
    datagrams = [packet for packet in datagrams if IP(inner_of(packet)).src == str(source.ip)]
    assert {IP(inner_of(packet)).proto for packet in datagrams} == {1, 6, 17}
    for packet in datagrams:
        inner, udp = inner_of(packet), packet[UDP]
        made = (
            IP(src=str(sender.underlay), dst=str(receiver.underlay), ttl=64, id=packet.id, flags=packet.flags)
            / UDP(sport=udp.sport, dport=VXLAN_PORT, chksum=None if udp.chksum else 0)
            / VXLAN(flags=0x08, vni=1)
            / Ether(src=vtep_mac(mixed, sender), dst=vtep_mac(mixed, receiver), type=0x0800)
            / Raw(inner)
        )
        assert bytes(packet) == bytes(made)
        assert 32_768 <= udp.sport <= 60_999
        assert IP(inner).ttl == 63  # the host has routed it, and the tunnel is no router
        assert as_complete(inner) == inner


def inner_of(packet: IP) -> bytes:
    """Return what is behind UDP 8, VXLAN 8 and Ethernet 14 bytes."""
    return bytes(packet[UDP])[30:]


def as_complete(inner: bytes) -> bytes:
    """Return the packet with all checksums computed anew."""
    packet = IP(inner)
    del packet.chksum
    del packet.payload.chksum
    return bytes(packet)


# A kernel's datagram may bring inner TCP merged beyond the MTU, and a checksum that is the pseudo-header's sum only.


@pytest.mark.parametrize("pair", WITH_US, ids="-".join)
def test_what_a_pod_gets_fits_its_mtu_and_has_right_checksums(mixed: Lab, pair: tuple[str, str]) -> None:
    source, target = pods_of(mixed, *pair)
    before = offloaded_in(target.host)
    with complete_checksums("p1", target.host), Tap(target, "eth0") as pod:
        with Transfer(source, target, TRANSFER_BYTES):
            pass
        seen = pod.packets()
        with Flow(source, target) as flow:
            flow.wait_for_one_sent_from_now()
        seen += pod.packets()
    from_source = [packet for packet in seen if packet[12:16] == source.ip.packed]
    assert flow.missing == []
    assert {packet[9] for packet in from_source} == {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
    assert max(map(len, from_source)) <= MTU
    wrong = [packet for packet in from_source if not has_right_checksum(packet)]
    assert len(wrong) == 0, IP(wrong[0])
    if target.host.name == "h2":  # it was not spared
        after = offloaded_in(target.host)
        assert after["partial_checksums"] > before["partial_checksums"]
        assert (after["super_packets"] > before["super_packets"]) == (mixed.plan.offload == "whole")


def offloaded_in(host: Host) -> dict[str, int]:
    """Return what our packet path has counted of that; nothing where the kernel carries packets."""
    if not host.runs_agent:
        return {}
    counters = host.control("/v1/status")["counters"]
    found: dict[str, int] = {} if counters is None else counters["offloaded_in"]
    return found


def has_right_checksum(packet: bytes) -> bool:
    """Tell whether a TCP or UDP packet without IP options sums up with its pseudo-header (RFC 9293 3.1, RFC 768)."""
    segment = packet[20:]
    if packet[9] == socket.IPPROTO_UDP and segment[6:8] == b"\0\0":
        return True
    return checksum(packet[12:20] + struct.pack("!BBH", 0, packet[9], len(segment)) + segment) == 0


@pytest.mark.parametrize("pair", WITH_US, ids="-".join)
@pytest.mark.parametrize("size", [1, 64, 1_000, MTU - 28])
def test_datagrams_that_a_pod_sends_as_one_arrive_as_many(mixed: Lab, pair: tuple[str, str], size: int) -> None:
    """By UDP_SEGMENT, as QUIC does it. Where cards pass super-packets, a kernel peer sends them as one datagram."""
    source, target = pods_of(mixed, *pair)
    payloads = [bytes([number]) * size for number in range(20)]
    payloads.append(b"x" * max(size // 2, 1))  # the last one may be shorter
    with (
        target.socket(socket.AF_INET, socket.SOCK_DGRAM) as arriving,
        source.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        arriving.bind((str(target.ip), 9001))
        arriving.settimeout(PATIENCE_S)
        out.sendmsg(
            [b"".join(payloads)],
            [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))],
            0,
            (str(target.ip), 9001),
        )
        assert [arriving.recv(65_535) for _ in payloads] == payloads
