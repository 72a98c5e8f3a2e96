"""Every backend's own part of the network configuration, and whom it takes for a peer."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.table import BACKENDS
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Ends, Interface, LeaseAttrs
from flannel_udp.netconf.config import BackendConfig, NetworkConfig
from tests.support.backends import parse_config

NETWORK = {"Network": "10.1.0.0/16"}
PROVIDERS = [kind for kind, backend in BACKENDS.items() if isinstance(backend, CloudBackend)]
LIBRARIES = (
    "alibabacloud_credentials",
    "alibabacloud_vpc20160428",
    "boto3",
    "darabonba",
    "google.auth",
    "requests",
    "tencentcloud",
    "urllib3",
)
WITHOUT_OPTIONS = [kind for kind in BACKENDS if not BACKENDS[kind].option_keys]


def parse(**backend: Any) -> BackendConfig:
    parsed = parse_config(json.dumps({**NETWORK, "Backend": backend}))
    assert parsed.warnings == ()
    return parsed.config.backend


def faults(**keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps({**NETWORK, **keys}))
    return caught.value.faults


def interface(mtu: int, public_ip: str = "192.0.2.1") -> Interface:
    return Interface("eth0", 2, mtu, Ends(IPv4Address("192.0.2.1"), IPv4Address(public_ip)))


def config_of(kind: str, **options: Any) -> NetworkConfig:
    return parse_config(json.dumps({**NETWORK, "Backend": {"Type": kind, **options}})).config


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_backend_is_found_by_its_own_name_in_any_case(kind: str) -> None:
    assert BACKENDS[kind].type == kind
    assert parse(Type=kind.upper()).type == kind


@pytest.mark.parametrize("kind", ["wireguard", "ipsec", "extension", "nonsense"])
def test_a_backend_that_we_do_not_have_is_refused_with_those_that_we_have(kind: str) -> None:
    known = ", ".join(BACKENDS)
    assert faults(Backend={"Type": kind, "VNI": "x"}) == [
        f'Backend.Type is "{kind}": this agent has no such backend, it has {known}'
    ]


@pytest.mark.parametrize(("kind", "meant"), [("vxlna", "vxlan"), ("hostgw", "host-gw"), ("upd", "udp")])
def test_a_misspelt_backend_is_answered_with_the_one_that_is_meant(kind: str, meant: str) -> None:
    (fault,) = faults(Backend={"Type": kind})
    assert fault.endswith(f"{', '.join(BACKENDS)}: did you mean {meant}?")


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if 6 in BACKENDS[kind].families])
def test_a_backend_carries_ipv6_beside_ipv4_or_alone(kind: str) -> None:
    v6 = {"EnableIPv6": True, "IPv6Network": "fd00:1::/48", "Backend": {"Type": kind}}
    assert parse_config(json.dumps({**NETWORK, **v6})).config.versions == (4, 6)
    assert parse_config(json.dumps({**v6, "EnableIPv4": False})).config.versions == (6,)


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if 6 not in BACKENDS[kind].families])
def test_a_backend_refuses_the_families_that_it_does_not_carry(kind: str) -> None:
    v6 = {"EnableIPv6": True, "IPv6Network": "fd00::/48", "Backend": {"Type": kind}}
    carries = f"EnableIPv6 is true: the backend {kind} carries IPv4 only"
    assert faults(**v6) == [carries]
    assert faults(**v6, EnableIPv4=False) == [carries, f"EnableIPv4 is false: the backend {kind} carries nothing else"]


# --- udp ----------------------------------------------------------------------------------------------------------


def test_udps_options_have_flannels_defaults() -> None:
    assert parse() == BackendConfig("udp", {"Port": 8285, "DSCP": 0})


def test_udps_port_can_be_chosen() -> None:
    assert [parse(port=port).options["Port"] for port in (1, 65535)] == [1, 65535]


@pytest.mark.parametrize("dscp", [0, 46, 63])
def test_udps_dscp_can_be_a_number(dscp: int) -> None:
    assert parse(dscp=dscp).options["DSCP"] == dscp


@pytest.mark.parametrize("backend", [{"dScP": "inherit"}, {"DSCP": "INHERIT"}])
def test_udps_dscp_can_be_the_inner_packets(backend: Any) -> None:
    assert parse(**backend).options["DSCP"] == "inherit"


@pytest.mark.parametrize(
    ("backend", "direct"),
    [({"directrouting": True}, True), ({"DirectRouting": False}, None), ({"DirectRouting": None}, None)],
)
def test_udps_direct_routing_can_be_switched_on(backend: Any, direct: bool | None) -> None:
    assert parse(**backend).options.get("DirectRouting") is direct


@pytest.mark.parametrize("backend", [{}, {"DSCP": None}])
def test_udps_dscp_is_none_of_the_pods_business_unless_said(backend: Any) -> None:
    assert parse(**backend).options["DSCP"] == 0


async def test_udps_mtu_is_as_large_as_the_interface_allows_unless_said() -> None:
    assert [parse(mtu=mtu).options["MTU"] for mtu in (68, 1400, 65507)] == [68, 1400, 65507]
    assert "MTU" not in parse(MTU=None).options
    await BACKENDS["udp"].check(config_of("udp", MTU=1472), interface(1500))
    with pytest.raises(ConfigError, match=r"MTU is 1473: the MTU of eth0, 1500, leaves room for 1472"):
        await BACKENDS["udp"].check(config_of("udp", MTU=1473), interface(1500))


@pytest.mark.parametrize(
    ("backend", "fault"),
    [
        ({"Port": 0}, "Backend.Port is 0: expected 1 to 65535"),
        ({"Port": 65536}, "Backend.Port is 65536: expected 1 to 65535"),
        ({"Port": "8285"}, 'Backend.Port is "8285": expected a whole number'),
        ({"Port": True}, "Backend.Port is true: expected a whole number"),
        ({"DSCP": 64}, 'Backend.DSCP is 64: expected "inherit" or 0 to 63'),
        ({"DSCP": -1}, 'Backend.DSCP is -1: expected "inherit" or 0 to 63'),
        ({"DSCP": "46"}, 'Backend.DSCP is "46": expected "inherit" or 0 to 63'),
        ({"DSCP": "ef"}, 'Backend.DSCP is "ef": expected "inherit" or 0 to 63'),
        ({"DSCP": True}, 'Backend.DSCP is true: expected "inherit" or 0 to 63'),
        ({"DSCP": 46.0}, 'Backend.DSCP is 46.0: expected "inherit" or 0 to 63'),
        ({"MTU": 67}, "Backend.MTU is 67: expected 68 to 65507"),
        ({"MTU": 65_508}, "Backend.MTU is 65508: expected 68 to 65507"),
        ({"MTU": 0}, "Backend.MTU is 0: expected 68 to 65507"),
        ({"MTU": "1400"}, 'Backend.MTU is "1400": expected a whole number'),
        ({"DirectRouting": "yes"}, 'Backend.DirectRouting is "yes": expected true or false'),
        ({"DirectRouting": 1}, "Backend.DirectRouting is 1: expected true or false"),
    ],
)
def test_a_wrong_option_of_udp_is_one_line(backend: dict[str, Any], fault: str) -> None:
    assert faults(Backend=backend) == [fault]


async def test_udp_needs_room_for_its_headers() -> None:
    with pytest.raises(FlannelError, match="the MTU of eth0, 90, leaves no room for a tunnel"):
        await BACKENDS["udp"].check(config_of("udp"), interface(90))


# --- those that the kernel carries --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITHOUT_OPTIONS)
def test_a_backend_without_options_has_none_and_warns_of_what_it_is_given(kind: str) -> None:
    parsed = parse_config(json.dumps({**NETWORK, "Backend": {"Type": kind, "Port": "any"}}))
    assert parsed.config.backend == BackendConfig(kind, {})
    assert parsed.warnings == ('unknown key "Backend.Port" is ignored',)


# --- peers --------------------------------------------------------------------------------------------------------


def hosts_taken(kind: str) -> list[str]:
    """Return which backend types of a lease the backend takes for a peer."""
    taken = []
    for theirs in ("", "udp", "UDP", "host-gw", "alloc", "vxlan"):
        try:
            BACKENDS[kind].read_hop(LeaseAttrs(IPv4Address("192.0.2.2"), backend_type=theirs))
        except ValueError as error:
            assert str(error) == f"its backend is {theirs!r}, ours is {kind}"
        else:
            taken.append(theirs)
    return taken


def test_udp_takes_udp_hosts_and_those_that_name_no_backend() -> None:
    assert hosts_taken("udp") == ["", "udp", "UDP"]


@pytest.mark.parametrize("kind", ["aws-vpc", "ali-vpc", "gce", "tencent-vpc"])
def test_cloud_routes_take_hosts_that_name_no_backend_as_flannel_s_do(kind: str) -> None:
    assert hosts_taken(kind) == [""]


def test_alloc_takes_alloc_hosts_and_those_that_name_no_backend() -> None:
    assert hosts_taken("alloc") == ["", "alloc"]


def test_providers_libraries_are_imported_only_when_somebody_asks() -> None:
    assert all(map(find_spec, LIBRARIES))  # a name that is wrong would never be imported
    lines = [
        "import json, sys; from flannel_udp.backend.table import BACKENDS",
        "from flannel_udp.netconf.config import parse_network_config",
        "for kind in sys.argv[1:]:",
        "    parse_network_config(json.dumps({'Network': '10.1.0.0/16', 'Backend': {'Type': kind}}), BACKENDS)",
        f"print(*set({LIBRARIES}) & sys.modules.keys())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *PROVIDERS], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
