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
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from ipaddress import IPv4Network
from pathlib import Path

import uvloop

from flannel_udp.admin import notify
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.health import health_server
from flannel_udp.agent.forwarding import Forwarding, Gate
from flannel_udp.agent.view import AgentView
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.reload import reload_config
from flannel_udp.control.retry import wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import DSCP_INHERIT, Adopted, Dataplane, count_workers
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.handover.conversation import serve_handover
from flannel_udp.handover.takeover import (
    Doors,
    HandedOver,
    Running,
    Succession,
    ask_succession,
    descriptor_names,
    open_doors,
    open_or_resume,
    terms_of,
)
from flannel_udp.host import interface, netlink, own_networks
from flannel_udp.host.blackhole import keep_blackhole
from flannel_udp.host.capabilities import FileAccess, Kept, drop_capabilities
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.mtu import tunnel_mtu
from flannel_udp.host.privileges import check_privileges, shows_password
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Delta, Interface, Lease, LeaseAttrs, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry

logger = logging.getLogger(__name__)

# SIGTERM must end the agent within 2 s, whatever the registry and the firewall's tools do.
RELEASE_TIMEOUT_S = 0.7
CLEAN_TIMEOUT_S = 0.7


def run(options: Options) -> int:
    """Run the agent until it is told to stop; return the exit code. Raises FlannelError."""
    level = logging.DEBUG if options.verbosity > 0 else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname).1s %(asctime)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if shows_password(options.etcd.password):
        logger.warning(
            "every user can read the password in /proc/%d/cmdline: "
            "use --etcd-password-file or the variable FLANNELD_ETCD_PASSWORD",
            os.getpid(),
        )
    check_privileges()
    kept = drop_capabilities(_files(options))  # now, for no other thread runs yet
    # Loading 100,000 peers makes a million objects that stay: do not look through them for garbage over and over.
    gc.set_threshold(50_000)
    return uvloop.run(_run(options, kept))


def _files(options: Options) -> list[FileAccess]:
    """Return what the agent will read and write by name."""
    etcd = options.etcd
    kind, _, name = options.registry.partition(":")
    read, written = [], [options.subnet_file, options.control_socket]
    if options.kube.subnet_mgr:
        read = [options.kube.net_config_path, options.kube.kubeconfig_file]
    elif kind == "etcd":
        read = [etcd.cafile, etcd.certfile, etcd.keyfile]
    elif kind == "file":
        read, written = [Path(name)], [*written, Path(name)]
    return [FileAccess(path, os.R_OK) for path in read if path is not None] + [
        FileAccess(path.parent, os.R_OK | os.W_OK | os.X_OK) for path in written
    ]


