"""From one agent to the next without a packet lost: the conversation, on a unix socket beside the control socket.

    new                                         old
    hello: who I am and what I want       ─▶
                                          ◀─    refused: why; or the state, and the descriptors (SCM_RIGHTS)
    [builds everything: what may fail]
    ready                                 ─▶
                                          ◀─    refused: what has changed since the offer; or, for each worker,
                                          ◀─    go N: worker N has stopped, all that it had read is sent
    [starts worker N at once]
    started                               ─▶
                                          ◀─    yours                            [ends; the new one is the agent]

Both sides have every descriptor open, and never read from one at the same time: a packet that comes between two
workers waits in the kernel, in its order. Whenever the new one ends, gives up or is silent for too long, the old one
says "taken back" (if anybody still listens) and goes on. Whenever the old one ends without a word, the new one goes on.
One that is told to stop meanwhile gives the other a word, and time: the new one until it has said "started", the old
one until it has said its first "go".

Each message is one JSON object in one record of SOCK_SEQPACKET. The state may be megabytes, so it is a memory file of
its own among the descriptors. See docs/decisions/0009.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from flannel_udp.admin.listener import peer_credentials
from flannel_udp.errors import FlannelError
from flannel_udp.handover.in_thread import in_thread
from flannel_udp.handover.state import HandoverState, Terms, read_state, write_state
from flannel_udp.model import Peer

logger = logging.getLogger(__name__)

PROTOCOL = 3
"""Grows with every change of the messages or of `HandoverState`; agents that differ in it do not talk."""
STATE = "state"
"""The name among the descriptors of the memory file with the `HandoverState` and the peers."""

_OFFER_TIMEOUT_S = 15.0
"""For answers that take no work."""
_STATE_TIMEOUT_S = 15.0
"""For the old agent's state, 100,000 peers in it, which it writes beside all that it does."""
_READY_TIMEOUT_S = 15.0
"""For the new agent's preparations, a table of 100,000 routes among them; the old one forwards meanwhile."""
_START_TIMEOUT_S = 10.0
"""For the moment in which nobody forwards. Who has ended is noticed at once; a busy host may hold one up so long."""
_END_TIMEOUT_S = 0.2
_MESSAGE_BYTES = 64 * 1024
_DESCRIPTORS_MAX = 200
"""A message; the kernel takes 253 (SCM_MAX_FD)."""
_STATE_BYTES_MAX = 64 * 1024 * 1024


class Holder(Protocol):
    """What hands over: the agent that runs."""

    def offer(self, terms: Terms) -> tuple[HandoverState, Mapping[str, int]]:
        """Return the state and the descriptors by name. Raises `FlannelError` for what is not to be had."""
        ...

    def peers(self) -> Iterable[Peer]:
        """Return whom packets travel to. Called in a thread, may take long."""
        ...

    @property
    def workers(self) -> int:
        """How many workers there are."""
        ...

    async def commit(self) -> None:
        """Keep what was offered as it is until `resume`, and let who asks anything wait.

        Raises `FlannelError` if it has changed since the offer.
        """
        ...

    def pause(self, worker: int) -> None:
        """Stop a worker and return once all that it had read is sent. Called in a thread, may block."""
        ...

    async def resume(self) -> None:
        """Go on: start all workers that were stopped, take nothing as offered any more, and answer who asks."""
        ...


class HandoverFailed(FlannelError):
    """The other agent ended, was silent for too long, refused, or talked nonsense."""


