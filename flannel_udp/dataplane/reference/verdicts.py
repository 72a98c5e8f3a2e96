"""What becomes of a packet: forwarded, or dropped and perhaps answered."""

from __future__ import annotations

from dataclasses import dataclass

from flannel_udp.dataplane.reference.answers import icmp_answer
from flannel_udp.dataplane.reference.packets import (
    Headers,
    fault_of,
    headers_of,
    may_be_a_pods,
    version_of,
    with_traffic_class,
    with_ttl,
)
from flannel_udp.dataplane.reference.table import OWN, ReferenceTable
from flannel_udp.dataplane.reference.tunnels import Decapsulated, decapsulated
from flannel_udp.model import Address

# RFC 6040 section 4.2, figure 4: inner ECN field, and outer one (Not-ECT, ECT(1), ECT(0), CE) to the new inner.
DECAPSULATED_ECN = {0: (0, 0, 0, None), 1: (1, 1, 1, 3), 2: (2, 1, 2, 3), 3: (3, 3, 3, 3)}


@dataclass(frozen=True)
class Forwarded:
    """The packet goes on: to a peer's public IP, or (inbound) to the TUN with `to` None."""

    packet: bytes
    to: Address | None


@dataclass(frozen=True)
class Dropped:
    """The packet is dropped, and `answer` is the ICMP packet that its sender gets, if any."""

    reason: str
    answer: bytes | None = None


def outbound(packet: bytes, *tables: ReferenceTable) -> Forwarded | Dropped:
    """Decide on a packet from the TUN, by the table of its version or, where there is none such, by the first one."""
    table = next((each for each in tables if each.version == version_of(packet)), tables[0])
    refused = fault_of(packet, table.version) or misfit_of(headers_of(packet), table)
    if refused:
        return Dropped(refused)
    headers = headers_of(packet)
    next_hop = table.lookup(headers.destination)
    if next_hop is None:
        return Dropped("no_route", icmp_answer(packet, "no_route", table.own_address))
    if isinstance(next_hop, str):
        return Dropped("own_subnet", icmp_answer(packet, "own_subnet", table.own_address))
    if table.encapsulation.kind != "udp":
        return Forwarded(packet, next_hop)
    if headers.ttl <= 1:
        return Dropped("ttl_expired", icmp_answer(packet, "ttl_expired", table.own_address))
    return Forwarded(with_ttl(packet, headers.ttl - 1), next_hop)


def misfit_of(headers: Headers, table: ReferenceTable) -> str | None:
    """Return why a well-formed packet from the TUN is for nobody's pod, or None."""
    is_own = headers.source in (table.own_address, table.underlay_address)
    protocol = 4 if table.encapsulation.kind == "ipip" else 17
    if is_own and headers.protocol == protocol and table.is_peer(headers.destination):
        return "looped"  # UDP from an address of ours to a peer's public IP: what our own socket sent
    if not may_be_a_pods(headers.destination) or has_unforwarded_end(headers):
        return "not_unicast"
    return None


def has_unforwarded_end(headers: Headers) -> bool:
    """Tell whether it is IPv6 with an address, of whichever end, that no router forwards (RFC 4291 section 2.5)."""
    return headers.version == 6 and not all(map(may_be_a_pods, (headers.source, headers.destination)))


def inbound(
    datagram: bytes, sender: Address, table: ReferenceTable, source_check: str, outer_tos: int = 0
) -> Forwarded | Dropped:
    """Decide on a datagram's payload from an underlay address of the table's version.

    `outer_tos` is the TOS or traffic class of the datagram's outer header.
    """
    opened = decapsulated(datagram, table)
    if isinstance(opened, str):
        return Dropped(opened)
    packet = opened.packet
    refused = fault_of(packet, table.version) or refusal_of(opened, sender, table, source_check)
    if refused:
        return Dropped(refused)
    headers = headers_of(packet)
    if opened.tos is not None:
        outer_tos = opened.tos
    ecn = DECAPSULATED_ECN[headers.traffic_class & 3][outer_tos & 3]
    if ecn is None:
        return Dropped("congestion_lost")
    packet = with_traffic_class(packet, headers.traffic_class & 0xFC | ecn)
    if table.encapsulation.kind != "udp":
        return Forwarded(packet, None)
    if headers.ttl <= 1:
        return Dropped("ttl_expired", icmp_answer(packet, "ttl_expired", table.own_address))
    return Forwarded(with_ttl(packet, headers.ttl - 1), None)


def refusal_of(opened: Decapsulated, sender: Address, table: ReferenceTable, source_check: str) -> str | None:
    """Return why a well-formed packet from an underlay address is not for us, or None."""
    headers = headers_of(opened.packet)
    if has_unforwarded_end(headers):
        return "not_unicast"
    if source_check in ("loose", "strict") and not table.is_peer(sender):
        return "unknown_peer"
    owner = table.lookup(headers.source)
    if source_check == "strict" and owner not in (None, sender):
        return "spoofed_source"
    if source_check != "off" and opened.mac not in (None, table.macs.get(sender)):
        return "spoofed_mac"
    if table.lookup(headers.destination) != OWN:
        return "not_our_subnet"
    return None
