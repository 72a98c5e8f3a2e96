"""Which interface carries the tunnel's outer packets: flannel's order of choice, as a pure function.

1. every ``--iface``, a name or one of the host's addresses;
2. every ``--iface-regex``, tried on all addresses, then on all names;
3. ``--iface-can-reach``: the interface and the source address of the kernel's route to it;
4. only if none of these was given, the interface that has ``--public-ip``, with IPv6 alone ``--public-ipv6``;
5. and if none has (the host is behind NAT), or it was not given either, the interface of the default route.

It is one interface for both IP families. With both, IPv4 chooses, IPv6 if IPv4 finds none; the other family's address
is the one that its own choice has on that interface, or the best there. An option that names an address of one family
names the interface to the other one.

`gather` asks the kernel for the facts, `decide` decides over them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Literal

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host import links
from flannel_udp.host.family import family_of
from flannel_udp.host.links import CNI_BRIDGE, IFA_F_DADFAILED, RT_SCOPE_UNIVERSE, stream_addresses, stream_devices
from flannel_udp.host.route_query import find_way, next_hop_devices, stream_default_routes
from flannel_udp.host.rtnetlink import RTN_UNICAST, Rtnetlink, open_rtnetlink, parse_route
from flannel_udp.model import Address as IpAddress
from flannel_udp.model import Ends, Interface, Prefix
from flannel_udp.options import InterfaceOptions

logger = logging.getLogger(__name__)

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
        if self.address.version == 6 and self.address.is_link_local:
            return "is link-local: other hosts cannot dial it"
        return None


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
        if not self.up:
            return f"{self.name} is down"
        if self.ranked(version):
            return None
        found = [item for item in self.addresses if item.address.version == version]
        for item in found:
            if item.tentative or item.duplicate or item.ours is not None:
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
    other = "is on the pods' bridge, which leads to no other host" if link.name == CNI_BRIDGE else None
    for item in link.addresses:
        found = (overlay for overlay in overlays if item.address in overlay)
        why = (f"lies in the overlay network {it}: what leaves from there comes back into the tunnel" for it in found)
        yield replace(item, ours=next(why, other))


class _NoMatchError(Exception):
    """One option led nowhere; the text says why in one clause."""


Rule = Literal["iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6", "default route"]


_FLAGS: tuple[Rule, ...] = ("iface", "iface-regex", "iface-can-reach")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step of the choice: an option with its text (none for the default route), and how it is looked for."""

    rule: Rule
    text: str
    find: Callable[[HostNetwork, int], tuple[Link, IpAddress]]
    """For one family, by IP version."""

    def __str__(self) -> str:
        return self.rule if self.rule == "default route" else f"--{self.rule}={self.text}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of the attempts: the last one made, what it found, and what the ones before it (or all) said."""

    made: Attempt
    interface: Interface | None
    refusals: tuple[str, ...]
    """One clause an attempt that led nowhere, "OPTION: why"."""
    lacks: tuple[str, ...] = ()
    """Why the interface has no address of a family that is wanted, one clause each."""
    waits: bool = False
    """Whether such an address will be there in a moment."""
    version: int = 4
    """The IP version of the family that chose."""


def decide(options: InterfaceOptions, host: HostNetwork, versions: Sequence[int] = (4,)) -> Choice:
    """Choose the interface and the addresses for these IP versions. Raises `UsageError` for a broken regex."""
    choices = [_decide(options, host, version) for version in versions]
    first = next((choice for choice in choices if choice.interface is not None), None)
    if first is None:
        refusals = dict.fromkeys(refusal for choice in choices for refusal in choice.refusals)
        return replace(choices[0], refusals=tuple(refusals))
    interface = first.interface
    assert interface is not None  # noqa: S101 - or it were not the first that has one
    others = {version: choice for version, choice in zip(versions, choices, strict=True) if choice is not first}
    interface, lacks, waits = _complete(options, host, interface, others)
    return replace(first, interface=interface, lacks=lacks, waits=waits)


def complete(options: InterfaceOptions, host: HostNetwork, interface: Interface, versions: Sequence[int]) -> Interface:
    """Return the interface with an address of each of these IP versions that it lacked, as far as there is one now."""
    missing = [version for version in versions if interface.of(version) is None]
    return _complete(options, host, interface, {version: _decide(options, host, version) for version in missing})[0]


