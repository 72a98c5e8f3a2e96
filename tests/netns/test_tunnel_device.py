"""A tunnel device of the kernel's, without an agent: made, taken, changed in place, made anew, refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp.backend.datapath import KindUnknown
from flannel_udp.backend.tunnel_device import TunnelDevice, remove_marked
from flannel_udp.backend.vxlan.kernel import VxlanKind
from flannel_udp.errors import FlannelError
from flannel_udp.model import Ends, Interface
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host

pytestmark = NEEDS_NETNS

MAC, OTHER_MAC = 0x0A0000000001, 0x0A0000000002
FIRST = IPv4Address("10.1.15.0")
KIND = VxlanKind("flannel.1", 1, 8472)


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        for number in (1, 2):
            made.ip(
                f"link add eth{number} type veth peer name far{number}",
                f"link set far{number} up",
                f"link set eth{number} up",
                f"address add 192.0.2.{number}/24 dev eth{number}",
            )
        yield made


def interface(host: OneHost, number: int = 1) -> Interface:
    index = host.call(socket.if_nametoindex, f"eth{number}")
    address = IPv4Address(f"192.0.2.{number}")
    return Interface(f"eth{number}", index, 1500, Ends(address, address))


def opened(host: OneHost, kind: VxlanKind = KIND, mac: int = MAC, claimed: int = 0) -> TunnelDevice:
    external = interface(host)
    return host.call(lambda: TunnelDevice(kind, external, 1450, mac=mac, claimed=claimed))


def taken(host: OneHost, kind: VxlanKind = KIND) -> TunnelDevice:
    device = opened(host, kind)
    host.call(device.take, FIRST, None)
    return device


def put_right(host: OneHost, device: TunnelDevice) -> list[str]:
    """Put right what is wrong, one thing after the other; return what that was."""
    made: list[str] = []
    while wrong := host.call(device.look):
        made.append(wrong[0])
        assert len(made) < 10, made
        host.call(device.put_right, wrong[0])
    return made


def link(host: OneHost, name: str = "flannel.1") -> dict[str, Any]:
    (found,) = json.loads("".join(host.show(f"-d -json link show {name}")))
    return dict(found)


def test_a_device_is_made_down_and_without_an_address_until_it_is_taken(host: OneHost) -> None:
    device = opened(host)
    assert ("UP" in link(host)["flags"], link(host)["address"]) == (False, "0a:00:00:00:00:01")
    assert host.show("-o address show dev flannel.1") == []
    host.call(device.take, FIRST, None)
    assert "UP" in link(host)["flags"]
    assert [line.split()[3] for line in host.show("-o address show dev flannel.1")] == [f"{FIRST}/32"]
    assert host.call(device.look) == []


def test_what_is_there_is_left_as_it_is_until_it_is_taken(host: OneHost) -> None:
    host.ip(
        "link add flannel.1 address 0a:00:00:00:00:09 type vxlan id 1 local 192.0.2.1 dev eth1 dstport 8472 nolearning",
        "address add 198.51.100.1/24 dev flannel.1",
    )
    before = link(host)
    device = opened(host)
    assert (link(host), device.mac) == (before, 0x0A0000000009)
    host.call(device.take, FIRST, None)
    assert link(host)["ifindex"] == before["ifindex"]
    assert [line.split()[3] for line in host.show("-o address show dev flannel.1")] == [f"{FIRST}/32"]


def test_a_kernel_without_the_kind_is_told_from_all_else_that_may_fail(host: OneHost) -> None:
    with pytest.raises(KindUnknown, match="this kernel has no nonsense"):
        opened(host, VxlanKind("flannel.1", 1, 8472, kind="nonsense"))
    host.ip("link add vxlan9 type vxlan id 1 dev eth1 dstport 8472")
    with pytest.raises(FlannelError, match="the VNI 1 on UDP port 8472 is in use by the VXLAN device vxlan9") as caught:
        opened(host)
    assert not isinstance(caught.value, KindUnknown)


def test_another_interface_is_gone_over_to_in_place(host: OneHost) -> None:
    device = taken(host)
    index = link(host)["ifindex"]
    device.follow(interface(host, 2), 1400)
    assert put_right(host, device) == ["settings", "mtu"]
    found = link(host)
    data = found["linkinfo"]["info_data"]
    assert (found["ifindex"], found["mtu"], data["link"], data["local"]) == (index, 1400, "eth2", "192.0.2.2")


def test_a_device_of_ours_with_another_port_is_made_anew_with_its_mac(host: OneHost) -> None:
    taken(host)
    device = opened(host, VxlanKind("flannel.1", 1, 4789), mac=OTHER_MAC)
    assert link(host)["linkinfo"]["info_data"]["port"] == 8472
    host.call(device.take, FIRST, None)
    found = link(host)
    assert (found["linkinfo"]["info_data"]["port"], found["address"]) == (4789, "0a:00:00:00:00:01")


def test_a_device_without_our_mark_is_ours_by_the_mac_that_our_entry_names(host: OneHost) -> None:
    host.ip("link add flannel.1 address 0a:00:00:00:00:01 type vxlan id 1 dev eth1 dstport 4789")
    with pytest.raises(FlannelError, match="and it is not ours: it has id 1 dev eth1 dstport 4789, not id 1 local"):
        opened(host, claimed=OTHER_MAC)
    device = opened(host, claimed=MAC)
    host.call(device.take, FIRST, None)
    assert link(host)["linkinfo"]["info_data"]["port"] == 8472


def test_a_former_device_of_ours_makes_way(host: OneHost) -> None:
    host.ip(
        "link add flannel.7 type vxlan external dstport 8472",
        "link set flannel.7 alias flannel-udp up",
        "link add flannel.8 type vxlan id 8 dev eth1 dstport 8472",
    )
    device = taken(host)
    assert "flannel.7" not in "".join(host.show("link"))
    host.ip("link set flannel.8 alias flannel-udp")
    host.call(device.remove_former)
    assert "flannel.8" not in "".join(host.show("link"))
    assert host.call(device.look) == []


def test_what_is_down_without_an_address_has_no_neighbours_and_routes_and_comes_back(host: OneHost) -> None:
    device = taken(host)
    host.ip("route add 10.1.16.0/24 via 10.1.16.0 dev flannel.1 onlink")
    host.ip("neighbour add 10.1.16.0 lladdr 0a:00:00:00:00:09 dev flannel.1 nud permanent")
    host.call(device.remove)
    assert host.routes() == host.show("neighbour show dev flannel.1") == []
    assert "UP" not in link(host)["flags"]
    host.call(device.take, FIRST, None)
    assert host.call(device.look) == []


def test_only_what_bears_our_mark_is_removed_as_an_earlier_runs(host: OneHost) -> None:
    taken(host)
    host.ip("link add vxlan9 type vxlan id 9 dev eth1 dstport 8472")
    assert host.call(remove_marked, "vxlan") == ["the device flannel.1"]
    assert "vxlan9" in "".join(host.show("link"))
