"""Somebody says of our node that its network is unavailable, after we have said the contrary: no pod is put on it."""

from __future__ import annotations

import pytest

from flannel_udp.registry.kube.nodes import parse_node
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer
from tests.kube_api.store import Store
from tests.registry.support import Watching, watching
from tests.registry.test_kube import KEY, PEER, api, options, register, registry

__all__ = ["api", "options", "registry"]

NO_ROUTE = {"reason": "NoRouteCreated", "message": "RouteController failed\nto create a route"}
SAID = "NoRouteCreated: RouteController failed to create a route"


def say(api: ApiServer, name: str, status: str, **more: str) -> None:
    """Set the condition as a cloud's route controller does."""
    condition = {"type": "NetworkUnavailable", "status": status, **more}
    api.do(lambda store: store.change_node(name, {"status": {"conditions": [condition]}}))


async def kept_off(seen: Watching) -> str | None:
    entry = (await seen.change()).entries[KEY]
    assert entry is not None
    return entry.kept_off


async def test_who_takes_our_word_back_is_noticed_and_not_fought(api: ApiServer, registry: KubeRegistry) -> None:
    entry = await register(registry)
    say(api, "h1", "True", **NO_ROUTE)
    assert (await registry.list()).entries[KEY].kept_off is None  # as of every fresh node
    await registry.announce_up()
    before = api.count("patch")
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries[KEY].kept_off is None
        say(api, "h1", "True", **NO_ROUTE)
        assert await kept_off(seen) == SAID
        listed = (await registry.list()).entries[KEY]
        assert (listed, listed.kept_off) == (entry, SAID)  # for the lease's keeper nothing has changed
        api.do(lambda store: store.heartbeat("h1"))
        say(api, "h1", "False", reason="RouteCreated")
        assert await kept_off(seen) is None
    assert api.count("patch") == before


async def test_of_other_nodes_it_is_nobodys_business(api: ApiServer, registry: KubeRegistry) -> None:
    await register(registry)
    await registry.announce_up()
    api.add_node("h2", "10.1.16.0/24", **PEER)
    say(api, "h2", "True", **NO_ROUTE)
    assert [entry.kept_off for entry in (await registry.list()).entries.values()] == [None, None]


async def test_what_was_said_before_our_word_and_is_told_after_it_does_not_count(
    api: ApiServer, registry: KubeRegistry
) -> None:
    await register(registry)
    async with watching(registry) as seen:
        await seen.snapshot()
        former = api.do(lambda store: store.nodes["h1"])
        await registry.announce_up()
        assert registry._lease(parse_node(former)) == registry._lease(parse_node(api.do(lambda s: s.nodes["h1"])))
        assert await seen.is_quiet(0.2)


async def test_a_node_that_came_in_the_place_of_ours_is_told_and_not_blamed(
    api: ApiServer, registry: KubeRegistry
) -> None:
    entry = await register(registry)
    await registry.announce_up()

    def make_anew(store: Store) -> None:
        store.delete_node("h1")
        store.add_node("h1", "10.1.15.0/24", **{**PEER, "public_ip": "192.0.2.1"})

    api.do(make_anew)
    assert KEY not in (await registry.list()).entries
    await registry.renew(entry, entry.value, 1)
    assert (await registry.list()).entries[KEY].kept_off is None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, None),
        ({}, None),
        ({"conditions": None}, None),
        ({"conditions": {"type": "NetworkUnavailable"}}, None),
        ({"conditions": ["NetworkUnavailable", None, 7]}, None),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, None),
        ({"conditions": [{"type": "NetworkUnavailable", "status": "Unknown"}]}, None),
        ({"conditions": [{"type": "NetworkUnavailable", "status": "True"}]}, "no reason given"),
        ({"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": 7}]}, "no reason given"),
        ({"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "X" * 1000}]}, "X" * 200),
        ({"conditions": [{"type": "NetworkUnavailable", "status": "True", **NO_ROUTE}]}, SAID),
    ],
)
def test_whatever_stands_in_its_place_costs_no_node(status: object, said: str | None) -> None:
    assert parse_node({"metadata": {"name": "h1"}, "status": status}).unavailable == said


async def test_who_asks_for_its_subnet_while_it_carries_traffic_goes_on_hearing_of_it(
    api: ApiServer, registry: KubeRegistry
) -> None:
    """Who lacks one family's asks again and again."""
    await register(registry)
    await registry.announce_up()
    await registry.assigned()
    say(api, "h1", "True", **NO_ROUTE)
    assert (await registry.list()).entries[KEY].kept_off == SAID
