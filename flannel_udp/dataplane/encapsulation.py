"""What our own packet path puts between the outer IP header and an inner packet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """What stands between outer and inner header."""

    kind: str
    """``udp``: the inner packet is the payload; ``vxlan``: RFC 7348; ``ipip``: RFC 2003, raw sockets, protocol 4."""
    vni: int = 0
    """vxlan: 24 bits."""
    own_mac: int = 0
    """vxlan: our VtepMAC, 48 bits; the first byte on the wire is the highest."""


UDP = Encapsulation("udp")
