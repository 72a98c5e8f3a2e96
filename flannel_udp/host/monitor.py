"""Tells when the kernel reports a change of the host's network that may concern us.

Only as much of each message is read as says what device it is about: a host with many containers, or a routing daemon,
makes thousands of them a second. What the facts are now is for netlink.py to ask.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from flannel_udp.host.family import Family, family_by_af
from flannel_udp.host.listener import Listener, open_groups
from flannel_udp.host.neighbours import RTM_DELNEIGH, RTM_NEWNEIGH, Table, is_about, parse_entry
from flannel_udp.model import Address, Prefix

# linux/rtnetlink.h
_RTNLGRP_LINK, _RTNLGRP_NEIGH, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE = 1, 3, 5, 7
_RTNLGRP_IPV6_IFADDR, _RTNLGRP_IPV6_ROUTE = 9, 11
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25

# All in host byte order.
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_LINK = struct.Struct("=BxHi")  # the head of struct ifinfomsg: family, hardware type, index
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBxxxB")  # the head of struct rtmsg: family, prefix length of the destination, protocol
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type
_RTMSG_BYTES, _RTA_DST, _RTA_GATEWAY, _IFA_ADDRESS, _IFA_LOCAL = 12, 1, 5, 1, 2


@dataclass(frozen=True, slots=True)
class OwnRoutes:
    """Routes of ours, told by their protocol number: what becomes of routes to these destinations counts.

    That we have made one does not, nor that we have deleted one which is not wanted any more, or leads elsewhere now.
    """

    protocol: int
    wanted: Callable[[Prefix], Address | None]
    """Says through which gateway ours is to lead there, ``None``: there is to be none."""

    def concerned(self, kind: int, protocol: int, destination: Prefix, gateway: Address | None) -> bool:
        """Tell whether such a message means that a route of ours may have been changed by somebody else."""
        wanted = self.wanted(destination)
        if wanted is None:
            return False
        return protocol != self.protocol or (kind == _RTM_DELROUTE and gateway == wanted)


@dataclass(frozen=True, slots=True)
class OwnEntries:
    """Entries of ours in a table of the device with this index: what becomes of those that are wanted counts."""

    table: Table
    index: int
    wanted: Callable[[bytes], bytes | None]
    """Says what an entry has to say, by its key; ``None``: there is to be none."""

    def concerned(self, kind: int, body: bytes) -> bool:
        """Tell whether such a message means that an entry of ours may have been changed by somebody else."""
        if not is_about(self.table, self.index, body):
            return False
        entry = parse_entry(self.table, body)
        wanted = None if entry is None else self.wanted(entry.key)
        if entry is None or wanted is None:
            return False
        return kind == RTM_DELNEIGH or entry.value != wanted or not entry.stays


@dataclass(frozen=True, slots=True)
class Interest:
    """Which messages count: of these devices' links and addresses, of routes with these prefix lengths, of `own`.

    ``address``: that one of any device has come, too.
    """

    devices: Set[int]
    prefix_lens: Set[int]
    own: OwnRoutes | None = None
    addresses: Set[Address] = frozenset()
    """These addresses count on whatever device, and the routes to them, by which the kernel delivers to the host."""
    entries: tuple[OwnEntries, ...] = ()
    """These count, if the monitor's socket hears of such at all."""


def join_interests(parts: Mapping[int, Interest]) -> Interest:
    """Return what counts for all of these, one an IP version: `own` is asked about the routes of its version."""
    owned = {version: interest.own for version, interest in parts.items() if interest.own is not None}

    def wanted(destination: Prefix) -> Address | None:
        own = owned.get(destination.version)
        return None if own is None else own.wanted(destination)

    protocol = next((own.protocol for own in owned.values()), None)
    return Interest(
        devices=frozenset().union(*(interest.devices for interest in parts.values())),
        prefix_lens=frozenset().union(*(interest.prefix_lens for interest in parts.values())),
        own=None if protocol is None else OwnRoutes(protocol, wanted),
        entries=tuple(entry for interest in parts.values() for entry in interest.entries),
    )


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
            return _ADDRESS.unpack_from(body)[4] in interest.devices or _local_address(body) in interest.addresses
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            return _is_route_of_interest(kind, body, interest)
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return any(own.concerned(kind, body) for own in interest.entries)
    except struct.error:
        return True  # shorter than its kind: as above
    return False


def _is_route_of_interest(kind: int, body: bytes, interest: Interest) -> bool:
    af, prefix_len, protocol = _ROUTE.unpack_from(body)
    if prefix_len in interest.prefix_lens:
        return True
    family = family_by_af(af)
    if interest.own is None and prefix_len != family.n_bits:
        return False
    destination, gateway = _way(body, family, prefix_len)
    if prefix_len == family.n_bits and destination.network_address in interest.addresses:
        return True
    return interest.own is not None and interest.own.concerned(kind, protocol, destination, gateway)


def _way(body: bytes, family: Family, prefix_len: int) -> tuple[Prefix, Address | None]:
    """Return where a route leads and through which gateway; the default route carries no RTA_DST."""
    found = _attributes(body, _RTMSG_BYTES)
    return family.prefix(found.get(_RTA_DST), prefix_len), family.address(found.get(_RTA_GATEWAY))


def _local_address(body: bytes) -> Address | None:
    """Return the host's own address of an address message; IPv6 calls it so only where the other end has another."""
    found = _attributes(body, _ADDRESS.size)
    return family_by_af(body[0]).address(found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            raise struct.error("an attribute shorter than its header")
        found[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3  # RTA_ALIGN
    return found


def open_monitor_socket(*, entries: bool = False) -> socket.socket:
    """Open a socket to which the kernel tells changes of links, addresses and routes of this namespace.

    With `entries` also those of neighbours and forwarding entries, of which a host with many containers has many.
    """
    groups = (_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV6_IFADDR, _RTNLGRP_IPV6_ROUTE)
    return open_groups(socket.NETLINK_ROUTE, (*groups, _RTNLGRP_NEIGH) if entries else groups)


class Monitor:
    """Calls `changed()` on the running loop for every wake-up that brought something of interest, until closed."""

    def __init__(self, netlink: socket.socket, changed: Callable[[], None]) -> None:
        self.interest: Interest | None = None
        """What to listen for; ``None``: everything."""
        self._listener = Listener(netlink, lambda datagram: concerns(datagram, self.interest), changed)

    def close(self) -> None:
        """Stop listening and close the socket."""
        self._listener.close()
