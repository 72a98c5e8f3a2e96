"""Watches what comes of the packets that go to the peers: are they heard, what does the underlay say, what fits.

Every second, and when an ICMP error comes:

1. what every peer sent and got since the last time, by the packet path's counters     → control.peer_health, peer_paths
2. who is in doubt is asked by ICMP echoes, and so is what large packets do             → prober
3. who is ill, and whose path is narrow without a word, is told                         → conditions

Nothing of it is in the way of packets. What there is to know is kept for peers that packets go to or come from only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from typing import Any

from flannel_udp.agent.prober import ALL_S, Prober
from flannel_udp.backend.protocol import Network, NetworkFacts
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.control.path_search import BASE_BYTES, FLOOR_BYTES
from flannel_udp.control.peer_health import NO_ECHO, PODS_LOST, Health, PeersHealth, why_ill
from flannel_udp.control.peer_paths import PeerPaths
from flannel_udp.control.peer_rates import PeerRates
from flannel_udp.dataplane.probes import PROBE_IDENTIFIER
from flannel_udp.errors import FlannelError
from flannel_udp.host.echo import EchoAnswer, Echoes
from flannel_udp.host.icmp_errors import IcmpError, IcmpErrors
from flannel_udp.model import Address, Degradation, Interface, Peer, PeerActivity, PeerRate

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LOOK_SOON_S = 0.2
"""After an ICMP error."""
ASKED_MAX = 64
"""Peers that are asked at the same time, whether they live; who has no turn is asked next time."""
PATHS_MAX = 8
"""Paths that are searched at the same time: each costs some ten packets a second."""
NAMED_MAX = 10
"""So many peers are named; `flannel-udp peers` has them all."""
_UNHEARD = {"host unreachable": "ARP", "address unreachable": "neighbour discovery"}
"""What nobody has answered where our own kernel says so, by its text."""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What is known of a peer: seconds ago, texts; ``None`` for nothing."""

    health: Health = "idle"
    heard_ago_s: float | None = None
    error: str | None = None
    error_ago_s: float | None = None
    problem: str | None = None
    """Why packets to it do not arrive."""
    path_mtu: int | None = None
    """Bytes that an inner packet may have on the way there, where that is less than the MTU and nobody said so."""


