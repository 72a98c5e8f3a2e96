"""The tunnel device's kernel state through netlink: MTU, its one address of each family, link up, the overlay's routes.

Every function blocks for about a millisecond, however many devices, addresses and routes the host has: call it through
``asyncio.to_thread``.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from flannel_udp.errors import FlannelError
from flannel_udp.host import advertisements
from flannel_udp.host.disabled_ipv6 import allow_ipv6, why_no_ipv6
from flannel_udp.host.family import IPV4, IPV6, Family, family_of
from flannel_udp.host.links import (
    FOREVER_S,
    MARK,
    device,
    device_named,
    link_state,
    make_no_ipv6_addresses,
    put_address,
    remove_address,
    remove_kernels_ipv6_addresses,
    set_carrier,
    set_device,
    stream_addresses,
)
from flannel_udp.host.repair import Fault, LinkState, TunnelEnd, TunnelShape
from flannel_udp.host.route_query import is_local, routes_in_force, stream_routes
from flannel_udp.host.rtnetlink import (
    RTN_UNICAST,
    RTPROT_BOOT,
    RTPROT_KERNEL,
    RTPROT_RA,
    Route,
    Rtnetlink,
    delete_route,
    open_rtnetlink,
    parse_route,
    replace_route,
)
from flannel_udp.model import Address, Interface, Prefix

logger = logging.getLogger(__name__)


def configure_tunnel(name: str, shape: TunnelShape, txqueuelen: int) -> None:
    """Give the device `name` flannel's shape, whatever a killed run or an earlier lease left on it.

    That is: its MTU, a queue of `txqueuelen` packets, our mark, for each end its address, the only one of that family,
    no IPv6 link-local address, link up, and the overlay routed to it. Calling it again, with the same or other values,
    is fine. Raises `FlannelError` where no end could be had: what one of two lacks is for `tunnel_state` to find.
    """
    with open_rtnetlink(f"configuring {name}") as netlink:
        found = device_named(netlink, name)
        if found is None:
            raise FlannelError(f"configuring {name}: there is no such network device")
        index = found.index
        ends = _Ends(shape.ends)
        ends.each(lambda end: _refuse_connected_network(netlink, index, end.network))
        netlink.do(set_device(index, mtu=shape.mtu, queue_packets=txqueuelen, alias=MARK))
        stop_ipv6_addresses(netlink, index)
        ends.each(lambda end: _keep_only_address(netlink, index, end.address))
        # An address can be added to a device that is down, a route cannot.
        netlink.do(set_device(index, up=True))
        ends.each(lambda end: _keep_only_route(netlink, index, end.network))


class _Ends:
    """The ends that nothing has failed for yet: what is wrong with one family's costs the other one nothing."""

    def __init__(self, ends: Sequence[TunnelEnd]) -> None:
        self._left = list(ends)

    def each(self, step: Callable[[TunnelEnd], None]) -> None:
        """Take a step for each end. Raises what the last one that was left failed with."""
        for end in list(self._left):
            try:
                step(end)
            except (FlannelError, OSError):
                if self._left == [end]:
                    raise
                self._left.remove(end)


def unconfigure(name: str) -> None:
    """Remove addresses and routes from the device `name` and take it down; no such device is fine.

    Call it after the TUN's descriptor is closed: the kernel then has removed a device of our own with all that was on
    it, and only a persistent one, made by somebody else, is still there to be left clean. Raises `FlannelError`.
    """
    with open_rtnetlink(f"cleaning {name}") as netlink:
        found = device_named(netlink, name)
        if found is None:
            return
        for family in (IPV4, IPV6):
            _remove_routes(netlink, found.index, family, keep=None)
            _remove_addresses(netlink, found.index, family, keep=None)
        netlink.do(set_device(found.index, up=False, alias=""))


def external_state(index: int, addresses: Iterable[Address]) -> tuple[LinkState | None, frozenset[Address]]:
    """Ask the kernel for a device's state, ``None`` if it is gone, and which of these addresses are the host's own.

    They need not be the device's: they may be on `lo`, say. Raises `FlannelError`.
    """
    with open_rtnetlink("looking at the host's network") as netlink:
        own = frozenset(address for address in addresses if is_local(netlink, address))
        return link_state(netlink, index), own


