"""The seam's first half, the same for every provider."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping
from typing import Any

from flannel_udp.backend.cloud.network import CloudNetwork
from flannel_udp.backend.cloud.one_thread import OneThread
from flannel_udp.backend.cloud.provider import CloudError, Provider
from flannel_udp.backend.ends import ends_of
from flannel_udp.backend.kernel import kernel_mtu
from flannel_udp.backend.protocol import Context, Network, accept_types
from flannel_udp.backoff.delay import Backoff
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Interface, LeaseAttrs
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

logger = logging.getLogger(__name__)

FIRST_ASK_S, LAST_ASK_S = 2.0, 30.0
"""How long what a provider has refused is taken for refused: all hosts of a cluster ask the same."""


class CloudBackend:
    """See `Backend`; `provider` has what differs."""

    families = frozenset({4})
    hop_type = None

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.type, self.option_keys = provider.type, provider.option_keys
        self._refused: tuple[NetworkConfig, Interface, FlannelError] | None = None
        self._ask_again_s = 0.0
        self._asks = _backoff()

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Provider.read_options`."""
        return self._provider.read_options(reader)

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Raise `FlannelError` unless the provider knows this host and lets it see its route tables.

        Who asks every few seconds whether a fault is mended gets the last answer until the provider is asked again.
        """
        kernel_mtu(external)
        ends_of(external, 4)
        refused = self._refused
        if refused is not None and refused[:2] == (config, external) and time.monotonic() < self._ask_again_s:
            raise refused[2]
        try:
            await self._ask(config, external)
        except FlannelError as error:
            self._refused = config, external, error
            self._ask_again_s = time.monotonic() + self._asks.next_s()
            raise
        self._refused, self._asks = None, _backoff()

    async def _ask(self, config: NetworkConfig, external: Interface) -> None:
        def ask() -> None:
            account = self._provider.connect(config, external)
            try:
                account.tables()
            finally:
                account.close()

        thread = OneThread("cloud check")
        try:
            await thread.run(ask)
        except FlannelError:
            raise
        except Exception as error:  # whatever answers in the provider's place says what it likes, and SDKs stumble
            logger.debug("looking at the provider's route tables failed", exc_info=True)
            raise CloudError(f"looking at the provider's route tables failed: {error!r}") from error
        finally:
            thread.end()

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> None:
        """It sets no routes on this host."""

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> None:  # noqa: ARG002 - the protocol's
        """Take hosts that name no backend, as flannel's with this one do."""
        accept_types(attrs, self.type, ("", self.type))

    async def open(self, context: Context) -> Network:
        """Return what asks the provider once there is a subnet. Raises `FlannelError`."""
        return CloudNetwork(context, self._provider)

    async def remove_remains(self, versions: Collection[int]) -> list[str]:  # noqa: ARG002 - the protocol's
        """It leaves nothing on the host. Of the provider's tables nothing is known any more: see docs/cloud.md."""
        return []


def _backoff() -> Backoff:
    return Backoff(FIRST_ASK_S, LAST_ASK_S, random.Random())  # noqa: S311 - no secret
