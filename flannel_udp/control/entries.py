"""How an entry of the registry becomes a lease and a lease becomes a peer; whatever cannot is poisoned. Pure.

A poisoned entry costs nobody but itself: it is passed over with one warning, in routing and in allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.model import Entry, Lease, LeaseAttrs, Peer
from flannel_udp.registry.keys import parse_key, parse_value

# First bytes of addresses: "this network", never a destination (RFC 1122 section 3.2.1.3), and multicast (RFC 5771).
_NO_HOSTS = frozenset((0, *range(224, 240)))
_BROADCAST = IPv4Address("255.255.255.255")

ReadHop = Callable[[LeaseAttrs], Any]
"""What the backend has to know of a peer beside its public IP; raises `ValueError` for one that it cannot send to."""


def read_lease(entry: Entry) -> Lease:
    """Parse key and value. Raises `ValueError` with one line."""
    return Lease(parse_key(entry.key), parse_value(entry.value), entry)


def check_prefix(subnet: IPv4Network, network: IPv4Network) -> None:
    """Raise `ValueError` unless `subnet` is a true part of the overlay `network`; its length may be any."""
    if subnet.prefixlen <= network.prefixlen:
        raise ValueError(f"{subnet} is as wide as the overlay network {network} or wider")
    if subnet.network_address not in network:
        raise ValueError(f"{subnet} is outside the overlay network {network}")


def read_peer(subnet: IPv4Network, attrs: LeaseAttrs, read_hop: ReadHop) -> Peer:
    """Return where packets for a lease's subnet go. Raises `ValueError` if the backend cannot send there.

    Loopback addresses pass: a lab may run several agents on one machine.
    """
    hop, address = read_hop(attrs), attrs.public_ip
    if int(address) >> 24 in _NO_HOSTS or address == _BROADCAST:
        raise ValueError(f"PublicIP {address} is no address of one host")
    return Peer(subnet, address, hop)
