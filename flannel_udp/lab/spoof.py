"""Datagrams that nobody may send: a ping put into the tunnel's packets by hand, and what becomes of it.

a stranger      net, an address of the underlay without a lease, sends what a pod of another host might
a liar          a host of the overlay sends what no pod of its own might
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import netns
from flannel_udp.lab.capture import Packet
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Node, Pod
from flannel_udp.lab.probe import checksum, echo_request
from flannel_udp.lab.tunnel import Tunnel, tunnel_of

_ANSWER_S = 2.0
"""How long a packet may take to arrive or to be counted; it takes a millisecond."""
_ETH_P_IP = 0x0800  # <linux/if_ether.h>
_OUR_MAC = bytes.fromhex("020000000001")  # locally administered


@dataclass(frozen=True, slots=True)
class Attempt:
    """One datagram, and what became of it."""

    sender: str
    """Who sent it: ``net``, ``h2``."""
    claims: str
    """Whose packet is said to be inside: ``h2/p1``."""
    target: str
    """The pod that it is for: ``h1/p1``."""
    arrived: bool
    dropped: str | None
    """The reason that the target's agent has counted, ``None`` if none."""

    @property
    def line(self) -> str:
        """The same in words."""
        host = self.target.partition("/")[0]
        who = "net, which has no lease," if self.sender == "net" else f"{self.sender}, a peer,"
        end = f"it was lost, and {host} has counted no drop"
        if self.arrived:
            end = f"it arrived in {self.target}: nobody had asked who sent it"
        elif self.dropped is not None:
            end = f"{host} dropped it ({self.dropped})"
        return f"{who} sent {host} a ping as if from {self.claims}: {end}"


def spoof(lab: Lab) -> list[Attempt]:
    """Send the first host's first pod one of each; return what became of them.

    Raises `UsageError` where the lab has no such pods, or no tunnel of IPv4.
    """
    plan = lab.plan
    tunnel = tunnel_of(plan) if 4 in plan.versions else None
    if tunnel is None:
        raise UsageError(f"there is no tunnel of IPv4 in the lab {lab.name} (backend {plan.backend}): nothing to spoof")
    if plan.hosts < 2 or plan.pods < 1:
        raise UsageError("spoofing needs at least 2 hosts with 1 pod each")
    first, second, *others = lab.hosts
    target = first.pods[0]
    elsewhere = others[0].pods[0] if others else target
    return [
        _attempt(lab.net, second.pods[0], target, tunnel),
        _attempt(second, elsewhere, target, tunnel),
    ]


def _attempt(sender: Node, claims: Pod, target: Pod, tunnel: Tunnel) -> Attempt:
    """Send one from `sender`, which says it were from the pod `claims`."""
    host, source, before = target.host, claims.ip, _drops(target.host)
    inner = _ping_packet(source, target.ip)
    arrived, reasons = False, Counter[str]()
    with target.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as tap:
        tap.bind(("eth0", _ETH_P_IP))
        _send(sender, host, tunnel, inner)

        def seen() -> bool:
            nonlocal arrived, reasons
            arrived = any(packet.is_echo_request(source, target.ip) for packet in _waiting(tap))
            reasons = _drops(host) - before
            return arrived or bool(reasons)

        netns.wait_until(seen, _ANSWER_S)
    return Attempt(sender.path, claims.path, target.path, arrived, next(iter(reasons), None))


def _waiting(tap: socket.socket) -> Iterator[Packet]:
    while netns.is_readable(tap.fileno(), 0.0):
        packet = Packet.parse(tap.recv(65_535))
        if packet is not None:
            yield packet


def _drops(host: Host) -> Counter[str]:
    """Return what the host's agent has dropped of what came in, by reason; nothing where the kernel carries packets."""
    try:
        counters = host.control("/v1/status").get("counters") or {}
    except FlannelError:
        return Counter()
    return Counter(counters.get("in", {}).get("drops", {}))


def _ping_packet(source: IPv4Address, destination: IPv4Address) -> bytes:
    """Return an IPv4 packet (RFC 791) with an echo request."""
    payload = echo_request(int.from_bytes(os.urandom(2)), 1)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, socket.IPPROTO_ICMP, 0, source.packed, destination.packed
    )
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def _send(sender: Node, host: Host, tunnel: Tunnel, inner: bytes) -> None:
    """Send a packet in what the tunnel puts in front of it, from the sender's own address."""
    if tunnel.kind == "ipip":
        with sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sock:
            sock.sendto(inner, (str(host.underlay), 0))
        return
    if tunnel.kind == "vxlan":
        header = struct.pack("!BxxxI", 0x08, (tunnel.vni or 0) << 8)  # RFC 7348: I, then the VNI
        inner = header + _vtep_mac(host) + _OUR_MAC + struct.pack("!H", _ETH_P_IP) + inner
    with sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(inner, (str(host.underlay), tunnel.port or 0))


def _vtep_mac(host: Host) -> bytes:
    """Return the MAC address of the host's end of the VXLAN. Raises `FlannelError` if no agent says."""
    facts = host.control("/v1/status").get("backend") or {}
    try:
        return bytes.fromhex(facts["data"]["VtepMAC"].replace(":", ""))
    except KeyError:
        raise FlannelError(f"{host.name}: the agent has no VXLAN device yet") from None
