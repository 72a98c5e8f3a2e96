"""Decisions while a lease is held: renew it in time, clear up doubts, give it up before it ends. Pure.

Somebody else may write our key at any time, and a watch may show late what we wrote ourselves. So what speaks against
us is a doubt, unless it was written after our own last write: a renewal, which the registry fences, clears it up.
"""

from __future__ import annotations

from dataclasses import replace

from flannel_udp.control.allocation import describe_claim
from flannel_udp.control.entries import read_lease
from flannel_udp.control.lease_actions import Complain, Inspect, Lost, Measure, Outcome, Recovered, Renew, Take
from flannel_udp.control.lease_phases import Holding, Idle, Inspection, Renewal, Rest, Step, Terms, Widening
from flannel_udp.control.lease_safety import DOUBT_S, YIELD_S, Life, renew_delay_s, spread_s
from flannel_udp.control.lease_widening import moved, not_widened, widen, widened
from flannel_udp.errors import FlannelError, LeaseLost, RegistryError
from flannel_udp.model import Address, Entry, Lease, LeaseAttrs, Subnet
from flannel_udp.registry.keys import format_key, format_value


def hold(lease: Lease, terms: Terms, now_s: float, sent_s: float, left_s: float | None) -> Holding:
    """Hold a lease that had `left_s` seconds left, ``None`` for ever, when the request was sent that let it live on."""
    if lease.attrs != terms.attrs:
        due_s: float | None = now_s  # they were set since
    elif left_s is None:
        due_s = None
    else:
        due_s = sent_s + renew_delay_s(left_s, terms.margin_s, terms.delays.renew_retry_s, terms.rng.random())
    return Holding(lease, Life.granted(sent_s, left_s), Rest(due_s), _addresses(lease.attrs))


def adopt(lease: Lease, now_s: float, expires_s: float | None) -> Holding:
    """Hold a lease that another process held until now; renew it at once."""
    return Holding(lease, Life.inherited(now_s, expires_s), Rest(now_s), _addresses(lease.attrs))


def give_up_in_time(holding: Holding, now_s: float) -> Step:
    """Lose the lease if its time is over."""
    if holding.stop_s is None or now_s < holding.stop_s:
        return holding, []
    key = holding.lease.entry.key
    if holding.doubt_until_s is not None:
        return _lose(holding, f"{key} seems to be lost, and the registry does not answer whether it is")
    return _lose(holding, f"{key} could not be renewed in time: the registry may soon give it to another host")


def renew(holding: Holding, terms: Terms, now_s: float) -> Step:
    """Renew the lease, and let it say what it is to say."""
    entry = holding.lease.entry
    return _renewing(holding, terms, now_s, inspected=False), [Renew(entry, terms.attrs)]


def renew_soon(holding: Holding, now_s: float) -> Holding:
    """Renew the lease at once, or as soon as the request under way has succeeded."""
    return replace(holding, doing=Rest(now_s)) if isinstance(holding.doing, Rest) else holding


def kept(holding: Holding, terms: Terms, now_s: float, outcome: Outcome) -> Step:
    """Take the outcome of the request under way."""
    if isinstance(outcome, FlannelError):
        return _failed(holding, terms, now_s, outcome)
    match holding.doing, outcome:
        case Inspection(elsewhere), Entry() | None:
            return (_inspected_elsewhere if elsewhere else _inspected)(holding, terms, now_s, outcome)
        case Renewal(attrs), Entry():
            lease = replace(holding.lease, attrs=attrs, entry=outcome)
            return replace(holding, lease=lease, ours=_addresses(attrs), taking=False), [Measure(outcome)]
        case Renewal() as renewal, float() | None:
            renewed = hold(holding.lease, terms, now_s, renewal.sent_s, outcome)
            renewed = replace(renewed, moving_to=holding.moving_to)
            return (_doubt(renewed, now_s), [Recovered()]) if renewal.doubted else widen(renewed, terms)
        case Widening() as widening, Subnet() | Entry():
            return widened(holding, widening, now_s, outcome)
    raise TypeError(f"{outcome!r} is no answer while {holding.doing!r}")


def _failed(holding: Holding, terms: Terms, now_s: float, error: FlannelError) -> Step:
    match holding.doing, error:
        case Renewal(inspected=True), LeaseLost():
            return _lose(holding, str(error))
        case _, LeaseLost():
            # Somebody may have rewritten the key in our name, to make it a reservation, say: then it is still ours.
            inspecting = replace(_doubt(holding, now_s), doing=Inspection())
            return inspecting, [Inspect(holding.lease.entry.key)]
        case Widening() as widening, _:
            return not_widened(holding, widening, terms, now_s, error)
    return _try_later(holding, terms, now_s, error)


def observe(holding: Holding, terms: Terms, now_s: float, seen: Entry | None) -> Step:
    """Take note of what a watch shows under our key; ``None`` for nothing."""
    ours = holding.lease.entry
    if seen is None:
        return _doubt(holding, now_s), []
    if (seen.revision, seen.lease_id) == (ours.revision, ours.lease_id):  # a restored store counts from there again
        return holding, []
    taken = _taken(holding, terms, now_s, seen)
    if taken is not None and seen.revision > ours.revision:
        return taken
    return _doubt(holding, now_s), []


