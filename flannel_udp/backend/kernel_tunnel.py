"""What the backends have in common whose packets pass a tunnel device of the kernel's: vxlan, ipip.

A packet's way out: route to the peer's subnet → gateway, a neighbour on the device → what the kind of tunnel has beside
it → the external interface. Everything is kept right; what comes first is put right first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from flannel_udp.backend.direct import DirectPeers
from flannel_udp.backend.ends import share_of
from flannel_udp.backend.kernel import MTU_MAX_BYTES, KernelNetwork, refuse_handed
from flannel_udp.backend.kernel_drops import KernelDrops
from flannel_udp.backend.leased_routes import ROUTES_CLAIM, LeasedRoutes
from flannel_udp.backend.mtu import inner_mtu
from flannel_udp.backend.neighbour_activity import neighbour_activity
from flannel_udp.backend.protocol import Context, EchoRoute, NetworkFacts
from flannel_udp.backend.routes import Hop
from flannel_udp.backend.tunnel import NICETIES, RETRY_S
from flannel_udp.backend.tunnel_device import REPAIRS, TAKES_ENTRIES, TunnelDevice
from flannel_udp.backend.tunnel_entries import TunnelEntries
from flannel_udp.errors import FlannelError
from flannel_udp.host.device_drops import DeviceTraffic, read_device_traffic
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.monitor import Interest
from flannel_udp.host.repair import STANDS, Paces, Standing
from flannel_udp.host.rtnetlink import open_rtnetlink
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

logger = logging.getLogger(__name__)


def claim_tunnel(context: Context) -> None:
    """Call it before the device is made. Raises `FlannelError` where another agent has what only one may have."""
    refuse_handed(context)
    context.claims.hold(ROUTES_CLAIM)


class KernelTunnelNetwork(KernelNetwork):
    """See `Network`: `device`, its address, on which the routes' lives hang, routes, and what peers have beside them.

    `fit(external)` tells the overlay's MTU in bytes, `FlannelError` if one does not fit into the interface's;
    `overhead_bytes` stand in front of each inner packet; `gateway` is what the route to a peer's subnet leads through.
    """

    look_every_s: float | None = 10.0  # for what the kernel does not report
    keeps_routes = True

    def __init__(
        self,
        context: Context,
        attrs: LeaseAttrs,
        device: TunnelDevice,
        fit: Callable[[Interface], int],
        entries: TunnelEntries | None = None,
        *,
        gateway: Callable[[Peer], Address],
        overhead_bytes: int,
        version: int = 4,
    ) -> None:
        super().__init__(context, attrs, version)
        self._device = device
        self._fit = fit
        self.mtu = fit(context.external)
        self._misfit: str | None = None  # why the device's MTU is not what it has to be
        self._overhead_bytes = overhead_bytes
        self._gateway = gateway
        self._entries = TunnelEntries() if entries is None else entries
        self._routes = LeasedRoutes(context, self._hops, version=version, end=device, beside=self._entries)
        self.repairs: Counter[str] = Counter(dict.fromkeys((*REPAIRS, "route"), 0))
        self._kernel_drops = KernelDrops(context.external.index, device.index)
        self._clean_on_exit = context.options.firewall.clean_on_exit
        self._wake = context.on_fault
        self._context = context
        # Made on the running loop, where there are to be routes past the device.
        self._direct: DirectPeers | None = None
        self._past: set[Prefix] = set()  # the subnets of peers on our link, as last told to the kernel
        self._until_s: float | None = None
        self._used = False  # a lease was held with it
        self._paces = Paces()

    # What packets do

    async def _bring(self, own: Prefix, changed: Collection[Prefix] | None) -> None:
        """Let the difference go to the kernel; in a take-over `hold` will set the routes."""
        if changed is None:
            await self._routes.load(own)
        else:
            await self._routes.apply(own, changed)

    def _hops(self, subnets: Collection[Prefix] | None, source: Address | None) -> dict[Prefix, Hop | None]:
        """Set what these peers need on the device, and return their routes. In a thread.

        Routes of the device need no source: they go with its only address.
        """
        peers = self._peers
        past = self._hops_past(peers, subnets, source)
        if subnets is None:
            self._past = set(past)
            self._entries.load({at: peer for at, peer in peers.items() if at not in past})
            concerned = set(peers)
        else:
            self._past = (self._past - set(subnets)) | past.keys()
            concerned = self._entries.change({at: None if at in past else peers.get(at) for at in subnets})
            concerned.update(subnets)
        return {at: past.get(at) or self._hop(peers.get(at)) for at in concerned if at in past or at not in self._past}

    def _hops_past(
        self, peers: Mapping[Prefix, Peer], subnets: Collection[Prefix] | None, source: Address | None
    ) -> dict[Prefix, Hop]:
        """Return the routes past the device of those of these peers that are on our link."""
        direct = self._direct
        if direct is None:
            return {}
        direct.learn(peers, subnets)
        concerned = peers if subnets is None else [at for at in subnets if at in peers]
        hops = ((at, direct.hop(peers[at], source)) for at in concerned)
        return {at: hop for at, hop in hops if hop is not None}

    def _hop(self, peer: Peer | None) -> Hop | None:
        if peer is None or peer.subnet in self._past or not self._entries.has_way(peer.subnet):
            return None
        return Hop(self._gateway(peer), self._device.index, onlink=True)

    async def withdraw(self) -> None:
        """See `Network.withdraw`: the routes go with the address, at once, and the device is down."""
        await super().withdraw()
        await self._routes.withdraw()

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the kernel removes the address, and with it the routes."""
        self._until_s = boottime_s
        self._routes.forward_until(boottime_s)

    # The host

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`. What flanneld left on the device is taken over with the first routes."""
        share, claimed, self._used = share_of(subnet, self._version), self._claimed(former), True
        if self._direct is None and self._context.config.backend.options.get("DirectRouting"):
            self._direct = DirectPeers(self._context, self._version)
        try:
            await asyncio.to_thread(self._device.take, share.network_address, self._until_s, claimed)
        finally:
            # Also if the device could not be set up: what fails is tried again by `repair`.
            # Its DirectRouting has routes past the device.
            ran = former is not None and former.backend_type == self._context.config.backend.type
            direct = ran and self._direct is not None
            self._routes.inherit(self._device.index, self._gateways_outside(), elsewhere=direct)
            await self._routes.hold(share, load=self._own == share)

    def _claimed(self, former: LeaseAttrs | None) -> int:  # noqa: ARG002 - for kinds that have a MAC
        """Return the MAC that our entry names, 0 for none."""
        return 0

    def _gateways_outside(self) -> Prefix | None:
        """Return outside which network the device's routes have their gateways, ``None``: see `RouteSet.inherit`."""
        return None

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: the device, its address, routes to our peers, their entries."""
        devices = {self._device.index} if self._device.index else set()
        return replace(self._routes.interest(), devices=devices, entries=self._entries.interest())

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`. What a single peer lacks is its fault: see `facts`."""
        if not self._routes.held:
            return STANDS
        failed: dict[str, str] = {}
        made: list[str] = []
        await self._routes.work(lambda: self._repair_device(made, failed))
        if made:
            logger.info("put right on %s: %s", self._device.name, ", ".join(made))
        hindered = {what for what in failed if what not in NICETIES}
        if not hindered:
            if TAKES_ENTRIES.intersection(made):
                await self._routes.reload()
            await self._repair_entries()
        return self._standing(failed)

    def _repair_device(self, made: list[str], failed: dict[str, str]) -> int:
        """Put right what is wrong of the device, each thing at its own pace. In a thread."""
        now_s = time.monotonic()
        for number in range(len(REPAIRS)):
            wrong = self._device.look()
            if number == 0:
                self._paces.looked(wrong, now_s)
            todo = [what for what in wrong if what not in (*failed, *made) and self._paces.due(what, now_s)]
            if not todo:
                break
            what = todo[0]
            try:
                self._device.put_right(what)
            except FlannelError as error:
                failed[what] = str(error)
                continue
            made.append(what)
            if what in ("address", "link") and "tunnel" in made:
                made.remove(what)  # it belongs to the device that was made anew
                continue
            self.repairs[what] += 1
            if self._paces.made(what, now_s):
                logger.warning("somebody undoes our repairs again and again, they become rarer from now on: %s", what)
        return len(made)

    async def _repair_entries(self) -> None:
        if not self._routes.loaded:  # what is there may be a killed run's, and good
            return

        def repair() -> int:
            counted.update(self._entries.repair())
            return counted.total()

        counted: Counter[str] = Counter()
        await self._routes.work(repair)
        counted["route"] += await self._routes.repair(self._moved)
        self.repairs.update(counted)
        if counted.total():
            what = ", ".join(f"{_PLURALS[name]}: {n}" for name, n in counted.items() if n)
            logger.info("put right on %s: %s", self._device.name, what)

    def _moved(self) -> Set[Prefix]:
        return frozenset() if self._direct is None else self._direct.moved(self._peers)

    def _standing(self, failed: Mapping[str, str]) -> Standing:
        """Say what is still wrong, or does not stay right."""
        name = self._device.name
        contested = {
            "tunnel": f"{name} does not stay, somebody deletes it: `ip -ts monitor link` shows when",
            "settings": f"the settings of {name} do not stay: `ip -ts monitor link` shows when they change",
            "master": f"{name} does not stay out of a bridge or VRF: `ip -ts monitor link` shows when it is put in",
            "mac": f"{name} does not keep its MAC address: `ip -ts monitor link` shows when it changes",
            "link": f"{name} does not stay up: `ip -ts monitor link` shows when",
            "address": f"{name} does not keep its address: `ip -ts monitor address` shows when",
            "mtu": f"the MTU of {name} does not stay at {self.mtu}: `ip -ts monitor link` shows when",
            "ipv6": f"{name} does not stay without IPv6 addresses: `ip -ts monitor address` shows when",
        }
        found = {**failed, **{what: text for what, text in contested.items() if self._paces.contested(what)}}
        waits = [
            self._paces.again_s(time.monotonic()),
            self._routes.again_s,
            self._entries.again_s,
            None if self._direct is None else self._direct.again_s,
            RETRY_S if failed else None,
        ]
        return Standing(
            obstacles=tuple(text for what, text in found.items() if what not in NICETIES),
            problems=tuple(text for what, text in found.items() if what in NICETIES),
            again_s=min((wait_s for wait_s in waits if wait_s is not None), default=None),
        )

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: outer packets leave there, from its address, and the MTU fits."""
        mtu, misfit = self._fitting(external)
        self._move(external)
        if mtu != self.mtu:
            logger.info("the MTU of %s is %d now: the tunnel's is %d", external.name, external.mtu, mtu)
        if misfit is not None and misfit != self._misfit:
            logger.warning("%s", misfit)
        self.mtu, self._misfit = mtu, misfit
        if self._direct is not None:
            self._direct.follow(external)
        self._device.follow(external, mtu)
        await self._routes.work(self._shape)
        await self._routes.reload()

    def _shape(self) -> int:
        """Have the device as the interface asks; what fails is `repair`'s to try again, and to tell. In a thread."""
        try:
            for _ in REPAIRS:
                wrong = self._device.look()
                if not wrong:
                    break
                self._device.put_right(wrong[0])
        except FlannelError:
            self._wake()
        return 0

    def _fitting(self, external: Interface) -> tuple[int, str | None]:
        """Return the MTU that fits into an interface's, and why it is another one than it has to be, if it is.

        Backend.MTU may be too large by now, or the interface too small for IPv6, which has its least all the same.
        Raises `FlannelError` if there is no room at all.
        """
        try:
            return self._fit(external), None
        except FlannelError as misfit:
            with_ipv6 = self._context.config.v6 is not None
            mtu = inner_mtu(external, self._overhead_bytes, MTU_MAX_BYTES, with_ipv6=with_ipv6)
            return mtu, f"{misfit}; the tunnel's MTU is {mtu} meanwhile"

    # What is asked

    def is_direct(self, peer: Peer) -> bool | None:
        """See `Network.is_direct`."""
        return None if self._direct is None else peer.subnet in self._past

    async def activity(self) -> AsyncIterator[Sequence[PeerActivity]]:
        """See `Network.activity`: of the peers on our link, past the tunnel, as far as the kernel's neighbours tell."""
        if self._direct is not None:
            async for part in neighbour_activity(self._external.index, self._find_past, self.mtu, self._version):
                yield part

    def _find_past(self, public_ips: Set[int]) -> dict[int, Peer]:
        found = self.find(public_ips) if public_ips else {}
        return {public_ip: peer for public_ip, peer in found.items() if peer.subnet in self._past}

    def echo_route(self, peer: Peer) -> EchoRoute | None:
        """See `Network.echo_route`: the device has the subnet's first address, with flanneld, too."""
        own = self._own
        return None if own is None else EchoRoute(tuple(islice(peer.subnet, 2)), own.network_address)

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        return answer if answer.peer is None else replace(answer, fault=self._routes.faults.get(answer.peer.subnet))

    def ways(self, version: int = 4) -> Ways:  # noqa: ARG002 - of the one that it carries
        """See `Network.ways`: out of the device, through each peer's gateway there."""
        faults, past, direct = self._routes.faults, self._past, self._direct
        peers = {at: peer for at, peer in self._peers.items() if at not in faults}
        gateways = {at: self._gateway(peer) for at, peer in peers.items()}
        if direct is None:
            return Ways(self._device.index, gateways)
        return Ways(self._device.index, gateways, {at: direct.way(peer) for at, peer in peers.items() if at in past})

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        problems = [text for text in (self._routes.end_fault, self._misfit) if text is not None]
        return NetworkFacts(
            device=self._device.name,
            direct=None if self._direct is None else len(self._past),
            device_traffic=self._device_traffic(),
            kernel_drops=self._kernel_drops.counts(self._external.index, self._device.index or None),
            problems=tuple(problems),
            faults=self._routes.faults,
        )

    def _device_traffic(self) -> dict[str, DeviceTraffic]:
        with suppress(FlannelError, OSError), open_rtnetlink("asking what the tunnel has carried") as netlink:
            if (carried := read_device_traffic(netlink, self._device.index)) is not None:
                return {self._device.name: carried}
        return {}  # it is gone, and will be back

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`: all stays for the next run, as flanneld's does, unless the options say otherwise."""
        if self._direct is not None:
            self._direct.close()
        if keep:
            return
        if self._clean_on_exit or not self._used:
            if self._routes.held:
                await self.withdraw()
            await asyncio.to_thread(self._device.delete)
        else:
            await self._routes.stay()


_PLURALS = {"neighbour": "neighbours", "fdb": "forwarding entries", "route": "routes to peers"}
