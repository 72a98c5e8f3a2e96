"""What is measured, and on whom: the names that samples have, and how people read them."""

from __future__ import annotations

from dataclasses import dataclass

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


METRICS = (
    Metric("tcp1_gbit_s", "TCP, 1 stream", "Gbit/s", True),
    Metric("tcp4_gbit_s", "TCP, 4 streams", "Gbit/s", True),
    Metric("tcp_both_gbit_s", "TCP, 1 stream each way, sum", "Gbit/s", True),
    Metric("udp64_kpps", "UDP 64 B delivered at saturation", "kpps", True),
    Metric("udp64_both_kpps", "UDP 64 B both ways delivered, sum", "kpps", True),
    Metric("udp64_weaker_share", "UDP 64 B both ways, weaker direction to stronger", "", True),
    Metric("udp1400_kpps", "UDP 1,400 B delivered at saturation", "kpps", True),
    Metric("udp64_at_50k_delivered_kpps", "UDP 64 B delivered of 50 kpps", "kpps", True),
    Metric("udp64_at_50k_lost_percent", "UDP 64 B lost of 50 kpps", "%", False),
    Metric("udp64_at_100k_delivered_kpps", "UDP 64 B delivered of 100 kpps", "kpps", True),
    Metric("udp64_at_100k_lost_percent", "UDP 64 B lost of 100 kpps", "%", False),
    Metric("udp64_at_200k_delivered_kpps", "UDP 64 B delivered of 200 kpps", "kpps", True),
    Metric("udp64_at_200k_lost_percent", "UDP 64 B lost of 200 kpps", "%", False),
    Metric("udp64_loss_free_kpps", "UDP 64 B, highest rate without loss", "kpps", True),
    Metric("udp512_loss_free_kpps", "UDP 512 B, highest rate without loss", "kpps", True),
    Metric("udp1400_loss_free_kpps", "UDP 1,400 B, highest rate without loss", "kpps", True),
    Metric("rtt_p50_us", "ping p50", "µs", False),
    Metric("rtt_p99_us", "ping p99", "µs", False),
    Metric("rtt_loaded_p50_us", "ping p50 beside a TCP stream", "µs", False),
    Metric("rtt_loaded_p99_us", "ping p99 beside a TCP stream", "µs", False),
    Metric("tcp1_daemons_cpu_s_per_gb", "CPU of the daemons (TCP, 1 stream)", "s per GB", False),
    Metric("tcp1_machine_cpu_s_per_gb", "CPU of the machine (TCP, 1 stream)", "s per GB", False),
)
"""In the order in which they are shown."""


def is_ours(contender: str) -> bool:
    """Tell whether our agents carry the packets, at one end at least: `ours`, `ours-w2`, `vxlan-to-ours`."""
    return OURS in contender.split("-")
