"""Backend.MTU as it is advised: obeyed, it makes all packets as large as a narrow path carries, and no larger."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from flannel_udp.backend import udp
from flannel_udp.backend.mtu import MtuOption
from flannel_udp.backend.table import BACKENDS
from flannel_udp.backend.vxlan import options as vxlan
from flannel_udp.model import Ends, Interface
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config

HEADERS_BYTES = {"udp": {4: 28, 6: 48}, "vxlan": {4: 50, 6: 70}}
V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
EXTERNAL = Interface("eth0", 2, 1500, Ends(V4, V4), Ends(V6, V6))
FAMILIES = {(4,): {}, (4, 6): {"EnableIPv6": True, "IPv6Network": "fd00::/48"}}
FAMILIES[(6,)] = {**FAMILIES[4, 6], "EnableIPv4": False}
PATH = 1400
"""Bytes that the path carries, outer headers included."""


def config_of(kind: str, versions: tuple[int, ...], **options: Any) -> NetworkConfig:
    network = {} if versions == (6,) else {"Network": "10.1.0.0/16"}
    document = {**network, **FAMILIES[versions], "Backend": {"Type": kind, **options}}
    return parse_config(json.dumps(document)).config


def option_of(kind: str, config: NetworkConfig) -> MtuOption:
    return udp.mtu_option(config) if kind == "udp" else vxlan.mtu_option(config)


async def obeyed(kind: str, versions: tuple[int, ...], option: int) -> int:
    """Return the overlay's MTU of a network with that Backend.MTU, which every host takes."""
    config = config_of(kind, versions, MTU=option)
    await BACKENDS[kind].check(config, EXTERNAL)
    return vxlan.vxlan_mtu(EXTERNAL, config) if kind == "vxlan" else option


@pytest.mark.parametrize("kind", HEADERS_BYTES)
@pytest.mark.parametrize(
    ("versions", "peer"), [((4,), 4), ((6,), 6), ((4, 6), 4), ((4, 6), 6)], ids=["4", "6", "4 of both", "6 of both"]
)
async def test_the_longest_packets_just_fit_the_path(kind: str, versions: tuple[int, ...], peer: int) -> None:
    headers = HEADERS_BYTES[kind]
    found = option_of(kind, config_of(kind, versions)).fitting(PATH - headers[peer], peer, direct=False)
    assert found is not None
    mtu = await obeyed(kind, versions, found)
    assert max(mtu + headers[version] for version in versions) == PATH


@pytest.mark.parametrize("kind", HEADERS_BYTES)
@pytest.mark.parametrize(("versions", "peer"), [((4,), 4), ((4, 6), 4), ((4, 6), 6)])
async def test_past_the_tunnel_the_packets_themselves_just_fit(kind: str, versions: tuple[int, ...], peer: int) -> None:
    found = option_of(kind, config_of(kind, versions)).fitting(PATH, peer, direct=True)
    assert found is not None
    assert await obeyed(kind, versions, found) == PATH


@pytest.mark.parametrize("kind", HEADERS_BYTES)
def test_where_ipv6_needs_more_than_the_path_carries_there_is_none(kind: str) -> None:
    headers = HEADERS_BYTES[kind]
    both, one = (option_of(kind, config_of(kind, versions)) for versions in ((4, 6), (4,)))
    least = 1280 + headers[6] - headers[4]
    assert both.fitting(least, 4, direct=False) is not None
    assert both.fitting(least - 1, 4, direct=False) is None
    assert one.fitting(least - 1, 4, direct=False) is not None
