"""The backend vxlan: its options, what it says of itself and takes from others, and who carries its packets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest

from flannel_udp.backend.datapath import KindUnknown, choose_datapath
from flannel_udp.backend.ends import with_public_ip
from flannel_udp.backend.protocol import Context, Handed, Network
from flannel_udp.backend.table import BACKENDS
from flannel_udp.backend.vxlan.hop import VxlanHop, format_mac, parse_mac, random_mac, read_vxlan_hop, vxlan_attrs
from flannel_udp.backend.vxlan.macs import SharedMacs
from flannel_udp.backend.vxlan.options import VNI_MAX, vxlan_device
from flannel_udp.backend.vxlan.vnis import OtherVnis
from flannel_udp.control.allocation import Seeker
from flannel_udp.control.former import read_former
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Delta, Ends, Interface, LeaseAttrs, Peer, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import DataplaneOptions, Options
from flannel_udp.registry.keys import format_key, format_value, parse_value
from tests.support.backends import parse_config
from tests.support.memory_registry import MemoryRegistry

VXLAN = BACKENDS["vxlan"]
MAC = "8e:64:7c:7f:e7:c9"
VALUE = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"8e:64:7c:7f:e7:c9"}}'
)
"""As flanneld 0.28.9 writes it."""


def config_of(**options: Any) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", **options}})).config


def attrs(data: Any, kind: str = "vxlan") -> LeaseAttrs:
    return LeaseAttrs(IPv4Address("192.0.2.2"), backend_type=kind, backend_data=data)


def interface(mtu: int) -> Interface:
    return Interface("eth0", 2, mtu, Ends(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1")))


# --- options ------------------------------------------------------------------------------------------------------


def test_options_have_flannels_defaults() -> None:
    assert config_of().backend.options == {"VNI": 1, "Port": 8472, "DirectRouting": False}


def test_options_are_found_without_regard_to_case() -> None:
    options = config_of(vni=16777215, PORT=4789, mtu=1400, directrouting=True, gbp=False).backend.options
    assert options == {"VNI": 16777215, "Port": 4789, "DirectRouting": True, "MTU": 1400}


def test_the_normalised_configuration_reads_as_itself() -> None:
    config = config_of(VNI=7, MTU=1450)
    assert parse_config(config.to_json()).config == config


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"VNI": 0}, "Backend.VNI is 0: expected 1 to 16777215"),
        ({"VNI": 1 << 24}, "Backend.VNI is 16777216: expected 1 to 16777215"),
        ({"VNI": "1"}, 'Backend.VNI is "1": expected a whole number'),
        ({"Port": 0}, "Backend.Port is 0: expected 1 to 65535"),
        ({"Port": 65_536}, "Backend.Port is 65536: expected 1 to 65535"),
        ({"MTU": 117}, "Backend.MTU is 117: expected 118 to 65535"),
        ({"MTU": 65_536}, "Backend.MTU is 65536: expected 118 to 65535"),
        ({"DirectRouting": "yes"}, 'Backend.DirectRouting is "yes": expected true or false'),
        ({"GBP": True}, "Backend.GBP is true: this agent carries no group policies (VXLAN GBP): leave it out"),
        ({"GBP": 1}, "Backend.GBP is 1: expected true or false"),
        ({"Learning": 1}, "Backend.Learning is 1: expected true or false"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**options)
    assert caught.value.faults == [fault]


def test_learning_is_ignored_with_a_line() -> None:
    document = {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Learning": True}}
    parsed = parse_config(json.dumps(document))
    assert parsed.warnings == ("Backend.Learning is ignored: who has which MAC address is in the leases",)
    assert parsed.config == config_of()


async def test_backends_mtu_is_the_underlays_and_has_to_fit_the_interfaces() -> None:
    await VXLAN.check(config_of(MTU=1500), interface(1500))
    with pytest.raises(ConfigError, match="MTU is 1501: larger than the MTU of eth0, 1500: lower the one or raise"):
        await VXLAN.check(config_of(MTU=1501), interface(1500))
    with pytest.raises(FlannelError, match="the MTU of eth0, 117, leaves no room for a tunnel"):
        await VXLAN.check(config_of(), interface(117))


@pytest.mark.parametrize(
    ("vni", "name"), [(1, "flannel.1"), (9_999_999, "flannel.9999999"), (10_000_000, "flannel.x989680")]
)
def test_a_device_has_flannels_name_where_the_kernel_takes_it(vni: int, name: str) -> None:
    assert vxlan_device(config_of(VNI=vni)) == name
    assert len(vxlan_device(config_of(VNI=VNI_MAX))) == 15


# --- what a lease says --------------------------------------------------------------------------------------------


def test_the_value_is_flannels_byte_for_byte() -> None:
    ours = with_public_ip(vxlan_attrs(1, parse_mac(MAC)), IPv4Address("192.0.2.1"))
    assert format_value(ours) == VALUE


def test_a_peers_mac_is_read_from_flannels_value() -> None:
    assert VXLAN.read_hop(parse_value(VALUE)) == VxlanHop(0x8E647C7FE7C9, 1)


def test_a_peers_vni_is_not_compared() -> None:
    assert read_vxlan_hop(attrs({"VNI": 4711, "VtepMAC": MAC})) == VxlanHop(0x8E647C7FE7C9, 4711)
    assert read_vxlan_hop(attrs({"vtepmac": MAC.upper()})) == VxlanHop(0x8E647C7FE7C9)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "its BackendData None is no object with a VtepMAC"),
        ("x" * 100, f"its BackendData '{'x' * 56}... is no object with a VtepMAC"),
        ([MAC], f"its BackendData ['{MAC}'] is no object with a VtepMAC"),
        ({"VNI": 1}, "its BackendData has no VtepMAC"),
        ({"VtepMAC": None}, "its BackendData has no VtepMAC"),
        ({"VtepMAC": 7}, "its VtepMAC 7 is no string"),
        ({"VtepMAC": ""}, "'' is no MAC address such as 8e:64:7c:7f:e7:c9"),
        ({"VtepMAC": "8e:64:7c:7f:e7"}, "'8e:64:7c:7f:e7' is no MAC address such as 8e:64:7c:7f:e7:c9"),
        ({"VtepMAC": f"{MAC}\n"}, f"'{MAC}\\n' is no MAC address such as 8e:64:7c:7f:e7:c9"),
        ({"VtepMAC": "00:00:00:00:00:00"}, "its VtepMAC 00:00:00:00:00:00 is all zeros"),
        ({"VtepMAC": "ff:ff:ff:ff:ff:ff"}, "its VtepMAC ff:ff:ff:ff:ff:ff is a group's address, no host's"),
        ({"VtepMAC": "01:00:5e:00:00:01"}, "its VtepMAC 01:00:5e:00:00:01 is a group's address, no host's"),
    ],
)
def test_a_host_that_cannot_be_sent_to_is_no_peer_for_one_reason(data: Any, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        VXLAN.read_hop(attrs(data))
    assert str(caught.value) == why


def test_nobody_else_can_have_our_mac() -> None:
    ours = with_public_ip(vxlan_attrs(1, parse_mac(MAC)), IPv4Address("192.0.2.1"))
    assert VXLAN.read_hop(vxlan_attrs(1, 0x8E647C7FE7C8), ours) == VxlanHop(0x8E647C7FE7C8, 1)
    with pytest.raises(ValueError, match=f"its VtepMAC {MAC} is ours"):
        VXLAN.read_hop(attrs({"VNI": 2, "VtepMAC": MAC.upper()}), ours)


@pytest.mark.parametrize("theirs", ["", "udp", "host-gw"])
def test_hosts_of_another_backend_are_no_peers(theirs: str) -> None:
    with pytest.raises(ValueError, match=f"its backend is '{theirs}', ours is vxlan"):
        VXLAN.read_hop(replace(vxlan_attrs(1, 2), backend_type=theirs))


def test_a_random_mac_is_one_hosts_and_no_manufacturers() -> None:
    macs = {random_mac() for _ in range(100)}
    assert len(macs) == 100
    assert {mac >> 40 & 3 for mac in macs} == {2}
    assert all(parse_mac(format_mac(mac)) == mac for mac in macs)


# --- our own entry, before there is a lease -----------------------------------------------------------------------


async def test_our_entry_is_known_before_there_is_a_lease() -> None:
    registry, config = MemoryRegistry(), config_of()
    ours = Seeker(IPv4Address("192.0.2.1"), 7)
    assert await read_former(registry, config, ours) is None
    await registry.create(format_key(Subnet(IPv4Network("10.1.15.0/24"))), VALUE, 60)
    await registry.create("10.1.16.0-24", VALUE.replace(b"192.0.2.1", b"192.0.2.2"), 60)
    await registry.create("nonsense", b"{", 60)
    assert await read_former(registry, config, ours) == parse_value(VALUE)


# --- who carries packets ------------------------------------------------------------------------------------------

NONSENSE: tuple[str, Mapping[int, bytes]] = ("nonsense", {})
"""A kind that no kernel knows."""


async def chosen(
    datapath: str,
    *,
    kernel: str | Exception = "kernel",
    handed: Handed | None = None,
    probe: tuple[str, Mapping[int, bytes]] | None = None,
) -> Any:
    options = Options(dataplane=DataplaneOptions(datapath=datapath))
    context = Context(options, config_of(), interface(1500), lambda: None, handed)

    async def by_kernel() -> Network:
        if isinstance(kernel, Exception):
            raise kernel
        return cast(Network, kernel)

    async def by_us(why: str) -> Network:
        return cast(Network, why)

    return await choose_datapath(context, by_kernel, by_us, probe=probe)


async def test_the_kernel_carries_where_it_can() -> None:
    assert await chosen("auto") == "kernel"
    assert await chosen("kernel") == "kernel"
    assert await chosen("userspace") == "--datapath=userspace"


async def test_only_a_kernel_without_vxlan_leads_to_userspace() -> None:
    unknown = KindUnknown("this kernel has no vxlan")
    assert await chosen("auto", kernel=unknown) == "this kernel has no vxlan"
    with pytest.raises(FlannelError, match="this kernel has no vxlan: load its module, or leave out --datapath=kernel"):
        await chosen("kernel", kernel=unknown)
    for other in (FlannelError("UDP port 8472 is in use"), FlannelError("flannel.1 exists")):
        with pytest.raises(FlannelError, match=str(other)):
            await chosen("auto", kernel=other)


async def test_a_packet_path_that_another_process_hands_over_stays_one() -> None:
    taken_over = Handed({"tun-0": 3}, {})
    assert await chosen("auto", handed=taken_over) == "as the run before this one"
    assert await chosen("auto", handed=taken_over, probe=NONSENSE) == "this kernel has no nonsense"


async def test_what_systemd_kept_is_gone_on_with_where_the_kernel_cannot_carry() -> None:
    assert await chosen("auto", handed=Handed({"tun-0": 3}), probe=NONSENSE) == "this kernel has no nonsense"
    assert await chosen("userspace", handed=Handed({"tun-0": 3})) == "--datapath=userspace"


# --- two hosts with one MAC ---------------------------------------------------------------------------------------


def peer(number: int, mac: int, host: int | None = None) -> Peer:
    """Return the peer with the subnet 10.1.N.0/24, on 192.0.2.N unless that is another host."""
    return Peer(IPv4Network(f"10.1.{number}.0/24"), IPv4Address(f"192.0.2.{host or number}"), VxlanHop(mac))


def test_peers_with_one_mac_are_named_while_they_have_it() -> None:
    macs = SharedMacs()
    macs.take([Delta(added=(peer(2, 2), peer(3, 3), peer(4, 4)))], whole=True)
    assert not macs.problems
    macs.take([Delta(changed=(peer(3, 2),))], whole=False)
    (line,) = macs.problems
    assert line.startswith("peers 192.0.2.2 and 192.0.2.3 have one VtepMAC, 00:00:00:00:00:02, so that packets for one")
    macs.take([Delta(removed=(peer(2, 2),))], whole=False)
    assert not macs.problems
    macs.take([Delta(added=(peer(4, 4),))], whole=True)
    assert not macs.problems


def test_a_host_with_two_subnets_has_one_mac() -> None:
    macs = SharedMacs()
    macs.take([Delta(added=(peer(2, 2), peer(3, 2, host=2)))], whole=True)
    assert not macs.problems


def test_many_shared_macs_are_named_in_a_few_lines() -> None:
    macs = SharedMacs()
    macs.take([Delta(added=tuple(peer(number, number // 2) for number in range(2, 102)))], whole=True)
    assert len(macs.problems) == 11
    assert macs.problems[-1] == "and 40 more VtepMACs are those of several peers"


def test_hosts_of_another_vni_are_named_until_theirs_is_ours() -> None:
    def at(number: int, vni: int | None) -> Peer:
        return replace(peer(number, 0x20 + number), hop=VxlanHop(0x20 + number, vni))

    vnis = OtherVnis(1)
    vnis.take([Delta(added=(at(2, 1), at(3, None), at(4, 7), at(5, 7)))], whole=True)
    (problem,) = vnis.problems
    assert problem.startswith(
        "the VNI of 192.0.2.4, 192.0.2.5 is 7, ours is 1: no packets travel between us: start the"
    )
    vnis.take([Delta(changed=(at(4, 1),), removed=(at(5, 7),))], whole=False)
    assert vnis.problems == ()
