"""One TCP connection from pod to pod, and whether every byte arrived as it was sent."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import closing
from types import TracebackType
from typing import Self

from flannel_udp.lab.node import Pod
from tests.support.patience import PATIENCE_S

_CHUNK_BYTES = 1 << 18


class Transfer:
    """Sends `n_bytes`, or with `endless` those again and again while the block runs; its end waits for all of them."""

    def __init__(self, source: Pod, target: Pod, n_bytes: int, *, endless: bool = False, version: int = 4) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._data = random.Random(n_bytes).randbytes(n_bytes)
        self._pattern = self._data + self._data[:_CHUNK_BYTES]
        self._over = threading.Event()
        if not endless:
            self._over.set()
        self._sent_bytes = self.received_bytes = 0
        self._first_fault: int | None = None
        self._listener = target.socket(family, socket.SOCK_STREAM)
        self._listener.settimeout(PATIENCE_S)
        self._listener.bind((str(target.address(version)), 0))
        self._listener.listen(1)
        self._out = source.socket(family, socket.SOCK_STREAM)
        self._out.settimeout(3 * PATIENCE_S)
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        with closing(self._out):
            self._out.connect(self._listener.getsockname())
            while True:
                self._out.sendall(self._data)
                self._sent_bytes += len(self._data)
                if self._over.is_set():
                    return

    def _receive(self) -> None:
        connection, _ = self._listener.accept()
        with closing(connection):
            connection.settimeout(PATIENCE_S)
            while chunk := connection.recv(_CHUNK_BYTES):
                place = self.received_bytes % len(self._data)
                if self._first_fault is None and chunk != self._pattern[place : place + len(chunk)]:
                    self._first_fault = self.received_bytes
                self.received_bytes += len(chunk)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        if error is None:
            assert 0 < len(self._data) <= self._sent_bytes == self.received_bytes
            assert self._first_fault is None, f"a byte after the first {self._first_fault} is wrong"
