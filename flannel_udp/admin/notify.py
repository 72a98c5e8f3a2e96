"""Telling systemd how far the agent is (sd_notify(3), services of Type=notify)."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from flannel_udp.levels import QUESTIONS

logger = logging.getLogger(__name__)

_LISTEN_FDS_START = 3  # SD_LISTEN_FDS_START
_PATIENCE_S = 0.05
"""How long a listener may take to make room: only so many messages wait for it, ten unless systemd has raised
net.unix.max_dgram_qlen, and the descriptors of a few workers are more."""
_POLL_S = 0.01
_deaf: set[str] = set()
"""Who has let us wait in vain: not waited for again before it takes a message."""


def notify_ready() -> None:
    """Say that the start is over: traffic flows and subnet.env is written."""
    _send("READY=1")


def notify_status(text: str) -> None:
    """Show one line in ``systemctl status``."""
    _send(f"STATUS={' '.join(text.split())}")


def notify_stopping() -> None:
    """Say that the agent is about to end on purpose."""
    _send("STOPPING=1")


def notify_reloading() -> None:
    """Say that a reload begins; `notify_ready` says that it is over. systemd tells reloads apart by their time."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_s() -> float | None:
    """Return within how many seconds systemd wants a ping, ``None`` if it wants none (sd_watchdog_enabled(3))."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(text) / 1_000_000


async def keep_watchdog(come_round: Callable[[], Awaitable[None]]) -> None:
    """Tell systemd twice in its time that we live, whenever `come_round` returns; without a watchdog end at once.

    That this task runs at all says that the event loop turns; `come_round` speaks for the rest.
    """
    limit_s = watchdog_s()
    if limit_s is None:
        return
    while True:
        try:
            async with asyncio.timeout(limit_s / 4):  # wait_for loses a cancellation before Python 3.12
                await come_round()
        except TimeoutError:
            logger.error("a data thread does not answer: if that lasts, systemd starts the agent again")
        else:
            _send("WATCHDOG=1")
        await asyncio.sleep(limit_s / 2)


def store_descriptors(descriptors: Mapping[str, int], forget: Collection[str] = ()) -> bool:
    """Let systemd keep descriptors by name over a restart, in place of those it has (FileDescriptorStoreMax=).

    It keeps those it has under other names, unless it is to `forget` them. Tell whether it has got all that was said.
    """
    sent = [_send(f"FDSTOREREMOVE=1\nFDNAME={name}") for name in (*forget, *descriptors)]
    for name, fd in descriptors.items():
        # FDPOLL=0: a socket that reports an error, as after an ICMP answer, is as good as before.
        sent.append(_send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd))
    return all(sent)


async def forget_descriptors(names: Collection[str], patience_s: float) -> bool:
    """Have systemd close what it keeps under these names; tell whether it has said, in time, that it has heard it."""
    for name in names:
        _send(f"FDSTOREREMOVE=1\nFDNAME={name}")
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        # Alone in its message. systemd closes the pipe when it has seen all before it.
        sent = _send("BARRIER=1", theirs)
        os.close(theirs)
        return sent and await _hangs_up(ours, patience_s)
    finally:
        os.close(ours)


async def _hangs_up(pipe: int, patience_s: float) -> bool:
    """Tell whether nobody has the other end of the pipe open any more."""
    poll = select.poll()
    poll.register(pipe, 0)  # POLLHUP is reported unasked
    until_s = time.monotonic() + patience_s
    while not poll.poll(0):
        if time.monotonic() >= until_s:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def take_stored_descriptors() -> dict[str, int]:
    """Return the descriptors that systemd kept for us, by name, as sd_listen_fds_with_names(3); they are ours now."""
    environ = os.environ
    listen = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    names = listen["LISTEN_FDNAMES"].split(":")
    if listen["LISTEN_PID"] != str(os.getpid()) or listen["LISTEN_FDS"] != str(len(names)):
        return {}
    found: dict[str, int] = {}
    for fd, name in enumerate(names, start=_LISTEN_FDS_START):
        os.set_inheritable(fd, False)
        if name in found:  # kept twice, since a removal was lost: the newest comes first
            os.close(fd)
        else:
            found[name] = fd
    return found


def _send(message: str, *fds: int) -> bool:
    """Send one datagram to systemd; without NOTIFY_SOCKET, or if nobody takes it, do nothing. Tell whether it went.

    The agent must never fail because its supervisor does not listen, nor wait for it longer than `_PATIENCE_S`.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    # unix(7): a leading zero byte means the abstract namespace, which the environment spells as "@".
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0.0 if name in _deaf else _PATIENCE_S)
            sender.connect(address)  # only then does the kernel tell when the listener has made room
            socket.send_fds(sender, [message.encode()], fds)
        logger.log(QUESTIONS, "told systemd: %r", message)
        _deaf.discard(name)
        return True
    except OSError as error:
        if isinstance(error, TimeoutError | BlockingIOError):
            _deaf.add(name)
        logger.debug("NOTIFY_SOCKET %s does not take %r: %s", name, message, error)
        return False
