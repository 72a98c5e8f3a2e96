"""`bench run --to`: the same measures between two machines, by the underlay (`bare`) and by the overlay (`ours`)."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from flannel_udp.bench.choosing import lacking_between_hosts
from flannel_udp.bench.lines import FORMAT, IPERF3_PORT, Conversation
from flannel_udp.bench.machine import describe
from flannel_udp.bench.measure import NETWORK_MEASURES
from flannel_udp.bench.measuring import Run, Taken
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.results import place_record
from flannel_udp.errors import Faults, FlannelError, UsageError
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

_ANSWER_S = 15.0
"""For what the other host does at once, on a machine that is busy."""
_CONNECT_S = 5.0
_MTU_OPTION = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
"""IP_MTU and IPV6_MTU of <linux/in.h> and <linux/in6.h>, which Python does not name."""


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

    def check(self) -> None:
        """Raise `FlannelError` where no connection to the address is made."""
        _ask(self.link, {"want": "reach", "at": self.at})
        try:
            socket.create_connection((str(self.target), IPERF3_PORT), _CONNECT_S).close()
        except OSError as error:
            advice = {
                "overlay": "are both hosts' agents up, and each other's peers? `flannel-udp doctor` tells",
                "underlay": "does a firewall drop it?",
            }
            reason = error.strerror or error
            raise FlannelError(
                f"{self.target} (the {self.at}'s), port {IPERF3_PORT}: {reason}: {advice[self.at]}"
            ) from None
        _ask(self.link, {"want": "stop"})


def _ask(link: Conversation, wish: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a wish. Raises `FlannelError` where the other host does not do it."""
    link.say(wish)
    answer = link.hear(_ANSWER_S)
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
        run.on_ways(self.ways, dict.fromkeys(self.measures, names), NETWORK_MEASURES)

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
    others = [name for name in measures if name not in NETWORK_MEASURES]
    if others:
        raise UsageError(f"--measures {others[0]}: between two hosts there are {', '.join(NETWORK_MEASURES)}")
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
        except (KeyError, ValueError, TypeError):
            raise FlannelError(f"{host} does not speak as bench serve does") from None
        if not machine.isprintable():
            raise FlannelError(f"{host} does not speak as bench serve does")
        underlay = ip_address(sock.getpeername()[0])
        underlay_mtu = sock.getsockopt(*_MTU_OPTION[underlay.version])
        here = Runner()
        ways = (
            _WayThere("bare", "underlay", underlay, underlay_mtu, link, here),
            _WayThere(OURS, "overlay", overlay, mtu, link, here),
        )
        for way in ways:
            way.check()
        yield BetweenHosts(host, measures, ways, machine[:100])
