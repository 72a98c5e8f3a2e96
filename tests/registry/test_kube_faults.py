"""Kubernetes misbehaves: refusals, broken streams, lost history. One line each, nothing missed, nothing spins."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.model import Snapshot
from flannel_udp.options import KubeOptions
from flannel_udp.registry import outage
from flannel_udp.registry.kube import client as kube_client
from flannel_udp.registry.kube import registry as kube
from flannel_udp.registry.kube.client import KubeClient
from flannel_udp.registry.kube.options import KubeFiles
from flannel_udp.registry.kube.registry import KubeRegistry
from tests.kube_api.server import ApiServer, Fault
from tests.kube_api.store import Refused
from tests.registry.certificates import make_authority, make_certificate
from tests.registry.support import Watching, said, watching
from tests.support.patience import PATIENCE_S

PEER = {"kube_subnet_manager": "true", "public_ip": "192.0.2.2"}
UNAVAILABLE = Refused(503, "ServiceUnavailable", "etcd is down")


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "REOPEN_S", 0.05)
    monkeypatch.setattr(outage, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(outage, "LAST_DELAY_S", 0.1)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.add_node("h1", "10.1.1.0/24")
        api.add_node("h2", "10.1.2.0/24", **PEER)
        yield api


@pytest.fixture
async def registry(api: ApiServer) -> AsyncIterator[KubeRegistry]:
    registry = KubeRegistry(KubeOptions(subnet_mgr=True, api_url=api.url), {"NODE_NAME": "h1"})
    yield registry
    await registry.close()


@pytest.fixture
async def seen(registry: KubeRegistry) -> AsyncIterator[Watching]:
    async with watching(registry) as seen:
        yield seen


def add_peer(api: ApiServer, number: int) -> str:
    api.add_node(f"h{number}", f"10.1.{number}.0/24", **PEER)
    return f"10.1.{number}.0-24"


async def wait_for_requests(api: ApiServer, verb: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while api.count(verb) < count:
            await asyncio.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Streams that end


async def test_a_watch_that_the_server_ends_goes_on_where_it_was(api: ApiServer, seen: Watching) -> None:
    await seen.snapshot()
    await wait_for_requests(api, "watch", 1)
    api.order("watch", Fault(end=True))
    api.stop()  # ends the first one
    api.start()
    await wait_for_requests(api, "watch", 3)
    key = add_peer(api, 3)
    assert (await seen.change()).entries.keys() == {key}
    assert api.count("list") == 1


async def test_a_server_that_ends_every_watch_at_once_is_not_hammered(api: ApiServer, seen: Watching) -> None:
    await seen.snapshot()
    api.order("watch", *[Fault(end=True)] * 1000)
    api.stop()
    api.start()
    before, began_s = api.count("watch"), time.monotonic()
    await wait_for_requests(api, "watch", before + 10)
    assert time.monotonic() - began_s > 8 * 0.05  # a pause of 50 ms here, of a second in life


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_event=True),
        Fault(raw=b'{"type":"MODIFIED","object":{"kind":"No', end=True),
        Fault(raw=b"null\n"),
        Fault(raw=b'{"type":"MODIFIED","object":{"metadata":{}}}\n'),
        Fault(raw=b'{"type":"ERROR","object":{"code":"x"}}\n'),
        Fault(raw=b'{"type":"ERROR","object":{"code":500,"message":"etcd is down"}}\n'),
        Fault(raw=b"\xff\xfe\n"),
        Fault(raw=b"[" * 100_000 + b"\n"),
        Fault(cut=True),
    ],
    ids=["cut in an event", "ended in an event", "null", "no name", "odd error", "error", "no text", "nesting", "cut"],
)
async def test_a_broken_stream_loses_no_change(
    fault: Fault, api: ApiServer, registry: KubeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    api.order("watch", fault)
    async with watching(registry) as seen:
        await seen.snapshot()
        await wait_for_requests(api, "watch", 1)
        third, fourth = add_peer(api, 3), add_peer(api, 4)
        assert (await seen.change()).entries.keys() == {third}
        assert (await seen.change()).entries.keys() == {fourth}
        await said(caplog, "works again after")  # both may have come before it broke
        assert await seen.is_quiet(0.1)
    assert api.count("list") == 1
    (warning,) = warnings(caplog)
    assert warning.startswith(f"watching the subnets: Kubernetes at {api.url}: ")


async def test_a_line_without_end_is_given_up(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kube_client, "MAX_LINE_BYTES", 10_000)
    api.order("watch", Fault(raw=b" " * 200_000))
    async with watching(registry) as seen:
        await seen.snapshot()
        await wait_for_requests(api, "watch", 1)
        key = add_peer(api, 3)
        assert (await seen.change()).entries.keys() == {key}
        await wait_for_requests(api, "watch", 2)
    assert "a line of more than 10000 bytes" in warnings(caplog)[0]


async def test_characters_that_end_lines_of_text_do_not_end_an_event(api: ApiServer, seen: Watching) -> None:
    await seen.snapshot()
    text = "a\u2028b\u0085c\u001ed"
    api.order("watch", Fault())
    raw = {"metadata": {"annotations": {"example.org/note": text}}}
    api.do(lambda store: store.change_node("h2", raw))
    key = add_peer(api, 3)
    assert (await seen.change()).entries.keys() == {key}
    event = f'{{"type":"ADDED","object":{{"metadata":{{"name":"{text}"}}}}}}\n'.replace("\u001e", "")
    lines = [line async for line in kube_client._lines(_parts(event.encode()))]
    assert lines == [event.encode().rstrip(b"\n")]


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for i in range(0, len(data), 7):
        yield data[i : i + 7]


# Bookmarks and history


async def test_bookmarks_carry_a_quiet_watch_over_a_compaction(api: ApiServer, seen: Watching) -> None:
    api.bookmark_s = 0.05
    await seen.snapshot()
    await wait_for_requests(api, "watch", 1)
    for _ in range(5):
        api.do(lambda store: store.heartbeat("h1"))
    version = api.do(lambda store: store.version)
    async with asyncio.timeout(PATIENCE_S):
        while version not in api.bookmarks:  # what was written before the stop is read before the end
            await asyncio.sleep(0.01)
    api.stop()
    api.do(lambda store: store.forget())
    api.start()
    await wait_for_requests(api, "watch", 2)
    assert [seen.parameters["resourceVersion"] for seen in api.requests if seen.verb == "watch"][-1] == str(version)
    assert api.count("list") == 1


async def test_a_server_that_lost_its_history_is_listed_again(api: ApiServer, seen: Watching) -> None:
    """410 as the answer's status: the versions since our last event were compacted while we were away."""
    await seen.snapshot()
    await wait_for_requests(api, "watch", 1)
    api.stop()
    api.do(lambda store: store.delete_node("h2"))
    key = add_peer(api, 3)
    api.do(lambda store: store.forget())
    api.start()
    assert (await seen.snapshot()).entries.keys() == {key}
    later = add_peer(api, 4)
    assert (await seen.change()).entries.keys() == {later}


