"""The agent: the composition root, the one module that knows every room.

The order of a life:

1. may we, and which interface?     privileges, host.interface        → exit with one line
2. answer for ourselves             control socket, /healthz
3. the network configuration        control.retry                     → waited for
4. open                             flannel0, UDP socket, engine      → exit with one line
5. follow the registry              control.synchroniser → dataplane
6. the lease                        control.lease                     → waited for
7. the host                         flannel0's address, MTU and route; firewall rules; subnet.env; READY
8. keep the lease; when it is lost stop forwarding at once and go back to 6
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import uvloop

from flannel_udp import subnet_env
from flannel_udp.admin import notify
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.handover import serve_handover
from flannel_udp.admin.health import health_server
from flannel_udp.config import MTU_MAX_BYTES, MTU_MIN_BYTES, NetworkConfig
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.retry import wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import DSCP_INHERIT, Adopted, Dataplane, count_workers
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.host import interface, netlink
from flannel_udp.host.blackhole import keep_blackhole
from flannel_udp.host.capabilities import FileAccess, Kept, drop_capabilities
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.rules import rules_for
from flannel_udp.host.privileges import check_privileges, shows_password
from flannel_udp.model import Interface, Lease, LeaseAttrs, Peer, Subnet
from flannel_udp.options import Options
from flannel_udp.registry.open import open_registry
from flannel_udp.takeover import (
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
from flannel_udp.view import AgentView

logger = logging.getLogger(__name__)

OUTER_HEADER_BYTES = 28  # IPv4 20 + UDP 8
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
    return uvloop.run(_run(options, kept))


def _files(options: Options) -> list[FileAccess]:
    """Return what the agent will read and write by name."""
    etcd = options.etcd
    kind, _, registry = options.registry.partition(":")
    read = [path for path in (etcd.cafile, etcd.certfile, etcd.keyfile) if path is not None and kind == "etcd"]
    written = [options.subnet_file, options.control_socket]
    if kind == "file":
        read, written = [Path(registry)], [*written, Path(registry)]
    return [FileAccess(path, os.R_OK) for path in read] + [
        FileAccess(path.parent, os.R_OK | os.W_OK | os.X_OK) for path in written
    ]


async def _run(options: Options, kept: Kept) -> int:
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    assert life is not None  # noqa: S101 - a coroutine that uvloop.run runs has a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel)
    try:
        await Agent(options, kept).live()
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
    return 1


def _first(failures: BaseExceptionGroup[FlannelError]) -> FlannelError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure


class Gate:
    """Lets tables through to the dataplane only while their subnet is ours."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self.tunnel = dataplane.tunnel.name
        self._open_for: IPv4Network | None = None
        self._one_at_a_time = asyncio.Lock()
        self.published = asyncio.Event()
        """Set when the dataplane has got the first table for the subnet the gate is open for."""

    async def publish(self, own: IPv4Network, peers: Sequence[Peer]) -> None:
        """Publish a table, unless the lease it was made for is gone meanwhile."""
        async with self._one_at_a_time:
            if own == self._open_for:
                await self._dataplane.publish(own, peers)
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
            await self._dataplane.publish(None, ())


@dataclass(frozen=True, slots=True)
class Overlay:
    """What the configuration and the interface come to; ``mtu`` in bytes."""

    config: NetworkConfig
    network: IPv4Network
    mtu: int


