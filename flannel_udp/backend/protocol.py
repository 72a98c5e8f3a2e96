"""The seam between the agent and what carries packets: `Backend`, one a type, and `Network`, one that runs.

The lease, the watch and the peer table stay outside: a backend is told which subnet is ours, until when, and what
became of the peers. docs/write-a-backend.md walks through the smallest one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from flannel_udp.backend.cloud.facts import CloudFacts
from flannel_udp.dataplane.capture import Engine
from flannel_udp.dataplane.claims import NO_CLAIMS, Claims
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.trial import TriedDatagram, TriedPacket
from flannel_udp.errors import FlannelError
from flannel_udp.host.device_drops import DeviceTraffic
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.upkeep import KeptNetwork
from flannel_udp.model import (
    Address,
    Delta,
    DroppedPacket,
    Interface,
    LeaseAttrs,
    Peer,
    PeerActivity,
    PeerTraffic,
    Prefix,
    RouteAnswer,
    Subnet,
)
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

    def close(self) -> None:
        """Close the descriptors: nobody goes on with them."""
        for fd in self.descriptors.values():
            os.close(fd)


HopType = type[Any] | None
"""See `Backend.hop_type`; there `type` is the backend's own."""


async def _no_former() -> None:
    """There was no earlier run."""


async def _no_registry() -> list[Subnet]:
    """Nobody has said whom to ask; no subnet would mean that all hosts are gone."""
    raise FlannelError("there is no registry to ask which subnets are leased")


