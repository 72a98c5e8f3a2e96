"""Routes that end with the lease: what concerns their life does not wait for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from types import SimpleNamespace
from typing import cast

import pytest

from flannel_udp.backend.leased_routes import LeasedRoutes
from flannel_udp.backend.protocol import Context
from flannel_udp.backend.routes import Hop
from flannel_udp.dataplane.claims import NO_CLAIMS
from flannel_udp.model import Address, Prefix
from tests.support.agents import wait_for
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

OWN = IPv4Network("10.1.15.0/24")


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        yield made


def life_of(host: OneHost) -> int:
    """Return for how many seconds the address on `lo` is there; 0: it is not."""
    for line in host.show("-4 -o address show dev lo label lo:flannel"):
        return int(line.partition("valid_lft ")[2].split()[0].removesuffix("sec"))
    return 0


def test_the_address_lives_on_while_thousands_of_routes_are_being_set(host: OneHost) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def hops(_: Collection[Prefix] | None, __: Address | None) -> dict[Prefix, Hop | None]:
        loading.set()
        assert loaded.wait(PATIENCE_S)
        return {}

    async def live() -> None:
        context = cast(Context, SimpleNamespace(claims=NO_CLAIMS, on_fault=lambda: None))
        routes, now_s = LeasedRoutes(context, hops), time.clock_gettime(time.CLOCK_BOOTTIME)
        routes.forward_until(now_s + 30)
        await routes.hold(OWN, load=False)
        load = asyncio.create_task(routes.load(OWN))
        await asyncio.to_thread(loading.wait, PATIENCE_S)
        routes.forward_until(now_s + 3_000)
        await asyncio.to_thread(wait_for, "it lives on", lambda: life_of(host) > 2_000)
        assert not load.done()
        routes.forward_until(now_s)
        await asyncio.to_thread(wait_for, "it is gone", lambda: life_of(host) == 0)
        assert not load.done()
        loaded.set()
        await load
        await routes.withdraw()

    host.call(lambda: asyncio.run(live()))


def test_another_life_is_all_that_is_written_of_ipv6_routes(host: OneHost) -> None:
    host.add_link("eth0", 42)
    host.ip("address add 2001:db8::1/64 dev eth0 nodad")
    own, theirs, asked = IPv6Network("fd00:1:15::/64"), IPv6Network("fd00:1:16::/64"), []

    def hops(subnets: Collection[Prefix] | None, _: Address | None) -> dict[Prefix, Hop | None]:
        asked.append(subnets)
        return {theirs: Hop(IPv6Address("2001:db8::2"), 42)}

    def life() -> str:
        (line,) = host.show("-6 route show proto 82")
        return line.partition("expires ")[2].split("sec")[0]

    async def live() -> None:
        context = cast(Context, SimpleNamespace(claims=NO_CLAIMS, on_fault=lambda: None))
        routes, now_s = LeasedRoutes(context, hops, version=6), time.clock_gettime(time.CLOCK_BOOTTIME)
        routes.forward_until(now_s + 30)
        await routes.hold(own, load=True)
        assert 0 < int(life()) <= 30
        routes.forward_until(now_s + 3_000)
        await asyncio.to_thread(wait_for, "it lives on", lambda: int(life()) > 2_000)
        assert await routes.repair() == 0
        await routes.stay()
        assert life() == ""
        assert asked == [None]
        await routes.withdraw()
        assert host.show("-6 route show proto 82") == []

    host.call(lambda: asyncio.run(live()))
