"""The values that the rooms hand to each other: frozen, without I/O, importing nothing of ours.

Addresses and networks are the standard library's ``ipaddress`` objects, which hold host order and print the way
flannel writes them. What is of either family is an `Address` or a `Prefix`; the two families never mix: a packet of one
travels over the underlay's addresses of the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Prefix: TypeAlias = IPv4Network | IPv6Network

LEASE_TTL_S = 86_400
"""Life of a fresh lease in seconds (flannel: 24 hours)."""
NONCE_BITS = 31
"""Of a lease's id, which is a positive 64-bit integer in etcd: what is left beside the 32 bits of the host's mark."""


def prefix_of(address: Address, prefix_len: int) -> Prefix:
    """Return the network of that length which has the address."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address, prefix_len), strict=False)
    return IPv6Network((address, prefix_len), strict=False)


def lies_in(prefix: Prefix, network: Prefix) -> bool:
    """Tell whether `prefix` is `network`, or a part of it."""
    return prefix.prefixlen >= network.prefixlen and prefix.network_address in network


def prefix_order(prefix: Prefix) -> tuple[int, int, int]:
    """Return what networks of both families are sorted by: those of IPv4 first, by address, wider ones first."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


@dataclass(frozen=True, slots=True)
class Subnet:
    """One host's share of the overlay, of one family or of both."""

    v4: IPv4Network | None
    v6: IPv6Network | None = None

    @classmethod
    def made_of(cls, prefixes: Iterable[Prefix]) -> Subnet:
        """Return the subnet that has these parts, one a family."""
        v4, v6 = None, None
        for prefix in prefixes:
            if isinstance(prefix, IPv4Network):
                v4 = prefix
            else:
                v6 = prefix
        return cls(v4, v6)

    def __str__(self) -> str:
        return " and ".join(map(str, self.prefixes))

    def of(self, version: int) -> Prefix | None:
        """Return the part of one family, by IP version; ``None``: it has none."""
        return self.v4 if version == 4 else self.v6

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """What there is of it, IPv4 first."""
        return tuple(part for part in (self.v4, self.v6) if part is not None)

    @property
    def ipv4(self) -> IPv4Network:
        """The IPv4 part, for what carries IPv4 only. Raises `ValueError` where there is none."""
        if self.v4 is None:
            raise ValueError(f"the subnet {self} has no IPv4 part")
        return self.v4


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """What a lease's value tells the other hosts about its holder.

    ``public_ip`` is ``None`` for a host without IPv4, which writes 0.0.0.0. ``backend_type`` is empty for udp (flannel
    writes none); ``backend_data`` and ``backend_v6_data`` are decoded JSON, ``None`` when absent.
    """

    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: Any = None
    backend_v6_data: Any = None

    @property
    def found_by(self) -> Address | None:
        """What the holder is known again by: its PublicIP, without IPv4 its PublicIPv6."""
        return self.public_ipv6 if self.public_ip is None else self.public_ip

    def address_of(self, version: int) -> Address | None:
        """Return where the holder is dialled by one family, by IP version; ``None``: it is not."""
        return self.public_ip if version == 4 else self.public_ipv6

    def data_of(self, version: int) -> Any:
        """Return what the backend says of that family; ``None`` for nothing."""
        return self.backend_data if version == 4 else self.backend_v6_data


@dataclass(frozen=True, slots=True)
class Entry:
    """One key below ``PREFIX/subnets/`` exactly as the registry holds it, not yet parsed.

    ``key`` is the last path element (``10.1.15.0-24``). ``revision`` grows with every write of this key and fences
    renewals (etcd: mod_revision). ``lease_id`` is 0 for a reservation, which never expires, else a positive number of
    63 bits: `lease_id_of` makes the ids of our agents. ``host`` is the holder's name where the store says it, and
    ``rivals`` are those of others that hold the same key, where the store lets them. ``kept_off``: why no pods are put
    on this host, although it has said that it carries traffic, where the store knows of that.
    """

    key: str
    value: bytes
    revision: int
    lease_id: int = 0
    host: str | None = field(default=None, compare=False)
    rivals: tuple[str, ...] = field(default=(), compare=False)
    kept_off: str | None = field(default=None, compare=False)

    @property
    def reserved(self) -> bool:
        """True for a key without a lease: permanent, and to be left permanent."""
        return self.lease_id == 0

    @property
    def mark(self) -> int:
        """Which host's agent wrote it: the upper 32 bits of the lease's id. 0: nobody says."""
        return self.lease_id >> NONCE_BITS


