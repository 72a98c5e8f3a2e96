"""flannel's host-gw backend: a kernel route to each peer's subnet through its public IP, which has to be on-link.

Packets travel as they are, so the overlay's MTU is the interface's. Routes are those of flanneld but for two marks: a
protocol number of our own, and, where our lease ends some day, a source that takes them along (docs/decisions/0017).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from flannel_udp.backend.ends import share_of
from flannel_udp.backend.families import open_families
from flannel_udp.backend.kernel import KernelNetwork, kernel_mtu
from flannel_udp.backend.leased_routes import LeasedRoutes, leasable
from flannel_udp.backend.neighbour_activity import neighbour_activity
from flannel_udp.backend.protocol import Context, EchoRoute, Network, NetworkFacts, accept_types
from flannel_udp.backend.routes import Hop
from flannel_udp.errors import ConfigError
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.monitor import Interest
from flannel_udp.host.repair import Standing
from flannel_udp.model import (
    Address,
    Interface,
    LeaseAttrs,
    Peer,
    PeerActivity,
    Prefix,
    RouteAnswer,
    Subnet,
)
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

logger = logging.getLogger(__name__)


class HostGwBackend:
    """See `Backend`."""

    type = "host-gw"
    families = frozenset({4, 6})
    option_keys = ()
    hop_type = None

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """There are none."""
        return {}

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `ConfigError` for a host behind NAT: others route to its public IP, which is not where it is."""
        kernel_mtu(external)
        for version in config.versions:
            _refuse_nat(external, version)

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> Prefix | None:  # noqa: ARG002 - the protocol's
        """Each subnet that may be leased has a route some day."""
        return leasable(config, address)

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> None:  # noqa: ARG002 - the protocol's
        """Take hosts of this backend; the public IP is the gateway."""
        accept_types(attrs, self.type, (self.type,))

    async def open(self, context: Context) -> Network:
        """Return what has no route yet, and touches none of an earlier run. Raises `FlannelError`."""

        async def open_one(context: Context, version: int) -> Network:
            _refuse_nat(context.external, version)
            return HostGwNetwork(context, version)

        return await open_families(context, open_one)

    async def remove_remains(self, versions: Collection[int]) -> list[str]:  # noqa: ARG002 - the protocol's
        """What it leaves are routes, and `remains` removes those of every backend."""
        return []


BACKEND = HostGwBackend()


def _refuse_nat(external: Interface, version: int) -> None:
    ends = external.of(version)
    if ends is not None and ends.public_ip != ends.address:
        flag = "--public-ip" if version == 4 else "--public-ipv6"
        where = f"our public IP {ends.public_ip} is not the address {ends.address} of {external.name}"
        advice = f"others cannot route through a host behind NAT: leave {flag} out, or choose another type"
        raise ConfigError([f"Backend.Type is host-gw, and {where}: {advice}"])


class HostGwNetwork(KernelNetwork):
    """See `Network`: the peers' routes in the kernel, and the address on which their lives hang."""

    look_every_s = 10.0  # as flanneld: for what the kernel does not report
    keeps_routes = True

    def __init__(self, context: Context, version: int) -> None:
        super().__init__(context, LeaseAttrs(None, backend_type=BACKEND.type), version)
        self.repairs: Counter[str] = Counter(route=0)
        self._clean_on_exit = context.options.firewall.clean_on_exit
        self._routes = LeasedRoutes(context, self._hops, version=version)

    # What packets do

    async def _bring(self, own: Prefix, changed: Collection[Prefix] | None) -> None:
        """Let the difference go to the kernel; in a take-over `hold` will set the routes."""
        if changed is None:
            await self._routes.load(own)
        else:
            await self._routes.apply(own, changed)

    async def withdraw(self) -> None:
        """See `Network.withdraw`: the routes go with their address, at once; what has none follows one by one."""
        await super().withdraw()
        await self._routes.withdraw()

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the kernel removes the address, and with it the routes."""
        self._routes.forward_until(boottime_s)

    def _hops(self, subnets: Collection[Prefix] | None, source: Address | None) -> dict[Prefix, Hop | None]:
        peers, index = self._peers, self._external.index
        return {
            at: None if (peer := peers.get(at)) is None else Hop(peer.public_ip, index, source)
            for at in (peers if subnets is None else subnets)
        }

    # The host

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`. What flanneld's host-gw left is taken over with the first routes."""
        if former is not None and former.backend_type == BACKEND.type:
            self._routes.inherit(elsewhere=True)
        share = share_of(subnet, self._version)
        await self._routes.hold(share, load=self._own == share)

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: routes to our peers, and the address on lo that they hang on."""
        return self._routes.interest()

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`. A route that cannot be set is its peer's fault: see `facts`."""
        n = await self._routes.repair()
        if n:
            self.repairs["route"] += n
            logger.info("put right: routes to peers: %d", n)
        return Standing(again_s=self._routes.again_s)

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: all routes lead out of that interface."""
        _refuse_nat(external, self._version)
        await super().follow(external)
        await self._routes.reload()

    # What is said

    async def activity(self) -> AsyncIterator[list[PeerActivity]]:
        """See `Network.activity`, as far as the kernel's neighbours tell."""
        async for part in neighbour_activity(self._external.index, self.find, self.mtu, self._version):
            yield part

    def echo_route(self, peer: Peer) -> EchoRoute:
        """See `Network.echo_route`: flanneld's host has not its subnet's first address; the second one is a bridge's.

        Public IPs tell of the link only: clouds let nothing pass that has another address than the host's, unless
        told to (source and destination check, port security).
        """
        second: tuple[Address, ...] = tuple(islice(peer.subnet, 1, 2))
        ours = None if self._own is None else self._own[min(1, self._own.num_addresses - 1)]
        pods = EchoRoute(tuple(dict.fromkeys((peer.subnet[0], *second, peer.subnet[-2]))), ours)
        return EchoRoute((peer.public_ip, *second), pods=pods)

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        return answer if answer.peer is None else replace(answer, fault=self._routes.faults.get(answer.peer.subnet))

    def ways(self, version: int = 4) -> Ways:  # noqa: ARG002 - of the one that it carries
        """See `Network.ways`: through the peers' public IPs, where that is possible; `facts` has the other ones."""
        faults = self._routes.faults
        gateways = {subnet: peer.public_ip for subnet, peer in self._peers.items() if subnet not in faults}
        return Ways(self._external.index, gateways)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        fault = self._routes.end_fault
        return replace(super().facts(), problems=() if fault is None else (fault,), faults=self._routes.faults)

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`: routes stay for the next run, as flanneld's do, unless the options say otherwise."""
        if keep or not self._routes.held:
            return
        if self._clean_on_exit:
            await self.withdraw()
        else:
            await self._routes.stay()
