"""Which subnet to take, in flannel's order. Pure: a snapshot and a random generator in, a decision out.

Where both families are on the subnet has a part of each, under one key; they are chosen by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice

from flannel_udp.control.entries import check_prefix, read_leases
from flannel_udp.errors import AddressClaimed, NoFreeSubnet, RegistryError
from flannel_udp.model import Address, Entry, Lease, LeaseAttrs, Prefix, Snapshot, Subnet, prefix_of
from flannel_udp.netconf.config import AnyRange, NetworkConfig
from flannel_udp.registry.keys import Faults, parse_key

_AGREE = "make the two agree"
CANDIDATES = 100
"""flannel picks among this many free subnets, so that hosts starting together rarely race for the same one."""


@dataclass(frozen=True, slots=True)
class Seeker:
    """Who seeks a subnet: the host that is found by that address, and with that mark, 0 for none.

    ``yields``: another host has just taken our subnet under our own address; it is left to it for a while.
    ``versions``: the IP versions that it has an address of; it gets a part of no other family.
    ``races``: how many times in a row another host was faster with what it had chosen.
    """

    address: Address
    mark: int = 0
    yields: bool = False
    versions: tuple[int, ...] = (4,)
    races: int = 0

    @classmethod
    def saying(cls, attrs: LeaseAttrs, mark: int, *, yields: bool = False, races: int = 0) -> Seeker:
        """Return the host whose lease is to say that. Raises `ValueError` if it has no address at all."""
        if attrs.found_by is None:
            raise ValueError("a host without any address cannot have a lease")
        versions = tuple(version for version in (4, 6) if attrs.address_of(version) is not None)
        return cls(attrs.found_by, mark, yields, versions, races)

    def holds(self, lease: Lease) -> bool:
        """Tell whether a lease is under the host's address."""
        return lease.attrs.address_of(self.address.version) == self.address


@dataclass(frozen=True, slots=True)
class Decision:
    """Delete the leases in ``discard``, then hold ``subnet``: take the entry ``reuse``, or create one if ``None``."""

    subnet: Subnet
    reuse: Entry | None = None
    discard: tuple[Lease, ...] = ()


def choose_subnet(
    config: NetworkConfig,
    snapshot: Snapshot,
    seeker: Seeker,
    previous: Subnet | None,
    rng: random.Random,
) -> Decision:
    """Decide which subnet a host takes, with a part of each family that is on and that it has an address of.

    `previous` is the subnet of an existing subnet.env. The order: an entry under our address that fits and whose parts
    nobody else has (a reservation before one under our mark before `previous` before the rest), else, for each part,
    that of `previous`, or of what is discarded, if it fits and is free, else a random one of the first 100 free ones.
    Each time that another host was faster it is one of twice as many.
    What does not fit is discarded if our mark is on it, and stays otherwise: a reservation is somebody's hand-made
    decision, and a lease may be anybody's. What ended by our clock is as good as held while there is something else.
    Raises `NoFreeSubnet`, `AddressClaimed`.
    """
    leases = read_leases(snapshot.entries)
    ours = [lease for lease in leases if seeker.holds(lease)]
    others = [lease for lease in leases if not seeker.holds(lease)] if len(config.versions) > 1 else []
    lease = find_former(config, [lease for lease in ours if not _is_contested(lease, others)], seeker, previous)
    if lease is not None:
        if seeker.yields and not lease.entry.reserved:
            raise AddressClaimed(describe_claim(lease.entry, seeker.address, seeker.mark))
        return Decision(config.part_of(lease.subnet), reuse=lease.entry)
    discard = tuple(lease for lease in ours if seeker.mark and lease.entry.mark == seeker.mark)
    held = [lease for lease in leases if lease not in discard]
    # Our own that ended we may have back.
    ended = [lease for lease in read_leases(snapshot.ended) if not seeker.holds(lease)]
    wanted = [*([] if previous is None else [previous]), *(lease.subnet for lease in discard)]
    known = _Known(held, ended, _poisoned(snapshot, leases))
    # Of the hosts of a large cluster that start together the first 100 have room for 100 only: most lose all races.
    pick = _Pick(rng, CANDIDATES << seeker.races)
    parts = _choose_parts(config, seeker.versions, known, wanted, pick)
    return Decision(Subnet.made_of(parts), discard=discard)


