"""What Kubernetes nodes say about leases: spec.podCIDRs is the subnet, flannel's annotations are the value. Pure."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flannel_udp.model import Entry, LeaseAttrs

logger = logging.getLogger(__name__)

Lease = tuple[str, bytes]
"""Key and value of an entry, as flannel has them in etcd; neither is checked."""


@dataclass(frozen=True, slots=True)
class KubeNode:
    """What concerns us of a node object."""

    name: str
    uid: str
    resource_version: str
    annotations: Mapping[str, str]
    pod_cidrs: tuple[str, ...]

    @property
    def subnet_key(self) -> str | None:
        """The key, as flannel writes it, of the IPv4 podCIDR, ``None`` while there is none.

        Of a dual-stack node only IPv4 is taken: this agent carries nothing else, and no less because of it.
        """
        v4 = [cidr for cidr in self.pod_cidrs if ":" not in cidr]
        return v4[0].replace("/", "-") if v4 else None


def parse_node(document: Any) -> KubeNode:
    """Read a node object. Raises `ValueError` with one line if it is none."""
    try:
        metadata, spec = document["metadata"], document.get("spec") or {}
        # Older servers and hand-made nodes have podCIDR only.
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        node = KubeNode(
            metadata["name"],
            metadata.get("uid", ""),
            metadata.get("resourceVersion", ""),
            metadata.get("annotations") or {},
            tuple(cidrs),
        )
        texts = (node.name, node.uid, node.resource_version, *node.pod_cidrs, *node.annotations.values())
    except (AttributeError, KeyError, TypeError):
        raise ValueError("an object that is no node") from None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a node with fields of wrong types")
    return node


class Annotations:
    """flannel's annotations below one prefix: what they are called and what they mean."""

    def __init__(self, prefix: str) -> None:
        if "/" not in prefix:
            prefix += "/"
        elif not prefix.endswith(("/", "-")):
            prefix += "-"
        self._manager = f"{prefix}kube-subnet-manager"
        self._type = f"{prefix}backend-type"
        self._data = f"{prefix}backend-data"
        self._v6_data = f"{prefix}backend-v6-data"
        self._public_ip = f"{prefix}public-ip"
        self._public_ipv6 = f"{prefix}public-ipv6"
        self.overwrite = f"{prefix}public-ip-overwrite"
        """Set by an administrator: what other hosts dial instead of the address that the agent found."""

    def is_managed(self, node: KubeNode) -> bool:
        """Tell whether an agent has registered the node."""
        return node.annotations.get(self._manager) == "true"

    def is_overwritten(self, node: KubeNode) -> bool:
        """Tell whether the node's public IP is the one an administrator gave it."""
        wanted = node.annotations.get(self.overwrite)
        return bool(wanted) and node.annotations.get(self._public_ip) == wanted

    def value(self, node: KubeNode, public_ip: str | None = None) -> bytes:
        """Return what flannel would write to etcd for the node, with another `public_ip` if one is given.

        Nothing is checked: a wrong address ends as an entry that is ignored with a warning, as in etcd.
        """
        said = node.annotations
        fields: dict[str, Any] = {
            "PublicIP": said.get(self._public_ip, "") if public_ip is None else public_ip,
            "PublicIPv6": said.get(self._public_ipv6) or None,
        }
        if said.get(self._type):
            fields["BackendType"] = said[self._type]
        for name, annotation in (("BackendData", self._data), ("BackendV6Data", self._v6_data)):
            data = _read_json(said.get(annotation, "null"))
            if data is not None:
                fields[name] = data
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")

    def changes(self, node: KubeNode, attrs: LeaseAttrs) -> dict[str, str]:
        """Return the annotations that differ from what `attrs` asks for; the administrator's public IP goes first."""
        wanted = {
            self._manager: "true",
            self._type: attrs.backend_type,
            self._data: json.dumps(attrs.backend_data, separators=(",", ":")),
            self._public_ip: node.annotations.get(self.overwrite) or str(attrs.public_ip),
        }
        return {name: text for name, text in wanted.items() if node.annotations.get(name) != text}


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # only other backends have data, and the value is as good as ignored


class Numbering:
    """Gives entries their revisions: how many changes this process has seen, whichever way it saw them.

    A node's own resourceVersion grows with every heartbeat of its kubelet, and is nothing to compare by order.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._entries: dict[str, Entry] = {}

    def entry(self, lease: Lease) -> Entry:
        """Return the entry, with the revision it has if that is how it was seen last."""
        key, value = lease
        known = self._entries.get(key)
        if known is None or known.value != value:
            self.revision += 1
            known = self._entries[key] = Entry(key, value, self.revision)
        return known

    def forget(self, key: str) -> None:
        """Note that the entry is gone."""
        if self._entries.pop(key, None) is not None:
            self.revision += 1


class NodeTable:
    """Nodes go in, entries and what changed of them come out.

    `lease_of` tells what a node holds. Should two nodes have one podCIDR, the one called `own` counts, else the first
    by name.
    """

    def __init__(self, own: str, lease_of: Callable[[KubeNode], Lease | None], numbering: Numbering) -> None:
        self._own = own
        self._lease_of = lease_of
        self._numbering = numbering
        self._leases: dict[str, Lease] = {}
        self._holders: dict[str, set[str]] = {}
        self.entries: dict[str, Entry] = {}

    def fill(self, nodes: Iterable[KubeNode]) -> None:
        """Take in the nodes of a list, all before any counts."""
        self._settle({key for node in nodes for key in self._set(node.name, self._lease_of(node))})

    def put(self, node: KubeNode) -> dict[str, Entry | None]:
        """Take in a node as it is now and return the entries that changed; most of what nodes report is none."""
        return self._settle(self._set(node.name, self._lease_of(node)))

    def remove(self, name: str) -> dict[str, Entry | None]:
        """Forget a node and return the entries that changed."""
        return self._settle(self._set(name, None))

    def _set(self, name: str, lease: Lease | None) -> set[str]:
        """Note what a node holds and return the keys that this concerns."""
        before = self._leases.get(name)
        if lease == before:
            return set()
        if before is not None:
            del self._leases[name]
            self._holders[before[0]].remove(name)
        if lease is not None:
            self._leases[name] = lease
            others = self._holders.setdefault(lease[0], set())
            if others and (before is None or before[0] != lease[0]):
                logger.warning("nodes %s have one podCIDR, %s", ", ".join(map(repr, sorted({*others, name}))), lease[0])
            others.add(name)
        return {held[0] for held in (before, lease) if held is not None}

    def _settle(self, keys: set[str]) -> dict[str, Entry | None]:
        """Bring the entries of these keys up to date and return those that changed."""
        changed: dict[str, Entry | None] = {}
        for key in keys:
            holders = self._holders[key]
            if not holders:
                del self._holders[key], self.entries[key]
                self._numbering.forget(key)
                changed[key] = None
                continue
            holder = min(holders, key=lambda name: (name != self._own, name))
            entry = self._numbering.entry(self._leases[holder])
            if entry != self.entries.get(key):
                self.entries[key] = changed[key] = entry
        return changed
