"""The channels to the endpoints, opened with one reading of the certificates; replaced when those were."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import grpc.aio

from flannel_udp.registry.etcd.options import SecretFiles
from flannel_udp.registry.replaceable import Replaceable
from flannel_udp.registry.urls import Endpoint

MESSAGE_BYTES = 8 * 1024 * 1024
"""The largest answer that is taken: what anybody may write below the prefix must not fill our memory."""
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # A server that hangs or a cable that is cut is noticed after 6 + 3 s. etcd hangs up on whoever pings more often
    # than every 5 s. A quiet watch sends no data for hours: 0 lifts gRPC's limit on pings without data.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),  # newer gRPC goes by this one, a minute unless set
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is back is found within a second; gRPC would let the pause grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # despite its name also the time one connection attempt may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A resolver that does not answer is given up for `Connections.resolve_again`; three have had their turn by then.
    ("grpc.dns_ares_query_timeout", 5_000),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # The registry is part of the cluster: a proxy that the environment names for downloads is not the way to it.
    ("grpc.enable_http_proxy", 0),
]
RESOLVE_AGAIN_S = 1.0
"""A name that does not resolve is asked for that often at most."""


class Connections:
    """Make it inside the event loop that will use it, with `files` just read."""

    def __init__(self, endpoints: Sequence[Endpoint], files: SecretFiles) -> None:
        self._endpoints = endpoints
        self._files = files
        self._channels = [Replaceable(self._open(endpoint), _close) for endpoint in endpoints]
        self._opened_s = [time.monotonic()] * len(endpoints)

    @property
    def password(self) -> str:
        """The password as it was read last."""
        return self._files.secrets.password

    async def look(self) -> bool:
        """Read the files again: a server may know the new certificates only. Tell whether they were replaced.

        A stream that is open goes on with the old ones for as long as its connection lasts.
        """
        if not await self._files.look():
            return False
        for index in range(len(self._endpoints)):
            self._replace(index)
        return True

    def resolve_again(self, index: int) -> None:
        """Let the name of an endpoint be resolved anew by the next call: it has just failed to.

        A channel asks for it after ever longer pauses, up to two minutes, and says no meanwhile.
        """
        if time.monotonic() - self._opened_s[index] >= RESOLVE_AGAIN_S:
            self._replace(index)

    @contextmanager
    def channel(self, index: int) -> Iterator[grpc.aio.Channel]:
        """Lend the channel to an endpoint."""
        with self._channels[index].use() as channel:
            yield channel

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels:
            await channel.close()

    def _replace(self, index: int) -> None:
        self._channels[index].replace(self._open(self._endpoints[index]))
        self._opened_s[index] = time.monotonic()

    def _open(self, endpoint: Endpoint) -> grpc.aio.Channel:
        credentials = self._files.secrets.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(endpoint.target, credentials, options=CHANNEL_OPTIONS)


async def _close(channel: grpc.aio.Channel) -> None:
    await channel.close()
