"""A task that is cancelled in the very turn of the loop in which what it waits for has happened ends all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_udp.agent import peer_watch
from flannel_udp.agent.peer_watch import PeerWatch
from flannel_udp.backend.protocol import Network, NetworkFacts
from flannel_udp.host.icmp_errors import IcmpError
from flannel_udp.host.lookup.cut_off import resolve
from flannel_udp.model import Ends, Interface
from flannel_udp.view.looks import Looks
from tests.support.patience import PATIENCE_S

OWN, PEER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


async def ends(waiting: Coroutine[Any, Any, object], happen: Callable[[], object]) -> bool:
    """Let it wait, let that happen and cancel it at once; tell whether it was cancelled."""
    task = asyncio.create_task(waiting)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    happen()
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    cancelled = task.cancelled()
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE_S)
    return cancelled


async def test_while_a_name_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[object]] = loop.create_future()
    monkeypatch.setattr(loop, "getaddrinfo", lambda *_, **__: answer)
    assert await ends(resolve("etcd", "etcd.example"), lambda: answer.set_result([]))


class NoEchoes:
    def __init__(self, _identifier: int) -> None:
        pass

    def close(self) -> None:
        pass


async def test_while_peers_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Callable[[IcmpError], None]] = []

    class Errors(NoEchoes):
        def __init__(self, *arguments: Any) -> None:
            heard.append(arguments[-1])

        def follow(self, address: object) -> None:
            pass

    network = SimpleNamespace(path_news=0, path_limits={}, facts=lambda: NetworkFacts(port=8285))
    monkeypatch.setattr(peer_watch, "Echoes", NoEchoes)
    monkeypatch.setattr(peer_watch, "IcmpErrors", Errors)
    external = Interface("eth0", 2, 1500, Ends(OWN, OWN))
    watch = PeerWatch(cast("Network", network), lambda: external, lambda: False, lambda *_: None, dict)
    assert await ends(watch.run(), lambda: heard[0](IcmpError(PEER, PEER, "port unreachable")))


async def test_while_the_last_viewer_of_a_lab_leaves() -> None:
    async def look() -> int:
        return 1

    looks = Looks(look)
    viewer = looks.watch()
    assert await asyncio.wait_for(anext(viewer), PATIENCE_S) == ("look", 1)
    looks.hurry()
    leaving = asyncio.ensure_future(viewer.aclose())
    await asyncio.wait([leaving], timeout=PATIENCE_S)
    assert leaving.done()
