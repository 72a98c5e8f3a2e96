"""The demonstration: a lab comes up, is drawn, pinged through, carries a transfer, shows a packet's way, goes down."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import TextIO

from flannel_udp.errors import UsageError
from flannel_udp.lab.capture import describe, trace
from flannel_udp.lab.drawing import draw
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Pod
from flannel_udp.lab.plan import UNDERLAY, Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate

logger = logging.getLogger(__name__)

_MATRIX_MAX_PODS = 12
"""More columns than that do not fit a terminal; the summary says it all the same."""


def run_demo(plan: Plan, stream: TextIO, width: int) -> bool:
    """Show everything on `stream`, at most `width` columns; return whether every ping was answered.

    The lab is gone when this returns or raises. Raises `UsageError` for a plan without two pods to talk.
    """
    if plan.hosts < 2 or plan.pods < 1:
        raise UsageError("a demonstration needs at least 2 hosts with 1 pod each")
    with Lab(plan) as lab:
        return show(lab, stream, width)


def show(lab: Lab, stream: TextIO, width: int) -> bool:
    """Draw, ping, transfer and trace on a lab that is up; return whether every ping was answered."""

    def say(text: str) -> None:
        stream.write(f"{text}\n\n")
        stream.flush()  # keeps its place among the progress lines, which go to stderr

    pods = lab.pods()
    first, last = lab.hosts[0].pods[0], lab.hosts[-1].pods[0]
    overlay = str(lab.plan.config.get("Network"))
    say(draw(lab.status(), underlay=str(UNDERLAY), overlay=overlay, port=lab.plan.port, width=width))
    logger.info("pinging between %d pods", len(pods))
    times = ping_matrix(pods)
    say(format_pings([pod.path for pod in pods], times))
    logger.info("sending over TCP for 2 s")
    rate = tcp_rate(first, last, last.ip)
    say(f"TCP, one connection from {first.path} to {last.path}: {rate / 1e9:.2f} Gbit/s")
    say(format_trace(first, last))
    return None not in times.values()


def format_pings(paths: Sequence[str], times: Mapping[tuple[str, str], float | None]) -> str:
    """Return the matrix of round-trip times, rows the senders, and its summary; lost ones stand out."""
    lines = []
    if len(paths) <= _MATRIX_MAX_PODS:
        lines.append("pings in ms (from the left, to the top)")
        column = max(8, *(len(path) + 2 for path in paths))
        lines.append(" " * column + "".join(path.rjust(column) for path in paths))
        for source in paths:
            cells = (_cell(times, source, target).rjust(column) for target in paths)
            lines.append(source.ljust(column) + "".join(cells))
    answered = [seconds for seconds in times.values() if seconds is not None]
    summary = f"{len(answered)} of {len(times)} pings answered"
    if answered:
        summary += f", median {statistics.median(answered) * 1e3:.2f} ms, slowest {max(answered) * 1e3:.2f} ms"
    return "\n".join([*lines, summary])


def _cell(times: Mapping[tuple[str, str], float | None], source: str, target: str) -> str:
    if source == target:
        return "·"
    seconds = times[source, target]
    return "LOST" if seconds is None else f"{seconds * 1e3:.2f}"


def format_trace(source: Pod, target: Pod) -> str:
    """Send one ping and return what it looked like at each step."""
    lines = [f"one packet from {source.path} to {target.path}"]
    for number, step in enumerate(trace(source, target), start=1):
        seen = describe(step.packet, source.plan.port) if step.packet else "not seen here"
        lines.append(f"{number}  {step.node.path} {step.interface}: {step.story}")
        lines += [f"     {line}" for line in seen.splitlines()]
    return "\n".join(lines)
