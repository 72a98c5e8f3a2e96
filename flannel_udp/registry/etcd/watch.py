"""One watch stream of etcd, and whether its server is still alive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from flannel_udp.registry.etcd import etcd_pb2 as pb

QUIET_S = 2.0
"""A watch that has said nothing for so long is probed: a busy one shows that its server lives."""
ANSWER_S = 1.9
"""A probe that is not answered for so long means that the server hangs.

gRPC's own pings notice a server that hangs after 9 s (etcd hangs up on whoever sends more of them), and by then the
table should long be right again.
"""

_Response = TypeVar("_Response", bound=Message)


class Watch:
    """A watch over `stream`: `begin`, then `read` for as long as it is `probed`."""

    def __init__(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        self._stream = stream
        self._waiting_since_s: float | None = None  # for the server; None while the consumer is busy
        self._answers = False  # etcd before 3.4 answers no probes: then only gRPC's pings tell
        self._silent = False

    async def begin(self, request: pb.WatchCreateRequest) -> pb.WatchResponse:
        """Create the watch and return the answer to that. Raises `grpc.aio.AioRpcError`."""
        await self._stream.write(pb.WatchRequest(create=request))
        return await read_message(self._stream, pb.WatchResponse)

    async def read(self) -> pb.WatchResponse:
        """Return what the server sends next. Raises `grpc.aio.AioRpcError`, `TimeoutError` when it is silent."""
        self._waiting_since_s = time.monotonic()
        try:
            response = await read_message(self._stream, pb.WatchResponse)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._silent and (task is None or not task.cancelling()):
                raise TimeoutError from None  # it is the stream that was cancelled, by the probe
            raise
        finally:
            self._waiting_since_s = None
        self._answers = self._answers or not response.events
        return response

    @contextlib.asynccontextmanager
    async def probed(self) -> AsyncGenerator[None]:
        """Send probes meanwhile, and cancel the stream when nothing answers them."""
        probe = asyncio.create_task(self._probe(), name="probe the watch")
        try:
            yield
        finally:
            probe.cancel()

    async def _probe(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader meets it as well
            while True:
                quiet_s = self._quiet_s()
                if quiet_s < QUIET_S:
                    await asyncio.sleep(QUIET_S - quiet_s)
                    continue
                asked_s = time.monotonic()
                await self._stream.write(pb.WatchRequest(progress=pb.WatchProgressRequest()))
                await asyncio.sleep(ANSWER_S)
                # Not how long it has been quiet: an answer that came at once is nearly as old as this sleep was long.
                waiting_s = self._waiting_since_s
                if self._answers and waiting_s is not None and waiting_s <= asked_s:
                    self._silent = True
                    self._stream.cancel()
                    return

    def _quiet_s(self) -> float:
        """Return for how long the server has been waited for; no time while the consumer is busy."""
        return 0.0 if self._waiting_since_s is None else time.monotonic() - self._waiting_since_s

    def cancel(self) -> None:
        """End the stream; what was cancelled already stays so."""
        self._stream.cancel()


async def read_message(stream: grpc.aio.StreamStreamCall[Any, Any], response: type[_Response]) -> _Response:
    """Return the next message of a stream. Raises `grpc.aio.AioRpcError`, also for an end that no error explains."""
    message = await stream.read()
    if isinstance(message, response):
        return message
    raise grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "the server ended the stream"
    )
