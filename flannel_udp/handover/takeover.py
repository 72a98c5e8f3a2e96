"""Hitless restart: the old agent's side and the new one's, put together from the rooms. See docs/decisions/0009.

How the two talk is `handover.conversation`; here is what they have to give and what becomes of it. A backend whose
packets the kernel carries gives no descriptors and has no workers: the new agent finds the kernel's state as it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flannel_udp import __version__
from flannel_udp.admin.claims import HostClaims
from flannel_udp.admin.control_socket import ControlServer
from flannel_udp.admin.health import PortInUse, open_health_listener
from flannel_udp.admin.listener import FileId, UnixListener
from flannel_udp.backend.protocol import Handed, Network, Transferable
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.former import read_attrs
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.dataplane.worker import count_workers
from flannel_udp.errors import FlannelError, LeaseLost, RegistryDenied, RegistryError, UsageError
from flannel_udp.handover.conversation import HandoverFailed, Offered, ask_handover, handover_path, reach_agent
from flannel_udp.handover.in_thread import in_thread
from flannel_udp.handover.state import HandoverState, Terms, read_hops
from flannel_udp.model import Interface, LeaseAttrs, Peer
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

CONTROL, HANDOVER, HEALTH = "control", "handover", "health"
"""The listeners' descriptors by name."""
_CLAIM = "claim: "
"""How the names of the claims' descriptors begin; all others are the network's."""
ASK_REGISTRY_S = 2.0
"""How long a registry may take to say whether it is the one that the old agent has its lease from."""


def terms_of(options: Options, external: Interface) -> Terms:
    """Return on which terms an agent with these options hands over, and takes over."""
    registry = f"etcd {options.etcd.prefix}" if options.registry == "etcd" else options.registry
    if options.kube.subnet_mgr:
        registry = "kubernetes"
    ends = external.v4 or external.v6  # what is known before there is a network configuration
    return Terms(
        registry=registry,
        interface_address=str(ends.address) if ends else "",
        public_ip=str(ends.public_ip) if ends else "",
        workers=count_workers(options.dataplane),
        offload=str(options.dataplane.offload),
        datapath=options.dataplane.datapath,
    )


# The old agent


class HandedOver(Exception):
    """What carries packets is another process's: end, and take nothing down."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"handed over to process {pid}; stopped")


@dataclass(slots=True)
class Listeners:
    """What others come in by."""

    control: UnixListener
    handover: UnixListener
    health: socket.socket | None
    """``None`` also while another program has the port."""

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors by name."""
        found = {CONTROL: self.control.socket.fileno(), HANDOVER: self.handover.socket.fileno()}
        return found if self.health is None else {**found, HEALTH: self.health.fileno()}

    def files(self) -> dict[str, FileId]:
        """Return which files the unix sockets have made."""
        return {CONTROL: self.control.made, HANDOVER: self.handover.made}

    def become_owner(self) -> None:
        """Be the one that listens, in place of the process that did."""
        self.control.become_owner()
        self.handover.become_owner()

    def close(self) -> None:
        """Close them."""
        self.control.close()
        self.handover.close()
        if self.health is not None:
            self.health.close()

    def leave(self) -> None:
        """Leave the sockets' files to another process."""
        self.control.left = self.handover.left = True


def open_listeners(options: Options) -> Listeners:
    """Make the sockets of a fresh agent. Raises `FlannelError`; nothing stays open then."""
    control = UnixListener(options.control_socket)
    try:
        handover = UnixListener(handover_path(options.control_socket), socket.SOCK_SEQPACKET)
        try:
            return Listeners(control, handover, _open_health(options, FlannelError))
        except BaseException:
            handover.close()
            raise
    except BaseException:
        control.close()
        raise


def _open_health(options: Options, waits_for: type[FlannelError], adopted: int | None = None) -> socket.socket | None:
    """Return what probes come in by, ``None`` where nobody may, and where it can be had later, as such an error tells.

    Raises the other ones.
    """
    try:
        return open_health_listener(options.healthz_ip, options.healthz_port, adopted)
    except UsageError:
        raise
    except waits_for:
        return None


