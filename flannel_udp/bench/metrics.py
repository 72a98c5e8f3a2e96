"""What is measured, and on whom: the names that samples have, and how people read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

OURS = "ours"
"""The contender that the others are compared with."""
BASELINES = ("bare", "vxlan", "naive")
"""What ours is always compared with."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure: how it is named, its unit (empty for a share), and in which direction it is better."""

    name: str
    title: str
    unit: str
    higher_is_better: bool

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def better(self) -> str:
        """Say in one word what is better."""
        return "more" if self.higher_is_better else "less"


PERCENTILES: Mapping[str, tuple[str, float]] = {"p50": ("p50", 50), "p99": ("p99", 99), "p999": ("p99.9", 99.9)}
"""Of round trips: as metrics' names have them → as people read them, and of a hundred."""
_SAID: Mapping[str, Callable[[str], str]] = {
    "streams": lambda n: "1 stream" if n == "1" else f"{n} streams",
    "bytes": lambda n: f"{int(n):,} B",
    "size": lambda size: f"{size[:-1]} KiB" if size.endswith("k") else f"{int(size):,} B",
    "rate": lambda n: f"{n} kpps",
    "percentile": lambda name: PERCENTILES[name][0],
}
"""What stands in a metric's name → how people read it."""
_STREAMS, _BYTES, _RATE = r"(?P<streams>\d{1,3})", r"(?P<bytes>\d{1,4})", r"(?P<rate>\d{1,3})"
_PERCENTILE = f"(?P<percentile>{'|'.join(PERCENTILES)})"
_FAMILIES = (
    (rf"tcp{_STREAMS}_gbit_s", "TCP, {streams}", "Gbit/s", True),
    (rf"tcp{_STREAMS}_write(?P<size>\d{{1,5}}k?)_gbit_s", "TCP, {streams}, writes of {size}", "Gbit/s", True),
    ("tcp_both_gbit_s", "TCP, 1 stream each way, sum", "Gbit/s", True),
    (rf"udp{_BYTES}_kpps", "UDP {bytes} delivered at saturation", "kpps", True),
    ("udp64_both_kpps", "UDP 64 B both ways delivered, sum", "kpps", True),
    ("udp64_weaker_share", "UDP 64 B both ways, weaker direction to stronger", "", True),
    (rf"udp64_at_{_RATE}k_delivered_kpps", "UDP 64 B delivered of {rate}", "kpps", True),
    (rf"udp64_at_{_RATE}k_lost_percent", "UDP 64 B lost of {rate}", "%", False),
    (rf"udp{_BYTES}_loss_free_kpps", "UDP {bytes}, highest rate without loss", "kpps", True),
    (rf"rtt_{_PERCENTILE}_us", "ping {percentile}", "µs", False),
    (rf"rtt_loaded_{_PERCENTILE}_us", "ping {percentile} beside a TCP stream", "µs", False),
    ("tcp1_daemons_cpu_s_per_gb", "CPU of the daemons (TCP, 1 stream)", "s per GB", False),
    ("tcp1_machine_cpu_s_per_gb", "CPU of the machine (TCP, 1 stream)", "s per GB", False),
)
"""Pattern of the name, title, unit, whether more is better; in the order in which they are shown."""


def metrics_of(names: Iterable[str]) -> list[Metric]:
    """Return the metrics of these names, each once, in the order in which they are shown; other values are none."""
    found: dict[str, tuple[tuple[int, ...], Metric]] = {}
    for name in set(names):
        for rank, (pattern, title, unit, higher_is_better) in enumerate(_FAMILIES):
            if parts := re.fullmatch(pattern, name, re.ASCII):
                said = {part: _SAID[part](text) for part, text in parts.groupdict().items()}
                metric = Metric(name, title.format(**said), unit, higher_is_better)
                found[name] = ((rank, *_magnitude(name)), metric)
    return [metric for _, metric in sorted(found.values(), key=itemgetter(0))]


def _magnitude(name: str) -> tuple[int, ...]:
    """Return the numbers in a name, of which smaller ones are shown first."""
    return tuple(int(digits) * (1024 if kilo else 1) for digits, kilo in re.findall(r"(\d+)(k?)", name))


def is_ours(contender: str) -> bool:
    """Tell whether our agents carry the packets, at one end at least: `ours`, `ours-w2`, `vxlan-to-ours`."""
    return OURS in contender.split("-")
