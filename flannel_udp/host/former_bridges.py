"""Bridges that have an address of a subnet that was this host's before: CNI cannot attach a pod to such a one.

A pod network's bridge is made by the CNI plugin `bridge` (cni0) or by Docker (docker0), with our subnet's first host
address. When the subnet changes nobody changes the bridge, and every ADD fails: '"cni0" already has an IP address
different from ...'. That goes for any address of cni0 that the plugin finds instead of ours, wherever it is from: after
a change of the overlay network it is outside of the present one. An empty cni0 with a former address is given the new
one; one with pods is named, with what mends it.

A bridge of another name is our pods' only if it has a subnet that is known to have been ours. Else it is LXD's or
libvirt's, say, and inside the overlay: a doubt until another host has that subnet, and then `host.lookup` names it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.links import (
    CNI_BRIDGE,
    Device,
    device,
    device_named,
    put_address,
    remove_address,
    stream_addresses,
    stream_devices,
)
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Degradation, Prefix, lies_in

logger = logging.getLogger(__name__)

Interface = IPv4Interface | IPv6Interface

DOCKER_BRIDGE = "docker0"
_LOOK_EVERY_S = 5.0
Note = Callable[[str, Iterable[Degradation]], None]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a former subnet's address is known by."""

    networks: Collection[Prefix]
    """The overlay network, and the one that it was before."""
    subnets: Collection[Prefix] = ()
    """What this host is known to have had."""

    def may_have(self, address: Interface) -> bool:
        """Tell whether that may be a former subnet's."""
        return any(address.ip in network for network in self.networks)

    def had(self, address: Interface) -> bool:
        """Tell whether that is a former subnet's."""
        return any(lies_in(address.network, subnet) for subnet in self.subnets)


class Unfit(NamedTuple):
    """A sentence about a bridge, and what mends it."""

    what: str
    mend: str


class FormerBridges:
    """Looks for such bridges for as long as `run` runs; `hold` says which subnet is ours."""

    def __init__(self, earlier: Earlier, note: Note) -> None:
        self._earlier = earlier
        self._note = note
        self._subnet: Prefix | None = None  # among those of `_earlier`, too: `_find` knows it

    def hold(self, subnet: Prefix | None) -> None:
        """Have bridges of other subnets looked for from now on; ``None``: none."""
        self._subnet = subnet
        if subnet is not None:
            self._earlier = replace(self._earlier, subnets={*self._earlier.subnets, subnet})

    async def run(self) -> None:
        """Look now and then, for ever: pods come and go."""
        while True:
            subnet, found = self._subnet, list[Unfit]()
            if subnet is not None:
                with suppress(FlannelError):  # netlink is upkeep's to complain of
                    found = await asyncio.to_thread(put_right, self._earlier, subnet)
            self._note("bridges", [Degradation("host", f"{what}: {mend}") for what, mend in found])
            await asyncio.sleep(_LOOK_EVERY_S)


def put_right(earlier: Earlier, subnet: Prefix) -> list[Unfit]:
    """Give an empty CNI bridge our subnet's address; return each bridge that is not ours to change.

    Blocks for some milliseconds. Raises `FlannelError`.
    """
    with open_rtnetlink("looking for a former subnet's bridge") as netlink:
        found = list(_find(netlink, earlier, subnet))
        return [_describe(bridge, subnet) for bridge in found if not _readdress(netlink, bridge, subnet)]


def find_former(earlier: Earlier, subnet: Prefix) -> list[Unfit]:
    """Return each bridge that no pod can be put on, and change nothing. Raises `FlannelError`."""
    with open_rtnetlink("looking for a former subnet's bridge") as netlink:
        return [_describe(bridge, subnet) for bridge in _find(netlink, earlier, subnet)]


