"""Network devices and their addresses, by raw rtnetlink: questions that cost what their answer holds, and changes.

A device is asked for by its index or name, and its addresses by its index: 5,000 devices and 10,000 addresses of others
cost nothing. Where all have to be seen they are streamed, some 20 µs a device and 5 µs an address. Everything blocks
and raises `OSError`; messages are for `Rtnetlink.do`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_interface

from flannel_udp import model
from flannel_udp.host.advertisements import may_refuse
from flannel_udp.host.family import family_of
from flannel_udp.host.repair import LinkState
from flannel_udp.host.rtnetlink import Message, Rtnetlink, attribute, attributes, number, text

# linux/rtnetlink.h, linux/if.h, linux/if_link.h, linux/if_addr.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_IFF_UP, _IFF_LOOPBACK, _IFF_NOARP = 0x1, 0x8, 0x80
_IFLA_ADDRESS, _MAC_BYTES = 1, 6
_IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_LINKINFO, _IFLA_AF_SPEC = 3, 4, 13, 18, 26
_IFLA_MASTER, _IFLA_IFALIAS, _IFLA_EXT_MASK, _IFLA_CARRIER, _IFLA_PROTO_DOWN = 10, 20, 29, 33, 39
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_NLA_F_NESTED = 0x8000  # linux/netlink.h: newer nests say that they are some
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_INET6_CONF, _IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 2, 8, 1
_NONE = bytes((_IN6_ADDR_GEN_MODE_NONE,))
_ACCEPT_RA = slice(12, 16)  # linux/ipv6.h: of IFLA_INET6_CONF the fourth number, DEVCONF_ACCEPT_RA
_RTEXT_FILTER_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 3, 6, 8, 11
_IFAPROT_KERNEL_RA, _IFAPROT_KERNEL_LL = 2, 3
_IFA_F_NODAD, _IFA_F_STABLE_PRIVACY = 0x02, 0x800
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x04, 0x08, 0x40
_RT_SCOPE_LINK = 253
RT_SCOPE_UNIVERSE, RT_SCOPE_HOST = 0, 254

_IFINFOMSG = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change mask
_IFADDRMSG = struct.Struct("=4BI")  # family, prefixlen, flags, scope; index
_CACHEINFO = struct.Struct("=IIII")  # struct ifa_cacheinfo: preferred and valid lifetimes (s), two times of changes
_U32 = struct.Struct("=I")

MARK = "flannel-udp"
"""The alias of a tunnel device of ours, which is ours to change and to remove, and no way to other hosts."""
FOREVER_S = 0xFFFFFFFF
"""INFINITY_LIFE_TIME: an address that stays."""
LOOPBACK_INDEX = 1
"""LOOPBACK_IFINDEX: of `lo` in every network namespace."""
CNI_BRIDGE = "cni0"
"""As flannel's CNI configuration has the pods' bridge called."""


@dataclass(frozen=True, slots=True)
class Device:
    """A network device, as it is now."""

    index: int
    name: str
    mtu: int
    """Bytes."""
    up: bool
    """Administratively."""
    carrier: bool
    """Whether the other end is there: a cable, or a process that holds the TUN open."""
    loopback: bool
    resolves: bool
    """Whether it has neighbours that are asked for by ARP; a tunnel has none."""
    master: int
    """Index of the bridge, say, that it is a port of; 0: of none."""
    kind: str
    """``vxlan``, ``veth``, ...; empty for hardware."""
    makes_ipv6_addresses: bool
    """Whether the kernel gives it an fe80:: address; told only by `device` and `device_named`."""
    mac: int = 0
    """Of an Ethernet device, the first byte on the wire is the highest; 0 for one that has none."""
    alias: str = ""
    """What somebody wrote on it (``ip link set DEVICE alias TEXT``)."""
    details: Mapping[int, bytes] = field(default_factory=dict)
    """What its kind tells of it, IFLA_INFO_DATA by attribute."""
    takes_advertisements: bool = False
    """Whether it may take routers' advertisements (accept_ra); told as the IPv6 addresses are."""
    altnames: tuple[str, ...] = ()
    """Its other names (``ip link property add dev DEVICE altname NAME``), since Linux 5.5."""

    @property
    def leads_out(self) -> bool:
        """Whether packets can leave by it: addresses of `lo` and of dummies (kube-ipvs0) are for this host alone."""
        return not (self.loopback or self.kind == "dummy")


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    """The interface's."""
    address: model.Address
    prefix_len: int
    label: str
    valid_s: int
    """Until the kernel removes it, rounded up to whole seconds; `FOREVER_S`: it stays."""
    far_end: model.Address
    """On a point-to-point interface the address of the other end; elsewhere `address` again."""
    scope: int
    """rtnetlink's: 0 global, 200 site, 253 link-local, 254 host."""
    flags: int
    """IFA_F_…"""

    @property
    def usable(self) -> bool:
        """Whether the kernel lets it be used: an IPv6 one not before it knows that nobody else has it (RFC 4862)."""
        waits = self.flags & (IFA_F_TENTATIVE | IFA_F_OPTIMISTIC) == IFA_F_TENTATIVE
        return self.address.version == 4 or not (waits or self.flags & IFA_F_DADFAILED)


