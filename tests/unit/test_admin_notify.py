"""systemd's notification protocol, over real datagram sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from flannel_udp.admin import notify
from flannel_udp.admin.notify import (
    forget_descriptors,
    keep_watchdog,
    notify_ready,
    notify_reloading,
    notify_status,
    notify_stopping,
    watchdog_s,
)
from tests.support.patience import PATIENCE_S


def test_the_three_messages_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_status("waiting for\na lease")
        notify_ready()
        notify_stopping()
        assert [systemd.recv(1000) for _ in range(3)] == [b"STATUS=waiting for a lease", b"READY=1", b"STOPPING=1"]


def test_an_abstract_socket_works(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"flannel-udp-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(PATIENCE_S)
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


def test_a_supervisor_that_is_slow_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_PATIENCE_S", 30.0)  # on a busy machine the reader may not run for some 50 ms
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def read() -> None:
            while heard[-1:] != [b"STOPPING=1"]:
                time.sleep(0.001)
                heard.append(systemd.recv(1000))

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(200):
            notify_status(f"{number}")
        notify_stopping()
        reader.join()
    assert heard == [b"STATUS=%d" % number for number in range(200)] + [b"STOPPING=1"]


def test_a_supervisor_that_does_not_read_cannot_block_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(3_000):  # net.unix.max_dgram_qlen is far less
            notify_status("still here")
        systemd.settimeout(PATIENCE_S)
        assert systemd.recv(1000) == b"STATUS=still here"


def test_a_reload_has_its_time_in_the_same_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_reloading()
        first, second = systemd.recv(1000).decode().split("\n")
        assert first == "RELOADING=1"
        assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500000", "ours", 0.5),
        ("30000000", "1", None),  # meant for another process, which left us its environment
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_watchdogs_time_is_read_as_sd_watchdog_enabled_does(
    usec: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is None:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert watchdog_s() == seconds


async def test_pings_stop_while_something_does_not_come_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns = asyncio.Event()
    turns.set()

    async def come_round() -> None:
        await turns.wait()

    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        loop = asyncio.get_running_loop()
        watchdog = asyncio.create_task(keep_watchdog(come_round))
        try:
            for _ in range(2):
                assert await asyncio.wait_for(loop.sock_recv(systemd, 1000), PATIENCE_S) == b"WATCHDOG=1"
            turns.clear()
            with caplog.at_level(logging.ERROR):
                async with asyncio.timeout(PATIENCE_S):
                    while not caplog.records:
                        await asyncio.sleep(0.01)
                with suppress(BlockingIOError):
                    while True:  # some may have been on their way
                        systemd.recv(1000)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(systemd, 1000), 0.5)
            assert {record.getMessage() for record in caplog.records} == {
                "a data thread does not answer: if that lasts, systemd starts the agent again"
            }
            turns.set()
            assert await asyncio.wait_for(loop.sock_recv(systemd, 1000), PATIENCE_S) == b"WATCHDOG=1"
        finally:
            watchdog.cancel()


async def test_without_a_watchdog_the_task_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    async def never() -> None:
        raise AssertionError("nobody asked")

    await asyncio.wait_for(keep_watchdog(never), PATIENCE_S)


# What systemd keeps


async def test_forgetting_is_over_when_systemd_has_seen_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        forgetting = asyncio.create_task(forget_descriptors(["tun-0", "icmp"], 30.0))
        heard = [await asyncio.to_thread(systemd.recv, 1000) for _ in range(2)]
        message, fds, _, _ = await asyncio.to_thread(socket.recv_fds, systemd, 1000, 4)
        assert [*heard, message] == [b"FDSTOREREMOVE=1\nFDNAME=tun-0", b"FDSTOREREMOVE=1\nFDNAME=icmp", b"BARRIER=1"]
        assert not forgetting.done()
        for fd in fds:
            os.close(fd)
        assert await asyncio.wait_for(forgetting, PATIENCE_S)


async def test_nobody_is_waited_for_who_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not await asyncio.wait_for(forget_descriptors(["tun-0"], 30.0), PATIENCE_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert not await asyncio.wait_for(forget_descriptors(["tun-0"], 0.05), PATIENCE_S)


KEPT = """
import os
from flannel_udp.admin.notify import take_stored_descriptors
for fd in (3, 4, 5):
    os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
os.environ["LISTEN_PID"] = str(os.getpid())
print(take_stored_descriptors(), [fd for fd in (3, 4, 5) if os.path.exists(f"/proc/self/fd/{fd}")])
"""


def test_of_what_is_kept_twice_the_newest_counts() -> None:
    environ = {**os.environ, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "icmp:tun-0:icmp"}
    done = subprocess.run([sys.executable, "-c", KEPT], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "{'icmp': 3, 'tun-0': 4} [3, 4]\n"
