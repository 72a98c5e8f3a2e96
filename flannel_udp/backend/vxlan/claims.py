"""Which neighbour and which forwarding entry the peers of a kernel VXLAN need. Pure.

A peer needs two entries beside its route: its subnet's first address, which the route leads through, is a neighbour
with the peer's MAC, and that MAC is to be found at the peer's public IP. Peers may share either, as hosts with several
subnets do; where peers contradict each other the kernel has room for one:

- one MAC, several public IPs: the last one that was heard of. A host whose public IP changed has left a lease behind.
- subnets that begin with the same address: the narrowest.

The others get no entries and no route, and a line in `faults`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from flannel_udp.backend.vxlan.hop import format_mac
from flannel_udp.model import Address, Peer, Prefix

MAC_BYTES = 6


@dataclass(slots=True)
class Wanted:
    """What changed of the wanted entries, as bytes on the wire; ``None``: no more."""

    neighbours: dict[bytes, bytes | None] = field(default_factory=dict)
    forwarding: dict[bytes, bytes | None] = field(default_factory=dict)
    subnets: set[Prefix] = field(default_factory=set)
    """Whose routes may have come or gone with that."""


class PeerClaims:
    """The peers, and what each claims; `faults` is replaced as a whole, never changed."""

    def __init__(self) -> None:
        self._peers: dict[Prefix, Peer] = {}
        self._by_mac: dict[int, dict[Prefix, Peer]] = {}  # in the order in which they came
        self._by_first: dict[Address, dict[Prefix, Peer]] = {}
        self.faults: Mapping[Prefix, str] = {}

    def change(self, peers: Mapping[Prefix, Peer | None]) -> Wanted:
        """Take these peers in place of former ones, ``None`` for one that left; return what is wanted now of that."""
        wanted = Wanted()
        macs: set[int] = set()
        firsts: set[Address] = set()
        for subnet, peer in peers.items():
            former = self._peers.get(subnet)
            if former is not None and former == peer:
                continue
            for each in (former, peer):
                if each is not None:
                    macs.add(each.hop.vtep_mac)
                    firsts.add(subnet.network_address)
            self._take(subnet, former, peer)
        for mac in macs:
            wanted.subnets.update(self._by_mac.get(mac, ()))
        for first in firsts:
            wanted.subnets.update(self._by_first.get(first, ()))
        self._judge(wanted.subnets | peers.keys())
        # A neighbour of one of them may be wanted, or not any more, because of what another one claims.
        for first in firsts.union(subnet.network_address for subnet in wanted.subnets):
            wanted.neighbours[first.packed] = self._neighbour(first)
        for mac in macs:
            wanted.forwarding[mac.to_bytes(MAC_BYTES, "big")] = self._host(mac)
        wanted.subnets.update(peers)
        return wanted

    @property
    def peers(self) -> Mapping[Prefix, Peer]:
        """All of them."""
        return self._peers

    def with_first(self, first: bytes) -> Iterable[Prefix]:
        """Return the subnets that begin with this address, as bytes."""
        return self._by_first.get(ip_address(first), {})

    def with_mac(self, mac: bytes) -> Iterable[Prefix]:
        """Return the subnets of the peers with this MAC, as bytes."""
        return self._by_mac.get(int.from_bytes(mac, "big"), {})

    def _take(self, subnet: Prefix, former: Peer | None, peer: Peer | None) -> None:
        first = subnet.network_address
        if former is not None:
            _leave(self._by_mac, former.hop.vtep_mac, subnet)
            _leave(self._by_first, first, subnet)
            del self._peers[subnet]
        if peer is not None:
            self._by_mac.setdefault(peer.hop.vtep_mac, {})[subnet] = peer
            self._by_first.setdefault(first, {})[subnet] = peer
            self._peers[subnet] = peer

    def _judge(self, subnets: Iterable[Prefix]) -> None:
        faults = dict(self.faults)
        for subnet in subnets:
            peer = self._peers.get(subnet)
            why = None if peer is None else self._why_not(peer)
            if why is None:
                faults.pop(subnet, None)
            else:
                faults[subnet] = why
        if faults != self.faults:
            self.faults = faults

    def _why_not(self, peer: Peer) -> str | None:
        last = next(reversed(self._by_mac[peer.hop.vtep_mac].values()))
        if last.public_ip != peer.public_ip:
            return (
                f"peer {peer.public_ip} ({peer.subnet}) has the VtepMAC {format_mac(peer.hop.vtep_mac)} of peer "
                f"{last.public_ip} ({last.subnet}), which counts: if both run, on one of them stop the agent, delete "
                "its device and its entry in the registry, and start it"
            )
        narrowest = max(self._by_first[peer.subnet.network_address], key=lambda subnet: subnet.prefixlen)
        if narrowest != peer.subnet:
            return f"the subnet {peer.subnet} begins with the same address as {narrowest}, which counts"
        return None

    def _neighbour(self, first: Address) -> bytes | None:
        for subnet, peer in self._by_first.get(first, {}).items():
            if subnet not in self.faults:
                mac: int = peer.hop.vtep_mac
                return mac.to_bytes(MAC_BYTES, "big")
        return None

    def _host(self, mac: int) -> bytes | None:
        claimed = self._by_mac.get(mac)
        return next(reversed(claimed.values())).public_ip.packed if claimed else None


def _leave(table: dict[Any, dict[Prefix, Peer]], key: object, subnet: Prefix) -> None:
    table[key].pop(subnet)
    if not table[key]:
        del table[key]
