"""The tunnel device's kernel state through netlink: MTU, its one /32 address, link up, the overlay route.

Every function blocks for a few milliseconds on pyroute2's synchronous API, which runs an event loop of its own: call
it through ``asyncio.to_thread``, in a process that starts uvloop by ``uvloop.run`` (under a uvloop *policy* pyroute2's
own loop would be a uvloop too, and that one cannot open netlink sockets).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from socket import AF_INET
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.errors import FlannelError
from flannel_udp.host.repair import LinkState, TunnelShape

logger = logging.getLogger(__name__)

# linux/rtnetlink.h, linux/if.h, linux/if_link.h
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
IFF_UP = 0x1
RTM_F_FIB_MATCH = 0x2000
IN6_ADDR_GEN_MODE_NONE = 1


@contextmanager
def open_netlink(doing: str) -> Iterator[IPRoute]:
    """Yield a netlink socket; the kernel's refusals become one-line `FlannelError`s that begin with `doing`."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise FlannelError(f"{doing}: {_explain(error.code)}") from error
    except OSError as error:
        raise FlannelError(f"{doing}: {_explain(error.errno or 0)}") from error


def _explain(code: int) -> str:
    match code:
        case errno.EPERM | errno.EACCES:
            return "needs CAP_NET_ADMIN in this network namespace: run as root or grant the capability"
        case errno.ENODEV:
            return "the device is gone: something removed it while it was set up"
        case _:
            return os.strerror(code)


def configure_tunnel(name: str, address: IPv4Address, network: IPv4Network, mtu: int, txqueuelen: int) -> None:
    """Give the device `name` flannel's shape, whatever a killed run or an earlier lease left on it.

    That is: `mtu` bytes, a queue of `txqueuelen` packets, `address`/32 as the only IPv4 address, no IPv6 link-local
    address, link up, and `network` routed to it. Calling it again, with the same or other values, is fine. Raises
    `FlannelError`.
    """
    with open_netlink(f"configuring {name}") as ip:
        link = _find_link(ip, name)
        if link is None:
            raise FlannelError(f"configuring {name}: there is no such network device")
        index = link["index"]
        _refuse_connected_network(ip, index, network)
        ip.link("set", index=index, mtu=mtu, txqlen=txqueuelen)
        _stop_ipv6_address_generation(ip, link)
        _keep_only_address(ip, index, address)
        # An address can be added to a device that is down, a route cannot.
        ip.link("set", index=index, state="up")
        _keep_only_route(ip, index, network)


def unconfigure(name: str) -> None:
    """Remove addresses and routes from the device `name` and take it down; no such device is fine.

    Call it after the TUN's descriptor is closed: the kernel then has removed a device of our own with all that was on
    it, and only a persistent one, made by somebody else, is still there to be left clean. Raises `FlannelError`.
    """
    with open_netlink(f"cleaning {name}") as ip:
        link = _find_link(ip, name)
        if link is None:
            return
        _remove_routes(ip, link["index"], keep=None)
        _remove_addresses(ip, link["index"], keep=None)
        ip.link("set", index=link["index"], state="down")


def link_state(index: int) -> LinkState | None:
    """Ask the kernel for the state of a device, ``None`` if it is gone. Raises `FlannelError`."""
    with open_netlink("looking at the host's network") as ip:
        return _link_state(ip, index)


def tunnel_state(index: int, network: IPv4Network) -> tuple[LinkState | None, bool]:
    """Ask the kernel for the state of the tunnel device, and whether the route to `network` leads to it.

    The devices are asked for by index and the route is looked up, so their number does not matter; the addresses of all
    devices are listed, and all main routes where the look-up finds another than ours. Raises `FlannelError`.
    """
    with open_netlink("looking at the tunnel device") as ip:
        return _link_state(ip, index), _leads_to(ip, index, network)


def repair_tunnel(index: int, shape: TunnelShape, repairs: Collection[str]) -> None:
    """Put right what of the device's link, address, MTU and route is named, and touch nothing else of it.

    Raises `FlannelError`.
    """
    with open_netlink("repairing the tunnel device") as ip:
        if "mtu" in repairs:
            ip.link("set", index=index, mtu=shape.mtu)
        if "address" in repairs:
            ip.addr("replace", index=index, address=str(shape.address), prefixlen=32)
        if "link" in repairs:
            ip.link("set", index=index, state="up")
        if "route" in repairs:
            _refuse_connected_network(ip, index, shape.network)
            _put_route(ip, index, shape.network)


def _link_state(ip: IPRoute, index: int) -> LinkState | None:
    try:
        (link,) = ip.link("get", index=index)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return LinkState(
        name=link.get_attr("IFLA_IFNAME"),
        index=index,
        mtu=link.get_attr("IFLA_MTU"),
        up=bool(link["flags"] & IFF_UP),
        addresses=tuple(IPv4Interface((address_of(item), item["prefixlen"])) for item in _addresses(ip, index)),
    )


def _leads_to(ip: IPRoute, index: int, network: IPv4Network) -> bool:
    """Tell whether the route to `network`, as we make it, leads to the device."""
    try:
        # What entry would be used? That is ours, unless a longer prefix covers this address.
        found = list(ip.route("get", dst=str(network.network_address), flags=RTM_F_FIB_MATCH))
    except NetlinkError:
        found = []  # none, or one that refuses: ours may stand behind it
    ours = [message for message in found if message.get_attr("RTA_TABLE") == RT_TABLE_MAIN]
    if not any(_is_route_for(message, network) for message in ours):
        ours = _main_routes(ip)
    return any(message.get_attr("RTA_OIF") == index and _is_route_for(message, network) for message in ours)


