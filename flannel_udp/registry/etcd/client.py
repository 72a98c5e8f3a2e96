"""A small etcd v3 client on grpc.aio: just the calls the agent makes, with failover and authentication.

Each endpoint has a channel of its own, and a call goes from one to the next until one answers. gRPC's own balancing
over an address list was not enough: it knows only address lists or one name, moves on only when a connection breaks
(never when a server hangs), and checks every server's certificate against the first one's name.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.cluster import Cluster, Stranger
from flannel_udp.registry.etcd.connections import Connections
from flannel_udp.registry.etcd.faults import (
    LeaseNotFound,
    NoSpace,
    TooLarge,
    is_answer,
    is_lease_there,
    is_name,
    is_no_space,
    is_stale_token,
    is_tls,
    is_too_large,
    is_without_users,
    reason_of,
)
from flannel_udp.registry.etcd.options import SecretFiles
from flannel_udp.registry.etcd.watch import Watch, read_message
from flannel_udp.registry.urls import Endpoint

logger = logging.getLogger(__name__)

CALL_S = 9.0
"""Deadline of one call over all endpoints: an endpoint that hangs gets its share of it."""
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
    """Connections to the endpoints of one etcd cluster. Make it inside the event loop that will use it.

    `rng` chooses the endpoint that is used.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        files: SecretFiles,
        known_key: bytes,
        username: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._connections = Connections(self._endpoints, files)
        self._preferred = 0  # index of the endpoint that answered last
        self._known_key = known_key  # one that we may read: an answer about it says of which cluster it is
        self._cluster = Cluster(len(self._endpoints))
        self._ours: set[int] = (
            set()
        )  # indices of the endpoints that are of that cluster, as they said since they failed
        self._username = username
        # That hosts share the members needs no secrecy.
        self._rng = rng or random.Random()  # noqa: S311
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

    async def lease_grant(self, ttl_s: int, lease_id: int) -> int:
        """Make a lease of `ttl_s` seconds and return its id: `lease_id`, or one of etcd's choice for 0."""
        request = pb.LeaseGrantRequest(ttl=ttl_s, id=lease_id)

        async def attempt(to: _Try) -> int:
            try:
                return (await to.unary("/etcdserverpb.Lease/LeaseGrant", request, pb.LeaseGrantResponse)).id
            except grpc.aio.AioRpcError as error:
                if not is_lease_there(error):
                    raise
                return lease_id  # by an earlier try, whose answer was lost

        return await self._try_endpoints(attempt)

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys. Raises `LeaseNotFound`."""
        request = pb.LeaseRevokeRequest(id=lease_id)
        await self._unary("/etcdserverpb.Lease/LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def lease_time_to_live_s(self, lease_id: int) -> int:
        """Return the seconds a lease has left; -1 if there is none."""
        request = pb.LeaseTimeToLiveRequest(id=lease_id)
        return (await self._unary("/etcdserverpb.Lease/LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse)).ttl

    async def lease_granted_s(self, lease_id: int) -> int:
        """Return the seconds a lease was granted for; 0 if there is none."""
        request = pb.LeaseTimeToLiveRequest(id=lease_id)
        answer = await self._unary("/etcdserverpb.Lease/LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse)
        return answer.granted_ttl

    async def lease_keys(self, lease_id: int) -> Sequence[bytes]:
        """Return the keys that end with a lease; none if there is no such lease."""
        request = pb.LeaseTimeToLiveRequest(id=lease_id, keys=True)
        return (await self._unary("/etcdserverpb.Lease/LeaseTimeToLive", request, pb.LeaseTimeToLiveResponse)).keys

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
        with self._connections.channel(index) as channel:
            to = _Try(channel, self._metadata(), timeout_s=None)
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
                if is_too_large(error):
                    raise TooLarge(f"etcd at {url}: {reason_of(error)}") from None
                self._avoid(index)
                raise RegistryError(f"etcd at {url}: {reason_of(error)}") from None
            finally:
                watch.cancel()

    def _avoid(self, index: int) -> None:
        self._ours.discard(index)
        others = len(self._endpoints) - 1
        if self._preferred == index and others:
            self._preferred = (index + 1 + self._rng.randrange(others)) % len(self._endpoints)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _unary(self, path: str, request: Message, response: type[_Response]) -> _Response:
        return await self._try_endpoints(lambda to: to.unary(path, request, response), _right_to(request))

    async def _try_endpoints(self, attempt: _Attempt[_Result], right: str = "") -> _Result:
        """Ask one endpoint after the other, beginning with the one that answered last.

        At first the one that answers only says which cluster is ours, and any that is left is used: hosts have the same
        flags, and would all use the same member. Nor do the hosts of one that fails all go to the same other one.

        `right` is what a user may lack for it.
        """
        if await self._connections.look():
            self._token = None
        timeout_s = CALL_S / len(self._endpoints)
        faults: dict[int, str] = {}
        denied = False
        strangers: list[Stranger] = []
        left = deque(range(len(self._endpoints)))
        left.rotate(-self._preferred)
        while left:
            index = left.popleft()
            url = self._endpoints[index].url
            try:
                with self._connections.channel(index) as channel:
                    if len(self._endpoints) > 1 and index not in self._ours:
                        unknown = self._cluster.id == 0
                        stranger = await self._find_stranger(channel, timeout_s)
                        if stranger is not None:
                            strangers.append(stranger)
                            which = f"{stranger.cluster_id:x}, ours is {self._cluster.id:x}"
                            faults[index] = f"{url} (it is another cluster: {which})"
                            continue
                        self._ours.add(index)
                        if unknown:
                            left.appendleft(index)
                            left.rotate(-self._rng.randrange(len(left)))
                            continue
                    result = await self._try_authenticated(channel, attempt, timeout_s)
            except grpc.aio.AioRpcError as error:
                if is_answer(error):
                    self._cluster.answered()
                    raise self._explain(url, error, right) from None
                if is_name(error):
                    self._connections.resolve_again(index)
                self._ours.discard(index)
                denied = denied or is_tls(error)
                faults[index] = f"{url} ({reason_of(error)})"
                if self._cluster.id and left:
                    left.rotate(-self._rng.randrange(len(left)))
            else:
                self._cluster.answered()
                self._preferred = index
                return result
        said = ", ".join(text for _, text in sorted(faults.items()))
        if self._cluster.is_replaced(strangers):
            logger.warning("etcd: no endpoint is of the former cluster any more: %s", said)
            return await self._try_endpoints(attempt, right)
        raise (RegistryDenied if denied else RegistryError)(f"no etcd endpoint answers: {said}")

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

    async def _find_stranger(self, channel: grpc.aio.Channel, timeout_s: float) -> Stranger | None:
        """Return that an endpoint is of another cluster than the first one that answered, if so."""

        async def attempt(to: _Try) -> pb.RangeResponse:
            request = pb.RangeRequest(key=self._known_key, keys_only=True)
            return await to.unary("/etcdserverpb.KV/Range", request, pb.RangeResponse)

        answer = await self._try_authenticated(channel, attempt, timeout_s)
        return self._cluster.find_stranger(answer.header.cluster_id, configured=bool(answer.kvs))

    async def _authenticate(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        request = pb.AuthenticateRequest(name=self._username, password=self._connections.password)
        to = _Try(channel, (), timeout_s)
        try:
            response = await to.unary("/etcdserverpb.Auth/Authenticate", request, pb.AuthenticateResponse)
            self._token = response.token
        except grpc.aio.AioRpcError as error:
            if not is_without_users(error):
                raise
            self._token = ""

    def _metadata(self) -> _Metadata:
        # hasleader: a member that lost its cluster says so at once instead of serving a watch that stays silent.
        leader = ("hasleader", "true")
        return (leader, ("token", self._token)) if self._token else (leader,)

    def _explain(self, url: str, error: grpc.aio.AioRpcError, right: str) -> RegistryError:
        """Turn a refusal into one of our errors."""
        reason = reason_of(error)
        if error.code() is grpc.StatusCode.NOT_FOUND or is_too_large(error):
            kind = TooLarge if is_too_large(error) else LeaseNotFound
            return kind(f"etcd at {url}: {reason}")
        if is_no_space(error):
            return NoSpace(f"etcd at {url} is full ({reason}): make room (etcdctl compact, defrag, alarm disarm)")
        if is_stale_token(error) and not self._username:
            return RegistryDenied(f"etcd at {url} asks for a user: give --etcd-username and --etcd-password")
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return RegistryDenied(
                f"etcd at {url}: {reason} for user {self._username!r}: grant it a role for the prefix{right}"
            )
        if "authentication failed" in reason:
            return RegistryDenied(f"etcd at {url}: {reason}: check --etcd-username and --etcd-password")
        return RegistryError(f"etcd at {url}: {reason}")


def _right_to(request: Message) -> str:
    """Return which right on which key a request needs, for a sentence about a role."""
    match request:
        case pb.RangeRequest():
            return f" that may read {request.key.decode(errors='replace')!r}"
        case pb.PutRequest():
            return f" that may write {request.key.decode(errors='replace')!r}"
        case pb.TxnRequest():
            return f" that may read and write {request.compare[0].key.decode(errors='replace')!r}"
        case _:
            return ""
