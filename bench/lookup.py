"""What a look-up costs: nanoseconds and memory with 10 to 100,000 subnets.

    python -m bench.lookup [--json FILE]

The subnets are at random places, each with a peer of its own: /26 of 10.0.0.0/8; /64 of an IPv6 network with as many
places; and /64 of one so wide that hardly two are near each other. The addresses are at random places of random
subnets, so that neither caches nor branch predictors are flattered. Needs no root.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from rich.table import Table

from bench import chart, command
from bench.compiled import load
from flannel_udp._fastpath.routes import PEERS_FROM, RouteList, RouteTable
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6

SIZES = (10, 1_000, 10_000, 100_000)
_LOOKUPS = 1 << 18
"""Addresses a repetition, read one after the other."""
_REPETITIONS = 11
_SEED = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the subnets are, by the prefix of all of them; and the underlay address behind which the peers' follow."""

    title: str
    network: IPv4Network | IPv6Network
    subnet_bits: int
    underlay: int

    @property
    def version(self) -> int:
        """Of IP."""
        return self.network.version


IPV4 = Layout("IPv4", IPv4Network("10.0.0.0/8"), 26, int(IPv4Address("198.18.0.0")))  # RFC 2544
_UNDERLAY6 = int(IPv6Address("2001:db8::"))  # RFC 3849
IPV6 = Layout("IPv6", IPv6Network("fd00:10:244::/46"), 64, _UNDERLAY6)
IPV6_FAR = Layout("IPv6, far apart", IPv6Network("fd00:10::/32"), 64, _UNDERLAY6)
LAYOUTS = (IPV4, IPV6, IPV6_FAR)


@dataclass(frozen=True, slots=True)
class Found:
    """The cost of a table with `subnets` routes. Memory is all of it: trie, peers' addresses and their hash."""

    layout: str
    subnets: int
    ns: float
    memory_bytes: int

    @property
    def bytes_per_route(self) -> float:
        """Memory divided by the routes."""
        return self.memory_bytes / self.subnets


def measure() -> list[Found]:
    """Return the cost of each size. Repetitions are interleaved: a machine that changes its speed does so for all."""
    compiled = load("_lookup")
    chooser = random.Random(_SEED)  # noqa: S311 - a bench that is to be repeated, no secret
    cases = [(layout, n, *make_case(chooser, layout, n)) for layout in LAYOUTS for n in SIZES]
    times_ns: list[list[float]] = [[] for _ in cases]
    for _ in range(_REPETITIONS):
        for (layout, _, table, addresses), times in zip(cases, times_ns, strict=True):
            look_up = compiled.look_up if layout.version == 4 else compiled.look_up6
            started = time.perf_counter_ns()
            look_up(table, addresses, 0)
            times.append((time.perf_counter_ns() - started) / _LOOKUPS)
    return [
        Found(layout.title, n, statistics.median(times), table.memory_bytes)
        for (layout, n, table, _), times in zip(cases, times_ns, strict=True)
    ]


def make_case(chooser: random.Random, layout: Layout, n: int) -> tuple[RouteTable | RouteTable6, array[int] | bytes]:
    """Return a table of `n` subnets, and the addresses to look up, as the compiled functions take them."""
    host_bits = layout.network.max_prefixlen - layout.subnet_bits
    places = chooser.sample(range(1 << (layout.subnet_bits - layout.network.prefixlen)), n)
    networks = [int(layout.network.network_address) | place << host_bits for place in places]
    peers = [0] * PEERS_FROM + [layout.underlay + 1 + i for i in range(n)]
    lens, hops = array("B", [layout.subnet_bits]) * n, array("I", range(PEERS_FROM, PEERS_FROM + n))
    chosen = [network | chooser.getrandbits(host_bits) for network in chooser.choices(networks, k=_LOOKUPS)]
    if layout.version == 4:
        return RouteTable(RouteList(array("I", networks), lens, hops), array("I", peers)), array("I", chosen)
    return RouteTable6(RouteList6(_packed(networks), lens, hops), _packed(peers)), _packed(chosen)


def _packed(addresses: Iterable[int]) -> bytes:
    return b"".join(address.to_bytes(16, "big") for address in addresses)


def judged(found: Sequence[Found]) -> dict[str, float]:
    """Return what is promised: IPv4's time at most subnets to that at fewest, IPv6's there to IPv4's; worst memory."""
    ns = {(each.layout, each.subnets): each.ns for each in found}
    most, fewest = max(each.subnets for each in found), min(each.subnets for each in found)
    return {
        "ratio": ns[IPV4.title, most] / ns[IPV4.title, fewest],
        "ratio_of_ipv6": ns[IPV6.title, most] / ns[IPV4.title, most],
        "bytes_per_route": max(each.bytes_per_route for each in found if each.layout == IPV4.title),
        "bytes_per_route_of_ipv6": max(each.bytes_per_route for each in found if each.layout != IPV4.title),
    }


def records(found: Sequence[Found]) -> dict[str, Any]:
    """Return the figures, ready for JSON."""
    sizes = [{**dataclasses.asdict(each), "bytes_per_route": each.bytes_per_route} for each in found]
    return {"sizes": sizes, **judged(found)}


def charts(found: Sequence[Found]) -> list[chart.Chart]:
    """Return the plots of time and memory."""
    times: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float]] = {}
    for each in found:
        times.setdefault(f"{each.subnets:,} subnets", {})[each.layout] = each.ns
        memory.setdefault(f"{each.subnets:,} subnets", {})[each.layout] = each.bytes_per_route
    return [chart.Chart("Time of a look-up, ns", times), chart.Chart("Memory per route, bytes", memory)]


def _table(found: Sequence[Found]) -> Table:
    table = Table(title=f"medians of {_REPETITIONS} times {_LOOKUPS:,} look-ups", title_justify="left")
    table.add_column("")
    for heading in ("subnets", "ns a look-up", "to IPv4's", "memory, bytes", "bytes a route"):
        table.add_column(heading, justify="right")
    ipv4_ns = {each.subnets: each.ns for each in found if each.layout == IPV4.title}
    for each in found:
        ratio = "" if each.layout == IPV4.title else f"{each.ns / ipv4_ns[each.subnets]:.2f}"
        figures = (f"{each.memory_bytes:,}", f"{each.bytes_per_route:.1f}")
        table.add_row(each.layout, f"{each.subnets:,}", f"{each.ns:.2f}", ratio, *figures)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    return command.run("bench.lookup", __doc__, _findings, argv)


def _findings() -> command.Findings:
    found = measure()
    return command.Findings(_table(found), records(found), charts(found))


if __name__ == "__main__":
    sys.exit(main())
