"""A relay's directions: frames come later, in order, and those that are lost are the same ones each time."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from flannel_udp.lab import netns, relay
from flannel_udp.lab.relay import Direction, carry
from tests.support.patience import PATIENCE_S

N_FRAMES = 2_000


class Line:
    """One direction between two sockets, which keep frames apart as TAP devices do."""

    def __init__(self, stack: ExitStack, *, delay_s: float = 0.0, loss: float = 0.0, seed: str = "1 h1 out") -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        for end in (end for pair in pairs for end in pair):
            stack.enter_context(end).setblocking(False)
        (self._sender, source), (target, self._receiver) = pairs
        self.direction = Direction(source.fileno(), target.fileno(), delay_s=delay_s, loss=loss, seed=seed)

    def send(self, number: int, length: int = 4) -> None:
        self._sender.send(number.to_bytes(4, "big").ljust(length))
        self.direction.take()

    def received(self) -> list[int]:
        self.direction.give()
        found = []
        while True:
            try:
                found.append(int.from_bytes(self._receiver.recv(100_000)[:4], "big"))
            except BlockingIOError:
                return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def passed(line: Line) -> list[int]:
    """Return which of many frames arrive."""
    found = []
    for number in range(N_FRAMES):
        line.send(number)
        found += line.received()
    return found


def test_a_perfect_line_carries_all_in_order(stack: ExitStack) -> None:
    assert passed(Line(stack)) == list(range(N_FRAMES))


def test_the_same_frames_are_lost_for_the_same_seed_and_as_many_as_was_said(stack: ExitStack) -> None:
    one, again, other = (passed(Line(stack, loss=0.05, seed=seed)) for seed in ("1 h1 out", "1 h1 out", "2 h1 out"))
    assert one == again != other
    for found in (one, other):
        assert 0.03 < 1 - len(found) / N_FRAMES < 0.07
    assert passed(Line(stack, loss=1.0)) == []


def test_no_frame_is_early_and_all_keep_their_order(stack: ExitStack) -> None:
    line = Line(stack, delay_s=0.05)
    sent_s = time.monotonic()
    line.send(1)
    line.send(2)
    due_s = line.direction.due_s
    assert due_s is not None
    assert due_s >= sent_s + 0.05
    found: list[int] = []
    while len(found) < 2:
        more = line.received()
        assert not more or time.monotonic() >= sent_s + 0.05
        found += more
    assert found == [1, 2]
    assert line.direction.due_s is None


def test_what_is_too_much_at_once_is_lost_by_its_bytes_and_there_is_room_again(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_UNDER_WAY_BYTES", 100_000)
    line = Line(stack, delay_s=0.01)
    for first in (0, 10):
        for number, length in enumerate((65_000, 4, 65_000, 9_000, 30_000)):
            line.send(first + number, length)
        time.sleep(0.01)
        assert line.received() == [first, first + 1, first + 3]


def test_many_short_frames_do_not_fill_the_memory_either(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_UNDER_WAY_BYTES", 10_000)
    line = Line(stack, delay_s=0.01)
    for number in range(1_000):
        line.send(number)
    time.sleep(0.01)
    found = line.received()
    size = sum(sys.getsizeof(each) for each in (b"1234", 1.0, (1.0, b"1234")))
    assert 10 < len(found) <= 10_000 / size


def test_frames_go_both_ways_until_an_end_is_gone(stack: ExitStack) -> None:
    (one, near), (far, other) = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    for end in (one, near, far, other):
        stack.enter_context(end)
    for end in (near, far):
        end.setblocking(False)
    settings = {"delay_s": 0.001, "loss": 0.0}
    carrying = threading.Thread(
        daemon=True, target=carry, args=(near.fileno(), far.fileno()), kwargs={**settings, "seed": "1"}
    )
    carrying.start()
    for sender, receiver in ((one, other), (other, one)):
        receiver.settimeout(PATIENCE_S)
        sender.send(b"frame")
        assert receiver.recv(10) == b"frame"
    other.send(b"what nobody reads makes the end of the line an error, as that of a TAP device is")
    assert netns.is_readable(one.fileno(), PATIENCE_S)
    one.close()
    carrying.join(PATIENCE_S)
    assert not carrying.is_alive()


def test_a_relay_that_finds_no_device_says_why_in_a_line() -> None:
    ends = ("--near", "no-such", "eth0", "--far", "no-such", "h1")
    argv = [sys.executable, "-m", "flannel_udp.lab.relay", *ends, "--delay-ms", "1", "--loss", "0", "--seed", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "there is no network namespace no-such\n")
