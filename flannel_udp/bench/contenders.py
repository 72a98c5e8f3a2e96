"""The contenders: each a lab of two hosts, joined by one cable, with its own way from one to the other.

    fu-NAME-h1-p1 ─── cni0  fu-NAME-h1  eth0 ─── one veth pair ─── eth0  fu-NAME-h2  cni0 ─── fu-NAME-h2-p1

Traffic goes from pod to pod, as users have it: each behind a bridge and a veth pair of its host, attached alike by
every contender (`bare` routes from host to host). Or there are no pods, and it goes from h1's overlay address to h2's
(for `bare`, from underlay address to underlay address). The labs stay up side by side: a contender that is not being
measured has nothing to do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple, Protocol

from flannel_udp.bench.generators import Counted, datagram_receiver, iperf3_server
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.results import place_name
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.lab import ethtool
from flannel_udp.lab.kernel_vxlan import KernelVxlan
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host, Node, interface_address
from flannel_udp.lab.peer_program import Peer
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping
from flannel_udp.model import Address, Prefix
from flannel_udp.netconf.config import DEFAULT_TYPE

PODS, HOSTS = "pods", "hosts"
BETWEEN = (PODS, HOSTS)
"""Between what traffic goes."""

_CUT = dict.fromkeys(ethtool.TSO + ethtool.GSO + ethtool.USO, False)
CARDS: Mapping[str, Mapping[str, bool]] = {
    "whole": {},
    "wire": _CUT | dict.fromkeys(ethtool.GRO, True),
    "plain": _CUT | dict.fromkeys(ethtool.GRO, False),
    "slow-1g": _CUT | dict.fromkeys(ethtool.GRO, True),
    "slow-100m": _CUT | dict.fromkeys(ethtool.GRO, True),
}
"""What the hosts' network cards do. `whole`: veth passes super-packets uncut. `wire`: cut on the way out, coalesced on
the way in, as a plain card does. `plain`: cut, never coalesced. `slow-…`: as `wire`, behind a line of that rate."""
_LINES = {"slow-1g": "1gbit", "slow-100m": "100mbit"}

SUBNETS: Mapping[int, tuple[Prefix, Prefix]] = {
    4: (IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")),
    6: (IPv6Network("fd00:10:244:1::/64"), IPv6Network("fd00:10:244:2::/64")),
}
"""By IP version, of the contenders without an agent."""
_PATH_TRIES = 20
_PATH_TIMEOUT_S = 0.5

USERSPACE = "--datapath=userspace"
"""Our own packet path, also where the kernel could."""


class Where(NamedTuple):
    """Where something is measured: on which underlay, between pods or hosts, by which IP version."""

    underlay: str
    between: str
    version: int = 4

    @property
    def title(self) -> str:
        """How it is called."""
        return place_name(self.underlay, self.between, self.version)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pods or hosts, and the addresses on which they reach each other through the contender.

    `mtu` is the overlay's in bytes; `daemons` are the processes that carry the packets, none where the kernel does.
    """

    name: str
    sender: Node
    receiver: Node
    source: Address
    target: Address
    mtu: int
    daemons: tuple[int, ...] = ()

    @property
    def turned(self) -> Pair:
        """The same the other way round."""
        return replace(self, sender=self.receiver, receiver=self.sender, source=self.target, target=self.source)

    def iperf3_server(self) -> AbstractContextManager[object]:
        """Run an iperf3 server for one test at the target, inside the block."""
        return iperf3_server(self.receiver, self.target)

    def datagram_receiver(self, window_ms: int) -> AbstractContextManager[Callable[[], Counted]]:
        """Receive datagrams at the target, inside the block; see `Way`."""
        return datagram_receiver(self.receiver, self.target, window_ms)


Hosts = tuple[Host, Host]


@contextmanager
def two_hosts(name: str, where: Where, backend: str = DEFAULT_TYPE) -> Iterator[Hosts]:
    """Two lab hosts of one family without agents, and instead of the lab's bridge one cable between them."""
    underlay, between, version = where
    config = {"Network": str(OVERLAY), "Backend": {"Type": backend}}
    pods = int(between == PODS)
    plan = Plan(f"bench{os.getpid()}-{name}", hosts=2, pods=pods, agents=(), config=config, families=str(version))
    with Lab(plan) as lab:
        first, second = lab.hosts
        lab.net.configure(*(f"link del {host.name}" for host in lab.hosts))
        mtu = plan.underlay_mtu
        first.configure(f"link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {second.namespace}")
        for host in lab.hosts:
            address = interface_address(host.underlay_of(version), plan.network(host.name, version))
            host.configure(f"addr add {address} dev eth0", "link set eth0 up")
            if CARDS[underlay]:
                ethtool.set_features(host.namespace, "eth0", CARDS[underlay])
            if underlay in _LINES:
                shape = ["tbf", "rate", _LINES[underlay], "burst", "256k", "latency", "50ms"]
                host.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shape])
        yield first, second


def ends(name: str, hosts: Hosts, subnets: Sequence[Prefix], mtu: int, daemons: tuple[int, ...] = ()) -> Pair:
    """Return the way between two hosts that have these subnets: from pod to pod, where they have pods."""
    near, far = hosts
    source, target = (subnet.network_address for subnet in subnets)
    if near.pods:
        source, target = (host.pods[0].address(source.version) for host in hosts)
        return Pair(name, near.pods[0], far.pods[0], source, target, mtu, daemons)
    return Pair(name, near, far, source, target, mtu, daemons)


