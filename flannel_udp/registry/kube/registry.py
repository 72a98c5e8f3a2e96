"""The registry that Kubernetes is: nodes instead of keys, and every node's podCIDR is its lease.

Kubernetes hands out the subnets and never takes them back while the node lives, so all entries are reservations: none
expires and none is picked by us. The network configuration is a file, usually from a ConfigMap.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError
from flannel_udp.model import Change, Entry, LeaseAttrs, Snapshot
from flannel_udp.netconf.addresses import parse_address, why_not_dialled
from flannel_udp.options import KubeOptions
from flannel_udp.registry import Tell
from flannel_udp.registry.keys import parse_key, parse_value
from flannel_udp.registry.kube.client import Expired, KubeClient, NotFound, Silent
from flannel_udp.registry.kube.nodes import Annotations, KubeNode, Lease, NodeTable, Numbering
from flannel_udp.registry.kube.options import Identity, KubeFiles, read_identity
from flannel_udp.registry.outage import Outage, keep_quiet

logger = logging.getLogger(__name__)

REOPEN_S = 1.0
"""Pause before a watch that the server ended is opened again: nothing is missed meanwhile, and nothing spins."""
REWRITE_S = 10.0
"""What another agent writes over annotations that we rewrote is left alone so long: two must not chase each other."""

REWRITE_PAUSE_S = 1.0
"""Something that removes our annotations whenever we write them costs the server no more than that."""


class KubeRegistry:
    """See `flannel_udp.registry.Registry`. Nothing is created or deleted here: nodes are not ours to make.

    With `onlooker` it is asked from a host that need not be a node, and has no entry of its own.
    """

    def __init__(
        self, options: KubeOptions, environ: Mapping[str, str] = os.environ, *, onlooker: bool = False
    ) -> None:
        self._options = options
        self._onlooker = onlooker
        self._identity = Identity("") if onlooker else read_identity(environ)
        self._client = KubeClient(KubeFiles(options))
        self._annotations = Annotations(options.annotation_prefix)
        self._numbering = Numbering()
        self._own_name = self._identity.node
        self._versions: Collection[int] = (4, 6)
        self._attrs: LeaseAttrs | None = None  # what we registered last
        self._written = (b"", 0.0)  # our own value as we wrote it last, and when
        self._registered_ips = ("", "")
        self._announced = ""  # the uid of the node that was told to carry traffic, while we hold a lease
        self._announced_version = ""  # its resourceVersion then
        # The public IPs that somebody had changed ours to, and when we put them right.
        self._overwrote = (("", ""), -math.inf)

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
        if node.uid != self._announced:  # who seeks the lease of another node carries nothing there yet
            self._announced = ""
        key = self._own_lease(node).key
        try:
            parse_key(key, {})
        except ValueError as error:
            raise RegistryError(f"node {node.name!r}: podCIDR {_shown(node)!r}: {error}") from None
        value = self._said(node)  # whoever said it
        written, written_s = self._written
        if value and written and value != written and time.monotonic() - written_s < REWRITE_S:
            raise RegistryError(
                f"node {node.name!r}: somebody else writes its annotations, now {value.decode()}: does another agent "
                "run under this node's name?"
            )
        return self._numbering.entry(Lease(key, value), node.name)

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
        patch = {"status": {"conditions": [condition]}}
        node = await self._client.patch_node_status(await self._find_own_name(), patch)
        self._announced, self._announced_version = node.uid, node.resource_version
        logger.info("told Kubernetes that the network of node %s is available", self._own_name)

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        table, _ = await self._list()
        return Snapshot(table.entries, self._numbering.revision)

    async def _list(self) -> tuple[NodeTable, str]:
        """Return all nodes, and the resourceVersion from which a watch goes on."""
        table = NodeTable(await self._find_own_name(), self._lease, self._numbering)
        version = await self._client.list_nodes(table.add)
        for _ in table.settle():
            await asyncio.sleep(0)
        return table, version

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - the protocol's
        """See `Registry.create`: a subnet comes with its node."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {key} cannot be taken")

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.take`: the node's uid is the mark, and `renew` insists on it."""
        return await self.renew(entry, value, ttl_s)

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - nothing expires
        """See `Registry.renew`: register our node, in its annotations."""
        node = await self._unchanged(entry)
        changed = self._annotations.changes(node, self._attrs) if self._attrs is not None else {}
        self._attrs = attrs = parse_value(value)
        changes = self._annotations.changes(node, attrs)
        if changed:
            await asyncio.sleep(max(self._overwrote[1] + REWRITE_PAUSE_S - time.monotonic(), 0.0))
            self._overwrote = (self._annotations.public_ips(node), time.monotonic())
            names = ", ".join(sorted(name.rpartition("/")[2] for name in changed))
            logger.warning("node %r: somebody changed its annotations (%s): writing them again", node.name, names)
        if changes:
            # The uid makes the server refuse the patch if another node came in this one's place.
            patch = {"metadata": {"uid": node.uid, "annotations": changes}}
            node = await self._client.patch_node_status(node.name, patch)
            for version, address in self._annotations.overwritten(node).items():
                name = self._annotations.overwrite[version]
                logger.info("other hosts reach this one at %s: %s says so", address, name)
                if (why := _why_ignored(address, version)) is not None:
                    logger.warning("other hosts ignore us: our %s %s %s", name, address, why)
            for name, address in self._annotations.unread(node).items():
                logger.warning(
                    "node %r: %s is %s, which is not read: see --iface and --public-ip", node.name, name, address
                )
        if self._announced not in ("", node.uid):  # a node in the place of ours, which keeps pods off
            await self.announce_up()
        self._registered_ips = self._annotations.public_ips(node)
        lease = self._own_lease(node)
        self._written = (lease.value, time.monotonic())
        return self._numbering.entry(lease, node.name)

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:  # noqa: ARG002 - the protocol's
        """See `Registry.move`: a subnet comes with its node."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {entry.key} cannot be made {key}")

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:  # noqa: ARG002 - the protocol's
        """See `Registry.reserve`: every subnet is its node's for as long as that lives."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {key} cannot be reserved")

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`: a subnet goes with its node."""
        raise RegistryDenied(f"{self._client.name} hands out the subnets: {entry.key} cannot be given back")

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`: there is no end."""
        await self._unchanged(entry)
        return None

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> dict[str, float | None]:
        """See `Registry.times_left_s`: none of them ends."""
        told(len(entries))
        return {entry.key: None for entry in entries}

    def count_families(self, versions: Collection[int]) -> None:
        """See `Registry.count_families`: of a node's podCIDRs those of other families are nobody's business."""
        self._versions = versions

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`: what the agent registered, where an administrator's public IP stands for its own."""
        with suppress(ValueError):  # not ours then, as who adopts it will find
            self._attrs = parse_value(entry.value)

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`. After an outage the watch goes on where it was; only lost history means a snapshot.

        So it does after a silence: the server may have died without a word, and with it the watches of many hosts,
        which must not all list at once.
        """
        outage = Outage(logger, tell)
        table: NodeTable | None = None  # None: a snapshot is due
        version = ""
        silent = False
        while True:
            try:
                if table is None:
                    table, version = await self._list()
                    yield Snapshot(dict(table.entries), self._numbering.revision)
                elif silent:
                    silent = False
                    self._raise_if_back(version, await self._client.newest_version())
                async with aclosing(self._client.watch_nodes(version)) as events:
                    async for event in events:
                        outage.over()
                        self._raise_if_back(version, event.resource_version)
                        version = event.resource_version
                        if event.node is None:
                            continue
                        changed = table.remove(event.node.name) if event.deleted else table.put(event.node)
                        if changed:
                            yield Change(changed, self._numbering.revision)
                await asyncio.sleep(REOPEN_S)
            except RegistryDenied:
                raise
            except Silent:
                silent = True
            except Expired as error:
                table = None
                await outage.wait(error)
            except RegistryError as error:
                await outage.wait(error)

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._client.close()

    def _raise_if_back(self, before: str, now: str) -> None:
        """Raise `Expired` if versions go backwards, as they do when the server's store was restored from a backup."""
        if _is_before(now, before):
            back = f"resourceVersion went back from {before} to {now}: restored from a backup?"
            raise Expired(f"{self._client.name}: {back}")

    async def _find_own_name(self) -> str:
        if not self._own_name and not self._onlooker:
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
        if not node.pod_cidrs:
            raise RegistryError(
                f"node {name!r} has no podCIDR: run kube-controller-manager with --allocate-node-cidrs and "
                "--cluster-cidr (kubeadm init --pod-network-cidr)"
            )
        return node

    async def _unchanged(self, entry: Entry) -> KubeNode:
        """Return our node. Raises `LeaseLost` unless it is still as `entry` says."""
        try:
            node = await self._own_node()
        except NotFound as error:
            raise LeaseLost(str(error)) from None
        key, value, _ = self._own_lease(node)
        if key != entry.key:
            raise LeaseLost(f"node {node.name!r} has another podCIDR now, {_shown(node)}")
        # The podCIDR is the lease: what is only annotated is put right again, unless another agent insists on it.
        if value != entry.value and (self._attrs is None or self._is_anothers(node)):
            raise LeaseLost(f"node {node.name!r}: its annotations were written by somebody else")
        return node

    def _own_lease(self, node: KubeNode) -> Lease:
        """Return our node's key and value, the value empty while nobody has registered it."""
        held = self._lease(node)
        return Lease(node.subnet_key(self._versions) or "", b"" if held is None else held.value)

    def _lease(self, node: KubeNode) -> Lease | None:
        """Return what a node holds; ``None`` when no agent has registered it, or Kubernetes gave it nothing."""
        key = node.subnet_key(self._versions)
        if key is None or not self._annotations.is_managed(node):
            return None
        if node.name != self._own_name or self._attrs is None:
            return Lease(key, self._annotations.value(node))
        changed = self._announced not in ("", node.uid) or self._annotations.changes(node, self._attrs)
        if changed and not self._is_anothers(node):
            return None  # somebody changed what we wrote: to miss it makes our lease's keeper renew it
        return Lease(key, self._said(node), self._kept_off(node))

    def _kept_off(self, node: KubeNode) -> str | None:
        """Return why no pods are put on our node although we have said that it carries traffic; ``None``: they are.

        Who says so after us, a cloud's route controller, say, is not overwritten: two must not chase each other.
        """
        if node.uid != self._announced or _is_before(node.resource_version, self._announced_version):
            return None
        return node.unavailable

    def _said(self, node: KubeNode) -> bytes:
        """Return what our own node says, whoever wrote it; empty while nobody has registered it.

        For ourselves an administrator's public IP stands for the one we registered.
        """
        if not self._annotations.is_managed(node):
            return b""
        if self._attrs is None:
            return self._annotations.value(node)
        overwritten = self._annotations.overwritten(node)
        own = {version: address for version in overwritten if (address := self._attrs.address_of(version))}
        return self._annotations.value(node, {version: str(address) for version, address in own.items()})

    def _is_anothers(self, node: KubeNode) -> bool:
        """Tell whether another agent runs under our node's name: it registers again what we have just overwritten."""
        public_ips, overwrote_s = self._overwrote
        again = self._annotations.public_ips(node) == public_ips != self._registered_ips
        return again and self._annotations.is_managed(node) and time.monotonic() - overwrote_s < REWRITE_S


def _is_before(version: str, other: str) -> bool:
    """Tell whether one resourceVersion is older than another; what is no number nobody can tell of."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)


def _shown(node: KubeNode) -> str:
    """Return the node's podCIDRs for people."""
    return ", ".join(node.pod_cidrs)


def _why_ignored(public_ip: str, version: int) -> str | None:
    """Return why other hosts pass over a node with this public IP, in a clause "is ...", ``None`` if they do not."""
    with suppress(ValueError):
        address = parse_address(public_ip)
        if address.version == version:
            return why_not_dialled(address)
    return f"is no IPv{version} address"