@dataclass(frozen=True, slots=True)
class Context:
    """What a network is opened with. ``on_fault()`` may be called in any thread: look at the network soon."""

    options: Options
    config: NetworkConfig
    external: Interface
    on_fault: Callable[[], object]
    handed: Handed | None = None
    claims: Claims = NO_CLAIMS
    """What no other agent of this host may have, too: the network claims its port, its device."""
    read_former: Callable[[], Awaitable[LeaseAttrs | None]] = _no_former
    """Asks the registry, for as long as that takes, what our entry says since an earlier run; ``None``: there is none,
    or none that can be understood."""
    list_subnets: Callable[[], Awaitable[list[Subnet]]] = _no_registry
    """Asks the registry which subnets have an entry now, whatever that says. Raises `FlannelError`."""


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

    @property
    def hop_type(self) -> HopType:
        """What `read_hop` returns: a type that JSON can hold, a frozen dataclass of such, or ``None`` for nothing."""
        ...

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """Return its own keys, defaults filled in, ready to be written as JSON; faults go to `reader`."""
        ...

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` (`ConfigError` where the configuration is at fault) for what this host cannot run.

        Asked before any lease is taken, and again until it is right.
        """
        ...

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> Prefix | None:
        """Return the destination of the route that it may set and that has this address, ``None`` for none.

        `datapath` is the option, see `backend.datapath`. May ask the kernel, so ask in a thread.
        Whatever a wider route leads elsewhere now is taken by it.
        """
        ...

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> Any:
        """Return what it needs to know of a peer of that IP version beside the public IP, a `hop_type`.

        `own` is what our own lease says, if there is one to say it. Raises `ValueError` with one line for a lease that
        it cannot send to: that one is no peer.
        """
        ...

    async def open(self, context: Context) -> Network:
        """Open what carries packets; nothing is carried before `Network.hold`. Raises `FlannelError`."""
        ...

    async def remove_remains(self, versions: Collection[int]) -> list[str]:
        """Remove what a run with this backend has left on the host of these IP versions, and say what it was.

        Another backend runs now, or this one without these versions.

        Nothing of anybody else's is touched. Raises `FlannelError`.
        """
        ...


class Network(KeptNetwork, Protocol):
    """What carries packets for one configuration; `host.upkeep` keeps it right, see `KeptNetwork`."""

    @property
    def attrs(self) -> LeaseAttrs:
        """What our lease is to say of us."""
        ...

    @property
    def keeps_routes(self) -> bool:
        """Whether it has kernel routes of our protocol number (`backend.routes`): else those of earlier runs go."""
        ...

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Let packets travel to the peers: the last ones after `deltas`; with `whole` there were none before.

        Neither has anything of a family that the backend does not carry.
        """
        ...

    def start(self) -> None:
        """Let packets pass, if they do not already."""
        ...

    async def stands(self) -> None:
        """Return once there is all that packets need beside this host: before that the agent is not ready."""
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

    def is_direct(self, peer: Peer) -> bool | None:
        """Tell whether packets to the peer take a route, and no tunnel; ``None`` where all go the same way."""
        ...

    def traffic(self, peer: Peer) -> PeerTraffic | None:
        """Return a peer's traffic since it appeared, ``None`` where nobody counts it."""
        ...

    def activity(self) -> AsyncIterator[Sequence[PeerActivity]]:
        """Yield what has happened with peers since it was asked last, in parts that hold nobody up."""
        ...

    def find(self, public_ips: Set[int]) -> Mapping[int, Peer]:
        """Return the peers at those of these public IPs, numbers in host order, that have any; ask in a thread."""
        ...

    def echo_route(self, peer: Peer) -> EchoRoute | None:
        """Return how to ask the peer's kernel whether packets travel there and back; ``None`` where they never do."""
        ...

    @property
    def source_ports(self) -> Collection[int]:
        """The UDP ports that datagrams to peers leave from."""
        ...

    @property
    def path_news(self) -> int:
        """Grows whenever the underlay's paths may have changed."""
        ...

    @property
    def path_limits(self) -> Mapping[Address, int]:
        """What `limit_path_mtu` said, here or in the process that we took over from."""
        ...

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """Let inner packets to a peer have so many bytes at most, from 576 on; ``None``: as many as ever.

        Does nothing where the kernel carries packets.
        """
        ...

    def mtu_option(self, peer: Peer, n_bytes: int) -> int | None:
        """Return the Backend.MTU that fits a path which carries inner packets of `n_bytes` to the peer, and no larger.

        ``None``: the backend has no such option, or none that it takes does, see `MtuOption.fitting`.
        """
        ...

    def route(self, address: Address) -> RouteAnswer:
        """Tell where a packet for `address` would go."""
        ...

    def try_packet(self, packet: bytes) -> TriedPacket | None:
        """Return what our packet path would make of a packet from its TUN; nothing is sent.

        ``None`` where the kernel carries packets, or nobody. Ask on the event loop.
        """
        ...

    def try_datagram(self, payload: bytes, sender: Address, tos: int) -> TriedDatagram | None:
        """Likewise of what its socket reads from that underlay address, with that outer TOS."""
        ...

    def kernel_way(self, peer: Peer) -> KernelWay:
        """Return how the kernel carries packets to a peer, where it does; may block, so ask in a thread."""
        ...

    def ways(self, version: int = 4) -> Ways | None:
        """Return what the kernel has to do with overlay packets of that IP version.

        ``None`` where that is nobody's business here, or none of that version are carried.

        May take long, so ask in a thread.
        """
        ...

    def facts(self) -> NetworkFacts:
        """Return what `status` says of it."""
        ...

    async def come_round(self) -> None:
        """Return once every thread that carries packets has given a sign of life."""
        ...

    def engines(self) -> Sequence[Engine]:
        """Return what of ours sees the packets, for somebody who captures them; none where the kernel carries them."""
        ...

    @property
    def transferable(self) -> Transferable | None:
        """How it is handed to another process; ``None`` where the kernel carries packets and nothing has to be."""
        ...

    async def close(self, *, keep: bool) -> None:
        """End; with `keep` another process goes on with it, and nothing is taken down."""
        ...


@dataclass(frozen=True, slots=True)
class EchoRoute:
    """Where to send ICMP echoes that go the way of packets to a peer's pods: to the first address that answers.

    `source` is the address to send from, ``None``: the one that the kernel chooses.
    """

    targets: tuple[Address, ...]
    source: Address | None = None
    pods: EchoRoute | None = None
    """Where such packets have addresses that the network between the hosts may not let pass, as only theirs do: who of
    the peer's is asked by one of ours whether it hears that, and be it that it says that the echo goes no further."""


@dataclass(frozen=True, slots=True)
class KernelWay:
    """How the kernel carries packets to a peer beside its route.

    `entries` are what else of its tables leads there, in the words of `ip` and `bridge`, and whether each is there.
    """

    encapsulation: Encapsulation | None = None
    """What it puts in front of them; ``None``: nothing."""
    port: int = 0
    """Where the encapsulation has one."""
    peer_mac: int = 0
    """Likewise."""
    entries: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What `status` says of a network; what it does not have is ``None``."""

    device: str | None = None
    device_v6: str | None = None
    """That of IPv6, where it is another one than `device`."""
    port: int | None = None
    """The UDP port that every host receives outer packets on."""
    ip_protocol: int | None = None
    """What outer packets bear where they are no datagrams: 4 with IP in IP (RFC 2003)."""
    datapath: str | None = None
    """``kernel`` or ``userspace`` with a backend that has both."""
    datapath_why: str | None = None
    """Why it is that one, a clause, where there is more to say than that it is the usual one."""
    offload: Sequence[str] | None = None
    worker_packets: Sequence[tuple[int, int]] | None = None
    """Inner packets out and in, one entry a data thread."""
    socket_buffers: tuple[int, int] | None = None
    """Bytes for receiving and for sending that the kernel granted each socket."""
    counters: Mapping[str, Any] | None = None
    counters_by_version: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """The same by IP version, as far as packets of it are counted."""
    last_dropped: Mapping[str, Sequence[DroppedPacket]] | None = None
    """The packets that were dropped last, by reason, the newest last."""
    direct: int | None = None
    """To how many peers packets take a route, and no tunnel (DirectRouting)."""
    device_traffic: Mapping[str, DeviceTraffic] | None = None
    """What the kernel's tunnel devices have carried, by name, where it carries packets through such."""
    kernel_drops: Mapping[str, int] | None = None
    """What the kernel dropped since the start, by place, see `model.KERNEL_DROPS`."""
    cloud: CloudFacts | None = None
    """What is in the provider's route tables, where they carry packets."""
    problems: Sequence[str] = ()
    """A sentence for each fault that is no single peer's."""
    faults: Mapping[Prefix, str] = field(default_factory=dict)
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
