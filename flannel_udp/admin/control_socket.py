"""The local control socket: HTTP over a unix socket that only its owner may open.

``GET /v1/status``, ``/v1/peers``, ``/v1/route?address=A``, ``/v1/routes`` and ``/v1/cloud/routes`` answer with
documents of `shapes`, ``/v1/peers?probe`` after each peer was asked by an echo (``?probe=5``: within that many
seconds), ``/v1/peers?busiest=20&by=bytes`` with so many peers only, those with the highest rates first; what goes wrong
answers ``{"error": "one line"}`` and a status of 400 or more. ``POST /v1/trace`` and ``/v1/arrival`` take a packet as
`trace_request` has it, and answer with what would become of it here; nothing is sent. ``/v1/monitor`` answers with a
line of JSON for each `shapes.Event` as it happens, until the agent ends or nobody reads any more; ``/v1/capture``
likewise with packets, a line of JSON about the bytes that follow it (`captured`), its questions are `capture_wish`'s;
``/metrics`` in Prometheus' format.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, TypeVar

from flannel_udp.admin.capture_wish import read_wish
from flannel_udp.admin.http_server import Answer, Handler, Refused, Request, Server, Stream, as_json, routed
from flannel_udp.admin.listener import BACKLOG, UnixListener, peer_credentials
from flannel_udp.admin.metrics import MetricsSource, answer_metrics
from flannel_udp.admin.shapes import CloudRoutes, Event, PeerRow, Route, RouteRow
from flannel_udp.admin.trace_request import Coming, TraceRequest, read_coming, read_request
from flannel_udp.admin.trace_shapes import Trace, TraceArrival
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.model import RATE_KEYS, Address, CaptureWish
from flannel_udp.netconf.addresses import parse_address

logger = logging.getLogger(__name__)

Row = TypeVar("Row", PeerRow, RouteRow)
Asked = TypeVar("Asked")
Part = TypeVar("Part", list[Event], bytes)


class StatusSource(MetricsSource, Protocol):
    """Who knows the answers: the agent. Called on the event loop, so it must not block."""

    def peers(self) -> AsyncIterator[list[PeerRow]]:
        """Yield one row a peer, in the order of their subnets, in parts, none of them empty."""
        ...

    def probed_peers(self, within_s: float = ...) -> AsyncIterator[list[PeerRow]]:
        """Likewise, after each peer was asked by an echo whose turn came in time."""
        ...

    def peers_by_rate(self, n: int, by: str) -> AsyncIterator[list[PeerRow]]:
        """Yield so many rows if there are, those with the highest rates first; `by` is one of `model.RATE_KEYS`."""
        ...

    def capture(self, wish: CaptureWish, pid: int) -> AsyncGenerator[bytes, None]:
        """Yield packets as the data path sees them, for this process; now and then nothing, likewise."""
        ...

    async def route(self, address: Address) -> Route:
        """Return where a packet for `address` would go, and why."""
        ...

    def routes(self) -> AsyncIterator[list[RouteRow]]:
        """Yield one row a route, in the order of their subnets, in parts, none of them empty."""
        ...

    def cloud_routes(self) -> CloudRoutes:
        """Return what is in the provider's route tables. Raises `FlannelError` where there are none."""
        ...

    async def trace(self, asked: TraceRequest) -> Trace:
        """Return what would become of a packet that is sent here."""
        ...

    async def arrival(self, coming: Coming) -> TraceArrival:
        """Return what would become of one that comes from another host."""
        ...

    def events(self) -> AsyncGenerator[list[Event], None]:
        """Yield what happens from now on; now and then nothing, so that who is not read any more notices."""
        ...


