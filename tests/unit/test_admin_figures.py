"""What the agent counts of itself beside its packets, on /metrics and on the control socket."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.admin import client
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.metrics import answer_metrics
from flannel_udp.agent.lateness import BOUNDS_S, EVERY_S, Lateness
from flannel_udp.errors import FlannelError, RegistryError
from flannel_udp.registry.observed import ObservedRegistry, RegistryCounts
from tests.support.memory_registry import MemoryRegistry
from tests.support.source import Source, Told
from tests.support.status import BUSY_PEER, NO_FIGURES, WAITING


async def page(source: Told) -> str:
    body = (await answer_metrics(source)).body
    assert isinstance(body, bytes)
    return body.decode()


async def test_the_busiest_peers_are_exported_with_their_addresses() -> None:
    families = text_string_to_metric_families(await page(Told(busiest=[BUSY_PEER])))
    found = {
        (sample.name, sample.labels["direction"]): (sample.value, sample.labels["subnet"], sample.labels["public_ip"])
        for family in families
        for sample in family.samples
        if sample.name.startswith("flannel_udp_peer_")
    }
    assert found == {
        ("flannel_udp_peer_packets_total", "in"): (2, "10.1.16.0/24", "192.0.2.2"),
        ("flannel_udp_peer_packets_total", "out"): (1, "10.1.16.0/24", "192.0.2.2"),
        ("flannel_udp_peer_bytes_total", "in"): (168, "10.1.16.0/24", "192.0.2.2"),
        ("flannel_udp_peer_bytes_total", "out"): (84, "10.1.16.0/24", "192.0.2.2"),
    }


async def test_no_address_is_told_unless_it_was_asked_for() -> None:
    text = await page(Told())
    assert "flannel_udp_peer_" not in text
    assert "192.0.2." not in text


async def test_what_has_not_happened_yet_has_no_time() -> None:
    text = await page(Told(WAITING, NO_FIGURES))
    assert "timestamp" not in text
    assert "\nflannel_udp_event_loop_lateness_seconds_count 0.0\n" in text


async def test_the_control_socket_serves_the_same_page(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with control_server(UnixListener(path), Source()):
        assert await asyncio.to_thread(client.fetch_metrics, path) == await page(Told())


async def test_the_command_prints_the_page(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with control_server(UnixListener(path), Source()):
        command = [sys.executable, "-m", "flannel_udp", "metrics", f"--control-socket={path}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, await page(Told()), "")


async def test_what_is_no_agent_is_named_as_that(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(FlannelError, match="is not a flannel-udp agent"):
            await asyncio.to_thread(client.fetch_metrics, path)


async def test_an_agent_of_an_older_version_is_named_as_that(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.0 404 Not Found\r\n\r\n{"error": "GET /metrics: Not Found"}')
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(FlannelError, match="of an older version, which does not know /metrics"):
            await asyncio.to_thread(client.fetch_metrics, path)


# Where the figures come from


def test_a_loop_that_is_held_up_is_seen_as_late() -> None:
    lateness = Lateness()

    async def hold_up() -> None:
        with lateness.measured():
            time.sleep(1.5 * EVERY_S)
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)

    uvloop.run(hold_up())
    buckets = dict(lateness.buckets())
    assert buckets[math.inf] - buckets[0.25] >= 1  # a busy machine may be late once more
    assert lateness.total_s >= 0.4


def test_every_lateness_falls_into_one_class_and_the_classes_add_up() -> None:
    lateness = Lateness()
    for late_s in (0.0, 0.005, 0.0051, 2.5, 99.0):
        lateness.note(late_s)
    buckets = lateness.buckets()
    assert [bound for bound, _ in buckets] == [*BOUNDS_S, math.inf]
    assert [count for _, count in buckets] == [2, 3, 3, 3, 3, 3, 3, 3, 4, 5]


def test_an_outage_of_the_watch_is_counted_once_and_so_is_its_end() -> None:
    counts, trouble = RegistryCounts(), RegistryError("away")
    seen = []
    for told in (None, trouble, trouble, None, None, trouble):
        counts.note_watch(told)
        seen.append((counts.outages, counts.restarts, counts.watching))
    assert seen == [(0, 0, True), (1, 0, False), (1, 0, False), (1, 1, True), (1, 1, True), (2, 1, False)]


def test_a_watch_that_could_not_begin_was_an_outage() -> None:
    counts = RegistryCounts()
    counts.note_watch(RegistryError("away"))
    counts.note_watch(None)
    assert (counts.outages, counts.restarts, counts.watching) == (1, 1, True)


async def test_what_is_asked_of_a_registry_is_counted_by_kind_and_so_is_what_fails() -> None:
    counts = RegistryCounts()
    store = MemoryRegistry()
    registry = ObservedRegistry(store, counts)
    entry = await registry.create("10.1.15.0-24", b"{}", 60)
    with pytest.raises(FlannelError):
        await registry.create("10.1.15.0-24", b"{}", 60)
    await registry.renew(entry, b"{}", 60)
    created, renewed = counts.asked["create"], counts.asked["renew"]
    assert (created.count, created.failed, renewed.count, renewed.failed) == (2, 1, 1, 0)
    assert 0 < created.seconds < 60
    events = registry.watch()
    await anext(events)
    await events.aclose()
    assert (counts.snapshots, counts.changes) == (1, 0)
