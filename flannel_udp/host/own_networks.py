"""Is the overlay network one that this host is in already? To be asked before a lease is taken for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.family import family_of
from flannel_udp.host.links import device, stream_addresses
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Address, Interface, Prefix, lies_in, prefix_of
from flannel_udp.netconf.config import AnyRange, NetworkConfig

LOOPBACK = "lo"
"""A network of its is this host itself, all of it, by a table that is asked before any other."""


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """A network that an address of the interface `name` puts the host in."""

    name: str
    network: Prefix


def read_own_networks() -> list[OwnNetwork]:
    """Ask the kernel; blocks for some milliseconds, so call it in a thread. Raises `FlannelError`."""
    with open_rtnetlink("listing the addresses of this host") as netlink:
        found = [item for version in (4, 6) for item in stream_addresses(netlink, version=version)]
        # Of thousands of pods' devices hardly one has an address: only those that do are asked for.
        devices = {index: device(netlink, index) for index in {item.index for item in found}}
    names = {index: "?" if known is None else known.name for index, known in devices.items()}
    return [OwnNetwork(names[item.index], prefix_of(item.address, item.prefix_len)) for item in found]


def judge_all(config: NetworkConfig, external: Interface, route_for: Callable[[Address], Prefix | None]) -> list[str]:
    """Judge the overlay of each family as below; blocks. Raises `FlannelError`."""
    own, warnings = read_own_networks(), []
    for subnets in (config.of(version) for version in config.versions):
        if subnets is None:
            continue
        warnings += judge_own_networks(subnets, external, own, route_for)
        refuse_public_ip(external, subnets, own)
    return warnings


def refuse_public_ip(external: Interface, subnets: AnyRange, own: Iterable[OwnNetwork]) -> None:
    """Raise `UsageError` for a --public-ip, or --public-ipv6, by which no other host can send to us.

    The flag's own text was checked when it was read; what is left is what depends on the overlay of that family and on
    this host.
    """
    ends = external.of(subnets.network.version)
    if ends is None or ends.public_ip == ends.address:
        return
    flag = f"--public-ip{'v6' if subnets.network.version == 6 else ''}={ends.public_ip}"
    if subnets.meets(_alone(ends.public_ip)):
        raise UsageError(
            f"{flag} is in the overlay network {subnets.network}: what other hosts send there comes "
            "back into their overlay; give the address by which they reach this host"
        )
    for item in own:
        has_broadcast = item.network.version == 4 and item.network.prefixlen < 31
        if has_broadcast and ends.public_ip == item.network.broadcast_address:
            raise UsageError(f"{flag} is the broadcast address of {item.name}'s network")


def judge_own_networks(
    subnets: AnyRange, external: Interface, own: Iterable[OwnNetwork], route_for: Callable[[Address], Prefix | None]
) -> list[str]:
    """Raise `FlannelError` if the overlay and a network that this host is in cannot be told apart; else warn.

    A longer prefix decides: where one network is inside the other each keeps its packets, as long as nobody leases what
    the host is in. `route_for` returns the destination of our route that would have the address, see
    `Backend.route_for`. On any other interface than the external one a network inside the overlay is fine: the pods'
    bridge has our own subnet. Returns the warnings.
    """
    overlay, warnings = subnets.network, []
    ends = overlay.network_address, overlay.broadcast_address
    one_route = any(route_for(end) == overlay for end in ends)
    for item in own:
        if lies_in(overlay, item.network):
            warnings.append(_judge_wide(subnets, external, item, one_route=one_route))
        elif item.name == external.name and lies_in(item.network, overlay) and subnets.meets(item.network):
            network = family_of(overlay).network
            lowest, highest = (network.replace("Network", key) for key in ("SubnetMin", "SubnetMax"))
            raise FlannelError(
                f"the overlay network {overlay} holds {item.network}, the own network of interface {item.name}, which "
                "its datagrams leave by, and a host may get a subnet there: "
                f"choose another {network}, or {lowest} and {highest} that leave it out"
            )
    return warnings


def _judge_wide(subnets: AnyRange, external: Interface, item: OwnNetwork, *, one_route: bool) -> str:
    """Return what is to be said of a network of the host's that is the overlay, or holds it. Raises `FlannelError`."""
    overlay, family = subnets.network, family_of(subnets.network)
    another = f"choose another {family.network}"
    advice = f"{another}, or remove that address from {item.name}"
    owned = f"the own network of interface {item.name}"
    if overlay == item.network and one_route:
        raise FlannelError(f"the overlay network {overlay} is {owned}: {advice}")
    where = f"the overlay network {overlay} is {'' if overlay == item.network else f'inside {item.network}, '}{owned}"
    if item.name == LOOPBACK:
        raise FlannelError(f"{where}, so that all of it is this host itself: {advice}")
    ends = external.of(overlay.version) if item.name == external.name else None
    if ends is not None and ends.address in overlay and (one_route or subnets.meets(_alone(ends.address))):
        raise FlannelError(f"{where}, which its datagrams leave by from {ends.address}, inside the overlay: {advice}")
    return (
        f"{where}: this host reaches no other one there that has an address in the overlay: if it has to, "
        f"{another}, or give {item.name} a smaller network"
    )


def _alone(address: Address) -> Prefix:
    return prefix_of(address, address.max_prefixlen)
