"""systemd as far as an agent deals with it: the notify socket, and the store that keeps descriptors over a restart."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from flannel_udp.lab.node import Host
from tests.support.agents import PATIENCE_S, Agent

_LISTEN = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    names, fds, _, _ = socket.recv_fds(sock, 4096, 16)
high = [os.dup2(fd, 200 + number) for number, fd in enumerate(fds)]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode())
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Starts a program with descriptors as systemd does: from 3 on, their names in the environment."""


class Systemd:
    """A service manager for one agent at a time; its sockets are in `folder`. Closes what it keeps at the end."""

    def __init__(self, folder: Path) -> None:
        self._notify, self._hand = folder / "notify", folder / "hand"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._giver = socket.socket(socket.AF_UNIX)
        self._stored: dict[str, int] = {}
        self._ready = False

    def __enter__(self) -> Self:
        self._socket.bind(str(self._notify))
        self._socket.setblocking(False)
        self._giver.bind(str(self._hand))
        self._giver.listen()
        self._giver.settimeout(PATIENCE_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._listen()
        self._socket.close()
        self._giver.close()
        for fd in self._stored.values():
            os.close(fd)

    @contextmanager
    def run(self, host: Host, *arguments: str) -> Iterator[Agent]:
        """Run an agent of that host, with what is stored; the block may end before it."""
        self._listen()
        self._ready = False
        environment = {"NOTIFY_SOCKET": str(self._notify)}
        wrapper = (sys.executable, "-c", _LISTEN, str(self._hand)) if self._stored else ()
        with Agent(host, *arguments, wrapper=wrapper, environment=environment) as agent:
            if self._stored:
                connection, _ = self._giver.accept()
                with connection:
                    socket.send_fds(connection, [":".join(self._stored).encode()], list(self._stored.values()))
            yield agent

    def is_ready(self) -> bool:
        """Tell whether the agent that runs has said so."""
        self._listen()
        return self._ready

    def stored(self) -> list[str]:
        """Return the names of the descriptors that are kept now."""
        self._listen()
        return sorted(self._stored)

    def _listen(self) -> None:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            except BlockingIOError:
                return
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            self._ready |= "READY" in fields
            if "FDSTOREREMOVE" in fields and fields["FDNAME"] in self._stored:
                os.close(self._stored.pop(fields["FDNAME"]))
            if "FDSTORE" in fields:
                (self._stored[fields["FDNAME"]],) = fds
