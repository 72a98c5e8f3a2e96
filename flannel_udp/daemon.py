"""The agent: the composition root, the one module that knows every room.

The order of a life:

1. may we, and which interface?     privileges, host.interface        → exit with one line
2. answer for ourselves             control socket, /healthz
3. the network configuration        control.retry                     → waited for
4. open                             flannel0, UDP socket, engine      → exit with one line
5. follow the registry              control.synchroniser → dataplane
6. the lease                        control.lease                     → waited for
7. the host                         host.upkeep: flannel0; firewall rules; subnet.env; READY
8. keep the lease; when it is lost stop forwarding at once and go back to 6

From 4 on host.upkeep keeps flannel0 and the sockets right, whatever becomes of the host's network.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Network

import uvloop

from flannel_udp import subnet_env
from flannel_udp.admin import notify
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.health import health_server
from flannel_udp.config import NetworkConfig
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.reload import reload_config
from flannel_udp.control.retry import retry, wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import DSCP_INHERIT, Dataplane
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.host import interface, netlink
from flannel_udp.host.blackhole import keep_blackhole
from flannel_udp.host.connections import abandon_connections
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.rules import rules_for
from flannel_udp.host.mtu import tunnel_mtu
from flannel_udp.host.privileges import check_privileges
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Delta, Interface, Lease, LeaseAttrs, Subnet
from flannel_udp.options import Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry
from flannel_udp.view import AgentView

logger = logging.getLogger(__name__)

# SIGTERM must end the agent within 2 s, whatever the registry and the firewall's tools do.
RELEASE_TIMEOUT_S = 0.7
CLEAN_TIMEOUT_S = 0.7
# What a registry's client needs to notice that its connection was shut down: the next call then makes a new one. A call
# on the old one would fail, and be tried again only seconds later.
NOTICE_S = 0.2


def run(options: Options) -> int:
    """Run the agent until it is told to stop; return the exit code. Raises FlannelError."""
    level = logging.DEBUG if options.verbosity > 0 else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname).1s %(asctime)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # Loading 100,000 peers makes a million objects that stay: do not look through them for garbage over and over.
    gc.set_threshold(50_000)
    return uvloop.run(_run(options))


async def _run(options: Options) -> int:
    check_privileges()
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    assert life is not None  # noqa: S101 - a coroutine that uvloop.run runs has a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    agent = Agent(options)
    loop.add_signal_handler(signal.SIGHUP, agent.reload_wanted.set)
    watchdog = loop.create_task(notify.keep_watchdog(agent.come_round), name="watchdog")
    try:
        await agent.live()
    except asyncio.CancelledError:
        logger.info("stopped")
        return 0
    except BaseExceptionGroup as failures:
        known = failures.subgroup(FlannelError)
        if known is None:
            raise
        raise _first(known) from None
    finally:
        watchdog.cancel()
    return 1


def _first(failures: BaseExceptionGroup[FlannelError]) -> FlannelError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


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

    async def shut(self) -> None:
        """Let nothing through and stop forwarding."""
        self._open_for = None
        async with self._one_at_a_time:
            await self._dataplane.publish(None, (), whole=True)


class Agent:
    """One run of the agent."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._view = AgentView(options)
        self._env: subnet_env.SubnetEnv | None = None  # what subnet.env holds, while we serve
        self.reload_wanted = asyncio.Event()
        """Set it, and the network configuration is read again, see control.reload."""

    async def come_round(self) -> None:
        """Return when all that carries traffic has given a sign of life; before that there is nothing to ask."""
        if self._view.ready and self._view.dataplane:
            await self._view.dataplane.come_round()

    async def live(self) -> None:
        """Do everything above; ends only by an error or by being cancelled, and leaves nothing behind."""
        options = self._options
        external = await _choose_interface(options)
        logger.info("using interface %s, address %s, public IP %s", external.name, external.address, external.public_ip)
        self._view.interface = external
        tunnel_mtu(external)  # no configuration can help an interface that is too narrow: say so at once
        async with AsyncExitStack() as stack:
            stack.callback(notify.notify_stopping)
            await stack.enter_async_context(control_server(options.control_socket, self._view))
            await stack.enter_async_context(
                health_server(options.healthz_ip, options.healthz_port, lambda: self._view.ready, self._view)
            )
            registry = open_registry(options)
            stack.push_async_callback(registry.close)
            self._enter("waiting for configuration")
            config = (await wait_for_config(registry)).config
            network = check_runnable(config)
            self._view.config = config
            self._view.interface = external = await _choose_interface(options)  # that wait may have been a long one
            tunnel_mtu(external, config.backend.mtu)

            dataplane = self._open_dataplane(external, config, stack)
            gate = Gate(dataplane)
            keeper = LeaseKeeper(
                registry,
                LeaseAttrs(external.public_ip),
                options.subnet_lease_renew_margin * 60.0,
                previous=_previous_subnet(options),
            )
            sync = Synchroniser(registry, PeerTable(network, external.public_ip), gate, keeper.observe)
            firewall = Firewall(nftables=config.enable_nftables, resync_s=options.firewall.iptables_resync)
            self._view.keeper, self._view.sync, self._view.firewall = keeper, sync, firewall
            if options.release_on_exit:
                stack.push_async_callback(_release, keeper)
            if options.firewall.clean_on_exit:
                stack.push_async_callback(_clean, firewall, network)

            async def pass_on() -> None:
                await self._host_changed(upkeep, keeper, sync)

            upkeep = Upkeep(options, external, network, dataplane, mtu_wanted=config.backend.mtu, news=pass_on)
            self._view.upkeep = upkeep
            loop = asyncio.get_running_loop()
            dataplane.start(lambda: loop.call_soon_threadsafe(upkeep.wake))  # called in a data thread
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run(), name="synchronise")
                tasks.create_task(self._reload(registry, config), name="reload when asked")
                tasks.create_task(firewall.run(), name="keep the firewall rules")
                tasks.create_task(upkeep.run(), name="keep the host right")
                while True:
                    await self._hold_lease(registry, config, keeper, sync, gate, firewall=firewall, upkeep=upkeep)
                    if (await wait_for_config(registry)).config != config:
                        raise FlannelError("the network configuration has changed: start the agent again")

    def _open_dataplane(self, external: Interface, config: NetworkConfig, stack: AsyncExitStack) -> Dataplane:
        dscp = DSCP_INHERIT if config.backend.dscp is None else config.backend.dscp
        dataplane = Dataplane(external.address, config.backend.port, self._options.dataplane, dscp)
        stack.push_async_callback(_close, dataplane)
        self._view.dataplane = dataplane
        logger.info("opened %s and UDP %s:%d", dataplane.tunnel.name, external.address, config.backend.port)
        logger.info(
            "offloads in use: %s; workers: %d; socket buffers: receive %d, send %d bytes",
            ", ".join(dataplane.offload.names()) or "none",
            dataplane.workers,
            *dataplane.socket_buffers,
        )
        return dataplane

    async def _hold_lease(
        self,
        registry: Registry,
        config: NetworkConfig,
        keeper: LeaseKeeper,
        sync: Synchroniser,
        gate: Gate,
        *,
        firewall: Firewall,
        upkeep: Upkeep,
    ) -> None:
        """Acquire a lease, forward for it, and return when it was lost and forwarding has stopped."""
        self._enter("waiting for a lease")
        lease = await keeper.acquire(config)
        await upkeep.set_up(lease.subnet.v4.network_address)
        blackhole = lease.subnet.v4 if self._options.firewall.ip_blackhole_route else None
        await asyncio.to_thread(keep_blackhole, upkeep.network, blackhole)
        gate.open(lease.subnet.v4)
        self._enter("waiting for the peers")
        await sync.set_own(lease)
        await gate.published.wait()
        async with asyncio.TaskGroup() as tasks:  # the lease is kept also while the firewall's tools fail
            getting_ready = tasks.create_task(self._get_ready(registry, lease, firewall, upkeep), name="get ready")
            lost = await keeper.keep()
            getting_ready.cancel()
        self._view.serving = False
        self._env = None
        await gate.shut()
        await sync.set_own(None)
        loss = f"lost our subnet {lease.subnet}: {lost}; forwarding stopped"
        if self._options.on_lease_loss == "exit":
            raise FlannelError(loss)
        logger.error("%s", loss)

    async def _get_ready(self, registry: Registry, lease: Lease, firewall: Firewall, upkeep: Upkeep) -> None:
        options = self._options.firewall
        self._enter("waiting for the firewall rules")
        rules = rules_for(
            upkeep.network,
            lease.subnet.v4,
            masquerade=options.ip_masq,
            forward=options.iptables_forward_rules,
            random_fully=not options.ip_masq_fully_random_disable,
        )
        await firewall.keep(rules)
        self._env = subnet_env.SubnetEnv(upkeep.network, lease.subnet, upkeep.mtu, options.ip_masq)
        subnet_env.write(self._options.subnet_file, self._env)
        logger.info("wrote %s", self._options.subnet_file)
        self._view.serving = True
        self._enter("running")
        notify.notify_ready()
        await retry("announcing that the network is up", registry.announce_up)

    async def _host_changed(self, upkeep: Upkeep, keeper: LeaseKeeper, sync: Synchroniser) -> None:
        """Pass on what has become of the external interface and flannel0."""
        assert self._view.interface is not None  # noqa: S101 - it was chosen before all else
        former, self._view.interface = self._view.interface, upkeep.external
        if upkeep.external.address != former.address:
            abandon_connections(former.address)
            await asyncio.sleep(NOTICE_S)
        if upkeep.external.public_ip != former.public_ip:
            keeper.set_attrs(LeaseAttrs(upkeep.external.public_ip))
            await sync.set_public_ip(upkeep.external.public_ip)
        if self._env is not None and self._env.mtu != upkeep.mtu:
            self._env = replace(self._env, mtu=upkeep.mtu)
            try:
                subnet_env.write(self._options.subnet_file, self._env)
            except FlannelError as failed:
                logger.warning("%s: it still has the former MTU", failed)
        notify.notify_status(self._view.state)

    async def _reload(self, registry: Registry, in_force: NetworkConfig) -> None:
        while await self.reload_wanted.wait():
            self.reload_wanted.clear()
            # READY=1 ends a reload for systemd, and must not be said of an agent that is not ready.
            if self._view.ready:
                notify.notify_reloading()
            await reload_config(registry, in_force)
            if self._view.ready:
                notify.notify_ready()

    def _enter(self, state: str) -> None:
        self._view.phase = state
        notify.notify_status(self._view.state)


