"""The lease of this host: acquire it, renew it in time, notice its loss, release it on request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import replace

from flannel_udp.config import NetworkConfig
from flannel_udp.control.allocation import Decision, choose_subnet
from flannel_udp.control.entries import read_lease
from flannel_udp.control.retry import DEFAULT_DELAYS, Complaints, Delays, retry
from flannel_udp.errors import LeaseLost, RegistryError, SubnetTaken
from flannel_udp.model import LEASE_TTL_S, Entry, Lease, LeaseAttrs, Subnet
from flannel_udp.registry import Registry
from flannel_udp.registry.keys import format_key, format_value

logger = logging.getLogger(__name__)

RACES = 10
"""How many times in a row another host may be faster before it counts as a failure."""


def renew_delay_s(left_s: float, margin_s: float, pause_s: float) -> float:
    """Return how long to wait with the renewal of a lease that lives `left_s` more seconds.

    Until the margin is reached; a lease granted for little more or less than that is renewed every `pause_s`, or at
    half its life if that is sooner, instead of without a pause.
    """
    return max(left_s - margin_s, min(pause_s, left_s / 2))


def describe_loss(lease: Lease, seen: Entry | None) -> str | None:
    """Return why `seen`, the present entry of the lease's key, means that it is lost; ``None`` if it is still ours."""
    key = lease.entry.key
    if seen is None:
        return f"{key} was deleted from the registry or expired"
    try:
        holder = read_lease(seen).attrs.public_ip
    except ValueError as error:
        return f"{key} was overwritten: {error}"
    return None if holder == lease.attrs.public_ip else f"{key} was taken by {holder}"


