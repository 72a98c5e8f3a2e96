"""The life of one lease as a pure state machine: what happened and when goes in, what to do comes out.

No I/O and no clock in here: `control.lease` drives it in the agent, the tests drive many of them against a simulated
store. One request is under way at a time; an answer to any other one is ignored, whenever it comes.

Two hosts must never forward for one subnet, so the loser has to stop before the registry can give the subnet away:

- The registry ends the lease, at the earliest, its remaining life after we asked for it. We count from the moment
  before the request was *sent* that granted or renewed it, however late the answer came, and stop `safety_s` earlier.
- What speaks against us has to be cleared up within `DOUBT_S`, or we stop as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from flannel_udp.control.allocation import Decision
from flannel_udp.control.entries import read_lease
from flannel_udp.control.retry import Delays
from flannel_udp.errors import FlannelError, LeaseLost, RegistryError, SubnetTaken
from flannel_udp.model import LEASE_TTL_S, Entry, Lease, LeaseAttrs, Subnet

RACES = 10
"""How many times in a row another host may be faster before it counts as a failure."""
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


def renew_delay_s(left_s: float, margin_s: float, pause_s: float) -> float:
    """Return how long to wait with the renewal of a lease that lives `left_s` more seconds.

    Until the margin is reached, or so long before we would have to stop that several tries have room. A lease granted
    for little more or less than that is renewed every `pause_s`, or at half its life if that is sooner, instead of
    without a pause.
    """
    return max(left_s - max(margin_s, 2 * safety_s(left_s)), min(pause_s, left_s / 2))


def describe_loss(key: str, seen: Entry | None, ours: Collection[IPv4Address]) -> str | None:
    """Return why `seen`, the present entry under `key`, means that it is lost; ``None`` if it is one of `ours`."""
    if seen is None:
        return f"{key} was deleted from the registry or expired"
    try:
        holder = read_lease(seen).attrs.public_ip
    except ValueError as error:
        return f"{key} was overwritten: {error}"
    return None if holder in ours else f"{key} was taken by {holder}"


# What the machine asks of the registry. Each says what its answer is.


@dataclass(frozen=True, slots=True)
class Survey:
    """List the registry and choose a subnet for the host with `attrs`: a `Decision`."""

    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete an entry of ours that does not fit: ``None``."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Create:
    """Create the subnet's key if there is none: the `Entry`."""

    subnet: Subnet
    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Renew:
    """Let the entry live on, and say `attrs`, if it is still as we know it: the `Entry` as it is now."""

    entry: Entry
    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Measure:
    """How long does the entry live: seconds, ``None`` for ever."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Inspect:
    """What is under our key now: an `Entry` or ``None``."""

    key: str


Request = Survey | Discard | Create | Renew | Measure | Inspect
Result = Decision | Entry | float | None

# What the machine wants done.


@dataclass(frozen=True, slots=True)
class Ask:
    """Send the request; hand its outcome to `answer` or `fail` with this number."""

    number: int
    request: Request


@dataclass(frozen=True, slots=True)
class Held:
    """The subnet is ours until `Lost`. ``new``: it was created, not found."""

    lease: Lease
    new: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """Stop forwarding before anything else."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class Complain:
    """Something failed and will be tried again as ``then`` says."""

    error: FlannelError
    then: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was complained about works again, if anything was."""


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the user."""

    text: str


Action = Ask | Held | Lost | Complain | Recovered | Say


