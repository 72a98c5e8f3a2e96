"""Which interface the tunnel's outer packets leave by: chosen at the start, and waited for; see `host.interface`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from flannel_udp.agent.state import AgentState
from flannel_udp.control.retry import retry
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host import interface, netlink
from flannel_udp.host.interface_facts import VERSIONS, gather
from flannel_udp.model import Interface, Prefix
from flannel_udp.options import InterfaceOptions

logger = logging.getLogger(__name__)

CHECK_S = 5.0
"""How long an address is waited for that the kernel checks, which takes it some two seconds (RFC 4862 5.4), or, where
its question cannot leave, for ever: one family goes on without the other then, which joins when it can."""


async def find_any_interface(options: InterfaceOptions, state: AgentState) -> Interface:
    """Return the interface by whatever family, before the network configuration says which ones are on."""
    return await _wait(options, state, [(4,), (6,)], ())


async def wait_for_interface(options: InterfaceOptions, state: AgentState, overlays: Sequence[Prefix]) -> Interface:
    """Return the interface that the options name, as soon as there is one that is up and has an address.

    An address of the IP version of one of these overlays is enough; what the interface lacks of the other is said.
    """
    return await _wait(options, state, [[overlay.version for overlay in overlays]], overlays)


async def _wait(
    options: InterfaceOptions, state: AgentState, wishes: Sequence[Sequence[int]], overlays: Sequence[Prefix]
) -> Interface:
    state.enter("waiting for the external interface")
    tell, search = state.errors.noter("interface"), _Search(options, wishes, overlays)
    external, choice = await retry("finding the external interface", search.look, tell=tell)
    for lack in choice.lacks:
        logger.warning("%s: going on without that family", lack)
    if external != state.interface:
        for refusal in choice.refusals:
            logger.warning("%s; going on with %s", refusal, choice.made)
        for ends in filter(None, map(external.of, VERSIONS)):
            logger.info("using interface %s, address %s, public IP %s", external.name, ends.address, ends.public_ip)
        state.use_interface(external)
    return external


class _Search:
    """Looks for the first of some wishes, each for addresses of these IP versions, that can be had."""

    def __init__(self, options: InterfaceOptions, wishes: Sequence[Sequence[int]], overlays: Sequence[Prefix]) -> None:
        self._options, self._wishes, self._overlays = options, wishes, overlays
        self._checked_until_s: float | None = None  # since an address was seen that the kernel still checks

    async def look(self) -> tuple[Interface, interface.Choice]:
        """Return the interface, and how it was chosen. Raises `FlannelError`, which tells of all wishes."""
        for versions in self._wishes:
            try:
                return await self._choose(versions)
            except UsageError:
                raise
            except FlannelError as failed:
                failure = failed
        if len(self._wishes) == 1:
            raise failure
        return await self._choose(sorted({version for versions in self._wishes for version in versions}))

    async def _choose(self, versions: Sequence[int]) -> tuple[Interface, interface.Choice]:
        facts = await asyncio.to_thread(gather, self._options, versions)
        choice, facts = interface.decide_outside(self._options, facts, versions, self._overlays)
        if choice.interface is None:
            raise interface.no_interface(choice, facts, versions)
        if choice.waits and self._may_wait():
            raise FlannelError(f"{'; '.join(choice.lacks)}: waiting for the answer")
        if self._overlays:  # else it is not known yet which family's address matters
            await asyncio.to_thread(_refuse_foreign, choice.interface)
        return choice.interface, choice

    def _may_wait(self) -> bool:
        if self._checked_until_s is None:
            self._checked_until_s = monotonic() + CHECK_S
        return monotonic() < self._checked_until_s


def _refuse_foreign(external: Interface) -> None:
    """Raise `FlannelError` where the kernel gives us what comes to none of its addresses, as in a VRF."""
    ends = list(filter(None, map(external.of, VERSIONS)))
    whys = [netlink.why_not_bound(external, each.address) for each in ends]
    if all(whys):
        raise FlannelError("; ".join(filter(None, whys)))
