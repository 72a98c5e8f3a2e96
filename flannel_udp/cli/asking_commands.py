"""`status`, `peers` and `route get`: what the agent of this host answers on its control socket."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks)

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Argument, Command, show
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, PROBE_FLAG


def _status(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_status

    show(given, client.fetch_status(to_options(given).control_socket), show_status)
    return 0


def _peers(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_peers

    path = to_options(given).control_socket
    if given.get("probe"):
        n_peers = client.fetch_status(path)["peers"]
        peers = client.fetch_probed_peers(path, _progress(f"of {n_peers:,} peers asked"))
    else:
        peers = client.fetch_peers(path)
    show(given, peers, show_peers)
    return 0


def _progress(what: str) -> Callable[[int], None]:
    """Return what says on standard error how far a command is, every second once it has taken two."""
    from time import monotonic

    due_s = monotonic() + 2.0

    def say(n: int) -> None:
        nonlocal due_s
        if monotonic() >= due_s:
            due_s = monotonic() + 1.0
            sys.stderr.write(f"flannel-udp: {n:,} {what}\n")

    return say


def _route_get(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_route

    route = client.fetch_route(to_options(given).control_socket, given["ADDRESS"])
    show(given, route, show_route)
    return 0


ASK_FLAGS = (CONTROL_SOCKET_FLAG, JSON_FLAG)

ASKING_COMMANDS: Mapping[str, Command] = {
    "status": Command(
        "show what the agent of this host does: backend, lease, interface, counters, and what is in the way",
        "The agent is asked over its control socket, which only its user may open (root).\n\n"
        "example: flannel-udp status --json",
        _status,
        {"agent": ASK_FLAGS},
    ),
    "peers": Command(
        "list the other hosts, their subnets and what was exchanged with them",
        "Packets and bytes count from the start of the agent; - where the kernel carries them, which does not count\n"
        "by peer. Where there is something to say, columns tell the last ICMP error about packets to a peer, what the\n"
        "path there carries, and what keeps packets from it. With --probe the agent asks each peer by an ICMP echo.\n\n"
        "example: flannel-udp peers --probe",
        _peers,
        {"agent": (*ASK_FLAGS, PROBE_FLAG)},
    ),
    "route get": Command(
        "tell where a packet for an address would go: which peer, prefix and interface, or why nowhere",
        "example: flannel-udp route get 10.1.15.7",
        _route_get,
        {"agent": ASK_FLAGS},
        (Argument("ADDRESS", "an IPv4 or IPv6 address"),),
    ),
}
