"""The control socket's documents for human eyes; colours appear on a terminal only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from flannel_udp.admin.shapes import (
    BackendFacts,
    Counters,
    DroppedRow,
    LeaseFacts,
    NetDevice,
    Route,
    RouteRow,
    SocketBuffers,
    Status,
    Way,
)
from flannel_udp.model import KERNEL_DROPS

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
    for name, value in status_lines(status):
        style = "" if name != "state" else "green" if _health(status) == "ready" else "yellow"
        # Text, never markup: a value may hold square brackets.
        console.print(Text.assemble((f"{name:<11}", "bold"), (value, style)))


def show_route(route: Route, stream: TextIO) -> None:
    """Write the route in the manner of `ip route get`, and the reason below it."""
    from rich.text import Text  # noqa: PLC0415 - as above

    console = _console(stream)
    way, style = f"{route['verdict']} {route.get('subnet', '')}".rstrip(), "yellow"
    if route["verdict"] == "peer":
        way, style = f"{_way(route)} subnet {route.get('subnet')}", "yellow" if "problem" in route else "green"
    console.print(Text.assemble((route["address"], "bold"), " ", (way, style)))
    console.print(Text(f"    {route['reason']}"))
    if "problem" in route:
        console.print(Text(f"    {route['problem']}", "yellow"))
    if "kernel" in route:
        console.print(Text(f"    the kernel: {route['kernel']}"))
    if "kernel_for_pods" in route:
        console.print(Text(f"    the kernel, for our pods: {route['kernel_for_pods']}"))
    if "diverted" in route:
        console.print(Text(f"    {route['diverted']}", style="red"))


def show_routes(routes: Sequence[RouteRow], stream: TextIO) -> None:
    """Write one line a route in the manner of `ip route list`, in the order given."""
    from rich.text import Text  # noqa: PLC0415 - as above

    console = _console(stream)
    if not routes:
        console.print("no routes")
    for route in routes:
        to_peer, why = route["verdict"] == "peer", route.get("problem") or route.get("reason")
        style = "" if route["verdict"] == "own subnet" else "yellow" if why else "green"
        way = _way(route) if to_peer else route["verdict"]
        console.print(Text.assemble((route["subnet"], "bold"), " ", (way, style), _optional(": {}", why)))


def _way(way: Way) -> str:
    port, tunnel = _optional(":{}", way.get("port")), _optional(" tunnel {}", way.get("tunnel"))
    direct = " direct" if way.get("datapath") == "direct" else ""
    public_ip = way.get("public_ip") or ""
    end = f"[{public_ip}]{port}" if port and ":" in public_ip else f"{public_ip}{port}"
    return f"via {end} dev {way.get('interface')}{tunnel}{direct}"


def _console(stream: TextIO) -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(file=stream, highlight=False, width=_WIDTH)


def status_lines(status: Status) -> Iterator[tuple[str, str]]:
    """Yield names and values of the status; a name is empty where the value goes on with the former one's."""
    yield "state", f"{status['state']} ({_health(status)})"
    yield from _trouble_lines(status)
    yield "agent", f"flannel-udp {status['version']}, pid {status['pid']}, up {duration(status['uptime_s'])}"
    yield "registry", status["registry"] + _optional(", revision {}", status["revision"])
    for name, fact in (
        ("network", _both(status["network"], status["ipv6_network"])),
        ("subnet", _both(status["subnet"], status["ipv6_subnet"])),
        ("public ip", _both(status["public_ip"], status["public_ipv6"])),
        ("interface", _device(status["interface"])),
        *(("tunnel", _device(device)) for device in _tunnels(status)),
        ("backend", _backend(status["backend"], status["peers"])),
        ("lease", _lease(status["lease"])),
    ):
        if fact:
            yield name, fact
    yield "peers", str(status["peers"]) + _optional(" ({})", _made(status["peer_health"] or {}) or None)
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
        yield from _counter_lines(status["counters"], status["last_dropped"] or {})
    for place, count in (status["kernel_drops"] or {}).items():
        if count:
            yield "kernel", f"{_number(count)} dropped: {KERNEL_DROPS[place]}"


