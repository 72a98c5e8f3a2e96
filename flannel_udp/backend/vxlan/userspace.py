"""VXLAN by our own packet path, for hosts whose kernel has none: the same packets, through a TUN called flannel.VNI.

IPv6 has one of its own, flannel-v6.VNI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from flannel_udp.backend.datapath import USERSPACE
from flannel_udp.backend.packet_path import PacketPathNetwork, PathSettings, with_public_ips
from flannel_udp.backend.protocol import Context, NetworkFacts
from flannel_udp.backend.vxlan.hop import vxlan_attrs
from flannel_udp.backend.vxlan.macs import SharedMacs
from flannel_udp.backend.vxlan.options import mtu_option, vxlan_device, vxlan_mtu
from flannel_udp.backend.vxlan.vnis import OtherVnis
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.model import Delta, Subnet

SOURCE_PORTS = 16
"""By the inner flow, so that the underlay can tell flows apart (RFC 7348 section 5)."""


class VxlanUserspaceNetwork(PacketPathNetwork):
    """See `Network`, for one IP version.

    `mac` is our VtepMAC; `why`: it is not the kernel that carries packets, a clause.
    """

    def __init__(self, context: Context, mac: int, why: str, version: int = 4) -> None:
        config, options = context.config, context.config.backend.options
        vni = int(options["VNI"])
        settings = PathSettings(
            attrs=with_public_ips(vxlan_attrs(vni, mac, version), context.external, (version,)),
            mtu=partial(vxlan_mtu, config=config),
            mtu_option=mtu_option(config),
            encapsulation=Encapsulation("vxlan", vni, mac),
            port=int(options["Port"]),
            versions=(version,),
            device=vxlan_device(config, version),
            source_ports=SOURCE_PORTS,
            datapath=USERSPACE,
            why=why,
        )
        super().__init__(context, settings)
        self._macs = SharedMacs()
        self._vnis = OtherVnis(vni)

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`."""
        self._macs.take(deltas, whole=whole)
        self._vnis.take(deltas, whole=whole)
        await super().publish(own, deltas, whole=whole)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        facts = super().facts()
        return replace(facts, problems=(*facts.problems, *self._macs.problems, *self._vnis.problems))
