"""The agent: the composition root, which knows every room.

The order of a life that begins afresh:

1. answer for ourselves             control socket, /healthz
2. which interface?                 host.interface                    → waited for
3. the network configuration        control.retry, backend.check      → waited for
4. open what carries packets        backend.open                      → exit with one line
5. follow the registry              control.synchroniser → network
6. the lease                        control.lease                     → waited for
7. the host                         host.upkeep: the network's device or routes; firewall rules; subnet.env; READY
8. keep the lease; when it is lost stop forwarding at once and go back to 6

One that takes over from another process has 3, 6 and the listeners of 1 from there, and goes on at 7. 6 to 8 are in
`forwarding`. From 4 on host.upkeep keeps right what is on this host, whatever becomes of the host's network.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

from flannel_udp.admin import notify
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.health import health_server
from flannel_udp.agent.documents import Documents
from flannel_udp.agent.forwarding import Forwarding
from flannel_udp.agent.gate import Gate
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backend.protocol import Backend, Context, Handed, Network
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.reload import reload_config
from flannel_udp.control.retry import retry, wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.handover.conversation import serve_handover
from flannel_udp.handover.stored import Store, open_or_resume
from flannel_udp.handover.takeover import (
    HandedOver,
    Listeners,
    Running,
    Takeover,
    ask_takeover,
    open_listeners,
    terms_of,
)
from flannel_udp.host import interface, own_networks
from flannel_udp.host.blackhole import keep_blackhole
from flannel_udp.host.capabilities import Kept
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Delta, Interface, Lease, Subnet
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry

logger = logging.getLogger(__name__)

# SIGTERM must end the agent within 2 s, whatever the registry and the firewall's tools do.
RELEASE_TIMEOUT_S = 0.7
CLEAN_TIMEOUT_S = 0.7

_parse = partial(parse_network_config, backends=BACKENDS)


class Agent:
    """One run of the agent."""

    def __init__(self, options: Options, kept: Kept) -> None:
        self._options = options
        self._kept = kept
        self._state = AgentState()
        self._documents = Documents(options, kept, self._state)
        self._in_charge = False  # what carries packets is this process's: nobody goes on with it when we end
        self.reload_wanted = asyncio.Event()
        """Set it, and the network configuration is read again, see control.reload."""

    async def come_round(self) -> None:
        """Return when all that carries traffic has given a sign of life; before that there is nothing to ask."""
        if self._state.ready and self._state.rooms:
            await self._state.rooms.network.come_round()

    async def live(self) -> None:
        """Do everything above; ends only by an error or by being cancelled, and leaves nothing behind."""
        async with AsyncExitStack() as stack:
            stack.callback(self._say_stopping)
            stored = notify.take_stored_descriptors()
            if self._options.takeover:
                external = await self._wait_for_interface()
                takeover = await ask_takeover(self._options, external)
                if takeover is not None:
                    await self._live_on(stack, external, takeover, stored)
            await self._live_afresh(stack, stored)

    async def _live_afresh(self, stack: AsyncExitStack, stored: Mapping[str, int]) -> None:
        self._in_charge = True
        listeners = await self._answer(stack, open_listeners(self._options))
        external = await self._wait_for_interface()
        registry = open_registry(self._options)
        stack.push_async_callback(registry.close)
        config, external = await self._wait_for_config(registry, external)
        backend = BACKENDS[config.backend.type]
        logger.info("%s", self._kept)
        network = await open_or_resume(backend, self._context(config, external), stored)
        if not stored:
            network.start()  # else what waits there would be dropped before there is a table
        store = Store(network, stored)
        rooms, forwarding = self._open_rooms(stack, registry, external, (config, backend, network), store)
        await self._run(registry, rooms, forwarding, listeners, None)

    async def _live_on(
        self, stack: AsyncExitStack, external: Interface, takeover: Takeover, stored: Mapping[str, int]
    ) -> None:
        """Go on with what another process had; until it has ended that one goes on whenever this one does not."""
        for fd in stored.values():  # an earlier run's, of no use beside those that are in use
            os.close(fd)
        servers = await stack.enter_async_context(AsyncExitStack())  # closed last
        registry = open_registry(self._options)
        stack.push_async_callback(registry.close)
        config, backend = takeover.config, BACKENDS[takeover.config.backend.type]
        await _check_host(backend, config, external)
        logger.info("%s", self._kept)
        network = await backend.open(self._context(config, external, takeover.handed))
        store = Store(network, stored)
        rooms, forwarding = self._open_rooms(stack, registry, external, (config, backend, network), store)
        lease = await _adopt(takeover, rooms)
        taken = await takeover.take(network, self._options)
        self._in_charge = True
        listeners = await self._answer(servers, taken)
        await self._run(registry, rooms, forwarding, listeners, lease)

    async def _wait_for_interface(self) -> Interface:
        """Return the interface that the options name, as soon as there is one that is up and has an address."""
        self._state.enter("waiting for the external interface")
        external = await retry("finding the external interface", self._choose_interface)
        if external != self._state.interface:
            logger.info(
                "using interface %s, address %s, public IP %s", external.name, external.address, external.public_ip
            )
            self._state.use_interface(external)
        return external

    async def _choose_interface(self) -> Interface:
        facts = await asyncio.to_thread(interface.gather, self._options.interface)
        return interface.choose(self._options.interface, facts)

    async def _answer(self, servers: AsyncExitStack, listeners: Listeners) -> Listeners:
        """Answer on the listeners until `servers` is closed."""
        servers.callback(listeners.close)
        await servers.enter_async_context(control_server(listeners.control, self._documents))
        await servers.enter_async_context(health_server(listeners.health, lambda: self._state.ready, self._documents))
        return listeners

    async def _wait_for_config(self, registry: Registry, external: Interface) -> tuple[NetworkConfig, Interface]:
        """Return a configuration that this host can run, and the interface to run it through."""
        self._state.enter("waiting for configuration")

        async def check(config: NetworkConfig) -> None:
            nonlocal external
            external = await self._wait_for_interface()  # once more: the wait before may have been a long one
            self._state.enter("waiting for configuration")
            await _check_host(BACKENDS[config.backend.type], config, external)

        parsed = await wait_for_config(registry, _parse, check)
        return parsed.config, external

    def _context(self, config: NetworkConfig, external: Interface, handed: Handed | None = None) -> Context:
        loop = asyncio.get_running_loop()

        def look() -> None:
            if self._state.rooms:
                self._state.rooms.upkeep.wake()

        return Context(self._options, config, external, lambda: loop.call_soon_threadsafe(look), handed)

    def _open_rooms(
        self,
        stack: AsyncExitStack,
        registry: Registry,
        external: Interface,
        opened: tuple[NetworkConfig, Backend, Network],
        store: Store,
    ) -> tuple[Rooms, Forwarding]:
        """Bring to life what lives from now on; closed with `stack`."""
        options, (config, backend, network) = self._options, opened
        stack.push_async_callback(self._close, network)
        store.update()
        gate = Gate(network)
        previous = _previous_subnet(options)
        keeper = LeaseKeeper(
            registry,
            network.attrs,
            options.subnet_lease_renew_margin * 60.0,
            network.forward_until,
            previous=previous,
        )
        peers = PeerTable(config.overlay, network.attrs.public_ip, backend.read_hop)
        sync = Synchroniser(registry, peers, gate, keeper.observe)
        firewall = Firewall(nftables=config.enable_nftables, resync_s=options.firewall.iptables_resync)

        async def host_changed() -> None:
            store.update()
            await forwarding.host_changed()

        upkeep = Upkeep(options, external, config.overlay, network, host_changed)
        rooms = Rooms(config, backend, network, gate, keeper, sync, firewall, upkeep)
        forwarding = Forwarding(options, self._state, registry, rooms, previous)
        self._state.open_rooms(rooms)
        stack.push_async_callback(self._clean_up, rooms)
        return rooms, forwarding

    async def _run(
        self,
        registry: Registry,
        rooms: Rooms,
        forwarding: Forwarding,
        listeners: Listeners,
        adopted: Lease | None,
    ) -> None:
        """Hold one lease after another, beside everything that keeps the rest right."""
        config = rooms.config
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(rooms.sync.run(), name="synchronise")
            tasks.create_task(self._hand_over(rooms, listeners), name="wait for a take-over")
            tasks.create_task(self._reload(registry, config), name="reload when asked")
            tasks.create_task(rooms.firewall.run(), name="keep the firewall rules")
            tasks.create_task(rooms.upkeep.run(), name="keep the host right")
            while True:
                await forwarding.hold_lease(config, adopted)
                adopted = None
                if (await wait_for_config(registry, _parse)).config != config:
                    raise FlannelError("the network configuration has changed: start the agent again")

    async def _hand_over(self, rooms: Rooms, listeners: Listeners) -> None:
        """Wait for another process to take over; once it forwards end, and take nothing down."""
        running = Running(
            lambda: terms_of(self._options, rooms.upkeep.external),  # the interface's address may change
            config=rooms.config,
            network=rooms.network,
            keeper=rooms.keeper,
            listeners=listeners,
            is_ready=lambda: self._state.ready,
        )
        pid = await serve_handover(listeners.handover.socket, running)
        self._in_charge = False
        listeners.leave()
        raise HandedOver(pid)

    async def _reload(self, registry: Registry, in_force: NetworkConfig) -> None:
        while await self.reload_wanted.wait():
            self.reload_wanted.clear()
            # READY=1 ends a reload for systemd, and must not be said of an agent that is not ready.
            if self._state.ready:
                notify.notify_reloading()
            await reload_config(registry, in_force, _parse)
            if self._state.ready:
                notify.notify_ready()

    def _say_stopping(self) -> None:
        if self._in_charge:
            notify.notify_stopping()

    async def _clean_up(self, rooms: Rooms) -> None:
        """Take away what would outlive us, as far as the options say so and nobody goes on with it."""
        if not self._in_charge:
            return
        if self._options.firewall.clean_on_exit:
            await _clean(rooms)
        if self._options.release_on_exit:
            await _release(rooms)

    async def _close(self, network: Network) -> None:
        self._state.close_rooms()  # who asks now, while the listeners are still open, is not answered out of them
        await network.close(keep=not self._in_charge)


async def _adopt(takeover: Takeover, rooms: Rooms) -> Lease:
    """Have the lease, and the peers, that the old agent had; nothing waits for the registry."""
    try:
        lease = rooms.keeper.adopt(takeover.state.entry, takeover.state.expires_s)
    except ValueError as error:
        raise FlannelError(f"cannot take over, the old agent goes on: {error}") from error
    rooms.gate.open(lease.subnet.v4)
    await rooms.gate.publish(lease.subnet.v4, [Delta(added=tuple(takeover.state.peers))], whole=True)
    return lease


async def _check_host(backend: Backend, config: NetworkConfig, external: Interface) -> None:
    """Raise FlannelError for a configuration that this host cannot run."""
    own = await asyncio.to_thread(own_networks.read_own_networks)
    own_networks.refuse_own_network(config.overlay, external.name, own)
    backend.check(config, external)


def _previous_subnet(options: Options) -> Subnet | None:
    try:
        env = subnet_env.read(options.subnet_file)
    except FlannelError as unreadable:
        logger.warning("%s; going on without the subnet we had", unreadable)
        return None
    return None if env is None else env.subnet


async def _clean(rooms: Rooms) -> None:
    try:
        await asyncio.wait_for(rooms.firewall.remove(), CLEAN_TIMEOUT_S)
        await asyncio.to_thread(keep_blackhole, rooms.config.overlay, None)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the firewall rules stay: %s", str(failed) or f"removing them takes over {CLEAN_TIMEOUT_S:g} s")


async def _release(rooms: Rooms) -> None:
    async def release() -> None:
        await rooms.network.withdraw()  # first: as soon as the registry knows, the subnet may be another host's
        await rooms.keeper.release()

    try:
        # Not asyncio.timeout: before Python 3.11.4 it raises no TimeoutError in a task that was cancelled, as this one.
        await asyncio.wait_for(release(), RELEASE_TIMEOUT_S)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the lease was not released and stays until it expires: %s", str(failed) or "no answer")
