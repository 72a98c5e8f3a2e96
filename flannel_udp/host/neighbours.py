"""Who is behind which address: hosts on a link that answered, and entries that are set. Blocks, as `rtnetlink`.

The kernel's neighbours (IP address → MAC) and a VXLAN device's forwarding entries (MAC → host) are messages of one
shape, struct ndmsg. A `Table` is one of both; its entries are bytes, as they are on the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from flannel_udp.host.family import IPV4, IPV6, Family, family_of
from flannel_udp.host.rtnetlink import CLOCK_TICKS, Message, Rtnetlink, attribute, attributes
from flannel_udp.model import Address

NUD_INCOMPLETE, NUD_REACHABLE, NUD_DELAY, NUD_PROBE, NUD_FAILED = 0x01, 0x02, 0x08, 0x10, 0x20
"""States of a neighbour (linux/neighbour.h)."""
_NUD_PERMANENT = 0x80

RTM_NEWNEIGH, RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_NTF_SELF = 0x02  # the device's own table, not that of a bridge that it is a port of
_AF_BRIDGE = 7
_NDA_DST, _NDA_LLADDR, _NDA_CACHEINFO, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_NH_ID = 1, 2, 3, 6, 7, 8, 13
_ELSEWHERE = frozenset({_NDA_PORT, _NDA_VNI, _NDA_IFINDEX, _NDA_NH_ID})
_FIRST_USE = 2  # ticks within which an entry's use is that of having been set

_NDMSG = struct.Struct("=B3xiHBx")  # struct ndmsg: family, index, state, flags and (not read) type
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type
_CACHEINFO = struct.Struct("=IIII")  # struct nda_cacheinfo: how long ago it was confirmed, used, updated; references
_U32 = struct.Struct("=I")


class Neighbour(NamedTuple):
    """What the kernel knows of a host on a link (linux/neighbour.h)."""

    address: Address
    state: int
    """NUD_REACHABLE and the like."""
    confirmed_ago_s: float
    """Since it has answered ARP, or neighbour discovery."""
    used_ago_s: float
    """Since a packet was sent to it for which the kernel had to ask, or would have had to soon."""


def list_neighbours(netlink: Rtnetlink, index: int, version: int = 4) -> list[Neighbour]:
    """Return the hosts of one IP version on an interface's link that packets went to or came from. Raises `OSError`."""
    return [_parse(body) for body in _dump(netlink, family_of(version).af, index)]


def _dump(netlink: Rtnetlink, family: int, index: int) -> Iterator[bytes]:
    # A kernel without the filter (before 4.20) sends those of all interfaces.
    return (body for body in _dump_all(netlink, family, index) if _NDMSG.unpack_from(body)[:2] == (family, index))


def _dump_all(netlink: Rtnetlink, family: int, index: int) -> Iterator[bytes]:
    head = _NDMSG.pack(family, 0, 0, 0) + attribute(_NDA_IFINDEX, _U32.pack(index))
    return netlink.dump(_RTM_GETNEIGH, head, RTM_NEWNEIGH)


def _parse(body: bytes) -> Neighbour:
    found = dict(attributes(body, _NDMSG.size))
    confirmed, used, _, _ = _CACHEINFO.unpack_from(found[_NDA_CACHEINFO])
    state = _NDMSG.unpack_from(body)[2]
    return Neighbour(ip_address(found[_NDA_DST]), state, confirmed / CLOCK_TICKS, used / CLOCK_TICKS)


# Entries that are set


@dataclass(frozen=True, slots=True)
class Table:
    """A table of entries that stay until somebody removes them (NUD_PERMANENT): key → value."""

    name: str
    """As people call an entry of it."""
    family: int
    flags: int
    key: int
    value: int
    lasting_bytes: int
    """The length of a message's body as far as key and value, which come first: what is the same each time."""
    usual_bytes: int
    """The length of a message's body about an entry with key and value and nothing beside."""