class PeerWatch:
    """Watches the peers of `network` while `serves()`; `note` is told all that is wrong, see `Conditions.note`.

    `ignored` tells which hosts' entries are ignored, and why: see `PeerTable.ignored`.
    """

    def __init__(
        self,
        network: Network,
        external: Callable[[], Interface],
        serves: Callable[[], bool],
        note: Callable[[str, Sequence[Degradation]], None],
        ignored: Callable[[], Mapping[Address, str]],
    ) -> None:
        self._network = network
        self._ignored = ignored
        self._external = external
        self._serves = serves
        self._note = note
        self._health = PeersHealth(monotonic)
        self._paths = PeerPaths(monotonic)
        self._rates = PeerRates(monotonic)
        self._path_news = network.path_news
        self._narrow = dict(network.path_limits)  # the kernel's networks keep none
        self._peers: dict[int, Peer] = {}  # by public IP in host order: of those that something is known of
        self._prober: Prober | None = None
        self._errors_came = asyncio.Event()
        self._deaf = {version: SaidOnce() for version in (4, 6)}
        self._counting = asyncio.Lock()
        self._asking: set[asyncio.Task[None]] = set()
        self._searching: set[asyncio.Task[None]] = set()
        self.n_errors = 0
        """ICMP errors about outer packets to peers so far."""

    async def run(self) -> None:
        """Watch until cancelled. Raises `FlannelError` without the right to open raw sockets."""
        facts = self._network.facts()
        echoes = Echoes(PROBE_IDENTIFIER)
        self._prober = Prober(self._network, echoes, self._health.note_echo)
        errors: dict[int, IcmpErrors] = {}
        try:
            while True:
                self._listen(errors, facts)
                if self._serves():
                    await self._look()
                else:
                    for source in ("peers", "path", "ignored"):
                        self._note(source, ())
                await self._wait()
        finally:
            await _cancel(self._asking | self._searching)
            self._prober = None
            echoes.close()
            for listener in errors.values():
                listener.close()

    def _listen(self, errors: dict[int, IcmpErrors], facts: NetworkFacts) -> None:
        """Listen to what is said of outer packets, of each family that there is by now, at its address."""
        for version in (4, 6):
            ends = self._external().of(version)
            asked = facts.port is not None or (version == 4 and facts.ip_protocol is not None)
            if ends is None or not asked:
                continue
            if version in errors:
                errors[version].follow(ends.address)
                continue
            try:
                errors[version] = IcmpErrors(ends.address, self._source_ports, facts.port, self._take_error)
            except FlannelError as failed:
                if self._deaf[version].failed(str(failed)):
                    logger.warning(
                        "ICMP errors about IPv%d packets to peers are not heard (trying again): %s", version, failed
                    )

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):  # wait_for loses a cancellation before Python 3.12
                await self._errors_came.wait()
            await asyncio.sleep(LOOK_SOON_S)  # errors come in flocks
        self._errors_came.clear()

    def _source_ports(self) -> Collection[int]:
        return self._network.source_ports

    def _take_error(self, error: IcmpError) -> None:
        """Take note of an error; whether there is such a peer is seen with the next look."""
        ours = any(ends is not None and error.said_by == ends.address for ends in map(self._external().of, (4, 6)))
        unheard = _UNHEARD.get(error.text) if ours else None
        by = error.said_by if unheard is None else f"this host (nobody answers {unheard} for it)"
        self._health.note_error(int(error.peer), f"{error.text}, says {by}")
        self.n_errors += 1
        self._errors_came.set()

    async def _look(self) -> None:
        await self.count()
        known = self._health.known | set(map(int, self._narrow))
        ignored = {int(host): text for host, text in self._ignored().items()}
        asked = known | ignored.keys()
        found = dict(await asyncio.to_thread(self._network.find, asked)) if asked else {}
        self._peers = {address: peer for address, peer in found.items() if address in known}
        gone = known - self._peers.keys()
        self._health.forget(gone)
        self._paths.forget(gone)
        for address in gone & set(map(int, self._narrow)):
            self._limit(ip_address(address), None)
        self._ask()
        self._search()
        self._note("peers", list(self._ill_ones()))
        self._note("path", list(self._narrow_ones()))
        # Of a host that is a peer all the same, an earlier run has left that entry behind.
        self._note("ignored", list(_ignored_ones({at: text for at, text in ignored.items() if at not in found})))

    async def count(self) -> None:
        """Take note of what every peer sent and got until now."""
        async with self._counting:
            self._health.begin_counting()
            try:
                async for part in self._network.activity():
                    self._note_activity(part)
            except FlannelError as failed:  # the kernel has no memory for a moment, say: the next time tells more
                logger.debug("counting what peers sent: %s", failed)
            self._rates.end_counting()
            if self._network.path_news != self._path_news:
                self._path_news = self._network.path_news
                self._paths.note_news()

    def _note_activity(self, part: Iterable[PeerActivity]) -> None:
        narrow = set(map(int, self._narrow))
        for activity in part:
            self._health.note_activity(activity)
            self._rates.note_activity(activity)
            self._paths.note_activity(activity, limited=activity.public_ip in narrow)

    # Asking

    def _ask(self) -> None:
        """Ask who is in doubt."""
        for address in self._health.questions():
            if len(self._asking) >= ASKED_MAX:
                return
            if address in self._peers:
                self._health.begin_asking(address)
                _start(self._asking, self._ask_one(self._peers[address]))

    async def _ask_one(self, peer: Peer) -> None:
        answer: EchoAnswer | None = None
        try:
            if self._prober is not None:
                answer = (await self._prober.ask(peer)).answer
        finally:
            self._note_answer(peer, answer)

    def _note_answer(self, peer: Peer, answer: EchoAnswer | None) -> None:
        route = self._network.echo_route(peer)
        told = answer is not None and route is not None and route.pods is not None
        self._health.note_answer(
            int(peer.public_ip),
            answered=None if answer is None else _answered(answer),
            pods_lost=answer.link_only if answer is not None and told else None,
        )

    def _search(self) -> None:
        """Ask what large packets do on the paths that are due."""
        ill = {address for address, _ in self._health.ill()}
        for address in self._paths.due(ill):
            if len(self._searching) >= PATHS_MAX:
                return
            if address in self._peers:
                self._paths.begin_asking(address)
                _start(self._searching, self._search_one(self._peers[address]))

    async def _search_one(self, peer: Peer) -> None:
        largest, address, settled = self._network.mtu, peer.public_ip, False
        try:
            if self._prober is None or largest <= max(BASE_BYTES, FLOOR_BYTES[peer.version]):
                return
            found = await self._prober.find_path_mtu(peer, largest, self._narrow.get(address))
            if found is not None:
                settled = found >= largest
                self._limit(address, None if settled else found)
        finally:
            self._paths.note_answer(int(address), settled=settled)

    async def ask_all(self, peers: Sequence[Peer], within_s: float = ALL_S) -> AsyncIterator[EchoAnswer]:
        """Ask all these peers by echoes, many at once, and yield what came of it in their order."""
        if self._prober is None:
            for _ in peers:
                yield EchoAnswer(refused="the agent is starting or stopping")
            return
        number = 0
        async for answer in self._prober.ask_all(peers, within_s):
            self._note_answer(peers[number], answer)
            number += 1
            yield answer

    def _limit(self, address: Address, n_bytes: int | None) -> None:
        self._network.limit_path_mtu(address, n_bytes)
        if n_bytes is None:
            self._narrow.pop(address, None)
        else:
            self._narrow[address] = n_bytes

    # What is said

    def _ill_ones(self) -> Iterator[Degradation]:
        ill = [(self._peers[address], why) for address, why in self._health.ill() if address in self._peers]
        facts = self._network.facts() if ill else NetworkFacts()
        for peer, why in ill[:NAMED_MAX]:
            yield Degradation("peers", f"{_name(peer)}: {self._explain(peer, why, facts)}", peer.version)
        if more := len(ill) - NAMED_MAX:
            yield from _and_more("peers", more)

    def _explain(self, peer: Peer, why: str, facts: NetworkFacts) -> str:
        if why == PODS_LOST:
            return (
                f"{why}: the network between the hosts lets these not pass: switch off its source and destination "
                "check, or port security, for every host (WireGuard: put the pods' subnet into AllowedIPs), or choose "
                "a Backend.Type with a tunnel"
            )
        ask = "is the host up?"
        tunnelled = not self._network.is_direct(peer)
        if tunnelled and facts.port is not None:
            ask = f"does its agent run, and is UDP {facts.port} open on the way?"
        elif tunnelled and facts.ip_protocol is not None:
            ask = f"does its agent run, and is IP protocol {facts.ip_protocol} open on the way?"
        if why == NO_ECHO and (not tunnelled or facts.counters is None):
            # The kernel counts by device: pods may well have answers from there.
            return f"packets go there, and {why} (what else comes back is not known): {ask} or does it drop echoes?"
        return f"packets go there and nothing comes back ({why}): {ask}"

    def _narrow_ones(self) -> Iterator[Degradation]:
        limits = [(self._peers[int(at)], n) for at, n in self._narrow.items() if int(at) in self._peers]
        for peer, n_bytes in limits[:NAMED_MAX]:
            yield Degradation(
                "path",
                f"{_name(peer)}: the path carries packets of {n_bytes} bytes, not {self._network.mtu}, and loses "
                f"larger ones without a word; {self._advise(peer, n_bytes)}",
                peer.version,
            )
        if more := len(limits) - NAMED_MAX:
            yield from _and_more("path", more)

    def _advise(self, peer: Peer, n_bytes: int) -> str:
        if self._network.facts().port is None:  # it is the interface's MTU that counts
            header_bytes = self._external().mtu - self._network.mtu
            return f"mend the MTU on the way, or set the interface's to {n_bytes + header_bytes} on every host"
        option = self._network.mtu_option(peer, n_bytes)
        if option is None:
            return "mend the MTU on the way: no Backend.MTU leaves room there for IPv6, which needs 1280 in a tunnel"
        return f"set Backend.MTU to {option}, or mend the MTU on the way"

    def facts(self, peer: Peer, network: NetworkFacts) -> PeerFacts:
        """Return what is known of a peer; `network`: the network's own, which are dear to ask for."""
        state, now = self._health.state(int(peer.public_ip)), monotonic()
        path_mtu = self._narrow.get(peer.public_ip)
        if state is None:
            return PeerFacts(path_mtu=path_mtu)
        return PeerFacts(
            health=self._health.health(int(peer.public_ip)),
            heard_ago_s=None if state.heard_s is None else round(now - state.heard_s, 1),
            error=state.error,
            error_ago_s=None if state.error_s is None else round(now - state.error_s, 1),
            problem=None if (why := why_ill(state)) is None else self._explain(peer, why, network),
            path_mtu=path_mtu,
        )

    def known_peers(self) -> list[Peer]:
        """Return the peers that packets went to or came from, as of the last look."""
        return list(self._peers.values())

    def rate(self, peer: Peer) -> PeerRate | None:
        """Return what goes to a peer and comes from it in a second, ``None`` where that is not known (yet)."""
        return self._rates.rate(int(peer.public_ip))

    async def busiest(self, n: int, by: str) -> list[Peer]:
        """Return up to so many peers, those first with the highest rates, see `PeerRates.busiest`."""

        def ask() -> list[Peer]:
            addresses = self._rates.busiest(n, by)
            found = self._network.find(set(addresses))
            return [found[address] for address in addresses if address in found]

        return await asyncio.to_thread(ask)

    @property
    def n_narrow(self) -> int:
        """How many paths carry less than the MTU, and nobody said so."""
        return len(self._narrow)

    def health_counts(self, n_peers: int) -> dict[str, int]:
        """Return how many of so many peers are of each health."""
        counts = self._health.count()
        counts["idle"] += max(0, n_peers - counts.total())
        return {health: counts[health] for health in ("heard", "idle", "silent", "ill")}


