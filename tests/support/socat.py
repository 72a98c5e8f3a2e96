"""socat as a second independent peer: it knows one other host only, and leaves the TTL alone."""

from __future__ import annotations

from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Host
from flannel_udp.lab.peer_program import Peer, endpoint
from flannel_udp.model import Address, Prefix
from tests.support.patience import PATIENCE_S


class SocatPeer(Peer):
    """Everything the overlay route brings goes to `peer`, everything `peer` sends comes out of the TUN."""

    def __init__(
        self, host: Host, subnet: Prefix, peer: Address, network: Prefix | None = None, *, device: str = "flannel0"
    ) -> None:
        port = host.plan.port
        there, here = endpoint(peer, port), endpoint(host.underlay_of(peer.version), port)
        command = [
            "socat",
            "-b65536",
            f"TUN,tun-name={device},iff-no-pi",
            f"UDP{peer.version}-DATAGRAM:{there},bind={here}",
        ]
        super().__init__(host, subnet, network, command, device=device)
        # It opens the TUN first: what comes before it has the other end open as well is lost.
        if not wait_until(lambda: host.run(["ss", "-Hlun", f"sport = :{port}"]).stdout != "", PATIENCE_S):
            self.stop()
            raise FlannelError(f"{host.name}: socat does not listen on port {port}")
