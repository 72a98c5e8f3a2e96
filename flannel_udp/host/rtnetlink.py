"""IPv4 routes and addresses by raw rtnetlink, many messages a system call.

pyroute2, which `netlink` uses, builds and parses each message in Python objects of its own: 10,000 routes would hold
the GIL, and so the event loop, for seconds. Here a message is one `struct` and a system call carries a hundred, so that
most of the time passes inside the kernel, without the GIL. How it goes:

1. a caller makes messages, which are values: `add_route`, `append_route`, `delete_route`
2. `Rtnetlink.apply` sends them in batches; only the last of a batch asks for an acknowledgement (NLM_F_ACK). A refusal
   is always answered and bears its message's sequence number; where none came before the last answer, all was done
3. dumps are filtered by the kernel (NETLINK_GET_STRICT_CHK, Linux 4.20); of what an older kernel sends beyond that,
   only two bytes are looked at

Everything blocks: call it through ``asyncio.to_thread``. Numbers are in host byte order, addresses in network order
(rtnetlink(7)); constants are those of linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h and linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.netlink import (
    IFF_UP,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_F_FIB_MATCH,
    RTN_UNICAST,
    _explain,
)

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10  # a refusal does not repeat the message that it refuses
_NETLINK_EXT_ACK = 11  # but says why in words
_NETLINK_GET_STRICT_CHK = 12

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_F_LOOKUP_TABLE = 0x1000
_RTN_LOCAL = 2
_RTNH_F_ONLINK = 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO = 1, 2, 3, 6
_RT_SCOPE_HOST = 254
_IFLA_IFNAME, _IFLA_EXT_MASK = 3, 29
_RTEXT_FILTER_SKIP_STATS = 8

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_IFADDRMSG = struct.Struct("=4BI")  # family, prefixlen, flags, scope; index
_IFINFOMSG = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type
_ERROR = struct.Struct("=i16x")  # struct nlmsgerr: negative errno, the header of the refused message
_CACHEINFO = struct.Struct("=IIII")  # struct ifa_cacheinfo: preferred and valid lifetimes (s), two times of changes
_U32 = struct.Struct("=I")

_DATAGRAM_BYTES = 65_536  # netlink(7): the kernel puts no more than 32 KiB into a datagram

# The kernel answers a whole batch before we can read, and what does not fit into the socket's receive buffer is lost
# (ENOBUFS). Of the usual 208 KiB a refusal takes 0.9 on Linux 6.18; what answers a question can be larger elsewhere.
_MESSAGES_A_SEND = 100
_QUESTIONS_A_SEND = 20

FOREVER_S = 0xFFFFFFFF
"""INFINITY_LIFE_TIME: an address that stays."""
LOOPBACK_INDEX = 1
"""LOOPBACK_IFINDEX: of `lo` in every network namespace."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the IPv4 main table, made by us or found. One with several next hops has neither gateway nor `oif`."""

    destination: IPv4Network
    gateway: IPv4Address | None
    oif: int
    """The interface's index."""
    source: IPv4Address | None = None
    """What address the host's own packets get (RTA_PREFSRC)."""
    onlink: bool = False
    """The gateway is a neighbour though no route of the interface says so."""
    protocol: int = 0
    """Who made it, RTPROT_…"""
    metric: int = 0
    tos: int = 0
    scope: int = RT_SCOPE_UNIVERSE
    type: int = RTN_UNICAST


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of an interface."""

    index: int
    """The interface's."""
    address: IPv4Address
    prefix_len: int
    label: str
    valid_s: int
    """Until the kernel removes it, rounded up to whole seconds; `FOREVER_S`: it stays."""


class Link(NamedTuple):
    """An interface."""

    name: str
    up: bool


class Message(NamedTuple):
    """A request without its header."""

    type: int
    flags: int
    body: bytes


class Refusal(NamedTuple):
    """Why the kernel did not do what a message asked for."""

    code: int
    """An `errno` value."""
    why: str


def add_route(route: Route) -> Message:
    """Add a route; refused (EEXIST) where one to the same destination, of the same TOS and metric, is there."""
    return Message(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, _route_body(route))


def append_route(route: Route) -> Message:
    """Put a route behind those to the same destination, which stay in force; refused (EEXIST) if it is there already.

    Then `delete_route` of the former one changes a route without a gap. NLM_F_REPLACE would do so in one message, but
    to the first route that has the destination, whoever made it.
    """
    return Message(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_APPEND, _route_body(route))


def delete_route(route: Route) -> Message:
    """Delete the first route that is like this one, also in its protocol; refused (ESRCH) if there is none.

    Gateway, interface, source and metric are compared where they are not 0 or ``None``.
    """
    return Message(_RTM_DELROUTE, 0, _route_body(route))


