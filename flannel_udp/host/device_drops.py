"""How many packets a network device and its queueing discipline have dropped, asked of the kernel."""

from __future__ import annotations

import struct
from typing import NamedTuple

from flannel_udp.host.rtnetlink import Message, Rtnetlink, attributes

# linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h, linux/gen_stats.h; numbers are in host byte order
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWQDISC, _RTM_GETQDISC = 36, 38
_IFLA_STATS64, _TCA_STATS2, _TCA_STATS_QUEUE = 23, 7, 3
_TC_H_ROOT = 0xFFFFFFFF
_NLA_TYPE_MASK = 0x3FFF

_IFINFOMSG = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_STATS = struct.Struct("=12Q")  # the first fields of struct rtnl_link_stats64
_RX_DROPPED, _TX_DROPPED, _RX_MISSED = 6, 7, 11  # missed: the device had no buffer left
_QUEUE = struct.Struct("=5I")  # struct gnet_stats_queue: length, bytes, drops, requeues, times over a limit


class DeviceDrops(NamedTuple):
    """Packets since the device was made; ``queue`` since its queueing discipline was set, 0 where it has none."""

    received: int
    sent: int
    queue: int


def read_device_drops(netlink: Rtnetlink, index: int) -> DeviceDrops | None:
    """Ask for the device with this index, ``None`` if there is none. Raises `OSError`."""
    link = netlink.ask_one(Message(_RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0)), _RTM_NEWLINK)
    if link is None:
        return None
    stats = _STATS.unpack_from(dict(attributes(link, _IFINFOMSG.size))[_IFLA_STATS64])
    return DeviceDrops(stats[_RX_DROPPED] + stats[_RX_MISSED], stats[_TX_DROPPED], _queue_drops(netlink, index))


def _queue_drops(netlink: Rtnetlink, index: int) -> int:
    """Return what the root discipline dropped, those below it included; a device without a queue has none to ask."""
    # Of all devices: one question for a single discipline is answered to everybody who listens to changes of any.
    for found in list(netlink.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), _RTM_NEWQDISC)):
        _, device, _, parent, _ = _TCMSG.unpack_from(found)
        if device == index and parent == _TC_H_ROOT:
            stats = _by_type(found, _TCMSG.size).get(_TCA_STATS2, b"")
            queue = _by_type(stats, 0).get(_TCA_STATS_QUEUE)
            return 0 if queue is None else int(_QUEUE.unpack_from(queue)[2])
    return 0


def _by_type(body: bytes, offset: int) -> dict[int, bytes]:
    return {kind & _NLA_TYPE_MASK: value for kind, value in attributes(body, offset)}
