"""One TCP transfer from pod to pod of a given size, and whether every byte of it arrived as it was sent."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import closing
from types import TracebackType
from typing import Self

from flannel_udp.lab.node import Pod
from tests.support.agents import PATIENCE_S

_CHUNK_BYTES = 1 << 18


class Transfer:
    """Sends `n_bytes` while the block runs; the end of the block waits for them and compares."""

    def __init__(self, source: Pod, target: Pod, n_bytes: int) -> None:
        self._data = random.Random(n_bytes).randbytes(n_bytes)
        self._received = bytearray()
        self._listener = target.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.settimeout(PATIENCE_S)
        self._listener.bind((str(target.ip), 0))
        self._listener.listen(1)
        self._out = source.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._out.settimeout(3 * PATIENCE_S)
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    @property
    def received_bytes(self) -> int:
        """How much has arrived so far."""
        return len(self._received)

    def _send(self) -> None:
        with closing(self._out):
            self._out.connect(self._listener.getsockname())
            self._out.sendall(self._data)

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        with closing(connection):
            connection.settimeout(PATIENCE_S)
            while chunk := connection.recv(_CHUNK_BYTES):
                self._received += chunk

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for thread in self._threads:
            thread.join()
        self._listener.close()
        if error is None:
            assert len(self._received) == len(self._data)
            assert self._received == self._data
