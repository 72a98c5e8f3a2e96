"""What a lab shall look like, and where its files and namespaces are. Pure values; the plan itself is saved as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Self

from flannel_udp.errors import FlannelError, UsageError, did_you_mean
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab.sites import (
    GATEWAY_NUMBER,
    MAX_HOSTS,
    MAX_ROUTERS,
    UNDERLAY,
    Cable,
    Router,
    address_in,
    circle_of,
    in_order,
    network_behind,
    number_of,
)
from flannel_udp.model import Address, Prefix
from flannel_udp.netconf.config import DEFAULT_TYPE

DEFAULT_NAME = "lab"
STATE_DIR = Path("/run/flannel-udp-lab")
UNDERLAY_GATEWAY = UNDERLAY[GATEWAY_NUMBER]
OVERLAY = IPv4Network("10.244.0.0/16")
OVERLAY_V6 = IPv6Network("fd00:10:244::/48")
MAX_PODS = 250  # what fits in a /24 beside the gateway
ETCD_PORT = 2379
DEFAULT_PORTS = {"udp": 8285, "vxlan": 8472}
REGISTRIES = ("file", "etcd")
OFFLOADS = ("whole", "wire", "plain")
FAMILIES: Mapping[str, tuple[int, ...]] = {"4": (4,), "6": (6,), "46": (4, 6)}
"""What a lab's families may be, and which IP versions that is."""
MTU_MIN, MTU_MAX = 576, 65_535
"""Bytes that a link of the underlay may carry: RFC 791's least for every host, and a veth's most."""
RELAYED_MTU_MAX = MTU_MAX - 14
"""Of a link with delay or loss: a TAP device's most, which counts the Ethernet header."""
IPV6_MIN_MTU = 1280
"""Bytes; RFC 8200 section 5: Linux has no IPv6 on a device that carries less."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_NAMESPACE = re.compile(r"fu-(?P<lab>[a-z0-9][a-z0-9-]*)-(?:net|r\d+|h\d+(?:-p\d+)?)")
_ROUTER = re.compile(r"r[1-9]\d?")


def check_name(name: str) -> None:
    """Raise `UsageError` unless it names a lab: it becomes part of namespace names and of a path that is removed."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a lab: use up to 32 lower-case letters, digits and dashes, "
            "beginning with a letter or digit"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A lab as it was asked for. Raises `UsageError` where it cannot be built."""

    name: str = DEFAULT_NAME
    hosts: int = 2
    pods: int = 1
    """Pods a host."""
    registry: str = "file"
    """``file`` or ``etcd``; an etcd runs inside the lab."""
    config: Mapping[str, Any] = field(default_factory=lambda: {"Network": str(OVERLAY)})
    """The network configuration that is stored in the registry; what it says nothing of is filled in by `families`."""
    reservations: Mapping[str, str] = field(default_factory=dict)
    """Subnet → public IP: leases without expiry, for hosts that run something else than our agent. With both families
    two of each, with an & between them; IPv6 alone has ``0.0.0.0/0&`` and ``0.0.0.0&`` in front."""
    agents: tuple[str, ...] | None = None
    """The hosts on which `Lab.up` starts our agent; ``None`` means all."""
    agent_args: tuple[str, ...] = ()
    """Further arguments for every agent."""
    host_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Host → further arguments for its agent alone, after those for every one."""
    routers: Mapping[str, Router] = field(default_factory=dict)
    """The routers, r1 to r50, by their names."""
    behind: Mapping[str, str] = field(default_factory=dict)
    """Host or router → the router that it is behind; the others are on the underlay itself."""
    subnets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Host → the subnet, one part a family, that its agent shall ask for, as one that it had before."""
    cables: Mapping[str, Cable] = field(default_factory=dict)
    """Host or router → what its link, a router's uplink, is like; perfect for the others."""
    seed: int = 1
    """What is lost on links with loss depends on it, and on nothing else."""
    underlay_mtu: int = 1500
    """Bytes."""
    families: str = "4"
    """``4``, ``6`` or ``46``: which addresses the hosts have on the underlay, and their pods in the overlay."""
    offload: str = "whole"
    """What the hosts' network cards do: ``whole`` passes super-packets on uncut, ``wire`` cuts them on the way out and
    coalesces on the way in as a real card does, ``plain`` cuts and never coalesces."""

    def __post_init__(self) -> None:
        check_name(self.name)
        for what, number, low, high in (
            ("hosts", self.hosts, 1, MAX_HOSTS),
            ("pods a host", self.pods, 0, MAX_PODS),
            ("bytes of underlay MTU", self.underlay_mtu, MTU_MIN, MTU_MAX),
        ):
            if not low <= number <= high:
                raise UsageError(f"a lab cannot have {number} {what}: give {low} to {high}")
        if self.registry not in REGISTRIES:
            raise UsageError(f"unknown lab registry {self.registry!r}: use file or etcd")
        if self.families not in FAMILIES:
            raise UsageError(f"unknown families {self.families!r}: use {', '.join(FAMILIES)}")
        if 6 in self.versions and self.underlay_mtu < IPV6_MIN_MTU:
            raise UsageError(f"IPv6 needs an underlay MTU of {IPV6_MIN_MTU} bytes at least, not {self.underlay_mtu}")
        if self.offload not in OFFLOADS:
            raise UsageError(f"unknown offload {self.offload!r}: use whole, wire or plain")
        for what, names in (
            ("an agent is asked for on", self.agents or ()),
            ("arguments are given for", self.host_args),
            ("a subnet is given to", self.subnets),
        ):
            unknown = [name for name in names if name not in self.host_names]
            if unknown:
                raise UsageError(f"{what} {unknown[0]}, which is none of the lab's {self.hosts} hosts")
        self._require_routers()
        for name in (*self.host_names, *self.routers):
            self._require_mtu(f"the link of {name}", self.mtu_of(name), relayed=self.cable(name).is_relayed)
        for name in self.routers:
            self._require_mtu(f"the network behind {name}", self.mtu_behind(name))
        object.__setattr__(self, "config", self._completed(self.config))

    def _require_routers(self) -> None:
        """Raise `UsageError` where routers, or what is behind them, cannot be so."""
        for name in self.routers:
            if not _ROUTER.fullmatch(name) or number_of(name) > MAX_ROUTERS:
                raise UsageError(f"{name} is no name for a router: use r1 to r{MAX_ROUTERS}")
        known = (*self.host_names, *self.routers)
        for what, names in (("behind a router", self.behind), ("with a link of its own kind", self.cables)):
            for name in names:
                if name not in known:
                    raise UsageError(f"{name}, {what}, is neither a host nor a router of the lab")
        for name, router in self.behind.items():
            if router not in self.routers:
                there = f"there are {', '.join(self.routers)}" if self.routers else "there is none"
                raise UsageError(
                    f"{name} is behind {router}, which is no router: {there}{did_you_mean(router, self.routers)}"
                )
        if circle := circle_of(self.behind):
            raise UsageError(f"the routers go in a circle: {' behind '.join([*circle, circle[0]])}")
        for name, way in self.routers.items():
            if way.forward is not None:
                self._require_forward(name, way.forward, nat=way.nat)

    def _require_forward(self, router: str, host: str, *, nat: bool) -> None:
        if not nat:
            raise UsageError(f"{router} passes nothing on to {host} without NAT: all behind it is reached as it is")
        if host not in self.host_names or self.behind.get(host) != router:
            raise UsageError(f"{router} passes packets on to {host}, which is no host behind it")
        if 4 not in self.versions or not self.port:
            raise UsageError(f"{router} has no port to pass on to {host}: only udp and vxlan by IPv4 have one")

    def _require_mtu(self, what: str, mtu: int, *, relayed: bool = False) -> None:
        low, high = IPV6_MIN_MTU if 6 in self.versions else MTU_MIN, RELAYED_MTU_MAX if relayed else MTU_MAX
        if not low <= mtu <= high:
            raise UsageError(f"{what} cannot carry {mtu} bytes: give {low} to {high}")

    def _completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with IPv6 on, and IPv4 off, as the families say, where it says nothing itself."""
        completed = dict(config)
        wanted: dict[str, Any] = {}
        if 6 in self.versions:
            wanted |= {"EnableIPv6": True, "IPv6Network": str(OVERLAY_V6)}
        if 4 not in self.versions:
            wanted["EnableIPv4"] = False
            if completed.get("Network") == str(OVERLAY):  # the default, which would be warned about
                del completed["Network"]
        said = {key.lower() for key in config}
        return completed | {key: value for key, value in wanted.items() if key.lower() not in said}

    @property
    def versions(self) -> tuple[int, ...]:
        """The families as IP versions: (4,), (6,) or (4, 6)."""
        return FAMILIES[self.families]

    @property
    def overlays(self) -> tuple[str, ...]:
        """The overlay's networks, IPv4 first, as the configuration has them."""
        keys = {4: "network", 6: "ipv6network"}
        said = {key.lower(): value for key, value in self.config.items()}
        return tuple(str(said.get(keys[version])) for version in self.versions)

    @property
    def host_names(self) -> list[str]:
        """The hosts: h1, h2, and so on."""
        return [f"h{i}" for i in range(1, self.hosts + 1)]

    @property
    def pod_names(self) -> list[str]:
        """The pods, named the same on every host: p1, p2, and so on."""
        return [f"p{i}" for i in range(1, self.pods + 1)]

    @property
    def agent_hosts(self) -> list[str]:
        """The hosts that run our agent."""
        return self.host_names if self.agents is None else list(self.agents)

    @property
    def state(self) -> Path:
        """The folder of everything the lab writes."""
        return STATE_DIR / self.name

    @property
    def registry_file(self) -> Path:
        """The table of a ``file`` registry."""
        return self.state / "registry.json"

    @property
    def etcd_endpoint(self) -> str:
        """Where the lab's etcd is, if it has one: at the underlay's bridge."""
        server = self.bridge(self.versions[0])
        return f"http://{f'[{server}]' if server.version == 6 else server}:{ETCD_PORT}"

    @property
    def registry_flags(self) -> dict[str, str]:
        """How every agent, and `flannel-udp config`, is told where the registry is: flags and their values."""
        if self.registry == "etcd":
            return {"registry": "etcd", "etcd-endpoints": self.etcd_endpoint}
        return {"registry": f"file:{self.registry_file}"}

    @property
    def registry_args(self) -> list[str]:
        """The same as words of a command line."""
        return [word for flag, value in self.registry_flags.items() for word in (f"--{flag}", value)]

    @property
    def backend(self) -> str:
        """How packets travel: the type of the backend that the network configuration names."""
        return str(self.option("Type", DEFAULT_TYPE)).lower()

    @property
    def port(self) -> int:
        """The UDP port of the overlay, with the backends udp and vxlan."""
        return int(self.option("Port", DEFAULT_PORTS.get(self.backend, 0)))

    def option(self, key: str, default: Any) -> Any:
        """Return what the configuration's object Backend has under a key, which it may spell in any case."""
        backend = self.config.get("Backend")
        given = backend if isinstance(backend, Mapping) else {}
        return next((value for name, value in given.items() if name.lower() == key.lower()), default)

    def namespace(self, *node: str) -> str:
        """Return the namespace of ``net``, of a router (``r1``), of a host (``h1``) or of a pod (``h1``, ``p1``)."""
        return "-".join(("fu", self.name, *node))

    def underlay(self, host: str) -> IPv4Address:
        """Return the host's IPv4 address on the underlay: h1 has 192.0.2.1, behind r2 172.16.2.1."""
        address = self.underlay_of(host, 4)
        assert isinstance(address, IPv4Address)  # noqa: S101 - for mypy
        return address

    def underlay_v6(self, host: str) -> IPv6Address:
        """Return its IPv6 address there: h1 has 2001:db8::1, behind r2 2001:db8:2::1."""
        address = self.underlay_of(host, 6)
        assert isinstance(address, IPv6Address)  # noqa: S101 - for mypy
        return address

    def underlay_of(self, node: str, version: int) -> Address:
        """Return the address of a host, or of a router's uplink (r1 has 192.0.2.201), by IP version."""
        return address_in(self.network(node, version), node)

    def network(self, node: str, version: int) -> Prefix:
        """Return the network that a host, or a router's uplink, is on."""
        return network_behind(self.behind.get(node), version)

    def bridge(self, version: int) -> Address:
        """Return the address of the underlay's bridge, where the lab's etcd is."""
        return network_behind(None, version)[GATEWAY_NUMBER]

    def gateway(self, node: str, version: int = 4) -> Address:
        """Return the router of a host, or of a router."""
        return self.network(node, version)[GATEWAY_NUMBER]

    def mtu_behind(self, router: str | None) -> int:
        """Return what the network behind a router carries, in bytes; ``None``: the underlay itself."""
        own = None if router is None else self.routers[router].mtu
        return self.underlay_mtu if own is None else own

    def mtu_of(self, node: str) -> int:
        """Return what the link of a host, or a router's uplink, carries, in bytes."""
        own = self.cable(node).mtu
        return self.mtu_behind(self.behind.get(node)) if own is None else own

    def cable(self, node: str) -> Cable:
        """Return what the link of a host, or a router's uplink, is like."""
        return self.cables.get(node, Cable())

    @property
    def router_names(self) -> list[str]:
        """The routers, each after the one that it is behind."""
        return in_order(self.behind, self.routers)

    def routes_on(self, network: str | None, version: int) -> dict[Prefix, str]:
        """Return the networks that are reached through routers on a network, each with the next router.

        `network` is named by the router that it is behind. What is behind a NAT of IPv4 is reached by nobody.
        """
        found: dict[Prefix, str] = {}
        for router in self.router_names:
            if self.behind.get(router) == network and not (self.routers[router].nat and version == 4):
                found[network_behind(router, version)] = router
                found |= dict.fromkeys(self.routes_on(router, version), router)
        return found

    def host_at(self, address: Address, sender: str) -> str | None:
        """Return the host that another one reaches by an address of the underlay, by a NAT's, too; ``None``: nobody."""
        if address.version not in self.versions:
            return None
        reached = {name: name for name in self.host_names}
        reached |= {name: router.forward for name, router in self.routers.items() if router.forward is not None}
        for node, host in reached.items():
            own = self.underlay_of(node, address.version)
            if own == address == self.source_seen_by(sender, node, address.version):
                return host
        return None

    def source_seen_by(self, other: str, node: str, version: int) -> Address:
        """Return the address that packets of a node come to a host from: a NAT's, where one is between them."""
        address, around = self.underlay_of(node, version), self._routers_above(other)
        for router in self._routers_above(node):
            if router in around:
                break
            if self.routers[router].nat and version == 4:
                address = self.underlay_of(router, 4)
        return address

    def _routers_above(self, node: str) -> list[str]:
        """Return the routers that a node is behind, the nearest first."""
        above = self.behind.get(node)
        return [] if above is None else [above, *self._routers_above(above)]

    def save(self) -> None:
        """Write lab.json, from which any later process can attach."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        replace_file(self.state / "lab.json", text.encode())

    @classmethod
    def load(cls, name: str) -> Self | None:
        """Read the plan of a lab that is up; ``None`` if there is none."""
        check_name(name)
        try:
            plan = json.loads((STATE_DIR / name / "lab.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        others = FlannelError(f"the lab {name} was made by another version of flannel-udp: remove it with `lab down`")
        if plan.keys() != {each.name for each in dataclasses.fields(cls)}:
            raise others
        plan["agents"] = None if plan["agents"] is None else tuple(plan["agents"])
        plan["agent_args"] = tuple(plan["agent_args"])
        for of_hosts in ("host_args", "subnets"):
            plan[of_hosts] = {host: tuple(values) for host, values in plan[of_hosts].items()}
        try:
            plan["routers"] = {router: Router(**values) for router, values in plan["routers"].items()}
            plan["cables"] = {node: Cable(**values) for node, values in plan["cables"].items()}
        except TypeError:
            raise others from None
        return cls(**plan)


@dataclass(frozen=True, slots=True)
class HostSubnet:
    """What an agent, or whoever attached the pods, says of one family of a host: subnet, MTU of pods in bytes."""

    subnet: Prefix
    mtu: int

    @property
    def gateway(self) -> Address:
        """The address of the host's bridge: the first of the subnet."""
        return self.subnet[1]

    def pod_address(self, pod: str) -> Address:
        """Return the address of a pod: p1 follows the gateway. Raises `FlannelError` when the subnet is too small."""
        index = int(pod.removeprefix("p")) + 1
        if index >= self.subnet.num_addresses - 1:
            raise FlannelError(f"the subnet {self.subnet} has no address left for {pod}: ask for fewer pods")
        return self.subnet[index]


def lab_of_namespace(namespace: str) -> str | None:
    """Return the name of the lab that a namespace belongs to, ``None`` for a namespace that is no lab's."""
    found = _NAMESPACE.fullmatch(namespace)
    return found["lab"] if found else None
