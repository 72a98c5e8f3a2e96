"""The documents of the control socket: what ``status``, ``peers``, ``route`` and ``monitor`` print with ``--json``.

Addresses and subnets are text as flannel writes them (``10.1.15.0/24``); counts start at 0 with the process.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Verdict = Literal["peer", "own subnet", "no route", "outside network"]


class NetDevice(TypedDict):
    """The external interface or a tunnel device; ``mtu`` in bytes.

    ``address`` is ``None`` for an interface in use by IPv6 alone; ``ipv6_address`` is there for one that is in use by
    IPv6. A tunnel device has one of its family in ``address``.
    """

    name: str
    address: str | None
    mtu: int
    ipv6_address: NotRequired[str]


class CloudTable(TypedDict):
    """One of the provider's route tables: its routes, and how many it may have."""

    id: str
    routes: int
    limit: int | None


class CloudRoute(TypedDict):
    """One of its routes in the overlay, or one that is lacking (``verdict`` "missing").

    ``verdict`` is "own", "missing", "peer", "stale", "unknown" or "foreign", ``text`` says why. ``action`` is what this
    host does about it ("create", "replace", "remove"), in ``due_in_s`` seconds; ``None``: nothing.
    """

    table: str
    destination: str
    target: str | None
    verdict: str
    text: str
    action: str | None
    due_in_s: float | None


class CloudRoutes(TypedDict):
    """What the last look at the provider's route tables found, ``looked_ago_s`` ago (``None``: there was none yet).

    ``here`` is this host in the provider's names, ``cleaner`` the subnet whose host removes the routes of hosts that
    are gone, ``cleans`` whether that is this one.
    """

    provider: str
    here: str | None
    looked_ago_s: float | None
    error: str | None
    cleaner: str | None
    cleans: bool
    tables: list[CloudTable]
    routes: list[CloudRoute]


class BackendFacts(TypedDict):
    """How packets travel; ``port`` is the UDP port every host listens on, where there is one.

    ``direct`` counts the peers to which packets take a route and no tunnel, where there may be such (DirectRouting).
    ``datapath`` is "kernel" or "userspace" where a backend has both, ``why`` a clause about it where there is one.
    ``data`` is what our lease says of us beside the public IP (BackendData), where a backend has such.
    """

    type: str
    port: NotRequired[int]
    direct: NotRequired[int]
    datapath: NotRequired[str]
    why: NotRequired[str]
    data: NotRequired[dict[str, Any]]


class LeaseFacts(TypedDict):
    """Our lease: ``expires_in_s`` is ``None`` for a reservation, which never expires.

    ``mark`` is there where the lease bears one, 8 hexadecimal digits: the host's, by which it knows its leases again.
    """

    key: str
    expires_in_s: float | None
    reserved: bool
    mark: NotRequired[str]


class DirectionCounters(TypedDict):
    """Inner packets and bytes carried in one direction, and the packets dropped, by reason."""

    packets: int
    bytes: int
    drops: dict[str, int]


# "in" is a keyword, so this one cannot be written as a class.
Counters = TypedDict(
    "Counters",
    {
        "out": DirectionCounters,
        "in": DirectionCounters,
        "icmp": dict[str, int],
        "system_calls": dict[str, int],
        "offloaded_in": dict[str, int],
    },
)
"""Both directions; ICMP answers to dropped packets, by what became of them; system calls of the packet path; packets
that kernel peers left for a network card to finish: checksums that are only begun, TCP that is not cut."""


FamilyCounters = TypedDict(
    "FamilyCounters", {"out": DirectionCounters, "in": DirectionCounters, "icmp": dict[str, int]}
)
"""What of `Counters` is one family's. With both, what is no packet of either counts as IPv4's."""


