"""Hitless restart: the old agent's side and the new one's, put together from the rooms. See docs/decisions/0009.

How the two talk is `admin.handover`; here is what they have to give and what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flannel_udp import __version__
from flannel_udp.admin.control_socket import Door
from flannel_udp.admin.health import open_health_listener
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.dataplane.dataplane import Adopted, Dataplane, count_workers
from flannel_udp.errors import FlannelError
from flannel_udp.handover.conversation import HandoverFailed, Offered, ask_handover, handover_path
from flannel_udp.handover.state import Estate, Terms
from flannel_udp.model import Interface, Peer
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.options import NO_OFFLOAD, Offload, Options

logger = logging.getLogger(__name__)

CONTROL, HANDOVER, HEALTH, ICMP = "control", "handover", "health", "icmp"
"""Descriptors by name; "tun-N" and "udp-N" are worker N's."""


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
    """The packet path is another process's: end, and take nothing down."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"handed over to process {pid}; stopped")


@dataclass(frozen=True, slots=True)
class Doors:
    """What others come in by: descriptors by name, and the unix sockets among them."""

    control: Door
    handover: Door
    health: socket.socket | None

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors by name."""
        found = {CONTROL: self.control.listener.fileno(), HANDOVER: self.handover.listener.fileno()}
        return found if self.health is None else {**found, HEALTH: self.health.fileno()}

    def close(self) -> None:
        """Close what is not a server's by now."""
        self.control.close()
        self.handover.close()

    def leave(self) -> None:
        """Leave the sockets' files to another process."""
        self.control.left = self.handover.left = True


def open_doors(options: Options) -> Doors:
    """Make the sockets of a fresh agent. Raises `FlannelError`; nothing stays open then."""
    control = Door(options.control_socket)
    try:
        handover = Door(handover_path(options.control_socket), socket.SOCK_SEQPACKET)
        try:
            return Doors(control, handover, open_health_listener(options.healthz_ip, options.healthz_port))
        except BaseException:
            handover.close()
            raise
    except BaseException:
        control.close()
        raise


class Running:
    """A running agent that may be taken over: `admin.handover.Holder`."""

    def __init__(
        self,
        terms: Callable[[], Terms],
        *,
        config: NetworkConfig,
        dataplane: Dataplane,
        keeper: LeaseKeeper,
        doors: Doors,
        is_ready: Callable[[], bool],
    ) -> None:
        self._terms = terms
        self._config = config
        self._dataplane = dataplane
        self._keeper = keeper
        self._doors = doors
        self._is_ready = is_ready
        self._offered: tuple[object, ...] = ()

    def offer(self, terms: Terms) -> tuple[Estate, Mapping[str, int]]:
        """See `Holder.offer`."""
        differences = self._terms().differences(terms)
        if differences:
            raise FlannelError(
                f"{'; '.join(differences)}: start it like this one, or stop this one and start it afresh"
            )
        lease = self._keeper.lease
        if lease is None or not self._is_ready():
            raise FlannelError("this agent does not forward yet: try again later, or stop it and start afresh")
        estate = Estate(
            version=__version__,
            port=self._config.backend.port,
            granted=self._dataplane.offload.names(),
            config=self._config.to_json(),
            entry=lease.entry,
            expires_s=self._keeper.expires_s,
            peers=self._dataplane.peers(),
        )
        self._offered = self._belongings()
        return estate, {**self._doors.descriptors(), **descriptor_names(self._dataplane.descriptors())}

    def _belongings(self) -> tuple[object, ...]:
        """Return what of an offer another process could not find out in time, if it changed."""
        lease = self._keeper.lease
        return lease and lease.subnet, self._dataplane.replaced, self._dataplane.tunnel_lost, self._is_ready()

    def commit(self) -> None:
        """See `Holder.commit`."""
        if self._belongings() != self._offered:
            raise FlannelError(
                "this agent has lost its subnet, its way to the others or its tunnel device since it was asked: "
                "try again when it is ready"
            )
        self._dataplane.lent = True

    @property
    def workers(self) -> int:
        """See `Holder.workers`."""
        return self._dataplane.workers

    def pause(self, worker: int) -> None:
        """See `Holder.pause`."""
        self._dataplane.stop_worker(worker)

    def resume(self) -> None:
        """See `Holder.resume`."""
        self._dataplane.take_back()


