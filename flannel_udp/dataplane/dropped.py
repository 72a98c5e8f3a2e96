"""What was dropped last: the engines' samples, brought together."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from flannel_udp._fastpath.engine import Engine
from flannel_udp.model import DroppedPacket

KEPT = 5
"""Packets of each reason, whichever way they went."""
_ADDRESS_BYTES = {4: 4, 6: 16}


def last_dropped(engines: Iterable[Engine]) -> dict[str, list[DroppedPacket]]:
    """Return the last few packets that were dropped, by reason, the newest last; no reason that never was."""
    found: dict[str, list[tuple[int, int, DroppedPacket]]] = {}
    for engine in engines:
        for (
            direction,
            reason,
            time_ns,
            number,
            outer,
            version,
            source,
            destination,
            protocol,
            size,
        ) in engine.drop_samples():
            has_header = _ADDRESS_BYTES.get(version) == len(source)  # else it is cut short, or no IP at all
            packet = DroppedPacket(
                direction,
                time_ns / 1e9,
                ip_address(outer) if outer else None,
                version or None,
                ip_address(source) if has_header else None,
                ip_address(destination) if has_header else None,
                protocol if has_header else None,
                size,
            )
            found.setdefault(reason, []).append((time_ns, number, packet))
    return {
        reason: [packet for _, _, packet in sorted(rows, key=lambda row: row[:2])[-KEPT:]]
        for reason, rows in found.items()
    }