async def _run(options: Options, kept: Kept) -> int:
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    assert life is not None  # noqa: S101 - a coroutine that uvloop.run runs has a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    agent = Agent(options, kept)
    loop.add_signal_handler(signal.SIGHUP, agent.reload_wanted.set)
    watchdog = loop.create_task(notify.keep_watchdog(agent.come_round), name="watchdog")
    try:
        await agent.live()
    except asyncio.CancelledError:
        logger.info("stopped")
        return 0
    except BaseExceptionGroup as failures:
        if (successor := failures.subgroup(HandedOver)) is not None:
            logger.info("%s", successor.exceptions[0])
            return 0
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

    def __init__(self, options: Options, kept: Kept) -> None:
        self._options = options
        self._kept = kept
        self._view = AgentView(options, kept)
        self._handed_over = False
        self._replaced = 0  # how often descriptors of the dataplane had been replaced when systemd got them
        self.reload_wanted = asyncio.Event()
        """Set it, and the network configuration is read again, see control.reload."""

    async def come_round(self) -> None:
        """Return when all that carries traffic has given a sign of life; before that there is nothing to ask."""
        if self._view.ready and self._view.dataplane:
            await self._view.dataplane.come_round()

    async def live(self) -> None:
        """Do everything above; ends only by an error or by being cancelled, and leaves nothing behind."""
        options = self._options
        external = await self._choose_interface()
        logger.info("using interface %s, address %s, public IP %s", external.name, external.address, external.public_ip)
        async with AsyncExitStack() as stack:
            stack.callback(self._say_stopping)
            servers = await stack.enter_async_context(AsyncExitStack())  # closed last
            stored = notify.take_stored_descriptors()
            succession = await ask_succession(options, external) if options.takeover else None
            if succession is None:
                doors = await self._answer(servers, open_doors(options))
            registry = open_registry(options)
            stack.push_async_callback(registry.close)
            if succession is None:
                config, external = await self._wait_for_config(registry)
            else:
                config = succession.config
            self._view.config = config
            network = await _check_fit(config, external)
            dataplane = self._open_dataplane(external, config, succession, stored)
            stack.push_async_callback(self._close, dataplane)
            gate = Gate(dataplane)
            previous = _previous_subnet(options)
            margin_s = options.subnet_lease_renew_margin * 60.0
            keeper = LeaseKeeper(
                registry, LeaseAttrs(external.public_ip), margin_s, dataplane.forward_until, previous=previous
            )
            sync = Synchroniser(registry, PeerTable(network, external.public_ip), gate, keeper.observe)
            firewall = Firewall(nftables=config.enable_nftables, resync_s=options.firewall.iptables_resync)
            self._view.keeper, self._view.sync, self._view.firewall = keeper, sync, firewall
            stack.push_async_callback(self._clean_up, keeper, firewall, network)

            upkeep = Upkeep(
                options,
                external,
                network,
                dataplane,
                mtu_wanted=config.backend.mtu,
                news=lambda: self._host_changed(dataplane, forwarding),
            )
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
            adopted: Lease | None = None
            if succession is not None:
                adopted = await _prepare(succession, keeper, gate)
                doors = await self._answer(servers, await succession.take(dataplane, options))
            elif not stored:
                dataplane.start()  # else what waits there would be dropped before there is a table
            running = self._running(config, dataplane, keeper, upkeep, doors)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run(), name="synchronise")
                tasks.create_task(self._hand_over(running, doors), name="wait for a successor")
                tasks.create_task(self._reload(registry, config), name="reload when asked")
                tasks.create_task(firewall.run(), name="keep the firewall rules")
                tasks.create_task(upkeep.run(), name="keep the host right")
                while True:
                    await forwarding.hold_lease(config, adopted)
                    adopted = None
                    if (await wait_for_config(registry)).config != config:
                        raise FlannelError("the network configuration has changed: start the agent again")

    async def _choose_interface(self) -> Interface:
        facts = await asyncio.to_thread(interface.gather, self._options.interface)
        self._view.interface = external = interface.choose(self._options.interface, facts)
        tunnel_mtu(external)  # no configuration can help an interface that is too narrow: say so at once
        return external

    async def _wait_for_config(self, registry: Registry) -> tuple[NetworkConfig, Interface]:
        self._view.enter("waiting for configuration")
        config = (await wait_for_config(registry)).config
        return config, await self._choose_interface()  # that wait may have been a long one

    async def _answer(self, servers: AsyncExitStack, doors: Doors) -> Doors:
        """Answer at the doors until `servers` is closed."""
        servers.callback(doors.close)
        await servers.enter_async_context(control_server(doors.control, self._view))
        await servers.enter_async_context(health_server(doors.health, lambda: self._view.ready, self._view))
        return doors

    def _open_dataplane(
        self,
        external: Interface,
        config: NetworkConfig,
        succession: Succession | None,
        stored: Mapping[str, int],
    ) -> Dataplane:
        """Open the dataplane, or go on with that of another process, and let the log, `status` and systemd know."""
        loop = asyncio.get_running_loop()

        def wake_upkeep() -> None:
            if self._view.upkeep:
                self._view.upkeep.wake()

        def on_fault() -> None:  # in any thread
            loop.call_soon_threadsafe(wake_upkeep)

        dscp = DSCP_INHERIT if config.backend.dscp is None else config.backend.dscp

        def open_(adopted: Adopted | None) -> Dataplane:
            options = self._options.dataplane
            return Dataplane(external.address, config.backend.port, options, on_fault, dscp=dscp, adopted=adopted)

        if succession is not None:
            dataplane = open_(succession.adopted)
        else:
            dataplane = open_or_resume(stored, count_workers(self._options.dataplane), open_)
        notify.store_descriptors(descriptor_names(dataplane.descriptors()))
        self._view.dataplane = dataplane
        logger.info("%s", self._kept)
        logger.info("opened %s and UDP %s:%d", dataplane.tunnel.name, external.address, config.backend.port)
        logger.info(
            "offloads in use: %s; workers: %d; socket buffers: receive %d, send %d bytes",
            ", ".join(dataplane.offload.names()) or "none",
            dataplane.workers,
            *dataplane.socket_buffers,
        )
        return dataplane

    async def _host_changed(self, dataplane: Dataplane, forwarding: Forwarding) -> None:
        if dataplane.replaced != self._replaced:  # systemd has descriptors that are closed here
            self._replaced = dataplane.replaced
            notify.store_descriptors(descriptor_names(dataplane.descriptors()))
        await forwarding.host_changed()

    def _running(
        self, config: NetworkConfig, dataplane: Dataplane, keeper: LeaseKeeper, upkeep: Upkeep, doors: Doors
    ) -> Running:
        return Running(
            lambda: terms_of(self._options, upkeep.external),  # the interface's address may change
            config=config,
            dataplane=dataplane,
            keeper=keeper,
            doors=doors,
            is_ready=lambda: self._view.ready,
        )

    async def _hand_over(self, running: Running, doors: Doors) -> None:
        """Wait for a successor; once it forwards end, and take nothing down."""
        pid = await serve_handover(doors.handover.listener, running)
        self._handed_over = True
        doors.leave()
        raise HandedOver(pid)

    async def _reload(self, registry: Registry, in_force: NetworkConfig) -> None:
        while await self.reload_wanted.wait():
            self.reload_wanted.clear()
            # READY=1 ends a reload for systemd, and must not be said of an agent that is not ready.
            if self._view.ready:
                notify.notify_reloading()
            await reload_config(registry, in_force)
            if self._view.ready:
                notify.notify_ready()

    def _say_stopping(self) -> None:
        if not self._handed_over:
            notify.notify_stopping()

    async def _clean_up(self, keeper: LeaseKeeper, firewall: Firewall, network: IPv4Network) -> None:
        """Take away what would outlive us, as far as the options say so and nobody goes on with it."""
        if self._handed_over:
            return
        if self._options.firewall.clean_on_exit:
            await _clean(firewall, network)
        if self._options.release_on_exit:
            await _release(keeper)

    async def _close(self, dataplane: Dataplane) -> None:
        name, persistent = dataplane.tunnel.name, dataplane.tunnel.persistent
        dataplane.close()
        if persistent and not self._handed_over:  # somebody else made it, so it stays, with nothing of ours on it
            with suppress(FlannelError):
                await asyncio.to_thread(netlink.unconfigure, name)  # never on this loop: pyroute2 runs one of its own


