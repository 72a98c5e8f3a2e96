"""What `bench serve` and `bench run --to` say to each other: JSON objects, a line each, over one TCP connection.

    run     {"want": "hello", "format": 1}
    serve   {"format": 1, "overlay": "10.244.2.0", "mtu": 1472, "machine": "AMD EPYC, 2 cores, …", "lacks": []}
    run     {"want": "iperf3", "at": "overlay"}     or "reach", which only takes a connection; "underlay"
    serve   {"listening": true}
    run     {"want": "stop"}
    serve   {"stopped": true}
    run     {"want": "datagrams", "at": "underlay", "window_ms": 2000}     0: all of them, until none comes any more
    serve   {"listening": true}
    run     {"want": "counted"}
    serve   {"packets": 812345, "seconds": 2.0}

Where it cannot do what is wanted, serve says {"error": "…"} and hangs up; `lacks` is what it would need for datagrams.
Nothing else can be asked of it: what it runs is iperf3 for one test, or a counter of datagrams, at its two addresses.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from flannel_udp.errors import FlannelError

FORMAT = 1
PORT = 5200
IPERF3_PORT = 5201
"""iperf3's own; "reach" is at this one, too, so that what a firewall drops is found before anything is measured."""
_LONGEST = 4096
"""Bytes of a line."""


class Conversation:
    """One end of the connection; `who` is the other one, for errors."""

    def __init__(self, sock: socket.socket, who: str) -> None:
        self.sock, self.who = sock, who
        self._read = b""

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a line. Raises `FlannelError` where nobody takes it."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise FlannelError(f"{self.who}: {error.strerror or error}") from None

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message. Raises `FlannelError` where none comes in time, or what comes is none."""
        deadline_s = time.monotonic() + timeout_s
        while (message := self.read()) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self.sock], [], [], left_s)[0]:
                raise FlannelError(f"{self.who} has said nothing for {timeout_s:g} s")
            self.receive()
        return message

    def receive(self) -> None:
        """Take in what has come, which must be something. Raises `FlannelError` at the end of the connection."""
        try:
            part = self.sock.recv(_LONGEST)
        except OSError as error:
            raise FlannelError(f"{self.who}: {error.strerror or error}") from None
        if not part:
            raise FlannelError(f"{self.who} has hung up")
        self._read += part

    def read(self) -> dict[str, Any] | None:
        """Return a message that has come whole, ``None`` if there is none. Raises `FlannelError` for what is none."""
        line, end, rest = self._read.partition(b"\n")
        if len(line) > _LONGEST:
            raise FlannelError(f"{self.who} does not speak as bench serve and bench run do: a line without end")
        if not end:
            return None
        self._read = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise FlannelError(f"{self.who} does not speak as bench serve and bench run do")
        return message
