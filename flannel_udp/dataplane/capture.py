"""Captures packets: each engine has a ring of its own, which it notes them in, and the control plane empties them all.

What leaves here is made of parts: a line of JSON, and behind it the bytes of the records that it counts, as the engines
wrote them (`Record` in capture_ring.pxd); `admin.captured` reads them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from flannel_udp._fastpath.capture_ring import RECORD_BYTES, CaptureRing
from flannel_udp._fastpath.drops import SENTENCES, DropReason
from flannel_udp._fastpath.engine import ENCAPSULATIONS, Engine
from flannel_udp.errors import FlannelError
from flannel_udp.model import PLACES, CaptureWish

__all__ = ["Capture", "Engine", "describe_records"]

RINGS_BYTES = 16 << 20
"""Of all rings together, as long as none gets less than `RING_MIN_BYTES`: three packets of the greatest length."""
RING_MIN_BYTES = 256 << 10
TAKE_BYTES = 1 << 20
"""Of each ring at once: what holds up neither the loop here nor the end of who reads."""
LET_GO_POLL_S = 0.005


def describe_records() -> dict[str, object]:
    """Return what somebody has to know who reads records: the names of what they number, and a sentence a reason."""
    reasons = [reason.name.lower() for reason in DropReason if reason is not DropReason.DROP_REASONS]
    return {
        "record_bytes": RECORD_BYTES,
        "places": list(PLACES),
        "encapsulations": sorted(ENCAPSULATIONS, key=lambda name: ENCAPSULATIONS[name]),
        "reasons": reasons,
        "sentences": [SENTENCES.get(DropReason[name.upper()], "") for name in reasons],
    }


class Capture:
    """Lets engines note packets until `close`; those that come later, too."""

    def __init__(self, engines: Callable[[], Sequence[Engine]], wish: CaptureWish) -> None:
        """Nothing is noted before it is taken. Raises `FlannelError` for a reason that there is not."""
        self._engines, self._wish = engines, wish
        self._places = sum(1 << PLACES.index(place) for place in wish.places)
        self._reasons = _bits_of_reasons(wish)
        self._rings: dict[Engine, CaptureRing] = {}

    def _open_rings(self) -> None:
        engines = self._engines()
        share = max(RINGS_BYTES // max(len(engines), 1), RING_MIN_BYTES)
        n_bytes = 1 << share.bit_length() - 1
        for engine in engines:
            if engine not in self._rings:
                ring = CaptureRing(n_bytes, self._wish.snap_bytes, self._places, self._reasons, self._wish.every)
                engine.capture_into(ring)
                self._rings[engine] = ring

    def take(self, *, even_none: bool) -> bytes:
        """Return what was noted since it was asked last as one part; the records of one engine are in order.

        Nothing where that is nothing, unless `even_none`.
        """
        self._open_rings()
        records = b"".join([ring.take(TAKE_BYTES) for ring in self._rings.values()])
        if not records and not even_none:
            return b""
        counts = [ring.counts() for ring in self._rings.values()]
        taken, lost = ([sum(of_place) for of_place in zip(*each, strict=True)] for each in zip(*counts, strict=True))
        return json.dumps({"bytes": len(records), "taken": taken, "lost": lost}).encode() + b"\n" + records

    async def close(self) -> None:
        """Have nothing noted any more, and return once the engines have let go of the rings."""
        for engine in self._rings:
            engine.capture_into(None)
        while sum(engine.reclaim() for engine in self._rings):
            await asyncio.sleep(LET_GO_POLL_S)
        self._rings.clear()


def _bits_of_reasons(wish: CaptureWish) -> int:
    """Return the reasons that are wanted, a bit each; the lowest is that of packets that were not dropped."""
    known = {reason.name.lower(): 1 << reason for reason in DropReason if reason is not DropReason.DROP_REASONS}
    unknown = [name for name in wish.reasons if name not in known]
    if unknown:
        raise FlannelError(f"this agent drops nothing for the reason {unknown[0][:40]!r}")
    if wish.reasons:
        return sum({known[name] for name in wish.reasons})
    return sum(known.values()) - (known["keep"] if wish.dropped else 0)