class Agent:
    """One run of the agent."""

    def __init__(self, options: Options, kept: Kept) -> None:
        self._options = options
        self._kept = kept
        self._view = AgentView(options, kept)
        self._handed_over = False

    async def live(self) -> None:
        """Do everything above; ends only by an error or by being cancelled, and leaves nothing behind."""
        options = self._options
        external = await self._choose_interface()
        async with AsyncExitStack() as stack:
            stack.callback(self._say_stopping)
            servers = await stack.enter_async_context(AsyncExitStack())  # closed last
            stored = notify.take_stored_descriptors()
            succession = await ask_succession(options, external) if options.takeover else None
            if succession is None:
                doors = await self._answer(servers, open_doors(options))
            registry = open_registry(options)
            stack.push_async_callback(registry.close)
            self._enter("waiting for configuration")
            config = (await wait_for_config(registry)).config if succession is None else succession.config
            network = check_runnable(config)
            overlay = Overlay(config, network, tunnel_mtu(external, config.backend.mtu))
            self._view.config = config

            lost_tunnel: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            def open_dataplane(adopted: Adopted | None) -> Dataplane:
                return self._open_dataplane(external, config, lost_tunnel, adopted)

            if succession is not None:
                dataplane = open_dataplane(succession.adopted)
            else:
                dataplane = open_or_resume(stored, count_workers(options.dataplane), open_dataplane)
            stack.push_async_callback(self._close, dataplane)
            self._present(dataplane, external, config)
            gate = Gate(dataplane)
            keeper = LeaseKeeper(
                registry,
                LeaseAttrs(external.public_ip),
                options.subnet_lease_renew_margin * 60.0,
                previous=_previous_subnet(options),
            )
            sync = Synchroniser(registry, PeerTable(network, external.public_ip), gate, keeper.observe)
            self._firewall = firewall = Firewall(
                nftables=config.enable_nftables, resync_s=options.firewall.iptables_resync
            )
            self._view.keeper, self._view.sync, self._view.firewall = keeper, sync, firewall
            if options.release_on_exit:
                stack.push_async_callback(self._release, keeper)
            if options.firewall.clean_on_exit:
                stack.push_async_callback(self._clean, firewall, network)
            adopted_lease = None if succession is None else await self._prepare(succession, keeper, gate)
            if succession is not None:
                doors = await self._answer(servers, await succession.take(dataplane, options))
            elif not stored:
                dataplane.start()  # else what waits there would be dropped before there is a table
            running = Running(
                terms_of(options, external),
                config=config,
                dataplane=dataplane,
                keeper=keeper,
                doors=doors,
                is_ready=lambda: self._view.ready,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sync.run(), name="synchronise")
                tasks.create_task(self._hand_over(running, doors), name="wait for a successor")
                tasks.create_task(firewall.run(), name="keep the firewall rules")
                tasks.create_task(_fail_without_tunnel(lost_tunnel, dataplane.tunnel.name), name="watch the tunnel")
                while True:
                    await self._hold_lease(keeper, sync, gate, overlay, adopted_lease)
                    adopted_lease = None
                    if (await wait_for_config(registry)).config != overlay.config:
                        raise FlannelError("the network configuration has changed: start the agent again")

    async def _choose_interface(self) -> Interface:
        facts = await asyncio.to_thread(interface.gather, self._options.interface)
        external = interface.choose(self._options.interface, facts)
        logger.info("using interface %s, address %s, public IP %s", external.name, external.address, external.public_ip)
        self._view.interface = external
        tunnel_mtu(external)  # no configuration can help an interface that is too narrow: say so at once
        return external

    async def _answer(self, servers: AsyncExitStack, doors: Doors) -> Doors:
        """Answer at the doors until `servers` is closed."""
        servers.callback(doors.close)
        await servers.enter_async_context(control_server(doors.control, self._view))
        await servers.enter_async_context(health_server(doors.health, lambda: self._view.ready, self._view))
        return doors

    async def _prepare(self, succession: Succession, keeper: LeaseKeeper, gate: Gate) -> Lease:
        """Have the lease, and the table in force, that the old agent had; nothing waits for the registry."""
        try:
            lease = keeper.adopt(succession.entry, succession.expires_s)
        except ValueError as error:
            raise FlannelError(f"cannot take over, the old agent goes on: {error}") from error
        gate.open(lease.subnet.v4)
        await gate.publish(lease.subnet.v4, succession.peers)
        return lease

    async def _hand_over(self, running: Running, doors: Doors) -> None:
        """Wait for a successor; once it forwards end, and take nothing down."""
        pid = await serve_handover(doors.handover.listener, running)
        self._handed_over = True
        doors.leave()
        raise HandedOver(pid)

    def _open_dataplane(
        self,
        external: Interface,
        config: NetworkConfig,
        lost_tunnel: asyncio.Future[int],
        adopted: Adopted | None,
    ) -> Dataplane:
        loop = asyncio.get_running_loop()

        def on_fault(number: int) -> None:  # in a data thread, once for each
            loop.call_soon_threadsafe(_set_once, lost_tunnel, number)

        dscp = DSCP_INHERIT if config.backend.dscp is None else config.backend.dscp
        return Dataplane(
            external.address, config.backend.port, self._options.dataplane, on_fault, dscp=dscp, adopted=adopted
        )

    def _present(self, dataplane: Dataplane, external: Interface, config: NetworkConfig) -> None:
        """Let everybody know the dataplane: the log, `status`, systemd."""
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

    async def _hold_lease(
        self,
        keeper: LeaseKeeper,
        sync: Synchroniser,
        gate: Gate,
        overlay: Overlay,
        adopted: Lease | None,
    ) -> None:
        """Acquire a lease, forward for it, and return when it was lost and forwarding has stopped.

        An `adopted` lease is held already, and its table in force.
        """
        if adopted is None:
            self._enter("waiting for a lease")
        lease = adopted or await keeper.acquire(overlay.config)
        await self._set_up_tunnel(lease, overlay, gate.tunnel)
        if adopted is None:
            gate.open(lease.subnet.v4)
        self._enter("waiting for the peers")
        await sync.set_own(lease)
        await gate.published.wait()
        gate.start()
        async with asyncio.TaskGroup() as tasks:  # the lease is kept also while the firewall's tools fail
            getting_ready = tasks.create_task(self._get_ready(lease, self._firewall, overlay), name="get ready")
            lost = await keeper.keep()
            getting_ready.cancel()
        self._view.ready = False
        await gate.shut()
        await sync.set_own(None)
        loss = f"lost our subnet {lease.subnet}: {lost}; forwarding stopped"
        if self._options.on_lease_loss == "exit":
            raise FlannelError(loss)
        logger.error("%s", loss)

    async def _get_ready(self, lease: Lease, firewall: Firewall, overlay: Overlay) -> None:
        options = self._options.firewall
        self._enter("waiting for the firewall rules")
        rules = rules_for(
            overlay.network,
            lease.subnet.v4,
            masquerade=options.ip_masq,
            forward=options.iptables_forward_rules,
            random_fully=not options.ip_masq_fully_random_disable,
        )
        await firewall.keep(rules)
        env = subnet_env.SubnetEnv(overlay.network, lease.subnet, overlay.mtu, options.ip_masq)
        subnet_env.write(self._options.subnet_file, env)
        logger.info("wrote %s", self._options.subnet_file)
        self._view.ready = True
        self._enter("running")
        notify.notify_ready()

    async def _set_up_tunnel(self, lease: Lease, overlay: Overlay, name: str) -> None:
        address = lease.subnet.v4.network_address
        queue_packets = self._options.dataplane.tx_queue_packets
        await asyncio.to_thread(netlink.configure_tunnel, name, address, overlay.network, overlay.mtu, queue_packets)
        blackhole = lease.subnet.v4 if self._options.firewall.ip_blackhole_route else None
        await asyncio.to_thread(keep_blackhole, overlay.network, blackhole)
        self._view.tunnel_mtu = overlay.mtu

    def _say_stopping(self) -> None:
        if not self._handed_over:
            notify.notify_stopping()

    async def _release(self, keeper: LeaseKeeper) -> None:
        if self._handed_over:
            return
        try:
            # Not asyncio.timeout: before Python 3.11.4 it raises no TimeoutError in a task that was cancelled, as this.
            await asyncio.wait_for(keeper.release(), RELEASE_TIMEOUT_S)
        except (FlannelError, TimeoutError) as failed:
            logger.warning("the lease was not released and stays until it expires: %s", str(failed) or "no answer")

    async def _clean(self, firewall: Firewall, network: IPv4Network) -> None:
        if self._handed_over:
            return
        try:
            await asyncio.wait_for(firewall.remove(), CLEAN_TIMEOUT_S)
            await asyncio.to_thread(keep_blackhole, network, None)
        except (FlannelError, TimeoutError) as failed:
            reason = str(failed) or f"removing them takes over {CLEAN_TIMEOUT_S:g} s"
            logger.warning("the firewall rules stay: %s", reason)

    async def _close(self, dataplane: Dataplane) -> None:
        name, persistent = dataplane.tunnel.name, dataplane.tunnel.persistent
        dataplane.close()
        if persistent and not self._handed_over:  # somebody else made it, so it stays, with nothing of ours on it
            with suppress(FlannelError):
                await asyncio.to_thread(netlink.unconfigure, name)  # never on this loop: pyroute2 runs one of its own

    def _enter(self, state: str) -> None:
        self._view.state = state
        notify.notify_status(state)


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


