"""Is the overlay network one that this host is in already? To be asked before a lease is taken for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from socket import AF_INET

from flannel_udp.errors import FlannelError
from flannel_udp.host.netlink import address_of, open_netlink


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """A network that an address of the interface `name` puts the host in."""

    name: str
    network: IPv4Network


def read_own_networks() -> list[OwnNetwork]:
    """Ask the kernel; blocks for some milliseconds, so call it in a thread. Raises `FlannelError`."""
    with open_netlink("listing the addresses of this host") as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        return [
            OwnNetwork(
                names.get(message["index"], "?"), IPv4Interface((address_of(message), message["prefixlen"])).network
            )
            for message in ip.get_addr(family=AF_INET)
        ]


def refuse_own_network(overlay: IPv4Network, external: str, own: Iterable[OwnNetwork]) -> None:
    """Raise `FlannelError` if the overlay's route would cut the host off; `external` names the external interface.

    A network inside the overlay is fine on any other interface: the pods' bridge has our own subnet.
    """
    for item in own:
        advice = f"choose another Network, or remove that address from {item.name}"
        if overlay == item.network:
            raise FlannelError(f"the overlay network {overlay} is the own network of interface {item.name}: {advice}")
        if overlay.subnet_of(item.network):
            inside = f"is inside {item.network}, the own network of interface {item.name}"
            raise FlannelError(f"the overlay network {overlay} {inside}: {advice}")
        if item.name == external and item.network.subnet_of(overlay):
            holds = f"holds {item.network}, the own network of interface {item.name}"
            raise FlannelError(f"the overlay network {overlay} {holds}, which its datagrams leave by: {advice}")
