"""A set of kernel routes kept as data: one route a peer, brought into the kernel by differences and kept right.

This is flannel's RouteNetwork. Ours are in the main table, have metric 0 and bear a protocol number of their own, so
that those that a killed run left are found, and nobody else's are touched: a route is only added where there is none to
the same destination (NLM_F_EXCL) and only deleted as ours.

What the kernel or somebody else's route keeps from us becomes a text in `RouteSet.faults`, and is tried again at every
repair; the other routes stand meanwhile. What is no fault:

- a foreign route to the same destination with another metric. Both stand, and ours is used: metric 0 is the best.
- a foreign route to a part of the destination. It is used for that part.

One agent a host: two would take each other's routes for a killed run's and delete them, each time they look.

A change adds the new route behind the former one and then deletes that: no packet finds none. How routes end with the
lease is in `lease_end`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_udp.host.netlink import RTPROT_BOOT
from flannel_udp.host.rtnetlink import (
    Link,
    Message,
    Refusal,
    Route,
    Rtnetlink,
    add_route,
    append_route,
    delete_route,
    open_rtnetlink,
    parse_route,
)

ROUTE_PROTOCOL = 82
"""RTPROT_… of our routes. Nobody's in linux/rtnetlink.h and iproute2's rt_protos, which have 84 (OVN) next to it.

