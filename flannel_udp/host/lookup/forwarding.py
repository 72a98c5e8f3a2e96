"""Which devices forward packets, and how strictly they check where packets come from: the sysctls, by netlink.

An IPv4 packet is forwarded if the device that it came in through forwards; `net.ipv4.ip_forward` sets all devices at
once, and the default of those that come later. For IPv6 `net.ipv6.conf.all.forwarding` alone counts (ip6_forward in
net/ipv6/ip6_output.c), and there is no reverse path filter. A host that forwards IPv6 takes no default route from
router advertisements, unless the device's `accept_ra` is 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flannel_udp.host.family import IPV4, Family, family_of
from flannel_udp.host.links import device
from flannel_udp.host.lookup.question import answers
from flannel_udp.host.route_query import next_hop_devices, stream_default_routes
from flannel_udp.host.rtnetlink import Message, Rtnetlink, attribute, attributes
from flannel_udp.model import Degradation

# linux/rtnetlink.h, linux/netconf.h
_RTM_NEWNETCONF, _RTM_GETNETCONF = 80, 82
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _NETCONFA_RP_FILTER = 1, 2, 3
ALL_DEVICES = -1
"""NETCONFA_IFINDEX_ALL: `net.ipv4.conf.all`, whose forwarding is `net.ipv4.ip_forward`."""

_HEAD = struct.Struct("=B3x")  # struct netconfmsg: family, and what it is aligned to
_RTPROT_RA = 9  # linux/rtnetlink.h
_IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
_UNLESS_FORWARDING = "1"
_S32 = struct.Struct("=i")
STRICT = 1
"""rp_filter: a packet is dropped unless its source is routed back out of the device that it came in through."""


class Settings(NamedTuple):
    """A device's."""

    forwards: bool
    rp_filter: int


def read_settings(netlink: Rtnetlink, devices: Iterable[int], version: int = 4) -> dict[int, Settings]:
    """Return the settings of the devices that are there, by index, `ALL_DEVICES` among them. Raises `OSError`."""
    indexes = [ALL_DEVICES, *devices]
    head = _HEAD.pack(family_of(version).af)
    questions = [
        Message(_RTM_GETNETCONF, 0, head + attribute(_NETCONFA_IFINDEX, _S32.pack(index))) for index in indexes
    ]
    settings = {}
    for index, body in zip(indexes, answers(netlink, questions, _RTM_NEWNETCONF), strict=True):
        if isinstance(body, bytes):
            found = {kind: _S32.unpack(value)[0] for kind, value in attributes(body, _HEAD.size) if len(value) == 4}
            settings[index] = Settings(
                bool(found.get(_NETCONFA_FORWARDING, 1)), max(found.get(_NETCONFA_RP_FILTER, 0), 0)
            )
    if version == 6:
        return dict.fromkeys(settings, settings[ALL_DEVICES]) if ALL_DEVICES in settings else {}
    return settings


def lost_advertisements(netlink: Rtnetlink) -> list[str]:
    """Return the devices whose default route comes from router advertisements that end where the host forwards.

    By name. Raises `OSError`.
    """
    found = set()
    for body in stream_default_routes(netlink, 6):
        if body[5] == _RTPROT_RA:
            found.update(next_hop_devices(body))
    names = [link.name for index in sorted(found) if (link := device(netlink, index)) is not None]
    return [name for name in names if _accept_ra(name) == _UNLESS_FORWARDING]


def _accept_ra(name: str) -> str:
    try:
        return (_IPV6_SETTINGS / name / "accept_ra").read_text().strip()
    except OSError:
        return ""


def is_strict(settings: Mapping[int, Settings], device: int) -> bool:
    """Tell whether the device takes only what is routed back through it: the higher of its own and of all counts."""
    return max((settings[index].rp_filter for index in (ALL_DEVICES, device) if index in settings), default=0) == STRICT


class Inlet(NamedTuple):
    """A device that overlay packets come in through: its index, name, and what is lost if it does not forward."""

    device: int
    name: str
    lost: str


def judge_forwarding(
    settings: Mapping[int, Settings], inlets: Sequence[Inlet], family: Family = IPV4, advertised: Sequence[str] = ()
) -> list[Degradation]:
    """Return what does not forward, with the command that mends it; `advertised`: see `lost_advertisements`."""
    closed = [inlet for inlet in inlets if inlet.device in settings and not settings[inlet.device].forwards]
    if closed and not settings[ALL_DEVICES].forwards:
        lost = " and ".join(f"{inlet.lost} ({inlet.name})" for inlet in closed)
        text = (
            f"this host does not forward, {family.forwarding} is 0: dropped is {lost}: sysctl -w {family.forwarding}=1"
        )
        if advertised:
            keeps = " ".join(f"{family.setting(name, 'accept_ra')}=2" for name in advertised)
            text += f" {keeps} (else the default route, which comes from router advertisements, goes)"
        return [Degradation("forwarding", text)]
    if advertised:
        return [
            Degradation(
                "forwarding",
                f"the default route of {name} comes from router advertisements, which this host hears no more, "
                f"as it forwards and accept_ra is 1: sysctl -w {family.setting(name, 'accept_ra')}=2",
            )
            for name in advertised
        ]
    return [
        Degradation(
            "forwarding",
            f"{inlet.name} does not forward: dropped is {inlet.lost}: "
            f"sysctl -w {family.setting(inlet.name, 'forwarding')}=1",
        )
        for inlet in closed
    ]
