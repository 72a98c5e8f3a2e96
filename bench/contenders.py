"""The contenders: each a lab of two hosts, joined by one cable, with its own way from one to the other.

    fu-NAME-h1  eth0 ─── one veth pair ─── eth0  fu-NAME-h2

Traffic goes from h1's overlay address to h2's (for `bare`, from underlay address to underlay address), so every
contender crosses the same two namespaces and the same cable; pods would add a bridge and a veth pair to each alike.
The labs stay up side by side: a contender that is not being measured has nothing to do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.lab import ethtool
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host, Node
from flannel_udp.lab.plan import UNDERLAY, Plan
from flannel_udp.lab.probe import ping
from flannel_udp.options import Offload
from tests.support.agents import subnet_of
from tests.support.cni import CniPod, Runtime
from tests.support.naive import NaivePeer

OURS = "ours"

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

SUBNETS = (IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24"))
_PATH_TRIES = 20
_PATH_TIMEOUT_S = 0.5

_VXLAN = "flannel.1"
_VXLAN_VNI = 1
_VXLAN_PORT = 8472
_VXLAN_OVERHEAD_BYTES = 50  # outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14
_VTEP_MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts and the address on which the second is reached through the contender.

    `mtu` is the overlay's in bytes; `daemons` are the processes that carry the packets, none where the kernel does.
    """

    name: str
    sender: Node
    receiver: Node
    target: IPv4Address
    mtu: int
    daemons: tuple[int, ...] = ()


@contextmanager
def _two_hosts(name: str, underlay: str, pods: int = 0) -> Iterator[tuple[Host, Host]]:
    """Two lab hosts without agents, and instead of the lab's bridge one cable between them."""
    plan = Plan(f"bench{os.getpid()}-{name}", hosts=2, pods=pods, agents=())
    with Lab(plan) as lab:
        first, second = lab.hosts
        lab.net.configure(*(f"link del {host.name}" for host in lab.hosts))
        mtu = plan.underlay_mtu
        first.configure(f"link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {second.namespace}")
        for host in lab.hosts:
            host.configure(f"addr add {host.underlay}/{UNDERLAY.prefixlen} dev eth0", "link set eth0 up")
            if CARDS[underlay]:
                ethtool.set_features(host.namespace, "eth0", CARDS[underlay])
            if underlay in _LINES:
                shape = ["tbf", "rate", _LINES[underlay], "burst", "256k", "latency", "50ms"]
                host.run(["tc", "qdisc", "add", "dev", "eth0", "root", *shape])
        yield first, second


@contextmanager
def _bare(underlay: str) -> Iterator[Pair]:
    """No tunnel."""
    with _two_hosts("bare", underlay) as (sender, receiver):
        yield Pair("bare", sender, receiver, receiver.underlay, sender.plan.underlay_mtu)


@contextmanager
def _vxlan(underlay: str) -> Iterator[Pair]:
    """The kernel's VXLAN as flannel sets it up: learning off, route onlink, permanent neighbour, forwarding entry."""
    with _two_hosts("vxlan", underlay) as hosts:
        sender, receiver = hosts
        mtu = sender.plan.underlay_mtu - _VXLAN_OVERHEAD_BYTES
        for (host, peer), subnet, other, mac, peer_mac in zip(
            (hosts, hosts[::-1]), SUBNETS, SUBNETS[::-1], _VTEP_MACS, _VTEP_MACS[::-1], strict=True
        ):
            host.configure(
                f"link add {_VXLAN} address {mac} mtu {mtu} type vxlan "
                f"id {_VXLAN_VNI} dev eth0 local {host.underlay} dstport {_VXLAN_PORT} nolearning",
                f"addr add {subnet.network_address}/32 dev {_VXLAN}",
                f"link set {_VXLAN} up",
                f"route add {other} via {other.network_address} dev {_VXLAN} onlink",
                f"neigh replace {other.network_address} lladdr {peer_mac} dev {_VXLAN} nud permanent",
            )
            host.run(
                ["bridge", "fdb", "replace", peer_mac, "dev", _VXLAN, "dst", str(peer.underlay), "self", "permanent"]
            )
        yield Pair("vxlan", sender, receiver, SUBNETS[1].network_address, mtu)


