"""A capture as a file and as lines: what other programs read of it, and what is left of it on a full disk."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.utils import PcapNgReader

from flannel_udp.admin.capture_wish import read_wish, write_wish
from flannel_udp.admin.captured import RECORD, Captured, Head, read_inner, read_records
from flannel_udp.admin.pcapng import PcapngWriter
from flannel_udp.admin.show_capture import describe, packet_document, packet_line, summary, verdict
from flannel_udp.dataplane.capture import describe_records
from flannel_udp.model import PLACES, CaptureWish
from tests.support.pcapng import read_pcapng

HEAD: Head = json.loads(json.dumps({**describe_records(), "version": "1.2.3", "pid": 1}))
SECOND_NS = 1_000_000_000
PING = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / ICMP() / bytes(20))
OUT = Captured(
    *(SECOND_NS, "out inner", "keep", 4, "udp", len(PING), 0, 1, 0, False, (0, 0)),
    *(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), PING),
)
OUTER = OUT._replace(place="out outer", ports=(40_000, 8_285), outer_tos=0x2)
DROPPED = OUT._replace(reason="no_route", peer=None)
COUNTS = {"bytes": 0, "taken": [2, 1, 0, 0], "lost": [1, 0, 0, 0]}


@contextmanager
def writer(path: Path) -> Iterator[PcapngWriter]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        yield PcapngWriter(fd, HEAD, 1_000, "flannel-udp capture")
    finally:
        os.close(fd)


def test_a_file_says_of_each_packet_where_it_was_and_what_became_of_it(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    with writer(path) as file:
        for packet in (OUT, OUTER, DROPPED):
            file.write(packet)
        file.finish(COUNTS)  # type: ignore[arg-type]
    found = read_pcapng(path)
    assert (found.comment, found.application, found.interfaces) == (
        "flannel-udp capture",
        "flannel-udp 1.2.3",
        [*PLACES],
    )
    assert [(packet.interface, packet.inbound) for packet in found.packets] == [
        ("out inner", False),
        ("out outer", False),
        ("out inner", False),
    ]
    assert [packet.comment for packet in found.packets] == [
        "forwarded; peer 192.0.2.2",
        "sent; peer 192.0.2.2",
        "dropped: no_route: no lease covers the destination",
    ]
    assert found.packets[0].data == PING
    assert {packet.time_ns for packet in found.packets} == {SECOND_NS}
    assert (found.received["out inner"], found.lost["out inner"], found.delivered["out inner"]) == (2, 1, 2)


def test_others_read_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "some.pcapng"
    with writer(path) as file:
        for packet in (OUT, OUTER, OUT._replace(data=PING[:21])):
            file.write(packet)
        file.finish(COUNTS)  # type: ignore[arg-type]
    with PcapNgReader(str(path)) as reader:
        inner, outer, cut = reader.read_all()
    assert bytes(inner) == PING
    assert inner.time == 1
    assert outer[IP].src == "192.0.2.1"
    assert (outer[UDP].sport, outer[UDP].dport, outer[IP].tos) == (40_000, 8_285, 2)
    assert bytes(outer[UDP].payload) == PING
    assert (len(bytes(cut)), cut.wirelen) == (21, len(PING))


def test_a_header_that_is_written_for_an_outer_packet_is_right() -> None:
    for packet in (
        OUTER,
        OUTER._replace(may_fragment=True),
        OUTER._replace(encapsulation="ipip", ports=(0, 0)),
        OUTER._replace(place="in outer", data=PING[:10]),
    ):
        frame, n_bytes = packet.frame()
        header = IP(frame)
        checksum = header.chksum
        del header.chksum
        assert IP(bytes(header)).chksum == checksum
        assert header.len == n_bytes
        assert ("DF" in str(header.flags)) != packet.may_fragment
        ends = ["192.0.2.1", "192.0.2.2"]
        assert [header.src, header.dst] == (ends if packet.is_out else ends[::-1])
    six = OUTER._replace(version=6, own=IPv6Address("2001:db8::1"), peer=IPv6Address("2001:db8::2"))
    header6 = IPv6(six.frame()[0])
    assert (header6.src, header6.dst, header6.tc, header6.plen) == ("2001:db8::1", "2001:db8::2", 2, len(PING) + 8)


@contextmanager
def files_of(most_bytes: int) -> Iterator[None]:
    """Let no file of ours grow larger: writing ends midway, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("most_bytes", [900, 5_001, 12_345])
def test_what_fits_on_a_disk_is_whole(tmp_path: Path, most_bytes: int) -> None:
    path = tmp_path / "some.pcapng"
    with writer(path) as file, files_of(most_bytes), pytest.raises(OSError, match="File too large"):
        file.flush()
        for _ in range(3):
            for _ in range(40):
                file.write(OUT)
            file.flush()
    found = read_pcapng(path)
    assert found.interfaces == [*PLACES]
    assert most_bytes - 200 < path.stat().st_size <= most_bytes
    assert all(packet.data == PING for packet in found.packets)


