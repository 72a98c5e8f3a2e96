"""Is the overlay network one that this host is in already? To be asked before a lease is taken for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.family import family_of
from flannel_udp.host.links import device, stream_addresses
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Interface, Prefix, lies_in, prefix_of


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


def refuse_public_ip(external: Interface, overlay: Prefix, own: Iterable[OwnNetwork]) -> None:
    """Raise `UsageError` for a --public-ip, or --public-ipv6, by which no other host can send to us.

    The flag's own text was checked when it was read; what is left is what depends on the overlay of that family and on
    this host.
    """
    ends = external.of(overlay.version)
    if ends is None or ends.public_ip == ends.address:
        return
    flag = f"--public-ip{'v6' if overlay.version == 6 else ''}={ends.public_ip}"
    if ends.public_ip in overlay:
        raise UsageError(
            f"{flag} is in the overlay network {overlay}: what other hosts send there comes "
            "back into their overlay; give the address by which they reach this host"
        )
    for item in own:
        has_broadcast = item.network.version == 4 and item.network.prefixlen < 31
        if has_broadcast and ends.public_ip == item.network.broadcast_address:
            raise UsageError(f"{flag} is the broadcast address of {item.name}'s network")


def refuse_own_network(overlay: Prefix, external: str, own: Iterable[OwnNetwork]) -> None:
    """Raise `FlannelError` if the overlay's route would cut the host off; `external` names the external interface.

    A network inside the overlay is fine on any other interface: the pods' bridge has our own subnet.
    """
    for item in own:
        advice = f"choose another {family_of(overlay).network}, or remove that address from {item.name}"
        if overlay == item.network:
            raise FlannelError(f"the overlay network {overlay} is the own network of interface {item.name}: {advice}")
        if lies_in(overlay, item.network):
            inside = f"is inside {item.network}, the own network of interface {item.name}"
            raise FlannelError(f"the overlay network {overlay} {inside}: {advice}")
        if item.name == external and lies_in(item.network, overlay):
            holds = f"holds {item.network}, the own network of interface {item.name}"
            raise FlannelError(f"the overlay network {overlay} {holds}, which its datagrams leave by: {advice}")
