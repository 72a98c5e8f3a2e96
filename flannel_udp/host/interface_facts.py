"""What the kernel says of this host's interfaces: the facts that `host.interface` decides over.

`gather` asks; the rest is values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from flannel_udp.errors import UsageError
from flannel_udp.host import links
from flannel_udp.host.family import family_of
from flannel_udp.host.links import IFA_F_DADFAILED, RT_SCOPE_UNIVERSE, stream_addresses, stream_devices
from flannel_udp.host.nexthops import devices_of
from flannel_udp.host.route_query import find_way, stream_default_routes
from flannel_udp.host.rtnetlink import RTN_UNICAST, Rtnetlink, open_rtnetlink, parse_route
from flannel_udp.model import Address as IpAddress
from flannel_udp.model import Prefix
from flannel_udp.netconf.addresses import LINK_LOCAL, LINK_LOCAL_V6, why_not_dialled
from flannel_udp.options import InterfaceOptions

# linux/if_addr.h, linux/rtnetlink.h
_IFA_F_TEMPORARY, _IFA_F_DEPRECATED = 0x01, 0x20
_RT_SCOPE_LINK = 253
VERSIONS = (4, 6)


@dataclass(frozen=True, slots=True)
class Address:
    """One address of the host; ``scope`` is rtnetlink's: 0 global, 200 site, 253 link-local, 254 host."""

    address: IpAddress
    scope: int = RT_SCOPE_UNIVERSE
    deprecated: bool = False
    temporary: bool = False
    """One of those that a host changes so that nobody knows it again (RFC 8981)."""
    tentative: bool = False
    """Nobody may use it yet: the kernel still asks whether another host has it (RFC 4862 section 5.4)."""
    duplicate: bool = False
    """Another host has it, and the kernel does not use it."""
    ours: str | None = None
    """A clause that says why it is one of our own devices', see `HostNetwork.outside`."""
    behind_nat: bool = False
    """Others dial another address in its place, ``--public-ip`` (``--public-ipv6``)."""

    def rank(self) -> tuple[int, int, bool, bool]:
        """Return what the smaller of goes first.

        How long an address is valid says nothing: the host's own is DHCP's for an hour, a virtual one stays for ever.
        """
        return self.address.version, self.scope, self.deprecated, self.temporary

    def why_unusable(self) -> str | None:
        """Return a clause that goes on after the address, ``None`` if outer packets can bear it."""
        if self.duplicate:
            return "is a duplicate: another host on the link has it"
        if self.tentative:
            return "is tentative: the kernel still asks whether another host has it"
        if self.ours is not None:
            return self.ours
        # A link-local one is a way out, too, where others dial another one; IPv6's cannot be bound without a zone.
        leads_out = self.behind_nat and self.address in LINK_LOCAL
        return None if leads_out else why_not_dialled(self.address)


@dataclass(frozen=True, slots=True)
class Link:
    """One network device; ``mtu`` in bytes, ``addresses`` in the kernel's order."""

    index: int
    name: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    up: bool = True
    loopback: bool = False
    carrier: bool = True
    leads_out: bool = True
    tunnel: bool = False
    """Whether it is a tunnel device of flannel-udp's, ours or another agent's, that no ``--iface`` names."""
    altnames: tuple[str, ...] = ()

    def goes_by(self, text: str) -> bool:
        """Tell whether that is a name of it that `ip` takes, or shows: a VLAN's ``eth0.100@eth0``, say."""
        return goes_by(text, self.name, self.altnames)

    def ranked(self, version: int = 4) -> list[IpAddress]:
        """Return the addresses of a family that can be used, best first.

        That is: the widest scope, not deprecated, not temporary, and then the one that was there first. The kernel
        lists IPv6's newest first, so a virtual address that moves between hosts (VRRP) before the host's own.
        """
        listed = self.addresses if version == 4 else self.addresses[::-1]
        usable = [item for item in listed if item.why_unusable() is None and item.address.version == version]
        return [item.address for item in sorted(usable, key=Address.rank)]

    def why_unusable(self, version: int = 4) -> str | None:
        """Return one clause saying why no outer packet of a family can leave here, ``None`` if one can."""
        if self.tunnel:
            return f"{self.name} is a tunnel device of flannel-udp's, by its alias"
        if not self.up:
            return f"{self.name} is down"
        if self.ranked(version):
            return None
        found = [item for item in self.addresses if item.address.version == version]
        for item in found:
            if item.tentative or item.duplicate or item.address not in LINK_LOCAL_V6:
                return f"{item.address} of {self.name} {item.why_unusable()}"
        others = " but link-local ones, which other hosts cannot dial" if found else ""
        return f"{self.name} has no {family_of(version).name} address{others}"

    def waits(self, version: int) -> bool:
        """Tell whether an address of that family will be there in a moment."""
        found = [item for item in self.addresses if item.address.version == version]
        return (
            self.carrier and not self.ranked(version) and any(item.tentative and not item.duplicate for item in found)
        )


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A unicast default route of the main table; the lowest metric wins."""

    link_index: int
    metric: int = 0
    version: int = 4


@dataclass(frozen=True, slots=True)
class Reach:
    """The kernel's unicast route to the address of ``--iface-can-reach``."""

    link_index: int
    source: IpAddress | None
    """``None`` for a route that has none: over a device without an address, say."""


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """The facts the choice is made over, as they stood at one moment."""

    links: tuple[Link, ...]
    default_routes: tuple[DefaultRoute, ...] = ()
    reach: Reach | None = None

    def link(self, index: int) -> Link | None:
        """Return the device with this index, ``None`` if it went away between two questions to the kernel."""
        return next((link for link in self.links if link.index == index), None)

    def outside(self, overlays: Sequence[Prefix]) -> HostNetwork:
        """Return these facts for a choice that takes none of our own devices: cni0, or one with an overlay address."""
        links = tuple(replace(link, addresses=tuple(_judged(link, overlays))) for link in self.links)
        source = None if self.reach is None else self.reach.source
        inside = source is not None and any(source in overlay for overlay in overlays)
        return replace(self, links=links, reach=None if inside else self.reach)

    def holds(self, address: IpAddress) -> bool:
        """Tell whether this is an address of the host's.

        `lo` and a dummy count, which routing daemons announce addresses of, but no dummy that is down: kube-proxy keeps
        addresses of Services on one.
        """
        links = (link for link in self.links if link.up or link.leads_out)
        return any(item.address == address for link in links for item in link.addresses)

    def refuses(self, address: IpAddress) -> bool:
        """Tell whether this is an address of the host's that outer packets cannot bear."""
        found = [item for link in self.links for item in link.addresses if item.address == address]
        return bool(found) and all(item.why_unusable() is not None for item in found)

    @property
    def has_ipv6(self) -> bool:
        """Whether an interface has an IPv6 address that others can dial."""
        found = (item for link in self.links if not link.loopback for item in link.addresses)
        return any(item.address.version == 6 and not item.address.is_link_local for item in found)

    def usable_links(self, version: int = 4) -> list[Link]:
        """Return the devices that can carry the tunnel, the loopback last: ``.*`` means a wire if there is one."""
        usable = (link for link in self.links if link.why_unusable(version) is None)
        return sorted(usable, key=lambda link: link.loopback)


