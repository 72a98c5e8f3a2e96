"""IP in IP by the kernel: flannel.ipip as flanneld makes it, and a route a peer.

```
10.1.16.0/24 via 192.0.2.2 dev flannel.ipip onlink      the gateway is where the outer packet goes
```
"""

from __future__ import annotations

from dataclasses import replace

from flannel_udp.backend.datapath import KERNEL
from flannel_udp.backend.ipip.device import IpipKind
from flannel_udp.backend.ipip.options import OVERHEAD_BYTES, TYPE, ipip_mtu
from flannel_udp.backend.kernel_tunnel import KernelTunnelNetwork, claim_tunnel
from flannel_udp.backend.protocol import Context, KernelWay, NetworkFacts
from flannel_udp.backend.tunnel_device import TunnelDevice
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.raw_underlay import PROTOCOL
from flannel_udp.model import LeaseAttrs, Peer, Prefix


class IpipKernelNetwork(KernelTunnelNetwork):
    """See `Network`. `claimed`: our entry says that a device without our mark is flanneld's, and so ours to change.

    Raises `KindUnknown` where the kernel has no IPIP, and other `FlannelError`.
    """

    def __init__(self, context: Context, *, claimed: bool) -> None:
        claim_tunnel(context)
        external = context.external
        device = TunnelDevice(IpipKind(claimed=claimed), external, ipip_mtu(external))
        attrs = LeaseAttrs(None, backend_type=TYPE)
        super().__init__(
            *(context, attrs, device, ipip_mtu),
            gateway=lambda peer: peer.public_ip,
            overhead_bytes=OVERHEAD_BYTES,
        )

    def _gateways_outside(self) -> Prefix | None:
        return self._context.config.overlay

    def kernel_way(self, peer: Peer) -> KernelWay:
        """See `Network.kernel_way`; the route has the gateway, so nothing is beside it."""
        return KernelWay() if self.is_direct(peer) else KernelWay(Encapsulation("ipip"))

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        return replace(super().facts(), ip_protocol=PROTOCOL, datapath=KERNEL)
