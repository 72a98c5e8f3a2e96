"""How long a lease may be used, and when it is renewed: only arithmetic.

Two hosts must never forward for one subnet, so the loser has to stop before the registry can give the subnet away:

- The registry ends the lease, at the earliest, its remaining life after we asked for it. We count from the moment
  before the request was *sent* that granted or renewed it, however late the answer came, and stop `safety_s` earlier.
- What speaks against us has to be cleared up within `DOUBT_S`, or we stop as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from flannel_udp.model import LEASE_TTL_S

SLACK_S = 10.0
DRIFT = 0.001
DOUBT_S = 10.0
"""How long a doubt may last: one call at all endpoints of the registry."""


def safety_s(life_s: float) -> float:
    """Return how long before the end of a lease of `life_s` seconds we stop forwarding.

    `DRIFT`: our clock may run slower and the registry's faster than true time, each by the 500 ppm up to which Linux
    lets a time service bend it. `SLACK_S`: a loaded machine runs our timer late, packets on their way still arrive
    after we stopped, and a host that waits takes the subnet at once. What the registry itself adds is in our favour:
    etcd rounds the remaining life down to a second, expires leases when it next looks (every 0.5 s), and gives all of
    them their full life again after an election. A life too short for that much safety gives up a quarter of itself.
    """
    return min(SLACK_S + life_s * DRIFT, life_s / 4)


YIELD_S = 600.0
"""For how long a host whose subnet another one took under the same address does not take it back."""
SPREAD_S = 900.0
"""Over how long the renewals of hosts that started together are spread, where the margin has room for that."""


def renew_delay_s(left_s: float, margin_s: float, pause_s: float, part: float) -> float:
    """Return how long to wait with the renewal of a lease that lives `left_s` more seconds.

    Until less than the margin is left, and so long before we would have to stop that several tries have room. `part`,
    from 0 to 1 and another one for each renewal, says when within what that leaves: a thousand hosts that started in
    one minute do not renew in one. A lease granted for little more or less than that is renewed every `pause_s`, or at
    half its life if that is sooner, instead of without a pause.
    """
    latest_s = 2 * safety_s(left_s)
    at_s = margin_s - part * min(margin_s - latest_s, SPREAD_S) if margin_s > latest_s else latest_s * (1 + part / 4)
    return max(left_s - at_s, spread_s(min(pause_s, left_s / 2), part))


def spread_s(pause_s: float, part: float) -> float:
    """Return a pause that is up to a quarter shorter, by `part` from 0 to 1: what many hosts wait for at once."""
    return pause_s * (1 - part / 4)


@dataclass(frozen=True, slots=True)
class Life:
    """When the registry may give the subnet away, and when we stop before that; ``None``: never, it is reserved."""

    expires_s: float | None
    stop_s: float | None

    @classmethod
    def granted(cls, sent_s: float, left_s: float | None) -> Self:
        """Return the life of a lease that had `left_s` seconds left when it was renewed by a request sent at `sent_s`.

        ``None`` stands for a reservation.
        """
        if left_s is None:
            return cls(None, None)
        expires_s = sent_s + left_s
        return cls(expires_s, expires_s - safety_s(left_s))

    @classmethod
    def inherited(cls, now_s: float, expires_s: float | None) -> Self:
        """Return the life of a lease that another process renewed last; it ends at `expires_s`."""
        if expires_s is None:
            return cls(None, None)
        # How long our clock has run away from the registry's is not known: until we renew it, take the longest.
        return cls(expires_s, expires_s - min(safety_s(LEASE_TTL_S), (expires_s - now_s) / 4))


def earliest(*times_s: float | None) -> float | None:
    """Return the earliest of the times; ``None`` stands for never."""
    return min((time_s for time_s in times_s if time_s is not None), default=None)
