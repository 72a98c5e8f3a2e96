"""systemd's notification protocol, over real datagram sockets."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from flannel_udp.admin.notify import notify_ready, notify_status, notify_stopping


def test_the_three_messages_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_status("waiting for\na lease")
        notify_ready()
        notify_stopping()
        assert [systemd.recv(1000) for _ in range(3)] == [b"STATUS=waiting for a lease", b"READY=1", b"STOPPING=1"]


def test_an_abstract_socket_works(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"flannel-udp-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify_ready()
        assert systemd.recv(1000) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "relative", "vsock:2:1234", "/nowhere/notify", "/" + "x" * 200, "@gone"])
def test_without_a_listener_nothing_happens(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notify_ready()
    notify_status("x")
    notify_stopping()


def test_a_supervisor_that_does_not_read_cannot_block_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(3_000):  # net.unix.max_dgram_qlen is far less
            notify_status("still here")
        systemd.settimeout(5)
        assert systemd.recv(1000) == b"STATUS=still here"