async def _prepare(succession: Succession, keeper: LeaseKeeper, gate: Gate) -> Lease:
    """Have the lease, and the table in force, that the old agent had; nothing waits for the registry."""
    try:
        lease = keeper.adopt(succession.entry, succession.expires_s)
    except ValueError as error:
        raise FlannelError(f"cannot take over, the old agent goes on: {error}") from error
    gate.open(lease.subnet.v4)
    await gate.publish(lease.subnet.v4, [Delta(added=tuple(succession.peers))], whole=True)
    return lease


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


async def _check_fit(config: NetworkConfig, external: Interface) -> IPv4Network:
    """Return the overlay network. Raises FlannelError for a configuration that this agent or this host cannot run."""
    network = check_runnable(config)
    own = await asyncio.to_thread(own_networks.read_own_networks)
    own_networks.refuse_own_network(network, external.name, own)
    tunnel_mtu(external, config.backend.mtu)
    return network


def _previous_subnet(options: Options) -> Subnet | None:
    try:
        env = subnet_env.read(options.subnet_file)
    except FlannelError as unreadable:
        logger.warning("%s; going on without the subnet we had", unreadable)
        return None
    return None if env is None else env.subnet


async def _clean(firewall: Firewall, network: IPv4Network) -> None:
    try:
        await asyncio.wait_for(firewall.remove(), CLEAN_TIMEOUT_S)
        await asyncio.to_thread(keep_blackhole, network, None)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the firewall rules stay: %s", str(failed) or f"removing them takes over {CLEAN_TIMEOUT_S:g} s")


async def _release(keeper: LeaseKeeper) -> None:
    try:
        # Not asyncio.timeout: before Python 3.11.4 it raises no TimeoutError in a task that was cancelled, as this one.
        await asyncio.wait_for(keeper.release(), RELEASE_TIMEOUT_S)
    except (FlannelError, TimeoutError) as failed:
        logger.warning("the lease was not released and stays until it expires: %s", str(failed) or "no answer")
