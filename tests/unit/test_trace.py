"""`trace`: packets that are made, headers that are read, questions in the data path's order, lines that fit."""

from __future__ import annotations

import io
import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from flannel_udp.admin.headers import packet_of
from flannel_udp.admin.show_trace import show_trace, trace_lines
from flannel_udp.admin.trace_request import Coming, Said, TraceRequest, make_request, read_coming, read_request
from flannel_udp.admin.trace_shapes import Trace
from flannel_udp.agent.trace_checks import inbound_questions, judge, outbound_questions
from flannel_udp.agent.trace_host import HostAnswer, pass_host
from flannel_udp.agent.trace_packets import Ip, checksum, in_fragments, make_packet, outer_packet, with_one_hop_less
from flannel_udp.cli.main import main
from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.errors import UsageError
from flannel_udp.host.lookup.packet_way import PacketWay
from flannel_udp.host.lookup.question import Way, Ways
from flannel_udp.model import Peer, RouteAnswer
from tests.support.traces import ARRIVAL, traced
from tests.unit.test_cli_agent import ask

V4, V6 = ("10.1.15.7", "10.1.16.5"), ("fd00:1::7", "fd00:2::5")


def request(ends: tuple[str, str] = V4, **said: Any) -> TraceRequest:
    return make_request(ip_address(ends[0]), ip_address(ends[1]), Said(**said))


def rebuilt(packet: bytes) -> bytes:
    """Return what scapy makes of a packet with all lengths and checksums computed anew."""
    parsed = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    for layer in (IP, IPv6, TCP, UDP, ICMP, ICMPv6EchoRequest):
        if layer in parsed:
            for name in ("len", "plen", "chksum", "cksum"):
                if name in [field.name for field in parsed[layer].fields_desc]:
                    parsed[layer].delfieldval(name)
    return bytes(parsed)


# Packets


@pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [1, 6, 17, 47])
@pytest.mark.parametrize("size", [None, 101, 1500, 9000])
def test_a_packet_has_the_lengths_and_checksums_that_scapy_gives_it(
    ends: tuple[str, str], protocol: int, size: int | None
) -> None:
    asked = request(ends, protocol=protocol, size=size, tos=0xB9, ttl=7)
    packet = make_packet(asked)
    assert len(packet) == asked.size
    assert rebuilt(packet) == packet
    assert rebuilt(with_one_hop_less(packet)) == with_one_hop_less(packet)


def test_a_packet_is_what_was_said() -> None:
    packet = IP(make_packet(request(protocol=6, ttl=9, tos=3, source_port=5, destination_port=443)))
    assert (packet.src, packet.dst, packet.ttl, packet.tos, str(packet.flags)) == (*V4, 9, 3, "DF")
    assert (packet[TCP].sport, packet[TCP].dport, str(packet[TCP].flags)) == (5, 443, "S")
    assert str(IP(make_packet(request(protocol=6, df=False))).flags) == ""
    assert (len(make_packet(request())), len(make_packet(request(V6)))) == (84, 104)


def test_fragments_are_those_of_scapy() -> None:
    packet = make_packet(request(protocol=17, size=4000))
    made = list(in_fragments(packet, 1472))
    offsets = [(len(each), IP(each).frag, str(IP(each).flags)) for each in made]
    assert offsets == [(1468, 0, "MF"), (1468, 181, "MF"), (1104, 362, "")]
    assert b"".join(each[20:] for each in made) == packet[20:]
    assert all(checksum(each[:20]) == 0 for each in made)


@pytest.mark.parametrize("ends", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_an_outer_packet_is_that_of_scapy(ends: tuple[str, str]) -> None:
    source, to = map(ip_address, ends)
    outer = outer_packet(Ip(source, to, 17, 2, 64, df=True), b"inner", (8285, 8285))
    assert rebuilt(outer.packet) == outer.packet
    parsed: Any = IP(outer.packet) if source.version == 4 else IPv6(outer.packet)
    assert (parsed.dst, parsed[UDP].sport, bytes(parsed[UDP].payload)) == (ends[1], 8285, b"inner")


# What is no packet


@pytest.mark.parametrize(
    ("ends", "said", "line"),
    [
        ((V4[0], V6[1]), {}, "10.1.15.7 is IPv4, fd00:2::5 is IPv6: no packet has one end of each"),
        (V4, {"size": 27}, "--size=27: such a packet has 28 bytes, for its headers, to 65,535"),
        (V4, {"size": 65_536}, "--size=65536: such a packet has 28 bytes, for its headers, to 65,535"),
        (V4, {"destination_port": 80}, "ports are TCP's and UDP's: protocol 1 has none"),
        (V6, {"df": True}, "--df is IPv4's: of IPv6 no router cuts a packet"),
    ],
)
def test_what_is_no_packet_is_said_in_one_line(ends: tuple[str, str], said: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        request(ends, **said)
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize("ends", [V4, V6])
def test_a_request_arrives_as_it_was_made(ends: tuple[str, str]) -> None:
    asked = request(ends, protocol=17, size=200, tos=5, ttl=3, source_port=7)
    assert read_request(json.loads(json.dumps(asked.asked()))) == asked
    assert read_request({"source": ends[0], "destination": ends[1]}) == request(ends)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"source": "10.1.1.1"},
        {"source": "10.1.1.1", "destination": "here"},
        {"source": "10.1.1.1", "destination": "10.1.1.2", "ttl": "7"},
        {"source": "10.1.1.1", "destination": "10.1.1.2", "ttl": 0},
        {"source": "10.1.1.1", "destination": "10.1.1.2", "size": True},
        {"source": "10.1.1.1", "destination": "10.1.1.2", "df": 1},
    ],
)
def test_a_document_that_asks_for_no_packet_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"not|no JSON|neither"):
        read_request(document)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {"sender": "192.0.2.1", "tos": 256, "payload": None, "inner": "45" + 19 * "00"},
        {"sender": "192.0.2.1", "tos": 0, "payload": None, "inner": "45"},
        {"sender": "192.0.2.1", "tos": 0, "payload": "zz", "inner": "45" + 19 * "00"},
        {"sender": "a host", "tos": 0, "payload": None, "inner": "45" + 19 * "00"},
    ],
)
def test_a_packet_that_comes_and_is_none_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match=r"no|non-hexadecimal|does not"):
        read_coming(document)
    whole = {"sender": "192.0.2.1", "tos": 0, "payload": "00", "inner": "45" + 19 * "00"}
    assert read_coming(whole) == Coming(ip_address("192.0.2.1"), 0, b"\0", b"\x45" + bytes(19))


