"""What only etcd has: endpoints that fail, TLS, users, leases of its own, history that is compacted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.errors import LeaseLost, RegistryDenied, RegistryError
from flannel_udp.lab.etcd_server import EtcdServer, EtcdTls, start_cluster
from flannel_udp.model import LEASE_TTL_S, Entry, LeaseAttrs
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import client as etcd_client
from flannel_udp.registry.etcd import connections
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd import watch as etcd_watch
from flannel_udp.registry.etcd.registry import PAGE_KEYS, EtcdRegistry
from flannel_udp.registry.keys import format_value
from tests.registry.certificates import make_authority, make_certificate
from tests.registry.support import PASSWORD, FirstStays, created, etcdctl, guarded, once_connected, said, watching
from tests.support.patience import PATIENCE_S, promised
from tests.support.standstill import freeze

KEY = "10.1.15.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'
NOBODY = "http://127.0.0.1:1"
CONNECTING = "grpc.min_reconnect_backoff_ms"  # how long a connection attempt may take


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[EtcdOptions], EtcdRegistry]]:
    """Open registries that are closed at the end of the test."""
    registries: list[EtcdRegistry] = []

    def open_one(options: EtcdOptions) -> EtcdRegistry:
        registries.append(EtcdRegistry(options, rng=FirstStays()))
        return registries[-1]

    yield open_one
    for registry in registries:
        await registry.close()


Opened = Callable[[EtcdOptions], EtcdRegistry]


# Keys, values and leases as etcd's own client sees them


async def test_etcdctl_sees_what_flannel_would_have_written(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    await registry.write_config(b'{"Network": "10.1.0.0/16"}')
    await registry.create(KEY, format_value(LeaseAttrs(IPv4Address("192.0.2.1"))), LEASE_TTL_S)
    endpoint, prefix = etcd_options.endpoints[0], etcd_options.prefix
    assert etcdctl(endpoint, "get", "--prefix", prefix).splitlines() == [
        f"{prefix}/config",
        '{"Network": "10.1.0.0/16"}',
        f"{prefix}/subnets/{KEY}",
        '{"PublicIP":"192.0.2.1","PublicIPv6":null}',
    ]
    (kv,) = json.loads(etcdctl(endpoint, "get", "--write-out=json", f"{prefix}/subnets/{KEY}"))["kvs"]
    lease = json.loads(etcdctl(endpoint, "lease", "timetolive", f"{kv['lease']:x}", "--write-out=json"))
    assert lease["granted-ttl"] == 86_400
    assert lease["ttl"] == pytest.approx(86_400, abs=10)


async def test_a_renewal_keeps_the_etcd_lease_and_writes_nothing(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    before = (await registry.list()).revision
    assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    assert (await registry.list()).revision == before


async def test_losing_the_race_for_a_key_leaves_no_lease_behind(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    leases = set(etcdctl(etcd_options.endpoints[0], "lease", "list").splitlines()[1:])
    with pytest.raises(RegistryError, match="is taken"):
        await registry.create(KEY, OTHER_VALUE, LEASE_TTL_S)
    # An earlier test's may have run out meanwhile.
    assert set(etcdctl(etcd_options.endpoints[0], "lease", "list").splitlines()[1:]) <= leases


async def test_a_revoked_lease_is_lost(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    etcdctl(etcd_options.endpoints[0], "lease", "revoke", f"{entry.lease_id:x}")
    for use in (registry.renew(entry, VALUE, 60), registry.time_left_s(entry), registry.delete(entry)):
        with pytest.raises(LeaseLost):
            await use


async def test_a_release_by_the_run_before_that_arrives_late_deletes_nothing(
    opened: Opened, etcd_options: EtcdOptions
) -> None:
    # A host that is cut off ends with --release-on-exit: its kernel may deliver the request after the next start.
    former, ours = opened(etcd_options), opened(etcd_options)
    entry = await former.create(KEY, VALUE, LEASE_TTL_S)
    renewed = await ours.take((await ours.list()).entries[KEY], VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost):
        await former.delete(entry)
    assert (await ours.list()).entries == {KEY: renewed}
    assert await ours.renew(renewed, VALUE, LEASE_TTL_S) == renewed


async def test_a_renewal_whose_answer_was_lost_can_be_repeated(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    renewed = await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
    assert await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S) == renewed


async def test_keys_outside_the_subnets_are_not_listed(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(replace(etcd_options, prefix=f"{etcd_options.prefix}/"))
    for name in ("subnets", "subnets0", "subnets.old/10.1.1.0-24", "config"):
        etcdctl(etcd_options.endpoints[0], "put", f"{etcd_options.prefix}/{name}", "x")
    etcdctl(etcd_options.endpoints[0], "put", f"{etcd_options.prefix}/subnets/a/b", "x")
    assert list((await registry.list()).entries) == ["a/b"]


async def test_a_key_that_is_no_text_costs_no_other(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    name = os.fsdecode(b"\xff\xfe")
    etcdctl(etcd_options.endpoints[0], "put", f"{etcd_options.prefix}/subnets/{name}", "x")
    assert (await registry.list()).entries == {
        KEY: entry,
        "\\xff\\xfe": Entry("\\xff\\xfe", b"x", entry.revision + 1),
    }


async def test_a_listing_of_many_pages_is_one_state(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(etcd_options)
    count = 2 * PAGE_KEYS + 1
    keys = [f"10.{n // 256}.{n % 256}.0-24" for n in range(count)]
    prefix = f"{etcd_options.prefix}/subnets/".encode()
    client = registry._client  # a thousand creates would take too long
    await asyncio.gather(*(client.put(pb.PutRequest(key=prefix + key.encode(), value=VALUE)) for key in keys))
    snapshot = await registry.list()
    assert sorted(snapshot.entries) == sorted(keys)
    assert snapshot.revision == max(entry.revision for entry in snapshot.entries.values())


# Outages


async def test_an_absent_etcd_is_one_clear_line(opened: Opened) -> None:
    registry = opened(EtcdOptions(endpoints=(NOBODY, "http://127.0.0.1:2")))
    with pytest.raises(RegistryError) as caught:
        await registry.list()
    assert str(caught.value) == (
        "no etcd endpoint answers: http://127.0.0.1:1 (Connection refused), http://127.0.0.1:2 (Connection refused)"
    )
    assert type(caught.value) is RegistryError


async def test_a_name_that_does_not_exist_is_one_clear_line(opened: Opened) -> None:
    registry = opened(EtcdOptions(endpoints=("http://etcd.invalid:2379",)))
    with pytest.raises(RegistryError, match=r"no etcd endpoint answers: http://etcd\.invalid:2379 \(.*\)$"):
        await registry.list()


async def test_something_else_than_etcd_is_one_clear_line(opened: Opened) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RegistryError, match=rf"no etcd endpoint answers: http://127\.0\.0\.1:{port} \(.+\)$"):
            await opened(EtcdOptions(endpoints=(f"http://127.0.0.1:{port}",))).list()


async def test_endpoints_may_be_names(opened: Opened, etcd_options: EtcdOptions) -> None:
    endpoints = tuple(url.replace("127.0.0.1", "localhost") for url in etcd_options.endpoints)
    assert (await opened(replace(etcd_options, endpoints=endpoints)).list()).entries == {}


async def test_a_first_endpoint_that_refuses_costs_nothing_and_says_nothing(
    opened: Opened, etcd_options: EtcdOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(etcd_client, "CALL_S", 600.0)
    registry = opened(replace(etcd_options, endpoints=(NOBODY, *etcd_options.endpoints)))
    async with asyncio.timeout(60), watching(registry) as seen:  # an endpoint that hangs would have 300 s
        await seen.snapshot()
        await registry.create(KEY, VALUE, LEASE_TTL_S)
        await seen.change()
    assert caplog.records == []


async def test_an_endpoint_that_hangs_takes_only_its_share_of_the_deadline(
    opened: Opened, etcd_options: EtcdOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "CALL_S", 20.0)
    options = [(name, value) for name, value in connections.CHANNEL_OPTIONS if name != CONNECTING]
    monkeypatch.setattr(connections, "CHANNEL_OPTIONS", [*options, (CONNECTING, 600_000)])  # it would be given up first
    released = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    registry = opened(replace(etcd_options, endpoints=(f"http://127.0.0.1:{port}", *etcd_options.endpoints)))
    began_s = time.monotonic()
    await registry.list()
    assert 9.9 < time.monotonic() - began_s < 20.0
    monkeypatch.setattr(etcd_client, "CALL_S", 600.0)
    async with asyncio.timeout(60):  # the endpoint that answered is asked first from now on: no 300 s for the other one
        await registry.list()
    released.set()
    server.close()


async def test_a_watch_survives_a_restart_of_etcd_with_a_line_for_each_reason_and_one_at_the_end(
    opened: Opened, own_etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    first = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries == {KEY: first}
        own_etcd.kill()
        await said(caplog, "watching the subnets")
        await asyncio.to_thread(own_etcd.start)
        await said(caplog, "works again after")
        await registry.renew(first, OTHER_VALUE, LEASE_TTL_S)
        await seen.entry(KEY, OTHER_VALUE)
    *reasons, end = [(record.levelname, record.getMessage()) for record in caplog.records]
    # The stream has broken; where it takes longer, that nobody answers.
    assert {level for level, _ in reasons} == {"WARNING"}
    assert len(set(reasons)) == len(reasons)
    assert own_etcd.endpoint in reasons[0][1]
    assert end[0] == "INFO"
    assert "works again after" in end[1]


async def test_a_watch_waits_for_an_etcd_that_is_not_there_yet(opened: Opened, etcd_directory: Path) -> None:
    server = EtcdServer(etcd_directory)
    registry = opened(EtcdOptions(endpoints=(server.endpoint,)))
    async with watching(registry) as seen:
        assert await seen.is_quiet(0.3)
        await asyncio.to_thread(server.start)
        try:
            assert (await seen.snapshot()).entries == {}
        finally:
            server.stop()


@pytest.mark.parametrize("detector", ["probes", "pings"])
async def test_a_server_that_hangs_is_noticed_by_each_detector_alone(
    detector: str,
    opened: Opened,
    own_etcd: EtcdServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Together the first one wins: the probes after 3.9 s, or a ping of gRPC's that had just been sent."""
    caplog.set_level(logging.INFO, "flannel_udp")
    if detector == "probes":
        options = [(name, value) for name, value in connections.CHANNEL_OPTIONS if "keepalive" not in name]
        monkeypatch.setattr(connections, "CHANNEL_OPTIONS", [*options, ("grpc.http2.ping_timeout_ms", 600_000)])
    else:
        monkeypatch.setattr(etcd_watch, "QUIET_S", 600.0)
    stands = asyncio.Event()
    answered = asyncio.Event()  # a probe: an etcd that has not answered one may be too old to answer any
    read = etcd_watch.Watch.read

    async def read_and_note(watch: etcd_watch.Watch) -> pb.WatchResponse:
        stands.set()
        response = await read(watch)
        if not response.events:
            answered.set()
        return response

    monkeypatch.setattr(etcd_watch.Watch, "read", read_and_note)
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    async with watching(registry) as seen:
        await seen.snapshot()
        await asyncio.wait_for((answered if detector == "probes" else stands).wait(), 30)
        freeze(own_etcd.pid)
        await said(caplog, "watching the subnets")
        os.kill(own_etcd.pid, signal.SIGCONT)
        await said(caplog, "works again after")
    by_probes = f"watching the subnets: etcd at {own_etcd.endpoint}: no answer to a watch in time;"
    assert caplog.messages[0].startswith(by_probes) == (detector == "probes"), caplog.messages


