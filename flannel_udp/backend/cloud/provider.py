"""What is asked of a provider: `Provider`, one a type, and `Account`, what one host sees of its route tables.

Everything here blocks, for as long as the provider's time-outs allow, and is called from one thread at a time
(`one_thread`). Whatever goes wrong is a `CloudError`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.model import Address, Interface, Prefix
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class CloudError(FlannelError):
    """The provider, or its metadata service, did not do what was asked; asking again may help."""


class Leads(Enum):
    """Where a route leads."""

    HERE = "here"
    """To the network interface of this host that has our address."""
    HERE_BEFORE = "here before"
    """To another one of this host's."""
    TO_HOST = "host"
    """To another host's, as a route of ours might."""
    ELSEWHERE = "elsewhere"
    """To a gateway, or it was not made by a call as ours are: nobody's of ours."""


@dataclass(frozen=True, slots=True)
class CloudRoute:
    """One route of a table. `target` is the provider's name of what it leads to."""

    destination: Prefix
    target: str
    leads: Leads
    blackhole: bool = False
    """The provider says that what it leads to is not there (any more)."""
    marked: bool = False
    """It bears the mark that we give our routes, where the provider has room for one: some host of ours made it."""


@dataclass(frozen=True, slots=True)
class CloudTable:
    """One route table: its IPv4 routes, and how many count towards the provider's limit."""

    id: str
    routes: tuple[CloudRoute, ...]
    n_counted: int


class Account(Protocol):
    """What one host, with the rights that it has, sees and does."""

    @property
    def here(self) -> str:
        """The host and its interface, in the provider's names."""
        ...

    @property
    def limits(self) -> Sequence[int | None]:
        """How many routes a table may have, usual limits first; the last one is never raised. ``None``: who knows."""
        ...

    def tables(self) -> Sequence[CloudTable]:
        """Return the tables that a route to this host belongs into, as they are now. Raises `CloudError`."""
        ...

    def create(self, table: str, destination: Prefix) -> None:
        """Make a route to this host where none is. Raises `CloudError`."""
        ...

    def replace(self, table: str, destination: Prefix) -> None:
        """Let the route that is there lead to this host. Raises `CloudError`."""
        ...

    def remove(self, table: str, destination: Prefix) -> None:
        """Remove a route; no fault if it is gone. Raises `CloudError`."""
        ...

    def addresses_of(self, targets: Collection[str]) -> Mapping[str, frozenset[Address]]:
        """Return which addresses hosts have that routes without a mark lead to; who is gone is missing.

        Raises `CloudError`.
        """
        ...

    def permit(self) -> bool:
        """See to it that packets with pods' addresses may pass this host; tell whether anything had to be done.

        Raises `CloudError`.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class Provider(Protocol):
    """One provider, without state."""

    @property
    def type(self) -> str:
        """Its name in the network configuration."""
        ...

    @property
    def option_keys(self) -> tuple[str, ...]:
        """Its own keys of the object Backend."""
        ...

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Backend.read_options`."""
        ...

    def connect(self, config: NetworkConfig, external: Interface) -> Account:
        """Find out who this host is, and with which rights it asks.

        Raises `CloudError`, `ConfigError` where the configuration does not fit what was found.
        """
        ...
