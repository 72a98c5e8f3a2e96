"""The hand-over: both sides' parts over a real socket, with every end that either of them may come to."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.admin.listener import FileId, UnixListener
from flannel_udp.backend.vxlan.hop import VxlanHop
from flannel_udp.errors import FlannelError
from flannel_udp.handover import conversation as handover
from flannel_udp.handover.conversation import (
    Connection,
    HandoverFailed,
    Offered,
    ask_handover,
    handover_path,
    reach_agent,
    serve_handover,
)
from flannel_udp.handover.state import HandoverState, Terms, read_hops, read_state, write_state
from flannel_udp.model import Entry, Peer

TERMS = Terms("file:/r.json", "192.0.2.1", "192.0.2.1", 3, "auto")
STATE = HandoverState(
    version="0.1.0",
    network={"granted": ["tso", "udp-gro"]},
    config='{"Network": "10.1.0.0/16"}',
    entry=Entry("10.1.15.0-24", b'{"PublicIP":"192.0.2.1"}', 7, 4711),
    expires_s=1e6,
    registry="file:/r.json",
    files={"control": FileId(1, 2)},
)
PEERS = [Peer(IPv4Network((f"10.{i >> 8}.{i & 255}.0", 24)), IPv4Address(f"192.0.2.{i & 255}")) for i in range(1_200)]


class Agent:
    """Holds a pipe instead of flannel0, and notes which of its workers run."""

    workers = 3

    def __init__(self, descriptors: Mapping[str, int]) -> None:
        self._descriptors = descriptors
        self.running = set(range(self.workers))
        self.resumed = threading.Event()
        self.changed = False

    def offer(self, terms: Terms) -> tuple[HandoverState, Mapping[str, int]]:
        if differences := TERMS.differences(terms):
            raise FlannelError("; ".join(differences))
        return STATE, self._descriptors

    def peers(self) -> list[Peer]:
        return PEERS

    async def commit(self) -> None:
        if self.changed:
            raise FlannelError("this agent has changed")

    def pause(self, worker: int) -> None:
        self.running.remove(worker)

    async def resume(self) -> None:
        self.running = set(range(self.workers))
        self.resumed.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def old(pipe: tuple[int, int]) -> Agent:
    return Agent({"tun-0": pipe[0]} | {f"udp-{i}": pipe[0] for i in range(450)})  # more than fit one message


class Served:
    """The old agent's server, on the loop of the test."""

    def __init__(self, path: Path, old: Agent) -> None:
        self._listener = UnixListener(handover_path(path), socket.SOCK_SEQPACKET)
        self._old = old

    async def __aenter__(self) -> asyncio.Task[int]:
        self.task = asyncio.create_task(serve_handover(self._listener.accept, self._old))
        return self.task

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self._listener.close()


async def ask(path: Path, terms: Terms = TERMS) -> Offered:
    connection = reach_agent(path)
    assert connection is not None
    return await asyncio.to_thread(ask_handover, connection, terms)


