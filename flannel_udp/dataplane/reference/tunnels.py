"""What each encapsulation puts in front of an inner packet."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from flannel_udp.dataplane.reference.packets import HEADER_BYTES, IPV6_HEADER_BYTES, length_said, with_ttl
from flannel_udp.dataplane.reference.table import ReferenceTable
from flannel_udp.model import Address

VXLAN_HEADING_BYTES = 22  # RFC 7348 section 5: its own 8 and the inner Ethernet header's 14
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
STRANGERS_MAC = 0x0200DEADBEEF


def encapsulated(packet: bytes, to: Address, table: ReferenceTable) -> bytes:
    """Return what our socket sends of a packet to a peer."""
    if table.encapsulation.kind != "vxlan":
        return packet
    return _vxlan_heading(table, table.macs[to], table.encapsulation.own_mac) + packet


def _vxlan_heading(table: ReferenceTable, to_mac: int, from_mac: int) -> bytes:
    macs = to_mac.to_bytes(6, "big") + from_mac.to_bytes(6, "big")
    vni = table.encapsulation.vni.to_bytes(3, "big")
    return b"\x08\0\0\0" + vni + b"\0" + macs + ETHERTYPE[table.version]


def from_the_wire(packet: bytes, sender: Address, table: ReferenceTable, tos: int = 0) -> bytes:
    """Return what our socket reads of a packet that a peer has sent to us."""
    if table.encapsulation.kind == "ipip":
        total_len = (HEADER_BYTES + len(packet)).to_bytes(2, "big")
        ends = sender.packed + (table.underlay_address or IPv4Address(0)).packed
        return with_ttl(bytes([0x45, tos]) + total_len + b"\0\0\x40\0\x40\x04\0\0" + ends, 64) + packet
    if table.encapsulation.kind == "vxlan":
        return _vxlan_heading(table, table.encapsulation.own_mac, table.macs.get(sender, STRANGERS_MAC)) + packet
    return packet


@dataclass(frozen=True)
class Decapsulated:
    """The inner packet; the MAC it came from, if it came in a frame; the outer TOS, if that was in front of it."""

    packet: bytes
    mac: int | None = None
    tos: int | None = None


def decapsulated(datagram: bytes, table: ReferenceTable) -> Decapsulated | str:
    """Return the packet in what our socket has read, or why it is none for us."""
    match table.encapsulation.kind:
        case "vxlan":
            return _out_of_vxlan(datagram, table)
        case "ipip":
            return _out_of_ipip(datagram)
    return Decapsulated(datagram)


def _out_of_ipip(datagram: bytes) -> Decapsulated | str:
    if len(datagram) < HEADER_BYTES or datagram[0] != 0x45 or datagram[9] != 4:  # an outer header has no options
        return "bad_outer_header"
    is_fragment = int.from_bytes(datagram[6:8], "big") & 0x3FFF
    if is_fragment or len(datagram) != length_said(datagram, 4):
        return "bad_outer_header"
    return Decapsulated(_without_padding(datagram[HEADER_BYTES:], 4), tos=datagram[1])


def _out_of_vxlan(datagram: bytes, table: ReferenceTable) -> Decapsulated | str:
    if len(datagram) < VXLAN_HEADING_BYTES or not datagram[0] & 0x08:
        return "bad_vxlan_header"
    if int.from_bytes(datagram[4:7], "big") != table.encapsulation.vni:
        return "other_vni"
    to_mac, from_mac, kind = datagram[8:14], datagram[14:20], datagram[20:22]
    if kind != ETHERTYPE[table.version]:
        return f"not_ipv{table.version}_frame"
    if int.from_bytes(to_mac, "big") != table.encapsulation.own_mac:
        return "others_mac"
    packet = _without_padding(datagram[VXLAN_HEADING_BYTES:], table.version)
    return Decapsulated(packet, mac=int.from_bytes(from_mac, "big"))


def _without_padding(packet: bytes, version: int) -> bytes:
    """Return a packet without what a frame may have behind it."""
    least = HEADER_BYTES if version == 4 else IPV6_HEADER_BYTES
    if len(packet) < least or length_said(packet, version) < least:
        return packet
    return packet[: length_said(packet, version)]
