"""What Kubernetes nodes say about leases: spec.podCIDRs is the subnet, flannel's annotations are the value. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from types import MappingProxyType
from typing import Any, NamedTuple

from flannel_udp.model import Entry, LeaseAttrs
from flannel_udp.registry.keys import MAX_VALUE_BYTES

SETTLED_AT_ONCE = 200

NO_IPV4 = "0.0.0.0/0"
"""Stands for the podCIDR of a node without IPv4, as in flannel's keys; its public IP is 0.0.0.0."""
NOWHERE = NO_IPV4.partition("/")[0]

MAX_REASON_CHARS = 200
"""Of a condition's reason and message, which are for people."""


class Lease(NamedTuple):
    """Key and value of an entry, as flannel has them in etcd; neither is checked. See `Entry.kept_off`."""

    key: str
    value: bytes
    kept_off: str | None = None


@dataclass(frozen=True, slots=True)
class KubeNode:
    """What concerns us of a node object."""

    name: str
    uid: str
    resource_version: str
    annotations: Mapping[str, str]
    pod_cidrs: tuple[str, ...]
    unavailable: str | None = None
    """Why its network is said to be unavailable, which keeps pods off it; ``None`` where it is not."""

    def subnet_key(self, versions: Collection[int]) -> str | None:
        """Return the key, as flannel writes it, of the first podCIDR of each family; ``None`` while there is none.

        Kubernetes' order means nothing here: IPv4 goes first. Of the families only those count that are on, by IP
        `versions`, unless the node has none of them.
        """
        found = {6 if ":" in cidr else 4: cidr for cidr in reversed(self.pod_cidrs)}  # the first one of each
        counting = {version: cidr for version, cidr in found.items() if version in versions} or found
        v4, v6 = counting.get(4), counting.get(6)
        if v6 is None:
            return None if v4 is None else v4.replace("/", "-")
        with suppress(ValueError):  # what is none is said of the key
            v6 = str(IPv6Network(v6)) if "/" in v6 else v6
        return f"{v4 or NO_IPV4}&{v6}".replace("/", "-")


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
            _read_unavailable(document.get("status")),
        )
        texts = (node.name, node.uid, node.resource_version, *node.pod_cidrs, *node.annotations.values())
    except (AttributeError, KeyError, TypeError):
        raise ValueError("an object that is no node") from None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a node with fields of wrong types")
    return node


def _read_unavailable(status: Any) -> str | None:
    """Return the reason and the message of the condition NetworkUnavailable where it is true; nothing is relied on."""
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for condition in conditions if isinstance(conditions, list) else []:
        if not isinstance(condition, dict) or condition.get("type") != "NetworkUnavailable":
            continue
        if condition.get("status") != "True":
            return None
        texts = (condition.get("reason"), condition.get("message"))
        text = ": ".join(text for text in texts if text and isinstance(text, str))[:MAX_REASON_CHARS]
        return " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "no reason given"
    return None


