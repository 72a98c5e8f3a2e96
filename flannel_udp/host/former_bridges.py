"""Bridges that still have an address of a subnet that was this host's before: CNI cannot attach a pod to such a one.

A pod network's bridge is made by the CNI plugin `bridge` (cni0) or by Docker (docker0), with our subnet's first host
address. When the subnet changes nobody changes the bridge, and every ADD fails: '"cni0" already has an IP address
different from ...'. An empty one is given the new address; one with pods is named, with what mends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Interface
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.links import Device, device, put_address, remove_address, stream_addresses, stream_devices
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Degradation, Prefix

logger = logging.getLogger(__name__)

CNI_BRIDGE, DOCKER_BRIDGE = "cni0", "docker0"
_LOOK_EVERY_S = 5.0
Note = Callable[[str, Iterable[Degradation]], None]


class FormerBridges:
    """Looks for such bridges for as long as `run` runs; `hold` says which subnet is ours."""

    def __init__(self, overlay: Prefix, note: Note) -> None:
        self._overlay = overlay
        self._note = note
        self._subnet: Prefix | None = None

    def hold(self, subnet: Prefix | None) -> None:
        """Have bridges of other subnets of the overlay looked for from now on; ``None``: none."""
        self._subnet = subnet

    async def run(self) -> None:
        """Look now and then, for ever: pods come and go."""
        while True:
            subnet, found = self._subnet, []
            if subnet is not None:
                with suppress(FlannelError):  # netlink is upkeep's to complain of
                    found = await asyncio.to_thread(put_right, self._overlay, subnet)
            self._note("bridges", [Degradation("host", fault) for fault in found])
            await asyncio.sleep(_LOOK_EVERY_S)


def put_right(overlay: Prefix, subnet: Prefix) -> list[str]:
    """Give an empty CNI bridge our subnet's address; return a sentence for each bridge that is not ours to change.

    Blocks for some milliseconds. Raises `FlannelError`.
    """
    with open_rtnetlink("looking for a former subnet's bridge") as netlink:
        found = _find(netlink, overlay, subnet)
        return [_describe(bridge, subnet) for bridge in found if not _readdress(netlink, bridge, subnet)]


def find_former(overlay: Prefix, subnet: Prefix) -> list[str]:
    """Return a sentence for each bridge that has an address of a former subnet, and change nothing.

    Raises `FlannelError`.
    """
    with open_rtnetlink("looking for a former subnet's bridge") as netlink:
        return [_describe(bridge, subnet) for bridge in _find(netlink, overlay, subnet)]


class _Bridge(NamedTuple):
    """One that has an address of a former subnet."""

    device: Device
    former: IPv4Interface
    addresses: list[IPv4Interface]


def _find(netlink: Rtnetlink, overlay: Prefix, subnet: Prefix) -> list[_Bridge]:
    addresses: dict[int, list[IPv4Interface]] = {}
    for found in stream_addresses(netlink):
        addresses.setdefault(found.index, []).append(IPv4Interface((found.address, found.prefix_len)))
    bridges = []
    for index, all_its in addresses.items():
        # A /32 is a tunnel's: flannel0's own, or a VXLAN device's.
        elsewhere = [item for item in all_its if item.ip in overlay and item.ip not in subnet]
        former = [item for item in elsewhere if item.network.prefixlen < 31]
        link = device(netlink, index) if former else None
        if link is not None and link.kind == "bridge":
            bridges.append(_Bridge(link, former[0], all_its))
    return bridges


def _readdress(netlink: Rtnetlink, bridge: _Bridge, subnet: Prefix) -> bool:
    """Give the bridge our subnet's address if it is CNI's and empty; return whether that was so."""
    name, index, former = bridge.device.name, bridge.device.index, bridge.former
    if name != CNI_BRIDGE or bridge.addresses != [former] or _has_ports(netlink, index):
        return False
    wanted = IPv4Interface((subnet.network_address + 1, subnet.prefixlen))
    remove_address(netlink, index, former.ip, prefix_len=former.network.prefixlen)
    netlink.do(put_address(index, wanted.ip, prefix_len=subnet.prefixlen))
    logger.info("put right: %s, empty and with the former subnet's %s, has %s now", name, former, wanted)
    return True


def _describe(bridge: _Bridge, subnet: Prefix) -> str:
    name = bridge.device.name
    if name == DOCKER_BRIDGE:
        mend = "write its options anew (flannel-udp docker-opts) and restart Docker"
    else:
        mend = f"stop the pods that are on it, then `ip link del {name}`: CNI makes it anew"
    return f"{name} has {bridge.former} of a former subnet, and ours is {subnet}: no pod can be started: {mend}"


def _has_ports(netlink: Rtnetlink, bridge: int) -> bool:
    return any(port.master == bridge for port in list(stream_devices(netlink)))
