"""The documents of the control socket: what ``status``, ``peers`` and ``route get`` print with ``--json``.

Addresses and subnets are text as flannel writes them (``10.1.15.0/24``); counts start at 0 with the process.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Verdict = Literal["peer", "own subnet", "no route", "outside network"]


class NetDevice(TypedDict):
    """The external interface or the tunnel device; ``mtu`` in bytes."""

    name: str
    address: str
    mtu: int


class BackendFacts(TypedDict):
    """How packets travel; ``port`` is the UDP port every host listens on, where there is one."""

    type: str
    port: NotRequired[int]


class LeaseFacts(TypedDict):
    """Our lease: ``expires_in_s`` is ``None`` for a reservation, which never expires."""

    key: str
    expires_in_s: float | None
    reserved: bool


class DirectionCounters(TypedDict):
    """Inner packets and bytes carried in one direction, and the packets dropped, by reason."""

    packets: int
    bytes: int
    drops: dict[str, int]


# "in" is a keyword, so this one cannot be written as a class.
Counters = TypedDict(
    "Counters",
    {"out": DirectionCounters, "in": DirectionCounters, "icmp": dict[str, int], "system_calls": dict[str, int]},
)
"""Both directions; ICMP answers to dropped packets, by what became of them; system calls of the packet path."""


class SocketBuffers(TypedDict):
    """What the kernel granted each worker's UDP socket."""

    receive_bytes: int
    send_bytes: int


class WorkerPackets(TypedDict):
    """Inner packets that one data thread carried."""

    packets_out: int
    packets_in: int


class Status(TypedDict):
    """The agent at one moment; what it does not know yet is ``None``.

    ``state`` is a phrase ("waiting for configuration", "waiting for a lease", "running", or what is in the way of
    traffic); ``ready`` is what /readyz says; ``problems`` has a sentence for each fault that stops some of the traffic;
    ``revision`` is the registry's that the peers are at; ``offload`` names
    the offloads in use; ``workers`` counts the data threads, ``worker_packets`` has one entry for each;
    ``host_repairs`` says how often what of the host was put right; ``capabilities`` are the ones that were kept.
    """

    version: str
    pid: int
    uptime_s: float
    state: str
    ready: bool
    problems: list[str]
    registry: str
    network: str | None
    subnet: str | None
    public_ip: str | None
    interface: NetDevice | None
    tunnel: NetDevice | None
    backend: BackendFacts | None
    lease: LeaseFacts | None
    peers: int
    revision: int | None
    offload: list[str] | None
    workers: int | None
    worker_packets: list[WorkerPackets] | None
    socket_buffers: SocketBuffers | None
    host_repairs: dict[str, int] | None
    capabilities: list[str]
    counters: Counters | None


class PeerRow(TypedDict):
    """One peer: its subnet, where it is dialled, and the inner packets and bytes exchanged with it.

    These are ``None`` where nobody counts them by peer, as with backends whose packets the kernel carries. ``problem``
    says why nothing travels to it, ``None`` if nothing is in the way as far as is known.
    """

    subnet: str
    public_ip: str
    packets_out: int | None
    bytes_out: int | None
    packets_in: int | None
    bytes_in: int | None
    problem: str | None


class Route(TypedDict):
    """Where a packet for ``address`` goes; ``reason`` is one sentence saying why, or why nowhere.

    ``subnet`` is the lease that covers it; ``public_ip`` and ``interface`` are there for the verdict "peer", ``port``
    (the peer's) and ``tunnel`` (a device's name) as well where the backend has them.
    """

    address: str
    verdict: Verdict
    reason: str
    subnet: NotRequired[str]
    public_ip: NotRequired[str]
    port: NotRequired[int]
    interface: NotRequired[str]
    tunnel: NotRequired[str]