`ip route show proto 82` shows them; a line `82 flannel-udp` in /etc/iproute2/rt_protos.d/*.conf gives them a name.
"""

_PROTOCOL_NAMES = {2: "kernel", 3: "boot", 4: "static", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp"}


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a destination's packets go."""

    gateway: IPv4Address
    oif: int
    """The interface's index."""
    source: IPv4Address | None = None
    """An address of this host; the route goes when the address does. ``None``: the kernel chooses."""
    onlink: bool = False
    """Take the gateway for a neighbour on that interface without a route that says so."""


class RouteSet:
    """Wanted routes, and what keeps some of them out of the kernel. Begins with `load`.

    Methods block, for seconds where thousands of routes change (the kernel compares a new route with all others of the
    same device): call them through ``asyncio.to_thread``, one at a time. They raise `FlannelError` where nothing at all
    can be done, such as without CAP_NET_ADMIN; the next `repair` then brings what is still missing.
    """

    def __init__(self) -> None:
        self._wanted: dict[IPv4Network, Route] = {}
        self._inherits = False
        self._present: dict[IPv4Network, list[Route]] = {}  # of ours, as last seen or set
        self._said: dict[bytes, Route] = {}  # what the kernel said of ours at the last look
        self._touched: set[IPv4Network] = set()  # what was changed since then
        self.faults: Mapping[IPv4Network, str] = {}
        """Destinations without their route, each with one line that says why. Replaced as a whole, never changed."""

    def gateway(self, destination: IPv4Network) -> IPv4Address | None:
        """Return through whom just this destination is to be reached, ``None``: by no route; from any thread."""
        route = self._wanted.get(destination)
        return None if route is None else route.gateway

    def load(self, hops: Mapping[IPv4Network, Hop]) -> int:
        """Want exactly these routes, whatever of ours is there; return how many the kernel took, changed or gave up."""
        self._touched.update(self._wanted, hops)
        self._wanted = {destination: _route(destination, hop) for destination, hop in hops.items()}
        return self.repair()

    def apply(self, changes: Mapping[IPv4Network, Hop | None]) -> int:
        """Want these routes, too, in place of former ones; ``None``: no more. Return as `load` does."""
        self._touched.update(changes)
        for destination, hop in changes.items():
            if hop is None:
                self._wanted.pop(destination, None)
            else:
                self._wanted[destination] = _route(destination, hop)
        with open_rtnetlink("setting routes") as netlink:
            return self._settle(netlink, changes)

    def repair(self) -> int:
        """Look what of ours is in the kernel and put right what is not as wanted; return how many routes that were.

        Writes nothing where all is well, and is soon done then: only what the kernel says otherwise than at the last
        look is understood, and compared with what is wanted.
        """
        with open_rtnetlink("setting routes") as netlink:
            former, bodies = self._said, netlink.bodies_of(ROUTE_PROTOCOL)
            self._said = {body: former.get(body) or parse_route(body) for body in bodies}
            differing = [
                (self._said.get(body) or former[body]).destination for body in self._said.keys() ^ former.keys()
            ]
            doubtful = self._touched.union(self.faults, differing)
            self._touched = set()
            if not doubtful:
                return 0
            for destination in doubtful:
                self._present[destination] = []
            for route in self._said.values() if bodies else self._inherited(netlink):
                if route.destination in doubtful:
                    self._present[route.destination].append(route)
            self._inherits = False
            return self._settle(netlink, doubtful)

    def inherit(self) -> None:
        """Take what flanneld's host-gw left for ours at the next `load`, and so replace it without a gap.

        flanneld's routes have no mark (RTPROT_BOOT): they are those that lead where ours are to lead. Where a run of
        ours has left some, flanneld did not run last, and such a route is somebody else's.
        """
        self._inherits = True

    def _inherited(self, netlink: Rtnetlink) -> list[Route]:
        if not self._inherits:
            return []
        return [
            route
            for route in netlink.routes_of(RTPROT_BOOT)
            if (wanted := self._wanted.get(route.destination))
            and (route.gateway, route.oif, route.metric) == (wanted.gateway, wanted.oif, wanted.metric)
        ]

    def clear(self) -> int:
        """Remove every route of ours, and want none; return how many there were."""
        return self.load({})

    def _settle(self, netlink: Rtnetlink, destinations: Iterable[IPv4Network]) -> int:
        """Bring these destinations from what is present to what is wanted; note why where that fails."""
        settled = dict.fromkeys(destinations)
        steps = [step for destination in settled for step in self._steps(destination)]
        self._touched.update(step.route.destination for step in steps)
        changed: set[IPv4Network] = set()
        missing: list[tuple[Route, Refusal]] = []
        shadowed: list[Route] = []
        for step, refusal in zip(steps, netlink.apply([step.message for step in steps]), strict=True):
            wanted = self._wanted.get(step.route.destination)
            if refusal is None:
                changed.add(step.route.destination)
            elif wanted and step.route == wanted:
                missing.append((wanted, refusal))
            elif wanted and refusal.code == errno.ESRCH and wanted not in self._present[wanted.destination]:
                shadowed.append(wanted)
        for destination in settled:
            self._present.pop(destination, None)
            if destination in self._wanted:
                self._present[destination] = [self._wanted[destination]]
        for route, _ in missing:
            self._present[route.destination] = []
        faults = {at: text for at, text in self.faults.items() if at in self._wanted and at not in settled}
        self.faults = faults | dict(_explain(netlink, missing))
        if shadowed:
            self._add_anew(netlink, shadowed)
        return len(changed)

    def _steps(self, destination: IPv4Network) -> Iterator[_Step]:
        wanted, present = self._wanted.get(destination), self._present.get(destination, [])
        surplus = [route for route in present if route != wanted]
        if wanted and wanted not in present:
            yield _Step(wanted, append_route(wanted) if surplus else add_route(wanted))
        for route in surplus:
            yield _Step(route, delete_route(route))

    def _add_anew(self, netlink: Rtnetlink, routes: Sequence[Route]) -> None:
        """Add routes that were put behind a former one of ours which was gone by then.

        Somebody else's route may be in its place: ours would stand behind that one, unused, and nobody would say so.
        """
        netlink.apply([delete_route(route) for route in routes])
        for route in routes:
            self._present[route.destination] = []
        self._settle(netlink, [route.destination for route in routes])


class _Step(NamedTuple):
    route: Route
    message: Message


def _route(destination: IPv4Network, hop: Hop) -> Route:
    return Route(destination, hop.gateway, hop.oif, hop.source, hop.onlink, ROUTE_PROTOCOL)


def _explain(netlink: Rtnetlink, missing: Sequence[tuple[Route, Refusal]]) -> Iterator[tuple[IPv4Network, str]]:
    """Yield destination and text for each route that is not there."""
    taken = [route.destination for route, refusal in missing if refusal.code == errno.EEXIST]
    holders = dict(zip(taken, netlink.holders(taken), strict=True))
    link = cache(netlink.link)
    for route, refusal in missing:
        holder = holders.get(route.destination)
        if refusal.code != errno.EEXIST:
            yield route.destination, _obstacle(route, refusal, link(route.oif))
        elif holder != route:  # else it was there all the time: it moved while the table was read
            yield route.destination, _foreign(route.destination, holder, link(holder.oif) if holder else None)


def _obstacle(route: Route, refusal: Refusal, link: Link | None) -> str:
    """Say what the kernel has against a route."""
    name = link.name if link else f"number {route.oif}"
    way = f"no route to {route.destination} via {route.gateway} dev {name}"
    if link is None:
        return f"{way}: that interface is gone"
    if not link.up:
        return f"{way}: {name} is down"
    if refusal.code == errno.ENETUNREACH:
        return f"{way}: {route.gateway} is not on-link, that is in a network of {name}'s own"
    return f"{way}: {refusal.why}"


def _foreign(destination: IPv4Network, holder: Route | None, link: Link | None) -> str:
    """Say whose route is in our place."""
    if holder is None:
        return f"a route to {destination} is not ours: remove it; `ip route show exact {destination}` shows it"
    via = f" via {holder.gateway}" if holder.gateway else ""
    dev = f" dev {link.name}" if link else ""
    by = _PROTOCOL_NAMES.get(holder.protocol, holder.protocol)
    return f"route {destination}{via}{dev} (proto {by}) is not ours: remove it, or give it a metric"
