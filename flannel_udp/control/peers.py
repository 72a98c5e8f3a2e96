"""The peer table: what the registry said goes in, what changed for the data path comes out. Pure, in memory.

Each family that is on has its own peers, see `control.family_peers`; here the registry's entries are read for them.
The order of events does not matter: after any of them the table equals the one made from a single snapshot of the
registry's present state. Every warning is given once and again only after its key's value has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import NamedTuple

from flannel_udp.control.entries import ReadHop, read_lease
from flannel_udp.control.family_peers import FamilyPeers
from flannel_udp.model import Address, Change, Delta, Entry, Lease, LeaseAttrs, Peer, Prefix, Snapshot, Subnet
from flannel_udp.registry.keys import MAX_KEY_CHARS, Faults, parse_key, parse_value

IGNORED_MAX = 100
"""So many hosts whose entries are ignored are told."""
PART_SIZE = 16
"""Entries in one part: about half a millisecond of work, so that the event loop stays responsive."""


class SharedSubnet(NamedTuple):
    """A subnet that several `hosts` hold, by name or public IP: packets for it go to the first one.

    ``ours``: that one is this host, and others may send them elsewhere.
    """

    subnet: str
    hosts: tuple[str, ...]
    ours: bool


class PeerTable:
    """All other hosts of the `overlays`, one a family; `ours` says of this host what its lease does.

    `read_hop` is its backend's; `may_lease` tells whether a subnet with an address may be leased.

    What else has our address than our own subnet is no peer: the kernel gets it.

    Feed it with `apply`, or in small steps with `parts`, `feed` and `take_delta`.
    """

    def __init__(
        self,
        overlays: Iterable[Prefix],
        ours: LeaseAttrs,
        read_hop: ReadHop,
        may_lease: Callable[[Address], bool] = lambda _: True,
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._own: Subnet | None = None
        self._found_by = ours.found_by
        # Keys of which a part, or all, is no peer: what was said, and the hosts' addresses that are none for it.
        self._poisoned: dict[str, tuple[str, Collection[Address]]] = {}
        self._rivalled: set[str] = set()  # keys that several hosts hold
        self._warnings: list[str] = []
        self._families = tuple(
            FamilyPeers(
                *(overlay, ours.address_of(overlay.version), read_hop, self._entries, self._warnings.append),
                may_lease=may_lease,
            )
            for overlay in overlays
        )

    @property
    def counts(self) -> dict[int, int]:
        """How many peers there are, by IP version."""
        return {family.version: family.count for family in self._families}

    @property
    def count(self) -> int:
        """How many that is together."""
        return sum(self.counts.values())

    def peers(self) -> tuple[Peer, ...]:
        """Return the present peers, one for each subnet, in no particular order."""
        return tuple(peer for family in self._families for peer in family.peers())

    def ours(self) -> frozenset[Prefix]:
        """Return what is under our own public IPs beside our subnet, while we hold one."""
        return frozenset[Prefix]().union(*(family.ours() for family in self._families))

    def claims(self) -> list[Entry]:
        """Return the leases that have another host's subnet under one of our own public IPs, by key."""
        keys = set[str]().union(*(family.claims() for family in self._families))
        return [self._entries[key] for key in sorted(keys)]

    def shared(self) -> list[SharedSubnet]:
        """Return the subnets that several hosts hold, by one key or by several; none while we hold none."""
        if self._own is None:
            return []
        found = []
        for key in sorted(self._rivalled):
            entry = self._entries[key]
            with suppress(ValueError):  # no packets go there in any case
                subnet = parse_key(key, {})
                found.append(SharedSubnet(str(subnet), (entry.host or "?", *entry.rivals), ours=subnet == self._own))
        for family in self._families:
            for prefix, hosts in family.shared():
                found.append(SharedSubnet(str(prefix), hosts, ours=False))
        return found

    def ignored(self) -> dict[Address, str]:
        """Return other hosts' addresses whose entries are ignored, each with a clause that says why.

        A host may have another entry, which is good: this one is of an earlier run of its agent then.
        """
        found: dict[Address, str] = {}
        for text, hosts in self._poisoned.values():
            for host in hosts:
                if len(found) == IGNORED_MAX:
                    return found
                if not any(family.is_own(host) for family in self._families):
                    found[host] = text
        return found

    def entry(self, key: str) -> Entry | None:
        """Return the registry's entry as last heard of, understood or not."""
        return self._entries.get(key)

    def host_of(self, subnet: Prefix) -> str | None:
        """Return the name of the host that holds a peer's subnet, ``None`` where the registry says none."""
        keys = (family.key_of(subnet) for family in self._families if family.version == subnet.version)
        return next((self._entries[key].host for key in keys if key is not None), None)

    def apply(self, event: Snapshot | Change) -> Delta:
        """Take an event in and return what it did."""
        for part in self.parts(event):
            self.feed(part)
        return self.take_delta()

    def parts(self, event: Snapshot | Change) -> Iterator[Mapping[str, Entry | None]]:
        """Cut an event into small parts for `feed`; the keys that are gone come first: they may have moved."""
        if isinstance(event, Snapshot):
            gone = [key for key in self._entries if key not in event.entries]
            yield from _batches((key, None) for key in gone)
            yield from _batches(event.entries.items())
        else:
            yield from _batches(sorted(event.entries.items(), key=lambda item: item[1] is not None))

    def feed(self, entries: Mapping[str, Entry | None]) -> None:
        """Take in the present entries of some keys, ``None`` for a key that is gone."""
        for key, entry in entries.items():
            known = self._entries.get(key)
            if entry is not None and entry.rivals:
                self._rivalled.add(key)
            else:
                self._rivalled.discard(key)
            if known is not None and entry is not None and (known.value == entry.value or self._move(key, entry)):
                self._entries[key] = entry
                continue
            if known is not None:
                self._drop(key)
            if entry is not None:
                self._take(key, entry)

    def set_own(self, subnet: Subnet | None, host: str | None = None) -> Delta:
        """Set the subnet that this host holds, which is never a peer, and return what that did.

        ``None`` when it holds none. `host`: this host's name, where the registry has names.
        """
        self._own = subnet
        for family in self._families:
            family.set_own(None if subnet is None else subnet.of(family.version), host)
        return self.take_delta()

    def set_public_ips(self, ours: LeaseAttrs) -> Delta:
        """Set the addresses that this host is dialled at, whose entries are no peers, and return what that did."""
        self._found_by = ours.found_by
        concerned = [family.set_public_ip(ours.address_of(family.version)) for family in self._families]
        return self._take_anew(concerned)

    def set_own_addresses(self, own: Mapping[Address, str]) -> Delta:
        """Set the addresses at which there can be no peer as they are this host's, and return what that did.

        With each a clause that says what it is here: "is ...".
        """
        return self._take_anew([family.set_own_addresses(own) for family in self._families])

    def take_delta(self) -> Delta:
        """Return everything that happened since the last delta."""
        deltas = [family.take_delta() for family in self._families]
        warnings = tuple(self._warnings)
        self._warnings.clear()
        return Delta(
            tuple(chain.from_iterable(delta.added for delta in deltas)),
            tuple(chain.from_iterable(delta.changed for delta in deltas)),
            tuple(chain.from_iterable(delta.removed for delta in deltas)),
            warnings,
            None if all(delta.ours is None for delta in deltas) else self.ours(),
        )

    def _take_anew(self, concerned: Iterable[Collection[str]]) -> Delta:
        for key in dict.fromkeys(key for keys in concerned for key in keys):
            entry = self._entries[key]
            self._drop(key)
            self._take(key, entry)
        return self.take_delta()

    def _move(self, key: str, entry: Entry) -> bool:
        """Take in a new value of a lease, see `FamilyPeers.move`, if all families can."""
        if key in self._poisoned:
            return False
        faults: Faults = {}
        try:
            attrs = parse_value(entry.value, faults)
        except ValueError:
            return False
        if faults or self._is_ours(attrs):
            return False
        return all(family.move(key, attrs) for family in self._families if key in family)

    def _is_ours(self, attrs: LeaseAttrs) -> bool:
        """Tell whether this is our entry, also where its address of the other family is one that we had before."""
        return attrs.found_by is not None and attrs.found_by == self._found_by

    def _take(self, key: str, entry: Entry) -> None:
        """Understand an entry whose key is not in the table."""
        self._entries[key] = entry
        hosts: Collection[Address] = ()
        try:
            fault, hosts = self._take_parts(key, read_lease(entry))
        except ValueError as error:
            fault = f" is ignored: {error}"
        if fault is not None:
            text = f"entry {key[:MAX_KEY_CHARS]!r}{fault}"
            self._poisoned[key] = text, hosts
            self._warnings.append(text)

    def _take_parts(self, key: str, lease: Lease) -> tuple[str | None, Collection[Address]]:
        """Give each family its part of a lease.

        Return what is to be said of it if not all are well, and the addresses of the parts that are not.
        """
        well = 0
        faults: Faults = {}
        for family in self._families:
            version, subnet = family.version, lease.subnet.of(family.version)
            try:
                if version in lease.faults:
                    raise ValueError(lease.faults[version])
                if subnet is not None:
                    family.take(key, subnet, lease.attrs, ours=self._is_ours(lease.attrs))
                    if family.has_own(key) and lease.subnet != self._own:  # else it is our key, taken by another
                        raise ValueError(f"{subnet} is our own subnet")
                    well += 1
            except ValueError as error:
                faults[version] = str(error)
        hosts = [host for version in faults if (host := lease.attrs.address_of(version)) is not None]
        if faults and not well:
            return f" is ignored: {'; '.join(dict.fromkeys(faults.values()))}", hosts
        if faults:
            return "".join(f": its IPv{version} part is ignored: {text}" for version, text in faults.items()), hosts
        if not well:
            families = " or ".join(f"IPv{family.version}" for family in self._families)
            return f" is ignored: it has no {families} part", hosts
        return None, hosts

    def _drop(self, key: str) -> None:
        """Forget a key."""
        for family in self._families:
            family.drop(key)
        self._poisoned.pop(key, None)
        del self._entries[key]


def _batches(items: Iterable[tuple[str, Entry | None]]) -> Iterator[Mapping[str, Entry | None]]:
    iterator = iter(items)
    while batch := dict(islice(iterator, PART_SIZE)):
        yield batch