async def test_history_compacted_while_the_consumer_was_busy_ends_in_a_fresh_snapshot(
    opened: Opened, etcd_options: EtcdOptions
) -> None:
    registry = opened(etcd_options)
    first = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with aclosing(registry.watch()) as items:
        assert (await anext(items)).entries == {KEY: first}
        await registry.delete(first)
        second = await registry.create("10.1.16.0-24", VALUE, LEASE_TTL_S)
        etcdctl(etcd_options.endpoints[0], "compaction", str(second.revision))
        assert (await asyncio.wait_for(anext(items), PATIENCE_S)).entries == {"10.1.16.0-24": second}
        third = await registry.create(KEY, OTHER_VALUE, LEASE_TTL_S)
        assert (await asyncio.wait_for(anext(items), PATIENCE_S)).entries == {KEY: third}


async def test_an_etcd_that_lost_its_data_ends_in_a_fresh_snapshot(opened: Opened, own_etcd: EtcdServer) -> None:
    registry = opened(EtcdOptions(endpoints=(own_etcd.endpoint,)))
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        before = await seen.snapshot()
        own_etcd.kill()
        own_etcd.log_file.with_suffix("").rename(own_etcd.log_file.with_suffix(".lost"))
        await asyncio.to_thread(own_etcd.start)
        after = await seen.snapshot()
        assert after.entries == {}
        assert after.revision < before.revision
        again = await registry.create(KEY, OTHER_VALUE, LEASE_TTL_S)
        assert (await seen.change()).entries == {KEY: again}


