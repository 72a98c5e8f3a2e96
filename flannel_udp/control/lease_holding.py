"""Decisions while a lease is held: renew it in time, clear up doubts, give it up before it ends. Pure.

Somebody else may write our key at any time, and a watch may show late what we wrote ourselves. So what speaks against
us is a doubt, unless it was written after our own last write: a renewal, which the registry fences, clears it up.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address

from flannel_udp.control.entries import read_lease
from flannel_udp.control.lease_actions import Complain, Inspect, Lost, Measure, Outcome, Recovered, Renew
from flannel_udp.control.lease_phases import Holding, Idle, Inspection, Renewal, Rest, Step, Terms
from flannel_udp.control.lease_safety import DOUBT_S, Life, renew_delay_s
from flannel_udp.errors import FlannelError, LeaseLost
from flannel_udp.model import Entry, Lease


def hold(lease: Lease, terms: Terms, now_s: float, sent_s: float, left_s: float | None) -> Holding:
    """Hold a lease that had `left_s` seconds left, ``None`` for ever, when the request was sent that let it live on."""
    if lease.attrs != terms.attrs:
        due_s: float | None = now_s  # they were set since
    elif left_s is None:
        due_s = None
    else:
        due_s = sent_s + renew_delay_s(left_s, terms.margin_s, terms.delays.renew_retry_s)
    return Holding(lease, Life.granted(sent_s, left_s), Rest(due_s), frozenset({lease.attrs.public_ip}))


def adopt(lease: Lease, now_s: float, expires_s: float | None) -> Holding:
    """Hold a lease that another process held until now; renew it at once."""
    return Holding(lease, Life.inherited(now_s, expires_s), Rest(now_s), frozenset({lease.attrs.public_ip}))


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
    return _renew(holding, terms, now_s, holding.lease.entry, inspected=False)


def renew_soon(holding: Holding, now_s: float) -> Holding:
    """Renew the lease at once, or as soon as the request under way has succeeded."""
    return replace(holding, doing=Rest(now_s)) if isinstance(holding.doing, Rest) else holding


def kept(holding: Holding, terms: Terms, now_s: float, outcome: Outcome) -> Step:
    """Take the outcome of the request under way."""
    match holding.doing, outcome:
        case Renewal(inspected=True), LeaseLost():
            return _lose(holding, str(outcome))
        case _, LeaseLost():
            # Somebody may have rewritten the key in our name, to make it a reservation, say: then it is still ours.
            inspecting = replace(_doubt(holding, now_s), doing=Inspection())
            return inspecting, [Inspect(holding.lease.entry.key)]
        case _, FlannelError():
            return _try_later(holding, terms, now_s, outcome)
        case Inspection(), Entry() | None:
            return _inspected(holding, terms, now_s, outcome)
        case Renewal(attrs), Entry():
            lease = replace(holding.lease, attrs=attrs, entry=outcome)
            return replace(holding, lease=lease, ours=frozenset({attrs.public_ip})), [Measure(outcome)]
        case Renewal() as renewal, float() | None:
            renewed = hold(holding.lease, terms, now_s, renewal.sent_s, outcome)
            return _doubt(renewed, now_s) if renewal.doubted else renewed, [Recovered()]
    raise TypeError(f"{outcome!r} is no answer while {holding.doing!r}")


def observe(holding: Holding, now_s: float, seen: Entry | None) -> Step:
    """Take note of what a watch shows under our key; ``None`` for nothing."""
    ours = holding.lease.entry
    if seen is None:
        return _doubt(holding, now_s), []
    if seen.revision == ours.revision:
        return holding, []
    taken = _describe_taken(seen, holding.ours)
    if taken is not None and seen.revision > ours.revision:
        return _lose(holding, taken)
    return _doubt(holding, now_s), []


def _renew(holding: Holding, terms: Terms, now_s: float, entry: Entry, *, inspected: bool) -> Step:
    renewal = Renewal(terms.attrs, now_s, inspected)
    return replace(holding, doing=renewal, ours=holding.ours | {terms.attrs.public_ip}), [Renew(entry, terms.attrs)]


def _inspected(holding: Holding, terms: Terms, now_s: float, seen: Entry | None) -> Step:
    if seen is None:
        return _lose(holding, f"{holding.lease.entry.key} was deleted from the registry or expired")
    taken = _describe_taken(seen, holding.ours)
    return _lose(holding, taken) if taken else _renew(holding, terms, now_s, seen, inspected=True)


def _doubt(holding: Holding, now_s: float) -> Holding:
    """Stop soon unless a renewal that is sent from now on succeeds."""
    if holding.doubt_until_s is None:  # or doubts that keep coming would put off the end
        holding = replace(holding, doubt_until_s=now_s + DOUBT_S)
    if isinstance(holding.doing, Renewal):
        return replace(holding, doing=replace(holding.doing, doubted=True))
    return renew_soon(holding, now_s)


def _lose(holding: Holding, reason: str) -> Step:
    return Idle(), [Lost(holding.lease, reason)]


def _try_later(holding: Holding, terms: Terms, now_s: float, error: FlannelError) -> Step:
    pause_s, expires_s = _pause_s(holding, terms, now_s), holding.life.expires_s
    if expires_s is None:
        remaining = "it is reserved and stays"
    else:
        remaining = f"{max(expires_s - now_s, 0) / 60:.0f} min of it are left"
    complaint = Complain(error, f"{remaining}; trying again every {pause_s:.2g} s")
    return replace(holding, doing=Rest(now_s + pause_s)), [complaint]


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


def _describe_taken(seen: Entry, ours: Collection[IPv4Address]) -> str | None:
    """Return why `seen`, which is under our key, means that it is lost; ``None`` if it is of one of `ours`."""
    try:
        holder = read_lease(seen).attrs.public_ip
    except ValueError as error:
        return f"{seen.key} was overwritten: {error}"
    return None if holder in ours else f"{seen.key} was taken by {holder}"
