"""The values that the rooms hand to each other: frozen, without I/O, importing nothing of ours.

Addresses and networks are the standard library's ``ipaddress`` objects, which hold host order and print the way
flannel writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple

LEASE_TTL_S = 86_400
"""Life of a fresh lease in seconds (flannel: 24 hours)."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """One host's share of the overlay; ``v6`` is set only in a dual-stack network."""

    v4: IPv4Network
    v6: IPv6Network | None = None

    def __str__(self) -> str:
        return str(self.v4) if self.v6 is None else f"{self.v4} and {self.v6}"


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """What a lease's value tells the other hosts about its holder.

    ``backend_type`` is empty for udp (flannel writes none); ``backend_data`` and ``backend_v6_data`` are decoded JSON,
    ``None`` when absent.
    """

    public_ip: IPv4Address
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: Any = None
    backend_v6_data: Any = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One key below ``PREFIX/subnets/`` exactly as the registry holds it, not yet parsed.

    ``key`` is the last path element (``10.1.15.0-24``). ``revision`` grows with every write of this key and fences
    renewals (etcd: mod_revision). ``lease_id`` is 0 for a reservation, which never expires.
    """

    key: str
    value: bytes
    revision: int
    lease_id: int = 0

    @property
    def reserved(self) -> bool:
        """True for a key without a lease: permanent, and to be left permanent."""
        return self.lease_id == 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries of the registry at one revision, by key."""

    entries: Mapping[str, Entry]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """Keys that changed together; ``None`` stands for a deleted or expired key."""

    entries: Mapping[str, Entry | None]
    revision: int


@dataclass(frozen=True, slots=True)
class Lease:
    """An entry that was understood: which subnet belongs to which host."""

    subnet: Subnet
    attrs: LeaseAttrs
    entry: Entry


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """One route of the overlay: packets for ``subnet`` go to ``public_ip``.

    ``hop`` is what the backend needs to know beside that, a frozen value of its own; ``None`` for nothing.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    hop: Any = None


class PeerTraffic(NamedTuple):
    """What went to and came from one peer; bytes are inner bytes."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int

    def since(self, base: PeerTraffic) -> PeerTraffic:
        """Return the traffic after `base` was read."""
        return PeerTraffic(*(now - then for now, then in zip(self, base, strict=True)))


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """Where packets for an address go: to a peer, to our own subnet, or nowhere.

    ``fault`` says why none go to the peer that they are for, ``None`` if they do.
    """

    peer: Peer | None
    own: bool
    fault: str | None = None


def longest_match(peers: Mapping[IPv4Network, Peer], address: IPv4Address) -> Peer | None:
    """Return the peer whose subnet covers the address with the longest prefix."""
    for prefix_len in range(32, 0, -1):
        peer = peers.get(IPv4Network((address, prefix_len), strict=False))
        if peer is not None:
            return peer
    return None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a snapshot or a change did to the peers, and the warnings it gave rise to (each said once)."""

    added: tuple[Peer, ...] = ()
    changed: tuple[Peer, ...] = ()
    removed: tuple[Peer, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Interface:
    """The external interface that was chosen: the tunnel's outer packets leave here.

    ``address`` is what the socket binds to, ``public_ip`` what the other hosts dial; ``mtu`` is in bytes.
    """

    name: str
    index: int
    mtu: int
    address: IPv4Address
    public_ip: IPv4Address
