"""Whether the device that our pods are behind still is there, with the address that is their gateway.

A bridge that is taken down loses its IPv6 addresses, and has none when it is up again; IPv4's stay. The runtime that
gave it the address gives it no new one before the next pod is started. One that is removed leaves the pods' ends of it
behind: nobody puts them into the bridge that the next pod brings.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

from flannel_udp.host.family import family_of
from flannel_udp.host.links import Device, device, stream_devices
from flannel_udp.host.lookup.diversions import Pods, find_pods
from flannel_udp.host.rtnetlink import Rtnetlink
from flannel_udp.model import Degradation, Prefix

_POD_KIND = "veth"


class PodsBridge:
    """Looks for it again and again, and remembers what it was like, as long as our subnet is the same."""

    def __init__(self) -> None:
        self._own: Prefix | None = None
        self._forget()

    def _forget(self) -> None:
        self._known: tuple[Device, IPv4Interface | IPv6Interface] | None = None
        self._ports: set[int] = set()  # of it, by index: the pods' ends
        self._removed = ""  # the name of the one before
        self._left: set[int] = set()  # what was in that one

    def look(self, netlink: Rtnetlink, own: Prefix | None, tunnel: int) -> tuple[Pods | None, list[Degradation]]:
        """Return where packets of our pods come in, ``None`` if nowhere, and what is wrong. Raises `OSError`.

        `own` is our subnet, `tunnel` the device that leads to the other hosts, by index.
        """
        if own != self._own:
            self._own = own
            self._forget()
        pods = None if own is None else find_pods(netlink, own, tunnel)
        found = [] if self._known is None else self._what_became_of(netlink, *self._known, pods)
        link = None if pods is None else device(netlink, pods.bridge)
        if pods is not None and link is not None:
            self._known = link, pods.gateway
            self._ports = {port.index for port in stream_devices(netlink, _POD_KIND, pods.bridge)}
        return pods, [*found, *self._cut_off(netlink)]

    def _what_became_of(
        self, netlink: Rtnetlink, known: Device, gateway: IPv4Interface | IPv6Interface, pods: Pods | None
    ) -> list[Degradation]:
        """Say what the bridge lacks that we know; where it is gone note what was in it."""
        link = device(netlink, known.index)
        if link is None:
            self._removed, self._left = known.name, self._left | self._ports
            self._known, self._ports = None, set()
        return [Degradation("routes", _sentence(link, gateway))] if link is not None and pods is None else []

    def _cut_off(self, netlink: Rtnetlink) -> list[Degradation]:
        """Say so as long as something is left of what was in a bridge that is gone, and in no other one."""
        self._left = {index for index in self._left if (port := device(netlink, index)) is not None and not port.master}
        if self._own is None or not self._left:
            return []
        what = f"{self._removed}, which our pods were behind, was removed"
        text = f"{what}: those that ran then are cut off ({family_of(self._own).name}): start them anew"
        return [Degradation("routes", text)]


def _sentence(link: Device, gateway: IPv4Interface | IPv6Interface) -> str:
    family = family_of(gateway)
    down, up = ("", "") if link.up else ("is down and ", f"ip link set {link.name} up && ")
    what = f"{link.name} {down}has lost its address {gateway}: our pods have no gateway by {family.name}"
    return f"{what}: {up}{family.ip} address add {gateway} dev {link.name}"
