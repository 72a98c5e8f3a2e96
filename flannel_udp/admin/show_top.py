"""A frame of `top`: as many columns as there is room for, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import NamedTuple

from flannel_udp.admin.shapes import PeerRow, Status
from flannel_udp.admin.show import duration
from flannel_udp.admin.show_peers import ago, count_or_dash
from flannel_udp.admin.table import plain, short_number, wrapped
from flannel_udp.admin.top import DirectionRates, Top, TopDocument

SPARK_WIDTH = 8
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-~=+*#"  # where the terminal has no other characters
PROBLEMS_MAX = 3
PLAIN_WIDTH = 1_000
"""Columns where nobody looks but `grep`."""


class Line(NamedTuple):
    """A line of a frame; `style` is rich's."""

    text: str
    style: str = ""


class _Column(NamedTuple):
    rank: int
    """Which one it is of those that there may be room for; 0 to 2 are there always."""
    heading: str
    tell: Callable[[PeerRow], str]
    width: int = 0
    """At least, so that what changes each second does not move the others."""
    left: bool = False


def sparkline(rates: Sequence[float], width: int, bars: str = _BARS) -> str:
    """Return the last rates as bars, the highest one of all as a whole one; nothing at all is a space."""
    shown, highest = list(rates)[-width:], max(rates, default=0.0)
    if not highest:
        return " " * width
    top = len(bars) - 1
    return "".join(" " if not rate else bars[round(rate / highest * top)] for rate in shown).rjust(width)


def frame(
    document: TopDocument, top: Top, width: int, *, sparklines: bool, encoding: str = "utf-8", trouble: str = ""
) -> list[Line]:
    """Return the lines of a frame, none longer than `width`, which is 40 or more; `trouble` is why it is an old one."""
    bars = _bars(encoding)

    def spark(what: str, columns: int = SPARK_WIDTH) -> str:
        return sparkline(top.past(what), columns, bars)

    heading = [*([(trouble, "red")] if trouble else []), *_heading(document["status"])]
    lines = [Line(text, style) for whole, style in heading for text in wrapped(whole, width)]
    for name, direction in (("out", document["out"]), ("in", document["in"])):
        text = _direction(name, direction)
        room = width - len(text) - 1
        lines.append(Line(f"{text} {spark(name, min(room, 60))}".rstrip() if sparklines and room > 0 else text[:width]))
    dropped = [(direction or {"drops_s": {}})["drops_s"] for direction in (document["out"], document["in"])]
    for name, drops in zip(("out", "in"), dropped, strict=True):
        for reason, rate in sorted(drops.items(), key=lambda item: -item[1]):
            lines += [Line(text, "yellow") for text in wrapped(f"drops {name} {reason}: {short_number(rate)}/s", width)]
    lines.append(Line(f"busiest first, by {top.by}" + (": q ends" if sparklines else ""), "dim"))
    return [*lines, *_table(document, width, spark if sparklines else None)]


def _heading(status: Status) -> Iterator[tuple[str, str]]:
    health = "ready" if status["ready"] else "not ready"
    health = "degraded" if status["ready"] and status.get("degraded") else health
    yield f"{status['state']} ({health}), up {duration(status['uptime_s'])}", "green" if health == "ready" else "yellow"
    problems = status.get("problems", [])
    for problem in problems[:PROBLEMS_MAX]:
        yield f"problem: {problem}", "yellow"
    if (more := len(problems) - PROBLEMS_MAX) > 0:
        yield f"and {more} more: see flannel-udp status", "yellow"
    for part, met in status.get("last_errors", {}).items():
        if not met["over"]:
            yield f"error: {part}, {ago(met['ago_s'])}: {met['text']}", "yellow"
    subnets = [subnet for subnet in (status["subnet"], status.get("ipv6_subnet")) if subnet]
    addresses = [address for address in (status["public_ip"], status.get("public_ipv6")) if address]
    yield f"subnet {' and '.join(subnets) or '-'} at {' and '.join(addresses) or '-'}, {_lease(status)}", ""
    backend, revision = status.get("backend"), status.get("revision")
    kind = "-" if backend is None else backend["type"]
    at = "" if revision is None else f", revision {revision}"
    yield f"backend {kind}, registry {status['registry']}{at}", ""
    healths = ", ".join(f"{n:,} {health}" for health, n in (status.get("peer_health") or {}).items() if n)
    yield f"{status['peers']:,} peers{f': {healths}' if healths else ''}", ""


