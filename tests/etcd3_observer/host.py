"""One host of the overlay for the observer test: takes a subnet, then prints what its watch shows, a JSON line each.

Runs with the agent's own interpreter and packages: ``python host.py ENDPOINT KEY VALUE``.
"""

from __future__ import annotations

import asyncio
import json
import sys

from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions, Options
from flannel_udp.registry.open import open_registry


async def main(endpoint: str, key: str, value: str) -> None:
    registry = open_registry(Options(registry="etcd", etcd=EtcdOptions(endpoints=(endpoint,))))
    try:
        await registry.create(key, value.encode(), LEASE_TTL_S)
        async for item in registry.watch():
            entries = {key: None if entry is None else entry.value.decode() for key, entry in item.entries.items()}
            sys.stdout.write(json.dumps({"kind": type(item).__name__, "entries": entries}) + "\n")
            sys.stdout.flush()
    finally:
        await registry.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
