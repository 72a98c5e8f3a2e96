"""Measures of UDP, with the load generator blast.c: saturation, fixed rates, the highest rate without loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flannel_udp.bench.contenders import Pair
from flannel_udp.bench.generators import BLAST_PORT, GRACE_S, WARM_UP_MS, Counted, Load, build_blast, parse_blast
from flannel_udp.bench.samples import Found
from flannel_udp.bench.ways import Way

SMALL_BYTES = 64
"""Of payload: 92 bytes of inner packet."""
MAX_LOSS = 0.005
"""What counts as free of loss."""
SEARCH_LOW_PPS, SEARCH_HIGH_PPS = 100, 10_000_000
"""From what a slow line carries of large datagrams to more than one process sends of small ones."""
SEARCH_STEPS = 9
"""Halvings of the span's logarithm: 100,000^(1/512) = 2.3 % are left between what passed and what failed."""
TRIAL_MS = 500


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of datagrams that were offered at a rate."""

    sent: Counted
    delivered: int

    @property
    def loss(self) -> float:
        """The share that did not arrive."""
        return (self.sent.packets - self.delivered) / self.sent.packets

    @property
    def loss_free(self) -> bool:
        """Whether it passed with no more loss than is let pass."""
        return self.loss <= MAX_LOSS


def saturate(way: Way, load: Load, *, payload_bytes: int) -> Found:
    """Datagrams as fast as one process can send them: thousands a second sent and delivered."""
    window_ms = load.seconds * 1000
    with way.datagram_receiver(window_ms) as counted:
        # The sender outlasts the window, however late it starts.
        sent = _send(way, payload_bytes, window_ms + 3 * WARM_UP_MS, 0)
        received = counted()
    name = f"udp{payload_bytes}"
    return Found({f"{name}_sent_kpps": sent.pps / 1e3, f"{name}_kpps": received.pps / 1e3})


def saturate_both_ways(pair: Pair, load: Load) -> Found:
    """Small datagrams as fast as one process each way can send them, at once: thousands a second delivered each way.

    `weaker_share` is the weaker direction's divided by the stronger one's.
    """
    ways = (pair, pair.turned)
    with ThreadPoolExecutor(len(ways)) as threads:
        both = list(threads.map(lambda way: saturate(way, load, payload_bytes=SMALL_BYTES), ways))
    there, back = (found.values[f"udp{SMALL_BYTES}_kpps"] for found in both)
    return Found(
        {
            f"udp{SMALL_BYTES}_there_kpps": there,
            f"udp{SMALL_BYTES}_back_kpps": back,
            f"udp{SMALL_BYTES}_both_kpps": there + back,
            f"udp{SMALL_BYTES}_weaker_share": min(there, back) / max(there, back),
        }
    )


def offer(way: Way, load: Load, *, rates_pps: tuple[int, ...]) -> Found:
    """Small datagrams at fixed rates: thousands a second that were offered and delivered, and the loss in percent."""
    values: dict[str, float] = {}
    for rate_pps in rates_pps:
        trial = send_at(way, rate_pps, load.seconds * 1000, SMALL_BYTES)
        name = f"udp{SMALL_BYTES}_at_{rate_pps // 1000}k"
        values[f"{name}_offered_kpps"] = trial.sent.pps / 1e3
        values[f"{name}_delivered_kpps"] = trial.delivered / trial.sent.seconds / 1e3
        values[f"{name}_lost_percent"] = 100 * trial.loss
    return Found(values)


def loss_free(way: Way, _load: Load, *, payload_bytes: int) -> Found:
    """The highest rate of datagrams that passes with a loss of at most MAX_LOSS, in thousands a second."""
    best_pps = best_rate(lambda rate: send_at(way, round(rate), TRIAL_MS, payload_bytes))
    return Found({f"udp{payload_bytes}_loss_free_kpps": best_pps / 1e3})


def best_rate(take: Callable[[float], Trial]) -> float:
    """Return the highest rate in packets a second that was really sent without loss; 0 where none was.

    What was sent counts, not what was asked for: a path may slow its sender down and lose nothing, as the kernel's do.
    """
    best = 0.0

    def passes(rate_pps: float) -> bool:
        nonlocal best
        for _ in range(2):  # a single hiccup of the machine would halve the span for good: a rate fails twice
            trial = take(rate_pps)
            if trial.loss_free:
                best = max(best, trial.sent.pps)
                return True
        return False

    search(passes, SEARCH_LOW_PPS, SEARCH_HIGH_PPS, SEARCH_STEPS)
    return best


def search(passes: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """Return the highest rate that passed, by bisection of the logarithm; `low` where none did."""
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def send_at(way: Way, rate_pps: int, duration_ms: int, payload_bytes: int) -> Trial:
    """Send datagrams at a rate, and return what became of them. Raises `FlannelError` where none arrives."""
    with way.datagram_receiver(0) as counted:
        sent = _send(way, payload_bytes, duration_ms, rate_pps)
        return Trial(sent, counted().packets)


def _send(way: Way, payload_bytes: int, duration_ms: int, rate_pps: int) -> Counted:
    numbers = (BLAST_PORT, payload_bytes, duration_ms, rate_pps)
    command = [str(build_blast()), "send", str(way.target), *map(str, numbers)]
    return parse_blast(way.sender.run(command, timeout_s=duration_ms / 1000 + GRACE_S).stdout)
