"""The naive peer (naive_peer.c) as one of flannel's ipip: a TUN and a raw socket of protocol 4."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.lab.naive import build_naive_peer, peer_routes
from flannel_udp.lab.node import Host
from flannel_udp.lab.peer_program import Peer
from flannel_udp.lab.plan import OVERLAY


class NaiveIpip(Peer):
    """One packet a system call; see `NaivePeer`.

    Its device takes packets as they are: where a network card joins what comes in (GRO), TCP gets nowhere.
    """

    def __init__(
        self, host: Host, subnet: IPv4Network, peers: Mapping[IPv4Network, IPv4Address], network: IPv4Network = OVERLAY
    ) -> None:
        command = [str(build_naive_peer()), "flannel.ipip", str(host.underlay), *peer_routes(peers)]
        super().__init__(host, subnet, network, command, device="flannel.ipip", overhead=20)