class DeviceCounters(TypedDict):
    """What a tunnel device of the kernel's was given to send, and has received, since it was made."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int


class FamilyFacts(TypedDict):
    """What there is of one family; it is part of what `Status` says under the same names.

    ``degraded`` has the kinds of faults that stop traffic of this family only; ``counters`` is ``None`` where nobody
    counts its packets.
    """

    peers: int
    degraded: list[str]
    counters: FamilyCounters | None


class DroppedRow(TypedDict):
    """A packet that was dropped; what is not known of it is ``None``.

    ``time`` is in seconds since 1970, ``age_s`` counts from it. ``outer_address`` is who sent the datagram (``in``) or
    the peer that it was for (``out``); ``source``, ``destination`` and ``protocol`` (a number) are the inner header's.
    """

    time: float
    age_s: float
    direction: str
    outer_address: str | None
    source: str | None
    destination: str | None
    protocol: int | None
    bytes: int
    summary: str


class SocketBuffers(TypedDict):
    """What the kernel granted each worker's UDP socket."""

    receive_bytes: int
    send_bytes: int


class WorkerPackets(TypedDict):
    """Inner packets that one data thread carried."""

    packets_out: int
    packets_in: int


class LastErrorRow(TypedDict):
    """What went wrong last in a part of the agent, seconds ago; ``over``: it works by now."""

    text: str
    ago_s: float
    over: bool


class Status(TypedDict):
    """The agent at one moment; what it does not know yet is ``None``, and so is what concerns a family that is off.

    ``state`` is a phrase ("waiting for configuration", "waiting for a lease", "running", or what is in the way of
    traffic); ``ready`` is what /readyz says; ``problems`` has a sentence for each fault that stops some of the
    traffic, ``degraded`` the kinds of these (`flannel_udp.model.DEGRADATIONS`); ``revision`` is the registry's that the
    peers are at; ``offload`` names the offloads in use; ``workers`` counts the data threads, ``worker_packets`` has one
    entry for each; ``last_dropped`` has the last few dropped packets of each reason, the newest last, ``kernel_drops``
    what the kernel dropped by itself, by place (`flannel_udp.model.KERNEL_DROPS`); ``devices`` has the kernel's tunnel
    devices by name, where it carries packets through such (an older agent leaves it out); ``last_errors`` has what went
    wrong last with "interface", "configuration", "lease", "watch", "firewall" and "backend", those that something did
    with; ``host_repairs`` says how often what of the host was put right; ``families`` has each one that is on, "ipv4"
    or "ipv6", none before there is a network configuration; ``peer_health`` counts peers by `PeerRow`'s ``health``,
    ``narrow_paths`` those with a ``path_mtu``; ``icmp_errors`` counts what the underlay said of datagrams to peers;
    ``capabilities`` are the ones that were kept.
    """

    version: str
    pid: int
    uptime_s: float
    state: str
    ready: bool
    problems: list[str]
    degraded: list[str]
    last_errors: dict[str, LastErrorRow]
    registry: str
    network: str | None
    subnet: str | None
    public_ip: str | None
    ipv6_network: str | None
    ipv6_subnet: str | None
    public_ipv6: str | None
    interface: NetDevice | None
    tunnel: NetDevice | None
    ipv6_tunnel: NetDevice | None
    backend: BackendFacts | None
    lease: LeaseFacts | None
    peers: int
    revision: int | None
    offload: list[str] | None
    workers: int | None
    worker_packets: list[WorkerPackets] | None
    socket_buffers: SocketBuffers | None
    host_repairs: dict[str, int] | None
    peer_health: dict[str, int] | None
    narrow_paths: int
    icmp_errors: int
    capabilities: list[str]
    counters: Counters | None
    families: dict[str, FamilyFacts]
    last_dropped: dict[str, list[DroppedRow]] | None
    devices: NotRequired[dict[str, DeviceCounters] | None]
    kernel_drops: dict[str, int] | None


