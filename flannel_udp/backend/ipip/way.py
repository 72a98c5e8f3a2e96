"""What the kernel has that is in the way of our own packet path: its flannel.ipip, other devices of that kind."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address

from flannel_udp.backend.ipip.device import takes_packets_to
from flannel_udp.backend.ipip.options import DEVICE, TYPE
from flannel_udp.backend.leased_routes import refuse_another_agents
from flannel_udp.backend.protocol import Context
from flannel_udp.dataplane.claims import Claims
from flannel_udp.errors import FlannelError
from flannel_udp.host.links import MARK, delete_device, device_named, stream_devices
from flannel_udp.host.rtnetlink import open_rtnetlink

logger = logging.getLogger(__name__)


async def read_claim(context: Context) -> bool:
    """Tell whether an unmarked flannel.ipip of the kernel's, if there is one, is flanneld's, by what our entry says."""

    def is_unmarked() -> bool:
        with open_rtnetlink(f"looking for {DEVICE}") as netlink:
            found = device_named(netlink, DEVICE)
            return found is not None and found.kind == TYPE and found.alias != MARK

    if not await asyncio.to_thread(is_unmarked):
        return False
    former = await context.read_former()  # only now: the registry may hold 100,000 others
    return former is not None and former.backend_type == TYPE


def make_way(claims: Claims, *, claimed: bool) -> None:
    """Remove the kernel's flannel.ipip, which has our name, if it bears our mark or is `claimed`; none is fine.

    Raises `FlannelError` for another, and where another agent may run it.
    """
    with open_rtnetlink(f"removing {DEVICE}") as netlink:
        found = device_named(netlink, DEVICE)
        if found is None or found.kind != TYPE:
            return
        if found.alias != MARK and not claimed:
            raise FlannelError(
                f"{DEVICE} is an ipip device of the kernel, and nothing says that it is flannel's: remove it with "
                f"'ip link del {DEVICE}', if nobody needs it"
            )
        refuse_another_agents(claims, DEVICE)
        netlink.do(delete_device(found.index))
        logger.info("removed the kernel's %s, which an earlier run left and which was in the way", DEVICE)


def rivals_at(address: IPv4Address) -> list[str]:
    """Return the kernel's devices that receive what comes to this address, beside our raw sockets. Blocks."""
    with open_rtnetlink("looking for ipip devices") as netlink:
        return [found.name for found in stream_devices(netlink, TYPE) if takes_packets_to(found, address)]
