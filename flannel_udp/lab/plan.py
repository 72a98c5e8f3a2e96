"""What a lab shall look like, and where its files and namespaces are. Pure values; the plan itself is saved as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Self

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.files.atomic import replace_file
from flannel_udp.netconf.config import DEFAULT_TYPE

STATE_DIR = Path("/run/flannel-udp-lab")
UNDERLAY = IPv4Network("192.0.2.0/24")  # RFC 5737: TEST-NET-1
OVERLAY = IPv4Network("10.244.0.0/16")
UNDERLAY_GATEWAY = UNDERLAY[254]
MAX_HOSTS = MAX_PODS = 250  # what fits in a /24 beside the gateway
ETCD_PORT = 2379
DEFAULT_PORT = 8285

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_NAMESPACE = re.compile(r"fu-(?P<lab>[a-z0-9][a-z0-9-]*)-(?:net|h\d+(?:-p\d+)?)")


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

    name: str = "lab"
    hosts: int = 2
    pods: int = 1
    """Pods a host."""
    registry: str = "file"
    """``file`` or ``etcd``; an etcd runs inside the lab."""
    config: Mapping[str, Any] = field(default_factory=lambda: {"Network": str(OVERLAY)})
    """The network configuration that is stored in the registry."""
    reservations: Mapping[str, str] = field(default_factory=dict)
    """Subnet → public IP: leases without expiry, for hosts that run something else than our agent."""
    agents: tuple[str, ...] | None = None
    """The hosts on which `Lab.up` starts our agent; ``None`` means all."""
    agent_args: tuple[str, ...] = ()
    """Further arguments for every agent."""
    underlay_mtu: int = 1500
    """Bytes."""
    offload: str = "whole"
    """What the hosts' network cards do: ``whole`` passes super-packets on uncut, ``wire`` cuts them on the way out and
    coalesces on the way in as a real card does, ``plain`` cuts and never coalesces."""

    def __post_init__(self) -> None:
        check_name(self.name)
        for what, number, low, high in (
            ("hosts", self.hosts, 1, MAX_HOSTS),
            ("pods a host", self.pods, 0, MAX_PODS),
            ("bytes of underlay MTU", self.underlay_mtu, 576, 65_535),
        ):
            if not low <= number <= high:
                raise UsageError(f"a lab cannot have {number} {what}: give {low} to {high}")
        if self.registry not in ("file", "etcd"):
            raise UsageError(f"unknown lab registry {self.registry!r}: use file or etcd")
        if self.offload not in ("whole", "wire", "plain"):
            raise UsageError(f"unknown offload {self.offload!r}: use whole, wire or plain")
        unknown = [host for host in self.agents or () if host not in self.host_names]
        if unknown:
            raise UsageError(f"an agent is asked for on {unknown[0]}, which is none of the lab's {self.hosts} hosts")

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
    def registry_args(self) -> list[str]:
        """How every agent, and `flannel-udp config`, is told where the registry is."""
        if self.registry == "etcd":
            return ["--registry", "etcd", "--etcd-endpoints", f"http://{UNDERLAY_GATEWAY}:{ETCD_PORT}"]
        return ["--registry", f"file:{self.registry_file}"]

    @property
    def backend(self) -> str:
        """How packets travel: the type of the backend that the network configuration names."""
        return str(self._backend.get("Type", DEFAULT_TYPE)).lower()

    @property
    def port(self) -> int:
        """The UDP port of the overlay, with the backend udp."""
        return int(self._backend.get("Port", DEFAULT_PORT))

    @property
    def _backend(self) -> Mapping[str, Any]:
        backend = self.config.get("Backend")
        return backend if isinstance(backend, Mapping) else {}

    def namespace(self, *node: str) -> str:
        """Return the namespace of ``net``, of a host (``h1``) or of a pod (``h1``, ``p1``)."""
        return "-".join(("fu", self.name, *node))

    def underlay(self, host: str) -> IPv4Address:
        """Return the host's address on the underlay: h1 has 192.0.2.1."""
        return UNDERLAY[int(host.removeprefix("h"))]

    def save(self) -> None:
        """Write lab.json, from which any later process can attach."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        replace_file(self.state / "lab.json", text.encode())

    @classmethod
    def load(cls, name: str) -> Self:
        """Read the plan of a lab that is up. Raises `FlannelError` if there is none."""
        check_name(name)
        try:
            plan = json.loads((STATE_DIR / name / "lab.json").read_text())
        except FileNotFoundError:
            raise FlannelError(f"no lab named {name} is up: make one with `flannel-udp lab up --name {name}`") from None
        plan["agents"] = None if plan["agents"] is None else tuple(plan["agents"])
        plan["agent_args"] = tuple(plan["agent_args"])
        return cls(**plan)


@dataclass(frozen=True, slots=True)
class HostSubnet:
    """What an agent, or whoever attached the pods, says about a host: its subnet, and the MTU of its pods in bytes."""

    subnet: IPv4Network
    mtu: int

    @property
    def gateway(self) -> IPv4Address:
        """The address of the host's bridge: the first of the subnet."""
        return self.subnet[1]

    def pod_address(self, pod: str) -> IPv4Address:
        """Return the address of a pod: p1 follows the gateway. Raises `FlannelError` when the subnet is too small."""
        index = int(pod.removeprefix("p")) + 1
        if index >= self.subnet.num_addresses - 1:
            raise FlannelError(f"the subnet {self.subnet} has no address left for {pod}: ask for fewer pods")
        return self.subnet[index]


def lab_of_namespace(namespace: str) -> str | None:
    """Return the name of the lab that a namespace belongs to, ``None`` for a namespace that is no lab's."""
    found = _NAMESPACE.fullmatch(namespace)
    return found["lab"] if found else None
