"""What this host would do with a packet that another one would send to it; nothing is sent."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from flannel_udp.admin.headers import packet_of
from flannel_udp.admin.trace_request import Coming
from flannel_udp.admin.trace_shapes import TraceArrival
from flannel_udp.agent.state import AgentState
from flannel_udp.agent.trace_checks import inbound_questions, judge
from flannel_udp.agent.tracing import Here, here
from flannel_udp.dataplane.drops import about
from flannel_udp.errors import FlannelError
from flannel_udp.host.lookup.packet_way import PacketWay, find_way
from flannel_udp.model import Address


async def trace_arrival(state: AgentState, source_check: str, coming: Coming) -> TraceArrival:
    """Return what would become of it. Raises `FlannelError` while no packets are carried."""
    at = here(state)
    network, version = at.rooms.network, coming.sender.version
    arrival = _begin(at, version)
    tried = None if coming.payload is None else network.try_datagram(coming.payload, coming.sender, coming.tos)
    inner = coming.inner
    if tried is not None:
        arrival["carrier"], inner = "data path", tried.packet
        questions = inbound_questions(at.rooms.backend.type, version, source_check)
        arrival["checks"] = judge(list(questions), tried.reason)
        if tried.reason is not None:
            sentence, known = about(tried.reason)
            arrival["verdict"], arrival["reason"], arrival["why"] = "dropped", tried.reason, f"{sentence}: {known.see}"
            arrival["answer"] = None if tried.answer is None else packet_of(tried.answer)
            return arrival
    arrival["packet"] = packet_of(inner)
    ways = network.ways(version)
    source, destination = _ends(inner)
    try:
        way = await asyncio.to_thread(find_way, source, destination, 0 if ways is None else ways.device)
    except FlannelError as error:
        arrival["why"] = str(error)
        return arrival
    _tell_way(arrival, way, inner, None if ways is None else ways.device)
    return arrival


def _begin(at: Here, version: int) -> TraceArrival:
    facts = at.rooms.network.facts()
    return TraceArrival(
        subnet=str(at.lease.subnet.of(version)),
        backend=f"{at.rooms.backend.type}{'' if facts.datapath is None else f', {facts.datapath}'}",
        carrier="kernel",
        checks=[],
        verdict="delivered",
        reason=None,
        why="",
        packet=None,
        route=None,
        answer=None,
    )


def _tell_way(arrival: TraceArrival, way: PacketWay, inner: bytes, tunnel: int | None) -> None:
    """Tell what the kernel does with the inner packet then."""
    arrival["route"] = way.route
    if way.local:
        arrival["why"] = "it is for the host itself"
    elif way.way is None:
        arrival["verdict"], arrival["why"] = "dropped", f"its kernel has no way for it: {way.route}"
    elif way.way.device == tunnel:
        arrival["verdict"], arrival["why"] = (
            "dropped",
            "its kernel would send it back: no pods' bridge has that address",
        )
    elif inner[8 if inner[0] >> 4 == 4 else 7] <= 1:
        arrival["verdict"], arrival["why"] = (
            "dropped",
            "no TTL is left for its kernel to route it: it answers time exceeded",
        )
    else:
        arrival["why"] = f"its kernel routes it to {way.device}"


def _ends(inner: bytes) -> tuple[Address, Address]:
    """Return source and destination of an IP packet."""
    if inner[0] >> 4 == 4:
        return ip_address(inner[12:16]), ip_address(inner[16:20])
    return ip_address(inner[8:24]), ip_address(inner[24:40])
