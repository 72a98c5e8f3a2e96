"""`route get` and `route list`: where packets go, as the agent of this host has it."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

import sys
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Argument, Command, show
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, Flag
from flannel_udp.cli.parsers import parse_listen_ip, parse_network
from flannel_udp.errors import FlannelError

if TYPE_CHECKING:
    from flannel_udp.admin.shapes import RouteRow
    from flannel_udp.model import Prefix

_FILTERS = (
    Flag("subnet", "only what this network overlaps with", "CIDR", parse_network, in_environment=False),
    Flag("peer", "only what leads to the host with this public IP", "IP", parse_listen_ip, in_environment=False),
)


def _get(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_json, show_route

    path, addresses = to_options(given).control_socket, client.read_addresses(given["ADDRESS"])
    routes = [client.fetch_route(path, address) for address in addresses]
    if given.get("json"):
        show_json(routes if len(routes) > 1 else routes[0], sys.stdout)
    else:
        for route in routes:
            show_route(route, sys.stdout)
    return 0 if all(route["verdict"] in ("peer", "own subnet") for route in routes) else 1


def _list(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_json, show_routes

    subnet, peer = given.get("subnet"), given.get("peer")
    routes = client.fetch_routes(to_options(given).control_socket)
    found = [route for route in routes if _is_wanted(route, subnet, peer)]
    if not found and (subnet is not None or peer is not None):
        if given.get("json"):
            show_json(found, sys.stdout)
        wanted = " ".join(f"--{name}={given[name]}" for name in ("subnet", "peer") if name in given)
        raise FlannelError(f"none of {len(routes):,} routes is one of {wanted}")
    show(given, found, show_routes)
    return 0


def _is_wanted(route: RouteRow, subnet: Prefix | None, peer: str | None) -> bool:
    if peer is not None and ("public_ip" not in route or ip_address(route["public_ip"]) != ip_address(peer)):
        return False
    if subnet is None:
        return True
    covered = ip_network(route["subnet"])
    return covered.version == subnet.version and covered.overlaps(subnet)


ROUTE_COMMANDS: Mapping[str, Command] = {
    "route get": Command(
        "tell where packets for these addresses would go: which peer, prefix and interface, or why nowhere",
        "With --json one document, or for several addresses a list of them.\n"
        "exit codes: 0 each goes to a peer or is of this host's own subnet, 1 one has no route, 2 wrong usage.\n\n"
        "example: flannel-udp route get 10.1.15.7 10.1.16.1",
        _get,
        {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
        (Argument("ADDRESS", "an IPv4 or IPv6 address", "+"),),
    ),
    "route list": Command(
        "list where packets go, one line a subnet, as the data path has it (the kernel, where that carries packets)",
        "This host's own subnet is among them; a route that is not there although its peer is says why.\n"
        "The exit code is 1 where --subnet or --peer leave none.\n\n"
        "example: flannel-udp route list --peer=192.0.2.2",
        _list,
        {"which": _FILTERS, "agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
    ),
}
