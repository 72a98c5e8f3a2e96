"""Compute Engine's API for tests, a process of its own, as far as routes need it; from Google's REST reference.

    python -m tests.support.gce_server ADDRESS     writes the port that it listens on

It has the projects "my-project" and "other-project", each with the networks "default" and "second", whose subnets it
routes itself. A route's id is new each time that it is made, and does in a path as its name does. Faults are ordered as
`cloud_server.Orders` has it, actions are "routes.list" and so on. POST /test/instances adds instances, POST
/test/failures has the next operations fail with these errors, POST /test/rights is the list of rights that callers
have. An operation is PENDING, then RUNNING, then DONE, and what it does is done then.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.support.cloud_server import CloudServer, Refusal, Request, run

TOKEN = "ya29.of-the-service-account"  # noqa: S105 - it opens nothing
RIGHTS = {
    "routes.list": ["compute.routes.list"],
    "routes.insert": ["compute.routes.create", "compute.networks.updatePolicy"],
    "routes.delete": ["compute.routes.delete"],
    "instances.get": ["compute.instances.get"],
    "globalOperations.get": ["compute.globalOperations.get"],
}
ALL_RIGHTS = sorted({right for rights in RIGHTS.values() for right in rights})
PENDING_S, RUNNING_S = 0.05, 0.15
PAGE = 3
"""Routes a page: Google's have up to 500."""
_PATHS = [
    ("routes.list", "GET", re.compile(r"/projects/([^/]+)/global/routes")),
    ("routes.insert", "POST", re.compile(r"/projects/([^/]+)/global/routes")),
    ("routes.delete", "DELETE", re.compile(r"/projects/([^/]+)/global/routes/([^/]+)")),
    ("instances.get", "GET", re.compile(r"/projects/([^/]+)/zones/([^/]+)/instances/([^/]+)")),
    ("globalOperations.get", "GET", re.compile(r"/projects/([^/]+)/global/operations/([^/]+)")),
]
_HOME = "https://www.googleapis.com/compute/v1/"


@dataclass
class Operation:
    name: str
    begun_s: float
    project: str
    deletes: str | None = None
    inserts: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    settled: bool = False

    def document(self) -> dict[str, Any]:
        """Return how far it is."""
        at_s = time.monotonic() - self.begun_s
        status = "DONE" if self.settled else "PENDING" if at_s < PENDING_S else "RUNNING"
        error = {"error": {"errors": [self.error]}} if self.settled and self.error else {}
        return {"kind": "compute#operation", "name": self.name, "status": status, **error}


@dataclass
class Project:
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)


