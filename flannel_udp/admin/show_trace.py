"""`trace` for people: what becomes of a packet, step by step, in lines that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from flannel_udp.admin.headers import PROTOCOL_NAMES
from flannel_udp.admin.trace_shapes import (
    Trace,
    TraceArrival,
    TraceCheck,
    TraceDatagram,
    TraceField,
    TraceHeader,
    TraceMtu,
    TracePacket,
)

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, NARROWEST, WIDEST = 80, 40, 100
_MARKS = {"passed": "ok", "failed": "NO", "not asked": "-"}
_STYLES = {"passed": "green", "failed": "bold red", "not asked": "dim"}
_VERDICT_STYLES = {"sent": "green", "delivered": "green", "dropped": "bold red", "elsewhere": "yellow"}
_SEGMENTED = (6, 17)
_HOPS = ("TTL", "hop limit")
_HEX_MAX = 8
"""Bytes of a field that are shown; an IPv6 address says itself in its value."""

Line = tuple[str, str]
"""A line, and its style."""


def show_trace(trace: Trace, stream: TextIO) -> None:
    """Write the trace; lines are as wide as the terminal, 80 columns without one."""
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import, and --json does without

    width = min(max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST), WIDEST)
    _write(Console(file=stream, highlight=False, width=1_000), trace_lines(trace, width))


def _write(console: Console, lines: Iterator[Line]) -> None:
    from rich.text import Text  # noqa: PLC0415 - as above

    for line, style in lines:
        console.print(Text(line, style))


def trace_lines(trace: Trace, width: int) -> Iterator[Line]:
    """Yield the lines and their styles."""
    page = _Page(width)
    yield from page.head("the packet", _packet_title(trace))
    yield from page.headers(trace["packet"])
    host = trace["host"]
    sender = "this host sends it" if host["sender"] == "host" else "a pod sends it to its gateway, this host"
    yield from page.head("the host", f"{sender}; its kernel asks its routes")
    yield from page.text(f"route: {host['route']}")
    if "diverted" in host:
        yield from page.text(host["diverted"], "red")
    yield from page.text(host["why"])
    if host["outcome"] in ("passed", "fragmented"):
        hops = "hop limit" if ":" in trace["asked"]["source"] else "TTL"
        yield from page.text(f"{hops} {trace['asked']['ttl']} is {host['ttl']} then")
    yield from _carried(page, trace)
    for number, sent in enumerate(trace["datagrams"], start=1):
        which = f" {number} of {len(trace['datagrams'])}" if len(trace["datagrams"]) > 1 else ""
        yield from page.head(f"on the wire{which}", _sent_title(sent))
        yield from page.headers(sent)
    if trace["answer"] is not None:
        yield from page.head("the answer", "an ICMP error goes back to the sender")
        yield from page.headers(trace["answer"])
    if "arrival" in trace:
        yield from _arrived(page, trace["arrival"])
    yield from page.head("verdict", "")
    verdict = trace["verdict"] if trace["dropped_by"] is None else f"dropped by the {trace['dropped_by']}"
    reason = f" ({trace['reason']})" if trace["reason"] else ""
    yield from page.text(f"{verdict}{reason}: {trace['why']}", _VERDICT_STYLES[trace["verdict"]])
    for note in trace["notes"]:
        yield from page.text(f"note: {note}", "yellow")


def _packet_title(trace: Trace) -> str:
    asked = trace["asked"]
    protocol = PROTOCOL_NAMES.get(asked["protocol"], f"protocol {asked['protocol']}")
    return f"{asked['source']} to {asked['destination']}, {protocol}, {asked['size']:,} bytes"


def _carried(page: _Page, trace: Trace) -> Iterator[Line]:
    if trace["carrier"] == "nobody":
        return
    who = "our packet path" if trace["carrier"] == "data path" else "the kernel, not our packet path"
    yield from page.head("the overlay", f"backend {trace['backend']}: {who}")
    if (peer := trace["peer"]) is not None:
        yield from page.text(f"peer {peer['public_ip']}, whose lease is {peer['subnet']}")
        if peer["problem"] is not None:
            yield from page.text(peer["problem"], "yellow")
    for entry in trace["entries"]:
        yield from page.text(entry["entry"] if entry["present"] else f"MISSING: {entry['entry']}")
    yield from page.checks(trace["checks"])
    if trace["checks"] and trace["asked"]["protocol"] in _SEGMENTED:
        yield from page.text("it comes as one packet, so that there is nothing to cut into segments (TSO, USO)")
    if trace["mtu"] is not None:
        yield from _sizes(page, trace["mtu"])


def _sizes(page: _Page, mtu: TraceMtu) -> Iterator[Line]:
    more = "".join(f" + {n} {name}" for name, n in mtu["overhead"].items())
    total = f" = {mtu['outer']:,} bytes" if more else " bytes"
    path = "" if mtu["path"] is None else f"; the path takes {mtu['path']:,}, as far as the kernel knows"
    yield from page.text(f"size: {mtu['inner']:,}{more}{total}{path}")
    if mtu["limit"] is not None:
        whose = "probes found" if mtu["probed"] == mtu["limit"] else "the kernel tells"
        yield from page.text(f"an inner packet may have {mtu['limit']:,} bytes there, as {whose}", "yellow")


def _sent_title(sent: TraceDatagram) -> str:
    cut = {True: ", routers may cut it", False: ", no router may cut it", None: ""}[sent["fragmentable"]]
    return f"{sent['bytes']:,} bytes{cut}"


def _arrived(page: _Page, arrival: TraceArrival) -> Iterator[Line]:
    who = "its packet path" if arrival["carrier"] == "data path" else "its kernel"
    yield from page.head("the other host", f"subnet {arrival['subnet']}, backend {arrival['backend']}: {who}")
    yield from page.checks(arrival["checks"])
    if arrival["packet"] is not None:
        fields = arrival["packet"]["headers"][0]["fields"]
        yield from page.text(next(f"{it['name']} {it['value']} is left" for it in fields if it["name"] in _HOPS))
    if arrival["route"] is not None:
        yield from page.text(f"route: {arrival['route']}")
    reason = f" ({arrival['reason']})" if arrival["reason"] else ""
    yield from page.text(f"{arrival['verdict']}{reason}: {arrival['why']}", _VERDICT_STYLES[arrival["verdict"]])


class _Page:
    """Makes lines that fit; steps are numbered."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._n = 0
        self._explained: set[str] = set()  # names of fields: what they mean is said once

    def head(self, name: str, text: str) -> Iterator[Line]:
        """Yield the first lines of a step."""
        self._n += 1
        title = f"{self._n} {name}" + (f": {text}" if text else "")
        yield from self._wrapped(title, "", "  ", "bold")

    def text(self, text: str, style: str = "") -> Iterator[Line]:
        """Yield a paragraph of a step."""
        yield from self._wrapped(text, "  ", "    ", style)

    def checks(self, checks: Sequence[TraceCheck]) -> Iterator[Line]:
        """Yield what was asked of the packet, in order, and what came of it."""
        for check in checks:
            failed = f" ({', '.join(check['reasons'])})" if check["result"] == "failed" else ""
            text = f"{_MARKS[check['result']]:<3}{check['check']}{failed}"
            yield from self._wrapped(text, "  ", "     ", _STYLES[check["result"]])

    def headers(self, packet: TracePacket) -> Iterator[Line]:
        """Yield the headers of a packet: for each field its offset, its bytes, and what they say."""
        for header in packet["headers"]:
            yield from self._wrapped(f"{header['name']}, {header['bytes']} bytes", "  ", "    ", "cyan")
            for field in header["fields"]:
                yield from self._field(field)
        if rest := packet["bytes"] - _end_of(packet["headers"]):
            yield from self._wrapped(f"payload, {rest:,} bytes", "  ", "    ", "cyan")

    def _field(self, field: TraceField) -> Iterator[Line]:
        raw = "?" * 2 * field["bytes"] if field["hex"] is None else field["hex"]
        if field["bytes"] > _HEX_MAX:
            raw = f"{raw[: 2 * _HEX_MAX - 2]}.."
        meaning = ""
        if field["meaning"] and field["name"] not in self._explained:
            meaning = f" ({field['meaning']})"
            self._explained.add(field["name"])
        start = f"    {field['offset']:>3}  {raw:<16}  " if self._width >= WIDTH else f"  {field['offset']:>3} {raw} "
        hanging = " " * (len(start) if self._width >= WIDTH else 6)
        yield from self._wrapped(f"{field['name']}: {field['value']}{meaning}", start, hanging, "")

    def _wrapped(self, text: str, start: str, hanging: str, style: str) -> Iterator[Line]:
        for line in textwrap.wrap(
            text, self._width, initial_indent=start, subsequent_indent=hanging, break_on_hyphens=False
        ) or [start]:
            yield line, style


def _end_of(headers: Sequence[TraceHeader]) -> int:
    return headers[-1]["offset"] + headers[-1]["bytes"] if headers else 0
