"""Which peers run another VXLAN network than this host: each side drops what comes from the other without a word."""

from __future__ import annotations

from collections.abc import Sequence

from flannel_udp.model import Address, Delta, Peer, Prefix

NAMED_MAX = 3
"""So many peers are named for each VNI."""


class OtherVnis:
    """Told of the peers as a network is, in `take`; `problems` has a line for each VNI of theirs that is not `ours`.

    They stay peers, as with flannel, which does not compare.
    """

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self._others: dict[Prefix, Peer] = {}
        self.problems: tuple[str, ...] = ()

    def take(self, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        if whole:
            self._others = {}
        for delta in deltas:
            for peer in (*delta.removed, *delta.changed):
                self._others.pop(peer.subnet, None)
            for peer in (*delta.added, *delta.changed):
                if peer.hop.vni not in (None, self._ours):
                    self._others[peer.subnet] = peer
        by_vni: dict[int, set[Address]] = {}
        for peer in self._others.values():
            by_vni.setdefault(peer.hop.vni, set()).add(peer.public_ip)
        self.problems = tuple(self._line(vni, sorted(hosts)) for vni, hosts in sorted(by_vni.items()))

    def _line(self, vni: int, hosts: Sequence[Address]) -> str:
        more = f" and {len(hosts) - NAMED_MAX} more" if len(hosts) > NAMED_MAX else ""
        return (
            f"the VNI of {', '.join(map(str, hosts[:NAMED_MAX]))}{more} is {vni}, ours is {self._ours}: no packets "
            "travel between us: start the agents again that have the former Backend.VNI"
        )
