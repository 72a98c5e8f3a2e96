"""Keeps the host's side of the network right while the agent runs, whoever changes it.

Three things are looked at whenever the kernel reports a change, and put right:

1. the external interface: followed when its address or MTU changes or it goes away; see `Upkeep._follow`
2. what the backend has on this host, its device, say: see `KeptNetwork.repair`
3. the blackhole route, where one is wanted

Our own changes are reported, too: they lead to one more look, which finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.host import interface, netlink
from flannel_udp.host.blackhole import keep_blackholes, restore_blackhole
from flannel_udp.host.family import family_of
from flannel_udp.host.interface_facts import VERSIONS, HostNetwork, gather
from flannel_udp.host.monitor import Interest, Monitor, open_monitor_socket
from flannel_udp.host.own_addresses import has_come
from flannel_udp.host.repair import STANDS, LinkState, Paces, Standing, why_lost
from flannel_udp.levels import CHANGES, QUESTIONS
from flannel_udp.model import Address, Degradation, Ends, Interface, LeaseAttrs, Prefix, Subnet
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

SETTLE_S = 0.02
"""Changes come in flocks: wait that long for the rest of them."""
LOOK_EVERY_S = 0.2
"""The shortest time between two looks at the host."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
RETURN_S = 10.0
"""How long a lost interface or address is waited for before another one is taken: who plugs a cable in, or starts a
network manager anew, has it back within seconds, and another PublicIP concerns every host."""
HOST_REPAIRS = ("blackhole", "interface")
"""What is counted of the host itself: the blackhole route put back, the external interface usable again."""
_MOVE, _BLACKHOLE = "move", "blackhole"  # what has a pace of its own
_FLAG = {4: "--public-ip", 6: "--public-ipv6"}


class KeptNetwork(Protocol):
    """What a backend has on this host, as far as it has to be kept right."""

    @property
    def mtu(self) -> int:
        """The overlay's, in bytes."""
        ...

    @property
    def repairs(self) -> Counter[str]:
        """How often what of it was put right; what never was is there with 0."""
        ...

    @property
    def look_every_s(self) -> float | None:
        """How often to look although the kernel has reported nothing; ``None``: never."""
        ...

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """Set the host up for this subnet, and keep it so. Raises `FlannelError`.

        `former` is what our entry said before this run wrote it: with which backend the host ran last, if it did.
        """
        ...

    def interest(self) -> Interest:
        """Return which news of the kernel concern it."""
        ...

    async def repair(self) -> Standing:
        """Look, put right what is not as it should be, and say what still is not. Raises `FlannelError`."""
        ...

    async def follow(self, external: Interface) -> None:
        """Go on through that interface, its address, MTU and public IP. Raises `FlannelError`; nothing changed then."""
        ...


