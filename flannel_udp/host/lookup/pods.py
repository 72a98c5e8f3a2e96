"""Which pods there are on this host just now: those that its kernel has met on their bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flannel_udp.host import links
from flannel_udp.host.lookup.diversions import find_pods
from flannel_udp.host.lookup.question import DeviceNames
from flannel_udp.host.neighbours import NUD_FAILED, NUD_INCOMPLETE, list_neighbours
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Address, Prefix

PODS_MAX = 8
"""So many are told: a rule that is for one pod only has one like it for the others, as Docker's have."""


class KnownPods(NamedTuple):
    """The pods' bridge, and some of them, those that packets went to last; others may be where none is known."""

    bridge: str
    addresses: Sequence[Address] = ()
    is_bridge: bool = False
    """Whether it is one: another device may have been given an address of our subnet."""


def known_pods(own: Prefix, device: int) -> KnownPods | None:
    """Ask for the pods of our subnet, ``None`` while there is no bridge; `device` is none. Raises `FlannelError`."""
    with open_rtnetlink("asking which pods there are") as netlink:
        pods = find_pods(netlink, own, device)
        if pods is None:
            return None
        met = [
            each
            for each in list_neighbours(netlink, pods.bridge, own.version)
            if each.address in own and each.state not in (NUD_FAILED, NUD_INCOMPLETE)
        ]
        met.sort(key=lambda each: each.used_ago_s)
        link = links.device(netlink, pods.bridge)
        is_bridge = link is not None and link.kind == "bridge"
        return KnownPods(DeviceNames(netlink)[pods.bridge], [each.address for each in met[:PODS_MAX]], is_bridge)
