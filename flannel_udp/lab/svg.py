"""A lab as an SVG drawing: each network as a bar, routers, hosts and pods below, faults in red and in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from flannel_udp.lab.drawing import devices_of, devices_of_router, known, networks_of, notes_of
from flannel_udp.lab.tunnel import Tunnel

_GAP, _MARGIN, _LINE = 30, 20, 18
"""Pixels: what is between two hosts, around all, and from one line of text to the next."""
_CHAR, _PAD, _INDENT = 7.3, 10, 30
"""Pixels: a character at most, what is around a text in its box, how far pods stand to the right of their host."""
_PER_ROW = 5
_CABLE = 50
"""Pixels of a cable from the underlay to a host."""
_RATES = 28
"""Characters that what passes a link may take."""
_STYLE = (
    "text{font:13px sans-serif;fill:#111}.t{font-weight:bold}.m{font-family:monospace;font-size:12px;white-space:pre}"
    "rect{fill:#fff;stroke:#333}.u{fill:#335}line{stroke:#333;stroke-width:2}"
    ".f line,.f rect{stroke:#b00020;stroke-dasharray:5 4}text.f{fill:#b00020}"
)


def draw_svg(
    status: dict[str, Any],
    *,
    underlay: str,
    overlay: str,
    tunnels: Mapping[int, Tunnel | None],
    faults: Mapping[str, Sequence[str]],
    page_width: int | None = None,
) -> str:
    """Return the lab of `Lab.status`; `faults` are in words, by the node at whose cable or in which they are.

    For a page of so many pixels: as many hosts in a row as it has room for, no style, which is the page's own, and
    elements that it finds by ``data-node``, ``data-link`` and, empty for what passes a link, ``data-rates``.
    """
    networks, live = networks_of(status, underlay), page_width is not None
    on = [
        [_Node(router, devices_of_router(router), (), faults, live=live) for router in network.routers]
        + [_Node(host, devices_of(host, tunnels), host["pods"], faults, live=live) for host in network.hosts]
        for network in networks
    ]
    nodes = [node for there in on for node in there]
    box = max(node.width for node in nodes)
    per_row = _PER_ROW if page_width is None else max(1, (page_width - 2 * _MARGIN + _GAP) // (box + _GAP))
    width = 2 * _MARGIN + min(per_row, max(map(len, on))) * (box + _GAP) - _GAP
    parts: list[str] = []
    y = _MARGIN
    for network, there in zip(networks, on, strict=True):
        for start in range(0, max(len(there), 1), per_row):
            parts.append(_text(_MARGIN, y, network.title))
            y += 8
            parts.append(f'<rect class="u" x="{_MARGIN}" y="{y}" width="{width - 2 * _MARGIN}" height="8"/>')
            ends = [y + 8]
            for number, node in enumerate(there[start : start + per_row]):
                lines, end = node.draw(_MARGIN + number * (box + _GAP), y + 8, box)
                parts += lines
                ends.append(end)
            y = max(ends) + 2 * _GAP
    y -= _GAP
    for text, kind in [(f"overlay {overlay}", ""), *((line, "f") for line in faults.get("net", ()))]:
        y += _LINE
        parts.append(_text(_MARGIN, y, text, kind))
    style = f"<style>{_STYLE}</style>" if page_width is None else ""
    title = f"lab {status['name']}: {len(status['hosts'])} hosts"
    told = "; ".join(line for lines in faults.values() for line in lines) or "all is as it was built"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{y + _MARGIN}" '
        f'viewBox="0 0 {width} {y + _MARGIN}"><title>{escape(title)}</title><desc>{escape(told)}</desc>'
        f"{style}{''.join(parts)}</svg>\n"
    )


class _Node:
    """The texts of a host or a router, each with its class of style, and those of its pods."""

    def __init__(
        self,
        node: dict[str, Any],
        devices: Mapping[str, Sequence[str]],
        pods: Sequence[dict[str, Any]],
        faults: Mapping[str, Sequence[str]],
        *,
        live: bool,
    ) -> None:
        self._name = name = node["name"]
        self._live = live
        self._wrong = faults.get(name, ())
        self._texts = [
            (name, "t"),
            *((f"{device}  {address}", "m") for device, of in devices.items() for address in of),
            *((note, "") for note in notes_of(node)),
        ]
        self._texts += [(line, "f") for line in self._wrong]
        self._pods: list[tuple[str, list[tuple[str, str]], Sequence[str]]] = []
        for pod in pods:
            path = f"{name}/{pod['name']}"
            wrong = faults.get(path, ())
            texts = [(f"{pod['name']}  {address}", "m") for address in known(pod, "ip")]
            self._pods.append((path, [*texts, *((line, "f") for line in wrong)], wrong))

    @property
    def width(self) -> int:
        """Pixels that all of them need."""
        own = max(len(text) for text, _ in self._texts)
        pods = max((len(text) for _, texts, _ in self._pods for text, _ in texts), default=0)
        pods = max(pods, _RATES) if self._live and self._pods else pods
        return round(max(own * _CHAR, pods * _CHAR + _INDENT)) + 2 * _PAD

    def draw(self, x: int, y: int, width: int) -> tuple[list[str], int]:
        """Return cable, box and pods, from the bar at `y` on, and where they end."""
        trunk = x + _INDENT // 2
        parts = [_cable(trunk, y, trunk, y + _CABLE, wrong=self._wrong, link=self._name)]
        if self._live:
            parts.append(_rates(trunk + _PAD, y + _CABLE // 2 + 4, self._name))
        end = y + _CABLE
        box, end = _box(x, end, width, self._texts, wrong=self._wrong, node=self._name)
        parts += box
        top = end
        for path, texts, wrong in self._pods:
            end += _LINE // 2
            middle = end + _LINE // 2 + 3
            parts.append(_cable(trunk, top, trunk, middle))
            parts.append(_cable(trunk, middle, x + _INDENT, middle, wrong=wrong, link=path))
            lines = [*texts, ("", "")] if self._live else texts
            box, end = _box(x + _INDENT, end, width - _INDENT, lines, wrong=wrong, node=path)
            parts += box
            if self._live:
                parts.append(_rates(x + _INDENT + _PAD, end - _PAD + 2, path))
        return parts, end


def _box(
    x: int, y: int, width: int, texts: Sequence[tuple[str, str]], *, wrong: Sequence[str], node: str
) -> tuple[list[str], int]:
    """Return a node's box with these lines, and where it ends."""
    height = len(texts) * _LINE + 6
    name = f" data-node={quoteattr(node)}"
    rect = f'<g{_fault(wrong)}{name}><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/></g>'
    lines = [_text(x + _PAD, y + (i + 1) * _LINE - 2, text, kind) for i, (text, kind) in enumerate(texts)]
    return [rect, *lines], y + height


def _cable(x1: int, y1: int, x2: int, y2: int, *, wrong: Sequence[str] = (), link: str = "") -> str:
    name = f" data-link={quoteattr(link)}" if link else ""
    return f'<g{_fault(wrong)}{name}><line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/></g>'


def _rates(x: int, y: int, link: str) -> str:
    """Return where the page writes what passes a link."""
    return f'<text class="r" data-rates={quoteattr(link)} x="{x}" y="{y}"></text>'


def _fault(wrong: Sequence[str]) -> str:
    return ' class="f"' if wrong else ""


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x}" y="{y}">{escape(text)}</text>'
