"""Decisions while a lease is held, and the host has got an address of another family: its subnet gets that part. Pure.

After each renewal, so that what cannot be done yet keeps no lease from living on. A key names the parts that there are,
so the entry moves to another one, under the lease that it has.
"""

from __future__ import annotations

from dataclasses import replace

from flannel_udp.control.lease_actions import Complain, Measure, Move, Recovered, Say, Widen, Widened
from flannel_udp.control.lease_phases import Holding, Renewal, Rest, Step, Terms, Widening
from flannel_udp.control.lease_safety import earliest
from flannel_udp.errors import FlannelError, SubnetTaken
from flannel_udp.model import Entry, Lease, Subnet


def widen(holding: Holding, terms: Terms) -> Step:
    """Have a part for each family that the host has an address of, once the lease was renewed."""
    lease, attrs = holding.lease, terms.attrs
    versions = tuple(version for version in (4, 6) if attrs.address_of(version) is not None)
    if lease.attrs != attrs or all(lease.subnet.of(version) for version in versions):
        return holding, [Recovered()]
    widening = Widening(holding.doing.due_s if isinstance(holding.doing, Rest) else None)
    if holding.moving_to is not None:  # never to another one while it may have moved there
        return _move(holding, widening, holding.moving_to)
    return replace(holding, doing=widening), [Widen(lease, versions)]


def widened(holding: Holding, widening: Widening, now_s: float, outcome: Subnet | Entry) -> Step:
    """Take the answer to which subnet it is to be, and then to the move."""
    if isinstance(outcome, Entry):
        return moved(holding, now_s, outcome, doubted=widening.doubted)
    if outcome == holding.lease.subnet:
        return replace(holding, doing=_rest(widening, now_s)), [Recovered()]
    return _move(holding, widening, outcome)


def moved(holding: Holding, now_s: float, entry: Entry, *, doubted: bool) -> Step:
    """Hold the lease under its new key; what is left of it is measured as after a renewal."""
    assert holding.moving_to is not None  # noqa: S101 - it was asked for
    lease = Lease(holding.moving_to, holding.lease.attrs, entry)
    renewal = Renewal(lease.attrs, now_s, inspected=False, doubted=doubted)
    return replace(holding, lease=lease, doing=renewal, moving_to=None), [Widened(lease), Measure(entry)]


def not_widened(holding: Holding, widening: Widening, terms: Terms, now_s: float, error: FlannelError) -> Step:
    """Go on with what there is, and try again."""
    if isinstance(error, SubnetTaken):
        later = replace(holding, moving_to=None, doing=_rest(widening, now_s, terms.delays.first_retry_s))
        return later, [Say(f"another host was faster: {error}")]
    pause_s = terms.delays.last_retry_s
    complaint = Complain(error, f"what we have stays ours; trying again every {pause_s:.2g} s")
    return replace(holding, doing=_rest(widening, now_s, pause_s)), [complaint]


def _move(holding: Holding, widening: Widening, subnet: Subnet) -> Step:
    return replace(holding, doing=widening, moving_to=subnet), [Move(holding.lease, subnet)]


def _rest(widening: Widening, now_s: float, pause_s: float | None = None) -> Rest:
    """Rest until the renewal that is due, for `pause_s` at most, and not at all while there is a doubt."""
    if widening.doubted:
        return Rest(now_s)
    return Rest(earliest(widening.due_s, None if pause_s is None else now_s + pause_s))