def close_all(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


async def test_each_worker_starts_when_its_predecessor_has_stopped(path: Path, old: Agent) -> None:
    started: list[int] = []

    def start(worker: int) -> None:
        assert worker not in old.running
        started.append(worker)

    async with Served(path, old) as served:
        offered = await ask(path)
        assert (offered.state, offered.peers) == (STATE, PEERS)
        assert len(offered.descriptors) == 451
        assert await asyncio.to_thread(offered.take, 3, start, started.clear) < 1
        assert await served == os.getpid() == offered.pid
    assert (started, old.running) == ([0, 1, 2], set())
    close_all(offered.descriptors)


def test_nobody_there_is_none(path: Path) -> None:
    assert reach_agent(path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(handover_path(path)))
        assert reach_agent(path) is None


async def test_who_wants_something_else_is_told_what(path: Path, old: Agent) -> None:
    async with Served(path, old):
        with pytest.raises(HandoverFailed, match="which goes on: its workers is 2, ours 3"):
            await ask(path, replace(TERMS, workers=2))
        offered = await ask(path)  # and others are served after it
        offered.decline()
        close_all(offered.descriptors)
    assert old.running == {0, 1, 2}


async def test_who_is_ready_after_a_change_is_told_so_and_nothing_is_stopped(path: Path, old: Agent) -> None:
    async with Served(path, old) as served:
        offered = await ask(path)
        old.changed = True
        started: list[int] = []
        with pytest.raises(HandoverFailed, match="this agent has changed"):
            await asyncio.to_thread(offered.take, 3, started.append, started.clear)
        assert not served.done()
    assert (started, old.running) == ([], {0, 1, 2})
    close_all(offered.descriptors)


@pytest.mark.parametrize("last_words", [[], ["hello"], ["nonsense"], ["hello", "nonsense"], ["hello", "ready"]])
async def test_whatever_becomes_of_the_new_one_the_old_one_goes_on(
    path: Path, old: Agent, last_words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with Served(path, old) as served:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(handover_path(path)))
            connection = Connection(sock)
            for word in last_words:
                connection.send(word, protocol=handover.PROTOCOL, terms=TERMS.document())
            if "ready" in last_words:
                while (await asyncio.to_thread(connection.receive, 5.0))["say"] != "go":
                    pass
                assert old.running != {0, 1, 2}
        offered = await ask(path)
        assert old.running == {0, 1, 2}
        offered.decline()
        close_all(offered.descriptors)
        assert not served.done()
    assert "this agent goes on" in caplog.text


async def test_an_old_one_that_may_open_nothing_more_says_so_and_goes_on(
    path: Path, old: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Served(path, old) as served:
        with monkeypatch.context() as no_more:
            no_more.setattr(os, "memfd_create", refused)
            with pytest.raises(HandoverFailed, match="Too many open files"):
                await ask(path)
        offered = await ask(path)
        offered.decline()
        close_all(offered.descriptors)
        assert not served.done()


def refused(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_new_one_that_is_silent_loses_what_it_was_given(
    path: Path, old: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_START_TIMEOUT_S", 0.1)
    ours: set[int] = set()

    def start(worker: int) -> None:
        ours.add(worker)
        if worker == 2:
            old.resumed.wait(5)

    async with Served(path, old) as served:
        offered = await ask(path)
        with pytest.raises(HandoverFailed, match="'taken back'"):
            await asyncio.to_thread(offered.take, 3, start, ours.clear)
        assert not served.done()
    assert (ours, old.running) == (set(), {0, 1, 2})
    close_all(offered.descriptors)


def test_what_an_old_one_said_counts_though_it_left_without_reading_our_answer() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    old, new = Connection(far), Connection(near)
    old.send("taken back")
    new.send("started")
    old.close()
    assert [new.receive(1.0)["say"] for _ in range(2)] == ["taken back", "gone"]
    new.close()


@pytest.mark.parametrize("n_go", [0, 1, 3])
def test_an_old_one_that_is_killed_leaves_all_to_the_new_one(n_go: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started: list[int] = []
    dying = Connection(far)
    for worker in range(n_go):
        dying.send("go", worker=worker, since_s=0.0)
    dying.close()
    Offered(Connection(near), STATE, [], {}).take(3, started.append, started.clear)
    assert started == [0, 1, 2]


def test_a_start_that_fails_stops_all_and_hangs_up() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stopped: list[bool] = []

    def start(worker: int) -> None:
        raise FlannelError("no thread")

    Connection(far).send("go", worker=0, since_s=0.0)
    with pytest.raises(FlannelError, match="no thread"):
        Offered(Connection(near), STATE, [], {}).take(3, start, lambda: stopped.append(True))
    assert stopped == [True]
    assert Connection(far).receive(1.0)["say"] == "ready"
    assert Connection(far).receive(1.0)["say"] == "gone"
    far.close()


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"say": 1, "names": []}', b'{"say": "x"}', b'{"say": "x", "names": ["a"]}']
)
def test_nonsense_is_one_error(raw: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        far.send(raw)
        with pytest.raises(HandoverFailed, match="makes no sense"):
            Connection(near).receive(1.0)


def test_the_state_is_the_same_after_its_way() -> None:
    for state in (STATE, replace(STATE, expires_s=None, entry=replace(STATE.entry, lease_id=0, value=b"\xff"))):
        file = io.BytesIO()
        write_state(file, state, iter(PEERS))
        file.seek(0)
        assert read_state(file) == (state, PEERS)


@pytest.mark.parametrize("host", [None, "h1"])
def test_the_name_of_our_node_goes_along(host: str | None) -> None:
    document = replace(STATE, entry=replace(STATE.entry, host=host)).document()
    assert HandoverState.parse(document).entry.host == host
    del document["entry"]["host"]
    assert HandoverState.parse(document).entry.host is None


def test_peers_keep_what_the_backend_knows_of_them() -> None:
    hops = [replace(peer, hop=VxlanHop(number)) for number, peer in enumerate(PEERS)]
    file = io.BytesIO()
    write_state(file, STATE, iter(hops))
    file.seek(0)
    _, peers = read_state(file)
    assert read_hops(peers, VxlanHop) == hops
    assert read_hops(PEERS, None) == PEERS
    assert read_hops([replace(PEERS[0], hop=7)], int) == [replace(PEERS[0], hop=7)]
    with pytest.raises(TypeError):
        read_hops(PEERS, VxlanHop)


def test_an_agent_of_an_earlier_version_has_the_usual_datapath() -> None:
    document = TERMS.document()
    del document["datapath"]
    assert TERMS.differences(Terms.parse(document)) == []
    assert TERMS.differences(replace(TERMS, datapath="kernel")) == ["its datapath is kernel, ours auto"]


def test_what_another_version_has_beside_is_ignored_and_what_it_lacks_is_one_error() -> None:
    document = json.loads(json.dumps({**STATE.document(), "mood": "fine"}))
    assert HandoverState.parse(document) == STATE
    del document["expires_s"]
    with pytest.raises(KeyError, match="expires_s"):
        HandoverState.parse(document)


@pytest.mark.parametrize("document", [None, 3, [], {}, {"workers": "3"}])
def test_terms_that_make_no_sense_equal_nothing(document: Any) -> None:
    assert len(TERMS.differences(Terms.parse(document))) == 5