class ComputeServer(CloudServer):
    """All that there is, in memory."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._projects = {name: Project() for name in ("my-project", "other-project")}
        self._instances: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, Operation] = {}
        self._failures: list[dict[str, str]] = []
        self._rights = ALL_RIGHTS
        self._ids = count(8_000_000_000_000_000_001)
        for name, project in self._projects.items():
            for network, own in (("default", "192.0.2.0/24"), ("second", "198.51.100.0/24")):
                url = f"{_HOME}projects/{name}/global/networks/{network}"
                for route, at, hop in (
                    (f"default-route-{network}", own, {"nextHopNetwork": url}),
                    (f"internet-{network}", "0.0.0.0/0", {"nextHopGateway": f"{_HOME}{name}/default-internet-gateway"}),
                ):
                    project.routes[route] = {"name": route, "id": self._id(), "network": url, "destRange": at, **hop}

    def action(self, request: Request) -> str:
        """See `CloudServer`."""
        return self._find(request)[0]

    def _find(self, request: Request) -> tuple[str, tuple[str, ...]]:
        for action, method, pattern in _PATHS:
            found = pattern.fullmatch(request.path)
            if found and method == request.method:
                return action, found.groups()
        return "?", ()

    def answer(self, request: Request) -> Any:
        """See `CloudServer`."""
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "authError", "Invalid Credentials")
        action, names = self._find(request)
        for right in RIGHTS.get(action, []):
            if right not in self._rights:
                raise Refusal(403, "forbidden", f"Required '{right}' permission for 'projects/{names[0]}'")
        self._settle()
        if action == "instances.get":
            return self._instance("/".join(names))
        if action == "globalOperations.get":
            return self._operations[names[1]].document()
        if action == "?" or names[0] not in self._projects:
            raise Refusal(404, "notFound", f"The resource '{request.path[1:]}' was not found")
        routes = self._projects[names[0]].routes
        if action == "routes.list":
            return self._list(routes, request.query)
        if action == "routes.insert":
            return self._insert(names[0], request.json())
        found = next((name for name, route in routes.items() if names[1] in (name, route["id"])), None)
        if found is None:
            raise Refusal(404, "notFound", f"The resource '{request.path[1:]}' was not found")
        if any(each.deletes == found and not each.settled for each in self._operations.values()):
            raise Refusal(400, "resourceNotReady", f"The resource '{request.path[1:]}' is not ready")
        return self._begin(Operation("", 0.0, names[0], deletes=found))

    def _id(self) -> str:
        return str(next(self._ids))

    def _list(self, routes: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        wanted = re.fullmatch(r'network eq "(.+)"', query.get("filter", 'network eq ".*"'))
        assert wanted
        found = [self._shown(route) for route in routes.values() if re.fullmatch(wanted[1], route["network"])]
        first = int(query.get("pageToken", 0))
        more = {"nextPageToken": str(first + PAGE)} if first + PAGE < len(found) else {}
        # An empty list has no items at all.
        return {"kind": "compute#routeList", **({"items": found[first : first + PAGE]} if found else {}), **more}

    def _shown(self, route: dict[str, Any]) -> dict[str, Any]:
        if "nextHopInstance" not in route:
            return route
        instance = self._instances.get("/".join(route["nextHopInstance"].split("/")[-5::2]))
        if instance is None:
            return {**route, "warnings": [{"code": "NEXT_HOP_INSTANCE_NOT_FOUND"}]}
        if instance["status"] != "RUNNING":
            return {**route, "warnings": [{"code": "NEXT_HOP_NOT_RUNNING"}]}
        if not instance.get("canIpForward"):
            return {**route, "warnings": [{"code": "NEXT_HOP_CANNOT_IP_FORWARD"}]}
        return route

    def _insert(self, project: str, route: dict[str, Any]) -> dict[str, Any]:
        if route["name"] in self._projects[project].routes:
            raise Refusal(409, "alreadyExists", f"The resource 'global/routes/{route['name']}' already exists")
        whole = {**route, "id": self._id(), "network": _HOME + route["network"], "kind": "compute#route"}
        if "nextHopInstance" in route:
            whole["nextHopInstance"] = _HOME + route["nextHopInstance"]
        return self._begin(Operation("", 0.0, project, inserts=whole))

    def _begin(self, operation: Operation) -> dict[str, Any]:
        operation.name, operation.begun_s = f"operation-{len(self._operations)}", time.monotonic()
        operation.error = self._failures.pop(0) if self._failures else None
        self._operations[operation.name] = operation
        return operation.document()

    def _settle(self) -> None:
        """Do what operations do whose time has come."""
        for each in self._operations.values():
            if each.settled or time.monotonic() - each.begun_s < PENDING_S + RUNNING_S:
                continue
            each.settled = True
            routes = self._projects[each.project].routes
            if each.error is None and each.deletes is not None:
                routes.pop(each.deletes, None)
            elif each.error is None and each.inserts is not None:
                routes.setdefault(each.inserts["name"], each.inserts)

    def _instance(self, key: str) -> dict[str, Any]:
        if key not in self._instances:
            raise Refusal(404, "notFound", f"The resource '{key}' was not found")
        return self._instances[key]

    def refusal(self, refusal: Refusal) -> Any:
        """See `CloudServer`."""
        errors = [{"message": refusal.message, "domain": "global", "reason": refusal.code}]
        return {"error": {"code": refusal.status, "message": refusal.message, "errors": errors}}

    def obey(self, path: str, body: bytes) -> Any:
        """See `CloudServer`."""
        with self.lock:
            if path == "/test/instances":
                self._instances |= json.loads(body)
            elif path == "/test/failures":
                self._failures = json.loads(body)
            elif path == "/test/rights":
                self._rights = json.loads(body)
        return super().obey(path, body)


if __name__ == "__main__":
    run(ComputeServer(sys.argv[1]))
