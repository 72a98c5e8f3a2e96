"""A set of kernel routes kept as data: one route a peer, brought into the kernel by differences and kept right.

This is flannel's RouteNetwork. Ours are in the main table, have metric 0 and bear a protocol number of their own, so
that those that a killed run left are found, and nobody else's are touched: a route is only added where there is none to
the same destination (NLM_F_EXCL) and only deleted as ours.

What the kernel or somebody else's route keeps from us becomes a text in `RouteSet.faults`, and is tried again at every
repair; the other routes stand meanwhile. What is no fault:

- a foreign route to the same destination with another metric. Both stand, and ours is used: metric 0 is the best, and
  1024, what an IPv6 route has to which nobody gives one, is that of all routes but the kernel's own.
- a foreign route to a part of the destination. It is used for that part.

One agent a host: two would take each other's routes for a killed run's and delete them, each time they look.

A change adds the new route behind the former one and then deletes that: no packet finds none. With IPv6 a route behind
another one of its metric would be a second next hop of that, so there the new one takes the place of the former one
(NLM_F_REPLACE), if that is what the kernel says is in force. How routes end with the lease is in `lease_end`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

from flannel_udp.host.family import family_of
from flannel_udp.host.links import Device, device
from flannel_udp.host.repair import Paces
from flannel_udp.host.route_query import destination_of, protocols_in_force, routes_in_force, stream_routes
from flannel_udp.host.rtnetlink import (
    RTPROT_BOOT,
    Message,
    Refusal,
    Route,
    Rtnetlink,
    add_route,
    append_route,
    delete_route,
    open_rtnetlink,
    parse_route,
    replace_route,
    split_life,
)
from flannel_udp.model import Address, Prefix, prefix_of

ROUTE_PROTOCOL = 82
"""RTPROT_… of our routes. Nobody's in linux/rtnetlink.h and iproute2's rt_protos, which have 84 (OVN) next to it.

