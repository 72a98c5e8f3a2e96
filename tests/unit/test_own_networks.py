"""An overlay that the host is in already is refused; the pods' own bridge is no reason."""

from __future__ import annotations

import json
from contextlib import nullcontext
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from flannel_udp.backend.table import BACKENDS
from flannel_udp.errors import FlannelError
from flannel_udp.host.own_networks import OwnNetwork, judge_own_networks, read_own_networks
from flannel_udp.model import Ends, Interface
from flannel_udp.netconf.config import parse_network_config

OWN = [
    OwnNetwork("lo", IPv4Network("127.0.0.0/8")),
    OwnNetwork("lo", IPv4Network("203.0.0.0/16")),
    OwnNetwork("eth0", IPv4Network("192.0.2.0/24")),
    OwnNetwork("eth0", IPv4Network("100.0.0.0/8")),
    OwnNetwork("eth1", IPv4Network("172.16.0.0/12")),
    OwnNetwork("cni0", IPv4Network("10.1.15.0/24")),
    OwnNetwork("flannel0", IPv4Network("10.1.15.0/32")),
]


def interface(address: str) -> Interface:
    return Interface("eth0", 2, 1500, Ends(IPv4Address(address), IPv4Address(address)))


EXTERNAL = interface("192.0.2.1")


def judge(overlay: str, *, one_route: bool = True, external: Interface = EXTERNAL, **keys: str) -> list[str]:
    config = parse_network_config(json.dumps({"Network": overlay, **keys}), BACKENDS).config
    assert config.v4 is not None
    network = config.v4.network
    return judge_own_networks(config.v4, external, OWN, lambda _: network if one_route else None)


@pytest.mark.parametrize(
    ("overlay", "reason"),
    [
        ("192.0.2.0/24", "192.0.2.0/24 is the own network of interface eth0: choose another Network, or remove that"),
        ("172.16.0.0/12", "172.16.0.0/12 is the own network of interface eth1"),
        ("192.0.0.0/16", "192.0.0.0/16 holds 192.0.2.0/24, the own network of interface eth0, which its datagrams"),
        ("203.0.113.0/24", "203.0.113.0/24 is inside 203.0.0.0/16, the own network of interface lo, so that all of it"),
    ],
)
def test_an_overlay_that_cannot_be_told_from_a_network_of_the_host_is_refused(overlay: str, reason: str) -> None:
    with pytest.raises(FlannelError) as caught:
        judge(overlay)
    assert str(caught.value).startswith(f"the overlay network {reason}")


@pytest.mark.parametrize("one_route", [False, True])
def test_an_overlay_inside_a_network_of_the_host_is_a_warning(one_route: bool) -> None:
    (warning,) = judge("172.20.0.0/16", one_route=one_route)
    assert warning == (
        "the overlay network 172.20.0.0/16 is inside 172.16.0.0/12, the own network of interface eth1: this host "
        "reaches no other one there that has an address in the overlay: if it has to, choose another Network, or give "
        "eth1 a smaller network"
    )
    assert len(judge("100.64.0.0/10", one_route=one_route)) == 1


def test_the_same_network_is_a_warning_where_each_peer_has_a_route_of_its_own() -> None:
    (warning,) = judge("172.16.0.0/12", one_route=False)
    assert warning.startswith("the overlay network 172.16.0.0/12 is the own network of interface eth1: this host reach")


@pytest.mark.parametrize(
    ("address", "one_route", "refused"),
    [("100.64.0.1", True, True), ("100.64.0.1", False, False), ("100.64.7.1", False, True), ("100.1.0.1", True, False)],
)
def test_the_address_that_our_datagrams_leave_from_must_not_be_the_overlays(
    address: str, one_route: bool, refused: bool
) -> None:
    external = interface(address)
    with pytest.raises(FlannelError, match="leave by from") if refused else nullcontext():
        judge("100.64.0.0/16", one_route=one_route, external=external)


def test_a_network_of_the_host_that_nobody_may_lease_is_fine_inside_the_overlay() -> None:
    assert judge("192.0.0.0/16", SubnetMin="192.0.64.0", SubnetMax="192.0.127.0") == []
    with pytest.raises(FlannelError, match=r": choose another Network, or SubnetMin and SubnetMax that leave it out$"):
        judge("192.0.0.0/16", SubnetMax="192.0.2.0")


def test_the_key_of_the_configuration_is_named_that_has_the_network() -> None:
    own = [OwnNetwork("eth0", IPv6Network("2001:db8::/64"))]
    text = json.dumps({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "2001:db8::/64"})
    subnets = parse_network_config(text, BACKENDS).config.v6
    assert subnets is not None
    with pytest.raises(FlannelError, match=r": choose another IPv6Network, or remove that address from eth0$"):
        judge_own_networks(subnets, EXTERNAL, own, lambda _: subnets.network)


@pytest.mark.parametrize("overlay", ["10.1.0.0/16", "10.0.0.0/8", "10.2.0.0/16", "198.51.100.0/24"])
def test_any_other_overlay_is_fine_also_with_the_pods_bridge_in_it(overlay: str) -> None:
    assert judge(overlay) == []


def test_the_kernel_is_asked() -> None:
    assert OwnNetwork("lo", IPv4Network("127.0.0.0/8")) in read_own_networks()
