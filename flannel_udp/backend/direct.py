"""DirectRouting: peers on our link get a route, as with host-gw, and no tunnel; the others the tunnel, as ever.

`DirectRoutes` is for tunnels of our own packet path. Its table keeps every peer, so that packets travel at any moment:
those for which there is no route, or no more, go to the tunnel device, and what comes by the tunnel is taken from all
peers alike. A tunnel of the kernel's has a route a peer anyway, and asks `DirectPeers` which one it is to be.

1. `publish`: who is new is asked about (`DirectPeers`, `host.on_link`), and gets a route if that one is on the link
2. news of the underlay make `repair` ask again, and the routes follow: appended before, deleted after the change
3. the routes end with the lease, are looked after, and removed when it is lost, as host-gw's are (`leased_routes`)

Both ends decide for themselves. Where only one finds the other on its link packets take one way there and another one
back, which a strict rp_filter drops: `TunnelAnswers` finds out, and `repair` tells.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Container, Iterable, Mapping, Sequence, Set
from ipaddress import ip_address

from flannel_udp.backend.leased_routes import LeasedRoutes, leasable
from flannel_udp.backend.neighbour_activity import neighbour_activity
from flannel_udp.backend.protocol import Context
from flannel_udp.backend.routes import Hop
from flannel_udp.errors import FlannelError
from flannel_udp.host.family import IPV4
from flannel_udp.host.lookup.forwarding import is_strict, read_settings
from flannel_udp.host.lookup.question import DeviceNames, Way
from flannel_udp.host.monitor import Interest
from flannel_udp.host.on_link import OnLink, open_news
from flannel_udp.host.repair import STANDS, Pace, Standing
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Address, Delta, Interface, Peer, PeerActivity, Prefix, peers_at, subnets_of
from flannel_udp.netconf.config import NetworkConfig

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
"""For what the kernel does not report."""
LASTING_S = 3.0
"""A peer that answers by the tunnel for so long does not only notice later than we that it is on our link."""
FORGOTTEN_S = 60.0
"""After which an answer by the tunnel tells nothing any more."""
RETRY_S = 2.0
ASYMMETRIC_AGAIN_S = 5.0
"""How often sysctls are looked at, which nobody reports to us, while there is such a peer."""
NAMED_MAX = 3
"""So many of these peers are named."""


class TunnelAnswers:
    """Which peers answer by the tunnel though packets go to them directly, and not only for a moment.

    Pure; a peer is its public IP, a number in host order. Times are seconds of one clock.
    """

    def __init__(self) -> None:
        self._seen_s: dict[int, tuple[float, float]] = {}  # when first and last

    def note(self, activities: Iterable[PeerActivity], direct: Container[int], now_s: float) -> bool:
        """Take note of what passed the tunnel; tell whether there is one more that lasts."""
        begun = False
        for activity in activities:
            if activity.packets_in and activity.public_ip in direct:
                first_s, last_s = self._seen_s.get(activity.public_ip, (now_s, now_s))
                first_s = first_s if now_s - last_s < FORGOTTEN_S else now_s
                self._seen_s[activity.public_ip] = first_s, now_s
                begun |= now_s - first_s >= LASTING_S > last_s - first_s
        return begun

    def lasting(self, direct: Container[int], now_s: float) -> list[int]:
        """Return those peers, and forget who is none of them any more."""
        self._seen_s = {
            peer: seen for peer, seen in self._seen_s.items() if peer in direct and now_s - seen[1] < FORGOTTEN_S
        }
        return sorted(peer for peer, (first_s, last_s) in self._seen_s.items() if last_s - first_s >= LASTING_S)


class DirectPeers:
    """Which peers of one IP version are on our link, and how packets get there; made and used on the running loop.

    What is said to be done in a thread blocks: one at a time. Raises `FlannelError` there.
    """

    def __init__(self, context: Context, version: int = 4) -> None:
        def look() -> None:
            context.on_fault()

        self._index = context.external.index
        self._on_link = OnLink(open_news(version), self._index, look, version)
        self._said = Pace()

    def close(self) -> None:
        """Ask no more."""
        self._on_link.close()

    def follow(self, external: Interface) -> bool:
        """Go on with that interface; tell whether it is another one, so that every peer has another way."""
        moves, self._index = external.index != self._index, external.index
        self._on_link.follow(self._index)
        return moves

    @property
    def hosts(self) -> Container[int]:
        """The public IPs on our link, numbers in host order."""
        return self._on_link

    @property
    def again_s(self) -> float | None:
        """See `OnLink.again_s`."""
        return self._on_link.again_s

    def learn(self, peers: Mapping[Prefix, Peer], subnets: Collection[Prefix] | None) -> None:
        """Ask about those who are new among the peers of these subnets, ``None``: all. In a thread."""
        if subnets is None or not all(at in peers for at in subnets):  # some have left
            self._on_link.keep_only(int(peer.public_ip) for peer in peers.values())
        if subnets is None:
            self._on_link.look()
        concerned = peers if subnets is None else subnets
        self._on_link.ask(int(peers[at].public_ip) for at in concerned if at in peers)

    def hop(self, peer: Peer, source: Address | None) -> Hop | None:
        """Return the route to a peer that was asked about, ``None`` for the tunnel."""
        return Hop(peer.public_ip, self._index, source) if int(peer.public_ip) in self._on_link else None

    def way(self, peer: Peer) -> Way:
        """Return where packets for such a peer have to go."""
        return Way(self._index, peer.public_ip)

    def moved(self, peers: Mapping[Prefix, Peer]) -> Set[Prefix]:
        """Ask again about whom news concern; return the subnets of those whose answer is another one. In a thread."""
        changed = self._on_link.look()
        if not changed:
            return frozenset()
        self._say(changed)
        return {at for at, peer in peers.items() if int(peer.public_ip) in changed}

    def _say(self, changed: Set[int]) -> None:
        """Log it, unless it changes all the time."""
        now_s = time.monotonic()
        if self._said.pause_s(now_s) > 0:
            return
        self._said.note(now_s)
        come = sorted(host for host in changed if host in self._on_link)
        for hosts, what in (
            (come, "on our link now, packets go there directly"),
            (sorted(changed - set(come)), "not on our link any more, packets go through the tunnel"),
        ):
            if hosts:
                logger.info("%s: %s", what, _list(hosts))


class DirectRoutes:
    """Routes of one IP version past `tunnel`, a device's index; made and used on the running loop.

    Raises `FlannelError` if another agent has such routes. Its methods are those of `Network` that have their names.
    """

    def __init__(self, context: Context, tunnel: Callable[[], int], version: int = 4) -> None:
        self._version = version
        self._external = context.external
        self._look = context.on_fault
        self._tunnel = tunnel
        self._peers: dict[Prefix, Peer] = {}  # replaced, never changed: threads walk it
        self._routes = LeasedRoutes(context, self._hops, tunnel, version=version)
        self._direct = DirectPeers(context, version)
        self._answers = TunnelAnswers()
        self.n_repairs = 0
        """How many routes were put right."""

    # What packets do

    async def publish(self, own: Prefix, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Give the peers that are on our link a route, once packets can pass the tunnel to them."""
        peers = {} if whole else self._peers.copy()
        for delta in deltas:
            for peer in delta.removed:
                peers.pop(peer.subnet, None)
            peers.update({peer.subnet: peer for peer in (*delta.added, *delta.changed)})
        self._peers = peers
        if whole:
            await self._routes.load(own)
        else:
            await self._routes.apply(own, subnets_of(deltas))

    async def withdraw(self) -> None:
        """Remove all routes."""
        self._peers = {}
        await self._routes.withdraw()

    def forward_until(self, boottime_s: float | None) -> None:
        """See `LeasedRoutes.forward_until`."""
        self._routes.forward_until(boottime_s)

    def _hops(self, subnets: Collection[Prefix] | None, source: Address | None) -> dict[Prefix, Hop | None]:
        """Ask about those who are new. In a thread."""
        peers = self._peers
        self._direct.learn(peers, subnets)
        return {
            at: None if (peer := peers.get(at)) is None else self._direct.hop(peer, source)
            for at in (peers if subnets is None else subnets)
        }

    # The host

    async def hold(self, subnet: Prefix, *, load: bool, after_flanneld: bool) -> None:
        """See `LeasedRoutes.hold`: call it once the tunnel device has its address. What fails is tried again.

        `after_flanneld`: its routes past the tunnel are taken over.
        """
        if after_flanneld:
            self._routes.inherit(elsewhere=True)
        try:
            await self._routes.hold(subnet, load=load)
        except FlannelError:
            self._look()

    def interest(self) -> Interest:
        """See `LeasedRoutes.interest`; what concerns the underlay is listened for by `OnLink`."""
        return self._routes.interest()

    async def repair(self) -> Standing:
        """Follow the underlay and put routes right. What cannot be set leaves its peer to the tunnel."""
        if not self._routes.loaded:
            return STANDS
        lasting = self._answers.lasting(self._direct.hosts, time.monotonic())
        try:
            n = await self._routes.repair(lambda: self._direct.moved(self._peers))
            problem = await asyncio.to_thread(self._judge_answers, lasting) if lasting else None
        except FlannelError as failed:
            return Standing(problems=(str(failed),), again_s=RETRY_S)
        if n:
            self.n_repairs += n
            logger.info("put right: routes to peers on our link: %d", n)
        waits = [self._routes.again_s, self._direct.again_s, ASYMMETRIC_AGAIN_S if lasting else None]
        again_s = min((wait_s for wait_s in waits if wait_s is not None), default=None)
        return Standing(problems=() if problem is None else (problem,), again_s=again_s)

    def _judge_answers(self, lasting: Sequence[int]) -> str | None:
        """Return what becomes of what these send by the tunnel, if that is dropped. Raises `FlannelError`."""
        if self._version == 6:  # of which the kernel has no rp_filter
            return None
        with open_rtnetlink("asking which sources the tunnel device takes") as netlink:
            index = self._tunnel()
            if not is_strict(read_settings(netlink, [index]), index):
                return None
            name = DeviceNames(netlink)[index]
        return (
            f"packets go directly to {_list(lasting)}, which answer through the tunnel: dropped, as rp_filter of "
            f"{name} is 1 (strict): sysctl -w {IPV4.setting(name, 'rp_filter')}=2"
        )

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: all routes lead out of that interface."""
        self._external = external
        if self._direct.follow(external):
            await self._routes.reload()

    # What is asked

    @property
    def fault(self) -> str | None:
        """Why the routes do not end with the lease, see `LeaseEnd.fault`."""
        return self._routes.end_fault

    @property
    def n_direct(self) -> int:
        """To how many subnets packets go directly."""
        return self._routes.n_standing

    def is_direct(self, peer: Peer) -> bool:
        """Tell whether packets for a peer's subnet take a route of ours; in any thread."""
        return self._routes.stands(peer.subnet)

    def ways(self) -> dict[Prefix, Way]:
        """Return where packets for those subnets have to go, see `Ways.direct`; in any thread."""
        return {at: self._direct.way(peer) for at, peer in self._peers.items() if self._routes.stands(at)}

    def note_tunnelled(self, activities: Iterable[PeerActivity]) -> None:
        """Take note of what passed the tunnel."""
        if self._answers.note(activities, self._direct.hosts, time.monotonic()):
            self._look()

    async def activity(self, mtu: int) -> AsyncIterator[list[PeerActivity]]:
        """See `neighbour_activity`."""
        async for part in neighbour_activity(self._external.index, self._find, mtu, self._version):
            yield part

    def _find(self, public_ips: Set[int]) -> dict[int, Peer]:
        found = peers_at(self._peers.values(), public_ips) if public_ips else {}
        return {public_ip: peer for public_ip, peer in found.items() if self.is_direct(peer)}

    async def close(self, *, keep: bool, clean: bool) -> None:
        """End; the routes stay, and end with the lease, unless `clean` wants them gone and nobody is to `keep` them."""
        self._direct.close()
        if clean and not keep and self._routes.held:
            await self._routes.withdraw()


def route_for(config: NetworkConfig, address: Address) -> Prefix | None:
    """See `Backend.route_for`, for a tunnel that has one route, to the overlay, and perhaps those past it."""
    subnets = config.of(address.version)
    if subnets is None or address not in subnets.network:
        return None
    past = leasable(config, address) if config.backend.options.get("DirectRouting") else None
    return past or subnets.network


def _list(addresses: Sequence[int]) -> str:
    more = f" and {len(addresses) - NAMED_MAX} more" if len(addresses) > NAMED_MAX else ""
    return ", ".join(str(ip_address(address)) for address in addresses[:NAMED_MAX]) + more
