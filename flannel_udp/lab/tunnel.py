"""What the tunnel backends put in front of a packet between the lab's hosts: to recognise it there, and to tell of it.

    udp     outer IPv4 20, UDP 8                              inner packet
    vxlan   outer IPv4 20, UDP 8, VXLAN 8, Ethernet 14        inner packet (RFC 7348 section 5)
    ipip    outer IPv4 20                                     inner packet (RFC 2003)

IPv6 packets travel in IPv6 ones alike: an outer IPv6 header has 40 bytes. ipip carries none.

No code of the backends is used: what they do is what the lab shows.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from flannel_udp.lab.plan import Plan

_VXLAN_FLAGS_VNI = 0x08
"""I: the VNI is valid."""
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_IFNAMSIZ = 15
"""Bytes of an interface's name."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The tunnel of a lab's backend; `port` is the outer datagrams' destination, ``None`` where there are none.

    `version` is the packets' IP version, inside and outside.
    """

    kind: str
    device: str
    port: int | None = None
    vni: int | None = None
    version: int = 4

    @property
    def protocol(self) -> int:
        """Of the outer IP header."""
        return socket.IPPROTO_IPIP if self.kind == "ipip" else socket.IPPROTO_UDP

    @property
    def carried(self) -> str:
        """How each packet travels, in words."""
        match self.kind:
            case "udp":
                return f"the payload of a datagram to UDP port {self.port}"
            case "vxlan":
                return f"in an Ethernet frame, in VXLAN {self.vni}, in a datagram to UDP port {self.port}"
        return "the payload of another packet, protocol 4"

    @property
    def headers(self) -> str:
        """What is put in front of a packet, in words."""
        return {"udp": "UDP", "vxlan": "Ethernet, VXLAN and UDP"}.get(self.kind, "another IP header")

    def strip(self, payload: bytes) -> bytes | None:
        """Return the inner packet in the payload of an outer one of `protocol`, ``None`` if there is none."""
        if self.kind == "ipip":
            return payload
        if payload[2:4] != int(self.port or 0).to_bytes(2, "big"):
            return None
        if self.kind == "udp":
            return payload[8:]
        header, frame = payload[8:16], payload[16:]
        whole = len(header) == 8 and header[0] & _VXLAN_FLAGS_VNI and frame[12:14] == _ETHERTYPE[self.version]
        return frame[14:] if whole else None

    def describe(self, payload: bytes) -> str:
        """Return what is between the outer header and the packet that `strip` finds, beside UDP; empty for nothing."""
        if self.kind != "vxlan":
            return ""
        target, source = (payload[start : start + 6].hex(":") for start in (16, 22))
        return f"VNI {int.from_bytes(payload[12:15], 'big')}, Ethernet {source} → {target}"


def tunnel_of(plan: Plan, version: int = 4) -> Tunnel | None:
    """Return the tunnel that the plan's backend has for packets of this IP version, ``None`` where it has none."""
    match plan.backend:
        case "udp":
            return Tunnel("udp", "flannel0", plan.port, version=version)
        case "vxlan":
            vni = int(plan.option("VNI", 1))
            prefix = "flannel." if version == 4 else "flannel-v6."
            # Numbers that do not fit are hexadecimal ones.
            device = f"{prefix}{vni}" if len(f"{prefix}{vni}") <= _IFNAMSIZ else f"{prefix}x{vni:x}"
            return Tunnel("vxlan", device, plan.port, vni, version)
        case "ipip" if version == 4:
            return Tunnel("ipip", "flannel.ipip")
    return None
