"""What an agent that ends takes away, and what it says of the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_udp.agent import ending
from flannel_udp.agent.state import Rooms
from flannel_udp.errors import FlannelError


class StubFirewall:
    """Takes so long to remove the rules, and fails then if it is to."""

    def __init__(self, took_s: float, fault: str = "", commands: Sequence[str] = ()) -> None:
        self._took_s, self._fault, self.commands_against = took_s, fault, commands
        self.removed = False

    async def remove(self) -> None:
        await asyncio.sleep(self._took_s)
        if self._fault:
            raise FlannelError(self._fault)
        self.removed = True


def rooms_with(*firewalls: StubFirewall, blackholes: str = "") -> tuple[Rooms, list[str]]:
    """Return the agent's rooms as far as they count here, and what has happened to the blackhole routes."""
    done: list[str] = []

    async def remove_blackholes() -> None:
        if blackholes:
            raise FlannelError(blackholes)
        done.append("removed")

    families = [SimpleNamespace(firewall=firewall) for firewall in firewalls]
    rooms: Any = SimpleNamespace(families=families, upkeep=SimpleNamespace(remove_blackholes=remove_blackholes))
    return cast("Rooms", rooms), done


async def test_rules_that_cannot_go_in_time_keep_nothing_else_and_are_named_with_the_commands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ending, "CLEAN_TIMEOUT_S", 0.5)
    slow = StubFirewall(60.0, commands=["iptables -w -t filter -F FLANNEL-FWD", "iptables -w -t filter -X FLANNEL-FWD"])
    quick = StubFirewall(0.0)
    rooms, blackholes = rooms_with(slow, quick)
    with caplog.at_level(logging.WARNING):
        await ending.clean(rooms)
    assert (slow.removed, quick.removed, blackholes) == (False, True, ["removed"])
    why, _, commands = caplog.messages[0].rpartition(" s: ")
    assert len(caplog.messages) == 1
    assert why == "the firewall rules stay: removing them takes over 0.5"
    assert commands == "iptables -w -t filter -F FLANNEL-FWD; iptables -w -t filter -X FLANNEL-FWD"


async def test_a_blackhole_route_that_cannot_go_keeps_no_rules(caplog: pytest.LogCaptureFixture) -> None:
    firewall, broken = StubFirewall(0.0), StubFirewall(0.0, "nft failed (exit 1): no")
    rooms, _ = rooms_with(firewall, broken, blackholes="setting the blackhole route: Operation not permitted")
    with caplog.at_level(logging.WARNING):
        await ending.clean(rooms)
    assert firewall.removed
    assert caplog.messages == [
        "the blackhole routes stay: setting the blackhole route: Operation not permitted",
        "the firewall rules stay: nft failed (exit 1): no",
    ]
