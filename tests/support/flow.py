"""Numbered datagrams from pod to pod while something else happens, and which of them were lost."""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from flannel_udp.dataplane.underlay import SO_RCVBUFFORCE
from flannel_udp.lab.node import Pod
from tests.support.agents import wait_for

_PORT = 9000
_LOOK_S = 0.05
_QUIET_LOOKS = 20
"""So often in a row nothing came after the last one was sent: what is missing then is lost. Counted, not timed, as on a
busy machine a second may pass between two looks."""
_BUFFER_BYTES = 16 << 20


class Flow:
    """Sends one UDP datagram every `interval_s` while the block runs. One flow a target at a time."""

    def __init__(self, source: Pod, target: Pod, interval_s: float = 0.005, version: int = 4) -> None:
        self.hosts = (source.host, target.host)
        self._to = (str(target.address(version)), _PORT)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.interval_s = interval_s
        self._out = source.socket(family, socket.SOCK_DGRAM)
        self._in = target.socket(family, socket.SOCK_DGRAM)
        # What waited for an agent comes at once, and the usual 208 KiB hold 256 packets: more would be lost in here.
        self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._in.bind(self._to)
        self._in.settimeout(_LOOK_S)
        self._ending = threading.Event()
        self._arrived: set[int] = set()
        self.sent = self.doubled = 0
        self.last_arrival_s = -math.inf
        """When the last one arrived, time.monotonic."""
        self._sending = threading.Thread(target=self._send)
        self._receiving = threading.Thread(target=self._receive)

    @property
    def lost(self) -> int:
        """How many never arrived; those on their way count too while the flow runs."""
        return self.sent - len(self._arrived)

    @property
    def missing(self) -> list[int]:
        """The numbers of those that never arrived, in their order."""
        return sorted(set(range(self.sent)) - self._arrived)

    @property
    def newest(self) -> int:
        """The highest number that arrived, -1 for none."""
        return max(self._arrived, default=-1)

    def wait_for_one_sent_from_now(self) -> float:
        """Wait until a datagram arrives that is sent after this call, and return the seconds that took."""
        first = self.sent
        return wait_for("a datagram of the flow arrives", lambda: self.newest >= first)

    def _send(self) -> None:
        while not self._ending.wait(self.interval_s):
            with suppress(
                OSError
            ):  # an ICMP error about an earlier one: this one was not sent, and is lost all the same
                self._out.sendto(struct.pack("!I", self.sent), self._to)
            self.sent += 1

    def _receive(self) -> None:
        quiet_looks = 0
        # As long as it sends: one that is sent when the end has been called for already is not lost, either.
        while self._sending.is_alive() or (self.lost and quiet_looks < _QUIET_LOOKS):
            try:
                (number,) = struct.unpack("!I", self._in.recv(64))
            except TimeoutError:
                quiet_looks += not self._sending.is_alive()
                continue
            self.doubled += number in self._arrived
            self._arrived.add(number)
            quiet_looks, self.last_arrival_s = 0, time.monotonic()

    def __enter__(self) -> Self:
        self._sending.start()
        self._receiving.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end()
        self._out.close()
        self._in.close()

    def end(self) -> None:
        """Send no more, and wait for what is on its way; `lost` and `reordered` are final then."""
        self._ending.set()
        self._sending.join()
        self._receiving.join()
