"""`bench run --to`: the same measures between two machines, by the underlay (`bare`) and by the overlay (`ours`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from flannel_udp.bench.choosing import lacking_between_hosts
from flannel_udp.bench.datagrams import SMALL_BYTES, send_at
from flannel_udp.bench.generators import GRACE_S, Counted
from flannel_udp.bench.lines import FORMAT, IPERF3_PORT, Conversation
from flannel_udp.bench.machine import describe
from flannel_udp.bench.measure import network_measure_of
from flannel_udp.bench.measuring import Run, Taken
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.names import UDP_BOTH, needs_blast, payload_of
from flannel_udp.bench.results import place_record
from flannel_udp.errors import Faults, FlannelError, UsageError
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

_ANSWER_S = 15.0
"""For what the other host does at once, on a machine that is busy."""
_CONNECT_S = 5.0
_MTU_OPTION = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
"""IP_MTU and IPV6_MTU of <linux/in.h> and <linux/in6.h>, which Python does not name."""
_HEADERS_BYTES = {4: 28, 6: 48}
"""Of IP and UDP, by IP version."""
_FEW_PPS, _FEW_MS = 1000, 100
"""What is sent to see whether datagrams pass at all."""
_ADVICE = {
    "overlay": "are both hosts' agents up, and each other's peers? `flannel-udp doctor` tells",
    "underlay": "does a firewall drop it?",
}


@dataclass(frozen=True, slots=True)
class _WayThere:
    """To one of the other host's addresses; `at` is how the conversation calls it."""

    name: str
    at: str
    target: Address
    mtu: int
    link: Conversation
    sender: Runner
    daemons: None = None

    @contextmanager
    def iperf3_server(self) -> Iterator[None]:
        """Let the other host run an iperf3 server for one test, inside the block."""
        _ask(self.link, {"want": "iperf3", "at": self.at})
        yield
        _ask(self.link, {"want": "stop"})

    @contextmanager
    def datagram_receiver(self, window_ms: int) -> Iterator[Callable[[], Counted]]:
        """Let the other host count datagrams, inside the block; see `Way`."""

        def counted() -> Counted:
            told = _ask(self.link, {"want": "counted"}, window_ms / 1000 + GRACE_S)
            try:
                return Counted(int(told["packets"]), float(told["seconds"]))
            except (KeyError, ValueError, TypeError):
                raise _speaks_otherwise(self.link) from None

        _ask(self.link, {"want": "datagrams", "at": self.at, "window_ms": window_ms})
        yield counted
        _ask(self.link, {"want": "stop"})

    def check(self, measures: Sequence[str]) -> None:
        """Raise `FlannelError` where no connection to the address is made, or datagrams that are needed do not pass."""
        _ask(self.link, {"want": "reach", "at": self.at})
        try:
            socket.create_connection((str(self.target), IPERF3_PORT), _CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or error
            raise FlannelError(
                f"{self.target} (the {self.at}'s), port {IPERF3_PORT}: {reason}: {_ADVICE[self.at]}"
            ) from None
        _ask(self.link, {"want": "stop"})
        if any(map(needs_blast, measures)):
            self._check_datagrams(max(map(payload_of, measures)))

    def _check_datagrams(self, payload_bytes: int) -> None:
        room = self.mtu - _HEADERS_BYTES[self.target.version]
        if payload_bytes > room:
            raise UsageError(
                f"--measures udp{payload_bytes}: a packet of the {self.at} has room for {room} bytes (MTU {self.mtu})"
            )
        try:
            send_at(self, _FEW_PPS, _FEW_MS, SMALL_BYTES)
        except FlannelError as error:
            raise FlannelError(f"{self.target} (the {self.at}'s): {error}: {_ADVICE['underlay']}") from None


def _speaks_otherwise(link: Conversation) -> FlannelError:
    return FlannelError(f"{link.who} does not speak as bench serve does")


def _ask(link: Conversation, wish: dict[str, Any], timeout_s: float = _ANSWER_S) -> dict[str, Any]:
    """Return the answer to a wish. Raises `FlannelError` where the other host does not do it."""
    link.say(wish)
    answer = link.hear(timeout_s)
    if "error" in answer:
        raise FlannelError(f"{link.who}: {str(answer['error'])[:500]}")
    return answer


@dataclass(frozen=True, slots=True)
class BetweenHosts:
    """Both ways to the other host, which were tried."""

    host: str
    measures: tuple[str, ...]
    ways: Sequence[_WayThere]
    other_host: str

    @property
    def options(self) -> dict[str, Any]:
        """What of it the result says."""
        return {"to": self.host, "measures": list(self.measures)}

    def measure(self, run: Run) -> None:
        """Take all samples."""
        names = tuple(way.name for way in self.ways)
        measures = {name: network_measure_of(name) for name in self.measures}
        run.on_ways(self.ways, dict.fromkeys(self.measures, names), measures)

    def found(self, taken: Taken) -> dict[str, Any]:
        """Return what was found, as the result has it."""
        place = f"to {self.host}, by the underlay (bare) and by the overlay ({OURS})"
        return {"places": {place: place_record(taken.mtus, taken.samples)}}

    def machine(self) -> dict[str, Any]:
        """Return this machine, and what the other one says of itself."""
        return {**describe(), "other_host": self.other_host}


@contextmanager
def to_host(host: str, port: int, measures: tuple[str, ...]) -> Iterator[BetweenHosts]:
    """Open both ways to a host where `bench serve` is. Raises `FlannelError`, before anything is measured."""
    if UDP_BOTH in measures:
        raise UsageError(f"--measures {UDP_BOTH}: to another host datagrams are only sent, never back")
    if lacking := lacking_between_hosts(measures):
        raise Faults(lacking)
    try:
        sock = socket.create_connection((host, port), _CONNECT_S)
    except OSError as error:
        raise FlannelError(
            f"--to {host}, port {port}: {error.strerror or error}: does `flannel-udp bench serve` run there?"
        ) from None
    with sock:
        link = Conversation(sock, host)
        told = _ask(link, {"want": "hello", "format": FORMAT})
        try:
            overlay, mtu, machine = ip_address(told["overlay"]), int(told["mtu"]), str(told["machine"])
            lacks = ", ".join(map(str, told.get("lacks", [])))
        except (KeyError, ValueError, TypeError):
            raise _speaks_otherwise(link) from None
        if not (machine + lacks).isprintable():
            raise _speaks_otherwise(link)
        if lacks and (users := list(filter(needs_blast, measures))):
            raise FlannelError(f"{', '.join(users)}: {host} lacks {lacks[:200]}, or leave out what needs it")
        underlay = ip_address(sock.getpeername()[0])
        underlay_mtu = sock.getsockopt(*_MTU_OPTION[underlay.version])
        here = Runner()
        ways = (
            _WayThere("bare", "underlay", underlay, underlay_mtu, link, here),
            _WayThere(OURS, "overlay", overlay, mtu, link, here),
        )
        for way in ways:
            way.check(measures)
        yield BetweenHosts(host, measures, ways, machine[:100])
