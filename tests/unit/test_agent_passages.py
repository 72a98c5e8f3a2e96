"""What has to pass the firewall for a network that runs: by each device that packets come and go by."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_udp.agent import passages
from flannel_udp.agent.passages import passages_of
from flannel_udp.backend.protocol import Network, NetworkFacts
from flannel_udp.host.lookup.question import Way, Ways
from flannel_udp.model import Ends, Interface, Lease, Prefix, Subnet

OVERLAY = IPv4Network("10.1.0.0/16")
OWN, NEAR, FAR = (IPv4Network(f"10.1.{n}.0/24") for n in (1, 2, 3))
ETH0, FLANNEL0 = 2, 5
"""Indices."""


class FakeNetwork:
    """One that runs, as far as it is asked here."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    def ways(self, _version: int) -> Ways:
        return self._ways

    def facts(self) -> NetworkFacts:
        return NetworkFacts(device="flannel0", port=8285)


async def inner(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], tuple[Any, str]]:
    """Return pods' packets: by which devices they come and go, between whom, and what is said of a loss."""
    monkeypatch.setattr(passages, "known_pods", lambda _own, _device: None)
    address = IPv4Address("192.0.2.1")
    lease = cast("Lease", SimpleNamespace(subnet=Subnet(OWN)))
    external = Interface("eth0", ETH0, 1500, Ends(address, address))
    found = await passages_of(cast("Network", FakeNetwork(ways)), OVERLAY, external, lease)
    packets = {(each.packet.iif, each.packet.oif): each for each in found[-1]}
    return {at: (each.packet.source, each.lost.partition("drops ")[2]) for at, each in packets.items()}


async def test_who_is_reached_past_the_tunnel_comes_and_goes_by_the_external_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    direct: dict[Prefix, Way] = {NEAR: Way(ETH0, IPv4Address("192.0.2.2"))}
    assert await inner(Ways(FLANNEL0, {NEAR: None, FAR: None}, direct), monkeypatch) == {
        ("flannel0", "cni0"): (FAR[-2], "what other hosts send to our pods"),
        ("cni0", "flannel0"): (OWN[-2], "what our pods send to other hosts"),
        ("eth0", "cni0"): (NEAR[-2], "what other hosts on the link send to our pods"),
        ("cni0", "eth0"): (OWN[-2], "what our pods send to other hosts on the link"),
    }
