"""Of each family's outer packets what the underlay says is listened to, from the moment on when there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_udp.agent import peer_watch
from flannel_udp.agent.peer_watch import PeerWatch
from flannel_udp.backend.protocol import Network, NetworkFacts
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Degradation, Ends, Interface, Peer
from tests.support.patience import PATIENCE_S

V4, OTHER_V4, V6 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9"), IPv6Address("2001:db8::1")


def interface(*addresses: Address) -> Interface:
    ends = {address.version: Ends(address, address) for address in addresses}
    return Interface("eth0", 2, 1500, ends.get(4), ends.get(6))


class Closable:
    def __init__(self, *_: object) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Listeners:
    """Stands for `IcmpErrors`: all that were made."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.refused: str | None = None
        outer = self

        class Errors(Closable):
            def __init__(self, source: Address, *_: object) -> None:
                if outer.refused is not None:
                    raise FlannelError(outer.refused)
                super().__init__()
                self.source = source
                outer.made.append(self)

            def follow(self, source: Address) -> None:
                self.source = source

        self.kind = Errors

    @property
    def sources(self) -> list[Address]:
        return [each.source for each in self.made]


class Watched:
    """A watch that runs, of a network with these facts; `external` is the interface that it is told."""

    def __init__(self, external: Interface, facts: NetworkFacts) -> None:
        self.external = external
        self.n_asked = 0

        def asked() -> NetworkFacts:
            self.n_asked += 1
            return facts

        network = SimpleNamespace(path_news=0, path_limits={}, facts=asked)
        watch = PeerWatch(cast("Network", network), lambda: self.external, lambda: False, lambda *_: None, dict)
        self._task = asyncio.create_task(watch.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self._task.done()
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> Listeners:
    found = Listeners()
    monkeypatch.setattr(peer_watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(peer_watch, "Echoes", Closable)
    monkeypatch.setattr(peer_watch, "IcmpErrors", found.kind)
    return found


@pytest.mark.parametrize(("first", "late"), [(V4, V6), (V6, V4)], ids=["IPv6 is late", "IPv4 is late"])
async def test_a_family_that_comes_late_is_listened_to_once_and_closed_at_the_end(
    first: Address, late: Address, listeners: Listeners
) -> None:
    watched = Watched(interface(first), NetworkFacts(port=8285))
    await watched.until(lambda: listeners.sources == [first])
    watched.external = interface(first, late)
    await watched.until(lambda: listeners.sources == [first, late])
    watched.external = interface(OTHER_V4, V6)
    await watched.until(lambda: OTHER_V4 in listeners.sources)
    await watched.end()
    assert len(listeners.made) == 2
    assert all(each.closed for each in listeners.made)
    assert watched.n_asked == 1  # the facts are dear


async def test_without_a_descriptor_for_it_the_agent_goes_on_and_tries_again_with_one_line(
    listeners: Listeners, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(interface(V4), NetworkFacts(port=8285))
    await watched.until(lambda: listeners.sources == [V4])
    listeners.refused = "cannot open a raw socket for ICMP: Too many open files"
    watched.external = interface(V4, V6)
    await watched.until(lambda: caplog.messages != [])
    await asyncio.sleep(0.1)
    listeners.refused = None
    await watched.until(lambda: listeners.sources == [V4, V6])
    await watched.end()
    (line,) = caplog.messages
    assert line == (
        "ICMP errors about IPv6 packets to peers are not heard (trying again): "
        "cannot open a raw socket for ICMP: Too many open files"
    )


@pytest.mark.parametrize(("facts", "heard"), [(NetworkFacts(), []), (NetworkFacts(ip_protocol=4), [V4])])
async def test_where_nothing_of_it_is_encapsulated_there_is_nothing_to_hear(
    facts: NetworkFacts, heard: list[Address], listeners: Listeners
) -> None:
    watched = Watched(interface(V4, V6), facts)
    await watched.until(lambda: watched.n_asked == 1)
    await asyncio.sleep(0.1)
    await watched.end()
    assert listeners.sources == heard


@pytest.mark.parametrize(
    ("facts", "option", "advice"),
    [
        (NetworkFacts(port=8472), 1400, "set Backend.MTU to 1400, or mend the MTU on the way"),
        (
            NetworkFacts(port=8285),
            None,
            "mend the MTU on the way: no Backend.MTU leaves room there for IPv6, which needs 1280 in a tunnel",
        ),
        (NetworkFacts(), None, "mend the MTU on the way, or set the interface's to 1400 on every host"),
    ],
)
async def test_what_backend_mtu_has_to_be_for_a_narrow_path_its_backend_says(
    facts: NetworkFacts, option: int | None, advice: str, listeners: Listeners
) -> None:
    peer, told = Peer(IPv4Network("10.1.2.0/24"), OTHER_V4), list[str]()

    async def activity() -> AsyncIterator[Sequence[Any]]:
        return
        yield ()

    def mtu_option(of: Peer, n_bytes: int) -> int | None:
        assert (of, n_bytes) == (peer, 1350)
        return option

    def note(_source: str, found: Sequence[Degradation]) -> None:
        told.extend(each.text for each in found if each.kind == "path")

    network = SimpleNamespace(
        path_news=0,
        path_limits={OTHER_V4: 1350},
        mtu=1450,
        facts=lambda: facts,
        activity=activity,
        find=lambda _asked: {int(OTHER_V4): peer},
        mtu_option=mtu_option,
    )
    watch = PeerWatch(cast("Network", network), lambda: interface(V4), lambda: True, note, dict)
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(PATIENCE_S):
        while not told:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert told[0] == (
        f"peer {OTHER_V4} (10.1.2.0/24): the path carries packets of 1350 bytes, not 1450, and loses larger ones "
        f"without a word; {advice}"
    )