def lease_id_of(mark: int, nonce: int) -> int:
    """Return the id of a lease that bears `mark`, a host's; `nonce` has `NONCE_BITS` bits and is new for each lease."""
    return mark << NONCE_BITS | nonce


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries of the registry at one revision, by key.

    ``ended`` has the leases that are over by our clock, where the store still shows them: they are no peers, and what
    they hold is taken by nobody as long as there is something else.
    """

    entries: Mapping[str, Entry]
    revision: int
    ended: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """Keys that changed together; ``None`` stands for a deleted or expired key."""

    entries: Mapping[str, Entry | None]
    revision: int


@dataclass(frozen=True, slots=True)
class Lease:
    """An entry that was understood: which subnet belongs to which host.

    ``faults`` says by IP version what is wrong with the part of one family, where the other one counts all the same.
    """

    subnet: Subnet
    attrs: LeaseAttrs
    entry: Entry
    faults: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """One route of the overlay: packets for ``subnet`` go to ``public_ip``, both of one family.

    A dual-stack host is two peers. ``hop`` is what the backend needs to know beside that, a frozen value of its own;
    ``None`` for nothing. Only peers of one family have an order.
    """

    subnet: Prefix
    public_ip: Address
    hop: Any = None

    @property
    def version(self) -> int:
        """Its family's IP version."""
        return self.subnet.version


def peers_at(peers: Iterable[Peer], public_ips: Set[int]) -> dict[int, Peer]:
    """Return those of the peers at these public IPs (in host order), by public IP.

    Where several share one it is that with the widest subnet. Numbers of both families are one key space: IPv6
    addresses that are no larger than an IPv4 one (::/96) are no host's, see `netconf.addresses`.
    """
    found: dict[int, Peer] = {}
    for peer in peers:
        public_ip = int(peer.public_ip)
        if public_ip in public_ips:
            other = found.setdefault(public_ip, peer)
            if other is not peer:
                found[public_ip] = min(peer, other, key=lambda each: (each.subnet.prefixlen, each.subnet))
    return found


class PeerTraffic(NamedTuple):
    """What went to and came from one peer; bytes are inner bytes."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    refused_out: int
    """Packets that the kernel would not send, which are not among those out."""

    def since(self, base: PeerTraffic) -> PeerTraffic:
        """Return the traffic after `base` was read."""
        return PeerTraffic(*(now - then for now, then in zip(self, base, strict=True)))


class PeerRate(NamedTuple):
    """What goes to one peer and comes from it, a second; bytes are inner bytes.

    Packets that the kernel would not send are among those out, and not among the bytes.
    """

    packets_out: float
    bytes_out: float
    packets_in: float
    bytes_in: float


RATE_KEYS: Mapping[str, tuple[str, ...]] = {
    "bytes": ("bytes_out", "bytes_in"),
    "bytes-out": ("bytes_out",),
    "bytes-in": ("bytes_in",),
    "packets": ("packets_out", "packets_in"),
    "packets-out": ("packets_out",),
    "packets-in": ("packets_in",),
}
"""By what peers are sorted for their rates: the fields of `PeerRate` that are added up."""


class PeerActivity(NamedTuple):
    """What has happened with one peer since it was asked last."""

    public_ip: int
    """In host order: as a key a number is a tenth of the work that an address object is."""
    packets_out: int
    """Those that the kernel would not send are among them."""
    packets_in: int
    longest_out: int
    """Bytes of the longest inner packet that was sent there; the agent's own probes do not count."""
    bytes_out: int = 0
    """Inner bytes, as far as anybody counts them; those that the kernel would not send are none of them."""
    bytes_in: int = 0


class DroppedPacket(NamedTuple):
    """A packet that was dropped, as far as it was understood: what was not is ``None``."""

    direction: str
    """``out``: from a pod or this host to a peer; ``in``: from a peer."""
    time_s: float
    """Since 1970, some milliseconds early."""
    outer: Address | None
    """Who sent the datagram (``in``), the peer that it was for (``out``)."""
    version: int | None
    """The IP version that it claims to be; what follows is there for 4 and 6."""
    source: Address | None
    destination: Address | None
    protocol: int | None
    """IP protocol number."""
    n_bytes: int


PLACES = ("out inner", "out outer", "in outer", "in inner")
"""Where our packet path sees a packet: read from the TUN device, sent to a peer; received, written to the device."""
SNAP_MAX_BYTES = 262_144
"""What tcpdump keeps of a packet at most; none is longer than a quarter of that."""


@dataclass(frozen=True, slots=True)
class CaptureWish:
    """Which packets somebody wants captured, and how much of each."""

    places: tuple[str, ...] = PLACES
    dropped: bool = False
    """Only those that were dropped."""
    reasons: tuple[str, ...] = ()
    """Only those that were dropped for one of these; none: whatever became of them."""
    every: int = 1
    """One in so many of them."""
    snap_bytes: int = SNAP_MAX_BYTES
    """Kept of each."""


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """Where packets for an address go: to a peer, to our own subnet, or nowhere.

    ``fault`` says why none go to the peer that they are for, ``None`` if they do.
    """

    peer: Peer | None
    own: bool
    fault: str | None = None


