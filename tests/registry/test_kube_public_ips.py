"""The node annotations by which flanneld chooses its interface: read at the start, with its precedence."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer
from tests.kube_api.store import Store
from tests.registry.test_kube import api, options, registry

__all__ = ["api", "options", "registry"]


async def test_the_public_ips_that_an_administrator_has_put_down_are_read(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    assert await registry.stored_public_ips() == (None, None)
    api.do(lambda store: store.annotate("h1", node_public_ip="203.0.113.7"))
    assert await registry.stored_public_ips() == (IPv4Address("203.0.113.7"), None)
    api.do(lambda store: store.annotate("h1", node_public_ip="", node_public_ipv6="2001:db8::7"))
    assert await registry.stored_public_ips() == (None, IPv6Address("2001:db8::7"))
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [("eth1", "is no IPv4 address"), ("2001:db8::7", "is no IPv4 address"), ("127.0.0.1", "is no address of one host")],
)
async def test_a_public_ip_of_no_use_is_said_and_the_other_one_counts(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    api.do(lambda store: store.annotate("h1", node_public_ip=text, node_public_ipv6="2001:db8::7"))
    assert await registry.stored_public_ips() == (None, IPv6Address("2001:db8::7"))
    (line,) = warnings_of(caplog)
    assert line.startswith(f"node 'h1': flannel.alpha.coreos.com/node-public-ip {text!r} {why}")
    assert line.endswith(": going on without it")


async def test_a_public_ip_that_is_changed_later_is_said_once_to_need_another_start(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    api.do(lambda store: store.annotate("h1", node_public_ip="203.0.113.7"))
    await registry.stored_public_ips()
    for text, now in (("203.0.113.8", "203.0.113.8"), (None, "gone")):
        api.do(partial(Store.annotate, name="h1", node_public_ip=text))
        for _ in range(2):
            await registry.list()
        (line,) = warnings_of(caplog)
        name = "flannel.alpha.coreos.com/node-public-ip"
        assert line == f"node 'h1': {name} is {now} now: start the agent again to use it"
        caplog.clear()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
