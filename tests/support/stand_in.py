"""What listens on an agent's control socket, and is none, or is of another version."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.patience import PATIENCE_S


@contextmanager
def answering(path: Path, answer: bytes, *, hangs: bool = False) -> Iterator[None]:
    """Answer one question with this, which is the end, or hang: say no more until the end of the block."""
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE_S)

        def serve() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(65_536)
                connected.sendall(answer)
                if not hangs:
                    connected.shutdown(socket.SHUT_WR)
                over.wait()  # to close before all of a request is read would reset the answer

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield
        finally:
            over.set()
            server.join()
