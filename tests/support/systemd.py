"""systemd as far as an agent deals with it: the notify socket, and the store that keeps descriptors over a restart."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from flannel_udp.lab import netns
from flannel_udp.lab.node import Host
from tests.support.agents import Agent, wait_for
from tests.support.patience import PATIENCE_S

_LISTEN = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    names, fds, _, _ = socket.recv_fds(sock, 4096, 200)
high = [os.dup2(fd, 200 + number) for number, fd in enumerate(fds)]
for fd in fds:
    os.close(fd)
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names.decode())
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Starts a program with descriptors as systemd does: from 3 on, their names in the environment."""


CLOSE_S = 0.2
"""systemd closes a descriptor in a process of its own, after it has taken note of the removal (asynchronous_close)."""


def open_notify_socket(host: Host, path: Path) -> socket.socket:
    """Return a notify socket for who hears now and then: what the host's agent says meanwhile is not lost.

    By default the kernel keeps ten datagrams and lets the sender wait; systemd has it keep 512, too. The socket does
    not block, and is the caller's.
    """
    netns.write_sysctls(host.namespace, {"unix/max_dgram_qlen": 512})
    sock = host.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.setblocking(False)
    return sock


class Systemd:
    """A service manager for one agent at a time; its sockets are in `folder`.

    It listens all the time, and has copies of its own of what it keeps, until it is told to remove them, or the end.
    """

    def __init__(self, folder: Path) -> None:
        self._notify, self._hand = folder / "notify", folder / "hand"
        self._socket: socket.socket | None = None
        self._giver = socket.socket(socket.AF_UNIX)
        self._stored: list[tuple[str, int]] = []  # as systemd's, newest first
        self._closing: list[threading.Timer] = []
        self._one_at_a_time = threading.Lock()
        self._ready = False
        self._heard = threading.Event()
        self._over = threading.Event()
        self._listening: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._giver.bind(str(self._hand))
        self._giver.listen()
        self._giver.settimeout(PATIENCE_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._listening is not None and self._socket is not None:
            self._listening.join()
            self._socket.close()
        self._giver.close()
        for timer in self._closing:
            timer.join()
        for _name, fd in self._stored:
            os.close(fd)

    @contextmanager
    def run(self, host: Host, *arguments: str) -> Iterator[Agent]:
        """Run an agent of that host, with what is stored; the block may end before it."""
        if self._listening is None:
            self._socket = open_notify_socket(host, self._notify)
            self._socket.settimeout(0.05)
            self._listening = threading.Thread(target=self._listen, args=(self._socket,))
            self._listening.start()
        self._hear_out()
        self._ready = False
        environment = {"NOTIFY_SOCKET": str(self._notify)}
        with self._one_at_a_time:
            stored = list(self._stored)
        wrapper = (sys.executable, "-c", _LISTEN, str(self._hand)) if stored else ()
        with Agent(host, *arguments, wrapper=wrapper, environment=environment) as agent:
            if stored:
                connection, _ = self._giver.accept()
                with connection:
                    names = ":".join(name for name, _ in stored)
                    socket.send_fds(connection, [names.encode()], [fd for _, fd in stored])
            yield agent

    def is_ready(self) -> bool:
        """Tell whether the agent that runs has said so."""
        return self._ready

    def stored(self) -> list[str]:
        """Return the names of the descriptors that are kept now."""
        self._hear_out()
        with self._one_at_a_time:
            return sorted(name for name, _ in self._stored)

    def wait_stored(self, names: list[str]) -> None:
        """Wait until just these are kept: sockets that are bound anew, to an address that came late, are kept anew."""
        wait_for(f"kept: {names}", lambda: self.stored() == names)

    def _hear_out(self) -> None:
        """Wait until note is taken of all that was said by now; who said it may have ended since."""
        self._heard.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"HEARD=1", str(self._notify))
        assert self._heard.wait(PATIENCE_S)

    def _listen(self, sock: socket.socket) -> None:
        while not self._over.is_set():
            try:
                message, fds, _, _ = socket.recv_fds(sock, 4096, 4)
            except TimeoutError:
                continue
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            with self._one_at_a_time:
                if "FDSTOREREMOVE" in fields:
                    self._remove(fields["FDNAME"])
                if "FDSTORE" in fields:
                    self._stored.insert(0, (fields["FDNAME"], fds.pop()))
            for fd in fds:  # a barrier's
                os.close(fd)
            self._ready |= "READY" in fields  # last: what came before it is done
            if "HEARD" in fields:
                self._heard.set()

    def _remove(self, name: str) -> None:
        for stored in [each for each in self._stored if each[0] == name]:
            self._stored.remove(stored)
            timer = threading.Timer(CLOSE_S, os.close, stored[1:])
            timer.start()
            self._closing.append(timer)
