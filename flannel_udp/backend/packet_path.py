"""What the networks have in common whose packets pass our own packet path: a TUN device, sockets, engines between.

Where they differ is in `PathSettings`: what stands between the outer header and the inner packet, the device's name,
what our lease says of us. A backend makes one and is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from flannel_udp.backend.direct import LOOK_EVERY_S, DirectRoutes
from flannel_udp.backend.ends import ends_of, with_public_ip
from flannel_udp.backend.families import for_each
from flannel_udp.backend.kernel_drops import KernelDrops
from flannel_udp.backend.late import REPAIR, LateOpening
from flannel_udp.backend.leased_routes import ROUTES_CLAIM
from flannel_udp.backend.mtu import MtuOption
from flannel_udp.backend.protocol import Context, EchoRoute, Handed, KernelWay, NetworkFacts
from flannel_udp.backend.tunnel import REPAIRS, TunnelKeeper
from flannel_udp.dataplane.adopted import Adopted, adopted_from
from flannel_udp.dataplane.capture import Engine
from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.dataplane.drop_log import DropLog
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.kernel_faults import kernel_faults
from flannel_udp.dataplane.raw_underlay import PROTOCOL
from flannel_udp.dataplane.trial import TriedDatagram, TriedPacket, try_datagram, try_packet
from flannel_udp.dataplane.worker import count_workers
from flannel_udp.errors import FlannelError
from flannel_udp.host import netlink
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.monitor import Interest, Monitor, join_interests, open_monitor_socket
from flannel_udp.host.privileges import check_tun
from flannel_udp.host.repair import Standing, both
from flannel_udp.model import (
    Address,
    Delta,
    Interface,
    LeaseAttrs,
    Peer,
    PeerActivity,
    PeerTraffic,
    Prefix,
    RouteAnswer,
    Subnet,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where one packet path differs from another."""

    attrs: LeaseAttrs
    """What our lease is to say of us."""
    mtu: Callable[[Interface], int]
    """The overlay's MTU in bytes behind that external interface; raises `FlannelError` where it leaves no room."""
    encapsulation: Encapsulation
    port: int | None
    """The UDP port that every host receives on; ``None`` where the encapsulation has none."""
    mtu_option: MtuOption | None = None
    """What Backend.MTU means, where it is an option."""
    versions: tuple[int, ...] = (4,)
    """The IP versions that it carries from the start; the external interface has an address of each."""
    late: tuple[int, ...] = ()
    """Those that it carries as well as soon as that interface has an address, and nothing is in the way."""
    device: str | None = None
    """The TUN device's name; ``None``: flannel0, or the next free one (flanneld's way)."""
    source_ports: int = 0
    """See `DataplaneOptions.source_ports`, which wins where it is given."""
    dscp: int = 0
    """The outer headers', six bits (RFC 2474 section 3); `DSCP_INHERIT`: the inner one's."""
    datapath: str | None = None
    why: str | None = None
    """See `NetworkFacts.datapath`, and the clause about it."""


def open_dataplane(context: Context, settings: PathSettings) -> Dataplane:
    """Open the device and the sockets, or go on with those that were handed over. Raises `FlannelError`."""
    options = context.options.dataplane
    if context.handed is None:
        check_tun()
    return Dataplane(
        [ends.address for ends in map(context.external.of, settings.versions) if ends is not None],
        settings.port,
        replace(options, source_ports=options.source_ports or settings.source_ports),
        context.on_fault,
        encapsulation=settings.encapsulation,
        device=settings.device,
        dscp=settings.dscp,
        adopted=None if context.handed is None else _adopt(context.handed, count_workers(options), settings),
        claims=context.claims,
    )


def _adopt(handed: Handed, workers: int, settings: PathSettings) -> Adopted:
    try:
        return adopted_from(handed.descriptors, workers, handed.state, settings.encapsulation, settings.versions)
    except FlannelError:
        handed.close()
        raise


def with_public_ips(attrs: LeaseAttrs, external: Interface, versions: Sequence[int]) -> LeaseAttrs:
    """Return what our lease is to say, with the public IPs of the interface as it is now."""
    for version in versions:
        ends = external.of(version)
        if ends is not None:
            attrs = with_public_ip(attrs, ends.public_ip)
    return attrs


