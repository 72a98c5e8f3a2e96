"""flannel's ipip backend: an inner packet right behind the outer IPv4 header, protocol 4 (RFC 2003).

The kernel carries them where it can, our own packet path elsewhere, by raw sockets: what others see is the same, on the
wire and in the lease. Both have the device flannel.ipip with the subnet's first address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from flannel_udp.backend.datapath import choose_datapath
from flannel_udp.backend.direct import route_for
from flannel_udp.backend.ipip.kernel import IpipKernelNetwork
from flannel_udp.backend.ipip.options import OPTION_KEYS, TYPE, ipip_mtu, read_ipip_options
from flannel_udp.backend.ipip.userspace import IpipUserspaceNetwork
from flannel_udp.backend.ipip.way import make_way, read_claim
from flannel_udp.backend.protocol import Backend, Context, Network, accept_types
from flannel_udp.backend.tunnel_device import remove_marked
from flannel_udp.model import Address, Interface, LeaseAttrs, Prefix
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class IpipBackend:
    """See `Backend`."""

    type = TYPE
    families = frozenset({4})
    option_keys = OPTION_KEYS
    hop_type = None

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `options`."""
        return read_ipip_options(reader)

    async def check(self, config: NetworkConfig, external: Interface) -> None:  # noqa: ARG002 - the protocol's
        """Raise `FlannelError` if the interface's MTU leaves no room for a packet."""
        ipip_mtu(external)

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> Prefix | None:  # noqa: ARG002 - the protocol's
        """Our own packet path has one route, for all of the overlay; the kernel's has those of the peers' subnets."""
        return route_for(config, address)

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> None:  # noqa: ARG002 - the protocol's
        """Take hosts of this backend; the public IP is all it needs."""
        accept_types(attrs, self.type, (self.type,))

    async def open(self, context: Context) -> Network:
        """Choose who carries packets, and open it. Raises `FlannelError`."""

        async def kernel() -> Network:
            claimed = await read_claim(context)
            return await asyncio.to_thread(partial(IpipKernelNetwork, context, claimed=claimed))

        async def userspace(why: str) -> Network:
            if context.handed is None:
                claimed = await read_claim(context)
                await asyncio.to_thread(partial(make_way, context.claims, claimed=claimed))
            return IpipUserspaceNetwork(context, why)

        return await choose_datapath(context, kernel, userspace)

    async def remove_remains(self, versions: Collection[int]) -> list[str]:
        """Remove the kernel's device; our own packet path's goes when it is closed."""
        return await asyncio.to_thread(remove_marked, TYPE) if 4 in versions else []


BACKEND: Backend = IpipBackend()
