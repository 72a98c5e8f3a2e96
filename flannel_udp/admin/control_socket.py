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
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from flannel_udp.admin.bad_requests import keep_bad_requests_quiet
from flannel_udp.admin.capture_wish import read_wish
from flannel_udp.admin.listener import BACKLOG, UnixListener
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

_SHUTDOWN_TIMEOUT_S = 0.2
"""How long an answer that nobody reads may hold up the agent's end; aiohttp waits that long up to twice."""


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

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self._site: web.SockSite | None = None

    async def answer_on(self, listening: socket.socket) -> None:
        """Answer on this socket, which stays the caller's, from now on, and on the former one no more."""
        former, self._site = self._site, web.SockSite(self._runner, listening.dup(), backlog=BACKLOG)
        await self._site.start()
        if former is not None:
            await former.stop()

    async def step_aside(self) -> None:
        """Let who comes in wait, for `come_back` or for another process that listens on the same socket."""
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()

    async def come_back(self, listening: socket.socket) -> None:
        """Answer on this socket again, unless we do on any."""
        if self._site is None:
            await self.answer_on(listening)


@asynccontextmanager
async def control_server(listener: UnixListener, source: StatusSource) -> AsyncIterator[ControlServer]:
    """Answer on the listener, which is closed at the end."""
    keep_bad_requests_quiet()
    try:
        runner = web.AppRunner(
            _application(source), access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_TIMEOUT_S
        )
        await runner.setup()
        try:
            server = ControlServer(runner)
            await server.answer_on(listener.socket)
            yield server
        finally:
            await runner.cleanup()
    finally:
        listener.close()


def _application(source: StatusSource) -> web.Application:
    async def status(_request: web.Request) -> web.Response:
        return web.json_response(source.status())

    async def peers(request: web.Request) -> web.StreamResponse:
        probe, busiest = request.query.get("probe"), request.query.get("busiest")
        if probe and not re.fullmatch("[1-9][0-9]?", probe):
            return _error(400, f"probe={probe[:60]!r} is no number of seconds, 1 to 99: ask for /v1/peers?probe=5")
        if busiest is not None:
            by = request.query.get("by", "bytes")
            if not re.fullmatch("[1-9][0-9]{0,3}", busiest) or by not in RATE_KEYS:
                return _error(400, f"ask for /v1/peers?busiest=20&by=KEY, KEY one of {', '.join(RATE_KEYS)}")
            return await _in_parts(request, source.peers_by_rate(int(busiest), by))
        parts = source.peers() if probe is None else source.probed_peers(*([float(probe)] if probe else []))
        return await _in_parts(request, parts)

    async def route(request: web.Request) -> web.Response:
        text = request.query.get("address", "")
        try:
            address = parse_address(text)
        except ValueError:
            return _error(400, f"address={text[:60]!r} is not an IP address: ask for /v1/route?address=10.1.16.5")
        return web.json_response(await source.route(address))

    async def routes(request: web.Request) -> web.StreamResponse:
        return await _in_parts(request, source.routes())

    async def cloud_routes(_request: web.Request) -> web.Response:
        return web.json_response(source.cloud_routes())

    async def trace(request: web.Request) -> web.Response:
        return web.json_response(await source.trace(await _read(request, read_request)))

    async def arrival(request: web.Request) -> web.Response:
        return web.json_response(await source.arrival(await _read(request, read_coming)))

    async def metrics(_request: web.Request) -> web.Response:
        return await answer_metrics(source)

    app = web.Application(middlewares=[_errors_as_json])
    watching: set[asyncio.Task[object]] = set()

    async def watch(
        request: web.Request, parts: AsyncGenerator[Part, None], encode: Callable[[Part], bytes], kind: str
    ) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every request has one
        watching.add(task)
        try:
            return await _as_they_come(request, parts, encode, kind)
        finally:
            watching.discard(task)

    async def monitor(request: web.Request) -> web.StreamResponse:
        return await watch(request, source.events(), _lines, "application/x-ndjson")

    async def capture(request: web.Request) -> web.StreamResponse:
        try:
            wish = read_wish(request.query)
        except ValueError as error:
            return _error(400, str(error))
        return await watch(request, source.capture(wish, _pid_of_peer(request)), bytes, "application/octet-stream")

    async def end_watching(_app: web.Application) -> None:
        for task in watching:  # they would hold up the agent's end
            task.cancel()

    app.on_shutdown.append(end_watching)
    answers = {
        "status": status,
        "peers": peers,
        "route": route,
        "routes": routes,
        "cloud/routes": cloud_routes,
        "monitor": monitor,
        "capture": capture,
    }
    app.add_routes(web.get(f"/v1/{name}", answer) for name, answer in answers.items())
    app.add_routes([web.post("/v1/trace", trace), web.post("/v1/arrival", arrival)])
    app.add_routes([web.get("/metrics", metrics)])
    return app


async def _read(request: web.Request, read: Callable[[object], Asked]) -> Asked:
    """Return what the body asks about, as `read` understands it."""
    try:
        return read(json.loads(await request.read()))
    except (ValueError, RecursionError, UsageError) as error:
        raise _Wrong(f"POST {request.path}: {error}") from error


class _Wrong(Exception):
    """The request makes no sense: why, in one line."""


async def _in_parts(request: web.Request, parts: AsyncIterator[list[Row]]) -> web.StreamResponse:
    """Answer with one list of all rows."""
    first: list[Row] = await anext(parts, [])  # what goes wrong here can still be answered with an error
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b"[" + _rows(first))
    async for rows in parts:
        await response.write(b"," + _rows(rows))
    await response.write_eof(b"]")
    return response


async def _as_they_come(
    request: web.Request, parts: AsyncGenerator[Part, None], encode: Callable[[Part], bytes], kind: str
) -> web.StreamResponse:
    """Answer with each part until the reader is gone. Who reads slowly holds up their own answer only."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    async with aclosing(parts):
        part = await anext(parts)  # what goes wrong here can still be answered with an error
        with suppress(ConnectionError):
            await response.prepare(request)
            while request.transport is not None and not request.transport.is_closing():
                if part:
                    await response.write(encode(part))
                part = await anext(parts)
    return response


def _lines(events: Sequence[Event]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def _pid_of_peer(request: web.Request) -> int:
    """Return who asks, as the kernel has it (unix(7), SO_PEERCRED)."""
    with socket.socket(fileno=os.dup(request.get_extra_info("socket").fileno())) as connected:
        pid, _, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _rows(rows: Sequence[object]) -> bytes:
    return json.dumps(rows)[1:-1].encode()


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")
    except _Wrong as error:
        return _error(400, str(error))
    except FlannelError as error:
        return _error(503, str(error))
    except Exception:
        logger.exception("answering %s on the control socket failed", request.path)
        return _error(500, "internal error: see the agent's log")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
