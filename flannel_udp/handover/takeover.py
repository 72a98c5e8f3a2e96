"""Hitless restart: the old agent's side and the new one's, put together from the rooms. See docs/decisions/0009.

How the two talk is `handover.conversation`; here is what they have to give and what becomes of it. A backend whose
packets the kernel carries gives no descriptors and has no workers: the new agent finds the kernel's state as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flannel_udp import __version__
from flannel_udp.admin.health import open_health_listener
from flannel_udp.admin.listener import UnixListener
from flannel_udp.backend.protocol import Handed, Network
from flannel_udp.backend.table import BACKENDS
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.dataplane.dataplane import count_workers
from flannel_udp.errors import FlannelError
from flannel_udp.handover.conversation import HandoverFailed, Offered, ask_handover, handover_path
from flannel_udp.handover.state import HandoverState, Terms
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

CONTROL, HANDOVER, HEALTH = "control", "handover", "health"
"""The listeners' descriptors by name; all others are the network's."""


def terms_of(options: Options, external: Interface) -> Terms:
    """Return on which terms an agent with these options hands over, and takes over."""
    registry = f"etcd {options.etcd.prefix}" if options.registry == "etcd" else options.registry
    if options.kube.subnet_mgr:
        registry = "kubernetes"
    return Terms(
        registry=registry,
        interface_address=str(external.address),
        public_ip=str(external.public_ip),
        workers=count_workers(options.dataplane),
        offload=str(options.dataplane.offload),
    )


# The old agent


class HandedOver(Exception):
    """What carries packets is another process's: end, and take nothing down."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"handed over to process {pid}; stopped")


@dataclass(frozen=True, slots=True)
class Listeners:
    """What others come in by."""

    control: UnixListener
    handover: UnixListener
    health: socket.socket | None

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors by name."""
        found = {CONTROL: self.control.socket.fileno(), HANDOVER: self.handover.socket.fileno()}
        return found if self.health is None else {**found, HEALTH: self.health.fileno()}

    def close(self) -> None:
        """Close what is not a server's by now."""
        self.control.close()
        self.handover.close()

    def leave(self) -> None:
        """Leave the sockets' files to another process."""
        self.control.left = self.handover.left = True


def open_listeners(options: Options) -> Listeners:
    """Make the sockets of a fresh agent. Raises `FlannelError`; nothing stays open then."""
    control = UnixListener(options.control_socket)
    try:
        handover = UnixListener(handover_path(options.control_socket), socket.SOCK_SEQPACKET)
        try:
            return Listeners(control, handover, open_health_listener(options.healthz_ip, options.healthz_port))
        except BaseException:
            handover.close()
            raise
    except BaseException:
        control.close()
        raise


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
        is_ready: Callable[[], bool],
    ) -> None:
        self._terms = terms
        self._config = config
        self._network = network
        self._path = network.transferable
        self._keeper = keeper
        self._listeners = listeners
        self._is_ready = is_ready
        self._offered: tuple[object, ...] = ()

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
            entry=lease.entry,
            expires_s=self._keeper.expires_s,
            peers=self._network.peers(),
        )
        self._offered = self._facts()
        descriptors = {} if self._path is None else self._path.descriptors()
        return state, {**self._listeners.descriptors(), **descriptors}

    def _facts(self) -> tuple[object, ...]:
        """Return what of an offer another process could not find out in time, if it changed."""
        lease = self._keeper.lease
        return lease and lease.subnet, None if self._path is None else self._path.generation, self._is_ready()

    def commit(self) -> None:
        """See `Holder.commit`."""
        if self._facts() != self._offered:
            raise FlannelError(
                "this agent has lost its subnet, its way to the others or its tunnel device since it was asked: "
                "try again when it is ready"
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

    def resume(self) -> None:
        """See `Holder.resume`."""
        if self._path is not None:
            self._path.take_back()


# The new agent


class Takeover:
    """What a new agent was offered by the old one, until it has taken it."""

    def __init__(self, offered: Offered, config: NetworkConfig) -> None:
        self._offered = offered
        self.config = config
        self.state = offered.state
        listeners = (CONTROL, HANDOVER, HEALTH)
        self._listeners = {name: fd for name, fd in offered.descriptors.items() if name in listeners}
        path = {name: fd for name, fd in offered.descriptors.items() if name not in listeners}
        self.handed = Handed(path, offered.state.network) if path else None

    async def take(self, network: Network, options: Options) -> Listeners:
        """Let `network` carry packets and the old agent end; return the sockets that are ours from now on.

        Raises `FlannelError`; then the old one goes on.
        """
        path, adopted, offered = options.control_socket, self._listeners, self._offered
        # This may fail, so it comes first: until it hears "ready", the old agent has stopped none of its workers.
        health = open_health_listener(options.healthz_ip, options.healthz_port, adopted.get(HEALTH))
        workers = network.transferable
        if workers is None:
            waited_s = await asyncio.to_thread(offered.take, 0, _start_none, _stop_none)
        else:
            waited_s = await asyncio.to_thread(offered.take, workers.workers, workers.start_worker, workers.stop)
        logger.info(
            "took over from process %d, which ran flannel-udp %s; packets waited %.1f ms at most",
            *(offered.pid, offered.state.version, waited_s * 1e3),
        )
        control = UnixListener(path, adopted=adopted[CONTROL])
        return Listeners(control, UnixListener(handover_path(path), adopted=adopted[HANDOVER]), health)


def _start_none(_number: int) -> None:
    """Start no worker: the kernel carries the packets."""


def _stop_none() -> None:
    """Likewise."""


async def ask_takeover(options: Options, external: Interface) -> Takeover | None:
    """Ask the agent that runs here for all it has; ``None``, and a line in the log, if none runs.

    Raises `FlannelError` when it refuses, or has what makes no sense.
    """
    offered = await asyncio.to_thread(ask_handover, options.control_socket, terms_of(options, external))
    if offered is None:
        logger.info("no agent to take over from on %s: starting afresh", options.control_socket)
        return None
    try:
        config = parse_network_config(offered.state.config, BACKENDS).config
        if {CONTROL, HANDOVER} - offered.descriptors.keys():
            raise FlannelError("its descriptors are not complete")
    except FlannelError as error:
        offered.decline()
        for fd in offered.descriptors.values():
            os.close(fd)
        raise HandoverFailed(f"cannot take over from process {offered.pid}, which goes on: {error}") from error
    return Takeover(offered, config)
