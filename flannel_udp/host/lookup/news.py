"""Tells when the kernel may do something else with overlay packets: routes, rules, links, addresses, sysctls."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from flannel_udp.host.listener import Listener, open_groups
from flannel_udp.host.lookup.prefixes import destination_of
from flannel_udp.model import Prefix

# linux/rtnetlink.h
_RTNLGRP_LINK = 1  # of a link that goes down the kernel reports no IPv4 route
_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV4_RULE, _RTNLGRP_IPV4_NETCONF = 5, 7, 8, 24
_RTNLGRP_IPV6_IFADDR, _RTNLGRP_IPV6_ROUTE, _RTNLGRP_IPV6_RULE, _RTNLGRP_IPV6_NETCONF = 9, 11, 19, 25
_GROUPS = {
    4: (_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV4_RULE, _RTNLGRP_IPV4_NETCONF),
    6: (_RTNLGRP_IPV6_IFADDR, _RTNLGRP_IPV6_ROUTE, _RTNLGRP_IPV6_RULE, _RTNLGRP_IPV6_NETCONF),
}
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25

ROUTES_MAX = 10_000
"""So many new routes are kept until somebody asks: nobody does while the agent is not ready, and that may last."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_RTMSG_BYTES = 12


class News:
    """Calls `changed()` on the running loop when it is time to ask again, until closed."""

    def __init__(self, overlay: Prefix, changed: Callable[[], None]) -> None:
        self._overlay = overlay
        self._routes: list[tuple[int, int]] | None = []
        groups = _GROUPS[overlay.version]
        self._listener = Listener(open_groups(socket.NETLINK_ROUTE, groups), self._hear, changed, self._lose)

    def take_routes(self) -> list[tuple[int, int]] | None:
        """Return address and prefix length of new routes inside the overlay since the last time.

        ``None`` where messages were lost, or too many came: read all routes anew.
        """
        routes, self._routes = self._routes, []
        return routes

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _hear(self, datagram: bytes) -> bool:
        news = False
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            length, kind, *_ = _HEADER.unpack_from(datagram, offset)
            body = datagram[offset + _HEADER.size : offset + max(length, _HEADER.size)]
            if kind not in (_RTM_NEWROUTE, _RTM_DELROUTE) or len(body) < _RTMSG_BYTES:
                news = True
            elif (destination := overlapping(body, self._overlay)) is not None:
                news = True
                if kind == _RTM_NEWROUTE:
                    self._keep(destination)
            if length < _HEADER.size:
                break  # not as we understand it
            offset += (length + 3) & ~3  # NLMSG_ALIGN
        return news

    def _keep(self, destination: tuple[int, int]) -> None:
        if self._routes is not None and len(self._routes) == ROUTES_MAX:
            self._routes = None
        if self._routes is not None:
            self._routes.append(destination)

    def _lose(self) -> None:
        self._routes = None


def overlapping(body: bytes, overlay: Prefix) -> tuple[int, int] | None:
    """Return address and prefix length of a route that has addresses of the overlay, ``None`` for another one."""
    address, prefix_len = destination_of(body), body[1]
    shift = overlay.max_prefixlen - min(prefix_len, overlay.prefixlen)
    return (address, prefix_len) if address >> shift == int(overlay.network_address) >> shift else None
