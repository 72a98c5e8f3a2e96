"""Which interface the tunnel's outer packets leave by: chosen at the start, and waited for; see `host.interface`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from flannel_udp.agent.state import AgentState
from flannel_udp.control.retry import retry
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host import interface, netlink
from flannel_udp.model import Interface, Prefix
from flannel_udp.netconf.addresses import why_not_dialled
from flannel_udp.options import InterfaceOptions

logger = logging.getLogger(__name__)


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
    external, choice = await retry("finding the external interface", partial(_choose_first, options, wishes, overlays))
    for lack in choice.lacks:
        logger.warning("%s: going on without that family", lack)
    if external != state.interface:
        for refusal in choice.refusals:
            logger.warning("%s; going on with %s", refusal, choice.made)
        for ends in filter(None, map(external.of, interface.VERSIONS)):
            logger.info("using interface %s, address %s, public IP %s", external.name, ends.address, ends.public_ip)
            why = why_not_dialled(ends.public_ip)
            if why is not None:
                logger.warning("other hosts ignore us: our public IP %s %s", ends.public_ip, why)
        state.use_interface(external)
    return external


async def _choose_first(
    options: InterfaceOptions, wishes: Sequence[Sequence[int]], overlays: Sequence[Prefix]
) -> tuple[Interface, interface.Choice]:
    """Return what the first of the wishes gives that can be had. Raises `FlannelError`, which tells of all of them."""
    for versions in wishes:
        try:
            return await _choose(options, versions, overlays)
        except UsageError:
            raise
        except FlannelError as failed:
            failure = failed
    if len(wishes) == 1:
        raise failure
    return await _choose(options, sorted({version for versions in wishes for version in versions}), overlays)


async def _choose(
    options: InterfaceOptions, versions: Sequence[int], overlays: Sequence[Prefix]
) -> tuple[Interface, interface.Choice]:
    """Return the interface, and how it was chosen. Raises `FlannelError`."""
    facts = await asyncio.to_thread(interface.gather, options, versions)
    choice, facts = interface.decide_outside(options, facts, versions, overlays)
    if choice.interface is None:
        raise interface.no_interface(choice, facts, versions)
    if choice.waits:
        raise FlannelError(f"{'; '.join(choice.lacks)}: waiting for the answer")
    if overlays:  # else it is not known yet which family's address matters
        await asyncio.to_thread(_refuse_foreign, choice.interface)
    return choice.interface, choice


def _refuse_foreign(external: Interface) -> None:
    """Raise `FlannelError` where the kernel gives us what comes to none of its addresses, as in a VRF."""
    ends = list(filter(None, map(external.of, interface.VERSIONS)))
    whys = [netlink.why_not_bound(external, each.address) for each in ends]
    if all(whys):
        raise FlannelError("; ".join(filter(None, whys)))
