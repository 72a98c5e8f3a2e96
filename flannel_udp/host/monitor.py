"""Tells when the kernel reports a change of the host's network that may concern us.

The socket is read here, and only as much of each message as says what device it is about: a host with many containers,
or a routing daemon, makes thousands of them a second. What the facts are now is for netlink.py to ask.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
from collections.abc import Callable, Set
from dataclasses import dataclass

# linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25

# All in host byte order.
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_LINK = struct.Struct("=BxHi")  # the head of struct ifinfomsg: family, hardware type, index
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BB")  # the head of struct rtmsg: family, prefix length of the destination

_DATAGRAM_BYTES = 65_536  # netlink(7): 8 KiB suffice for one message; the kernel may put many into a datagram
_READS_MAX = 16  # datagrams a wake-up: other work waits meanwhile


@dataclass(frozen=True, slots=True)
class Interest:
    """Which messages count: of these devices' links and addresses, of routes with these prefix lengths."""

    devices: Set[int]
    prefix_lens: Set[int]


def concerns(datagram: bytes, interest: Interest | None) -> bool:
    """Tell whether one of the rtnetlink messages of a datagram is of interest; everything is to ``None``."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or interest is None:
            return True  # not as we understand it, so better look
        if _is_of_interest(kind, datagram[offset + _HEADER.size : offset + length], interest):
            return True
        offset += (length + 3) & ~3  # NLMSG_ALIGN
    return False


def _is_of_interest(kind: int, body: bytes, interest: Interest) -> bool:
    try:
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            return _LINK.unpack_from(body)[2] in interest.devices
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            return _ADDRESS.unpack_from(body)[4] in interest.devices
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            return _ROUTE.unpack_from(body)[1] in interest.prefix_lens
    except struct.error:
        return True  # shorter than its kind: as above
    return False


def open_monitor_socket() -> socket.socket:
    """Open a socket to which the kernel tells changes of links, IPv4 addresses and IPv4 routes of this namespace."""
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE))
    return netlink


class Monitor:
    """Calls `changed()` on the running loop for every wake-up that brought something of interest, until closed."""

    def __init__(self, netlink: socket.socket, changed: Callable[[], None]) -> None:
        self.interest: Interest | None = None
        """What to listen for; ``None``: everything."""
        self._netlink = netlink
        self._changed = changed
        # A descriptor that reports an error (ENOBUFS) once is never reported again by uvloop: it watches an epoll
        # descriptor of ours, and the socket is in that.
        self._epoll = select.epoll()
        self._epoll.register(netlink.fileno(), select.EPOLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._read)

    def close(self) -> None:
        """Stop listening and close the socket."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._netlink.close()

    def _read(self) -> None:
        changed = False
        for _ in range(_READS_MAX):
            try:
                changed |= concerns(self._netlink.recv(_DATAGRAM_BYTES), self.interest)
            except BlockingIOError:
                break
            except OSError as failed:
                if failed.errno != errno.ENOBUFS:
                    raise
                changed = True  # messages were lost: anything may have changed (netlink(7))
        if changed:
            self._changed()
