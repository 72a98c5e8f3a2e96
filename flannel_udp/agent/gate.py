"""Between the registry's peers and what carries packets: nothing is published for a lease that is lost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence

from flannel_udp.backend.protocol import Network
from flannel_udp.model import Delta, Subnet


class Gate:
    """Lets peers through to the network only while the subnet that they were published for is ours."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._open_for: Subnet | None = None
        self._one_at_a_time = asyncio.Lock()
        self.published = asyncio.Event()
        """Set when the network has got the first peers for the subnet that the gate is open for."""
        self.news: Callable[[], object] = lambda: None
        """Called whenever the network has got peers."""

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Publish peers, unless the lease that they were for is gone meanwhile."""
        async with self._one_at_a_time:
            if own == self._open_for:
                await self._network.publish(own, deltas, whole=whole)
                if whole:
                    # Peers are in no cycles, and looking for some among 100,000 of them holds us up for 0.2 s.
                    gc.freeze()
                self.published.set()
                self.news()

    def open(self, own: Subnet) -> None:
        """Let peers for this subnet through."""
        self._open_for = own
        self.published.clear()

    async def shut(self) -> None:
        """Let nothing through and stop forwarding."""
        self._open_for = None
        async with self._one_at_a_time:
            await self._network.withdraw()
