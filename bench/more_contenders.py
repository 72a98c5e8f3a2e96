"""More contenders of bench.forward: mixed ends, ipip, IPv6 beside IPv4, our agents with other settings, pods by CNI."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flannel_udp.bench.contenders import (
    CONTENDERS,
    HOSTS,
    SUBNETS,
    USERSPACE,
    NamedOpener,
    Opener,
    Pair,
    Where,
    agents,
    ends,
    leased,
    naive_pair,
    open_ours,
    start_agents,
    two_hosts,
)
from flannel_udp.bench.metrics import OURS
from flannel_udp.lab import ethtool
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host
from flannel_udp.options import Offload
from tests.support.by_hand_vxlan import LeasedVxlan
from tests.support.cni import CniPod, Runtime
from tests.support.naive_ipip import NaiveIpip

OF_IPV6 = "-v6"
"""What the names of contenders end with that go by IPv6 beside others that do not."""


@contextmanager
def _vxlan_and_ours(where: Where, *, name: str, ours: int) -> Iterator[Pair]:
    """The kernel's VXLAN as flannel sets it up on one host, our packet path on the other: `ours` is 0 on the sender."""
    with two_hosts(name, where, "vxlan") as hosts:
        agents, theirs, subnet = hosts[ours], hosts[1 - ours], SUBNETS[where.version][1 - ours]
        kernel = LeasedVxlan(theirs, subnet)
        kernel.register()
        mtu, daemons = start_agents((agents,), (USERSPACE,))
        if agents.pods:
            agents.attach_pods()
        agents.wait_peers({subnet}, AGENT_TIMEOUT_S)
        kernel.learn()
        subnets = (leased(agents, where.version), subnet)
        yield ends(name, hosts, subnets if ours == 0 else subnets[::-1], mtu, daemons)


@contextmanager
def _naive_ipip(where: Where) -> Iterator[Pair]:
    """The same over raw sockets; its hosts' cards join nothing, since it takes no super-packets."""
    with two_hosts("naive-ipip", where) as hosts:
        for host in hosts:
            ethtool.set_features(host.namespace, "eth0", dict.fromkeys(ethtool.GRO, False))
        with naive_pair("naive-ipip", where, hosts, NaiveIpip) as pair:
            yield pair


@contextmanager
def _pods_by_plugin(where: Where, *, name: str, arguments: tuple[str, ...]) -> Iterator[Pair]:
    """Our agents; from pod to pod, added by our CNI plugin. The bridge masquerades if the agent does not."""
    with two_hosts(name, where._replace(between=HOSTS)) as hosts, TemporaryDirectory() as folder:
        mtu, daemons = start_agents(hosts, arguments)
        near, far = (_added_pod(host, Path(folder)) for host in hosts)
        yield Pair(name, near, far, near.ip, far.ip, mtu, daemons)


def _added_pod(host: Host, folder: Path) -> CniPod:
    runtime = Runtime(host, folder)
    pod = runtime.new_pod()
    runtime.add(pod)
    return pod


BACKENDS: Mapping[str, Opener] = {
    **{name: opener for name, opener in agents().items() if name not in CONTENDERS},
    f"vxlan-to-{OURS}": functools.partial(_vxlan_and_ours, name=f"vxlan-to-{OURS}", ours=1),
    f"{OURS}-to-vxlan": functools.partial(_vxlan_and_ours, name=f"{OURS}-to-vxlan", ours=0),
    f"{OURS}-ipip": functools.partial(open_ours, name=f"{OURS}-ipip", backend="ipip", arguments=(USERSPACE,)),
    "naive-ipip": _naive_ipip,
}
"""What other backends carry: our agents, vxlan and ipip in userspace also where the kernel could, and a naive loop."""


def by_ipv6(name: str, opener: NamedOpener) -> Opener:
    """Return what opens the contender under another name, by IPv6 wherever it is asked for."""
    return lambda where: opener(where._replace(version=6), name=name)


IPV6: Mapping[str, Opener] = {
    f"{name}{OF_IPV6}": by_ipv6(f"{name}{OF_IPV6}", opener) for name, opener in CONTENDERS.items()
}
"""The same contenders by IPv6, to be measured in one run with those by IPv4."""

_BY_PLUGIN: Mapping[str, Opener] = {
    f"{OURS}-cni": functools.partial(_pods_by_plugin, name=f"{OURS}-cni", arguments=("--ip-masq",)),
    f"{OURS}-cni-masq": functools.partial(_pods_by_plugin, name=f"{OURS}-cni-masq", arguments=()),
}


def variants(workers: Sequence[int] = (), *, rungs: bool = False, cni: bool = False) -> dict[str, Opener]:
    """Return our agents with other settings, by name: numbers of workers, and each rung of the offload ladder removed.

    `off` is without any rung. With `cni` also from pod to pod as the CNI plugin adds them, masqueraded by the agent
    (so is `masq`) or by the bridge.
    """
    settings: dict[str, tuple[str, ...]] = {f"{OURS}-w{n}": ("--workers", str(n)) for n in workers}
    if rungs:
        every = Offload().names()
        for rung in every:
            settings[f"{OURS}-no-{rung}"] = ("--offload", ",".join(name for name in every if name != rung))
        settings[f"{OURS}-off"] = ("--offload", "off")
    if cni:
        settings[f"{OURS}-masq"] = ("--ip-masq",)
    opened: dict[str, Opener] = {
        name: functools.partial(open_ours, name=name, arguments=arguments) for name, arguments in settings.items()
    }
    return {**opened, **(_BY_PLUGIN if cni else {})}
