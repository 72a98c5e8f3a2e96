"""What is to be done in a provider's route tables, decided from what was read there: no call, no clock.

A table's routes inside the overlay are

- own: to our subnet, and to this host. Made where it is missing, and put in the place of one that leads nowhere, to a
  former interface of ours, or to the host that had our subnet before
- peer: to a subnet that somebody has, and to a host, or to another interface of this one: another agent's here, in a
  network namespace of its own. None of our business
- stale: to nobody's subnet, and nowhere, or to the host that had it last: removed by one host after a grace time. One
  that leads here though it is not our subnet is from a former lease of ours, and removed at once; one to another
  interface of this host, once the registry itself has said that nobody has that subnet. A route with our mark is surely
  one that its host had
- unknown: to nobody's subnet, and to a host of which nobody has heard that it had that. Left alone, as what is
- foreign: anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flannel_udp.backend.cloud.facts import Action, CloudRouteFacts, CloudTableFacts, Verdict
from flannel_udp.backend.cloud.provider import CloudRoute, CloudTable, Leads
from flannel_udp.model import Address, Prefix, prefix_order
from flannel_udp.netconf.config import AnyRange

NEAR = 0.9
"""Of a limit: from so many routes on it is named."""


class Stale(NamedTuple):
    """A route that nobody has a use for: told by where it is and where it leads."""

    table: str
    destination: Prefix
    target: str


class Step(NamedTuple):
    """One thing to do."""

    action: Action
    table: str
    destination: Prefix
    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a host knows beside the tables."""

    own: Prefix | None
    """Our subnet, ``None`` while we have none."""
    subnets: AnyRange
    """Those that hosts may have."""
    peers: Collection[Prefix]
    """Subnets of the other hosts."""
    leased: Collection[Prefix] | None = None
    """Everything that the registry has an entry for, ours included; ``None`` while nobody has asked it."""
    former: Mapping[Prefix, Address] | None = None
    """Subnets that were a host's since we started and are no more, and that host's address."""
    addresses: Mapping[str, frozenset[Address]] | None = None
    """Of the hosts that routes lead to, as far as they were asked for."""
    stale_for_s: Mapping[Stale, float] | None = None
    """How long each has been stale."""
    grace_s: float = 0.0

    @property
    def taken(self) -> set[Prefix]:
        """Subnets that are somebody's."""
        return {*self.peers, *(self.leased or ()), *(() if self.own is None else (self.own,))}

    @property
    def cleaner(self) -> Prefix | None:
        """The subnet whose host removes what is stale: the lowest one. All hosts find the same one."""
        return min((subnet for subnet in self.taken if self.subnets.fits(subnet)), key=prefix_order, default=None)

    @property
    def cleans(self) -> bool:
        """Whether that is this host."""
        return self.own is not None and self.own == self.cleaner


@dataclass(frozen=True, slots=True)
class Plan:
    """What a look comes to."""

    rows: tuple[CloudRouteFacts, ...]
    tables: tuple[CloudTableFacts, ...]
    steps: tuple[Step, ...]
    stale: tuple[Stale, ...]
    waits: bool
    """Something is to be removed by this host, and not yet: for the word of the registry, or for its time."""
    lacking: tuple[str, ...]
    """The tables in which our own route does not stand."""
    obstacles: tuple[str, ...]
    """Why it does not, where there is more to say than that it was not made yet."""
    problems: tuple[str, ...]
    near_limits: tuple[str, ...]
    faults: Mapping[Prefix, str]
    """Peers' subnets to which a table has no route."""


def make_plan(tables: Sequence[CloudTable], known: Known, limits: Sequence[int | None]) -> Plan:
    """Decide. Removing what is stale, and does not lead to our own interface, waits for `Known.leased`."""
    own, overlay = known.own, known.subnets.network
    judged = [
        _judge(table.id, route, known)
        for table in tables
        for route in table.routes
        if _is_within(route.destination, overlay)
    ]
    there = {(each.row.table, each.route.destination) for each in judged}
    if own is not None:
        judged += [_missing(table.id, own) for table in tables if (table.id, own) not in there]
    steps = [_step(each) for each in judged if each.acts]
    ours = [each for each in judged if each.route.destination == own]
    inside = [each for each in judged if own is not None and _is_within(each.route.destination, own)]
    led = {(each.row.table, each.route.destination) for each in judged if each.row.verdict == "peer"}
    facts = [CloudTableFacts(table.id, table.n_counted, _limit_of(table, limits)) for table in tables]
    return Plan(
        rows=tuple(each.row for each in judged),
        tables=tuple(facts),
        steps=tuple(sorted(steps, key=lambda step: step.action != "remove")),  # what makes room first
        stale=tuple(_stale(each) for each in judged if each.row.verdict == "stale"),
        waits=any(each.row.action is not None and not each.acts for each in judged),
        lacking=tuple(each.row.table for each in ours if each.row.verdict != "own" or each.row.action),
        obstacles=tuple(
            f"{each.row.table} leads our subnet {own} to {each.route.target}: {each.row.text}"
            for each in ours
            if each.row.verdict == "foreign"
        ),
        problems=tuple(
            f"{each.row.table} leads {each.route.destination}, a part of our subnet, to {each.route.target}: "
            "remove that route if it is not meant to"
            for each in inside
            if each not in ours and each.row.verdict == "foreign"
        ),
        near_limits=tuple(
            f"{table.id} has {table.routes} routes, and the limit is {table.limit}"
            f"{'' if table.limit == limits[-1] else ', unless it was raised'}"
            for table in facts
            if table.limit is not None and table.routes >= NEAR * table.limit
        ),
        faults={
            peer: f"{table.id} has no route to a host for {peer}"
            for table in tables
            for peer in known.peers
            if (table.id, peer) not in led
        },
    )