# Devices


def device(netlink: Rtnetlink, index: int) -> Device | None:
    """Return the device of this index, ``None`` if there is none."""
    return _get(netlink, index, b"")


def device_named(netlink: Rtnetlink, name: str) -> Device | None:
    """Return the device of this name, ``None`` if there is none."""
    return _get(netlink, 0, attribute(_IFLA_IFNAME, name.encode() + b"\0"))


def _get(netlink: Rtnetlink, index: int, more: bytes) -> Device | None:
    question = Message(_RTM_GETLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + more)
    for _, answer in netlink.ask([question], _RTM_NEWLINK):
        return _parse_device(answer) if isinstance(answer, bytes) else None
    return None


def stream_devices(netlink: Rtnetlink, kind: str = "", master: int = 0) -> Iterator[Device]:
    """Yield every device, if given those of one kind, and the ports of the bridge, say, of this index.

    Read it to its end, or ask the same `netlink` no more.
    """
    head = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    head += attribute(_IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
    if kind:
        head += attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode()))
    if master:
        head += attribute(_IFLA_MASTER, _U32.pack(master))
    found = map(_parse_device, netlink.dump(_RTM_GETLINK, head, _RTM_NEWLINK))
    # A kernel that does not know the kind, or no such filter (before 4.20), sends all.
    return (item for item in found if kind in ("", item.kind) and master in (0, item.master))


def make_device(name: str, kind: str, details: Mapping[int, bytes], *, mtu: int, mac: int = 0) -> Message:
    """Make a device, which is down; refused (EEXIST) where the name is taken, (EOPNOTSUPP) where nobody has the kind.

    `details` are the kind's IFLA_INFO_DATA; `mac` 0: none, or one of the kernel's choice.
    """
    parts = [
        _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0),
        attribute(_IFLA_IFNAME, name.encode() + b"\0"),
        attribute(_IFLA_MTU, _U32.pack(mtu)),
        attribute(_IFLA_ADDRESS, mac.to_bytes(_MAC_BYTES, "big")) if mac else b"",
        _link_info(kind, details),
    ]
    return Message(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, b"".join(parts))


def knows_kind(netlink: Rtnetlink, kind: str, impossible: Mapping[int, bytes]) -> bool:
    """Tell whether the kernel has devices of a kind, or a module for it, which is loaded then.

    `impossible` is IFLA_INFO_DATA that no device of the kind can have: whether it knows the kind is what the kernel
    looks at before.
    """
    (refusal,) = netlink.apply([make_device("flannel.none", kind, impossible, mtu=1_500)])
    return refusal is None or refusal.code != errno.EOPNOTSUPP


def change_device(index: int, kind: str, details: Mapping[int, bytes]) -> Message:
    """Change of a device what its kind has to say (IFLA_INFO_DATA); what is not given stays."""
    return Message(_RTM_NEWLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _link_info(kind, details))


def _link_info(kind: str, details: Mapping[int, bytes]) -> bytes:
    data = b"".join(attribute(number, value) for number, value in details.items())
    return attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode()) + attribute(_IFLA_INFO_DATA, data))


def set_device(
    index: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    queue_packets: int | None = None,
    mac: int | None = None,
    master: int | None = None,
    alias: str | None = None,
) -> Message:
    """Change of a device what is given; one that is set up gets its carrier, too, as far as its driver has a say.

    The MAC is changed before it is set up or down: some kinds refuse it (EBUSY) while they are up.
    """
    flags = _IFF_UP if up else 0
    parts = [_IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, 0 if up is None else _IFF_UP)]
    if mtu is not None:
        parts.append(attribute(_IFLA_MTU, _U32.pack(mtu)))
    if queue_packets is not None:
        parts.append(attribute(_IFLA_TXQLEN, _U32.pack(queue_packets)))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac.to_bytes(_MAC_BYTES, "big")))
    if master is not None:
        parts.append(attribute(_IFLA_MASTER, _U32.pack(master)))
    if alias is not None:
        parts.append(attribute(_IFLA_IFALIAS, alias.encode()))
    return Message(_RTM_NEWLINK, 0, b"".join(parts))


