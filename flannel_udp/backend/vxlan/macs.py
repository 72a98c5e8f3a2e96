"""Which peers have one MAC address: on a VXLAN of the kernel all their packets go to one of them."""

from __future__ import annotations

from collections.abc import Sequence

from flannel_udp.backend.vxlan.hop import format_mac
from flannel_udp.model import Address, Delta, Peer, Prefix

NAMED_MAX = 10
"""So many MAC addresses are named; each costs a line of `status`."""


class SharedMacs:
    """Told of the peers as a network is, in `take`; `problems` has a line for each MAC address of several hosts."""

    def __init__(self) -> None:
        self._peers: dict[Prefix, Peer] = {}
        self._hosts: dict[int, set[Prefix]] = {}  # by MAC address: whose subnets have it
        self.problems: tuple[str, ...] = ()

    def take(self, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        if whole:
            self._peers, self._hosts = {}, {}
        for delta in deltas:
            for peer in (*delta.removed, *delta.changed):
                self._leave(peer.subnet)
            for peer in (*delta.added, *delta.changed):
                self._leave(peer.subnet)
                self._peers[peer.subnet] = peer
                self._hosts.setdefault(peer.hop.vtep_mac, set()).add(peer.subnet)
        self.problems = tuple(self._lines())

    def _leave(self, subnet: Prefix) -> None:
        former = self._peers.pop(subnet, None)
        if former is not None:
            others = self._hosts[former.hop.vtep_mac]
            others.discard(subnet)
            if not others:
                del self._hosts[former.hop.vtep_mac]

    def _lines(self) -> list[str]:
        # Only a MAC address of several subnets can be that of several hosts: a host may have several subnets, too.
        shared: list[tuple[int, list[Address]]] = []
        for mac, subnets in self._hosts.items():
            if len(subnets) > 1 and len(hosts := {self._peers[subnet].public_ip for subnet in subnets}) > 1:
                shared.append((mac, sorted(hosts)))
        lines = [
            f"peers {' and '.join(map(str, hosts))} have one VtepMAC, {format_mac(mac)}, so that packets for one reach "
            "the other: on one of them stop the agent, delete its device and its entry in the registry, and start it"
            for mac, hosts in sorted(shared)[:NAMED_MAX]
        ]
        if more := len(shared) - len(lines):
            lines.append(f"and {more} more VtepMACs are those of several peers")
        return lines
