"""The peers' neighbours and forwarding entries on flannel.VNI or flannel-v6.VNI, before their routes and after them.

What a packet meets first is set last: neighbour, forwarding entry, route; and removed first. Where a peer's MAC changes
the forwarding entry of the new one comes before the neighbour that leads to it. All of a change is one batch.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from flannel_udp.backend.entry_set import EntrySet, Step
from flannel_udp.backend.tunnel_entries import TunnelEntries
from flannel_udp.backend.vxlan.claims import PeerClaims, Wanted
from flannel_udp.backend.vxlan.hop import format_mac
from flannel_udp.host.monitor import OwnEntries
from flannel_udp.host.neighbours import FORWARDING, NEIGHBOURS
from flannel_udp.host.rtnetlink import Refusal, Rtnetlink, open_rtnetlink
from flannel_udp.model import Peer, Prefix

REPAIRS = ("neighbour", "fdb")
"""What is counted, one each."""


class VxlanEntries(TunnelEntries):
    """See `TunnelEntries`: those of one IP version on the device that `index()` tells."""

    def __init__(self, index: Callable[[], int], version: int = 4) -> None:
        self._index = index
        self._claims = PeerClaims()
        self._neighbours = EntrySet(NEIGHBOURS[version])
        self._forwarding = EntrySet(FORWARDING[version])
        self._complete = True  # all that is wanted was asked of the kernel

    def has_way(self, subnet: Prefix) -> bool:
        """See `TunnelEntries.has_way`: not where another peer claims what this one needs."""
        return subnet not in self._claims.faults

    def load(self, peers: Mapping[Prefix, Peer]) -> None:
        """See `TunnelEntries.load`."""
        gone = dict.fromkeys(self._claims.peers.keys() - peers.keys())
        self._want(self._claims.change({**gone, **peers}))
        self._complete = False
        with open_rtnetlink("setting neighbours and forwarding entries") as netlink:
            self._set_wrong(netlink)
        self._complete = True

    def change(self, peers: Mapping[Prefix, Peer | None]) -> set[Prefix]:
        """See `TunnelEntries.change`."""
        wanted = self._claims.change(peers)
        fresh = {key for key in wanted.neighbours if self._neighbours.wants(key) is None}
        neighbours, forwarding = self._want(wanted)
        complete, self._complete = self._complete, False
        with open_rtnetlink("setting neighbours and forwarding entries") as netlink:
            self._set(netlink, fresh & neighbours, forwarding, neighbours - fresh)
        self._complete = complete
        return wanted.subnets

    def clean(self) -> None:
        """See `TunnelEntries.clean`."""
        index = self._index()
        steps = [(entries, entries.cleaning(index)) for entries in (self._neighbours, self._forwarding)]
        if any(of_one for _, of_one in steps):
            with open_rtnetlink("removing neighbours and forwarding entries") as netlink:
                refusals = iter(netlink.apply([step.message for _, of_one in steps for step in of_one]))
                for entries, of_one in steps:
                    entries.note_cleaned(of_one, [next(refusals) for _ in of_one])

    def clear(self) -> None:
        """See `TunnelEntries.clear`."""
        self.load({})
        self.clean()

    def repair(self) -> Counter[str]:
        """See `TunnelEntries.repair`: counted by `REPAIRS`."""
        if not self._complete:
            self.load(dict(self._claims.peers))
            self.clean()
            return Counter()
        index = self._index()
        with open_rtnetlink("putting right neighbours and forwarding entries") as netlink:
            neighbours = self._neighbours.due(self._neighbours.find_wrong(netlink, index))
            forwarding = self._forwarding.due(self._forwarding.find_wrong(netlink, index))
            repaired = self._set(netlink, neighbours, forwarding, set(), repair=True)
        self.clean()
        return repaired

    def interest(self) -> tuple[OwnEntries, ...]:
        """See `TunnelEntries.interest`."""
        return self._neighbours.interest(self._index()), self._forwarding.interest(self._index())

    @property
    def again_s(self) -> float | None:
        """See `TunnelEntries.again_s`."""
        waits = [entries.again_s for entries in (self._neighbours, self._forwarding)]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    # In detail

    def _want(self, wanted: Wanted) -> tuple[set[bytes], set[bytes]]:
        neighbours, forwarding = self._neighbours.want(wanted.neighbours), self._forwarding.want(wanted.forwarding)
        self._judge()
        return neighbours, forwarding

    def _set_wrong(self, netlink: Rtnetlink) -> None:
        index = self._index()
        neighbours = self._neighbours.find_wrong(netlink, index)
        self._set(netlink, neighbours, self._forwarding.find_wrong(netlink, index), set())

    def _set(
        self,
        netlink: Rtnetlink,
        new: set[bytes],
        forwarding: set[bytes],
        changed: set[bytes],
        *,
        repair: bool = False,
    ) -> Counter[str]:
        """Set new neighbours, forwarding entries and changed neighbours, in this order; return what was set."""
        index, counted = self._index(), Counter[str]()
        parts: Sequence[tuple[str, EntrySet, list[Step]]] = (
            ("neighbour", self._neighbours, self._neighbours.setting(index, new)),
            ("fdb", self._forwarding, self._forwarding.setting(index, forwarding)),
            ("neighbour", self._neighbours, self._neighbours.setting(index, changed)),
        )
        refusals = iter(netlink.apply([step.message for _, _, steps in parts for step in steps]))
        for what, entries, steps in parts:
            taken = entries.note(steps, [next(refusals) for _ in steps])
            if repair:
                entries.note_repaired(taken)
            counted[what] += len(taken)
        self._judge()
        return counted

    def _judge(self) -> None:
        faults = {**dict(self._faults_of_entries()), **self._claims.faults}
        if faults != self.faults:
            self.faults = faults

    def _faults_of_entries(self) -> Iterator[tuple[Prefix, str]]:
        for key, refusal in self._neighbours.refused.items():
            for subnet in self._claims.with_first(key):
                yield subnet, f"no neighbour {ip_address(key)} for {subnet}: {why_no_neighbour(refusal, subnet)}"
        for key, refusal in self._forwarding.refused.items():
            for subnet in self._claims.with_mac(key):
                yield subnet, f"no forwarding entry {_mac(key)} for {subnet}: {refusal.why}"
        for key in self._neighbours.contested:
            for subnet in self._claims.with_first(key):
                yield subnet, f"the neighbour {ip_address(key)} {_DOES_NOT_STAY}"
        for key in self._forwarding.contested:
            for subnet in self._claims.with_mac(key):
                yield subnet, f"the forwarding entry {_mac(key)} {_DOES_NOT_STAY}"


_DOES_NOT_STAY = "does not stay: `ip -ts monitor neigh` or `bridge -ts monitor fdb` shows what takes it away"


def why_no_neighbour(refusal: Refusal, subnet: Prefix) -> str:
    """Return why the kernel takes no neighbour for that subnet, and what to do: before Linux 5.0 ours count, too."""
    if refusal.code != errno.ENOBUFS:
        return refusal.why
    return f"the kernel's table of them is full: raise net.ipv{subnet.version}.neigh.default.gc_thresh3"


def _mac(key: bytes) -> str:
    return format_mac(int.from_bytes(key, "big"))
