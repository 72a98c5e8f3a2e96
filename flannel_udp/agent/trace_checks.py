"""What our packet path asks of a packet, in its order, for either direction. Pure; tests hold it to the path itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flannel_udp.admin.trace_shapes import TraceCheck
from flannel_udp.dataplane.drops import DROP_REASONS

Question = tuple[str, tuple[str, ...]]
"""What is asked, and the reasons to drop a packet that it does not hold for."""

_HEADER = {
    4: ("too_short", "not_ipv4", "bad_header_len", "bad_total_len", "bad_header_checksum"),
    6: ("too_short", "not_ipv6", "bad_total_len"),
}
_KERNEL = ("unreachable", "refused", "no_memory", "queue_full", "device_down", "system_error")


def outbound_questions(kind: str, version: int) -> Iterator[Question]:
    """Yield what is asked of a packet from the TUN; `kind` is `Encapsulation.kind`."""
    ends = "the destination is one host's address" if version == 4 else "either end is an address that is forwarded"
    yield "the inner header is sound: version, lengths, checksum", _HEADER[version]
    yield "it is no datagram of our own to a peer", ("looped",)
    yield ends, ("not_unicast",)
    yield "a lease covers the destination", ("no_route",)
    yield "that is another host's lease", ("own_subnet",)
    if kind == "udp":
        yield f"{_hops(version)} is left: each end of the tunnel takes one", ("ttl_expired",)
    yield "it fits the path to the peer, or may be cut", ("too_big",)
    yield "our lease is in force", ("lease_expired",)
    yield "the kernel has a way to the peer", _KERNEL


def inbound_questions(kind: str, version: int, source_check: str) -> Iterator[Question]:
    """Yield what is asked of a datagram from the underlay; `source_check` is the option."""
    if kind == "vxlan":
        yield "the VXLAN header is sound", ("bad_vxlan_header",)
        yield "the VNI is ours", ("other_vni",)
        yield f"the frame holds IPv{version}", (f"not_ipv{version}_frame",)
        yield "the frame is for our VtepMAC", ("others_mac",)
    if kind == "ipip":
        yield "the outer header is one of IP-in-IP", ("bad_outer_header",)
    yield "the inner header is sound: version, lengths, checksum", _HEADER[version]
    if version == 6:
        yield "either end is an address that is forwarded", ("not_unicast",)
    if source_check != "off":
        yield "the sender is a registered peer's public IP", ("unknown_peer",)
    if source_check == "strict":
        yield "the inner source is in the sender's lease, or in none", ("spoofed_source",)
    if kind == "vxlan" and source_check != "off":
        yield "the frame is from the sender's VtepMAC", ("spoofed_mac",)
    yield "the inner destination is in our subnet", ("not_our_subnet",)
    yield "a congestion mark can be carried over", ("congestion_lost",)
    if kind == "udp":
        yield f"{_hops(version)} is left: each end of the tunnel takes one", ("ttl_expired",)


def _hops(version: int) -> str:
    return "TTL" if version == 4 else "hop limit"


def judge(questions: Sequence[Question], reason: str | None) -> list[TraceCheck]:
    """Return the questions with their results, where the packet was dropped for this reason; ``None``: it was not."""
    checks, result = [], "passed"
    for text, reasons in questions:
        failed = result == "passed" and reason in reasons
        checks.append(TraceCheck(check=text, reasons=list(reasons), result="failed" if failed else result))
        if failed:
            result = "not asked"
    if reason is not None and result == "passed":  # what no packet of `trace` meets
        assert reason in DROP_REASONS  # noqa: S101 - the packet path names no others
        checks.append(TraceCheck(check="nothing else is wrong with it", reasons=[reason], result="failed"))
    return checks
