"""What one member says of itself is no answer of the cluster: the next one is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import etcd_pb2 as pb
from tests.registry.support import PASSWORD
from tests.registry.test_etcd import Opened, guarded_etcd, opened

__all__ = ["guarded_etcd", "opened"]

OF_ONE_MEMBER = [
    (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
]


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
