"""The descriptors of a packet path by name, on their way from one process to the next."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_udp.dataplane.adopted import adopted_from, descriptor_names, descriptors_of
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.errors import FlannelError

V4 = {"tun-0": 3, "udp-0": 4, "icmp": 5}
BOTH = {**V4, "udp6-0": 6, "icmp6": 7}


def test_ipv4s_names_are_those_of_earlier_versions() -> None:
    assert descriptor_names("udp", [3], {4: [4]}, {4: 5}) == V4


def test_paths_of_one_version_each_share_no_name() -> None:
    four, six = descriptor_names("vxlan", [3], {4: [4]}, {4: 5}), descriptor_names("vxlan", [6], {6: [7]}, {6: 8})
    assert six == {"tun6-0": 6, "vxlan6-0": 7, "icmp6": 8}
    assert (descriptors_of({**four, **six}, 4), descriptors_of({**four, **six}, 6)) == (four, six)


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)])
def test_what_is_named_is_found_again(versions: tuple[int, ...]) -> None:
    sockets = {version: [10 * version, 10 * version + 1] for version in versions}
    icmp = {version: 90 + version for version in versions}
    adopted = adopted_from(descriptor_names("udp", [1, 2], sockets, icmp), 2, None, UDP, versions)
    assert (adopted.queues, adopted.sockets, adopted.icmp) == ([1, 2], sockets, icmp)


@pytest.mark.parametrize(
    ("descriptors", "versions", "why"),
    [
        (V4, (4, 6), "its packets are IPv4, ours IPv4 and IPv6"),
        (BOTH, (4,), "its packets are IPv4 and IPv6, ours IPv4"),
        (BOTH, (6,), "its packets are IPv4 and IPv6, ours IPv6"),
        ({**V4, "tun-1": 8}, (4,), "its descriptors are icmp, tun-0, tun-1, udp-0: not those of 1 workers"),
        ({**V4, "odd": 8}, (4,), "its descriptors are icmp, odd, tun-0, udp-0: not those of 1 workers"),
    ],
)
def test_descriptors_of_another_path_are_refused(
    descriptors: dict[str, int], versions: tuple[int, ...], why: str
) -> None:
    with pytest.raises(FlannelError, match=f"^{why}$"):
        adopted_from(descriptors, 1, None, UDP, versions)


def test_another_encapsulations_descriptors_are_refused() -> None:
    with pytest.raises(FlannelError, match=r"^its descriptors are not those of vxlan$"):
        adopted_from(BOTH, 1, None, Encapsulation("vxlan", 1, 1), (4, 6))


def test_limits_of_paths_are_those_that_the_ip_version_allows() -> None:
    limits = {"192.0.2.1": 576, "192.0.2.2": 575, "2001:db8::1": 1280, "2001:db8::2": 1279}
    state = {"encapsulation": {"kind": "udp", "vni": 0, "own_mac": 0}, "granted": [], "path_limits": limits}
    adopted = adopted_from(BOTH, 1, state, UDP, (4, 6))
    assert adopted.path_limits == {IPv4Address("192.0.2.1"): 576, IPv6Address("2001:db8::1"): 1280}
