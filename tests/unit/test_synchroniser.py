"""From the registry's watch to the data path: nothing lost, nothing published twice in vain, our own key watched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_udp.control import peer_log
from flannel_udp.control.peer_log import SPAN_LINES
from flannel_udp.control.peers import PART_SIZE, PeerTable
from flannel_udp.control.retry import Delays
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.model import Change, Delta, Entry, Lease, LeaseAttrs, Peer, Prefix, Snapshot, Subnet
from flannel_udp.registry import Registry, Tell
from flannel_udp.registry.file.registry import FileRegistry
from flannel_udp.registry.outage import keep_quiet
from tests.support.backends import read_udp_hop
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S, promised

NETWORK = IPv4Network("10.1.0.0/16")
OWN = IPv4Network("10.1.15.0/24")
OUR_IP = IPv4Address("192.0.2.1")
OUR_KEY = "10.1.15.0-24"
OUR_VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
QUICK = Delays(first_retry_s=0.01, last_retry_s=0.02)


def value(public_ip: str) -> bytes:
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":null}}'.encode()


def peer(n: int, public_ip: str = "192.0.2.2") -> Peer:
    return Peer(IPv4Network(f"10.1.{n}.0/24"), IPv4Address(public_ip))


def lease_of(entry: Entry) -> Lease:
    return Lease(Subnet(OWN), LeaseAttrs(OUR_IP), entry)


class Recorder:
    """A data path that keeps what it is given, and takes as long over it as the test wants."""

    def __init__(self) -> None:
        self.published: list[tuple[Subnet, frozenset[Peer]]] = []
        self._routes: dict[Prefix, Peer] = {}
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        if whole:
            self._routes.clear()
        for delta in deltas:
            for peer in delta.removed:
                del self._routes[peer.subnet]
            self._routes |= {peer.subnet: peer for peer in (*delta.added, *delta.changed)}
        self.published.append((own, frozenset(self._routes.values())))
        await self.may_finish.wait()

    async def has(self, *peers: Peer) -> None:
        """Wait until exactly these peers are the last that were published."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.published or self.published[-1] != (Subnet(OWN), frozenset(peers)):
                await asyncio.sleep(0.002)


class Rig:
    """A synchroniser with its surroundings."""

    def __init__(self, registry: Registry) -> None:
        self.recorder = Recorder()
        self.observed: list[Entry | None] = []
        table = PeerTable((NETWORK,), LeaseAttrs(OUR_IP), read_udp_hop)
        self.synchroniser = Synchroniser(registry, table, self.recorder, self.observed.append, QUICK)


@asynccontextmanager
async def running(registry: Registry, lease: Lease | None) -> AsyncIterator[Rig]:
    rig = Rig(registry)
    if lease is not None:
        await rig.synchroniser.set_own(lease)
    task = asyncio.create_task(rig.synchroniser.run())
    try:
        yield rig
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(50):
        await asyncio.sleep(0)


# --- With a real registry -----------------------------------------------------------------------------------------


async def test_peers_in_the_file_registry_appear_move_and_vanish(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path / "registry.json")
    ours = await registry.create(OUR_KEY, OUR_VALUE, 60)
    async with running(registry, lease_of(ours)) as rig:
        await rig.recorder.has()
        assert rig.synchroniser.first_published.is_set()
        theirs = await registry.create("10.1.16.0-24", value("192.0.2.2"), 60)
        await rig.recorder.has(peer(16))
        theirs = await registry.renew(theirs, value("192.0.2.3"), 60)
        await rig.recorder.has(peer(16, "192.0.2.3"))
        await registry.delete(theirs)
        await rig.recorder.has()
        await registry.delete(ours)
        async with asyncio.timeout(PATIENCE_S):
            while not rig.observed or rig.observed[-1] is not None:
                await asyncio.sleep(0.01)


# --- Publishing ---------------------------------------------------------------------------------------------------


async def test_nothing_is_published_before_we_hold_a_subnet_and_know_the_peers() -> None:
    registry = MemoryRegistry()
    registry.put("10.1.16.0-24", value("192.0.2.2"))
    async with running(registry, None) as rig:
        await settle()
        assert (rig.recorder.published, rig.synchroniser.first_published.is_set()) == ([], False)
        await rig.synchroniser.set_own(lease_of(registry.put(OUR_KEY, OUR_VALUE)))
        await rig.recorder.has(peer(16))
        assert len(rig.recorder.published) == 1


async def test_a_registry_that_cannot_be_read_does_not_wipe_out_the_peers_of_the_data_path() -> None:
    registry = MemoryRegistry()
    registry.failure = RegistryDenied("wrong password")
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        async with asyncio.timeout(PATIENCE_S):
            while registry.calls.count("watch") < 3:
                await asyncio.sleep(0.002)
        assert rig.recorder.published == []