def _neighbours_of(family: Family) -> Table:
    lasting = _NDMSG.size + (4 + family.n_bits // 8) + (4 + 8)  # with both attributes, address and MAC
    return Table("neighbour", family.af, 0, _NDA_DST, _NDA_LLADDR, lasting, lasting + (4 + 4) + (4 + 16))


def _forwarding_to(family: Family) -> Table:
    lasting = _NDMSG.size + (4 + 8) + (4 + family.n_bits // 8)
    return Table("FDB entry", _AF_BRIDGE, _NTF_SELF, _NDA_LLADDR, _NDA_DST, lasting, lasting + (4 + 16))


NEIGHBOURS: Mapping[int, Table] = {4: _neighbours_of(IPV4), 6: _neighbours_of(IPV6)}
"""IP address → MAC, by IP version: ``ip neighbour``. NDA_PROBES and NDA_CACHEINFO follow."""
FORWARDING: Mapping[int, Table] = {4: _forwarding_to(IPV4), 6: _forwarding_to(IPV6)}
"""MAC → address of the host that has it, by its IP version: ``bridge fdb``. NDA_CACHEINFO follows."""


def set_entry(table: Table, index: int, key: bytes, value: bytes) -> Message:
    """Set an entry on a device, whatever it said before."""
    body = _NDMSG.pack(table.family, index, _NUD_PERMANENT, table.flags)
    body += attribute(table.key, key) + attribute(table.value, value)
    return Message(RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body)


def delete_entry(table: Table, index: int, key: bytes) -> Message:
    """Remove an entry; refused (ENOENT) where there is none."""
    return Message(RTM_DELNEIGH, 0, _NDMSG.pack(table.family, index, 0, table.flags) + attribute(table.key, key))


class TableEntry(NamedTuple):
    """An entry, as a message tells of it."""

    key: bytes
    value: bytes
    stays: bool
    """Whether it was set, and not learned."""


class TableReader:
    """Reads one table of a device again and again: what is as it was the last time is not understood anew."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[bytes, TableEntry] = {}  # by what of a message does not change by itself

    def read(self, netlink: Rtnetlink, index: int) -> dict[bytes, bytes]:
        """Return a device's entries that are set. Raises `OSError`.

        Where one leads elsewhere than to its value alone (another port, say) the value is empty. Those for broadcasts
        and unknown hosts are left out: they are no host's.
        """
        table, known, seen = self._table, self._known, {}
        found: list[TableEntry] = []
        for body in _dump_all(netlink, table.family, index):
            # Key and value come first, and each is of one length; times, which differ each time, come last.
            lasting = body[: table.lasting_bytes]
            usual = len(body) == table.usual_bytes
            entry = known.get(lasting) if usual else None
            if entry is None and is_about(table, index, body):
                entry = parse_entry(table, body)
            if entry is not None:
                found.append(entry)
                if usual:
                    seen[lasting] = entry
        self._known = seen
        return {entry.key: entry.value for entry in found if entry.stays}


def is_about(table: Table, index: int, body: bytes) -> bool:
    """Tell whether a message is about an entry of this table on this device. Raises `struct.error`."""
    family, on, _, _ = _NDMSG.unpack_from(body)
    return (family, on) == (table.family, index)


def parse_entry(table: Table, body: bytes) -> TableEntry | None:
    """Understand a message, ``None`` where it is no host's entry. Raises `struct.error`.

    Not by `attributes`: there are ten thousand of them, and what is to be known comes first.
    """
    key = value = b""
    offset = _NDMSG.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if kind == table.key:
            key = body[offset + _ATTRIBUTE.size : offset + length]
        elif kind == table.value:
            value = body[offset + _ATTRIBUTE.size : offset + length]
        elif kind in _ELSEWHERE:
            value = b""
        elif kind == _NDA_CACHEINFO or length < _ATTRIBUTE.size:
            break
        offset += (length + 3) & ~3  # RTA_ALIGN
    if not key or (table.family == _AF_BRIDGE and (key[0] & 1 or not any(key))):
        return None
    return TableEntry(key, value, bool(_NDMSG.unpack_from(body)[2] & _NUD_PERMANENT))


def hosts_in_use(netlink: Rtnetlink, index: int, within_s: float) -> set[int]:
    """Return the hosts, as numbers, to which a VXLAN device sent a packet so short a time ago. Raises `OSError`.

    A forwarding entry that was set just now is no packet, although the kernel notes that as its first use.
    """
    within = round(within_s * CLOCK_TICKS)
    found = set()
    for body in _dump(netlink, _AF_BRIDGE, index):
        at = len(body) - _CACHEINFO.size  # it comes last: there may be ten thousand, of which few are in use
        if (
            at < _NDMSG.size + _ATTRIBUTE.size
            or _ATTRIBUTE.unpack_from(body, at - _ATTRIBUTE.size)[1] != _NDA_CACHEINFO
        ):
            continue
        _, used, updated, _ = _CACHEINFO.unpack_from(body, at)
        if used <= within and used + _FIRST_USE < updated:
            entry = parse_entry(FORWARDING[4], body)  # a value of either version
            if entry is not None and entry.value:
                found.add(int.from_bytes(entry.value, "big"))
    return found
