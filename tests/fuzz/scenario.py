"""What an input of the fuzzer means: batches of packets from both sides.

An input is a row of records, the last one possibly cut short:

    flags     1 byte    FROM_PEER, POLL, REPAIR, REPAIR_L4, EXTRA, FOLLOW; bits 6 and 7: the peer, one of the packet's
                        IP version or, where both are there, ACROSS: one of the other
    extra     with EXTRA: 10 bytes of virtio-net header (from the TUN), or how many datagrams more there are in the same
              call and the outer TOS (from a peer); with an encapsulation that has something in front of the packet then
              also a place in there and the value it gets, and how a kernel peer left the packet: BEGUN, PADDED, cut
    length    1 byte    of the header bytes that follow
    header    IPv4 or IPv6 header and what comes behind it; with FOLLOW it is the packet that would come next in the
              last one's flow instead, but for the bytes that are changed here: pairs of a place and a value
    payload   2 bytes   little endian: how many filler bytes follow; so a short input makes a long packet

Lengths and checksums are repaired where the flags say so: no mutation would ever find a right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import SupportsBytes

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import VnetHeader
from tests.support.engine_rig import PEERS
from tests.support.repair import TCP, repaired, with_partial_checksum
from tests.support.twin import PENDING_MAX_BYTES, UDP_PAYLOAD_MAX_BYTES, FromPeer, FromTun

FROM_PEER, POLL, REPAIR, REPAIR_L4, EXTRA, FOLLOW = 1, 2, 4, 8, 16, 32
PEER_SHIFT = 6
ACROSS = 3
BEGUN, PADDED, CUT_SHIFT, CUT_UNIT = 1, 2, 2, 32
PADDING_BYTES = 6
RECORDS_MAX = 64
PACKET_MAX_BYTES = 65_535
# What one record may make of it: the receivers' buffers are finite, and a lost packet would look like a difference.
SEGMENTS_MAX = 48
_FILLER = bytes(i * 7 % 251 for i in range(PACKET_MAX_BYTES))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes, zeros where the input has ended."""
        taken = self._data[self._at : self._at + n_bytes]
        self._at += n_bytes
        return taken.ljust(n_bytes, b"\0")

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)


def record(header: SupportsBytes, payload_len: int = 0, flags: int = REPAIR | REPAIR_L4, extra: bytes = b"") -> bytes:
    """Return one record of an input; `header` is bytes, or what scapy makes bytes of."""
    raw = bytes(header)
    length = payload_len.to_bytes(2, "little")
    return bytes([flags | (EXTRA if extra else 0)]) + extra + bytes([len(raw)]) + raw + length


def batches(
    data: bytes, *, encapsulated: bool = False, versions: Sequence[int] = (4,)
) -> Iterator[list[FromTun | FromPeer]]:
    """Yield what happens between two polls of an engine that carries those IP versions."""
    reader = _Reader(data)
    batch: list[FromTun | FromPeer] = []
    pending = 0
    last = b""
    for _ in range(RECORDS_MAX):
        if reader.ended:
            break
        flags = reader.take(1)[0]
        extra_from_peer = 5 if encapsulated else 2
        extra = reader.take((extra_from_peer if flags & FROM_PEER else VnetHeader.LAYOUT.size) if flags & EXTRA else 0)
        header = reader.take(reader.take(1)[0])
        payload_len = int.from_bytes(reader.take(2), "little")
        packet = (header + _FILLER[:payload_len])[:PACKET_MAX_BYTES]
        if flags & FOLLOW and last:
            packet = changed(follower(last), header)
        if flags & REPAIR:
            packet = repaired(packet, bool(flags & REPAIR_L4))
        last = packet
        step = _from_peer(flags, extra, packet, versions) if flags & FROM_PEER else _from_tun(extra, packet)
        n_bytes = len(step.packet) if isinstance(step, FromTun) else sum(map(len, step.packets))
        if pending + n_bytes > PENDING_MAX_BYTES:
            yield batch
            batch, pending = [], 0
        batch.append(step)
        pending += n_bytes
        if flags & POLL:
            yield batch
            batch, pending = [], 0
    yield batch


def _from_tun(extra: bytes, packet: bytes) -> FromTun:
    vnet = VnetHeader.unpack(extra) if extra else VnetHeader()
    if vnet.gso_type and vnet.gso_size:
        packet = repaired(packet[: 120 + vnet.gso_size * SEGMENTS_MAX], False)
    return FromTun(vnet, packet)


def _from_peer(flags: int, extra: bytes, packet: bytes, versions: Sequence[int]) -> FromPeer:
    peer = flags >> PEER_SHIFT
    sorted_versions = sorted(versions, key=lambda version: version != reference.version_of(packet))
    address = PEERS[sorted_versions[-1 if peer == ACROSS else 0]][peer % ACROSS]
    place, value, left = extra[2:] or (255, 0, 0)
    packets = [packet[: UDP_PAYLOAD_MAX_BYTES - reference.VXLAN_HEADING_BYTES - PADDING_BYTES]]
    wanted = extra[0] % SEGMENTS_MAX if extra else 0
    while len(packets) <= wanted and packets[0] and len(packets[0]) * (len(packets) + 1) <= 60_000:
        packets.append(follower(packets[-1]))
    if left & BEGUN:
        packets = [with_partial_checksum(each) for each in packets]
    if left & PADDED and len(packets) == 1:
        packets[0] += b"\xff" * PADDING_BYTES
    cut = (left >> CUT_SHIFT) * CUT_UNIT if len(packets) == 1 else 0
    if cut:
        cut = max(cut, len(packets[0]) // SEGMENTS_MAX + 1)
    return FromPeer(address, tuple(packets), extra[1] if extra else 0, (place, value) if extra[2:] else None, cut)


def changed(packet: bytes, changes: bytes) -> bytes:
    """Return the packet with some bytes changed: pairs of a place and a value."""
    for place, value in zip(changes[::2], changes[1::2], strict=False):
        if place < len(packet):
            packet = packet[:place] + bytes([value]) + packet[place + 1 :]
    return packet


def follower(packet: bytes) -> bytes:
    """Return the packet that would come next in a packet's flow."""
    version = reference.version_of(packet)
    if reference.fault_of(packet, version):
        return packet
    if version == 4:
        packet = packet[:4] + ((int.from_bytes(packet[4:6], "big") + 1) % 2**16).to_bytes(2, "big") + packet[6:]
    headers = reference.headers_of(packet)
    if headers.protocol == TCP and headers.has_transport and len(packet) >= headers.transport_at + 20:
        place = headers.transport_at + 4
        payload = max(len(packet) - headers.transport_at - (packet[place + 8] >> 4) * 4, 0)
        sequence = (int.from_bytes(packet[place : place + 4], "big") + payload) % 2**32
        packet = packet[:place] + sequence.to_bytes(4, "big") + packet[place + 4 :]
    return repaired(packet, transport_too=True)