def test_a_line_says_when_where_what_and_what_became_of_it() -> None:
    packet = OUT._replace(time_ns=7 * SECOND_NS + 12_345_678)
    line = packet_line(packet, HEAD)
    assert line.split(" ", 1)[0].endswith(":07.012345")
    assert line.split(" ", 1)[1] == (
        "out inner 10.1.1.5 > 10.1.2.7, ICMP echo request, 48 bytes; forwarded; peer 192.0.2.2"
    )
    outer = packet_line(OUTER, HEAD)
    assert (
        " out outer 192.0.2.1:40000 > 192.0.2.2:8285 UDP: 10.1.1.5 > 10.1.2.7, ICMP echo request, 48 bytes; " in outer
    )
    assert "no IP header, 3 bytes; dropped: too_short: " in packet_line(
        DROPPED._replace(data=b"abc", n_bytes=3, reason="too_short"), HEAD
    )


def test_a_program_gets_the_same_as_a_document() -> None:
    told = packet_document(OUTER._replace(peer=None, reason="unreachable"), HEAD)
    assert json.loads(json.dumps(told)) == {
        "time": 1.0,
        "place": "out outer",
        "verdict": "dropped",
        "reason": "unreachable",
        "peer": None,
        "source": "10.1.1.5",
        "destination": "10.1.2.7",
        "protocol": 1,
        "source_port": None,
        "destination_port": None,
        "bytes": len(PING),
        "segment_bytes": None,
        "packets": 1,
        "text": told["text"],
    }


def test_a_verdict_tells_how_many_packets_it_is_about() -> None:
    joined = OUT._replace(place="in inner", n=10, segment_bytes=1_400)
    assert verdict(joined, HEAD) == "delivered; 10 packets in one; segments of 1400 bytes; peer 192.0.2.2"
    lost = joined._replace(reason="lease_expired", segment_bytes=0)
    assert verdict(lost, HEAD) == (
        "dropped: lease_expired: our lease ran out before the agent could renew it; "
        "10 packets, this is the first; peer 192.0.2.2"
    )


V4, V6 = IP(src="10.1.1.5", dst="10.1.2.7"), IPv6(src="fd00::1", dst="fd00::2")
V4_ENDS, V6_ENDS = "10.1.1.5 > 10.1.2.7", "fd00::1 > fd00::2"


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        (V4 / TCP(sport=40_000, dport=80, flags="SA"), "10.1.1.5:40000 > 10.1.2.7:80, TCP [S.]"),
        (IP(src=V4.src, dst=V4.dst, proto=17, frag=185) / bytes(8), f"{V4_ENDS}, UDP, fragment at 1480"),
        (IP(src=V4.src, dst=V4.dst, proto=200) / bytes(8), f"{V4_ENDS}, protocol 200"),
        (V4 / ICMP(type=3, code=1), f"{V4_ENDS}, ICMP unreachable"),
        (V6 / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2), "[fd00::1]:1 > [fd00::2]:2, UDP"),
        (V6 / ICMPv6EchoRequest(), f"{V6_ENDS}, ICMPv6 echo request"),
        (V6 / IPv6ExtHdrFragment(nh=6, offset=2, m=0) / bytes(8), f"{V6_ENDS}, TCP, fragment at 16"),
    ],
)
def test_an_inner_packet_is_described_as_far_as_it_is_known(packet: IP | IPv6, told: str) -> None:
    data = bytes(packet)
    inner = read_inner(data, len(data))
    assert inner is not None
    assert describe(inner) == f"{told}, {len(data)} bytes"


def test_however_short_a_packet_is_nothing_is_read_beyond_it() -> None:
    for packet in (IP() / TCP(), IP() / ICMP(), IPv6() / IPv6ExtHdrDestOpt() / UDP(), IPv6() / IPv6ExtHdrFragment()):
        data = bytes(packet)
        for n in range(len(data)):
            read_inner(data[:n], len(data))


def test_the_end_says_what_was_lost() -> None:
    assert summary(1, {"bytes": 0, "taken": [1] * 4, "lost": [0] * 4}) == "1 packet, none lost"
    assert summary(1_000, {"bytes": 0, "taken": [1] * 4, "lost": [1, 2, 0, 0]}).startswith(
        "1,000 packets; 3 more were lost"
    )


@pytest.mark.parametrize(
    "wish",
    [
        CaptureWish(),
        CaptureWish(("out inner", "in outer"), dropped=True, reasons=("no_route",), every=7, snap_bytes=64),
    ],
)
def test_a_wish_comes_back_from_its_question(wish: CaptureWish) -> None:
    query = dict(part.split("=") for part in write_wish(wish).split("&"))
    assert read_wish(query) == wish


@pytest.mark.parametrize("query", [{"places": "under"}, {"every": "0"}, {"snap": "-1"}, {"snap": "many"}])
def test_a_wish_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_wish(query)


@pytest.mark.parametrize("records", [b"x", bytes(RECORD.size), b"\xff" * 200])
def test_records_that_make_no_sense_are_refused(records: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        list(read_records(HEAD, records))
