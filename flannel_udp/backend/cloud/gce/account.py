"""What this host sees and does in Compute Engine. Blocks, see `Account`.

A network's routes are one table. A route of ours has flannel's name for its destination; there is no call that changes
one, so another one in its place is deleted first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.backend.cloud.gce.faults import BUSY, GONE, Refused
from flannel_udp.backend.cloud.gce.identity import Identity
from flannel_udp.backend.cloud.gce.rest import Rest
from flannel_udp.backend.cloud.provider import CloudError, CloudRoute, CloudTable, Leads
from flannel_udp.model import Address, Prefix

LIMITS = (200, None)
"""Static routes a network: the usual quota; how far Google raises it, it does not say."""
PRIORITY = 1000
"""As flannel, and Google where nothing is said, have it."""
NOWHERE = frozenset(
    {
        "NEXT_HOP_INSTANCE_NOT_FOUND",
        "NEXT_HOP_INSTANCE_NOT_ON_NETWORK",
        "NEXT_HOP_NOT_RUNNING",
        "NEXT_HOP_CANNOT_IP_FORWARD",
    }
)
"""Warnings of a route whose packets nobody gets."""
_NOT_STATIC = ("nextHopNetwork", "nextHopPeering", "nextHopHub")
_INSTANCE = re.compile(r"projects/([^/]+)/zones/([^/]+)/instances/([^/]+)$")


class GceAccount:
    """See `Account`."""

    limits = LIMITS

    def __init__(self, identity: Identity, project: str) -> None:
        """`project` has the network. Raises `CloudError` where there are no credentials."""
        self._identity, self._project = identity, project
        self._target = f"{identity.project}/{identity.zone}/{identity.instance}"
        self._table = f"networks/{identity.network}"
        self.here = f"{self._target} in {project}'s network {identity.network}"
        self._ids: dict[Prefix, str] = {}  # of routes that have our names, of the last look
        self._rest = Rest(identity.universe)

    def subnets(self) -> list[IPv4Network]:
        """Return the network's own ranges. Raises `CloudError`."""
        found = [IPv4Network(route["destRange"]) for route in self._routes() if _is_own(route)]
        if not found:
            raise CloudError(
                f"project {self._project} has no network {self._identity.network} with a subnet, and this instance is "
                "in it: correct Backend.Project, or leave it out"
            )
        return found

    def tables(self) -> Sequence[CloudTable]:
        """See `Account.tables`: the network's routes."""
        routes = list(self._routes())
        self._ids.clear()
        return [
            CloudTable(
                self._table,
                tuple(self._read(route) for route in routes if ":" not in route["destRange"]),
                sum(not any(key in route for key in _NOT_STATIC) for route in routes),
            )
        ]

    def _routes(self) -> Iterator[Mapping[str, Any]]:
        network = self._identity.network
        return self._rest.pages(
            "routes.list", f"projects/{self._project}/global/routes", filter=f'network eq ".*/networks/{network}"'
        )

    def _read(self, route: Mapping[str, Any]) -> CloudRoute:
        destination = IPv4Network(route["destRange"])
        instance = _INSTANCE.search(route.get("nextHopInstance", ""))
        target = "/".join(instance.groups()) if instance else _next_hop(route)
        if instance is None or route["name"] != _name(destination):
            return CloudRoute(destination, target, Leads.ELSEWHERE)
        self._ids[destination] = route["id"]
        if target == self._target:
            return CloudRoute(destination, target, Leads.HERE)
        nowhere = any(warning.get("code") in NOWHERE for warning in route.get("warnings", ()))
        return CloudRoute(destination, target, Leads.TO_HOST, nowhere)

    def create(self, table: str, destination: Prefix) -> None:  # noqa: ARG002 - there is one table
        """See `Account.create`."""
        identity, project = self._identity, self._project
        route = {
            "name": _name(destination),
            "network": f"projects/{project}/global/networks/{identity.network}",
            "destRange": str(destination),
            "priority": PRIORITY,
            "nextHopInstance": f"projects/{identity.project}/zones/{identity.zone}/instances/{identity.instance}",
        }
        begun = self._rest.begin("routes.insert", "POST", f"projects/{project}/global/routes", route)
        self._rest.finish(project, "routes.insert", begun)

    def replace(self, table: str, destination: Prefix) -> None:
        """See `Account.replace`: for the moment between two operations there is no route."""
        begun = self._delete(destination)
        if begun is not None:
            self._rest.finish(self._project, "routes.delete", begun)
        self.create(table, destination)

    def remove(self, table: str, destination: Prefix) -> None:  # noqa: ARG002 - there is one table
        """See `Account.remove`: what Google agrees to do is as good as done, and a process that ends cannot wait."""
        self._delete(destination)

    def _delete(self, destination: Prefix) -> Mapping[str, Any] | None:
        """Begin to delete the route that was read, by its id: one that came in its place has the same name.

        Return the operation, ``None`` where it is gone, or about to be.
        """
        path = f"projects/{self._project}/global/routes/{self._ids[destination]}"
        try:
            return self._rest.begin("routes.delete", "DELETE", path)
        except Refused as refused:
            if refused.reason not in (GONE, BUSY):
                raise
            return None

    def addresses_of(self, targets: Collection[str]) -> Mapping[str, frozenset[Address]]:
        """See `Account.addresses_of`: an instance's own addresses, and the public ones that lead to them."""
        found: dict[str, frozenset[Address]] = {}
        for target in sorted(targets):
            try:
                found[target] = frozenset(_addresses(self._instance(target)))
            except Refused as refused:
                if refused.reason != GONE:
                    raise
        return found

    def permit(self) -> bool:
        """See `Account.permit`: canIpForward has to be on. Who may switch it may change anything of an instance."""
        if not self._instance(self._target).get("canIpForward"):
            here = f"{self._identity.instance} --project={self._identity.project} --zone={self._identity.zone}"
            raise CloudError(
                f"canIpForward of {self._identity.instance} is off, so packets with pods' addresses do not pass. To "
                f"switch it on while it runs: gcloud compute instances export {here} --destination=it.yaml, then "
                f"canIpForward: true in that file, then gcloud compute instances update-from-file {here} "
                "--source=it.yaml --most-disruptive-allowed-action=REFRESH"
            )
        return False

    def _instance(self, target: str) -> Mapping[str, Any]:
        project, zone, name = target.split("/")
        found: Mapping[str, Any] = self._rest.get("instances.get", f"projects/{project}/zones/{zone}/instances/{name}")
        return found

    def close(self) -> None:
        """See `Account.close`."""
        self._rest.close()


def _name(destination: Prefix) -> str:
    """Return a route's name, as flannel makes it."""
    return "flannel-" + re.sub(r"[./]", "-", str(destination))


def _is_own(route: Mapping[str, Any]) -> bool:
    """Tell whether the network made it for a subnet of its own."""
    return "nextHopNetwork" in route and ":" not in route["destRange"]


def _next_hop(route: Mapping[str, Any]) -> str:
    """Return the last part of whatever a route leads to: there is one of many keys, and new ones come."""
    hops = (str(value) for key, value in route.items() if key.startswith("nextHop"))
    return next(hops, "?").rpartition("/")[2]


def _addresses(instance: Mapping[str, Any]) -> Iterator[IPv4Address]:
    for each in instance.get("networkInterfaces", ()):
        if own := each.get("networkIP"):
            yield IPv4Address(own)
        for public in each.get("accessConfigs", ()):
            if address := public.get("natIP"):
                yield IPv4Address(address)
