"""The phases of a lease as values: all that is known in each of them, and nothing that belongs to another.

`Idle` → `Seeking` → `Holding` → `Idle`. In the last two a request is under way, or they rest until one is due.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from flannel_udp.control.allocation import Decision
from flannel_udp.control.lease_actions import Report, Request
from flannel_udp.control.lease_safety import Life, earliest
from flannel_udp.control.retry import Delays
from flannel_udp.model import Address, Entry, Lease, LeaseAttrs, Subnet


@dataclass(frozen=True, slots=True)
class Terms:
    """What the lease is to say, the life left at which it is renewed (seconds), and how long to wait after failures.

    ``mark`` is the host's, 0 for none; ``rng`` spreads renewals and tries.
    """

    attrs: LeaseAttrs
    margin_s: float
    delays: Delays
    mark: int
    rng: random.Random


@dataclass(frozen=True, slots=True)
class Rest:
    """No request is under way; the next one is due at `due_s`, ``None`` for never."""

    due_s: float | None


@dataclass(frozen=True, slots=True)
class Idle:
    """No lease is held, and none is sought."""

    yield_until_s: float = -math.inf
    """Until then what another host has taken under our own address is left to it."""


# Seeking.


@dataclass(frozen=True, slots=True)
class Surveying:
    """The registry is listed and a subnet chosen."""


@dataclass(frozen=True, slots=True)
class Discarding:
    """The first entry that `decision` discards is being deleted."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Claiming:
    """The entry for what was decided is being written; it is to say `attrs`."""

    decision: Decision
    attrs: LeaseAttrs
    sent_s: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """The lease is written; how long it lives is being asked."""

    lease: Lease
    sent_s: float
    """When the request was sent that wrote it."""


@dataclass(frozen=True, slots=True)
class Seeking:
    """A lease is sought."""

    doing: Rest | Surveying | Discarding | Claiming | Claimed
    retry_s: float
    """How long to rest after the next failure."""
    races: int = 0
    """How many times in a row another host was faster."""
    yield_until_s: float = -math.inf
    """See `Idle`."""
    found: Entry | None = None
    """The entry of ours that is reused, as it was before we wrote it; ``None`` when a new one is created."""


# Holding.


@dataclass(frozen=True, slots=True)
class Renewal:
    """The entry is being renewed, then measured."""

    attrs: LeaseAttrs
    """What it is to say."""
    sent_s: float
    inspected: bool
    """The key was found to be ours although a renewal said no."""
    doubted: bool = False
    """Something spoke against us after this was sent: its success does not clear that up."""


@dataclass(frozen=True, slots=True)
class Widening:
    """A subnet with parts of more families is being chosen, or the lease is being moved to that."""

    due_s: float | None
    """When the lease has to be renewed next, ``None`` for never."""
    doubted: bool = False
    """As above."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A renewal, or a move, said no: what is under our key is being looked up, or under the one it was moved to."""

    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """The lease is held."""

    lease: Lease
    """What the registry confirmed last."""
    life: Life
    doing: Rest | Renewal | Widening | Inspection
    ours: frozenset[Address]
    """Addresses that the entry may have by our own doing: also what was written and not confirmed."""
    moving_to: Subnet | None = None
    """A subnet with parts of more families that was chosen: perhaps the entry is its by now, and we were not told."""
    taking: bool = False
    """What the registry had of before our last write was to be taken again, and we were not told whether it was: an
    entry under our key and our mark may be that."""
    doubt_until_s: float | None = None
    """Something spoke against us, and no renewal that was sent after it has succeeded: when we stop for that."""

    @property
    def stop_s(self) -> float | None:
        """From when on nothing may be forwarded, ``None`` while there is no such time."""
        return earliest(self.life.stop_s, self.doubt_until_s)


Phase = Idle | Seeking | Holding

Step = tuple[Phase, list[Request | Report]]
"""What a decision leads to: the next phase, and what is to be done. At most one request: the one under way then."""
