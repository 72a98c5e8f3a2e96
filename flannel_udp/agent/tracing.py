"""What would become of a packet of this host: the kernel's answers, and our packet path's own; nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.admin.headers import packet_of
from flannel_udp.admin.trace_request import UDP, TraceRequest
from flannel_udp.admin.trace_shapes import Trace, TraceDatagram, TraceEntry, TraceHost, TraceMtu, TracePeer
from flannel_udp.agent.routes import name_device
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.agent.trace_checks import judge, outbound_questions
from flannel_udp.agent.trace_host import HostAnswer, ask_host, pass_host
from flannel_udp.agent.trace_packets import (
    IP_IN_IP,
    VXLAN_HEADING_BYTES,
    Ip,
    Outer,
    kernel_packet,
    make_packet,
    outer_overhead,
    outer_packet,
    vxlan_heading,
)
from flannel_udp.backend.protocol import KernelWay
from flannel_udp.dataplane.drops import about
from flannel_udp.dataplane.trial import TriedPacket, TriedPayload
from flannel_udp.errors import FlannelError
from flannel_udp.model import Interface, Lease, Peer, RouteAnswer

_USUAL_TTL = 64
NOTES_MAX = 5


@dataclass(frozen=True, slots=True)
class Here:
    """What is asked, once packets are carried at all."""

    rooms: Rooms
    external: Interface
    lease: Lease


def here(state: AgentState) -> Here:
    """Return whom to ask. Raises `FlannelError` while no packets are carried."""
    rooms, external, lease = state.rooms, state.interface, state.lease
    if rooms is None or external is None or lease is None:
        raise FlannelError(f"no packets are carried yet, there is nothing to trace: the agent is {state.phrase}")
    return Here(rooms, external, lease)


async def trace_packet(state: AgentState, asked: TraceRequest) -> Trace:
    """Return what would become of a packet. Raises `FlannelError` while none are carried."""
    at = here(state)
    network, version = at.rooms.network, asked.source.version
    overlay, own = at.rooms.config.of(version), at.lease.subnet.of(version)
    made, found = make_packet(asked), network.route(asked.destination)
    trial = network.try_packet(made)  # ``None``: packets of this version take no path of ours
    tunnel = None if trial is None else name_device(network.facts(), version)
    host = await asyncio.to_thread(ask_host, network, None if overlay is None else overlay.network, own, asked, tunnel)
    passed = pass_host(host, found, asked, made)
    trace = _begin(at, asked, made, passed.step, found)
    _note_faults(trace, at, host, found, asked)
    texts = [item.text for item in state.conditions.degradations if item.version in (0, version)]
    trace["notes"].extend(f"a problem of this host: {text}" for text in texts[:NOTES_MAX])
    if passed.carrier == "data path":
        tried = [network.try_packet(packet) for packet in passed.packets]
        _through_data_path(trace, at, [each for each in tried if each is not None])
    elif passed.carrier == "kernel" and found.peer is not None:
        way = await asyncio.to_thread(network.kernel_way, found.peer)
        _through_kernel(trace, at, found.peer, way, passed.packets)
    else:
        _not_ours(trace, trial, host)
    return trace


def _begin(at: Here, asked: TraceRequest, made: bytes, host: TraceHost, found: RouteAnswer) -> Trace:
    facts, peer = at.rooms.network.facts(), found.peer
    datapath = "" if facts.datapath is None else f", {facts.datapath}"
    known = None if peer is None else at.rooms.watch.facts(peer, facts)
    return Trace(
        asked=asked.asked(),
        packet=packet_of(made),
        host=host,
        backend=f"{at.rooms.backend.type}{datapath}",
        carrier="nobody",
        peer=None
        if peer is None or known is None
        else TracePeer(subnet=str(peer.subnet), public_ip=str(peer.public_ip), problem=found.fault or known.problem),
        checks=[],
        mtu=None,
        datagrams=[],
        entries=[],
        verdict="sent",
        reason=None,
        dropped_by=None,
        why=host["why"],
        answer=None,
        notes=[],
    )


def _note_faults(trace: Trace, at: Here, host: HostAnswer, found: RouteAnswer, asked: TraceRequest) -> None:
    """Note what may stop such a packet, and no check of this packet shows."""
    notes = trace["notes"]
    if host.inlet is None:
        notes.append(f"no bridge of pods is known here: the kernel was asked as if {asked.source} were this host's")
    source = at.rooms.network.route(asked.source)
    if host.inlet != 0 and not source.own and found.peer is not None:
        whose = "in no lease" if source.peer is None else f"in the lease of {source.peer.public_ip}"
        fate = "lets it pass" if source.peer is None else "drops it (spoofed_source)"
        notes.append(f"{asked.source} is {whose}, not in ours: the other host's source check (strict) {fate}")


def _not_ours(trace: Trace, tried: TriedPacket | None, host: HostAnswer) -> None:
    """Tell the end of a packet that the host itself delivers, drops, or leads elsewhere."""
    outcome = trace["host"]["outcome"]
    trace["verdict"] = "delivered" if outcome == "delivered" else "dropped" if outcome == "dropped" else "elsewhere"
    if outcome == "dropped":
        trace["dropped_by"] = "host"
    if outcome != "delivered" and tried is not None and tried.reason is not None and host.tunnel:
        sentence, _ = about(tried.reason)
        trace["notes"].append(f"if it came to {host.tunnel}, our packet path would drop it: {tried.reason}, {sentence}")


# Our own packet path


def _through_data_path(trace: Trace, at: Here, tried: Sequence[TriedPacket]) -> None:
    first = next((each for each in tried if each.reason is not None), tried[0])
    version = first.source.version
    trace["carrier"] = "data path"
    trace["checks"] = judge(list(outbound_questions(first.kind, version)), first.reason)
    if first.peer is not None:
        overhead = outer_overhead(first.kind, version)
        trace["mtu"] = TraceMtu(
            inner=len(first.packet),
            overhead=overhead,
            outer=len(first.packet) + sum(overhead.values()),
            path=first.path_mtu,
            probed=first.probed_mtu,
            limit=first.limit,
        )
    if first.reason is not None:
        sentence, known = about(first.reason)
        trace["verdict"], trace["dropped_by"], trace["reason"] = "dropped", "data path", first.reason
        trace["why"] = f"{sentence}: {known.see}"
        if first.answer is not None:
            trace["answer"] = packet_of(first.answer)
        return
    port, ttl = at.rooms.network.facts().port or 0, _default_ttl(version, at.external.name)
    sent = [(each, payload) for each in tried for payload in each.payloads]
    trace["datagrams"] = [_datagram(each, payload, port, ttl, alone=len(sent) == 1) for each, payload in sent]
    n = len(trace["datagrams"])
    what = "it leaves as one packet" if n == 1 else f"it leaves in {n} packets"
    trace["why"] = f"{what}, for {first.peer}"


def _datagram(tried: TriedPacket, sent: TriedPayload, port: int, ttl: int, *, alone: bool) -> TraceDatagram:
    assert tried.peer is not None  # noqa: S101 - it is sent
    protocol = IP_IN_IP if tried.kind == "ipip" else UDP
    ip = Ip(tried.source, tried.peer, protocol, sent.tos, ttl, df=not sent.fragmentable)
    outer = outer_packet(ip, sent.payload, (sent.source_port, port), alone=alone)
    inner = sent.payload[VXLAN_HEADING_BYTES:] if tried.kind == "vxlan" else sent.payload
    read = outer.packet if tried.kind == "ipip" else sent.payload
    return _outer_document(outer, tried.kind, inner, read, sent.tos, fragmentable=sent.fragmentable)


def _outer_document(
    outer: Outer, kind: str, inner: bytes, payload: bytes, tos: int, *, fragmentable: bool | None
) -> TraceDatagram:
    return TraceDatagram(
        **packet_of(outer.packet, kind, outer.chosen),
        inner=inner.hex(),
        payload=payload.hex(),
        tos=tos,
        fragmentable=fragmentable,
    )


def _default_ttl(version: int, device: str) -> int:
    """Return the TTL, or hop limit, that the kernel gives to what our sockets send."""
    name = "ipv4/ip_default_ttl" if version == 4 else f"ipv6/conf/{device}/hop_limit"
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/net", name).read_text())
    return _USUAL_TTL


# The kernel


def _through_kernel(trace: Trace, at: Here, peer: Peer, way: KernelWay, packets: Sequence[bytes]) -> None:
    trace["carrier"] = "kernel"
    trace["entries"] = [TraceEntry(entry=entry, present=present) for entry, present in way.entries]
    kind = None if way.encapsulation is None else way.encapsulation.kind
    overhead, inner = outer_overhead(kind, peer.version), max(map(len, packets))
    trace["mtu"] = TraceMtu(
        inner=inner,
        overhead=overhead,
        outer=inner + sum(overhead.values()),
        path=at.external.mtu,
        probed=None,
        limit=None,
    )
    trace["datagrams"] = list(_kernel_datagrams(at, peer, way, packets))
    if missing := [entry for entry, present in way.entries if not present]:
        trace["verdict"], trace["dropped_by"] = "dropped", "host"
        trace["why"] = f"the kernel has no entry {missing[0]}: the agent puts it back within seconds"
        return
    how = "as it is, by its route" if kind is None else f"in {kind.upper()}"
    trace["why"] = f"the kernel sends it to {peer.public_ip} {how}; none of it passes our packet path"


def _kernel_datagrams(at: Here, peer: Peer, way: KernelWay, packets: Sequence[bytes]) -> Iterator[TraceDatagram]:
    ends = at.external.of(peer.version)
    for packet in packets:
        tos = packet[1] if peer.version == 4 else int.from_bytes(packet[:2], "big") >> 4 & 0xFF
        if way.encapsulation is None or ends is None:
            yield TraceDatagram(**packet_of(packet), inner=packet.hex(), payload=None, tos=tos, fragmentable=None)
            continue
        ip = Ip(ends.address, peer.public_ip, UDP, tos & 3, _default_ttl(peer.version, at.external.name), df=False)
        outer, kind = kernel_packet(ip, way, packet), way.encapsulation.kind
        read = vxlan_heading(way, peer.version) + packet if kind == "vxlan" else outer.packet
        yield _outer_document(outer, kind, packet, read, ip.tos, fragmentable=None)
