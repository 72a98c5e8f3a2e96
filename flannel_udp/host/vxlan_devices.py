"""The kernel's VXLAN devices: what they are made with, and who has which port. Blocks, as `rtnetlink` does."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address

from flannel_udp.host.links import Device, device, stream_devices
from flannel_udp.host.rtnetlink import Rtnetlink
from flannel_udp.model import Address

KIND = "vxlan"

# IFLA_VXLAN_… (linux/if_link.h)
_ID, _GROUP, LINK, LOCAL, LEARNING, _PORT, _GROUP6, LOCAL6, _UDP_CSUM = 1, 2, 3, 4, 7, 15, 16, 17, 18
_GBP, _COLLECT_METADATA, _GPE = 23, 25, 27

_U32 = struct.Struct("=I")
_PORT_NUMBER = struct.Struct("!H")  # in network order, as the kernel's other numbers here are not
_YES, _NO = b"\1", b"\0"

CHANGEABLE = frozenset({LINK, LOCAL, LOCAL6, LEARNING})
"""What the kernel changes of a device that is there."""
NOT_COMPARED = frozenset({_UDP_CSUM})
"""Whatever an outer checksum is, the other side takes it; flanneld makes devices with and without."""


def details_of(*, vni: int, port: int, local: Address, link: int, learning: bool, gbp: bool) -> dict[int, bytes | None]:
    """Return a device's IFLA_INFO_DATA as flanneld makes it; ``None``: must not be there.

    `link` is the index of the interface that outer packets leave by, `local` their source.
    """
    no_addresses: dict[int, bytes | None] = dict.fromkeys((LOCAL, LOCAL6, _GROUP, _GROUP6))
    return {
        **no_addresses,
        _ID: _U32.pack(vni),
        LINK: _U32.pack(link),
        LOCAL if isinstance(local, IPv4Address) else LOCAL6: local.packed,
        LEARNING: _YES if learning else _NO,
        _PORT: _PORT_NUMBER.pack(port),
        _UDP_CSUM: _YES,
        _COLLECT_METADATA: _NO,
        _GBP: b"" if gbp else None,  # a flag: it is there or not
        _GPE: None,
    }


IMPOSSIBLE: Mapping[int, bytes] = {_ID: _U32.pack(1 << 24)}
"""IFLA_INFO_DATA that the kernel refuses (a VNI has 24 bits, RFC 7348 section 5), for `links.knows_kind`."""


def device_name(vni: int, version: int = 4) -> str:
    """Return what flannel calls its device of an IP version: ``flannel.VNI``, ``flannel-v6.VNI``.

    A name has 15 characters at most (IFNAMSIZ), so that flanneld cannot run eight digits, with IPv6 five; ours are
    hexadecimal then.
    """
    if version == 6:
        return f"flannel-v6.{vni}" if vni < 10_000 else f"flannel6.{vni:x}"
    return f"flannel.{vni}" if vni < 10_000_000 else f"flannel.x{vni:x}"


def version_of(found: Device) -> int:
    """Return the IP version of a VXLAN device's outer packets."""
    return 6 if LOCAL6 in found.details or _GROUP6 in found.details else 4


def receives(found: Device, version: int) -> bool:
    """Tell whether its port is one of that IP version; a device that is ``external`` has both."""
    return found.details.get(_COLLECT_METADATA, _NO) != _NO or version_of(found) == version


def port_of(found: Device) -> int:
    """Return the UDP port of a VXLAN device."""
    return int(_PORT_NUMBER.unpack(found.details[_PORT])[0]) if _PORT in found.details else 0


def vni_of(found: Device) -> int:
    """Return its VXLAN network identifier, 24 bits (RFC 7348 section 5)."""
    return int(_U32.unpack(found.details[_ID])[0]) if _ID in found.details else 0


def describe(netlink: Rtnetlink, details: Mapping[int, bytes]) -> str:
    """Return what `ip -d link` shows of such a device's settings, as far as they are ours to choose."""
    parts = [f"id {_U32.unpack(details[_ID])[0]}"] if _ID in details else []
    for name, number in (("remote", _GROUP), ("remote", _GROUP6), ("local", LOCAL), ("local", LOCAL6)):
        if number in details:
            parts.append(f"{name} {ip_address(details[number])}")
    if LINK in details:
        index = int(_U32.unpack(details[LINK])[0])
        link = device(netlink, index)
        parts.append(f"dev {link.name if link else f'number {index}'}")
    if _PORT in details:
        parts.append(f"dstport {_PORT_NUMBER.unpack(details[_PORT])[0]}")
    parts += [name for name, number in (("gbp", _GBP), ("gpe", _GPE)) if number in details]
    if details.get(_COLLECT_METADATA, _NO) != _NO:
        parts.append("external")
    return " ".join(parts)


def devices_on(netlink: Rtnetlink, port: int) -> list[Device]:
    """Return the VXLAN devices with that UDP port; those that are up have it in use."""
    return [found for found in list(stream_devices(netlink, KIND)) if port_of(found) == port]
