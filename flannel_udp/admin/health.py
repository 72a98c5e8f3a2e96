"""``/healthz`` and ``/readyz`` for probes, such as Kubernetes' and load balancers', and ``/metrics`` for Prometheus."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flannel_udp.admin.http_server import Answer, Limits, Request, Server, routed
from flannel_udp.admin.metrics import MetricsSource, answer_metrics
from flannel_udp.errors import FlannelError, UsageError

LIMITS = Limits(connections=256)
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

    async def healthz(_request: Request) -> Answer:
        return Answer(b"ok\n")

    async def readyz(_request: Request) -> Answer:
        status = source.status()
        if not status["ready"]:
            return Answer(f"not ready: {status['state']}\n".encode(), status=503)
        return Answer("".join(f"degraded: {problem}\n" for problem in status["problems"]).encode() or b"ok\n")

    async def metrics(_request: Request) -> Answer:
        return await answer_metrics(source)

    handler = routed({"/healthz": healthz, "/readyz": readyz, "/metrics": metrics})
    server = Server(handler, LIMITS)
    listening = await server.listen(listener)
    try:
        yield
    finally:
        listening.close()
        await server.close()


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
