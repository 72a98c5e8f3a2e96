"""Whether the device that our pods are behind still is there, with the address that is their gateway.

A bridge that is taken down loses its IPv6 addresses, and has none when it is up again; IPv4's stay. The runtime that
gave it the address gives it no new one before the next pod is started. One that is removed leaves the pods' ends of it
behind: nobody puts them into the bridge that the next pod brings.

A cni0 with pods and no address is taken for one that lost it also if it was never seen with one: that may have been
before this process began, or two runs of the plugin that made it came in each other's way. The plugin itself puts the
pod's end in first, so it is named only once it was found so again after a moment.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from flannel_udp.host.family import family_of
from flannel_udp.host.links import CNI_BRIDGE, Device, device, device_named, stream_addresses, stream_devices
from flannel_udp.host.lookup.diversions import Pods, find_pods
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Degradation, Prefix

_POD_KIND = "veth"
_MOMENT_S = 5.0
"""The plugin `bridge` has the pod given its address between putting it in and giving its bridge one."""


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
        self._bare: tuple[int, float] | None = None  # cni0's index, and since when it was found without an address

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
        if own is not None:
            found += self._never_seen(netlink, own, pods)
        return pods, [*found, *self._cut_off(netlink)]

    def _what_became_of(
        self, netlink: Rtnetlink, known: Device, gateway: IPv4Interface | IPv6Interface, pods: Pods | None
    ) -> list[Degradation]:
        """Say what the bridge lacks that we know; where it is gone note what was in it."""
        link = device(netlink, known.index)
        if link is None:
            self._removed, self._left = known.name, self._left | self._ports
            self._known, self._ports = None, set()
        return [_lost(link, gateway)] if link is not None and pods is None else []

    def _never_seen(self, netlink: Rtnetlink, own: Prefix, pods: Pods | None) -> list[Degradation]:
        """Say so of a bridge that has no address, and had none whenever it was looked at."""
        link = find_bare(netlink, own) if pods is None and self._known is None else None
        if link is None:
            self._bare = None
            return []
        now_s = time.monotonic()
        if self._bare is None or self._bare[0] != link.index:
            self._bare = link.index, now_s
        return [_lost(link, _gateway(own))] if now_s - self._bare[1] >= _MOMENT_S else []

    def _cut_off(self, netlink: Rtnetlink) -> list[Degradation]:
        """Say so as long as something is left of what was in a bridge that is gone, and in no other one."""
        self._left = {index for index in self._left if (port := device(netlink, index)) is not None and not port.master}
        if self._own is None or not self._left:
            return []
        what = f"{self._removed}, which our pods were behind, was removed"
        text = f"{what}: those that ran then are cut off ({family_of(self._own).name}): start them anew"
        return [Degradation("routes", text)]


def look_for_bare(own: Prefix) -> list[Degradation]:
    """Say so of cni0 if it has pods and no address now and a moment later; blocks for it. Raises `FlannelError`."""
    first = _bare_now(own)
    if first is None:
        return []
    time.sleep(_MOMENT_S)
    again = _bare_now(own)
    return [_lost(again, _gateway(own))] if again is not None and again.index == first.index else []


def _bare_now(own: Prefix) -> Device | None:
    with open_rtnetlink("looking for the pods' bridge") as netlink:
        return find_bare(netlink, own)


def find_bare(netlink: Rtnetlink, own: Prefix) -> Device | None:
    """Return cni0 if pods are on it, and neither it nor another device has what may be their gateway. Raises `OSError`.

    With an address of the other family it is none: its pods may be from before this one was switched on. Another device
    with an address of our subnet is another bridge, or with the plugin `ptp` a pod's end. The subnet's first address
    tells nothing: it is a tunnel's, or stands for the lease.
    """
    link = device_named(netlink, CNI_BRIDGE)
    if link is None or link.kind != "bridge" or not list(stream_devices(netlink, _POD_KIND, link.index)):
        return None
    for version in (4, 6):
        for found in list(stream_addresses(netlink, version=version)):
            has_one = found.index == link.index and not (version == 6 and found.address.is_link_local)
            if has_one or (found.address in own and found.address != own.network_address):
                return None
    return link


def _gateway(own: Prefix) -> IPv4Interface | IPv6Interface:
    return ip_interface((own.network_address + 1, own.prefixlen))


def _lost(link: Device, gateway: IPv4Interface | IPv6Interface) -> Degradation:
    family = family_of(gateway)
    down, up = ("", "") if link.up else ("is down and ", f"ip link set {link.name} up && ")
    what = f"{link.name} {down}has lost its address {gateway}: our pods have no gateway by {family.name}"
    return Degradation("routes", f"{what}: {up}{family.ip} address add {gateway} dev {link.name}")
