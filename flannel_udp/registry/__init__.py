"""Where the table of subnets lives: one protocol, several stores (etcd, file, Kubernetes).

A registry is a small fenced key-value store. It never interprets a subnet entry: parsing is `registry.keys`, policy
(poisoned keys, overlaps, which subnet to take) is the room `control`. So one bad key can never cost another.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Protocol

from flannel_udp.errors import RegistryError
from flannel_udp.model import Change, Entry, Snapshot

Tell = Callable[[RegistryError | None], None]
"""Told what keeps a watch from following, whenever that is another reason; ``None`` as soon as it stands (again)."""


class Registry(Protocol):
    """What the agent asks of a store.

    Every call may raise `RegistryError` (trying again may help) or `RegistryDenied` (credentials or permissions).
    All calls belong to the event loop that made the registry.
    """

    async def read_config(self) -> bytes:
        """Return the network configuration as stored. Raises `ConfigMissing` when there is none."""
        ...

    async def write_config(self, raw: bytes) -> None:
        """Replace the network configuration. The caller validated it."""
        ...

    async def assigned(self) -> Entry | None:
        """Return this host's entry where the store hands out the subnets itself; ``None`` where hosts take their own.

        The entry may not be written yet; `renew` writes it. Raises `RegistryError` while no subnet is assigned.
        """
        ...

    async def announce_up(self) -> None:
        """Tell the store that this host carries traffic now; a store that does not want to know ignores it."""
        ...

    async def list(self) -> Snapshot:
        """Return all subnet entries at one revision."""
        ...

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """Create `key` under a new lease of `ttl_s` seconds, only if it does not exist. Raises `SubnetTaken`."""
        ...

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """Make an entry that was found ours: under a new lease of our own mark, only if it is still as `entry` says.

        Whoever held it sees that. A reservation stays a reservation. Raises `LeaseLost`.
        """
        ...

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """Make our entry live `ttl_s` seconds from now and hold `value`, only if it is still as `entry` says.

        A reservation stays a reservation. When `value` is unchanged no watcher sees an event.
        Returns the entry as it is now. Raises `LeaseLost`.
        """
        ...

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        """Put our entry, which then holds `value`, under another key, only if it is still as `entry` says.

        At once: nobody ever sees both, or none. Its lease, and so its end, stays. Raises `LeaseLost`, and `SubnetTaken`
        if there is something under that key.
        """
        ...

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        """Make `key` a reservation that holds `value`: it has no lease, and never ends.

        With `entry` only if it is still as that says (raises `LeaseLost`), else only if it does not exist (raises
        `SubnetTaken`).
        """
        ...

    async def delete(self, entry: Entry) -> None:
        """Delete the entry, only if it is still as `entry` says. Raises `LeaseLost`."""
        ...

    async def time_left_s(self, entry: Entry) -> float | None:
        """Return the seconds until the entry expires, ``None`` for a reservation. Raises `LeaseLost` if it is gone."""
        ...

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = ...
    ) -> Mapping[str, float | None]:
        """Return the same of many entries by key; one that is gone is missing.

        `told(n)` hears now and then of how many are known.
        """
        ...

    def count_families(self, versions: Collection[int]) -> None:
        """Take note of which IP versions are on: a store that makes the keys itself makes them of these parts.

        A host's key is the same then as that of an agent that knows no other version.
        """
        ...

    def adopt(self, entry: Entry) -> None:
        """Take note that another process of this host has written this entry, and that it is ours from now on."""
        ...

    def watch(self, tell: Tell = ...) -> AsyncGenerator[Snapshot | Change, None]:
        """Yield a `Snapshot`, then what changes, for ever.

        Compaction, disconnection and failover are handled inside: they are retried with back-off (one log line for
        each reason of an outage, one on recovery; `tell` hears of both) and end in what was missed, or in a fresh
        `Snapshot`. An unreachable store yields nothing. Only `RegistryDenied` is raised.
        """
        ...

    async def close(self) -> None:
        """Release connections and files; leases stay."""
        ...