class Event(TypedDict):
    """Something that happened, at ``time`` in seconds since 1970: a line of ``monitor``.

    By ``event`` it is one of these, and has

    - "agent": who tells this, once at the start: ``version``, ``pid``, ``ready``, ``state``, ``subnet``
    - "state": ``ready`` and ``state`` as in `Status`; "problem": ``what`` ("came", "went") and ``text``
    - "error": ``part`` and ``text`` as in `Status`' ``last_errors``; "works": ``part``, which failed before
    - "lease": ``what`` ("acquired", "renewed", "lost", "reserved", "leased"), ``key``, ``expires_in_s``
    - "peer": ``what`` ("added", "changed", "removed"), ``subnet``, ``public_ip``; "peers": ``what`` and ``count`` of
      many at once
    - "repair": ``what`` of the host was put right, ``count`` times
    - "drops": ``count`` packets since it was told last, by ``direction`` ("out", "in", "kernel") and ``reason`` (of the
      kernel its place), ``text``: the last one of them
    - "lost": ``count`` events that there was no room for, as they were read too slowly
    """

    time: float
    event: str
    version: NotRequired[str]
    pid: NotRequired[int]
    ready: NotRequired[bool]
    state: NotRequired[str]
    what: NotRequired[str]
    part: NotRequired[str]
    text: NotRequired[str]
    key: NotRequired[str]
    expires_in_s: NotRequired[float | None]
    subnet: NotRequired[str | None]
    public_ip: NotRequired[str]
    count: NotRequired[int]
    direction: NotRequired[str]
    reason: NotRequired[str]


class Echo(TypedDict):
    """What came of an ICMP echo to a peer: the round trip in milliseconds, or one phrase why there is none."""

    answered: bool
    round_trip_ms: float | None
    reason: str | None


class PeerRow(TypedDict):
    """One peer: its subnet, where it is dialled, and the inner packets and bytes exchanged with it.

    A host with both families is two peers.

    Counts are ``None`` where nobody counts them by peer, as with backends whose packets the kernel carries. ``health``
    is "idle", "heard", "silent" or "ill"; ``heard_ago_s`` and ``error_ago_s`` are seconds since anything was heard from
    it, and since the last ICMP ``error`` about a datagram to it; ``path_mtu`` is what an inner packet may have where
    the path loses larger ones without a word. ``problem`` says why nothing travels to it, ``None`` if nothing is in the
    way as far as is known. ``datapath`` is "direct" or "tunnel" where both are possible (DirectRouting). ``echo`` is
    there if it was asked for.

    An agent of an older version leaves out what follows: ``host`` is the name that the registry has for it (Kubernetes:
    the node's); ``carrier`` who carries packets to it, "kernel", "userspace" (our packet path) or "direct" (the kernel,
    past the tunnel), ``None`` for nobody that we know of; what is called ``..._s`` passes in a second, the mean of the
    last one or so; ``refused_out`` counts packets to it that the kernel would not send.
    """

    subnet: str
    public_ip: str
    packets_out: int | None
    bytes_out: int | None
    packets_in: int | None
    bytes_in: int | None
    health: str
    heard_ago_s: float | None
    error: str | None
    error_ago_s: float | None
    path_mtu: int | None
    problem: str | None
    host: NotRequired[str | None]
    carrier: NotRequired[str | None]
    packets_out_s: NotRequired[float | None]
    bytes_out_s: NotRequired[float | None]
    packets_in_s: NotRequired[float | None]
    bytes_in_s: NotRequired[float | None]
    refused_out: NotRequired[int | None]
    datapath: NotRequired[str]
    echo: NotRequired[Echo]


class Way(TypedDict, total=False):
    """How packets travel to a peer.

    ``public_ip`` and ``interface`` are there for the verdict "peer", ``port`` (the peer's) and ``tunnel`` (a device's
    name) as well where packets take one; ``datapath`` as in `PeerRow`. ``problem`` says why packets do not arrive
    there, where that is known.
    """

    public_ip: str
    port: int
    interface: str
    tunnel: str
    datapath: str
    problem: str


class Route(Way):
    """Where a packet for ``address`` goes; ``reason`` is one sentence saying why, or why nowhere.

    ``subnet`` is the lease that covers it. ``kernel`` is the entry of its tables that the kernel uses for a packet of
    this host, ``kernel_for_pods`` for one of our pods if that is another one; ``diverted`` says what leads either
    elsewhere than it has to go.
    """

    address: str
    verdict: Verdict
    reason: str
    subnet: NotRequired[str]
    kernel: NotRequired[str]
    kernel_for_pods: NotRequired[str]
    diverted: NotRequired[str]


class RouteRow(Way):
    """Where packets for a subnet go; ``reason`` is there where that is nowhere, or not by a lease of our own."""

    subnet: str
    verdict: Verdict
    reason: NotRequired[str]