def set_carrier(index: int) -> Message:
    """Undo ``ip link set DEVICE carrier off``, after which the kernel drops all that is to leave by it."""
    return Message(_RTM_NEWLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(_IFLA_CARRIER, b"\1"))


def set_protocol_up(index: int) -> Message:
    """Undo ``ip link set DEVICE protodown on``, likewise."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(_IFLA_PROTO_DOWN, b"\0")
    return Message(_RTM_NEWLINK, 0, body)


def make_no_ipv6_addresses(index: int) -> Message:
    """Keep the kernel from giving the device an fe80:: address; refused where the device has no IPv6."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, _NONE)
    families = attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))
    return Message(_RTM_NEWLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + families)


def delete_device(index: int) -> Message:
    """Remove a device."""
    return Message(_RTM_DELLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def makes_own_ipv6(found: Device) -> bool:
    """Tell whether the kernel gives it IPv6 addresses of its own, or takes others' word for some, and need not."""
    return found.makes_ipv6_addresses or (found.takes_advertisements and may_refuse(found.name))


def link_state(netlink: Rtnetlink, index: int) -> LinkState | None:
    """Return what is compared of a device, its addresses among it; ``None`` if there is none of this index."""
    found = device(netlink, index)
    if found is None:
        return None
    return LinkState(
        name=found.name,
        index=index,
        mtu=found.mtu,
        up=found.up,
        carrier=found.carrier,
        makes_ipv6_addresses=makes_own_ipv6(found),
        addresses=tuple(
            ip_interface((item.address, item.prefix_len))
            for version in (4, 6)
            for item in stream_addresses(netlink, index, version=version)
            if item.usable
        ),
    )


def _parse_device(body: bytes) -> Device:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = dict(attributes(body, _IFINFOMSG.size))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b""), 0))
    others = attributes(found.get(_IFLA_PROP_LIST | _NLA_F_NESTED, b""), 0)
    # A device without IPv6, as with an MTU below 1,280, has nothing of AF_INET6.
    ipv6 = dict(attributes(dict(attributes(found.get(_IFLA_AF_SPEC, b""), 0)).get(socket.AF_INET6, b""), 0))
    return Device(
        index=index,
        name=text(found[_IFLA_IFNAME]),
        mtu=number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        carrier=found.get(_IFLA_CARRIER, b"\1") != b"\0",
        loopback=bool(flags & _IFF_LOOPBACK),
        resolves=not flags & (_IFF_LOOPBACK | _IFF_NOARP),
        master=number(found.get(_IFLA_MASTER)),
        kind=text(info.get(_IFLA_INFO_KIND, b"")),
        makes_ipv6_addresses=ipv6.get(_IFLA_INET6_ADDR_GEN_MODE, _NONE)[:1] != _NONE,
        takes_advertisements=any(ipv6.get(_IFLA_INET6_CONF, b"")[_ACCEPT_RA]),
        mac=int.from_bytes(mac, "big") if len(mac := found.get(_IFLA_ADDRESS, b"")) == _MAC_BYTES else 0,
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        details=dict(attributes(info.get(_IFLA_INFO_DATA, b""), 0)),
        altnames=tuple(text(value) for kind, value in others if kind == _IFLA_ALT_IFNAME),
    )


# Addresses


def stream_addresses(
    netlink: Rtnetlink, index: int = 0, only: model.Address | None = None, *, version: int = 4
) -> Iterator[Address]:
    """Yield the addresses of one IP version of an interface, those of all interfaces for index 0.

    `only`: that one, of whatever version.
    """
    af = family_of(version if only is None else only).af
    head = _IFADDRMSG.pack(af, 0, 0, 0, index)
    wanted = b"" if only is None else only.packed
    try:
        for body in netlink.dump(_RTM_GETADDR, head, _RTM_NEWADDR):
            # A kernel without the filter (before 4.20) sends all, one without IPv6 those of IPv4.
            if body[0] == af and index in (0, _IFADDRMSG.unpack_from(body)[4]) and wanted in body:
                found = _parse_address(body)
                if only in (None, found.address):
                    yield found
    except OSError as error:
        if error.errno != errno.ENODEV:  # the interface is gone
            raise


