"""Which hosts are on the link, asked of a real kernel, and asked again at its news; ten thousand are counted."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp.host.on_link import OnLink, open_news
from flannel_udp.lab.netns import call_inside
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ETH0 = 42
"""eth0's index in these namespaces; its network is 192.0.0.0/16, so that ten thousand hosts are in it."""
NEAR, OTHER, FAR = (int(IPv4Address(text)) for text in ("192.0.2.2", "192.0.2.3", "198.51.100.7"))


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_links(ETH0)
        made.ip(
            "address add 192.0.2.1/16 dev eth0",
            "address add 203.0.113.1/24 dev eth1",
            "route add default via 192.0.2.254",
        )
        yield made


class Watched:
    """An `OnLink` of that host, and how often it has asked for a look."""

    def __init__(self, host: OneHost) -> None:
        self.host = host
        self.woken = asyncio.Event()
        self.n_looks = 0
        self.on_link = OnLink(host.call(open_news), ETH0, self._look)

    def _look(self) -> None:
        self.n_looks += 1
        self.woken.set()

    async def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.to_thread(self.host.call, function, *arguments)

    async def ask(self, *hosts: int) -> list[bool]:
        await self.call(self.on_link.ask, hosts)
        return [each in self.on_link for each in hosts]

    async def change(self, moved: set[int], *lines: str) -> None:
        """Change the host's network, and look whenever that is asked for until just these have another answer."""
        changed: set[int] = set()
        await asyncio.to_thread(self.host.ip, *lines)
        async with asyncio.timeout(PATIENCE_S):
            while changed != moved:
                await self.woken.wait()
                self.woken.clear()
                changed ^= await self.call(self.on_link.look)
                if (again_s := self.on_link.again_s) is not None:
                    await asyncio.sleep(again_s)
                    self.woken.set()


@contextmanager
def watched(host: OneHost) -> Iterator[Watched]:
    made = Watched(host)
    try:
        yield made
    finally:
        made.on_link.close()


async def test_hosts_are_told_apart_by_the_kernels_routes(host: OneHost) -> None:
    host.ip(
        "route add 192.0.3.0/24 via 192.0.2.254",
        "route add 198.51.100.8 dev eth0",
        "route add blackhole 192.0.2.9",
        "route add unreachable 192.0.2.10",
        "route add 192.0.2.11 nexthop via 192.0.2.254 nexthop dev eth1",
        "route add 192.0.2.12 via inet6 fe80::1 dev eth0",
    )
    expected = {
        "192.0.2.2": True,
        "198.51.100.8": True,
        "192.0.3.3": False,
        "198.51.100.7": False,
        "203.0.113.2": False,
        "192.0.2.1": False,
        "192.0.255.255": False,
        "192.0.2.9": False,
        "192.0.2.10": False,
        "192.0.2.11": False,
        "192.0.2.12": False,
    }
    with watched(host) as seen:
        found = await seen.ask(*(int(IPv4Address(text)) for text in expected))
    assert dict(zip(expected, found, strict=True)) == expected


async def test_an_interface_without_neighbours_has_nobody_on_its_link(host: OneHost) -> None:
    with watched(host) as seen:
        assert await seen.ask(NEAR, OTHER) == [True, True]
        await seen.change({NEAR, OTHER}, "link set eth0 arp off")
        await seen.change({NEAR, OTHER}, "link set eth0 arp on")


@pytest.mark.parametrize(
    ("away", "back", "moves"),
    [
        (["route add 192.0.2.2 via 192.0.2.254"], ["route del 192.0.2.2"], {NEAR}),
        (["route add 192.0.2.0/25 via 192.0.2.254"], ["route del 192.0.2.0/25"], {NEAR, OTHER}),
        (["route add 192.0.2.2 dev eth1"], ["link set eth1 down"], {NEAR}),
        (["route add 192.0.2.2 dev eth1 src 203.0.113.1"], ["address del 203.0.113.1/24 dev eth1"], {NEAR}),
        (["link set eth0 down"], ["link set eth0 up"], {NEAR, OTHER}),
        (["address del 192.0.2.1/16 dev eth0"], ["address add 192.0.2.1/16 dev eth0"], {NEAR, OTHER}),
        (
            ["route add default via 203.0.113.254 table 77", "rule add to 192.0.2.2 lookup 77"],
            ["rule del to 192.0.2.2 lookup 77"],
            {NEAR},
        ),
        (["rule add to 192.0.2.3 prohibit"], ["rule del to 192.0.2.3 prohibit"], {OTHER}),
        (
            ["nexthop add id 7 via 192.0.2.254 dev eth0", "route add 192.0.2.2 nhid 7"],
            ["nexthop del id 7"],
            {NEAR},
        ),
    ],
    ids=["host", "part", "device down", "source gone", "link", "address", "rule", "rule refuses", "nexthop object"],
)
async def test_what_changes_the_answer_is_seen_both_ways(
    host: OneHost, away: list[str], back: list[str], moves: set[int]
) -> None:
    with watched(host) as seen:
        assert await seen.ask(NEAR, OTHER, FAR) == [True, True, False]
        await seen.change(moves, *away)
        assert [each in seen.on_link for each in (NEAR, OTHER, FAR)] == [NEAR not in moves, OTHER not in moves, False]
        await seen.change(moves, *back)
        assert [each in seen.on_link for each in (NEAR, OTHER, FAR)] == [True, True, False]