@contextmanager
def _bare(where: Where, *, name: str = "bare") -> Iterator[Pair]:
    """No tunnel."""
    with two_hosts(name, where) as hosts:
        near, far = hosts
        mtu, version = near.plan.underlay_mtu, where.version
        if where.between == HOSTS:
            yield Pair(name, near, far, near.underlay_of(version), far.underlay_of(version), mtu)
            return
        subnets = SUBNETS[version]
        for host, peer, own, other in ((near, far, *subnets), (far, near, *subnets[::-1])):
            host.configure(f"route add {other} via {peer.underlay_of(version)}")
            host.attach_pods(own, mtu)
        yield ends(name, hosts, subnets, mtu)


@contextmanager
def _vxlan(where: Where, *, name: str = "vxlan") -> Iterator[Pair]:
    """The kernel's VXLAN as flannel sets it up, on both hosts."""
    subnets = SUBNETS[where.version]
    with two_hosts(name, where) as hosts:
        near, far = (KernelVxlan(host, subnet) for host, subnet in zip(hosts, subnets, strict=True))
        near.add(far.as_peer)
        far.add(near.as_peer)
        yield ends(name, hosts, subnets, near.mtu_bytes)


@contextmanager
def _naive(where: Where, *, name: str = "naive") -> Iterator[Pair]:
    """A loop in C of one read and one sendto a packet: flannel_udp/lab/naive_peer.c."""
    with two_hosts(name, where) as hosts, naive_pair(name, where, hosts, NaivePeer) as pair:
        yield pair


@contextmanager
def naive_pair(name: str, where: Where, hosts: Hosts, kind: Callable[..., Peer]) -> Iterator[Pair]:
    """Such a loop on each host; they attach their pods by themselves."""
    subnets = SUBNETS[where.version]
    addresses = [host.underlay_of(where.version) for host in hosts]
    with (
        kind(hosts[0], subnets[0], {subnets[1]: addresses[1]}) as near,
        kind(hosts[1], subnets[1], {subnets[0]: addresses[0]}) as far,
    ):
        yield ends(name, hosts, subnets, near.mtu, (near.process.pid, far.process.pid))


@contextmanager
def open_ours(
    where: Where,
    *,
    name: str = OURS,
    backend: str = DEFAULT_TYPE,
    arguments: tuple[str, ...] = (),
) -> Iterator[Pair]:
    """Our agents with a file registry, and with default settings but for the arguments."""
    with two_hosts(name, where, backend) as hosts:
        mtu, daemons = start_agents(hosts, arguments)
        for host in hosts:
            if host.pods:
                host.attach_pods()
        yield ends(name, hosts, [leased(host, where.version) for host in hosts], mtu, daemons)


def leased(host: Host, version: int) -> Prefix:
    """Return the subnet that a host's agent has. Raises `FlannelError`."""
    subnet = host.subnet_of(version)
    if subnet is None:
        raise FlannelError(f"{host.name}: the agent has no IPv{version} subnet")
    return subnet


def start_agents(hosts: Sequence[Host], arguments: tuple[str, ...]) -> tuple[int, tuple[int, ...]]:
    """Start our agents and return the overlay's MTU in bytes and their process ids."""
    for host in hosts:
        host.start_agent(*arguments)
    for host in hosts:
        host.wait_ready(AGENT_TIMEOUT_S)
    mtu = subnet_env.require(hosts[0].subnet_file).mtu
    return mtu, tuple(pid for host in hosts if (pid := host.agent_pid()) is not None)


Opener = Callable[[Where], AbstractContextManager[Pair]]
"""What opens a contender."""


class NamedOpener(Protocol):
    """One whose contender may have another name."""

    def __call__(self, where: Where, *, name: str = ...) -> AbstractContextManager[Pair]:
        """Open it."""
        ...


CONTENDERS: Mapping[str, NamedOpener] = {"bare": _bare, "vxlan": _vxlan, "naive": _naive, OURS: open_ours}
"""The contenders of every run, by name."""


def agents(arguments: tuple[str, ...] = ()) -> dict[str, Opener]:
    """Return our agents by each backend that is compared, by name; `arguments` are for our own packet path.

    VXLAN goes by it also where the kernel could.
    """
    vxlan, host_gw = f"{OURS}-vxlan", "host-gw"
    return {
        OURS: functools.partial(open_ours, arguments=arguments),
        vxlan: functools.partial(open_ours, name=vxlan, backend="vxlan", arguments=(USERSPACE, *arguments)),
        host_gw: functools.partial(open_ours, name=host_gw, backend=host_gw),
    }


@contextmanager
def open_contender(name: str, opener: Opener, where: Where) -> Iterator[Pair]:
    """Open the contender once packets pass. Raises `FlannelError` where they do not."""
    with opener(where) as pair:
        if not any(ping(pair.sender, [pair.target], _PATH_TIMEOUT_S)[0] is not None for _ in range(_PATH_TRIES)):
            raise FlannelError(f"{name}: no ping from {pair.sender.path} to {pair.target} is answered")
        yield pair
