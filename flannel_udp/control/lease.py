"""The lease of this host: acquire it, renew it in time, notice its loss, release it on request.

What is decided is in `control.lease_machine`; here its actions are carried out, and its clock runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from flannel_udp.control.allocation import (
    Decision,
    Seeker,
    accept_assigned,
    choose_subnet,
    find_rival,
    widen_subnet,
)
from flannel_udp.control.boottime import Alarm, now_s
from flannel_udp.control.entries import read_lease, read_leases
from flannel_udp.control.former import read_attrs
from flannel_udp.control.lease_actions import (
    Action,
    Ask,
    Complain,
    Create,
    Discard,
    Held,
    Inspect,
    Lost,
    Measure,
    Move,
    Recovered,
    Renew,
    Request,
    Result,
    Say,
    Survey,
    Take,
    Widen,
    Widened,
)
from flannel_udp.control.lease_machine import LeaseMachine
from flannel_udp.control.retry import DEFAULT_DELAYS, Complaints, Delays, TellError, ignore
from flannel_udp.errors import FlannelError, LeaseLost, SubnetTaken
from flannel_udp.model import LEASE_TTL_S, Entry, Lease, LeaseAttrs, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry import Registry
from flannel_udp.registry.keys import format_key, format_value

logger = logging.getLogger(__name__)

OVER_S = 0.0
"""A time that has passed since boot."""


@dataclass(slots=True)
class LeaseCounts:
    """What became of the leases of this run."""

    acquired: int = 0
    lost: int = 0
    renewals: int = 0
    failures: int = 0
    """Renewals that failed, each try."""
    renewed_s: float | None = None
    """Unix time of the last renewal."""


class LeaseKeeper:
    """Holds one lease for the host with `attrs`; `acquire`, then `keep` until it is lost, then `acquire` again.

    `previous` is the subnet of an existing subnet.env, `margin_s` the life left at which the lease is renewed, `mark`
    the host's, which its leases bear, 0 for none.
    `forward_until` is told again and again until when the host may forward for the lease, by CLOCK_BOOTTIME (``None``:
    for ever), and at its loss that the time is over; `tell` of what goes wrong with the lease.
    """

    def __init__(
        self,
        registry: Registry,
        attrs: LeaseAttrs,
        margin_s: float,
        forward_until: Callable[[float | None], None],
        *,
        mark: int = 0,
        previous: Subnet | None = None,
        delays: Delays = DEFAULT_DELAYS,
        tell: TellError = ignore,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._forward_until = forward_until
        self._tell = tell
        self._previous = previous
        self._config: NetworkConfig | None = None
        # flannel's pick needs no secrecy, only that hosts differ.
        self._rng = rng or random.Random()  # noqa: S311
        self._machine = LeaseMachine(attrs, margin_s, delays, mark, self._rng)
        self._todo: deque[Callable[[], list[Action]]] = deque()  # what happened and the machine was not told yet
        self._woken = asyncio.Event()  # something was put there, or the alarm went off
        self._call: asyncio.Task[Result] | None = None  # the request under way, or the last one
        self.counts = LeaseCounts()
        """What became of the leases so far."""
        self.claimed = False
        """Whether the lease was lost to another host with our own address; it keeps the subnet for a while."""
        self.former: LeaseAttrs | None = None
        """What our entry said that `acquire` found, before it was rewritten; ``None`` if the lease was created new or
        adopted, or if what stood there could not be read."""

        self.widened: Callable[[], object] = lambda: None
        """Called when the lease that is held has become one for a subnet with parts of more families."""

    @property
    def lease(self) -> Lease | None:
        """The lease that is held now."""
        return self._machine.lease

    @property
    def left_s(self) -> float | None:
        """Seconds until the lease expires unless it is renewed; ``None`` for a reservation or without a lease."""
        expires_s = self._machine.expires_s
        return None if expires_s is None else expires_s - now_s()

    def set_attrs(self, attrs: LeaseAttrs) -> None:
        """Tell the other hosts this from now on: a lease that is held is rewritten at once, fenced like a renewal.

        While one is acquired, it is rewritten as soon as it is kept.
        """
        self._todo.append(lambda: self._machine.set_attrs(now_s(), attrs))
        self._woken.set()

    @property
    def expires_s(self) -> float | None:
        """When the lease ends, by CLOCK_BOOTTIME; ``None`` as for `left_s`."""
        return self._machine.expires_s

    def yield_for(self, seconds: float) -> None:
        """Leave what another host has taken under our address to it for so long; before the first `acquire`."""
        self._machine.yield_until(now_s() + seconds)

    async def acquire(self, config: NetworkConfig) -> Lease:
        """Return a lease, for as long as it takes to get one; `keep` it at once: its time is running."""
        self._config = config
        self._todo.append(lambda: self._machine.seek(now_s()))
        outcome = await self._drive(Complaints("acquiring a subnet", self._tell))
        assert isinstance(outcome, Held)  # noqa: S101 - a machine without a lease cannot lose one
        lease, self.claimed = outcome.lease, False
        self._tell(None)
        self.counts.acquired += 1
        if outcome.found is None:
            self.former, what = None, "acquired a new"
        else:
            self.former, what = read_attrs(outcome.found), "kept our reserved" if lease.entry.reserved else "kept our"
        logger.info("%s subnet %s", what, lease.subnet)
        return lease

    def adopt(self, entry: Entry, expires_s: float | None, config: NetworkConfig | None = None) -> Lease:
        """Go on with a lease that another process of this host held until now; `keep` it at once.

        `expires_s` is its end by CLOCK_BOOTTIME, ``None`` for a reservation; `config` says which families are on, all
        if it is not given. Raises `ValueError` for an entry that is not ours.
        """
        lease, self._config = read_lease(entry), config
        if config is not None:
            lease = replace(lease, subnet=config.part_of(lease.subnet))
        self._machine.adopt(now_s(), lease, expires_s)
        self.former = None
        self._forward_until(self._machine.stop_s)
        return lease

    async def keep(self) -> str:
        """Renew the lease that was acquired, until it is lost; return why it was lost."""
        if self._machine.lease is None:
            raise RuntimeError("keep() without a lease: acquire() comes first")
        outcome = await self._drive(Complaints("renewing the subnet", self._tell))
        assert isinstance(outcome, Lost)  # noqa: S101 - a machine that holds a lease can only lose it
        self._previous = outcome.lease.subnet
        self.claimed = outcome.claimed
        self.counts.lost += 1
        self._tell(f"lost our subnet {outcome.lease.subnet}: {outcome.reason}")
        return outcome.reason

    def observe(self, seen: Entry | None) -> None:
        """Take note of what a watch shows under our key; ``None`` for nothing."""
        if self._machine.lease is not None:
            self._todo.append(lambda: self._machine.observe(now_s(), seen))
            self._woken.set()

    async def release(self) -> None:
        """Give the lease back so that its subnet is free at once; a reservation stays. Raises `RegistryError`.

        `keep` must not be running any more.
        """
        lease = self._machine.let_go()
        self._give_up_call()
        if lease is None:
            return
        self._forward_until(OVER_S)  # first: as soon as the registry knows, the subnet may be another host's
        if lease.entry.reserved:
            logger.info("subnet %s is reserved for this host and stays in the registry", lease.subnet)
            return
        try:
            await self._registry.delete(lease.entry)
        except LeaseLost as error:
            logger.info("subnet %s was not ours any more: %s", lease.subnet, error)
        else:
            logger.info("released subnet %s", lease.subnet)

    async def _drive(self, complaints: Complaints) -> Held | Lost:
        """Let the machine run until it holds a lease or has lost it.

        A request may be under way when a lease is held: it goes on, and the next drive takes its answer.
        """
        with Alarm(self._woken.set) as alarm:
            try:
                while True:
                    self._woken.clear()
                    event = self._todo.popleft() if self._todo else partial(self._machine.tick, now_s())
                    actions = event()
                    if self._machine.lease is not None:
                        self._forward_until(self._machine.stop_s)
                    for action in actions:
                        self._carry_out(action, complaints)
                    for action in actions:
                        if isinstance(action, Held | Lost):
                            return action
                    if not self._todo:
                        if (wake_s := self._machine.wake_s) is not None:
                            logger.debug("lease: nothing to do for %.0f s", wake_s - now_s())
                        alarm.set(self._machine.wake_s)
                        await self._woken.wait()
            except BaseException:
                self._give_up_call()
                raise

    def _carry_out(self, action: Action, complaints: Complaints) -> None:
        match action:
            case Ask():
                logger.debug("lease: request to the registry: %s", type(action.request).__name__.lower())
                self._call = asyncio.create_task(self._ask(action.request))
                self._call.add_done_callback(partial(self._answered, action.number))
            case Held():
                pass  # forwarding may begin: the caller's to do
            case Widened():
                logger.info("our subnet is %s now: its key is %s", action.lease.subnet, action.lease.entry.key)
                self.widened()
            case Lost():
                self._forward_until(OVER_S)
                self._give_up_call()
            case Complain():
                complaints.failed(action.error, action.then)
            case Recovered():
                complaints.worked()
            case Say():
                logger.info("%s", action.text)

    async def _ask(self, request: Request) -> Result:
        result: Result = None
        match request:
            case Survey():
                result = await self._survey(request.seeker)
            case Discard():
                await self._registry.delete(request.entry)
            case Create():
                result = await self._create(request)
            case Take():
                result = await self._registry.take(request.entry, format_value(request.attrs), LEASE_TTL_S)
            case Renew():
                result = await self._renew(request)
            case Widen():
                result = await self._widen(request)
            case Move():
                result = await self._move(request)
            case Measure():
                # Asked for, because the life of a lease that is kept alive is that of its first grant, by whoever made
                # it; and because an etcd member that was the leader until just now may have granted what it may not.
                result = await self._registry.time_left_s(request.entry)
            case Inspect():
                result = (await self._registry.list()).entries.get(request.key)
        return result

    async def _renew(self, request: Renew) -> Entry:
        try:
            entry = await self._registry.renew(request.entry, format_value(request.attrs), LEASE_TTL_S)
        except FlannelError:
            self.counts.failures += 1
            raise
        self.counts.renewals += 1
        self.counts.renewed_s = time.time()
        return entry

    async def _create(self, request: Create) -> Entry:
        """Create our entry; with a part of both families only if no other host has one of these already.

        The store keeps two hosts from the same key only, and not from two keys that share a part.
        """
        value = format_value(request.attrs)
        entry = await self._registry.create(format_key(request.subnet), value, LEASE_TTL_S)
        config = self._config
        if config is None or len(config.versions) == 1:
            return entry
        rival = await self._find_rival(config, entry.key, request.subnet)
        if rival is None:
            return entry
        await self._registry.delete(entry)
        raise SubnetTaken(rival)

    async def _find_rival(self, config: NetworkConfig, key: str, subnet: Subnet) -> str | None:
        """Return who else has a part of the subnet that we have just written under that key, if anybody has."""
        snapshot = await self._registry.list()
        rival = await asyncio.to_thread(lambda: find_rival(config, read_leases(snapshot.entries), key, subnet))
        if rival is None:
            return None
        return f"{rival.entry.key} has a part of our {key}, and was written at the same time"

    async def _widen(self, request: Widen) -> Subnet:
        config, lease = self._config, request.lease
        if config is None:  # adopted, by who does not say which families are on
            return lease.subnet
        assigned = await self._registry.assigned()
        if assigned is not None:
            return accept_assigned(config, assigned, request.versions).subnet
        snapshot = await self._registry.list()
        wanted = request.versions, self._previous
        return await asyncio.to_thread(widen_subnet, config, snapshot, lease, wanted, self._rng)

    async def _move(self, request: Move) -> Entry:
        """Have the lease under the key of that subnet, if no other host has a part of it, see `_create`."""
        assert self._config is not None  # noqa: S101 - without one no lease is widened, see `_widen`
        entry, value = request.lease.entry, format_value(request.lease.attrs)
        if entry.reserved:  # the store has assigned it, and more of it counts now
            return await self._registry.renew(entry, value, LEASE_TTL_S)
        moved = await self._registry.move(entry, format_key(request.subnet), value)
        rival = await self._find_rival(self._config, moved.key, request.subnet)
        if rival is None:
            return moved
        await self._registry.move(moved, entry.key, value)
        raise SubnetTaken(rival)

    async def _survey(self, seeker: Seeker) -> Decision:
        assert self._config is not None  # noqa: S101 - only acquire() makes the machine ask for it
        assigned = await self._registry.assigned()
        if assigned is not None:
            return accept_assigned(self._config, assigned, seeker.versions)
        snapshot = await self._registry.list()
        # In a thread, because reading 100,000 leases takes seconds and the event loop serves others meanwhile.
        return await asyncio.to_thread(choose_subnet, self._config, snapshot, seeker, self._previous, self._rng)

    def _give_up_call(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _answered(self, number: int, call: asyncio.Task[Result]) -> None:
        if not call.cancelled():
            self._todo.append(partial(self._finish, number, call))
            self._woken.set()

    def _finish(self, number: int, call: asyncio.Task[Result]) -> list[Action]:
        try:
            result = call.result()
        except FlannelError as error:
            return self._machine.fail(now_s(), number, error)
        return self._machine.answer(now_s(), number, result)
