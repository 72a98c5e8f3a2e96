"""`cloud routes`: what is in the provider's route tables, and what the agent of this host does in them."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command, show
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG


def _routes(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show_cloud import show_cloud_routes

    document = client.fetch_cloud_routes(to_options(given).control_socket)
    show(given, document, show_cloud_routes)
    return 0 if document["error"] is None else 1


CLOUD_COMMANDS: Mapping[str, Command] = {
    "cloud routes": Command(
        "list the overlay's routes in the provider's route tables, and what this host is about to do with each",
        "For aws-vpc, ali-vpc, gce and tencent-vpc, by the last look, at most some 75 s ago; asking does nothing.\n"
        "own: to this host. missing: to this host, and not there yet. peer: another host's. stale: of a host that is\n"
        "gone, or of a former subnet; one host removes these after 5 minutes. unknown, foreign: left alone.\n"
        "exit codes: 0 the last look was one, 1 it failed, or there is no agent or no such backend.\n\n"
        "example: flannel-udp cloud routes",
        _routes,
        {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
    ),
}
