"""Packets that tell which peer a subnet is routed to at this moment, asked of the real data path from outside.

The host that is measured sends small datagrams to overlay addresses; every peer's public IP leads to one and the same
other host, whose socket learns from IP_PKTINFO which of them a datagram was sent to. Nothing is judged while it runs:
what was written and what arrived are compared afterwards.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
import subprocess
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from bench.churn import ELSEWHERE, HOMES, home_of, subnet_at
from flannel_udp.lab.node import Host

STALE_NS = 1_000_000_000
"""How long after a move packets may still arrive at the former peer; the promise on delays is far stricter."""
EARLY_NS = 100_000_000
"""The writer's line comes after etcd's answer, and the agent may know before either."""
_PROBE_EVERY = 5
"""Of this many transactions one is probed: the probes shall not be the load."""
_PAUSE_S = 0.001
_GIVEN_UP_NS = 5_000_000_000
_PORT = 9
_PACKET_BYTES = 32
"""Of a probe: IPv4 20, UDP 8, its place 4."""
_IP_PKTINFO = 8  # linux/in.h; socket.IP_PKTINFO is new in Python 3.14


@dataclass(slots=True)
class Seen:
    """What was written and what arrived. Times are CLOCK_MONOTONIC in nanoseconds."""

    moved: list[tuple[int, int, int]] = field(default_factory=list)
    """When etcd had answered, place, address."""
    probed: list[int] = field(default_factory=list)
    """Which of them were probed."""
    arrived: list[tuple[int, int, int]] = field(default_factory=list)
    """When, place, the public IP it was sent to."""
    sent: int = 0

    def delays_ms(self) -> list[float]:
        """Return for every probed move how long packets still went elsewhere, in order; infinite if they still do."""
        first: dict[tuple[int, int], int] = {}
        for at_ns, place, address in self.arrived:
            first.setdefault((place, address), at_ns)
        delays = []
        for number in self.probed:
            answered_ns, place, address = self.moved[number]
            delay_ms = (first.get((place, address), float("inf")) - answered_ns) / 1e6
            delays.append(max(0.0, delay_ms))
        return sorted(delays)

    def wrong(self, was: dict[int, int]) -> int:
        """Return how many packets arrived at a peer that had not held their subnet within the last second.

        `was` holds the places that moved before, and where to.
        """
        times: defaultdict[int, list[int]] = defaultdict(list)
        holders: defaultdict[int, list[int]] = defaultdict(list)
        for answered_ns, place, address in self.moved:
            times[place].append(answered_ns)
            holders[place].append(address)

        def allowed(at_ns: int, place: int) -> Iterator[int]:
            # From the one that held it STALE_NS ago to the one that may have come since.
            oldest = bisect_right(times[place], at_ns - STALE_NS) - 1
            newest = bisect_right(times[place], at_ns + EARLY_NS) - 1
            for i in range(oldest, newest + 1):
                yield holders[place][i] if i >= 0 else was.get(place, int(home_of(place)))

        return sum(address not in allowed(at_ns, place) for at_ns, place, address in self.arrived)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest figure that `share` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def prepare(sender: Host, receiver: Host) -> None:
    """Lead the peers' public IPs from one host to the other, which takes all of them for its own."""
    for network in (HOMES, ELSEWHERE):
        sender.configure(f"route add {network} via {receiver.underlay}")
        receiver.configure(f"route add local {network} dev lo")


def watch(sender: Host, receiver: Host, writer: subprocess.Popen[str], n_subnets: int) -> Seen:
    """Follow what a writer says that it moved, and probe, until it ends and nothing is left to wait for."""
    seen = Seen()
    assert writer.stdout is not None  # noqa: S101 - it was started with a pipe
    with (
        sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
        receiver.socket(socket.AF_INET, socket.SOCK_DGRAM) as arriving,
        selectors.DefaultSelector() as ready,
    ):
        arriving.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        arriving.bind(("0.0.0.0", receiver.plan.port))  # noqa: S104 - a lab's namespace; whichever peer it is for
        arriving.setblocking(False)
        ready.register(arriving, selectors.EVENT_READ)
        ready.register(writer.stdout, selectors.EVENT_READ)
        waiting: dict[tuple[int, int], int] = {}  # place, address → given up at
        chooser = random.Random(1)  # noqa: S311 - to be repeated, no secret
        lines, rest, writing, due_s = 0, b"", True, 0.0
        while writing or waiting:
            for key, _ in ready.select(max(0.0, due_s - time.monotonic())):
                if key.fileobj is arriving:
                    _receive(arriving, seen, waiting)
                elif said := os.read(writer.stdout.fileno(), 1 << 16):
                    *whole, rest = (rest + said).split(b"\n")
                    for line in whole:
                        _note(line.decode(), seen, waiting, probe=lines % _PROBE_EVERY == 0)
                        lines += 1
                else:
                    ready.unregister(writer.stdout)
                    writing = False
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + _PAUSE_S
                places = [place for place, _ in waiting] or [chooser.randrange(n_subnets)]
                for place in places:
                    out.sendto(struct.pack("!I", place), (str(subnet_at(place)[1]), _PORT))
                seen.sent += len(places)
                now_ns = time.monotonic_ns()
                waiting = {probe: until_ns for probe, until_ns in waiting.items() if until_ns > now_ns}
    return seen


def _note(line: str, seen: Seen, waiting: dict[tuple[int, int], int], *, probe: bool) -> None:
    """Take in a writer's line; `probe` its first move."""
    answered, *moved = line.split()
    if probe:
        seen.probed.append(len(seen.moved))
    for number, move in enumerate(moved):
        place, _, address = move.partition("=")
        seen.moved.append((int(answered), int(place), int(IPv4Address(address))))
        if probe and number == 0:
            waiting[int(place), int(IPv4Address(address))] = time.monotonic_ns() + _GIVEN_UP_NS


def _receive(arriving: socket.socket, seen: Seen, waiting: dict[tuple[int, int], int]) -> None:
    """Take what has arrived and is a probe: the payload ends with the inner packet, and that with the place."""
    while True:
        try:
            packet, notes, _, _ = arriving.recvmsg(2048, 128)
        except BlockingIOError:
            return
        at_ns = time.monotonic_ns()
        # struct in_pktinfo: index of the interface, local address, destination in the header
        (address,) = struct.unpack("!8xI", notes[0][2][:12])
        inner = packet[-_PACKET_BYTES:]
        if inner[:1] != b"\x45" or inner[9] != socket.IPPROTO_UDP or inner[22:24] != _PORT.to_bytes(2, "big"):
            continue  # an echo of the agent's own, which asks silent peers
        (place,) = struct.unpack("!I", inner[-4:])
        seen.arrived.append((at_ns, place, address))
        waiting.pop((place, address), None)