def _complete(
    options: InterfaceOptions, host: HostNetwork, interface: Interface, choices: Mapping[int, Choice]
) -> tuple[Interface, tuple[str, ...], bool]:
    """Give the interface the addresses that `choices`, by IP version, have on it, else the best there.

    Return also why it has none of a family, and whether there will be one in a moment.
    """
    link = host.link(interface.index)
    if link is None:
        return interface, (), False
    lacks, waits = [], False
    for version, choice in choices.items():
        own = choice.interface
        if own is not None and own.index == link.index:
            interface = _with(interface, version, own.of(version))
        elif (why := link.why_unusable(version)) is None:
            interface = with_address(options, interface, link, link.ranked(version)[0])
        else:
            lacks.append(why)
            waits |= link.waits(version)
    return interface, tuple(lacks), waits


def with_address(options: InterfaceOptions, interface: Interface, link: Link, address: IpAddress) -> Interface:
    """Return the interface, which is this link, with another address of that family.

    Where the link has the public IP itself it is that one: other hosts take nothing from another.
    """
    version = address.version
    public = options.public_ip if version == 4 else options.public_ipv6
    own = public if public in link.ranked(version) else address
    return _with(interface, version, Ends(own, public or own))


def _with(interface: Interface, version: int, ends: Ends | None) -> Interface:
    return replace(interface, v4=ends) if version == 4 else replace(interface, v6=ends)


def decide_outside(
    options: InterfaceOptions, host: HostNetwork, versions: Sequence[int], overlays: Sequence[Prefix]
) -> tuple[Choice, HostNetwork]:
    """Choose no address in these overlays, and return by which facts; one in there where there is no other."""
    facts = host.outside(overlays)
    choice = decide(options, facts, versions)
    # The overlay may be the host's own network: that is the configuration's fault, and said with it.
    return (choice, facts) if choice.interface is not None else (decide(options, host, versions), host)


def _decide(options: InterfaceOptions, host: HostNetwork, version: int) -> Choice:
    """Make the attempts in their order until one finds an interface that has an address of this IP version."""
    attempts = [Attempt("iface", text, partial(_by_name_or_address, text)) for text in options.iface]
    attempts += [Attempt("iface-regex", text, partial(_by_pattern, _compile(text))) for text in options.iface_regex]
    if options.iface_can_reach:
        attempts.append(Attempt("iface-can-reach", options.iface_can_reach, _by_reach))
    refusals: list[str] = []
    public = options.public_ip if version == 4 else options.public_ipv6
    if not attempts and public is not None:
        rule: Rule = "public-ip" if version == 4 else "public-ipv6"
        attempt = Attempt(rule, str(public), partial(_by_name_or_address, str(public)))
        if host.holds(public):
            attempts.append(attempt)  # waited for if its interface is down: another one would send from a wrong address
        else:
            refusals.append(f"{attempt}: no interface has this address: a NAT in front of us")
    for attempt in attempts or [Attempt("default route", "", _by_default_route)]:
        made = attempt
        try:
            link, address = attempt.find(host, version)
        except _NoMatchError as error:
            refusals.append(f"{attempt}: {error}")
            continue
        interface = with_address(options, Interface(link.name, link.index, link.mtu, None), link, address)
        return Choice(made, interface, tuple(refusals), version=version)
    return Choice(made, None, tuple(refusals), version=version)


def choose(options: InterfaceOptions, host: HostNetwork, versions: Sequence[int] = (4,)) -> Interface:
    """Choose the external interface and the addresses to bind.

    Raises `FlannelError` when none of the options given matches, or none was given and the host has no usable default
    route: an interface may come yet. `UsageError` for a broken regex.
    """
    choice = decide(options, host, versions)
    if choice.interface is None:
        raise no_interface(choice, host, versions)
    return choice.interface


def no_interface(choice: Choice, host: HostNetwork, versions: Sequence[int] = (4,)) -> FlannelError:
    """Return the error of a choice that found nothing."""
    usable = dict.fromkeys(link for version in versions for link in host.usable_links(version))
    existing = ", ".join(
        f"{link.name} ({' '.join(str(address) for version in versions for address in link.ranked(version))})"
        for link in usable
    )
    which = " or ".join(family_of(version).name for version in versions)
    tail = f"interfaces that are up with an {which} address: {existing or 'none'}"
    if choice.made.rule in _FLAGS:
        return FlannelError(f"no interface matches: {'; '.join(choice.refusals)}; {tail}")
    return FlannelError(f"no interface to use: {'; '.join(choice.refusals)}; name one with --iface; {tail}")


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--iface-regex={text}: not a regular expression: {error}") from error


