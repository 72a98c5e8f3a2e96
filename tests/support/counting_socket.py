"""How often a socket asks the kernel."""

from __future__ import annotations

import socket
from typing import Any


class CountingSocket(socket.socket):
    """A real socket whose system calls are counted; to be put in place of `socket.socket`."""

    sent = 0

    def send(self, *arguments: Any) -> int:
        CountingSocket.sent += 1
        return super().send(*arguments)


def counted() -> int:
    """Return how often something was sent since this was asked last."""
    sent, CountingSocket.sent = CountingSocket.sent, 0
    return sent
