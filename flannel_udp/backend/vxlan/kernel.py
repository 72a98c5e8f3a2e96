"""VXLAN carried by the kernel: flannel.VNI as flanneld makes it, and what each peer has there.

IPv6 has a device of its own, flannel-v6.VNI, which is the same in everything but the addresses.

```
10.1.16.0/24 via 10.1.16.0 dev flannel.1 onlink       the route, to the subnet's first address as a neighbour
10.1.16.0 lladdr 8e:64:7c:7f:e7:c9 PERMANENT          which has the peer's MAC
8e:64:7c:7f:e7:c9 dst 192.0.2.2 self permanent        which is to be found at the peer's public IP
```
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from flannel_udp.backend.datapath import KERNEL
from flannel_udp.backend.ends import ends_of
from flannel_udp.backend.kernel_tunnel import KernelTunnelNetwork, claim_tunnel
from flannel_udp.backend.protocol import Context, EchoRoute, KernelWay, NetworkFacts
from flannel_udp.backend.tunnel_device import TunnelDevice
from flannel_udp.backend.vxlan.entries import REPAIRS, VxlanEntries
from flannel_udp.backend.vxlan.hop import format_mac, mac_of, random_mac, vxlan_attrs
from flannel_udp.backend.vxlan.options import mtu_option, overhead_bytes, vxlan_device, vxlan_mtu
from flannel_udp.backend.vxlan.vnis import OtherVnis
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.host import vxlan_devices
from flannel_udp.host.links import Device
from flannel_udp.host.neighbours import FORWARDING, NEIGHBOURS, TableReader, hosts_in_use
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Delta, Interface, LeaseAttrs, Peer, PeerActivity, Subnet

USED_S = 1.5
"""A forwarding entry is in use if it was used so long ago: activity is asked for every second."""
ECHOES_S = 5.0
"""For so long after a peer's echo route was asked for, what uses its entry may be the agent's own echoes."""
ACTIVITY_PART = 1_024


@dataclass(frozen=True, slots=True)
class VxlanKind:
    """See `TunnelKind`."""

    name: str
    vni: int
    port: int
    version: int = 4
    kind: str = vxlan_devices.KIND
    changeable: Set[int] = vxlan_devices.CHANGEABLE
    not_compared: Set[int] = vxlan_devices.NOT_COMPARED

    def details(self, external: Interface) -> Mapping[int, bytes | None]:
        """See `TunnelKind.details`: who has which MAC is known from leases, so nothing is learned."""
        local = ends_of(external, self.version).address
        return vxlan_devices.details_of(
            vni=self.vni, port=self.port, local=local, link=external.index, learning=False, gbp=False
        )

    def describe(self, netlink: Rtnetlink, details: Mapping[int, bytes]) -> str:
        """See `TunnelKind.describe`."""
        return vxlan_devices.describe(netlink, details)

    def is_kin(self, found: Device) -> bool:
        """See `TunnelKind.is_kin`."""
        return vxlan_devices.version_of(found) == self.version

    def claims(self, found: Device) -> bool:  # noqa: ARG002 - the MAC address tells
        """See `TunnelKind.claims`."""
        return False

    def rivals(self, netlink: Rtnetlink, code: int) -> list[Device]:
        """See `TunnelKind.rivals`.

        Devices of one port share it if they take the same kinds of frames, but not with the same VNI.
        """
        on_port = vxlan_devices.devices_on(netlink, self.port) if code in (errno.EEXIST, errno.EADDRINUSE) else []
        on_port = [found for found in on_port if self.is_kin(found)]  # IPv4 and IPv6 have sockets of their own
        if code == errno.EEXIST:
            return [found for found in on_port if vxlan_devices.vni_of(found) == self.vni]
        return [found for found in on_port if found.up and found.name != self.name]

    def explain(self, code: int, rivals: Iterable[Device]) -> str | None:
        """See `TunnelKind.explain`."""
        names = [found.name for found in rivals]
        if code == errno.EADDRINUSE and names:
            return (
                f"UDP port {self.port} is in use by the kernel's VXLAN device {' and '.join(names)}: remove it with "
                f"'ip link del {names[0]}', or choose another Backend.Port for the whole network"
            )
        if code == errno.EADDRINUSE:
            return (
                f"UDP port {self.port} is in use by another program, `ss -ulpn sport = :{self.port}` shows which: stop "
                "it, or choose another Backend.Port for the whole network"
            )
        if code == errno.EEXIST and names:
            return (
                f"the VNI {self.vni} on UDP port {self.port} is in use by the VXLAN device {names[0]}: remove it with "
                f"'ip link del {names[0]}', or choose another Backend.VNI for the whole network"
            )
        return None


class VxlanKernelNetwork(KernelTunnelNetwork):
    """See `Network`, for one IP version.

    `mac` is the MAC address that our entry names, ``None`` if it names none; an existing device's counts before it.
    Raises `KindUnknown` where the kernel has no VXLAN, and other `FlannelError`.
    """

    def __init__(self, context: Context, mac: int | None, version: int = 4) -> None:
        claim_tunnel(context)
        options, external = context.config.backend.options, context.external
        self._vni, self._port = int(options["VNI"]), int(options["Port"])
        fit = partial(vxlan_mtu, config=context.config)
        kind = VxlanKind(vxlan_device(context.config, version), self._vni, self._port, version)
        device = TunnelDevice(kind, external, fit(external), mac=mac or random_mac(), claimed=mac or 0)
        entries = VxlanEntries(lambda: device.index, version)
        super().__init__(
            *(context, vxlan_attrs(self._vni, device.mac, version), device, fit, entries),
            gateway=lambda peer: peer.subnet.network_address,
            overhead_bytes=overhead_bytes(context.config),
            version=version,
        )
        self.repairs.update(dict.fromkeys(REPAIRS, 0))
        self._vnis = OtherVnis(self._vni)
        self._asked_s: dict[int, float] = {}  # when a peer's echo route was asked for, by public IP in host order

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        self._vnis.take(deltas, whole=whole)
        await super().publish(own, deltas, whole=whole)

    def _claimed(self, former: LeaseAttrs | None) -> int:
        return mac_of(former, self._version) or 0

    async def activity(self) -> AsyncIterator[Sequence[PeerActivity]]:
        """See `Network.activity`, as far as forwarding entries tell: that packets went there, never that one came.

        Nobody counts how long packets are: any may be as long as the MTU.
        """
        in_use = await asyncio.to_thread(self._hosts_in_use)
        now_s = monotonic()
        self._asked_s = {at: asked_s for at, asked_s in self._asked_s.items() if now_s - asked_s <= ECHOES_S}
        sent = sorted(in_use - self._asked_s.keys())
        for first in range(0, len(sent), ACTIVITY_PART):
            yield [PeerActivity(at, 1, 0, self.mtu) for at in sent[first : first + ACTIVITY_PART]]
            await asyncio.sleep(0)
        async for part in super().activity():
            yield part

    def _hosts_in_use(self) -> set[int]:
        with open_rtnetlink("reading the forwarding entries") as netlink:
            return hosts_in_use(netlink, self._device.index, USED_S)

    def echo_route(self, peer: Peer) -> EchoRoute | None:
        """See `Network.echo_route`."""
        self._asked_s[int(peer.public_ip)] = monotonic()
        return super().echo_route(peer)

    def mtu_option(self, peer: Peer, n_bytes: int) -> int | None:
        """See `Network.mtu_option`."""
        option = mtu_option(self._context.config)
        return option.fitting(n_bytes, peer.version, direct=bool(self.is_direct(peer)))

    def kernel_way(self, peer: Peer) -> KernelWay:
        """See `Network.kernel_way`: neighbour and forwarding entry."""
        if self.is_direct(peer):
            return KernelWay()
        first, name = peer.subnet.network_address, self._device.name
        mac, index, version = format_mac(peer.hop.vtep_mac), self._device.index, self._version
        packed = peer.hop.vtep_mac.to_bytes(6, "big")
        with open_rtnetlink(f"asking the kernel about {peer.public_ip}") as netlink:
            neighbours = TableReader(NEIGHBOURS[version]).read(netlink, index)
            forwarding = TableReader(FORWARDING[version]).read(netlink, index)
        entries = (
            (f"neighbour {first} dev {name} lladdr {mac} PERMANENT", neighbours.get(first.packed) == packed),
            (
                f"fdb {mac} dev {name} dst {peer.public_ip} self permanent",
                forwarding.get(packed) == peer.public_ip.packed,
            ),
        )
        encapsulation = Encapsulation("vxlan", self._vni, self._device.mac)
        return KernelWay(encapsulation, self._port, peer.hop.vtep_mac, entries)

    @property
    def source_ports(self) -> Collection[int]:
        """See `Network.source_ports`: the kernel chooses one for each inner flow."""
        return range(1, 65_536)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        facts = super().facts()
        problems = (*facts.problems, *self._vnis.problems)
        return replace(facts, port=self._port, datapath=KERNEL, problems=problems)