# Headers


def said_of(data: bytes, tunnel: str | None = None) -> dict[str, str]:
    headers = packet_of(data, tunnel)["headers"]
    return {f"{header['name']} {field['name']}": field["value"] for header in headers for field in header["fields"]}


def test_every_byte_of_every_header_is_told_once_and_in_order() -> None:
    inner = IP(src=V4[0], dst=V4[1]) / TCP(options=[("MSS", 1460)]) / b"data"
    frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / inner
    outer = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=8472) / VXLAN(vni=7) / frame)
    shown = packet_of(outer, "vxlan")
    fields = [field for header in shown["headers"] for field in header["fields"]]
    assert "".join(str(field["hex"]) for field in fields) == outer[:-4].hex()
    assert [field["offset"] for field in fields] == [
        sum(each["bytes"] for each in fields[:n]) for n in range(len(fields))
    ]
    said = said_of(outer, "vxlan")
    assert (said["VXLAN VNI"], said["inner Ethernet destination MAC"]) == ("7", "02:00:00:00:00:02")
    assert (said["inner TCP flags"], said["outer IPv4 destination"]) == ("SYN", "192.0.2.2")


def test_what_the_kernel_chooses_has_no_bytes() -> None:
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP() / Raw(bytes(40)))
    (header, *_) = packet_of(packet, "udp", {"outer IPv4 identification"})["headers"]
    (chosen,) = [field for field in header["fields"] if field["hex"] is None]
    assert (chosen["name"], chosen["value"]) == ("identification", "the kernel's choice")


@pytest.mark.parametrize(
    "packet", [IP(src=V4[0], dst=V4[1]) / ICMP(), IPv6(src=V6[0], dst=V6[1]) / ICMPv6EchoRequest()]
)
def test_a_packet_that_is_cut_short_anywhere_is_told_as_far_as_it_goes(packet: Any) -> None:
    whole = bytes(packet / Raw(b"abc"))
    for n in range(len(whole)):
        headers = packet_of(whole[:n])["headers"]
        assert sum(header["bytes"] for header in headers) <= n
    assert len(packet_of(whole)["headers"]) == 2


def test_a_later_fragment_has_no_transport() -> None:
    assert len(packet_of(bytes(IP(frag=9, proto=17) / bytes(40)))["headers"]) == 1


# Questions


@pytest.mark.parametrize("kind", ["udp", "vxlan", "ipip"])
@pytest.mark.parametrize("version", [4, 6])
def test_each_reason_is_asked_for_at_one_place(kind: str, version: int) -> None:
    for questions in (list(outbound_questions(kind, version)), list(inbound_questions(kind, version, "strict"))):
        reasons = [reason for _, those in questions for reason in those]
        assert len(set(reasons)) == len(reasons)
        assert set(reasons) <= set(DROP_REASONS)
        for reason in DROP_REASONS:
            results = [check["result"] for check in judge(questions, reason)]
            assert results.count("failed") == 1
            assert results == sorted(results, key=["passed", "failed", "not asked"].index)
        assert {check["result"] for check in judge(questions, None)} == {"passed"}


# What is shown


def shown(trace: Trace, width: int) -> list[str]:
    return [line for line, _ in trace_lines(trace, width)]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("reason", [None, "no_route", "too_big"])
