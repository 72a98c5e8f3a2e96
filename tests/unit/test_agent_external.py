"""How long the start waits for the external interface's addresses, over written-down hosts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.agent import external
from flannel_udp.agent.external import CHECK_S, wait_for_interface
from flannel_udp.agent.state import AgentState
from flannel_udp.host import netlink
from flannel_udp.host.interface_facts import Address, DefaultRoute, HostNetwork, Link
from flannel_udp.options import InterfaceOptions

OVERLAYS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:1::/48"))
CHECKED = Address(IPv6Address("fd00:9::1"))
TENTATIVE = replace(CHECKED, tentative=True)
NONE = HostNetwork((), (DefaultRoute(2),))


def with_ipv6(address: Address) -> HostNetwork:
    return HostNetwork((Link(2, "eth0", 1500, (Address(IPv4Address("10.9.0.1")), address)),), (DefaultRoute(2),))


class Host:
    """One whose network changes as time passes, by none but the waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *states: tuple[float, HostNetwork]) -> None:
        self.now_s = 100.0
        self._began_s, self._states = self.now_s, states
        monkeypatch.setattr(external, "gather", lambda _options, _versions: self.network)
        monkeypatch.setattr(netlink, "can_bind", lambda _address: True)
        monkeypatch.setattr(external, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    @property
    def waited_s(self) -> float:
        return self.now_s - self._began_s

    @property
    def network(self) -> HostNetwork:
        return [network for since_s, network in self._states if since_s <= self.waited_s][-1]

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds


async def test_an_address_that_is_being_checked_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, (0.0, NONE), (60.0, with_ipv6(TENTATIVE)), (62.0, with_ipv6(CHECKED)))
    found = await wait_for_interface(InterfaceOptions(), AgentState(), OVERLAYS)
    assert found.v6 is not None
    assert host.waited_s < 62.0 + 6.0


async def test_one_that_stays_so_keeps_the_other_family_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, state = Host(monkeypatch, (0.0, NONE), (60.0, with_ipv6(TENTATIVE))), AgentState()
    with caplog.at_level(logging.WARNING):
        found = await wait_for_interface(InterfaceOptions(), state, OVERLAYS)
    assert (found.v4 is not None, found.v6) == (True, None)
    assert 60.0 + CHECK_S <= host.waited_s < 60.0 + CHECK_S + 12.0
    why = "fd00:9::1 of eth0 is tentative: the kernel still asks whether another host has it"
    assert caplog.messages[-1] == f"{why}: going on without that family"
    row = state.errors.rows()["interface"]
    assert (row["text"], row["over"]) == (f"{why}: waiting for the answer", True)