class LeaseKeeper:
    """Holds one lease for the host with `attrs`; `acquire`, then `keep` until it is lost, then `acquire` again.

    `previous` is the subnet of an existing subnet.env, `margin_s` the life left at which the lease is renewed.
    """

    def __init__(
        self,
        registry: Registry,
        attrs: LeaseAttrs,
        margin_s: float,
        *,
        previous: Subnet | None = None,
        delays: Delays = DEFAULT_DELAYS,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._attrs = attrs
        self._value = format_value(attrs)
        self._margin_s = margin_s
        self._previous = previous
        self._delays = delays
        # flannel's pick needs no secrecy, only that hosts differ.
        self._rng = rng or random.Random()  # noqa: S311
        self._lease: Lease | None = None
        self._woken = asyncio.Event()  # _renew_at_s was changed
        self._doubted = False  # a watch spoke against us and no renewal has succeeded since
        self._expires_s: float | None = None  # by _now_s(); None for a reservation
        self._renew_at_s: float | None = None

    @property
    def lease(self) -> Lease | None:
        """The lease that is held now."""
        return self._lease

    @property
    def left_s(self) -> float | None:
        """Seconds until the lease expires unless it is renewed; ``None`` for a reservation or without a lease."""
        return None if self._expires_s is None else self._expires_s - _now_s()

    @property
    def expires_s(self) -> float | None:
        """When the lease ends, by CLOCK_BOOTTIME; ``None`` as for `left_s`."""
        return self._expires_s

    async def acquire(self, config: NetworkConfig) -> Lease:
        """Return a lease, for as long as it takes to get one."""

        async def attempt() -> Lease:
            return await self._acquire_once(config)

        return await retry("acquiring a subnet", attempt, self._delays)

    def adopt(self, entry: Entry, expires_s: float | None) -> Lease:
        """Go on with a lease that another process of this host held until now; `keep` it at once.

        `expires_s` is its end by CLOCK_BOOTTIME, ``None`` for a reservation. Raises `ValueError` for an entry that is
        not ours.
        """
        lease = read_lease(entry)
        if lease.attrs.public_ip != self._attrs.public_ip:
            raise ValueError(f"{entry.key} belongs to {lease.attrs.public_ip}")
        self._lease = lease
        self._live(None if expires_s is None else expires_s - _now_s())
        return lease

    async def keep(self) -> str:
        """Renew the lease that was acquired, until it is lost; return why it was lost."""
        lease = self._lease
        if lease is None:
            raise RuntimeError("keep() without a lease: acquire() comes first")
        complaints = Complaints("renewing the subnet")
        while True:
            await self._renewal_due()
            doubted, self._doubted = self._doubted, False
            try:
                self._lease = lease = await self._renew(lease)
                left_s = await self._registry.time_left_s(lease.entry)
            except LeaseLost as error:
                self._lease, self._previous = None, lease.subnet
                return str(error)
            except RegistryError as error:
                self._doubted |= doubted
                pause_s = self._delays.last_retry_s if self._doubted else self._delays.renew_retry_s
                self._renew_at_s = _now_s() + pause_s
                complaints.failed(error, f"{self._remaining()}; trying again every {pause_s:g} s")
            else:
                complaints.worked()
                logger.debug("renewed subnet %s", lease.subnet)
                self._live(left_s)

    def observe(self, seen: Entry | None) -> None:
        """Take note of what a watch shows under our key; ``None`` for nothing.

        A watch may be behind what we wrote ourselves, so what speaks against us is checked at once by a renewal, which
        the registry fences.
        """
        lease = self._lease
        if lease is not None and (seen is None or seen.revision != lease.entry.revision):
            self._doubted = True
            self._renew_at_s = _now_s()
            self._woken.set()

    async def release(self) -> None:
        """Give the lease back so that its subnet is free at once; a reservation stays. Raises `RegistryError`.

        `keep` must not be running any more.
        """
        lease, self._lease = self._lease, None
        if lease is None:
            return
        if lease.entry.reserved:
            logger.info("subnet %s is reserved for this host and stays in the registry", lease.subnet)
            return
        try:
            await self._registry.delete(lease.entry)
        except LeaseLost as error:
            logger.info("subnet %s was not ours any more: %s", lease.subnet, error)
        else:
            logger.info("released subnet %s", lease.subnet)

    async def _acquire_once(self, config: NetworkConfig) -> Lease:
        """Make one attempt, which ends early only when other hosts are faster `RACES` times."""
        for _ in range(RACES):
            snapshot = await self._registry.list()
            # In a thread, because reading 100,000 leases takes seconds and the event loop serves others meanwhile.
            decision = await asyncio.to_thread(
                choose_subnet, config, snapshot, self._attrs.public_ip, self._previous, self._rng
            )
            try:
                return await self._carry_out(decision)
            except (SubnetTaken, LeaseLost) as error:
                logger.info("another host was faster: %s", error)
        raise RegistryError(f"other hosts were faster {RACES} times in a row")

    async def _carry_out(self, decision: Decision) -> Lease:
        for unfit in decision.discard:
            logger.info("our lease of %s does not fit the network configuration: deleting it", unfit.subnet)
            await self._registry.delete(unfit.entry)
        subnet = decision.subnet
        if decision.reuse is not None:
            entry = await self._registry.renew(decision.reuse, self._value, LEASE_TTL_S)
        else:
            entry = await self._registry.create(format_key(subnet), self._value, LEASE_TTL_S)
        # Asked for, because the life of a lease that is kept alive is that of its first grant, by whoever made it.
        left_s = await self._registry.time_left_s(entry)
        self._lease = lease = Lease(subnet, self._attrs, entry)
        self._doubted = False
        self._live(left_s)
        what = "acquired a new" if decision.reuse is None else "kept our reserved" if entry.reserved else "kept our"
        logger.info("%s subnet %s", what, subnet)
        return lease

    async def _renewal_due(self) -> None:
        """Sleep until it is time to renew."""
        while self._renew_at_s is None or self._renew_at_s > _now_s():
            # Timers stand still while the machine is suspended, the lease does not: look at the clock now and then.
            pause_s = self._delays.renew_retry_s
            delay_s = None if self._renew_at_s is None else min(self._renew_at_s - _now_s(), pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._woken.wait()
            self._woken.clear()

    async def _renew(self, lease: Lease) -> Lease:
        """Renew the lease. Raises `LeaseLost` if it is not ours any more."""
        try:
            entry = await self._registry.renew(lease.entry, self._value, LEASE_TTL_S)
        except LeaseLost:
            # Somebody may have rewritten the key in our name, to make it a reservation, say: then it is still ours.
            snapshot = await self._registry.list()
            seen = snapshot.entries.get(lease.entry.key)
            loss = describe_loss(lease, seen)
            if seen is None or loss is not None:
                raise LeaseLost(loss) from None
            entry = await self._registry.renew(seen, self._value, LEASE_TTL_S)
        return replace(lease, entry=entry)

    def _live(self, left_s: float | None) -> None:
        """Note that the lease lives `left_s` seconds from now, ``None`` for ever; when doubted it stays due at once."""
        now_s = _now_s()
        self._expires_s = None if left_s is None else now_s + left_s
        if not self._doubted:
            pause_s = self._delays.renew_retry_s
            self._renew_at_s = None if left_s is None else now_s + renew_delay_s(left_s, self._margin_s, pause_s)

    def _remaining(self) -> str:
        left_s = self.left_s
        if left_s is None:
            return "it is reserved and stays"
        if left_s <= 0:
            return "its time is over and other hosts may take it"
        return f"{left_s / 60:.0f} min of it are left"


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
