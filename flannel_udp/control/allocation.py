"""Which subnet to take, in flannel's order. Pure: a snapshot and a random generator in, a decision out."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

from flannel_udp.control.entries import check_prefix, read_lease
from flannel_udp.errors import NoFreeSubnet, RegistryError
from flannel_udp.model import Entry, Lease, Snapshot, Subnet
from flannel_udp.netconf.config import NetworkConfig, SubnetRange
from flannel_udp.registry.keys import format_key, parse_key

CANDIDATES = 100
"""flannel picks among this many free subnets, so that hosts starting together rarely race for the same one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Delete the leases in ``discard``, then hold ``subnet``: renew the entry ``reuse``, or create one if ``None``."""

    subnet: Subnet
    reuse: Entry | None = None
    discard: tuple[Lease, ...] = ()


def choose_subnet(
    config: NetworkConfig,
    snapshot: Snapshot,
    public_ip: IPv4Address,
    previous: Subnet | None,
    rng: random.Random,
) -> Decision:
    """Decide which subnet the host with `public_ip` takes.

    `config` has IPv4 on; `previous` is the subnet of an existing subnet.env. The order: an entry under our public IP
    that fits (a reservation before `previous` before the rest), else `previous` if it fits and is free, else a random
    one of the first 100 free subnets. Leases of ours that do not fit are discarded; a reservation is somebody's
    hand-made decision and stays. Raises `NoFreeSubnet`.
    """
    if config.v4 is None:
        raise ValueError("choose_subnet needs a configuration with IPv4")
    ours, blocking = _survey(snapshot, config.v4.network, public_ip)
    fitting = [lease for lease in ours if config.fits(lease.subnet)]
    if fitting:
        fitting.sort(key=lambda lease: (not lease.entry.reserved, lease.subnet != previous, lease.entry.key))
        return Decision(fitting[0].subnet, reuse=fitting[0].entry)
    discard = tuple(lease for lease in ours if not lease.entry.reserved)
    keys = snapshot.entries.keys() - {lease.entry.key for lease in discard}
    if (
        previous is not None
        and config.fits(previous)
        and format_key(previous) not in keys
        and not any(previous.v4.overlaps(subnet) for subnet in blocking)
    ):
        return Decision(previous, discard=discard)
    free = list(islice(free_subnets(config.v4, blocking, keys), CANDIDATES))
    if not free:
        first, last = config.v4.first.network_address, config.v4.last.network_address
        raise NoFreeSubnet(
            f"all {config.v4.count} subnets of length /{config.v4.subnet_len} from {first} to {last} are taken: "
            "delete stale leases or widen the network configuration"
        )
    return Decision(rng.choice(free), discard=discard)


def accept_assigned(config: NetworkConfig, entry: Entry) -> Decision:
    """Decide to take the subnet that the registry assigned to this host; its length may be any.

    `config` has IPv4 on. Raises `RegistryError` when the subnet is no part of the overlay network.
    """
    if config.v4 is None:
        raise ValueError("accept_assigned needs a configuration with IPv4")
    try:
        subnet = parse_key(entry.key)
        check_prefix(subnet.v4, config.v4.network)
    except ValueError as error:
        raise RegistryError(f"the subnet assigned to this host is of no use: {error}: make the two agree") from None
    return Decision(subnet, reuse=entry)


def free_subnets(
    subnets: SubnetRange[IPv4Network], blocking: Iterable[IPv4Network], keys: Collection[str]
) -> Iterator[Subnet]:
    """Yield the subnets that overlap nothing in `blocking` and whose key is not among `keys`, from SubnetMin on.

    A poisoned entry blocks nothing, but its own key cannot be created.
    """
    step = subnets.step
    end = int(subnets.last.network_address) + step
    address = int(subnets.first.network_address)
    # Sorted by address, the blocked spans are walked once, side by side with the candidates.
    spans = sorted((int(subnet.network_address), subnet.num_addresses) for subnet in blocking)
    for start, size in (*spans, (end, 0)):
        while address + step <= min(start, end):
            subnet = Subnet(IPv4Network((address, subnets.subnet_len)))
            if format_key(subnet) not in keys:
                yield subnet
            address += step
        if start + size > address:
            address = -(-(start + size) // step) * step  # up to the next multiple: subnets are aligned


def _survey(snapshot: Snapshot, network: IPv4Network, public_ip: IPv4Address) -> tuple[list[Lease], list[IPv4Network]]:
    """Return the entries under `public_ip`, wherever they are, and the subnets inside `network` that stay taken.

    Our own reservations count among these: what they cover is routed to us by the other hosts.
    """
    ours, blocking = [], []
    for entry in snapshot.entries.values():
        try:
            lease = read_lease(entry)
            if lease.attrs.public_ip == public_ip:
                ours.append(lease)
                if not entry.reserved:
                    continue
            check_prefix(lease.subnet.v4, network)
            blocking.append(lease.subnet.v4)
        except ValueError:
            continue  # poisoned: the peer table warns about it
    return ours, blocking
