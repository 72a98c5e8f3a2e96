"""The naive peer (naive_peer.c) on a lab host: the oracle that is not our engine, and the benches' baseline."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from flannel_udp.lab.compiled import compiled
from flannel_udp.lab.node import Host
from flannel_udp.lab.peer_program import Peer, endpoint
from flannel_udp.model import Prefix

Peers = Mapping[IPv4Network, IPv4Address] | Mapping[IPv6Network, IPv6Address]
"""Subnets, and the public IPs behind them."""

_SOURCE = Path(__file__).with_name("naive_peer.c")


def build_naive_peer() -> Path:
    """Return the peer, which is compiled once a process. Raises `FlannelError` where that fails."""
    return compiled(_SOURCE, "-D_DEFAULT_SOURCE")


class NaivePeer(Peer):
    """One packet a system call, TTL as flanneld has it. `peers` maps subnets to the public IPs behind them.

    It is of one family, that of `subnet`; a dual-stack host runs two, each with a `device` of its own.
    """

    def __init__(
        self,
        host: Host,
        subnet: Prefix,
        peers: Peers,
        network: Prefix | None = None,
        *,
        device: str = "flannel0",
    ) -> None:
        at = endpoint(host.underlay_of(subnet.version), host.plan.port)
        command = [str(build_naive_peer()), device, at, *peer_routes(peers)]
        super().__init__(host, subnet, network, command, device=device)


def peer_routes(peers: Peers) -> list[str]:
    """Return the program's arguments that say where the subnets are."""
    return [f"{subnet}={address}" for subnet, address in peers.items()]
