"""What of the kernel's VXLAN stands in the way of our own packet path: a device of our name, one that has our port.

flannel's device is left by whoever ran VXLAN here before, flanneld or we. It goes if it bears our mark, or this host's
entry says so, since our own packet path cannot begin beside it; anybody else's is named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from flannel_udp.backend.leased_routes import refuse_another_agents
from flannel_udp.backend.protocol import Context, Network
from flannel_udp.backend.remains import vxlan_device_of
from flannel_udp.dataplane.claims import Claims
from flannel_udp.errors import FlannelError, PortInUse
from flannel_udp.host.links import MARK, Device, delete_device, device_named
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.host.vxlan_devices import KIND, devices_on, receives
from flannel_udp.model import LeaseAttrs

logger = logging.getLogger(__name__)

N = TypeVar("N", bound=Network)


def free_name(name: str, former: LeaseAttrs | None, claims: Claims) -> int | None:
    """Remove the kernel's VXLAN device of this name, and return the MAC address that it had; ``None``: there is none.

    `former` is what our entry says. Raises `FlannelError` where neither that nor a mark says that this host ran VXLAN,
    and where another agent may run it now.
    """
    with open_rtnetlink(f"removing {name}") as netlink:
        found = device_named(netlink, name)
        if found is None or found.kind != KIND:
            return None
        if found.alias != MARK and (former is None or former.backend_type != KIND):
            raise FlannelError(
                f"{name} is a VXLAN device of the kernel, and nothing says that it is flannel's: remove it with "
                f"'ip link del {name}', or choose another Backend.VNI for the whole network"
            )
        _remove(netlink, found, claims)
        return found.mac


async def open_on_port(context: Context, open_network: Callable[[], N]) -> N:
    """Return what `open_network` returns, if need be after the VXLAN device of an earlier run is gone from its port.

    Raises `FlannelError`; where another device has the port, which no `ss -p` names, it names that.
    """
    try:
        return open_network()
    except PortInUse as in_use:
        former = await context.read_former()
        await asyncio.to_thread(_free_port, in_use, former, context.claims)
    return open_network()


def _free_port(in_use: PortInUse, former: LeaseAttrs | None, claims: Claims) -> None:
    left = set()
    if former is not None and former.backend_type == KIND:
        left = {vxlan_device_of(former.data_of(version), version) for version in (4, 6)}
    with open_rtnetlink("looking for VXLAN devices") as netlink:
        on_port = (found for found in devices_on(netlink, in_use.port) if found.up)
        holders = [found for found in on_port if receives(found, in_use.version)]
        others = [found.name for found in holders if found.alias != MARK and found.name not in left]
        if others:
            raise FlannelError(
                f"UDP port {in_use.port} is in use by the kernel's VXLAN device {' and '.join(others)}: remove it with "
                f"'ip link del {others[0]}', or choose another Backend.Port for the whole network"
            )
        if not holders:
            raise in_use
        for found in holders:
            _remove(netlink, found, claims)


def _remove(netlink: Rtnetlink, found: Device, claims: Claims) -> None:
    refuse_another_agents(claims, found.name)
    netlink.do(delete_device(found.index))
    logger.info("removed the kernel's %s, which an earlier run left and which was in the way", found.name)
