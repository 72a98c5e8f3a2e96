"""A cluster that was made anew, while an endpoint of the list answers nobody: taken in the end, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.lab.etcd_server import EtcdServer, free_port
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import client as etcd_client
from flannel_udp.registry.etcd import cluster
from flannel_udp.registry.etcd.cluster import REMADE_S, Cluster, Stranger
from tests.registry.support import etcdctl, once_connected, watching
from tests.registry.test_etcd import KEY, VALUE, Opened, opened

__all__ = ["opened"]

CONFIG_KEY = "/coreos.com/network/config"


@pytest.fixture(autouse=True)
def patient_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer here refuses at once: a busy machine may take its time."""
    monkeypatch.setattr(etcd_client, "CALL_S", 180.0)


@pytest.fixture
def dead() -> str:
    """The URL of an endpoint that nobody listens at, as the first of the default ones nearly always is."""
    return f"http://127.0.0.1:{free_port('127.0.0.1')}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute lasts for three seconds."""
    monkeypatch.setattr(cluster, "REMADE_S", 3.0)


@pytest.fixture
def remade(own_etcd: EtcdServer, etcd_directory: Path) -> Iterator[EtcdServer]:
    """Another cluster, to be started at the address of `own_etcd`."""
    server = EtcdServer(etcd_directory, name="remade", client_port=int(own_etcd.endpoint.rpartition(":")[2]))
    yield server
    server.stop()


@pytest.mark.usefixtures("quick")
async def test_a_cluster_that_was_made_anew_is_taken_though_an_endpoint_is_dead(
    opened: Opened, dead: str, own_etcd: EtcdServer, remade: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    registry = opened(EtcdOptions(endpoints=(dead, own_etcd.endpoint)))
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        assert KEY in (await seen.snapshot()).entries
        own_etcd.kill()
        await asyncio.to_thread(remade.start)
        etcdctl(remade.endpoint, "put", CONFIG_KEY, "{}")
        assert (await seen.snapshot()).entries == {}
        assert (await registry.list()).entries == {}
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        assert KEY in (await seen.change()).entries
        assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    (line,) = [line for line in caplog.messages if "no endpoint is of the former cluster any more" in line]
    assert f"{remade.endpoint} (it is another cluster: " in line


@pytest.mark.usefixtures("quick")
async def test_another_cluster_without_a_network_configuration_is_not_taken(
    opened: Opened, dead: str, own_etcd: EtcdServer, remade: EtcdServer
) -> None:
    """A member that lost its data, and was started as a cluster of its own, while the others are away."""
    registry = opened(EtcdOptions(endpoints=(dead, own_etcd.endpoint)))
    await registry.list()
    own_etcd.kill()

    async def refused() -> str:
        with pytest.raises(RegistryError) as caught:
            await registry.list()
        return str(caught.value)

    assert "it is another cluster" not in await refused()
    remade.start()
    while "it is another cluster" not in await refused():
        await asyncio.sleep(0.1)
    await asyncio.sleep(4.0)
    await refused()
    etcdctl(remade.endpoint, "put", CONFIG_KEY, "{}")
    assert (await once_connected(registry.list)).entries == {}


# When it is taken


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ours() -> Cluster:
    made = Cluster(n_endpoints=3)
    assert made.find_stranger(7, configured=True) is None
    return made


def found(made: Cluster, *ids: int, configured: bool = True) -> list[Stranger]:
    strangers = [made.find_stranger(cluster_id, configured=configured) for cluster_id in ids]
    return [stranger for stranger in strangers if stranger is not None]


def test_one_other_cluster_is_taken_after_a_minute_and_not_before(clock: Clock) -> None:
    made = ours()
    assert not made.is_replaced(found(made, 8))
    clock.now_s += REMADE_S / 2
    assert not made.is_replaced([])  # nobody answers at all
    clock.now_s += REMADE_S / 2 - 1
    assert not made.is_replaced(found(made, 8))
    clock.now_s += 1
    assert not made.is_replaced([])
    assert not made.is_replaced(found(made, 8, configured=False))
    assert made.is_replaced(found(made, 8, 8))
    assert (made.id, found(made, 8)) == (0, [])


def test_it_is_not_taken_while_one_of_our_own_answers_now_and_then(clock: Clock) -> None:
    made = ours()
    for _ in range(10):
        assert not made.is_replaced(found(made, 8))
        clock.now_s += REMADE_S - 1
        made.answered()


@pytest.mark.parametrize("second", [(9,), (8, 9)])
def test_another_one_than_before_or_two_of_them_are_waited_for_anew(second: tuple[int, ...], clock: Clock) -> None:
    made = ours()
    assert not made.is_replaced(found(made, 8))
    clock.now_s += REMADE_S
    assert not made.is_replaced(found(made, *second))
    assert not made.is_replaced(found(made, 8))
    clock.now_s += REMADE_S
    assert made.is_replaced(found(made, 8))


def test_where_all_endpoints_answer_it_is_taken_at_once() -> None:
    made = ours()
    assert made.is_replaced(found(made, 8, 9, 8, configured=False))
