"""Asks the peers' kernels, by ICMP echoes on the way that pods' packets take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import NamedTuple

from flannel_udp.backend.protocol import EchoRoute, Network
from flannel_udp.control.path_search import FLOOR_BYTES, SMALL_BYTES, search_path_mtu
from flannel_udp.host.echo import NO_KEY, EchoAnswer, Echoes
from flannel_udp.model import Address, Peer

TRIES = 3
TIMEOUT_S = 1.0
"""For each try."""
LARGE_TRIES = 3
LARGE_TIMEOUT_MIN_S = 0.2
"""For each try of another size, once a small echo was answered: four round trips, or so much."""
AT_ONCE = 256
"""Peers that are asked at the same time where all are."""
ALL_S = 60.0
"""For asking all of them, unless less is wanted; who has not had their turn by then has none."""


class Asked(NamedTuple):
    """What came of asking a peer, and which of its addresses answered."""

    answer: EchoAnswer
    target: Address | None = None


class _Told(Exception):
    """The path said what it carries; 0: not how much."""

    def __init__(self, mtu: int) -> None:
        self.mtu = mtu


class Prober:
    """Asks by `echoes` on the ways that `network` says.

    `sent(public_ip)`, a number in host order, is called for each echo that left.
    """

    def __init__(self, network: Network, echoes: Echoes, sent: Callable[[int], object]) -> None:
        self._network = network
        self._echoes = echoes
        self._sent = sent

    async def ask(self, peer: Peer, tries: int = TRIES) -> Asked:
        """Ask a peer's first address, and then its others as well, until one answers."""
        route = self._network.echo_route(peer)
        if route is None:
            return Asked(EchoAnswer(refused="nothing carries packets there now"))
        asked = Asked(EchoAnswer())
        for number in range(tries):
            targets = route.targets[:1] if number == 0 and tries > 1 else route.targets
            asked = await self._ask_first(peer, EchoRoute(targets, route.source))
            if asked.answer.answered:
                break
        if asked.answer.answered and route.pods is not None and not await self._hears_pods(peer, route.pods, tries):
            return Asked(replace(asked.answer, link_only=True), asked.target)
        return asked

    async def _hears_pods(self, peer: Peer, route: EchoRoute, tries: int) -> bool:
        """Tell whether a peer says anything of echoes that have addresses of pods at both ends.

        They end at the peer, hops of 1: it says so (RFC 1812 section 5.3.1) before it asks its filters whether to
        forward them, and whether there is such a pod.
        """

        async def heard(source: Address | None, target: Address) -> bool | None:
            sent = partial(self._sent, int(peer.public_ip))
            answer = await self._echoes.ask(target, source, SMALL_BYTES, TIMEOUT_S, sent, hops=1)
            if answer.refused == NO_KEY:
                return False  # nor does any other packet for such an address leave by that link
            if answer.refused is not None:
                return None  # this host has no such address, as it has no pods yet, or no route now
            by = answer.said_by
            return answer.answered or (by is not None and (by == peer.public_ip or by in peer.subnet))

        for _ in range(tries):
            for source in dict.fromkeys((route.source, None)):
                found = await asyncio.gather(*(heard(source, target) for target in route.targets))
                if any(found):
                    return True
                if False in found:
                    break  # it has left: what another address would tell is no pods' way
            else:
                return True
        return False

    async def _ask_first(self, peer: Peer, route: EchoRoute) -> Asked:
        """Ask all addresses of a way at once; return the first answer, or else what came of one of them."""

        async def ask(target: Address) -> Asked:
            answer = await self._echo(peer, route.source, target, SMALL_BYTES, TIMEOUT_S)
            return Asked(answer, target)

        tasks = [asyncio.create_task(ask(target)) for target in route.targets]
        asked = Asked(EchoAnswer())
        try:
            for next_one in asyncio.as_completed(tasks):
                asked = await next_one
                if asked.answer.answered:
                    break
        finally:
            for task in tasks:
                task.cancel()
        return asked

    async def _echo(
        self, peer: Peer, source: Address | None, target: Address, n_bytes: int, timeout_s: float
    ) -> EchoAnswer:
        return await self._echoes.ask(target, source, n_bytes, timeout_s, lambda: self._sent(int(peer.public_ip)))

    async def ask_all(self, peers: Sequence[Peer], within_s: float = ALL_S) -> AsyncIterator[EchoAnswer]:
        """Ask all these peers, many at once, and yield what came of it in their order."""
        answers: list[EchoAnswer | None] = [None] * len(peers)
        some_more = asyncio.Event()
        numbers = iter(range(len(peers)))
        deadline_s = monotonic() + within_s

        async def work() -> None:
            for number in numbers:
                late = monotonic() > deadline_s
                answers[number] = (
                    EchoAnswer(refused=f"not asked within {within_s:g} s")
                    if late
                    else (await self.ask(peers[number])).answer
                )
                some_more.set()

        workers = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(peers)))]
        try:
            for number in range(len(peers)):
                while (answer := answers[number]) is None:
                    some_more.clear()
                    await some_more.wait()
                yield answer
        finally:
            for worker in workers:
                worker.cancel()

    async def find_path_mtu(self, peer: Peer, largest: int, known: int | None) -> int | None:
        """Return how many bytes an inner packet to a peer may have: `largest`, or fewer that nobody told of.

        ``None``: it cannot be told. `known` is what was found before.
        """
        asked = await self.ask(peer)
        route = self._network.echo_route(peer)
        round_trip_s, target = asked.answer.round_trip_s, asked.target
        if round_trip_s is None or target is None or route is None:
            return None
        floor = FLOOR_BYTES[peer.version]
        source, timeout_s = route.source, min(max(LARGE_TIMEOUT_MIN_S, 4 * round_trip_s), TIMEOUT_S)

        async def carries(n_bytes: int) -> bool:
            for _ in range(LARGE_TRIES):
                answer = await self._echo(peer, source, target, n_bytes, timeout_s)
                if answer.answered:
                    return True
                if answer.mtu is not None and n_bytes > floor:
                    raise _Told(answer.mtu)
            return False

        wanted = largest
        while True:
            try:
                if known is not None and await self._is_still(known, wanted, carries):
                    return known
                found = await search_path_mtu(carries, wanted, floor)
            except _Told as told:
                if not floor <= told.mtu < wanted:
                    return None
                wanted = told.mtu
            else:
                return largest if found == wanted else found

    @staticmethod
    async def _is_still(known: int, wanted: int, carries: Callable[[int], Awaitable[bool]]) -> bool:
        """Tell whether a path carries what it did when it was searched, and no more."""
        return not await carries(wanted) and await carries(known) and not await carries(known + 1)