def _answered(answer: EchoAnswer) -> bool | None:
    """Tell whether a peer has answered; ``None`` where the echo did not leave this host."""
    return answer.answered if answer.refused is None and answer.mtu is None else None


def _name(peer: Peer) -> str:
    return f"peer {peer.public_ip} ({peer.subnet})"


def _ignored_ones(ignored: Mapping[int, str]) -> Iterator[Degradation]:
    """Yield what is said of hosts that are no peers, as their entries are ignored: their addresses, and why."""
    for address, text in sorted(ignored.items())[:NAMED_MAX]:
        yield Degradation(
            "peers",
            f"no packets travel to the pods of {ip_address(address)}: {text}; "
            "if the network configuration was changed, start the agents again that have the former one",
        )
    if (more := len(ignored) - NAMED_MAX) > 0:
        yield Degradation("peers", f"and {more} more hosts whose entries are ignored: see the log")


def _and_more(kind: str, n: int) -> Iterator[Degradation]:
    """Yield a line about `n` more, if there are: said in round numbers, so that the log has no line for each."""
    if n > 0:
        step = 10 ** (len(str(n)) - 1)
        about = f"{n // step * step} more{' or so' if n >= 10 else ''}"
        yield Degradation(kind, f"and {about}: see flannel-udp peers")


def _start(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