def descriptor_names(adopted: Adopted) -> dict[str, int]:
    """Return a dataplane's descriptors by name."""
    queues = {f"tun-{number}": fd for number, fd in enumerate(adopted.queues)}
    sockets = {f"udp-{number}": fd for number, fd in enumerate(adopted.sockets)}
    return {**queues, **sockets, ICMP: adopted.icmp}


def adopted_from(descriptors: Mapping[str, int], workers: int, granted: Offload | None) -> Adopted:
    """Return the dataplane's descriptors out of those by name. Raises `FlannelError` unless there are just as many."""
    names = {ICMP, *(f"{kind}-{number}" for kind in ("tun", "udp") for number in range(workers))}
    found = {name for name in descriptors if name == ICMP or name.startswith(("tun-", "udp-"))}
    if found != names:
        raise FlannelError(f"its descriptors are those of {len(found) // 2} workers, not of {workers}")
    return Adopted(
        queues=[descriptors[f"tun-{number}"] for number in range(workers)],
        sockets=[descriptors[f"udp-{number}"] for number in range(workers)],
        icmp=descriptors[ICMP],
        granted=granted,
    )


# The new agent


class Succession:
    """What a new agent got from the old one, until it has taken it."""

    def __init__(self, offered: Offered, adopted: Adopted, config: NetworkConfig) -> None:
        self._offered = offered
        self.adopted = adopted
        self.config = config
        self.peers: Sequence[Peer] = offered.estate.peers
        self.entry, self.expires_s = offered.estate.entry, offered.estate.expires_s

    async def take(self, dataplane: Dataplane, options: Options) -> Doors:
        """Let `dataplane` forward and the old agent end; return the sockets that are ours from now on.

        Raises `FlannelError`; then the old one goes on.
        """
        path, descriptors = options.control_socket, self._offered.descriptors
        # This may fail, so it comes first: until it hears "ready", the old agent has stopped none of its workers.
        health = open_health_listener(options.healthz_ip, options.healthz_port, descriptors.get(HEALTH))
        offered = self._offered
        waited_s = await asyncio.to_thread(offered.take, dataplane.workers, dataplane.start_worker, dataplane.stop)
        logger.info(
            "took over from process %d, which ran flannel-udp %s; packets waited %.1f ms at most",
            *(offered.pid, offered.estate.version, waited_s * 1e3),
        )
        control = Door(path, adopted=descriptors[CONTROL])
        return Doors(control, Door(handover_path(path), adopted=descriptors[HANDOVER]), health)


async def ask_succession(options: Options, external: Interface) -> Succession | None:
    """Ask the agent that runs here for all it has; ``None``, and a line in the log, if none runs.

    Raises `FlannelError` when it refuses, or has what makes no sense.
    """
    offered = await asyncio.to_thread(ask_handover, options.control_socket, terms_of(options, external))
    if offered is None:
        logger.info("no agent to take over from on %s: starting afresh", options.control_socket)
        return None
    estate = offered.estate
    try:
        granted = replace(NO_OFFLOAD, **{name.replace("-", "_"): True for name in estate.granted})
        adopted = adopted_from(offered.descriptors, count_workers(options.dataplane), granted)
        missing = {CONTROL, HANDOVER} - offered.descriptors.keys()
        config = parse_network_config(estate.config).config
        if missing or config.backend.port != estate.port:
            raise ValueError("its descriptors are not complete or do not fit its configuration")
    except (ValueError, TypeError, KeyError, FlannelError) as error:
        offered.decline()
        for fd in offered.descriptors.values():
            os.close(fd)
        raise HandoverFailed(f"cannot take over from process {offered.pid}, which goes on: {error}") from error
    return Succession(offered, adopted, config)


# Between two runs under systemd


def open_or_resume(stored: Mapping[str, int], workers: int, open_: Callable[[Adopted | None], Dataplane]) -> Dataplane:
    """Return the dataplane on the descriptors that systemd kept since the last run; a fresh one if that cannot be.

    flannel0, with its address, its route and what waits in its queue, lives through a restart then.
    """
    if stored:
        try:
            try:
                adopted = adopted_from(stored, workers, None)
            except FlannelError:
                for fd in stored.values():
                    os.close(fd)
                raise
            dataplane = open_(adopted)
        except FlannelError as unfit:
            logger.warning("what systemd kept from the last run is of no use, opening afresh: %s", unfit)
        else:
            logger.info("going on with %s as the last run left it", dataplane.tunnel.name)
            return dataplane
    return open_(None)
