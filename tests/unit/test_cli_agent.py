"""`status`, `peers` and `route get` through the program, against a real control socket."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.shapes import PeerRow, Route, Status
from flannel_udp.errors import FlannelError
from tests.support.status import PEER, RUNNING


class Source:
    """An agent with one peer; it has no answer for 10.1.0.1."""

    def status(self) -> Status:
        return RUNNING

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        yield [PEER]

    async def probed_peers(self, within_s: float = 60.0) -> AsyncIterator[list[PeerRow]]:  # noqa: ARG002
        yield [{**PEER, "echo": {"answered": True, "round_trip_ms": 0.5, "reason": None}}]

    async def route(self, address: IPv4Address | IPv6Address) -> Route:
        if address == IPv4Address("10.1.0.1"):
            raise FlannelError("no network configuration yet")
        return {"address": str(address), "verdict": "no route", "reason": "no lease covers it"}


async def ask(directory: Path, *words: str) -> tuple[int | None, str, str]:
    """Return exit code, output and errors of one command while an agent answers."""
    path = directory / "agent.sock"
    async with control_server(UnixListener(path), Source()):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flannel_udp", *words, "--control-socket", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), timeout=30)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("words", "document"),
    [
        (["status"], RUNNING),
        (["peers"], [PEER]),
        (["route", "get", "10.1.9.9"], {"address": "10.1.9.9", "verdict": "no route", "reason": "no lease covers it"}),
    ],
)
async def test_json_is_the_agents_document(words: list[str], document: object, tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, *words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == document


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["status"], "10.1.15.0/24"),
        (["peers"], "192.0.2.2"),
        (["peers", "--json=false"], "192.0.2.2"),
        (["route", "get", "10.1.9.9"], "no lease covers it"),
    ],
)
async def test_people_get_text(words: list[str], shown: str, tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, *words)
    assert (code, err) == (0, "")
    assert shown in out
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(out)


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["status"], ("10.1.15.0/24", "192.0.2.1", "10.1.15.0-24")),
        (["peers"], ("10.1.16.0/24", "192.0.2.2")),
        (["route", "get", "fd00:10:244:ffff:ffff:ffff:ffff:ffff"], ("fd00:10:244:ffff:ffff:ffff:ffff:ffff no route",)),
    ],
)
async def test_forty_columns_cut_no_address(
    words: list[str], whole: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code, out, err = await ask(tmp_path, *words)
    assert (code, err) == (0, "")
    assert [text for text in whole if text not in out] == []


async def test_what_the_agent_cannot_answer_is_one_line(tmp_path: Path) -> None:
    assert await ask(tmp_path, "route", "get", "10.1.0.1") == (1, "", "flannel-udp: no network configuration yet\n")
