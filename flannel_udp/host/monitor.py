"""Tells when the kernel reports a change of the host's network that may concern us.

Only as much of each message is read as says what device it is about: a host with many containers, or a routing daemon,
makes thousands of them a second. What the facts are now is for netlink.py to ask.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.host.listener import Listener, open_groups

# linux/rtnetlink.h
_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE = 1, 5, 7
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25

# All in host byte order.
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_LINK = struct.Struct("=BxHi")  # the head of struct ifinfomsg: family, hardware type, index
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBxxxB")  # the head of struct rtmsg: family, prefix length of the destination, protocol
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type
_RTMSG_BYTES, _RTA_DST, _RTA_GATEWAY = 12, 1, 5


@dataclass(frozen=True, slots=True)
class OwnRoutes:
    """Routes of ours, told by their protocol number: what becomes of routes to these destinations counts.

    That we have made one does not, nor that we have deleted one which is not wanted any more, or leads elsewhere now.
    """

    protocol: int
    wanted: Callable[[IPv4Network], IPv4Address | None]
    """Says through which gateway ours is to lead there, ``None``: there is to be none."""

    def concerned(self, kind: int, protocol: int, destination: IPv4Network, gateway: IPv4Address | None) -> bool:
        """Tell whether such a message means that a route of ours may have been changed by somebody else."""
        wanted = self.wanted(destination)
        if wanted is None:
            return False
        return protocol != self.protocol or (kind == _RTM_DELROUTE and gateway == wanted)


@dataclass(frozen=True, slots=True)
class Interest:
    """Which messages count: of these devices' links and addresses, of routes with these prefix lengths, of `own`."""

    devices: Set[int]
    prefix_lens: Set[int]
    own: OwnRoutes | None = None


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
            _, prefix_len, protocol = _ROUTE.unpack_from(body)
            if prefix_len in interest.prefix_lens:
                return True
            own = interest.own
            return own is not None and own.concerned(kind, protocol, *_way(body, prefix_len))
    except struct.error:
        return True  # shorter than its kind: as above
    return False


def _way(body: bytes, prefix_len: int) -> tuple[IPv4Network, IPv4Address | None]:
    """Return where a route leads and through which gateway; the default route carries no RTA_DST."""
    found = {_RTA_DST: bytes(4), _RTA_GATEWAY: b""}
    offset = _RTMSG_BYTES
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            raise struct.error("an attribute shorter than its header")
        if kind in found:
            found[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3  # RTA_ALIGN
    gateway = found[_RTA_GATEWAY]
    return IPv4Network((found[_RTA_DST], prefix_len)), IPv4Address(gateway) if gateway else None


def open_monitor_socket() -> socket.socket:
    """Open a socket to which the kernel tells changes of links, IPv4 addresses and IPv4 routes of this namespace."""
    return open_groups(socket.NETLINK_ROUTE, (_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE))


class Monitor:
    """Calls `changed()` on the running loop for every wake-up that brought something of interest, until closed."""

    def __init__(self, netlink: socket.socket, changed: Callable[[], None]) -> None:
        self.interest: Interest | None = None
        """What to listen for; ``None``: everything."""
        self._listener = Listener(netlink, lambda datagram: concerns(datagram, self.interest), changed)

    def close(self) -> None:
        """Stop listening and close the socket."""
        self._listener.close()