def to_ask_about(tables: Sequence[CloudTable], former: Mapping[Prefix, Address]) -> set[str]:
    """Return the targets whose addresses decide whether a route is a gone host's."""
    return {
        route.target
        for table in tables
        for route in table.routes
        if route.leads is Leads.TO_HOST and not (route.blackhole or route.marked) and route.destination in former
    }


class _Judged(NamedTuple):
    route: CloudRoute
    row: CloudRouteFacts
    acts: bool
    """Whether this host does what the row says, and now."""


def _missing(table: str, own: Prefix) -> _Judged:
    row = CloudRouteFacts(table, str(own), None, "missing", "there is none yet", "create", 0.0)
    return _Judged(CloudRoute(own, "", Leads.HERE), row, True)


def _step(judged: _Judged) -> Step:
    action = judged.row.action
    assert action is not None  # noqa: S101 - it acts
    return Step(action, judged.row.table, judged.route.destination, judged.row.text)


def _stale(judged: _Judged) -> Stale:
    return Stale(judged.row.table, judged.route.destination, judged.route.target)


def _is_within(destination: Prefix, whole: Prefix) -> bool:
    return destination.prefixlen >= whole.prefixlen and destination.overlaps(whole)


def _limit_of(table: CloudTable, limits: Sequence[int | None]) -> int | None:
    return next((limit for limit in limits if limit is None or table.n_counted <= limit), limits[-1])


def _judge(table: str, route: CloudRoute, known: Known) -> _Judged:
    if route.destination == known.own:
        verdict, text, action = _judge_own(route, known)
        return _judged(table, route, verdict, text, action)
    fits = known.subnets.fits(route.destination)
    if fits and route.leads is Leads.HERE_BEFORE and route.destination in known.taken:
        return _judged(table, route, "peer", "to another interface of this host")
    if fits and route.leads in (Leads.HERE, Leads.HERE_BEFORE):
        judged = _judged(table, route, "stale", "to this host, whose subnet that is not (any more)", "remove")
        # Who ends asks nothing more, and the registry still has the lease that ends.
        sure = route.leads is Leads.HERE or known.leased is not None or known.own is None
        return judged._replace(acts=sure)
    if route.leads is Leads.TO_HOST and route.destination in known.taken:
        return _judged(table, route, "peer", "to a host, and leads nowhere now" if route.blackhole else "to a host")
    if not fits or route.leads is Leads.ELSEWHERE:
        return _judged(table, route, "foreign", "not a route as ours are: left alone")
    return _judge_leaseless(table, route, known)


def _judge_own(route: CloudRoute, known: Known) -> tuple[Verdict, str, Action | None]:
    if route.leads is Leads.HERE and not route.blackhole:
        return "own", "to this host", None
    why = _why_ours_to_replace(route, known)
    if why is not None:
        return "own", why, "replace"
    return "foreign", "that route is not ours, and is left alone: remove it if nobody needs it", None


def _judge_leaseless(table: str, route: CloudRoute, known: Known) -> _Judged:
    """Judge a route to a host, or to none any more, for a subnet that is not exactly anybody's."""
    if any(route.destination.overlaps(subnet) for subnet in known.taken):
        return _judged(table, route, "foreign", "overlaps a subnet that somebody has: left alone")
    if not route.blackhole and not _was_its_host(route, known):
        text = "nobody has that subnet, and whether that host had it is not known: left alone"
        return _judged(table, route, "unknown", text)
    text = "leads nowhere" if route.blackhole else "its host has no lease any more"
    if not known.cleans:
        return _judged(table, route, "stale", f"{text}: the host of {known.cleaner} removes it")
    left_s = known.grace_s - (known.stale_for_s or {}).get(Stale(table, route.destination, route.target), 0.0)
    judged = _judged(table, route, "stale", text, "remove", due_in_s=max(left_s, 0.0))
    return judged._replace(acts=left_s <= 0 and known.leased is not None)


def _judged(
    table: str, route: CloudRoute, verdict: Verdict, text: str, action: Action | None = None, *, due_in_s: float = 0.0
) -> _Judged:
    due = None if action is None else due_in_s
    row = CloudRouteFacts(table, str(route.destination), route.target, verdict, text, action, due)
    return _Judged(route, row, action is not None)


def _why_ours_to_replace(route: CloudRoute, known: Known) -> str | None:
    if route.blackhole:
        return "leads nowhere"
    if route.leads is Leads.HERE_BEFORE:
        return "to another interface of this host"
    return "to the host that had our subnet before" if _was_its_host(route, known) else None


def _was_its_host(route: CloudRoute, known: Known) -> bool:
    if route.leads is not Leads.TO_HOST:
        return False  # a mark that stayed when a person led our route to a gateway, say
    if route.marked:
        return True
    had = (known.former or {}).get(route.destination)
    return had is not None and had in (known.addresses or {}).get(route.target, frozenset())
