"""One run of a real engine and of its pure-Python twin on the same traffic, compared packet by packet."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.dataplane.reference import Forwarded, ReferenceTable, VnetHeader
from tests.support.engine_rig import AGENT, EngineRig

PEERS = ("127.0.0.2", "127.0.0.3", "127.0.0.9")  # the last one is in no table
UDP_PAYLOAD_MAX_BYTES = 65_507
PENDING_MAX_BYTES = 96 * 1024  # of the steps between two polls: a socket buffer of the default size holds them
_DONT_FRAGMENT, _FRAGMENT_MASK = 0x4000, 0x3FFF
_PORTS_HAVE = (6, 17)


@dataclass(frozen=True)
class FromTun:
    """The host sends a packet or super-packet into the tunnel device."""

    vnet: VnetHeader
    packet: bytes


@dataclass(frozen=True)
class FromPeer:
    """A peer sends datagrams: one, or several of one size (the last may be shorter) in one call with UDP_SEGMENT."""

    address: str
    datagrams: tuple[bytes, ...]
    outer_tos: int = 0


class Difference(AssertionError):
    """The engine and its twin do not agree."""


@dataclass
class _Expected:
    to_peer: dict[str, list[bytes]] = field(default_factory=lambda: {address: [] for address in PEERS})
    to_tun: list[bytes] = field(default_factory=list)
    drops: dict[str, Counter[str]] = field(default_factory=lambda: {"out": Counter(), "in": Counter()})


class TwinRun:
    """Feeds an engine, and holds it to what the twin says. The engine keeps no flow over a batch, but learns path MTUs.

    `packets` counts what was compared: every packet on the wire, and every one written to the tunnel device.
    """

    def __init__(self, rig: EngineRig, table: ReferenceTable, source_check: str) -> None:
        self._rig = rig
        self._table = table
        self._source_check = source_check
        self.packets = 0

    def check(self, batch: Sequence[FromTun | FromPeer]) -> dict[str, list[bytes]]:
        """Let a batch through both; return what each peer got, and raise `Difference` where the two differ."""
        before = {direction: Counter(self._rig.drops(direction)) for direction in ("out", "in")}
        expected = _Expected()
        for step in batch:
            if isinstance(step, FromTun):
                self._rig.tun.send(step.vnet.pack() + step.packet)
                self._expect_outbound(step, expected)
            else:
                self._send_datagrams(step)
                self._expect_inbound(step, expected)
        self._rig.poll()
        sent = {address: self._rig.to_peer(address) for address in PEERS}
        if sent != expected.to_peer:
            raise Difference(f"on the wire: {_first_difference(sent, expected.to_peer)}")
        written = _expanded(self._rig.to_tun_raw())
        compare_flows(written, expected.to_tun)
        for direction, counted in before.items():
            counts = Counter(self._rig.drops(direction)) - counted
            if counts != expected.drops[direction]:
                raise Difference(f"dropped {direction}: {counts}, the twin {expected.drops[direction]}")
        self.packets += sum(map(len, sent.values())) + len(written)
        return sent

    def _expect_outbound(self, step: FromTun, expected: _Expected) -> None:
        verdict = reference.outbound(step.packet, self._table)
        if not isinstance(verdict, Forwarded):
            expected.drops["out"][verdict.reason] += 1
            return
        segments = reference.expand(step.vnet, verdict.packet)
        if segments is None:
            expected.drops["out"]["bad_offload"] += 1
        elif len(segments[0]) > UDP_PAYLOAD_MAX_BYTES:
            expected.drops["out"]["too_big"] += 1
        else:
            expected.to_peer[str(verdict.to)] += segments

    def _expect_inbound(self, step: FromPeer, expected: _Expected) -> None:
        for datagram in step.datagrams:
            sender = IPv4Address(step.address)
            verdict = reference.inbound(datagram, sender, self._table, self._source_check, step.outer_tos)
            if isinstance(verdict, Forwarded):
                expected.to_tun.append(verdict.packet)
            else:
                expected.drops["in"][verdict.reason] += 1

    def _send_datagrams(self, step: FromPeer) -> None:
        controls = [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", step.outer_tos))]
        if len(step.datagrams) > 1:
            controls.append((SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(step.datagrams[0]))))
        self._rig.peers[step.address].sendmsg(
            [b"".join(step.datagrams)], controls, socket.MSG_DONTWAIT, (str(AGENT), self._rig.port)
        )


def compare_flows(written: Sequence[tuple[bytes, bool]], expected: Sequence[bytes]) -> None:
    """Hold what was written to what was expected, flow by flow; a fragment belongs to every flow.

    Flows may overtake each other, packets of one may not. Each packet comes with whether it was in a super-packet: then
    its IPv4 id counts only where fragmenting is allowed (RFC 6864 section 4.1), and both zeros of one's complement are
    one TCP checksum.
    """
    if Counter(_flow(packet) for packet, _ in written) != Counter(map(_flow, expected)):
        raise Difference(f"to the TUN: {len(written)} packets, the twin {len(expected)}, or of other flows")
    for flow in set(map(_flow, expected)):
        got = [(packet, joined) for packet, joined in written if _flow(packet) in (flow, None)]
        wanted = [packet for packet in expected if _flow(packet) in (flow, None)]
        for (packet, joined), want in zip(got, wanted, strict=True):
            if packet != want and not (joined and _after_joining(packet) == _after_joining(want)):
                raise Difference(f"to the TUN: {packet.hex()}, the twin {want.hex()}")


def _flow(packet: bytes) -> bytes | None:
    """Return what names a packet's flow, or None for a fragment."""
    if int.from_bytes(packet[6:8], "big") & _FRAGMENT_MASK:
        return None
    header_len = (packet[0] & 15) * 4
    ports = packet[header_len : header_len + 4] if packet[9] in _PORTS_HAVE else b""
    return packet[9:10] + packet[12:20] + ports


def _after_joining(packet: bytes) -> bytes:
    """Return the packet without what may differ after it was joined and split again. It has no IPv4 options."""
    if int.from_bytes(packet[6:8], "big") & _DONT_FRAGMENT:
        packet = reference.with_ttl(packet[:4] + b"\0\0" + packet[6:], packet[8])
    if packet[9] == socket.IPPROTO_TCP and packet[36:38] == b"\xff\xff":
        packet = packet[:36] + b"\0\0" + packet[38:]
    return packet


def _expanded(writes: Sequence[tuple[VnetHeader, bytes]]) -> list[tuple[bytes, bool]]:
    """Return the packets that the writes stand for, each with whether it was in a super-packet."""
    packets: list[tuple[bytes, bool]] = []
    for vnet, data in writes:
        segments = reference.expand(vnet, data)
        if segments is None or reference.fault_of(data):
            raise Difference(f"no right (super-)packet: {vnet} {data.hex()}")
        packets += [(segment, vnet.gso_type != 0) for segment in segments]
    return packets


def _first_difference(got: dict[str, list[bytes]], expected: dict[str, list[bytes]]) -> str:
    for address, packets in got.items():
        if len(packets) != len(expected[address]):
            return f"{address} got {len(packets)} packets, the twin says {len(expected[address])}"
        for packet, want in zip(packets, expected[address], strict=True):
            if packet != want:
                return f"{address} got {packet.hex()}, the twin says {want.hex()}"
    return "none"