def tunnel_mtu(external: Interface, wanted: int | None = None) -> int:
    """Return flannel0's MTU in bytes: Backend.MTU if `wanted`, else what the interface's leaves of a packet.

    Raises ConfigError if the one does not fit into the other, FlannelError if the interface leaves no room at all.
    """
    # A UDP datagram has its bound too, whatever the interface (lo: 65,536) allows.
    largest = min(external.mtu - OUTER_HEADER_BYTES, MTU_MAX_BYTES)
    if largest < MTU_MIN_BYTES:
        raise FlannelError(f"the MTU of {external.name}, {external.mtu}, leaves no room for a tunnel: raise it")
    if wanted is not None and wanted > largest:
        room = f"the MTU of {external.name}, {external.mtu}, leaves room for {largest}"
        raise ConfigError([f"Backend.MTU is {wanted}: {room}: lower the one or raise the other"])
    return largest if wanted is None else wanted


def _previous_subnet(options: Options) -> Subnet | None:
    try:
        env = subnet_env.read(options.subnet_file)
    except FlannelError as unreadable:
        logger.warning("%s; going on without the subnet we had", unreadable)
        return None
    return None if env is None else env.subnet


def _set_once(future: asyncio.Future[int], value: int) -> None:
    if not future.done():
        future.set_result(value)


async def _fail_without_tunnel(lost_tunnel: asyncio.Future[int], name: str) -> None:
    number = await lost_tunnel
    raise FlannelError(f"{name} was deleted or broke (errno {number}): start the agent again")
