"""`monitor`: what happens to the agent of this host, a line an event, as it happens."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG
from flannel_udp.errors import FlannelError

if TYPE_CHECKING:
    from flannel_udp.admin.shapes import Event

SUCCESSOR_S = 5.0
"""How long another agent is waited for after the one that was watched has ended."""
_POLL_S = 0.1


def _monitor(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show_event import event_line

    def line_of(event: Event) -> str:
        return json.dumps(event) if given.get("json") else event_line(event)

    path = to_options(given).control_socket
    while True:
        for event in client.follow_events(path):
            sys.stdout.write(f"{line_of(event)}\n")
            sys.stdout.flush()
        _wait_for_successor(path)


def _wait_for_successor(path: Path) -> None:
    """Return once an agent answers, which may have taken over from the former one. Raises `FlannelError`."""
    from flannel_udp.admin import client

    deadline_s = time.monotonic() + SUCCESSOR_S
    while True:
        time.sleep(_POLL_S)
        try:
            client.fetch_status(path)
        except client.AgentAway:
            if time.monotonic() >= deadline_s:
                raise FlannelError(f"the agent on {path} has ended, and no other one came") from None
        else:
            return


MONITOR_COMMANDS: Mapping[str, Command] = {
    "monitor": Command(
        "tell what happens, a line an event: leases, peers, readiness, problems, repairs, drops",
        "Until it is interrupted. An agent that takes over is followed, its first line names it; the exit code is 1\n"
        "where an agent ends and no other one comes within 5 s. Drops and repairs are summed up each second. Who\n"
        "reads too slowly loses events, and is told how many. With --json a document a line.\n\n"
        "example: flannel-udp monitor",
        _monitor,
        {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
    ),
}
