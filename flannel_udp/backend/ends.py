"""What a host has of each family: addresses on its external interface, a share of its subnet, what its lease says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Ends, Interface, LeaseAttrs, Prefix, Subnet


def ends_of(external: Interface, version: int) -> Ends:
    """Return the interface's addresses of one family. Raises `FlannelError` where it has none."""
    ends = external.of(version)
    if ends is None:
        raise FlannelError(f"interface {external.name} has no IPv{version} address")
    return ends


def share_of(subnet: Subnet, version: int) -> Prefix:
    """Return our subnet of one family. Raises `FlannelError` where there is none."""
    share = subnet.of(version)
    if share is None:
        raise FlannelError(f"our subnet {subnet} has no IPv{version} part")
    return share


def with_public_ip(attrs: LeaseAttrs, address: Address) -> LeaseAttrs:
    """Return them with that address as the public one of its family."""
    if isinstance(address, IPv4Address):
        return replace(attrs, public_ip=address)
    return replace(attrs, public_ipv6=address)


def join_attrs(parts: Iterable[LeaseAttrs]) -> LeaseAttrs:
    """Return what a lease says of a host, where each of these says it of one family."""
    joined = LeaseAttrs(None)
    for part in parts:
        joined = LeaseAttrs(
            public_ip=joined.public_ip or part.public_ip,
            public_ipv6=joined.public_ipv6 or part.public_ipv6,
            backend_type=part.backend_type,
            backend_data=part.backend_data if joined.backend_data is None else joined.backend_data,
            backend_v6_data=part.backend_v6_data if joined.backend_v6_data is None else joined.backend_v6_data,
        )
    return joined
