"""An endpoint's name does not resolve for a while: it is asked for again as soon as the resolver works."""

from __future__ import annotations

import asyncio
import time

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.client import EtcdClient
from flannel_udp.registry.etcd.options import SecretFiles
from flannel_udp.registry.urls import Endpoint
from tests.support.name_server import name_server
from tests.support.patience import promised

KEY = pb.RangeRequest(key=b"/any")
CONVERGED_S = 5.0
"""What docs/reliability.md promises."""


def client_of(etcd: EtcdServer, name_server_port: int) -> EtcdClient:
    port = etcd.endpoint.rpartition(":")[2]
    endpoint = Endpoint(f"http://etcd.example:{port}", f"dns://127.0.0.1:{name_server_port}/etcd.example:{port}")
    return EtcdClient([endpoint], SecretFiles(EtcdOptions(), https=False), b"/any")


@pytest.mark.parametrize(("mute", "away_s"), [(False, 11.0), (True, 7.0)], ids=["failing", "mute"])
async def test_an_endpoint_is_asked_within_seconds_after_its_name_resolves_again(
    etcd: EtcdServer, mute: bool, away_s: float
) -> None:
    """gRPC by itself would have waited for longer and longer, up to two minutes."""
    async with name_server("127.0.0.1", mute=mute) as dns:
        client = client_of(etcd, dns.port)
        began_s = time.monotonic()
        while time.monotonic() - began_s < away_s:
            with pytest.raises(RegistryError, match=r"its name does not resolve|no answer in time"):
                await client.range(KEY)
            await asyncio.sleep(0.1)
        asked = dns.asked
        dns.works = True
        async with asyncio.timeout(promised(CONVERGED_S)):
            while True:
                try:
                    await client.range(KEY)
                    break
                except RegistryError:
                    await asyncio.sleep(0.1)
        await client.close()
    assert asked < 10 * away_s  # a herd of agents must not hammer a resolver that is ill


async def test_an_endpoint_whose_name_does_not_resolve_costs_no_other_its_connection(etcd: EtcdServer) -> None:
    async with name_server("127.0.0.1") as dns:
        port = etcd.endpoint.rpartition(":")[2]
        nowhere = Endpoint("http://etcd.example:1", f"dns://127.0.0.1:{dns.port}/etcd.example:1")
        there = Endpoint(etcd.endpoint, f"dns:///127.0.0.1:{port}")
        client = EtcdClient([nowhere, there], SecretFiles(EtcdOptions(), https=False), b"/any")
        with client._connections.channel(1) as channel:
            await client.range(KEY)
        with client._connections.channel(1) as later:
            assert later is channel
        await client.close()