@pytest.fixture
def cluster(etcd_directory: Path) -> Iterator[list[EtcdServer]]:
    members = [EtcdServer(etcd_directory, name=name) for name in ("one", "two", "three")]
    start_cluster(members)
    try:
        yield members
    finally:
        for member in members:
            member.kill()


async def test_a_member_that_is_killed_breaks_neither_calls_nor_watches(
    opened: Opened, cluster: list[EtcdServer]
) -> None:
    registry = opened(EtcdOptions(endpoints=tuple(member.endpoint for member in cluster)))
    entry = await created(registry, KEY, VALUE)
    async with watching(registry) as seen:
        await seen.snapshot()
        cluster[0].kill()
        began_s = time.monotonic()
        entry = await once_connected(partial(registry.renew, entry, OTHER_VALUE, LEASE_TTL_S))
        assert time.monotonic() - began_s < promised(etcd_client.CALL_S)
        assert (await seen.entry(KEY, OTHER_VALUE)).entries == {KEY: entry}
    assert (await once_connected(registry.list)).entries == {KEY: entry}


async def test_a_member_that_hangs_breaks_no_call_for_longer_than_its_deadline(
    opened: Opened, cluster: list[EtcdServer]
) -> None:
    registry = opened(EtcdOptions(endpoints=tuple(member.endpoint for member in cluster)))
    entry = await created(registry, KEY, VALUE)
    freeze(cluster[0].pid)
    began_s = time.monotonic()
    assert await once_connected(partial(registry.renew, entry, VALUE, LEASE_TTL_S)) == entry
    assert time.monotonic() - began_s < promised(etcd_client.CALL_S)