def _lease(status: Status) -> str:
    lease = status.get("lease")
    if lease is None:
        return "no lease"
    if lease["expires_in_s"] is None:
        return "reserved"
    return f"lease ends in {duration(lease['expires_in_s'])}"


def _direction(name: str, rates: DirectionRates | None) -> str:
    if rates is None:
        return f"{name:<4}     - B/s      - p/s"
    drops = sum(rates["drops_s"].values())
    dropped = f" {short_number(drops)} drops/s" if drops else ""
    return f"{name:<4}{short_number(rates['bytes_s']):>6} B/s {short_number(rates['packets_s']):>6} p/s{dropped}"


def _table(document: TopDocument, width: int, spark: Callable[[str], str] | None) -> Iterator[Line]:
    peers = document["peers"]
    if not peers:
        yield Line("no peers")
        return
    columns = _fitting(peers, width, spark)
    rows = [[column.tell(peer) for column in columns] for peer in peers]
    widths = [
        max(column.width, len(column.heading), *map(len, cells))
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    for number, cells in enumerate([[column.heading for column in columns], *rows]):
        parts = [
            cell.ljust(n) if column.left else cell.rjust(n)
            for cell, column, n in zip(cells, columns, widths, strict=True)
        ]
        ill = number > 0 and (peers[number - 1].get("problem") or peers[number - 1].get("health") in ("silent", "ill"))
        yield Line(" ".join(parts).rstrip()[:width], "bold" if number == 0 else "yellow" if ill else "")


def _fitting(peers: Sequence[PeerRow], width: int, spark: Callable[[str], str] | None) -> list[_Column]:
    """Return the columns that there is room for, in their order."""
    columns = [
        _Column(5, "host", lambda peer: plain(peer.get("host") or ""), left=True),
        _Column(0, "subnet", lambda peer: peer["subnet"], left=True),
        _Column(10, "public ip", lambda peer: peer["public_ip"], left=True),
        _Column(11, "datapath", lambda peer: peer.get("carrier") or "-", left=True),
        _Column(8, "heard", lambda peer: ago(peer.get("heard_ago_s")), 9),
        _Column(1, "out B/s", lambda peer: count_or_dash(peer.get("bytes_out_s"))),
        _Column(6, "out p/s", lambda peer: count_or_dash(peer.get("packets_out_s"))),
        _Column(2, "in B/s", lambda peer: count_or_dash(peer.get("bytes_in_s"))),
        _Column(7, "in p/s", lambda peer: count_or_dash(peer.get("packets_in_s"))),
        _Column(9, "drops", lambda peer: count_or_dash(peer.get("refused_out"))),
        _Column(12, "last error", lambda peer: plain(peer.get("error") or ""), left=True),
    ]
    if spark is not None:
        columns.insert(6, _Column(3, "out", lambda peer: spark(f"out {peer['subnet']}"), SPARK_WIDTH))
        columns.insert(9, _Column(4, "in", lambda peer: spark(f"in {peer['subnet']}"), SPARK_WIDTH))
    room, taken = width + 1, set[int]()
    for column in sorted(columns):
        cells = [column.tell(peer) for peer in peers]
        if not any(cells):
            continue
        room -= max(column.width, len(column.heading), *map(len, cells)) + 1
        if room < 0 and column.rank > 2:
            break
        taken.add(column.rank)
    return [column for column in columns if column.rank in taken]


def _bars(encoding: str) -> str:
    try:
        _BARS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII_BARS
    return _BARS


def styled(lines: Sequence[Line], width: int) -> list[str]:
    """Return the lines as a terminal takes them, in colours where it has any and nobody has switched them off."""
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import, and programs do without
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(file=StringIO(), force_terminal=True, highlight=False, width=width + 1)
    shown = []
    for line in lines:
        with console.capture() as captured:
            console.print(Text(line.text, line.style), end="", no_wrap=True, overflow="crop")
        shown.append(captured.get())
    return shown