def _by_name_or_address(text: str, host: HostNetwork, version: int) -> tuple[Link, IpAddress]:
    try:
        address = ip_address(text)
    except ValueError:
        link = next((link for link in host.links if link.name == text), None)
        if link is None:
            raise _NoMatchError("no such interface") from None
        return link, _best_address(link, version)
    # The same address may sit on several interfaces; one that is up is the one that works.
    holders = [(link, item) for link in host.links for item in link.addresses if item.address == address]
    if not holders:
        raise _NoMatchError("no interface has this address")
    link, item = min(holders, key=lambda found: (not found[0].up, not found[0].leads_out))
    best = _best_address(link, version)
    if address.version != version:
        return link, best
    if (why := item.why_unusable()) is not None:
        raise _NoMatchError(f"it {why}")
    return link, address


def _by_pattern(pattern: re.Pattern[str], host: HostNetwork, version: int) -> tuple[Link, IpAddress]:
    usable = host.usable_links(version)
    for link in usable:
        for address in link.ranked(version):
            if pattern.search(str(address)):
                return link, address
    for link in usable:
        if pattern.search(link.name):
            return link, link.ranked(version)[0]
    unusable = [reason for link in host.links if pattern.search(link.name) and (reason := link.why_unusable(version))]
    raise _NoMatchError(" and ".join(unusable) or "matches no address and no name")


def _by_reach(host: HostNetwork, version: int) -> tuple[Link, IpAddress]:
    link = host.link(host.reach.link_index) if host.reach else None
    if host.reach is None or link is None:
        raise _NoMatchError("no route leads there (or it is this host's own address)")
    source = host.reach.source
    if source is None or source.version != version or (version == 6 and source.is_link_local):
        return link, _best_address(link, version)
    return link, source


def _by_default_route(host: HostNetwork, version: int) -> tuple[Link, IpAddress]:
    reasons, link_local = [], []
    routes = (route for route in host.default_routes if route.version == version)
    for route in sorted(routes, key=lambda route: route.metric):
        link = host.link(route.link_index)
        if link is None:
            continue
        try:
            address = _best_address(link, version)
        except _NoMatchError as error:
            reasons.append(str(error))
            continue
        if not address.is_link_local:
            return link, address
        link_local.append((link, address))
    if link_local:
        return link_local[0]
    raise _NoMatchError("; ".join(reasons) or f"this host has none for {family_of(version).name}")


def _best_address(link: Link, version: int) -> IpAddress:
    reason = link.why_unusable(version)
    if reason is not None:
        raise _NoMatchError(reason)
    return link.ranked(version)[0]


def gather(options: InterfaceOptions, versions: Sequence[int] = (4,)) -> HostNetwork:
    """Ask the kernel for the facts that `decide` needs under these options; blocks for some milliseconds.

    Raises `UsageError` if ``--iface-can-reach`` is no IP address, `FlannelError` if netlink does not work.
    """
    with open_rtnetlink("listing the network interfaces") as netlink:
        reach = _look_up(netlink, _parse_can_reach(options.iface_can_reach)) if options.iface_can_reach else None
        links = _read_links(netlink)
        # A host may hold a whole Internet's routes: they are read only if they decide, and last: the rest stays unread.
        wanted = () if options.by_flags else versions
        return HostNetwork(links, tuple(route for version in wanted for route in _default_routes(version)), reach)


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


def _read_links(netlink: Rtnetlink) -> tuple[Link, ...]:
    addresses: dict[int, list[Address]] = {}
    for version in VERSIONS:
        for found in stream_addresses(netlink, version=version):
            addresses.setdefault(found.index, []).append(_judge(found))
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
        )
        for found in stream_devices(netlink)
    )


def _judge(found: links.Address) -> Address:
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
    )


def _default_routes(version: int) -> list[DefaultRoute]:
    routes = []
    # On a channel of its own each: the rest of the table is left unread there.
    with open_rtnetlink("listing the default routes") as netlink:
        for body in stream_default_routes(netlink, version):
            route = parse_route(body)
            if route.type == RTN_UNICAST:
                # With several next hops the route itself names no interface.
                routes += [DefaultRoute(index, route.metric, version) for index in next_hop_devices(body)]
    return routes
