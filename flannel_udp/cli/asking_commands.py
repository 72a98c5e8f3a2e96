"""`status` and `peers`: what the agent of this host answers on its control socket."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command, progress, show
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
        peers = client.fetch_probed_peers(path, progress(f"of {n_peers:,} peers asked"))
    else:
        peers = client.fetch_peers(path)
    show(given, peers, show_peers)
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
}
