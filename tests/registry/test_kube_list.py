"""A list of nodes is read while it comes, whatever its parts are, in steps that leave room for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from flannel_udp.registry.kube import node_list
from flannel_udp.registry.kube.node_list import read_node_list
from flannel_udp.registry.kube.nodes import KubeNode

NAMES = ["a", "b\u2028ü", "c"]
ITEMS = [
    {"metadata": {"name": name, "annotations": {"x": "[{" * 9}}, "spec": {"podCIDRs": ["10.1.1.0/24"]}}
    for name in NAMES
]
LIST = {"kind": "NodeList", "metadata": {"resourceVersion": "77", "continue": "next"}, "items": ITEMS, "other": 1.5}


async def parts(document: bytes, size: int) -> AsyncIterator[bytes]:
    for i in range(0, len(document), size):
        yield document[i : i + size]


async def read(document: bytes, size: int = 65_536) -> tuple[list[str], tuple[str, str]]:
    nodes: list[KubeNode] = []
    versions = await read_node_list(parts(document, size), nodes.append)
    return [node.name for node in nodes], versions


@pytest.mark.parametrize("size", [1, 7, 100, 65_536])
@pytest.mark.parametrize("indent", [None, 2])
async def test_the_parts_in_which_a_list_comes_do_not_matter(size: int, indent: int | None) -> None:
    document = json.dumps(LIST, indent=indent, ensure_ascii=False).encode()
    assert await read(document, size) == (NAMES, ("77", "next"))


async def test_the_order_of_its_fields_does_not_matter() -> None:
    assert await read(json.dumps(dict(reversed(LIST.items()))).encode()) == (NAMES, ("77", "next"))


@pytest.mark.parametrize("items", ["[]", "null", " [ ] "])
async def test_a_cluster_without_nodes(items: str) -> None:
    assert await read(b'{"items":%s,"metadata":{"resourceVersion":"1"}}' % items.encode()) == ([], ("1", ""))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"<html>hotel portal</html>",
        b'{"items":[1],"metadata":{"resourceVersion":"1"}}',
        b'{"items":[{"metadata":{}}],"metadata":{"resourceVersion":"1"}}',
        b'{"items":[],"metadata":{"resourceVersion":1}}',
        b'{"items":[],"metadata":[]}',
        b'{"items":[{}',
        b'{"items":[],',
        b'{"items":[]] }',
        b'{"items":' + b"[" * 200_000,
        b'{"metadata":"\xff\xff"}',
        json.dumps(LIST).encode()[:-30],
        json.dumps(LIST).encode()[:100],
    ],
)
@pytest.mark.parametrize("size", [1, 65_536])
async def test_what_is_no_list_or_is_cut_off_is_refused(document: bytes, size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        await read(document, size)


async def test_a_value_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_list, "MAX_VALUE_CHARS", 10_000)
    with pytest.raises(ValueError, match="longer than any node"):
        await read(b'{"items":["' + b"x" * 200_000, 1_000)


async def test_others_have_their_turn_between_any_two_nodes() -> None:
    turns, n_nodes = 0, 500

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    document = json.dumps(LIST | {"items": ITEMS[:1] * n_nodes}).encode()
    await read(document)
    task.cancel()
    assert turns >= n_nodes
