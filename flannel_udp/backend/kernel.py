"""What the networks have in common whose packets the kernel carries, or nobody: the peers as last published."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence, Set

from flannel_udp.backend.ends import ends_of, share_of, with_public_ip
from flannel_udp.backend.kernel_drops import KernelDrops
from flannel_udp.backend.mtu import inner_mtu
from flannel_udp.backend.protocol import Context, EchoRoute, KernelWay, NetworkFacts
from flannel_udp.dataplane.capture import Engine
from flannel_udp.errors import FlannelError
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.monitor import Interest
from flannel_udp.host.repair import STANDS, Standing
from flannel_udp.model import (
    Address,
    Delta,
    Interface,
    LeaseAttrs,
    Peer,
    PeerActivity,
    Prefix,
    RouteAnswer,
    Subnet,
    longest_match,
    peers_at,
    subnets_of,
)

logger = logging.getLogger(__name__)

MTU_MAX_BYTES = 65_535
"""The longest IPv4 packet (RFC 791 section 3.1); the MTU of lo is beyond it."""


def kernel_mtu(external: Interface) -> int:
    """Return the overlay's MTU in bytes where nothing is put in front of a packet. Raises `FlannelError`."""
    return inner_mtu(external, 0, MTU_MAX_BYTES)


def refuse_handed(context: Context) -> None:
    """Raise `FlannelError` for descriptors of a packet path, of which there is none here; they are closed then."""
    if context.handed is not None:
        context.handed.close()
        raise FlannelError(f"the backend {context.config.backend.type} has no packet path of its own")


class KernelNetwork:
    """See `Network`, for one family. By itself it carries nothing: a backend whose network does extends it.

    `attrs` is what our lease is to say beside the public IP of that family.
    """

    look_every_s: float | None = None
    keeps_routes = False

    def __init__(self, context: Context, attrs: LeaseAttrs, version: int = 4) -> None:
        """Raises `FlannelError`, see `refuse_handed` and `ends_of`."""
        refuse_handed(context)
        self._version = version
        self._external = context.external
        self.attrs = with_public_ip(attrs, ends_of(context.external, version).public_ip)
        self.mtu = kernel_mtu(context.external)
        self.repairs: Counter[str] = Counter()
        self._kernel_drops = KernelDrops(context.external.index)
        self._own: Prefix | None = None
        self._peers: dict[Prefix, Peer] = {}
        self._carried: dict[Prefix, Peer] = {}  # those of them that `_bring` is through with

    # What packets do

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        self._own = share = share_of(own, self._version)
        peers = {} if whole else self._peers.copy()  # a new one: `peers` may be walking the old one, in a thread
        for delta in deltas:
            for peer in delta.removed:
                peers.pop(peer.subnet, None)
            peers.update({peer.subnet: peer for peer in (*delta.added, *delta.changed)})
        self._peers = peers
        await self._bring(share, None if whole else subnets_of(deltas))
        self._carried = self._peers  # not `peers`: all may have been withdrawn meanwhile

    async def _bring(self, own: Prefix, changed: Collection[Prefix] | None) -> None:
        """Bring what packets to the peers of these subnets need to the kernel; ``None``: of all, and of nobody else."""

    def start(self) -> None:
        """See `Network.start`: the kernel needs no start."""

    async def stands(self) -> None:
        """See `Network.stands`: it needs nothing but this host."""

    async def withdraw(self) -> None:
        """See `Network.withdraw`."""
        self._own, self._peers, self._carried = None, {}, {}

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`."""

    # The host

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`."""

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: the external interface is looked after by upkeep."""
        return Interest(set(), set())

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`."""
        return STANDS

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`."""
        mtu = kernel_mtu(external)
        self._move(external)
        if mtu != self.mtu:
            self.mtu = mtu
            logger.info("the MTU of %s is %d now, and so is the overlay's", external.name, self.mtu)

    def _move(self, external: Interface) -> None:
        """Take another external interface, or the same one with other addresses, for ours. Raises `FlannelError`."""
        ends, former = ends_of(external, self._version), self._external
        if ends.address != (was := ends_of(former, self._version).address):
            logger.info(
                "the external address is %s on %s now, it was %s on %s: public IP %s",
                *(ends.address, external.name, was, former.name, ends.public_ip),
            )
        self._external, self.attrs = external, with_public_ip(self.attrs, ends.public_ip)

    # What is asked

    def peers(self) -> list[Peer]:
        """See `Network.peers`."""
        return sorted(self._carried.values())

    def is_direct(self, peer: Peer) -> bool | None:  # noqa: ARG002 - the protocol's
        """See `Network.is_direct`."""
        return None

    def traffic(self, peer: Peer) -> None:
        """See `Network.traffic`: the kernel does not count by peer."""

    async def activity(self) -> AsyncIterator[Sequence[PeerActivity]]:
        """See `Network.activity`: likewise."""
        return
        yield ()  # what makes it a generator

    def find(self, public_ips: Set[int]) -> dict[int, Peer]:
        """See `Network.find`."""
        return peers_at(self._peers.values(), public_ips)

    def echo_route(self, peer: Peer) -> EchoRoute | None:  # noqa: ARG002 - the protocol's
        """See `Network.echo_route`: nobody knows who carries packets, if anybody does."""
        return None

    @property
    def source_ports(self) -> Collection[int]:
        """See `Network.source_ports`: there is no socket."""
        return ()

    @property
    def path_news(self) -> int:
        """See `Network.path_news`."""
        return 0

    @property
    def path_limits(self) -> Mapping[Address, int]:
        """See `Network.path_limits`."""
        return {}

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """See `Network.limit_path_mtu`."""

    def mtu_option(self, peer: Peer, n_bytes: int) -> int | None:  # noqa: ARG002 - the protocol's
        """See `Network.mtu_option`: few of these have any."""
        return None

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        own = self._own is not None and address in self._own
        return RouteAnswer(None if own else longest_match(self._peers, address), own)

    def try_packet(self, packet: bytes) -> None:
        """See `Network.try_packet`: there is no packet path."""

    def try_datagram(self, payload: bytes, sender: Address, tos: int) -> None:
        """See `Network.try_datagram`."""

    def kernel_way(self, peer: Peer) -> KernelWay:  # noqa: ARG002 - the protocol's
        """See `Network.kernel_way`: a route is all, if that."""
        return KernelWay()

    def ways(self, version: int = 4) -> Ways | None:  # noqa: ARG002 - of the one that it carries
        """See `Network.ways`: whoever sets routes knows."""
        return None

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        return NetworkFacts(kernel_drops=self._kernel_drops.counts(self._external.index))

    async def come_round(self) -> None:
        """See `Network.come_round`: there is no thread."""

    def engines(self) -> Sequence[Engine]:
        """See `Network.engines`."""
        return ()

    @property
    def transferable(self) -> None:
        """See `Network.transferable`: nothing has to be handed over."""

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`."""
