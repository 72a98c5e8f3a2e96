"""One packet on its way from pod to pod, seen at every step: what `tcpdump` would show, from packet(7) sockets."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self

from flannel_udp.errors import FlannelError
from flannel_udp.lab.node import Host, Node, Pod
from flannel_udp.lab.probe import ANSWER_S, ECHO_PROTOCOL, ECHO_REQUEST, ping, random_ident
from flannel_udp.lab.tunnel import Tunnel, tunnel_of
from flannel_udp.model import Address

# Outgoing packets are shown to ETH_P_ALL sockets only, not to those that ask for one protocol.
_ETH_P_ALL = 0x0003
_ETH_P = {4: 0x0800, 6: 0x86DD}
_SNAP_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class Packet:
    """The fields of an IP packet that the demonstration shows; `total_len` counts bytes, header included.

    `ttl` is IPv6's hop limit. `protocol` is what follows the header: extension headers of IPv6 are not looked behind.
    """

    source: Address
    destination: Address
    ttl: int
    protocol: int
    total_len: int
    payload: bytes

    @property
    def version(self) -> int:
        """The IP version."""
        return self.source.version

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the packet that `data` begins with, ``None`` if that is no whole one (RFC 791 3.1, RFC 8200 3)."""
        match data[0] >> 4 if data else 0:
            case 4 if len(data) >= 20:
                header_len = (data[0] & 0x0F) * 4
                total_len, ttl, protocol, source, destination = struct.unpack_from("!2xH4xBB2x4s4s", data)
                if 20 <= header_len <= total_len <= len(data):
                    ends = IPv4Address(source), IPv4Address(destination)
                    return cls(*ends, ttl, protocol, total_len, data[header_len:total_len])
            case 6 if len(data) >= 40:
                payload_len, protocol, ttl, source, destination = struct.unpack_from("!4xHBB16s16s", data)
                total_len = 40 + payload_len
                if total_len <= len(data):
                    ends6 = IPv6Address(source), IPv6Address(destination)
                    return cls(*ends6, ttl, protocol, total_len, data[40:total_len])
        return None

    def inside(self, tunnel: Tunnel | None) -> Packet | None:
        """Return the inner packet, if this is an outer one of the tunnel."""
        if tunnel is None or self.protocol != tunnel.protocol:
            return None
        inner = tunnel.strip(self.payload)
        return None if inner is None else Packet.parse(inner)

    def is_echo_request(self, source: Address, destination: Address) -> bool:
        """Tell whether this is a ping from `source` to `destination`."""
        return (self.source, self.destination) == (source, destination) and self.is_ping

    @property
    def is_ping(self) -> bool:
        """Whether it is an echo request."""
        kind = bytes([ECHO_REQUEST[self.version]])
        return self.protocol == ECHO_PROTOCOL[self.version] and self.payload[:1] == kind


@dataclass(frozen=True, slots=True)
class Step:
    """A place on the way and what has just happened to the packet; `packet` is ``None`` if it was not seen there."""

    node: Node
    interface: str
    story: str
    packet: Packet | None = None


def trace(source: Pod, target: Pod, *, version: int = 4, timeout_s: float = ANSWER_S) -> list[Step]:
    """Send one ping and return what its request looked like at each step from pod to pod. The hosts must differ.

    `version` is the family's IP version. Unless an answer comes, what was seen within the timeout is returned.
    """
    tunnel = tunnel_of(source.plan, version)
    ends, ident = (source.address(version), target.address(version)), random_ident()
    tunnelled = tunnel is not None and tunnel.device == _device_towards(source.host, ends[1])
    places = (
        (source, "eth0", "the pod sends it to its gateway, the host's bridge cni0"),
        *(
            _through_tunnel(source.host, target.host, tunnel)
            if tunnel is not None and tunnelled
            else _by_route(source.host, target.host)
        ),
        (target, "eth0", "its host routed it (TTL - 1) over cni0 to the pod"),
    )
    with ExitStack() as stack:
        taps = [stack.enter_context(_open_tap(node, interface)) for node, interface, _ in places]
        ping(source, [ends[1]], timeout_s, ident)
        ttl = _ttl(version)
        return [
            Step(node, interface, story.replace("TTL", ttl), _find(tap, ends, ident, tunnel))
            for (node, interface, story), tap in zip(places, taps, strict=True)
        ]


def _ttl(version: int) -> str:
    """Return what the number of hops that are left is called."""
    return "TTL" if version == 4 else "hop limit"


def _device_towards(host: Host, address: Address) -> str:
    """Return the device that a host sends packets for `address` to, empty where it has no route."""
    done = host.run(["ip", "-json", "route", "get", str(address)], check=False)
    return str(json.loads(done.stdout)[0]["dev"]) if done.returncode == 0 else ""


def _is_tun(host: Host, device: str) -> bool:
    """Tell whether our agent, or another program, carries the device's packets, and not the kernel."""
    done = host.run(["ip", "-json", "-details", "link", "show", device], check=False)
    return done.returncode != 0 or bool(json.loads(done.stdout)[0]["linkinfo"]["info_kind"] == "tun")