class Upkeep:
    """Watches over `external` and what the network has; `set_up` once there is a lease, `run` all the time.

    `news()` is awaited after `external`, the MTU, `obstacle` or the network's device has changed; `note` is told what
    stops some of the traffic, see `agent.conditions`, `tell` of whatever is wrong; ``None``: nothing any more. `former`
    are the overlay networks of an earlier run.
    """

    def __init__(
        self,
        options: Options,
        external: Interface,
        overlays: Sequence[Prefix],
        kept: KeptNetwork,
        news: Callable[[], Awaitable[None]],
        *,
        former: Collection[Prefix],
        note: Callable[[str, Iterable[Degradation]], None],
        tell: Callable[[str | None], object],
    ) -> None:
        self.external = external
        self.obstacle: str | None = None
        """Why no traffic can pass just now."""
        self._options = options
        self._overlays = overlays
        self._networks = {*overlays, *former}
        self._kept = kept
        self._news = news
        self._note = note
        self._tell = tell
        self._repairs = Counter(dict.fromkeys(HOST_REPAIRS, 0))
        self._external_lost = False
        self._lost_since: dict[int, float] = {}  # when the address of a family was missed first, by IP version
        self._elsewhere: Set[Address] = frozenset()  # on another interface, `lo`, say, as they were chosen
        self._untold = False  # there is news that `news` has not been awaited for
        self._subnet: Subnet | None = None  # since `set_up`
        self._paces = Paces()
        self._retry_s = FIRST_RETRY_S / 2
        self._woken = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    @property
    def repairs(self) -> dict[str, int]:
        """How often what was put right."""
        return {**self._kept.repairs, **self._repairs}

    def wake(self) -> None:
        """Have a look soon: something may have changed."""
        self._woken.set()

    async def set_up(self, subnet: Subnet, former: LeaseAttrs | None) -> None:
        """Set the host up for this subnet, and keep it so, see `KeptNetwork.hold`. Raises `FlannelError`."""
        async with self._one_at_a_time:
            self._subnet = subnet
            await self._kept.hold(subnet, former)
            self._untold = True
            await asyncio.to_thread(keep_blackholes, self._networks, self._blackhole.values())

    async def run(self) -> None:
        """Keep everything right until cancelled."""
        monitor = Monitor(open_monitor_socket(entries=bool(self._kept.interest().entries)), self.wake)
        again_s: float | None = 0.0  # look once at the start: what happened before we listened went by unseen
        try:
            while True:
                with suppress(TimeoutError):
                    # wait_for loses a cancellation before Python 3.12
                    async with asyncio.timeout(again_s):
                        await self._woken.wait()
                await asyncio.sleep(SETTLE_S)
                news = self._woken.is_set()
                self._woken.clear()
                started_s = time.monotonic()
                async with self._one_at_a_time:
                    again_s = await self._look(monitor)
                why, took_ms = "news" if news else "no news", (time.monotonic() - started_s) * 1e3
                logger.log(CHANGES if news else QUESTIONS, "looked at this host (%s): %.1f ms", why, took_ms)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            monitor.close()

    async def _look(self, monitor: Monitor) -> float | None:
        """Look and act; return after how many seconds to do so again if nothing is reported, ``None``: never."""
        repaired, mtu = sum(self.repairs.values()), self._kept.mtu
        monitor.interest = self._interest()
        obstacles: list[str] = []
        problems: list[str] = []
        waits: list[float | None] = [self._kept.look_every_s]
        failed = False
        for step in (partial(self._follow, monitor), self._kept.repair, self._restore_blackhole):
            try:
                standing = await step()
            except FlannelError as error:  # the other steps are none the worse for it
                standing = Standing((str(error),))
                failed = True
            obstacles += [text for text in standing.obstacles if text not in obstacles]
            problems += standing.problems
            waits.append(standing.again_s)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S) if failed else FIRST_RETRY_S / 2
        if failed:
            waits.append(self._retry_s)
        self._tell("; ".join([*obstacles, *problems]) or None)
        self._note("host", [Degradation("host", text) for text in problems])
        self._note_obstacle("; ".join(obstacles) or None)
        repaired_now = sum(self.repairs.values()) > repaired
        if self._untold or repaired_now or mtu != self._kept.mtu:
            self._untold = False
            await self._news()
        if repaired_now:
            self.wake()  # look again: what changed while we were at it went by unseen
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _interest(self) -> Interest | None:
        """Return which news concern us; while something is in the way, anything may change that."""
        if self.obstacle is not None:
            return None
        kept = self._kept.interest()
        blackhole = {subnet.prefixlen for subnet in self._blackhole.values()}
        return replace(
            kept,
            devices={self.external.index, *kept.devices},
            prefix_lens={*kept.prefix_lens, *blackhole},
            addresses={
                *(ends.address for _, ends in _ends_of(self.external)),
                *([self._missed_public_ip] if self._missed_public_ip else []),
            },
        )

    # The external interface

    async def _follow(self, monitor: Monitor) -> Standing:
        """Stay with the interface and the addresses in use while they are there; else choose again, as at the start.

        That is done once what is lost has stayed away for `RETURN_S`. Of an address that has only gone that family
        waits for another one. Raises `FlannelError`.
        """
        external = self.external
        found, local = await self._ask_about(external)
        why = why_lost(external, found, local & self._elsewhere)
        now_s = time.monotonic()
        self._lost_since = {version: self._lost_since.get(version, now_s) for version in why}
        public_ip_came = await self._public_ip_has_come()
        present = None if found is None else replace(external, name=found.name, mtu=found.mtu)
        if not why and present is not None and not public_ip_came:
            return await self._use(await self._completed(present))
        versions = _versions_of(external)
        facts = await self._gather(versions)
        if not public_ip_came and (going_on := await self._go_on(present, facts, why)) is not None:
            return going_on
        return await self._choose_again(present, facts, why, monitor, may_return=not public_ip_came)

    async def _go_on(self, present: Interface | None, facts: HostNetwork, why: Mapping[int, str]) -> Standing | None:
        """Stay with the interface as far as it has its addresses; ``None`` where nothing is left of it."""
        if present is None or len(why) == len(_versions_of(self.external)):
            return None
        return await (self._follow_one_family(present, facts, why) if why else self._use(present))

    async def _choose_again(
        self,
        present: Interface | None,
        facts: HostNetwork,
        why: Mapping[int, str],
        monitor: Monitor,
        *,
        may_return: bool,
    ) -> Standing:
        """Go on with what the flags choose now, because of `why`, or as the public IP has come.

        `present` is the interface in use, if it is there; what is lost `may_return`, unless it would be left for the
        public IP then.
        """
        versions, text = _versions_of(self.external), "; ".join(dict.fromkeys(why.values()))
        made_anew = _made_anew(self.external, facts) if present is None else None
        choice = interface.decide(self._options.interface, facts, versions)
        external = made_anew or choice.interface
        if external is None:  # what has come cannot be used yet, say: it is tentative
            going_on = await self._go_on(present, facts, why)
            return going_on or self._wait_for(text, monitor, self._may_return_s(why), choice.refusals)
        if self._has_public_ip and external.of(versions[0]) != self.external.of(versions[0]):
            # Nobody is behind a NAT all of a sudden: from another address peers would take nothing.
            return self._wait_for(f"{text}, which is {_FLAG[versions[0]]}", monitor)
        if may_return and _moves(self.external, external) and (wait_s := self._may_return_s(why)) > 0:
            return self._wait_for(text, monitor, wait_s)
        self._elsewhere = _elsewhere(external, facts)
        return await self._use(_keep_families(external, self.external))

    def _wait_for(
        self, text: str, monitor: Monitor, may_return_s: float = math.inf, refusals: Sequence[str] = ()
    ) -> Standing:
        """Wait for what is lost; say what there is against anything else, as soon as that would be taken."""
        self._external_lost = True
        monitor.interest = None  # another interface may come, or this one come back under another index
        text = f"{text}: waiting for it"
        if may_return_s > 0:
            return Standing((text,), again_s=None if math.isinf(may_return_s) else may_return_s)
        lost = f"--iface={self.external.name}: "
        known = (f"{lost}no such interface", f"{lost}{self.external.name} is down")
        others = "; ".join(refusal for refusal in refusals if refusal not in known)
        return Standing((f"{text}; nothing else is taken: {others}" if others else text,))

    def _may_return_s(self, versions: Iterable[int]) -> float:
        """Return for how many seconds more these families' addresses, which are lost, are waited for."""
        missed_s = (self._lost_since[version] for version in versions)
        return max(missed_s, default=-math.inf) + RETURN_S - time.monotonic()

    async def _gather(self, versions: Sequence[int]) -> HostNetwork:
        """Ask for the facts of a choice, which must not fall on our own devices: their addresses are in the overlay."""
        facts = await asyncio.to_thread(gather, self._options.interface, versions)
        return facts.outside(self._ours())

    def _ours(self) -> list[Prefix]:
        """Return what our own devices have addresses of: the overlay, or of one that the hosts are in our subnet."""
        hosts = [ends.address for _, ends in _ends_of(self.external)]
        ours = [overlay for overlay in self._overlays if not any(address in overlay for address in hosts)]
        return ours if self._subnet is None else [*ours, *self._subnet.prefixes]

    async def _completed(self, external: Interface) -> Interface:
        """Return it with the address of a family that it had none of: such come seconds after a host has started."""
        versions = [overlay.version for overlay in self._overlays]
        if all(external.of(version) for version in versions):
            return external
        facts = await self._gather(versions)
        return interface.complete(self._options.interface, facts, external, versions)

    async def _follow_one_family(self, external: Interface, facts: HostNetwork, why: Mapping[int, str]) -> Standing:
        """Go on where one family's address went: with another one of the interface, or with the other family alone."""
        link = facts.link(external.index)
        problems, wait_s = [], self._may_return_s(why)
        for version, text in why.items():
            ranked = [] if link is None else link.ranked(version)
            unusable = "" if link is None else link.why_unusable(version)
            if ranked and wait_s > 0:
                problems.append(f"{text}: no {family_of(version).name} traffic, waiting for it")
            elif link is not None and ranked:
                external = interface.with_address(self._options.interface, external, link, ranked[0])
            else:
                problems.append(f"{text}, and {unusable}: no {family_of(version).name} traffic until there is one")
        standing = await self._use(external, waiting=frozenset(why))
        again_s = min((at_s for at_s in (wait_s, standing.again_s) if at_s is not None and at_s > 0), default=None)
        return replace(standing, problems=(*problems, *standing.problems), again_s=again_s)

    async def _ask_about(self, external: Interface) -> tuple[LinkState | None, frozenset[Address]]:
        addresses = [ends.address for _, ends in _ends_of(external)]
        return await asyncio.to_thread(netlink.external_state, external.index, addresses)

    @property
    def _has_public_ip(self) -> bool:
        """Whether the interface was chosen for having ``--public-ip``, with IPv6 alone ``--public-ipv6``."""
        ends = self.external.v4 or self.external.v6
        return not self._options.interface.by_flags and ends is not None and ends.address == self._public_ip

    @property
    def _public_ip(self) -> Address | None:
        options = self._options.interface
        return options.public_ip if self.external.v4 is not None else options.public_ipv6

    @property
    def _missed_public_ip(self) -> Address | None:
        """``--public-ip`` where an interface that has it would be taken, and none has yet."""
        return None if self._options.interface.by_flags or self._has_public_ip else self._public_ip

    async def _public_ip_has_come(self) -> bool:
        missed = self._missed_public_ip
        return missed is not None and await asyncio.to_thread(has_come, missed)

    async def _use(self, external: Interface, waiting: Set[int] = frozenset()) -> Standing:
        """Go on with it; of the families that are `waiting` for an address nothing is asked."""
        former = self.external
        moves = _moves(former, external)
        now_s = time.monotonic()
        self._paces.looked([_MOVE] if moves else [], now_s)
        if moves and not self._paces.due(_MOVE, now_s):
            changes = f"the address of {external.name} changes again and again: `ip -ts monitor address` shows when"
            return Standing((changes,), again_s=self._paces.again_s(now_s))
        if not moves and (self._external_lost or external.index != former.index):
            self._repairs["interface"] += 1
        self._external_lost = False
        if external != former:
            for version, ends in _ends_of(external):
                if former.of(version) is None:
                    what = family_of(ends.address).name, ends.address, ends.public_ip
                    logger.info("%s has an %s address now, %s, public IP %s", external.name, *what)
            if external.index == former.index and external.name != former.name:
                logger.info("interface %s is called %s now", former.name, external.name)
            await self._kept.follow(external)
            self.external, self._untold = external, True
        if moves:
            self._paces.made(_MOVE, now_s)
        # What is lost next is waited for as long: there may be no look before.
        kept = frozenset() if moves else waiting
        self._lost_since = {version: since_s for version, since_s in self._lost_since.items() if version in kept}
        return await self._carries(external, waiting)

    async def _carries(self, external: Interface, waiting: Set[int]) -> Standing:
        """Say what keeps packets from leaving or arriving although the interface is up and the address is there."""
        found, local = await self._ask_about(external)
        asked = [ends.address for version, ends in _ends_of(external) if version not in waiting]
        whys = [await asyncio.to_thread(netlink.why_not_bound, external, each) for each in asked if each not in local]
        foreign = [why for why in whys if why is not None]
        if foreign and len(foreign) == len(asked):
            return Standing(tuple(foreign))
        problems = foreign
        if found is not None and not found.carrier:
            problems.append(f"interface {external.name} has no carrier: is its cable, or its other end, out?")
        return Standing(problems=tuple(problems))

    # The blackhole route

    @property
    def _blackhole(self) -> Mapping[int, Prefix]:
        """Where they lead to, by IP version, if any are wanted."""
        if self._subnet is None or not self._options.firewall.ip_blackhole_route:
            return {}
        return {subnet.version: subnet for subnet in self._subnet.prefixes}

    async def remove_blackholes(self) -> None:
        """Remove them, and those of earlier runs; `run` must have ended. Raises `FlannelError`."""
        await asyncio.to_thread(keep_blackholes, self._networks, ())

    async def _restore_blackhole(self) -> Standing:
        """Raises `FlannelError`."""
        now_s = time.monotonic()
        if self._blackhole and not self._paces.due(_BLACKHOLE, now_s):
            return Standing(again_s=FIRST_RETRY_S)
        for subnet in self._blackhole.values():
            if await asyncio.to_thread(restore_blackhole, subnet):
                self._repairs["blackhole"] += 1
                logger.info("put right: the blackhole route for %s", subnet)
                if self._paces.made(_BLACKHOLE, now_s):
                    logger.warning(
                        "somebody undoes our repairs again and again, they become rarer from now on: blackhole"
                    )
        return STANDS

    # What is said

    def _note_obstacle(self, obstacle: str | None) -> None:
        if obstacle == self.obstacle:
            return
        if obstacle is not None:
            logger.warning("no traffic: %s", obstacle)
        else:
            logger.info("traffic can pass again, through %s", self.external.name)
        self.obstacle, self._untold = obstacle, True


