"""flannel's host-gw backend: a kernel route to each peer's subnet through its public IP, which has to be on-link.

Packets travel as they are, so the overlay's MTU is the interface's. Routes are those of flanneld but for two marks: a
protocol number of our own, and, where our lease ends some day, a source that takes them along (docs/decisions/0017).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.backend.kernel import KernelNetwork, kernel_mtu
from flannel_udp.backend.lease_end import LeaseEnd
from flannel_udp.backend.protocol import Context, NetworkFacts, accept_types
from flannel_udp.backend.routes import ROUTE_PROTOCOL, Hop, RouteSet
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.host.monitor import Interest, OwnRoutes
from flannel_udp.host.rtnetlink import LOOPBACK_INDEX
from flannel_udp.model import Delta, Interface, LeaseAttrs, Peer, RouteAnswer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

logger = logging.getLogger(__name__)

SAID_MAX = 10
"""So many faults of routes are logged at once; `status` and `peers` have them all."""


class HostGwBackend:
    """See `Backend`."""

    type = "host-gw"
    families = frozenset({4})
    option_keys = ()

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """There are none."""
        return {}

    def check(self, config: NetworkConfig, external: Interface) -> None:  # noqa: ARG002 - the protocol's
        """Raise `ConfigError` for a host behind NAT: others route to its public IP, which is not where it is."""
        kernel_mtu(external)
        _refuse_nat(external)

    def read_hop(self, attrs: LeaseAttrs) -> None:
        """Take hosts of this backend; the public IP is the gateway."""
        accept_types(attrs, self.type, (self.type,))

    async def open(self, context: Context) -> HostGwNetwork:
        """Return what has no route yet, and touches none of an earlier run. Raises `FlannelError`."""
        return HostGwNetwork(context)

    async def remove_remains(self, overlay: IPv4Network) -> list[str]:  # noqa: ARG002 - ours are known by their marks
        """Remove the routes of an earlier run, and the address that they hang on."""

        def remove() -> list[str]:
            n = RouteSet().clear()
            LeaseEnd().remove_former()
            return [f"routes of the backend host-gw: {n}"] if n else []

        return await asyncio.to_thread(remove)


BACKEND = HostGwBackend()


def _refuse_nat(external: Interface) -> None:
    if external.public_ip != external.address:
        where = f"our public IP {external.public_ip} is not the address {external.address} of {external.name}"
        advice = "others cannot route through a host behind NAT: leave --public-ip out, or choose another type"
        raise ConfigError([f"Backend.Type is host-gw, and {where}: {advice}"])


class HostGwNetwork(KernelNetwork):
    """See `Network`: the peers' routes in the kernel, and the address on which their lives hang."""

    look_every_s = 10.0  # as flanneld: for what the kernel does not report

    def __init__(self, context: Context) -> None:
        address = context.external.public_ip
        super().__init__(context, LeaseAttrs(address, backend_type=BACKEND.type))
        self.repairs: Counter[str] = Counter(route=0)
        self._clean_on_exit = context.options.firewall.clean_on_exit
        self._look = context.on_fault
        self._routes = RouteSet()
        self._end = LeaseEnd()
        self._until_s: float | None = None  # when the lease ends, by CLOCK_BOOTTIME
        self._held: IPv4Network | None = None  # until `hold` the routes are another process's, if there are any
        self._first: IPv4Address | None = None  # the first address of what was held last
        self._faults: Mapping[IPv4Network, str] = {}  # as last logged
        self._end_fault: str | None = None  # likewise
        self._tasks: set[asyncio.Task[None]] = set()
        # Work in a thread goes on when whoever waits for it is cancelled.
        self._one_at_a_time = threading.Lock()

    # What packets do

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """See `Network.publish`: the difference goes to the kernel."""
        await super().publish(own, deltas, whole=whole)
        if own != self._held:  # a take-over: `hold` will set them
            return
        if whole:
            await self._work_or_look(own, self._load)
        else:
            changed = {peer.subnet for delta in deltas for peer in (*delta.removed, *delta.added, *delta.changed)}
            await self._work_or_look(own, lambda: self._apply(changed))

    async def withdraw(self) -> None:
        """See `Network.withdraw`: the routes go with their address, at once; what has none follows one by one."""
        await super().withdraw()
        self._held = None
        await asyncio.to_thread(self._withdraw)

    def forward_until(self, boottime_s: float | None) -> None:
        """See `Network.forward_until`: the kernel removes the address, and with it the routes."""
        if boottime_s == self._until_s:
            return
        self._until_s = boottime_s
        if self._held is not None:
            work = self._work_or_look(self._held, self._follow_lease)
            task = asyncio.create_task(work, name="let the routes live as long as the lease")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work_or_look(self, held: IPv4Network, work: Callable[[], int]) -> None:
        """Do it, see `_work`; what fails is upkeep's to try again, and to tell."""
        try:
            await self._work(held, work)
        except FlannelError:
            self._look()

    # The host

    async def hold(self, subnet: IPv4Network, former: LeaseAttrs | None) -> None:
        """See `KeptNetwork.hold`. What flanneld's host-gw left is taken over with the first routes."""
        if former is not None and former.backend_type == BACKEND.type:
            self._routes.inherit()
        self._held, self._first = subnet, subnet.network_address
        known = self._own == subnet  # the peers, from the process that ran before
        await self._work(subnet, self._load if known else self._follow_lease)

    def interest(self) -> Interest:
        """See `KeptNetwork.interest`: routes to our peers, and the address on lo that they hang on."""
        return Interest({LOOPBACK_INDEX}, frozenset(), OwnRoutes(ROUTE_PROTOCOL, self._routes.gateway))

    async def repair(self) -> None:
        """See `KeptNetwork.repair`."""
        if self._own is None:  # what of ours is there may be a killed run's, and good
            return
        n = await self._work(self._own, self._repair)
        if n:
            self.repairs["route"] += n
            logger.info("put right: routes to peers: %d", n)

    async def follow(self, external: Interface) -> None:
        """See `KeptNetwork.follow`: all routes lead out of that interface."""
        _refuse_nat(external)
        await super().follow(external)
        if self._own is not None:
            await self._work(self._own, self._load)

    # In a thread

    async def _work(self, held: IPv4Network, work: Callable[[], int]) -> int:
        """Do something to the routes or their address in a thread, unless they are not for that subnet any more."""

        def unless_withdrawn() -> int:
            with self._one_at_a_time:
                return work() if self._held == held else 0

        n = await asyncio.to_thread(unless_withdrawn)
        self._say_faults()
        return n

    def _load(self) -> int:
        self._keep_end()
        n = self._routes.load({at: hop for at, peer in self._peers.items() if (hop := self._hop(peer))})
        self._end.remove_former()
        return n

    def _apply(self, changed: Iterable[IPv4Network]) -> int:
        return self._routes.apply({at: self._hop(self._peers.get(at)) for at in changed})

    def _follow_lease(self) -> int:
        return self._load() if self._keep_end() and self._own is not None else 0

    def _repair(self) -> int:
        return self._load() if self._keep_end() else self._routes.repair()

    def _keep_end(self) -> bool:
        """Have the address live as long as the lease; tell whether routes need another source than before."""
        before = self._end.source
        # A lease without end (a reservation, Kubernetes) needs no address: its routes are flanneld's to the letter.
        self._end.hold(None if self._until_s is None else self._first)
        self._end.live_until(self._until_s)
        return self._end.source != before

    def _hop(self, peer: Peer | None) -> Hop | None:
        return None if peer is None else Hop(peer.public_ip, self._external.index, self._end.source)

    def _withdraw(self) -> None:
        self._end.remove()  # before all else, also if thousands of routes are being set just now
        with self._one_at_a_time:
            self._end.remove()
            self._routes.clear()

    def _stay(self) -> None:
        with self._one_at_a_time:
            self._end.live_until(None)

    # What is said

    def _say_faults(self) -> None:
        """Log why routes do not end with the lease, which cannot be set, and what is right again; each once."""
        if self._end.fault != self._end_fault:
            self._end_fault = self._end.fault
            if self._end_fault is None:
                logger.info("routes end with the lease again")
            else:
                logger.warning("%s", self._end_fault)
        before, now = self._faults, self._routes.faults
        if now is before:
            return
        self._faults = now
        new = [text for at, text in now.items() if before.get(at) != text]
        gone = [str(at) for at in before if at not in now and at in self._peers]
        for text in new[:SAID_MAX]:
            logger.warning("%s", text)
        if len(new) > SAID_MAX:
            logger.warning("... and %d more like these: see flannel-udp peers", len(new) - SAID_MAX)
        if gone:
            more = f" and {len(gone) - SAID_MAX} more" if len(gone) > SAID_MAX else ""
            logger.info("routes that could not be set stand now: %s%s", ", ".join(gone[:SAID_MAX]), more)

    def route(self, address: IPv4Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        return answer if answer.peer is None else replace(answer, fault=self._routes.faults.get(answer.peer.subnet))

    def facts(self) -> NetworkFacts:
        """See `Network.facts`."""
        fault = self._end.fault
        return NetworkFacts(problems=() if fault is None else (fault,), faults=self._routes.faults)

    async def close(self, *, keep: bool) -> None:
        """See `Network.close`: routes stay for the next run, as flanneld's do, unless the options say otherwise."""
        if keep or self._held is None:
            return
        if self._clean_on_exit:
            await self.withdraw()
        else:
            await asyncio.to_thread(self._stay)