class Annotations:
    """flannel's annotations below one prefix: what they are called and what they mean."""

    def __init__(self, prefix: str) -> None:
        if "/" not in prefix:
            prefix += "/"
        elif not prefix.endswith(("/", "-")):
            prefix += "-"
        self._manager = f"{prefix}kube-subnet-manager"
        self._type = f"{prefix}backend-type"
        self._data = {4: f"{prefix}backend-data", 6: f"{prefix}backend-v6-data"}
        self._public_ip = {4: f"{prefix}public-ip", 6: f"{prefix}public-ipv6"}
        self.overwrite = {version: f"{name}-overwrite" for version, name in self._public_ip.items()}
        """By IP version; set by an administrator: what others dial instead of the address that the agent found."""
        self._of_interface = {
            version: f"{prefix}node-{name[len(prefix) :]}" for version, name in self._public_ip.items()
        }

    def unread(self, node: KubeNode) -> dict[str, str]:
        """Return by name what chooses flanneld's interface before it starts, where the node says something else now."""
        said = node.annotations
        return {
            name: said[name]
            for version, name in self._of_interface.items()
            if said.get(name) and said[name] != said.get(self._public_ip[version])
        }

    def is_managed(self, node: KubeNode) -> bool:
        """Tell whether an agent has registered the node."""
        return node.annotations.get(self._manager) == "true"

    def overwritten(self, node: KubeNode) -> dict[int, str]:
        """Return which of the node's public IPs are those that an administrator gave it, by IP version."""
        wanted = {version: node.annotations.get(name) for version, name in self.overwrite.items()}
        said = node.annotations
        return {
            version: text for version, text in wanted.items() if text and said.get(self._public_ip[version]) == text
        }

    def value(self, node: KubeNode, instead: Mapping[int, str] = MappingProxyType({})) -> bytes:
        """Return what flannel would write to etcd for the node, with the public IPs of `instead` if there are any.

        Nothing is checked: a wrong address ends as an entry that is ignored with a warning, as in etcd. A node that is
        registered by IPv6 alone may say nothing of a public IP.
        """
        said = node.annotations
        v4, v6 = (instead.get(version, said.get(self._public_ip[version], "")) for version in (4, 6))
        fields: dict[str, Any] = {"PublicIP": v4 or (NOWHERE if v6 else ""), "PublicIPv6": v6 or None}
        if said.get(self._type):
            fields["BackendType"] = said[self._type]
        for name, version in (("BackendData", 4), ("BackendV6Data", 6)):
            data = _read_json(said.get(self._data[version], "null"))
            if data is not None:
                fields[name] = data
        value = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")
        return value[: MAX_VALUE_BYTES + 1]  # what is longer is refused, and a server may hold much of it

    def public_ips(self, node: KubeNode) -> tuple[str, str]:
        """Return the addresses that the node says it is dialled at, that of IPv4 first; empty for none."""
        return node.annotations.get(self._public_ip[4], ""), node.annotations.get(self._public_ip[6], "")

    def changes(self, node: KubeNode, attrs: LeaseAttrs) -> dict[str, str | None]:
        """Return the annotations that differ from what `attrs` asks for, ``None`` for those that have to go.

        An administrator's public IP goes first. A host without IPv4 says 0.0.0.0; one without IPv6 nothing of it.
        """
        wanted: dict[str, str | None] = {
            self._manager: "true",
            self._type: attrs.backend_type,
            self._data[4]: _format_json(attrs.backend_data),
            self._public_ip[4]: NOWHERE,
            self._data[6]: None if attrs.public_ipv6 is None else _format_json(attrs.backend_v6_data),
            self._public_ip[6]: None,
        }
        for version, name in self._public_ip.items():
            address = attrs.address_of(version)
            if address is not None:
                wanted[name] = node.annotations.get(self.overwrite[version]) or str(address)
        return {name: text for name, text in wanted.items() if node.annotations.get(name) != text}


def _format_json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


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

    def entry(self, lease: Lease, node: str) -> Entry:
        """Return the entry of what that node holds, with the revision it has if that is how it was seen last."""
        key, value, _ = lease
        known = self._entries.get(key)
        if known is None or known.value != value or known.host != node:
            self.revision += 1
            known = self._entries[key] = Entry(key, value, self.revision, host=node)
        return known

    def forget(self, key: str) -> None:
        """Note that the entry is gone."""
        if self._entries.pop(key, None) is not None:
            self.revision += 1


def _all_of(entry: Entry) -> tuple[object, ...]:
    """Return an entry with what does not count where entries are compared."""
    return entry, entry.rivals, entry.kept_off


class NodeTable:
    """Nodes go in, entries and what changed of them come out.

    `lease_of` tells what a node holds. Should several nodes have one podCIDR, the one called `own` counts, else the
    first by name, and the others are its rivals.
    """

    def __init__(self, own: str, lease_of: Callable[[KubeNode], Lease | None], numbering: Numbering) -> None:
        self._own = own
        self._lease_of = lease_of
        self._numbering = numbering
        self._leases: dict[str, Lease] = {}
        self._holders: dict[str, set[str]] = {}
        self._unsettled: set[str] = set()  # keys of nodes that were added
        self.entries: dict[str, Entry] = {}

    def add(self, node: KubeNode) -> None:
        """Take in a node of a list; none of them counts before `settle`."""
        self._unsettled |= self._set(node.name, self._lease_of(node))

    def settle(self) -> Iterator[None]:
        """Let the nodes count that were added, some at each step."""
        while self._unsettled:
            self._settle({self._unsettled.pop() for _ in range(min(SETTLED_AT_ONCE, len(self._unsettled)))})
            yield

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
            self._holders[before.key].remove(name)
        if lease is not None:
            self._leases[name] = lease
            self._holders.setdefault(lease.key, set()).add(name)
        return {held.key for held in (before, lease) if held is not None}

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
            holder, *rivals = sorted(holders, key=lambda name: (name != self._own, name))
            lease = self._leases[holder]
            entry = self._numbering.entry(lease, holder)
            if rivals or lease.kept_off:
                entry = replace(entry, rivals=tuple(rivals), kept_off=lease.kept_off)
            known = self.entries.get(key)
            if known is None or _all_of(entry) != _all_of(known):
                self.entries[key] = changed[key] = entry
        return changed