class Running:
    """A running agent that may be taken over: `handover.conversation.Holder`."""

    def __init__(
        self,
        terms: Callable[[], Terms],
        *,
        config: NetworkConfig,
        network: Network,
        keeper: LeaseKeeper,
        listeners: Listeners,
        server: ControlServer,
        claims: HostClaims,
        registry: str,
        is_ready: Callable[[], bool],
    ) -> None:
        self._claims = claims
        self._registry = registry
        self._terms = terms
        self._config = config
        self._network = network
        self._keeper = keeper
        self._listeners = listeners
        self._server = server
        self._is_ready = is_ready
        self._offered: tuple[object, ...] = ()

    @property
    def _path(self) -> Transferable | None:
        return self._network.transferable  # a family may have come since it was asked last

    def offer(self, terms: Terms) -> tuple[HandoverState, Mapping[str, int]]:
        """See `Holder.offer`."""
        differences = self._terms().differences(terms)
        if differences:
            raise FlannelError(
                f"{'; '.join(differences)}: start it like this one, or stop this one and start it afresh"
            )
        lease = self._keeper.lease
        if lease is None or not self._is_ready():
            raise FlannelError("this agent does not forward yet: try again later, or stop it and start afresh")
        state = HandoverState(
            version=__version__,
            config=self._config.to_json(),
            network={} if self._path is None else self._path.state(),
            registry=self._registry,
            entry=lease.entry,
            expires_s=self._keeper.expires_s,
            files=self._listeners.files(),
        )
        self._offered = self._facts()
        descriptors = {} if self._path is None else self._path.descriptors()
        claims = {_CLAIM + what: fd for what, fd in self._claims.descriptors().items()}
        return state, {**self._listeners.descriptors(), **claims, **descriptors}

    def peers(self) -> list[Peer]:
        """See `Holder.peers`."""
        return self._network.peers()

    def _facts(self) -> tuple[object, ...]:
        """Return what of an offer another process could not find out in time, if it changed."""
        lease = self._keeper.lease
        generation = None if self._path is None else self._path.generation
        return lease and lease.subnet, generation, self._listeners.files(), self._is_ready()

    async def commit(self) -> None:
        """See `Holder.commit`."""
        await self._server.step_aside()
        if self._facts() != self._offered:
            raise FlannelError(
                "this agent has lost its subnet, its way to the others, a socket or its tunnel device since it was "
                "asked: try again when it is ready"
            )
        if self._path is not None:
            self._path.lend()

    @property
    def workers(self) -> int:
        """See `Holder.workers`."""
        return 0 if self._path is None else self._path.workers

    def pause(self, worker: int) -> None:
        """See `Holder.pause`."""
        assert self._path is not None  # noqa: S101 - or there is no worker
        self._path.stop_worker(worker)

    async def resume(self) -> None:
        """See `Holder.resume`."""
        if self._path is not None:
            await asyncio.to_thread(self._path.take_back)
        await self._server.come_back(self._listeners.control.socket)


# The new agent


