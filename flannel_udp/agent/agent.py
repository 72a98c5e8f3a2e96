"""The agent: the composition root, which knows every room.

The order of a life that begins afresh:

1. answer for ourselves             control socket, /healthz          → waited for
2. which interface?                 host.interface                    → waited for
3. the network configuration        registry, control.retry, check    → waited for
4. open what carries packets        backend.open                      → exit with one line
5. follow the registry              control.synchroniser → network
6. the lease                        control.lease                     → waited for
7. the host                         host.upkeep: the network's device or routes; firewall rules; subnet.env; READY
8. keep the lease; when it is lost stop forwarding at once and go back to 6

One that takes over from another process has 3, 6 and the listeners of 1 from there, and goes on at 7: all that may fail
comes before, while the other one still carries the packets. 6 to 8 are in `forwarding`. From 4 on host.upkeep keeps
right what is on this host, whatever becomes of the host's network.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

from flannel_udp.admin import notify
from flannel_udp.admin.claims import HostClaims
from flannel_udp.admin.control_socket import ControlServer, control_server
from flannel_udp.admin.show import status_lines
from flannel_udp.agent.asking import Asking, needs_of
from flannel_udp.agent.documents import Documents
from flannel_udp.agent.ending import clean, release
from flannel_udp.agent.external import find_any_interface, wait_for_interface
from flannel_udp.agent.families import open_families
from flannel_udp.agent.forwarding import Forwarding
from flannel_udp.agent.gate import Gate
from flannel_udp.agent.identity import degradations_of_claims, degradations_of_shared
from flannel_udp.agent.kept_off import degradations_of_own
from flannel_udp.agent.listening import answer_probes, keep_sockets, listen
from flannel_udp.agent.peer_watch import PeerWatch
from flannel_udp.agent.registry_away import RegistryAway
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backend.protocol import Backend, Context, Network
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.allocation import Seeker
from flannel_udp.control.former import read_former
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.lease_safety import YIELD_S
from flannel_udp.control.listing import list_subnets
from flannel_udp.control.peers import PeerTable, SharedSubnet
from flannel_udp.control.reload import reload_config
from flannel_udp.control.retry import TellError, retry, wait_for_config
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.errors import FlannelError, RegistryError
from flannel_udp.files import host_id as host_id_file
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.files.yielded import yielded_file, yielded_for_s
from flannel_udp.handover.conversation import serve_handover
from flannel_udp.handover.stored import Store, open_or_resume
from flannel_udp.handover.takeover import HandedOver, Listeners, Running, Takeover, ask_takeover, terms_of
from flannel_udp.host import own_networks
from flannel_udp.host.capabilities import Kept
from flannel_udp.host.conntrack import ConntrackWatch
from flannel_udp.host.lookup.cut_off import refuse_cut_off
from flannel_udp.host.own_addresses import OwnAddresses
from flannel_udp.host.subnet_file import SubnetFile
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Delta, Entry, Interface, Lease, LeaseAttrs
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options
from flannel_udp.registry import Registry
from flannel_udp.registry.observed import ObservedRegistry
from flannel_udp.registry.open import open_registry

logger = logging.getLogger(__name__)

# SIGTERM must end the agent within 2 s, whatever the registry and the firewall's tools do.
END_TIMEOUT_S = 1.2
TABLE_WAIT_S = 2.0
"""So long packets wait for the first table, then they are dropped, counted and answered while there is none."""

_parse = partial(parse_network_config, backends=BACKENDS)


class Agent:
    """One run of the agent."""

    def __init__(self, options: Options, kept: Kept) -> None:
        self._options = options
        self._kept = kept
        self._state = AgentState()
        self._documents = Documents(options, kept, self._state)
        self._mark = 0  # of our leases, see `_find_mark`
        self._in_charge = False  # what carries packets is this process's: nobody goes on with it when we end
        self.reload_wanted = asyncio.Event()
        """Set it, and the network configuration is read again, see control.reload."""

    async def come_round(self) -> None:
        """Return when all that carries traffic has given a sign of life; before that there is nothing to ask."""
        if self._state.ready and self._state.rooms:
            await self._state.rooms.network.come_round()

    def log_status(self) -> None:
        """Write what `flannel-udp status` shows to the log, for when nobody can ask any more."""
        for name, value in status_lines(self._documents.status()):
            logger.info("status: %-11s%s", name, value)

    async def live(self) -> None:
        """Do everything above; ends only by an error or by being cancelled, and leaves nothing behind."""
        async with AsyncExitStack() as stack:
            stack.callback(self._say_stopping)
            stack.enter_context(self._state.lateness.measured())
            stored = notify.take_stored_descriptors()
            self._mark = await _find_mark(self._options)
            if self._options.takeover:
                external = await find_any_interface(self._options.interface, self._state)
                takeover = await ask_takeover(self._options, external)
                if takeover is not None:
                    await self._live_on(stack, external, takeover, stored)
            await self._live_afresh(stack, stored)

    async def _live_afresh(self, stack: AsyncExitStack, stored: Mapping[str, int]) -> None:
        self._in_charge = True
        claims = HostClaims()
        stack.callback(claims.close)
        listeners = await listen(self._options)
        server = await self._answer(stack, listeners)
        external = await find_any_interface(self._options.interface, self._state)
        registry = await self._open_registry()
        stack.push_async_callback(registry.close)
        config, external = await self._wait_for_config(registry, external)
        registry.count_families(config.versions)
        backend = BACKENDS[config.backend.type]
        logger.info("%s", self._kept)
        _claim_network(claims, config)
        context = self._context(registry, config, external, claims)
        seeker = _seeker(config, external, self._mark)
        context = replace(context, read_former=partial(read_former, registry, config, seeker))
        network = await open_or_resume(backend, context, stored)
        store = Store(network, stored)
        rooms, forwarding = self._open_rooms(stack, registry, external, (config, backend, network), store)

        def drop_what_waits() -> None:
            if not rooms.gate.published.is_set():
                with suppress(FlannelError):  # the first table brings another try, and then its failure ends us
                    network.start()

        stack.callback(asyncio.get_running_loop().call_later(TABLE_WAIT_S, drop_what_waits).cancel)
        await self._run(registry, rooms, forwarding, _Entrances(listeners, server, claims), None)

    async def _live_on(
        self, stack: AsyncExitStack, external: Interface, takeover: Takeover, stored: Mapping[str, int]
    ) -> None:
        """Go on with what another process had; until it has ended that one goes on whenever this one does not."""
        for fd in stored.values():  # an earlier run's, of no use beside those that are in use
            os.close(fd)
        claims, listeners = takeover.claims, takeover.listeners
        stack.callback(claims.close)
        servers = await stack.enter_async_context(AsyncExitStack())  # closed last but for the claims
        servers.callback(listeners.close)
        registry = ObservedRegistry(open_registry(self._options, self._mark, in_use=True), self._state.asked)
        stack.push_async_callback(registry.close)
        config, backend = takeover.config, BACKENDS[takeover.config.backend.type]
        external = await wait_for_interface(self._options.interface, self._state, config.overlays)
        _claim_network(claims, config)
        registry.count_families(config.versions)
        await takeover.check_registry(registry, self._documents.registry)
        await self._check_host(backend, config, external)
        logger.info("%s", self._kept)
        context = self._context(registry, config, external, claims)
        context = replace(context, handed=takeover.handed, read_former=takeover.read_former)
        network = await backend.open(context)
        store = Store(network, stored)
        rooms, forwarding = self._open_rooms(stack, registry, external, (config, backend, network), store)
        lease = await _adopt(takeover, rooms)
        try:
            await takeover.take(network)
        finally:
            self._in_charge = takeover.taken
        server = await self._answer(servers, listeners)
        await self._run(registry, rooms, forwarding, _Entrances(listeners, server, claims), lease)

    async def _answer(self, servers: AsyncExitStack, listeners: Listeners) -> ControlServer:
        """Answer on the listeners until `servers` is closed, which closes them."""
        servers.callback(listeners.close)
        server = await servers.enter_async_context(control_server(listeners.control, self._documents))
        answering = answer_probes(listeners, self._options, self._documents, self._state)
        servers.push_async_callback(_end, asyncio.create_task(answering, name="answer probes"))
        return server

    async def _open_registry(self) -> Registry:
        """Return the registry, as soon as the files that its flags name can be used."""

        async def open_() -> Registry:
            return ObservedRegistry(open_registry(self._options, self._mark), self._state.asked)

        self._state.enter("waiting for the registry's files")
        return await retry("opening the registry", open_)

    async def _wait_for_config(self, registry: Registry, external: Interface) -> tuple[NetworkConfig, Interface]:
        """Return a configuration that this host can run, and the interface to run it through."""
        self._state.enter("waiting for configuration")

        async def check(config: NetworkConfig) -> None:
            nonlocal external
            # Once more: the wait before may have been a long one, and now it is known which families are on, and where.
            external = await wait_for_interface(self._options.interface, self._state, config.overlays)
            self._state.enter("waiting for configuration")
            await self._check_host(BACKENDS[config.backend.type], config, external)

        tell = self._state.errors.noter("configuration")
        parsed = await wait_for_config(registry, _parse, check, tell=tell)
        if parsed.config.versions == (6,) and self._options.registry == "etcd" and not self._options.kube.subnet_mgr:
            logger.warning(
                "IPv6 alone with etcd: flanneld cannot take part, all its hosts are one there: run flannel-udp on each"
            )
        return parsed.config, external

    async def _check_host(self, backend: Backend, config: NetworkConfig, external: Interface) -> None:
        """Raise FlannelError for a configuration that this host cannot run."""
        route_for = partial(backend.route_for, config, datapath=self._options.dataplane.datapath)
        warnings = await asyncio.to_thread(own_networks.judge_all, config, external, route_for)
        await backend.check(config, external)
        needs = await needs_of(self._options)
        for warning in [*warnings, *await asyncio.to_thread(refuse_cut_off, route_for, needs)]:
            logger.warning("%s", warning)

    def _context(self, registry: Registry, config: NetworkConfig, external: Interface, claims: HostClaims) -> Context:
        loop = asyncio.get_running_loop()

        def look() -> None:
            if self._state.rooms:
                self._state.rooms.upkeep.wake()

        on_fault, listed = partial(loop.call_soon_threadsafe, look), partial(list_subnets, registry)
        return Context(self._options, config, external, on_fault, claims=claims, list_subnets=listed)

    def _open_rooms(
        self,
        stack: AsyncExitStack,
        registry: Registry,
        external: Interface,
        opened: tuple[NetworkConfig, Backend, Network],
        store: Store,
    ) -> tuple[Rooms, Forwarding]:
        """Bring to life what lives from now on; closed with `stack`."""
        options, (config, backend, network), errors = self._options, opened, self._state.errors
        stack.push_async_exit(partial(self._close, network))
        store.update()
        gate = Gate(network)
        subnet_file = SubnetFile(options.subnet_file, self._state.tell)
        former = _read_former(subnet_file)
        keeper = LeaseKeeper(
            registry,
            network.attrs,
            options.subnet_lease_renew_margin * 60.0,
            network.forward_until,
            mark=self._mark,
            previous=None if former is None else former.subnet,
            tell=errors.noter("lease"),
        )
        keeper.yield_for(
            yielded_for_s(yielded_file(options.state_dir, config.overlays[0], network.attrs.found_by), YIELD_S)
        )

        def read_hop(attrs: LeaseAttrs, version: int) -> Any:
            return backend.read_hop(attrs, network.attrs, version)

        peers = PeerTable(config.overlays, network.attrs, read_hop, config.may_lease)

        away = RegistryAway()

        def registry_away(trouble: RegistryError | None) -> None:
            errors.note("watch", None if trouble is None else str(trouble))
            self._state.conditions.note("registry", away.degradations(trouble, keeper.left_s), said=True)

        def observe(seen: Entry | None) -> None:
            if seen is not None:
                self._state.conditions.note("node", degradations_of_own(seen))
            keeper.observe(seen)

        sync = Synchroniser(
            *(registry, peers, gate, observe),
            tell=registry_away,
            note_claims=self._note_claims,
            news=self._state.feed.tell_peers,
        )

        async def host_changed() -> None:
            store.update()
            await forwarding.host_changed()

        note = self._state.conditions.note
        tell = errors.noter("backend")
        networks = () if former is None else former.networks
        host = options, external, config.overlays, network, host_changed
        upkeep = Upkeep(*host, former=networks, note=note, tell=tell)
        watch = PeerWatch(network, lambda: upkeep.external, lambda: self._state.ready, note, peers.ignored)
        packets = network, lambda: upkeep.external, lambda: self._state.lease
        families = open_families(config, options.firewall, former, self._state.conditions, packets, errors=errors)
        rooms = Rooms(config, backend, network, gate, keeper, sync, families, upkeep, subnet_file, watch)
        forwarding = Forwarding(options, self._state, registry, rooms, former)
        self._state.open_rooms(rooms)
        stack.push_async_callback(self._clean_up, rooms)
        return rooms, forwarding

    async def _run(
        self,
        registry: Registry,
        rooms: Rooms,
        forwarding: Forwarding,
        entrances: _Entrances,
        adopted: Lease | None,
    ) -> None:
        """Hold one lease after another, beside everything that keeps the rest right."""
        config = rooms.config
        own_addresses = OwnAddresses(rooms.sync.set_own_addresses)
        await own_addresses.look()  # before any peer is published
        asking = [Asking(self._options, self._state, rooms, overlay) for overlay in config.overlays]

        def ask_again() -> None:
            for each in asking:
                each.wake()

        rooms.gate.news = ask_again
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(own_addresses.run(), name="know our own addresses")
            tasks.create_task(rooms.sync.run(), name="synchronise")
            tasks.create_task(self._hand_over(rooms, entrances), name="wait for a take-over")
            keep = keep_sockets(entrances.listeners, entrances.server, self._state)
            tasks.create_task(keep, name="keep the unix sockets")
            if adopted is not None:
                compare = _compare_config(registry, config, self._state.errors.noter("configuration"))
                tasks.create_task(compare, name="compare the network configuration")
            tasks.create_task(self._reload(registry, config), name="reload when asked")
            for family in rooms.families:
                tasks.create_task(family.firewall.run(), name="keep the firewall rules")
                tasks.create_task(family.firewall.look_beside(), name="look at the firewall rules of others")
                tasks.create_task(family.bridges.run(), name="look for a former subnet's bridges")
            tasks.create_task(rooms.upkeep.run(), name="keep the host right")
            tasks.create_task(rooms.subnet_file.run(), name="keep subnet.env")
            tasks.create_task(rooms.watch.run(), name="watch the peers")
            conntrack = ConntrackWatch(self._state.conditions.note)
            tasks.create_task(conntrack.run(), name="watch conntrack's table")
            for each in asking:
                tasks.create_task(each.run(), name="ask what the kernel does")
            while True:
                await forwarding.hold_lease(config, adopted)
                adopted = None
                if await self._read_config(registry) != config:
                    raise FlannelError("the network configuration has changed: start the agent again")

    async def _read_config(self, registry: Registry) -> NetworkConfig:
        """Return the registry's configuration once more; the phase is that only while there is none."""
        note = self._state.errors.noter("configuration")

        def tell(error: str | None) -> None:
            note(error)
            if error is not None:
                self._state.enter("waiting for configuration")

        return (await wait_for_config(registry, _parse, tell=tell)).config

    async def _hand_over(self, rooms: Rooms, entrances: _Entrances) -> None:
        """Wait for another process to take over; once it forwards end, and take nothing down."""
        running = Running(
            lambda: terms_of(self._options, rooms.upkeep.external),  # the interface's address may change
            config=rooms.config,
            network=rooms.network,
            keeper=rooms.keeper,
            listeners=entrances.listeners,
            server=entrances.server,
            claims=entrances.claims,
            registry=self._documents.registry,
            is_ready=lambda: self._state.ready,
        )
        pid = await serve_handover(entrances.listeners.handover.accept, running)
        self._in_charge = False
        entrances.listeners.leave()
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

    def _note_claims(self, claims: Sequence[Entry], shared: Sequence[SharedSubnet]) -> None:
        """Note who else has a subnet under our address, and which subnets are of several hosts."""
        external = self._state.interface
        ours = {ends.public_ip for ends in (external.v4, external.v6) if ends} if external else set()
        note = self._state.conditions.note
        note("identity", degradations_of_claims(claims, ours, self._mark))
        note("shared", degradations_of_shared(shared, kubernetes=self._options.kube.subnet_mgr))

    def _say_stopping(self) -> None:
        if self._in_charge:
            notify.notify_stopping()

    async def _clean_up(self, rooms: Rooms) -> None:
        """Take away what would outlive us, as far as the options say so and nobody goes on with it."""
        if not self._in_charge:
            return
        until_s = time.monotonic() + END_TIMEOUT_S
        if self._options.firewall.clean_on_exit:
            await clean(rooms)
        if self._options.release_on_exit:
            await release(rooms, until_s - time.monotonic())

    async def _close(
        self, network: Network, _kind: type[BaseException] | None, why: BaseException | None, _: TracebackType | None
    ) -> None:
        self._state.close_rooms()  # who asks now, while the listeners are still open, is not answered out of them
        try:
            await network.close(keep=not self._in_charge)
        except FlannelError as error:
            if why is None or isinstance(why, asyncio.CancelledError):
                raise
            logger.warning("%s", error)  # why we end is worth more than this