async def test_without_a_subnet_nothing_more_is_published_and_a_new_one_publishes_everything() -> None:
    registry = MemoryRegistry()
    ours = registry.put(OUR_KEY, OUR_VALUE)
    async with running(registry, lease_of(ours)) as rig:
        await rig.recorder.has()
        await rig.synchroniser.set_own(None)
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        await settle()
        assert len(rig.recorder.published) == 1
        await rig.synchroniser.set_own(lease_of(ours))
        await rig.recorder.has(peer(16))


async def test_changes_during_a_publish_go_out_together_in_the_next_one() -> None:
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        rig.recorder.may_finish.clear()
        await rig.recorder.has()
        for n in range(20, 30):
            registry.put(f"10.1.{n}.0-24", value("192.0.2.2"))
            await settle()
        assert len(rig.recorder.published) == 1
        rig.recorder.may_finish.set()
        await rig.recorder.has(*(peer(n) for n in range(20, 30)))
        assert len(rig.recorder.published) == 2
        assert rig.synchroniser.status.published == 2
        assert rig.synchroniser.status.publishing_s > 0


async def test_events_that_change_no_peer_publish_nothing() -> None:
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        await rig.recorder.has(peer(16))
        before = len(rig.recorder.published)
        registry.put("10.1.16.0-24", b'{"PublicIP": "192.0.2.2"}')
        registry.put("bad", b"bad")
        registry.tell(registry.snapshot())
        await settle()
        assert len(rig.recorder.published) == before


async def test_a_snapshot_in_many_parts_is_published_as_a_whole() -> None:
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        await rig.recorder.has()
        entries = {f"10.1.{n}.0-24": Entry(f"10.1.{n}.0-24", value("192.0.2.2"), 5) for n in range(20, 120)}
        assert len(entries) > 3 * PART_SIZE
        registry.put("10.1.200.0-24", value("192.0.2.2"))  # to be published while the snapshot is taken in
        registry.tell(Snapshot({**registry.entries, **entries}, 9))
        steps = set()
        async with asyncio.timeout(PATIENCE_S):
            while rig.synchroniser.status.peers < 101:
                steps.add(rig.synchroniser.status.peers)
                await asyncio.sleep(0)
        assert len(steps) > 3  # other tasks had their turns in between
        await rig.recorder.has(*(peer(n) for n in (*range(20, 120), 200)))
        assert {len(peers) for _, peers in rig.recorder.published} <= {0, 1, 101}


async def test_an_error_of_the_data_path_ends_run() -> None:
    class Broken(Recorder):
        async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
            await super().publish(own, deltas, whole=whole)
            raise OSError("flannel0 is gone")

    registry = MemoryRegistry()
    table = PeerTable((NETWORK,), LeaseAttrs(OUR_IP), read_udp_hop)
    synchroniser = Synchroniser(registry, table, Broken(), lambda _seen: None, QUICK)
    await synchroniser.set_own(lease_of(registry.put(OUR_KEY, OUR_VALUE)))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(synchroniser.run(), PATIENCE_S)
    assert str(caught.value.exceptions[0]) == "flannel0 is gone"


# --- Our own key --------------------------------------------------------------------------------------------------


async def test_what_the_watch_shows_under_our_key_is_handed_on() -> None:
    registry = MemoryRegistry()
    ours = registry.put(OUR_KEY, OUR_VALUE)
    async with running(registry, lease_of(ours)) as rig:
        await rig.recorder.has()
        assert rig.observed == [ours]
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        taken = registry.put(OUR_KEY, value("192.0.2.9"))
        registry.remove(OUR_KEY)
        registry.tell(registry.snapshot())
        await settle()
        assert rig.observed == [ours, taken, None, None]


async def test_a_loss_that_the_watch_showed_before_we_knew_our_lease_is_not_missed() -> None:
    registry = MemoryRegistry()
    async with running(registry, None) as rig:
        await settle()
        ours = registry.put(OUR_KEY, OUR_VALUE)
        registry.remove(OUR_KEY)
        await settle()
        await rig.synchroniser.set_own(lease_of(ours))
        assert rig.observed == [None]


# --- Log and status -----------------------------------------------------------------------------------------------