class ControlServer:
    """What answers on the control socket."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listening: asyncio.Server | None = None

    async def answer_on(self, listening: socket.socket) -> None:
        """Answer on this socket, which stays the caller's, from now on, and on the former one no more."""
        former, self._listening = self._listening, await self._server.listen(listening.dup(), BACKLOG)
        if former is not None:
            former.close()

    async def step_aside(self) -> None:
        """Let who comes in wait, for `come_back` or for another process that listens on the same socket."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def come_back(self, listening: socket.socket) -> None:
        """Answer on this socket again, unless we do on any."""
        if self._listening is None:
            await self.answer_on(listening)


@asynccontextmanager
async def control_server(listener: UnixListener, source: StatusSource) -> AsyncIterator[ControlServer]:
    """Answer on the listener, which is closed at the end."""
    server = Server(_errors_as_json(_answers(source)))
    control = ControlServer(server)
    try:
        await control.answer_on(listener.socket)
        yield control
    finally:
        await control.step_aside()
        await server.close()
        listener.close()


def _answers(source: StatusSource) -> Handler:
    async def status(_request: Request) -> Answer:
        return as_json(source.status())

    async def peers(request: Request) -> Answer | Stream:
        probe, busiest = request.query.get("probe"), request.query.get("busiest")
        if probe and not re.fullmatch("[1-9][0-9]?", probe):
            return _error(400, f"probe={probe[:60]!r} is no number of seconds, 1 to 99: ask for /v1/peers?probe=5")
        if busiest is not None:
            by = request.query.get("by", "bytes")
            if not re.fullmatch("[1-9][0-9]{0,3}", busiest) or by not in RATE_KEYS:
                return _error(400, f"ask for /v1/peers?busiest=20&by=KEY, KEY one of {', '.join(RATE_KEYS)}")
            return await _in_parts(source.peers_by_rate(int(busiest), by))
        return await _in_parts(
            source.peers() if probe is None else source.probed_peers(*([float(probe)] if probe else []))
        )

    async def route(request: Request) -> Answer:
        text = request.query.get("address", "")
        try:
            address = parse_address(text)
        except ValueError:
            return _error(400, f"address={text[:60]!r} is not an IP address: ask for /v1/route?address=10.1.16.5")
        return as_json(await source.route(address))

    async def routes(_request: Request) -> Stream:
        return await _in_parts(source.routes())

    async def cloud_routes(_request: Request) -> Answer:
        return as_json(source.cloud_routes())

    async def trace(request: Request) -> Answer:
        return as_json(await source.trace(_read(request, read_request)))

    async def arrival(request: Request) -> Answer:
        return as_json(await source.arrival(_read(request, read_coming)))

    async def metrics(_request: Request) -> Answer:
        return await answer_metrics(source)

    async def monitor(_request: Request) -> Stream:
        return await _as_they_come(source.events(), _lines, "application/x-ndjson")

    async def capture(request: Request) -> Answer | Stream:
        try:
            wish = read_wish(request.query)
        except ValueError as error:
            return _error(400, str(error))
        parts = source.capture(wish, _pid_of_peer(request))
        return await _as_they_come(parts, bytes, "application/octet-stream")

    return routed(
        {
            "/v1/status": status,
            "/v1/peers": peers,
            "/v1/route": route,
            "/v1/routes": routes,
            "/v1/cloud/routes": cloud_routes,
            "/v1/monitor": monitor,
            "/v1/capture": capture,
            "/metrics": metrics,
        },
        {"/v1/trace": trace, "/v1/arrival": arrival},
    )


def _read(request: Request, read: Callable[[object], Asked]) -> Asked:
    """Return what the body asks about, as `read` understands it."""
    try:
        return read(json.loads(request.body))
    except (ValueError, RecursionError, UsageError) as error:
        raise _Wrong(f"POST {request.path}: {error}") from error


class _Wrong(Exception):
    """The request makes no sense: why, in one line."""


async def _in_parts(parts: AsyncIterator[list[Row]]) -> Stream:
    """Answer with one list of all rows."""

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        first: list[Row] = await anext(parts, [])
        yield b""
        yield b"[" + _rows(first)
        async for rows in parts:
            yield b"," + _rows(rows)
        yield b"]"

    return Stream(await _begun(all_of_them()), "application/json; charset=utf-8")


async def _as_they_come(parts: AsyncGenerator[Part, None], encode: Callable[[Part], bytes], kind: str) -> Stream:
    """Answer with each part until the reader is gone."""

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        async with aclosing(parts):
            first = await anext(parts)
            yield b""
            yield encode(first) if first else b""
            async for part in parts:
                yield encode(part) if part else b""

    return Stream(await _begun(all_of_them()), kind, endless=True)


async def _begun(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Return them once they know their first one: what goes wrong by then can still be answered with an error.

    And who closes them closes what they are made of, which those do not that were never begun.
    """
    await anext(parts)
    return parts


def _lines(events: Sequence[Event]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def _pid_of_peer(request: Request) -> int:
    """Return who asks, as the kernel has it (unix(7), SO_PEERCRED)."""
    with socket.socket(fileno=os.dup(request.connection.fileno())) as connected:
        pid, _ = peer_credentials(connected)
    return pid


def _rows(rows: Sequence[object]) -> bytes:
    return json.dumps(rows)[1:-1].encode()


def _errors_as_json(handler: Handler) -> Handler:
    async def answer(request: Request) -> Answer | Stream:
        try:
            return await handler(request)
        except Refused as refused:
            return _error(refused.status, f"{request.method} {request.path}: {refused}", refused.headers)
        except _Wrong as error:
            return _error(400, str(error))
        except FlannelError as error:
            return _error(503, str(error))
        except Exception:
            logger.exception("answering %s on the control socket failed", request.path)
            return _error(500, "internal error: see the agent's log")

    return answer


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    return as_json({"error": message}, status, headers)