@dataclass(frozen=True, slots=True)
class _Entrances:
    """What others of this host find us by."""

    listeners: Listeners
    server: ControlServer
    claims: HostClaims


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def _seeker(config: NetworkConfig, external: Interface, mark: int) -> Seeker:
    """Return as what this host seeks its lease, before there is anything that says what the lease is to say."""
    found = {version: ends.public_ip for version in config.versions if (ends := external.of(version)) is not None}
    return Seeker(next(iter(found.values())), mark, versions=tuple(found))


def _claim_network(claims: HostClaims, config: NetworkConfig) -> None:
    """Raise `Claimed` if another agent makes that overlay here: whatever else differs, their routes are the same."""
    for overlay in config.overlays:
        claims.hold(f"the overlay network {overlay}", "stop it first, or take its place with --takeover")


async def _adopt(takeover: Takeover, rooms: Rooms) -> Lease:
    """Have the lease, and the peers, that the old agent had; nothing waits for the registry."""
    try:
        lease = rooms.keeper.adopt(takeover.state.entry, takeover.state.expires_s, rooms.config)
    except ValueError as error:
        raise FlannelError(f"cannot take over, the old agent goes on: {error}") from error
    rooms.gate.open(lease.subnet)
    await rooms.gate.publish(lease.subnet, [Delta(added=tuple(takeover.peers))], whole=True)
    return lease


async def _compare_config(registry: Registry, in_force: NetworkConfig, tell: TellError) -> None:
    """Say so if the configuration that came with the packet path is not the registry's any more."""
    if (await wait_for_config(registry, _parse, tell=tell)).config != in_force:
        logger.warning(
            "the network configuration in the registry is another one than that of the process we took over from, "
            "which stays in force: start the agent afresh, without --takeover, to use the new one"
        )


async def _find_mark(options: Options) -> int:
    """Return what our leases bear, so that this host knows them again; with Kubernetes the node's uid does that."""
    if options.kube.subnet_mgr:
        return 0
    try:
        host_id = await asyncio.to_thread(host_id_file.keep_host_id, options.state_dir)
    except FlannelError as failed:
        host_id = host_id_file.new_host_id()
        logger.warning("%s; this run has an id of its own and knows no earlier run's leases: see --state-dir", failed)
    mark = host_id_file.mark_of(host_id)
    logger.debug("the mark of this host's leases is %08x", mark)
    return mark


def _read_former(subnet_file: SubnetFile) -> SubnetEnv | None:
    try:
        return subnet_file.former()
    except FlannelError as unreadable:
        logger.warning("%s; going on without the subnet we had", unreadable)
        return None
