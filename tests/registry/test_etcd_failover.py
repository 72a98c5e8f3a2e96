"""What one member says of itself is no answer of the cluster: the next one is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import client as etcd_client
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.registry import EtcdRegistry
from tests.registry.support import PASSWORD
from tests.registry.test_etcd import Opened, guarded_etcd, opened

__all__ = ["guarded_etcd", "opened"]

N_HOSTS = 60
OF_ONE_MEMBER = [
    (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
]


@pytest.fixture(autouse=True)
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer here refuses at once: a busy machine may take its time."""
    monkeypatch.setattr(etcd_client, "CALL_S", 180.0)


@asynccontextmanager
async def refusing_member(code: grpc.StatusCode, details: str) -> AsyncIterator[str]:
    """Run a member that refuses everything for a reason of its own; its URL."""

    async def refuse(_request: object, context: grpc.aio.ServicerContext[object, object]) -> None:
        await context.abort(code, details)

    server = grpc.aio.server()
    for service, method, request in (
        ("etcdserverpb.KV", "Range", pb.RangeRequest),
        ("etcdserverpb.Auth", "Authenticate", pb.AuthenticateRequest),
    ):
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            refuse, request_deserializer=request.FromString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    async with serving(server) as url:
        yield url


class AnsweringMember:
    """A member of cluster 7 with nothing in it; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.down = False

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Run it; its URL."""
        server = grpc.aio.server()
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._range,
            request_deserializer=pb.RangeRequest.FromString,
            response_serializer=pb.RangeResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Range": handler}),))
        async with serving(server) as url:
            yield url

    async def _range(self, _request: object, context: grpc.aio.ServicerContext[object, object]) -> pb.RangeResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it is restarted")
        self.asked += 1
        return pb.RangeResponse(header=pb.ResponseHeader(cluster_id=7))


@asynccontextmanager
async def serving(server: grpc.aio.Server) -> AsyncIterator[str]:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize(("code", "details"), OF_ONE_MEMBER)
async def test_a_member_that_cannot_answer_now_is_passed_over(
    code: grpc.StatusCode, details: str, opened: Opened, etcd: EtcdServer
) -> None:
    async with refusing_member(code, details) as url:
        registry = opened(EtcdOptions(endpoints=(url, etcd.endpoint), prefix="/failover"))
        assert (await registry.list()).entries == {}


@pytest.mark.parametrize(("code", "details"), OF_ONE_MEMBER)
async def test_it_is_passed_over_by_who_has_to_log_in_as_well(
    code: grpc.StatusCode, details: str, opened: Opened, guarded_etcd: EtcdServer
) -> None:
    """A learner refuses a login with the code that says elsewhere that nobody has to log in."""
    async with refusing_member(code, details) as url:
        endpoints = (url, guarded_etcd.endpoint)
        registry = opened(EtcdOptions(endpoints=endpoints, username="flannel", password=PASSWORD))
        assert (await registry.list()).entries == {}


@pytest.mark.parametrize(("code", "details"), OF_ONE_MEMBER)
async def test_where_no_member_can_answer_each_reason_is_told(
    code: grpc.StatusCode, details: str, opened: Opened
) -> None:
    async with refusing_member(code, details) as url:
        with pytest.raises(RegistryError, match="no etcd endpoint answers: ") as caught:
            await opened(EtcdOptions(endpoints=(url,))).list()
    assert str(caught.value).endswith(f"{url} ({details.removeprefix('etcdserver: ')})")


async def test_the_members_share_the_hosts() -> None:
    members = [AnsweringMember() for _ in range(3)]
    n_calls = 5
    async with AsyncExitStack() as served:
        endpoints = tuple([await served.enter_async_context(member.served()) for member in members])
        for _ in range(N_HOSTS):
            registry = EtcdRegistry(EtcdOptions(endpoints=endpoints))
            for _ in range(n_calls):
                await registry.list()
            await registry.close()
    fewest = N_HOSTS // 10 * n_calls  # of some 20 hosts: a third of all, by chance
    assert [member.asked for member in members if member.asked < fewest] == []


async def test_a_host_stays_with_the_member_that_it_began_with() -> None:
    members = [AnsweringMember() for _ in range(3)]
    n_calls = 50
    async with AsyncExitStack() as served:
        endpoints = tuple([await served.enter_async_context(member.served()) for member in members])
        registry = EtcdRegistry(EtcdOptions(endpoints=endpoints))
        for _ in range(n_calls):
            await registry.list()
        await registry.close()
    assert sorted(member.asked >= n_calls for member in members) == [False, False, True]


async def test_after_the_members_were_restarted_one_by_one_they_share_the_hosts_still() -> None:
    members = [AnsweringMember() for _ in range(3)]
    async with AsyncExitStack() as served:
        endpoints = tuple([await served.enter_async_context(member.served()) for member in members])
        hosts = [EtcdRegistry(EtcdOptions(endpoints=endpoints)) for _ in range(N_HOSTS)]

        async def all_ask() -> None:
            for host in hosts:
                await host.list()

        await all_ask()
        for member in members:
            member.down = True
            await all_ask()
            member.down = False
        for member in members:
            member.asked = 0
        await all_ask()
        for host in hosts:
            await host.close()
    # The last one to be restarted has nobody again; the others have some half of the hosts each.
    assert [member.asked > N_HOSTS // 10 for member in members] == [True, True, False]
