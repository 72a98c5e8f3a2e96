"""What is measured on the way from one host to another. Every measure makes some load, and returns values by metric."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from flannel_udp.bench import datagrams
from flannel_udp.bench.contenders import Pair
from flannel_udp.bench.cpu import daemons_cpu_s, read_machine
from flannel_udp.bench.generators import GRACE_S, Load
from flannel_udp.bench.samples import Values
from flannel_udp.errors import FlannelError
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

_PINGS_PER_S = 1000
_SETTLE_S = 0.5
"""What a TCP stream needs to saturate the path before the pings begin."""
_DEFAULT_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class Way(Protocol):
    """What a measure asks of a way from one host to another: a `Pair` of the lab, or two machines.

    `daemons` are the processes that carry the packets at both ends, ``None`` where they cannot be watched.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - as in `Pair`
    @property
    def sender(self) -> Runner: ...  # noqa: D102
    @property
    def target(self) -> Address: ...  # noqa: D102
    @property
    def mtu(self) -> int: ...  # noqa: D102
    @property
    def daemons(self) -> tuple[int, ...] | None: ...  # noqa: D102

    def iperf3_server(self) -> AbstractContextManager[object]:
        """Run an iperf3 server for one test on the receiver's side, inside the block."""
        ...


Measured_contra = TypeVar("Measured_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Measure(Generic[Measured_contra]):
    """How a measure is taken; it lasts `spans` times the seconds asked for and some `extra_s` seconds more."""

    take: Callable[[Measured_contra, Load], Values]
    spans: int = 1
    extra_s: float = 0.6

    def nominal_s(self, seconds: int) -> float:
        """Return how long a sample takes."""
        return self.spans * seconds + self.extra_s


def default_congestion_control() -> str:
    """Return what the machine uses where nothing is asked for; a new namespace begins with it."""
    return _DEFAULT_CONGESTION_CONTROL.read_text().strip()


def tcp(pair: Way, load: Load, *, streams: int) -> Values:
    """TCP from sender to receiver: what arrived in Gbit/s, segments sent again, CPU seconds per GB (10^9 bytes)."""
    daemons = pair.daemons or ()
    with pair.iperf3_server():
        daemons_s, machine = daemons_cpu_s(daemons), read_machine()
        done = pair.sender.run(
            _iperf3_client(pair, load, load.seconds, "-P", str(streams)),
            check=False,  # its JSON tells what went wrong
            timeout_s=load.seconds + GRACE_S,
        )
        daemons_s, machine_s = daemons_cpu_s(daemons) - daemons_s, read_machine().busy_s - machine.busy_s
    (transfer,) = parse_iperf3(done.stdout or done.stderr)
    name, gigabytes = f"tcp{streams}", transfer.received_bytes / 1e9
    values = {f"{name}_gbit_s": transfer.bits_per_s / 1e9, f"{name}_retransmits": float(transfer.retransmits)}
    if pair.daemons is None:
        return values
    return {
        **values,
        f"{name}_daemons_cpu_s_per_gb": daemons_s / gigabytes,
        f"{name}_machine_cpu_s_per_gb": machine_s / gigabytes,
    }


def tcp_both_ways(pair: Way, load: Load) -> Values:
    """One TCP stream each way at once: what arrived in Gbit/s, there, back and in all."""
    with pair.iperf3_server():
        command = _iperf3_client(pair, load, load.seconds, "--bidir")
        done = pair.sender.run(command, check=False, timeout_s=load.seconds + GRACE_S)
    there, back = (transfer.bits_per_s / 1e9 for transfer in parse_iperf3(done.stdout or done.stderr))
    return {"tcp_both_gbit_s": there + back, "tcp_there_gbit_s": there, "tcp_back_gbit_s": back}


def _iperf3_client(pair: Way, load: Load, seconds: int, *further: str) -> list[str]:
    chosen = ("-C", load.congestion_control) if load.congestion_control else ()
    return ["iperf3", "-c", str(pair.target), "-J", "-t", str(seconds), *chosen, *further]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What iperf3 moved in one direction."""

    received_bytes: int
    bits_per_s: float
    retransmits: int


def parse_iperf3(text: str) -> list[Transfer]:
    """Return what `iperf3 -J` says was received: one transfer, with `--bidir` a second one for the way back.

    Warnings may come before the JSON. Raises `FlannelError` with iperf3's own complaint, or if nothing got through.
    """
    try:
        document, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
    except ValueError:
        raise FlannelError(f"iperf3 gave no JSON: {text.strip() or '(nothing)'}") from None
    if "error" in document:
        raise FlannelError(f"iperf3 failed: {document['error']}")
    end = document["end"]
    transfers = []
    for suffix in ("", "_bidir_reverse"):
        if f"sum_received{suffix}" not in end:
            continue
        received, sent = end[f"sum_received{suffix}"], end[f"sum_sent{suffix}"]
        if received["bytes"] == 0:
            raise FlannelError("iperf3 connected, but nothing got through")
        transfers.append(Transfer(received["bytes"], received["bits_per_second"], sent["retransmits"]))
    return transfers


def round_trip(pair: Way, load: Load) -> Values:
    """A ping every millisecond on an idle path: the median and the 99th percentile in microseconds."""
    return _pings(pair, load, "rtt")


def round_trip_under_load(pair: Way, load: Load) -> Values:
    """The same while one TCP stream saturates the path; and what that stream carries meanwhile, in Gbit/s."""
    with pair.iperf3_server(), _tcp_stream(pair, load) as stream:
        time.sleep(_SETTLE_S)
        values = _pings(pair, load, "rtt_loaded")
        text, _ = stream.communicate(timeout=load.seconds + GRACE_S)
    (transfer,) = parse_iperf3(text)
    return {**values, "rtt_loaded_tcp_gbit_s": transfer.bits_per_s / 1e9}


@contextmanager
def _tcp_stream(pair: Way, load: Load) -> Iterator[subprocess.Popen[str]]:
    """Run one TCP stream that outlasts the pings."""
    command = _iperf3_client(pair, load, load.seconds + 2)
    with pair.sender.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _pings(pair: Way, load: Load, name: str) -> Values:
    count = load.seconds * _PINGS_PER_S
    interval_s = str(1 / _PINGS_PER_S)
    command = ["ping", "-n", "-i", interval_s, "-c", str(count), "-w", str(load.seconds + 1), str(pair.target)]
    done = pair.sender.run(command, check=False, timeout_s=load.seconds + GRACE_S)
    times_us, sent = parse_ping(done.stdout), parse_ping_sent(done.stdout)
    if not times_us or not sent:
        raise FlannelError(f"{pair.name}: none of {count} pings was answered")
    return {
        f"{name}_p50_us": percentile(times_us, 50),
        f"{name}_p99_us": percentile(times_us, 99),
        f"{name}_lost_percent": 100 * (1 - len(times_us) / sent),
    }


def parse_ping(text: str) -> list[float]:
    """Return the round-trip times in `ping`'s lines, in microseconds; a duplicate answer counts once."""
    lines = (line for line in text.splitlines() if not line.endswith("(DUP!)"))
    return [float(found[1]) * 1e3 for line in lines if (found := re.search(r" time=([\d.]+) ms", line))]


def parse_ping_sent(text: str) -> int:
    """Return how many requests `ping` says it sent; 0 where it says nothing."""
    found = re.search(r"^(\d+) packets transmitted", text, re.MULTILINE)
    return int(found[1]) if found else 0


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


_OFFERED_PPS = (50_000, 100_000, 200_000)
NETWORK_MEASURES: Mapping[str, Measure[Way]] = {
    "tcp1": Measure(functools.partial(tcp, streams=1)),
    "tcp4": Measure(functools.partial(tcp, streams=4)),
    "tcp-both": Measure(tcp_both_ways),
    "rtt": Measure(round_trip),
    "rtt-loaded": Measure(round_trip_under_load, extra_s=2.3),
}
"""What needs iperf3 and ping alone, and so can be taken between two machines."""
_DATAGRAM_MEASURES: Mapping[str, Measure[Pair]] = {
    "udp64": Measure(functools.partial(datagrams.saturate, payload_bytes=datagrams.SMALL_BYTES), extra_s=0.9),
    "udp1400": Measure(functools.partial(datagrams.saturate, payload_bytes=datagrams.LARGE_BYTES), extra_s=0.9),
    "udp64-both": Measure(datagrams.saturate_both_ways, extra_s=0.9),
    "udp64-offered": Measure(
        functools.partial(datagrams.offer, rates_pps=_OFFERED_PPS), spans=len(_OFFERED_PPS), extra_s=1.3
    ),
    **{
        # A rate that fails is tried twice: half as many trials again as steps.
        f"udp{payload_bytes}-loss-free": Measure(
            functools.partial(datagrams.loss_free, payload_bytes=payload_bytes),
            spans=0,
            extra_s=1.5 * datagrams.SEARCH_STEPS,
        )
        for payload_bytes in (datagrams.SMALL_BYTES, datagrams.MEDIUM_BYTES, datagrams.LARGE_BYTES)
    },
}
BEYOND_IPV6 = ("udp1400", "udp1400-loss-free")
"""What by IPv6 not every contender carries in one packet."""
COMPILED = frozenset(_DATAGRAM_MEASURES)
"""What needs the load generator blast.c, and so a C compiler."""
_RTT = ("rtt", "rtt-loaded")
MEASURES: Mapping[str, Measure[Pair]] = {
    **{name: measure for name, measure in NETWORK_MEASURES.items() if name not in _RTT},
    **_DATAGRAM_MEASURES,
    **{name: NETWORK_MEASURES[name] for name in _RTT},
}
"""By name, in the order in which a round takes them."""
DEFAULT_MEASURES = ("tcp1", "tcp4", "udp64", "rtt")