def _ends_of(external: Interface) -> list[tuple[int, Ends]]:
    """Return the addresses of each family that there is, by IP version."""
    return [(version, ends) for version in VERSIONS if (ends := external.of(version)) is not None]


def _versions_of(external: Interface) -> tuple[int, ...]:
    return tuple(version for version, _ in _ends_of(external))


def _moves(former: Interface, now: Interface) -> bool:
    """Tell whether packets leave from another address now."""
    ends_now = dict(_ends_of(now))
    return any(ends_now[version].address != ends.address for version, ends in _ends_of(former) if version in ends_now)


def _made_anew(former: Interface, facts: HostNetwork) -> Interface | None:
    """Return the interface if it is back, with an address that it had, under another index."""
    link = next((link for link in facts.links if link.name == former.name and link.up), None)
    if link is None or not any(ends.address in link.ranked(version) for version, ends in _ends_of(former)):
        return None
    return replace(former, index=link.index, mtu=link.mtu)


def _elsewhere(external: Interface, facts: HostNetwork) -> frozenset[Address]:
    """Return those of its addresses that another interface has."""
    link = facts.link(external.index)
    own = set() if link is None else {item.address for item in link.addresses}
    return frozenset(ends.address for _, ends in _ends_of(external) if ends.address not in own)


def _keep_families(external: Interface, former: Interface) -> Interface:
    """Return it with what it lacks as it was: what runs with a family goes on waiting for its address."""
    return replace(external, v4=external.v4 or former.v4, v6=external.v6 or former.v6)
