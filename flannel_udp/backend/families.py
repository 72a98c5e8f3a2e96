"""A network of both families: one network a family, each as if the other were not there.

For backends whose families have nothing in common but the external interface: host-gw, and vxlan, which has a device
for each. What goes wrong with one family costs the other nothing: everything is done to both before an error is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TypeVar

from flannel_udp.backend.ends import join_attrs
from flannel_udp.backend.joined_paths import JoinedPaths, join_path_facts
from flannel_udp.backend.late import FATAL, REPAIR, LateOpening
from flannel_udp.backend.protocol import Context, EchoRoute, KernelWay, Network, NetworkFacts, Transferable
from flannel_udp.dataplane.capture import Engine
from flannel_udp.dataplane.trial import TriedDatagram, TriedPacket
from flannel_udp.errors import FlannelError
from flannel_udp.host.device_drops import DeviceTraffic
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.monitor import Interest, join_interests
from flannel_udp.host.repair import Standing, both
from flannel_udp.model import (
    Address,
    Delta,
    Interface,
    LeaseAttrs,
    Peer,
    PeerActivity,
    PeerTraffic,
    RouteAnswer,
    Subnet,
)
from flannel_udp.netconf.config import NetworkConfig

T = TypeVar("T")
OpenOne = Callable[[Context, int], Awaitable[Network]]
"""Opens the network of one IP version. Raises `FlannelError`; nothing stays open then."""
RETRY_S = 2.0
"""How long after one family could not be put right it is looked at again, unless the kernel reports a change before."""
_SHARED_DROPS = ("interface_", "checksum")  # both families count these, which are not of one


def versions_on(config: NetworkConfig, external: Interface) -> tuple[int, ...]:
    """Return the IP versions that this host takes part by: those that are on, and that the interface has addresses of.

    Raises `FlannelError` where there is none.
    """
    found = tuple(version for version in config.versions if external.of(version) is not None)
    if not found:
        raise FlannelError(f"interface {external.name} has no address of a family that is on")
    return found


async def open_families(context: Context, open_one: OpenOne, carried: Sequence[int] = ()) -> Network:
    """Return the network of the families that this host takes part by.

    A family that cannot be opened now is tried again, as one whose address comes late, as long as there is another one.
    What was handed over is of the IP versions that are `carried`: all of it goes on, or nothing.
    A configuration of one family needs nothing around it. Raises `FlannelError`; nothing stays open then.
    """
    parts: dict[int, Network] = {}
    failed: list[FlannelError] = []
    for version in carried or versions_on(context.config, context.external):
        try:
            parts[version] = await open_one(context, version)
        except FlannelError as error:
            failed.append(error)
            # Who refuses what was handed over has closed it: it is nobody else's to try then.
            if carried or context.handed is not None or isinstance(error, FATAL):
                parts, opened = {}, parts
                for part in opened.values():
                    await part.close(keep=bool(carried))
                break
    if not parts:
        raise failed[-1] if isinstance(failed[-1], FATAL) else failed[0]
    return FamilyNetworks(context, open_one, parts) if len(context.config.versions) > 1 else next(iter(parts.values()))


async def for_each(parts: Mapping[int, T], do: Callable[[int, T], Awaitable[object]]) -> None:
    """Do this with the part of each IP version, and then raise what went wrong with any of them, as `FlannelError`."""
    failed: list[str] = []
    for version, part in parts.items():
        try:
            await do(version, part)
        except FlannelError as error:
            failed.append(str(error))
    if failed:
        raise FlannelError("; ".join(dict.fromkeys(failed)))


class FamilyNetworks:
    """See `Network`. `parts` are by IP version, IPv4's first; each is told of its own family only.

    One that is not there is opened, by `open_one`, as soon as the interface has an address of it.
    """

    def __init__(self, context: Context, open_one: OpenOne, parts: Mapping[int, Network]) -> None:
        self._context = replace(context, handed=None)  # of what is opened late
        self._open_one = open_one
        self._parts = dict(parts)
        self._until_s: float | None = None  # see `forward_until`
        self._late = LateOpening(self._open_late)
        self._n_late = 0

    @property
    def attrs(self) -> LeaseAttrs:
        """See `Network.attrs`."""
        return join_attrs(part.attrs for part in self._parts.values())

    @property
    def mtu(self) -> int:
        """See `KeptNetwork.mtu`: pods have one for both families."""
        return min(part.mtu for part in self._parts.values())

    @property
    def repairs(self) -> Counter[str]:
        """See `KeptNetwork.repairs`."""
        counted: Counter[str] = Counter({REPAIR: self._n_late})
        for part in self._parts.values():
            counted.update(part.repairs)
        return counted

    @property
    def keeps_routes(self) -> bool:
        """See `Network.keeps_routes`."""
        return any(part.keeps_routes for part in self._parts.values())

    @property
    def look_every_s(self) -> float | None:
        """See `KeptNetwork.look_every_s`."""
        return min((s for part in self._parts.values() if (s := part.look_every_s) is not None), default=None)

    # What packets do

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""

        async def publish(version: int, part: Network) -> None:
            if own.of(version) is not None:
                theirs = [delta for delta in (each.of(version) for each in deltas) if delta]
                if theirs or whole:
                    await part.publish(own, theirs, whole=whole)

        await for_each(self._parts, publish)

    def start(self) -> None:
        """See `Network.start`."""
        for part in self._parts.values():
            part.start()

    async def stands(self) -> None:
        """See `Network.stands`: of all that there are."""
        for part in self._parts.values():
            await part.stands()

    async def withdraw(self) -> None:
        """See `Network.withdraw`."""
        await for_each(self._parts, lambda _, part: part.withdraw())

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`."""
        self._until_s = boottime_s
        for part in self._parts.values():
            part.forward_until(boottime_s)

    # The host

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`; a family that the subnet has no part of is left alone."""

        async def hold(version: int, part: Network) -> None:
            if subnet.of(version) is not None:
                await part.hold(subnet, former)

        await for_each(self._parts, hold)

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`."""
        return join_interests({version: part.interest() for version, part in self._parts.items()})

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`: what stops one family is no obstacle as long as another one carries packets."""
        standings = [await _repaired(part) for part in self._parts.values()]
        standing = await self._late.look(self._missing())
        for other in standings:
            standing = both(standing, other)
        if all(each.obstacles for each in standings):
            return standing
        return Standing((), standing.obstacles + standing.problems, standing.again_s)

    def _missing(self) -> list[int]:
        on = versions_on(self._context.config, self._context.external)
        return [version for version in on if version not in self._parts]

    async def _open_late(self, version: int) -> None:
        part = await self._open_one(self._context, version)
        part.forward_until(self._until_s)
        self._parts = dict(sorted({**self._parts, version: part}.items()))
        self._n_late += 1

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`; a family whose address has gone stays as it is until it is back."""

        async def follow(version: int, part: Network) -> None:
            if external.of(version) is not None:
                await part.follow(external)

        await for_each(self._parts, follow)
        if external != self._context.external:
            self._context = replace(self._context, external=external)
            self._late.try_at_once()

    # What is asked

    def peers(self) -> list[Peer]:
        """See `Network.peers`: those of IPv4 first."""
        return [peer for part in self._parts.values() for peer in part.peers()]

    def is_direct(self, peer: Peer) -> bool | None:
        """See `Network.is_direct`."""
        return part.is_direct(peer) if (part := self._parts.get(peer.version)) else None

    def traffic(self, peer: Peer) -> PeerTraffic | None:
        """See `Network.traffic`."""
        return part.traffic(peer) if (part := self._parts.get(peer.version)) else None

    async def activity(self) -> AsyncIterator[Sequence[PeerActivity]]:
        """See `Network.activity`."""
        for part in self._parts.values():
            async for activities in part.activity():
                yield activities

    def find(self, public_ips: Set[int]) -> dict[int, Peer]:
        """See `Network.find`: no two families have one number, see `model.peers_at`."""
        return {at: peer for part in self._parts.values() for at, peer in part.find(public_ips).items()}

    def echo_route(self, peer: Peer) -> EchoRoute | None:
        """See `Network.echo_route`."""
        return part.echo_route(peer) if (part := self._parts.get(peer.version)) else None

    @property
    def source_ports(self) -> Collection[int]:
        """See `Network.source_ports`."""
        first, *others = (part.source_ports for part in self._parts.values())
        return first if all(other == first for other in others) else frozenset(first).union(*others)

    @property
    def path_news(self) -> int:
        """See `Network.path_news`."""
        return sum(part.path_news for part in self._parts.values())

    @property
    def path_limits(self) -> Mapping[Address, int]:
        """See `Network.path_limits`."""
        return {at: limit for part in self._parts.values() for at, limit in part.path_limits.items()}

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """See `Network.limit_path_mtu`."""
        if part := self._parts.get(public_ip.version):
            part.limit_path_mtu(public_ip, n_bytes)

    def mtu_option(self, peer: Peer, n_bytes: int) -> int | None:
        """See `Network.mtu_option`."""
        return part.mtu_option(peer, n_bytes) if (part := self._parts.get(peer.version)) else None

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        part = self._parts.get(address.version)
        return RouteAnswer(None, own=False) if part is None else part.route(address)

    def try_packet(self, packet: bytes) -> TriedPacket | None:
        """See `Network.try_packet`."""
        return part.try_packet(packet) if (part := self._parts.get(packet[0] >> 4)) else None

    def try_datagram(self, payload: bytes, sender: Address, tos: int) -> TriedDatagram | None:
        """See `Network.try_datagram`."""
        return part.try_datagram(payload, sender, tos) if (part := self._parts.get(sender.version)) else None

    def kernel_way(self, peer: Peer) -> KernelWay:
        """See `Network.kernel_way`."""
        return part.kernel_way(peer) if (part := self._parts.get(peer.version)) else KernelWay()

    def ways(self, version: int = 4) -> Ways | None:
        """See `Network.ways`."""
        return part.ways(version) if (part := self._parts.get(version)) else None

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        facts = {version: part.facts() for version, part in self._parts.items()}
        first = next(iter(facts.values()))
        directs = [each.direct for each in facts.values() if each.direct is not None]
        device_v6 = facts[6].device if 6 in facts else None
        return replace(
            join_path_facts(*facts.values()),
            device_v6=None if device_v6 == first.device else device_v6,
            direct=sum(directs) if directs else None,
            device_traffic=_join_traffic(each.device_traffic for each in facts.values()),
            kernel_drops=_join_drops(each.kernel_drops for each in facts.values()),
            problems=tuple(dict.fromkeys(text for each in facts.values() for text in each.problems)),
            faults={at: text for each in facts.values() for at, text in each.faults.items()},
        )

    async def come_round(self) -> None:
        """See `Network.come_round`."""
        for part in self._parts.values():
            await part.come_round()

    def engines(self) -> Sequence[Engine]:
        """See `Network.engines`."""
        return [engine for part in self._parts.values() for engine in part.engines()]

    @property
    def transferable(self) -> Transferable | None:
        """See `Network.transferable`."""
        paths = {version: part.transferable for version, part in self._parts.items()}
        found = {version: path for version, path in paths.items() if path is not None}
        return JoinedPaths(found) if found else None

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`."""
        await for_each(self._parts, lambda _, part: part.close(keep=keep))


async def _repaired(part: Network) -> Standing:
    try:
        return await part.repair()
    except FlannelError as failed:
        return Standing((str(failed),), again_s=RETRY_S)


def _join_traffic(parts: Iterable[Mapping[str, DeviceTraffic] | None]) -> dict[str, DeviceTraffic] | None:
    found = [part for part in parts if part is not None]
    return {name: carried for part in found for name, carried in part.items()} if found else None


def _join_drops(parts: Iterable[Mapping[str, int] | None]) -> dict[str, int] | None:
    """Add up what the kernel dropped of each family; the external interface's, and wrong checksums, all count alike."""
    joined: dict[str, int] | None = None
    for part in parts:
        if part is not None:
            joined = {} if joined is None else joined
            for place, n in part.items():
                joined[place] = n if place.startswith(_SHARED_DROPS) else joined.get(place, 0) + n
    return joined