class Connection:
    """One end of the conversation. Blocking, so for a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.peer_pid, self._peer_uid = peer_credentials(sock)

    def check_peer(self) -> None:
        """Raise `HandoverFailed` unless the other end is root or runs as our own user."""
        uid = self._peer_uid
        if uid not in (0, os.geteuid()):
            raise HandoverFailed(f"user {uid} may not take part in a hand-over: only root and the agent's own user may")

    def send(self, say: str, descriptors: Mapping[str, int] | None = None, **more: Any) -> None:
        """Send a message. Raises `HandoverFailed`."""
        given = descriptors or {}
        message = json.dumps({"say": say, "names": list(given), **more}).encode()
        try:
            self._sock.settimeout(_OFFER_TIMEOUT_S)
            socket.send_fds(self._sock, [message], list(given.values()))
        except OSError as error:
            raise HandoverFailed(f"the other agent has gone: {error.strerror or error}") from error

    def receive(self, timeout_s: float, descriptors: dict[str, int] | None = None) -> dict[str, Any]:
        """Return the next message; descriptors that come with it are put into `descriptors`, or closed.

        The word "gone" stands for the other end's end. Raises `HandoverFailed`.
        """
        fds: list[int] = []
        try:
            self._sock.settimeout(timeout_s)
            try:
                raw, fds, _, _ = self._next()
            except ConnectionResetError:  # it left without reading our last word: what it said before is still here
                raw, fds, _, _ = self._next()
            message = json.loads(raw) if raw else {"say": "gone", "names": []}
            names = message["names"]
            if not isinstance(message["say"], str) or len(names) != len(fds):
                raise ValueError("a message without a word, or descriptors without names")
            if descriptors is not None:
                descriptors.update(zip(names, fds, strict=True))
                fds = []
        except TimeoutError:
            raise HandoverFailed(
                f"process {self.peer_pid} said nothing for {timeout_s:g} s: if it hangs, kill it and start afresh"
            ) from None
        except ConnectionError:
            return {"say": "gone", "names": []}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise HandoverFailed(f"what the other agent said makes no sense: {error}") from error
        finally:
            for fd in fds:
                os.close(fd)
        return dict(message)

    def stop(self) -> None:
        """Let whoever waits for a message, in any thread, go on as if the other end had gone. It may still be told."""
        with contextlib.suppress(OSError):  # it has gone
            self._sock.shutdown(socket.SHUT_RD)

    def _next(self) -> tuple[bytes, list[int], int, Any]:
        return socket.recv_fds(self._sock, _MESSAGE_BYTES, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


def handover_path(control_socket: Path) -> Path:
    """Return where the agent of a control socket can be taken over."""
    return control_socket.with_name(f"{control_socket.name}.handover")


# The old agent


async def serve_handover(accept: Callable[[], Awaitable[socket.socket]], holder: Holder) -> int:
    """Answer who comes in by `accept` until the packet path is handed over; return the pid of the process that has it.

    That also where we are cancelled meanwhile: what is given is not ours any more.
    """
    while True:
        connection = Connection(await accept())
        giving = _Giving(connection, holder)
        try:
            await giving.run()
            return connection.peer_pid
        except FlannelError as failed:
            logger.warning("the take-over by process %d failed, this agent goes on: %s", *(connection.peer_pid, failed))
            giving.refuse(str(failed))
        except asyncio.CancelledError:
            if giving.done:
                return connection.peer_pid
            giving.refuse("this agent was told to stop: start the other one plainly")
            raise
        finally:
            connection.close()


class _Giving:
    """One conversation, with a new agent."""

    def __init__(self, connection: Connection, holder: Holder) -> None:
        self._connection = connection
        self._holder = holder
        self.done = False
        """Whether the other one has it all."""

    async def run(self) -> None:
        """Hand over. Raises `FlannelError`; then nothing has changed."""
        connection, holder = self._connection, self._holder
        connection.check_peer()
        hello = await in_thread(lambda: connection.receive(_OFFER_TIMEOUT_S), connection.stop)
        state, descriptors = _offer(hello, holder)  # on the loop, where what it looks at stands still
        logger.info("process %d takes over", connection.peer_pid)
        try:
            await in_thread(lambda: _give(connection, holder, state, descriptors), connection.stop)
            await holder.commit()  # on the loop, likewise
            await in_thread(self._step_aside, _never_mind)  # some milliseconds, and then it is another's, or it failed
        except FlannelError:
            await holder.resume()
            raise

    def refuse(self, why: str) -> None:
        """Say why nothing is given."""
        with contextlib.suppress(HandoverFailed):
            self._connection.send("refused", why=why)

    def _step_aside(self) -> None:
        _step_aside(self._connection, self._holder)
        self.done = True


def _never_mind() -> None:
    """Let it come to its end."""


def _offer(hello: Mapping[str, Any], holder: Holder) -> tuple[HandoverState, Mapping[str, int]]:
    if hello["say"] != "hello":
        raise HandoverFailed("it did not say hello")
    if hello.get("protocol") != PROTOCOL:
        raise HandoverFailed(
            f"it speaks version {hello.get('protocol')!r} of the hand-over, this agent version {PROTOCOL}: "
            "stop this agent and start the other one plainly"
        )
    return holder.offer(Terms.parse(hello.get("terms")))


def _give(connection: Connection, holder: Holder, state: HandoverState, descriptors: Mapping[str, int]) -> None:
    """Send all that the new agent needs, and return once it has prepared itself. Raises `HandoverFailed`."""
    names = [*descriptors]
    for start in range(0, len(names), _DESCRIPTORS_MAX):
        part = {name: descriptors[name] for name in names[start : start + _DESCRIPTORS_MAX]}
        connection.send("descriptors", part)
    try:
        with os.fdopen(os.memfd_create("flannel-udp handover", os.MFD_CLOEXEC), "wb") as memory:
            write_state(memory, state, holder.peers())
            memory.flush()
            connection.send("state", {STATE: memory.fileno()})
    except OSError as error:  # no descriptor is free, or no memory
        raise HandoverFailed(f"cannot write down what it is to go on with: {error.strerror}") from error
    _expect(connection.receive(_READY_TIMEOUT_S), "ready")


def _step_aside(connection: Connection, holder: Holder) -> None:
    """Let the new agent's workers take the place of ours. Raises `HandoverFailed`; its workers are stopped then."""
    try:
        for worker in range(holder.workers):
            holder.pause(worker)
            connection.send("go", worker=worker, since_s=time.monotonic())
        _expect(connection.receive(_START_TIMEOUT_S), "started")
    except BaseException:
        with contextlib.suppress(HandoverFailed):
            connection.send("taken back")
            connection.receive(_END_TIMEOUT_S)  # until it has stopped what it may have started, and hangs up
        raise
    with contextlib.suppress(HandoverFailed):  # it forwards: what becomes of it is not ours to judge any more
        connection.send("yours")


