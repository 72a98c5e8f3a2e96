"""Which interface carries the tunnel's outer packets: flannel's order of choice, as a pure function.

1. every ``--iface``, a name, as `ip` takes and shows it, or one of the host's addresses;
2. every ``--iface-regex``, tried on all addresses, then on all names;
3. ``--iface-can-reach``: the interface and the source address of the kernel's route to it;
4. only if none of these was given, the interface that has ``--public-ip``, with IPv6 alone ``--public-ipv6``;
5. and if none has (the host is behind NAT), or it was not given either, the interface of the default route.

An address that no other host dials (169.254.0.0/16 without ``--public-ip``, 127.0.0.0/8) is none, whatever names it:
another one is waited for. A tunnel device of an agent's is none but by its name.

It is one interface for both IP families. With both, IPv4 chooses, IPv6 if IPv4 finds none; the other family's address
is the one that its own choice has on that interface, or the best there. An option that names an address of one family
names the interface to the other one.

`interface_facts.gather` asks the kernel for the facts, `decide` decides over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Literal

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.family import family_of
from flannel_udp.host.interface_facts import HostNetwork, Link
from flannel_udp.model import Address as IpAddress
from flannel_udp.model import Ends, Interface, Prefix
from flannel_udp.options import InterfaceOptions


class _NoMatchError(Exception):
    """One option led nowhere; the text says why in one clause."""


Rule = Literal["iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6", "default route"]


_FLAGS: tuple[Rule, ...] = ("iface", "iface-regex", "iface-can-reach")
_NAMED = 3
"""So many interfaces that a pattern matches are named with what is wrong: a host with pods has thousands that come and
go."""


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
        named = [link for link in host.links if link.goes_by(text)]
        link = min(named, key=lambda link: link.name != text, default=None)  # a name may have an @ in it
        if link is None:
            raise _NoMatchError("no such interface") from None
        return link, _best_address(link, version)
    # The same address may sit on several interfaces; one that is up is the one that works.
    holders = [(link, item) for link in host.links for item in link.addresses if item.address == address]
    if not holders:
        raise _NoMatchError("no interface has this address")
    link, item = min(holders, key=lambda found: (found[0].tunnel, not found[0].up, not found[0].leads_out))
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
    more = ", and others as well" if len(unusable) > _NAMED else ""
    raise _NoMatchError(" and ".join(unusable[:_NAMED]) + more or "matches no address and no name")


def _by_reach(host: HostNetwork, version: int) -> tuple[Link, IpAddress]:
    link = host.link(host.reach.link_index) if host.reach else None
    if host.reach is None or link is None:
        raise _NoMatchError("no route leads there (or it is this host's own address)")
    if link.tunnel:
        raise _NoMatchError(link.why_unusable(version))
    source = host.reach.source
    if source is None or source.version != version or host.refuses(source):
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