def can_bind(address: Address) -> bool:
    """Tell whether a UDP socket of this process may have this address; true for any with net.ipv4.ip_nonlocal_bind."""
    try:
        with socket.socket(family_of(address).af, socket.SOCK_DGRAM) as udp:
            udp.bind((str(address), 0))
    except OSError:
        return False
    return True


def why_not_bound(external: Interface, address: Address) -> str | None:
    """Return why packets to an address of this interface do not get to us, ``None`` if they do.

    A link-local one cannot be had without its interface, and is ours. Blocks. Raises `FlannelError`.
    """
    if can_bind(address) or address in external_state(external.index, [address])[1]:
        return None
    return (
        f"the kernel takes no packets to {address} for this host: is {external.name} in a VRF? "
        f"`{family_of(address).ip} route get {address}` shows it"
    )


def tunnel_state(index: int, networks: Iterable[Prefix]) -> tuple[LinkState | None, frozenset[Prefix]]:
    """Ask the kernel for the state of the tunnel device, and to which of these networks the route as we make it stands.

    Raises `FlannelError`.
    """
    with open_rtnetlink("looking at the tunnel device") as netlink:
        routed = frozenset(network for network in networks if _leads_to(netlink, index, network))
        return link_state(netlink, index), routed


def repair_tunnel(index: int, mtu: int, fault: Fault) -> None:
    """Put right one of the differences of `host.repair`, and nothing else of the device. Raises `FlannelError`."""
    with open_rtnetlink(f"putting right the tunnel device's {fault.what}") as netlink:
        match fault:
            case Fault("mtu"):
                netlink.do(set_device(index, mtu=mtu))
                stop_ipv6_addresses(netlink, index)
            case Fault("ipv6"):
                stop_ipv6_addresses(netlink, index)
            case Fault("address", TunnelEnd() as end):
                _put_address(netlink, index, end.address)
            case Fault("link"):
                netlink.do(set_device(index, up=True))
                found = device(netlink, index)
                if found is not None and not found.carrier:
                    netlink.do(set_carrier(index))
            case Fault("route", TunnelEnd() as end):
                _refuse_connected_network(netlink, index, end.network)
                _put_route(netlink, index, end.network)


def stop_ipv6_addresses(netlink: Rtnetlink, index: int) -> None:
    """Keep the kernel from giving the device an fe80:: address: its router solicitations would come out of the TUN.

    And from taking routers' advertisements, and remove what came of some, see `host.advertisements`.

    The kernel takes IPv6 off a device whose MTU falls below 1,280 bytes (RFC 8200 section 5) and starts it anew, with
    the host's defaults, when that rises again; a device without IPv6 needs nothing.
    """
    found = device(netlink, index)
    if found is None or not (found.makes_ipv6_addresses or found.takes_advertisements):
        return
    advertisements.refuse(found.name)
    if found.makes_ipv6_addresses:
        netlink.do(make_no_ipv6_addresses(index), fine=(errno.EAFNOSUPPORT,))  # gone again since we asked
    remove_kernels_ipv6_addresses(netlink, index)
    learned = list(stream_routes(netlink, version=6, protocol=RTPROT_RA, oif=index))
    netlink.apply([delete_route(parse_route(body)) for body in learned])


# Addresses


def _keep_only_address(netlink: Rtnetlink, index: int, address: Address) -> None:
    _remove_addresses(netlink, index, family_of(address), keep=address)
    left = stream_addresses(netlink, index, version=address.version)
    if not any(found.valid_s == FOREVER_S and found.address == address for found in left):
        _put_address(netlink, index, address)  # or let the one that an earlier run's lease was to end stay


def _put_address(netlink: Rtnetlink, index: int, address: Address) -> None:
    message = put_address(index, address)
    (refusal,) = netlink.apply([message])
    if refusal is not None and address.version == 6 and refusal.code == errno.EACCES:
        allow_ipv6(_name(netlink, index))
        (refusal,) = netlink.apply([message])
    if refusal is None:
        return
    if address.version == 6 and refusal.code in (errno.EACCES, errno.EOPNOTSUPP):
        raise FlannelError(why_no_ipv6(_name(netlink, index)))
    raise OSError(refusal.code, refusal.why)


