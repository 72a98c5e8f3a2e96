"""What the server keeps: nodes and pods with their resource versions, and the history from which watches go on."""

from __future__ import annotations

import uuid
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tests.kube_api.merge import strategic_merge

Object = dict[str, Any]


class Refused(Exception):
    """What ends as a Status object: HTTP code, machine-readable reason, message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.headers: dict[str, str] = {}

    @property
    def status(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True)
class Event:
    """One change of a node."""

    version: int
    kind: str
    node: Object


class Store:
    """Belongs to the server's loop."""

    def __init__(self) -> None:
        self.version = 1000
        self.nodes: dict[str, Object] = {}
        self.pods: dict[tuple[str, str], Object] = {}
        self.history: list[Event] = []
        self._oldest = self.version  # watches from here on can be served
        self._lists: dict[int, list[Object]] = {}  # what lists in parts go on with

    # What a test does.

    def add_node(self, name: str, pod_cidr: str | None = None, **annotations: str) -> None:
        """Add a node as a kubelet and the controller manager do; ``_`` in an annotation's name means ``-``."""
        prefixed = {f"flannel.alpha.coreos.com/{key.replace('_', '-')}": text for key, text in annotations.items()}
        spec = {} if pod_cidr is None else {"podCIDR": pod_cidr.split(",")[0], "podCIDRs": pod_cidr.split(",")}
        self.put_node(name, {"metadata": {"annotations": prefixed}, "spec": spec})

    def put_node(self, name: str, node: Object) -> None:
        """Add a node as it is given."""
        metadata = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z"}
        node["metadata"] = metadata | node.get("metadata", {})
        # A fresh node, before its network is there.
        node.setdefault("status", {"conditions": [{"type": "NetworkUnavailable", "status": "True"}]})
        self._write("ADDED", {"kind": "Node", "apiVersion": "v1", **node})

    def change_node(self, name: str, patch: Object) -> None:
        """Change anything of a node, as somebody with all rights; annotations by their full names."""
        self._write("MODIFIED", strategic_merge(self.nodes[name], patch))

    def annotate(self, name: str, **annotations: str | None) -> None:
        prefixed = {f"flannel.alpha.coreos.com/{key.replace('_', '-')}": text for key, text in annotations.items()}
        self.change_node(name, {"metadata": {"annotations": prefixed}})

    def heartbeat(self, name: str) -> None:
        """Do what a kubelet does every few minutes."""
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": f"beat {self.version}"}
        self.change_node(name, {"status": {"conditions": [ready]}})

    def delete_node(self, name: str) -> None:
        self._write("DELETED", self.nodes[name])
        del self.nodes[name]

    def forget(self) -> None:
        """Compact: nothing before now can be watched, and no list goes on."""
        self._oldest = self.version
        self.history.clear()
        self._lists.clear()

    def back_up(self) -> tuple[int, dict[str, Object]]:
        """Return what `restore` takes."""
        return self.version, deepcopy(self.nodes)

    def restore(self, backup: tuple[int, dict[str, Object]]) -> None:
        """Go back to what was then, as etcd does that is restored from a backup: versions go back as well."""
        self.version, self.nodes = backup
        self.forget()

    def annotations(self, name: str) -> dict[str, str]:
        """Return the flannel annotations of a node without their prefix."""
        said: dict[str, str] = self.nodes[name]["metadata"].get("annotations", {})
        return {key.partition("/")[2]: text for key, text in said.items()}

    def condition(self, name: str, kind: str = "NetworkUnavailable") -> Object:
        return next(c for c in self.nodes[name]["status"]["conditions"] if c["type"] == kind)

    # What a client does.

    def get(self, resource: str, namespace: str, name: str) -> Object:
        found = self.nodes.get(name) if resource == "nodes" else self.pods.get((namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def list_nodes(self, limit: int, token: str) -> Object:
        version, start = map(int, token.split("-")) if token else (self.version, 0)
        if token and version not in self._lists:
            raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list")
        nodes = self._lists.setdefault(version, [deepcopy(self.nodes[name]) for name in sorted(self.nodes)])
        end = start + limit if limit else len(nodes)
        metadata: Object = {"resourceVersion": str(version)}
        if end < len(nodes):
            metadata |= {"continue": f"{version}-{end}", "remainingItemCount": len(nodes) - end}
        return {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": nodes[start:end]}

    def since(self, version: int) -> list[Event]:
        if version < self._oldest:
            raise Refused(410, "Expired", f"too old resource version: {version} ({self._oldest})")
        return [event for event in self.history if event.version > version]

    def patch_status(self, name: str, patch: Object) -> Object:
        """Merge a patch of the status subresource, which leaves spec alone but not the annotations."""
        node = self.get("nodes", "", name)
        wanted = patch.get("metadata", {})
        if wanted.get("uid", node["metadata"]["uid"]) != node["metadata"]["uid"]:
            raise Refused(422, "Invalid", f'Node "{name}" is invalid: metadata.uid: field is immutable')
        if wanted.get("resourceVersion", node["metadata"]["resourceVersion"]) != node["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", f'Operation cannot be fulfilled on nodes "{name}": it has been modified')
        merged = strategic_merge(node, {key: patch[key] for key in ("metadata", "status") if key in patch})
        if merged != node:  # what changes nothing is no event
            self._write("MODIFIED", merged)
        return self.nodes[name]

    def _write(self, kind: str, node: Object) -> None:
        self.version += 1
        node = deepcopy(node)
        node["metadata"]["resourceVersion"] = str(self.version)
        self.nodes[node["metadata"]["name"]] = node
        self.history.append(Event(self.version, kind, deepcopy(node)))
