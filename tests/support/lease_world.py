"""A simulated cluster: real lease machines and peer tables, a store with leases, a network and clocks that misbehave.

Everything runs on one virtual clock and one seeded random generator, so a run can be repeated exactly. The store keeps
its promise (a lease lives for its time by the store's own clock); requests and answers are delayed, lost, doubled and
overtaken; hosts are cut off, suspended, killed and rebooted, their control threads stand still while the data threads
go on; every clock has its own rate, within what Linux allows.

`World` checks at every moment that no two hosts forward for one subnet of either family and raises `TwoOwnersError` if
they do.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from flannel_udp.control.allocation import choose_subnet, find_rival, widen_subnet
from flannel_udp.control.entries import read_leases
from flannel_udp.control.lease_actions import (
    Action,
    Ask,
    Create,
    Discard,
    Held,
    Inspect,
    Lost,
    Measure,
    Move,
    Renew,
    Request,
    Result,
    Survey,
    Take,
    Widen,
    Widened,
)
from flannel_udp.control.lease_machine import LeaseMachine
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.retry import DEFAULT_DELAYS, Delays
from flannel_udp.errors import FlannelError, RegistryError, SubnetTaken
from flannel_udp.model import Change, Entry, Lease, LeaseAttrs, Snapshot, Subnet, lease_id_of
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry.keys import format_key, format_value
from tests.support.backends import read_udp_hop
from tests.support.lease_store import Backup, Store

T = TypeVar("T")
Settle = Callable[[Result | FlannelError], list[Action]]

MARGIN_S = 120.0
CALL_S = 9.0
"""After this long the client gives up a request, which may still take effect."""
MAX_RATE_ERROR = 500e-6
MAX_LATENESS_S = 5.0
"""How late a busy host runs its timers."""


class TwoOwnersError(AssertionError):
    """Two hosts forward for one subnet, or for one part of it."""


class Host:
    """One agent: its machine, its peer table, its clock, and what has befallen it."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.attrs = LeaseAttrs(
            IPv4Address("192.0.2.0") + number if 4 in world.at_first else None,
            IPv6Address("2001:db8::") + number if 6 in world.at_first else None,
        )
        self.mark = number
        self.previous: Subnet | None = None
        self.holds: Lease | None = None
        self.connected = True
        self.awake = True
        """False: the machine is suspended."""
        self.wedged = False
        """The control thread stands still; the data threads go on."""
        self.until_s: float | None = None
        """What the data threads were told last: when to stop by themselves."""
        self.life = 0
        """Counts up at every start: what was meant for an earlier life reaches nobody."""
        self.stream = 0
        """Counts up at every new watch: what is on its way in an earlier one is lost."""
        self._inbox: list[Callable[[], None]] = []
        self._wake_number = 0
        self._booted_s = 0.0
        self._rate = 1.0
        self.machine = world.make_machine(self)
        self.has_table = number <= world.tables
        self.table = PeerTable(world.config.overlays, self.attrs, read_udp_hop)

    def boot(self) -> None:
        """Start with a new clock: CLOCK_BOOTTIME begins at 0."""
        self._booted_s = self._world.now_s
        self._rate = 1 + self._world.random.uniform(-MAX_RATE_ERROR, MAX_RATE_ERROR)
        self.start()

    def start(self) -> None:
        """Start the agent, after a kill too."""
        self.life += 1
        self.holds, self.awake, self.wedged, self._inbox = None, True, False, []
        self.machine = self._world.make_machine(self)
        self.table = PeerTable(self._world.config.overlays, self.attrs, read_udp_hop)
        self.seek()
        if self.connected:
            self._world.watch(self)

    def forwards(self) -> bool:
        """Tell whether the data threads forward just now."""
        if not self.awake or self.holds is None:
            return False
        return self.until_s is None or self.clock_s() < self.until_s or not self._world.engines_stop

    def seek(self) -> None:
        self._do(self.machine.seek(self.clock_s()))

    def clock_s(self) -> float:
        return (self._world.now_s - self._booted_s) * self._rate

    def deliver(self, life: int, event: Callable[[], list[Action]]) -> None:
        """Let something happen to this life of the agent: now, or when it can take note of it again."""
        if life != self.life:
            return
        if not self.awake or self.wedged:
            self._inbox.append(lambda: self.deliver(life, event))
            return
        self._do(event())

    def say(self, attrs: LeaseAttrs) -> None:
        """Let the lease say this from now on, whatever the machine is doing."""

        def tell() -> list[Action]:
            self.table.set_public_ips(attrs)
            return self.machine.set_attrs(self.clock_s(), attrs)

        self.attrs = attrs  # also for a machine that is made before this one can take note
        self.deliver(self.life, tell)

    def resume(self) -> None:
        """Let the machine, and the control thread, go on."""
        self.awake, self.wedged = True, False
        self._world.check_owner(self)  # the data threads may be the first to run
        self._do(self.machine.tick(self.clock_s()))  # the alarm went off during the suspension: it comes first
        inbox, self._inbox = self._inbox, []
        for deliver in inbox:
            deliver()

    def take(self, event: Snapshot | Change) -> list[Action]:
        """Do as the synchroniser does."""
        actions: list[Action] = []
        lease = self.machine.lease
        if lease is not None and (isinstance(event, Snapshot) or lease.entry.key in event.entries):
            actions = self.machine.observe(self.clock_s(), event.entries.get(lease.entry.key))
        if self.has_table:
            self.table.apply(event)
        return actions

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Ask():
                    self._world.send(self, action)
                case Held():
                    self.holds, self.previous = action.lease, action.lease.subnet
                    self.until_s = self.machine.stop_s
                    self.table.set_own(action.lease.subnet)
                    self._world.grants += 1
                    self._world.check_owner(self)
                    if self.has_table:
                        seen = self.table.entry(action.lease.entry.key)
                        self._world.later(0.0, self.life, self, partial(self._observe, seen))
                case Widened():
                    self.holds, self.previous = action.lease, action.lease.subnet
                    self.table.set_own(action.lease.subnet)
                    self._world.widened += 1
                    self._world.check_owner(self)
                case Lost():
                    self.holds = None
                    self.table.set_own(None)
                    self._world.losses += 1
                    self._world.claims += action.claimed
                    self._world.later(0.01, self.life, self, lambda: self.machine.seek(self.clock_s()))
        if self.machine.lease is not None:
            self.until_s = self.machine.stop_s
        self._set_alarm()

    def _observe(self, seen: Entry | None) -> list[Action]:
        return self.machine.observe(self.clock_s(), seen)

    def _set_alarm(self) -> None:
        wake_s = self.machine.wake_s
        if wake_s is None:
            return
        self._wake_number += 1
        life, number = self.life, self._wake_number

        def go_off() -> None:
            if number == self._wake_number:  # it was not set to another time since
                self.deliver(life, lambda: self.machine.tick(self.clock_s()))

        # A microsecond more than it takes, or rounding would let it go off before its time, over and over.
        delay_s = max((wake_s - self.clock_s()) / self._rate, 0) + 1e-6
        self._world.at(self._world.now_s + delay_s + self._world.lateness_s(), go_off)


