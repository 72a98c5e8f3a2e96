"""Random traffic for comparing the engine with its twin: mostly sound, sometimes odd, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import VnetHeader
from tests.support.twin import FromPeer, FromTun

TCP, UDP = 6, 17
ACK, ECE = 0x10, 0x40
_GSO_TYPE = {TCP: 1, UDP: 5}
_ECN = 0x80
_CHECKSUM_AT = {TCP: 16, UDP: 6}
_SUPER_SHARE, _PARTIAL_SHARE, _ODD_SHARE = 0.08, 0.3, 0.1
_SMALL, _WHOLE_MTU = 120, 1_400
_BUNDLE_MAX = 24


@dataclass
class Flow:
    """One direction of a conversation and where it has got to."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    sequence: int
    options: bytes = b""
    identification: int = 0
    dont_fragment: bool = True

    def next(self, payload: bytes, flags: int = ACK, ttl: int = 64, tos: int = 0) -> bytes:
        """Return the flow's next packet, all lengths and checksums right."""
        if self.protocol == TCP:
            l4 = (
                b"\x12\x34\x00\x50"
                + self.sequence.to_bytes(4, "big")
                + b"\0\0\0\7"
                + bytes([(20 + len(self.options)) * 4, flags])
                + b"\x01\0\0\0\0\0"
                + self.options
            )
        else:
            l4 = b"\x12\x34\x00\x35" + (8 + len(payload)).to_bytes(2, "big") + b"\0\0"
        header = (
            bytes([0x45, tos])
            + (20 + len(l4) + len(payload)).to_bytes(2, "big")
            + self.identification.to_bytes(2, "big")
            + (b"\x40\0" if self.dont_fragment else b"\0\0")
            + bytes([ttl, self.protocol, 0, 0])
            + self.source.packed
            + self.destination.packed
        )
        self.sequence = (self.sequence + len(payload)) % 2**32
        self.identification = (self.identification + 1) % 2**16
        pseudo = header[12:20] + bytes([0, self.protocol]) + (len(l4) + len(payload)).to_bytes(2, "big")
        value = reference.checksum(pseudo + l4 + payload)
        if value == 0 and self.protocol == UDP:
            value = 0xFFFF
        place = _CHECKSUM_AT[self.protocol]
        l4 = l4[:place] + value.to_bytes(2, "big") + l4[place + 2 :]
        return reference.with_ttl(header, ttl) + l4 + payload


class Traffic:
    """Makes batches. The hosts' subnets are 10.1.1.0/24 (ours), 10.1.2.0/24 and 10.1.3.0/24."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._out = [self._flow("10.1.1.5", f"10.1.{2 + i % 2}.7", i) for i in range(8)]
        self._in = [self._flow(f"10.1.{2 + i % 2}.7", "10.1.1.5", i) for i in range(8)]

    def _flow(self, source: str, destination: str, i: int) -> Flow:
        options = self._random.choice([b"", b"\1\1\x08\x0a\0\0\0\7\0\0\0\x08"])
        sequence = self._random.choice([2**32 - 5_000, self._random.randrange(2**32)])
        dont_fragment = self._random.random() < 0.5
        ends = IPv4Address(source), IPv4Address(destination)
        return Flow(*ends, TCP if i // 2 % 2 else UDP, sequence, options, 65_500, dont_fragment)

    def outbound(self) -> FromTun:
        """Return what the host sends next: a packet, a super-packet, or something odd."""
        chosen = self._random.random()
        flow = self._random.choice(self._out)
        if chosen < _SUPER_SHARE:
            return self._super_packet(flow)
        packet = flow.next(self._payload(), self._flags(), tos=self._random.choice([0, 0, 0, 2, 0xB8]))
        if chosen < _PARTIAL_SHARE:
            vnet = VnetHeader(1, 0, 0, 0, 20, _CHECKSUM_AT[flow.protocol])
            return FromTun(vnet, with_partial_checksum(packet))
        return FromTun(VnetHeader(), self._odd(packet) if chosen > 1 - _ODD_SHARE else packet)

    def inbound(self) -> FromPeer:
        """Return what a peer sends next in one call."""
        i = self._random.randrange(len(self._in))
        flow, address = self._in[i], f"127.0.0.{2 + i % 2}"
        payload = self._payload()
        flags = [self._random.choice([ACK, ACK, ACK, ACK | ECE])] * self._random.randint(1, _BUNDLE_MAX)
        flags[-1] = self._flags()
        tos = self._random.choice([0, 2, 2, 1, 3])
        packets = [flow.next(self._random.randbytes(len(payload)), each, tos=tos) for each in flags]
        if self._random.random() < 0.5:
            packets[-1] = flow.next(payload[: len(payload) // 2])  # out of order as well: one was left out
        if self._random.random() < _ODD_SHARE:
            i = self._random.randrange(len(packets))
            packets[i] = self._odd(packets[i])
        return FromPeer(address, tuple(packets), self._random.choice([0, 0, 0, 1, 2, 3]))

    def _super_packet(self, flow: Flow) -> FromTun:
        gso_size = self._random.choice([_WHOLE_MTU, _WHOLE_MTU, self._random.randint(500, 9_000)])
        payload = self._random.randbytes(self._random.randint(1, 65_000 if self._random.random() < 0.2 else 6_000))
        flags = self._random.choice([ACK, ACK, ACK | 8, ACK | 1, ACK | ECE, ACK | 0x80 | 8])
        header_len = 28 if flow.protocol == UDP else 40 + len(flow.options)
        packet = flow.next(payload, flags)
        segments = -(-len(payload) // gso_size)
        flow.identification = (flow.identification + segments - 1) % 2**16
        kind = _GSO_TYPE[flow.protocol] | (_ECN if flow.protocol == TCP and flags & 0x80 else 0)
        vnet = VnetHeader(1, kind, header_len, gso_size, 20, _CHECKSUM_AT[flow.protocol])
        return FromTun(vnet, with_partial_checksum(packet))

    def _payload(self) -> bytes:
        sizes = [_WHOLE_MTU, *[self._random.randint(0, _SMALL)] * 4, *[64] * 5]
        return self._random.randbytes(self._random.choice(sizes))

    def _flags(self) -> int:
        return self._random.choice([ACK] * 8 + [ACK | 8, ACK | 1, 2, 4])

    def _odd(self, packet: bytes) -> bytes:
        """Return the packet with one byte changed; often one of its header, with a right header checksum."""
        place = self._random.randrange(min(len(packet), self._random.choice([20, 40, len(packet)])))
        changed = packet[:place] + self._random.randbytes(1) + packet[place + 1 :]
        if self._random.random() < 0.5 and changed[0] == packet[0]:
            return reference.with_ttl(changed, changed[8])
        return changed


def with_partial_checksum(packet: bytes) -> bytes:
    """Return the packet as a host with checksum offload hands it over: the pseudo-header's sum, uncomplemented."""
    pseudo = packet[12:20] + bytes([0, packet[9]]) + (len(packet) - 20).to_bytes(2, "big")
    place = 20 + _CHECKSUM_AT[packet[9]]
    return packet[:place] + (~reference.checksum(pseudo) & 0xFFFF).to_bytes(2, "big") + packet[place + 2 :]


def size_of(batch: Sequence[FromTun | FromPeer]) -> int:
    """Return how many packets and super-packets a batch is."""
    return sum(1 if isinstance(step, FromTun) else len(step.datagrams) for step in batch)