# TLS


async def test_client_certificates(opened: Opened, etcd_directory: Path, tmp_path: Path) -> None:
    authority, stranger = make_authority(tmp_path, "authority"), make_authority(tmp_path, "stranger")
    server_pair = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1,DNS:localhost")
    client_pair = make_certificate(tmp_path, "client", authority, "DNS:client")
    strange_pair = make_certificate(tmp_path, "strange", stranger, "DNS:client")
    tls = EtcdTls(server_pair.certfile, server_pair.keyfile, authority.certfile)
    server = EtcdServer(etcd_directory, tls=tls)
    server.start()
    try:
        options = EtcdOptions(
            endpoints=(server.endpoint,),
            cafile=authority.certfile,
            certfile=client_pair.certfile,
            keyfile=client_pair.keyfile,
        )
        registry = opened(options)
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        assert (await registry.renew(entry, VALUE, LEASE_TTL_S)) == entry
        by_name = replace(options, endpoints=(server.endpoint.replace("127.0.0.1", "localhost"),))
        async with watching(opened(by_name)) as seen:
            assert (await seen.snapshot()).entries == {KEY: entry}

        with pytest.raises(RegistryDenied, match=r"its certificate is not trusted: check --etcd-cafile\)$"):
            await opened(replace(options, cafile=stranger.certfile)).list()
        for wrong in (
            replace(options, certfile=None, keyfile=None),
            replace(options, certfile=strange_pair.certfile, keyfile=strange_pair.keyfile),
        ):
            with pytest.raises(RegistryDenied, match="it refuses our certificate: check --etcd-certfile"):
                await opened(wrong).list()
        with pytest.raises(RegistryError, match="no etcd endpoint answers"):
            plain = server.endpoint.replace("https", "http")
            await opened(EtcdOptions(endpoints=(plain,))).list()
    finally:
        server.stop()


