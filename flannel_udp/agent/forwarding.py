"""Forwards for one lease after another: from the moment it is held to the moment it is lost, and nothing longer.

The lease is kept from its first moment on, beside everything else. When it is lost, whatever has been reached by then
is stopped: first what could still open the gate, then the gate, then the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace

from flannel_udp.admin.claims import is_claimed
from flannel_udp.agent.families import keep_rules, lacking
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backend.leased_routes import ROUTES_CLAIM
from flannel_udp.backend.remains import find_flannelds_routes, remove_remains
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.entries import read_leases
from flannel_udp.control.lease_safety import YIELD_S
from flannel_udp.control.retry import retry
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.files.yielded import forget_yielded, note_yielded, yielded_file
from flannel_udp.host.connections import abandon_connections
from flannel_udp.host.firewall.keeper import remove_left_rules
from flannel_udp.host.interface_facts import VERSIONS
from flannel_udp.host.rtnetlink import Route
from flannel_udp.model import Lease
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import Options
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

# What a registry's client needs to notice that its connection was shut down: the next call then makes a new one. A call
# on the old one would fail, and be tried again only seconds later.
NOTICE_S = 0.2


class Forwarding:
    """`hold_lease` again and again; `host_changed` whenever the host did.

    `former` is what subnet.env says of an earlier run.
    """

    def __init__(
        self,
        options: Options,
        state: AgentState,
        registry: Registry,
        rooms: Rooms,
        former: subnet_env.SubnetEnv | None,
    ) -> None:
        self._options = options
        self._state = state
        self._registry = registry
        self._network = rooms.network
        self._keeper = rooms.keeper
        self._sync = rooms.sync
        self._families = rooms.families
        self._upkeep = rooms.upkeep
        self._subnet_file = rooms.subnet_file
        self._config = rooms.config
        self._backend = rooms.backend
        self._swept = False  # what another backend left is removed
        self._left: Collection[Route] | None = None  # what may be a flanneld's routes; what comes later is not
        self._waiting = "waiting for a lease"  # what we do without one, and why
        self._gate = rooms.gate
        self._former_networks = () if former is None else former.networks
        # What subnet.env said last: the pods that run have their addresses from it.
        self._subnet = None if former is None else former.subnet
        self._env: subnet_env.SubnetEnv | None = None  # what subnet.env holds, while we serve
        self._attrs = rooms.network.attrs  # what the lease is to say, as last told
        self._more = asyncio.Event()  # the lease is one for a family that was not served yet
        rooms.keeper.widened = self._more.set

    async def hold_lease(self, config: NetworkConfig, adopted: Lease | None = None) -> None:
        """Acquire a lease, forward for it, and return when it was lost and forwarding has stopped.

        An `adopted` lease is held already, and its table in force. Raises `FlannelError` for the loss itself if the
        options say so.
        """
        if adopted is None:
            self._state.enter(self._waiting)
        lease = adopted or await self._keeper.acquire(config)
        yielded = yielded_file(self._options.state_dir, self._config.overlays[0], lease.attrs.found_by)
        forget_yielded(yielded)
        # From now on it may be lost at any moment, also while the host is set up and the first peers are waited for.
        self._more.clear()
        keeping = asyncio.create_task(self._keeper.keep(), name="keep the lease")
        try:
            await self._set_up(lease)
            if adopted is None:
                self._gate.open(lease.subnet)
            forwarding = asyncio.create_task(self._forward(lease), name="forward")
            lost = await self._forward_until(keeping, forwarding)
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
        if self._keeper.claimed:
            note_yielded(yielded, YIELD_S)
        loss = f"lost our subnet {lease.subnet}: {lost}; forwarding stopped"
        if self._options.on_lease_loss == "exit":
            raise FlannelError(loss)
        logger.error("%s", loss)
        self._waiting = f"waiting for a lease: {lost}" if self._keeper.claimed else "waiting for a lease"
        self._state.enter(self._waiting, loss)
        self._state.conditions.note("node", ())  # what was said of our entry, which is seen no more
        await self._sync.set_own(None)

    async def _set_up(self, lease: Lease) -> None:
        """Set the host up. What cannot be set now is tried again by upkeep, and in the way until then.

        To end here would take down what another process has handed over.
        """
        try:
            await self._upkeep.set_up(lease.subnet, self._keeper.former)
        except FlannelError as failed:
            logger.warning("setting this host up failed: %s (trying again)", failed)
            self._upkeep.wake()

    async def _forward_until(self, keeping: asyncio.Task[str], forwarding: asyncio.Task[None]) -> str:
        """Let forwarding begin; when the lease is lost, begun or not, stop at once and return why."""
        try:
            # Not `await keeping`, which would end it when we are cancelled, as if the lease were lost: on the way out,
            # packets are carried until the workers stop.
            await asyncio.wait((keeping, forwarding), return_when=asyncio.FIRST_COMPLETED)
            if not keeping.done():
                forwarding.result()  # raises what went wrong: it never ends by itself
            return keeping.result()
        finally:
            forwarding.cancel()  # first, or it might open the gate again
            if keeping.done():
                self._state.stop_serving()
                self._env = None
                for family in self._families:
                    family.hold(None)
                self._subnet_file.want(None)  # it keeps saying what the pods that run have
                await self._gate.shut()
            await asyncio.wait((forwarding,))

    async def _forward(self, lease: Lease) -> None:
        """Begin to forward, and once more when there is another family to forward: the first one's traffic goes on."""
        await self._start_forwarding(lease)
        while await self._more.wait():
            self._more.clear()
            held = self._keeper.lease
            if held is not None:
                await self._set_up(held)
                self._gate.open(held.subnet)
                self._swept = False  # what another backend left of that family goes now
                await self._start_forwarding(held)

    async def _start_forwarding(self, lease: Lease) -> None:
        self._state.enter("waiting for the peers")
        await self._sync.set_own(lease)
        await self._gate.published.wait()
        self._network.start()
        self._state.enter("waiting for what packets need beside this host")
        await self._network.stands()
        await self._get_ready(lease)

    async def _get_ready(self, lease: Lease) -> None:
        options = self._options.firewall
        self._state.enter("waiting for the firewall rules")
        await keep_rules(self._families, lease, options)
        v4, v6 = self._config.v4, self._config.v6
        self._env = subnet_env.SubnetEnv(
            None if v4 is None or lease.subnet.v4 is None else v4.network,
            lease.subnet,
            self._network.mtu,
            options.ip_masq,
            None if v6 is None or lease.subnet.v6 is None else v6.network,
        )
        if self._left is None:
            await retry("looking for what another backend left on this host", self._find_remains)
        self._state.enter("waiting for subnet.env to be written")
        self._subnet_file.want(self._env)
        await self._subnet_file.stands()
        for family in self._families:
            family.hold(lease)
        if self._subnet is not None and any(lease.subnet.of(part.version) != part for part in self._subnet.prefixes):
            logger.warning(
                "our subnet is %s now and was %s: pods with an address of the old one are cut off: start them anew",
                *(lease.subnet, self._subnet),
            )
        self._subnet = lease.subnet
        self._note_lacking(lease)
        self._state.serve(lease)
        await retry("announcing that the network is up", self._registry.announce_up)
        if not self._swept:
            await retry("removing what another backend left on this host", self._remove_remains)

    def _note_lacking(self, lease: Lease | None) -> None:
        """Say by which of the families that are on this host takes no part."""
        kubernetes = self._options.kube.subnet_mgr
        external = self._upkeep.external
        found = [] if lease is None else lacking(self._config, external, lease, kubernetes=kubernetes)
        self._state.conditions.note("families", found)

    async def _find_remains(self) -> None:
        self._left = await find_flannelds_routes(self._backend, self._config.overlays, self._keeper.former)

    async def _remove_remains(self) -> None:
        """Remove what earlier runs with another backend, or other options, have left; once, now that ours stands."""
        former = self._keeper.former
        ours, attrs = self._network.keeps_routes, self._network.attrs
        removed = await remove_remains(
            *(self._backend, BACKENDS, former, self._left or (), self._list_leases),
            versions=[version for version in (4, 6) if attrs.address_of(version) is not None],
            routes=not ours,
            alone=ours or not is_claimed(ROUTES_CLAIM),
        )
        for network in self._former_networks:
            if self._config.of(network.version) is None:
                await remove_left_rules(network)
        self._swept = True
        for what in removed:
            logger.info("removed what an earlier run left: %s", what)
        if removed:
            self._upkeep.wake()  # what was in the way of ours is gone

    async def _list_leases(self) -> list[Lease]:
        return read_leases((await self._registry.list()).entries)

    async def host_changed(self) -> None:
        """Pass on what has become of the external interface and the network's MTU."""
        former, external = self._state.interface, self._upkeep.external
        assert former is not None  # noqa: S101 - it was chosen before all else
        self._state.use_interface(external)
        before, now = ([interface.of(version) for version in VERSIONS] for interface in (former, external))
        gone = {ends.address for ends in before if ends} - {ends.address for ends in now if ends}
        for address in gone:
            abandon_connections(address)
        if gone:
            await asyncio.sleep(NOTICE_S)
        if (attrs := self._network.attrs) != self._attrs:
            said, self._attrs = self._attrs, attrs
            self._keeper.set_attrs(attrs)
            await self._sync.set_public_ips(attrs)
            lease = self._keeper.lease
            more = [version for version in VERSIONS if attrs.address_of(version) and not said.address_of(version)]
            if lease is not None and any(lease.subnet.of(version) for version in more):
                self._more.set()  # else the keeper has its subnet widened first
        self._note_lacking(self._keeper.lease)
        if self._env is not None and self._env.mtu != self._network.mtu:
            self._env = replace(self._env, mtu=self._network.mtu)
            self._subnet_file.want(self._env)
        self._state.tell()
