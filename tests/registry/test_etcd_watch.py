"""What a busy etcd may say to a watch, which no real one can be made to say at will."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.model import Entry
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.registry import EtcdRegistry
from flannel_udp.registry.outage import Outage

VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'


async def heard(
    monkeypatch: pytest.MonkeyPatch, *responses: pb.WatchResponse
) -> AsyncIterator[dict[str, Entry | None]]:
    """Yield the changes that are made of these answers to a watch after revision 10."""
    registry = EtcdRegistry(EtcdOptions(endpoints=("http://127.0.0.1:1",)))

    async def watch(_request: pb.WatchCreateRequest) -> AsyncIterator[pb.WatchResponse]:
        for response in responses:
            yield response

    monkeypatch.setattr(registry._client, "watch", watch)
    async with aclosing(
        registry._changes(pb.ResponseHeader(revision=10), Outage(logging.getLogger(__name__)))
    ) as changes:
        async for change in changes:
            yield dict(change.entries)
    await registry.close()


def answer(revision: int, *keys: str, created: bool = False) -> pb.WatchResponse:
    prefix = "/coreos.com/network/subnets/"
    kvs = [pb.KeyValue(key=f"{prefix}{key}".encode(), value=VALUE, mod_revision=revision) for key in keys]
    events = [pb.Event(kv=kv) for kv in kvs]
    return pb.WatchResponse(header=pb.ResponseHeader(revision=revision), created=created, events=events)


async def test_an_answer_to_a_probe_that_later_events_overtook_ends_no_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    responses = (answer(10, created=True), answer(12, "a"), answer(11), answer(13, "b"))
    assert [list(entries) async for entries in heard(monkeypatch, *responses)] == [["a"], ["b"]]


async def test_a_watch_that_begins_in_the_past_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="revision went back from 10"):
        async for _ in heard(monkeypatch, answer(9, created=True)):
            pass