def address_of(message: Any) -> IPv4Address:
    """Return the host's own address of an address message.

    On a point-to-point device IFA_ADDRESS is the far end and IFA_LOCAL ours; elsewhere both are ours.
    """
    return IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _find_link(ip: IPRoute, name: str) -> Any | None:
    return next((link for link in ip.get_links() if link.get_attr("IFLA_IFNAME") == name), None)


def _link_name(ip: IPRoute, index: int | None) -> str:
    names = (link.get_attr("IFLA_IFNAME") for link in ip.get_links() if link["index"] == index)
    return next(names, "no device")


def _stop_ipv6_address_generation(ip: IPRoute, link: Any) -> None:
    """Keep the kernel from giving the device an fe80:: address: its router solicitations would come out of the TUN."""
    families = link.get_attr("IFLA_AF_SPEC")
    if families is None or families.get_attr("AF_INET6") is None:
        return  # IPv6 is off on this host, and naming the family would be an error
    off = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]}
    ip.link("set", index=link["index"], IFLA_AF_SPEC=off)


def _addresses(ip: IPRoute, index: int) -> list[Any]:
    return [message for message in ip.get_addr(family=AF_INET) if message["index"] == index]


def _keep_only_address(ip: IPRoute, index: int, address: IPv4Address) -> None:
    _remove_addresses(ip, index, keep=address)
    if not _addresses(ip, index):
        ip.addr("add", index=index, address=str(address), prefixlen=32)


def _remove_addresses(ip: IPRoute, index: int, keep: IPv4Address | None) -> None:
    for message in _addresses(ip, index):
        local, far_end, prefix_len = address_of(message), message.get_attr("IFA_ADDRESS"), message["prefixlen"]
        if (local, far_end, prefix_len) == (keep, str(keep), 32):
            continue
        try:
            ip.addr("del", index=index, local=str(local), address=far_end, prefixlen=prefix_len)
        except NetlinkError as error:
            # Removing a subnet's first address takes its secondary ones along (promote_secondaries is off by default).
            if error.code != errno.EADDRNOTAVAIL:
                raise


def _main_routes(ip: IPRoute) -> list[Any]:
    return [
        message
        for message in ip.get_routes(family=AF_INET, table=RT_TABLE_MAIN)
        if message.get_attr("RTA_TABLE") == RT_TABLE_MAIN
    ]


def _destination(message: Any) -> IPv4Network:
    """Return where a route leads; the default route carries no RTA_DST."""
    return IPv4Network((message.get_attr("RTA_DST") or 0, message["dst_len"]))


def _is_route_for(message: Any, network: IPv4Network) -> bool:
    """True for a route to `network` that one of ours would collide with: the same prefix, TOS 0 and metric 0."""
    return _destination(message) == network and message["tos"] == 0 and not message.get_attr("RTA_PRIORITY")


def _refuse_connected_network(ip: IPRoute, index: int, network: IPv4Network) -> None:
    """Never take over a route that the kernel made: `network` is then another interface's own, in use by it."""
    for message in _main_routes(ip):
        foreign = message.get_attr("RTA_OIF") != index
        if foreign and message["proto"] == RTPROT_KERNEL and _is_route_for(message, network):
            owner = _link_name(ip, message.get_attr("RTA_OIF"))
            raise FlannelError(
                f"the overlay network {network} is the own network of interface {owner}: "
                f"choose another Network, or remove that address from {owner}"
            )


def _keep_only_route(ip: IPRoute, index: int, network: IPv4Network) -> None:
    _remove_routes(ip, index, keep=network)
    for message in _main_routes(ip):
        if message.get_attr("RTA_OIF") != index and _is_route_for(message, network):
            device = _link_name(ip, message.get_attr("RTA_OIF"))
            logger.warning("taking over the route %s, which led to %s", network, device)
    _put_route(ip, index, network)


def _put_route(ip: IPRoute, index: int, network: IPv4Network) -> None:
    # Scope and protocol as flanneld's: `ip route` shows plainly "10.1.0.0/16 dev flannel0".
    ip.route(
        "replace",
        family=AF_INET,
        dst=str(network),
        oif=index,
        table=RT_TABLE_MAIN,
        scope=RT_SCOPE_UNIVERSE,
        proto=RTPROT_BOOT,
        type=RTN_UNICAST,
    )


def _remove_routes(ip: IPRoute, index: int, keep: IPv4Network | None) -> None:
    """Remove the device's routes but the one for `keep`; those that came with an address go with the address."""
    for message in _main_routes(ip):
        if message.get_attr("RTA_OIF") != index or message["proto"] == RTPROT_KERNEL:
            continue
        if keep is not None and _is_route_for(message, keep):
            continue
        ip.route(
            "del",
            family=AF_INET,
            dst=str(_destination(message)),
            oif=index,
            table=RT_TABLE_MAIN,
            scope=message["scope"],
            priority=message.get_attr("RTA_PRIORITY") or 0,
            tos=message["tos"],
        )
