"""Nexthop objects (`ip nexthop`), by which routing daemons have routes lead: read only."""

from __future__ import annotations

import struct

from flannel_udp.host.route_query import next_hop_devices
from flannel_udp.host.rtnetlink import RTMSG, Message, Rtnetlink, attribute, attributes, number

# linux/rtnetlink.h, linux/nexthop.h
_RTM_NEWNEXTHOP, _RTM_GETNEXTHOP = 104, 106
_RTA_NH_ID = 30
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_NHMSG = struct.Struct("=4BI")  # family, scope, protocol, reserved; flags
_MEMBER = struct.Struct("=I4x")  # struct nexthop_grp: id, weight
_U32 = struct.Struct("=I")


def devices_of(netlink: Rtnetlink, route: bytes) -> list[int]:
    """Return the indices of the interfaces by which a route leads, as `next_hop_devices` does, its object's as well.

    With net.ipv4.nexthop_compat_mode=0 the kernel tells of such a route its object's number alone. Raises `OSError`.
    """
    by_itself = next_hop_devices(route)
    nexthop = number(dict(attributes(route, RTMSG.size)).get(_RTA_NH_ID))
    return by_itself if by_itself or not nexthop else _devices(netlink, [nexthop])


def _devices(netlink: Rtnetlink, nexthops: list[int]) -> list[int]:
    questions = [
        Message(_RTM_GETNEXTHOP, 0, _NHMSG.pack(0, 0, 0, 0, 0) + attribute(_NHA_ID, _U32.pack(nexthop)))
        for nexthop in nexthops
    ]
    devices: list[int] = []
    for _, answer in netlink.ask(questions, _RTM_NEWNEXTHOP):
        if not isinstance(answer, bytes):
            continue  # it is gone by now
        found = dict(attributes(answer, _NHMSG.size))
        if _NHA_OIF in found:  # a blackhole has none
            devices.append(number(found[_NHA_OIF]))
        # No member of a group is a group.
        devices += _devices(netlink, [member for (member,) in _MEMBER.iter_unpack(found.get(_NHA_GROUP, b""))])
    return devices
