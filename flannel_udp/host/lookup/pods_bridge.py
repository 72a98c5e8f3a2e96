"""Whether the device that our pods are behind still has the address that is their gateway.

A bridge that is taken down loses its IPv6 addresses, and has none when it is up again; IPv4's stay. The runtime that
gave it the address gives it no new one before the next pod is started.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

from flannel_udp.host.family import family_of
from flannel_udp.host.links import Device, device
from flannel_udp.host.lookup.diversions import Pods, find_pods
from flannel_udp.host.rtnetlink import Rtnetlink
from flannel_udp.model import Degradation, Prefix


class PodsBridge:
    """Looks for it again and again, and remembers what it was like, as long as our subnet is the same."""

    def __init__(self) -> None:
        self._own: Prefix | None = None
        self._known: tuple[int, IPv4Interface | IPv6Interface] | None = None

    def look(self, netlink: Rtnetlink, own: Prefix | None, tunnel: int) -> tuple[Pods | None, list[Degradation]]:
        """Return where packets of our pods come in, ``None`` if nowhere, and what is wrong. Raises `OSError`.

        `own` is our subnet, `tunnel` the device that leads to the other hosts, by index.
        """
        if own != self._own:
            self._own, self._known = own, None
        pods = None if own is None else find_pods(netlink, own, tunnel)
        if pods is not None:
            self._known = pods.bridge, pods.gateway
            return pods, []
        if self._known is None:
            return None, []
        index, gateway = self._known
        link = device(netlink, index)
        if link is None:
            self._known = None
            return None, []
        return None, [Degradation("routes", _sentence(link, gateway))]


def _sentence(link: Device, gateway: IPv4Interface | IPv6Interface) -> str:
    family = family_of(gateway)
    down, up = ("", "") if link.up else ("is down and ", f"ip link set {link.name} up && ")
    what = f"{link.name} {down}has lost its address {gateway}: our pods have no gateway by {family.name}"
    return f"{what}: {up}{family.ip} address add {gateway} dev {link.name}"
