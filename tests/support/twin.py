"""One run of a real engine and of its pure-Python twin on the same traffic, compared packet by packet."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.dataplane.reference import Forwarded, ReferenceTable, VnetHeader
from tests.support.engine_rig import EngineRig

UDP_PAYLOAD_MAX_BYTES = 65_507
_LONGEST_DATAGRAM_BYTES = {4: UDP_PAYLOAD_MAX_BYTES, 6: 65_527}  # the length of IPv6 is without its header (RFC 8200)
PENDING_MAX_BYTES = 96 * 1024  # of the steps between two polls: a socket buffer of the default size holds them
_DONT_FRAGMENT = 0x4000
_PORTS_HAVE = (6, 17)


@dataclass(frozen=True)
class FromTun:
    """The host sends a packet or super-packet into the tunnel device."""

    vnet: VnetHeader
    packet: bytes


_GSO_MAX_BYTES, _UDP_AND_ETHERNET_BYTES = 65_536, 8 + 14
"""A frame that is as long, with all of its headers, Linux cuts before it sends it, on loopback, too (gso_max_size)."""


@dataclass(frozen=True)
class FromPeer:
    """A peer sends packets: one, or several of one size (the last may be shorter) in one call with UDP_SEGMENT.

    `heading_change`: a place in what is in front of each, and what is there instead. `cut`: one packet, sent in
    datagrams of so many bytes: as a whole super-packet of a kernel peer, that is, where the receiver has UDP_GRO.
    """

    address: str
    packets: tuple[bytes, ...]
    outer_tos: int = 0
    heading_change: tuple[int, int] | None = None
    cut: int = 0

    def call(self, table: ReferenceTable) -> tuple[bytes, int]:
        """Return what the peer hands to the kernel, and the size at which that is cut into datagrams; 0: it is one."""
        datagrams = [self._enclosed(packet, table) for packet in self.packets]
        return b"".join(datagrams), len(datagrams[0]) if len(datagrams) > 1 else self.cut

    def _enclosed(self, packet: bytes, table: ReferenceTable) -> bytes:
        enclosed = reference.from_the_wire(packet, ip_address(self.address), table, self.outer_tos)
        place, value = self.heading_change or (0, 0)
        if self.heading_change is None or place >= len(enclosed) - len(packet):
            return enclosed
        return enclosed[:place] + bytes([value]) + enclosed[place + 1 :]


class Difference(AssertionError):
    """The engine and its twin do not agree."""


@dataclass
class _Expected:
    to_peer: dict[str, list[bytes]]
    to_tun: list[bytes] = field(default_factory=list)
    drops: dict[str, Counter[str]] = field(default_factory=lambda: {"out": Counter(), "in": Counter()})
    offloaded_in: Counter[str] = field(default_factory=Counter)


class TwinRun:
    """Feeds an engine, and holds it to what the twin says. The engine keeps no flow over a batch, but learns path MTUs.

    `tables`: one, or one of each IP version. `packets` counts what was compared by the version of the inner packets:
    every packet on the wire, and every one written to the tunnel device.
    """

    def __init__(self, rig: EngineRig, *tables: ReferenceTable, source_check: str) -> None:
        self._rig = rig
        self._tables = tables
        self._source_check = source_check
        self.packets = Counter[int]()

    def check(self, batch: Sequence[FromTun | FromPeer]) -> dict[str, list[bytes]]:
        """Let a batch through both; return what each peer got, and raise `Difference` where the two differ."""
        sent: dict[str, list[bytes]] = {address: [] for address in self._rig.peers}
        for part in _parts(batch):
            for address, datagrams in self._check(part).items():
                sent[address] += datagrams
            if _is_longest_ipv6(part[-1]) and self._rig.drops("out").get("too_big"):
                self._rig.start_anew()
        return sent

    def _check(self, batch: Sequence[FromTun | FromPeer]) -> dict[str, list[bytes]]:
        before = {direction: Counter(self._rig.drops(direction)) for direction in ("out", "in")}
        offloaded_before = Counter(self._rig.engine.counters()["offloaded_in"])
        expected = _Expected({address: [] for address in self._rig.peers})
        for step in batch:
            if isinstance(step, FromTun):
                self._rig.tun.send(step.vnet.pack() + step.packet)
                self._expect_outbound(step, expected)
            else:
                self._send_datagrams(step)
                self._expect_inbound(step, expected)
        self._rig.poll()
        sent = {address: self._rig.to_peer(address) for address in self._rig.peers}
        if sent != expected.to_peer:
            raise Difference(f"on the wire: {_first_difference(sent, expected.to_peer)}")
        written = _expanded(self._rig.to_tun_raw())
        compare_flows(written, expected.to_tun)
        for direction, counted in before.items():
            counts = Counter(self._rig.drops(direction)) - counted
            if counts != expected.drops[direction]:
                raise Difference(f"dropped {direction}: {counts}, the twin {expected.drops[direction]}")
        offloaded = Counter(self._rig.engine.counters()["offloaded_in"]) - offloaded_before
        if offloaded != expected.offloaded_in:
            raise Difference(f"from kernel peers: {offloaded}, the twin {expected.offloaded_in}")
        self.packets.update(reference.version_of(packet) for packet, _ in written)
        for address, datagrams in sent.items():
            self.packets[ip_address(address).version] += len(datagrams)
        return sent

    def _expect_outbound(self, step: FromTun, expected: _Expected) -> None:
        verdict = reference.outbound(step.packet, *self._tables)
        if not isinstance(verdict, Forwarded):
            expected.drops["out"][verdict.reason] += 1
            return
        assert verdict.to is not None
        table = self._table_of(verdict.to.version)
        heading_len = reference.VXLAN_HEADING_BYTES if table.encapsulation.kind == "vxlan" else 0
        segments = reference.expand(step.vnet, verdict.packet, UDP_PAYLOAD_MAX_BYTES - heading_len)
        if segments is None:
            expected.drops["out"]["bad_offload"] += 1
            return
        datagrams = [reference.encapsulated(segment, verdict.to, table) for segment in segments]
        if len(datagrams[0]) > _LONGEST_DATAGRAM_BYTES[verdict.to.version]:
            expected.drops["out"]["too_big"] += 1
        else:
            expected.to_peer[str(verdict.to)] += datagrams

    def _table_of(self, version: int) -> ReferenceTable:
        return next(table for table in self._tables if table.version == version)

    def _expect_inbound(self, step: FromPeer, expected: _Expected) -> None:
        sender = ip_address(step.address)
        table = self._table_of(sender.version)
        whole, size = step.call(table)
        datagrams = [whole[at : at + size] for at in range(0, len(whole), size)] if size else [whole]
        gso_size = 0
        if len(datagrams) > 1 and self._rig.joins_datagrams and is_udp_super_packet(whole, table):
            datagrams, gso_size = [whole], size
        for datagram in datagrams:
            verdict = reference.inbound(datagram, sender, table, self._source_check, step.outer_tos)
            if not isinstance(verdict, Forwarded):
                expected.drops["in"][verdict.reason] += 1
            elif table.encapsulation.kind == "udp":
                expected.to_tun.append(verdict.packet)
            else:
                done = reference.finished(verdict.packet, table.mtu, gso_size)
                expected.to_tun += done.packets
                expected.offloaded_in += Counter(partial_checksums=done.partial, super_packets=done.uncut)

    def _send_datagrams(self, step: FromPeer) -> None:
        version = ip_address(step.address).version
        data, size = step.call(self._table_of(version))
        level, kind = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}[version]
        controls = [(level, kind, struct.pack("=i", step.outer_tos))]
        if size:
            controls.append((SOL_UDP, UDP_SEGMENT, struct.pack("=H", size)))
        self._rig.peers[step.address].sendmsg([data], controls, socket.MSG_DONTWAIT, self._rig.agent(version))


def _is_longest_ipv6(step: FromTun | FromPeer) -> bool:
    """Tell whether it is an IPv6 packet that may be too long for any datagram.

    The engine then asks how long one may be: in the namespace of its process, where its IPv6 sockets are not
    (`loopback6`). What it learns is by which way this machine would reach the peers, if by any.
    """
    return isinstance(step, FromTun) and len(step.packet) > 65_000 and step.packet[0] >> 4 == 6


def _parts(batch: Sequence[FromTun | FromPeer]) -> Iterator[list[FromTun | FromPeer]]:
    """Yield a batch in parts that such a packet ends."""
    part: list[FromTun | FromPeer] = []
    for step in batch:
        part.append(step)
        if _is_longest_ipv6(step):
            yield part
            part = []
    if part:
        yield part


def is_udp_super_packet(datagram: bytes, table: ReferenceTable) -> bool:
    """Tell whether a datagram that arrives whole holds one UDP packet in VXLAN that is as long as it is."""
    around = {4: reference.HEADER_BYTES, 6: reference.IPV6_HEADER_BYTES}[table.version] + _UDP_AND_ETHERNET_BYTES
    if len(datagram) + around >= _GSO_MAX_BYTES:
        return False
    inner = datagram[reference.VXLAN_HEADING_BYTES :]
    least, protocol_at = {4: (reference.HEADER_BYTES, 9), 6: (reference.IPV6_HEADER_BYTES, 6)}[table.version]
    is_whole = len(inner) >= least and reference.length_said(inner, table.version) == len(inner)
    return table.encapsulation.kind == "vxlan" and is_whole and inner[protocol_at] == socket.IPPROTO_UDP


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
    headers = reference.headers_of(packet)
    if headers.is_fragment:
        return None
    has_ports = headers.has_transport and headers.protocol in _PORTS_HAVE
    ports = packet[headers.transport_at : headers.transport_at + 4] if has_ports else b""
    return b"%d " % headers.protocol + headers.source.packed + headers.destination.packed + ports


def _after_joining(packet: bytes) -> bytes:
    """Return the packet without what may differ after it was joined and split again.

    It has neither IPv4 options nor IPv6 extension headers.
    """
    headers = reference.headers_of(packet)
    if headers.version == 4 and int.from_bytes(packet[6:8], "big") & _DONT_FRAGMENT:
        packet = reference.with_ttl(packet[:4] + b"\0\0" + packet[6:], packet[8])
    field = headers.transport_at + 16
    if headers.protocol == socket.IPPROTO_TCP and packet[field : field + 2] == b"\xff\xff":
        packet = packet[:field] + b"\0\0" + packet[field + 2 :]
    return packet


def _expanded(writes: Sequence[tuple[VnetHeader, bytes]]) -> list[tuple[bytes, bool]]:
    """Return the packets that the writes stand for, each with whether it was in a super-packet."""
    packets: list[tuple[bytes, bool]] = []
    for vnet, data in writes:
        fault = reference.fault_of(data, reference.version_of(data))
        segments = None if fault else reference.expand(vnet, data)
        if segments is None:
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
