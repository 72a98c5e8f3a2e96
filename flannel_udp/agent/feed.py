"""What happens, told to everybody who watches: peers as they come, all else by comparing one moment with the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress

from flannel_udp.admin.shapes import Event, Status
from flannel_udp.errors import FlannelError
from flannel_udp.model import Delta

VIEWERS_MAX = 16
WAITING_MAX = 1_000
"""So many events wait for a viewer at most; what comes after them is lost and counted."""
PEERS_MAX = 100
"""More peers than that at once are one event."""
LOOK_EVERY_S = 1.0
"""What is counted, repairs and drops, is told so often at most; the rest also whenever something wakes us."""
REST_S = 0.1
_RENEWED_S = 60.0
"""A lease that ends so much later than before was renewed; the time left is rounded, and so are clocks."""


class _Viewer:
    """Somebody who watches: what waits for them."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self._waiting: deque[Event] = deque()
        self._n_lost = 0

    def put(self, event: Event) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(event)
        else:
            self._n_lost += 1
        self.woken.set()

    def take(self) -> list[Event]:
        taken = list(self._waiting)
        self._waiting.clear()
        if self._n_lost:
            taken.append(Event(time=time.time(), event="lost", count=self._n_lost))
            self._n_lost = 0
        return taken


class _Moments:
    """What was told of by now: of the state, and of what is counted."""

    def __init__(self, ask: Callable[[], Status]) -> None:
        self.ask = ask
        self.seen = self.counted = ask()


class Feed:
    """Costs nothing while nobody watches. A viewer has their own queue, so that none waits for another one."""

    def __init__(self) -> None:
        self._viewers: set[_Viewer] = set()
        self._moments: _Moments | None = None  # while somebody watches
        self._timer: asyncio.TimerHandle | None = None  # likewise
        self._look: asyncio.Handle | None = None  # it is about to

    def wake(self) -> None:
        """Compare soon, before anything else can come of what has changed: a lease may be lost for a moment only."""
        if self._viewers and self._look is None:
            self._look = asyncio.get_running_loop().call_soon(self._compare)

    def tell_peers(self, delta: Delta) -> None:
        """Tell what became of the peers."""
        if not self._viewers:
            return
        now_s = time.time()
        for what, peers in (("added", delta.added), ("changed", delta.changed), ("removed", delta.removed)):
            if len(peers) > PEERS_MAX:
                self._put(Event(time=now_s, event="peers", what=what, count=len(peers)))
                continue
            for peer in peers:
                subnet, public_ip = str(peer.subnet), str(peer.public_ip)
                self._put(Event(time=now_s, event="peer", what=what, subnet=subnet, public_ip=public_ip))

    async def watch(self, ask: Callable[[], Status]) -> AsyncGenerator[list[Event], None]:
        """Yield what happens from now on, once a second at least, be it nothing. Raises `FlannelError` for too many."""
        if len(self._viewers) >= VIEWERS_MAX:
            raise FlannelError(f"{VIEWERS_MAX} programs watch this agent already: end one of them")
        self._compare()  # for those who are here already, so that nothing is told twice
        if self._moments is None:
            self._moments = _Moments(ask)
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._tick)
        viewer = _Viewer()
        self._viewers.add(viewer)
        try:
            yield [_introduction(self._moments.seen)]
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await viewer.woken.wait()
                viewer.woken.clear()
                yield viewer.take()
                await asyncio.sleep(REST_S)  # what comes in crowds goes out together
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._timer is not None:
                self._timer.cancel()
                self._timer = self._moments = None

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._tick)
        self._compare()
        if (moments := self._moments) is not None:
            for event in counts(moments.counted, moments.seen):
                self._put(event)
            moments.counted = moments.seen

    def _compare(self) -> None:
        self._look = None
        if (moments := self._moments) is not None:
            before, moments.seen = moments.seen, moments.ask()
            for event in changes(before, moments.seen):
                self._put(event)

    def _put(self, event: Event) -> None:
        for viewer in self._viewers:
            viewer.put(event)


def _introduction(status: Status) -> Event:
    return Event(
        time=time.time(),
        event="agent",
        version=status["version"],
        pid=status["pid"],
        ready=status["ready"],
        state=status["state"],
        subnet=" and ".join(filter(None, (status["subnet"], status["ipv6_subnet"]))) or None,
    )


# The difference between two moments


def changes(before: Status, now: Status) -> Iterator[Event]:
    """Yield what is otherwise than before."""
    now_s = time.time()
    yield from _lease_changes(before, now, now_s)
    for part, met in now["last_errors"].items():
        former = before["last_errors"].get(part)
        if not met["over"] and (former is None or former["over"] or former["text"] != met["text"]):
            yield Event(time=now_s, event="error", part=part, text=met["text"])
        elif met["over"] and former is not None and not former["over"]:
            yield Event(time=now_s, event="works", part=part)
    for what, those, others in (("came", now, before), ("went", before, now)):
        for text in those["problems"]:
            if text not in others["problems"]:
                yield Event(time=now_s, event="problem", what=what, text=text)
    if (before["ready"], before["state"]) != (now["ready"], now["state"]):
        yield Event(time=now_s, event="state", ready=now["ready"], state=now["state"])


def _lease_changes(before: Status, now: Status, now_s: float) -> Iterator[Event]:
    former, lease = before["lease"], now["lease"]
    if former is not None and (lease is None or lease["key"] != former["key"]):
        yield Event(time=now_s, event="lease", what="lost", key=former["key"])
        former = None
    if lease is None:
        return
    ends_s, former_ends_s = lease["expires_in_s"], None if former is None else former["expires_in_s"]
    what = None
    if former is None:
        what = "acquired"
    elif lease["reserved"] != former["reserved"]:
        what = "reserved" if lease["reserved"] else "leased"
    elif ends_s is not None and former_ends_s is not None and ends_s > former_ends_s + _RENEWED_S:
        what = "renewed"
    if what is not None:
        yield Event(time=now_s, event="lease", what=what, key=lease["key"], expires_in_s=ends_s)


def counts(before: Status, now: Status) -> Iterator[Event]:
    """Yield what was put right on the host, and what was dropped, since then."""
    now_s = time.time()
    for what, count in _grown(before["host_repairs"], now["host_repairs"]):
        yield Event(time=now_s, event="repair", what=what, count=count)
    former, counters = before["counters"], now["counters"]
    if counters is not None:
        for direction, drops, drops_before in (
            ("out", counters["out"]["drops"], former and former["out"]["drops"]),
            ("in", counters["in"]["drops"], former and former["in"]["drops"]),
        ):
            for reason, count in _grown(drops_before, drops):
                event = Event(time=now_s, event="drops", direction=direction, reason=reason, count=count)
                last = [row for row in (now["last_dropped"] or {}).get(reason, ()) if row["direction"] == direction]
                if last:
                    event["text"] = last[-1]["summary"]
                yield event
    for place, count in _grown(before["kernel_drops"], now["kernel_drops"]):
        yield Event(time=now_s, event="drops", direction="kernel", reason=place, count=count)


def _grown(before: dict[str, int] | None, now: dict[str, int] | None) -> Iterator[tuple[str, int]]:
    for name, count in (now or {}).items():
        if (more := count - (before or {}).get(name, 0)) > 0:
            yield name, more
