"""A lab host with the kernel's VXLAN as flanneld leaves it, set up by iproute2: an independent peer for our agents.

No code of our backends runs here. What flanneld 0.28.9 was seen to do, in its order:

- device `flannel.VNI`: learning off, MTU the interface's less 50, a MAC of its own, the subnet's first address as a /32
- a lease that says VNI and MAC
- IPv6 likewise: `flannel-v6.VNI` with a MAC of its own, the interface's MTU less 70, a /128
- for each peer a neighbour (who has `10.244.2.0`), a forwarding entry (where that MAC is), a route `onlink`
"""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.model import Address, Prefix, Subnet
from tests.support.by_hand import ByHand, by_hand

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
    first, *others = random.randbytes(6)
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 2, *others))


def vxlan_value(public_ip: Address | str, mac: str, vni: int = 1) -> str:
    """Return a lease's value, byte for byte as flanneld writes it."""
    data = f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}'


def both_values(v4: KernelVxlan | None, v6: KernelVxlan) -> str:
    """Return the same for a host with IPv6, beside IPv4 or alone."""
    data = "" if v4 is None else f'"BackendData":{v4.data},'
    public_ip = "0.0.0.0" if v4 is None else v4.public_ip
    addresses = f'"PublicIP":"{public_ip}","PublicIPv6":"{v6.public_ip}"'
    return f'{{{addresses},"BackendType":"vxlan",{data}"BackendV6Data":{v6.data}}}'


def mac_of(host: Host, device: str = "flannel.1") -> str:
    """Return the MAC that a device has."""
    (link,) = json.loads(host.run(["ip", "-json", "link", "show", device]).stdout)
    return str(link["address"])


class KernelVxlan:
    """Sets `host` up in `subnet`, of one family, and attaches its pods; all of it goes with the lab.

    `udpcsum`: whether outer datagrams have a checksum; flanneld's were seen with both. By IPv6 all have one.
    """

    def __init__(
        self, host: Host, subnet: Prefix, *, vni: int = 1, port: int = VXLAN_PORT, udpcsum: bool = True
    ) -> None:
        self.host = host
        self.registry = by_hand(Lab(host.plan))
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
    def key(self) -> str:
        """The key of its lease, below `subnets/`."""
        return str(self.subnet).replace("/", "-")

    @property
    def value(self) -> str:
        """What its lease says."""
        return vxlan_value(self.host.underlay, self.mac, self.vni)

    @property
    def data(self) -> str:
        """What a lease of both families says of this one."""
        return f'{{"VNI":{self.vni},"VtepMAC":"{self.mac}"}}'

    @property
    def as_peer(self) -> KernelPeer:
        """What other hosts have to know of it."""
        return KernelPeer(self.subnet, self.public_ip, self.mac)

    def register(self) -> None:
        """Write its lease."""
        self.registry.put_leased(self.key, self.value)

    def leave(self) -> None:
        """Delete its lease. Nothing else of it goes."""
        self.registry.delete(self.key)

    def learn(self) -> None:
        """Take over what the registry says of the others: let those come that are new or differ, those go that left."""
        registered = _registered(self.registry, self.subnet.version)
        found = {peer.subnet: peer for peer in registered if peer.public_ip != self.public_ip}
        for subnet in self.peers.keys() - found.keys():
            self.remove(subnet)
        for peer in found.values():
            if peer != self.peers.get(peer.subnet):
                self.add(peer)

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


def _registered(registry: ByHand, version: int) -> list[KernelPeer]:
    """Return by one family all hosts of the backend vxlan that have a lease with a MAC."""
    name, data = ("PublicIP", "BackendData") if version == 4 else ("PublicIPv6", "BackendV6Data")
    found = []
    for key, text in registry.subnets().items():
        value = json.loads(text)
        mac = (value.get(data) or {}).get("VtepMAC")
        v4, _, v6 = key.replace("-", "/").partition("&")
        subnet = v4 if version == 4 else v6
        if value.get("BackendType") == "vxlan" and mac and subnet:
            found.append(KernelPeer(ip_network(subnet), ip_address(value[name]), mac))
    return found


def join_by_hand(host: Host, subnet: IPv4Network, *, udpcsum: bool = True) -> KernelVxlan:
    """Let a lab's host join: device, pods, lease, and entries for all that have a lease by now."""
    joined = KernelVxlan(host, subnet, udpcsum=udpcsum)
    joined.register()
    joined.learn()
    return joined


def join_by_hand_dual(host: Host, subnet: Subnet) -> tuple[KernelVxlan, ...]:
    """Let a lab's host join by all families that the subnet has, under one key; the result has IPv4 first."""
    versions = {prefix.version for prefix in subnet.prefixes}
    mtu = host.plan.underlay_mtu - VXLAN_OVERHEAD_BYTES[max(versions)]
    if host.pods and not host.prefixes:
        host.attach_pods(subnet, mtu)
    parts = {prefix.version: KernelVxlan(host, prefix) for prefix in subnet.prefixes}
    v4, v6 = parts.get(4), parts[6]
    v6.registry.put_leased(f"{'0.0.0.0-0' if v4 is None else v4.key}&{v6.key}", both_values(v4, v6))
    for part in parts.values():
        part.learn()
    return tuple(parts.values())