async def test_a_certificate_for_another_host_is_refused(opened: Opened, etcd_directory: Path, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    pair = make_certificate(tmp_path, "server", authority, "DNS:elsewhere")
    server = EtcdServer(etcd_directory, tls=EtcdTls(pair.certfile, pair.keyfile, authority.certfile))
    server.start()
    try:
        with pytest.raises(RegistryDenied, match="its certificate is for another host than the URL names"):
            await opened(EtcdOptions(endpoints=(server.endpoint,), cafile=authority.certfile)).list()
    finally:
        server.stop()


# Users


@pytest.fixture
def guarded_etcd(etcd_directory: Path) -> Iterator[EtcdServer]:
    """An etcd that asks for passwords; its tokens outlast a test. User flannel may use flannel's prefix only."""
    with guarded(etcd_directory, "--auth-token-ttl=300") as server:
        yield server


@pytest.fixture
def short_tokens(etcd_directory: Path) -> Iterator[EtcdServer]:
    with guarded(etcd_directory, "--auth-token-ttl=5") as server:
        yield server


@pytest.fixture
def as_flannel(guarded_etcd: EtcdServer) -> EtcdOptions:
    return EtcdOptions(endpoints=(guarded_etcd.endpoint,), username="flannel", password=PASSWORD)


async def test_who_may_not_is_told_why_and_no_password_is_told(
    opened: Opened, as_flannel: EtcdOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for wrong, message in (
        (replace(as_flannel, password=f"not {PASSWORD}"), "invalid user ID or password: check --etcd-username"),
        (replace(as_flannel, username="nobody"), "invalid user ID or password: check --etcd-username"),
        (replace(as_flannel, username="", password=""), "asks for a user: give --etcd-username and --etcd-password"),
        (replace(as_flannel, prefix="/other"), "permission denied for user 'flannel': grant it a role for the prefix"),
    ):
        registry = opened(wrong)
        for use in (registry.list(), registry.write_config(b"{}"), anext(registry.watch())):
            with pytest.raises(RegistryDenied) as caught:
                await use
            assert message in str(caught.value)
            assert as_flannel.endpoints[0] in str(caught.value)
            assert PASSWORD not in str(caught.value)
    assert PASSWORD not in caplog.text


async def test_a_token_that_expired_or_was_forgotten_is_replaced(opened: Opened, short_tokens: EtcdServer) -> None:
    options = EtcdOptions(endpoints=(short_tokens.endpoint,), username="flannel", password=PASSWORD)
    registry = opened(options)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        await asyncio.sleep(8)  # the token lives for five seconds and is swept up once a second
        entry = await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
        assert (await seen.change()).entries == {KEY: entry}

        root = ("--user", f"root:{PASSWORD}")
        etcdctl(short_tokens.endpoint, *root, "role", "add", "makes tokens stale")
        assert (await registry.list()).entries == {KEY: entry}

        short_tokens.kill()
        await asyncio.to_thread(short_tokens.start)
        entry = await once_connected(lambda: registry.renew(entry, VALUE, LEASE_TTL_S))
        await seen.entry(KEY, VALUE)


async def test_a_user_for_an_etcd_that_knows_no_users_does_no_harm(opened: Opened, etcd_options: EtcdOptions) -> None:
    registry = opened(replace(etcd_options, username="flannel", password=PASSWORD))
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
