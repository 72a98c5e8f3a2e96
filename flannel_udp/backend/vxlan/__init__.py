"""flannel's vxlan backend: inner packets in Ethernet frames in VXLAN datagrams (RFC 7348).

The kernel carries them where it can, our own packet path elsewhere: what others see is the same, on the wire and in the
lease. Both have the device flannel.VNI with the subnet's first address. IPv6 has a device of its own, flannel-v6.VNI,
and so its own MAC address, neighbours and routes: nothing of the one family is the other's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flannel_udp.backend.datapath import choose_datapath, expects_kernel
from flannel_udp.backend.direct import route_for
from flannel_udp.backend.families import open_families, versions_on
from flannel_udp.backend.in_the_way import free_name, open_on_port
from flannel_udp.backend.joined_paths import share_out
from flannel_udp.backend.leased_routes import leasable
from flannel_udp.backend.protocol import Backend, Context, Handed, Network, accept_types
from flannel_udp.backend.tunnel_device import remove_marked
from flannel_udp.backend.vxlan.hop import TYPE, VxlanHop, format_mac, mac_of, random_mac, read_vxlan_hop
from flannel_udp.backend.vxlan.kernel import VxlanKernelNetwork
from flannel_udp.backend.vxlan.options import OPTION_KEYS, read_vxlan_options, vxlan_device, vxlan_mtu
from flannel_udp.backend.vxlan.userspace import VxlanUserspaceNetwork
from flannel_udp.host.vxlan_devices import IMPOSSIBLE, KIND, version_of
from flannel_udp.model import Address, Interface, LeaseAttrs, Prefix
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class VxlanBackend:
    """See `Backend`."""

    type = TYPE
    families = frozenset({4, 6})
    option_keys = OPTION_KEYS
    hop_type = VxlanHop

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `options`."""
        return read_vxlan_options(reader)

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` if the MTU does not fit into the interface's."""
        vxlan_mtu(external, config)

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> Prefix | None:
        """Our own packet path has one route, for all of the overlay; the kernel's has those of the peers' subnets."""
        if expects_kernel(datapath, KIND, IMPOSSIBLE):
            return leasable(config, address)
        return route_for(config, address)

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> VxlanHop:
        """Take hosts of this backend that say which MAC address they have; nobody can have ours."""
        accept_types(attrs, self.type, (self.type,))
        hop = read_vxlan_hop(attrs, version)
        if own is not None and hop.vtep_mac == mac_of(own, version):
            said = format_mac(hop.vtep_mac)
            raise ValueError(f"its VtepMAC {said} is ours: of two hosts one has to get another, see docs/backends.md")
        return hop

    async def open(self, context: Context) -> Network:
        """Choose who carries packets, and open it. Raises `FlannelError`."""
        former = await context.read_former()

        async def kernel() -> Network:
            async def open_one(context: Context, version: int) -> Network:
                return await asyncio.to_thread(VxlanKernelNetwork, context, mac_of(former, version), version)

            return await open_families(context, open_one)

        async def userspace(why: str) -> Network:
            shares = _share_out(context)

            async def open_one(context: Context, version: int) -> Network:
                share = replace(context, handed=shares.pop(version, None))
                mac = _handed_mac(share)
                if share.handed is None:
                    name = vxlan_device(context.config, version)
                    mac = await asyncio.to_thread(free_name, name, former, context.claims)
                mac = mac or mac_of(former, version) or random_mac()
                return await open_on_port(share, partial(VxlanUserspaceNetwork, share, mac, why, version))

            try:
                return await open_families(context, open_one, tuple(shares))
            finally:
                for share in shares.values():  # one family could not be opened, and the other was not tried
                    share.close()

        return await choose_datapath(context, kernel, userspace, probe=(KIND, IMPOSSIBLE))

    async def remove_remains(self, versions: Collection[int]) -> list[str]:
        """Remove the kernel's devices; our own packet path's goes when it is closed."""
        return await asyncio.to_thread(remove_marked, KIND, lambda found: version_of(found) in versions)


BACKEND: Backend = VxlanBackend()


def _handed_mac(context: Context) -> int | None:
    """Return the MAC address that came with what was handed over; what systemd kept says none."""
    state = None if context.handed is None else context.handed.state
    theirs = None if state is None else state.get("encapsulation")
    mac = theirs.get("own_mac") if isinstance(theirs, Mapping) else None
    return mac if isinstance(mac, int) else None


def _share_out(context: Context) -> dict[int, Handed]:
    """Return what was handed over, by the IP version of the packet path that it was. Raises `FlannelError`."""
    versions = context.config.versions
    if context.handed is None:
        return {}
    if len(versions) == 1:
        return {versions[0]: context.handed}
    return share_out(context.handed, versions_on(context.config, context.external))
