"""Forwards for one lease after another: from the moment it is held to the moment it is lost, and nothing longer.

The lease is kept from its first moment on, beside everything else. When it is lost, whatever has been reached by then
is stopped: first what could still open the gate, then the gate, then the rest.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from flannel_udp.admin import notify
from flannel_udp.agent.view import AgentView
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.retry import retry
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.host.connections import abandon_connections
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.rules import rules_for
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Delta, Lease, LeaseAttrs, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import Options
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

# What a registry's client needs to notice that its connection was shut down: the next call then makes a new one. A call
# on the old one would fail, and be tried again only seconds later.
NOTICE_S = 0.2


class Gate:
    """Lets tables through to the dataplane only while their subnet is ours."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._open_for: IPv4Network | None = None
        self._one_at_a_time = asyncio.Lock()
        self.published = asyncio.Event()
        """Set when the dataplane has got the first table for the subnet the gate is open for."""

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Publish a table, unless the lease it was made for is gone meanwhile."""
        async with self._one_at_a_time:
            if own == self._open_for:
                await self._dataplane.publish(own, deltas, whole=whole)
                if whole:
                    # Peers are in no cycles, and looking for some among 100,000 of them holds us up for 0.2 s.
                    gc.freeze()
                self.published.set()

    def open(self, own: IPv4Network) -> None:
        """Let tables for this subnet through."""
        self._open_for = own
        self.published.clear()

    def start(self) -> None:
        """Let the workers run, if they do not already."""
        self._dataplane.start()

    async def shut(self) -> None:
        """Let nothing through and stop forwarding."""
        self._open_for = None
        async with self._one_at_a_time:
            await self._dataplane.publish(None, (), whole=True)


class Forwarding:
    """`hold_lease` again and again; `host_changed` whenever the host did.

    `previous` is the subnet of an existing subnet.env.
    """

    def __init__(
        self,
        options: Options,
        view: AgentView,
        registry: Registry,
        *,
        keeper: LeaseKeeper,
        sync: Synchroniser,
        gate: Gate,
        firewall: Firewall,
        upkeep: Upkeep,
        previous: Subnet | None,
    ) -> None:
        self._options = options
        self._view = view
        self._registry = registry
        self._keeper = keeper
        self._sync = sync
        self._gate = gate
        self._firewall = firewall
        self._upkeep = upkeep
        self._subnet = previous  # what subnet.env said last: the pods that run have their addresses from it
        self._env: subnet_env.SubnetEnv | None = None  # what subnet.env holds, while we serve

    async def hold_lease(self, config: NetworkConfig, adopted: Lease | None = None) -> None:
        """Acquire a lease, forward for it, and return when it was lost and forwarding has stopped.

        An `adopted` lease is held already, and its table in force. Raises `FlannelError` when the host cannot be set
        up, or for the loss itself if the options say so.
        """
        if adopted is None:
            self._view.enter("waiting for a lease")
        lease = adopted or await self._keeper.acquire(config)
        # From now on it may be lost at any moment, also while the host is set up and the first peers are waited for.
        keeping = asyncio.create_task(self._keeper.keep(), name="keep the lease")
        try:
            await self._upkeep.set_up(lease.subnet.v4)
            if adopted is None:
                self._gate.open(lease.subnet.v4)
            starting = asyncio.create_task(self._start_forwarding(lease), name="start forwarding")
            lost = await self._forward_until(keeping, starting)
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
        loss = f"lost our subnet {lease.subnet}: {lost}; forwarding stopped"
        if self._options.on_lease_loss == "exit":
            raise FlannelError(loss)
        logger.error("%s", loss)
        self._view.enter("waiting for a lease", loss)
        await self._sync.set_own(None)

    async def _forward_until(self, keeping: asyncio.Task[str], starting: asyncio.Task[None]) -> str:
        """Let forwarding begin; when the lease is lost, begun or not, stop at once and return why."""
        try:
            await asyncio.wait((keeping, starting), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises what went wrong
            # Not `await keeping`, which would end it when we are cancelled, as if the lease were lost: on the way out,
            # packets are carried until the workers stop.
            await asyncio.wait((keeping,))
            return keeping.result()
        finally:
            starting.cancel()  # first, or it might open the gate again
            if keeping.done():
                self._view.serving = False
                self._env = None
                await self._gate.shut()
            await asyncio.wait((starting,))

    async def _start_forwarding(self, lease: Lease) -> None:
        self._view.enter("waiting for the peers")
        await self._sync.set_own(lease)
        await self._gate.published.wait()
        self._gate.start()
        await self._get_ready(lease)

    async def _get_ready(self, lease: Lease) -> None:
        options = self._options.firewall
        self._view.enter("waiting for the firewall rules")
        rules = rules_for(
            self._upkeep.network,
            lease.subnet.v4,
            masquerade=options.ip_masq,
            forward=options.iptables_forward_rules,
            random_fully=not options.ip_masq_fully_random_disable,
        )
        await self._firewall.keep(rules)
        self._env = subnet_env.SubnetEnv(self._upkeep.network, lease.subnet, self._upkeep.mtu, options.ip_masq)
        subnet_env.write(self._options.subnet_file, self._env)
        logger.info("wrote %s", self._options.subnet_file)
        if self._subnet not in (None, lease.subnet):
            logger.warning(
                "our subnet is %s now and was %s: pods with an address of the old one are cut off: start them anew",
                *(lease.subnet, self._subnet),
            )
        self._subnet = lease.subnet
        self._view.serving = True
        self._view.enter("running", f"running with subnet {lease.subnet}")
        notify.notify_ready()
        await retry("announcing that the network is up", self._registry.announce_up)

    async def host_changed(self) -> None:
        """Pass on what has become of the external interface and flannel0."""
        external = self._upkeep.external
        assert self._view.interface is not None  # noqa: S101 - it was chosen before all else
        former, self._view.interface = self._view.interface, external
        if external.address != former.address:
            abandon_connections(former.address)
            await asyncio.sleep(NOTICE_S)
        if external.public_ip != former.public_ip:
            self._keeper.set_attrs(LeaseAttrs(external.public_ip))
            await self._sync.set_public_ip(external.public_ip)
        if self._env is not None and self._env.mtu != self._upkeep.mtu:
            self._env = replace(self._env, mtu=self._upkeep.mtu)
            try:
                subnet_env.write(self._options.subnet_file, self._env)
            except FlannelError as failed:
                logger.warning("%s: it still has the former MTU", failed)
        self._view.tell()