def longest_match(peers: Mapping[Prefix, Peer], address: Address) -> Peer | None:
    """Return the peer whose subnet covers the address with the longest prefix."""
    for prefix_len in range(address.max_prefixlen, 0, -1):
        peer = peers.get(prefix_of(address, prefix_len))
        if peer is not None:
            return peer
    return None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a snapshot or a change did to the peers of both families, and the warnings it gave rise to (each said once).

    ``ours`` is what other entries than our lease's have under our address, where that changed: packets for it are
    delivered to the kernel. ``None``: as before.
    """

    added: tuple[Peer, ...] = ()
    changed: tuple[Peer, ...] = ()
    removed: tuple[Peer, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    ours: frozenset[Prefix] | None = None

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.ours is not None)

    def of(self, version: int) -> Delta:
        """Return what concerns one family, by IP version; the warnings stay out."""
        added, changed, removed = (
            tuple(peer for peer in peers if peer.version == version)
            for peers in (self.added, self.changed, self.removed)
        )
        ours = None if self.ours is None else frozenset(subnet for subnet in self.ours if subnet.version == version)
        return Delta(added, changed, removed, ours=ours)


def subnets_of(deltas: Iterable[Delta]) -> set[Prefix]:
    """Return the subnets whose peers came, went or changed."""
    return {peer.subnet for delta in deltas for peer in (*delta.removed, *delta.added, *delta.changed)}


KERNEL_DROPS: Mapping[str, str] = {
    "socket": "datagrams to our UDP sockets: no room to receive, or a wrong checksum (SO_MEMINFO)",
    "checksum": "datagrams with a wrong checksum, for us or others: a sender's card computes it? (InCsumErrors)",
    "tunnel_out": "packets of pods on their way to us: our TUN device's queue was full (tx_dropped)",
    "tunnel_in": "packets from us on their way to pods: the host had no room for them (that device's rx_dropped)",
    "interface_queue": "packets that the external interface's queue dropped, ours and others' (tc -s qdisc)",
    "interface_out": "packets that the external interface did not send, ours and others' (tx_dropped)",
    "interface_in": "packets that the external interface received in vain, ours and others' (rx_dropped, rx_missed)",
}
"""Where the kernel drops packets that no counter of ours has, by place: the metric's label and a sentence."""


DEGRADATIONS: Mapping[str, str] = {
    "host": "the kernel, or something on this host, stands in the way of some of the traffic",
    "firewall": "other rules of the host's firewall than ours drop or change the overlay's packets",
    "path": "the path to some of the peers carries less than the MTU, and nobody says so",
    "peers": "packets for some of the peers do not travel",
    "registry": "the registry is away: hosts that come, move or go are not heard of",
    "routes": "a route or rule of this host leads some of the overlay's packets elsewhere",
    "forwarding": "this host does not forward the overlay's packets",
    "cut_off": "the overlay's route takes packets that the agent itself needs",
    "identity": "another host has an entry under our address, or our subnet: what is meant for us may go there",
    "node": "Kubernetes puts no pods on this node, as somebody says that its network is unavailable",
}
"""What may be wrong with an agent that is ready, by kind: the metric's label and a sentence."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """What stops some of the traffic though we are ready.

    ``kind`` is one of `DEGRADATIONS`; ``text`` is one line: what is wrong, where, and what to do. ``version`` is the IP
    version whose traffic that is, 0 where it is not that of one alone.
    """

    kind: str
    text: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class Ends:
    """The external interface by one family: ``address`` is bound to, ``public_ip`` is what the other hosts dial."""

    address: Address
    public_ip: Address


@dataclass(frozen=True, slots=True)
class Interface:
    """The external interface that was chosen: the tunnel's outer packets leave here; ``mtu`` is in bytes.

    ``v4`` and ``v6``: its addresses; ``None`` where that family is off, or the interface has no address of it.
    """

    name: str
    index: int
    mtu: int
    v4: Ends | None
    v6: Ends | None = None

    def of(self, version: int) -> Ends | None:
        """Return the addresses of one family, by IP version."""
        return self.v4 if version == 4 else self.v6

    @property
    def address(self) -> IPv4Address:
        """The IPv4 address, for what carries IPv4 only. Raises `ValueError` where there is none."""
        return _ipv4(self.name, None if self.v4 is None else self.v4.address)

    @property
    def public_ip(self) -> IPv4Address:
        """The public IPv4 address, likewise."""
        return _ipv4(self.name, None if self.v4 is None else self.v4.public_ip)


def _ipv4(name: str, address: Address | None) -> IPv4Address:
    if not isinstance(address, IPv4Address):
        raise ValueError(f"interface {name} has no IPv4 address")
    return address