@contextmanager
def _naive(underlay: str) -> Iterator[Pair]:
    """A loop in C of one read and one sendto a packet: tests/support/naive_peer.c."""
    with (
        _two_hosts("naive", underlay) as (sender, receiver),
        NaivePeer(sender, SUBNETS[0], {SUBNETS[1]: receiver.underlay}) as near,
        NaivePeer(receiver, SUBNETS[1], {SUBNETS[0]: sender.underlay}) as far,
    ):
        daemons = (near.process.pid, far.process.pid)
        yield Pair("naive", sender, receiver, SUBNETS[1].network_address, near.mtu, daemons)


@contextmanager
def _ours(underlay: str, *, name: str = OURS, arguments: tuple[str, ...] = ()) -> Iterator[Pair]:
    """Our agents with a file registry, and with default settings but for the arguments."""
    with _two_hosts(name, underlay) as hosts:
        sender, receiver = hosts
        mtu, daemons = _start_agents(hosts, arguments)
        yield Pair(name, sender, receiver, subnet_of(receiver).network_address, mtu, daemons)


def _start_agents(hosts: tuple[Host, Host], arguments: tuple[str, ...]) -> tuple[int, tuple[int, ...]]:
    """Start our agents and return the overlay's MTU in bytes and their process ids."""
    for host in hosts:
        host.start_agent(*arguments)
    for host in hosts:
        host.wait_ready(AGENT_TIMEOUT_S)
    mtu = subnet_env.require(hosts[0].subnet_file).mtu
    return mtu, tuple(pid for host in hosts if (pid := host.agent_pid()) is not None)


@contextmanager
def _pods_by_hand(underlay: str) -> Iterator[Pair]:
    """Our agents, which masquerade; from pod to pod, attached as the lab does it."""
    name = f"{OURS}-pods"
    with _two_hosts(name, underlay, pods=1) as hosts:
        mtu, daemons = _start_agents(hosts, ("--ip-masq",))
        for host in hosts:
            host.attach_pods()
        near, far = (host.pods[0] for host in hosts)
        yield Pair(name, near, far, far.ip, mtu, daemons)


@contextmanager
def _pods_by_plugin(underlay: str, *, name: str, arguments: tuple[str, ...]) -> Iterator[Pair]:
    """Our agents; from pod to pod, added by our CNI plugin. The bridge masquerades if the agent does not."""
    with _two_hosts(name, underlay) as hosts, TemporaryDirectory() as folder:
        mtu, daemons = _start_agents(hosts, arguments)
        near, far = (_added_pod(host, Path(folder)) for host in hosts)
        yield Pair(name, near, far, far.ip, mtu, daemons)


def _added_pod(host: Host, folder: Path) -> CniPod:
    runtime = Runtime(host, folder)
    pod = runtime.new_pod()
    runtime.add(pod)
    return pod


Opener = Callable[[str], AbstractContextManager[Pair]]
"""What opens a contender on an underlay."""

CONTENDERS: Mapping[str, Opener] = {"bare": _bare, "vxlan": _vxlan, "naive": _naive, OURS: _ours}
"""The contenders of every run, by name."""


_PODS: Mapping[str, Opener] = {
    f"{OURS}-pods": _pods_by_hand,
    f"{OURS}-cni": functools.partial(_pods_by_plugin, name=f"{OURS}-cni", arguments=("--ip-masq",)),
    f"{OURS}-cni-masq": functools.partial(_pods_by_plugin, name=f"{OURS}-cni-masq", arguments=()),
}


def variants(workers: Sequence[int] = (), *, rungs: bool = False, pods: bool = False) -> dict[str, Opener]:
    """Return our agents with other settings, by name: numbers of workers, and each rung of the offload ladder removed.

    `off` is without any rung. With `pods` also from pod to pod, attached by hand and by the CNI plugin.
    """
    settings = {f"{OURS}-w{n}": ("--workers", str(n)) for n in workers}
    if rungs:
        every = Offload().names()
        for rung in every:
            settings[f"{OURS}-no-{rung}"] = ("--offload", ",".join(name for name in every if name != rung))
        settings[f"{OURS}-off"] = ("--offload", "off")
    opened = {name: functools.partial(_ours, name=name, arguments=arguments) for name, arguments in settings.items()}
    return {**opened, **(_PODS if pods else {})}


@contextmanager
def open_contender(name: str, opener: Opener, underlay: str) -> Iterator[Pair]:
    """Open the contender once packets pass. Raises `FlannelError` where they do not."""
    with opener(underlay) as pair:
        if not any(ping(pair.sender, [pair.target], _PATH_TIMEOUT_S)[0] is not None for _ in range(_PATH_TRIES)):
            raise FlannelError(f"{name}: no ping from {pair.sender.path} to {pair.target} is answered")
        yield pair
