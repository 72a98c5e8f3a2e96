"""Kernel routes to peers that end with our lease: a `RouteSet` and the `LeaseEnd` that it hangs on, for a network.

The network lives on the event loop, routes and addresses block: everything is done in threads, one at a time. What was
wanted of a lease that is withdrawn meanwhile is not done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from typing import Protocol

from flannel_udp.backend.lease_end import Ending, LeaseEnd, RouteLife
from flannel_udp.backend.protocol import Context
from flannel_udp.backend.routes import ROUTE_PROTOCOL, Hop, RouteSet
from flannel_udp.dataplane.claims import Claims
from flannel_udp.errors import FlannelError
from flannel_udp.host.links import LOOPBACK_INDEX
from flannel_udp.host.monitor import Interest, OwnRoutes
from flannel_udp.model import Address, Prefix, prefix_of
from flannel_udp.netconf.config import NetworkConfig

logger = logging.getLogger(__name__)

ROUTES_CLAIM = f"the kernel routes of protocol {ROUTE_PROTOCOL}"
"""Two agents would take each other's routes for a killed run's, and delete them again and again."""
SAID_MAX = 10
"""So many faults of routes are logged at once; `status` and `peers` have them all."""

Hops = Callable[[Collection[Prefix] | None, Address | None], Mapping[Prefix, Hop | None]]
"""Called in a thread with subnets, ``None`` for those of all peers, and the source that a route has to have: where the
packets for each go, ``None``: there is to be no route to it. May raise `FlannelError`."""


class End(Protocol):
    """What routes hang on: a `LeaseEnd`, or what does the same."""

    @property
    def ending(self) -> Ending: ...  # noqa: D102 - all of them are `LeaseEnd`'s
    @property
    def fault(self) -> str | None: ...  # noqa: D102
    def hold(self, address: Address | None) -> None: ...  # noqa: D102
    def live_until(self, boottime_s: float | None) -> None: ...  # noqa: D102
    def remove(self) -> None: ...  # noqa: D102
    def remove_former(self) -> None: ...  # noqa: D102


class Beside(Protocol):
    """What a network has in the kernel beside its routes."""

    @property
    def faults(self) -> Mapping[Prefix, str]:
        """Why there is no route to these subnets, one line each. Replaced as a whole, never changed."""
        ...

    def clean(self) -> None:
        """Remove what no peer needs any more: called, in the thread, after the routes. May raise `FlannelError`."""
        ...

    def clear(self) -> None:
        """Remove all of it, likewise."""
        ...


class LeasedRoutes:
    """The routes of one IP version that `hops` says; `tunnel` as for `LeaseEnd`.

    Raises `Claimed` if another agent has such routes.

    They hang on `end` where one is given. Methods that are awaited raise `FlannelError`, unless they say otherwise.
    """

    def __init__(
        self,
        context: Context,
        hops: Hops,
        tunnel: Callable[[], int] = lambda: 0,
        *,
        version: int = 4,
        end: End | None = None,
        beside: Beside | None = None,
    ) -> None:
        context.claims.hold(ROUTES_CLAIM)
        self._hops = hops
        self._look = context.on_fault
        self._routes = RouteSet(version)
        self._end: End = end or (LeaseEnd(tunnel) if version == 4 else RouteLife())
        self._beside = beside
        self._until_s: float | None = None  # when the lease ends, by CLOCK_BOOTTIME
        self._held: Prefix | None = None  # until `hold` the routes are another process's, if there are any
        self._first: Address | None = None  # the first address of what was held last
        self._loaded = False
        self._complete = False  # all that `hops` says is wanted of the kernel
        self._ending = Ending()  # of the routes, as they were loaded last
        self._faults: Mapping[Prefix, str] = {}  # as last logged
        self._end_fault: str | None = None  # likewise
        self._tasks: set[asyncio.Task[None]] = set()
        # Work in a thread goes on when whoever waits for it is cancelled.
        self._one_at_a_time = threading.Lock()
        self._end_one_at_a_time = threading.Lock()  # likewise for what concerns the address alone, and never takes long

    # What is wanted

    async def hold(self, subnet: Prefix, *, load: bool) -> None:
        """From now on the routes are ours; with `load` the peers are known, from the process that ran before."""
        self._held, self._first = subnet, subnet.network_address
        await self._work(subnet, self._load if load else self._follow_lease)

    async def load(self, own: Prefix) -> None:
        """Bring all routes there, and remove those of earlier runs; what fails is upkeep's to try again, and to tell.

        Nothing happens unless `own` is the subnet that is held.
        """
        await self._work_or_look(own, self._load)

    async def apply(self, own: Prefix, changed: Collection[Prefix]) -> None:
        """Likewise for these subnets."""
        await self._work_or_look(own, lambda: self._apply(changed))

    async def reload(self) -> None:
        """Bring all routes there anew, if there are any yet."""
        if self._held is not None and self.loaded:
            await self._work(self._held, self._load)

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the kernel removes the address, and with it the routes."""
        if boottime_s == self._until_s:
            return
        self._until_s = boottime_s
        if self._held is not None:
            task = asyncio.create_task(self._live(self._held), name="let the routes live as long as the lease")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _live(self, held: Prefix) -> None:
        """The address first, at once: who sets thousands of routes just now must not keep it from living on."""

        def keep_end() -> None:
            if self._held == held:
                self._keep_end()

        with suppress(FlannelError):  # to be tried again by what follows
            await asyncio.to_thread(keep_end)
        await self._work_or_look(held, self._follow_lease)

    async def repair(self, moved: Callable[[], Set[Prefix]] = frozenset) -> int:
        """Put right what is not as it should be; return how many routes that were.

        `moved()`, called in the thread, tells for which subnets packets may have another way now.
        """
        if self._held is None or not self.loaded:
            return 0

        def repair() -> int:
            if changed := moved():
                self._apply(changed)
            return self._repair()

        return await self._work(self._held, repair)

    async def work(self, work: Callable[[], int]) -> int:
        """Do something to what is beside the routes while nobody does to these, unless they are withdrawn."""
        return 0 if self._held is None else await self._work(self._held, work)

    def inherit(self, device: int = 0, outside: Prefix | None = None, *, elsewhere: bool) -> None:
        """See `RouteSet.inherit`."""
        self._routes.inherit(device, outside, elsewhere=elsewhere)

    async def withdraw(self) -> None:
        """Remove the routes at once: with their address, and what has none, or keeps it, one by one."""
        self._held, self._loaded = None, False
        await asyncio.to_thread(self._withdraw)

    async def stay(self) -> None:
        """Let the routes stay for good, if they are ours."""
        if self._held is not None:
            await asyncio.to_thread(self._stay)

    # What is asked

    @property
    def held(self) -> bool:
        """Whether the routes are ours: not another process's, nor withdrawn."""
        return self._held is not None

    @property
    def loaded(self) -> bool:
        """Whether there are routes to be kept right: before that, what is there may be a killed run's, and good."""
        return self._loaded and self._held is not None

    @property
    def faults(self) -> Mapping[Prefix, str]:
        """Why packets for these subnets do not travel, one line each."""
        beside = {} if self._beside is None else self._beside.faults
        return {**self._routes.faults, **beside} if beside else self._routes.faults

    @property
    def end_fault(self) -> str | None:
        """See `LeaseEnd.fault`."""
        return self._end.fault

    @property
    def n_standing(self) -> int:
        """See `RouteSet.n_standing`."""
        return self._routes.n_standing

    @property
    def again_s(self) -> float | None:
        """See `RouteSet.again_s`."""
        return self._routes.again_s

    def stands(self, subnet: Prefix) -> bool:
        """Tell whether packets for this subnet take a route of ours, as far as is known; in any thread."""
        beside = {} if self._beside is None else self._beside.faults
        return self._routes.gateway(subnet) is not None and subnet not in self._routes.faults and subnet not in beside

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: routes to our peers, and the address on lo that they hang on."""
        return Interest({LOOPBACK_INDEX}, frozenset(), OwnRoutes(ROUTE_PROTOCOL, self._routes.gateway))

    # In a thread

    async def _work_or_look(self, held: Prefix, work: Callable[[], int]) -> None:
        """Do it, see `_work`; what fails is upkeep's to try again, and to tell."""
        try:
            await self._work(held, work)
        except FlannelError:
            self._look()

    async def _work(self, held: Prefix, work: Callable[[], int]) -> int:
        """Do something to the routes or their address in a thread, unless they are not for that subnet any more."""

        def unless_withdrawn() -> int:
            with self._one_at_a_time:
                return work() if self._held == held else 0

        n = await asyncio.to_thread(unless_withdrawn)
        self._say_faults()
        return n

    def _load(self) -> int:
        self._keep_end()
        return self._load_as_they_end()

    def _load_as_they_end(self) -> int:
        self._loaded, self._complete = True, False
        self._ending = self._end.ending
        hops = self._hops(None, self._ending.source)
        n = self._routes.load({at: hop for at, hop in hops.items() if hop is not None})
        self._clean()
        self._complete = True
        self._end.remove_former()
        return n

    def _apply(self, changed: Collection[Prefix]) -> int:
        complete, self._complete = self._complete, False
        n = self._routes.apply(self._hops(changed, self._ending.source))
        self._clean()
        self._complete = complete
        return n

    def _clean(self) -> None:
        if self._beside is not None:
            self._beside.clean()

    def _follow_lease(self) -> int:
        return self._load_or_live() if self._keep_end() and self._loaded else 0

    def _repair(self) -> int:
        if self._keep_end() or not self._complete:
            return self._load_or_live()
        return self._routes.repair()

    def _load_or_live(self) -> int:
        """Bring routes there as they end now: as they are but for their life, where nothing else of them is new."""
        ending = self._end.ending
        if not self._complete or ending.source != self._ending.source:
            return self._load_as_they_end()
        n = self._routes.follow_life()
        self._ending = ending
        return n

    def _keep_end(self) -> bool:
        """Have the address live as long as the lease; tell whether routes need another source, or life, than before."""
        with self._end_one_at_a_time:
            # A lease without end (a reservation, Kubernetes) needs no address: its routes are flanneld's to the letter.
            self._end.hold(None if self._until_s is None else self._first)
            self._end.live_until(self._until_s)
            self._let_routes_end()
            return self._end.ending != self._ending

    def _let_routes_end(self) -> None:
        """Have those that are being set just now, in another thread, end like the ones after them."""
        self._routes.ends_s = self._end.ending.at_s

    def _withdraw(self) -> None:
        with self._end_one_at_a_time:
            self._end.remove()  # before all else, also if thousands of routes are being set just now
            self._let_routes_end()
        with self._one_at_a_time:
            self._end.remove()
            self._routes.clear()
            if self._beside is not None:
                self._beside.clear()

    def _stay(self) -> None:
        with self._end_one_at_a_time:
            self._end.live_until(None)
            self._let_routes_end()
        with self._one_at_a_time:
            if self._loaded and self._end.ending != self._ending:
                self._load_or_live()

    # What is said

    def _say_faults(self) -> None:
        """Log why routes do not end with the lease, which cannot be set, and what is right again; each once."""
        if self._end.fault != self._end_fault:
            self._end_fault = self._end.fault
            if self._end_fault is None:
                logger.info("routes end with the lease again")
            else:
                logger.warning("%s", self._end_fault)
        before, now = self._faults, self.faults
        if now is before:
            return
        self._faults = now
        new = [text for at, text in now.items() if before.get(at) != text]
        gone = [str(at) for at in before if at not in now and self.stands(at)]
        for text in new[:SAID_MAX]:
            logger.warning("%s", text)
        if len(new) > SAID_MAX:
            logger.warning("... and %d more like these: see flannel-udp peers", len(new) - SAID_MAX)
        if gone:
            more = f" and {len(gone) - SAID_MAX} more" if len(gone) > SAID_MAX else ""
            logger.info("routes that could not be set stand now: %s%s", ", ".join(gone[:SAID_MAX]), more)


def refuse_another_agents(claims: Claims, device: str) -> None:
    """Raise `Claimed` if this tunnel device of the kernel's may be another agent's: who has one keeps routes, too.

    Call it while our own network is not open: it keeps the claim no longer than it asks.
    """
    claims.hold(ROUTES_CLAIM, f"{device} may be its: stop it first, or choose another Backend.Port or VNI")
    claims.let_go(ROUTES_CLAIM)


def leasable(config: NetworkConfig, address: Address) -> Prefix | None:
    """Return the subnet that has the address and may be leased: it may have a route some day."""
    subnets = config.of(address.version)
    if subnets is None:
        return None
    subnet = prefix_of(address, subnets.subnet_len)
    return subnet if subnets.fits(subnet) else None


def remove_left_routes(versions: Collection[int]) -> list[str]:
    """Remove what an earlier run has left of these IP versions, and the address that it hung on; say what that was.

    Blocks.
    """
    n = sum(RouteSet(version).clear() for version in versions)
    if 4 in versions:
        LeaseEnd().remove_former()
    return [f"our routes to peers: {n}"] if n else []