def _remove_addresses(netlink: Rtnetlink, index: int, family: Family, keep: Address | None) -> None:
    for found in list(stream_addresses(netlink, index, version=family.version)):
        if family is IPV6 and found.address.is_link_local:
            continue  # the kernel's own are seen to by `stop_ipv6_addresses`
        if (found.address, found.far_end, found.prefix_len) != (keep, keep, family.n_bits):
            # A subnet's first address takes its secondary ones along (promote_secondaries is off by default).
            remove_address(netlink, index, found.address, far_end=found.far_end, prefix_len=found.prefix_len)


# The overlay's route


def _leads_to(netlink: Rtnetlink, index: int, network: Prefix) -> bool:
    """Tell whether the route to `network` as we make it is there, before any other one in its place."""
    (in_force,) = routes_in_force(netlink, [network])
    if in_force is not None and _collides(in_force, network):
        return in_force.oif == index
    # Another table, a longer prefix, or a route that refuses is before it: so the kernel does not tell us of ours.
    ours = list(_ours(netlink, index, network))
    if not ours:
        return False
    if network.version == 6:
        return True  # one with a lower metric may be before it, but none takes its place; replacing would be a change
    (refusal,) = netlink.apply([replace_route(ours[0])])  # changes nothing
    return refusal is None or refusal.code != errno.EEXIST


def _ours(netlink: Rtnetlink, index: int, network: Prefix) -> Iterator[Route]:
    for body in stream_routes(netlink, version=network.version, oif=index):
        route = parse_route(body)
        if route.oif == index and _collides(route, network):
            yield route


def _collides(route: Route, network: Prefix) -> bool:
    """True for a route to `network` in the place of one of ours: the same prefix, TOS 0 and the usual metric."""
    return route.destination == network and not route.tos and route.metric == family_of(network).usual_metric


def _refuse_connected_network(netlink: Rtnetlink, index: int, network: Prefix) -> None:
    """Never take over a route that the kernel made: `network` is then another interface's own, in use by it."""
    for body in list(stream_routes(netlink, version=network.version, protocol=RTPROT_KERNEL)):
        if body[1] != network.prefixlen:
            continue
        route = parse_route(body)
        # The kernel's IPv6 routes have a better metric (256) than ours: they are before them.
        same = route.destination == network if network.version == 6 else _collides(route, network)
        if route.oif != index and same:
            owner = _name(netlink, route.oif)
            raise FlannelError(
                f"the overlay network {network} is the own network of interface {owner}: "
                f"choose another {family_of(network).network}, or remove that address from {owner}"
            )


def _keep_only_route(netlink: Rtnetlink, index: int, network: Prefix) -> None:
    _remove_routes(netlink, index, family_of(network), keep=network)
    (holder,) = routes_in_force(netlink, [network])
    if holder is not None and _collides(holder, network) and holder.oif != index:
        logger.warning("taking over the route %s, which led to %s", network, _name(netlink, holder.oif))
    _put_route(netlink, index, network)


def _put_route(netlink: Rtnetlink, index: int, network: Prefix) -> None:
    # Scope and protocol as flanneld's: `ip route` shows plainly "10.1.0.0/16 dev flannel0".
    route = Route(network, None, index, protocol=RTPROT_BOOT, type=RTN_UNICAST, metric=family_of(network).usual_metric)
    (refusal,) = netlink.apply([replace_route(route)])
    if refusal is None:
        return
    if network.version == 6 and refusal.code == errno.EACCES:
        raise FlannelError(why_no_ipv6(_name(netlink, index)))
    if refusal.code != errno.EEXIST:
        raise OSError(refusal.code, refusal.why)
    # It is there, behind another one: nobody uses it, so it can go and come back in that one's place.
    netlink.apply([delete_route(former) for former in list(_ours(netlink, index, network))])
    netlink.do(replace_route(route))


def _remove_routes(netlink: Rtnetlink, index: int, family: Family, keep: Prefix | None) -> None:
    """Remove the device's routes but the one for `keep`; those that came with an address go with the address."""
    surplus = [
        route
        for route in map(parse_route, list(stream_routes(netlink, version=family.version, oif=index)))
        if route.oif == index and route.protocol != RTPROT_KERNEL and not (keep and _collides(route, keep))
    ]
    netlink.apply([delete_route(route) for route in surplus])


def _name(netlink: Rtnetlink, index: int) -> str:
    found = device(netlink, index) if index else None
    return found.name if found else "no device"
