"""What our entry in the registry says since an earlier run, for those who need that before there is a lease."""

from __future__ import annotations

import asyncio

from flannel_udp.control.allocation import Seeker, find_former
from flannel_udp.control.entries import read_leases
from flannel_udp.control.retry import retry
from flannel_udp.model import Entry, LeaseAttrs, Snapshot
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry import Registry
from flannel_udp.registry.keys import parse_value


async def read_former(registry: Registry, config: NetworkConfig, seeker: Seeker) -> LeaseAttrs | None:
    """Return what the entry says that this host will take for its own, for as long as it takes to ask.

    ``None``: there is none, or none that can be understood.
    """

    async def ask() -> LeaseAttrs | None:
        assigned = await registry.assigned()
        if assigned is not None:
            return read_attrs(assigned)
        snapshot = await registry.list()
        return await asyncio.to_thread(_find, snapshot, config, seeker)

    return await retry("asking the registry for our own entry", ask)


def _find(snapshot: Snapshot, config: NetworkConfig, seeker: Seeker) -> LeaseAttrs | None:
    lease = find_former(config, read_leases(snapshot.entries), seeker, None)
    return None if lease is None else lease.attrs


def read_attrs(entry: Entry) -> LeaseAttrs | None:
    """Return what an entry says, ``None`` if that cannot be understood."""
    try:
        return parse_value(entry.value)
    except ValueError:
        return None
