"""The peer table: what the registry said goes in, what changed for the data path comes out. Pure, in memory.

The order of events does not matter: after any of them the table equals the one made from a single snapshot of the
registry's present state. Every warning is given once and again only after its key's value has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import NamedTuple

from flannel_udp.control.entries import ReadHop, check_prefix, read_lease, read_peer
from flannel_udp.control.overlaps import PrefixSet
from flannel_udp.model import Change, Delta, Entry, Peer, Snapshot
from flannel_udp.registry.keys import MAX_KEY_CHARS, parse_value

PART_SIZE = 16
"""Entries in one part: about half a millisecond of work, so that the event loop stays responsive."""


class _Record(NamedTuple):
    """What became of one entry: a peer, a subnet under our own public IP, or neither (poisoned)."""

    entry: Entry
    peer: Peer | None = None
    ours: IPv4Network | None = None


class PeerTable:
    """All other hosts of the overlay `network`, as seen by the host with `public_ip`, whose backend has `read_hop`.

    Feed it with `apply`, or in small steps with `parts`, `feed` and `take_delta`.
    """

    def __init__(self, network: IPv4Network, public_ip: IPv4Address, read_hop: ReadHop) -> None:
        self._network = network
        self._read_hop = read_hop
        self._public_ip = public_ip
        self._own: IPv4Network | None = None
        self._records: dict[str, _Record] = {}
        # Two keys may stand for one subnet (one of them dual stack, say): the first key in order wins.
        self._holders: dict[IPv4Network, tuple[str, ...]] = {}
        self._prefixes = PrefixSet()  # the keys of _holders and our own subnet
        self._ours: set[str] = set()  # keys under our own public IP
        self._said: set[str | IPv4Network] = set()  # keys (ours) and wide prefixes (overlap) warned about already
        self._peers: dict[IPv4Network, Peer] = {}
        self._before: dict[IPv4Network, Peer | None] = {}  # what the last delta left where something was touched since
        self._warnings: list[str] = []

    @property
    def count(self) -> int:
        """How many peers there are."""
        return len(self._peers)

    def peers(self) -> tuple[Peer, ...]:
        """Return the present peers, one for each subnet, in no particular order."""
        return tuple(self._peers.values())

    def entry(self, key: str) -> Entry | None:
        """Return the registry's entry as last heard of, understood or not."""
        record = self._records.get(key)
        return None if record is None else record.entry

    def apply(self, event: Snapshot | Change) -> Delta:
        """Take an event in and return what it did."""
        for part in self.parts(event):
            self.feed(part)
        return self.take_delta()

    def parts(self, event: Snapshot | Change) -> Iterator[Mapping[str, Entry | None]]:
        """Cut an event into small parts for `feed`; for a snapshot the keys that it lacks come first."""
        if isinstance(event, Snapshot):
            gone = [key for key in self._records if key not in event.entries]
            yield from _batches((key, None) for key in gone)
        yield from _batches(event.entries.items())

    def feed(self, entries: Mapping[str, Entry | None]) -> None:
        """Take in the present entries of some keys, ``None`` for a key that is gone."""
        for key, entry in entries.items():
            known = self._records.get(key)
            if known is not None and entry is not None:
                if known.entry.value == entry.value:
                    self._records[key] = known._replace(entry=entry)
                    continue
                if self._move(key, known, entry):
                    continue
            if known is not None:
                self._drop(key, known)
            if entry is not None:
                self._take(key, entry)

    def set_own(self, subnet: IPv4Network | None) -> Delta:
        """Set the subnet that this host holds, which is never a peer, and return what that did.

        ``None`` when it holds none.
        """
        former, self._own = self._own, subnet
        for prefix in (former, subnet):
            if prefix is not None:
                self._settle(prefix)
        for key in self._ours:
            self._check_ours(key)
        return self.take_delta()

    def set_public_ip(self, public_ip: IPv4Address) -> Delta:
        """Set the address that this host is dialled at, whose entries are no peers, and return what that did."""
        former, self._public_ip = self._public_ip, public_ip
        for key, record in tuple(self._records.items()):
            if record.ours or (record.peer is not None and record.peer.public_ip in (former, public_ip)):
                self._drop(key, record)
                self._take(key, record.entry)
        return self.take_delta()

    def take_delta(self) -> Delta:
        """Return everything that happened since the last delta."""
        added, changed, removed = [], [], []
        for subnet, before in self._before.items():
            now = self._peers.get(subnet)
            if before is None and now is not None:
                added.append(now)
            elif before is not None and now is None:
                removed.append(before)
            elif before is not None and now is not None and before != now:
                changed.append(now)
        warnings = tuple(self._warnings)
        self._before.clear()
        self._warnings.clear()
        return Delta(tuple(added), tuple(changed), tuple(removed), warnings)

    def _move(self, key: str, known: _Record, entry: Entry) -> bool:
        """Take in a peer's new value where nothing but its address is new; return whether that was so.

        It is the change that is met most often, and a third of the work of forgetting the key and learning it anew.
        """
        former = known.peer
        if former is None or former.subnet == self._own or self._holders[former.subnet] != (key,):
            return False
        try:
            attrs = parse_value(entry.value)
            peer = read_peer(former.subnet, attrs, self._read_hop)
        except ValueError:
            return False
        if attrs.public_ip == self._public_ip:
            return False
        self._records[key] = _Record(entry, peer)
        self._replace(former.subnet, peer)
        return True

    def _take(self, key: str, entry: Entry) -> None:
        """Understand an entry whose key is not in the table."""
        try:
            lease = read_lease(entry)
            check_prefix(lease.subnet.v4, self._network)
            if lease.attrs.public_ip == self._public_ip:
                self._records[key] = _Record(entry, ours=lease.subnet.v4)
                self._ours.add(key)
                self._check_ours(key)
                return
            peer = read_peer(lease.subnet.v4, lease.attrs, self._read_hop)
        except ValueError as error:
            self._records[key] = _Record(entry)
            self._warnings.append(f"entry {key[:MAX_KEY_CHARS]!r} is ignored: {error}")
            return
        self._records[key] = _Record(entry, peer)
        others = self._holders.get(peer.subnet, ())
        self._holders[peer.subnet] = keys = tuple(sorted((key, *others)))
        if others:
            self._warnings.append(f"entries {' and '.join(map(repr, keys))} hold one subnet: {keys[0]!r} counts")
        self._settle(peer.subnet)

    def _drop(self, key: str, record: _Record) -> None:
        """Forget a key."""
        del self._records[key]
        self._ours.discard(key)
        self._said.discard(key)
        if record.peer is None:
            return
        subnet = record.peer.subnet
        others = tuple(other for other in self._holders[subnet] if other != key)
        if others:
            self._holders[subnet] = others
        else:
            del self._holders[subnet]
        self._settle(subnet)

    def _settle(self, subnet: IPv4Network) -> None:
        """Bring everything up to date that depends on who holds `subnet`."""
        keys = self._holders.get(subnet, ())
        if keys or subnet == self._own:
            if subnet not in self._prefixes:
                self._prefixes.add(subnet)
                self._check_overlaps(subnet)
        elif subnet in self._prefixes:
            self._prefixes.remove(subnet)
            self._said.discard(subnet)
        self._replace(subnet, self._records[keys[0]].peer if keys and subnet != self._own else None)

    def _replace(self, subnet: IPv4Network, now: Peer | None) -> None:
        before = self._peers.get(subnet)
        if now == before:
            return
        self._before.setdefault(subnet, before)
        if now is None:
            del self._peers[subnet]
        else:
            self._peers[subnet] = now

    def _check_ours(self, key: str) -> None:
        """Warn about our own public IP under a key that is not our subnet's."""
        subnet = self._records[key].ours
        if self._own not in (None, subnet) and key not in self._said:
            self._said.add(key)
            self._warnings.append(f"entry {key!r} is ignored: it has our public IP, but our subnet is {self._own}")

    def _check_overlaps(self, subnet: IPv4Network) -> None:
        """Warn, once for the wider one, when the new `subnet` overlaps others."""
        wider = self._prefixes.around(subnet)
        if wider is not None and wider not in self._said:
            self._said.add(wider)
            other = f"{subnet} of {self._holder(subnet)}"
            self._warnings.append(f"{wider} of {self._holder(wider)} overlaps {other}: the longer prefix wins")
        inside = self._prefixes.inside(subnet)
        if inside and subnet not in self._said:
            self._said.add(subnet)
            other = f"{inside} longer subnet{'s' if inside > 1 else ''} inside it"
            self._warnings.append(f"{subnet} of {self._holder(subnet)} overlaps {other}: the longer prefix wins")

    def _holder(self, subnet: IPv4Network) -> str:
        peer = None if subnet == self._own else self._records[self._holders[subnet][0]].peer
        return "this host" if peer is None else str(peer.public_ip)


def _batches(items: Iterable[tuple[str, Entry | None]]) -> Iterator[Mapping[str, Entry | None]]:
    iterator = iter(items)
    while batch := dict(islice(iterator, PART_SIZE)):
        yield batch
