"""Random traffic for comparing the engine with its twin: mostly sound, sometimes odd, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import VnetHeader
from tests.support.engine_rig import PEERS
from tests.support.repair import CHECKSUM_AT, TCP, UDP, repaired, with_partial_checksum, with_right_checksum
from tests.support.twin import FromPeer, FromTun

ACK, ECE = 0x10, 0x40
_GSO_TYPE = {(4, TCP): 1, (6, TCP): 4, (4, UDP): 5, (6, UDP): 5}
_ECN = 0x80
_SUPER_SHARE, _PARTIAL_SHARE, _ODD_SHARE = 0.08, 0.3, 0.1
_EXTENDED_SHARE = 0.1
_SMALL, _WHOLE_MTU = 120, 1_400
_BUNDLE_MAX = 24
_UNCUT_SHARE, _BEGUN_SHARE = 0.2, 0.8


@dataclass
class Flow:
    """One direction of a conversation and where it has got to; both addresses are of one version."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    sequence: int
    options: bytes = b""
    """TCP's."""
    identification: int = 0
    """IPv4's; for IPv6 the flow label, which stays."""
    dont_fragment: bool = True
    extension: bytes = b""
    """The data of an IPv6 Destination Options header, if there is to be one: 6 bytes, or 8 more, and so on."""

    @property
    def ip_header_len(self) -> int:
        """Bytes in front of the TCP or UDP header."""
        if self.source.version == 4:
            return reference.HEADER_BYTES
        return reference.IPV6_HEADER_BYTES + (2 + len(self.extension) if self.extension else 0)

    @property
    def header_len(self) -> int:
        """Bytes in front of the payload."""
        return self.ip_header_len + (20 + len(self.options) if self.protocol == TCP else 8)

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
        of_version = self._ipv4_header if self.source.version == 4 else self._ipv6_headers
        headers = of_version(len(l4) + len(payload), ttl, tos)
        self.sequence = (self.sequence + len(payload)) % 2**32
        return with_right_checksum(headers + l4 + payload)

    def _ipv4_header(self, transport_len: int, ttl: int, tos: int) -> bytes:
        header = (
            bytes([0x45, tos])
            + (20 + transport_len).to_bytes(2, "big")
            + self.identification.to_bytes(2, "big")
            + (b"\x40\0" if self.dont_fragment else b"\0\0")
            + bytes([ttl, self.protocol, 0, 0])
            + self.source.packed
            + self.destination.packed
        )
        self.identification = (self.identification + 1) % 2**16
        return reference.with_ttl(header, ttl)

    def _ipv6_headers(self, transport_len: int, ttl: int, traffic_class: int) -> bytes:
        extension = bytes([self.protocol, len(self.extension) // 8]) + self.extension if self.extension else b""
        return (
            (6 << 28 | traffic_class << 20 | self.identification).to_bytes(4, "big")
            + (len(extension) + transport_len).to_bytes(2, "big")
            + bytes([60 if extension else self.protocol, ttl])
            + self.source.packed
            + self.destination.packed
            + extension
        )


class Traffic:
    """Makes batches of one IP version between the hosts of `small_table`."""

    def __init__(self, seed: int, version: int = 4) -> None:
        self._random = random.Random(seed)
        self._peers = PEERS[version]
        near = {4: "10.1.1.5", 6: "fd00:10:244:1::5"}[version]
        far = {4: ("10.1.2.7", "10.1.3.7"), 6: ("fd00:10:244:2::7", "fd00:10:244:3::7")}[version]
        self._out = [self._flow(near, far[i % 2], i) for i in range(8)]
        self._in = [self._flow(far[i % 2], near, i) for i in range(8)]

    def _flow(self, source: str, destination: str, i: int) -> Flow:
        options = self._random.choice([b"", b"\1\1\x08\x0a\0\0\0\7\0\0\0\x08"])
        sequence = self._random.choice([2**32 - 5_000, self._random.randrange(2**32)])
        dont_fragment = self._random.random() < 0.5
        ends = ip_address(source), ip_address(destination)
        flow = Flow(*ends, TCP if i // 2 % 2 else UDP, sequence, options, 65_500, dont_fragment)
        if flow.source.version == 6 and self._random.random() < _EXTENDED_SHARE:
            flow.extension = b"\1\4\0\0\0\0"  # PadN (RFC 8200 section 4.2)
        return flow

    def outbound(self) -> FromTun:
        """Return what the host sends next: a packet, a super-packet, or something odd."""
        chosen = self._random.random()
        flow = self._random.choice(self._out)
        if chosen < _SUPER_SHARE:
            return self._super_packet(flow)
        packet = flow.next(self._payload(), self._flags(), tos=self._random.choice([0, 0, 0, 2, 0xB8]))
        if chosen < _PARTIAL_SHARE:
            vnet = VnetHeader(1, 0, 0, 0, flow.ip_header_len, CHECKSUM_AT[flow.protocol])
            return FromTun(vnet, with_partial_checksum(packet))
        return FromTun(VnetHeader(), self._odd(packet) if chosen > 1 - _ODD_SHARE else packet)

    def inbound(self) -> FromPeer:
        """Return what a peer sends next in one call."""
        i = self._random.randrange(len(self._in))
        flow, address = self._in[i], self._peers[i % 2]
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

    def from_kernel_peer(self) -> FromPeer:
        """Return what a kernel peer of a tunnel sends: checksums only begun, TCP and UDP not cut, or padded frames."""
        i = self._random.randrange(len(self._in))
        flow, address = self._in[i], self._peers[i % 2]
        whole = self._random.random() < _UNCUT_SHARE
        flags = self._random.choice([ACK, ACK, ACK | 8, ACK | 1, ACK | 0x80])
        payload = self._random.randbytes(self._random.randint(1, 30_000 if whole else 1_200))
        packet = flow.next(payload, flags)
        if self._random.random() < _BEGUN_SHARE:
            packet = with_partial_checksum(packet)
        if self._random.random() < _ODD_SHARE:
            packet = self._odd(packet)
        if whole and flow.protocol == UDP:
            return FromPeer(address, (packet,), cut=max(len(packet) // 40, self._random.randint(60, 1_400)))
        return FromPeer(address, (packet + bytes(self._random.choice([0, 0, 0, 18])),))

    def _super_packet(self, flow: Flow) -> FromTun:
        gso_size = self._random.choice([_WHOLE_MTU, _WHOLE_MTU, self._random.randint(500, 9_000)])
        payload = self._random.randbytes(self._random.randint(1, 65_000 if self._random.random() < 0.2 else 6_000))
        flags = self._random.choice([ACK, ACK, ACK | 8, ACK | 1, ACK | ECE, ACK | 0x80 | 8])
        packet = flow.next(payload, flags)
        if flow.source.version == 4:
            flow.identification = (flow.identification + -(-len(payload) // gso_size) - 1) % 2**16
        kind = _GSO_TYPE[flow.source.version, flow.protocol] | (_ECN if flow.protocol == TCP and flags & 0x80 else 0)
        vnet = VnetHeader(1, kind, flow.header_len, gso_size, flow.ip_header_len, CHECKSUM_AT[flow.protocol])
        return FromTun(vnet, with_partial_checksum(packet))

    def _payload(self) -> bytes:
        sizes = [_WHOLE_MTU, *[self._random.randint(0, _SMALL)] * 4, *[64] * 5]
        return self._random.randbytes(self._random.choice(sizes))

    def _flags(self) -> int:
        return self._random.choice([ACK] * 8 + [ACK | 8, ACK | 1, 2, 4])

    def _odd(self, packet: bytes) -> bytes:
        """Return the packet with one byte changed; often one of its header, with a right header checksum."""
        place = self._random.randrange(min(len(packet), self._random.choice([20, 40, 60, len(packet)])))
        changed = packet[:place] + self._random.randbytes(1) + packet[place + 1 :]
        if self._random.random() < 0.5 and changed[0] == packet[0]:
            return repaired(changed, transport_too=self._random.random() < 0.5)
        return changed


def size_of(batch: Sequence[FromTun | FromPeer]) -> int:
    """Return how many packets and super-packets a batch is."""
    return sum(1 if isinstance(step, FromTun) else len(step.packets) for step in batch)
