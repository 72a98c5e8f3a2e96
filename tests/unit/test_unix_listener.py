"""Who comes in while nobody can be let in is let in later, and costs nothing meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.admin import listener as module
from flannel_udp.admin.listener import UnixListener
from tests.support.patience import PATIENCE_S

NEVER_S = 10 * PATIENCE_S


class Accepting:
    """The loop's accept, which is refused a descriptor as often as a test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 1_000_000_000
        self.asked = 0
        loop = asyncio.get_running_loop()
        self._accept = loop.sock_accept
        monkeypatch.setattr(loop, "sock_accept", self.accept)

    async def accept(self, sock: socket.socket) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.asked <= self.refused:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        accepted: tuple[socket.socket, object] = await self._accept(sock)
        return accepted


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[UnixListener]:
    made = UnixListener(tmp_path / "agent.sock", socket.SOCK_SEQPACKET)
    yield made
    made.close()


@pytest.fixture
def client(listener: UnixListener) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(listener.path))
        yield sock


@pytest.fixture
async def accepting(monkeypatch: pytest.MonkeyPatch) -> Accepting:
    return Accepting(monkeypatch)


async def test_without_a_free_descriptor_it_rests(
    listener: UnixListener, client: socket.socket, accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_S", NEVER_S)
    waiting = asyncio.create_task(listener.accept())
    for _ in range(100):
        await asyncio.sleep(0)
    assert accepting.asked == 1
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_as_soon_as_there_is_one_the_next_one_is_let_in(
    listener: UnixListener, client: socket.socket, accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_S", 0.01)
    accepting.refused = 3
    async with asyncio.timeout(PATIENCE_S):
        with await listener.accept() as accepted:
            client.send(b"hello")
            assert accepted.recv(10) == b"hello"


async def test_a_socket_that_takes_its_place_is_not_waited_for(
    listener: UnixListener, accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_S", NEVER_S)
    accepting.refused = 1
    waiting = asyncio.create_task(listener.accept())
    for _ in range(100):
        await asyncio.sleep(0)
    listener.path.unlink()
    listener.replace(listener.make_anew())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(listener.path))
        async with asyncio.timeout(PATIENCE_S):
            (await waiting).close()
