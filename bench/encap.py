"""How many packets a second each stage of the packet path handles in memory: no kernel, no system call, one core.

    python -m bench.encap [--json FILE]

Small packets carry 64 bytes in UDP, large ones fill an overlay MTU of 1472 bytes with TCP; both come as super-packets
of one flow, are split into inner packets, and those go through the other stages. All lie in the processor's caches,
so these are upper bounds: what a packet costs beside the kernel's part. Needs no root.
"""

from __future__ import annotations

import statistics
import struct
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from bench import chart, command
from bench.compiled import load
from flannel_udp._fastpath.checksum import checksum
from flannel_udp._fastpath.routes import PEERS_FROM, RouteList, RouteTable

STAGES: Mapping[str, str] = {
    "split": "super-packet into packets, with checksums",
    "route": "check the header, look up, decrement the TTL",
    "complete": "complete a partial checksum",
    "queue": "copy into the send queue",
    "join": "verify and join to a super-packet",
}
"""What is measured, in the order of the table."""
_SOURCE, _TARGET = 0x0A010001, 0x0A020001
_SUBNET_BITS = 24
_TCP, _UDP = 6, 17
_ACK = 0x10
_SEGMENTS = {"small": 64, "large": 45}
"""Packets in a super-packet: as many as one write may join, and as fit into 65,535 bytes."""
_ROUNDS = 250  # a TTL of 255 bears no more
_REPETITIONS = 15

Found = Mapping[str, Mapping[str, float]]
"""Stage → size → packets a second."""


def super_packet(size: str) -> tuple[bytes, int, int]:
    """Return a super-packet (IPv4, checksums of TCP and UDP left to be made), its segments' payload and headers."""
    n = _SEGMENTS[size]
    if size == "small":
        payload, transport = 64, struct.pack("!HHHH", 1000, 2000, 8 + n * 64, 0)
    else:
        payload, transport = 1432, struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 5 << 4, _ACK, 512, 0, 0)
    total = 20 + len(transport) + n * payload
    fields = (0x45, 0, total, 1, 0, 255, _UDP if size == "small" else _TCP)
    head = struct.pack("!BBHHHBBHII", *fields, 0, _SOURCE, _TARGET)
    head = struct.pack("!BBHHHBBHII", *fields, checksum(head), _SOURCE, _TARGET)
    return (
        head + transport + bytes(range(256)) * (n * payload // 256) + bytes(n * payload % 256),
        payload,
        20 + len(transport),
    )


def measure() -> Found:
    """Return the medians of each stage and size. Repetitions are interleaved over all of them."""
    compiled = load("_encap")
    peer = PEERS_FROM
    prefix = _TARGET >> (32 - _SUBNET_BITS) << (32 - _SUBNET_BITS)
    routes = RouteList(array("I", [prefix]), array("B", [_SUBNET_BITS]), array("I", [peer]))
    table = RouteTable(routes, array("I", [0] * peer + [_SOURCE]))
    runs: dict[tuple[str, str], tuple[Callable[..., int], bytes, tuple[Any, ...]]] = {}
    for size, n in _SEGMENTS.items():
        whole, payload, headers = super_packet(size)
        tcp, packet_len = size == "large", headers + payload
        bundle = bytearray(n * packet_len)
        compiled.split(bytearray(whole), tcp, payload, bundle, 1)
        packet = bytes(bundle[:packet_len])
        checksum_offset = 16 if tcp else 6
        runs["split", size] = compiled.split, whole, (tcp, payload, bytearray(bundle), _ROUNDS)
        runs["route", size] = compiled.route, bytes(bundle), (table, packet_len, _ROUNDS)
        runs["complete", size] = compiled.complete, packet, (checksum_offset, _ROUNDS * n)
        runs["queue", size] = compiled.queue, bytes(bundle), (packet_len, _ROUNDS)
        runs["join", size] = compiled.join, bytes(bundle), (packet_len, _ROUNDS)
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(_REPETITIONS):
        for key, (stage, data, arguments) in runs.items():
            fresh = bytearray(data)  # what a stage does to its packets, a TTL worn out for one, must not add up
            started = time.perf_counter_ns()
            n_packets = stage(fresh, *arguments)
            rates[key].append(n_packets / (time.perf_counter_ns() - started) * 1e9)
    return {name: {size: statistics.median(rates[name, size]) for size in _SEGMENTS} for name in STAGES}


def _table(found: Found) -> Table:
    table = Table(title=f"one core, medians of {_REPETITIONS}", title_justify="left")
    table.add_column("stage")
    for size in _SEGMENTS:
        table.add_column(f"{size}, million packets/s", justify="right")
        table.add_column(f"{size}, ns a packet", justify="right")
    for stage, title in STAGES.items():
        cells = [cell for rate in found[stage].values() for cell in (f"{rate / 1e6:.1f}", f"{1e9 / rate:.0f}")]
        table.add_row(title, *cells)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    return command.run("bench.encap", __doc__, _findings, argv)


def _findings() -> command.Findings:
    found = measure()
    rows = {title: {size: 1e9 / rate for size, rate in found[stage].items()} for stage, title in STAGES.items()}
    plot = chart.Chart("Nanoseconds a packet, one core", rows)
    return command.Findings(_table(found), {"packets_per_s": found}, [plot])


if __name__ == "__main__":
    sys.exit(main())
