"""What would outlive an agent that ends, taken away as far as the options say so: firewall rules, and the lease."""

from __future__ import annotations

import asyncio
import logging

from flannel_udp.agent.state import Rooms
from flannel_udp.errors import FlannelError
from flannel_udp.host.firewall.keeper import Firewall

logger = logging.getLogger(__name__)

CLEAN_TIMEOUT_S = 0.7
"""Of `agent.END_TIMEOUT_S`; the rest is the lease's."""


async def clean(rooms: Rooms) -> None:
    """Remove what drops packets to subnets without a route, and the firewall rules: what fails costs nothing else."""
    try:
        await rooms.upkeep.remove_blackholes()
    except FlannelError as failed:
        logger.warning("the blackhole routes stay: %s", failed)
    await asyncio.gather(*(_remove_rules(family.firewall) for family in rooms.families))


async def _remove_rules(firewall: Firewall) -> None:
    try:
        await asyncio.wait_for(firewall.remove(), CLEAN_TIMEOUT_S)
    except (FlannelError, TimeoutError) as failed:
        why = str(failed) or f"removing them takes over {CLEAN_TIMEOUT_S:g} s"
        commands = firewall.commands_against
        logger.warning("the firewall rules stay: %s%s", why, f": {'; '.join(commands)}" if commands else "")


async def release(rooms: Rooms, timeout_s: float) -> None:
    """Give the lease back; what is not done by then stays."""
    leads_here = ", and so does what leads packets to this host"

    async def give_back() -> None:
        nonlocal leads_here
        await rooms.network.withdraw()  # first: as soon as the registry knows, the subnet may be another host's
        leads_here = ""
        await rooms.keeper.release()

    try:
        # Not asyncio.timeout: before Python 3.11.4 it raises no TimeoutError in a task that was cancelled, as this one.
        await asyncio.wait_for(give_back(), timeout_s)
    except (FlannelError, TimeoutError) as failed:
        why = str(failed) or "no answer"
        logger.warning("the lease was not released and stays until it expires%s: %s", leads_here, why)