`ip route show proto 82` shows them; a line `82 flannel-udp` in /etc/iproute2/rt_protos.d/*.conf gives them a name.
"""

AID_S = 5.0
"""A route that was needed for a moment goes by itself if we are killed in that moment."""
_AT_ONCE = 500
"""Of so many routes the life is that of one moment."""
LIFE_SLACK_S = 1.5
"""What is told of how long a route stays, and what was asked for, are whole seconds, and some time lies between."""

_PROTOCOL_NAMES = {2: "kernel", 3: "boot", 4: "static", 11: "zebra", 12: "bird", 16: "dhcp", 186: "bgp"}


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a destination's packets go."""

    gateway: Address
    oif: int
    """The interface's index."""
    source: Address | None = None
    """An address of this host; the route goes when the address does. ``None``: the kernel chooses."""
    onlink: bool = False
    """Take the gateway for a neighbour on that interface without a route that says so."""


class RouteSet:
    """Wanted routes, and what keeps some of them out of the kernel. Begins with `load`.

    Methods block, for seconds where thousands of routes change (the kernel compares a new route with all others of the
    same device): call them through ``asyncio.to_thread``, one at a time. They raise `FlannelError` where nothing at all
    can be done, such as without CAP_NET_ADMIN; the next `repair` then brings what is still missing.
    """

    def __init__(self, version: int = 4) -> None:
        self._version = version
        self._life_s: float | None = None  # `ends_s` at the last look
        self.ends_s: float | None = None
        """When the routes go by themselves, by CLOCK_BOOTTIME; of IPv6 only. ``None``: they stay.

        May be set at any time, in any thread: what is written from then on has it, and `follow_life` sees to the rest.
        """
        self._wanted: dict[Prefix, Route] = {}  # without their end
        self._inherits = False
        self._by_form = False  # what is as flanneld makes it is its own, wherever it leads
        self._device, self._elsewhere = 0, False  # see `inherit`
        self._outside: Prefix | None = None  # likewise
        self._present: dict[Prefix, list[Route]] = {}  # of ours, as last seen or set
        self._said: dict[_Said, Route] = {}  # what the kernel said of ours at the last look
        self._touched: set[Prefix] = set()  # what was changed since then
        self._paces = Paces()  # for each destination: who takes one route away again and again delays no other
        self.faults: Mapping[Prefix, str] = {}
        """Destinations without their route, each with one line that says why. Replaced as a whole, never changed."""

    def gateway(self, destination: Prefix) -> Address | None:
        """Return through whom just this destination is to be reached, ``None``: by no route; from any thread."""
        route = self._wanted.get(destination)
        return None if route is None else route.gateway

    @property
    def n_standing(self) -> int:
        """How many of the wanted routes are in the kernel, as far as is known."""
        return len(self._wanted) - len(self.faults)

    @property
    def again_s(self) -> float | None:
        """After how many seconds a repair is due again of what was put off, ``None``: nothing was."""
        return self._paces.again_s(time.monotonic())

    def load(self, hops: Mapping[Prefix, Hop]) -> int:
        """Want exactly these routes, whatever of ours is there; return how many the kernel took, changed or gave up."""
        self._touched.update(self._wanted, hops)
        self._wanted = {destination: self._route(destination, hop) for destination, hop in hops.items()}
        with open_rtnetlink("setting routes") as netlink:
            return len(self._settle(netlink, self._look(netlink)))

    def apply(self, changes: Mapping[Prefix, Hop | None]) -> int:
        """Want these routes, too, in place of former ones; ``None``: no more. Return as `load` does."""
        self._touched.update(changes)
        for destination, hop in changes.items():
            if hop is None:
                self._wanted.pop(destination, None)
            else:
                self._wanted[destination] = self._route(destination, hop)
        with open_rtnetlink("setting routes") as netlink:
            return len(self._settle(netlink, changes))

    def follow_life(self) -> int:
        """Have all routes go when `ends_s` says; return how many the kernel changed.

        Nothing is looked at before: that would take as long again, and an agent that is to end has little time.
        """
        with open_rtnetlink("setting how long routes stay") as netlink:
            other = [at for at in self._wanted if self._due(at) not in self._present.get(at, ())]
            return len(self._settle(netlink, other))

    def repair(self) -> int:
        """Look what of ours is in the kernel and put right what is not as wanted; return how many routes that were.

        Writes nothing where all is well, and is soon done then: only what the kernel says otherwise than at the last
        look is understood, and compared with what is wanted.
        """
        with open_rtnetlink("setting routes") as netlink:
            return self._put_right(netlink, self._look(netlink))

    def _look(self, netlink: Rtnetlink) -> set[Prefix]:
        """Read what of ours is in the kernel; return the destinations for which that may not be what is wanted."""
        # One that moved while the table was read would come twice.
        self._life_s = self.ends_s
        streamed = stream_routes(netlink, version=self._version, protocol=ROUTE_PROTOCOL)
        former, all_said = self._said, dict.fromkeys(map(self._heard, streamed))
        self._said = {said: former.get(said) or parse_route(*said) for said in all_said}
        differing = [(self._said.get(said) or former[said]).destination for said in self._said.keys() ^ former.keys()]
        inherited = self._inherited(netlink, alone=not all_said) if self._inherits else []
        self._by_form = False  # what comes later is somebody else's
        doubtful = self._touched.union(self.faults, differing, (route.destination for route in inherited))
        self._touched = set()
        if doubtful:
            for destination in doubtful:
                self._present[destination] = []
            for route in (*self._said.values(), *inherited):
                if route.destination in doubtful:
                    self._present[route.destination].append(route)
            self._inherits = False
        return doubtful

    def _heard(self, body: bytes) -> _Said:
        """Take apart what is the same each time it is told, and when the route goes: as wanted, or in fact."""
        if self._version == 4:
            return _Said(body, None)
        lasting, left_s = split_life(body)
        if left_s is None:
            return _Said(lasting, None)
        ends_s = time.clock_gettime(time.CLOCK_BOOTTIME) + left_s
        as_wanted = self._life_s is not None and abs(ends_s - self._life_s) <= LIFE_SLACK_S
        return _Said(lasting, self._life_s if as_wanted else ends_s)

    def _put_right(self, netlink: Rtnetlink, doubtful: set[Prefix]) -> int:
        """Settle these, but for those that were put right too often lately: they are a fault for a while."""
        now_s = time.monotonic()
        wrong = {destination for destination in doubtful if any(self._steps(destination, self._due(destination)))}
        self._paces.looked(wrong, now_s)
        put_off = {destination for destination in wrong if not self._paces.due(destination, now_s)}
        changed = self._settle(netlink, doubtful - put_off)
        for destination in changed:
            self._paces.made(destination, now_s)
        if put_off:
            self._touched |= put_off
            self.faults = {**self.faults, **{at: _taken_away(self._wanted[at]) for at in put_off if at in self._wanted}}
        return len(changed)

    def inherit(self, device: int = 0, outside: Prefix | None = None, *, elsewhere: bool) -> None:
        """Take what flanneld left for ours at the next `load`, and so replace it without a gap.

        flanneld's routes have no mark (RTPROT_BOOT): they are those that lead where ours are to lead. On the `device`
        of this index, which is nobody else's, they are told by their gateway as well, so that those to hosts which have
        left go: the first address of the destination, or a host `outside` this network, if the destination is a part of
        it. `elsewhere`: on other devices, too, where flanneld's host-gw and DirectRouting have them. Where a run of
        ours has left some, flanneld did not run last, and such a route is somebody else's, as is one through a host
        `outside`: an administrator's has the same form.
        """
        self._inherits = self._by_form = True
        self._device, self._outside, self._elsewhere = device, outside, elsewhere

    def _inherited(self, netlink: Rtnetlink, *, alone: bool) -> list[Route]:
        """Return those of flanneld's; `alone`: there are none of ours."""
        wanted = {(at.network_address.packed, at.prefixlen): route for at, route in self._wanted.items()}
        found: dict[Route, None] = {}
        by_form = self._by_form and (alone or self._outside is None)
        if self._device:
            for body in stream_routes(netlink, version=self._version, protocol=RTPROT_BOOT, oif=self._device):
                route = parse_route(body)
                left = by_form and _is_by_flanneld(route, self._outside)
                if left or _leads_like(route, wanted.get(destination_of(body))):
                    found[route] = None
        if self._elsewhere and alone:
            # A host may hold a whole Internet's routes without a mark: only those to our destinations are understood.
            for body in stream_routes(netlink, version=self._version, protocol=RTPROT_BOOT):
                if (at := destination_of(body)) in wanted and _leads_like(route := parse_route(body), wanted[at]):
                    found[route] = None
        return list(found)

    def clear(self) -> int:
        """Remove every route of ours, and want none; return how many there were."""
        return self.load({})

    def _settle(self, netlink: Rtnetlink, destinations: Iterable[Prefix]) -> set[Prefix]:
        """Bring these destinations from what is present to what is wanted; note why where that fails.

        Some after the others: each gets the life that counts by then. Where that is another one meanwhile, those that
        have got the former one go first: a lease that was in doubt gives ten seconds, and thousands of routes take
        longer. Returns those for which the kernel changed something.
        """
        todo, done, changed = list(dict.fromkeys(destinations)), list[Prefix](), set[Prefix]()
        ends_s = self.ends_s
        while todo:
            if self.ends_s != ends_s:
                todo, done, ends_s = done + todo, [], self.ends_s
            some, todo = todo[:_AT_ONCE], todo[_AT_ONCE:]
            changed |= self._settle_some(netlink, {at: self._due(at) for at in some})
            done += some
        return changed

    def _settle_some(self, netlink: Rtnetlink, due: Mapping[Prefix, Route | None]) -> set[Prefix]:
        changed: set[Prefix] = set()
        replaceable = self._replaceable(netlink, due) if self._version == 6 else frozenset()
        steps = [step for at, wanted in due.items() for step in self._steps(at, wanted, at in replaceable)]
        self._touched.update(step.route.destination for step in steps)
        missing: list[tuple[Route, Refusal]] = []
        shadowed: list[Route] = []
        for step, refusal in zip(steps, netlink.apply([step.message for step in steps]), strict=True):
            if step.route.destination not in due:
                continue
            wanted = due[step.route.destination]
            if refusal is None:
                changed.add(step.route.destination)
            elif wanted and step.route == wanted:
                missing.append((wanted, refusal))
            elif self._version == 6:  # IPv6 routes are never put behind others
                continue
            elif wanted and refusal.code == errno.ESRCH and wanted not in self._present[wanted.destination]:
                shadowed.append(wanted)
        for at, wanted in due.items():
            self._present.pop(at, None)
            if wanted is not None:
                self._present[at] = [wanted]
        for route, _ in missing:
            self._present[route.destination] = []
        faults = {at: text for at, text in self.faults.items() if at in self._wanted and at not in due}
        self.faults = faults | dict(_explain(netlink, missing))
        if shadowed:
            self._add_anew(netlink, shadowed)
        return changed

    def _steps(self, destination: Prefix, wanted: Route | None, replaceable: bool = False) -> Iterator[_Step]:
        present = self._present.get(destination, [])
        surplus = [route for route in present if route != wanted]
        missing = wanted if wanted not in present else None
        if missing and replaceable:
            aids = [_aid(missing)] if missing.onlink and any(route.oif != missing.oif for route in surplus) else []
            yield from (_Step(aid, add_route(aid)) for aid in aids)
            yield _Step(missing, replace_route(missing))
            yield from (_Step(aid, delete_route(aid)) for aid in aids)
            surplus = [route for route in surplus if route.metric != missing.metric]
        elif missing and self._version == 4:
            yield _Step(missing, append_route(missing) if surplus else add_route(missing))
        for route in surplus:
            yield _Step(route, delete_route(route))
        if missing and self._version == 6 and not replaceable:
            yield _Step(missing, add_route(missing))

    def _replaceable(self, netlink: Rtnetlink, due: Mapping[Prefix, Route | None]) -> set[Prefix]:
        """Return those where another IPv6 route has to be, and what the kernel uses there is one of ours."""
        changing = {
            at: [route.protocol for route in present if route.metric == wanted.metric]
            for at, wanted in due.items()
            if wanted and (present := self._present.get(at)) and wanted not in present
        }
        in_force = zip(changing, protocols_in_force(netlink, list(changing)), strict=True) if changing else ()
        return {at for at, protocol in in_force if protocol in changing[at]}

    def _due(self, destination: Prefix) -> Route | None:
        """Return the route that there has to be now, with its life: none of which that is over."""
        wanted, ends_s = self._wanted.get(destination), self.ends_s
        if wanted is None or ends_s is None:
            return wanted
        over = ends_s - time.clock_gettime(time.CLOCK_BOOTTIME) < 1
        return None if over else replace(wanted, ends_s=ends_s)

    def _route(self, destination: Prefix, hop: Hop) -> Route:
        way = (hop.gateway, hop.oif, hop.source, hop.onlink)
        return Route(destination, *way, ROUTE_PROTOCOL, family_of(self._version).usual_metric)

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


class _Said(NamedTuple):
    """What the kernel says of a route: a message's body, without how long the route stays, and until when that is."""

    lasting: bytes
    ends_s: float | None


def _aid(route: Route) -> Route:
    """Return a route to the gateway of an IPv6 route, for the moment in which that one replaces another device's.

    The kernel takes a gateway for a neighbour on our word only where no route leads to it by another device, as the one
    to be replaced does (ip6_route_check_nh_onlink in net/ipv6/route.c).
    """
    assert route.gateway is not None  # noqa: S101 - ours all have one
    soon_s = time.clock_gettime(time.CLOCK_BOOTTIME) + AID_S
    at = prefix_of(route.gateway, route.gateway.max_prefixlen)
    return Route(at, None, route.oif, protocol=ROUTE_PROTOCOL, metric=route.metric, ends_s=soon_s)


def _leads_like(route: Route, ours: Route | None) -> bool:
    return ours is not None and (route.gateway, route.oif, route.metric) == (ours.gateway, ours.oif, ours.metric)


def _is_by_flanneld(route: Route, outside: Prefix | None) -> bool:
    """Tell whether a route through a tunnel device of ours is as flanneld makes them, see `RouteSet.inherit`.

    With vxlan its gateway says so by itself. With ipip it may be any host's: there a route to a single address is none,
    nor one to what no host can lease.
    """
    at, gateway = route.destination, route.gateway
    if gateway is None or not route.onlink or route.metric != family_of(at).usual_metric:
        return False
    if outside is None:
        return gateway == at.network_address
    leasable = at.network_address in outside and outside.prefixlen < at.prefixlen < at.max_prefixlen
    return leasable and gateway not in outside


def _taken_away(route: Route) -> str:
    way = f"the route {route.destination} via {route.gateway}"
    return f"{way} does not stay: `ip -ts monitor route` shows what takes it away"


def _explain(netlink: Rtnetlink, missing: Sequence[tuple[Route, Refusal]]) -> Iterator[tuple[Prefix, str]]:
    """Yield destination and text for each route that is not there."""
    taken = [route.destination for route, refusal in missing if refusal.code == errno.EEXIST]
    holders = dict(zip(taken, routes_in_force(netlink, taken), strict=True))
    link = cache(partial(device, netlink))
    for route, refusal in missing:
        holder = holders.get(route.destination)
        if refusal.code != errno.EEXIST:
            yield route.destination, _obstacle(route, refusal, link(route.oif))
        elif holder != route:  # else it was there all the time: it moved while the table was read
            yield route.destination, _foreign(route.destination, holder, link(holder.oif) if holder else None)


def _obstacle(route: Route, refusal: Refusal, link: Device | None) -> str:
    """Say what the kernel has against a route."""
    name = link.name if link else f"number {route.oif}"
    way = f"no route to {route.destination} via {route.gateway} dev {name}"
    if link is None:
        return f"{way}: that interface is gone"
    if not link.up:
        return f"{way}: {name} is down"
    if refusal.code in (errno.ENETUNREACH, errno.EHOSTUNREACH):  # IPv4's word for it, and IPv6's
        return f"{way}: {route.gateway} is not on-link, that is in a network of {name}'s own"
    return f"{way}: {refusal.why}"


def _foreign(destination: Prefix, holder: Route | None, link: Device | None) -> str:
    """Say whose route is in our place."""
    if holder is None:
        ip = family_of(destination).ip
        return f"a route to {destination} is not ours: remove it; `{ip} route show exact {destination}` shows it"
    via = f" via {holder.gateway}" if holder.gateway else ""
    dev = f" dev {link.name}" if link else ""
    by = _PROTOCOL_NAMES.get(holder.protocol, holder.protocol)
    return f"route {destination}{via}{dev} (proto {by}) is not ours: remove it, or give it a metric"