def find_inside(overlay: Prefix, subnet: Prefix) -> list[Unfit]:
    """Return each bridge that has a part of the overlay which is not ours, and change nothing. Raises `FlannelError`.

    But for cni0, of which `find_former` tells.
    """
    found = []
    with open_rtnetlink("looking for bridges inside the overlay") as netlink:
        for index, its in _addresses(netlink, overlay.version).items():
            inside = [item for item in its if item.ip in overlay and not lies_in(item.network, subnet)]
            link = _bridge(netlink, index) if inside else None
            if link is not None and link.name != CNI_BRIDGE:
                what = f"{link.name} has {inside[0]}, which is inside the overlay network {overlay}"
                whose = "our subnet's (flannel-udp docker-opts)" if link.name == DOCKER_BRIDGE else "another"
                mend = f"give {link.name} {whose} address, or choose another {family_of(overlay).network}"
                found.append(Unfit(f"{what}: should a host get that subnet, it is not reached from here", mend))
    return found


def refused_for(addresses: Iterable[Interface], wanted: Interface) -> Interface | None:
    """Return for which of a bridge's addresses, in the kernel's order, the plugin `bridge` refuses to add `wanted`.

    Of IPv4 the first one counts. An IPv6 one may stand beside ours unless their networks overlap.
    """
    for found in addresses:
        if found == wanted:
            return None
        if found.version == 4 or found.network.overlaps(wanted.network):
            return found
    return None


class _Bridge(NamedTuple):
    """One that no pod can be put on."""

    device: Device
    address: Interface
    """What is in the way."""
    former: bool
    """Whether that may be a former subnet's."""
    addresses: Sequence[Interface]


def _find(netlink: Rtnetlink, earlier: Earlier, subnet: Prefix) -> Iterator[_Bridge]:
    wanted, addresses = _first_of(subnet), _addresses(netlink, subnet.version)
    cni0 = device_named(netlink, CNI_BRIDGE)
    for index, its in addresses.items():
        refused = refused_for(its, wanted)
        if refused is None:
            continue
        former = earlier.may_have(refused)
        if cni0 is not None and index == cni0.index:
            # Where another bridge has our address the pods are there, and cni0 is another network's.
            concerned = former or not any(wanted in others for at, others in addresses.items() if at != index)
        else:
            concerned = earlier.had(refused) and not lies_in(refused.network, subnet)
        link = _bridge(netlink, index) if concerned else None
        if link is not None:
            yield _Bridge(link, refused, former, its)


def _addresses(netlink: Rtnetlink, version: int) -> dict[int, list[Interface]]:
    """Return what each device has, by index; but for fe80::, which every one has."""
    addresses: dict[int, list[Interface]] = {}
    for found in stream_addresses(netlink, version=version):
        if version == 4 or not found.address.is_link_local:
            addresses.setdefault(found.index, []).append(ip_interface((found.address, found.prefix_len)))
    return addresses


def _bridge(netlink: Rtnetlink, index: int) -> Device | None:
    found = device(netlink, index)
    return found if found is not None and found.kind == "bridge" else None


def _first_of(subnet: Prefix) -> Interface:
    return ip_interface((subnet.network_address + 1, subnet.prefixlen))


def _readdress(netlink: Rtnetlink, bridge: _Bridge, subnet: Prefix) -> bool:
    """Give the bridge our subnet's address if it is CNI's, empty and was ours; return whether that was so."""
    name, index, former = bridge.device.name, bridge.device.index, bridge.address
    ours = name == CNI_BRIDGE and bridge.former and bridge.addresses == [former]
    if not ours or list(stream_devices(netlink, master=index)):
        return False
    wanted = _first_of(subnet)
    remove_address(netlink, index, former.ip, prefix_len=former.network.prefixlen)
    netlink.do(put_address(index, wanted.ip, prefix_len=subnet.prefixlen))
    logger.info("put right: %s, empty and with the former subnet's %s, has %s now", name, former, wanted)
    return True


def _describe(bridge: _Bridge, subnet: Prefix) -> Unfit:
    name = bridge.device.name
    what = f"{name} has {bridge.address}, and our subnet is {subnet}"
    if name == DOCKER_BRIDGE:
        mend = "write its options anew (flannel-udp docker-opts) and restart Docker"
        return Unfit(f"{what}: other hosts do not reach its containers", mend)
    mend = f"stop the pods that are on it, then `ip link del {name}`: CNI makes it anew"
    return Unfit(f"{what}: no pod can be started", mend)