def _through_tunnel(source: Host, target: Host, tunnel: Tunnel) -> tuple[tuple[Node, str, str], ...]:
    device = tunnel.device
    if tunnel.kind == "udp":
        return (
            (source, device, "the host routed it (TTL - 1) into the TUN device, where the agent reads it"),
            (source, "eth0", "the agent took one from the TTL and sent it as the payload of a UDP datagram"),
            (target, device, "the other agent took one from the TTL and wrote it to its TUN device"),
        )
    sender, reads = ("agent", "TUN device, where the agent reads it")
    if not _is_tun(source, device):
        sender, reads = "kernel", f"{tunnel.kind} device"
    receiver, writes = ("agent", "wrote it to its TUN device") if _is_tun(target, device) else ("kernel", "received it")
    return (
        (source, device, f"the host routed it (TTL - 1) into the {reads}"),
        (source, "eth0", f"the {sender} put {tunnel.headers} in front of it"),
        (target, device, f"the other {receiver} took that off and {writes}"),
    )


def _by_route(source: Node, target: Node) -> tuple[tuple[Node, str, str], ...]:
    return (
        (source, "eth0", "the host routed it (TTL - 1) to the other host, by the route to that one's subnet"),
        (target, "eth0", "it arrives as it was sent: no header in front of it, and no agent on its way"),
    )


def _open_tap(node: Node, interface: str) -> socket.socket:
    """Return a socket that sees what passes the interface in both directions, from the network header on."""
    tap = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM)  # hears nothing until it is bound, not every interface
    try:
        tap.bind((interface, _ETH_P_ALL))
    except OSError as error:
        tap.close()
        raise FlannelError(f"{node.path}: cannot listen on {interface}: {error.strerror}") from None
    tap.setblocking(False)
    return tap


def _find(tap: socket.socket, ends: tuple[Address, Address], ident: int, tunnel: Tunnel | None) -> Packet | None:
    """Return the first packet that is, or carries, the echo request of this identifier between these ends."""
    while True:
        try:
            data, address = tap.recvfrom(_SNAP_BYTES)
        except OSError:  # EAGAIN: that was all; ENETDOWN: the interface is down
            return None
        packet = Packet.parse(data) if address[1] == _ETH_P[ends[0].version] else None
        if packet is None:
            continue
        inner = packet.inside(tunnel) or packet
        if inner.is_echo_request(*ends) and inner.payload[4:6] == ident.to_bytes(2, "big"):
            return packet


def describe(packet: Packet, tunnel: Tunnel | None) -> str:
    """Return the packet in words; an outer one with the inner one below it, indented."""
    inner = packet.inside(tunnel)
    size = f"{_ttl(packet.version)} {packet.ttl}  {packet.total_len} bytes"
    if tunnel is None or inner is None:
        kind = f"protocol {packet.protocol}"
        if packet.is_ping:
            kind = "ICMP echo request" if packet.version == 4 else "ICMPv6 echo request"
        return f"{packet.source} → {packet.destination}  {kind}  {size}"
    if tunnel.protocol == socket.IPPROTO_UDP:
        source, destination = (str(a) if a.version == 4 else f"[{a}]" for a in (packet.source, packet.destination))
        source_port, destination_port = struct.unpack_from("!HH", packet.payload)
        outer = f"{source}:{source_port} → {destination}:{destination_port}  UDP"
    else:
        outer = f"{packet.source} → {packet.destination}  IPIP"
    between = tunnel.describe(packet.payload)
    lines = [f"{outer}  {size}, inside:", *([f"  {between}"] if between else [])]
    return "\n".join([*lines, f"  {describe(inner, None)}"])


def format_trace(source: Pod, target: Pod, version: int = 4, timeout_s: float = ANSWER_S) -> str:
    """Send one ping by a family and return what it looked like at each step."""
    return format_document(trace_document(source, target, version, timeout_s))


def trace_document(source: Pod, target: Pod, version: int = 4, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Send one ping by a family and return the same for programs; ``seen`` is ``None`` where it did not come by."""
    tunnel = tunnel_of(source.plan, version)
    steps = [
        {
            "where": f"{step.node.path} {step.interface}",
            "what": step.story,
            "seen": describe(step.packet, tunnel).splitlines() if step.packet else None,
        }
        for step in trace(source, target, version=version, timeout_s=timeout_s)
    ]
    return {"from": source.path, "to": target.path, "steps": steps}


def format_document(document: dict[str, Any]) -> str:
    """Return what `trace_document` says, for people."""
    lines = [f"one packet from {document['from']} to {document['to']}"]
    for number, step in enumerate(document["steps"], start=1):
        lines.append(f"{number}  {step['where']}: {step['what']}")
        lines += [f"     {line}" for line in step["seen"] or ["not seen here"]]
    return "\n".join(lines)
