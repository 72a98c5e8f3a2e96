"""The channel to the kernel's rtnetlink, many messages a system call, and routes of either family as its messages.

A library that builds and parses each message in objects of its own holds the GIL, and so the event loop, for seconds
where there are 10,000 routes. Here a message is one `struct` and a system call carries a hundred, so that most of the
time passes inside the kernel, without the GIL. Questions about routes are in `route_query`, devices and addresses in
`links`. How it goes:

1. a caller makes messages, which are values: `add_route`, `append_route`, `replace_route`, `delete_route`
2. `Rtnetlink.apply` sends them in batches; only the last of a batch asks for an acknowledgement (NLM_F_ACK). A refusal
   is always answered and bears its message's sequence number; where none came before the last answer, all was done
3. dumps are filtered by the kernel (NETLINK_GET_STRICT_CHK, Linux 4.20); of what an older kernel sends beyond that,
   only two bytes are looked at

Everything blocks: call it through ``asyncio.to_thread``. Numbers are in host byte order, addresses in network order
(rtnetlink(7)); constants are those of linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h and linux/if_link.h.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_by_af, family_of
from flannel_udp.model import Address, Prefix

RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST, RTN_LOCAL = 1, 2
RTPROT_KERNEL, RTPROT_BOOT, RTPROT_RA = 2, 3, 9

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10  # a refusal does not repeat the message that it refuses
_NETLINK_EXT_ACK = 11  # but says why in words
_NETLINK_GET_STRICT_CHK = 12

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1

RTM_NEWROUTE, _RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
_RTNH_F_ONLINK = 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_CACHEINFO, _RTA_TABLE, _RTA_EXPIRES = 12, 15, 23

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type
_ERROR = struct.Struct("=i16x")  # struct nlmsgerr: negative errno, the header of the refused message
_EXPIRES = struct.Struct("=8xi20x")  # of a struct rta_cacheinfo: for how long, in clock ticks; 0: for good
_U32 = struct.Struct("=I")

CLOCK_TICKS = 100
"""USER_HZ: what the kernel tells times in, on every architecture of today."""

_DATAGRAM_BYTES = 65_536  # netlink(7): the kernel puts no more than 32 KiB into a datagram

# The kernel answers a whole batch before we can read, and what does not fit into the socket's receive buffer is lost
# (ENOBUFS). Of the usual 208 KiB a refusal takes 0.9 on Linux 6.18; what answers a question can be larger elsewhere.
_MESSAGES_A_SEND = 100
_QUESTIONS_A_SEND = 20


@dataclass(frozen=True, slots=True)
class Route:
    """A route, made by us or found. One with several next hops has neither gateway nor `oif`."""

    destination: Prefix
    gateway: Address | None
    oif: int
    """The interface's index."""
    source: Address | None = None
    """What address the host's own packets get (RTA_PREFSRC)."""
    onlink: bool = False
    """The gateway is a neighbour though no route of the interface says so."""
    protocol: int = 0
    """Who made it, RTPROT_…"""
    metric: int = 0
    tos: int = 0
    scope: int = RT_SCOPE_UNIVERSE
    type: int = RTN_UNICAST
    table: int = RT_TABLE_MAIN
    """Ours are all in the main one."""
    ends_s: float | None = None
    """When the kernel uses it no more, by CLOCK_BOOTTIME; of IPv6 only. ``None``: it stays."""


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
    return Message(RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, _route_body(route))


def append_route(route: Route) -> Message:
    """Put a route behind those to the same destination, which stay in force; refused (EEXIST) if it is there already.

    Then `delete_route` of the former one changes a route without a gap. NLM_F_REPLACE would do so in one message, but
    to the first route that has the destination, whoever made it.
    """
    return Message(RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_APPEND, _route_body(route))