async def _choose_interface(options: Options) -> Interface:
    facts = await asyncio.to_thread(interface.gather, options.interface)
    return interface.choose(options.interface, facts)


def check_runnable(config: NetworkConfig) -> IPv4Network:
    """Return the overlay network. Raises ConfigError for a valid configuration that this agent cannot run."""
    faults = []
    if config.backend.type != "udp":
        faults.append(f'Backend.Type is "{config.backend.type}": this agent runs "udp" only')
    if config.v6 is not None:
        faults.append("EnableIPv6 is true: this agent carries IPv4 only, so far")
    if config.v4 is None:
        faults.append("EnableIPv4 is false: this agent carries nothing else, so far")
    if faults or config.v4 is None:
        raise ConfigError(faults)
    return config.v4.network


def _previous_subnet(options: Options) -> Subnet | None:
    try:
        env = subnet_env.read(options.subnet_file)
    except FlannelError as unreadable:
        logger.warning("%s; going on without the subnet we had", unreadable)
        return None
    return None if env is None else env.subnet


async def _release(keeper: LeaseKeeper) -> None:
    try:
        # Not asyncio.timeout: before Python 3.11.4 it raises no TimeoutError in a task that was cancelled, as this one.
        await asyncio.wait_for(keeper.release(), RELEASE_TIMEOUT_S)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the lease was not released and stays until it expires: %s", str(failed) or "no answer")


async def _clean(firewall: Firewall, network: IPv4Network) -> None:
    try:
        await asyncio.wait_for(firewall.remove(), CLEAN_TIMEOUT_S)
        await asyncio.to_thread(keep_blackhole, network, None)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the firewall rules stay: %s", str(failed) or f"removing them takes over {CLEAN_TIMEOUT_S:g} s")


async def _close(dataplane: Dataplane) -> None:
    name = dataplane.tunnel.name
    dataplane.close()
    with suppress(FlannelError):  # it is gone, as it should be; only a persistent one of somebody else's is still there
        await asyncio.to_thread(netlink.unconfigure, name)  # never on this loop: pyroute2 runs one of its own
