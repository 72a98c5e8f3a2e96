"""flannel's udp backend: inner packets in UDP datagrams, through our own packet path.

One inner IPv4 packet is the whole payload of one datagram to the peer's public IP; every host listens on one port.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.backend.mtu import MTU_MIN_BYTES, inner_mtu
from flannel_udp.backend.protocol import Backend, Context, Handed, NetworkFacts, accept_types
from flannel_udp.backend.tunnel import REPAIRS, TunnelKeeper
from flannel_udp.dataplane.adopted import Adopted, adopted_from
from flannel_udp.dataplane.dataplane import DSCP_INHERIT, Dataplane, count_workers
from flannel_udp.dataplane.kernel_faults import kernel_faults
from flannel_udp.errors import FlannelError
from flannel_udp.host import netlink
from flannel_udp.host.monitor import Interest, Monitor, open_monitor_socket
from flannel_udp.host.privileges import check_tun
from flannel_udp.model import Delta, Interface, LeaseAttrs, Peer, PeerTraffic, RouteAnswer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8285
DEFAULT_DSCP = 0
"""No pod picks the underlay's priority (RFC 2983 section 3.1, pipe model)."""
INHERIT = "inherit"
"""The outer header's DSCP is the inner one's: for underlays where the pods are trusted to pick it."""
OVERHEAD_BYTES = 28
"""Outer IPv4 header 20, UDP 8."""
MTU_MAX_BYTES = 65_507
"""What one UDP datagram over IPv4 can hold."""


