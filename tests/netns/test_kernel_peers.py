"""Where the kernel carries packets, a peer is told once it has its route, and as long as it has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.backend.host_gw import HostGwNetwork
from flannel_udp.backend.kernel import KernelNetwork
from flannel_udp.backend.leased_routes import LeasedRoutes
from flannel_udp.backend.protocol import Context
from flannel_udp.backend.vxlan.hop import VxlanHop
from flannel_udp.backend.vxlan.kernel import VxlanKernelNetwork
from flannel_udp.model import Delta, Ends, Interface, Peer, Subnet
from flannel_udp.options import Options
from tests.support.backends import parse_config
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ETH0 = 42
OWN, THEIRS = IPv4Network("10.1.15.0/24"), IPv4Network("10.1.16.0/24")
HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_link("eth0", ETH0)
        made.ip(f"address add {HERE}/24 dev eth0")
        yield made


@pytest.mark.parametrize(
    ("kind", "make", "hop"),
    [
        ("host-gw", partial(HostGwNetwork, version=4), None),
        ("vxlan", partial(VxlanKernelNetwork, mac=None), VxlanHop(0x0A0000000009, 1)),
    ],
    ids=["host-gw", "vxlan"],
)
def test_a_peer_is_told_once_its_route_is_there_and_until_it_is_gone(
    host: OneHost,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    make: Callable[[Context], KernelNetwork],
    hop: Any,
) -> None:
    setting, go_on = threading.Semaphore(0), threading.Semaphore(0)
    load, apply = LeasedRoutes._load, LeasedRoutes._apply

    def slowed(work: Callable[..., int]) -> Callable[..., int]:
        def wait_and_work(*arguments: Any) -> int:
            setting.release()
            assert go_on.acquire(timeout=PATIENCE_S)
            return work(*arguments)

        return wait_and_work

    def routes() -> list[str]:
        return [line.split()[0] for line in host.routes("proto 82")]

    async def live() -> None:
        config = parse_config(f'{{"Network": "10.1.0.0/16", "Backend": {{"Type": "{kind}"}}}}').config
        network = make(Context(Options(), config, Interface("eth0", ETH0, 1500, Ends(HERE, HERE)), lambda: None))
        peer = Peer(THEIRS, THERE, hop)
        await network.hold(Subnet(OWN), None)
        for delta, whole, before, after in (
            (Delta(added=(peer,)), True, [], [peer]),
            (Delta(removed=(peer,)), False, [peer], []),
            (Delta(added=(peer,)), False, [], [peer]),
        ):
            publishing = asyncio.create_task(network.publish(Subnet(OWN), [delta], whole=whole))
            assert await asyncio.to_thread(setting.acquire, timeout=PATIENCE_S)
            meanwhile = network.peers()
            go_on.release()
            await publishing
            assert (meanwhile, network.peers()) == (before, after)
            assert routes() == [str(each.subnet) for each in after]
        await network.withdraw()
        assert (network.peers(), routes()) == ([], [])

    monkeypatch.setattr(LeasedRoutes, "_load", slowed(load))
    monkeypatch.setattr(LeasedRoutes, "_apply", slowed(apply))
    host.call(lambda: asyncio.run(live()))
