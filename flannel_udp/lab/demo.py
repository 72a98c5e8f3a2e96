"""The demonstration: a lab comes up, is drawn, pinged through, carries a transfer, shows a packet's way, goes down.

With the backend alloc, which leaves routes to others, a first ping shows that; then the demonstration puts them.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from flannel_udp.errors import UsageError
from flannel_udp.lab.by_hand import ALLOC, put_routes, routes_from
from flannel_udp.lab.capture import format_trace, trace_document
from flannel_udp.lab.graph import draw_lab
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping, ping_matrix, tcp_rate

logger = logging.getLogger(__name__)

_MATRIX_MAX_PODS = 12
"""More columns than that do not fit a terminal; the summary says it all the same."""
_ANSWER_S = 15.0
"""How long an answer may take: the machine is busy, perhaps, and here nothing is lost on purpose."""
_ROUTES_MAX = 6
"""So many lines of routes show what they are like."""


def run_demo(plan: Plan, stream: TextIO, width: int) -> bool:
    """Show everything on `stream`, at most `width` columns; return whether every ping was answered.

    The lab is gone when this returns or raises. Raises `UsageError` for a plan without two pods to talk.
    """
    with _lab_for(plan) as lab:
        return show(lab, stream, width)


def demo_document(plan: Plan) -> dict[str, Any]:
    """Return the same as a document for programs, as `run_demo` does; `ok` is whether every ping was answered."""
    with _lab_for(plan) as lab:
        if plan.backend == ALLOC:
            put_routes(lab)
        families = [_family_document(lab, version) for version in plan.versions]
        status = lab.status()
    answered = all(ping["ms"] is not None for family in families for ping in family["pings"])
    return {"ok": answered, "lab": status, "families": families}


def _lab_for(plan: Plan) -> Lab:
    if plan.hosts < 2 or plan.pods < 1:
        raise UsageError("a demonstration needs at least 2 hosts with 1 pod each")
    return Lab(plan)


def _family_document(lab: Lab, version: int) -> dict[str, Any]:
    first, last = lab.hosts[0].pods[0], lab.hosts[-1].pods[0]
    times = ping_matrix(_pods_of(lab, version), _ANSWER_S, version)
    pings = [
        {"from": source, "to": target, "ms": None if seconds is None else round(seconds * 1e3, 3)}
        for (source, target), seconds in times.items()
    ]
    rate = tcp_rate(first, last, last.address(version))
    return {
        "ip": version,
        "pings": pings,
        "tcp": {"from": first.path, "to": last.path, "bits_per_s": round(rate)},
        "packet": trace_document(first, last, version, _ANSWER_S),
    }


def _pods_of(lab: Lab, version: int) -> list[Pod]:
    return [pod for pod in lab.pods() if pod.known_address(version)]


def show(lab: Lab, stream: TextIO, width: int) -> bool:
    """Draw, ping, transfer and trace on a lab that is up; return whether every ping was answered."""

    def say(text: str) -> None:
        stream.write(f"{text}\n\n")
        stream.flush()  # keeps its place among the progress lines, which go to stderr

    plan = lab.plan
    first, last = lab.hosts[0].pods[0], lab.hosts[-1].pods[0]
    say(draw_lab(lab, width))
    if plan.backend == ALLOC:
        say(_route_by_hand(lab, first, last))
    answered = [_show_family(lab, say, version) for version in plan.versions]
    return all(answered)


def _show_family(lab: Lab, say: Callable[[str], None], version: int) -> bool:
    """Show the routes, pings, a transfer and one packet by IPv4 or IPv6; return whether every ping was answered."""
    pods = _pods_of(lab, version)
    first, last = lab.hosts[0].pods[0], lab.hosts[-1].pods[0]
    by = "" if lab.plan.versions == (4,) else f" by IPv{version}"
    say(format_routes(lab.hosts[0], lab.plan.overlays[lab.plan.versions.index(version)]))
    logger.info("pinging between %d pods%s", len(pods), by)
    times = ping_matrix(pods, _ANSWER_S, version)
    say(format_pings([pod.path for pod in pods], times))
    logger.info("sending over TCP for 2 s")
    rate = tcp_rate(first, last, last.address(version))
    say(f"TCP{by}, one connection from {first.path} to {last.path}: {rate / 1e9:.2f} Gbit/s")
    say(format_trace(first, last, version, _ANSWER_S))
    return None not in times.values()


def _route_by_hand(lab: Lab, source: Pod, target: Pod) -> str:
    """Show that no packet travels without routes, put them, and say what was done."""
    (before,) = ping(source, [target.address(source.plan.versions[0])], timeout_s=1.0)
    reached = "is not answered, as it should be" if before is None else "is answered: the routes are there already"
    put_routes(lab)
    return _shortened(
        f"one ping from {source.path} to {target.path} {reached}.\n"
        "alloc gives every host its subnet and no more; so routes are put by hand now, on every host as on h1:",
        [f"ip {line}" for line in routes_from(lab, lab.hosts[0])],
    )


def format_routes(host: Host, overlay: str) -> str:
    """Return the routes into the overlay that a host has."""
    command = ["ip", *(["-6"] if ":" in overlay else []), "route", "show", "root", overlay]
    return _shortened(f"{host.name}: {' '.join(command)}", host.run(command).stdout.splitlines())


def _shortened(title: str, lines: Sequence[str]) -> str:
    more = [f"... and {len(lines) - _ROUTES_MAX} more"] if len(lines) > _ROUTES_MAX else []
    return "\n".join([title, *(f"  {line.rstrip()}" for line in [*lines[:_ROUTES_MAX], *more])])


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
