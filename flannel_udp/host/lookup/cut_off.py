"""Whether the overlay's route takes what the agent itself needs: the registry, resolvers, the gateway.

An overlay network that holds such an address cuts the host off unless a route to a part of it leads there: a longer
prefix wins. We add none of these: how the underlay is reached is its owner's business.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import IPV4, IPV6, Family, family_of
from flannel_udp.host.lookup.question import RTN_LOCAL, DeviceNames, Entry, Question, Way, Ways, ask, understand
from flannel_udp.host.lookup.rules import PolicyRule, read_rules, taking
from flannel_udp.host.rtnetlink import RT_TABLE_MAIN, Rtnetlink, open_rtnetlink
from flannel_udp.model import Address, Degradation, Prefix

RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second one has those that systemd-resolved asks, where the first one names itself."""
RESOLVE_S = 2.0
"""How long a name may take: what is not known then is asked again some other time."""


class Need(NamedTuple):
    """An address that the agent needs, and what it is to it."""

    what: str
    address: Address
    vital: bool = True
    """Whether the agent cannot do without; else only others on this host can't."""


async def resolve(what: str, host: str) -> list[Need]:
    """Return a server's addresses; none for a name that is not known just now."""
    try:
        return [Need(what, ip_address(host.strip("[]")))]
    except ValueError:
        pass
    try:
        # The thread that resolves is left to end by itself. wait_for loses a cancellation before Python 3.12.
        async with asyncio.timeout(RESOLVE_S):
            answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return []
    addresses = {ip_address(answer[4][0]) for answer in answers}
    return [Need(what, address) for address in sorted(addresses, key=lambda each: (each.version, int(each)))]


def resolvers(files: Iterable[Path] = RESOLVER_FILES, *, vital: bool) -> list[Need]:
    """Return the name servers that this host asks; they are `vital` where the registry is known by a name."""
    needs: dict[Address, Need] = {}
    for path in files:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        for found in re.findall(r"^\s*nameserver\s+([\d.]+|[\da-fA-F:.]*:[\da-fA-F:.]*)\s*$", text, re.MULTILINE):
            try:
                address = ip_address(found)
            except ValueError:
                continue
            needs.setdefault(address, Need(f"the resolver in {path}", address, vital))
    return list(needs.values())


def gateways(netlink: Rtnetlink, needs: Sequence[Need], family: Family) -> list[Need]:
    """Return the gateways on the way to those of this family, and the default route's. Raises `OSError`."""
    own = [need.address for need in needs if need.address.version == family.version]
    questions = [Question(address) for address in (family.nobody, *own)]
    entries = [entry for answer in ask(netlink, questions) if isinstance(entry := understand(answer), Entry)]
    found = {hop.gateway for entry in entries for hop in entry.hops if hop.gateway is not None}
    return [Need("the gateway", gateway) for gateway in sorted(found, key=int)]


# Before there are routes of ours


def refuse_cut_off(route_for: Callable[[Address], Prefix | None], needs: Sequence[Need]) -> list[str]:
    """Raise `FlannelError` if a route that we may set takes a vital need from the route that leads there now.

    `route_for` returns the destination of our route that would have the address, ``None`` for none. Returns a warning
    for each other need.
    """
    warnings = []
    with open_rtnetlink("asking which way the registry is") as netlink:
        needs = [*needs, *gateways(netlink, needs, IPV4), *gateways(netlink, needs, IPV6)]
        inside = [(need, ours) for need in needs if (ours := route_for(need.address)) is not None]
        answers = [understand(answer) for answer in ask(netlink, [Question(need.address) for need, _ in inside])]
        rules = {version: read_rules(netlink, version) for version in {ours.version for _, ours in inside}}
        names = DeviceNames(netlink)
        for (need, ours), answer in zip(inside, answers, strict=True):
            if not stays(answer, ours, Question(need.address), rules[ours.version]):
                text = _refusal(need, ours, answer, names)
                if need.vital:
                    raise FlannelError(text)
                warnings.append(text)
    return warnings


def stays(answer: Entry | int, ours: Prefix, question: Question, rules: Sequence[PolicyRule]) -> bool:
    """Tell whether the kernel's answer will be the same once there is a route to `ours` in the main table."""
    if isinstance(answer, int):
        return False
    if answer.type == RTN_LOCAL:
        return True
    if answer.table == RT_TABLE_MAIN:
        return answer.destination.prefixlen > ours.prefixlen
    for rule in taking(rules, question, "lo"):
        if rule.table in (answer.table, RT_TABLE_MAIN):
            return rule.table == answer.table  # asked before main, which has ours
    return False


def _refusal(need: Need, ours: Prefix, answer: Entry | int, names: DeviceNames) -> str:
    now, advice = "no route leads there now", f"choose another {family_of(ours).network}"
    if isinstance(answer, Entry):
        now = f'the route "{answer.describe(names)}" leads there now'
        if answer.hops:
            advice += f", or give it a route of its own: {_own_route(need.address, answer, names)}"
    return (
        f"the overlay network's route {ours} would cut this host off from {need.address}, {need.what}: {now}: {advice}"
    )


def _own_route(address: Address, entry: Entry, names: DeviceNames) -> str:
    via, device = entry.hops[0].gateway, names[entry.hops[0].device]
    return f"{family_of(address).ip} route add {address}{f' via {via}' if via else ''} dev {device}"


# Once there are


def find_cut_off(netlink: Rtnetlink, overlay: Prefix, ways: Ways, needs: Sequence[Need]) -> list[Degradation]:
    """Return which vital needs are reached through the overlay only; peers there are none. Raises `OSError`."""
    inside = [need for need in needs if need.vital and need.address in overlay]
    answers = ask(netlink, [Question(need.address) for need in inside]) if inside else []
    return [
        Degradation(
            "cut_off",
            f"{need.what}, {need.address}, is inside the overlay network {overlay}, whose route leads to it: "
            f"give it a route of its own: {family_of(overlay).ip} route add {need.address} via GATEWAY",
        )
        for need, answer in zip(inside, map(understand, answers), strict=True)
        if isinstance(answer, Entry) and _is_ours(answer, overlay, ways)
    ]


def _is_ours(entry: Entry, overlay: Prefix, ways: Ways) -> bool:
    """Tell whether that is the overlay's one route, which leads to a device, or a peer's."""
    if entry.destination in ways.gateways:
        expected = ways.way(entry.destination)
    elif entry.destination == overlay:
        expected = Way(ways.device)
    else:
        return False
    return expected in entry.hops
