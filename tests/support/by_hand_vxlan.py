"""The kernel's VXLAN on a lab host with a lease in the registry, as flanneld leaves both: an independent peer.

What is done on the host is in `flannel_udp.lab.kernel_vxlan`; here is the lease, which says VNI and MAC.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Network, ip_address, ip_network

from flannel_udp.lab.kernel_vxlan import VXLAN_OVERHEAD_BYTES, VXLAN_PORT, KernelPeer, KernelVxlan
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.model import Address, Prefix, Subnet
from tests.support.by_hand import ByHand, by_hand


def vxlan_value(public_ip: Address | str, mac: str, vni: int = 1) -> str:
    """Return a lease's value, byte for byte as flanneld writes it."""
    data = f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}'


def both_values(v4: LeasedVxlan | None, v6: LeasedVxlan) -> str:
    """Return the same for a host with IPv6, beside IPv4 or alone."""
    data = "" if v4 is None else f'"BackendData":{v4.data},'
    public_ip = "0.0.0.0" if v4 is None else v4.public_ip
    addresses = f'"PublicIP":"{public_ip}","PublicIPv6":"{v6.public_ip}"'
    return f'{{{addresses},"BackendType":"vxlan",{data}"BackendV6Data":{v6.data}}}'


def mac_of(host: Host, device: str = "flannel.1") -> str:
    """Return the MAC that a device has."""
    (link,) = json.loads(host.run(["ip", "-json", "link", "show", device]).stdout)
    return str(link["address"])


class LeasedVxlan(KernelVxlan):
    """One that follows the registry of its lab: it has a lease there, and learns of the others."""

    def __init__(
        self, host: Host, subnet: Prefix, *, vni: int = 1, port: int = VXLAN_PORT, udpcsum: bool = True
    ) -> None:
        super().__init__(host, subnet, vni=vni, port=port, udpcsum=udpcsum)
        self.registry = by_hand(Lab(host.plan))

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


def join_by_hand(host: Host, subnet: IPv4Network, *, udpcsum: bool = True) -> LeasedVxlan:
    """Let a lab's host join: device, pods, lease, and entries for all that have a lease by now."""
    joined = LeasedVxlan(host, subnet, udpcsum=udpcsum)
    joined.register()
    joined.learn()
    return joined


def join_by_hand_dual(host: Host, subnet: Subnet) -> tuple[LeasedVxlan, ...]:
    """Let a lab's host join by all families that the subnet has, under one key; the result has IPv4 first."""
    versions = {prefix.version for prefix in subnet.prefixes}
    mtu = host.plan.underlay_mtu - VXLAN_OVERHEAD_BYTES[max(versions)]
    if host.pods and not host.prefixes:
        host.attach_pods(subnet, mtu)
    parts = {prefix.version: LeasedVxlan(host, prefix) for prefix in subnet.prefixes}
    v4, v6 = parts.get(4), parts[6]
    v6.registry.put_leased(f"{'0.0.0.0-0' if v4 is None else v4.key}&{v6.key}", both_values(v4, v6))
    for part in parts.values():
        part.learn()
    return tuple(parts.values())
