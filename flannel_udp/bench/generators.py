"""What every measure needs: the span and the settings it works with, and servers that run while it does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select

from flannel_udp.errors import FlannelError
from flannel_udp.lab.compiled import compiled
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

GRACE_S = 60.0
"""What a load generator may take longer than asked to before it is killed."""
BLAST_PORT = 5202
"""UDP, where datagrams are counted."""
WARM_UP_MS = 200
_SILENCE_MS = 250
_BLAST_SOURCE = Path(__file__).with_name("blast.c")


@dataclass(frozen=True, slots=True)
class Load:
    """How the load is made: for how long, and with which TCP congestion control; empty is the machine's default."""

    seconds: int
    congestion_control: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What one end of blast counted."""

    packets: int
    seconds: float

    @property
    def pps(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds


def parse_blast(text: str) -> Counted:
    """Return what blast.c reports. Raises `FlannelError` if it broke off or counted no packet."""
    try:
        counted = json.loads(text)
    except ValueError:
        raise FlannelError(f"blast gave no result: {text.strip() or '(nothing)'}") from None
    if counted["packets"] == 0:
        raise FlannelError(f"no datagram arrived (UDP port {BLAST_PORT})")
    return Counted(counted["packets"], counted["seconds"])


def build_blast() -> Path:
    """Return the load generator, which is compiled once a process. Raises `FlannelError` where that fails."""
    return compiled(_BLAST_SOURCE)


def iperf3_server(node: Runner, address: Address) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run an iperf3 server for one test at an address, inside the block."""
    return server(node, ["iperf3", "-s", "-1", "--forceflush", "-B", str(address)], "Server listening")


@contextmanager
def datagram_receiver(node: Runner, address: Address, window_ms: int) -> Iterator[Callable[[], Counted]]:
    """Receive datagrams at an address, inside the block; see `Way.datagram_receiver`."""
    how = ("receive", [str(WARM_UP_MS), str(window_ms)]) if window_ms else ("count", [str(_SILENCE_MS)])
    command = [str(build_blast()), how[0], str(address), str(BLAST_PORT), *how[1]]
    with server(node, command, "ready") as receiver:

        def counted() -> Counted:
            assert receiver.stdout is not None  # noqa: S101 - `server` made it a pipe
            if not select([receiver.stdout], [], [], window_ms / 1000 + GRACE_S)[0]:
                raise FlannelError("blast counts and counts: datagrams come without end")
            return parse_blast(receiver.stdout.readline())

        yield counted


@contextmanager
def server(node: Runner, command: list[str], greeting: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server inside the block, which begins once the server has printed its greeting."""
    with node.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line
                if greeting in line:
                    break
            else:
                raise FlannelError(f"{node.path}: `{' '.join(command)}` ended: {said.strip() or '(nothing said)'}")
            yield process
        finally:
            process.kill()  # no fault if it has ended by itself
