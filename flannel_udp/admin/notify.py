"""Telling systemd how far the agent is (sd_notify(3), services of Type=notify)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


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
            await asyncio.wait_for(come_round(), limit_s / 4)
        except TimeoutError:
            logger.error("a data thread does not answer: if that lasts, systemd starts the agent again")
        else:
            _send("WATCHDOG=1")
        await asyncio.sleep(limit_s / 2)


def _send(message: str) -> None:
    """Send one datagram to systemd; without NOTIFY_SOCKET, or if nobody takes it, do nothing.

    The agent must never fail or wait because its supervisor does not listen.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    # unix(7): a leading zero byte means the abstract namespace, which the environment spells as "@".
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), address)
    except OSError as error:
        logger.debug("NOTIFY_SOCKET %s does not take %r: %s", name, message, error)