@pytest.mark.parametrize("said", [{}, {"protocol": 6, "size": 1500}, {"protocol": 17}])
def test_lines_fit_and_lose_nothing(width: int, reason: str | None, said: dict[str, Any]) -> None:
    trace = traced(request(**said), reason)
    trace["arrival"] = ARRIVAL
    trace["notes"] = ["a problem of this host: " + "words " * 30]
    lines = shown(trace, width)
    assert max(map(len, lines)) <= width
    joined = re.sub(r"\s+", " ", " ".join(lines))
    for part in ("the host routes it to flannel0", "a lease covers the destination", "delivered: its kernel routes it"):
        assert part in joined
    assert (f"({reason})" in joined) is (reason is not None)


def test_without_a_terminal_there_is_no_colour() -> None:
    stream = io.StringIO()
    show_trace(traced(request()), stream)
    assert "\x1b" not in stream.getvalue()
    assert "4 on the wire: 112 bytes, no router may cut it" in stream.getvalue()


# The command


async def test_json_is_the_agents_document(tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "trace", *V4, "--proto=udp", "--ttl=9", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == traced(request(protocol=17, ttl=9))


async def test_what_the_agent_refuses_is_one_line(tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "trace", *V4, "--ttl", "13")
    assert (code, out, err) == (1, "", "flannel-udp: no packets are carried yet\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["10.1.1", "10.1.1.2"], "'10.1.1' is not an IP address"),
        (["10.1.1.1", "fd00::1"], "10.1.1.1 is IPv4, fd00::1 is IPv6: no packet has one end of each"),
        (["10.1.1.1"], "the following arguments are required: DST (see: flannel-udp trace --help)"),
        (
            [*V4, "--proto=tpc"],
            "--proto: 'tpc' is none of icmp, tcp, udp, nor a number from 0 to 255: did you mean tcp?",
        ),
        ([*V4, "--tos=300"], "--tos: '300' is not a byte: 0 to 255, or 0x00 to 0xff"),
        ([*V4, "--ttl=0"], "--ttl: '0' is not a whole number from 1 to 255"),
        ([*V4, "--sise=9"], "unknown flag '--sise': did you mean --size?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *words]) == 2
    assert capsys.readouterr() == ("", f"flannel-udp: {line}\n")


def test_in_a_lab_tcp_and_udp_are_one_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "trace", "h1/p1", "h2/p1", "--tcp", "80", "--udp", "53"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_without_an_agent_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *V4, f"--control-socket={tmp_path / 'none.sock'}"]) == 1
    assert "flannel-udp is not running" in capsys.readouterr().err


# What the host does with it before


TUNNEL, BRIDGE, UPLINK = 7, 8, 2
THERE = Peer(ip_network("10.1.16.0/24"), ip_address("192.0.2.2"))
TO_PEER = RouteAnswer(THERE, own=False)


def answer(
    device: int, *, gateway: str | None = None, tunnel: str | None = "flannel0", inlet: int = BRIDGE
) -> HostAnswer:
    """Return that the kernel leads the packet there, and that our packet path, or the kernel, has device `TUNNEL`."""
    ways = Ways(TUNNEL, {THERE.subnet: None if tunnel else ip_address("10.1.16.0")})
    way = Way(device, None if gateway is None else ip_address(gateway))
    return HostAnswer(inlet, PacketWay("a route", way=way, device="D", mtu=1472), ways, tunnel, None)


@pytest.mark.parametrize(
    ("host", "said", "found", "outcome", "carrier"),
    [
        (answer(TUNNEL), {}, TO_PEER, "passed", "data path"),
        (answer(TUNNEL), {}, RouteAnswer(None, own=False), "passed", "data path"),
        (answer(TUNNEL), {"size": 3000}, TO_PEER, "fragmented", "data path"),
        (answer(TUNNEL), {"size": 3000, "df": True}, TO_PEER, "dropped", "nobody"),
        (answer(TUNNEL), {"ttl": 1}, TO_PEER, "dropped", "nobody"),
        (answer(TUNNEL, inlet=0), {"ttl": 1}, TO_PEER, "passed", "data path"),
        (answer(TUNNEL, gateway="10.1.16.0", tunnel=None), {}, TO_PEER, "passed", "kernel"),
        (answer(TUNNEL, gateway="10.1.99.0", tunnel=None), {}, TO_PEER, "elsewhere", "nobody"),
        (answer(TUNNEL, tunnel=None), {}, RouteAnswer(None, own=False), "elsewhere", "nobody"),
        (answer(UPLINK), {}, TO_PEER, "elsewhere", "nobody"),
        (answer(UPLINK), {}, RouteAnswer(None, own=True), "delivered", "nobody"),
        (answer(BRIDGE), {"ttl": 1, "size": 3000}, TO_PEER, "delivered", "nobody"),
    ],
)
def test_the_host_routes_cuts_and_refuses_as_a_router(
    host: HostAnswer, said: dict[str, Any], found: RouteAnswer, outcome: str, carrier: str
) -> None:
    asked = request(**said)
    passed = pass_host(host, found, asked, make_packet(asked))
    assert (passed.step["outcome"], passed.carrier) == (outcome, carrier), passed.step["why"]
    hops = {packet[8] for packet in passed.packets}
    assert hops == (set() if carrier == "nobody" else {asked.ttl if host.inlet == 0 else asked.ttl - 1})
