"""The two IP families: one frozen value each has all that differs where the host is asked or changed.

Code takes the family of its address, or of its `version`, and then goes one way for both.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from flannel_udp.model import Address, Prefix


@dataclass(frozen=True, slots=True)
class Family:
    """What the kernel and its tools call things of one IP version."""

    version: int
    name: str
    """For people."""
    af: int
    """Address family, AF_…"""
    anywhere: Prefix
    """The default route's destination."""
    multicast: Prefix
    usual_metric: int
    """Of a route that is made without one, as the kernel tells of it; IPv6: IP6_RT_PRIO_USER."""
    forwarding: str
    """The setting that has the host forward at all."""
    nobody: Address
    """No host has it, so that the default route answers for it."""
    ip: str
    """The command of iproute2."""
    network: str
    """The key of the network configuration that has the overlay's network."""
    iptables: str
    nft: str
    """As nftables calls the family: of a table, and in front of ``saddr``."""

    @property
    def n_bits(self) -> int:
        """The length of an address, and of the prefix that has it alone."""
        return self.anywhere.max_prefixlen

    def setting(self, device: str, name: str) -> str:
        """Return a device's setting in the words of sysctl(8), which takes slashes where a name holds a dot."""
        separator = "/" if "." in device else "."
        return separator.join(("net", f"ipv{self.version}", "conf", device, name))

    def prefix(self, packed: bytes | None, prefix_len: int) -> Prefix:
        """Return the network that a message names; of the default route it says none. Raises `ValueError`."""
        at = packed or bytes(self.n_bits // 8)
        return IPv4Network((at, prefix_len)) if self.version == 4 else IPv6Network((at, prefix_len))

    def address(self, packed: bytes | None) -> Address | None:
        """Return the address that an attribute holds, ``None`` where it is missing or of the other family."""
        return ip_address(packed) if packed is not None and len(packed) * 8 == self.n_bits else None


IPV4 = Family(
    version=4,
    name="IPv4",
    af=socket.AF_INET,
    anywhere=IPv4Network("0.0.0.0/0"),
    multicast=IPv4Network("224.0.0.0/4"),
    usual_metric=0,
    forwarding="net.ipv4.ip_forward",
    nobody=IPv4Address("192.0.0.8"),  # RFC 7600
    ip="ip",
    network="Network",
    iptables="iptables",
    nft="ip",
)
IPV6 = Family(
    version=6,
    name="IPv6",
    af=socket.AF_INET6,
    anywhere=IPv6Network("::/0"),
    multicast=IPv6Network("ff00::/8"),
    usual_metric=1024,
    forwarding="net.ipv6.conf.all.forwarding",
    nobody=IPv6Address("100::"),  # RFC 6666
    ip="ip -6",
    network="IPv6Network",
    iptables="ip6tables",
    nft="ip6",
)


def family_of(of: int | Address | Prefix) -> Family:
    """Return the family of an IP version, or that an address or a network is of."""
    version = of if isinstance(of, int) else of.version
    return IPV4 if version == 4 else IPV6


def family_by_af(af: int) -> Family:
    """Return the family that a message's head names."""
    return IPV6 if af == socket.AF_INET6 else IPV4
