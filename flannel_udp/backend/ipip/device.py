"""The kernel's flannel.ipip as it has to be: see `backend.tunnel_device`.

Attributes are those of linux/if_tunnel.h. The device has our address and no remote one: where a packet goes the route
says (``via PUBLIC-IP onlink``), and whatever IPIP comes to our address is its own. A device without either address,
tunl0, is there as soon as the module is; it only gets what no other takes, and is not ours.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from flannel_udp.backend.ipip.options import DEVICE, TYPE
from flannel_udp.host.links import Device, stream_devices
from flannel_udp.host.rtnetlink import Rtnetlink
from flannel_udp.model import Interface

LINK, LOCAL, REMOTE, TTL, TOS, PROTO, PMTUDISC = 1, 2, 3, 4, 5, 9, 10
ENCAP_TYPE, COLLECT_METADATA = 15, 19
_ANY = bytes(4)


class IpipKind:
    """See `TunnelKind`. `claimed`: our entry says that this host ran ipip; an unmarked flannel.ipip is flanneld's."""

    kind = "ipip"
    name = DEVICE
    version = 4
    changeable = frozenset({LINK, LOCAL, TTL, TOS, PROTO, PMTUDISC, ENCAP_TYPE})
    """REMOTE only on a device that had one, and COLLECT_METADATA never (linux, net/ipv4/ipip.c, ipip_changelink)."""
    not_compared = frozenset({TTL, TOS, PROTO, PMTUDISC})
    """flanneld's own had others, by version; what they do is done to packets on the way out alone."""

    def __init__(self, *, claimed: bool = False) -> None:
        self._claimed = claimed

    def details(self, external: Interface) -> Mapping[int, bytes | None]:
        """Return what flanneld asks for: TTL, TOS and "don't fragment" of the inner packet, as far as it has one.

        With TTL 0 the outer TTL is the inner one's, with PMTUDISC 0 the outer packet may be fragmented where the inner
        one may (RFC 2003 section 3.1).
        """
        return {
            LINK: _ANY,
            LOCAL: external.address.packed,
            REMOTE: _ANY,
            TTL: b"\0",
            TOS: b"\0",
            PROTO: b"\4",
            PMTUDISC: b"\0",
            ENCAP_TYPE: b"\0\0",
            COLLECT_METADATA: None,
        }

    def describe(self, netlink: Rtnetlink, details: Mapping[int, bytes]) -> str:  # noqa: ARG002 - the protocol's
        """See `TunnelKind.describe`."""
        extra = " external" if COLLECT_METADATA in details else ""
        dev = f" dev {int.from_bytes(link, 'little')}" if (link := details.get(LINK, _ANY)) != _ANY else ""
        return f"local {_address(details.get(LOCAL))} remote {_address(details.get(REMOTE))}{dev}{extra}"

    def is_kin(self, found: Device) -> bool:  # noqa: ARG002 - outer packets are IPv4's (RFC 2003)
        """See `TunnelKind.is_kin`."""
        return True

    def claims(self, found: Device) -> bool:
        """See `TunnelKind.claims`: flanneld leaves no mark, and there is no MAC address that our entry names."""
        return self._claimed and found.name == DEVICE

    def rivals(self, netlink: Rtnetlink, code: int) -> list[Device]:
        """See `TunnelKind.rivals`: of devices with the same addresses the kernel allows one."""
        if code != errno.EEXIST:
            return []
        found = [item for item in stream_devices(netlink, TYPE) if item.name != DEVICE]
        return [item for item in found if item.details.get(REMOTE, _ANY) == _ANY != item.details.get(LOCAL, _ANY)]

    def explain(self, code: int, rivals: Iterable[Device]) -> str | None:
        """See `TunnelKind.explain`."""
        names = [found.name for found in rivals]
        if code != errno.EEXIST or not names:
            return None
        remedy = f"remove it with 'ip link del {names[0]}', if nobody needs it"
        return f"another ipip device has our address: {' or '.join(names)}: {remedy}"


def takes_packets_to(found: Device, address: IPv4Address) -> bool:
    """Tell whether an IPIP device that is up receives what any host sends to this address."""
    local, remote = found.details.get(LOCAL, _ANY), found.details.get(REMOTE, _ANY)
    return found.up and local in (_ANY, address.packed) and remote == _ANY


def _address(value: bytes | None) -> str:
    return "any" if not value or value == _ANY else str(IPv4Address(value))
