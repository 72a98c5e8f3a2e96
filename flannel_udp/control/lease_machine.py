"""The life of one lease as a pure state machine: what happened and when goes in, what to do comes out.

No I/O and no clock in here: `control.lease` drives it in the agent, the tests drive many of them against a simulated
store. One request is under way at a time; an answer to any other one is ignored, whenever it comes.

    lease_phases    what is known in each phase: one frozen value
    lease_seeking   what is decided while a lease is sought
    lease_holding   what is decided while it is held
    lease_widening  and where its subnet gets a part of another family
    lease_safety    when it ends, when we stop, when it is renewed
    lease_actions   what is to be done: requests to the registry, reports
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flannel_udp.control.lease_actions import Action, Ask, Outcome, Request, Result
from flannel_udp.control.lease_holding import adopt, give_up_in_time, kept, observe, renew, renew_soon
from flannel_udp.control.lease_phases import Claimed, Holding, Idle, Phase, Rest, Seeking, Step, Terms
from flannel_udp.control.lease_safety import earliest
from flannel_udp.control.lease_seeking import sought, survey
from flannel_udp.control.retry import Delays
from flannel_udp.errors import FlannelError
from flannel_udp.model import Entry, Lease, LeaseAttrs


class LeaseMachine:
    """`seek` or `adopt`, then `answer` or `fail` for every `Ask`, and `tick` when `wake_s` has come.

    `observe` and `set_attrs` at any time. Every action is to be carried out, in their order.

    All times are seconds of one clock that never goes back and never stands still. `margin_s` is the life left at
    which the lease is renewed, `mark` the host's, 0 for none; `rng` spreads the renewals and tries of many hosts.
    """

    def __init__(self, attrs: LeaseAttrs, margin_s: float, delays: Delays, mark: int, rng: random.Random) -> None:
        self._terms = Terms(attrs, margin_s, delays, mark, rng)
        self._phase: Phase = Idle()
        self._number = 0  # of the last request

    @property
    def lease(self) -> Lease | None:
        """The lease that is held now."""
        return self._phase.lease if isinstance(self._phase, Holding) else None

    @property
    def expires_s(self) -> float | None:
        """When the registry may give the subnet away; ``None`` for a reservation, and without a lease."""
        return self._phase.life.expires_s if isinstance(self._phase, Holding) else None

    @property
    def stop_s(self) -> float | None:
        """From when on nothing may be forwarded for the lease that is held; ``None`` while there is no such time."""
        return self._phase.stop_s if isinstance(self._phase, Holding) else None

    @property
    def wake_s(self) -> float | None:
        """When `tick` has to be called, ``None`` while only an answer can lead on."""
        return earliest(self.stop_s, _due_s(self._phase))

    # What happens.

    def seek(self, now_s: float) -> list[Action]:
        """Begin to acquire a lease."""
        yield_until_s = self._phase.yield_until_s if isinstance(self._phase, Idle) else -math.inf
        self._phase = Seeking(Rest(now_s), self._terms.delays.first_retry_s, yield_until_s=yield_until_s)
        return self.tick(now_s)

    def adopt(self, now_s: float, lease: Lease, expires_s: float | None) -> None:
        """Go on with a lease that another machine held until now; it is renewed at once.

        Raises `ValueError` for one of another host.
        """
        if lease.attrs.found_by != self._terms.attrs.found_by:
            raise ValueError(f"{lease.entry.key} belongs to {lease.attrs.found_by}")
        self._phase = adopt(lease, now_s, expires_s)

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        return self._step(now_s, _stay)

    def answer(self, now_s: float, number: int, result: Result) -> list[Action]:
        """Take the result of a request."""
        return self._step(now_s, lambda phase: self._take(phase, now_s, number, result))

    def fail(self, now_s: float, number: int, error: FlannelError) -> list[Action]:
        """Take the failure of a request."""
        return self._step(now_s, lambda phase: self._take(phase, now_s, number, error))

    def observe(self, now_s: float, seen: Entry | None) -> list[Action]:
        """Take note of what a watch shows under our key; ``None`` for nothing."""
        return self._step(
            now_s,
            lambda phase: observe(phase, self._terms, now_s, seen) if isinstance(phase, Holding) else _stay(phase),
        )

    def set_attrs(self, now_s: float, attrs: LeaseAttrs) -> list[Action]:
        """Let the lease say this from now on: one that is held is renewed at once, one that is sought as soon as it is.

        That is no doubt: the subnet is ours also while the registry, unreachable just now, has the former attributes.
        """
        self._terms = replace(self._terms, attrs=attrs)
        return self._step(now_s, lambda phase: _stay(renew_soon(phase, now_s) if isinstance(phase, Holding) else phase))

    def yield_until(self, time_s: float) -> None:
        """Leave what another host has taken under our address to it until then: an earlier run has lost it."""
        self._phase = Idle(time_s)

    def let_go(self) -> Lease | None:
        """Give up the lease, to be released; return what was held, or was about to be: it is written already."""
        phase, self._phase = self._phase, Idle()
        if isinstance(phase, Seeking) and isinstance(phase.doing, Claimed):
            return phase.doing.lease
        return phase.lease if isinstance(phase, Holding) else None

    # How it goes on.

    def _step(self, now_s: float, event: Callable[[Phase], Step]) -> list[Action]:
        """Let first the time pass, then the event happen, then begin what is due by now."""
        actions: list[Action] = []
        # Time first: an answer that comes after the lease's time is over does not bring it back.
        for decide in (partial(_pass_time, now_s), event, partial(self._begin, now_s)):
            self._phase, wanted = decide(self._phase)
            actions += [self._ask(want) if isinstance(want, Request) else want for want in wanted]
        return actions

    def _ask(self, request: Request) -> Ask:
        self._number += 1
        return Ask(self._number, request)

    def _take(self, phase: Phase, now_s: float, number: int, outcome: Outcome) -> Step:
        if isinstance(phase, Idle) or isinstance(phase.doing, Rest) or number != self._number:
            return _stay(phase)  # late, double, or about a lease that is lost since
        if isinstance(phase, Seeking):
            return sought(phase, self._terms, now_s, outcome)
        return kept(phase, self._terms, now_s, outcome)

    def _begin(self, now_s: float, phase: Phase) -> Step:
        due_s = _due_s(phase)
        if isinstance(phase, Idle) or due_s is None or now_s < due_s:
            return _stay(phase)
        if isinstance(phase, Seeking):
            return survey(phase, self._terms, now_s)
        return renew(phase, self._terms, now_s)


def _stay(phase: Phase) -> Step:
    return phase, []


def _pass_time(now_s: float, phase: Phase) -> Step:
    return give_up_in_time(phase, now_s) if isinstance(phase, Holding) else _stay(phase)


def _due_s(phase: Phase) -> float | None:
    """Return when the next request is to be sent; ``None`` also while one is under way."""
    return phase.doing.due_s if not isinstance(phase, Idle) and isinstance(phase.doing, Rest) else None
