"""The registry that Kubernetes is: nodes instead of keys, and every node's podCIDR is its lease.

Kubernetes hands out the subnets and never takes them back while the node lives, so all entries are reservations: none
expires and none is picked by us. The network configuration is a file, usually from a ConfigMap.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError
from flannel_udp.model import Change, Entry, LeaseAttrs, Snapshot
from flannel_udp.options import KubeOptions
from flannel_udp.registry.keys import parse_key, parse_value
from flannel_udp.registry.kube.client import Expired, KubeClient, NotFound
from flannel_udp.registry.kube.nodes import Annotations, KubeNode, Lease, NodeTable, Numbering
from flannel_udp.registry.kube.options import open_http, read_identity
from flannel_udp.registry.outage import Outage

logger = logging.getLogger(__name__)

REOPEN_S = 1.0
"""Pause before a watch that the server ended is opened again: nothing is missed meanwhile, and nothing spins."""
REWRITE_S = 10.0
"""What somebody else wrote over our annotations is left alone for so long: two agents must not chase each other."""


class KubeRegistry:
    """See `flannel_udp.registry.Registry`. Nothing is created or deleted here: nodes are not ours to make."""

    def __init__(self, options: KubeOptions, environ: Mapping[str, str] = os.environ) -> None:
        self._options = options
        self._identity = read_identity(environ)
        self._client = KubeClient(open_http(options))
        self._annotations = Annotations(options.annotation_prefix)
        self._numbering = Numbering()
        self._own_name = self._identity.node
        self._attrs: LeaseAttrs | None = None  # what we registered last
        self._written = (b"", 0.0)  # our own value as we wrote it last, and when

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        path = self._options.net_config_path
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise ConfigMissing(f"--net-config-path {path}: there is no such file; mount the ConfigMap there") from None
        except OSError as error:
            raise RegistryDenied(f"--net-config-path {path}: {error.strerror}") from None

    async def write_config(self, raw: bytes) -> None:  # noqa: ARG002 - the protocol's
        """See `Registry.write_config`: in Kubernetes that is a matter of the ConfigMap."""
        raise RegistryDenied("with Kubernetes the network configuration is in a ConfigMap: use kubectl")

    async def assigned(self) -> Entry:
        """See `Registry.assigned`: the entry that our node's podCIDR makes, its value empty before we register."""
        node = await self._own_node()
        key, value = self._own_lease(node)
        try:
            parse_key(key)
        except ValueError as error:
            raise RegistryError(f"node {node.name!r}: podCIDR {key.replace('-', '/')!r}: {error}") from None
        written, written_s = self._written
        if value and written and value != written and time.monotonic() - written_s < REWRITE_S:
            raise RegistryError(
                f"node {node.name!r}: somebody else writes its annotations, now {value.decode()}: does another agent "
                "run under this node's name?"
            )
        return self._numbering.entry((key, value))

    async def announce_up(self) -> None:
        """See `Registry.announce_up`: clear the condition that keeps pods off the node."""
        if not self._options.set_node_network_unavailable:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        }
        await self._client.patch_node_status(await self._find_own_name(), {"status": {"conditions": [condition]}})
        logger.info("told Kubernetes that the network of node %s is available", self._own_name)

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        table = NodeTable(await self._find_own_name(), self._lease, self._numbering)
        nodes, _ = await self._client.list_nodes()
        table.fill(nodes)
        return Snapshot(table.entries, self._numbering.revision)

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - the protocol's
        """See `Registry.create`: a subnet comes with its node."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {key} cannot be taken")

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - nothing expires
        """See `Registry.renew`: register our node, in its annotations."""
        node = await self._unchanged(entry)
        self._attrs = attrs = parse_value(value)
        changes = self._annotations.changes(node, attrs)
        if changes:
            # The uid makes the server refuse the patch if another node came in this one's place.
            patch = {"metadata": {"uid": node.uid, "annotations": changes}}
            node = await self._client.patch_node_status(node.name, patch)
            if self._annotations.is_overwritten(node):
                overwrite = node.annotations[self._annotations.overwrite]
                logger.info("other hosts reach this one at %s: %s says so", overwrite, self._annotations.overwrite)
        lease = self._own_lease(node)
        self._written = (lease[1], time.monotonic())
        return self._numbering.entry(lease)

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`: a subnet goes with its node."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {entry.key} cannot be given back")

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`: there is no end."""
        await self._unchanged(entry)
        return None

    async def watch(self) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`. After an outage the watch goes on where it was; only lost history means a snapshot."""
        outage = Outage(logger)
        table: NodeTable | None = None  # None: a snapshot is due
        version = ""
        while True:
            try:
                if table is None:
                    fresh = NodeTable(await self._find_own_name(), self._lease, self._numbering)
                    nodes, version = await self._client.list_nodes()
                    fresh.fill(nodes)
                    table = fresh
                    outage.over()
                    yield Snapshot(dict(table.entries), self._numbering.revision)
                async with aclosing(self._client.watch_nodes(version)) as events:
                    async for event in events:
                        outage.over()
                        _require_progress(version, event.resource_version)
                        version = event.resource_version
                        if event.node is None:
                            continue
                        changed = table.remove(event.node.name) if event.deleted else table.put(event.node)
                        if changed:
                            yield Change(changed, self._numbering.revision)
                await asyncio.sleep(REOPEN_S)
            except RegistryDenied:
                raise
            except Expired as error:
                table = None
                await outage.wait(error)
            except RegistryError as error:
                await outage.wait(error)

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._client.close()

    async def _find_own_name(self) -> str:
        if not self._own_name:
            namespace, pod = self._identity.namespace, self._identity.pod
            self._own_name = await self._client.get_pods_node(namespace, pod)
            if not self._own_name:
                raise RegistryError(f"pod {namespace}/{pod} says nothing of its node: set NODE_NAME")
        return self._own_name

    async def _own_node(self) -> KubeNode:
        name = await self._find_own_name()
        try:
            node = await self._client.get_node(name)
        except NotFound as error:
            raise NotFound(f"{error}: is {name!r} (NODE_NAME) the node's name in `kubectl get nodes`?") from None
        if node.subnet_key is None:
            raise RegistryError(
                f"node {name!r} has no IPv4 podCIDR: run kube-controller-manager with --allocate-node-cidrs and "
                "--cluster-cidr (kubeadm init --pod-network-cidr)"
            )
        return node

    async def _unchanged(self, entry: Entry) -> KubeNode:
        """Return our node. Raises `LeaseLost` unless it is still as `entry` says."""
        try:
            node = await self._own_node()
        except NotFound as error:
            raise LeaseLost(str(error)) from None
        key, value = self._own_lease(node)
        if key != entry.key:
            raise LeaseLost(f"node {node.name!r} has another podCIDR now, {key.replace('-', '/')}")
        if value != entry.value:
            raise LeaseLost(f"node {node.name!r}: its annotations were written by somebody else")
        return node

    def _own_lease(self, node: KubeNode) -> Lease:
        """Return our node's key and value, the value empty while nobody has registered it."""
        return node.subnet_key or "", (self._lease(node) or ("", b""))[1]

    def _lease(self, node: KubeNode) -> Lease | None:
        """Return what a node holds; ``None`` when no agent has registered it, or Kubernetes gave it nothing."""
        key = node.subnet_key
        if key is None or not self._annotations.is_managed(node):
            return None
        # For ourselves an administrator's public IP stands for the one we registered.
        ours = self._attrs is not None and node.name == self._own_name and self._annotations.is_overwritten(node)
        return key, self._annotations.value(node, str(self._attrs.public_ip) if ours and self._attrs else None)


def _require_progress(before: str, now: str) -> None:
    """Raise `Expired` when versions go backwards: the server's store was restored from a backup."""
    if before.isdecimal() and now.isdecimal() and int(now) < int(before):
        raise Expired(f"resourceVersion went back from {before} to {now}: restored from a backup?")
