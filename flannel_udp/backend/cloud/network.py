"""The network of a host whose packets take the provider's routes: nothing of it is on the host itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from flannel_udp.backend.cloud.keeper import RouteKeeper
from flannel_udp.backend.cloud.provider import Account, Provider
from flannel_udp.backend.ends import share_of
from flannel_udp.backend.kernel import KernelNetwork
from flannel_udp.backend.protocol import Context, NetworkFacts
from flannel_udp.host.repair import Standing
from flannel_udp.model import Address, Delta, Interface, LeaseAttrs, RouteAnswer, Subnet

logger = logging.getLogger(__name__)

WITHDRAW_S = 5.0
"""How long a lost lease may wait for the provider; what is not done by then is done while we look for another one."""


class CloudNetwork(KernelNetwork):
    """See `Network`. What is kept right is the provider's, in a task of its own (`keeper`)."""

    def __init__(self, context: Context, provider: Provider) -> None:
        """Begin to keep; nothing is asked before there is a subnet."""
        super().__init__(context, LeaseAttrs(None))
        assert context.config.v4 is not None  # noqa: S101 - IPv4 is all that it carries
        self._provider, self._config = provider, context.config
        self._keeper = RouteKeeper(self._connect(), context.config.v4, context.list_subnets, context.on_fault)
        self.repairs = self._keeper.repairs
        self._keeping = asyncio.create_task(self._keeper.run(), name="keep the provider's routes")

    def _connect(self) -> partial[Account]:
        return partial(self._provider.connect, self._config, self._external)

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`: that the other hosts' routes are there is their business."""
        await super().publish(own, deltas, whole=whole)
        self._keeper.know_peers(self._peers.values())

    async def stands(self) -> None:
        """See `Network.stands`: the route to this host."""
        await self._keeper.stands()

    async def withdraw(self) -> None:
        """See `Network.withdraw`: the route is removed, if the provider answers in time."""
        await super().withdraw()
        self._keeper.want(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._keeper.gone(), WITHDRAW_S)

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:  # noqa: ARG002 - the protocol's
        """See `KeptNetwork.hold`."""
        self._keeper.want(share_of(subnet, 4))

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`: how things stand; the keeper puts them right."""
        return Standing(self._keeper.obstacles, self._keeper.problems)

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: another address may be another network interface's."""
        former = self._external
        await super().follow(external)
        if (former.index, former.v4) != (external.index, external.v4):
            self._keeper.move(self._connect())

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        return answer if answer.peer is None else replace(answer, fault=self._keeper.faults.get(answer.peer.subnet))

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        return replace(super().facts(), faults=self._keeper.faults, cloud=self._keeper.facts())

    async def close(self, *, keep: bool) -> None:  # noqa: ARG002 - the protocol's
        """See `Network.close`: the route stays for the next run, unless it was withdrawn."""
        self._keeping.cancel()
        await asyncio.wait((self._keeping,))
        self._keeper.close()