def widen_subnet(
    config: NetworkConfig,
    snapshot: Snapshot,
    lease: Lease,
    wanted: tuple[Collection[int], Subnet | None],
    rng: random.Random,
) -> Subnet:
    """Return the subnet of our lease with a part of each IP version that the host has an address of by now.

    `wanted` has those, and the subnet of an existing subnet.env. What there is stays. A reservation stays as it is: it
    is somebody's decision. Raises `NoFreeSubnet`.
    """
    versions, previous = wanted
    missing = [version for version in versions if lease.subnet.of(version) is None]
    if lease.entry.reserved or not missing:
        return lease.subnet
    leases = read_leases(snapshot.entries)
    held = [other for other in leases if other.entry.key != lease.entry.key]
    known = _Known(held, read_leases(snapshot.ended), _poisoned(snapshot, leases))
    parts = _choose_parts(config, missing, known, [] if previous is None else [previous], _Pick(rng))
    return Subnet.made_of((*lease.subnet.prefixes, *parts))


@dataclass(frozen=True, slots=True)
class _Pick:
    """A random one of the first so many that are free."""

    rng: random.Random
    candidates: int = CANDIDATES

    def of(self, free: Iterator[Prefix]) -> Prefix | None:
        """Return it, ``None`` where none is free."""
        first = list(islice(free, self.candidates))
        return self.rng.choice(first) if first else None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the registry says, but for what is ours: the leases that are held, that ended, and what cannot be read."""

    held: Sequence[Lease]
    ended: Sequence[Lease]
    poisoned: Collection[Prefix]


def _poisoned(snapshot: Snapshot, leases: Iterable[Lease]) -> set[Prefix]:
    """Return what those entries stand for that could not be understood, as far as their keys can be."""
    return _named(snapshot.entries.keys() - {lease.entry.key for lease in leases})


def _choose_parts(
    config: NetworkConfig, versions: Iterable[int], known: _Known, wanted: Sequence[Subnet], pick: _Pick
) -> list[Prefix]:
    """Choose a part of each of these families that is on. Raises `NoFreeSubnet`."""
    return [
        _choose_part(subnets, _Taken.of(subnets.network, known), wanted, pick)
        for subnets in map(config.of, versions)
        if subnets is not None
    ]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one family's part cannot be."""

    held: Sequence[Prefix]
    ended: Sequence[Prefix]
    """Over by our clock: avoided while there is something else."""
    poisoned: Collection[Prefix]
    """Of entries that cannot be understood: they block nothing, but their own keys cannot be created."""

    @classmethod
    def of(cls, network: Prefix, known: _Known) -> _Taken:
        """Return it for the family of the overlay `network`."""
        return cls(_inside(network, known.held), _inside(network, known.ended), known.poisoned)


def _choose_part(subnets: AnyRange, taken: _Taken, wanted: Iterable[Subnet], pick: _Pick) -> Prefix:
    """Choose one family's part: the first of those `wanted` that is free, else any. Raises `NoFreeSubnet`."""
    for subnet in wanted:
        part = subnet.of(subnets.network.version)
        if part is None or part in taken.poisoned or not subnets.fits(part):
            continue
        if not any(part.overlaps(other) for other in chain(taken.held, taken.ended)):
            return part
    for blocking in ((*taken.held, *taken.ended), taken.held):
        picked = pick.of(free_subnets(subnets, blocking, taken.poisoned))
        if picked is not None:
            return picked
    first, last = subnets.first.network_address, subnets.last.network_address
    raise NoFreeSubnet(
        f"all {subnets.count} subnets of length /{subnets.subnet_len} from {first} to {last} are taken: "
        "delete stale leases or widen the network configuration"
    )


def find_former(
    config: NetworkConfig, leases: Iterable[Lease], seeker: Seeker, previous: Subnet | None
) -> Lease | None:
    """Return the lease that a host takes for its own: the first one of `choose_subnet`'s order, if there is any.

    A reservation may have a part of a family that is off, or lack one that is on: what of it fits is taken.
    """

    def fits(lease: Lease) -> bool:
        if not lease.entry.reserved:
            return config.fits(lease.subnet, seeker.versions)
        part = config.part_of(lease.subnet)
        return config.fits(part, ()) and any(part.of(version) for version in seeker.versions)

    return min(
        (lease for lease in leases if seeker.holds(lease) and fits(lease)),
        key=lambda lease: (
            not lease.entry.reserved,
            -len(config.part_of(lease.subnet).prefixes),
            lease.entry.mark != seeker.mark,
            lease.subnet != previous,
            lease.entry.key,
        ),
        default=None,
    )