async def test_each_peer_has_its_line_and_many_at_once_have_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        await rig.recorder.has(peer(16))
        registry.put("10.1.16.0-24", value("192.0.2.3"))
        await rig.recorder.has(peer(16, "192.0.2.3"))
        registry.remove("10.1.16.0-24")
        await rig.recorder.has()
        entries = {f"10.1.{n}.0-24": Entry(f"10.1.{n}.0-24", value("192.0.2.2"), 5) for n in range(20, 31)}
        registry.tell(Change(entries, 99))
        await rig.recorder.has(*(peer(n) for n in range(20, 31)))
    assert caplog.messages == [
        "peer added: 10.1.16.0/24 via 192.0.2.2",
        "peer changed: 10.1.16.0/24 via 192.0.2.3",
        "peer removed: 10.1.16.0/24 via 192.0.2.3",
        "peers: 11 added, now 11",
    ]


async def test_a_flood_of_bad_entries_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    registry = MemoryRegistry()
    for n in range(1000):
        registry.put(f"bad{n}", b"?")
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        await rig.recorder.has()
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "... and 990 more warnings like these"


async def test_a_flood_of_bad_entries_one_by_one_does_not_flood_the_log_either(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_log, "SPAN_S", promised(1.0))  # not over before the flood is, on a busy machine neither
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        await rig.recorder.has()
        for n in range(100):
            registry.put(f"bad{n}", b"?")
            await settle()
        assert len(caplog.messages) == SPAN_LINES
        async with asyncio.timeout(PATIENCE_S):
            while len(caplog.messages) == SPAN_LINES:
                await asyncio.sleep(0.01)
        registry.put("bad again", b"?")
        await settle()
    assert caplog.messages[SPAN_LINES] == f"... and {100 - SPAN_LINES} more warnings like these"
    assert "bad again" in caplog.messages[SPAN_LINES + 1]


async def test_a_registry_that_refuses_us_is_asked_again_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    registry = MemoryRegistry()
    async with running(registry, lease_of(registry.put(OUR_KEY, OUR_VALUE))) as rig:
        await rig.recorder.has()
        registry.failure = RegistryDenied("wrong password")
        registry.tell(registry.failure)
        async with asyncio.timeout(PATIENCE_S):
            while registry.calls.count("watch") < 5:
                await asyncio.sleep(0.002)
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        registry.failure = None
        await rig.recorder.has(peer(16))
    assert caplog.messages == ["watching the subnets failed: wrong password (trying again until it works)"]


async def test_status_is_plain_numbers() -> None:
    registry = MemoryRegistry()
    ours = registry.put(OUR_KEY, OUR_VALUE)
    rig = Rig(registry)
    before = rig.synchroniser.status
    assert (before.revision, before.peers, before.last_event_s, before.published) == (0, 0, None, 0)
    async with running(registry, lease_of(ours)) as rig:
        registry.put("10.1.16.0-24", value("192.0.2.2"))
        await rig.recorder.has(peer(16))
        await settle()
        status = rig.synchroniser.status
        assert (status.revision, status.peers) == (registry.revision, 1)
        assert status.last_event_s == pytest.approx(time.time(), abs=10)


# --- A registry that is difficult ---------------------------------------------------------------------------------


async def test_a_store_that_lists_and_lets_nobody_watch_is_one_line_and_listed_ever_more_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp.control")

    class Unwatchable(MemoryRegistry):
        async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change, None]:  # noqa: ARG002
            times_s.append(time.monotonic())
            yield self.snapshot()
            raise RegistryDenied("forbidden to watch")

    registry, times_s = Unwatchable(), list[float]()
    registry.put("10.1.16.0-24", value("192.0.2.2"))
    told: list[RegistryError | None] = []
    table = PeerTable((NETWORK,), LeaseAttrs(OUR_IP), read_udp_hop)
    sync = Synchroniser(registry, table, Recorder(), lambda _entry: None, QUICK, tell=told.append)
    task = asyncio.create_task(sync.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(times_s) < 6:
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert times_s[5] - times_s[4] > 8 * QUICK.first_retry_s > QUICK.last_retry_s
    assert caplog.messages.count("watching the subnets failed: forbidden to watch (trying again until it works)") == 1
    assert "works now" not in caplog.text
    assert None not in told
    assert table.count == 1


async def test_a_registry_that_lost_all_its_entries_is_believed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    registry = MemoryRegistry()
    ours = lease_of(registry.put(OUR_KEY, OUR_VALUE))
    for n in (16, 17):
        registry.put(f"10.1.{n}.0-24", value("192.0.2.2"))
    async with running(registry, ours) as rig:
        await rig.recorder.has(peer(16), peer(17))
        registry.entries.clear()
        registry.tell(registry.snapshot())
        await rig.recorder.has()
    assert "the registry lists none of its 2 peers any more: was it emptied, or restored?" in caplog.messages
