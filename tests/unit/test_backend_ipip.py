"""The backend ipip: its option, what it says of itself and takes from others, and how long packets may be."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp.backend.ipip.options import ipip_mtu
from flannel_udp.backend.table import BACKENDS
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Ends, Interface, LeaseAttrs
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry.keys import format_value, parse_value
from tests.support.backends import parse_config

IPIP = BACKENDS["ipip"]
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}'
"""As flanneld 0.28.9 writes it."""


def config_of(**options: Any) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "ipip", **options}})).config


def interface(mtu: int) -> Interface:
    return Interface("eth0", 2, mtu, Ends(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1")))


def test_direct_routing_is_all_there_is_to_choose_and_off_unless_said() -> None:
    assert config_of().backend.options == {"DirectRouting": False}
    assert config_of(directrouting=True).backend.options == {"DirectRouting": True}
    assert parse_config(config_of(DirectRouting=True).to_json()).config == config_of(DirectRouting=True)


@pytest.mark.parametrize("value", ["yes", "true", 1, 0])
def test_a_wrong_option_is_one_line(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(DirectRouting=value)
    assert caught.value.faults == [f"Backend.DirectRouting is {json.dumps(value)}: expected true or false"]


@pytest.mark.parametrize("key", ["Port", "MTU", "VNI"])
def test_options_of_other_backends_are_unknown_here(key: str) -> None:
    parsed = parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "ipip", key: 1}}))
    assert parsed.warnings == (f'unknown key "Backend.{key}" is ignored',)


def test_the_value_is_flannels_byte_for_byte() -> None:
    assert format_value(LeaseAttrs(IPv4Address("192.0.2.1"), backend_type="ipip")) == VALUE
    IPIP.read_hop(parse_value(VALUE))


@pytest.mark.parametrize("theirs", ["", "udp", "vxlan", "host-gw"])
def test_hosts_of_other_backends_are_no_peers(theirs: str) -> None:
    with pytest.raises(ValueError, match="ours is ipip"):
        IPIP.read_hop(LeaseAttrs(IPv4Address("192.0.2.2"), backend_type=theirs))


@pytest.mark.parametrize(("interface_mtu", "mtu"), [(1_500, 1_480), (9_000, 8_980), (65_536, 65_515), (88, 68)])
def test_the_outer_header_takes_twenty_bytes(interface_mtu: int, mtu: int) -> None:
    assert ipip_mtu(interface(interface_mtu)) == mtu


async def test_an_interface_without_room_is_refused_before_any_lease() -> None:
    with pytest.raises(FlannelError, match="the MTU of eth0, 87, leaves no room for a tunnel"):
        await IPIP.check(config_of(), interface(87))
