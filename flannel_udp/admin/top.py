"""What `top` knows: two looks at an agent, and what happened between them; how that went before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple, TypedDict

from flannel_udp.admin.client import fetch_busiest_peers, fetch_status
from flannel_udp.admin.shapes import PeerRow, Status
from flannel_udp.admin.show_peers import rate_of, sort_peers

TIMEOUT_S = 2.0
"""Who looks each second has to hear of an agent that hangs."""
KEPT = 60
"""So many rates are kept for sparklines."""


class DirectionRates(TypedDict):
    """What passes in a second in one direction, all peers together; ``drops_s`` by reason, those that happened."""

    packets_s: float
    bytes_s: float
    drops_s: dict[str, float]


# "in" is a keyword, so this one cannot be written as a class.
TopDocument = TypedDict(
    "TopDocument",
    {
        "time": float,
        "over_s": float | None,
        "status": Status,
        "out": DirectionRates | None,
        "in": DirectionRates | None,
        "peers": list[PeerRow],
    },
)
"""What ``top`` prints with ``--json``: rates between two looks, ``over_s`` seconds apart, the last one at ``time``.

``out`` and ``in`` are ``None`` where nobody counts, and while there was one look only, as ``over_s`` is then. ``peers``
are those with the highest rates, the busiest first.
"""


class _Look(NamedTuple):
    at_s: float
    status: Status
    peers: Mapping[str, PeerRow]


class _Totals(NamedTuple):
    packets: int
    bytes: int
    drops: Mapping[str, int]


class Top:
    """Looks at the agent of a control socket again and again; peers are sorted `by` one of `model.RATE_KEYS`."""

    def __init__(self, path: Path, by: str) -> None:
        self._path, self.by = path, by
        self._before: _Look | None = None
        self._past: dict[str, deque[float]] = {}

    def look(self, n_peers: int) -> TopDocument:
        """Return what happened since the last look, with so many peers. Raises as `fetch_status` does."""
        status = fetch_status(self._path, TIMEOUT_S)
        rows = fetch_busiest_peers(self._path, n_peers, self.by, TIMEOUT_S)
        now = _Look(monotonic(), status, {row["subnet"]: row for row in rows})
        before, self._before = self._before, now
        if before is not None and before.status["pid"] != status["pid"]:
            before = None  # another agent counts from its own start
        over_s = None if before is None else now.at_s - before.at_s
        document = TopDocument(
            {
                "time": round(time(), 3),
                "over_s": None if over_s is None else round(over_s, 3),
                "status": status,
                "out": _direction(before, now, "out"),
                "in": _direction(before, now, "in"),
                "peers": sort_peers([_since(before, now, row) for row in rows], self.by)[:n_peers],
            }
        )
        self._note(document)
        return document

    def past(self, what: str) -> Sequence[float]:
        """Return bytes a second of the last looks, oldest first, of "out", "in", "out SUBNET" or "in SUBNET"."""
        return self._past.get(what, ())

    def _note(self, document: TopDocument) -> None:
        rates = dict(_rates(document))
        for what in {*self._past, *rates}:
            kept = self._past.setdefault(what, deque(maxlen=KEPT))
            kept.append(rates.get(what, 0.0))
            if not any(kept):
                del self._past[what]


def _rates(document: TopDocument) -> Iterator[tuple[str, float]]:
    for name, direction in (("out", document["out"]), ("in", document["in"])):
        if direction is not None:
            yield name, direction["bytes_s"]
        for peer in document["peers"]:
            if (rate := rate_of(peer, f"bytes-{name}")) is not None:
                yield f"{name} {peer['subnet']}", rate


def _direction(before: _Look | None, now: _Look, direction: str) -> DirectionRates | None:
    former = None if before is None else _totals(before.status, direction)
    totals = _totals(now.status, direction)
    if before is None or former is None or totals is None:
        return None
    took_s = now.at_s - before.at_s
    drops = {reason: count - former.drops.get(reason, 0) for reason, count in totals.drops.items()}
    return DirectionRates(
        packets_s=round(max(0, totals.packets - former.packets) / took_s, 1),
        bytes_s=round(max(0, totals.bytes - former.bytes) / took_s, 1),
        drops_s={reason: round(count / took_s, 1) for reason, count in drops.items() if count > 0},
    )


def _totals(status: Status, direction: str) -> _Totals | None:
    """Return what was counted: by our own packet path, else by the kernel's tunnel devices, which may be made anew."""
    if (counters := status.get("counters")) is not None:
        counted = counters["out"] if direction == "out" else counters["in"]
        return _Totals(counted["packets"], counted["bytes"], counted["drops"])
    devices = (status.get("devices") or {}).values()
    if not devices:
        return None
    kernel = status.get("kernel_drops") or {}
    drops = {place: count for place, count in kernel.items() if place == f"tunnel_{direction}"}
    if direction == "out":
        return _Totals(sum(each["packets_out"] for each in devices), sum(each["bytes_out"] for each in devices), drops)
    return _Totals(sum(each["packets_in"] for each in devices), sum(each["bytes_in"] for each in devices), drops)


def _since(before: _Look | None, now: _Look, row: PeerRow) -> PeerRow:
    """Return a peer with its rates since the last look where it was among those of it: else it has the agent's own."""
    former = None if before is None else before.peers.get(row["subnet"])
    if before is None or former is None:
        return row
    took_s, found = now.at_s - before.at_s, row.copy()
    if (packets := _grown(former.get("packets_out"), row.get("packets_out"))) is not None:
        found["packets_out_s"] = round(packets / took_s, 1)
    if (n_bytes := _grown(former.get("bytes_out"), row.get("bytes_out"))) is not None:
        found["bytes_out_s"] = round(n_bytes / took_s, 1)
    if (packets := _grown(former.get("packets_in"), row.get("packets_in"))) is not None:
        found["packets_in_s"] = round(packets / took_s, 1)
    if (n_bytes := _grown(former.get("bytes_in"), row.get("bytes_in"))) is not None:
        found["bytes_in_s"] = round(n_bytes / took_s, 1)
    return found


def _grown(former: int | None, now: int | None) -> int | None:
    """Return by how much a count has grown, ``None`` for one that nobody keeps, or that has begun anew."""
    return None if former is None or now is None or now < former else now - former