async def test_other_hosts_news_ask_for_nothing(host: OneHost) -> None:
    with watched(host) as seen:
        await seen.ask(NEAR, FAR)
        host.ip(
            "route add 10.1.16.0/24 via 192.0.2.2",
            "route add 192.0.7.0/24 via 192.0.2.254",
            "link add p1 type veth peer name p2",
            "link set p1 up",
            "address add 10.1.15.1/24 dev p1",
            "link del p1",
        )
        before = seen.n_looks
        await seen.change({NEAR}, "route add 192.0.2.2 via 192.0.2.254")
        # The address that went with p1 may have been the source of somebody's route: one look for that.
        assert seen.n_looks - before <= 2


async def test_who_left_is_not_asked_about_any_more(host: OneHost) -> None:
    with watched(host) as seen:
        await seen.ask(NEAR, OTHER)
        await seen.call(seen.on_link.keep_only, {OTHER})
        assert [each in seen.on_link for each in (NEAR, OTHER)] == [False, True]
        await seen.change({OTHER}, "link set eth0 down")


async def test_another_interface_means_another_link(host: OneHost) -> None:
    there = int(IPv4Address("203.0.113.2"))
    index = int(host.show("-o link show eth1")[0].partition(":")[0])
    with watched(host) as seen:
        assert await seen.ask(NEAR, there) == [True, False]
        seen.on_link.follow(index)
        assert await seen.call(seen.on_link.look) == {NEAR, there}


async def test_ten_thousand_are_asked_at_once_and_only_those_that_news_concern_again(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counting(netlink: Any, questions: Any) -> Any:
        asked.append(len(questions))
        return ask(netlink, questions)

    from flannel_udp.host.lookup.question import ask

    monkeypatch.setattr("flannel_udp.host.on_link.ask", counting)
    first = int(IPv4Address("192.0.16.0"))
    half = [first + i for i in range(5_000)]
    others = [int(IPv4Address("198.18.0.1")) + i for i in range(5_000)]
    with watched(host) as seen:
        began_s = time.process_time()
        assert sum(await seen.ask(*half, *others)) == 5_000
        print(f"asked about 10,000 in {time.process_time() - began_s:.3f} s of processor time")  # noqa: T201 - a figure
        assert asked == [10_000]
        parts = [set(range(first + i * 256, first + (i + 1) * 256)) for i in range(2)]
        await seen.change(parts[0], "route add 192.0.16.0/24 via 192.0.2.254")
        for _ in range(5):
            await seen.change(parts[1], "route add 192.0.17.0/24 via 192.0.2.254")
            await seen.change(parts[1], "route del 192.0.17.0/24")
        assert asked[1:] == [256] * 11
        assert seen.n_looks == 11


async def test_lost_news_mean_that_all_are_asked_again(host: OneHost) -> None:
    seen_news = call_inside(host.name, open_news)
    seen_news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    woken = asyncio.Event()
    on_link = OnLink(seen_news, ETH0, woken.set)
    try:
        await asyncio.to_thread(host.call, on_link.ask, [NEAR])
        # On the loop's own thread, so that nothing is read meanwhile.
        host.ip(*(f"route add 10.9.{i}.0/24 via 192.0.2.9" for i in range(100)), "route add 192.0.2.2 via 192.0.2.254")
        await asyncio.wait_for(woken.wait(), PATIENCE_S)
        assert await asyncio.to_thread(host.call, on_link.look) == {NEAR}
    finally:
        on_link.close()
