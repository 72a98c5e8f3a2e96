"""Which addresses no host can have: one rule for overlays, peers, the flags and the packet path's twin.

The compiled packet path has the same rule in `_fastpath/ipv4.pxd` and `_fastpath/ipv6.pxd`; differential tests hold the
two together. 240.0.0.0/4, once reserved (RFC 1112 section 4), is routed by Linux like any other network, so it may be
used.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from flannel_udp.model import Address, Prefix

LINK_LOCAL = IPv4Network("169.254.0.0/16")
LINK_LOCAL_V6 = IPv6Network("fe80::/10")  # RFC 4291 section 2.5.6

_NO_HOSTS: dict[int, dict[Prefix, str]] = {
    4: {
        IPv4Network("0.0.0.0/8"): '"this network"',  # RFC 1122 section 3.2.1.3, likewise the next one
        IPv4Network("127.0.0.0/8"): "loopback",
        IPv4Network("224.0.0.0/4"): "multicast",  # RFC 5771
        IPv4Network("255.255.255.255/32"): "broadcast",  # RFC 919
    },
    6: {
        # RFC 4291 section 2.5: unspecified, loopback, and the deprecated IPv4-compatible addresses.
        IPv6Network("::/96"): "unspecified, loopback or IPv4-compatible",
        IPv6Network("::ffff:0:0/96"): "IPv4-mapped",  # a notation of sockets, on no wire
        IPv6Network("ff00::/8"): "multicast",
    },
}
_LINK_LOCAL: dict[int, tuple[Prefix, str]] = {4: (LINK_LOCAL, "RFC 3927"), 6: (LINK_LOCAL_V6, "RFC 4291")}
# The first bytes of all of them: among 100,000 peers nearly none has one, and is looked at any closer.
_SUSPECT = {
    version: frozenset(
        first
        for block in (*blocks, _LINK_LOCAL[version][0])
        for first in range(block.network_address.packed[0], block.broadcast_address.packed[0] + 1)
    )
    for version, blocks in _NO_HOSTS.items()
}


def parse_address(text: str) -> Address:
    """Return the IPv4 or IPv6 address that a person has written. Raises `ValueError`, for one with a zone as well."""
    if "%" in text:
        raise ValueError(f"{text!r} is no address: a zone means nothing beyond one host")
    return ip_address(text)


def is_unicast(address: Address) -> bool:
    """Tell whether a single host may have this address."""
    return not any(address in block for block in _NO_HOSTS[address.version])


def why_no_overlay(network: Prefix) -> str | None:
    """Return why hosts cannot have the addresses of this network, or of a part of it; ``None`` if they can.

    IPv6's link-local addresses are among these: each interface has some, and none is ever forwarded (RFC 4291 2.5.6).
    """
    blocks = _NO_HOSTS[network.version] | ({LINK_LOCAL_V6: "link-local"} if network.version == 6 else {})
    return next((f"{block} is {what}" for block, what in blocks.items() if network.overlaps(block)), None)


def why_not_dialled(address: Address) -> str | None:
    """Return why no other host can send to a host by this address, ``None`` if it can, as far as can be seen.

    A clause that goes on after the address: "is ...".
    """
    if int(address) >> (address.max_prefixlen - 8) not in _SUSPECT[address.version]:
        return None
    if not is_unicast(address):
        return "is no address of one host"
    block, rfc = _LINK_LOCAL[address.version]
    if address in block:
        return f"is link-local: another host may have the same ({rfc})"
    return None
