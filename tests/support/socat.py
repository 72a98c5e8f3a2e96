"""socat as a second independent peer: it knows one other host only, and leaves the TTL alone."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY
from tests.support.peer import Peer


class SocatPeer(Peer):
    """Everything the overlay route brings goes to `peer`, everything `peer` sends comes out of the TUN."""

    def __init__(self, host: Host, subnet: IPv4Network, peer: IPv4Address, network: IPv4Network = OVERLAY) -> None:
        port = host.plan.port
        command = [
            "socat",
            "-b65536",
            "TUN,tun-name=flannel0,iff-no-pi",
            f"UDP-DATAGRAM:{peer}:{port},bind={host.underlay}:{port}",
        ]
        super().__init__(host, subnet, network, command)
