"""What the host's own kernel does with a packet before our packet path, or its own tunnel, has it."""

from __future__ import annotations

from dataclasses import dataclass

from flannel_udp.admin.trace_request import TraceRequest
from flannel_udp.admin.trace_shapes import TraceHost
from flannel_udp.agent.trace_packets import in_fragments, with_one_hop_less
from flannel_udp.backend.protocol import Network
from flannel_udp.host.lookup.look import look_up
from flannel_udp.host.lookup.packet_way import PacketWay, find_inlet, find_way
from flannel_udp.host.lookup.question import Ways
from flannel_udp.model import Prefix, RouteAnswer


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What the kernel was asked, and said."""

    inlet: int | None
    """See `find_inlet`."""
    way: PacketWay
    ways: Ways | None
    tunnel: str | None
    """Our packet path's device, ``None`` where packets of this IP version take no such path."""
    diverted: str | None


@dataclass(frozen=True, slots=True)
class Passed:
    """What is left of a packet behind the host's routing: one, or its fragments, for ``carrier``."""

    step: TraceHost
    carrier: str
    """"data path", "kernel" or "nobody"."""
    packets: tuple[bytes, ...] = ()


def ask_host(
    network: Network, overlay: Prefix | None, own: Prefix | None, asked: TraceRequest, tunnel: str | None
) -> HostAnswer:
    """Ask the kernel about a packet; `tunnel` as in the answer. Blocks. Raises `FlannelError`."""
    ways = network.ways(asked.source.version)
    inlet = find_inlet(asked.source, own, 0 if ways is None else ways.device)
    way = find_way(asked.source, asked.destination, inlet or 0)
    diverted = None
    if overlay is not None and ways is not None and asked.destination in overlay:
        diverted = look_up(asked.destination, overlay, own, ways).fault
    return HostAnswer(inlet, way, ways, tunnel, diverted)


def pass_host(host: HostAnswer, found: RouteAnswer, asked: TraceRequest, packet: bytes) -> Passed:
    """Return what the kernel does with the packet; `found` is where packets for its destination have to go. Pure."""
    way = host.way
    step = TraceHost(
        sender="host" if host.inlet == 0 else "pod",
        route=way.route,
        device=way.device,
        mtu=way.mtu,
        ttl=asked.ttl,
        outcome="passed",
        packets=1,
        why="",
    )
    if host.diverted is not None:
        step["diverted"] = host.diverted
    end = _end_of_route(host, asked)
    if end is None and host.inlet != 0:
        end = _end_of_hops(asked)
        packet, step["ttl"] = (packet, 0) if end else (with_one_hop_less(packet), asked.ttl - 1)
    if end is None:
        end = _end_of_size(way, asked, packet)
    carrier = _carrier(host, found)
    if end is None and carrier == "nobody":
        end = _end_elsewhere(way, found)
    if end is not None:
        step["outcome"], step["why"] = end
        return Passed(step, "nobody")
    packets = [packet] if way.mtu is None or len(packet) <= way.mtu else list(in_fragments(packet, way.mtu))
    step["why"] = f"the host routes it to {way.device}"
    if len(packets) > 1:
        step["outcome"], step["packets"] = "fragmented", len(packets)
        step["why"] += f", in {len(packets)} fragments: that takes {way.mtu:,} bytes"
    return Passed(step, carrier, tuple(packets))


_End = tuple[str, str] | None
"""An outcome, and why it is that; ``None``: the packet goes on."""


def _end_of_route(host: HostAnswer, asked: TraceRequest) -> _End:
    way = host.way
    if way.local:
        return "delivered", f"{asked.destination} is this host's own"
    if way.way is None:
        return "dropped", f"this host's kernel has no way for it: {way.route}"
    if way.way.device == host.inlet:
        return "delivered", f"it stays on {way.device}, where the pods of this host are"
    return None


def _end_of_hops(asked: TraceRequest) -> _End:
    if asked.ttl > 1:
        return None
    return "dropped", f"the host is a router, and no {_hops(asked)} is left: it answers time exceeded"


def _end_of_size(way: PacketWay, asked: TraceRequest, packet: bytes) -> _End:
    if way.mtu is None or len(packet) <= way.mtu or not (asked.df or asked.source.version == 6):
        return None
    told = "fragmentation needed" if asked.source.version == 4 else "packet too big"
    what = f"{len(packet):,} bytes, and {way.device} takes {way.mtu:,}"
    return "dropped", f"{what}: the host answers {told}, MTU {way.mtu:,}"


def _end_elsewhere(way: PacketWay, found: RouteAnswer) -> _End:
    if found.own:
        return "delivered", f"it is in this host's own subnet: delivered through {way.device}"
    return "elsewhere", f"this host leads it elsewhere: {way.route}"


def _hops(asked: TraceRequest) -> str:
    return "TTL" if asked.source.version == 4 else "hop limit"


def _carrier(host: HostAnswer, found: RouteAnswer) -> str:
    way, ways = host.way.way, host.ways
    if way is None or ways is None:
        return "nobody"
    if host.tunnel is not None and way.device == ways.device:
        return "data path"
    if found.peer is None or found.peer.subnet not in ways.gateways:
        return "nobody"
    wanted = ways.way(found.peer.subnet)
    return "kernel" if way.device == wanted.device and wanted.gateway in (None, way.gateway) else "nobody"
