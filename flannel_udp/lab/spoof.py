"""Datagrams that nobody may send: a ping put into the tunnel's packets by hand, and what becomes of it.

a stranger      net, an address of the underlay without a lease, sends what a pod of another host might
a liar          a host of the overlay sends what no pod of its own might
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import netns
from flannel_udp.lab.capture import Packet
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Node, Pod
from flannel_udp.lab.poison import lease_key, store_of
from flannel_udp.lab.probe import SOCKET_FAMILY, checksum, echo_request, random_ident
from flannel_udp.lab.tunnel import Tunnel, tunnel_of
from flannel_udp.model import Address

_ANSWER_S = 30.0
"""How long a packet may take to arrive or to be counted; it takes a millisecond, on a busy machine seconds."""
_ETH_P = {4: 0x0800, 6: 0x86DD}  # <linux/if_ether.h>
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
    version: int
    """Of IP, inside and outside."""
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
        ping = "a ping" if self.version == 4 else "a ping by IPv6"
        return f"{who} sent {host} {ping} as if from {self.claims}: {end}"


def spoof(lab: Lab) -> list[Attempt]:
    """Send the first host's first pod one of each, by every family that has a tunnel; return what became of them.

    Raises `UsageError` where the lab has no such pods, or no tunnel.
    """
    plan = lab.plan
    tunnels = [tunnel for version in plan.versions if (tunnel := tunnel_of(plan, version)) is not None]
    if not tunnels:
        raise UsageError(f"there is no tunnel in the lab {lab.name} (backend {plan.backend}): nothing to spoof")
    if plan.hosts < 2 or plan.pods < 1:
        raise UsageError("spoofing needs at least 2 hosts with 1 pod each")
    first, second, *others = lab.hosts
    target = first.pods[0]
    elsewhere = others[0].pods[0] if others else target
    return [
        _attempt(sender, claims, target, tunnel)
        for tunnel in tunnels
        for sender, claims in ((lab.net, second.pods[0]), (second, elsewhere))
    ]


def _attempt(sender: Node, claims: Pod, target: Pod, tunnel: Tunnel) -> Attempt:
    """Send one from `sender`, which says it were from the pod `claims`."""
    host, version, before = target.host, tunnel.version, _drops(target.host)
    source, destination = claims.address(version), target.address(version)
    inner = _ping_packet(source, destination)
    arrived, reasons = False, Counter[str]()
    with target.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P[version])) as tap:
        tap.bind(("eth0", _ETH_P[version]))
        _send(sender, host, tunnel, inner)

        def seen() -> bool:
            nonlocal arrived, reasons
            arrived = any(packet.is_echo_request(source, destination) for packet in _waiting(tap))
            reasons = _drops(host) - before
            return arrived or bool(reasons)

        netns.wait_until(seen, _ANSWER_S)
    return Attempt(sender.path, claims.path, target.path, version, arrived, next(iter(reasons), None))


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


def _ping_packet(source: Address, destination: Address) -> bytes:
    """Return an IPv4 (RFC 791) or IPv6 (RFC 8200) packet with an echo request."""
    payload = echo_request(random_ident(), 1, source.version)
    ends = source.packed + destination.packed
    if source.version == 6:
        # RFC 4443 section 2.3: the checksum is of a pseudo-header (RFC 8200 section 8.1) as well.
        total = checksum(ends + struct.pack("!II", len(payload), socket.IPPROTO_ICMPV6) + payload)
        payload = payload[:2] + struct.pack("!H", total) + payload[4:]
        return struct.pack("!IHBB", 6 << 28, len(payload), socket.IPPROTO_ICMPV6, 64) + ends + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, socket.IPPROTO_ICMP, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def _send(sender: Node, host: Host, tunnel: Tunnel, inner: bytes) -> None:
    """Send a packet in what the tunnel puts in front of it, from the sender's own address. Raises `FlannelError`."""
    try:
        _send_from(sender, host, tunnel, inner)
    except OSError as error:  # a firewall rule on the sender's own way out
        raise FlannelError(f"{sender.path} cannot send to {host.name}: {error.strerror}") from None


def _send_from(sender: Node, host: Host, tunnel: Tunnel, inner: bytes) -> None:
    to = str(host.underlay_of(tunnel.version))
    if tunnel.kind == "ipip":
        with sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP) as sock:
            sock.sendto(inner, (to, 0))
        return
    if tunnel.kind == "vxlan":
        header = struct.pack("!BxxxI", 0x08, (tunnel.vni or 0) << 8)  # RFC 7348: I, then the VNI
        inner = header + _vtep_mac(host, tunnel.version) + _OUR_MAC + struct.pack("!H", _ETH_P[tunnel.version]) + inner
    with sender.socket(SOCKET_FAMILY[tunnel.version], socket.SOCK_DGRAM) as sock:
        sock.sendto(inner, (to, tunnel.port or 0))


def _vtep_mac(host: Host, version: int) -> bytes:
    """Return the MAC address of the host's end of the VXLAN, as its lease has it. Raises `FlannelError`."""
    held = store_of(host.plan).read()
    lease = held[lease_key(host, held)]
    try:
        return bytes.fromhex(lease["BackendData" if version == 4 else "BackendV6Data"]["VtepMAC"].replace(":", ""))
    except (KeyError, TypeError, ValueError):
        raise FlannelError(f"{host.name}: its lease has no VtepMAC of IPv{version}") from None
