"""Which IPv6 hosts are on the link, asked of a real kernel, and asked again at its news."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest

from flannel_udp.host.on_link import OnLink, open_news
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ETH0 = 42
NEAR, OTHER, FAR = (int(IPv6Address(text)) for text in ("2001:db8::2", "2001:db8::3", "2001:db8:9::7"))


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_links(ETH0)
        made.ip(
            "address add 2001:db8::1/64 dev eth0 nodad",
            "address add 2001:db8:1::1/64 dev eth1 nodad",
            "route add default via 2001:db8::fe",
        )
        yield made


@contextmanager
def watched(host: OneHost, woken: asyncio.Event) -> Iterator[OnLink]:
    made = OnLink(host.call(open_news, 6), ETH0, woken.set, 6)
    try:
        yield made
    finally:
        made.close()


async def test_hosts_are_told_apart_by_the_kernels_routes(host: OneHost) -> None:
    host.ip(
        "route add 2001:db8:3::/64 via 2001:db8::fe",
        "route add 2001:db8:9::8 dev eth0",
        "route add blackhole 2001:db8::9",
        "route add unreachable 2001:db8::10",
    )
    expected = {
        "2001:db8::2": True,
        "2001:db8:9::8": True,
        "2001:db8:3::3": False,
        "2001:db8:9::7": False,
        "2001:db8:1::2": False,
        "2001:db8::1": False,
        "2001:db8::9": False,
        "2001:db8::10": False,
    }
    with watched(host, asyncio.Event()) as on_link:
        hosts = [int(IPv6Address(text)) for text in expected]
        await asyncio.to_thread(host.call, on_link.ask, hosts)
        assert {text: at in on_link for text, at in zip(expected, hosts, strict=True)} == expected


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        (["route add 2001:db8::2 via 2001:db8::fe"], {NEAR}),
        (["route add 2001:db8:9::/64 dev eth0"], {FAR}),
        (["address del 2001:db8::1/64 dev eth0"], {NEAR, OTHER}),
        (["link set eth0 down"], {NEAR, OTHER}),
    ],
)
async def test_news_of_the_kernel_ask_again_about_whom_they_concern(
    host: OneHost, lines: list[str], moved: set[int]
) -> None:
    woken = asyncio.Event()
    with watched(host, woken) as on_link:
        await asyncio.to_thread(host.call, on_link.ask, (NEAR, OTHER, FAR))
        await asyncio.to_thread(host.ip, *lines)
        changed: set[int] = set()
        async with asyncio.timeout(PATIENCE_S):
            while changed != moved:
                await woken.wait()
                woken.clear()
                changed ^= await asyncio.to_thread(host.call, on_link.look)
                if (again_s := on_link.again_s) is not None:
                    await asyncio.sleep(again_s)
                    woken.set()
