"""A lab host with the kernel's VXLAN as flanneld sets it up, by iproute2: what our agents are compared with.

No code of our backends runs here. What flanneld 0.28.9 was seen to do, in its order:

- device `flannel.VNI`: learning off, MTU the interface's less 50, a MAC of its own, the subnet's first address as a /32
- IPv6 likewise: `flannel-v6.VNI` with a MAC of its own, the interface's MTU less 70, a /128
- for each peer a neighbour (who has `10.244.2.0`), a forwarding entry (where that MAC is), a route `onlink`
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.lab import netns
from flannel_udp.lab.node import Host
from flannel_udp.model import Address, Prefix

VXLAN_PORT = 8472
VXLAN_OVERHEAD_BYTES = {4: 50, 6: 70}
"""By IP version: outer IP header 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14."""


@dataclass(frozen=True, slots=True)
class KernelPeer:
    """What a host has to know of another one by one family; `mac` with colons, in lower case."""

    subnet: Prefix
    public_ip: Address
    mac: str


def random_mac() -> str:
    """Return a unicast address that is administered locally, as flanneld makes it up."""
    first, *others = random.randbytes(6)  # noqa: S311 - an address, no secret
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 2, *others))


class KernelVxlan:
    """Sets `host` up in `subnet`, of one family, and attaches its pods; all of it goes with the lab.

    `udpcsum`: whether outer datagrams have a checksum; flanneld's were seen with both. By IPv6 all have one.
    """

    def __init__(
        self, host: Host, subnet: Prefix, *, vni: int = 1, port: int = VXLAN_PORT, udpcsum: bool = True
    ) -> None:
        self.host = host
        self.subnet = subnet
        self.vni = vni
        self.mac = random_mac()
        self.public_ip = host.underlay_of(subnet.version)
        self.device = f"flannel{'-v6' if subnet.version == 6 else ''}.{vni}"[:15]  # IFNAMSIZ; flanneld has no such VNI
        self.mtu_bytes = host.plan.underlay_mtu - VXLAN_OVERHEAD_BYTES[subnet.version]
        self.peers: dict[Prefix, KernelPeer] = {}
        settings = f"local {self.public_ip} dev eth0 srcport 0 0 dstport {port} nolearning"
        host.configure(
            f"link add {self.device} address {self.mac} mtu {self.mtu_bytes} "
            f"type vxlan id {vni} {settings} {'udpcsum' if udpcsum else 'noudpcsum'}"
        )
        netns.call_inside(host.namespace, self._refuse_router_advertisements)
        host.configure(
            f"addr add {subnet.network_address}/{subnet.max_prefixlen} dev {self.device}", f"link set {self.device} up"
        )
        if host.pods and not host.prefixes:
            host.attach_pods(subnet, self.mtu_bytes)

    def _refuse_router_advertisements(self) -> None:
        with suppress(FileNotFoundError):  # with an MTU below 1280 there is no IPv6
            Path(f"/proc/sys/net/ipv6/conf/{self.device}/accept_ra").write_text("0\n")

    @property
    def as_peer(self) -> KernelPeer:
        """What other hosts have to know of it."""
        return KernelPeer(self.subnet, self.public_ip, self.mac)

    def add(self, peer: KernelPeer) -> None:
        """Let packets travel to a peer, in the place of who had its subnet before."""
        if peer.subnet in self.peers:
            self.remove(peer.subnet)
        gateway = peer.subnet.network_address
        self.host.configure(f"neigh replace {gateway} lladdr {peer.mac} dev {self.device} nud permanent")
        self._fdb("replace", peer)
        self.host.configure(f"route replace {peer.subnet} via {gateway} dev {self.device} onlink")
        self.peers[peer.subnet] = peer

    def remove(self, subnet: Prefix) -> None:
        """Let no packet travel to who has that subnet."""
        peer = self.peers.pop(subnet)
        self.host.configure(f"route del {subnet} dev {self.device}")
        self._fdb("del", peer)
        self.host.configure(f"neigh del {subnet.network_address} dev {self.device}")

    def _fdb(self, command: str, peer: KernelPeer) -> None:
        """Change the entry that says where the peer's MAC is; `ip` cannot, `bridge` can."""
        entry = [peer.mac, "dev", self.device, "dst", str(peer.public_ip), "self", "permanent"]
        self.host.run(["bridge", "fdb", command, *entry])
