"""The seam between the agent and what carries packets: `Backend`, one a type, and `Network`, one that runs.

The lease, the watch and the peer table stay outside: a backend is told which subnet is ours, until when, and what
became of the peers. docs/write-a-backend.md walks through the smallest one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

from flannel_udp.host.upkeep import KeptNetwork
from flannel_udp.model import Delta, Interface, LeaseAttrs, Peer, PeerTraffic, RouteAnswer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader
from flannel_udp.options import Options


@dataclass(frozen=True, slots=True)
class Handed:
    """What another process had open for this network: descriptors by name, which are the opener's from now on.

    ``state`` is what that process's `Transferable.state` said; ``None`` where nobody uses them any more, as with what
    systemd kept from the last run.
    """

    descriptors: Mapping[str, int]
    state: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a network is opened with. ``on_fault()`` may be called in any thread: look at the network soon."""

    options: Options
    config: NetworkConfig
    external: Interface
    on_fault: Callable[[], object]
    handed: Handed | None = None


class Backend(Protocol):
    """One way for packets to travel, without state."""

    @property
    def type(self) -> str:
        """Its name in the network configuration."""
        ...

    @property
    def families(self) -> Set[int]:
        """The IP versions that it carries: 4, 6."""
        ...

    @property
    def option_keys(self) -> tuple[str, ...]:
        """Its own keys of the object Backend."""
        ...

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """Return its own keys, defaults filled in, ready to be written as JSON; faults go to `reader`."""
        ...

    def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` (`ConfigError` where the configuration is at fault) for what this host cannot run.

        Asked before any lease is taken.
        """
        ...

    def read_hop(self, attrs: LeaseAttrs) -> Any:
        """Return what it needs to know of a peer beside the public IP, a frozen value, ``None`` for nothing.

        Raises `ValueError` with one line for a lease that it cannot send to: that one is no peer.
        """
        ...

    async def open(self, context: Context) -> Network:
        """Open what carries packets; nothing is carried before `Network.hold`. Raises `FlannelError`."""
        ...

    async def remove_remains(self, overlay: IPv4Network) -> list[str]:
        """Remove what a run with this backend has left on the host, where another one runs now; say what it was.

        Nothing of anybody else's is touched. Raises `FlannelError`.
        """
        ...


class Network(KeptNetwork, Protocol):
    """What carries packets for one configuration; `host.upkeep` keeps it right, see `KeptNetwork`."""

    attrs: LeaseAttrs
    """What our lease is to say of us."""

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Let packets travel to the peers: the last ones after `deltas`; with `whole` there were none before."""
        ...

    def start(self) -> None:
        """Let packets pass, if they do not already."""
        ...

    async def withdraw(self) -> None:
        """Carry nothing any more: our subnet may be another host's."""
        ...

    def forward_until(self, boottime_s: float | None) -> None:
        """Carry nothing from that time of CLOCK_BOOTTIME on, whatever becomes of this process; ``None``: no such time.

        Called often, on the event loop, and soon done.
        """
        ...

    def peers(self) -> list[Peer]:
        """Return the peers that packets travel to now, by subnet; may take long, so ask in a thread."""
        ...

    def traffic(self, peer: Peer) -> PeerTraffic | None:
        """Return a peer's traffic since it appeared, ``None`` where nobody counts it."""
        ...

    def route(self, address: IPv4Address) -> RouteAnswer:
        """Tell where a packet for `address` would go."""
        ...

    def facts(self) -> NetworkFacts:
        """Return what `status` says of it."""
        ...

    async def come_round(self) -> None:
        """Return once every thread that carries packets has given a sign of life."""
        ...

    @property
    def transferable(self) -> Transferable | None:
        """How it is handed to another process; ``None`` where the kernel carries packets and nothing has to be."""
        ...

    async def close(self, *, keep: bool) -> None:
        """End; with `keep` another process goes on with it, and nothing is taken down."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What `status` says of a network; what it does not have is ``None``."""

    device: str | None = None
    port: int | None = None
    offload: Sequence[str] | None = None
    worker_packets: Sequence[tuple[int, int]] | None = None
    """Inner packets out and in, one entry a data thread."""
    socket_buffers: tuple[int, int] | None = None
    """Bytes for receiving and for sending that the kernel granted each socket."""
    counters: Mapping[str, Any] | None = None
    problems: Sequence[str] = ()
    """A sentence for each fault that is no single peer's."""
    faults: Mapping[IPv4Network, str] = field(default_factory=dict)
    """Why packets for these peers' subnets do not travel."""


class Transferable(Protocol):
    """A packet path in user space, which another process can go on with: see the room handover."""

    @property
    def workers(self) -> int:
        """How many data threads there are."""
        ...

    def descriptors(self) -> Mapping[str, int]:
        """Return what the other process would go on with, by name; the descriptors stay ours."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Return what it has to know of them beside the configuration, as JSON: `Handed.state`."""
        ...

    @property
    def generation(self) -> tuple[int, bool]:
        """Differs whenever the descriptors are not those of before: how often they were replaced, and whether lost."""
        ...

    def lend(self) -> None:
        """Keep the descriptors as they are until `take_back`: another process is about to read from them."""
        ...

    def take_back(self) -> None:
        """Go on with what was lent."""
        ...

    def start_worker(self, number: int) -> None:
        """Start one data thread, unless it runs."""
        ...

    def stop_worker(self, number: int) -> None:
        """Stop one data thread if it runs, and return once all that it had read is sent."""
        ...

    def stop(self) -> None:
        """Stop all of them."""
        ...


def accept_types(attrs: LeaseAttrs, ours: str, accepted: Collection[str]) -> None:
    """Raise `ValueError` unless a peer's backend, "" where its value names none, is among those `accepted`."""
    theirs = attrs.backend_type
    if theirs.lower() not in accepted:
        raise ValueError(f"its backend is {theirs[:20]!r}, ours is {ours}")
