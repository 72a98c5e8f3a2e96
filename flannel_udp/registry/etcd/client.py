"""A small etcd v3 client on grpc.aio: just the calls the agent makes, with failover and authentication.

Each endpoint has a channel of its own, and a call goes from one to the next until one answers. gRPC's own balancing
over an address list was not enough: it knows only address lists or one name, moves on only when a connection breaks
(never when a server hangs), and checks every server's certificate against the first one's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.faults import LeaseNotFound, is_answer, is_stale_token, is_tls, reason_of
from flannel_udp.registry.etcd.watch import Watch, read_message
from flannel_udp.registry.urls import Endpoint

CALL_S = 9.0
"""Deadline of one call over all endpoints: an endpoint that hangs gets its share of it."""
_CHANNEL_OPTIONS: list[tuple[str, int]] = [
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
    # etcd bounds a single value (1.5 MiB), and listings are read in pages: no further limit on an answer.
    ("grpc.max_receive_message_length", -1),
    # The registry is part of the cluster: a proxy that the environment names for downloads is not the way to it.
    ("grpc.enable_http_proxy", 0),
]

_Metadata = tuple[tuple[str, str], ...]
_Response = TypeVar("_Response", bound=Message)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Try:
    """One try at one endpoint. Its calls raise `grpc.aio.AioRpcError`."""

    channel: grpc.aio.Channel
    metadata: _Metadata
    timeout_s: float | None

    async def unary(self, path: str, request: Message, response: type[_Response]) -> _Response:
        call = self.channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        return await call(request, metadata=self.metadata, timeout=self.timeout_s)

    def stream(self, path: str, request: type[Message], response: type[Message]) -> grpc.aio.StreamStreamCall[Any, Any]:
        call: grpc.aio.StreamStreamMultiCallable[Any, Any] = self.channel.stream_stream(
            path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        return call(metadata=self.metadata, timeout=self.timeout_s)


_Attempt = Callable[[_Try], Awaitable[_Result]]


class EtcdClient:
    """Connections to the endpoints of one etcd cluster. Make it inside the event loop that will use it."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        credentials: grpc.ChannelCredentials | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._channels = tuple(_open_channel(endpoint.target, credentials) for endpoint in endpoints)
        self._preferred = 0  # index of the endpoint that answered last
        self._username = username
        self._password = password
        self._token: str | None = None  # None: authenticate first; "": authentication is turned off in etcd

    @property
    def name(self) -> str:
        """How messages name this cluster."""
        return "etcd at " + ", ".join(endpoint.url for endpoint in self._endpoints)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read keys."""
        return await self._unary("/etcdserverpb.KV/Range", request, pb.RangeResponse)

    async def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Write one key."""
        return await self._unary("/etcdserverpb.KV/Put", request, pb.PutResponse)

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Compare, then act, in one step.

        A try that timed out may still have taken effect before the next endpoint was asked: the caller has to
        recognise its own work when the comparison fails. Raises `LeaseNotFound` if a put names a lease that is gone.
        """
        return await self._unary("/etcdserverpb.KV/Txn", request, pb.TxnResponse)

    async def lease_grant(self, ttl_s: int) -> int:
        """Make a lease of `ttl_s` seconds and return its id."""
        request = pb.LeaseGrantRequest(ttl=ttl_s)
        return (await self._unary("/etcdserverpb.Lease/LeaseGrant", request, pb.LeaseGrantResponse)).id

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys. Raises `LeaseNotFound`."""
        request = pb.LeaseRevokeRequest(id=lease_id)
        await self._unary("/etcdserverpb.Lease/LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def lease_time_to_live_s(self, lease_id: int) -> int:
        """Return the seconds a lease has left; -1 if there is none."""
        request = pb.LeaseTimeToLiveRequest(id=lease_id)
        return (await self._unary("/etcdserverpb.Lease/LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse)).ttl

    async def lease_keep_alive_s(self, lease_id: int) -> int:
        """Let a lease start its life anew and return that life in seconds; 0 if there is none."""

        async def attempt(to: _Try) -> int:
            path = "/etcdserverpb.Lease/LeaseKeepAlive"
            stream = to.stream(path, pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)
            try:
                await stream.write(pb.LeaseKeepAliveRequest(id=lease_id))
                return (await read_message(stream, pb.LeaseKeepAliveResponse)).ttl
            finally:
                stream.cancel()

        return await self._try_endpoints(attempt)

    async def watch(self, request: pb.WatchCreateRequest) -> AsyncGenerator[pb.WatchResponse]:
        """Yield what the server sends, beginning with ``created``, for as long as it does; then raise `RegistryError`.

        Without a deadline: a dead server is noticed by its silence. It uses the endpoint that answered last, with the
        token of that answer: call `range` first. After a failure the next call begins with another endpoint.
        """
        index = self._preferred
        url = self._endpoints[index].url
        to = _Try(self._channels[index], self._metadata(), timeout_s=None)
        watch = Watch(to.stream("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse))
        try:
            async with asyncio.timeout(CALL_S / len(self._endpoints)):
                response = await watch.begin(request)
            async with watch.probed():
                while True:
                    yield response
                    response = await watch.read()
        except TimeoutError:
            self._avoid(index)
            raise RegistryError(f"etcd at {url}: no answer to a watch in time") from None
        except grpc.aio.AioRpcError as error:
            self._avoid(index)
            raise RegistryError(f"etcd at {url}: {reason_of(error)}") from None
        finally:
            watch.cancel()

    def _avoid(self, index: int) -> None:
        if self._preferred == index:
            self._preferred = (index + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def _unary(self, path: str, request: Message, response: type[_Response]) -> _Response:
        return await self._try_endpoints(lambda to: to.unary(path, request, response))

    async def _try_endpoints(self, attempt: _Attempt[_Result]) -> _Result:
        """Ask one endpoint after the other, beginning with the one that answered last."""
        timeout_s = CALL_S / len(self._endpoints)
        faults: list[str] = []
        denied = False
        start = self._preferred
        for step in range(len(self._endpoints)):
            index = (start + step) % len(self._endpoints)
            url = self._endpoints[index].url
            try:
                result = await self._try_authenticated(self._channels[index], attempt, timeout_s)
            except grpc.aio.AioRpcError as error:
                if is_answer(error):
                    raise self._explain(url, error) from None
                denied = denied or is_tls(error)
                faults.append(f"{url} ({reason_of(error)})")
            else:
                self._preferred = index
                return result
        raise (RegistryDenied if denied else RegistryError)(f"no etcd endpoint answers: {', '.join(faults)}")

    async def _try_authenticated(
        self, channel: grpc.aio.Channel, attempt: _Attempt[_Result], timeout_s: float
    ) -> _Result:
        """Make one attempt, and a second one with a new token if etcd no longer knows ours."""
        if self._username and self._token is None:
            await self._authenticate(channel, timeout_s)
        token = self._token
        try:
            return await attempt(_Try(channel, self._metadata(), timeout_s))
        except grpc.aio.AioRpcError as error:
            if not self._username or not is_stale_token(error):
                raise
        if self._token == token:  # else another call has renewed it meanwhile
            await self._authenticate(channel, timeout_s)
        return await attempt(_Try(channel, self._metadata(), timeout_s))

    async def _authenticate(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        request = pb.AuthenticateRequest(name=self._username, password=self._password)
        to = _Try(channel, (), timeout_s)
        try:
            response = await to.unary("/etcdserverpb.Auth/Authenticate", request, pb.AuthenticateResponse)
            self._token = response.token
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            self._token = ""  # "authentication is not enabled": etcd then asks nobody for a token

    def _metadata(self) -> _Metadata:
        # hasleader: a member that lost its cluster says so at once instead of serving a watch that stays silent.
        leader = ("hasleader", "true")
        return (leader, ("token", self._token)) if self._token else (leader,)

    def _explain(self, url: str, error: grpc.aio.AioRpcError) -> RegistryError:
        """Turn a refusal into one of our errors."""
        reason = reason_of(error)
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return LeaseNotFound(f"etcd at {url}: {reason}")
        if is_stale_token(error) and not self._username:
            return RegistryDenied(f"etcd at {url} asks for a user: give --etcd-username and --etcd-password")
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return RegistryDenied(
                f"etcd at {url}: {reason} for user {self._username!r}: grant it a role for the prefix"
            )
        if "authentication failed" in reason:
            return RegistryDenied(f"etcd at {url}: {reason}: check --etcd-username and --etcd-password")
        return RegistryError(f"etcd at {url}: {reason}")


def _open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
