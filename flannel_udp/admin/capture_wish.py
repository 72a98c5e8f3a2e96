"""What somebody wants captured, as a question on the control socket: `CaptureWish` to a query and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

from flannel_udp.model import PLACES, CaptureWish


def write_wish(wish: CaptureWish) -> str:
    """Return the query that `read_wish` reads."""
    fields = {
        "places": ",".join(place.replace(" ", "-") for place in wish.places),
        "dropped": int(wish.dropped),
        "reasons": ",".join(wish.reasons),
        "every": wish.every,
        "snap": wish.snap_bytes,
    }
    return urlencode(fields, safe=",")


def read_wish(query: Mapping[str, str]) -> CaptureWish:
    """Return what a query asks for; what it leaves out has its default. Raises `ValueError` with one line."""
    default = CaptureWish()
    places = tuple(place.replace("-", " ") for place in query.get("places", "").split(",") if place)
    for place in places:
        if place not in PLACES:
            raise ValueError(f"places={place[:40]!r} is not one of {', '.join(PLACES)}, with - for a space")
    return CaptureWish(
        places=places or default.places,
        dropped=query.get("dropped", "0") not in ("", "0"),
        reasons=tuple(name for name in query.get("reasons", "").split(",") if name),
        every=_number(query, "every", default.every),
        snap_bytes=_number(query, "snap", default.snap_bytes),
    )


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError(f"{name}={text[:40]!r} is not a whole number from 1 on")
    return int(text)
