"""Which interface carries the tunnel's outer packets: flannel's order of choice, as a pure function.

1. every ``--iface``, a name or one of the host's addresses;
2. every ``--iface-regex``, tried on all addresses, then on all names;
3. ``--iface-can-reach``: the interface and the source address of the kernel's route to it;
4. only if none of these was given, the interface of the default route.

`gather` asks the kernel for the facts, `choose` decides over them.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from socket import AF_INET
from typing import Any, Literal

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.netlink import IFF_UP, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTN_UNICAST, address_of, open_netlink
from flannel_udp.model import Interface
from flannel_udp.options import InterfaceOptions

logger = logging.getLogger(__name__)

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
_IFF_LOOPBACK = 0x8
_IFA_F_DEPRECATED = 0x20
_IFA_F_PERMANENT = 0x80
_RT_SCOPE_LINK = 253

_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
"""How the kernel answers a route lookup: no route; an `unreachable`, a `prohibit`, a `blackhole` route."""


@dataclass(frozen=True, slots=True)
class Address:
    """One IPv4 address of the host; ``scope`` is rtnetlink's: 0 global, 200 site, 253 link-local, 254 host."""

    address: IPv4Address
    scope: int = RT_SCOPE_UNIVERSE
    permanent: bool = True
    deprecated: bool = False

    def rank(self) -> tuple[int, bool, bool]:
        """Return what the smaller of goes first."""
        return self.scope, self.deprecated, not self.permanent


@dataclass(frozen=True, slots=True)
class Link:
    """One network device; ``mtu`` in bytes, ``addresses`` in the kernel's order."""

    index: int
    name: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    up: bool = True
    loopback: bool = False

    def ranked(self) -> list[IPv4Address]:
        """Return the addresses, best first: widest scope, not deprecated, permanent, and then the kernel's order."""
        return [item.address for item in sorted(self.addresses, key=Address.rank)]

    def why_unusable(self) -> str | None:
        """Return one clause saying why no outer packet can leave here, ``None`` if one can."""
        if not self.up:
            return f"{self.name} is down"
        if not self.addresses:
            return f"{self.name} has no IPv4 address"
        return None


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A unicast default route of the main table; the lowest metric wins."""

    link_index: int
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Reach:
    """The kernel's unicast route to the address of ``--iface-can-reach``."""

    link_index: int
    source: IPv4Address | None
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

    def usable_links(self) -> list[Link]:
        """Return the devices that can carry the tunnel, the loopback last: ``.*`` means a wire if there is one."""
        return sorted((link for link in self.links if link.why_unusable() is None), key=lambda link: link.loopback)


class _NoMatchError(Exception):
    """One option led nowhere; the text says why in one clause."""


