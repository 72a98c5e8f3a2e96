"""After an outage a watch goes on where it was, if it is the same etcd; junk below the prefix costs little."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import client as etcd_client
from flannel_udp.registry.etcd import connections
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd import watch as etcd_watch
from flannel_udp.registry.keys import parse_value
from tests.registry.support import etcdctl, once_connected, said, watching
from tests.registry.test_etcd import KEY, OTHER_VALUE, VALUE, Opened, opened
from tests.support.patience import PATIENCE_S

__all__ = ["opened"]

Range = Callable[[etcd_client.EtcdClient, pb.RangeRequest], Awaitable[pb.RangeResponse]]


@pytest.fixture(autouse=True)
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer here refuses at once: a busy machine may take its time."""
    monkeypatch.setattr(etcd_client, "CALL_S", 180.0)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect what is listed from where on; one key that is asked for is no listing."""
    listed: list[bytes] = []
    ask: Range = etcd_client.EtcdClient.range

    async def ask_and_note(client: etcd_client.EtcdClient, request: pb.RangeRequest) -> pb.RangeResponse:
        if request.range_end:
            listed.append(request.key)
        return await ask(client, request)

    monkeypatch.setattr(etcd_client.EtcdClient, "range", ask_and_note)
    return listed


async def test_after_an_outage_the_watch_goes_on_without_a_listing(
    opened: Opened, own_etcd: EtcdServer, listings: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        for value in (OTHER_VALUE, VALUE):
            caplog.clear()
            own_etcd.kill()
            await said(caplog, "trying again until it works")
            await asyncio.to_thread(own_etcd.start)
            entry = await once_connected(partial(registry.renew, entry, value, LEASE_TTL_S))
            assert dict((await seen.change()).entries) == {KEY: entry}
            await said(caplog, "works again after")
        await registry.delete(entry)
        assert dict((await seen.change()).entries) == {KEY: None}
    assert len(listings) == 1


async def test_an_etcd_that_lost_what_it_had_is_listed_and_named(
    opened: Opened, own_etcd: EtcdServer, etcd_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        own_etcd.kill()
        for data in etcd_directory.iterdir():
            if data.is_dir():
                shutil.rmtree(data)
        await asyncio.to_thread(own_etcd.start)
        assert (await seen.snapshot()).entries == {}
    assert f"etcd at {own_etcd.endpoint} went back from revision 2 to 1: restored from a backup?" in caplog.text


async def test_another_cluster_at_the_same_address_is_listed_and_named(
    opened: Opened, own_etcd: EtcdServer, etcd_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its revision is ahead of the one we know."""
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        port = int(own_etcd.endpoint.rpartition(":")[2])
        own_etcd.kill()
        stranger = EtcdServer(etcd_directory, name="stranger", client_port=port)
        await asyncio.to_thread(stranger.start)
        try:
            for n in range(5):
                etcdctl(stranger.endpoint, "put", f"/coreos.com/network/subnets/10.1.{n}.0-24", VALUE.decode())
            while KEY in (snapshot := await seen.snapshot()).entries:
                pass
            assert "is another cluster" in caplog.text
            if "10.1.4.0-24" not in snapshot.entries:
                await seen.entry("10.1.4.0-24", VALUE)
        finally:
            stranger.stop()


async def test_an_endpoint_of_another_cluster_is_named_and_not_asked(
    opened: Opened, own_etcd: EtcdServer, etcd_directory: Path
) -> None:
    stranger = EtcdServer(etcd_directory, name="stranger")
    stranger.start()
    try:
        registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint, stranger.endpoint)))
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        own_etcd.kill()
        for use in (registry.list(), registry.renew(entry, VALUE, 60), registry.create("10.1.1.0-24", VALUE, 60)):
            with pytest.raises(RegistryError, match=rf"{stranger.endpoint} \(it is another cluster: .*, ours is "):
                await use
        assert etcdctl(stranger.endpoint, "get", "--prefix", "/") == ""
        own_etcd.start()
        assert await once_connected(lambda: registry.renew(entry, VALUE, LEASE_TTL_S)) == entry
    finally:
        stranger.stop()


