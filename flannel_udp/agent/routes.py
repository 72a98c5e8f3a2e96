"""Where packets go: one address's way with all reasons, or all routes, as the network has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flannel_udp.admin.shapes import Route, RouteRow, Way
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backend.protocol import NetworkFacts
from flannel_udp.host.lookup.look import KernelRoute, look_up
from flannel_udp.model import Address, Interface, Peer, Prefix, prefix_order

PEERS_PART = 64
"""Peers of which the rows are made at a time: about half a millisecond of work."""

_CLAIMED = "an entry of the registry with this host's public IP covers it: the host delivers it itself"


# One address


async def find_route(state: AgentState, address: Address) -> Route:
    """Return where a packet for `address` would go, and why; and what the kernel does with it."""
    route, rooms, lease = _find_in_table(state, address), state.rooms, state.lease
    overlay = None if rooms is None else rooms.config.of(address.version)
    if rooms is None or overlay is None or address not in overlay.network:
        return route

    def ask() -> KernelRoute | None:
        ways = rooms.network.ways(address.version)
        own = lease.subnet.of(address.version) if lease else None
        return ways and look_up(address, overlay.network, own, ways)

    kernel = await asyncio.to_thread(ask)
    if kernel is not None:
        route["kernel"] = kernel.host
        if kernel.pods not in (None, kernel.host):
            route["kernel_for_pods"] = kernel.pods
        if kernel.fault is not None:
            route["diverted"] = kernel.fault
    return route


def _find_in_table(state: AgentState, address: Address) -> Route:
    text, rooms, external = str(address), state.rooms, state.interface
    if rooms is None or external is None:
        return Route(address=text, verdict="no route", reason=f"the agent is {state.phrase}")
    overlay = rooms.config.of(address.version)
    if overlay is None or address not in overlay.network:
        reason = (
            f"the overlay has no IPv{address.version}: the host routes it elsewhere"
            if overlay is None
            else f"outside the overlay network {overlay.network}: the host routes it elsewhere"
        )
        return Route(address=text, verdict="outside network", reason=reason)
    lease, answer = state.lease, rooms.network.route(address)
    if answer.own and lease:
        return _own_route(address, lease.subnet.of(address.version))
    if answer.peer is None:
        return Route(address=text, verdict="no route", reason="no lease in the registry covers it")
    subnet = str(answer.peer.subnet)
    if answer.fault is not None:
        return Route(address=text, verdict="no route", subnet=subnet, reason=answer.fault)
    reason = "the longest prefix in the registry that covers it"
    route = Route(address=text, verdict="peer", subnet=subnet, reason=reason)
    _tell_way(route, rooms, external, rooms.network.facts(), answer.peer)
    return route


def _own_route(address: Address, subnet: Prefix | None) -> Route:
    if subnet is not None and address in subnet:
        reason = "in this host's own subnet: the host delivers it itself"
        return Route(address=str(address), verdict="own subnet", subnet=str(subnet), reason=reason)
    return Route(address=str(address), verdict="own subnet", reason=_CLAIMED)


# All of them


async def list_routes(state: AgentState) -> AsyncIterator[list[RouteRow]]:
    """Yield one row a subnet that packets are for, in their order, in parts that hold nobody up, none of them empty.

    Where the routes are somebody else's business, as with the backend alloc, there are none to tell of.
    """
    rooms, external, lease = state.rooms, state.interface, state.lease
    if rooms is None or external is None or lease is None:
        return

    def ask() -> list[Peer]:
        kept = {version for version in rooms.config.versions if rooms.network.ways(version) is not None}
        return [peer for peer in rooms.network.peers() if peer.version in kept]

    peers = await asyncio.to_thread(ask)
    facts = rooms.network.facts()
    own: dict[Prefix, RouteRow] = {
        subnet: RouteRow(subnet=str(subnet), verdict="own subnet", reason=_CLAIMED) for subnet in rooms.sync.ours
    }
    for subnet in lease.subnet.prefixes:
        own[subnet] = RouteRow(subnet=str(subnet), verdict="own subnet")
    before = sorted(own, key=prefix_order)
    for first in range(0, len(peers), PEERS_PART):
        part: list[RouteRow] = []
        for peer in peers[first : first + PEERS_PART]:
            while before and prefix_order(before[0]) < prefix_order(peer.subnet):
                part.append(own[before.pop(0)])
            part.append(_peer_row(rooms, external, facts, peer))
        yield part
        await asyncio.sleep(0)
    if before:
        yield [own[subnet] for subnet in before]


def _peer_row(rooms: Rooms, external: Interface, facts: NetworkFacts, peer: Peer) -> RouteRow:
    if (fault := facts.faults.get(peer.subnet)) is not None:
        return RouteRow(subnet=str(peer.subnet), verdict="no route", reason=fault)
    row = RouteRow(subnet=str(peer.subnet), verdict="peer")
    _tell_way(row, rooms, external, facts, peer)
    return row


# What both say


def _tell_way(way: Way, rooms: Rooms, external: Interface, facts: NetworkFacts, peer: Peer) -> None:
    way["public_ip"], way["interface"] = str(peer.public_ip), external.name
    if (problem := rooms.watch.facts(peer, facts).problem) is not None:
        way["problem"] = problem
    direct = rooms.network.is_direct(peer)
    if direct is not None:
        way["datapath"] = name_datapath(direct=direct)
    if facts.port is not None and not direct:
        way["port"] = facts.port
    device = name_device(facts, peer.version)
    if device is not None and not direct:
        way["tunnel"] = device


def name_datapath(*, direct: bool) -> str:
    """Return what documents call the way past the tunnel, and the one through it."""
    return "direct" if direct else "tunnel"


def name_device(facts: NetworkFacts, version: int) -> str | None:
    """Return the tunnel device of an IP version, ``None`` where there is none."""
    return (facts.device_v6 or facts.device) if version == 6 else facts.device
