"""The registry in etcd, laid out as flannel's: ``PREFIX/config`` and one key a host below ``PREFIX/subnets/``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Sequence

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError, SubnetTaken
from flannel_udp.model import NONCE_BITS, Change, Entry, Snapshot, lease_id_of
from flannel_udp.options import EtcdOptions
from flannel_udp.registry import Tell
from flannel_udp.registry.etcd import etcd_pb2 as pb
from flannel_udp.registry.etcd.client import EtcdClient
from flannel_udp.registry.etcd.faults import LeaseNotFound, NoSpace, TooLarge
from flannel_udp.registry.etcd.options import SecretFiles, parse_endpoints
from flannel_udp.registry.keys import kept_key, kept_value
from flannel_udp.registry.outage import Outage, keep_quiet

logger = logging.getLogger(__name__)

PAGE_KEYS = 500
"""Keys a listing asks for at a time: 100,000 hosts fit no single answer, and decoding a page takes about 1 ms."""

LEASES_AT_ONCE = 64
"""How many leases etcd is asked about at a time when they end."""


class Compacted(RegistryError):
    """The history that a watch was to go on with is gone: list again."""


class EtcdRegistry:
    """See `flannel_udp.registry.Registry`. Raises `UsageError` if the flags or the certificate files are wrong.

    `mark` is the host's, for the ids of our leases; with 0 etcd chooses them. `rng` chooses among the endpoints.
    """

    def __init__(self, options: EtcdOptions, mark: int = 0, rng: random.Random | None = None) -> None:
        endpoints, https = parse_endpoints(options.urls)
        prefix = options.prefix.rstrip("/").encode()
        self._config_key = prefix + b"/config"
        self._subnets = prefix + b"/subnets/"
        self._subnets_end = prefix + b"/subnets0"  # "0" follows "/": the first key behind all that begin with _subnets
        self._client = EtcdClient(endpoints, SecretFiles(options, https), self._config_key, options.username, rng)
        self._mark = mark
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

    def count_families(self, versions: Collection[int]) -> None:
        """See `Registry.count_families`: keys are the hosts'."""

    async def announce_up(self) -> None:
        """See `Registry.announce_up`: a lease says enough."""

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        snapshot, _ = await self._list()
        return snapshot

    async def _list(self) -> tuple[Snapshot, pb.ResponseHeader]:
        """Return all entries, and which etcd had them when."""
        entries: dict[str, Entry] = {}
        header: pb.ResponseHeader | None = None
        request = pb.RangeRequest(key=self._subnets, range_end=self._subnets_end, limit=PAGE_KEYS)
        while True:
            try:
                response = await self._client.range(request)
            except TooLarge:
                _ask_for_less(request)
                continue
            if header is None:  # the other pages are read as of the first one
                header, request.revision = response.header, response.header.revision
            for kv in response.kvs:
                entry = self._entry(kv)
                entries[entry.key] = entry
            if not response.more:
                return Snapshot(entries, header.revision), header
            request.key = response.kvs[-1].key + b"\0"
            request.limit, request.keys_only = PAGE_KEYS, False

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""
        path = self._path(key)
        written, _ = await self._put_under_new_lease(path, value, ttl_s, self._absent(path))
        if written is None:
            raise self._taken(key)
        return written

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.take`. A lease of our own that nothing hangs on any more is ended.

        The new one is granted for as long as the one before it was: whoever made it may have chosen that.
        """
        if entry.reserved:
            return await self.renew(entry, value, ttl_s)
        ttl_s = await self._client.lease_granted_s(entry.lease_id) or ttl_s
        try:
            written, current = await self._put_under_new_lease(
                self._path(entry.key), value, ttl_s, self._unchanged(entry)
            )
        except NoSpace as full:
            if not self._mark or entry.mark != self._mark or value != entry.value:
                raise
            # A full etcd grants no lease and lets ours live on: what an earlier run wrote has to do.
            self._written = entry.revision
            kept = await self.renew(entry, value, ttl_s)
            logger.warning("%s; going on with the lease of an earlier run", full)
            return kept
        if written is None:
            raise self._lost(entry, current)
        if self._mark and entry.mark == self._mark:
            with contextlib.suppress(RegistryError):
                if not await self._client.lease_keys(entry.lease_id):
                    await self._client.lease_revoke(entry.lease_id)
        return written

    async def _put_under_new_lease(
        self, path: bytes, value: bytes, ttl_s: int, compare: pb.Compare
    ) -> tuple[Entry | None, Entry | None]:
        """Write the key under a new lease if `compare` holds; return what was written, and what is there if not."""
        wanted = lease_id_of(self._mark, secrets.randbits(NONCE_BITS)) if self._mark else 0
        lease_id = await self._client.lease_grant(ttl_s, wanted)
        put = pb.RequestOp(put=pb.PutRequest(key=path, value=value, lease=lease_id))
        try:
            _, current = await self._commit([compare], [put])
        except RegistryError:
            # Perhaps it was done and only the answer was lost: the key itself tells. If etcd cannot be asked now, the
            # lease stays, and the next start finds it by its public IP.
            current = await self._find(path)
            if current is None or current.lease_id != lease_id:
                await self._revoke(lease_id)  # also keeps a put that is still on its way from coming true
                raise
        if current is None or current.lease_id != lease_id:
            await self._revoke(lease_id)
            return None, current
        self._written = current.revision
        return current, current

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:  # noqa: ARG002 - an etcd lease keeps its TTL
        """See `Registry.renew`.

        The etcd lease is kept alive, not replaced: it lives as long again as it was granted for, whatever `ttl_s` says.
        What another process of ours wrote is written anew, once: its request to delete the key may still be on its way.
        """
        if not entry.reserved and await self._client.lease_keep_alive_s(entry.lease_id) <= 0:
            raise LeaseLost(f"{self._client.name}: the lease of {entry.key} has expired or was revoked")
        path = self._path(entry.key)
        put = pb.RequestOp(put=pb.PutRequest(key=path, value=value, lease=entry.lease_id))
        same = value == entry.value and (entry.reserved or entry.revision == self._written)
        try:
            _, current = await self._commit([self._unchanged(entry)], [] if same else [put])
        except LeaseNotFound:
            raise LeaseLost(f"{self._client.name}: the lease of {entry.key} expired while it was renewed") from None
        # If an earlier try was done and only its answer was lost, the comparison fails on our own work: that is fine.
        if current is None or current.lease_id != entry.lease_id or current.value != value:
            raise self._lost(entry, current)
        self._written = current.revision
        return current

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        """See `Registry.move`: one transaction, the deletion first, as who follows it reads it in that order."""
        path = self._path(key)
        changes = [
            pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=self._path(entry.key))),
            pb.RequestOp(put=pb.PutRequest(key=path, value=value, lease=entry.lease_id)),
        ]
        try:
            _, moved = await self._commit([self._absent(path), self._unchanged(entry)], changes)
        except LeaseNotFound:
            raise LeaseLost(f"{self._client.name}: the lease of {entry.key} expired while it was moved") from None
        if moved is None:
            raise self._lost(entry, await self._find(self._path(entry.key)))
        # If an earlier try was done and only its answer lost, the comparisons fail on our own work: that is fine.
        if moved.lease_id != entry.lease_id or moved.value != value:
            raise self._taken(key)
        self._written = moved.revision
        return moved

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        """See `Registry.reserve`. The etcd lease of `entry` is left to run out: nothing hangs on it any more."""
        path = self._path(key)
        compare = self._absent(path) if entry is None else self._unchanged(entry)
        done, current = await self._commit([compare], [pb.RequestOp(put=pb.PutRequest(key=path, value=value))])
        if done and current is not None:
            return current
        raise self._taken(key) if entry is None else self._lost(entry, current)

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`.

        The etcd lease is left to run out: revoking it would also delete what somebody else may have attached to it.
        """
        remove = pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=self._path(entry.key)))
        done, current = await self._commit([self._unchanged(entry)], [remove])
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

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> dict[str, float | None]:
        """See `Registry.times_left_s`: etcd tells it of one lease at a time."""
        left: dict[str, float | None] = {entry.key: None for entry in entries if entry.reserved}
        leased = [entry for entry in entries if not entry.reserved]
        for first in range(0, len(leased), LEASES_AT_ONCE):
            part = leased[first : first + LEASES_AT_ONCE]
            seconds = await asyncio.gather(*(self._client.lease_time_to_live_s(entry.lease_id) for entry in part))
            left |= {entry.key: float(left_s) for entry, left_s in zip(part, seconds, strict=True) if left_s >= 0}
            told(first + len(part))
        return left

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`: the entry says all there is to know."""

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`. After an outage it goes on where it was, if etcd still has what came after that."""
        outage = Outage(logger, tell)
        known: pb.ResponseHeader | None = None  # what we are up to date with, and whose it is; None: list
        while True:
            try:
                if known is None or not await self._goes_on(known):
                    snapshot, known = await self._list()
                    yield snapshot
                async with contextlib.aclosing(self._changes(known, outage)) as changes:
                    async for change in changes:
                        yield change
            except RegistryDenied:
                raise
            except (Compacted, TooLarge) as error:
                known = None
                await outage.wait(error)
            except RegistryError as error:
                await outage.wait(error)

    async def _goes_on(self, known: pb.ResponseHeader) -> bool:
        """Tell whether etcd is the one that we know, no older than then; this also finds an endpoint that answers.

        Another one, or one that was restored from a backup, has another history: what it has must be listed.
        """
        now = (await self._client.range(pb.RangeRequest(key=self._config_key, keys_only=True))).header
        if now.cluster_id != known.cluster_id:
            fault = f"is another cluster ({now.cluster_id:x}, it was {known.cluster_id:x})"
        elif now.revision < known.revision or now.raft_term < known.raft_term:
            fault = f"went back from revision {known.revision} to {now.revision}: restored from a backup?"
        else:
            return True
        logger.warning("%s %s; taking what it has instead", self._client.name, fault)
        return False

    async def _changes(self, known: pb.ResponseHeader, outage: Outage) -> AsyncGenerator[Change]:
        """Yield what changes after the revision of `known`, one `Change` an answer, and keep `known` up to date.

        Raises `Compacted` if it must begin anew, `RegistryError` if it may go on.
        """
        # From the last known change on, which comes again: etcd 3.5 answers no probe while it waits for a revision.
        revision = known.revision
        request = pb.WatchCreateRequest(
            key=self._subnets, range_end=self._subnets_end, start_revision=revision, fragment=True
        )
        async with contextlib.aclosing(self._client.watch(request)) as responses:
            async for response in responses:
                if response.compact_revision:
                    raise Compacted(f"{self._client.name}: fell behind, the history up to our revision is compacted")
                if response.canceled:
                    raise RegistryError(
                        f"{self._client.name}: watch cancelled: {response.cancel_reason or 'no reason given'}"
                    )
                if response.created:
                    # Only this answer tells: one to a probe may be overtaken by events of later revisions, and while a
                    # stream lasts, it is the same server with the same data.
                    if response.header.revision < revision:
                        raise Compacted(
                            f"{self._client.name}: revision went back from {revision}: restored from a backup?"
                        )
                    outage.over()
                events = [event for event in response.events if event.kv.mod_revision > revision]
                if events:
                    yield Change(dict(map(self._event, events)), response.header.revision)
                    # What follows of an answer in parts has changes of the same revision.
                    last = events[-1].kv.mod_revision - (1 if response.fragment else 0)
                    known.revision = max(known.revision, last)

    def _event(self, event: pb.Event) -> tuple[str, Entry | None]:
        entry = self._entry(event.kv)
        return entry.key, None if event.type == pb.Event.DELETE else entry

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._client.close()

    async def _commit(
        self, compare: Sequence[pb.Compare], actions: Sequence[pb.RequestOp]
    ) -> tuple[bool, Entry | None]:
        """Do `actions` if all of `compare` hold; return whether they did, and the first one's key as it is then."""
        read = pb.RequestOp(range=pb.RangeRequest(key=compare[0].key))
        response = await self._client.txn(pb.TxnRequest(compare=compare, success=[*actions, read], failure=[read]))
        kvs = response.responses[-1].range.kvs
        return response.succeeded, self._entry(kvs[0]) if kvs else None

    async def _find(self, path: bytes) -> Entry | None:
        response = await self._client.range(pb.RangeRequest(key=path))
        return self._entry(response.kvs[0]) if response.kvs else None

    async def _revoke(self, lease_id: int) -> None:
        """End a lease that holds nothing of use; if that fails it runs out by itself."""
        with contextlib.suppress(RegistryError):
            await self._client.lease_revoke(lease_id)

    def _absent(self, path: bytes) -> pb.Compare:
        """Return the comparison that holds while there is no such key."""
        return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VERSION, key=path, version=0)

    def _unchanged(self, entry: Entry) -> pb.Compare:
        """Return the comparison that holds while nobody has written the key since `entry`."""
        path = self._path(entry.key)
        return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=path, mod_revision=entry.revision)

    def _path(self, key: str) -> bytes:
        return self._subnets + key.encode()

    def _entry(self, kv: pb.KeyValue) -> Entry:
        # Anybody may write any bytes here: a key that is no text becomes one that parses as no subnet.
        key = kv.key[len(self._subnets) :].decode(errors="backslashreplace")
        return Entry(kept_key(key), kept_value(kv.value), kv.mod_revision, kv.lease)

    def _taken(self, key: str) -> SubnetTaken:
        return SubnetTaken(f"{self._client.name}: {key} is taken by another host")

    def _lost(self, entry: Entry, current: Entry | None) -> LeaseLost:
        fate = "is gone" if current is None else "was written by somebody else"
        return LeaseLost(f"{self._client.name}: {entry.key} {fate}")


def _ask_for_less(request: pb.RangeRequest) -> None:
    """Make the next page smaller, after an answer that was too large; of a single key that is, leave the value out."""
    if request.limit > 1:
        request.limit = max(request.limit // 8, 1)
    else:
        request.keys_only = True
