"""flannel's udp backend: inner packets in UDP datagrams, through our own packet path.

One inner packet is the whole payload of one datagram to the peer's public IP; every host listens on one port. IPv6
packets travel over IPv6, to the peer's PublicIPv6: that is ours, flanneld's udp leaves it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from flannel_udp.backend.direct import route_for
from flannel_udp.backend.families import versions_on
from flannel_udp.backend.in_the_way import open_on_port
from flannel_udp.backend.late import FATAL
from flannel_udp.backend.mtu import MTU_MIN_BYTES, MtuOption, inner_mtu
from flannel_udp.backend.packet_path import PacketPathNetwork, PathSettings, with_public_ips
from flannel_udp.backend.protocol import Backend, Context, accept_types
from flannel_udp.dataplane.adopted import carried_versions
from flannel_udp.dataplane.dataplane import DSCP_INHERIT
from flannel_udp.dataplane.encapsulation import UDP
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Interface, LeaseAttrs, Prefix
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

DEFAULT_PORT = 8285
DEFAULT_DSCP = 0
"""No pod picks the underlay's priority (RFC 2983 section 3.1, pipe model)."""
INHERIT = "inherit"
"""The outer header's DSCP is the inner one's: for underlays where the pods are trusted to pick it."""
OVERHEAD_BYTES = {4: 28, 6: 48}
"""Outer IP header 20 or 40, UDP 8.
With both versions all packets have room for the larger one: the network has one MTU."""
MTU_MAX_BYTES = 65_507
"""What one UDP datagram over IPv4 can hold."""


class UdpBackend:
    """See `Backend`."""

    type = "udp"
    families = frozenset({4, 6})
    option_keys = ("Port", "DSCP", "MTU", "DirectRouting")
    hop_type = None

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """Read them. Whether the MTU fits its interface is for each host to say, see `check`."""
        port, mtu = reader.integer("Port"), reader.integer("MTU")
        if port is not None and not 1 <= port <= 65_535:
            reader.wrong("Port", "1 to 65535")
        options = {"Port": DEFAULT_PORT if port is None else port, "DSCP": _read_dscp(reader)}
        if reader.boolean("DirectRouting", default=False):
            options["DirectRouting"] = True
        if mtu is not None:
            options["MTU"] = mtu
            if not MTU_MIN_BYTES <= mtu <= MTU_MAX_BYTES:
                reader.wrong("MTU", f"{MTU_MIN_BYTES} to {MTU_MAX_BYTES}")
        return options

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` if the overlay's MTU does not fit into the interface's."""
        _mtu(external, config)

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> Prefix | None:  # noqa: ARG002 - the protocol's
        """One route, to flannel0, has all of the overlay; with DirectRouting a subnet may have its own."""
        return route_for(config, address)

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> None:  # noqa: ARG002 - the protocol's
        """Take hosts of this backend and those that name none, as flannel's udp does; the public IP is all it needs."""
        accept_types(attrs, self.type, ("", self.type))

    async def open(self, context: Context) -> PacketPathNetwork:
        """Open flannel0 and the sockets, or go on with those that were handed over. Raises `FlannelError`.

        A host takes part by what it has an address of. An IP version that cannot be had now is tried again, as one
        whose address comes late, as long as there is another one.
        """
        on, handed = versions_on(context.config, context.external), context.handed
        if handed is not None:
            carried = carried_versions(handed.descriptors, UDP.kind)
            # Of what is not ours none will fit, and that is said.
            return await self._open(context, carried if carried and set(carried) <= set(on) else on)
        first: FlannelError | None = None
        for versions in (on, *([(version,) for version in on] if len(on) > 1 else [])):
            try:
                return await self._open(context, versions)
            except FATAL:
                raise
            except FlannelError as failed:
                first = first or failed
        assert first is not None  # noqa: S101 - or it were open
        raise first

    async def _open(self, context: Context, versions: tuple[int, ...]) -> PacketPathNetwork:
        config, dscp = context.config, context.config.backend.options["DSCP"]
        settings = PathSettings(
            attrs=with_public_ips(LeaseAttrs(None), context.external, versions),
            mtu=lambda external: _mtu(external, config),
            mtu_option=mtu_option(config),
            versions=versions,
            late=tuple(version for version in config.versions if version not in versions),
            encapsulation=UDP,
            port=config.backend.options["Port"],
            dscp=DSCP_INHERIT if dscp == INHERIT else dscp,
        )
        return await open_on_port(context, partial(PacketPathNetwork, context, settings))

    async def remove_remains(self, versions: Collection[int]) -> list[str]:  # noqa: ARG002 - the protocol's
        """Nothing is left of a run: the kernel removes flannel0, with its address and route, when it is closed."""
        return []


BACKEND: Backend = UdpBackend()


def _read_dscp(reader: ObjectReader) -> int | str:
    """Read the outer headers' DSCP, six bits (RFC 2474 section 3), or the word for the inner one's."""
    dscp = reader.value("DSCP")
    if dscp is None:
        return DEFAULT_DSCP
    if isinstance(dscp, str) and dscp.lower() == INHERIT:
        return INHERIT
    if not isinstance(dscp, int) or isinstance(dscp, bool) or not 0 <= dscp <= 63:
        reader.wrong("DSCP", f'"{INHERIT}" or 0 to 63')
        return DEFAULT_DSCP
    return dscp


def mtu_option(config: NetworkConfig) -> MtuOption:
    """Return what Backend.MTU means: it is the overlay's."""
    return MtuOption(OVERHEAD_BYTES, config.versions, of_underlay=False)


def _mtu(external: Interface, config: NetworkConfig) -> int:
    wanted, overhead = config.backend.options.get("MTU"), OVERHEAD_BYTES[max(config.versions)]
    return inner_mtu(external, overhead, MTU_MAX_BYTES, wanted, with_ipv6=6 in config.versions)
