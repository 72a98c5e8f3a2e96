"""The registry in etcd, laid out as flannel's: ``PREFIX/config`` and one key a host below ``PREFIX/subnets/``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError, SubnetTaken
from flannel_udp.model import Change, Entry, Snapshot
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.client import EtcdClient
from flannel_udp.registry.etcd.faults import LeaseNotFound
from flannel_udp.registry.etcd.options import open_credentials, parse_endpoints
from flannel_udp.registry.outage import Outage

logger = logging.getLogger(__name__)

PAGE_KEYS = 500
"""Keys a listing asks for at a time: 100,000 hosts fit no single answer, and decoding a page takes about 1 ms."""


class EtcdRegistry:
    """See `flannel_udp.registry.Registry`. Raises `UsageError` if the flags or the certificate files are wrong."""

    def __init__(self, options: EtcdOptions) -> None:
        endpoints, https = parse_endpoints(options.endpoints)
        credentials = open_credentials(options, https)
        self._client = EtcdClient(endpoints, credentials, options.username, options.password)
        prefix = options.prefix.rstrip("/").encode()
        self._config_key = prefix + b"/config"
        self._subnets = prefix + b"/subnets/"
        self._subnets_end = prefix + b"/subnets0"  # "0" follows "/": the first key behind all that begin with _subnets
        self._written = 0  # the revision of what this run wrote last

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        response = await self._client.range(pb.RangeRequest(key=self._config_key))
        if not response.kvs:
            raise ConfigMissing(
                f"{self._client.name} holds no network configuration at {self._config_key.decode()}: "
                "write one with `flannel-udp config put FILE`"
            )
        return response.kvs[0].value

    async def write_config(self, raw: bytes) -> None:
        """See `Registry.write_config`."""
        await self._client.put(pb.PutRequest(key=self._config_key, value=raw))

    async def assigned(self) -> None:
        """See `Registry.assigned`: hosts take their own subnets."""

    async def announce_up(self) -> None:
        """See `Registry.announce_up`: a lease says enough."""

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        entries: dict[str, Entry] = {}
        request = pb.RangeRequest(key=self._subnets, range_end=self._subnets_end, limit=PAGE_KEYS)
        while True:
            response = await self._client.range(request)
            if not request.revision:  # the other pages are read as of the first one
                request.revision = response.header.revision
            for kv in response.kvs:
                entry = self._entry(kv)
                entries[entry.key] = entry
            if not response.more:
                return Snapshot(entries, request.revision)
            request.key = response.kvs[-1].key + b"\0"

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""
        lease_id = await self._client.lease_grant(ttl_s)
        path = self._path(key)
        absent = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VERSION, key=path, version=0)
        put = pb.RequestOp(put=pb.PutRequest(key=path, value=value, lease=lease_id))
        try:
            _, current = await self._commit(absent, [put])
        except RegistryError:
            # Perhaps it was done and only the answer was lost: the key itself tells. If etcd cannot be asked now, the
            # lease stays, and the next start finds it by its public IP.
            current = await self._find(path)
            if current is None or current.lease_id != lease_id:
                await self._revoke(lease_id)  # also keeps a put that is still on its way from coming true
                raise
        if current is None or current.lease_id != lease_id:
            await self._revoke(lease_id)
            raise SubnetTaken(f"{self._client.name}: {key} is taken by another host")
        self._written = current.revision
        return current

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - an etcd lease keeps its TTL
        """See `Registry.renew`.

        The etcd lease is kept alive, not replaced: it lives as long again as it was granted for, whatever `ttl_s` says.
        What an earlier run wrote is written anew, once: its request to delete the key may still be on its way.
        """
        if not entry.reserved and await self._client.lease_keep_alive_s(entry.lease_id) <= 0:
            raise LeaseLost(f"{self._client.name}: the lease of {entry.key} has expired or was revoked")
        path = self._path(entry.key)
        put = pb.RequestOp(put=pb.PutRequest(key=path, value=value, lease=entry.lease_id))
        same = value == entry.value and (entry.reserved or entry.revision == self._written)
        try:
            _, current = await self._commit(self._unchanged(entry), [] if same else [put])
        except LeaseNotFound:
            raise LeaseLost(f"{self._client.name}: the lease of {entry.key} expired while it was renewed") from None
        # If an earlier try was done and only its answer was lost, the comparison fails on our own work: that is fine.
        if current is None or current.lease_id != entry.lease_id or current.value != value:
            raise self._lost(entry, current)
        self._written = current.revision
        return current

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`.

        The etcd lease is left to run out: revoking it would also delete what somebody else may have attached to it.
        """
        remove = pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=self._path(entry.key)))
        done, current = await self._commit(self._unchanged(entry), [remove])
        if not done:
            raise self._lost(entry, current)

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`."""
        current = await self._find(self._path(entry.key))
        if current is None or current.lease_id != entry.lease_id:
            raise self._lost(entry, current)
        if entry.reserved:
            return None
        left_s = await self._client.lease_time_to_live_s(entry.lease_id)
        if left_s < 0:
            raise self._lost(entry, None)
        return float(left_s)

    async def watch(self) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`."""
        outage = Outage(logger)
        while True:
            try:
                snapshot = await self.list()
                yield snapshot
                async with contextlib.aclosing(self._changes(snapshot.revision, outage)) as changes:
                    async for change in changes:
                        yield change
            except RegistryDenied:
                raise
            except RegistryError as error:
                await outage.wait(error)

    async def _changes(self, revision: int, outage: Outage) -> AsyncGenerator[Change]:
        """Yield what changes after `revision`, one `Change` an answer; raise `RegistryError` if it must begin anew."""
        request = pb.WatchCreateRequest(key=self._subnets, range_end=self._subnets_end, start_revision=revision + 1)
        async with contextlib.aclosing(self._client.watch(request)) as responses:
            async for response in responses:
                if response.compact_revision:
                    raise RegistryError(
                        f"{self._client.name}: fell behind, the history up to our revision is compacted"
                    )
                if response.canceled:
                    raise RegistryError(
                        f"{self._client.name}: watch cancelled: {response.cancel_reason or 'no reason given'}"
                    )
                if response.created:
                    # Only this answer tells: one to a probe may be overtaken by events of later revisions, and while a
                    # stream lasts, it is the same server with the same data.
                    if response.header.revision < revision:
                        raise RegistryError(
                            f"{self._client.name}: revision went back from {revision}: restored from a backup?"
                        )
                    outage.over()
                if response.events:
                    yield Change(dict(map(self._event, response.events)), response.header.revision)

    def _event(self, event: pb.Event) -> tuple[str, Entry | None]:
        entry = self._entry(event.kv)
        return entry.key, None if event.type == pb.Event.DELETE else entry

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._client.close()

    async def _commit(self, compare: pb.Compare, actions: Sequence[pb.RequestOp]) -> tuple[bool, Entry | None]:
        """Do `actions` if `compare` holds; return whether it did, and the compared key as it is afterwards."""
        read = pb.RequestOp(range=pb.RangeRequest(key=compare.key))
        response = await self._client.txn(pb.TxnRequest(compare=[compare], success=[*actions, read], failure=[read]))
        kvs = response.responses[-1].range.kvs
        return response.succeeded, self._entry(kvs[0]) if kvs else None

    async def _find(self, path: bytes) -> Entry | None:
        response = await self._client.range(pb.RangeRequest(key=path))
        return self._entry(response.kvs[0]) if response.kvs else None

    async def _revoke(self, lease_id: int) -> None:
        """End a lease that holds nothing of use; if that fails it runs out by itself."""
        with contextlib.suppress(RegistryError):
            await self._client.lease_revoke(lease_id)

    def _unchanged(self, entry: Entry) -> pb.Compare:
        """Return the comparison that holds while nobody has written the key since `entry`."""
        path = self._path(entry.key)
        return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=path, mod_revision=entry.revision)

    def _path(self, key: str) -> bytes:
        return self._subnets + key.encode()

    def _entry(self, kv: pb.KeyValue) -> Entry:
        # Anybody may write any bytes here: a key that is no text becomes one that parses as no subnet.
        key = kv.key[len(self._subnets) :].decode(errors="backslashreplace")
        return Entry(key, kv.value, kv.mod_revision, kv.lease)

    def _lost(self, entry: Entry, current: Entry | None) -> LeaseLost:
        fate = "is gone" if current is None else "was written by somebody else"
        return LeaseLost(f"{self._client.name}: {entry.key} {fate}")