def _judged(link: Link, overlays: Sequence[Prefix]) -> Iterator[Address]:
    # After a change of the overlay network the pods' bridge has an address of the former one.
    other = "is on the pods' bridge, which leads to no other host" if link.name == links.CNI_BRIDGE else None
    for item in link.addresses:
        found = (overlay for overlay in overlays if item.address in overlay)
        why = (f"lies in the overlay network {it}: what leaves from there comes back into the tunnel" for it in found)
        yield replace(item, ours=next(why, other))


def gather(options: InterfaceOptions, versions: Sequence[int] = (4,)) -> HostNetwork:
    """Ask the kernel for the facts that `interface.decide` needs under these options; blocks for some milliseconds.

    Raises `UsageError` if ``--iface-can-reach`` is no IP address, `FlannelError` if netlink does not work.
    """
    with open_rtnetlink("listing the network interfaces") as netlink:
        reach = _look_up(netlink, _parse_can_reach(options.iface_can_reach)) if options.iface_can_reach else None
        links = _read_links(netlink, options)
        # A host may hold a whole Internet's routes: they are read only if they decide, and last: the rest stays unread.
        wanted = () if options.by_flags else versions
        return HostNetwork(links, tuple(route for version in wanted for route in _default_routes(version)), reach)


def goes_by(text: str, name: str, altnames: Sequence[str]) -> bool:
    """Tell whether a text names the device of these names, as `Link.goes_by` does."""
    return text in (name, *altnames) or text.partition("@")[0] == name


def _parse_can_reach(text: str) -> IpAddress:
    try:
        return ip_address(text)
    except ValueError as error:
        raise UsageError(f"--iface-can-reach={text}: not an IP address") from error


def _look_up(netlink: Rtnetlink, target: IpAddress) -> Reach | None:
    way = find_way(netlink, target)
    if way is None or way.type != RTN_UNICAST:
        return None
    return Reach(way.oif, way.source)


def _read_links(netlink: Rtnetlink, options: InterfaceOptions) -> tuple[Link, ...]:
    addresses: dict[int, list[Address]] = {}
    for version, public in ((4, options.public_ip), (6, options.public_ipv6)):
        for found in stream_addresses(netlink, version=version):
            addresses.setdefault(found.index, []).append(_judge(found, behind_nat=public is not None))
    return tuple(
        Link(
            found.index,
            found.name,
            found.mtu,
            tuple(addresses.get(found.index, ())),
            found.up,
            found.loopback,
            found.carrier,
            found.leads_out,
            # Who runs one overlay through another one says so.
            tunnel=found.alias == links.MARK
            and not any(goes_by(text, found.name, found.altnames) for text in options.iface),
            altnames=found.altnames,
        )
        for found in stream_devices(netlink)
    )


def _judge(found: links.Address, *, behind_nat: bool) -> Address:
    ipv6 = found.address.version == 6  # IPv4 has no such states: the numbers mean something else, or nothing
    flags = found.flags
    return Address(
        address=found.address,
        # `ip address add 169.254.1.1/16` gets global scope unless told otherwise: look at the address too.
        scope=max(found.scope, _RT_SCOPE_LINK) if found.address.is_link_local else found.scope,
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        temporary=ipv6 and bool(flags & _IFA_F_TEMPORARY),
        tentative=not found.usable,
        duplicate=ipv6 and bool(flags & IFA_F_DADFAILED),
        behind_nat=behind_nat,
    )


def _default_routes(version: int) -> list[DefaultRoute]:
    doing = "listing the default routes"
    with open_rtnetlink(doing) as netlink:  # on a channel of its own: the rest of the table is left unread there
        found = [(body, parse_route(body)) for body in stream_default_routes(netlink, version)]
    with open_rtnetlink(doing) as netlink:
        return [
            DefaultRoute(index, route.metric, version)
            for body, route in found
            if route.type == RTN_UNICAST
            for index in devices_of(netlink, body)  # with several next hops the route itself names no interface
        ]