class UdpBackend:
    """See `Backend`."""

    type = "udp"
    families = frozenset({4})
    option_keys = ("Port", "DSCP", "MTU")

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """Read port, DSCP and MTU. Whether the MTU fits its interface is for each host to say, see `check`."""
        port, mtu = reader.integer("Port"), reader.integer("MTU")
        if port is not None and not 1 <= port <= 65_535:
            reader.wrong("Port", "1 to 65535")
        options = {"Port": DEFAULT_PORT if port is None else port, "DSCP": _read_dscp(reader)}
        if mtu is not None:
            options["MTU"] = mtu
            if not MTU_MIN_BYTES <= mtu <= MTU_MAX_BYTES:
                reader.wrong("MTU", f"{MTU_MIN_BYTES} to {MTU_MAX_BYTES}")
        return options

    def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` if the overlay's MTU does not fit into the interface's."""
        _mtu(external, config)

    def read_hop(self, attrs: LeaseAttrs) -> None:
        """Take hosts of this backend and those that name none, as flannel's udp does; the public IP is all it needs."""
        accept_types(attrs, self.type, ("", self.type))

    async def open(self, context: Context) -> UdpNetwork:
        """Open flannel0 and the sockets, or go on with those that were handed over. Raises `FlannelError`."""
        if context.handed is None:
            check_tun()
        return UdpNetwork(context, _open_dataplane(context))

    async def remove_remains(self, overlay: IPv4Network) -> list[str]:  # noqa: ARG002 - the protocol's
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


def _mtu(external: Interface, config: NetworkConfig) -> int:
    return inner_mtu(external, OVERHEAD_BYTES, MTU_MAX_BYTES, config.backend.options.get("MTU"))


def _open_dataplane(context: Context) -> Dataplane:
    options, chosen = context.options.dataplane, context.config.backend.options
    adopted = None if context.handed is None else _adopt(context.handed, count_workers(options))
    return Dataplane(
        context.external.address,
        chosen["Port"],
        options,
        context.on_fault,
        dscp=DSCP_INHERIT if chosen["DSCP"] == INHERIT else chosen["DSCP"],
        adopted=adopted,
    )


def _adopt(handed: Handed, workers: int) -> Adopted:
    try:
        return adopted_from(handed.descriptors, workers, handed.state)
    except FlannelError:
        for fd in handed.descriptors.values():
            os.close(fd)
        raise


class UdpNetwork:
    """See `Network`: the dataplane, and flannel0 kept as it should be."""

    look_every_s = None  # the kernel reports all there is to see

    def __init__(self, context: Context, dataplane: Dataplane) -> None:
        self._config = context.config
        self._external = external = context.external
        self._dataplane = dataplane
        self.attrs = LeaseAttrs(external.public_ip)
        self.mtu = _mtu(external, context.config)
        self.repairs: Counter[str] = Counter(dict.fromkeys((*REPAIRS, "socket"), 0))
        """``socket``: the sockets bound to another address; see backend.tunnel for the others."""
        queue_packets = context.options.dataplane.tx_queue_packets
        self._tunnel = TunnelKeeper(dataplane, context.config.overlay, queue_packets, self.repairs)
        # Any route may lead to a peer, over any device: to ask anew once too often costs a packet for each narrow path.
        self._path_news = Monitor(open_monitor_socket(), dataplane.forget_path_mtus)
        buffers = dataplane.socket_buffers
        logger.info("opened %s and UDP %s:%d", dataplane.tunnel.name, external.address, self._port)
        logger.info(
            "offloads in use: %s; workers: %d; socket buffers: receive %d, send %d bytes",
            *(", ".join(dataplane.offload.names()) or "none", dataplane.workers, *buffers),
        )

    @property
    def _port(self) -> int:
        return int(self._config.backend.options["Port"])

    # What packets do

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`: a route table goes in force."""
        await self._dataplane.publish(own, deltas, whole=whole)

    def start(self) -> None:
        """See `Network.start`: the data threads."""
        self._dataplane.start()

    async def withdraw(self) -> None:
        """See `Network.withdraw`: an empty table."""
        await self._dataplane.publish(None, (), whole=True)

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the engines keep to it by themselves."""
        self._dataplane.forward_until(boottime_s)

    # The host

    async def hold(self, subnet: IPv4Network, former: LeaseAttrs | None) -> None:  # noqa: ARG002
        """See `KeptNetwork.hold`."""
        await self._tunnel.hold(subnet, self.mtu)

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`."""
        return self._tunnel.interest()

    async def repair(self) -> None:
        """See `KeptNetwork.repair`."""
        await self._tunnel.repair(self.mtu)

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: bind to another address, fit the MTU."""
        former = self._external
        if external.address != former.address:
            self._dataplane.rebind(external.address)
            self.repairs["socket"] += 1
            logger.info(
                "the external address is %s on %s now, it was %s on %s: UDP is bound to it, public IP %s",
                *(external.address, external.name, former.address, former.name, external.public_ip),
            )
        self._external, self.attrs = external, replace(self.attrs, public_ip=external.public_ip)
        if external.mtu != former.mtu:
            self._fit_mtu()

    def _fit_mtu(self) -> None:
        """Let flannel0's MTU follow the interface's, at the next `repair`."""
        external = self._external
        try:
            mtu = _mtu(external, self._config)
        except FlannelError as misfit:
            logger.warning("%s; the tunnel keeps its MTU of %d, and what is larger is lost", misfit, self.mtu)
            return
        if mtu != self.mtu:
            logger.info("the MTU of %s is %d now: the tunnel's is %d", external.name, external.mtu, mtu)
            self.mtu = mtu
            self._tunnel.mtu_follows()

    # What is asked

    def peers(self) -> list[Peer]:
        """See `Network.peers`."""
        return self._dataplane.sorted_peers()

    def traffic(self, peer: Peer) -> PeerTraffic:
        """See `Network.traffic`."""
        return self._dataplane.traffic(peer)

    def route(self, address: IPv4Address) -> RouteAnswer:
        """See `Network.route`."""
        return self._dataplane.route(address)

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        dataplane = self._dataplane
        return NetworkFacts(
            device=dataplane.tunnel.name,
            port=self._port,
            offload=dataplane.offload.names(),
            worker_packets=dataplane.worker_packets(),
            socket_buffers=dataplane.socket_buffers,
            counters=dataplane.counters(),
            problems=kernel_faults(os.uname().release, dataplane.offload),
        )

    async def come_round(self) -> None:
        """See `Network.come_round`."""
        await self._dataplane.come_round()

    @property
    def transferable(self) -> Dataplane:
        """See `Network.transferable`."""
        return self._dataplane

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`."""
        self._path_news.close()
        name, persistent = self._dataplane.tunnel.name, self._dataplane.tunnel.persistent
        self._dataplane.close()
        if persistent and not keep:  # somebody else made it, so it stays, with nothing of ours on it
            with suppress(FlannelError):
                await asyncio.to_thread(netlink.unconfigure, name)  # never on this loop: pyroute2 runs one of its own
