"""A watch says nothing: nothing happens, the connection is dead, or the server's versions went back."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from flannel_udp.registry.kube import client as kube_client
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer, Fault
from tests.registry.support import said, watching
from tests.registry.test_kube_faults import (
    PEER,
    UNAVAILABLE,
    _no_long_pauses,
    add_peer,
    api,
    registry,
    wait_for_requests,
    warnings,
)

__all__ = ["_no_long_pauses", "api", "registry"]


SILENT_S = 0.2


@pytest.fixture(autouse=True)
def _soon_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that stands is silent after a moment; until it stands, all the time of life is for that."""
    send = httpx2.AsyncClient.send

    async def send_and_hurry(client: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = await send(client, request, **options)
        if "watch" in request.url.params:
            timeouts = request.extensions["timeout"]
            assert kube_client.IDLE_S[0] <= timeouts["read"] <= kube_client.IDLE_S[1]
            timeouts["read"] = SILENT_S  # of each part of the body from now on
        return response

    monkeypatch.setattr(httpx2.AsyncClient, "send", send_and_hurry)


def whole_lists(api: ApiServer) -> int:
    return sum(seen.verb == "list" and "limit" not in seen.parameters for seen in api.requests)


async def test_the_watch_goes_on_where_it_was_without_a_word_and_without_a_list(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A small cluster is silent for minutes: the server sends no bookmark of the version that it was asked for.

    And where a server died without a word all of its hosts come to the others: to each, 5,000 nodes are 100 MB.
    """
    async with watching(registry) as seen:
        await seen.snapshot()
        await wait_for_requests(api, "watch", 3)
        key = add_peer(api, 3)
        assert (await seen.change()).entries.keys() == {key}
    assert warnings(caplog) == []
    assert whole_lists(api) == 1


async def test_a_store_that_was_restored_from_a_backup_is_listed_and_named(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The versions that we ask for are yet to come there: nothing is refused, and nothing is told."""
    backup = api.do(lambda store: store.back_up())
    for _ in range(100):
        api.do(lambda store: store.heartbeat("h1"))
    lost = add_peer(api, 3)
    async with watching(registry) as seen:
        assert lost in (await seen.snapshot()).entries
        await wait_for_requests(api, "watch", 1)
        api.stop()
        await said(caplog, "watching the subnets")
        api.do(lambda store: store.restore(backup))
        api.do(lambda store: store.add_node("h4", "10.1.4.0/24", **PEER))
        api.start()
        assert (await seen.snapshot()).entries.keys() == {"10.1.2.0-24", "10.1.4.0-24"}
        key = add_peer(api, 5)
        assert (await seen.change()).entries.keys() == {key}
    (back,) = (line for line in warnings(caplog) if "restored from a backup?" in line)
    assert f"Kubernetes at {api.url}: resourceVersion went back from 1103 to 1003: " in back


async def test_a_silence_in_which_the_server_is_away_is_an_outage_as_any(
    api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(registry) as seen:
        await seen.snapshot()
        await wait_for_requests(api, "watch", 1)
        api.order("list", Fault(refuse=UNAVAILABLE))
        await said(caplog, "watching the subnets: ")
        key = add_peer(api, 3)
        assert (await seen.change()).entries.keys() == {key}
    assert whole_lists(api) == 1