Rule = Literal["iface", "iface-regex", "iface-can-reach", "default route"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step of the choice: an option with its text (none for the default route), and how it is looked for."""

    rule: Rule
    text: str
    find: Callable[[HostNetwork], tuple[Link, IPv4Address]]

    def __str__(self) -> str:
        return self.rule if self.rule == "default route" else f"--{self.rule}={self.text}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of the attempts: the last one made, what it found, and what the ones before it (or all) said."""

    made: Attempt
    interface: Interface | None
    refusals: tuple[str, ...]
    """One clause an attempt that led nowhere, "OPTION: why"."""


def decide(options: InterfaceOptions, host: HostNetwork) -> Choice:
    """Make the attempts in their order until one finds an interface. Raises `UsageError` for a broken regex."""
    attempts = [Attempt("iface", text, partial(_by_name_or_address, text)) for text in options.iface]
    attempts += [Attempt("iface-regex", text, partial(_by_pattern, _compile(text))) for text in options.iface_regex]
    if options.iface_can_reach:
        attempts.append(Attempt("iface-can-reach", options.iface_can_reach, _by_reach))
    refusals: list[str] = []
    for attempt in attempts or [Attempt("default route", "", _by_default_route)]:
        made = attempt
        try:
            link, address = attempt.find(host)
        except _NoMatchError as error:
            refusals.append(f"{attempt}: {error}")
            continue
        interface = Interface(link.name, link.index, link.mtu, address, options.public_ip or address)
        return Choice(made, interface, tuple(refusals))
    return Choice(made, None, tuple(refusals))


def choose(options: InterfaceOptions, host: HostNetwork) -> Interface:
    """Choose the external interface and the address to bind.

    Raises `FlannelError` when none of the options given matches, or none was given and the host has no usable default
    route: an interface may come yet. `UsageError` for a broken regex.
    """
    choice = decide(options, host)
    if choice.interface is None:
        raise no_interface(choice, host)
    for refusal in choice.refusals:
        logger.warning("%s; going on with %s", refusal, choice.made)
    return choice.interface


def no_interface(choice: Choice, host: HostNetwork) -> FlannelError:
    """Return the error of a choice that found nothing."""
    existing = ", ".join(f"{link.name} ({' '.join(map(str, link.ranked()))})" for link in host.usable_links())
    tail = f"interfaces that are up with an IPv4 address: {existing or 'none'}"
    if choice.made.rule != "default route":
        return FlannelError(f"no interface matches: {'; '.join(choice.refusals)}; {tail}")
    return FlannelError(f"no interface to use: {choice.refusals[0]}; name one with --iface; {tail}")


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--iface-regex={text}: not a regular expression: {error}") from error


def _by_name_or_address(text: str, host: HostNetwork) -> tuple[Link, IPv4Address]:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        link = next((link for link in host.links if link.name == text), None)
        if link is None:
            raise _NoMatchError("no such interface") from None
        return link, _best_address(link)
    # The same address may sit on several interfaces; one that is up is the one that works.
    holders = [link for link in host.links if address in link.ranked()]
    if not holders:
        raise _NoMatchError("no interface has this address")
    link = next((link for link in holders if link.up), holders[0])
    _best_address(link)
    return link, address


def _by_pattern(pattern: re.Pattern[str], host: HostNetwork) -> tuple[Link, IPv4Address]:
    usable = host.usable_links()
    for link in usable:
        for address in link.ranked():
            if pattern.search(str(address)):
                return link, address
    for link in usable:
        if pattern.search(link.name):
            return link, link.ranked()[0]
    unusable = [reason for link in host.links if pattern.search(link.name) and (reason := link.why_unusable())]
    raise _NoMatchError(" and ".join(unusable) or "matches no address and no name")


def _by_reach(host: HostNetwork) -> tuple[Link, IPv4Address]:
    link = host.link(host.reach.link_index) if host.reach else None
    if host.reach is None or link is None:
        raise _NoMatchError("no route leads there (or it is this host's own address)")
    return link, host.reach.source or _best_address(link)


def _by_default_route(host: HostNetwork) -> tuple[Link, IPv4Address]:
    reasons = []
    for route in sorted(host.default_routes, key=lambda route: route.metric):
        link = host.link(route.link_index)
        if link is None:
            continue
        try:
            return link, _best_address(link)
        except _NoMatchError as error:
            reasons.append(str(error))
    raise _NoMatchError("; ".join(reasons) or "this host has none for IPv4")


def _best_address(link: Link) -> IPv4Address:
    reason = link.why_unusable()
    if reason is not None:
        raise _NoMatchError(reason)
    return link.ranked()[0]


def gather(options: InterfaceOptions) -> HostNetwork:
    """Ask the kernel for the facts that `choose` needs under these options; blocks for some milliseconds.

    Raises `UsageError` if ``--iface-can-reach`` is no IPv4 address, `FlannelError` if netlink does not work.
    """
    with open_netlink("listing the network interfaces") as ip:
        reach = _look_up(ip, _parse_can_reach(options.iface_can_reach)) if options.iface_can_reach else None
        by_default_route = not (options.iface or options.iface_regex or options.iface_can_reach)
        return HostNetwork(
            links=_read_links(ip),
            # A host may hold a whole Internet's routes: they are read only if they decide.
            default_routes=_read_default_routes(ip) if by_default_route else (),
            reach=reach,
        )


def _parse_can_reach(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise UsageError(f"--iface-can-reach={text}: not an IPv4 address") from error


def _look_up(ip: IPRoute, target: IPv4Address) -> Reach | None:
    try:
        messages = list(ip.route("get", dst=str(target)))
    except NetlinkError as error:
        if error.code in _NO_ROUTE:
            return None
        raise
    for message in messages:
        if message["type"] == RTN_UNICAST:
            source = message.get_attr("RTA_PREFSRC")
            return Reach(message.get_attr("RTA_OIF"), IPv4Address(source) if source else None)
    return None


def _read_links(ip: IPRoute) -> tuple[Link, ...]:
    addresses: dict[int, list[Address]] = {}
    for message in ip.get_addr(family=AF_INET):
        addresses.setdefault(message["index"], []).append(_read_address(message))
    return tuple(
        Link(
            index=message["index"],
            name=message.get_attr("IFLA_IFNAME"),
            mtu=message.get_attr("IFLA_MTU"),
            addresses=tuple(addresses.get(message["index"], ())),
            up=bool(message["flags"] & IFF_UP),
            loopback=bool(message["flags"] & _IFF_LOOPBACK),
        )
        for message in ip.get_links()
    )


def _read_address(message: Any) -> Address:
    address = address_of(message)
    flags = message["flags"]  # the low eight bits; the attribute IFA_FLAGS has all 32
    return Address(
        address=address,
        # `ip address add 169.254.1.1/16` gets global scope unless told otherwise: look at the address too.
        scope=max(message["scope"], _RT_SCOPE_LINK) if address.is_link_local else message["scope"],
        permanent=bool(flags & _IFA_F_PERMANENT),
        deprecated=bool(flags & _IFA_F_DEPRECATED),
    )


def _read_default_routes(ip: IPRoute) -> tuple[DefaultRoute, ...]:
    routes = []
    for message in ip.get_routes(family=AF_INET, table=RT_TABLE_MAIN):
        in_main = message.get_attr("RTA_TABLE") == RT_TABLE_MAIN
        if not in_main or message["dst_len"] != 0 or message["type"] != RTN_UNICAST:
            continue
        metric = message.get_attr("RTA_PRIORITY") or 0
        # With several next hops the route has no RTA_OIF: each hop names its own.
        hops = [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
        routes += [DefaultRoute(index, metric) for index in hops or [message.get_attr("RTA_OIF")]]
    return tuple(routes)
