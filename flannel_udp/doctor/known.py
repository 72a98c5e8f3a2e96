"""What is known of the overlay on this host: from the agent, else from subnet.env and the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from flannel_udp.admin.client import fetch_peers, fetch_status
from flannel_udp.admin.shapes import PeerRow, Status
from flannel_udp.backend.table import BACKENDS
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.family import Family, family_of
from flannel_udp.host.interface import decide
from flannel_udp.host.interface_facts import gather as gather_interfaces
from flannel_udp.host.vxlan_devices import device_name
from flannel_udp.model import Address, Prefix
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options
from flannel_udp.registry.open import open_registry

ANSWER_S = 3.0
"""How long the agent, and the registry, may take."""
_TUNNEL_DEVICES = {"udp": "flannel0", "ipip": "flannel.ipip"}
"""By backend: as an agent calls them, if the name is free."""
_UDP_PORTS = {"udp": 8285, "vxlan": 8472}  # flannel's defaults


@dataclass(frozen=True, slots=True)
class Known:
    """What each source says, or why it says nothing."""

    status: Status | None = None
    silence: str = ""
    """Why the agent did not answer."""
    peers: Sequence[PeerRow] = ()
    env: SubnetEnv | None = None
    env_fault: str = ""
    config: NetworkConfig | None = None
    """Read from the registry where no agent has it."""
    config_fault: str = ""
    chosen: str | None = None
    """The external interface that the flags choose."""

    @property
    def absent(self) -> bool:
        """Whether there is no agent: one that hangs, or that may not be asked, does not answer either."""
        return self.status is None and "is not running" in self.silence

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that the overlay has here, 4 first.

        Those of the host's subnet; before there is one, of the network; 4 where nobody says.
        """
        for told in (self.subnet_of, self.network_of):
            if found := tuple(version for version in (4, 6) if told(version) is not None):
                return found
        return (4,)

    @property
    def families(self) -> tuple[KnownFamily, ...]:
        """What is known of each of these."""
        return tuple(KnownFamily(self, version) for version in self.versions)

    def network_of(self, version: int) -> Prefix | None:
        """Return the overlay network: what the agent says of either family, else subnet.env, else the registry."""
        status = self.status
        if status is not None and (status["network"] or status["ipv6_network"]):
            told = status["network" if version == 4 else "ipv6_network"]
            return ip_network(told) if told else None
        if self.env is not None:
            return self.env.network_of(version)
        overlay = None if self.config is None else self.config.of(version)
        return None if overlay is None else overlay.network

    @property
    def overlays(self) -> tuple[Prefix, ...]:
        """The overlay networks of these families, as far as they are known."""
        return tuple(network for version in self.versions if (network := self.network_of(version)) is not None)

    def subnet_of(self, version: int) -> Prefix | None:
        """Return the host's share of it: what the agent says of either family, else subnet.env."""
        status = self.status
        if status is not None and (status["subnet"] or status["ipv6_subnet"]):
            told = status["subnet" if version == 4 else "ipv6_subnet"]
            return ip_network(told) if told else None
        return None if self.env is None else self.env.subnet.of(version)

    @property
    def backend(self) -> str:
        """The backend's type; udp where nobody says, which is flannel's default."""
        if self.status is not None and self.status["backend"]:
            return self.status["backend"]["type"]
        return "udp" if self.config is None else self.config.backend.type

    @property
    def port(self) -> int | None:
        """The UDP port that other hosts send to; ``None`` with a backend that has none."""
        usual = _UDP_PORTS.get(self.backend)
        if usual is None:
            return None
        if self.status is not None and self.status["backend"]:
            return self.status["backend"].get("port", usual)
        return usual if self.config is None else int(self.config.backend.options.get("Port", usual))

    @property
    def has_packet_path(self) -> bool:
        """Whether packets pass a TUN device and sockets of our own, or may: which it is, a running agent knows."""
        if self.backend in ("vxlan", "ipip"):
            told = self.status["backend"] if self.status is not None else None
            return told is None or told.get("datapath") == "userspace"
        return self.backend == "udp"

    @property
    def speaks_ipip(self) -> bool:
        """Whether outer packets are IP in IP (protocol 4), which has no ports."""
        return self.backend == "ipip"

    @property
    def interface(self) -> str | None:
        """The external interface: the agent's, else the one that an agent would choose."""
        told = self.status["interface"] if self.status is not None else None
        return told["name"] if told else self.chosen


@dataclass(frozen=True, slots=True)
class KnownFamily:
    """What is known of the overlay's part of one IP version."""

    host: Known
    version: int

    @property
    def family(self) -> Family:
        """What the kernel calls things of that version."""
        return family_of(self.version)

    @property
    def network(self) -> Prefix | None:
        """The overlay network."""
        return self.host.network_of(self.version)

    @property
    def subnet(self) -> Prefix | None:
        """The host's share of it."""
        return self.host.subnet_of(self.version)

    @property
    def peers(self) -> list[PeerRow]:
        """The agent's peers."""
        return [peer for peer in self.host.peers if (":" in peer["subnet"]) == (self.version == 6)]

    @property
    def hosts(self) -> list[Address]:
        """Their public IPs."""
        return sorted({ip_address(peer["public_ip"]) for peer in self.peers}, key=int)

    @property
    def address(self) -> Address | None:
        """The external interface's, as far as the agent says."""
        interface = self.host.status["interface"] if self.host.status is not None else None
        if interface is None:
            return None
        told = interface["address"] if self.version == 4 else interface.get("ipv6_address")
        return ip_address(told) if told else None

    @property
    def device(self) -> str | None:
        """By which overlay packets come and go."""
        status, config, backend = self.host.status, self.host.config, self.host.backend
        told = status["tunnel" if self.version == 4 else "ipv6_tunnel"] if status is not None else None
        if told:
            return told["name"]
        if backend == "vxlan":
            return None if config is None else device_name(config.backend.options["VNI"], self.version)
        if backend in _TUNNEL_DEVICES:
            return _TUNNEL_DEVICES[backend]
        return self.host.interface if backend == "host-gw" else None


def gather(options: Options) -> Known:
    """Ask the agent, read subnet.env, and ask the registry if there is no agent. Takes some seconds at most."""
    status, silence, peers = None, "", []
    try:
        status = fetch_status(options.control_socket, ANSWER_S)
        peers = fetch_peers(options.control_socket, ANSWER_S)
    except FlannelError as error:
        silence = str(error)
    env, env_fault = None, ""
    try:
        env = subnet_env.read(options.subnet_file)
    except FlannelError as error:
        env_fault = str(error)
    config, config_fault = None, ""
    if status is None:
        try:
            config = asyncio.run(_read_config(options))
        except FlannelError as error:
            config_fault = str(error)
    known = Known(status, silence, peers, env, env_fault, config, config_fault)
    return replace(known, chosen=_choose(options, known))


def _choose(options: Options, known: Known) -> str | None:
    """Return the interface that the flags choose; why there is none, the question `interface` tells."""
    try:
        host = gather_interfaces(options.interface, known.versions).outside(known.overlays)
        found = decide(options.interface, host, known.versions).interface
    except FlannelError:
        return None
    return None if found is None else found.name


async def _read_config(options: Options) -> NetworkConfig:
    registry = open_registry(options)
    try:
        # Not asyncio.timeout: a store that blocks in a thread cannot be cancelled.
        raw = await asyncio.wait_for(registry.read_config(), ANSWER_S)
    except TimeoutError:
        raise FlannelError(f"the registry did not answer within {ANSWER_S:g} s") from None
    finally:
        await registry.close()
    return parse_network_config(raw, BACKENDS).config
