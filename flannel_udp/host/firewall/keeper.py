"""Class `Firewall`: the wanted rules stand, whatever happens to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from flannel_udp.backoff.delay import Backoff
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.applier import Applier
from flannel_udp.host.firewall.iptables import Iptables
from flannel_udp.host.firewall.mixture import Mixture, find_mixture
from flannel_udp.host.firewall.monitor import on_change
from flannel_udp.host.firewall.nftables import Nftables
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.passages import Passage, find_closed
from flannel_udp.host.firewall.rules import Rules
from flannel_udp.host.firewall.tool import LockHeld, ToolMissing
from flannel_udp.model import Degradation, Prefix


class Note(Protocol):
    """Takes all that a source finds wrong now, see agent.conditions."""

    def __call__(self, source: str, found: Iterable[Degradation], /, *, said: bool = False) -> None:
        """Note it; `said`: it is in the log already."""
        ...


logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 5.0
_REST_S = 0.2  # after a check: however often the rules change, they are looked at five times a second at most
_BESIDE_S = 20.0  # between two looks at the rules of others that no news came of: iptables-legacy has none
_REST_BESIDE_S, _RESTS = 2.0, 20  # after each of them, at least; so many times what it took, at least
_REST_MAX_S = 60.0  # no longer: the machine may be busy with other things, and what somebody has mended is to be seen
_UNKNOWN = "cannot tell whether %s holds rules of an earlier run: %s"
_QUIET_S = 60.0  # between two lines of log about rules that somebody keeps changing


class Firewall:
    """Keeps rules in one dialect; `run` does the work, `want` says which; `look_beside` watches the rules of others.

    `passages` are the packets that must get through them, by question.

    Rules are looked at when the kernel reports a change of them and every `resync_s` seconds, and applied only if they
    are not as wanted. What the other dialect holds of ours, from an earlier run, is removed. Another overlay's rules,
    as `owner` tells them, stay. `tell` hears what goes wrong with the rules; ``None``: nothing any more.
    """

    def __init__(
        self,
        owner: Owner,
        note: Note,
        passages: Callable[[], Awaitable[Sequence[Sequence[Passage]]]],
        *,
        nftables: bool,
        resync_s: float,
        tell: Callable[[str | None], object] = lambda _error: None,
    ) -> None:
        self._owner = owner
        self._note = note
        self._passages = passages
        self._nftables = nftables
        self._applier: Applier = Nftables(owner) if nftables else Iptables(owner)
        self._other: Applier = Iptables(owner) if nftables else Nftables(owner)
        self._resync_s = resync_s
        self._tell_error = tell
        self._wanted: Rules | None = None
        self._wake = asyncio.Event()
        self._stand = asyncio.Event()
        self._tried = asyncio.Event()
        self._located: tuple[str, ...] | None = None  # what `locate` said last; None: nothing is settled yet
        self._swept = False  # of what the other dialect holds
        self._said = SaidOnce()
        self._said_of_sweep = SaidOnce()
        self._said_of_others = SaidOnce()
        self._quiet_until_s = 0.0

    @property
    def stands(self) -> bool:
        """Whether the rules that were asked for last stand, as far as is known."""
        return self._stand.is_set()

    def want(self, rules: Rules) -> None:
        """Keep these rules from now on, instead of earlier ones."""
        self._stand.clear()
        self._tried.clear()
        self._wanted = rules
        self._wake.set()

    async def tried(self) -> None:
        """Return when they stand, or could not be put for the first time."""
        await self._tried.wait()

    async def stood(self) -> None:
        """Return when they stand."""
        await self._stand.wait()

    async def run(self) -> None:
        """Put and keep right what is wanted, for ever. What goes wrong is said once and tried again."""
        backoff = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S)
        with on_change(self._applier.watched, self._wake.set):
            while True:
                self._wake.clear()
                try:
                    await self._put_right()
                except FlannelError as error:
                    self._failed(error)
                    await asyncio.sleep(backoff.next_s())
                    continue
                self._worked()
                backoff.reset()
                await asyncio.sleep(_REST_S)
                # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._resync_s):
                        await self._wake.wait()

    async def look_beside(self) -> None:
        """Name, for ever, what other rules than ours do to our packets, once ours stand."""
        await self._stand.wait()
        changed = asyncio.Event()
        found: list[Degradation] = []
        with on_change((b"",), changed.set):
            while True:
                changed.clear()
                began_s = time.monotonic()
                try:
                    found = await self.find_beside()
                except FlannelError as error:  # what was found is taken as unchanged
                    if self._said_of_others.failed(str(error)):
                        logger.warning("looking at the firewall rules of others: %s", error)
                    if isinstance(error, LockHeld):  # to wait for it was no work
                        began_s = time.monotonic()
                else:
                    self._said_of_others.worked()
                    self._note("firewall", found)
                await asyncio.sleep(rest_s(time.monotonic() - began_s))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REST_BESIDE_S if found else _BESIDE_S):
                        await changed.wait()

    async def find_beside(self) -> list[Degradation]:
        """Return what other rules than ours do to our packets.

        Raises `FlannelError` where that cannot be told now, as where another program holds a lock.
        """
        mixture = Mixture()
        try:
            mixture = await find_mixture(self._owner.network, nftables=self._nftables)
        except LockHeld:
            raise
        except FlannelError:  # without its tool there is nothing to be told
            pass
        closed = await find_closed(await self._passages())
        # That policy is told already, and in better words.
        told = [f": {variant}: the policy of FORWARD: " for variant in mixture.policies]
        return [*mixture.faults, *(item for item in closed if not any(policy in item.text for policy in told))]

    async def remove(self) -> None:
        """Remove all rules of ours; `run` must have ended. Raises `FlannelError`.

        Each run of a tool takes long where a host is busy or has many rules, and who ends has little time: where they
        stood there is nothing of ours beside them, and they are not read once more.
        """
        if self._wanted is not None and not (self.stands and await self._applier.take_down(self._wanted)):
            await _remove(self._applier, self._wanted.version)

    @property
    def commands_against(self) -> list[str]:
        """The commands by which a person removes our rules."""
        return [] if self._wanted is None else self._applier.commands_against(self._wanted)

    async def _put_right(self) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        if wanted:
            await self._put(wanted)
        else:
            await _remove(self._applier, wanted.version)
        if not self._swept:  # after ours stand, so that at no moment there are none
            await self._sweep(wanted.version)
        if wanted is self._wanted:
            self._stand.set()
            self._tried.set()

    async def _put(self, wanted: Rules) -> None:
        located = await self._applier.locate(wanted)
        rules = await self._applier.fit(wanted)
        if not await self._applier.stands(rules):
            self._tell()
            self._stand.clear()
            await self._applier.put(rules)
        if located != self._located:  # other names than before: what has those goes, now that ours stand
            await self._applier.sweep(wanted.version)
            self._located = located
            for line in located:
                logger.info("%s", line)

    async def _sweep(self, version: int) -> None:
        """Remove what the other dialect holds of ours. A host where that tool does not work can do without."""
        try:
            await _remove(self._other, version)
        except FlannelError as error:
            if self._said_of_sweep.failed(str(error)):
                logger.warning(_UNKNOWN, self._other.name, error)
        else:
            self._swept = True

    def _tell(self) -> None:
        now_s = time.monotonic()
        if not self.stands:
            logger.info("applying firewall rules by %s", self._applier.name)
        elif now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + _QUIET_S
            logger.warning("somebody changed our firewall rules: putting them back")

    def _failed(self, fault: FlannelError) -> None:
        self._tell_error(str(fault))
        if self._said.failed(str(fault)):
            logger.error("firewall rules: %s (trying again every %g to %g s)", fault, _FIRST_RETRY_S, _LAST_RETRY_S)
        family = family_of(self._owner.network)
        if self.stands:  # they did at the last look, and nobody has seen them gone
            text = f"cannot look whether the firewall rules for {family.name} stand: {fault}"
        else:
            text = f"the firewall rules for {family.name} do not stand: {fault}"
        if isinstance(fault, ToolMissing):
            text += f": install the package {'nftables' if self._nftables else 'iptables'}"
        self._note("rules", [Degradation("firewall", text)], said=True)
        self._tried.set()

    def _worked(self) -> None:
        self._tell_error(None)
        if self._said.worked():
            logger.info("firewall rules: works now")
        self._note("rules", (), said=True)


def rest_s(took_s: float) -> float:
    """Return for how many seconds a look at the rules of others that took so long is followed by none."""
    return min(max(_REST_BESIDE_S, _RESTS * took_s), _REST_MAX_S)


async def remove_left_rules(network: Prefix) -> None:
    """Remove what an earlier run has left for an overlay network whose family is off now, in either dialect.

    A host where a tool does not work can do without.
    """
    owner = Owner(network)
    for applier in (Iptables(owner), Nftables(owner)):
        try:
            await _remove(applier, network.version)
        except FlannelError as error:
            logger.warning(_UNKNOWN, applier.name, error)


async def _remove(applier: Applier, version: int) -> None:
    """Remove what the applier's dialect holds of ours; where its tool is missing, that is nothing."""
    with suppress(ToolMissing):
        await applier.locate(Rules(version))
        if await applier.listing(version):
            await applier.put(Rules(version))
        await applier.sweep(version)
