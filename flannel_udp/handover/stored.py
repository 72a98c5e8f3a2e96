"""Between two runs under systemd: the packet path's descriptors wait in its store, and the next run goes on with them.

flannel0, with its address, its route and what waits in its queue, lives through a restart then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from flannel_udp.admin import notify
from flannel_udp.backend.protocol import Backend, Context, Handed, Network
from flannel_udp.errors import FlannelError

logger = logging.getLogger(__name__)


async def open_or_resume(backend: Backend, context: Context, stored: Mapping[str, int]) -> Network:
    """Return the network on the descriptors that systemd kept since the last run; a fresh one if that cannot be.

    Raises `FlannelError`.
    """
    if stored:
        try:
            network = await backend.open(replace(context, handed=Handed(stored)))
        except FlannelError as unfit:
            logger.warning("what systemd kept from the last run is of no use, opening afresh: %s", unfit)
        else:
            logger.info("going on with %s as the last run left it", network.facts().device)
            return network
    return await backend.open(context)


class Store:
    """What systemd keeps of a network; `update` it whenever descriptors may have been replaced."""

    def __init__(self, network: Network, stored: Mapping[str, int]) -> None:
        self._network = network
        self._replaced: int | None = None  # how often descriptors had been replaced when systemd got them
        self._names = set(stored)

    def update(self) -> None:
        """Let systemd keep the descriptors that there are now, and no others."""
        path = self._network.transferable
        replaced, descriptors = (0, {}) if path is None else (path.generation[0], path.descriptors())
        if replaced != self._replaced:
            self._replaced = replaced
            notify.store_descriptors(descriptors, forget=self._names - descriptors.keys())
            self._names = set(descriptors)
