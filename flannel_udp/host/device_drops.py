"""What a network device has carried, and what it and its queueing discipline have dropped, asked of the kernel."""

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
_RX_PACKETS, _TX_PACKETS, _RX_BYTES, _TX_BYTES = 0, 1, 2, 3
_QUEUE = struct.Struct("=5I")  # struct gnet_stats_queue: length, bytes, drops, requeues, times over a limit


class DeviceDrops(NamedTuple):
    """Packets since the device was made; ``queue`` since its queueing discipline was set, 0 where it has none."""

    received: int
    sent: int
    queue: int


class DeviceTraffic(NamedTuple):
    """What a device was given to send, and has received, since it was made."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int


def read_device_traffic(netlink: Rtnetlink, index: int) -> DeviceTraffic | None:
    """Ask for the device with this index, ``None`` if there is none. Raises `OSError`."""
    stats = _stats(netlink, index)
    if stats is None:
        return None
    return DeviceTraffic(stats[_TX_PACKETS], stats[_TX_BYTES], stats[_RX_PACKETS], stats[_RX_BYTES])


def read_device_drops(netlink: Rtnetlink, index: int) -> DeviceDrops | None:
    """Ask for the device with this index, ``None`` if there is none. Raises `OSError`."""
    stats = _stats(netlink, index)
    if stats is None:
        return None
    return DeviceDrops(stats[_RX_DROPPED] + stats[_RX_MISSED], stats[_TX_DROPPED], _queue_drops(netlink, index))


def _stats(netlink: Rtnetlink, index: int) -> tuple[int, ...] | None:
    link = netlink.ask_one(Message(_RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0)), _RTM_NEWLINK)
    if link is None:
        return None
    return _STATS.unpack_from(dict(attributes(link, _IFINFOMSG.size))[_IFLA_STATS64])


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
