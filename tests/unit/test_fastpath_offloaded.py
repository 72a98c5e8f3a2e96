"""What a kernel peer leaves for a network card to finish reaches the TUN as such, and is right once it is finished."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.fuzz.seeds import with_checksum_of_the_pseudo_header
from tests.support.engine_rig import IPIP, VXLAN, EngineRig, small_table
from tests.support.refusals import Refusal, refused
from tests.support.repair import TCP as TCP_NUMBER
from tests.support.repair import UDP as UDP_NUMBER
from tests.support.repair import with_partial_checksum
from tests.support.traffic import Flow

MTU, CUT = 1450, 1280
IOVCNT, UNCUT_IOVCNT, JOINED_IOVCNT = 2, 2, 3  # the argument of writev, and what it is: see deliver.pyx
PEER = IPv4Address("127.0.0.2")
TUNNELS = pytest.mark.parametrize("tunnel", [VXLAN, IPIP], ids=lambda each: each.kind)


def tunnel_rig(tunnel: Encapsulation, offload: Offload | None = None) -> EngineRig:
    return EngineRig(replace(small_table(tunnel), mtu=MTU), offload=offload or Offload())


def send(rig: EngineRig, tunnel: Encapsulation, *packets: bytes) -> list[tuple[VnetHeader, bytes]]:
    for packet in packets:
        rig.from_peer(str(PEER), reference.from_the_wire(packet, PEER, small_table(tunnel)))
    rig.poll()
    return rig.to_tun_raw()


def flow(protocol: int, *, dont_fragment: bool = True) -> Flow:
    return Flow(IPv4Address("10.1.2.7"), IPv4Address("10.1.1.5"), protocol, 1_000, dont_fragment=dont_fragment)


def offloaded(rig: EngineRig) -> tuple[int, int]:
    counted = rig.engine.counters()["offloaded_in"]
    return counted["partial_checksums"], counted["super_packets"]


@TUNNELS
@pytest.mark.parametrize(("protocol", "offset"), [(TCP_NUMBER, 16), (UDP_NUMBER, 6)])
def test_a_checksum_that_is_only_begun_is_the_kernels_to_finish(
    tunnel: Encapsulation, protocol: int, offset: int
) -> None:
    right = flow(protocol).next(b"abc")
    with tunnel_rig(tunnel) as rig:
        ((vnet, packet),) = send(rig, tunnel, with_partial_checksum(right))
        assert vnet == VnetHeader(1, 0, 0, 0, 20, offset)
        assert reference.expand(vnet, packet) == [right]
        assert offloaded(rig) == (1, 0)
        assert rig.drops("in") == {}


@TUNNELS
@pytest.mark.parametrize("dont_fragment", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_tcp_that_is_longer_than_the_mtu_is_cut(tunnel: Encapsulation, begun: bool, dont_fragment: bool) -> None:
    whole = flow(TCP_NUMBER, dont_fragment=dont_fragment).next(bytes(9_000), flags=0x98)  # CWR, PSH, ACK
    with tunnel_rig(tunnel) as rig:
        ((vnet, packet),) = send(rig, tunnel, with_partial_checksum(whole) if begun else whole)
        assert vnet == VnetHeader(1, 0x81, 40, CUT - 40, 20, 16)
        segments = reference.expand(vnet, packet)
        assert segments is not None
        assert [len(segment) for segment in segments] == [CUT] * 7 + [9_000 - 7 * (CUT - 40) + 40]
        assert offloaded(rig) == (int(begun), 1)
        assert rig.counters("in") == {"packets": 8, "bytes": 9_040, "drops": {}}


@TUNNELS
def test_a_damaged_packet_that_is_too_long_goes_on_as_it_came(tunnel: Encapsulation) -> None:
    whole = bytearray(flow(TCP_NUMBER).next(bytes(9_000)))
    whole[-1] = 1
    with tunnel_rig(tunnel) as rig:
        assert send(rig, tunnel, bytes(whole)) == [(VnetHeader(), bytes(whole))]
        assert offloaded(rig) == (0, 0)


@TUNNELS
def test_begun_segments_are_joined_with_each_other_and_with_finished_ones(tunnel: Encapsulation) -> None:
    """On a wire without segmentation each segment of a stream comes so: alone they would cost a write each."""
    stream = flow(TCP_NUMBER)
    segments = [stream.next(bytes([number]) * 1_000) for number in range(20)]
    left = [with_partial_checksum(segment) if number % 3 else segment for number, segment in enumerate(segments)]
    with tunnel_rig(tunnel) as rig:
        ((vnet, packet),) = send(rig, tunnel, *left)
        assert reference.expand(vnet, packet) == segments
        assert offloaded(rig) == (13, 0)


@TUNNELS
def test_an_uncut_packet_is_joined_to_nothing_and_keeps_its_place(tunnel: Encapsulation) -> None:
    stream = flow(TCP_NUMBER)
    packets = [stream.next(bytes(n)) for n in (1_000, 1_000, 30_000, 1_000, 1_000, 20_000, 20_000)]
    left = [with_partial_checksum(packet) for packet in packets]
    with tunnel_rig(tunnel) as rig:
        writes = send(rig, tunnel, *left)
        assert [len(packet) for _, packet in writes] == [2_040, 30_040, 2_040, 20_040, 20_040]
        sequence = [int.from_bytes(packet[24:28], "big") for _, packet in writes]
        assert sequence == sorted(sequence)


@TUNNELS
@pytest.mark.parametrize(
    "packet",
    [
        bytes(IP(src="10.1.2.7", dst="10.1.1.5", flags="MF") / UDP(chksum=0x1234) / bytes(16)),  # of a longer datagram
        bytes(IP(src="10.1.2.7", dst="10.1.1.5", frag=3) / bytes(24)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP(chksum=0) / bytes(2_000)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP() / bytes(2_000)),  # a peer with a larger MTU
        bytes(IP(src="10.1.2.7", dst="10.1.1.5", proto=6) / bytes(19)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5", proto=17) / bytes(7)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5") / TCP(dataofs=4) / bytes(2_000)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5") / TCP(dataofs=15) / bytes(8)),
        bytes(IP(src="10.1.2.7", dst="10.1.1.5", proto=47) / bytes(2_000)),
        with_checksum_of_the_pseudo_header(bytes(IP(src="10.1.2.7", dst="10.1.1.5") / TCP() / bytes(2))),
    ],
)
def test_what_is_finished_or_cannot_be_told_goes_on_as_it_came(tunnel: Encapsulation, packet: bytes) -> None:
    with tunnel_rig(tunnel) as rig:
        assert send(rig, tunnel, packet) == [(VnetHeader(), packet)]
        assert offloaded(rig) == (0, 0)


@TUNNELS
def test_options_and_an_urgent_pointer_stay(tunnel: Encapsulation) -> None:
    header = IP(src="10.1.2.7", dst="10.1.1.5", options=b"\x01\x01\x01\x00")
    whole = bytes(header / TCP(flags="UA", urgptr=9, options=[("Timestamp", (1, 2))]) / bytes(3_000))
    with tunnel_rig(tunnel) as rig:
        ((vnet, packet),) = send(rig, tunnel, whole)
        assert vnet == VnetHeader(1, 1, 56, CUT - 56, 24, 16)
        segments = reference.expand(vnet, packet) or []
        assert [(IP(each)[TCP].urgptr, IP(each)[TCP].flags) for each in segments] == [(9, "UA")] * 3
        assert b"".join(bytes(IP(each)[TCP].payload) for each in segments) == bytes(3_000)


def test_udp_that_a_pod_sent_with_udp_segment_is_cut_as_the_pod_said() -> None:
    """The kernel hands it over whole, and says with UDP_GRO how long the pod's datagrams are."""
    whole = with_partial_checksum(flow(UDP_NUMBER).next(bytes(range(250)) * 20))
    datagram = reference.from_the_wire(whole, PEER, small_table(VXLAN))
    with tunnel_rig(VXLAN) as rig:
        rig.bundle_from_peer(str(PEER), [datagram[at : at + 700] for at in range(0, len(datagram), 700)])
        rig.poll()
        ((vnet, packet),) = rig.to_tun_raw()
        assert (vnet, packet) == (VnetHeader(1, 5, 28, 700, 20, 6), whole)
        assert offloaded(rig) == (1, 1)
        assert rig.counters("in")["packets"] == 8
        assert rig.drops("in") == {}


