"""Measures of the round trip, with ping: on an idle path, and beside a TCP stream."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flannel_udp.bench.generators import GRACE_S, Load
from flannel_udp.bench.latency import histogram, percentile
from flannel_udp.bench.metrics import PERCENTILES
from flannel_udp.bench.samples import Found
from flannel_udp.bench.streams import iperf3_client, parse_iperf3
from flannel_udp.bench.ways import Way
from flannel_udp.errors import FlannelError

_PINGS_PER_S = 1000
_SETTLE_S = 0.5
"""What a TCP stream needs to saturate the path before the pings begin."""


def round_trip(way: Way, load: Load) -> Found:
    """A ping every millisecond on an idle path: percentiles in microseconds, and how many took how long."""
    return _pings(way, load, "rtt")


def round_trip_under_load(way: Way, load: Load) -> Found:
    """The same while one TCP stream saturates the path; and what that stream carries meanwhile, in Gbit/s."""
    with way.iperf3_server(), _tcp_stream(way, load) as stream:
        time.sleep(_SETTLE_S)
        found = _pings(way, load, "rtt_loaded")
        text, _ = stream.communicate(timeout=load.seconds + GRACE_S)
    (transfer,) = parse_iperf3(text)
    return Found({**found.values, "rtt_loaded_tcp_gbit_s": transfer.bits_per_s / 1e9}, found.times_us)


@contextmanager
def _tcp_stream(way: Way, load: Load) -> Iterator[subprocess.Popen[str]]:
    """Run one TCP stream that outlasts the pings."""
    command = iperf3_client(way, load, load.seconds + 2)
    with way.sender.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _pings(way: Way, load: Load, name: str) -> Found:
    count = load.seconds * _PINGS_PER_S
    interval_s = str(1 / _PINGS_PER_S)
    command = ["ping", "-n", "-i", interval_s, "-c", str(count), "-w", str(load.seconds + 1), str(way.target)]
    done = way.sender.run(command, check=False, timeout_s=load.seconds + GRACE_S)
    times_us, sent = parse_ping(done.stdout), parse_ping_sent(done.stdout)
    if not times_us or not sent:
        raise FlannelError(f"{way.name}: none of {count} pings was answered")
    of = histogram(times_us)
    values = {f"{name}_{each}_us": float(percentile(of, percent)) for each, (_, percent) in PERCENTILES.items()}
    return Found({**values, f"{name}_lost_percent": 100 * (1 - len(times_us) / sent)}, of)


def parse_ping(text: str) -> list[float]:
    """Return the round-trip times in `ping`'s lines, in microseconds; a duplicate answer counts once."""
    lines = (line for line in text.splitlines() if not line.endswith("(DUP!)"))
    return [float(found[1]) * 1e3 for line in lines if (found := re.search(r" time=([\d.]+) ms", line))]


def parse_ping_sent(text: str) -> int:
    """Return how many requests `ping` says it sent; 0 where it says nothing."""
    found = re.search(r"^(\d+) packets transmitted", text, re.MULTILINE)
    return int(found[1]) if found else 0
