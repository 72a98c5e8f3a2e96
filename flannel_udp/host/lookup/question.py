"""Where would the kernel send this packet? Thousands of such questions by raw rtnetlink (RTM_GETROUTE).

The kernel answers with the entry of the table that it would use (RTM_F_FIB_MATCH, Linux 4.13), and says of which table
it is (RTM_F_LOOKUP_TABLE, which IPv6 refuses: it always says so); for an entry or a rule that refuses packets it
answers with an errno instead.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import NamedTuple, Protocol

from flannel_udp.host.family import IPV4, IPV6, Family, family_by_af
from flannel_udp.host.links import device
from flannel_udp.host.rtnetlink import RT_TABLE_MAIN, RTN_UNICAST, Message, Rtnetlink, attribute, attributes
from flannel_udp.model import Address, Prefix

# linux/rtnetlink.h
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = (
    1,
    2,
    3,
    4,
    5,
    6,
    9,
    15,
)
RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST = 2, 3, 4
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
RT_TABLE_DEFAULT, RT_TABLE_LOCAL = 253, 255

_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_RTNEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface index
_U32 = struct.Struct("=I")


def _head(family: Family, source_bits: int) -> bytes:
    # IPv6 always tells the table, and refuses the flag that asks for it.
    flags = _RTM_F_FIB_MATCH if family is IPV6 else _RTM_F_FIB_MATCH | _RTM_F_LOOKUP_TABLE
    return _RTMSG.pack(family.af, family.n_bits, source_bits, 0, 0, 0, 0, 0, flags)


_HOST_HEADS = {family.version: _head(family, 0) for family in (IPV4, IPV6)}
_FORWARD_HEADS = {family.version: _head(family, family.n_bits) for family in (IPV4, IPV6)}

REFUSALS = {
    errno.EINVAL: RTN_BLACKHOLE,
    errno.EHOSTUNREACH: RTN_UNREACHABLE,
    errno.EACCES: RTN_PROHIBIT,
    errno.ENETUNREACH: RTN_THROW,  # it ends its table's search, and nothing else leads there
}
"""What kind of entry the kernel answers with which errno (fib_props in net/ipv4/fib_semantics.c)."""

_TYPE_NAMES = {
    RTN_LOCAL: "local ",
    RTN_BROADCAST: "broadcast ",
    RTN_ANYCAST: "anycast ",
    RTN_BLACKHOLE: "blackhole ",
    RTN_UNREACHABLE: "unreachable ",
    RTN_PROHIBIT: "prohibit ",
    RTN_THROW: "throw ",
}
_PROTOCOL_NAMES = {2: "kernel", 3: "boot", 4: "static", 16: "dhcp", 186: "bgp", 188: "ospf"}
_TABLE_NAMES = {RT_TABLE_DEFAULT: "default", RT_TABLE_MAIN: "main", RT_TABLE_LOCAL: "local"}
"""As /etc/iproute2 has them; the others are shown as numbers, which `ip` takes as well."""


class Names(Protocol):
    """Names of devices by index."""

    def __getitem__(self, index: int, /) -> str:
        """Return one."""
        ...


class Way(NamedTuple):
    """Where packets for a peer have to go: out of the device of that index, to that gateway; ``None``: to any."""

    device: int
    gateway: Address | None = None


class Ways(NamedTuple):
    """How the kernel has to treat overlay packets: by which device they come and go, and through which gateways."""

    device: int
    """Its index: what other hosts send to our pods comes in through it."""
    gateways: Mapping[Prefix, Address | None]
    """The peers' subnets, and where packets for each have to go out of the device."""
    direct: Mapping[Prefix, Way] = MappingProxyType({})
    """Those of these subnets to which packets go, and from which they come, past that device."""

    def way(self, subnet: Prefix) -> Way:
        """Return where packets for a peer's subnet have to go."""
        return self.direct.get(subnet) or Way(self.device, self.gateways[subnet])

    @property
    def devices(self) -> set[int]:
        """All of them."""
        return {self.device, *(way.device for way in self.direct.values())}


