"""Questions about the kernel's routes that cost the same on a host with a whole Internet's routes.

- `look_up`: which entry of which table would the kernel take for a packet? For thousands of packets at a time.
- `stream_routes`: the routes of one table, protocol, device or kind; the kernel leaves out all others
  (NETLINK_GET_STRICT_CHK, Linux 4.20) and hands over 32 KiB at a time, so that nothing is ever held as a whole.
- `stream_default_routes`: those to everywhere of the main table; of IPv4's the kernel lists them first, and the rest is
  never read.

All of them work on an `Rtnetlink` and block, some 3 µs a question and 1 µs a streamed route: call them through
``asyncio.to_thread``. They raise `OSError`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flannel_udp.host.family import family_by_af, family_of
from flannel_udp.host.rtnetlink import (
    RT_TABLE_MAIN,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    Message,
    Refusal,
    Route,
    Rtnetlink,
    attribute,
    attributes,
    parse_route,
)
from flannel_udp.model import Address, Prefix

_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_MULTIPATH, _RTA_TABLE, _RTA_MARK = 1, 2, 3, 4, 9, 15, 16
_RTN_LOCAL = 2

_LOOKUP_TABLE = {4: _RTM_F_LOOKUP_TABLE, 6: 0}
"""By IP version: what has the answer name the table; IPv6 always does, and refuses the flag."""

_U32 = struct.Struct("=I")
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight - 1, interface index


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet whose way is asked for: one of the host's own, or with `iif` one that came in by that interface."""

    to: Address
    source: Address | None = None
    """``None``: not chosen yet. With `iif` there has to be one, which the interface takes (rp_filter, say)."""
    iif: int = 0
    """Index of the interface by which it comes in; 0: it is made on this host."""
    mark: int = 0
    tos: int = 0


def look_up(netlink: Rtnetlink, packets: Sequence[Packet]) -> list[Route | Refusal]:
    """Return for each packet the entry that the kernel takes for it, of whatever table.

    A `Refusal` where no packet would go: ENETUNREACH no route, EHOSTUNREACH an ``unreachable`` one, EACCES a
    ``prohibit`` one, EINVAL a ``blackhole`` one, or a source that the interface does not take (also EXDEV); ENODEV
    where an interface is gone.
    """
    answers = _answers(netlink, [_question(packet) for packet in packets])
    return [answer if isinstance(answer, Refusal) else parse_route(answer) for answer in answers]


def _answers(netlink: Rtnetlink, questions: Sequence[Message]) -> list[bytes | Refusal]:
    found: list[bytes | Refusal] = [_NO_ANSWER] * len(questions)
    for index, answer in netlink.ask(questions, RTM_NEWROUTE):
        found[index] = answer
    return found


_NO_ANSWER = Refusal(0, "no answer")


def _question(packet: Packet) -> Message:
    n_bits = packet.to.max_prefixlen
    source_len = 0 if packet.source is None else n_bits
    flags = _RTM_F_FIB_MATCH | _LOOKUP_TABLE[packet.to.version]
    parts = [
        RTMSG.pack(family_of(packet.to).af, n_bits, source_len, packet.tos, 0, 0, 0, 0, flags),
        attribute(_RTA_DST, packet.to.packed),
    ]
    if packet.source is not None:
        parts.append(attribute(_RTA_SRC, packet.source.packed))
    for kind, number in ((_RTA_IIF, packet.iif), (_RTA_MARK, packet.mark)):
        if number:
            parts.append(attribute(kind, _U32.pack(number)))
    return Message(RTM_GETROUTE, 0, b"".join(parts))


def find_way(netlink: Rtnetlink, to: Address) -> Route | None:
    """Return how the host's own packets get there, with the source that the kernel chooses; ``None``: they do not.

    Unlike `look_up` it tells the packet's way, not the table's entry: of several next hops one.
    """
    head = RTMSG.pack(family_of(to).af, to.max_prefixlen, 0, 0, 0, 0, 0, 0, _LOOKUP_TABLE[to.version])
    question = Message(RTM_GETROUTE, 0, head + attribute(_RTA_DST, to.packed))
    for _, answer in netlink.ask([question], RTM_NEWROUTE):
        return None if isinstance(answer, Refusal) else parse_route(answer)
    return None


def is_local(netlink: Rtnetlink, address: Address) -> bool:
    """Tell whether packets to this address are for the host itself, no broadcasts nor on their way elsewhere."""
    (answer,) = look_up(netlink, [Packet(address)])
    return isinstance(answer, Route) and answer.type == _RTN_LOCAL