def _renewing(holding: Holding, terms: Terms, now_s: float, *, inspected: bool) -> Holding:
    renewal = Renewal(terms.attrs, now_s, inspected)
    return replace(holding, doing=renewal, ours=holding.ours | _addresses(terms.attrs))


def _inspected(holding: Holding, terms: Terms, now_s: float, seen: Entry | None) -> Step:
    if seen is None and holding.moving_to is not None:
        return replace(holding, doing=Inspection(elsewhere=True)), [Inspect(format_key(holding.moving_to))]
    if seen is None:
        return _lose(holding, f"{holding.lease.entry.key} was deleted from the registry or expired")
    taken = _taken(holding, terms, now_s, seen)
    if taken is not None:
        return taken
    renewing = _renewing(holding, terms, now_s, inspected=True)
    if _is_of_our_lease(holding, seen):
        return renewing, [Renew(seen, terms.attrs)]
    # Nobody else has the subnet meanwhile, so forwarding goes on, for as long as a doubt may last.
    back = RegistryError(f"{seen.key} in the registry is older than what we wrote: restored from a backup?")
    return replace(renewing, taking=True), [Complain(back, "taking it again"), Take(seen, terms.attrs)]


def _inspected_elsewhere(holding: Holding, terms: Terms, now_s: float, seen: Entry | None) -> Step:  # noqa: ARG001 - as above
    """Our key is gone: a move may have been done of which only the answer was lost."""
    lease = holding.lease
    if seen is None or (seen.lease_id, seen.value) != (lease.entry.lease_id, format_value(lease.attrs)):
        return _lose(holding, f"{lease.entry.key} was deleted from the registry or expired")
    return moved(holding, now_s, seen, doubted=True)


def _doubt(holding: Holding, now_s: float) -> Holding:
    """Stop soon unless a renewal that is sent from now on succeeds."""
    if holding.doubt_until_s is None:  # or doubts that keep coming would put off the end
        holding = replace(holding, doubt_until_s=now_s + DOUBT_S)
    if isinstance(holding.doing, Renewal | Widening):
        return replace(holding, doing=replace(holding.doing, doubted=True))
    return renew_soon(holding, now_s)


def _lose(holding: Holding, reason: str) -> Step:
    return Idle(), [Lost(holding.lease, reason)]


def _taken(holding: Holding, terms: Terms, now_s: float, seen: Entry) -> Step | None:
    """Lose the lease if `seen`, which is under our key, is somebody else's by now; ``None`` if it is not.

    Any other lease's id than ours is that of somebody with our address, if it was written after us. Not the mark tells
    that, but the revision: a copy of this host has our mark, and so has what an earlier run of ours wrote. A copy that
    writes after a backup was restored may be below our revision still: then it sees that we take it, and yields.
    """
    try:
        attrs = read_lease(seen).attrs
    except ValueError as error:
        return _lose(holding, f"{seen.key} was overwritten: {error}")
    holder = next((address for address in (attrs.public_ip, attrs.public_ipv6) if address in holding.ours), None)
    if holder is None:
        return _lose(holding, f"{seen.key} was taken by {attrs.found_by}")
    may_be_ours = holding.taking and seen.mark == terms.mark
    if _is_of_our_lease(holding, seen) or may_be_ours or seen.revision < holding.lease.entry.revision:
        return None
    claim = describe_claim(seen, holder, terms.mark)
    return Idle(now_s + YIELD_S), [Lost(holding.lease, claim, claimed=True)]


def _is_of_our_lease(holding: Holding, seen: Entry) -> bool:
    """Tell whether an entry under our key and address is of the lease that we hold.

    That keeps its id; a person who makes a reservation of it, or writes it by hand, takes the id away.
    """
    return seen.mark == 0 or seen.lease_id == holding.lease.entry.lease_id


def _try_later(holding: Holding, terms: Terms, now_s: float, error: FlannelError) -> Step:
    pause_s, expires_s = _pause_s(holding, terms, now_s), holding.life.expires_s
    if expires_s is None:
        remaining = "it is reserved and stays"
    else:
        remaining = f"{max(expires_s - now_s, 0) / 60:.0f} min of it are left"
    complaint = Complain(error, f"{remaining}; trying again every {pause_s:.2g} s")
    due_s = now_s + spread_s(pause_s, terms.rng.random())  # a registry that comes back is not asked by all at once
    return replace(holding, doing=Rest(due_s)), [complaint]


def _pause_s(holding: Holding, terms: Terms, now_s: float) -> float:
    """Return how long to wait after a renewal that failed."""
    delays = terms.delays
    if holding.doubt_until_s is not None:
        return delays.first_retry_s
    if holding.lease.attrs != terms.attrs:
        return delays.last_retry_s  # until then the other hosts send to where we are not any more
    if holding.stop_s is None:
        return delays.renew_retry_s
    # The last minutes see more tries than one a minute.
    return min(delays.renew_retry_s, max((holding.stop_s - now_s) / 4, delays.first_retry_s))


def _addresses(attrs: LeaseAttrs) -> frozenset[Address]:
    """Return what a host that says that is found by."""
    return frozenset() if attrs.found_by is None else frozenset((attrs.found_by,))