def _trouble_lines(status: Status) -> Iterator[tuple[str, str]]:
    for problem in status["problems"]:
        yield "problem", problem
    for part, met in status.get("last_errors", {}).items():  # an older agent has none
        over = ", over" if met["over"] else ""
        yield "error", f"{part}, {duration(met['ago_s'])} ago{over}: {met['text']}"


def _health(status: Status) -> str:
    if not status["ready"]:
        return "not ready"
    return "degraded" if status["degraded"] else "ready"


def _counter_lines(counters: Counters, last: Mapping[str, Sequence[DroppedRow]]) -> Iterator[tuple[str, str]]:
    for name, direction in (("out", counters["out"]), ("in", counters["in"])):
        yield name, f"{_number(direction['packets'])} packets, {_number(direction['bytes'])} bytes"
        for reason, count in direction["drops"].items():
            if count:
                yield "", f"{_number(count)} dropped: {reason}{_newest(name, last.get(reason, ()))}"
    for name, counts in (("icmp", counters["icmp"]), ("calls", counters["system_calls"])):
        yield name, _counted(counts)
    if any(counters["offloaded_in"].values()):
        yield "unfinished", _counted(counters["offloaded_in"])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_number(count)} {what.replace('_', ' ')}" for what, count in counts.items())


def _newest(direction: str, dropped: Sequence[DroppedRow]) -> str:
    """Return a clause about the newest packet of a reason that was dropped in this direction, if it is known."""
    newest = [packet for packet in dropped if packet["direction"] == direction][-1:]
    return "".join(f"; {duration(packet['age_s'])} ago: {packet['summary']}" for packet in newest)


def _both(v4: str | None, v6: str | None) -> str | None:
    return " and ".join(text for text in (v4, v6) if text) or None


def _device(device: NetDevice | None) -> str | None:
    if device is None:
        return None
    return f"{device['name']}, address {_both(device['address'], device.get('ipv6_address'))}, mtu {device['mtu']}"


def _tunnels(status: Status) -> Iterator[NetDevice]:
    """Yield the tunnel devices; one that both families have is one."""
    v4, v6 = status["tunnel"], status["ipv6_tunnel"]
    if v4 is not None and v6 is not None and v4["name"] == v6["name"]:
        yield {**v4, "ipv6_address": str(v6["address"])}
        return
    yield from (device for device in (v4, v6) if device is not None)


def _backend(backend: BackendFacts | None, n_peers: int) -> str | None:
    if backend is None:
        return None
    datapath = _optional(", {}", backend.get("datapath")) + _optional(" ({})", backend.get("why"))
    direct = _optional(f", {{}} of {n_peers} peers direct", backend.get("direct"))
    data = "".join(f", {name} {value}" for name, value in backend.get("data", {}).items())
    return f"{backend['type']}{_optional(', port {}', backend.get('port'))}{data}{datapath}{direct}"


def _buffers(buffers: SocketBuffers) -> str:
    return f"receive {_number(buffers['receive_bytes'])} bytes, send {_number(buffers['send_bytes'])} bytes"


def _lease(lease: LeaseFacts | None) -> str | None:
    if lease is None:
        return None
    if lease["expires_in_s"] is None:
        return f"{lease['key']}, a reservation, never expires"
    return f"{lease['key']}, expires in {duration(lease['expires_in_s'])}"


def _made(repairs: dict[str, int]) -> str:
    return ", ".join(f"{_number(count)} {what}" for what, count in repairs.items() if count)


def _optional(template: str, value: object) -> str:
    return "" if value is None else template.format(value)


def _number(value: int) -> str:
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Return the two largest units: "2 d 3 h", "3 h 12 min", "12 min 5 s", "5 s"."""
    whole = max(0, int(seconds))
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((i for i, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2])