async def test_history_that_expires_within_a_stream_means_a_list(api: ApiServer, registry: KubeRegistry) -> None:
    """410 as an ERROR event: so a server tells a client that is too slow."""
    gone = b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410}}\n'
    api.order("watch", Fault(raw=gone))
    async with watching(registry) as seen:
        await seen.snapshot()
        await wait_for_requests(api, "watch", 1)
        key = add_peer(api, 3)
        assert (await seen.change()).entries.keys() == {key}
        assert key in (await seen.snapshot()).entries


async def test_a_server_that_never_has_any_history_is_not_hammered(api: ApiServer, registry: KubeRegistry) -> None:
    api.order("watch", *[Fault(refuse=Refused(410, "Expired", "too old resource version"))] * 1000)
    async with watching(registry) as seen:
        await seen.snapshot()
        before, began_s = api.count("list"), time.monotonic()
        await wait_for_requests(api, "list", before + 6)
        assert time.monotonic() - began_s > 4 * 0.1  # every 0.1 s here, every 5 s in life


async def test_a_store_that_went_back_is_listed_again(api: ApiServer, seen: Watching) -> None:
    await seen.snapshot()
    await wait_for_requests(api, "watch", 1)
    back = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\n'
    api.stop()
    api.order("watch", Fault(raw=back, end=True))
    api.start()
    assert "10.1.2.0-24" in (await seen.snapshot()).entries


async def test_a_list_that_expires_between_its_parts_is_begun_anew(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_client, "PAGE_NODES", 1)
    not_whole = Fault(refuse=Refused(400, "BadRequest", "resourceVersion 0 is not served"))
    api.order("list", not_whole, Fault(), Fault(refuse=Refused(410, "Expired", "continue token too old")), not_whole)
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries.keys() == {"10.1.2.0-24"}
    assert api.count("list") == 2 + 4


# A server that is away, slow or odd