def routes_in_force(netlink: Rtnetlink, destinations: Sequence[Prefix]) -> list[Route | None]:
    """Return for each destination the main table's route to exactly it that is in force.

    ``None`` where the kernel tells of another one: there is none, it is hidden by another table or by a route to a part
    of the destination, or it refuses packets, for which the kernel answers with an error.
    """
    answers = look_up(netlink, [Packet(destination.network_address) for destination in destinations])
    return [
        answer
        if isinstance(answer, Route) and (answer.table, answer.destination) == (RT_TABLE_MAIN, destination)
        else None
        for destination, answer in zip(destinations, answers, strict=True)
    ]


def protocols_in_force(netlink: Rtnetlink, destinations: Sequence[Prefix]) -> list[int | None]:
    """Return who made each of the routes that `routes_in_force` would tell of, for a quarter of its price."""
    answers = _answers(netlink, [_question(Packet(destination.network_address)) for destination in destinations])
    return [
        answer[5] if isinstance(answer, bytes) and _is_main_route_to(answer, destination) else None
        for destination, answer in zip(destinations, answers, strict=True)
    ]


def _is_main_route_to(body: bytes, destination: Prefix) -> bool:
    if body[1] != destination.prefixlen:
        return False
    found = dict(attributes(body, RTMSG.size))
    table = int(_U32.unpack(found[_RTA_TABLE])[0]) if _RTA_TABLE in found else body[4]
    return table == RT_TABLE_MAIN and found.get(_RTA_DST) == destination.network_address.packed


def stream_routes(
    netlink: Rtnetlink, *, version: int = 4, table: int = RT_TABLE_MAIN, protocol: int = 0, oif: int = 0, kind: int = 0
) -> Iterator[bytes]:
    """Yield the bodies of a table's routes of one IP version, by destination, and there in the order of being tried.

    For `parse_route`; the fixed part is a struct rtmsg, of which `body[1]` is the prefix length, `body[5]` the
    protocol, `body[7]` the kind (RTN_…). Routes of which one of several next hops is `oif` are among those of `oif`.
    0: any. One that moves while the table is read may come twice. Read it to its end, or ask the same `netlink` no
    more.
    """
    af = family_of(version).af
    head = RTMSG.pack(af, 0, 0, 0, table if table < 256 else 0, protocol, 0, kind, 0)
    head += attribute(_RTA_TABLE, _U32.pack(table))
    if oif:
        head += attribute(_RTA_OIF, _U32.pack(oif))
    try:
        for body in netlink.dump(RTM_GETROUTE, head, RTM_NEWROUTE):
            # A kernel without the filter sends everything, one without IPv6 the routes of IPv4.
            if (table < 256 and body[4] != table) or protocol not in (0, body[5]) or kind not in (0, body[7]):
                continue
            if body[0] == af and (not (oif or table > 255) or _is_of(body, table, oif)):
                yield body
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # nobody has made this table yet; the interface is gone
            raise


def _is_of(body: bytes, table: int, oif: int) -> bool:
    if oif and oif not in next_hop_devices(body):
        return False
    return parse_route(body).table == table


def stream_default_routes(netlink: Rtnetlink, version: int = 4) -> Iterator[bytes]:
    """Yield the bodies of the main table's default routes of one IP version, the one that is tried first first.

    The kernel lists IPv4's by ascending address: what comes with another one than 0.0.0.0 is behind them, and is not
    read. IPv6's lists a prefix behind its parts, the default routes last. Ask the same `netlink` no more.
    """
    for body in stream_routes(netlink, version=version):
        network, prefix_len = destination_of(body)
        if prefix_len == 0:
            yield body
        elif version == 4 and any(network):
            return


def destination_of(body: bytes) -> tuple[bytes, int]:
    """Return where a route leads, as the packed network and its prefix length, for a fifth of `parse_route`'s price."""
    for kind, value in attributes(body, RTMSG.size):
        if kind == _RTA_DST:
            return value, body[1]
    return bytes(family_by_af(body[0]).n_bits // 8), body[1]  # the default route has no RTA_DST


def next_hop_devices(body: bytes) -> list[int]:
    """Return the indices of the interfaces by which a route leads, one a next hop; none for one that refuses."""
    found = dict(attributes(body, RTMSG.size))
    if _RTA_OIF in found:
        return [int(_U32.unpack(found[_RTA_OIF])[0])]
    hops, offset, devices = found.get(_RTA_MULTIPATH, b""), 0, []
    while offset + _NEXT_HOP.size <= len(hops):
        length, _, _, index = _NEXT_HOP.unpack_from(hops, offset)
        devices.append(index)
        offset += max((length + 3) & ~3, _NEXT_HOP.size)  # RTNH_ALIGN
    return devices
