"""What the agent does just now, and what of it lives by now: state, for everybody who asks."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from flannel_udp.admin import notify
from flannel_udp.agent.conditions import Conditions
from flannel_udp.agent.families import FamilyRooms, rules_stand
from flannel_udp.agent.feed import Feed
from flannel_udp.agent.gate import Gate
from flannel_udp.agent.last_errors import LastErrors
from flannel_udp.agent.lateness import Lateness
from flannel_udp.agent.peer_watch import PeerWatch
from flannel_udp.backend.protocol import Backend, Network
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.host.subnet_file import SubnetFile
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Interface, Lease
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry.observed import RegistryCounts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rooms:
    """What lives once there is a network configuration, for as long as the agent does."""

    config: NetworkConfig
    backend: Backend
    network: Network
    gate: Gate
    keeper: LeaseKeeper
    sync: Synchroniser
    families: tuple[FamilyRooms, ...]
    upkeep: Upkeep
    subnet_file: SubnetFile
    watch: PeerWatch


class AgentState:
    """One phase after another; `serving` between two losses of a lease."""

    def __init__(self) -> None:
        self._phase = self._details = "starting"
        self._interface: Interface | None = None
        self._rooms: Rooms | None = None
        self._serving = False
        self._hindrances: dict[str, str] = {}
        self.repairs: Counter[str] = Counter({"control-socket": 0})
        """How often what of the agent's own files was put back; the network's are counted by ``host.upkeep``."""
        self.conditions = Conditions()
        """What stops some of the traffic though we are ready; `note` it here."""
        self.errors = LastErrors()
        """What went wrong last, whether it is over or not; `note` it here."""
        self.feed = Feed()
        """What happens, for who watches."""
        self.asked = RegistryCounts()
        """What was asked of the registry, and what came of its watch."""
        self.lateness = Lateness()
        """How late the event loop is."""

    @property
    def rooms(self) -> Rooms | None:
        """What lives; ``None`` before there is a configuration."""
        return self._rooms

    @property
    def interface(self) -> Interface | None:
        """The external interface, as soon as one is chosen."""
        return self._interface

    @property
    def lease(self) -> Lease | None:
        """The lease that is held now."""
        return self._rooms.keeper.lease if self._rooms else None

    @property
    def obstacle(self) -> str | None:
        """What of ours is missing on the host just now, or nobody can be told of it."""
        kept = (self._rooms.upkeep.obstacle or self._rooms.subnet_file.obstacle) if self._rooms else None
        return kept or next(iter(self._hindrances.values()), None)

    @property
    def ready(self) -> bool:
        """Whether packets of our subnet are carried, and the firewall rules that they need stand."""
        rooms = self._rooms
        stand = rooms is not None and rules_stand(rooms.families, rooms.keeper.lease)
        return self._serving and stand and self.obstacle is None

    @property
    def phrase(self) -> str:
        """What the agent is doing, or what is in the way."""
        return self.obstacle or self._phase

    def hinder(self, source: str, why: str | None) -> None:
        """Note what keeps us from being ready beside what upkeep sees to; ``None``: of this `source` nothing does."""
        former = self._hindrances.pop(source, None)
        if why is not None:
            self._hindrances[source] = why
        if why == former:
            return
        if why is not None:
            logger.warning("not ready: %s", why)
        else:
            logger.info("no longer in the way: %s", former)
        self.tell()

    def use_interface(self, external: Interface) -> None:
        """Note which interface the others are reached through."""
        self._interface = external

    def open_rooms(self, rooms: Rooms) -> None:
        """Note what lives from now on."""
        self._rooms = rooms

    def close_rooms(self) -> None:
        """Note that nothing of them is to be asked any more."""
        self._rooms, self._serving = None, False
        self._phase = "stopping"

    def enter(self, phase: str, details: str | None = None) -> None:
        """Note what the agent does from now on; systemd is told the same, or `details`."""
        self._phase, self._details = phase, details or phase
        logger.debug("phase: %s", self._details)
        self.tell()

    def serve(self, lease: Lease) -> None:
        """Note that packets of this lease's subnet are carried from now on."""
        self._serving = True
        self.enter("running", f"running with subnet {lease.subnet}")
        notify.notify_ready()

    def stop_serving(self) -> None:
        """Note that none are any more."""
        self._serving = False

    def tell(self) -> None:
        """Tell systemd, and who watches, what the agent is doing, or what is in the way."""
        notify.notify_status(self.obstacle or self._details)
        self.feed.wake()
