"""What both dialects have in common: look, compare, apply only what differs."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace

from flannel_udp.errors import FlannelError
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.rules import Rules

logger = logging.getLogger(__name__)


class Applier(ABC):
    """The rules of one dialect in the kernel, under the names that `locate` has found last.

    Listings hold only what is ours, in the order in which it stands, as the tool prints it; they are as of the last
    `locate`, or of our own last change if that was later. Every method that is a
    coroutine raises `ToolMissing` when the tool is not installed and `FlannelError` when it fails.
    """

    name: str
    watched: tuple[bytes, ...]
    """What a netlink message about a change of our rules contains, one of these."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._printed: tuple[Rules, str] | None = None
        self._knows_random_fully: bool | None = None

    @abstractmethod
    async def locate(self, rules: Rules) -> tuple[str, ...]:
        """Find the names for our rules; return a line for each of flannel's that we want and another overlay has."""

    @abstractmethod
    async def sweep(self, version: int) -> None:
        """Remove what is ours and has other names: of an earlier run, or from before `locate` found these."""

    @abstractmethod
    def listing_of(self, rules: Rules) -> str:
        """Return the listing that these rules give; empty for none."""

    @abstractmethod
    async def listing(self, version: int) -> str:
        """Return what the kernel holds of ours in one address family (4 or 6)."""

    @abstractmethod
    async def apply(self, rules: Rules) -> None:
        """Replace what is ours by these rules; nothing for an empty chain."""

    @abstractmethod
    async def take_down(self, rules: Rules) -> bool:
        """Remove these rules, which stood at the last look, in as few runs as can be; ``False``: they do not any more.

        Then some of them may be gone.
        """

    @abstractmethod
    def commands_against(self, rules: Rules) -> list[str]:
        """Return the commands by which a person removes these rules."""

    @abstractmethod
    async def takes(self, rules: Rules) -> bool:
        """Tell whether the tool knows everything in the rules. Nothing is changed."""

    async def fit(self, rules: Rules) -> Rules:
        """Return the rules, without ``random_fully`` where the tool or the kernel does not know that."""
        plain = replace(rules, random_fully=False)
        if self._knows_random_fully is None and rules.random_fully:
            if await self.takes(rules):
                self._knows_random_fully = True
            elif await self.takes(plain):
                self._knows_random_fully = False
                logger.warning("%s knows no fully random source ports: masquerading with predictable ones", self.name)
        return plain if self._knows_random_fully is False else rules

    async def stands(self, rules: Rules) -> bool:
        """Tell whether the kernel holds exactly these rules."""
        listing = await self.listing(rules.version)
        return listing == self.listing_of(rules) or (rules, listing) == self._printed

    async def put(self, rules: Rules) -> None:
        """Apply the rules and see that they stand."""
        await self.apply(rules)
        listing = await self.listing(rules.version)
        if listing == self.listing_of(rules):
            return
        # Another version of the tool may print the same rules in other words: what we find twice after applying is it.
        await self.apply(rules)
        if await self.listing(rules.version) != listing:
            raise FlannelError(f"{self.name}: another program changes our rules at the same moment")
        self._printed = (rules, listing)
