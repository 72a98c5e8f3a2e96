"""Keeps the provider's route tables right: reads them every minute, does what `plan` says, and tells how things stand.

It lives in a task of its own, and the provider is asked in a thread of its own, one call at a time: an answer that
takes half a minute holds up nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from flannel_udp.backend.cloud.facts import CloudFacts
from flannel_udp.backend.cloud.one_thread import OneThread
from flannel_udp.backend.cloud.plan import Known, Plan, Stale, Step, make_plan, to_ask_about
from flannel_udp.backend.cloud.provider import Account, CloudError, CloudTable
from flannel_udp.backoff.delay import Backoff
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Peer, Prefix, Subnet
from flannel_udp.netconf.config import AnyRange

logger = logging.getLogger(__name__)

LOOK_S = (45.0, 75.0)
"""How long between two looks: a minute, and never all hosts at the same moment."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
"""After an error; and, doubling likewise, until what was written can be read."""
GRACE_S = 300.0
"""How long a route is left alone that nobody has a use for: its host may come back."""
FRESH_S = 5.0
"""How long a look is good for removing: by then another route may stand there, and a provider may delete that one."""
PERMIT_EVERY_S = 600.0
"""How often it is asked whether packets with pods' addresses may pass this host."""


class RouteKeeper:
    """`want` a subnet, and there is a route to this host for it as soon as `stands` returns; `run` does the work.

    `connect` finds out who this host is, and blocks. `told` is called when how things stand has changed.
    """

    def __init__(
        self,
        connect: Callable[[], Account],
        subnets: AnyRange,
        list_subnets: Callable[[], Awaitable[list[Subnet]]],
        told: Callable[[], object],
    ) -> None:
        self.repairs: Counter[str] = Counter(route=0)
        self.faults: Mapping[Prefix, str] = {}
        """Peers that no route leads to."""
        self._connect = connect
        self._subnets = subnets
        self._list_subnets = list_subnets
        self._told = told
        self._thread = OneThread("cloud routes")
        self._account: Account | None = None
        self._own: Prefix | None = None
        self._peers: dict[Prefix, Address] = {}
        self._former: dict[Prefix, Address] = {}
        self._stale_since_s: dict[Stale, float] = {}
        self._lacked: Mapping[Prefix, str] = {}  # peers without a route at the last look: the next one tells
        self._plan: Plan | None = None
        self._known: Known | None = None
        self._looked_s: float | None = None
        self._permitted_s: float | None = None
        self._unpermitted: str | None = None
        self._error: str | None = None
        self._stands = asyncio.Event()
        self._gone = asyncio.Event()  # nothing of ours is, or may be, in a table while we want none
        self._gone.set()
        self._woken = asyncio.Event()
        self._said, self._near_said = SaidOnce(), SaidOnce()
        self._retries = _backoff()

    # What is wanted

    def want(self, own: Prefix | None) -> None:
        """Have a route to this host for that subnet, and for no other one; ``None``: for none."""
        if own != self._own:
            self._own, self._plan, self._known = own, None, None
            self._stands.clear()
            self._gone.clear()
        self._woken.set()

    def know_peers(self, peers: Collection[Peer]) -> None:
        """Note who the other hosts are. What one had and has no more is remembered: its route may still be there."""
        now = {peer.subnet: peer.public_ip for peer in peers}
        before = self._former | self._peers
        self._former = {subnet: address for subnet, address in before.items() if now.get(subnet) != address}
        self._peers = now

    def move(self, connect: Callable[[], Account]) -> None:
        """Find out anew who this host is: its interface, or the address, is another one."""
        self._connect, former = connect, self._account
        self._account = self._permitted_s = None
        if former is not None:
            self._thread.later(former.close)
        self._woken.set()

    async def stands(self) -> None:
        """Return once our route stands in every table, and was read there."""
        await self._stands.wait()

    async def gone(self) -> None:
        """Return once nothing of ours is in any table."""
        await self._gone.wait()

    def close(self) -> None:
        """Ask nothing any more; who waits for an answer gets none."""
        if self._account is not None:
            self._thread.later(self._account.close)
        self._thread.end()

    # What is done

    async def run(self) -> None:
        """Keep the tables right until cancelled."""
        while True:
            self._woken.clear()
            again_s = await self._turn()
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await self._woken.wait()

    async def _turn(self) -> float | None:
        """Look and act; return after how many seconds to do so again, ``None``: when somebody wants something."""
        if self._own is None and self._gone.is_set():
            return None
        stood = self._stands.is_set(), self.obstacles, self.problems, self.faults
        try:
            again_s = await self._look()
        except FlannelError as error:
            self._error, again_s = str(error), self._retries.next_s()
            if self._said.failed(self._error):
                logger.warning("cloud routes: %s (trying again)", error)
        except Exception as error:  # a fault of ours, or an SDK's, must not end what keeps the routes
            self._error, again_s = f"looking at the provider's route tables failed: {error!r}", LAST_RETRY_S
            if self._said.failed(self._error):
                logger.exception("cloud routes: %s (trying again)", self._error)
        else:
            self._error = None
            if self._said.worked():
                logger.info("cloud routes: works now")
        if stood != (self._stands.is_set(), self.obstacles, self.problems, self.faults):
            self._told()
        return again_s

    async def _look(self) -> float:
        """Read the tables, and do what is to be done; return when to look again. Raises `FlannelError`."""
        account = await self._connected()
        await self._permit(account)
        tables = tuple(await self._thread.run(account.tables))
        known, plan = await self._make_plan(account, tables)
        if known.own != self._own or account is not self._account:
            return 0.0  # it was meant for another subnet, or another interface
        self._known, self._plan, self._looked_s = known, plan, time.monotonic()
        if plan.near_limits and self._near_said.failed(plan.near_limits):
            logger.warning("cloud routes: near a limit: %s", "; ".join(plan.near_limits))
        if known.own is not None and tables and not plan.lacking:
            self._stands.set()
        if plan.steps:
            await self._do_all(account, plan.steps, known)
            if known.own is None is self._own:
                self._gone.set()
            return self._retries.next_s()  # until what was written can be read
        self._retries = _backoff()
        # A peer's lease is there before its route: only what two looks have missed is a fault.
        self.faults = {peer: text for peer, text in plan.faults.items() if peer in self._lacked}
        self._lacked = plan.faults
        if self._own is None:
            self._gone.set()
        return random.uniform(*LOOK_S)  # noqa: S311 - no secret

    async def _connected(self) -> Account:
        while self._account is None:
            connect = self._connect
            account = await self._thread.run(connect)
            if connect is self._connect:
                self._account = account
                logger.info("cloud routes: this host is %s", account.here)
            else:
                self._thread.later(account.close)
        return self._account

    async def _permit(self, account: Account) -> None:
        """Ask now and then whether packets may pass; that they may not is a problem, and no reason to do nothing."""
        now_s = time.monotonic()
        if self._permitted_s is None or now_s - self._permitted_s >= PERMIT_EVERY_S:
            try:
                if await self._thread.run(account.permit):
                    logger.info("cloud routes: packets with pods' addresses may pass %s now", account.here)
            except CloudError as error:
                self._unpermitted = str(error)
            else:
                self._unpermitted = None
                if account is self._account:
                    self._permitted_s = now_s

    async def _make_plan(self, account: Account, tables: tuple[CloudTable, ...]) -> tuple[Known, Plan]:
        targets = to_ask_about(tables, self._former)
        addresses = await self._thread.run(partial(account.addresses_of, targets)) if targets else {}
        known = Known(self._own, self._subnets, tuple(self._peers), None, self._former, addresses, grace_s=GRACE_S)
        plan = make_plan(tables, known, account.limits)
        if plan.waits:
            known = replace(known, leased=await self._leased())
            plan = make_plan(tables, known, account.limits)
        now_s = time.monotonic()
        self._stale_since_s = {stale: self._stale_since_s.get(stale, now_s) for stale in plan.stale}
        if plan.stale:
            known = replace(known, stale_for_s={at: now_s - since for at, since in self._stale_since_s.items()})
            plan = make_plan(tables, known, account.limits)
        return known, plan

    async def _leased(self) -> list[Prefix] | None:
        """Ask the registry, not what we have heard of it, before anything of another host's is removed."""
        try:
            return [part for subnet in await self._list_subnets() for part in subnet.prefixes]
        except FlannelError as error:
            logger.info("cloud routes: nothing stale is removed now: %s", error)
            return None

    async def _do_all(self, account: Account, steps: Collection[Step], known: Known) -> None:
        """Do one after the other; what fails holds up none of the others, and is raised then as `FlannelError`.

        Steps take seconds each, and there may be hundreds: what is no longer to be done is left out.
        """
        failed = []
        fresh_until_s = time.monotonic() + FRESH_S
        for step in steps:
            if not self._is_due(step, known, fresh_until_s):
                continue
            try:
                await self._do(account, step)
            except FlannelError as error:
                failed.append(str(error))
        if failed:
            raise CloudError("; ".join(dict.fromkeys(failed)))

    def _is_due(self, step: Step, known: Known, fresh_until_s: float) -> bool:
        """Tell whether it is still to be done, as far as we have heard since `known` was known.

        What is not removed by `fresh_until_s` the next look finds again.
        """
        if step.action != "remove":
            return step.destination == self._own
        if known.own is None:  # what leads here is all that is removed then, and is in the way of who got it
            return step.destination != self._own
        heard = self._peers.keys() - known.peers
        return time.monotonic() < fresh_until_s and step.destination not in {self._own, *heard}

    async def _do(self, account: Account, step: Step) -> None:
        act, done = {
            "create": (account.create, "made"),
            "replace": (account.replace, "replaced"),
            "remove": (account.remove, "removed"),
        }[step.action]
        await self._thread.run(partial(act, step.table, step.destination))
        logger.info("cloud routes: %s the route for %s in %s: %s", done, step.destination, step.table, step.why)
        if step.destination == self._own and self._stands.is_set():
            self.repairs["route"] += 1

    # How things stand

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why no packets come to this host."""
        if self._own is None:
            return ()
        led_astray = self._plan.obstacles if self._plan else ()
        if led_astray and self._plan and len(led_astray) == len(self._plan.tables):
            return led_astray
        return () if self._stands.is_set() or self._error is None else (self._error,)

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps some from coming, or may soon."""
        if self._own is None:
            return ()
        plan = (*self._plan.obstacles, *self._plan.problems) if self._plan else ()
        found = (self._error, self._unpermitted, *plan)
        return tuple(text for text in found if text is not None and text not in self.obstacles)

    def facts(self) -> CloudFacts:
        """Return what the last look found, for who asks."""
        plan, known = self._plan, self._known
        return CloudFacts(
            here=None if self._account is None else self._account.here,
            looked_s=self._looked_s,
            error=self._error,
            cleaner=None if known is None or known.cleaner is None else str(known.cleaner),
            cleans=known is not None and known.cleans,
            tables=() if plan is None else plan.tables,
            routes=() if plan is None else plan.rows,
        )


def _backoff() -> Backoff:
    return Backoff(FIRST_RETRY_S, LAST_RETRY_S, random.Random())  # noqa: S311 - no secret
