"""Direct routes with ten thousand peers of which half are on the link: what the kernel is asked and told is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.backend.direct import DirectRoutes
from flannel_udp.backend.protocol import Context
from flannel_udp.host.links import device_named
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.lab.netns import wait_until
from flannel_udp.model import Delta, Ends, Interface, Peer
from flannel_udp.options import Options
from tests.support.backends import parse_config
from tests.support.counting_socket import CountingSocket, counted
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

N_PEERS, HALF = 10_000, 5_000
NEAR, FAR = int(IPv4Address("198.18.16.0")), int(IPv4Address("203.0.0.0"))
"""The first host of each half: RFC 2544's network is on the link."""
OWN = IPv4Network("10.0.1.0/24")
FIRST_SUBNET = int(IPv4Address("10.64.0.0"))
QUESTIONS_A_SEND, MESSAGES_A_SEND = 20, 100


def peer(number: int, host: int) -> Peer:
    return Peer(IPv4Network((FIRST_SUBNET + (number << 8), 24)), IPv4Address(host))


PEERS = tuple(peer(i, NEAR + i if i < HALF else FAR + i) for i in range(N_PEERS))


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.ip(
            "link add eth0 type veth peer name far0",
            *("link set far0 up", "link set eth0 up", "address add 198.18.0.1/15 dev eth0"),
            "route add default via 198.18.0.254",
        )
        # Until then the kernel has news of the link, for which all are asked again.
        assert wait_until(lambda: "state UP" in made.show("link show eth0")[0], PATIENCE_S)
        yield made


def run(host: OneHost, scenario: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop of its own whose threads are all inside the host's namespace."""
    host.call(asyncio.run, scenario)


def external() -> Interface:
    with open_rtnetlink("looking for eth0") as netlink:
        found = device_named(netlink, "eth0")
    assert found is not None
    return Interface("eth0", found.index, 1500, Ends(IPv4Address("198.18.0.1"), IPv4Address("198.18.0.1")))


def tell(what: str, began_s: float) -> None:
    print(f"{N_PEERS:,} peers, {HALF:,} on the link: {what}: {time.process_time() - began_s:.2f} s of CPU")  # noqa: T201


async def follow_underlay(host: OneHost) -> None:
    woken = asyncio.Event()
    loop = asyncio.get_running_loop()
    config = parse_config('{"Network": "10.0.0.0/8", "Backend": {"DirectRouting": true}}').config
    context = Context(Options(), config, external(), lambda: loop.call_soon_threadsafe(woken.set))
    direct = DirectRoutes(context, lambda: 0)

    async def repaired(n_direct: int) -> None:
        """Look whenever that is asked for until so many are direct."""
        async with asyncio.timeout(PATIENCE_S):
            while direct.n_direct != n_direct:
                await woken.wait()
                woken.clear()
                standing = await direct.repair()
                assert standing.problems == ()
                if standing.again_s is not None:
                    loop.call_later(standing.again_s, woken.set)

    try:
        await direct.hold(OWN, load=False, after_flanneld=False)
        counted()
        began_s = time.process_time()
        await direct.publish(OWN, [Delta(added=PEERS)], whole=True)
        tell("loaded", began_s)
        assert direct.n_direct == HALF
        assert counted() <= N_PEERS / QUESTIONS_A_SEND + HALF / MESSAGES_A_SEND + 10

        await direct.publish(OWN, [Delta(changed=(peer(7, FAR + 7),))], whole=False)
        assert direct.n_direct == HALF - 1
        assert counted() <= 10
        await direct.publish(OWN, [Delta(changed=(peer(7, NEAR + 7),))], whole=False)
        counted()

        began_s = time.process_time()
        host.ip("route add 198.18.17.0/24 via 198.18.0.254")
        await repaired(HALF - 256)
        tell("256 moved behind a router", began_s)
        assert counted() <= 256 / QUESTIONS_A_SEND + 256 / MESSAGES_A_SEND + 10

        # Routes of others, as containers and routing daemons make them, raise no question.
        others = (f"route add 10.200.{i}.0/24 via 198.18.0.9" for i in range(200))
        began_s = time.process_time()
        host.ip(*others, "route del 198.18.17.0/24")
        await repaired(HALF)
        tell("and back, amid 200 routes of others", began_s)
        assert counted() <= 256 / QUESTIONS_A_SEND + 256 / MESSAGES_A_SEND + 10
        await direct.repair()
        assert counted() <= 3  # a look at the routes where all is well
    finally:
        await direct.close(keep=False, clean=True)
    assert host.routes("proto 82") == []


def test_half_of_ten_thousand_peers(host: OneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_udp.host.rtnetlink.socket.socket", CountingSocket)
    run(host, follow_underlay(host))
