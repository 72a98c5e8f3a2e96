"""How an entry of the registry becomes a lease and a lease becomes peers; whatever cannot is poisoned. Pure.

A poisoned entry costs nobody but itself: it is passed over with one warning, in routing and in allocation. Of an entry
with both families the poisoned one is passed over, and the other counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from flannel_udp.model import Address, Entry, Lease, LeaseAttrs, Prefix
from flannel_udp.netconf.addresses import why_not_dialled
from flannel_udp.registry.keys import Faults, parse_key, parse_value

ReadHop = Callable[[LeaseAttrs, int], Any]
"""What the backend has to know of a peer of that IP version beside its public IP; raises `ValueError` for one that it
cannot send to."""


def read_lease(entry: Entry) -> Lease:
    """Parse key and value. Raises `ValueError` with one line where neither family's part can be understood."""
    faults: Faults = {}
    subnet = parse_key(entry.key, faults)
    return Lease(subnet, parse_value(entry.value, faults), entry, faults)


def read_leases(entries: Mapping[str, Entry]) -> list[Lease]:
    """Return what can be understood; the peer table warns about the rest."""
    leases = []
    for entry in entries.values():
        with suppress(ValueError):
            leases.append(read_lease(entry))
    return leases


def check_prefix(subnet: Prefix, network: Prefix) -> None:
    """Raise `ValueError` unless `subnet` is a true part of the overlay `network`; its length may be any."""
    if subnet.prefixlen <= network.prefixlen:
        raise ValueError(f"{subnet} is as wide as the overlay network {network} or wider")
    if subnet.network_address not in network:
        raise ValueError(f"{subnet} is outside the overlay network {network}")


def why_not_sent_to(
    address: Address, network: Prefix, own: Mapping[Address, str], may_lease: Callable[[Address], bool]
) -> str | None:
    """Return why no packets can be sent to a peer at `address`, in a clause "is ..."; ``None`` if they can.

    `network` is the overlay of that family; `own` says what of this host's addresses, and of its networks' broadcasts,
    each one is; `may_lease` whether a subnet with the address may be leased. What of the overlay nobody gets may be the
    hosts' own network, to which a longer prefix leads.
    """
    if address in network and may_lease(address):
        return f"is in the overlay network {network}, so what is sent there comes back into the overlay"
    return why_not_dialled(address) or own.get(address)
