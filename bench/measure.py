"""What is measured on a pair of hosts. Every measure takes some `seconds` and returns its values by metric name."""

from __future__ import annotations

import atexit
import functools
import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import Pair
from bench.cpu import daemons_cpu_s, read_machine
from flannel_udp.errors import FlannelError
from flannel_udp.lab.node import Node

CONGESTION_CONTROL = "cubic"
"""Named, because the default of a machine may be BBR, which ignores the loss of a bad tunnel."""
UDP_PAYLOAD_BYTES = 64
_BLAST_SOURCE = Path(__file__).with_name("blast.c")
_CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wsign-compare", "-Werror")
_BLAST_PORT = 5202
_WARM_UP_MS = 200
_PINGS_PER_S = 1000
_GRACE_S = 15.0
"""What a load generator may take longer than asked to before it is killed."""

Values = Mapping[str, float]
Measure = Callable[[Pair, int], Values]


def tcp(pair: Pair, seconds: int, *, streams: int) -> Values:
    """TCP from sender to receiver: what arrived in Gbit/s, segments sent again, CPU seconds per GB (10^9 bytes)."""
    with _server(pair.receiver, ["iperf3", "-s", "-1", "--forceflush", "-B", str(pair.target)], "Server listening"):
        daemons_s, machine = daemons_cpu_s(pair.daemons), read_machine()
        done = pair.sender.run(
            [
                *("iperf3", "-c", str(pair.target), "-J", "-C", CONGESTION_CONTROL),
                *("-P", str(streams), "-t", str(seconds)),
            ],
            check=False,  # its JSON tells what went wrong
            timeout_s=seconds + _GRACE_S,
        )
        daemons_s, machine_s = daemons_cpu_s(pair.daemons) - daemons_s, read_machine().busy_s - machine.busy_s
    received_bytes, bits_per_s, retransmits = parse_iperf3(done.stdout or done.stderr)
    gigabytes = received_bytes / 1e9
    return {
        f"tcp{streams}_gbit_s": bits_per_s / 1e9,
        f"tcp{streams}_retransmits": retransmits,
        f"tcp{streams}_daemons_cpu_s_per_gb": daemons_s / gigabytes,
        f"tcp{streams}_machine_cpu_s_per_gb": machine_s / gigabytes,
    }


def parse_iperf3(text: str) -> tuple[int, float, int]:
    """Return bytes received, bits a second received, and retransmitted segments from `iperf3 -J`.

    Warnings may come before the JSON. Raises `FlannelError` with iperf3's own complaint, or if nothing got through.
    """
    try:
        document, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
    except ValueError:
        raise FlannelError(f"iperf3 gave no JSON: {text.strip() or '(nothing)'}") from None
    if "error" in document:
        raise FlannelError(f"iperf3 failed: {document['error']}")
    received, sent = document["end"]["sum_received"], document["end"]["sum_sent"]
    if received["bytes"] == 0:
        raise FlannelError("iperf3 connected, but nothing got through")
    return received["bytes"], received["bits_per_second"], sent["retransmits"]


def udp_small(pair: Pair, seconds: int) -> Values:
    """Datagrams of 64 bytes of payload, sent as fast as one process can: thousands a second sent and delivered."""
    blast = str(build_blast())
    ends = (str(pair.target), str(_BLAST_PORT))
    window_ms = seconds * 1000
    receive = [blast, "receive", *ends, str(_WARM_UP_MS), str(window_ms)]
    with _server(pair.receiver, receive, "ready") as server:
        # The sender outlasts the window, however late it starts.
        send = [blast, "send", *ends, str(UDP_PAYLOAD_BYTES), str(window_ms + 3 * _WARM_UP_MS)]
        sent = parse_blast(pair.sender.run(send, timeout_s=seconds + _GRACE_S).stdout)
        received = parse_blast(server.stdout.readline() if server.stdout else "")
    return {"udp64_sent_kpps": sent / 1e3, "udp64_kpps": received / 1e3}


def parse_blast(text: str) -> float:
    """Return the packets a second that blast.c reports. Raises `FlannelError` if it broke off or counted none."""
    try:
        counted = json.loads(text)
    except ValueError:
        raise FlannelError(f"blast gave no result: {text.strip() or '(nothing)'}") from None
    if counted["packets"] == 0:
        raise FlannelError("blast: no datagram arrived")
    rate: float = counted["packets"] / counted["seconds"]
    return rate


@functools.cache
def build_blast() -> Path:
    """Compile the load generator once a process; the binary is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="blast-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = folder / "blast"
    subprocess.run(["cc", *_CFLAGS, "-o", str(binary), str(_BLAST_SOURCE)], check=True, timeout=60)
    return binary


def round_trip(pair: Pair, seconds: int) -> Values:
    """A ping every millisecond on an idle path: the median and the 99th percentile in microseconds."""
    count = seconds * _PINGS_PER_S
    command = ["ping", "-n", "-i", str(1 / _PINGS_PER_S), "-c", str(count), "-w", str(seconds + 5), str(pair.target)]
    times_us = parse_ping(pair.sender.run(command, check=False, timeout_s=seconds + _GRACE_S).stdout)
    if not times_us:
        raise FlannelError(f"{pair.name}: none of {count} pings was answered")
    return {
        "rtt_p50_us": percentile(times_us, 50),
        "rtt_p99_us": percentile(times_us, 99),
        "rtt_lost_percent": 100 * (1 - len(times_us) / count),
    }


def parse_ping(text: str) -> list[float]:
    """Return the round-trip times in `ping`'s lines, in microseconds; a duplicate answer counts once."""
    lines = (line for line in text.splitlines() if not line.endswith("(DUP!)"))
    return [float(found[1]) * 1e3 for line in lines if (found := re.search(r" time=([\d.]+) ms", line))]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


@contextmanager
def _server(node: Node, command: list[str], greeting: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server inside the block, which begins once the server has printed its greeting."""
    with node.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line
                if greeting in line:
                    break
            else:
                raise FlannelError(f"{node.path}: `{' '.join(command)}` ended: {said.strip() or '(nothing said)'}")
            yield process
        finally:
            process.kill()  # no fault if it has ended by itself


MEASURES: Mapping[str, Measure] = {
    "tcp1": functools.partial(tcp, streams=1),
    "tcp4": functools.partial(tcp, streams=4),
    "udp64": udp_small,
    "rtt": round_trip,
}
"""By name, in the order in which a round takes them."""
