"""What systemd keeps over a restart: what it did not get it is told again."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flannel_udp.backend.protocol import Network
from flannel_udp.handover.stored import Store


def test_what_a_busy_systemd_did_not_get_it_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    path = SimpleNamespace(generation=(0, 0), descriptors=lambda: {"tun-0": 0, "udp-0": 0})
    store = Store(cast(Network, SimpleNamespace(transferable=path)), {"former": 0})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        _fill(tmp_path / "notify")
        store.update()  # there is no room for one of its messages
        _read(systemd)
        store.update()
        said = _read(systemd)
        assert said[-2:] == ["FDSTORE=1\nFDNAME=tun-0\nFDPOLL=0", "FDSTORE=1\nFDNAME=udp-0\nFDPOLL=0"]
        assert sorted(said[:-2]) == [f"FDSTOREREMOVE=1\nFDNAME={name}" for name in ("former", "tun-0", "udp-0")]
        store.update()
        assert _read(systemd) == []  # nothing is new


def _fill(notify: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(str(notify))
        try:
            while True:
                sender.send(b"WATCHDOG=1")
        except BlockingIOError:
            pass


def _read(systemd: socket.socket) -> list[str]:
    said: list[str] = []
    with ExitStack() as read:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(systemd, 4096, 4)
            except BlockingIOError:
                return said
            for fd in fds:
                read.callback(os.close, fd)
            said.append(message.decode())
