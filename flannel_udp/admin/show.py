"""The control socket's documents for human eyes; colours appear on a terminal only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from flannel_udp.admin.shapes import (
    BackendFacts,
    Counters,
    LeaseFacts,
    NetDevice,
    PeerRow,
    Route,
    SocketBuffers,
    Status,
)

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 1_000
"""Columns: enough that rich never wraps or cuts a line; a narrow terminal wraps by itself, `grep` sees it whole."""


def show_json(document: Any, stream: TextIO) -> None:
    """Write the document as it came, indented."""
    stream.write(json.dumps(document, indent=2) + "\n")


def show_status(status: Status, stream: TextIO) -> None:
    """Write the status as a page of names and values; what is not known yet is left out."""
    from rich.text import Text  # noqa: PLC0415 - rich is slow to import, and --json does without

    console = _console(stream)
    for name, value in _status_lines(status):
        style = "" if name != "state" else "green" if status["ready"] else "yellow"
        # Text, never markup: a value may hold square brackets.
        console.print(Text.assemble((f"{name:<11}", "bold"), (value, style)))


def show_peers(peers: Sequence[PeerRow], stream: TextIO) -> None:
    """Write one line a peer, in the order given."""
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = _console(stream)
    if not peers:
        console.print("no peers")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("subnet", "public ip"):
        table.add_column(heading, no_wrap=True)
    for heading in ("packets out", "bytes out", "packets in", "bytes in"):
        table.add_column(heading, justify="right", no_wrap=True)
    faulty = any(peer["problem"] for peer in peers)
    if faulty:
        table.add_column("problem", no_wrap=True)
    for peer in peers:
        counts = (peer["packets_out"], peer["bytes_out"], peer["packets_in"], peer["bytes_in"])
        row = (peer["subnet"], peer["public_ip"], *map(_count, counts), *([peer["problem"] or ""] if faulty else []))
        table.add_row(*map(Text, row))
    console.print(table)


def show_route(route: Route, stream: TextIO) -> None:
    """Write the route in the manner of `ip route get`, and the reason below it."""
    from rich.text import Text  # noqa: PLC0415 - as above

    console = _console(stream)
    way, style = f"{route['verdict']} {route.get('subnet', '')}".rstrip(), "yellow"
    if route["verdict"] == "peer":
        port, tunnel = _optional(":{}", route.get("port")), _optional(" tunnel {}", route.get("tunnel"))
        via = f"{route.get('public_ip')}{port} dev {route.get('interface')}{tunnel}"
        way, style = f"via {via} subnet {route.get('subnet')}", "green"
    console.print(Text.assemble((route["address"], "bold"), " ", (way, style)))
    console.print(Text(f"    {route['reason']}"))


def _console(stream: TextIO) -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(file=stream, highlight=False, width=_WIDTH)


def _status_lines(status: Status) -> Iterator[tuple[str, str]]:
    yield "state", f"{status['state']} ({'ready' if status['ready'] else 'not ready'})"
    for problem in status["problems"]:
        yield "problem", problem
    yield "agent", f"flannel-udp {status['version']}, pid {status['pid']}, up {_duration(status['uptime_s'])}"
    yield "registry", status["registry"] + _optional(", revision {}", status["revision"])
    for name, fact in (
        ("network", status["network"]),
        ("subnet", status["subnet"]),
        ("public ip", status["public_ip"]),
        ("interface", _device(status["interface"])),
        ("tunnel", _device(status["tunnel"])),
        ("backend", _backend(status["backend"])),
        ("lease", _lease(status["lease"])),
    ):
        if fact:
            yield name, fact
    yield "peers", str(status["peers"])
    if status["offload"] is not None:
        yield "offload", ", ".join(status["offload"]) or "none"
    if status["workers"] is not None:
        yield "workers", str(status["workers"])
    if status["worker_packets"] and len(status["worker_packets"]) > 1:
        for worker, carried in enumerate(status["worker_packets"]):
            counts = f"{_number(carried['packets_out'])} packets out, {_number(carried['packets_in'])} in"
            yield "", f"worker {worker}: {counts}"
    if status["socket_buffers"]:
        yield "buffers", _buffers(status["socket_buffers"])
    if status["host_repairs"] and (made := _made(status["host_repairs"])):
        yield "repairs", made
    yield "rights", ", ".join(status["capabilities"])
    if status["counters"]:
        yield from _counter_lines(status["counters"])


def _counter_lines(counters: Counters) -> Iterator[tuple[str, str]]:
    for name, direction in (("out", counters["out"]), ("in", counters["in"])):
        yield name, f"{_number(direction['packets'])} packets, {_number(direction['bytes'])} bytes"
        for reason, count in direction["drops"].items():
            if count:
                yield "", f"{_number(count)} dropped: {reason}"
    for name, counts in (("icmp", counters["icmp"]), ("calls", counters["system_calls"])):
        yield name, ", ".join(f"{_number(count)} {what.replace('_', ' ')}" for what, count in counts.items())


def _device(device: NetDevice | None) -> str | None:
    return device and f"{device['name']}, address {device['address']}, mtu {device['mtu']}"


def _backend(backend: BackendFacts | None) -> str | None:
    return backend and f"{backend['type']}{_optional(', port {}', backend.get('port'))}"


def _buffers(buffers: SocketBuffers) -> str:
    return f"receive {_number(buffers['receive_bytes'])} bytes, send {_number(buffers['send_bytes'])} bytes"


def _lease(lease: LeaseFacts | None) -> str | None:
    if lease is None:
        return None
    if lease["expires_in_s"] is None:
        return f"{lease['key']}, a reservation, never expires"
    return f"{lease['key']}, expires in {_duration(lease['expires_in_s'])}"


def _made(repairs: dict[str, int]) -> str:
    return ", ".join(f"{_number(count)} {what}" for what, count in repairs.items() if count)


def _optional(template: str, value: object) -> str:
    return "" if value is None else template.format(value)


def _count(value: int | None) -> str:
    return "-" if value is None else _number(value)


def _number(value: int) -> str:
    return f"{value:,}"


def _duration(seconds: float) -> str:
    """Return the two largest units: "2 d 3 h", "3 h 12 min", "12 min 5 s", "5 s"."""
    whole = max(0, int(seconds))
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((i for i, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2])
