"""Packets as the data path sees them, for somebody on the control socket who captures them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator

from flannel_udp import __version__
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.dataplane.capture import Capture, describe_records
from flannel_udp.errors import FlannelError
from flannel_udp.model import CaptureWish

TAKE_EVERY_S = 0.02
TELL_EVERY_S = 0.5
MUCH_BYTES = 256 << 10
"""Where that much has come in the meantime, there is no pause but for the others on the loop."""


class Capturing:
    """One capture at a time: rings and the work of noting are spent once, and only while somebody reads."""

    def __init__(self, state: AgentState) -> None:
        self._state = state
        self._whose: int | None = None

    async def watch(self, wish: CaptureWish, pid: int) -> AsyncGenerator[bytes, None]:
        """Yield a line about the records, then parts of them as they come, see `dataplane.capture`; `pid` reads them.

        Twice a second there is a part, be it an empty one. In between nothing is yielded where nothing has come, so
        that who is not read any more notices. Raises `FlannelError`.
        """
        if self._whose is not None:
            whose = (
                f"process {self._whose}" if self._whose else "a process that is not seen from here"
            )  # of a container
            raise FlannelError(f"{whose} captures packets of this agent already, and one can at a time: end that first")
        rooms = self._state.rooms
        if rooms is None:
            raise FlannelError(f"there are no packets yet: {self._state.phrase}")
        if not rooms.network.engines():
            raise FlannelError(_where_else(rooms))
        self._whose = pid
        try:
            capture = Capture(rooms.network.engines, wish)
            try:
                head = json.dumps({"version": __version__, "pid": os.getpid(), **describe_records()}).encode() + b"\n"
                yield head + capture.take(even_none=True)
                clock = asyncio.get_running_loop().time
                told_s = clock()
                while True:
                    part = capture.take(even_none=clock() >= told_s + TELL_EVERY_S)
                    told_s = clock() if part else told_s
                    yield part
                    await asyncio.sleep(0 if len(part) > MUCH_BYTES else TAKE_EVERY_S)
            finally:
                await capture.close()
        finally:
            self._whose = None


def _where_else(rooms: Rooms) -> str:
    """Say what shows the packets that never pass us."""
    facts, external = rooms.network.facts(), rooms.upkeep.external.name
    none_passes = f"with {rooms.backend.type} the kernel carries packets, and none passes the agent"
    if facts.device is None:
        networks = " or ".join(f"net {overlay}" for overlay in rooms.config.overlays)
        return f"{none_passes}: tcpdump -ni {external} '{networks}' shows them"
    inner = " and ".join(f"tcpdump -ni {device}" for device in (facts.device, facts.device_v6) if device is not None)
    outer = f"proto {facts.ip_protocol}" if facts.port is None else f"udp port {facts.port}"
    return f"{none_passes}: {inner} shows the inner ones, tcpdump -ni {external} '{outer}' the outer ones"