async def test_a_cluster_that_was_made_anew_at_all_its_endpoints_is_taken(
    opened: Opened, own_etcd: EtcdServer, etcd_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = int(own_etcd.endpoint.rpartition(":")[2])
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint, f"http://localhost:{port}")))
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    own_etcd.kill()
    with pytest.raises(RegistryError):
        await registry.list()
    stranger = EtcdServer(etcd_directory, name="stranger", client_port=port)
    stranger.start()
    try:
        assert (await once_connected(registry.list)).entries == {}
        assert "no endpoint is of the former cluster any more" in caplog.text
    finally:
        stranger.stop()


# Junk


async def test_junk_is_listed_in_small_answers_and_not_kept(opened: Opened, own_etcd: EtcdServer) -> None:
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    prefix = b"/coreos.com/network/subnets/"
    for n in range(20):
        await registry._client.put(pb.PutRequest(key=prefix + b"10.1.1%02d.0-24" % n, value=b"\xff" * 1_000_000))
    await registry._client.put(pb.PutRequest(key=prefix + b"x" * 200_000, value=b"{}"))
    entries = (await registry.list()).entries
    assert len(entries) == 22
    assert entries[KEY] == entry
    assert sum(len(key) + len(entry.value) for key, entry in entries.items()) < 22 * 400
    with pytest.raises(ValueError, match="lease value has 1000000 bytes, more than 65536"):
        parse_value(entries["10.1.100.0-24"].value)


async def test_a_value_that_is_larger_than_any_answer_is_left_out(
    opened: Opened, own_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CHANNEL_OPTIONS", [("grpc.max_receive_message_length", 100_000)])
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    key = b"/coreos.com/network/subnets/10.1.1.0-24"
    async with watching(registry) as seen:
        await seen.snapshot()
        await registry._client.put(pb.PutRequest(key=key, value=b"x" * 1_000_000))
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        await seen.entry(KEY, VALUE)
    entries = (await registry.list()).entries
    assert (entries[KEY], entries["10.1.1.0-24"].value) == (entry, b"")


# Probes


class Stream:
    """What a watch needs of gRPC's stream; the test plays the server."""

    def __init__(self, *, answers_at_once: bool = False) -> None:
        self.probes = 0
        self.cancelled = False
        self.answers: asyncio.Queue[pb.WatchResponse] = asyncio.Queue()
        self._answers_at_once = answers_at_once

    async def write(self, request: pb.WatchRequest) -> None:
        self.probes += request.WhichOneof("request") == "progress"
        if self._answers_at_once:
            self.answers.put_nowait(pb.WatchResponse())

    async def read(self) -> pb.WatchResponse:
        return await self.answers.get()

    def cancel(self) -> None:
        self.cancelled = True


async def test_a_server_that_answers_every_probe_at_once_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is nearly as old as what comes of it is waited for: a late timer must not make it too old."""
    monkeypatch.setattr(etcd_watch, "QUIET_S", 0.01)
    monkeypatch.setattr(etcd_watch, "ANSWER_S", 0.01)
    stream: Any = Stream(answers_at_once=True)
    watch = etcd_watch.Watch(stream)
    async with asyncio.timeout(PATIENCE_S), watch.probed():
        while stream.probes < 30 and not stream.cancelled:
            await watch.read()
    assert not stream.cancelled


async def test_only_a_watch_that_is_quiet_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_watch, "QUIET_S", 3.0)  # far beyond any of the pauses, and less than all of them
    stream: Any = Stream()
    watch = etcd_watch.Watch(stream)
    async with watch.probed():
        for _ in range(40):
            reading = asyncio.create_task(watch.read())
            await asyncio.sleep(0.1)
            stream.answers.put_nowait(pb.WatchResponse(events=[pb.Event()]))
            await reading
        assert stream.probes == 0
        reading = asyncio.create_task(watch.read())
        async with asyncio.timeout(PATIENCE_S):
            while not stream.probes:
                await asyncio.sleep(0.01)
        reading.cancel()
