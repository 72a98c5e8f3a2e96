"""`metrics`: what Prometheus is told, asked on the control socket."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks)

from __future__ import annotations

import sys
from collections.abc import Mapping

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG


def _metrics(given: Values) -> int:
    from flannel_udp.admin import client

    sys.stdout.write(client.fetch_metrics(to_options(given).control_socket))
    return 0


METRICS_COMMANDS: Mapping[str, Command] = {
    "metrics": Command(
        "print the agent's figures as Prometheus gets them from /metrics, also without --healthz-port",
        "The agent is asked over its control socket, which only its user may open (root). The same without this\n"
        "command: curl --unix-socket /run/flannel/flannel-udp.sock http://localhost/metrics\n\n"
        "example: flannel-udp metrics | promtool check metrics",
        _metrics,
        {"agent": (CONTROL_SOCKET_FLAG,)},
    ),
}