def test_an_uncut_packet_is_not_taken_for_the_shorter_end_of_a_run_before_it() -> None:
    """A QUIC sender probes the path with one long datagram, and goes on with a short run."""
    stream = flow(UDP_NUMBER)
    probe, run = stream.next(bytes(1_200)), with_partial_checksum(stream.next(bytes(range(250)) * 4))
    alone, whole = (reference.from_the_wire(packet, PEER, small_table(VXLAN)) for packet in (probe, run))
    with tunnel_rig(VXLAN) as rig:
        rig.from_peer(str(PEER), alone)
        rig.bundle_from_peer(str(PEER), [whole[at : at + 500] for at in range(0, len(whole), 500)])
        rig.poll()
        assert rig.to_tun_raw() == [(VnetHeader(), probe), (VnetHeader(1, 5, 28, 500, 20, 6), run)]


@TUNNELS
def test_what_the_tun_does_not_take_uncut_is_cut_here(tunnel: Encapsulation) -> None:
    whole = flow(TCP_NUMBER).next(bytes(range(250)) * 40)
    expected = reference.finished(whole, MTU).packets
    writes: list[tuple[VnetHeader, bytes]] = []
    with tunnel_rig(tunnel, NO_OFFLOAD) as rig:
        uncut = Refusal("writev", errno.EINVAL, {0: rig.tun_fd, IOVCNT: UNCUT_IOVCNT})
        refused([uncut], lambda: writes.extend(send(rig, tunnel, with_partial_checksum(whole))))
        assert rig.counters("in") == {"packets": len(expected), "bytes": sum(map(len, expected)), "drops": {}}
        assert rig.engine.counters()["system_calls"]["tun_join_errors"] == 1
    assert writes == [(VnetHeader(), packet) for packet in expected]


@TUNNELS
def test_begun_segments_that_the_tun_does_not_take_joined_stay_right(tunnel: Encapsulation) -> None:
    stream = flow(TCP_NUMBER)
    segments = [stream.next(bytes(1_000)) for _ in range(5)]
    left = [with_partial_checksum(segment) if number % 2 else segment for number, segment in enumerate(segments)]
    writes: list[tuple[VnetHeader, bytes]] = []
    with tunnel_rig(tunnel) as rig:
        joined = Refusal("writev", errno.EINVAL, {0: rig.tun_fd}, at_least={IOVCNT: JOINED_IOVCNT})
        refused([joined], lambda: writes.extend(send(rig, tunnel, *left)))
    assert len(writes) == len(segments)
    assert [reference.expand(vnet, packet) for vnet, packet in writes] == [[segment] for segment in segments]
