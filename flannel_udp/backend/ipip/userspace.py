"""IP in IP by our own packet path, for hosts whose kernel has none: the same packets, through a TUN and raw sockets."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from flannel_udp.backend.datapath import USERSPACE
from flannel_udp.backend.ipip.options import DEVICE, TYPE, ipip_mtu
from flannel_udp.backend.ipip.way import rivals_at
from flannel_udp.backend.packet_path import PacketPathNetwork, PathSettings
from flannel_udp.backend.protocol import Context, NetworkFacts
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.host.repair import Standing
from flannel_udp.model import LeaseAttrs

logger = logging.getLogger(__name__)


class IpipUserspaceNetwork(PacketPathNetwork):
    """See `Network`. `why`: it is not the kernel that carries packets, a clause."""

    def __init__(self, context: Context, why: str) -> None:
        settings = PathSettings(
            attrs=LeaseAttrs(context.external.public_ip, backend_type=TYPE),
            mtu=ipip_mtu,
            encapsulation=Encapsulation("ipip"),
            port=None,
            device=DEVICE,
            datapath=USERSPACE,
            why=why,
        )
        super().__init__(context, settings)
        self._rivalry: str | None = None  # why packets arrive twice

    async def repair(self) -> Standing:
        """See `KeptNetwork.repair`; who else takes our packets cannot be put right, but said."""
        names = await asyncio.to_thread(rivals_at, self._external.address)
        rivalry = _explain(names) if names else None
        if rivalry != self._rivalry:
            self._rivalry = rivalry
            logger.warning("%s", rivalry) if rivalry else logger.info("packets of peers arrive once again")
        return await super().repair()

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        facts = super().facts()
        return facts if self._rivalry is None else replace(facts, problems=(*facts.problems, self._rivalry))


def _explain(names: list[str]) -> str:
    which = " and ".join(names)
    return (
        f"the kernel's {which} takes every packet of peers, too, and delivers it a second time: "
        f"'ip link set {names[0]} down', or leave out --datapath=userspace"
    )
