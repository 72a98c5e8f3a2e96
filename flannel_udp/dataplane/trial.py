"""What would become of a packet: the engines' own decisions, see `_fastpath/trial.pyx`; nothing is sent or counted.

Ask on the thread that publishes tables: the one in force must stay it meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from flannel_udp._fastpath.checksum import checksum
from flannel_udp._fastpath.trial import refusal
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.family_path import FamilyPath
from flannel_udp.dataplane.underlay import open_udp
from flannel_udp.model import Address

_ANY_PORT = 9


@dataclass(frozen=True, slots=True)
class TriedPayload:
    """What a socket of ours would send: the payload of a datagram, or with IP in IP of an IPv4 packet."""

    payload: bytes
    tos: int
    fragmentable: bool
    """Routers may cut it: it goes without "don't fragment"."""
    source_port: int
    """0 where the encapsulation has none."""


@dataclass(frozen=True, slots=True)
class TriedPacket:
    """What would become of a packet from the TUN."""

    kind: str
    """See `Encapsulation.kind`."""
    source: Address
    """Our address on the underlay."""
    reason: str | None
    """Why it would be dropped, by the name that the counters have for that; ``None``: it would be sent."""
    packet: bytes
    """The inner packet as far as it got: its TTL may be one less."""
    answer: bytes | None
    """The ICMP error that its sender would get, if it is not one too many of them."""
    peer: Address | None
    """The public IP of the peer that it is for."""
    payloads: tuple[TriedPayload, ...]
    """Several where it is cut into fragments."""
    path_mtu: int | None
    """Bytes that an outer packet may have on the way to the peer, as far as the kernel knows."""
    probed_mtu: int | None
    """Bytes that an inner one may have, as the agent's probes found; ``None``: they found no limit."""
    limit: int | None
    """Bytes that an inner packet may have by what has been learnt; ``None``: no limit was met."""


@dataclass(frozen=True, slots=True)
class TriedDatagram:
    """What would become of what our socket reads."""

    reason: str | None
    packet: bytes
    """The inner packet as far as it got."""
    answer: bytes | None


def try_packet(paths: Mapping[int, FamilyPath], encapsulation: Encapsulation, port: int, packet: bytes) -> TriedPacket:
    """Try a packet as if it were read from the TUN, by the path of its IP version or, where there is none, the first.

    `port` is every peer's, 0 where the encapsulation has none.
    """
    path = paths.get(packet[0] >> 4) or next(iter(paths.values()))
    reason, inner, answer, to, sent, (path_mtu, probed, limit) = path.engines[0].try_packet(packet)
    peer = ip_address(to) if to else None
    if not reason and peer is not None and not path_mtu:
        reason = _refused(path.ends.address, peer, port)
    lanes = path.ends.lanes[0].sockets
    payloads = (
        TriedPayload(payload, tos, may_be_cut, lanes[lane].getsockname()[1] if port else 0)
        for payload, tos, may_be_cut, lane in sent
    )
    return TriedPacket(
        encapsulation.kind,
        path.ends.address,
        reason or None,
        inner,
        _as_it_leaves(answer),
        peer,
        () if reason else tuple(payloads),
        path_mtu or None,
        probed or None,
        limit or None,
    )


def _refused(own: Address, peer: Address, port: int) -> str:
    """Return as what it counts that the kernel has no way from us to a peer, empty where it has one."""
    with open_udp(own.version) as udp:
        try:
            udp.bind((str(own), 0))
        except OSError:  # our address is gone, of which sending says the same
            return refusal(errno.EINVAL)
        try:
            udp.connect((str(peer), port or _ANY_PORT))
        except OSError as error:
            return refusal(error.errno or 0)
    return ""


def try_datagram(path: FamilyPath, payload: bytes, sender: Address, tos: int) -> TriedDatagram:
    """Try what our socket reads of a peer's datagram."""
    reason, inner, answer, _ = path.engines[0].try_datagram(payload, sender.packed, tos)
    return TriedDatagram(reason or None, inner, _as_it_leaves(answer))


def _as_it_leaves(answer: bytes) -> bytes | None:
    """Return an ICMP error with what the kernel fills in of an IPv4 header; ``None`` where there is none, or no way."""
    if not answer or answer[0] >> 4 == 6:
        return answer or None
    with open_udp(4) as udp:
        try:
            udp.connect((str(ip_address(answer[16:20])), _ANY_PORT))
        except OSError:
            return None
        header = answer[:12] + ip_address(udp.getsockname()[0]).packed + answer[16:20]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + answer[20:]