class World:
    """`hosts` agents, the first `tables` of them with peers, and a store.

    `store` may be a faulty one, and engines that do not stop by themselves (`engines_stop`): the checks must find that
    out.
    """

    def __init__(
        self,
        config: NetworkConfig,
        hosts: int,
        seed: int,
        *,
        delays: Delays = DEFAULT_DELAYS,
        tables: int | None = None,
        store: Store | None = None,
        engines_stop: bool = True,
        at_first: tuple[int, ...] | None = None,
    ) -> None:
        self.config = config
        self.at_first = config.versions if at_first is None else at_first
        """Of which IP versions the hosts have an address when they start for the first time."""
        self.random = random.Random(seed)
        self.tables = hosts if tables is None else tables
        self.engines_stop = engines_stop
        self.now_s = 0.0
        self.losses = 0
        self.claims = 0
        """How many of the losses were to a host with the same address."""
        self.grants = 0
        self.widened = 0
        self._store_rate = 1 + self.random.uniform(-MAX_RATE_ERROR, MAX_RATE_ERROR)
        self._delays = delays
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._watchers: dict[Host, float] = {}  # when the last event on its way arrives
        self.store = store or Store()
        self.store.changed = self._tell
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]

    def make_machine(self, host: Host) -> LeaseMachine:
        return LeaseMachine(host.attrs, MARGIN_S, self._delays, host.mark, self.random)

    def start(self) -> None:
        for host in self.hosts:
            host.boot()

    # What befalls the hosts.

    def cut_off(self, host: Host) -> None:
        host.connected = False
        host.stream += 1
        self._watchers.pop(host, None)

    def heal(self, host: Host) -> None:
        host.connected = True
        self.watch(host)

    def compact(self, host: Host) -> None:
        """Make the host's watch begin anew."""
        if host.connected:
            self.watch(host)

    def restore(self, backup: Backup) -> None:
        """Let the store go back to what it was, and all watches begin anew."""
        self._touch_store().restore(backup)
        for host in self.hosts:
            self.compact(host)

    # Time.

    def later(self, delay_s: float, life: int, host: Host, event: Callable[[], list[Action]]) -> None:
        self.at(self.now_s + delay_s, lambda: host.deliver(life, event))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.now_s + seconds
        while True:
            expiry_s = self.store.next_end_s()
            ends_s = end_s if expiry_s is None else min(end_s, expiry_s / self._store_rate)
            if self._agenda and self._agenda[0][0] <= ends_s:
                self.now_s, _, event = heapq.heappop(self._agenda)
                event()
                continue
            self.now_s = max(ends_s, self.now_s)
            self._touch_store()
            if self.now_s >= end_s:
                return

    def lateness_s(self) -> float:
        return self.random.uniform(0, MAX_LATENESS_S) if self.random.random() < 0.3 else 0.0

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time_s, next(self._numbers), event))

    def _touch_store(self) -> Store:
        self.store.now_s = self.now_s * self._store_rate
        self.store.expire()
        return self.store

    # The network.

    def send(self, host: Host, ask: Ask) -> None:
        """Have a request done, and its outcome told to who asked."""
        request, lease_id = ask.request, lease_id_of(host.mark, next(self._numbers))

        def settle(outcome: Result | FlannelError) -> list[Action]:
            if isinstance(outcome, FlannelError):
                return host.machine.fail(host.clock_s(), ask.number, outcome)
            return host.machine.answer(host.clock_s(), ask.number, outcome)

        then: Settle = settle
        if isinstance(request, Create | Move) and len(self.config.versions) > 1:
            then = self._checked(host, request, settle)
        self._carry(host, lambda: self._execute(request, host, lease_id), then)
        self.later(CALL_S, host.life, host, lambda: settle(RegistryError("no answer in time")))

    def _checked(self, host: Host, request: Create | Move, settle: Settle) -> Settle:
        """Return what becomes of an answer to `request` as the keeper does it, which looks for a rival then.

        Of an answer that comes twice the first one counts, here as in the machine: the second may know of a rival that
        has come meanwhile, and gives way itself.
        """
        asked = looked = False

        def written(outcome: Result | FlannelError) -> list[Action]:
            nonlocal asked
            if not isinstance(outcome, Entry):
                return settle(outcome)
            if not asked:
                asked = True
                self._carry(host, lambda: self._rivals(request), lambda rivals: judged(outcome, rivals))
            return []

        def judged(entry: Entry, rivals: list[Lease]) -> list[Action]:
            nonlocal looked
            if looked:
                return []
            looked = True
            if not rivals:
                return settle(entry)
            taken = SubnetTaken(f"{rivals[0].entry.key} has a part of it")
            self._carry(host, lambda: self._undo(request, entry), lambda failed: settle(failed or taken))
            return []

        return written

    def _rivals(self, request: Create | Move) -> list[Lease]:
        entries = self._touch_store().entries
        rival = find_rival(self.config, read_leases(entries), format_key(request.subnet), request.subnet)
        return [] if rival is None else [rival]

    def _undo(self, request: Create | Move, entry: Entry) -> FlannelError | None:
        store = self._touch_store()
        try:
            store.check(entry)
            if isinstance(request, Move):
                store.move(entry, request.lease.entry.key, entry.value)
            else:
                store.remove(entry.key)
        except FlannelError as error:
            return error
        return None

    def _carry(self, host: Host, step: Callable[[], T], then: Callable[[T], list[Action]]) -> None:
        """Carry what the store is to do there, and what comes of it back: either may be lost, and come twice."""
        life = host.life

        def arrive() -> None:
            if not host.connected:
                return
            outcome = step()
            if self.random.random() < 0.02:
                return  # only the answer is lost
            for _ in range(1 + (self.random.random() < 0.05)):
                self.at(self.now_s + self._way_s(), lambda: answer(outcome))

        def answer(outcome: T) -> None:
            if host.connected:
                host.deliver(life, lambda: then(outcome))

        if self.random.random() > 0.02:
            for _ in range(1 + (self.random.random() < 0.05)):
                self.at(self.now_s + self._way_s(), arrive)

    def _way_s(self) -> float:
        return self.random.uniform(0, 20.0) if self.random.random() < 0.05 else self.random.uniform(0.001, 0.05)

    def _execute(self, request: Request, host: Host, lease_id: int) -> Result | FlannelError:
        store = self._touch_store()
        result: Result = None
        try:
            match request:
                case Survey():
                    result = choose_subnet(self.config, store.snapshot(), request.seeker, host.previous, self.random)
                case Discard():
                    store.check(request.entry)
                    store.remove(request.entry.key)
                case Create():
                    result = store.create(format_key(request.subnet), format_value(request.attrs), lease_id)
                case Take():
                    result = store.take(request.entry, format_value(request.attrs), lease_id)
                case Renew():
                    result = store.renew(request.entry, format_value(request.attrs))
                case Widen():
                    wanted = request.versions, host.previous
                    result = widen_subnet(self.config, store.snapshot(), request.lease, wanted, self.random)
                case Move():
                    value = format_value(request.lease.attrs)
                    result = store.move(request.lease.entry, format_key(request.subnet), value)
                case Measure():
                    result = store.time_left_s(request.entry)
                case Inspect():
                    result = store.entries.get(request.key)
        except FlannelError as error:
            return error
        return result

    def watch(self, host: Host) -> None:
        """Begin the host's watch anew, with a snapshot that is some time on its way."""
        host.stream += 1
        self._watchers[host] = self.now_s
        self._send_event(host, self._touch_store().snapshot())

    def _tell(self, change: Change) -> None:
        for host in self._watchers:
            self._send_event(host, change)

    def _send_event(self, host: Host, event: Snapshot | Change) -> None:
        arrival_s = max(self._watchers[host], self.now_s + self._way_s())  # one stream: events stay in order
        self._watchers[host] = arrival_s
        life, stream = host.life, host.stream

        def arrive() -> None:
            if host.connected and host.stream == stream:
                host.deliver(life, lambda: host.take(event))

        self.at(arrival_s, arrive)

    # What must hold.

    def check_owner(self, host: Host) -> None:
        """Raise `TwoOwnersError` if `host` forwards for a subnet that another one forwards for."""
        if not host.forwards():
            return
        assert host.holds is not None
        for other in self.hosts:
            if other is host or not other.forwards():
                continue
            assert other.holds is not None
            for version in self.config.versions:
                ours, theirs = host.holds.subnet.of(version), other.holds.subnet.of(version)
                if ours is not None and theirs is not None and ours.overlaps(theirs):
                    owners = f"{host.attrs.found_by} and {other.attrs.found_by}"
                    raise TwoOwnersError(f"{owners} forward for {ours} at {self.now_s:.3f} s")

    def check_converged(self) -> None:
        """Assert that the store says what the hosts say, and every table what a listing of the store says."""
        snapshot = self._touch_store().snapshot()
        for host in self.hosts:
            if host.holds is not None:
                entry = snapshot.entries.get(host.holds.entry.key)
                assert entry is not None, host.attrs.found_by
                assert entry.value == format_value(host.attrs), host.attrs.found_by
        for host in self.hosts[: self.tables]:
            fresh = PeerTable(self.config.overlays, host.attrs, read_udp_hop)
            fresh.set_own(None if host.holds is None else host.holds.subnet)
            fresh.apply(snapshot)
            assert set(host.table.peers()) == set(fresh.peers()), host.attrs.found_by
