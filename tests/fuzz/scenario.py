"""What an input of the fuzzer means: batches of packets from both sides.

An input is a row of records, the last one possibly cut short:

    flags     1 byte    FROM_PEER, POLL, REPAIR, REPAIR_L4, EXTRA, FOLLOW; bits 6 and 7: the peer
    extra     with EXTRA: 10 bytes of virtio-net header (from the TUN), or how many datagrams more there are in the same
              call and the outer TOS (from a peer)
    length    1 byte    of the header bytes that follow
    header    IPv4 header and what comes behind it; with FOLLOW it is the packet that would come next in the last one's
              flow instead, but for the bytes that are changed here: pairs of a place and a value
    payload   2 bytes   little endian: how many filler bytes follow; so a short input makes a long packet

Lengths and checksums are repaired where the flags say so: no mutation would ever find a right one.
"""

from __future__ import annotations

from collections.abc import Iterator

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import VnetHeader
from tests.support.twin import PEERS, PENDING_MAX_BYTES, UDP_PAYLOAD_MAX_BYTES, FromPeer, FromTun

FROM_PEER, POLL, REPAIR, REPAIR_L4, EXTRA, FOLLOW = 1, 2, 4, 8, 16, 32
PEER_SHIFT = 6
RECORDS_MAX = 64
IPV4_MAX_BYTES = 65_535
# What one record may make of it: the receivers' buffers are finite, and a lost packet would look like a difference.
SEGMENTS_MAX = 48
_FILLER = bytes(i * 7 % 251 for i in range(IPV4_MAX_BYTES))


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


def batches(data: bytes) -> Iterator[list[FromTun | FromPeer]]:
    """Yield what happens between two polls."""
    reader = _Reader(data)
    batch: list[FromTun | FromPeer] = []
    pending = 0
    last = b""
    for _ in range(RECORDS_MAX):
        if reader.ended:
            break
        flags = reader.take(1)[0]
        extra = reader.take((2 if flags & FROM_PEER else VnetHeader.LAYOUT.size) if flags & EXTRA else 0)
        header = reader.take(reader.take(1)[0])
        payload_len = int.from_bytes(reader.take(2), "little")
        packet = (header + _FILLER[:payload_len])[:IPV4_MAX_BYTES]
        if flags & FOLLOW and last:
            packet = changed(follower(last), header)
        if flags & REPAIR:
            packet = repaired(packet, bool(flags & REPAIR_L4))
        last = packet
        step = _from_peer(flags, extra, packet) if flags & FROM_PEER else _from_tun(extra, packet)
        n_bytes = len(step.packet) if isinstance(step, FromTun) else sum(map(len, step.datagrams))
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


def _from_peer(flags: int, extra: bytes, packet: bytes) -> FromPeer:
    address = PEERS[(flags >> PEER_SHIFT) % len(PEERS)]
    datagrams = [packet[:UDP_PAYLOAD_MAX_BYTES]]
    wanted = extra[0] % SEGMENTS_MAX if extra else 0
    while len(datagrams) <= wanted and datagrams[0] and len(datagrams[0]) * (len(datagrams) + 1) <= 60_000:
        datagrams.append(follower(datagrams[-1]))
    return FromPeer(address, tuple(datagrams), extra[1] if extra else 0)


def repaired(packet: bytes, transport_too: bool) -> bytes:
    """Return the packet with the right version, total length and checksums."""
    if len(packet) < reference.HEADER_BYTES:
        return packet
    header_len = max((packet[0] & 15) * 4, reference.HEADER_BYTES)
    packet = bytes([0x40 | header_len // 4]) + packet[1:2] + len(packet).to_bytes(2, "big") + packet[4:]
    if len(packet) < header_len:
        return packet
    place = header_len + {6: 16, 17: 6}.get(packet[9], 0)
    if transport_too and place > header_len and len(packet) >= place + 2:
        if packet[9] == 17:
            packet = packet[: header_len + 4] + (len(packet) - header_len).to_bytes(2, "big") + packet[header_len + 6 :]
        pseudo = packet[12:20] + bytes([0, packet[9]]) + (len(packet) - header_len).to_bytes(2, "big")
        value = reference.checksum(pseudo + packet[header_len:place] + b"\0\0" + packet[place + 2 :])
        packet = packet[:place] + (value or 0xFFFF * (packet[9] == 17)).to_bytes(2, "big") + packet[place + 2 :]
    return reference.with_ttl(packet, packet[8])


def changed(packet: bytes, changes: bytes) -> bytes:
    """Return the packet with some bytes changed: pairs of a place and a value."""
    for place, value in zip(changes[::2], changes[1::2], strict=False):
        if place < len(packet):
            packet = packet[:place] + bytes([value]) + packet[place + 1 :]
    return packet


def follower(packet: bytes) -> bytes:
    """Return the packet that would come next in a packet's flow."""
    if reference.fault_of(packet):
        return packet
    header_len = (packet[0] & 15) * 4
    packet = packet[:4] + ((int.from_bytes(packet[4:6], "big") + 1) % 2**16).to_bytes(2, "big") + packet[6:]
    if packet[9] == 6 and len(packet) >= header_len + 20:
        place = header_len + 4
        payload = max(len(packet) - header_len - (packet[header_len + 12] >> 4) * 4, 0)
        sequence = (int.from_bytes(packet[place : place + 4], "big") + payload) % 2**32
        packet = packet[:place] + sequence.to_bytes(4, "big") + packet[place + 4 :]
    return repaired(packet, transport_too=True)
