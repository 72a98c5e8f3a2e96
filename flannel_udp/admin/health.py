"""``/healthz`` and ``/readyz`` for probes, such as Kubernetes' and load balancers', and ``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from flannel_udp.admin.bad_requests import keep_bad_requests_quiet
from flannel_udp.admin.metrics import MetricsSource, answer_metrics
from flannel_udp.errors import FlannelError, UsageError

_SHUTDOWN_TIMEOUT_S = 0.2
"""How long an answer that nobody reads may hold up the agent's end (aiohttp's default is a minute)."""

KEEP_IDLE_S = 75.0
"""An idle connection stays open for longer than lies between two scrapes; aiohttp's default is an hour."""
CONNECTIONS_MAX = 256
"""Whoever reaches the port may open connections; descriptors are the agent's, which does without none."""


class PortInUse(FlannelError):
    """Another program has the port, for now."""


@asynccontextmanager
async def health_server(listener: socket.socket | None, source: MetricsSource) -> AsyncIterator[None]:
    """Serve ``/healthz`` (200 while the process lives), ``/readyz`` (200 when ready, else 503) and ``/metrics``.

    ``/readyz`` says in words what is in the way, also of an agent that is ready though some of the traffic stops.

    `listener` is closed at the end; without one nothing is served.
    """
    if listener is None:
        yield
        return

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        status = source.status()
        if not status["ready"]:
            return web.Response(status=503, text=f"not ready: {status['state']}\n")
        return web.Response(text="".join(f"degraded: {problem}\n" for problem in status["problems"]) or "ok\n")

    async def metrics(_request: web.Request) -> web.Response:
        return await answer_metrics(source)

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    keep_bad_requests_quiet()
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        keepalive_timeout=KEEP_IDLE_S,
    )
    await runner.setup()
    try:
        assert runner.server is not None  # noqa: S101 - it is set up
        # Not by web.SockSite, which lets in whoever comes.
        listening = await asyncio.get_running_loop().create_server(_limited(runner.server), sock=listener)
        try:
            yield
        finally:
            listening.close()
    finally:
        await runner.cleanup()


def _limited(server: web.Server) -> Callable[[], asyncio.Protocol]:
    """Return what makes a connection's protocol; where there are too many of them the oldest ones end.

    At once, whatever they wait for: a connection that is closed in order waits for its reader. Those that come in one
    turn of the loop are counted with the next one.
    """

    def make() -> asyncio.Protocol:
        transports = [handler.transport for handler in server.connections]
        opened = [transport for transport in transports if transport is not None and not transport.is_closing()]
        for transport in opened[: max(0, len(opened) + 1 - CONNECTIONS_MAX)]:
            transport.abort()
        return server()

    return make


def open_health_listener(ip: str, port: int, adopted: int | None = None) -> socket.socket | None:
    """Return a socket that listens on `ip` and `port`, ``None`` for port 0, which means off.

    Both 0.0.0.0 and :: are all addresses of both families, as for Go's ``net.Listen("tcp", …)``, and so for flanneld:
    a kubelet asks by whichever family its node is registered with. Where the kernel has no IPv6, 0.0.0.0 is IPv4 only.

    `adopted` is a descriptor that another process has listened on: used if it fits, closed if not. Raises `UsageError`
    for an `ip` or `port` that cannot be one, `FlannelError` when it cannot be listened on.
    """
    _check(ip, port)
    both = ipaddress.ip_address(ip).is_unspecified and socket.has_dualstack_ipv6()
    if adopted is not None:
        listener = socket.socket(fileno=adopted)
        if listener.getsockname()[:2] == ("::" if both else ip, port):
            return listener
        listener.close()
    return _listen(ip, port, both) if port else None


def _check(ip: str, port: int) -> None:
    try:
        ipaddress.ip_address(ip)
    except ValueError as error:
        raise UsageError(f"--healthz-ip={ip}: not an IP address") from error
    if not 0 <= port <= 65_535:
        raise UsageError(f"--healthz-port={port}: not a port, 0 (off) to 65535")


def _listen(ip: str, port: int, both: bool) -> socket.socket:
    at = "::" if both else ip
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    try:
        # A socket of our own: what asyncio makes of the kernel's answer differs from version to version.
        return socket.create_server((at, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        kind = PortInUse if error.errno == errno.EADDRINUSE else FlannelError
        raise kind(
            f"cannot serve health on {ip} port {port}: {reason}: choose another --healthz-ip or --healthz-port"
        ) from error
