"""Measures of UDP, with the load generator blast.c: saturation, fixed rates, the highest rate without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.bench.contenders import Pair
from flannel_udp.bench.generators import GRACE_S, Load, server
from flannel_udp.bench.samples import Values
from flannel_udp.errors import FlannelError
from flannel_udp.lab.compiled import compiled

SMALL_BYTES = 64
"""Of payload: 92 bytes of inner packet."""
MEDIUM_BYTES = 512
LARGE_BYTES = 1400
"""Of payload: what fits every contender's overlay MTU in one packet."""
MAX_LOSS = 0.005
"""What counts as free of loss."""
SEARCH_LOW_PPS, SEARCH_HIGH_PPS = 10_000, 640_000
SEARCH_STEPS = 7
"""Halvings of the span's logarithm: 64^(1/128) = 3.3 % are left between what passed and what failed."""
TRIAL_MS = 500
_BLAST_SOURCE = Path(__file__).with_name("blast.c")
_BLAST_PORT = 5202
_WARM_UP_MS = 200
_SILENCE_MS = 250


@dataclass(frozen=True, slots=True)
class Counted:
    """What one end of blast counted."""

    packets: int
    seconds: float

    @property
    def pps(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds


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


def saturate(pair: Pair, load: Load, *, payload_bytes: int) -> Values:
    """Datagrams as fast as one process can send them: thousands a second sent and delivered."""
    blast = str(build_blast())
    ends = (str(pair.target), str(_BLAST_PORT))
    window_ms = load.seconds * 1000
    receive = [blast, "receive", *ends, str(_WARM_UP_MS), str(window_ms)]
    with server(pair.receiver, receive, "ready") as receiver:
        # The sender outlasts the window, however late it starts.
        send = [blast, "send", *ends, str(payload_bytes), str(window_ms + 3 * _WARM_UP_MS), "0"]
        sent = parse_blast(pair.sender.run(send, timeout_s=load.seconds + GRACE_S).stdout)
        received = parse_blast(receiver.stdout.readline() if receiver.stdout else "")
    name = f"udp{payload_bytes}"
    return {f"{name}_sent_kpps": sent.pps / 1e3, f"{name}_kpps": received.pps / 1e3}


def saturate_both_ways(pair: Pair, load: Load) -> Values:
    """Small datagrams as fast as one process each way can send them, at once: thousands a second delivered each way.

    `weaker_share` is the weaker direction's divided by the stronger one's.
    """
    ways = (pair, pair.turned)
    with ThreadPoolExecutor(len(ways)) as threads:
        both = list(threads.map(lambda way: saturate(way, load, payload_bytes=SMALL_BYTES), ways))
    there, back = (values[f"udp{SMALL_BYTES}_kpps"] for values in both)
    return {
        f"udp{SMALL_BYTES}_there_kpps": there,
        f"udp{SMALL_BYTES}_back_kpps": back,
        f"udp{SMALL_BYTES}_both_kpps": there + back,
        f"udp{SMALL_BYTES}_weaker_share": min(there, back) / max(there, back),
    }


def offer(pair: Pair, load: Load, *, rates_pps: tuple[int, ...]) -> Values:
    """Small datagrams at fixed rates: thousands a second that were offered and delivered, and the loss in percent."""
    values: dict[str, float] = {}
    for rate_pps in rates_pps:
        trial = _try(pair, rate_pps, load.seconds * 1000, SMALL_BYTES)
        name = f"udp{SMALL_BYTES}_at_{rate_pps // 1000}k"
        values[f"{name}_offered_kpps"] = trial.sent.pps / 1e3
        values[f"{name}_delivered_kpps"] = trial.delivered / trial.sent.seconds / 1e3
        values[f"{name}_lost_percent"] = 100 * trial.loss
    return values


def loss_free(pair: Pair, _load: Load, *, payload_bytes: int) -> Values:
    """The highest rate of datagrams that passes with a loss of at most MAX_LOSS, in thousands a second."""
    best_pps = best_rate(lambda rate: _try(pair, round(rate), TRIAL_MS, payload_bytes))
    return {f"udp{payload_bytes}_loss_free_kpps": best_pps / 1e3}


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


def _try(pair: Pair, rate_pps: int, duration_ms: int, payload_bytes: int) -> Trial:
    blast = str(build_blast())
    ends = (str(pair.target), str(_BLAST_PORT))
    with server(pair.receiver, [blast, "count", *ends, str(_SILENCE_MS)], "ready") as receiver:
        send = [blast, "send", *ends, str(payload_bytes), str(duration_ms), str(rate_pps)]
        sent = parse_blast(pair.sender.run(send, timeout_s=duration_ms / 1000 + GRACE_S).stdout)
        received = parse_blast(receiver.stdout.readline() if receiver.stdout else "")
    return Trial(sent, received.packets)


def parse_blast(text: str) -> Counted:
    """Return what blast.c reports. Raises `FlannelError` if it broke off or counted no packet."""
    try:
        counted = json.loads(text)
    except ValueError:
        raise FlannelError(f"blast gave no result: {text.strip() or '(nothing)'}") from None
    if counted["packets"] == 0:
        raise FlannelError("blast: no datagram arrived")
    return Counted(counted["packets"], counted["seconds"])


def build_blast() -> Path:
    """Return the load generator, which is compiled once a process. Raises `FlannelError` where that fails."""
    return compiled(_BLAST_SOURCE)
