"""`status`: what the agent of this host says of itself on its control socket."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks)

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import QUIET_S, Command, show
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, Flag
from flannel_udp.cli.parsers import parse_wait
from flannel_udp.errors import FlannelError

if TYPE_CHECKING:
    from flannel_udp.admin.shapes import Status


_POLL_S = 0.2

_WAIT_FLAG = Flag(
    "wait",
    "until it is ready, or so long: --wait=90s, --wait=5m; --wait alone is 30s",
    "TIME",
    parse_wait,
    switch=True,
    in_environment=False,
)


def _status(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_status

    path, wait_s = to_options(given).control_socket, given.get("wait")
    status = client.fetch_status(path) if wait_s is None else _wait(path, wait_s)
    show(given, status, show_status)
    if wait_s is None or status["ready"]:
        return 0
    sys.stderr.write(f"flannel-udp: not ready within {wait_s:g} s: {status['state']}\n")
    return 1


def _wait(path: Path, wait_s: float) -> Status:
    """Return the status once the agent is ready, or the last one. Raises `FlannelError` where no agent came."""
    from flannel_udp.admin import client

    began_s, said = time.monotonic(), ""
    status: Status | None = None
    while True:
        left_s = began_s + wait_s - time.monotonic()
        try:
            status = client.fetch_status(path, min(client.TIMEOUT_S, max(left_s, _POLL_S)))
        except client.AgentAway:
            if left_s <= 0:
                raise
            state = "there is no agent yet"
        except client.AgentSlow:
            if left_s <= 0 and status is None:
                raise FlannelError(f"the agent on {path} did not answer within {wait_s:g} s") from None
            state = "it does not answer yet"
        else:
            state = status["state"]
        if status is not None and (status["ready"] or left_s <= 0):
            return status
        if sys.stderr.isatty() and state != said and time.monotonic() >= began_s + QUIET_S:
            said = state
            sys.stderr.write(f"flannel-udp: not ready: {state}\n")
        time.sleep(min(_POLL_S, max(left_s, 0.0)))


ASKING_COMMANDS: Mapping[str, Command] = {
    "status": Command(
        "show what the agent of this host does: backend, lease, interface, counters, and what is in the way",
        "The agent is asked over its control socket, which only its user may open (root). What went wrong last with\n"
        "interface, configuration, lease, watch, firewall and backend is told, also when it is over.\n"
        "exit codes: 0 the agent answered, ready or not; with --wait 0 it is ready, 1 it was not by then.\n\n"
        "example: flannel-udp status --wait=60s",
        _status,
        {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG, _WAIT_FLAG)},
    ),
}
