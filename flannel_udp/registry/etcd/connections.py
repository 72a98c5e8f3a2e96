"""The channels to the endpoints, opened with one reading of the certificates; replaced when those were."""

from __future__ import annotations

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
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # The registry is part of the cluster: a proxy that the environment names for downloads is not the way to it.
    ("grpc.enable_http_proxy", 0),
]


class Connections:
    """Make it inside the event loop that will use it, with `files` just read."""

    def __init__(self, endpoints: Sequence[Endpoint], files: SecretFiles) -> None:
        self._endpoints = endpoints
        self._files = files
        self._channels = Replaceable(self._open(), _close)

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
        self._channels.replace(self._open())
        return True

    @contextmanager
    def channel(self, index: int) -> Iterator[grpc.aio.Channel]:
        """Lend the channel to an endpoint."""
        with self._channels.use() as channels:
            yield channels[index]

    async def close(self) -> None:
        """Close all channels."""
        await self._channels.close()

    def _open(self) -> tuple[grpc.aio.Channel, ...]:
        credentials = self._files.secrets.credentials
        return tuple(_open_channel(endpoint.target, credentials) for endpoint in self._endpoints)


async def _close(channels: Sequence[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()


def _open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