@contextmanager
def open_rtnetlink(doing: str) -> Iterator[Rtnetlink]:
    """Yield a channel to the kernel of this thread's network namespace.

    What goes wrong in there as a whole becomes a one-line `FlannelError` that begins with `doing`.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            yield Rtnetlink(netlink)
    except OSError as error:
        raise FlannelError(f"{doing}: {_explain(error.errno or 0)}") from error


class Rtnetlink:
    """One netlink socket, used by one thread at a time. Methods raise `OSError` for what concerns all of a request."""

    def __init__(self, netlink: socket.socket) -> None:
        self._socket = netlink
        self._sequence = 0
        self._datagram = bytearray(_DATAGRAM_BYTES)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            with suppress(OSError):  # a kernel before 4.3, 4.12, 4.20: longer answers, no words, no filter
                netlink.setsockopt(_SOL_NETLINK, option, 1)

    def apply(self, messages: Sequence[Message]) -> list[Refusal | None]:
        """Have the kernel do all of it, in order, and return for each message ``None`` or why it was refused.

        Raises `PermissionError` without CAP_NET_ADMIN: that is no matter of one message.
        """
        refusals: list[Refusal | None] = [None] * len(messages)
        for index, kind, flags, body in self._exchange(messages, _MESSAGES_A_SEND):
            if kind == _NLMSG_ERROR:
                refusals[index] = _refusal(flags, body)
        if any(refusal and refusal.code in (errno.EPERM, errno.EACCES) for refusal in refusals):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return refusals

    def routes_of(self, protocol: int) -> list[Route]:
        """Return the main table's routes that bear this protocol number, in the order in which they are in force."""
        return [parse_route(body) for body in self.bodies_of(protocol)]

    def bodies_of(self, protocol: int) -> list[bytes]:
        """Return them as the kernel says them, for `parse_route`: one that has not changed is the same bytes again."""
        head = _RTMSG.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0)
        bodies: dict[bytes, None] = {}  # one that moved while the table was read would come twice
        try:
            for body in self._dump(_RTM_GETROUTE, head, _RTM_NEWROUTE):
                if body[5] == protocol and body[4] == RT_TABLE_MAIN:
                    bodies[body] = None
        except FileNotFoundError:
            pass  # ENOENT: nobody made a main table in this namespace yet
        return list(bodies)

    def holders(self, destinations: Sequence[IPv4Network]) -> list[Route | None]:
        """Return for each destination the main table's route to exactly it that is in force.

        ``None`` where the kernel answers with another route: one of another table, one to a part of the destination, or
        one that refuses packets (RTN_BLACKHOLE and the like), for which it tells an error instead.
        """
        flags = RTM_F_FIB_MATCH | _RTM_F_LOOKUP_TABLE
        head = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, flags)
        bodies = [head + _attribute(_RTA_DST, destination.network_address.packed) for destination in destinations]
        found: list[Route | None] = [None] * len(destinations)
        for index, body in self._ask([Message(_RTM_GETROUTE, 0, body) for body in bodies], _RTM_NEWROUTE):
            if body[4] == RT_TABLE_MAIN and (route := parse_route(body)).destination == destinations[index]:
                found[index] = route
        return found

    def is_local(self, address: IPv4Address) -> bool:
        """Tell whether packets to this address are for the host itself, no broadcasts nor on their way elsewhere."""
        head = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
        question = Message(_RTM_GETROUTE, 0, head + _attribute(_RTA_DST, address.packed))
        return any(parse_route(body).type == _RTN_LOCAL for _, body in self._ask([question], _RTM_NEWROUTE))

    def link(self, index: int) -> Link | None:
        """Return what an interface is called and whether it is up, ``None`` if there is none of this index."""
        head = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        question = Message(_RTM_GETLINK, 0, head + _attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS)))
        for _, body in self._ask([question], _RTM_NEWLINK):
            name = dict(_attributes(body, _IFINFOMSG.size))[_IFLA_IFNAME]
            return Link(_text(name), bool(_IFINFOMSG.unpack_from(body)[3] & IFF_UP))
        return None

    def addresses(self, index: int = 0) -> list[Address]:
        """Return the IPv4 addresses of an interface, those of all interfaces for index 0."""
        head = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, index)
        found = map(_parse_address, self._dump(_RTM_GETADDR, head, _RTM_NEWADDR))
        return [address for address in found if index in (0, address.index)]

    def put_address(self, index: int, address: IPv4Address, label: str, preferred_s: int, valid_s: int) -> None:
        """Give an interface `address`/32 for `valid_s` seconds, at least 1, or change how long the one it has stays.

        After `preferred_s` seconds the address is marked as deprecated, which changes nothing in routing. Scope host:
        neither the kernel nor a program that looks for an address of this host chooses it.
        """
        life = _attribute(_IFA_CACHEINFO, _CACHEINFO.pack(preferred_s, valid_s, 0, 0))
        body = _address_body(index, address, label) + life
        self._change_address(Message(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, body))

    def delete_address(self, index: int, address: IPv4Address, label: str) -> None:
        """Take `address`/32 off an interface if it has this label; none such is fine."""
        try:
            self._change_address(Message(_RTM_DELADDR, 0, _address_body(index, address, label)))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    def _change_address(self, message: Message) -> None:
        (refusal,) = self.apply([message])
        if refusal:
            raise OSError(refusal.code, refusal.why)

    def _ask(self, questions: Sequence[Message], answer: int) -> Iterator[tuple[int, bytes]]:
        """Yield the body of each answer of this message type, with the index of its question."""
        for index, kind, _, body in self._exchange(questions, _QUESTIONS_A_SEND):
            if kind == answer:
                yield index, body

    def _exchange(self, messages: Sequence[Message], at_once: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Send messages and yield what comes back: index of the message, then type, flags and body of the answer."""
        for start in range(0, len(messages), at_once):
            batch = messages[start : start + at_once]
            first = self._send(batch, _NLM_F_ACK)
            last = first + len(batch) - 1
            done = False
            while not done:
                for kind, flags, sequence, body in self._receive():
                    done = done or (kind == _NLMSG_ERROR and sequence == last)
                    yield start + sequence - first, kind, flags, body

    def _dump(self, request: int, head: bytes, wanted: int) -> Iterator[bytes]:
        """Yield the bodies of a dump's messages of the type `wanted`. Read to its end before the next request."""
        self._send([Message(request, _NLM_F_DUMP, head)], 0)
        while True:
            for kind, _, _, body in self._receive():
                if kind == wanted:
                    yield body
                elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    (code,) = struct.unpack_from("=i", body)  # both begin with a negative errno
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return

    def _send(self, messages: Sequence[Message], flags_of_last: int) -> int:
        """Send messages in one system call, and return the first one's sequence number."""
        first = self._sequence + 1
        self._sequence += len(messages)
        parts = []
        for sequence, message in enumerate(messages, start=first):
            flags = _NLM_F_REQUEST | message.flags | (flags_of_last if sequence == self._sequence else 0)
            parts.append(_HEADER.pack(_HEADER.size + len(message.body), message.type, flags, sequence, 0))
            parts.append(message.body)
        self._socket.send(b"".join(parts))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, sequence number and body of each message of one datagram."""
        size = self._socket.recv_into(self._datagram)
        offset = 0
        while offset < size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(self._datagram, offset)
            yield kind, flags, sequence, bytes(self._datagram[offset + _HEADER.size : offset + length])
            offset += (length + 3) & ~3  # NLMSG_ALIGN


def _route_body(route: Route) -> bytes:
    head = _RTMSG.pack(
        socket.AF_INET,
        route.destination.prefixlen,
        0,
        route.tos,
        RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        route.type,
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    parts = [head, _attribute(_RTA_DST, route.destination.network_address.packed)]
    if route.oif:
        parts.append(_attribute(_RTA_OIF, _U32.pack(route.oif)))
    if route.gateway is not None:
        parts.append(_attribute(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(_attribute(_RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(_attribute(_RTA_PRIORITY, _U32.pack(route.metric)))
    return b"".join(parts)


def parse_route(body: bytes) -> Route:
    """Understand what the kernel says of a route."""
    _, prefix_len, _, tos, _, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    found = dict(_attributes(body, _RTMSG.size))
    gateway, source = found.get(_RTA_GATEWAY), found.get(_RTA_PREFSRC)
    return Route(
        destination=IPv4Network((found.get(_RTA_DST, bytes(4)), prefix_len)),  # the default route has no RTA_DST
        gateway=IPv4Address(gateway) if gateway else None,
        oif=_number(found.get(_RTA_OIF)),
        source=IPv4Address(source) if source else None,
        onlink=bool(flags & _RTNH_F_ONLINK),
        protocol=protocol,
        metric=_number(found.get(_RTA_PRIORITY)),
        tos=tos,
        scope=scope,
        type=kind,
    )


def _address_body(index: int, address: IPv4Address, label: str) -> bytes:
    head = _IFADDRMSG.pack(socket.AF_INET, 32, 0, _RT_SCOPE_HOST, index)
    same = _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
    return head + same + _attribute(_IFA_LABEL, label.encode() + b"\0")


def _parse_address(body: bytes) -> Address:
    _, prefix_len, _, _, index = _IFADDRMSG.unpack_from(body)
    found = dict(_attributes(body, _IFADDRMSG.size))
    _, valid_s, _, _ = _CACHEINFO.unpack_from(found[_IFA_CACHEINFO])
    # On a point-to-point device IFA_ADDRESS is the far end.
    address = IPv4Address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
    return Address(index, address, prefix_len, _text(found.get(_IFA_LABEL, b"")), valid_s)


def _refusal(flags: int, body: bytes) -> Refusal | None:
    """Return what a struct nlmsgerr says, ``None`` if that is an acknowledgement."""
    (code,) = _ERROR.unpack_from(body)
    if code == 0:
        return None
    words = dict(_attributes(body, _ERROR.size)).get(_NLMSGERR_ATTR_MSG) if flags & _NLM_F_ACK_TLVS else None
    return Refusal(-code, _text(words) if words else os.strerror(-code))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset < len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3  # RTA_ALIGN


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(_U32.unpack(value)[0])


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
