"""What the networks have in common whose packets the kernel carries, or nobody: the peers as last published."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backend.mtu import inner_mtu
from flannel_udp.backend.protocol import Context, NetworkFacts
from flannel_udp.errors import FlannelError
from flannel_udp.host.monitor import Interest
from flannel_udp.model import Delta, Interface, LeaseAttrs, Peer, RouteAnswer, longest_match

logger = logging.getLogger(__name__)

MTU_MAX_BYTES = 65_535
"""The longest IPv4 packet (RFC 791 section 3.1); the MTU of lo is beyond it."""


def kernel_mtu(external: Interface) -> int:
    """Return the overlay's MTU in bytes where nothing is put in front of a packet. Raises `FlannelError`."""
    return inner_mtu(external, 0, MTU_MAX_BYTES)


class KernelNetwork:
    """See `Network`. By itself it carries nothing: a backend whose network does extends it."""

    look_every_s: float | None = None

    def __init__(self, context: Context, attrs: LeaseAttrs) -> None:
        """Raises `FlannelError` for descriptors of a packet path, of which there is none here; they are closed then."""
        if context.handed is not None:
            for fd in context.handed.descriptors.values():
                os.close(fd)
            raise FlannelError(f"the backend {context.config.backend.type} has no packet path of its own")
        self._external = context.external
        self.attrs = attrs
        self.mtu = kernel_mtu(context.external)
        self.repairs: Counter[str] = Counter()
        self._own: IPv4Network | None = None
        self._peers: dict[IPv4Network, Peer] = {}

    # What packets do

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        self._own = own
        peers = {} if whole else self._peers.copy()  # a new one: `peers` may be walking the old one, in a thread
        for delta in deltas:
            for peer in delta.removed:
                peers.pop(peer.subnet, None)
            peers.update({peer.subnet: peer for peer in (*delta.added, *delta.changed)})
        self._peers = peers

    def start(self) -> None:
        """See `Network.start`: the kernel needs no start."""

    async def withdraw(self) -> None:
        """See `Network.withdraw`."""
        self._own, self._peers = None, {}

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`."""

    # The host

    async def hold(self, subnet: IPv4Network, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`."""

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: the external interface is looked after by upkeep."""
        return Interest(set(), set())

    async def repair(self) -> None:
        """See `KeptNetwork.repair`."""

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`."""
        mtu, former = kernel_mtu(external), self._external
        self._external = external
        if external.address != former.address:
            logger.info(
                "the external address is %s on %s now, it was %s on %s: public IP %s",
                *(external.address, external.name, former.address, former.name, external.public_ip),
            )
        self.attrs = replace(self.attrs, public_ip=external.public_ip)
        if mtu != self.mtu:
            self.mtu = mtu
            logger.info("the MTU of %s is %d now, and so is the overlay's", external.name, self.mtu)

    # What is asked

    def peers(self) -> list[Peer]:
        """See `Network.peers`."""
        return sorted(self._peers.values())

    def traffic(self, peer: Peer) -> None:
        """See `Network.traffic`: the kernel does not count by peer."""

    def route(self, address: IPv4Address) -> RouteAnswer:
        """See `Network.route`."""
        own = self._own is not None and address in self._own
        return RouteAnswer(None if own else longest_match(self._peers, address), own)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        return NetworkFacts()

    async def come_round(self) -> None:
        """See `Network.come_round`: there is no thread."""

    @property
    def transferable(self) -> None:
        """See `Network.transferable`: nothing has to be handed over."""

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`."""