def replace_route(route: Route) -> Message:
    """Put a route in place of the first one to the same destination, of the same TOS and metric, or where none is.

    IPv4: where that first one is this very route nothing changes; refused (EEXIST) if it is there behind another. IPv6:
    of that first one all next hops are replaced, and its life.
    """
    return Message(RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, _route_body(route))


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
        raise FlannelError(f"{doing}: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.EPERM:
            return "needs CAP_NET_ADMIN in this network namespace: run as root or grant the capability"
        case errno.ENODEV:
            return "the device is gone: something removed it while it was set up"
        case _:
            return error.strerror or str(error)


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
        # EACCES is no matter of privileges: a device, say, on which IPv6 is disabled.
        if any(refusal and refusal.code == errno.EPERM for refusal in refusals):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return refusals

    def do(self, message: Message, *, fine: Collection[int] = ()) -> None:
        """Have the kernel do this; raises `OSError` in its words where it refuses, but for these `errno` values."""
        (refusal,) = self.apply([message])
        if refusal and refusal.code not in fine:
            raise OSError(refusal.code, refusal.why)

    def ask(self, questions: Sequence[Message], answer: int) -> list[tuple[int, bytes | Refusal]]:
        """Return the body of each answer of this message type, or the refusal, with the index of its question."""
        found: list[tuple[int, bytes | Refusal]] = []
        for index, kind, flags, body in self._exchange(questions, _QUESTIONS_A_SEND):
            if kind == answer:
                found.append((index, body))
            elif kind == _NLMSG_ERROR and (refusal := _refusal(flags, body)):
                found.append((index, refusal))
        return found

    def ask_one(self, question: Message, answer: int) -> bytes | None:
        """Return the body of the answer of this message type, ``None`` where the kernel refuses."""
        return next((body for _, body in self.ask([question], answer) if isinstance(body, bytes)), None)

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

    def dump(self, request: int, head: bytes, wanted: int) -> Iterator[bytes]:
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
    head = RTMSG.pack(
        family_of(route.destination).af,
        route.destination.prefixlen,
        0,
        route.tos,
        RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        route.type,
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    parts = [head, attribute(_RTA_DST, route.destination.network_address.packed)]
    if route.oif:
        parts.append(attribute(_RTA_OIF, _U32.pack(route.oif)))
    if route.gateway is not None:
        parts.append(attribute(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(attribute(_RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(attribute(_RTA_PRIORITY, _U32.pack(route.metric)))
    if route.ends_s is not None:
        left_s = route.ends_s - time.clock_gettime(time.CLOCK_BOOTTIME)
        parts.append(attribute(_RTA_EXPIRES, _U32.pack(max(1, math.floor(left_s)))))
    return b"".join(parts)


def split_life(body: bytes) -> tuple[bytes, float | None]:
    """Return what of a message about a route is the same each time, and for how many seconds the route stays.

    ``None``: it stays for good.
    """
    offset = RTMSG.size
    while offset < len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if kind == _RTA_CACHEINFO:
            (ticks,) = _EXPIRES.unpack_from(body, offset + _ATTRIBUTE.size)
            return body[:offset] + body[offset + length :], ticks / CLOCK_TICKS if ticks else None
        offset += (length + 3) & ~3  # RTA_ALIGN
    return body, None


def parse_route(body: bytes, ends_s: float | None = None) -> Route:
    """Understand what the kernel says of a route; `ends_s`, as in `Route`, comes from `split_life`."""
    af, prefix_len, _, tos, table, protocol, scope, kind, flags = RTMSG.unpack_from(body)
    found, family = dict(attributes(body, RTMSG.size)), family_by_af(af)
    return Route(
        destination=family.prefix(found.get(_RTA_DST), prefix_len),
        gateway=family.address(found.get(_RTA_GATEWAY)),
        oif=number(found.get(_RTA_OIF)),
        source=family.address(found.get(_RTA_PREFSRC)),
        onlink=bool(flags & _RTNH_F_ONLINK),
        protocol=protocol,
        metric=number(found.get(_RTA_PRIORITY)),
        tos=tos,
        scope=scope,
        type=kind,
        table=number(found.get(_RTA_TABLE)) or table,  # the head has room for numbers up to 255
        ends_s=ends_s,
    )


def _refusal(flags: int, body: bytes) -> Refusal | None:
    """Return what a struct nlmsgerr says, ``None`` if that is an acknowledgement."""
    (code,) = _ERROR.unpack_from(body)
    if code == 0:
        return None
    words = dict(attributes(body, _ERROR.size)).get(_NLMSGERR_ATTR_MSG) if flags & _NLM_F_ACK_TLVS else None
    return Refusal(-code, text(words) if words else os.strerror(-code))


def attribute(kind: int, value: bytes) -> bytes:
    """Return a struct rtattr with its value and padding."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute of a message's body; its fixed part has `offset` bytes."""
    while offset < len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        yield kind, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3  # RTA_ALIGN


def number(value: bytes | None) -> int:
    """Return a 32-bit attribute's value, 0 where it is missing."""
    return 0 if value is None else int(_U32.unpack(value)[0])


def text(value: bytes) -> str:
    """Return a string attribute's value."""
    return value.rstrip(b"\0").decode(errors="replace")