def put_address(
    index: int,
    address: model.Address,
    *,
    prefix_len: int | None = None,
    label: str = "",
    scope: int = RT_SCOPE_UNIVERSE,
    preferred_s: int = FOREVER_S,
    valid_s: int = FOREVER_S,
) -> Message:
    """Give an interface this address for `valid_s` seconds, at least 1, or change how long the one it has stays.

    Alone, as a /32 or /128, unless `prefix_len` says otherwise. After `preferred_s` seconds the address is marked as
    deprecated, which changes nothing in routing. Neither the kernel nor a program that looks for an address of this
    host chooses one of scope host; IPv6 addresses have no label, and the scope that they are of.
    """
    life = attribute(_IFA_CACHEINFO, _CACHEINFO.pack(preferred_s, valid_s, 0, 0))
    body = _address_body(index, address, address, prefix_len, label=label, scope=scope) + life
    return Message(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, body)


def remove_address(
    netlink: Rtnetlink,
    index: int,
    address: model.Address,
    *,
    far_end: model.Address | None = None,
    prefix_len: int | None = None,
    label: str = "",
) -> None:
    """Take an address off an interface, if it has this label where one is given; none such is fine."""
    body = _address_body(index, address, far_end or address, prefix_len, label=label)
    netlink.do(Message(_RTM_DELADDR, 0, body), fine=(errno.EADDRNOTAVAIL,))


def remove_kernels_ipv6_addresses(netlink: Rtnetlink, index: int) -> None:
    """Remove the addresses that the kernel gave a device: fe80:: ones, and those of router advertisements.

    Linux marks them from 5.18 on, and from 4.1 on those that are random, as a TUN's are, which has no MAC address.
    """
    head = _IFADDRMSG.pack(socket.AF_INET6, 0, 0, 0, index)
    for body in list(netlink.dump(_RTM_GETADDR, head, _RTM_NEWADDR)):
        _, prefix_len, _, scope, on = _IFADDRMSG.unpack_from(body)
        found = dict(attributes(body, _IFADDRMSG.size))
        made_by = found.get(_IFA_PROTO, b"\0")[0]
        random = bool(number(found.get(_IFA_FLAGS)) & _IFA_F_STABLE_PRIVACY)
        own = scope == _RT_SCOPE_LINK and (made_by == _IFAPROT_KERNEL_LL or random)
        if on != index or not (own or made_by == _IFAPROT_KERNEL_RA):
            continue
        address = IPv6Address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
        named = _IFADDRMSG.pack(socket.AF_INET6, prefix_len, 0, scope, index) + attribute(_IFA_LOCAL, address.packed)
        netlink.do(Message(_RTM_DELADDR, 0, named), fine=(errno.EADDRNOTAVAIL,))


def _address_body(
    index: int,
    address: model.Address,
    far_end: model.Address,
    prefix_len: int | None,
    *,
    label: str = "",
    scope: int = 0,
) -> bytes:
    # Nobody else has the address of a subnet that is ours: to ask for a second would be a second without it.
    flags = _IFA_F_NODAD if address.version == 6 else 0
    n_bits = address.max_prefixlen if prefix_len is None else prefix_len
    parts = [
        _IFADDRMSG.pack(family_of(address).af, n_bits, flags, scope, index),
        attribute(_IFA_LOCAL, address.packed),
        attribute(_IFA_ADDRESS, far_end.packed),
    ]
    if label:
        parts.append(attribute(_IFA_LABEL, label.encode() + b"\0"))
    return b"".join(parts)


def _parse_address(body: bytes) -> Address:
    _, prefix_len, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = dict(attributes(body, _IFADDRMSG.size))
    _, valid_s, _, _ = _CACHEINFO.unpack_from(found[_IFA_CACHEINFO])
    local, far_end = found.get(_IFA_LOCAL), found.get(_IFA_ADDRESS)
    return Address(
        index=index,
        address=ip_address(local or far_end or bytes(4)),
        prefix_len=prefix_len,
        label=text(found.get(_IFA_LABEL, b"")),
        valid_s=valid_s,
        far_end=ip_address(far_end or local or bytes(4)),
        scope=scope,
        flags=number(found.get(_IFA_FLAGS)) or flags,  # the head has room for the low eight bits
    )