async def test_an_outage_is_one_warning_and_changes_meanwhile_are_seen(
    api: ApiServer, seen: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await seen.snapshot()
    await wait_for_requests(api, "watch", 1)
    api.stop()
    key = add_peer(api, 3)
    await said(caplog, "watching the subnets")
    api.start()
    assert (await seen.change()).entries.keys() == {key}
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(refuse=UNAVAILABLE), r"GET /api/v1/nodes/h1: etcd is down \(status 503\)"),
        (Fault(refuse=Refused(429, "TooManyRequests", "slow down")), r"slow down \(status 429\)"),
        (Fault(plain="<html>hotel portal</html>"), "the answer is no JSON"),
        (Fault(plain="[]"), "the answer is an object that is no node"),
        (Fault(plain='{"metadata": {"name": 7}}'), "the answer is a node with fields of wrong types"),
        (Fault(plain='{"metadata": {"name": "h1", "annotations": {"a": 1}}}'), "fields of wrong types"),
        (Fault(plain='{"metadata": {"name": "h1"}, "spec": []}'), "no podCIDR"),
    ],
)
async def test_an_odd_answer_is_one_line(fault: Fault, says: str, api: ApiServer, registry: KubeRegistry) -> None:
    api.order("get", fault)
    with pytest.raises(RegistryError, match=says) as caught:
        await registry.assigned()
    assert "\n" not in str(caught.value)
    assert (await registry.assigned()).key == "10.1.1.0-24"


@pytest.mark.parametrize("plain", ["{}", "[]", '{"items": [1], "metadata": {"resourceVersion": "1"}}', '{"items": 5}'])
async def test_an_odd_list_is_one_line(plain: str, api: ApiServer, registry: KubeRegistry) -> None:
    api.order("list", Fault(plain=plain))
    with pytest.raises(RegistryError, match="the answer is no list of nodes"):
        await registry.list()


async def test_a_slow_answer_is_given_up(
    api: ApiServer, registry: KubeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_client, "ANSWER_TIMEOUT_S", 0.2)
    api.order("get", Fault(wait_s=PATIENCE_S))
    with pytest.raises(RegistryError, match=r"GET /api/v1/nodes/h1: no complete answer within 0\.2 s"):
        await registry.assigned()


async def test_a_server_that_asks_for_patience_is_given_it(api: ApiServer, registry: KubeRegistry) -> None:
    api.order("get", Fault(refuse=Refused(429, "TooManyRequests", "slow down"), retry_after="1"))
    with pytest.raises(RegistryError, match="slow down"):
        await registry.assigned()
    await registry.assigned()
    first, second = (seen.at_s for seen in api.requests)
    assert second - first >= 0.95


async def test_nobody_listening_is_one_line(api: ApiServer, registry: KubeRegistry) -> None:
    api.stop()
    api._listener.close()
    with pytest.raises(RegistryError, match=f"Kubernetes at {api.url}: GET /api/v1/nodes/h1: ") as caught:
        await registry.assigned()
    assert "kube-proxy" not in str(caught.value)


# Refusals


async def test_an_unknown_token_is_refused_with_what_to_do(api: ApiServer, registry: KubeRegistry) -> None:
    api.tokens = {"secret": "system:serviceaccount:kube-flannel:flannel"}
    for call in (registry.assigned(), registry.list(), registry.announce_up()):
        with pytest.raises(
            RegistryDenied, match=r"not logged in \(Unauthorized\): check the token or the kubeconfig's"
        ):
            await call


async def test_what_rbac_forbids_is_named(api: ApiServer, registry: KubeRegistry) -> None:
    api.rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]
    entry = await registry.assigned()
    with pytest.raises(RegistryDenied, match=r'cannot list resource "nodes".*: let RBAC grant it to us'):
        await registry.list()
    with pytest.raises(RegistryDenied, match=r'nodes "h1" is forbidden.*cannot patch resource "nodes/status"'):
        await registry.renew(entry, b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', 1)


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_watch_that_is_forbidden_ends_and_says_so(verb: str, api: ApiServer, registry: KubeRegistry) -> None:
    others = [other for other in ("list", "watch") if other != verb]
    api.rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": others}]
    with pytest.raises(RegistryDenied, match=f'cannot {verb} resource "nodes"'):
        async with asyncio.timeout(PATIENCE_S):
            async for item in registry.watch():
                assert isinstance(item, Snapshot)


# Credentials and TLS


async def test_a_rotated_token_is_read_again_and_never_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service account of a pod, with TLS: the kubelet replaces the token's file well before it expires."""
    caplog.set_level("DEBUG")
    authority = make_authority(tmp_path, "ca")
    server = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certfile, server.keyfile)
    authority.certfile.rename(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("kube-flannel")
    with ApiServer(tls=context) as secure:
        secure.add_node("h1", "10.1.1.0/24")
        secure.tokens = {"first": "flannel"}
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.address[1]))
        client = KubeClient(KubeFiles(KubeOptions(subnet_mgr=True), tmp_path))
        try:
            assert (await client.get_node("h1")).name == "h1"
            secure.tokens = {"second": "flannel"}
            with pytest.raises(RegistryDenied):
                await client.get_node("h1")
            (tmp_path / "token").write_text("second\n")
            assert (await client.get_node("h1")).name == "h1"
            (tmp_path / "token").unlink()
            secure.tokens = {"third": "flannel"}
            with pytest.raises(RegistryDenied, match=r"no credentials to GET .*/token cannot be read: No such file"):
                await client.get_node("h1")
        finally:
            await client.close()
    assert not any(secret in caplog.text for secret in ("Bearer", "first", "second", "third"))


