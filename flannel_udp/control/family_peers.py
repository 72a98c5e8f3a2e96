"""The peers of one family: what the leases say of it goes in, what changed comes out. Pure, in memory.

`control.peers` has one of these for each family that is on, and reads the leases for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from flannel_udp.control.entries import ReadHop, check_prefix, why_not_sent_to
from flannel_udp.control.overlaps import PrefixSet
from flannel_udp.model import Address, Delta, Entry, LeaseAttrs, Peer, Prefix, prefix_order

_NO_ADDRESS = {4: "PublicIP 0.0.0.0 is no address of one host", 6: "lease value has no PublicIPv6"}


class _Record(NamedTuple):
    """What became of one lease's part: a peer, a subnet under our own public IP, or neither (poisoned)."""

    public_ip: Address | None
    peer: Peer | None = None
    ours: Prefix | None = None


class FamilyPeers:
    """All other hosts of the overlay `network`, as seen by the host with `public_ip`, whose backend has `read_hop`.

    ``None``: this host is not dialled by that family. `entries` are those of the registry as last heard of, by key;
    `warn` is told what is wrong, once; `may_lease` tells whether a subnet with an address may be leased.
    """

    def __init__(
        self,
        network: Prefix,
        public_ip: Address | None,
        read_hop: ReadHop,
        entries: Mapping[str, Entry],
        warn: Callable[[str], object],
        *,
        may_lease: Callable[[Address], bool],
    ) -> None:
        self.network = network
        self.version = network.version
        self._read_hop = read_hop
        self._public_ip = public_ip
        self._entries = entries
        self._warn = warn
        self._may_lease = may_lease
        self._own: Prefix | None = None
        self._own_host: str | None = None
        self._own_addresses: Mapping[Address, str] = {}
        self._records: dict[str, _Record] = {}
        # Two keys may stand for one subnet (one of them dual stack, say): the first key in order wins.
        self._holders: dict[Prefix, tuple[str, ...]] = {}
        self._contested: set[Prefix] = set()  # subnets that several keys hold
        self._prefixes = PrefixSet(self.version)  # the keys of _holders and our own subnet
        self._ours: set[str] = set()  # keys under our own public IP
        self._ours_told = frozenset[Prefix]()  # by the last delta
        self._said: set[str | Prefix] = set()  # keys (ours) and wide prefixes (overlap) warned about already
        self._peers: dict[Prefix, Peer] = {}
        self._before: dict[Prefix, Peer | None] = {}  # what the last delta left where something was touched since

    @property
    def count(self) -> int:
        """How many peers there are."""
        return len(self._peers)

    def peers(self) -> Iterable[Peer]:
        """Return the present peers, one for each subnet, in no particular order."""
        return self._peers.values()

    def key_of(self, subnet: Prefix) -> str | None:
        """Return the key that counts of those that hold a peer's subnet, ``None``: there is no such peer."""
        return self._holders.get(subnet, (None,))[0]

    def shared(self) -> Iterator[tuple[Prefix, tuple[str, ...]]]:
        """Yield the subnets that several hosts hold by keys of their own, and these, the first one counts."""
        for subnet in sorted(self._contested, key=prefix_order):
            public_ips = {key: self._records[key].public_ip for key in self._holders[subnet]}
            if len(set(public_ips.values())) > 1:
                yield subnet, tuple(self._entries[key].host or str(at) for key, at in public_ips.items())

    def ours(self) -> frozenset[Prefix]:
        """Return what is under our own public IP beside our subnet, while we hold one."""
        if self._own is None:
            return frozenset()
        subnets = (self._records[key].ours for key in self._ours)
        return frozenset(subnet for subnet in subnets if subnet is not None and subnet != self._own)

    def claims(self) -> set[str]:
        """Return the keys under which another host's subnet has our own public IP."""
        return {key for key in self._ours if self._is_claim(key)}

    def is_own(self, address: Address) -> bool:
        """Tell whether that is one of this host's addresses."""
        return address == self._public_ip or address in self._own_addresses

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def take(self, key: str, subnet: Prefix, attrs: LeaseAttrs, *, ours: bool) -> None:
        """Understand the part of a lease whose key is not in the table. Raises `ValueError`: it is poisoned.

        `ours`: it is our own, whatever it says of this family.
        """
        public_ip = attrs.address_of(self.version)
        try:
            check_prefix(subnet, self.network)
            is_own = ours or (public_ip is not None and public_ip == self._public_ip)
            peer = None if is_own else self._read_peer(subnet, public_ip, attrs)
        except ValueError:
            self._records[key] = _Record(public_ip)
            raise
        if peer is None:
            self._records[key] = _Record(public_ip, ours=subnet)
            self._ours.add(key)
            self._check_ours(key)
            return
        self._records[key] = _Record(public_ip, peer)
        others = self._holders.get(subnet, ())
        self._holders[subnet] = keys = tuple(sorted((key, *others)))
        if others:
            self._warn(f"entries {' and '.join(map(repr, keys))} hold one subnet: {keys[0]!r} counts")
        self._settle(subnet)

    def move(self, key: str, attrs: LeaseAttrs) -> bool:
        """Take in a peer's new value where nothing but its address is new; return whether that was so.

        It is the change that is met most often, and a third of the work of forgetting the key and learning it anew.
        """
        former = self._records[key].peer
        if former is None or former.subnet == self._own or self._holders[former.subnet] != (key,):
            return False
        public_ip = attrs.address_of(self.version)
        if public_ip is None or public_ip == self._public_ip:
            return False
        try:
            peer = self._read_peer(former.subnet, public_ip, attrs)
        except ValueError:
            return False
        self._records[key] = _Record(public_ip, peer)
        self._replace(former.subnet, peer)
        return True

    def has_own(self, key: str) -> bool:
        """Tell whether a key, which is another host's, has this host's subnet."""
        peer = self._records[key].peer
        return peer is not None and peer.subnet == self._own

    def drop(self, key: str) -> None:
        """Forget a key, if it is known."""
        record = self._records.pop(key, None)
        self._ours.discard(key)
        self._said.discard(key)
        if record is None or record.peer is None:
            return
        subnet = record.peer.subnet
        others = tuple(other for other in self._holders[subnet] if other != key)
        if others:
            self._holders[subnet] = others
        else:
            del self._holders[subnet]
        self._settle(subnet)

    def set_own(self, subnet: Prefix | None, host: str | None) -> None:
        """Set the subnet that this host holds, which is never a peer; ``None`` when it holds none.

        `host`: this host's name, where the registry has names.
        """
        former, self._own = self._own, subnet
        self._own_host = host
        for prefix in (former, subnet):
            if prefix is not None:
                self._settle(prefix)
        for key in self._ours:
            self._check_ours(key)

    def set_public_ip(self, public_ip: Address | None) -> list[str]:
        """Set the address that this host is dialled at, whose entries are no peers; return what to take anew."""
        former, self._public_ip = self._public_ip, public_ip
        if former == public_ip:
            return []
        return [key for key, record in self._records.items() if record.public_ip in (former, public_ip)]

    def set_own_addresses(self, own: Mapping[Address, str]) -> list[str]:
        """Set what each of this host's addresses is, at which there can be no peer; return what to take anew."""
        former, self._own_addresses = self._own_addresses, own
        # Those in the overlay, of the tunnel and the pods' bridge, are nobody's anyway, and come and go the most.
        concerned = {address for address in former.keys() ^ own.keys() if address not in self.network}
        if not concerned:
            return []
        return [key for key, record in self._records.items() if record.ours is None and record.public_ip in concerned]

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
        ours = self.ours()
        told, self._ours_told = self._ours_told, ours
        self._before.clear()
        return Delta(tuple(added), tuple(changed), tuple(removed), ours=None if ours == told else ours)

    def _read_peer(self, subnet: Prefix, public_ip: Address | None, attrs: LeaseAttrs) -> Peer:
        """Return where packets for a lease's subnet go. Raises `ValueError` with one line if none can be sent there."""
        if public_ip is None:
            raise ValueError(_NO_ADDRESS[self.version])
        why = why_not_sent_to(public_ip, self.network, self._own_addresses, self._may_lease)
        if why is not None:
            raise ValueError(f"PublicIP{'v6' if self.version == 6 else ''} {public_ip} {why}")
        return Peer(subnet, public_ip, self._read_hop(attrs, self.version))

    def _settle(self, subnet: Prefix) -> None:
        """Bring everything up to date that depends on who holds `subnet`."""
        keys = self._holders.get(subnet, ())
        if keys or subnet == self._own:
            if subnet not in self._prefixes:
                self._prefixes.add(subnet)
                self._check_overlaps(subnet)
        elif subnet in self._prefixes:
            self._prefixes.remove(subnet)
            self._said.discard(subnet)
        if len(keys) > 1:
            self._contested.add(subnet)
        else:
            self._contested.discard(subnet)
        self._replace(subnet, self._records[keys[0]].peer if keys and subnet != self._own else None)

    def _replace(self, subnet: Prefix, now: Peer | None) -> None:
        before = self._peers.get(subnet)
        if now == before:
            return
        self._before.setdefault(subnet, before)
        if now is None:
            del self._peers[subnet]
        else:
            self._peers[subnet] = now

    def _check_ours(self, key: str) -> None:
        """Warn about our own public IP under a key that is not our subnet's, unless it is a claim."""
        if self._own in (None, self._records[key].ours) or key in self._said or self._is_claim(key):
            return
        self._said.add(key)
        self._warn(
            f"entry {key!r} is no peer: it has our public IP, but our subnet is {self._own}; what comes for it is "
            "given to the kernel"
        )

    def _is_claim(self, key: str) -> bool:
        """Tell whether an entry under our public IP is an agent's that takes itself for the one with that address.

        A shorter or longer prefix is a service's, say, and a reservation somebody's decision. Where hosts have names,
        in Kubernetes, any entry is a host's, whatever its length, and without a mark.
        """
        own, theirs, entry = self._own, self._records[key].ours, self._entries[key]
        if own is None or theirs is None or own == theirs:
            return False
        if entry.host is not None:
            return entry.host != self._own_host  # ours is about to get another subnet
        return own.prefixlen == theirs.prefixlen and entry.mark != 0

    def _check_overlaps(self, subnet: Prefix) -> None:
        """Warn, once for the wider one, when the new `subnet` overlaps others."""
        wider = self._prefixes.around(subnet)
        if wider is not None and wider not in self._said:
            self._said.add(wider)
            other = f"{subnet} of {self._holder(subnet)}"
            self._warn(f"{wider} of {self._holder(wider)} overlaps {other}: the longer prefix wins")
        inside = self._prefixes.inside(subnet)
        if inside and subnet not in self._said:
            self._said.add(subnet)
            other = f"{inside} longer subnet{'s' if inside > 1 else ''} inside it"
            self._warn(f"{subnet} of {self._holder(subnet)} overlaps {other}: the longer prefix wins")

    def _holder(self, subnet: Prefix) -> str:
        peer = None if subnet == self._own else self._records[self._holders[subnet][0]].peer
        return "this host" if peer is None else str(peer.public_ip)
