"""An agent's answers on the control socket, without the agent: it has one peer, and no answer for some addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from ipaddress import IPv4Address

from flannel_udp.admin.figures import Figures, PeerFigures
from flannel_udp.admin.shapes import CloudRoutes, Event, PeerRow, Route, RouteRow, Status
from flannel_udp.admin.trace_request import Coming, TraceRequest
from flannel_udp.admin.trace_shapes import Trace, TraceArrival
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, CaptureWish
from tests.support.status import CLOUD_ROUTES, EVENT, FIGURES, PEER, ROUTES, RUNNING
from tests.support.traces import ARRIVAL, traced


class Told:
    """An agent that says what it was told to say, to who serves metrics."""

    drop_reasons: tuple[str, ...] = ("no_route", "too_short", "ttl_expired")

    def __init__(
        self, status: Status = RUNNING, figures: Figures = FIGURES, busiest: Sequence[PeerFigures] = ()
    ) -> None:
        self.now = status
        self._figures = figures
        self._busiest = busiest

    def status(self) -> Status:
        return self.now

    def figures(self) -> Figures:
        return self._figures

    async def busiest_peers(self) -> Sequence[PeerFigures]:
        return self._busiest


class Source(Told):
    """Answers as an agent would; 10.1.0.1 fails as with an agent it may, 10.1.0.2 as it must not."""

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        yield [PEER]

    async def probed_peers(self, within_s: float = 60.0) -> AsyncIterator[list[PeerRow]]:  # noqa: ARG002
        yield [{**PEER, "echo": {"answered": True, "round_trip_ms": 0.5, "reason": None}}]

    async def peers_by_rate(self, n: int, by: str) -> AsyncIterator[list[PeerRow]]:  # noqa: ARG002
        yield [PEER]

    async def route(self, address: Address) -> Route:
        if address == IPv4Address("10.1.0.1"):
            raise FlannelError("no network configuration yet")
        if address == IPv4Address("10.1.0.2"):
            raise ZeroDivisionError
        if address == IPv4Address("10.1.15.7"):
            return {"address": str(address), "verdict": "own subnet", "reason": "it is here", "subnet": "10.1.15.0/24"}
        return {"address": str(address), "verdict": "no route", "reason": "no lease covers it"}

    def cloud_routes(self) -> CloudRoutes:
        return CLOUD_ROUTES

    async def trace(self, asked: TraceRequest) -> Trace:
        if asked.ttl == 13:
            raise FlannelError("no packets are carried yet")
        return traced(asked)

    async def arrival(self, coming: Coming) -> TraceArrival:  # noqa: ARG002
        return ARRIVAL

    async def events(self) -> AsyncGenerator[list[Event], None]:
        yield [EVENT]
        await asyncio.Event().wait()

    async def capture(self, wish: CaptureWish, pid: int) -> AsyncGenerator[bytes, None]:  # noqa: ARG002
        raise FlannelError("there are no packets yet: running")
        yield b""

    async def routes(self) -> AsyncIterator[list[RouteRow]]:
        for route in ROUTES:
            yield [route]
