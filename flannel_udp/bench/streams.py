"""Measures of TCP, with iperf3."""

from __future__ import annotations

import json
from dataclasses import dataclass

from flannel_udp.bench.cpu import daemons_cpu_s, read_machine
from flannel_udp.bench.generators import GRACE_S, Load
from flannel_udp.bench.names import Streams, size_name
from flannel_udp.bench.samples import Found
from flannel_udp.bench.ways import Way
from flannel_udp.errors import FlannelError


def tcp(way: Way, load: Load, *, streams: Streams) -> Found:
    """TCP from sender to receiver: what arrived in Gbit/s, segments sent again, CPU seconds per GB (10^9 bytes)."""
    n, write_bytes = streams
    written = ["-l", str(write_bytes)] if write_bytes else []
    daemons = way.daemons or ()
    with way.iperf3_server():
        daemons_s, machine = daemons_cpu_s(daemons), read_machine()
        done = way.sender.run(
            iperf3_client(way, load, load.seconds, "-P", str(n), *written),
            check=False,  # its JSON tells what went wrong
            timeout_s=load.seconds + GRACE_S,
        )
        daemons_s, machine_s = daemons_cpu_s(daemons) - daemons_s, read_machine().busy_s - machine.busy_s
    (transfer,) = parse_iperf3(done.stdout or done.stderr)
    name, gigabytes = f"tcp{n}", transfer.received_bytes / 1e9
    if write_bytes:
        name += f"_write{size_name(write_bytes)}"
    values = {f"{name}_gbit_s": transfer.bits_per_s / 1e9, f"{name}_retransmits": float(transfer.retransmits)}
    if way.daemons is None:
        return Found(values)
    return Found(
        {
            **values,
            f"{name}_daemons_cpu_s_per_gb": daemons_s / gigabytes,
            f"{name}_machine_cpu_s_per_gb": machine_s / gigabytes,
        }
    )


def tcp_both_ways(way: Way, load: Load) -> Found:
    """One TCP stream each way at once: what arrived in Gbit/s, there, back and in all."""
    with way.iperf3_server():
        command = iperf3_client(way, load, load.seconds, "--bidir")
        done = way.sender.run(command, check=False, timeout_s=load.seconds + GRACE_S)
    there, back = (transfer.bits_per_s / 1e9 for transfer in parse_iperf3(done.stdout or done.stderr))
    return Found({"tcp_both_gbit_s": there + back, "tcp_there_gbit_s": there, "tcp_back_gbit_s": back})


def iperf3_client(way: Way, load: Load, seconds: int, *further: str) -> list[str]:
    """Return the command that sends to the way's target for so many seconds."""
    chosen = ("-C", load.congestion_control) if load.congestion_control else ()
    return ["iperf3", "-c", str(way.target), "-J", "-t", str(seconds), *chosen, *further]


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