class Takeover:
    """What a new agent was offered by the old one, until it has taken it."""

    def __init__(self, offered: Offered, config: NetworkConfig, options: Options) -> None:
        self._offered = offered
        self.config = config
        self.state = offered.state
        self.peers = _read_hops(offered.peers, config)
        given = dict(offered.descriptors)
        claims = {name: given.pop(name) for name in list(given) if name.startswith(_CLAIM)}
        self.claims = HostClaims({name.removeprefix(_CLAIM): fd for name, fd in claims.items()})
        self.listeners = _adopt_listeners(given, offered.state, options)
        self.handed = Handed(given, offered.state.network) if given else None

    async def read_former(self) -> LeaseAttrs | None:
        """See `Context.read_former`: the old agent's entry is ours."""
        return read_attrs(self.state.entry)

    async def check_registry(self, registry: Registry, name: str) -> None:
        """Raise `FlannelError` unless our registry has the old agent's lease, as far as it answers at all.

        `name` is what `HandoverState.registry` would say of it.
        """
        former = self.state.registry
        refusal = (
            f"cannot take over from process {self._offered.pid}, which goes on: our registry is {name}, its {former}"
        )
        registry.adopt(self.state.entry)
        try:
            # wait_for loses a cancellation before Python 3.12
            async with asyncio.timeout(ASK_REGISTRY_S):
                await registry.time_left_s(self.state.entry)
        except (LeaseLost, RegistryDenied) as refused:
            raise HandoverFailed(f"{refusal}: {refused}") from refused
        except (RegistryError, TimeoutError) as away:
            why = str(away) or f"no answer within {ASK_REGISTRY_S:g} s"
            if name != former:
                raise HandoverFailed(f"{refusal}, and whether that is the same is not to be known: {why}") from away
            logger.warning("taking over although the registry does not answer just now: %s", why)

    async def take(self, network: Network) -> None:
        """Let `network` carry packets and the old agent end; what listens and claims is ours from then on.

        All that may fail was done before. Raises `FlannelError`; then the old one goes on. `taken` counts also when
        this is cancelled.
        """
        offered, workers = self._offered, network.transferable
        count, start, stop = (
            (0, _start_none, _stop_none) if workers is None else (workers.workers, workers.start_worker, workers.stop)
        )
        try:
            waited_s = await in_thread(lambda: offered.take(count, start, stop), offered.give_up)
        finally:
            if self.taken:
                self.listeners.become_owner()
                self.claims.become_holder()
        logger.info(
            "took over from process %d, which ran flannel-udp %s; packets waited %.1f ms at most",
            *(offered.pid, offered.state.version, waited_s * 1e3),
        )

    @property
    def taken(self) -> bool:
        """Whether what was offered is ours."""
        return self._offered.taken


def _read_hops(peers: Iterable[Peer], config: NetworkConfig) -> list[Peer]:
    """Raises `FlannelError`."""
    try:
        return read_hops(peers, BACKENDS[config.backend.type].hop_type)
    except (TypeError, ValueError) as error:
        raise FlannelError(f"what it says of its peers makes no sense: {error}") from None


def _start_none(_number: int) -> None:
    """Start no worker: the kernel carries the packets."""


def _stop_none() -> None:
    """Likewise."""


def _adopt_listeners(given: dict[str, int], state: HandoverState, options: Options) -> Listeners:
    """Return what the old agent listens on, out of what was `given`. Raises `FlannelError`."""
    path = options.control_socket
    try:
        # An address that is not there is a reason to leave all to the old one; it may wait for the port as well.
        health = _open_health(options, PortInUse, given.pop(HEALTH, None))
        control, handover = (
            UnixListener(at, adopted=(given.pop(name), state.files[name]))
            for name, at in ((CONTROL, path), (HANDOVER, handover_path(path)))
        )
    except KeyError as missing:
        raise FlannelError(f"its descriptors are not complete: no {missing}") from None
    return Listeners(control, handover, health)


async def ask_takeover(options: Options, external: Interface) -> Takeover | None:
    """Ask the agent that runs here for all it has; ``None``, and a line in the log, if none runs.

    Raises `FlannelError` when it refuses, or has what makes no sense.
    """
    connection = reach_agent(options.control_socket)
    if connection is None:
        logger.info("no agent to take over from on %s: starting afresh", options.control_socket)
        return None
    terms = terms_of(options, external)
    offered = await in_thread(lambda: ask_handover(connection, terms), connection.stop)
    try:
        config = parse_network_config(offered.state.config, BACKENDS).config
        return Takeover(offered, config, options)
    except FlannelError as error:
        offered.decline()
        raise HandoverFailed(f"cannot take over from process {offered.pid}, which goes on: {error}") from error