class Question(NamedTuple):
    """A packet: one of the host's own, mostly without a source yet, or one that came in by a device (its index)."""

    destination: Address
    source: Address | None = None
    iif: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A route of some table, as far as it tells where packets go."""

    destination: Prefix
    table: int
    type: int
    protocol: int
    metric: int
    tos: int
    hops: tuple[Way, ...]

    def describe(self, names: Names) -> str:
        """Return it as `ip route` shows it, and its table where that is not main."""
        protocol = f" proto {_PROTOCOL_NAMES.get(self.protocol, self.protocol)}" if self.protocol else ""
        return f"{self.spelled(names)}{protocol}"

    def spelled(self, names: Names) -> str:
        """Return what `ip route del` takes."""
        where = "default" if self.destination.prefixlen == 0 else str(self.destination)
        if self.destination.prefixlen == self.destination.max_prefixlen:
            where = str(self.destination.network_address)
        hop = " nexthop" if len(self.hops) > 1 else ""
        via = "".join(
            f"{hop}{f' via {way.gateway}' if way.gateway else ''}{f' dev {names[way.device]}' if way.device else ''}"
            for way in self.hops
            if self.type not in REFUSALS.values()
        )
        tos = f" tos {self.tos:#x}" if self.tos else ""
        # Until somebody adds a rule the kernel keeps the tables local and main in one, and calls it either.
        usual = self.table in (RT_TABLE_MAIN, RT_TABLE_LOCAL)
        table = "" if usual else f" table {table_name(self.table)}"
        metric = f" metric {self.metric}" if self.metric else ""
        return f"{_TYPE_NAMES.get(self.type, '')}{where}{tos}{via}{table}{metric}"


Answer = Entry | int
"""The entry that the kernel would use, or the errno with which it refuses the packet."""


class DeviceNames:
    """The names of devices by index, each asked for once."""

    def __init__(self, netlink: Rtnetlink) -> None:
        self._netlink = netlink
        self._known: dict[int, str] = {}

    def __getitem__(self, index: int) -> str:
        """Return the device's name, its index if it has gone meanwhile."""
        if index not in self._known:
            link = device(self._netlink, index)
            self._known[index] = link.name if link else f"if{index}"
        return self._known[index]


def table_name(table: int) -> str:
    """Return what `ip` calls a table."""
    return _TABLE_NAMES.get(table, str(table))


def ask(netlink: Rtnetlink, questions: Sequence[Question]) -> list[bytes | int]:
    """Return the answers as the kernel gives them, for `leads` and `understand`: most are only compared."""
    return answers(netlink, [_message(question) for question in questions], _RTM_NEWROUTE)


def answers(netlink: Rtnetlink, questions: Sequence[Message], answer: int) -> list[bytes | int]:
    """Return the body of the answer to each question, of this message type, or the errno that comes instead."""
    found: list[bytes | int] = [0] * len(questions)
    for index, body in netlink.ask(questions, answer):
        found[index] = body if isinstance(body, bytes) else body.code
    return found


def leads(answer: bytes | int, way: Way) -> bool:
    """Tell whether the kernel sends the packet there, by all of the entry's next hops."""
    if isinstance(answer, int):
        return False
    hops = tuple(_hops(dict(attributes(answer, _RTMSG.size))))
    return answer[7] == RTN_UNICAST and bool(hops) and all(_is(hop, way) for hop in hops)


def _is(hop: Way, way: Way) -> bool:
    return hop.device == way.device and way.gateway in (None, hop.gateway)


def understand(answer: bytes | int) -> Answer:
    """Return the entry that an answer, or a message of a dump, is about; an errno stays one."""
    if isinstance(answer, int):
        return answer
    af, prefix_len, _, tos, table, protocol, _, kind, _ = _RTMSG.unpack_from(answer)
    found = dict(attributes(answer, _RTMSG.size))
    return Entry(
        family_by_af(af).prefix(found.get(_RTA_DST), prefix_len),
        _U32.unpack(found[_RTA_TABLE])[0] if _RTA_TABLE in found else table,
        kind,
        protocol,
        _U32.unpack(found[_RTA_PRIORITY])[0] if _RTA_PRIORITY in found else 0,
        tos,
        tuple(_hops(found)),
    )


def _message(question: Question) -> Message:
    destination = attribute(_RTA_DST, question.destination.packed)
    if question.source is None:
        return Message(_RTM_GETROUTE, 0, _HOST_HEADS[question.destination.version] + destination)
    source = attribute(_RTA_SRC, question.source.packed)
    iif = attribute(_RTA_IIF, _U32.pack(question.iif))
    return Message(_RTM_GETROUTE, 0, _FORWARD_HEADS[question.destination.version] + destination + source + iif)


def _hops(found: dict[int, bytes]) -> Iterator[Way]:
    if (several := found.get(_RTA_MULTIPATH)) is None:
        if (device := found.get(_RTA_OIF)) is not None:
            yield Way(_U32.unpack(device)[0], _gateway(found))
        return
    offset = 0
    while offset + _RTNEXTHOP.size <= len(several):
        length, _, _, device_index = _RTNEXTHOP.unpack_from(several, offset)
        of_hop = dict(attributes(several[: offset + length], offset + _RTNEXTHOP.size))
        yield Way(device_index, _gateway(of_hop))
        offset += (length + 3) & ~3  # RTNH_ALIGN


def _gateway(found: dict[int, bytes]) -> Address | None:
    gateway = found.get(_RTA_GATEWAY)
    return ip_address(gateway) if gateway else None
