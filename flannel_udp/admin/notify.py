"""Telling systemd how far the agent is (sd_notify(3), services of Type=notify)."""

from __future__ import annotations

import logging
import os
import socket

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