class LeaseMachine:
    """`seek` or `adopt`, then `answer` or `fail` for every `Ask`, and `tick` when `wake_s` has come.

    `observe` and `set_attrs` at any time.

    All times are seconds of one clock that never goes back and never stands still. `margin_s` is the life left at
    which the lease is renewed.
    """

    def __init__(self, attrs: LeaseAttrs, margin_s: float, delays: Delays) -> None:
        self._attrs = attrs  # what the lease is to say; `lease.attrs` is what it said last, as far as we know
        self._written = attrs  # what the last request to write it said
        self._ours = {attrs.public_ip}  # addresses that the lease may have by our own doing
        self._margin_s = margin_s
        self._delays = delays
        self._asked: Ask | None = None  # the request under way
        self._number = 0
        self._due_s: float | None = None  # when the next request is to be sent if none is under way
        self._actions: list[Action] = []
        # While seeking.
        self._decision: Decision | None = None
        self._races = 0
        self._retry_s = delays.first_retry_s
        # While holding, or about to hold.
        self.lease: Lease | None = None
        self.expires_s: float | None = None
        """When the registry may give the subnet away; ``None`` for a reservation, and without a lease."""
        self._stop_s: float | None = None  # when we stop unless a renewal succeeds
        self._granted_s = 0.0  # when the request was sent that let the lease live on
        self._doubted = False  # something spoke against us and no renewal has succeeded since
        self._doubted_anew = False  # ... since the last renewal was sent
        self._inspected = False  # the key was found to be ours although a renewal said no

    @property
    def stop_s(self) -> float | None:
        """From when on nothing may be forwarded for the lease that is held; ``None`` while there is no such time."""
        return self._stop_s

    @property
    def wake_s(self) -> float | None:
        """When `tick` has to be called, ``None`` while only an answer can lead on."""
        times_s = [self._stop_s, None if self._asked else self._due_s]
        return min((time_s for time_s in times_s if time_s is not None), default=None)

    # What happens.

    def seek(self, now_s: float) -> list[Action]:
        """Begin to acquire a lease."""
        self.let_go()
        self._races, self._retry_s = 0, self._delays.first_retry_s
        self._due_s = now_s
        return self.tick(now_s)

    def adopt(self, now_s: float, lease: Lease, expires_s: float | None) -> None:
        """Go on with a lease that another machine held until now; it is renewed at once.

        Raises `ValueError` for one of another host.
        """
        if lease.attrs.public_ip != self._attrs.public_ip:
            raise ValueError(f"{lease.entry.key} belongs to {lease.attrs.public_ip}")
        self.let_go()
        self.lease, self._written, self._ours = lease, lease.attrs, {lease.attrs.public_ip}
        self._granted_s = now_s
        self._live(now_s, None if expires_s is None else expires_s - now_s)
        if expires_s is not None:
            # How long our clock has run away from the registry's is not known: until the renewal, take the longest.
            self._stop_s = expires_s - min(safety_s(LEASE_TTL_S), (expires_s - now_s) / 4)
        self._due_s = now_s

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        return self._step(now_s, lambda: None)

    def answer(self, now_s: float, number: int, result: Result) -> list[Action]:
        """Take the result of a request."""
        return self._step(now_s, lambda: self._outcome(now_s, number, result))

    def fail(self, now_s: float, number: int, error: FlannelError) -> list[Action]:
        """Take the failure of a request."""
        return self._step(now_s, lambda: self._outcome(now_s, number, error))

    def observe(self, now_s: float, seen: Entry | None) -> list[Action]:
        """Take note of what a watch shows under our key; ``None`` for nothing."""
        return self._step(now_s, lambda: self._observe(now_s, seen))

    def set_attrs(self, now_s: float, attrs: LeaseAttrs) -> list[Action]:
        """Let the lease say this from now on: one that is held is renewed at once.

        That is no doubt: the subnet is ours also while the registry, unreachable just now, has the former attributes.
        """
        return self._step(now_s, lambda: self._set_attrs(now_s, attrs))

    def let_go(self) -> Lease | None:
        """Give up the lease, to be released; return what was held."""
        lease, self.lease = self.lease, None
        self.expires_s = self._stop_s = self._due_s = self._asked = None
        self._doubted = self._doubted_anew = False
        return lease

    # How it goes on.

    def _step(self, now_s: float, event: Callable[[], None]) -> list[Action]:
        # First of all, whatever happened: an answer that comes after the time is over does not bring it back.
        if self.lease is not None and self._stop_s is not None and now_s >= self._stop_s:
            self._lose(self._overdue(self.lease))
        event()
        if self._asked is None and self._due_s is not None and now_s >= self._due_s:
            self._due_s = None
            if self.lease is None:
                self._ask(Survey(self._attrs))
            else:
                self._inspected = False
                self._renew(now_s, self.lease.entry)
        actions, self._actions = self._actions, []
        return actions

    def _ask(self, request: Request) -> None:
        self._number += 1
        self._asked = Ask(self._number, request)
        self._actions.append(self._asked)

    def _renew(self, now_s: float, entry: Entry) -> None:
        self._doubted_anew = False
        self._write(now_s, Renew(entry, self._attrs))

    def _write(self, now_s: float, request: Create | Renew) -> None:
        self._granted_s = now_s
        self._written = request.attrs
        self._ours.add(request.attrs.public_ip)
        self._ask(request)

    def _outcome(self, now_s: float, number: int, outcome: Result | FlannelError) -> None:
        if self._asked is None or self._asked.number != number:
            return  # late, double, or about a lease that is lost since
        request, self._asked = self._asked.request, None
        if self.lease is None:
            self._sought(now_s, request, outcome)
        else:
            self._kept(now_s, self.lease, request, outcome)

    def _sought(self, now_s: float, request: Request, outcome: Result | FlannelError) -> None:
        """Go on acquiring."""
        match request, outcome:
            case _, SubnetTaken() | LeaseLost():
                self._raced(now_s, outcome)
            case _, FlannelError():
                self._seek_later(now_s, outcome)
            case Survey(), Decision():
                self._take(now_s, outcome)
            case Discard(), _ if self._decision is not None:
                self._take(now_s, replace(self._decision, discard=self._decision.discard[1:]))
            case Create() | Renew(), Entry():
                self._ask(Measure(outcome))
            case Measure(entry), float() | None if self._decision is not None:
                self._hold(now_s, Lease(self._decision.subnet, self._written, entry), outcome)

    def _raced(self, now_s: float, error: RegistryError) -> None:
        self._races += 1
        if self._races == RACES:
            self._seek_later(now_s, RegistryError(f"other hosts were faster {RACES} times in a row"))
        else:
            self._actions.append(Say(f"another host was faster: {error}"))
            self._ask(Survey(self._attrs))

    def _seek_later(self, now_s: float, error: FlannelError) -> None:
        first_s, last_s = self._delays.first_retry_s, self._delays.last_retry_s
        self._actions.append(Complain(error, f"trying again every {first_s:g} to {last_s:g} s"))
        self._races = 0
        self._due_s = now_s + self._retry_s
        self._retry_s = self._delays.after(self._retry_s)

    def _take(self, now_s: float, decision: Decision) -> None:
        """Delete what is to be discarded, then make the subnet ours."""
        self._decision = decision
        if decision.discard:
            unfit = decision.discard[0]
            text = f"our lease of {unfit.subnet} does not fit the network configuration: deleting it"
            self._actions.append(Say(text))
            self._ask(Discard(unfit.entry))
        elif decision.reuse is not None:
            self._renew(now_s, decision.reuse)
        else:
            self._write(now_s, Create(decision.subnet, self._attrs))

    def _hold(self, now_s: float, lease: Lease, left_s: float | None) -> None:
        self._ours = {lease.attrs.public_ip}
        self._live(now_s, left_s)
        if self._stop_s is not None and now_s >= self._stop_s:
            self.let_go()
            self._seek_later(now_s, RegistryError(f"{lease.entry.key}: the answers took longer than the lease lives"))
            return
        self.lease = lease
        new = self._decision is not None and self._decision.reuse is None
        self._actions += [Recovered(), Held(lease, new)]

    def _kept(self, now_s: float, lease: Lease, request: Request, outcome: Result | FlannelError) -> None:
        """Go on renewing."""
        match request, outcome:
            case _, LeaseLost() if self._inspected:
                self._lose(str(outcome))
            case _, LeaseLost():
                # Somebody may have rewritten the key in our name, to make it a reservation, say: then it is still ours.
                self._doubt(now_s)
                self._ask(Inspect(lease.entry.key))
            case Inspect(), Entry() | None:
                loss = describe_loss(lease.entry.key, outcome, self._ours)
                if outcome is None or loss is not None:
                    self._lose(loss or "")
                else:
                    self._inspected = True
                    self._renew(now_s, outcome)
            case _, FlannelError():
                pause_s = self._pause_s(now_s)
                self._due_s = now_s + pause_s
                self._actions.append(Complain(outcome, f"{self._remaining(now_s)}; trying again every {pause_s:.2g} s"))
            case Renew(), Entry():
                self.lease = replace(lease, attrs=self._written, entry=outcome)
                self._ours = {self._written.public_ip}
                self._ask(Measure(outcome))
            case Measure(), float() | None:
                self._live(now_s, outcome)
                self._actions.append(Recovered())

    def _live(self, now_s: float, left_s: float | None) -> None:
        """Note that the lease lives `left_s` seconds from when that was asked for, ``None`` for ever."""
        self.expires_s = self._stop_s = self._due_s = None
        if left_s is not None:
            self.expires_s = self._granted_s + left_s
            self._stop_s = self.expires_s - safety_s(left_s)
            self._due_s = self._granted_s + renew_delay_s(left_s, self._margin_s, self._delays.renew_retry_s)
        self._doubted = False
        if self._written != self._attrs:  # they were set since
            self._due_s = now_s
        if self._doubted_anew:  # since the renewal was sent: only another one clears that up
            self._doubt(now_s)
            self._due_s = now_s

    def _set_attrs(self, now_s: float, attrs: LeaseAttrs) -> None:
        self._attrs = attrs
        if self.lease is not None:
            self._due_s = now_s

    def _observe(self, now_s: float, seen: Entry | None) -> None:
        lease = self.lease
        if lease is None or (seen is not None and seen.revision == lease.entry.revision):
            return
        loss = describe_loss(lease.entry.key, seen, self._ours)
        if loss is not None and seen is not None and seen.revision > lease.entry.revision:
            self._lose(loss)  # written after our own last write: there is nothing to doubt
            return
        # A watch may be behind what we wrote ourselves: a renewal, which the registry fences, clears it up.
        self._doubt(now_s)
        self._due_s = now_s

    def _doubt(self, now_s: float) -> None:
        """Stop soon unless a renewal that is sent from now on succeeds."""
        if not self._doubted:  # or doubts that keep coming would put off the end
            self._stop_s = min(now_s + DOUBT_S, math.inf if self._stop_s is None else self._stop_s)
        self._doubted = self._doubted_anew = True

    def _lose(self, reason: str) -> None:
        lease = self.let_go()
        if lease is not None:
            self._actions.append(Lost(lease, reason))

    def _overdue(self, lease: Lease) -> str:
        if self._doubted:
            return f"{lease.entry.key} seems to be lost, and the registry does not answer whether it is"
        return f"{lease.entry.key} could not be renewed in time: the registry may soon give it to another host"

    def _pause_s(self, now_s: float) -> float:
        """Return how long to wait after a renewal that failed."""
        if self._doubted:
            return self._delays.first_retry_s
        if self.lease is not None and self.lease.attrs != self._attrs:
            return self._delays.last_retry_s  # until then the other hosts send to where we are not any more
        if self._stop_s is None:
            return self._delays.renew_retry_s
        # The last minutes see more tries than one a minute.
        return min(self._delays.renew_retry_s, max((self._stop_s - now_s) / 4, self._delays.first_retry_s))

    def _remaining(self, now_s: float) -> str:
        if self.expires_s is None:
            return "it is reserved and stays"
        return f"{max(self.expires_s - now_s, 0) / 60:.0f} min of it are left"