class PacketPathNetwork:
    """See `Network`: the dataplane, and its device kept as it should be.

    One route, for all of the overlay, leads to the device, whatever the encapsulation: see docs/decisions/0025. With
    two IP versions there is one of each. With DirectRouting there are routes past it as well, see `backend.direct`.
    """

    def __init__(self, context: Context, settings: PathSettings) -> None:
        """Open it all, or go on with what was handed over. Raises `FlannelError`; nothing stays open then."""
        self._settings = settings
        self._external = external = context.external
        self.attrs = settings.attrs
        self.mtu = settings.mtu(external)
        if context.config.backend.options.get("DirectRouting"):
            context.claims.hold(ROUTES_CLAIM)  # now, when nothing is open that another agent's would leave open
        self._dataplane = dataplane = open_dataplane(context, settings)
        dataplane.set_mtu(self.mtu)
        self.repairs: Counter[str] = Counter(dict.fromkeys((*REPAIRS, "socket"), 0))
        """``socket``: the sockets bound to another address; see backend.tunnel for the others."""
        if settings.late:
            self.repairs[REPAIR] = 0
        queue_packets = context.options.dataplane.tx_queue_packets
        self._context = context
        self._versions = settings.versions
        self._late = LateOpening(self._open_late)
        self._until_s: float | None = None  # see `forward_until`
        self._tunnel = TunnelKeeper(dataplane, self._overlays(), queue_packets, self.repairs)
        self._kernel_drops = KernelDrops(external.index, dataplane.tunnel.index)
        self._drop_log = DropLog(self._drops, dataplane.last_dropped)
        # Any route may lead to a peer, over any device: to ask anew once too often costs a packet for each narrow path.
        self._path_monitor = Monitor(open_monitor_socket(), self._paths_may_differ)
        self._n_path_news = 0
        self._own: Subnet | None = None
        self._misfit: str | None = None  # why the tunnel's MTU is not what the interface's asks for
        self._clean_on_exit = context.options.firewall.clean_on_exit
        self._direct = dict(self._open_direct(settings.versions))
        buffers = dataplane.socket_buffers
        logger.info("opened %s and %s", dataplane.tunnel.name, " and ".join(map(self._end, settings.versions)))
        if settings.why is not None:
            logger.info("our own packet path carries packets: %s", settings.why)
        if n_ports := dataplane.n_source_ports:
            logger.info("packets leave from %d source ports of the kernel's choice, by flow", n_ports)
        logger.info(
            "offloads in use: %s; workers: %d; socket buffers: receive %d, send %d bytes",
            *(", ".join(dataplane.offload.names()) or "none", dataplane.workers, *buffers),
        )

    def _end(self, version: int) -> str:
        """Return what is received on."""
        ends = self._external.of(version)
        address = None if ends is None else ends.address
        if self._settings.port is None:
            return f"IPIP {address}"
        return f"UDP {address}:{self._settings.port}" if version == 4 else f"UDP [{address}]:{self._settings.port}"

    def _open_direct(self, versions: Iterable[int]) -> Iterator[tuple[int, DirectRoutes]]:
        """Yield the routes past the tunnel by IP version; none without DirectRouting."""
        if self._context.config.backend.options.get("DirectRouting"):
            self.repairs.setdefault("direct", 0)
            context = replace(self._context, external=self._external)
            for version in versions:
                yield version, DirectRoutes(context, lambda: self._dataplane.tunnel.index, version)

    def _overlays(self) -> list[Prefix]:
        return [overlay for overlay in self._context.config.overlays if overlay.version in self._versions]

    async def _open_late(self, version: int) -> None:
        """Carry packets of that IP version as well, see `PathSettings.late`; `hold` is next. Raises `FlannelError`."""
        self._dataplane.add(ends_of(self._external, version).address)
        self._dataplane.set_mtu(self.mtu)
        self._versions = tuple(sorted((*self._versions, version)))
        self._tunnel.carry(self._overlays())
        for _, direct in self._open_direct((version,)):
            direct.forward_until(self._until_s)
            self._direct = dict(sorted({**self._direct, version: direct}.items()))
        self.attrs = with_public_ips(self.attrs, self._external, self._versions)
        self.repairs[REPAIR] += 1
        logger.info("opened %s", self._end(version))

    def _paths_may_differ(self) -> None:
        self._n_path_news += 1
        self._dataplane.forget_path_mtus()

    # What packets do

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`: route tables go in force."""
        self._own = own
        await self._dataplane.publish(own, deltas, whole=whole)

        async def publish(version: int, direct: DirectRoutes) -> None:
            share = own.of(version)
            if share is not None:
                await direct.publish(share, [delta.of(version) for delta in deltas], whole=whole)

        await for_each(self._direct, publish)

    def start(self) -> None:
        """See `Network.start`: the data threads."""
        self._dataplane.start()

    async def stands(self) -> None:
        """See `Network.stands`: packets need nothing but this host."""

    async def withdraw(self) -> None:
        """See `Network.withdraw`: an empty table."""
        self._own = None
        await self._dataplane.publish(None, (), whole=True)
        await for_each(self._direct, lambda _, direct: direct.withdraw())

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the engines keep to it by themselves, and the kernel does."""
        self._until_s = boottime_s
        self._dataplane.forward_until(boottime_s)
        for direct in self._direct.values():
            direct.forward_until(boottime_s)

    # The host

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`."""
        kind = self._context.config.backend.type
        # flanneld's udp knows no DirectRouting.
        after_flanneld = former is not None and former.backend_type == kind and kind != "udp"

        async def hold(version: int, direct: DirectRoutes) -> None:
            share = subnet.of(version)
            if share is not None:
                await direct.hold(share, load=self._own == subnet, after_flanneld=after_flanneld)

        try:
            await self._tunnel.hold(subnet, self.mtu)
        finally:  # what fails is put right by `repair`, and this needs no device
            await for_each(self._direct, hold)

    @property
    def look_every_s(self) -> float | None:
        """See `KeptNetwork.look_every_s`: of the device the kernel reports all there is to see."""
        return LOOK_EVERY_S if self._direct else None

    @property
    def keeps_routes(self) -> bool:
        """See `Network.keeps_routes`."""
        return bool(self._direct)

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`."""
        tunnel = self._tunnel.interest()
        direct = join_interests({version: direct.interest() for version, direct in self._direct.items()})
        return replace(tunnel, devices={*tunnel.devices, *direct.devices}, own=direct.own)

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`."""
        external = self._external
        late = [version for version in self._settings.late if external.of(version) and version not in self._versions]
        standing = both(await self._late.look(late), await self._tunnel.repair(self.mtu))
        for direct in self._direct.values():
            standing = both(standing, await direct.repair())
        if self._direct:
            self.repairs["direct"] = sum(direct.n_repairs for direct in self._direct.values())
        return standing

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: bind to other addresses, fit the MTU."""
        former = self._external
        for version in self._versions:
            ends, before = external.of(version), former.of(version)
            if ends is None or before is None or ends.address == before.address:
                continue
            self._dataplane.rebind(ends.address)
            self.repairs["socket"] += 1
            logger.info(
                "the external address is %s on %s now, it was %s on %s: the sockets are bound to it, public IP %s",
                *(ends.address, external.name, before.address, former.name, ends.public_ip),
            )
        self._external, self.attrs = external, with_public_ips(self.attrs, external, self._versions)
        if external != former:
            self._late.try_at_once()
        if external.mtu != former.mtu:
            self._fit_mtu()
        await for_each(self._direct, lambda _, direct: direct.follow(external))

    def _fit_mtu(self) -> None:
        """Let the device's MTU follow the interface's, at the next `repair`."""
        external = self._external
        try:
            mtu = self._settings.mtu(external)
        except FlannelError as misfit:
            self._misfit = f"{misfit}; the tunnel keeps its MTU of {self.mtu}, and what is larger is lost"
            logger.warning("%s", self._misfit)
            return
        self._misfit = None
        if mtu != self.mtu:
            logger.info("the MTU of %s is %d now: the tunnel's is %d", external.name, external.mtu, mtu)
            self.mtu = mtu
            self._dataplane.set_mtu(mtu)
            self._tunnel.mtu_follows()

    # What is asked

    def peers(self) -> list[Peer]:
        """See `Network.peers`."""
        return self._dataplane.sorted_peers()

    def is_direct(self, peer: Peer) -> bool | None:
        """See `Network.is_direct`."""
        return direct.is_direct(peer) if (direct := self._direct.get(peer.version)) else None

    def traffic(self, peer: Peer) -> PeerTraffic | None:
        """See `Network.traffic`: what takes a route past the tunnel nobody counts."""
        return None if self.is_direct(peer) else self._dataplane.traffic(peer)

    async def activity(self) -> AsyncIterator[list[PeerActivity]]:
        """See `Network.activity`."""
        for part in self._dataplane.activity():
            for direct in self._direct.values():
                direct.note_tunnelled(part)
            yield part
            await asyncio.sleep(0)
        for direct in self._direct.values():
            async for part in direct.activity(self.mtu):
                yield part

    def find(self, public_ips: Set[int]) -> dict[int, Peer]:
        """See `Network.find`."""
        return self._dataplane.find(public_ips)

    def echo_route(self, peer: Peer) -> EchoRoute | None:
        """See `Network.echo_route`: the tunnel device has the subnet's first address, with flanneld, too."""
        own = None if self._own is None else self._own.of(peer.version)
        return None if own is None else EchoRoute(tuple(islice(peer.subnet, 2)), own.network_address)

    @property
    def source_ports(self) -> Set[int]:
        """See `Network.source_ports`."""
        return self._dataplane.source_ports

    @property
    def path_news(self) -> int:
        """See `Network.path_news`."""
        return self._n_path_news

    @property
    def path_limits(self) -> Mapping[Address, int]:
        """See `Network.path_limits`."""
        return self._dataplane.path_limits

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """See `Network.limit_path_mtu`."""
        self._dataplane.limit_path_mtu(public_ip, n_bytes)

    def mtu_option(self, peer: Peer, n_bytes: int) -> int | None:
        """See `Network.mtu_option`."""
        option = self._settings.mtu_option
        return None if option is None else option.fitting(n_bytes, peer.version, direct=bool(self.is_direct(peer)))

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        return self._dataplane.route(address)

    def try_packet(self, packet: bytes) -> TriedPacket:
        """See `Network.try_packet`."""
        settings = self._settings
        return try_packet(self._dataplane.paths, settings.encapsulation, settings.port or 0, packet)

    def try_datagram(self, payload: bytes, sender: Address, tos: int) -> TriedDatagram | None:
        """See `Network.try_datagram`."""
        path = self._dataplane.paths.get(sender.version)
        return None if path is None else try_datagram(path, payload, sender, tos)

    def kernel_way(self, peer: Peer) -> KernelWay:  # noqa: ARG002 - what goes past the tunnel has a route alone
        """See `Network.kernel_way`."""
        return KernelWay()

    def ways(self, version: int = 4) -> Ways:
        """See `Network.ways`: all to the device, but for those past it."""
        peers = (peer for peer in self._dataplane.peers() if peer.version == version)
        to_device = dict.fromkeys(peer.subnet for peer in peers)
        if version not in self._direct:
            return Ways(self._dataplane.tunnel.index, to_device)
        direct = {at: way for at, way in self._direct[version].ways().items() if at in to_device}
        return Ways(self._dataplane.tunnel.index, to_device, direct)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        dataplane = self._dataplane
        return NetworkFacts(
            device=dataplane.tunnel.name,
            port=self._settings.port,
            ip_protocol=PROTOCOL if self._settings.port is None else None,
            datapath=self._settings.datapath,
            datapath_why=self._settings.why,
            offload=dataplane.offload.names(),
            worker_packets=dataplane.worker_packets(),
            socket_buffers=dataplane.socket_buffers,
            counters=dataplane.counters(),
            counters_by_version=dataplane.counters_by_version(),
            last_dropped=dataplane.last_dropped(),
            direct=sum(direct.n_direct for direct in self._direct.values()) if self._direct else None,
            kernel_drops={
                "socket": dataplane.socket_drops,
                **self._kernel_drops.counts(self._external.index, dataplane.tunnel.index),
            },
            problems=(
                *kernel_faults(os.uname().release, dataplane.offload),
                *([] if self._misfit is None else [self._misfit]),
                *(direct.fault for direct in self._direct.values() if direct.fault is not None),
            ),
        )

    def _drops(self) -> dict[str, dict[str, int]]:
        counters = self._dataplane.counters()
        return {direction: counters[direction]["drops"] for direction in ("out", "in")}

    async def come_round(self) -> None:
        """See `Network.come_round`."""
        await self._dataplane.come_round()

    def engines(self) -> Sequence[Engine]:
        """See `Network.engines`."""
        return self._dataplane.engines()

    @property
    def transferable(self) -> Dataplane:
        """See `Network.transferable`."""
        return self._dataplane

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`."""
        self._path_monitor.close()
        self._drop_log.close()
        await for_each(self._direct, lambda _, direct: direct.close(keep=keep, clean=self._clean_on_exit))
        name, persistent = self._dataplane.tunnel.name, self._dataplane.tunnel.persistent
        self._dataplane.close()
        if persistent and not keep:  # somebody else made it, so it stays, with nothing of ours on it
            with suppress(FlannelError):
                await asyncio.to_thread(netlink.unconfigure, name)
