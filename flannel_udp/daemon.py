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

6 to 8 are in `forwarding`.

From 4 on host.upkeep keeps flannel0 and the sockets right, whatever becomes of the host's network.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import AsyncExitStack, suppress
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
from flannel_udp.control.retry import wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import DSCP_INHERIT, Dataplane
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.forwarding import Forwarding, Gate
from flannel_udp.host import interface, netlink, own_networks
from flannel_udp.host.blackhole import keep_blackhole
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.mtu import tunnel_mtu
from flannel_udp.host.privileges import check_privileges
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Interface, LeaseAttrs, Subnet
from flannel_udp.options import Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry
from flannel_udp.view import AgentView

logger = logging.getLogger(__name__)

# SIGTERM must end the agent within 2 s, whatever the registry and the firewall's tools do.
RELEASE_TIMEOUT_S = 0.7
CLEAN_TIMEOUT_S = 0.7


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


class Agent:
    """One run of the agent."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._view = AgentView(options)
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
            self._view.enter("waiting for configuration")
            config = (await wait_for_config(registry)).config
            network = check_runnable(config)
            own = await asyncio.to_thread(own_networks.read_own_networks)
            self._view.config = config
            self._view.interface = external = await _choose_interface(options)  # that wait may have been a long one
            own_networks.refuse_own_network(network, external.name, own)
            tunnel_mtu(external, config.backend.mtu)

            dataplane = self._open_dataplane(external, config, stack)
            gate = Gate(dataplane)
            previous = _previous_subnet(options)
            margin_s = options.subnet_lease_renew_margin * 60.0
            keeper = LeaseKeeper(registry, LeaseAttrs(external.public_ip), margin_s, previous=previous)
            sync = Synchroniser(registry, PeerTable(network, external.public_ip), gate, keeper.observe)
            firewall = Firewall(nftables=config.enable_nftables, resync_s=options.firewall.iptables_resync)
            self._view.keeper, self._view.sync, self._view.firewall = keeper, sync, firewall
            if options.release_on_exit:
                stack.push_async_callback(_release, keeper)
            if options.firewall.clean_on_exit:
                stack.push_async_callback(_clean, firewall, network)

            async def pass_on() -> None:
                await forwarding.host_changed()

            upkeep = Upkeep(options, external, network, dataplane, mtu_wanted=config.backend.mtu, news=pass_on)
            self._view.upkeep = upkeep
            forwarding = Forwarding(
                options,
                self._view,
                registry,
                keeper=keeper,
                sync=sync,
                gate=gate,
                firewall=firewall,
                upkeep=upkeep,
                previous=previous,
            )
            loop = asyncio.get_running_loop()
            dataplane.start(lambda: loop.call_soon_threadsafe(upkeep.wake))  # called in a data thread
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run(), name="synchronise")
                tasks.create_task(self._reload(registry, config), name="reload when asked")
                tasks.create_task(firewall.run(), name="keep the firewall rules")
                tasks.create_task(upkeep.run(), name="keep the host right")
                while True:
                    await forwarding.hold_lease(config)
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

    async def _reload(self, registry: Registry, in_force: NetworkConfig) -> None:
        while await self.reload_wanted.wait():
            self.reload_wanted.clear()
            # READY=1 ends a reload for systemd, and must not be said of an agent that is not ready.
            if self._view.ready:
                notify.notify_reloading()
            await reload_config(registry, in_force)
            if self._view.ready:
                notify.notify_ready()


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
