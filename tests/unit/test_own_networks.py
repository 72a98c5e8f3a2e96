"""An overlay that the host is in already is refused; the pods' own bridge is no reason."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.own_networks import OwnNetwork, read_own_networks, refuse_own_network

OWN = [
    OwnNetwork("lo", IPv4Network("127.0.0.0/8")),
    OwnNetwork("eth0", IPv4Network("192.0.2.0/24")),
    OwnNetwork("eth1", IPv4Network("172.16.0.0/12")),
    OwnNetwork("cni0", IPv4Network("10.1.15.0/24")),
    OwnNetwork("flannel0", IPv4Network("10.1.15.0/32")),
]


@pytest.mark.parametrize(
    ("overlay", "reason"),
    [
        ("192.0.2.0/24", "192.0.2.0/24 is the own network of interface eth0: choose another Network, or remove that"),
        ("172.16.0.0/12", "172.16.0.0/12 is the own network of interface eth1"),
        ("172.20.0.0/16", "172.20.0.0/16 is inside 172.16.0.0/12, the own network of interface eth1"),
        ("192.0.0.0/16", "192.0.0.0/16 holds 192.0.2.0/24, the own network of interface eth0, which its datagrams"),
    ],
)
def test_an_overlay_that_would_cut_the_host_off_is_refused(overlay: str, reason: str) -> None:
    with pytest.raises(FlannelError) as caught:
        refuse_own_network(IPv4Network(overlay), "eth0", OWN)
    assert str(caught.value).startswith(f"the overlay network {reason}")


def test_the_key_of_the_configuration_is_named_that_has_the_network() -> None:
    own = [OwnNetwork("eth0", IPv6Network("2001:db8::/64"))]
    with pytest.raises(FlannelError, match=r": choose another IPv6Network, or remove that address from eth0$"):
        refuse_own_network(IPv6Network("2001:db8::/64"), "eth0", own)


@pytest.mark.parametrize("overlay", ["10.1.0.0/16", "10.0.0.0/8", "10.2.0.0/16", "198.51.100.0/24"])
def test_any_other_overlay_is_fine_also_with_the_pods_bridge_in_it(overlay: str) -> None:
    refuse_own_network(IPv4Network(overlay), "eth0", OWN)


def test_the_kernel_is_asked() -> None:
    assert OwnNetwork("lo", IPv4Network("127.0.0.0/8")) in read_own_networks()