async def test_a_certificate_of_somebody_else_is_refused(tmp_path: Path) -> None:
    stranger = make_certificate(tmp_path, "server", make_authority(tmp_path, "ca"), "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stranger.certfile, stranger.keyfile)
    with ApiServer(tls=context) as secure:
        registry = KubeRegistry(KubeOptions(subnet_mgr=True, api_url=secure.url), {"NODE_NAME": "h1"})
        with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
            await registry.assigned()
        await registry.close()


async def test_certificates_that_are_replaced_one_by_one_are_used_once_they_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    authority = make_authority(tmp_path, "ca")
    server = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1")
    former, ours = (make_certificate(tmp_path, name, authority, "DNS:client") for name in ("former", "ours"))
    stranger = make_certificate(tmp_path, "stranger", make_authority(tmp_path, "strange"), "DNS:client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certfile)
    context.load_cert_chain(server.certfile, server.keyfile)
    context.verify_mode = ssl.CERT_REQUIRED
    used = tmp_path / "used.crt", tmp_path / "used.key"
    shutil.copy(stranger.certfile, used[0])
    shutil.copy(stranger.keyfile, used[1])
    with ApiServer(tls=context) as secure:
        secure.add_node("h1", "10.1.1.0/24")
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "x",
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": secure.url, "certificate-authority": "ca.crt"}}],
                    "users": [{"name": "u", "user": {"client-certificate": "used.crt", "client-key": "used.key"}}],
                }
            )
        )
        registry = KubeRegistry(KubeOptions(subnet_mgr=True, kubeconfig_file=kubeconfig), {"NODE_NAME": "h1"})
        with pytest.raises(RegistryError, match="GET /api/v1/nodes/h1"):
            await registry.assigned()
        shutil.copy(former.certfile, used[0])
        for _ in range(2):
            with pytest.raises(RegistryError, match="GET /api/v1/nodes/h1"):
                await registry.assigned()
        shutil.copy(former.keyfile, used[1])
        async with watching(registry) as seen:
            await seen.snapshot()
            await wait_for_requests(secure, "watch", 1)
            shutil.copy(ours.certfile, used[0])
            shutil.copy(ours.keyfile, used[1])
            assert (await registry.assigned()).key == "10.1.1.0-24"
            key = add_peer(secure, 3)
            assert (await seen.change()).entries.keys() == {key}
        await registry.close()
    half = [message for message in caplog.messages if "going on with what was read before" in message]
    assert len(half) == 1, caplog.messages
    assert caplog.messages.count("Kubernetes: the credentials were replaced: using the new ones") == 2
    assert "watching the subnets" not in caplog.text


async def test_a_watch_ends_whenever_it_is_cancelled(registry: KubeRegistry) -> None:
    """Also in the moment in which an answer comes, where `asyncio.wait_for` forgets it before Python 3.12."""
    for moment in range(200):
        task = asyncio.create_task(Watching().follow(registry))
        for _ in range(moment % 50):
            await asyncio.sleep(0)
        await asyncio.sleep(moment % 4 * 0.001)
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        task.cancel()
        assert ended, f"cancelled in moment {moment} it goes on"


async def test_a_watch_leaves_no_connection_behind(api: ApiServer, registry: KubeRegistry) -> None:
    for _ in range(5):
        async with watching(registry) as seen:
            await seen.snapshot()
    await registry.close()
    async with asyncio.timeout(PATIENCE_S):
        while connections_to(api.address[1]):
            await asyncio.sleep(0.01)


def connections_to(port: int) -> int:
    """Count this machine's established connections to a port of IPv4."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[2].rpartition(":")[2], 16) == port and line[3] == "01" for line in lines)
