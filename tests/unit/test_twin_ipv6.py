"""The twin's IPv6, by itself: golden packets, and scapy as a second oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Packet, Raw

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import OWN, Dropped, Forwarded, ReferenceTable, VnetHeader
from tests.support import golden_ipv6
from tests.support.engine_rig import VXLAN, small_table
from tests.support.golden_ipv6 import Golden
from tests.support.repair import repaired, with_partial_checksum

TABLE = small_table(version=6)
OUT: dict[str, Any] = {"src": golden_ipv6.OURS, "dst": golden_ipv6.THEIRS}
IN: dict[str, Any] = {"src": golden_ipv6.THEIRS, "dst": golden_ipv6.OURS}
MTU = 1430
TCPV6, UDP_L4 = 4, 5
EXTENSIONS = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting, IPv6ExtHdrFragment)


def end_of(verdict: Forwarded | Dropped) -> str:
    return verdict.reason if isinstance(verdict, Dropped) else str(verdict.to or "")


def hop_later(packet: bytes) -> bytes:
    return packet[:7] + bytes([packet[7] - 1]) + packet[8:]


@pytest.mark.parametrize("golden", list(golden_ipv6.outbound()), ids=lambda golden: golden.name)
def test_what_the_host_sends_ends_where_it_should(golden: Golden) -> None:
    verdict = reference.outbound(golden.packet, TABLE)
    assert end_of(verdict) == golden.end
    if isinstance(verdict, Forwarded):
        assert verdict.packet == hop_later(golden.packet)
    else:
        assert (verdict.answer and (verdict.answer[40], verdict.answer[41])) == golden.answer


@pytest.mark.parametrize("golden", list(golden_ipv6.inbound()), ids=lambda golden: golden.name)
def test_what_a_peer_sends_ends_where_it_should(golden: Golden) -> None:
    verdict = reference.inbound(golden.packet, ip_address(golden.sender), TABLE, "strict")
    assert end_of(verdict) == golden.end
    if isinstance(verdict, Forwarded):
        assert verdict.packet == hop_later(golden.packet)
    else:
        assert (verdict.answer and (verdict.answer[40], verdict.answer[41])) == golden.answer


def test_the_version_decides_whose_packet_it_is() -> None:
    ipv4, ipv6 = small_table(), small_table(version=6)
    out6 = golden_ipv6.ipv6(golden_ipv6.OURS, golden_ipv6.THEIRS, golden_ipv6.UDP, golden_ipv6.UDP_DATAGRAM)
    assert end_of(reference.outbound(out6, ipv4, ipv6)) == "2001:db8::2"
    assert end_of(reference.outbound(out6, ipv4)) == "not_ipv4"
    assert end_of(reference.outbound(b"\x50" + out6[1:], ipv4, ipv6)) == "not_ipv4"
    assert end_of(reference.outbound(b"\x60", ipv4, ipv6)) == "too_short"


# The payload behind it is what its checksum covers; a fragment of it has none that could be checked.
transports = st.sampled_from([UDP(sport=5, dport=6), TCP(sport=5, dport=6), ICMPv6EchoRequest()])
extensions = st.one_of(
    st.integers(0, 40).map(lambda n: IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(n))])),
    st.integers(0, 40).map(lambda n: IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(n))])),
    st.integers(0, 3).map(lambda n: IPv6ExtHdrRouting(addresses=["2001:db8::7"] * n)),
    st.tuples(st.sampled_from([0, 0, 1, 700]), st.booleans()).map(
        lambda drawn: IPv6ExtHdrFragment(offset=drawn[0], m=drawn[1], id=7)
    ),
)


def layers(packet: Packet) -> Iterator[Packet]:
    while packet:
        yield packet
        packet = packet.payload


@given(st.lists(extensions, max_size=10), transports, st.binary(max_size=30))
@settings(max_examples=500)
def test_the_transport_is_where_scapy_finds_it(chain: list[Packet], transport: Packet, payload: bytes) -> None:
    packet = IPv6(**IN, hlim=9, tc=0xB9, fl=0x12345)
    for each in chain:
        packet /= each
    raw = bytes(packet / transport / Raw(payload))
    seen = list(layers(IPv6(raw)))
    walked = [each for each in seen if isinstance(each, EXTENSIONS)]
    headers = reference.headers_of(raw)
    assert (headers.traffic_class, headers.ttl) == (0xB9, 9)
    assert (str(headers.source), str(headers.destination)) == (IN["src"], IN["dst"])
    if len(walked) > 8:
        assert not headers.has_transport
        return
    found = next((each for each in seen if isinstance(each, (UDP, TCP, ICMPv6EchoRequest))), None)
    assert headers.has_transport == (found is not None)
    if found is not None:
        assert headers.protocol == {UDP: 17, TCP: 6, ICMPv6EchoRequest: 58}[type(found)]
        assert headers.transport_at == len(raw) - len(found.original)
    assert headers.plain == (not any(isinstance(each, (IPv6ExtHdrRouting, IPv6ExtHdrFragment)) for each in walked))


def test_an_authentication_header_counts_its_length_in_words() -> None:
    """RFC 4302 section 2.2: less two, as no extension header of RFC 8200 does."""
    header = bytes([17, 4]) + bytes(22)
    packet = bytes(IPv6(**IN, nh=51) / Raw(header + bytes(UDP()) + b"abcd"))
    headers = reference.headers_of(packet)
    assert (headers.protocol, headers.transport_at, headers.plain) == (17, 64, True)


@given(st.sampled_from([UDP(sport=5, dport=6), TCP(sport=5, dport=6)]), st.integers(0, 40), st.binary(max_size=90))
@settings(max_examples=300)
def test_checksums_are_scapys(transport: Packet, n_options: int, payload: bytes) -> None:
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(n_options))])
    for packet in (IPv6(**OUT) / transport / payload, IPv6(**OUT) / options / transport / payload):
        right = bytes(packet)
        at = reference.headers_of(right).transport_at + (6 if UDP in packet else 16)
        blank = right[:at] + b"\x12\x34" + right[at + 2 :]
        assert repaired(blank, transport_too=True) == right
        vnet = VnetHeader(
            1, csum_start=reference.headers_of(right).transport_at, csum_offset=6 if UDP in packet else 16
        )
        assert reference.expand(vnet, with_partial_checksum(blank)) == [right]


def answered(packet: bytes, reason: str, mtu: int = 0) -> Packet:
    """Return the answer as scapy reads it, every byte of it accounted for."""
    raw = reference.icmp_answer(packet, reason, TABLE.own_address, mtu)
    assert raw is not None
    answer = IPv6(raw)
    assert (answer.version, answer.tc, answer.fl, answer.hlim) == (6, 0, 0, 64)
    assert (answer.src, answer.dst) == (golden_ipv6.OWN_ADDRESS, golden_ipv6.OURS)
    fresh = answer.copy()
    del fresh.plen, fresh.payload.cksum
    assert bytes(fresh) == raw
    assert raw[48:] == packet[: 1280 - 48]
    return answer.payload


@given(st.integers(0, 1500))
def test_answers_are_those_that_scapy_would_make(n_bytes: int) -> None:
    packet = bytes(IPv6(**OUT) / UDP(sport=5, dport=6) / bytes(n_bytes))
    unreachable = answered(packet, "no_route")
    assert (type(unreachable), unreachable.code) == (ICMPv6DestUnreach, 0)
    assert answered(packet, "own_subnet").code == 3
    assert (type(answered(packet, "ttl_expired")), answered(packet, "ttl_expired").code) == (ICMPv6TimeExceeded, 0)
    too_big = answered(packet, "too_big", 1280)
    assert (type(too_big), too_big.code, too_big.mtu) == (ICMPv6PacketTooBig, 0, 1280)


def test_without_an_address_of_our_own_nothing_is_answered() -> None:
    packet = bytes(IPv6(src=golden_ipv6.OURS, dst="fd00:10:244:9::1") / UDP())
    assert reference.outbound(packet, ReferenceTable(version=6)) == Dropped("no_route")


@given(st.integers(1, 4_000), st.integers(200, 1_500), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_tcp_is_split_into_what_scapy_takes_for_right(n_bytes: int, size: int, extended: bool, seq: int) -> None:
    payload = bytes(i * 7 % 251 for i in range(n_bytes))
    headers = IPv6(**OUT, tc=3, fl=7)
    headers = headers / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) if extended else headers
    whole = bytes(headers / TCP(seq=seq, flags="CAPF", options=[("Timestamp", (7, 8))]) / payload)
    vnet = VnetHeader(1, TCPV6 | 0x80, 80 if extended else 72, size, 48 if extended else 40, 16)
    segments = reference.expand(vnet, with_partial_checksum(whole))
    assert segments is not None
    assert len(segments) == -(-n_bytes // size)
    assert b"".join(bytes(IPv6(each)[TCP].payload) for each in segments) == payload
    for i, raw in enumerate(segments):
        fresh = IPv6(raw)
        assert (fresh[TCP].seq, fresh.tc, fresh.fl) == ((seq + i * size) % 2**32, 3, 7)
        is_last = i == len(segments) - 1
        assert str(fresh[TCP].flags) == ("F" if is_last else "") + ("P" if is_last else "") + "A" + ("" if i else "C")
        del fresh.plen, fresh[TCP].chksum
        assert bytes(fresh) == raw


@given(st.integers(1, 4_000), st.integers(200, 1_500))
def test_udp_is_split_into_what_scapy_takes_for_right(n_bytes: int, size: int) -> None:
    payload = bytes(i * 7 % 251 for i in range(n_bytes))
    whole = bytes(IPv6(**OUT) / UDP(sport=5, dport=6) / payload)
    segments = reference.expand(VnetHeader(1, UDP_L4, 48, size, 40, 6), with_partial_checksum(whole))
    assert segments is not None
    assert b"".join(bytes(IPv6(each)[UDP].payload) for each in segments) == payload
    for raw in segments:
        fresh = IPv6(raw)
        del fresh.plen, fresh[UDP].len, fresh[UDP].chksum
        assert bytes(fresh) == raw


@pytest.mark.parametrize(
    ("vnet", "packet"),
    [
        (VnetHeader(1, 1, 60, 100, 40, 16), IPv6(**OUT) / TCP() / bytes(300)),  # TCPV4
        (VnetHeader(1, UDP_L4, 60, 100, 40, 16), IPv6(**OUT) / TCP() / bytes(300)),
        (VnetHeader(1, TCPV6, 60, 100, 40, 16), IPv6(**OUT) / UDP() / bytes(300)),
        (VnetHeader(1, TCPV6, 60, 0, 40, 16), IPv6(**OUT) / TCP() / bytes(300)),
        (VnetHeader(1, TCPV6, 60, 100, 40, 16), IPv6(**OUT) / TCP()),
        (VnetHeader(1, TCPV6, 60, 100, 40, 16), IPv6(**OUT) / TCP(dataofs=15) / bytes(8)),
        (VnetHeader(1, TCPV6, 68, 100, 48, 16), IPv6(**OUT) / IPv6ExtHdrFragment(m=1) / TCP() / bytes(300)),
        (VnetHeader(1, TCPV6, 68, 100, 48, 16), IPv6(**OUT) / IPv6ExtHdrFragment() / TCP() / bytes(300)),
        (VnetHeader(1, TCPV6, 68, 100, 48, 16), IPv6(**OUT) / IPv6ExtHdrRouting() / TCP() / bytes(300)),
        (VnetHeader(1, 0, 0, 0, 39, 6), IPv6(**OUT) / UDP() / bytes(300)),  # a checksum from within the header on
        (VnetHeader(1, 0, 0, 0, 343, 16), IPv6(**OUT) / UDP() / bytes(300)),
    ],
)
def test_what_the_virtio_header_cannot_mean_is_refused(vnet: VnetHeader, packet: Packet) -> None:
    assert reference.expand(vnet, bytes(packet)) is None


def test_what_a_kernel_peer_left_uncut_is_cut_to_1280_bytes() -> None:
    whole = bytes(IPv6(**IN) / TCP(flags="A") / (bytes(range(250)) * 40))
    for left in (with_partial_checksum(whole), whole):
        done = reference.finished(left, MTU)
        assert (done.partial, done.uncut) == (left != whole, True)
        assert [len(each) for each in done.packets] == [1280] * 8 + [60 + 10_000 - 8 * 1220]
        for raw in done.packets:
            fresh = IPv6(raw)
            del fresh.plen, fresh[TCP].chksum
            assert bytes(fresh) == raw


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(**IN) / TCP() / bytes(100),
        IPv6(**IN) / UDP(chksum=0) / bytes(100),  # made by nobody: the receiver drops it (RFC 8200 section 8.1)
        IPv6(**IN) / UDP(chksum=0x1234) / bytes(100),  # damaged
        IPv6(**IN) / IPv6ExtHdrFragment(m=1) / TCP(chksum=0) / bytes(9_000),
        IPv6(**IN) / IPv6ExtHdrRouting(addresses=["2001:db8::7"]) / TCP() / bytes(9_000),
        IPv6(**IN) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))] * 6) / TCP() / bytes(9_000),  # beyond the MTU
        IPv6(**IN, nh=47) / bytes(9_000),
    ],
)
def test_what_is_finished_or_cannot_be_told_stays_as_it_came(packet: Packet) -> None:
    assert reference.finished(bytes(packet), MTU).packets == [bytes(packet)]


def test_congestion_marks_are_carried_over_as_rfc_6040_says() -> None:
    ends = {}
    for inner in range(4):
        for outer in range(4):
            packet = bytes(IPv6(**IN, tc=0xB8 | inner, fl=0xFFFFF) / UDP())
            verdict = reference.inbound(packet, IPv6Address("2001:db8::2"), TABLE, "strict", outer)
            if isinstance(verdict, Forwarded):
                seen = IPv6(verdict.packet)
                assert (seen.tc & 0xFC, seen.fl) == (0xB8, 0xFFFFF)
                ends[inner, outer] = seen.tc & 3
            else:
                ends[inner, outer] = verdict.reason
    not_ect, ect_1, ect_0, ce = range(4)
    assert ends[not_ect, ce] == "congestion_lost"
    assert [ends[ect_0, outer] for outer in range(4)] == [ect_0, ect_1, ect_0, ce]
    assert [ends[ect_1, outer] for outer in range(4)] == [ect_1, ect_1, ect_1, ce]
    assert [ends[ce, outer] for outer in range(4)] == [ce] * 4
    assert [ends[not_ect, outer] for outer in range(3)] == [not_ect] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({0: 0}, "bad_vxlan_header"),
        ({6: 9}, "other_vni"),
        ({20: 8, 21: 0}, "not_ipv6_frame"),
        ({13: 7}, "others_mac"),
        ({19: 7}, "spoofed_mac"),
    ],
)
def test_a_vxlan_frame_holds_ipv6_for_our_mac(change: dict[int, int], reason: str | None) -> None:
    table = small_table(VXLAN, 6)
    packet = bytes(IPv6(**IN) / UDP() / b"abcd")
    datagram = bytearray(reference.from_the_wire(packet, IPv6Address("2001:db8::2"), table) + bytes(6))  # padded
    assert datagram[:22] == bytes.fromhex("08000000 00000100 8e647ce7c901 8e647ce7c902 86dd")
    for place, value in change.items():
        datagram[place] = value
    verdict = reference.inbound(bytes(datagram), IPv6Address("2001:db8::2"), table, "strict")
    assert verdict == (Dropped(reason) if reason else Forwarded(packet, None))  # a network device is no hop


@pytest.mark.parametrize("n_bytes", range(89))
def test_every_length_from_0_to_88_is_a_packet_or_a_reason(n_bytes: int) -> None:
    whole = golden_ipv6.ipv6(golden_ipv6.OURS, golden_ipv6.THEIRS, golden_ipv6.NOTHING, "00" * 48, length=20)
    expected = "too_short" if n_bytes < 40 else "bad_total_len"
    assert end_of(reference.outbound(whole[:n_bytes], TABLE)) == ("2001:db8::2" if n_bytes == 60 else expected)


def test_the_longest_of_all_prefixes_that_cover_an_address_wins() -> None:
    routes = {
        "::/0": "::2",
        "fd00::/8": "::3",
        "fd00:10:244:1::/64": OWN,
        "fd00:10:244:1::5/128": "::5",
        "fd80::/9": "::6",
    }
    table = ReferenceTable(
        {IPv6Network(prefix): hop if hop == OWN else IPv6Address(hop) for prefix, hop in routes.items()}, version=6
    )
    expected = {"fd00:10:244:1::5": "::5", "fd00:10:244:1::6": OWN, "fd00::1": "::3", "fd80::": "::6", "fc00::": "::2"}
    assert {address: str(table.lookup(IPv6Address(address))) for address in expected} == expected


def test_look_ups_agree_with_a_walk_over_the_bits() -> None:
    """Another algorithm on random prefixes: from the whole address down, the first prefix that is there wins."""
    source = random.Random(20261129)
    base = int(IPv6Address("fd00::"))
    routes = {
        IPv6Network((base | source.getrandbits(12) << 100, source.choice([20, 24, 28, 48, 64, 127, 128])), strict=False)
        for _ in range(200)
    }
    hops: dict[Any, Any] = {prefix: IPv6Address(n) for n, prefix in enumerate(sorted(routes), 2)}
    table = ReferenceTable(hops, version=6)
    for _ in range(2_000):
        address = IPv6Address(base | source.getrandbits(12) << 100 | source.choice([0, 1, source.getrandbits(100)]))
        found = (hops.get(IPv6Network((address, length), strict=False)) for length in range(128, -1, -1))
        assert table.lookup(address) == next((hop for hop in found if hop is not None), None)