def find_rival(config: NetworkConfig, leases: Iterable[Lease], key: str, subnet: Subnet) -> Lease | None:
    """Return whose entry has a part of the subnet for which `key` was created, ``None``: it is nobody else's.

    Two keys may share one part, so that the store keeps nobody from creating the second one. Who lists the registry
    after that sees the first one at least; where both hosts see each other both choose anew.
    """
    others = [lease for lease in leases if lease.entry.key != key]
    for overlay in config.overlays:
        part = subnet.of(overlay.version)
        for lease in others:
            if part is not None and any(part.overlaps(theirs) for theirs in _inside(overlay, [lease])):
                return lease
    return None


def _is_contested(lease: Lease, others: Iterable[Lease]) -> bool:
    """Tell whether another host has an entry with a part of this lease.

    A host that ended, or lost its connection, between creating its entry and looking for a rival's may find it later
    beside one that holds the subnet. Which of them looked nobody can tell from the store: who comes to look gives way.
    """
    return not lease.entry.reserved and any(
        part in other.subnet.prefixes for other in others for part in lease.subnet.prefixes
    )


def accept_assigned(config: NetworkConfig, entry: Entry, versions: Collection[int]) -> Decision:
    """Decide to take the subnet that the registry assigned to this host; its length may be any.

    What of it can be taken is, of the IP versions that the host has an address of. Raises `RegistryError` when no part
    of it is a part of an overlay network. A whole one is refused, though flanneld with its other backends takes it: on
    flannel0 its route would be in the place of the pods' bridge's.
    """
    faults: Faults = {}
    parts: list[Prefix] = []
    try:
        subnet = parse_key(entry.key, faults)
        for overlay in config.overlays:
            part = subnet.of(overlay.version)
            if part is None or overlay.version not in versions:
                continue
            try:
                check_prefix(part, overlay)
                parts.append(part)
            except ValueError as error:
                faults[overlay.version] = f"{error}: {_mend_of(part, overlay)}"
        if not parts:
            nothing = f"{entry.key!r} has no part of a family that is on: {_AGREE}"
            raise ValueError(next(iter(faults.values()), nothing))
    except ValueError as error:
        raise RegistryError(f"the subnet assigned to this host is of no use: {error}") from None
    return Decision(Subnet.made_of(parts), reuse=entry)


def _mend_of(part: Prefix, network: Prefix) -> str:
    """Return what makes an assigned `part` that is of no use a part of the overlay `network`.

    That may be wider than what the registry assigns subnets of.
    """
    if not part.overlaps(network):
        return _AGREE
    return f"make {'Network' if network.version == 4 else 'IPv6Network'} wider than that"


def free_subnets(subnets: AnyRange, blocking: Iterable[Prefix], taken: Collection[Prefix]) -> Iterator[Prefix]:
    """Yield the subnets of one family that overlap nothing in `blocking` and are not `taken`, from SubnetMin on."""
    step = subnets.step
    end = int(subnets.last.network_address) + step
    low = subnets.first.network_address
    address = int(low)
    # Sorted by address, the blocked spans are walked once, side by side with the candidates.
    spans = sorted((int(subnet.network_address), subnet.num_addresses) for subnet in blocking)
    for start, size in (*spans, (end, 0)):
        while address + step <= min(start, end):
            subnet = prefix_of(low + (address - int(low)), subnets.subnet_len)
            if subnet not in taken:
                yield subnet
            address += step
        if start + size > address:
            address = -(-(start + size) // step) * step  # up to the next multiple: subnets are aligned


def describe_claim(entry: Entry, public_ip: Address, mark: int) -> str:
    """Return who else has taken our subnet under our own address, for people."""
    who = "a copy of this host, or a second agent on it," if entry.mark == mark else "another host"
    return (
        f"{who} claims our address {public_ip}: {entry.key} is under the mark {entry.mark:08x} now, ours is {mark:08x}"
    )


def _named(keys: Iterable[str]) -> set[Prefix]:
    """Return what these keys stand for, as far as they can be understood."""
    parts: set[Prefix] = set()
    for key in keys:
        with suppress(ValueError):
            parts.update(parse_key(key, {}).prefixes)
    return parts


def _inside(network: Prefix, leases: Iterable[Lease]) -> list[Prefix]:
    """Return the parts of the leases that are a true part of `network`."""
    found = []
    for lease in leases:
        part = lease.subnet.of(network.version)
        if part is not None:
            with suppress(ValueError):
                check_prefix(part, network)
                found.append(part)
    return found
