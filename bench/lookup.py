"""What a look-up costs: nanoseconds and memory with 10 to 100,000 subnets.

    python -m bench.lookup [--json FILE]

The subnets are /26 at random places of 10.0.0.0/8, each with a peer of its own; the addresses are at random places of
random subnets, so that neither caches nor branch predictors are flattered. Needs no root.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench import chart, command
from bench.compiled import load
from flannel_udp._fastpath.routes import PEERS_FROM, RouteList, RouteTable

SIZES = (10, 1_000, 10_000, 100_000)
_NETWORK, _NETWORK_BITS, _SUBNET_BITS = 0x0A000000, 8, 26
_UNDERLAY = 0xC6120000  # 198.18.0.0/15, RFC 2544
_LOOKUPS = 1 << 18
"""Addresses a repetition: 1 MiB of them, read one after the other."""
_REPETITIONS = 11
_SEED = 1


@dataclass(frozen=True, slots=True)
class Found:
    """The cost of a table with `subnets` routes. Memory is all of it: trie, peers' addresses and their hash."""

    subnets: int
    ns: float
    memory_bytes: int

    @property
    def bytes_per_route(self) -> float:
        """Memory divided by the routes."""
        return self.memory_bytes / self.subnets


def measure() -> list[Found]:
    """Return the cost of each size. Repetitions are interleaved: a machine that changes its speed does so for all."""
    look_up = load("_lookup").look_up
    chooser = random.Random(_SEED)  # noqa: S311 - a bench that is to be repeated, no secret
    cases = [make_case(chooser, n) for n in SIZES]
    times_ns: list[list[float]] = [[] for _ in cases]
    for _ in range(_REPETITIONS):
        for (table, addresses), times in zip(cases, times_ns, strict=True):
            started = time.perf_counter_ns()
            look_up(table, addresses, 0)
            times.append((time.perf_counter_ns() - started) / _LOOKUPS)
    return [
        Found(n, statistics.median(times), table.memory_bytes)
        for n, (table, _), times in zip(SIZES, cases, times_ns, strict=True)
    ]


def make_case(chooser: random.Random, n: int) -> tuple[RouteTable, array[int]]:
    """Return a table of `n` subnets, and the addresses to look up (host order)."""
    host_bits = 32 - _SUBNET_BITS
    places = chooser.sample(range(1 << (_SUBNET_BITS - _NETWORK_BITS)), n)
    networks = [_NETWORK | place << host_bits for place in places]
    routes = RouteList(
        array("I", networks), array("B", [_SUBNET_BITS]) * n, array("I", range(PEERS_FROM, PEERS_FROM + n))
    )
    table = RouteTable(routes, array("I", [0] * PEERS_FROM + [_UNDERLAY + 1 + i for i in range(n)]))
    chosen = chooser.choices(networks, k=_LOOKUPS)
    return table, array("I", [network | chooser.getrandbits(host_bits) for network in chosen])


def judged(found: Sequence[Found]) -> dict[str, float]:
    """Return what is promised: the time at most subnets to that at fewest, and the worst memory a route."""
    return {"ratio": found[-1].ns / found[0].ns, "bytes_per_route": max(each.bytes_per_route for each in found)}


def records(found: Sequence[Found]) -> dict[str, Any]:
    """Return the figures, ready for JSON."""
    sizes = [{**dataclasses.asdict(each), "bytes_per_route": each.bytes_per_route} for each in found]
    return {"sizes": sizes, **judged(found)}


def charts(found: Sequence[Found]) -> list[chart.Chart]:
    """Return the plots of time and memory."""
    labels: Mapping[str, Found] = {f"{each.subnets:,} subnets": each for each in found}
    return [
        chart.Chart("Time of a look-up", {label: {"ns": each.ns} for label, each in labels.items()}),
        chart.Chart("Memory per route", {label: {"bytes": each.bytes_per_route} for label, each in labels.items()}),
    ]


def _table(found: Sequence[Found]) -> Table:
    table = Table(title=f"medians of {_REPETITIONS} times {_LOOKUPS:,} look-ups", title_justify="left")
    for heading in ("subnets", "ns a look-up", "memory, bytes", "bytes a route"):
        table.add_column(heading, justify="right")
    for each in found:
        table.add_row(f"{each.subnets:,}", f"{each.ns:.2f}", f"{each.memory_bytes:,}", f"{each.bytes_per_route:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    return command.run("bench.lookup", __doc__, _findings, argv)


def _findings() -> command.Findings:
    found = measure()
    return command.Findings(_table(found), records(found), charts(found))


if __name__ == "__main__":
    sys.exit(main())