def _expect(message: Mapping[str, Any], word: str) -> None:
    if message["say"] == "refused":
        raise HandoverFailed(str(message.get("why")))
    if message["say"] != word:
        raise HandoverFailed(f"it said {message['say']!r} instead of {word!r}")


# The new agent


class Offered:
    """What a running agent offers; `descriptors` stay the caller's. Blocking, so for a thread."""

    def __init__(
        self, connection: Connection, state: HandoverState, peers: list[Peer], descriptors: dict[str, int]
    ) -> None:
        self._connection = connection
        self.state = state
        self.peers = peers
        self.descriptors = descriptors
        self.pid = connection.peer_pid
        self.taken = False
        """Whether what was offered is ours."""
        self._may_stop = threading.Lock()
        self._stopped = self._committed = False

    def take(self, workers: int, start: Callable[[int], None], stop: Callable[[], None]) -> float:
        """Have the old agent stop worker after worker, and `start` ours in its place; `stop` stops all of ours.

        Returns for how many seconds packets waited at most. Raises `HandoverFailed`; ours are stopped then, and the old
        agent goes on.
        """
        try:
            waited_s = self._take(workers, start)
            self.taken = True
            return waited_s
        except BaseException:
            stop()
            raise
        finally:
            self._connection.close()

    def _take(self, workers: int, start: Callable[[int], None]) -> float:
        started, waited_s = 0, 0.0
        with contextlib.suppress(HandoverFailed):  # gone: what it said before is still to be read
            self._connection.send("ready")
        while started < workers:
            message = self._connection.receive(_OFFER_TIMEOUT_S)
            if message["say"] == "gone":  # without "taken back": it has died, and what it had is ours
                self._commit()
                for worker in range(started, workers):
                    start(worker)
                return waited_s
            _expect(message, "go")
            start(started)
            waited_s = max(waited_s, time.monotonic() - float(message["since_s"]))
            started += 1
        self._commit()
        with contextlib.suppress(HandoverFailed):  # gone: as above
            self._connection.send("started")
        try:
            message = self._connection.receive(_OFFER_TIMEOUT_S)
        except HandoverFailed:  # it stands still: when it goes on it finds our "started", and ends
            return waited_s
        if message["say"] != "gone":
            _expect(message, "yours")
        return waited_s

    def _commit(self) -> None:
        """From now on the old agent takes it for ours. Raises `HandoverFailed` if we were told to stop before."""
        with self._may_stop:
            if self._stopped:
                raise HandoverFailed("told to stop, the old agent goes on")
            self._committed = True

    def give_up(self) -> None:
        """Have `take`, in another thread, fail soon, unless it is too late."""
        with self._may_stop:
            if not self._committed:
                self._stopped = True
                self._connection.stop()

    def decline(self) -> None:
        """Take nothing: the old agent goes on."""
        self._connection.close()


def reach_agent(control_socket: Path) -> Connection | None:
    """Connect to the agent that runs, ``None`` if none is there. Raises `HandoverFailed`."""
    path = handover_path(control_socket)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)  # one whose backlog is full would let us wait
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise HandoverFailed(f"cannot reach the agent on {path}: {error.strerror or error}") from error
    return Connection(sock)


def ask_handover(connection: Connection, terms: Terms) -> Offered:
    """Ask the agent at the other end for what it has; `Connection.stop` cuts it short.

    Raises `HandoverFailed` when it refuses, or what answers is no agent of this version.
    """
    descriptors: dict[str, int] = {}
    try:
        connection.check_peer()
        connection.send("hello", protocol=PROTOCOL, terms=terms.document())
        while STATE not in descriptors:
            message = connection.receive(_STATE_TIMEOUT_S if descriptors else _OFFER_TIMEOUT_S, descriptors)
            if message["say"] != "descriptors":
                _expect(message, "state")
        return Offered(connection, *_read_state(descriptors.pop(STATE)), descriptors)
    except BaseException as failed:
        for fd in descriptors.values():
            os.close(fd)
        connection.close()
        if isinstance(failed, HandoverFailed):
            raise HandoverFailed(
                f"cannot take over from process {connection.peer_pid}, which goes on: {failed}"
            ) from None
        raise


def _read_state(memory: int) -> tuple[HandoverState, list[Peer]]:
    with open(memory, "rb") as file:
        file.seek(0)  # the position is the writer's, too
        try:
            if os.fstat(memory).st_size > _STATE_BYTES_MAX:
                raise ValueError("it is too long")
            return read_state(file)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise HandoverFailed(f"its state makes no sense: {error}") from error
