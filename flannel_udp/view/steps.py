"""A packet's way as steps that are replayed one by one: of one that was sent, or of one that was asked about. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flannel_udp.admin.trace_shapes import Trace, TraceArrival, TraceCheck, TraceDatagram, TraceHeader
from flannel_udp.view.shapes import Step

_MARKS = {"passed": "yes", "failed": "NO", "not asked": "not asked"}


def steps_of_ping(document: Mapping[str, Any]) -> list[Step]:
    """Return the steps of what `lab follow --json` says."""
    return [
        Step(
            node=step["where"].partition(" ")[0],
            title=f"{step['where']}: {step['what']}",
            lines=step["seen"] or ["not seen here"],
            headers=[],
            good=step["seen"] is not None,
        )
        for step in document["steps"]
    ]


def steps_of_trace(trace: Trace, source: str, destination: str, hosts: Mapping[str, str]) -> list[Step]:
    """Return the steps of what `lab trace --json` says of a packet between these two.

    They are a node's path or an address; `hosts` are the lab's by their addresses on the underlay.
    """
    return list(_steps(trace, source, destination, hosts))


def _steps(trace: Trace, source: str, destination: str, hosts: Mapping[str, str]) -> Iterator[Step]:
    first = _host_of(source, hosts)
    it = first or "its host"
    yield _step(source, f"{source} sends {trace['packet']['bytes']} bytes", [], trace["packet"]["headers"])
    host = trace["host"]
    fate = [f"route: {host['route']}"]
    fate += [] if host["device"] is None else [f"by {host['device']}, MTU {host['mtu']}"]
    yield _step(first, f"the kernel of {it}: {host['why']}", fate, good=trace["dropped_by"] != "host")
    if trace["checks"]:
        passed = all(check["result"] != "failed" for check in trace["checks"])
        yield _step(first, f"the data path of {it} asks", _checks(trace["checks"]), good=passed)
    if trace["mtu"] is not None:
        fit = trace["mtu"]
        front = "".join(f" + {name} {size}" for name, size in fit["overhead"].items())
        known = {"the path carries": fit["path"], "probes found": fit["probed"], "the limit inside is": fit["limit"]}
        limits = [f"{text} {size}" for text, size in known.items() if size is not None]
        size = f"the size: {fit['inner']}{front} = {fit['outer']} bytes"
        yield _step(first, size, limits, good=trace["reason"] != "too_big")
    for sent in trace["datagrams"]:
        yield _sent(first, sent, trace)
    second = hosts.get(trace["peer"]["public_ip"], "") if trace["peer"] else ""
    if "arrival" in trace:
        yield from _arrival(second, trace["arrival"])
    lines = [] if trace["reason"] is None else [f"counted as {trace['reason']}"]
    good = trace["verdict"] in ("sent", "delivered")
    there = second if trace["dropped_by"] == "other host" else first
    place = destination if trace["verdict"] == "delivered" else there
    yield _step(place, f"{trace['verdict']}: {trace['why']}", [*lines, *trace["notes"]], good=good)
    if trace["answer"] is not None:
        yield _step(source, "the sender hears of it", [], trace["answer"]["headers"], good=good)


def _arrival(host: str, arrival: TraceArrival) -> Iterator[Step]:
    lines = _checks(arrival["checks"])
    lines += [] if arrival["route"] is None else [f"route: {arrival['route']}"]
    headers = arrival["packet"]["headers"] if arrival["packet"] else []
    yield _step(host, f"{host or 'the other host'}: {arrival['why']}", lines, headers, arrival["verdict"] != "dropped")


def _sent(host: str, sent: TraceDatagram, trace: Trace) -> Step:
    entries = [f"{'there' if entry['present'] else 'MISSING'}: {entry['entry']}" for entry in trace["entries"]]
    good = all(entry["present"] for entry in trace["entries"])
    return _step(host, f"{sent['bytes']} bytes leave {host or 'its host'}", entries, sent["headers"], good)


def _checks(checks: Sequence[TraceCheck]) -> list[str]:
    """Return them with their answers, and what a packet is dropped as where the answer is no."""
    return [
        f"{_MARKS[check['result']]}: {check['check']}"
        + (f" ({', '.join(check['reasons'])})" if check["result"] == "failed" else "")
        for check in checks
    ]


def _host_of(end: str, hosts: Mapping[str, str]) -> str:
    name = end.partition("/")[0]
    return name if name in hosts.values() else ""


def _step(node: str, title: str, lines: list[str], headers: list[TraceHeader] | None = None, good: bool = True) -> Step:
    return Step(node=node, title=title, lines=lines, headers=headers or [], good=good)
