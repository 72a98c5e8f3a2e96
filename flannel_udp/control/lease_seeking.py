"""Decisions while a lease is sought: survey, discard what does not fit, claim, measure; hold it or begin anew. Pure."""

from __future__ import annotations

from dataclasses import replace

from flannel_udp.backoff.delay import spread
from flannel_udp.control.allocation import Decision, Seeker
from flannel_udp.control.lease_actions import (
    Complain,
    Create,
    Discard,
    Held,
    Measure,
    Outcome,
    Recovered,
    Say,
    Survey,
    Take,
)
from flannel_udp.control.lease_holding import hold
from flannel_udp.control.lease_phases import Claimed, Claiming, Discarding, Rest, Seeking, Step, Surveying, Terms
from flannel_udp.control.lease_safety import YIELD_S
from flannel_udp.errors import AddressClaimed, FlannelError, LeaseLost, RegistryError, SubnetTaken
from flannel_udp.model import Entry, Lease

RACES = 10
"""How many times in a row another host may be faster before it counts as a failure."""


def survey(seeking: Seeking, terms: Terms, now_s: float) -> Step:
    """List the registry and choose."""
    yields = now_s < seeking.yield_until_s
    seeker = Seeker.saying(terms.attrs, terms.mark, yields=yields, races=seeking.races)
    return replace(seeking, doing=Surveying()), [Survey(seeker)]


def sought(seeking: Seeking, terms: Terms, now_s: float, outcome: Outcome) -> Step:
    """Take the outcome of the request under way."""
    match seeking.doing, outcome:
        case _, SubnetTaken() | LeaseLost():
            return _raced(seeking, terms, now_s, outcome)
        case _, FlannelError():
            return _try_later(seeking, terms, now_s, outcome)
        case Surveying(), Decision():
            return _carry_out(seeking, terms, now_s, outcome)
        case Discarding(decision), None:
            return _carry_out(seeking, terms, now_s, replace(decision, discard=decision.discard[1:]))
        case Claiming(decision, attrs, sent_s), Entry():
            lease = Lease(decision.subnet, attrs, outcome)
            return replace(seeking, doing=Claimed(lease, sent_s)), [Measure(outcome)]
        case Claimed() as claimed, float() | None:
            return _hold(seeking, claimed, terms, now_s, outcome)
    raise TypeError(f"{outcome!r} is no answer while {seeking.doing!r}")


def _raced(seeking: Seeking, terms: Terms, now_s: float, error: RegistryError) -> Step:
    races = seeking.races + 1
    if races == RACES:
        failure = RegistryError(f"other hosts were faster {RACES} times in a row")
        return _try_later(seeking, terms, now_s, failure)
    phase, actions = survey(replace(seeking, races=races), terms, now_s)
    return phase, [Say(f"another host was faster: {error}"), *actions]


def _try_later(seeking: Seeking, terms: Terms, now_s: float, error: FlannelError) -> Step:
    delays = terms.delays
    then = f"trying again every {delays.first_retry_s:g} to {delays.last_retry_s:g} s"
    if isinstance(error, AddressClaimed):
        then = f"give each host its own, see --public-ip; it keeps the subnet for {YIELD_S / 60:g} min, unless it goes"
    rest = Rest(now_s + spread(seeking.retry_s, terms.rng))
    return replace(seeking, doing=rest, retry_s=delays.after(seeking.retry_s), races=0), [Complain(error, then)]


def _carry_out(seeking: Seeking, terms: Terms, now_s: float, decision: Decision) -> Step:
    """Delete what is to be discarded, one after another, then make the subnet ours."""
    if decision.discard:
        unfit = decision.discard[0]
        why = "does not fit the network configuration, or another host has a part of it"
        text = f"our lease of {unfit.subnet} {why}: deleting it"
        return replace(seeking, doing=Discarding(decision)), [Say(text), Discard(unfit.entry)]
    claiming = Claiming(decision, terms.attrs, now_s)
    if decision.reuse is None:
        return replace(seeking, doing=claiming, found=None), [Create(decision.subnet, terms.attrs)]
    found = seeking.found
    if found is None or found.key != decision.reuse.key:  # else an earlier try may have written what stands there now
        found = decision.reuse
    return replace(seeking, doing=claiming, found=found), [Take(decision.reuse, terms.attrs)]


def _hold(seeking: Seeking, claimed: Claimed, terms: Terms, now_s: float, left_s: float | None) -> Step:
    holding = hold(claimed.lease, terms, now_s, claimed.sent_s, left_s)
    if holding.stop_s is not None and now_s >= holding.stop_s:
        late = RegistryError(f"{claimed.lease.entry.key}: the answers took longer than the lease lives")
        return _try_later(seeking, terms, now_s, late)
    return holding, [Recovered(), Held(claimed.lease, seeking.found)]
