"""The network configuration: every default, every bound, every way to be wrong (FLANNEL compatibility, section 2)."""

from __future__ import annotations

import json
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flannel_udp.backend.udp import UdpBackend
from flannel_udp.errors import ConfigError
from flannel_udp.model import Subnet
from flannel_udp.netconf.addresses import LINK_LOCAL, why_no_overlay
from flannel_udp.netconf.config import BackendConfig, NetworkConfig, SubnetRange, parse_network_config
from flannel_udp.netconf.reader import MAX_CONFIG_BYTES, MAX_NESTING


class DualStack(UdpBackend):
    """What reads both families: which of them a backend carries is its own matter, see test_backends."""

    families = frozenset({4, 6})


parse_config = partial(parse_network_config, backends={"udp": DualStack(), "other": DualStack()})


def parse(**keys: Any) -> NetworkConfig:
    """Parse a good configuration that gives no warnings."""
    parsed = parse_config(json.dumps(keys))
    assert parsed.warnings == ()
    return parsed.config


def parse_v4(**keys: Any) -> SubnetRange[IPv4Network]:
    v4 = parse(**keys).v4
    assert v4 is not None
    return v4


def parse_v6(**keys: Any) -> SubnetRange[IPv6Network]:
    v6 = parse(EnableIPv4=False, EnableIPv6=True, **keys).v6
    assert v6 is not None
    return v6


def faults(raw: bytes | str | dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps(raw) if isinstance(raw, dict) else raw)
    assert caught.value.exit_code == 2
    assert all("\n" not in fault and fault.isprintable() for fault in caught.value.faults)
    return caught.value.faults


# --- Defaults -----------------------------------------------------------------------------------------------------


def test_only_network_is_needed_and_everything_else_has_flannels_default() -> None:
    network = IPv4Network("10.1.0.0/16")
    assert parse(Network="10.1.0.0/16") == NetworkConfig(
        v4=SubnetRange(network, IPv4Network("10.1.1.0/24"), IPv4Network("10.1.255.0/24")),
        v6=None,
        enable_nftables=False,
        backend=BackendConfig("udp", {"Port": 8285, "DSCP": 0}),
    )


@pytest.mark.parametrize(
    ("network", "subnet_len"),
    [("10.0.0.0/8", 24), ("10.1.0.0/21", 24), ("10.1.0.0/22", 24), ("10.1.0.0/23", 25), ("10.1.0.0/28", 30)],
)
def test_default_subnet_len_is_24_or_network_plus_two(network: str, subnet_len: int) -> None:
    assert parse_v4(Network=network).subnet_len == subnet_len


@pytest.mark.parametrize(
    ("network", "subnet_len"),
    [("fd00::/48", 64), ("fd00::/62", 64), ("fd00::/63", 65), ("fd00::/124", 126)],
)
def test_default_ipv6_subnet_len_is_64_or_network_plus_two(network: str, subnet_len: int) -> None:
    assert parse_v6(IPv6Network=network).subnet_len == subnet_len


def test_ipv6_range_starts_at_the_second_and_ends_at_the_last_subnet() -> None:
    v6 = parse_v6(IPv6Network="fd00:1::/48")
    assert (v6.first, v6.last) == (IPv6Network("fd00:1:0:1::/64"), IPv6Network("fd00:1:0:ffff::/64"))
    assert v6.count == 65_535


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("0.1.0.0/16", '0.0.0.0/8 is "this network"'),
        ("127.5.0.0/16", "127.0.0.0/8 is loopback"),
        ("126.0.0.0/7", "127.0.0.0/8 is loopback"),
        ("224.0.0.0/8", "224.0.0.0/4 is multicast"),
        ("239.255.0.0/16", "224.0.0.0/4 is multicast"),
        ("192.0.0.0/2", "224.0.0.0/4 is multicast"),
        ("255.255.0.0/16", "255.255.255.255/32 is broadcast"),
        ("240.0.0.0/4", "255.255.255.255/32 is broadcast"),
    ],
)
def test_a_network_of_addresses_that_no_host_can_have_is_refused(network: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(json.dumps({"Network": network, "SubnetMin": network.split("/", maxsplit=1)[0]}))
    expected = "expected a network whose addresses hosts can have"
    assert refused.value.faults == [f'Network is "{network}": {expected}: {why}']


@pytest.mark.parametrize("network", ["240.10.0.0/16", "255.0.0.0/9", "1.0.0.0/8", "126.0.0.0/8", "223.255.0.0/16"])
def test_what_linux_routes_may_be_an_overlay(network: str) -> None:
    assert parse_v4(Network=network).network == IPv4Network(network)


def test_link_local_addresses_as_an_overlay_are_warned_about() -> None:
    parsed = parse_config(json.dumps({"Network": "169.254.0.0/16"}))
    assert parsed.warnings == ("Network 169.254.0.0/16 overlaps 169.254.0.0/16, addresses that hosts give themselves",)


def test_the_last_network_of_the_address_space_does_not_overflow() -> None:
    assert parse_v4(Network="255.255.255.224/28").last == IPv4Network("255.255.255.236/30")
    last = "feff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"  # what comes after that is multicast
    assert parse_v6(IPv6Network=last).last == IPv6Network("feff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126")


def test_zero_and_null_mean_the_default_as_in_go() -> None:
    zero = "0.0.0.0"
    explicit = parse(Network="10.1.0.0/16", SubnetLen=0, SubnetMin=zero, SubnetMax=zero)
    nulls = parse(Network="10.1.0.0/16", SubnetLen=None, SubnetMin=None, SubnetMax=None, EnableIPv4=None)
    assert explicit == nulls == parse(Network="10.1.0.0/16")


@pytest.mark.parametrize("backend", [{}, None, {"Type": "udp"}, {"type": "UDP"}, {"Type": ""}, {"Type": None}])
def test_an_absent_empty_or_null_backend_is_udp(backend: Any) -> None:
    assert parse(Network="10.1.0.0/16", Backend=backend).backend.type == "udp"


def test_explicit_bounds_are_taken_even_the_first_subnet() -> None:
    v4 = parse_v4(Network="10.1.0.0/16", SubnetLen=26, SubnetMin="10.1.0.0", SubnetMax="10.1.0.192")
    assert (str(v4.first), str(v4.last), v4.count) == ("10.1.0.0/26", "10.1.0.192/26", 4)


def test_one_single_subnet_is_a_range() -> None:
    assert parse_v4(Network="10.1.0.0/16", SubnetMin="10.1.5.0", SubnetMax="10.1.5.0").count == 1


# --- Keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_matched_without_regard_to_case() -> None:
    assert parse(network="10.1.0.0/16", SUBNETLEN=26, enablenftables=True, bAcKeNd={"tYpE": "udp", "PORT": 9}) == parse(
        Network="10.1.0.0/16", SubnetLen=26, EnableNFTables=True, Backend={"Type": "udp", "Port": 9}
    )


def test_of_two_equal_keys_the_last_wins_with_a_warning() -> None:
    parsed = parse_config('{"Network": "10.1.0.0/16", "SubnetLen": 25, "subnetlen": 26}')
    assert parsed.config.v4 is not None
    assert parsed.config.v4.subnet_len == 26
    assert parsed.warnings == ("SubnetLen is given more than once: the last one, 26, counts",)


def test_unknown_keys_are_warned_about_and_not_fatal() -> None:
    parsed = parse_config('{"Network": "10.1.0.0/16", "Netwrok": 1, "a\\nb": 2, "Backend": {"Prot": 3}}')
    assert parsed.warnings == (
        'unknown key "Netwrok" is ignored: did you mean Network?',
        'unknown key "a\\nb" is ignored',
        'unknown key "Backend.Prot" is ignored: did you mean Backend.Port?',
    )


def test_of_many_unknown_keys_the_first_few_are_compared_with_known_ones() -> None:
    document = {"Network": "10.1.0.0/16", **{f"Subnet{number}": 1 for number in range(1000)}}
    warnings = parse_config(json.dumps(document)).warnings
    assert len(warnings) == 1000
    assert [("did you mean" in warning) for warning in warnings] == [True] * 10 + [False] * 990


def test_cleared_host_bits_are_said() -> None:
    parsed = parse_config('{"Network": "10.1.2.3/16"}')
    assert parsed.config.v4 is not None
    assert parsed.config.v4.network == IPv4Network("10.1.0.0/16")
    assert parsed.warnings == ('Network is "10.1.2.3/16": taken as 10.1.0.0/16',)


def test_a_family_that_is_off_is_not_bound_checked_but_said_to_have_no_effect() -> None:
    parsed = parse_config('{"Network": "10.1.0.0/16", "IPv6Network": "fd00::/127", "IPv6SubnetLen": 3}')
    assert parsed.config.v6 is None
    assert parsed.warnings == ("IPv6Network, IPv6SubnetLen without effect: EnableIPv6 is false",)


# --- Faults -------------------------------------------------------------------------------------------------------

V4 = {"Network": "10.1.0.0/16"}
V6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00::/48"}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({}, 'Network is missing: expected a network such as "10.1.0.0/16"'),
        ({"Network": None}, 'Network is missing: expected a network such as "10.1.0.0/16"'),
        ({"Network": 10}, "Network is 10: expected a string"),
        ({"Network": ""}, 'Network is "": expected a network such as "10.1.0.0/16"'),
        ({"Network": "10.1.0.0"}, 'Network is "10.1.0.0": expected a network such as "10.1.0.0/16"'),
        (
            {"Network": "10.1.0.0/255.255.0.0"},
            'Network is "10.1.0.0/255.255.0.0": expected a network such as "10.1.0.0/16"',
        ),
        ({"Network": "10.1.0.0/33"}, 'Network is "10.1.0.0/33": expected a network such as "10.1.0.0/16"'),
        ({"Network": "fd00::/48"}, 'Network is "fd00::/48": expected a network such as "10.1.0.0/16"'),
        ({"Network": "0.0.0.0/0"}, 'Network is "0.0.0.0/0": expected a part of the address space, not all of it'),
        ({"Network": "10.1.0.0/29"}, 'Network is "10.1.0.0/29": expected /28 or wider, so that four subnets fit'),
        ({**V4, "SubnetLen": 31}, "SubnetLen is 31: expected at most 30"),
        ({**V4, "SubnetLen": -1}, "SubnetLen is -1: expected at most 30"),
        ({**V4, "SubnetLen": 17}, "SubnetLen is 17: expected at least 18, so that four subnets fit into 10.1.0.0/16"),
        ({**V4, "SubnetLen": "24"}, 'SubnetLen is "24": expected a whole number'),
        ({**V4, "SubnetLen": 24.0}, "SubnetLen is 24.0: expected a whole number"),
        ({**V4, "SubnetLen": True}, "SubnetLen is true: expected a whole number"),
        ({**V4, "SubnetMin": 1}, "SubnetMin is 1: expected a string"),
        ({**V4, "SubnetMin": "x"}, 'SubnetMin is "x": expected an address such as "10.1.0.0"'),
        ({**V4, "SubnetMin": "10.2.0.0"}, 'SubnetMin is "10.2.0.0": expected an address inside 10.1.0.0/16'),
        ({**V4, "SubnetMin": "10.1.1.1"}, 'SubnetMin is "10.1.1.1": expected the first address of a /24 subnet'),
        ({**V4, "SubnetMax": "10.0.255.0"}, 'SubnetMax is "10.0.255.0": expected an address inside 10.1.0.0/16'),
        ({**V4, "SubnetMax": "10.1.9.128"}, 'SubnetMax is "10.1.9.128": expected the first address of a /24 subnet'),
        (
            {**V4, "SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"},
            "SubnetMin (10.1.9.0) is above SubnetMax (10.1.8.0)",
        ),
        ({**V4, "SubnetMax": "10.1.0.0"}, "SubnetMin (10.1.1.0) is above SubnetMax (10.1.0.0)"),
        ({**V4, "EnableIPv4": 1}, "EnableIPv4 is 1: expected true or false"),
        ({**V4, "EnableNFTables": "true"}, 'EnableNFTables is "true": expected true or false'),
        ({"EnableIPv4": False}, "EnableIPv4 and EnableIPv6 are both false: one must be true"),
        ({**V4, "EnableIPv6": True}, 'IPv6Network is missing: expected a network such as "fd00:1::/48"'),
        ({**V4, "IPv6Network": "10.0.0.0/8"}, 'IPv6Network is "10.0.0.0/8": expected a network such as "fd00:1::/48"'),
        (
            {**V6, "IPv6Network": "fe80::1%1/64"},
            'IPv6Network is "fe80::1%1/64": expected a network such as "fd00:1::/48"',
        ),
        ({**V6, "IPv6Network": "::/0"}, 'IPv6Network is "::/0": expected a part of the address space, not all of it'),
        (
            {**V6, "IPv6Network": "fd00::/125"},
            'IPv6Network is "fd00::/125": expected /124 or wider, so that four subnets fit',
        ),
        ({**V6, "IPv6SubnetLen": 127}, "IPv6SubnetLen is 127: expected at most 126"),
        (
            {**V6, "IPv6SubnetLen": 49},
            "IPv6SubnetLen is 49: expected at least 50, so that four subnets fit into fd00::/48",
        ),
        ({**V6, "IPv6SubnetMin": "fd01::"}, 'IPv6SubnetMin is "fd01::": expected an address inside fd00::/48'),
        ({**V6, "IPv6SubnetMin": "fd00::%1"}, 'IPv6SubnetMin is "fd00::%1": expected an address such as "fd00:1::"'),
        (
            {**V6, "IPv6SubnetMax": "fd00:0:0:5::1"},
            'IPv6SubnetMax is "fd00:0:0:5::1": expected the first address of a /64 subnet',
        ),
        (
            {**V6, "IPv6SubnetMin": "fd00:0:0:5::", "IPv6SubnetMax": "fd00:0:0:4::"},
            "IPv6SubnetMin (fd00:0:0:5::) is above IPv6SubnetMax (fd00:0:0:4::)",
        ),
        ({**V4, "Backend": "udp"}, 'Backend is "udp": expected an object'),
        ({**V4, "Backend": []}, "Backend is []: expected an object"),
        ({**V4, "Backend": {"Type": 1}}, "Backend.Type is 1: expected a string"),
        ({"Network": "x" * 99}, f'Network is "{"x" * 56}...: expected a network such as "10.1.0.0/16"'),
    ],
)
def test_each_rule_has_its_own_line(document: dict[str, Any], fault: str) -> None:
    assert faults(document) == [fault]


def test_all_faults_are_reported_in_the_order_of_the_document_and_absent_keys_last() -> None:
    assert faults({"Backend": {"Port": 0, "Type": 3}, "SubnetLen": 99, "SubnetMin": "x"}) == [
        "Backend.Port is 0: expected 1 to 65535",
        "Backend.Type is 3: expected a string",
        "SubnetLen is 99: expected at most 30",
        'SubnetMin is "x": expected an address such as "10.1.0.0"',
        'Network is missing: expected a network such as "10.1.0.0/16"',
    ]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "network configuration is not JSON: line 1, column 1: Expecting value"),
        (
            '{\n  "Network" "10.1.0.0/16"\n}',
            "network configuration is not JSON: line 2, column 13: Expecting ':' delimiter",
        ),
        (b'{"Network": "\xff"}', "network configuration is not UTF-8 text: byte 14 is 0xff"),
        (b"\xef\xbb\xbf{}", "network configuration is not JSON: line 1, column 1: a byte order mark"),
        ("[1]", 'network configuration is [1]: expected a JSON object such as {"Network": "10.1.0.0/16"}'),
        ("null", 'network configuration is null: expected a JSON object such as {"Network": "10.1.0.0/16"}'),
        ('{"SubnetLen": NaN}', "network configuration holds an impossible number: NaN is not a finite number"),
        (
            '{"SubnetLen": -Infinity}',
            "network configuration holds an impossible number: -Infinity is not a finite number",
        ),
        ('{"SubnetLen": 1e999}', "network configuration holds an impossible number: 1e999 is not a finite number"),
        (
            '{"SubnetLen": ' + "9" * 5000 + "}",
            f"network configuration holds an impossible number: {'9' * 57}... has 5000 digits",
        ),
        ("[" * 100_000, f"network configuration is nested too deeply: expected at most {MAX_NESTING} levels"),
        (
            '{"Backend":' * MAX_NESTING + "[]" + "}" * MAX_NESTING,
            f"network configuration is nested too deeply: expected at most {MAX_NESTING} levels",
        ),
        (
            b" " * (MAX_CONFIG_BYTES + 1),
            f"network configuration is {MAX_CONFIG_BYTES + 1} bytes long: expected at most {MAX_CONFIG_BYTES}",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_json_object_is_one_clear_fault(raw: bytes | str, fault: str) -> None:
    assert faults(raw) == [fault]


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_input_is_parsed_or_refused_never_anything_else(raw: bytes | str) -> None:
    try:
        parse_config(raw)
    except ConfigError as error:
        assert error.faults


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4", "EnableIPv6", "IPv6Network", "Backend"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES))
def test_any_values_under_known_keys_are_parsed_or_refused(document: dict[str, Any]) -> None:
    try:
        parse_config(json.dumps(document))
    except ConfigError as error:
        assert error.faults


# --- Normalised form ----------------------------------------------------------------------------------------------


UDP_OPTIONS = {
    "Port": st.integers(1, 65_535),
    "DSCP": st.integers(0, 63) | st.sampled_from(["inherit", "Inherit", None]),
    "MTU": st.integers(68, 65_507) | st.none(),
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Good configurations with any subset of their keys written out."""
    document: dict[str, Any] = {"EnableNFTables": draw(st.booleans()), "EnableIPv4": draw(st.booleans())}
    document["EnableIPv6"] = not document["EnableIPv4"] or draw(st.booleans())
    unicast = st.integers(0x10 << 120, (0xFE << 120) - 1)
    families: list[tuple[str, type[IPv4Network] | type[IPv6Network], st.SearchStrategy[int], int, int, int]] = [
        ("", IPv4Network, st.integers(0, (1 << 32) - 1), 32, 1, 28),
        ("IPv6", IPv6Network, unicast, 128, 8, 124),
    ]
    for prefix, net, addresses, bits, widest, narrowest in families:
        if not document["EnableIPv6" if prefix else "EnableIPv4"]:
            continue
        prefix_len = draw(st.integers(widest, narrowest))
        network = net((draw(addresses) >> (bits - prefix_len) << (bits - prefix_len), prefix_len))
        assume(why_no_overlay(network) is None and not network.overlaps(LINK_LOCAL))
        subnet_len = draw(st.integers(prefix_len + 2, bits - 2))
        document[f"{prefix}Network"] = str(network)
        document[f"{prefix}SubnetLen"] = subnet_len
        indexes = sorted(draw(st.lists(st.integers(1, (1 << (subnet_len - prefix_len)) - 1), min_size=2, max_size=2)))
        if draw(st.booleans()):
            for name, index in zip(("SubnetMin", "SubnetMax"), indexes, strict=True):
                document[prefix + name] = str(network[index << (bits - subnet_len)])
    options = st.dictionaries(st.text(max_size=8).filter(lambda key: key.casefold() != "type"), JSON_VALUES, max_size=3)
    document["Backend"] = draw(
        st.fixed_dictionaries({}, optional=UDP_OPTIONS)
        | options.map(lambda more: {**more, "Type": "other"})
        | st.none()
    )
    return document


@given(documents())
def test_the_normalised_form_parses_to_the_same_value_without_warnings(document: dict[str, Any]) -> None:
    config = parse_config(json.dumps(document)).config
    again = parse_config(config.to_json())
    assert again.config == config
    assert again.config.to_json() == config.to_json()
    assert again.warnings == ()


def test_the_normalised_form_is_readable_and_complete() -> None:
    assert parse(network="10.1.0.0/16").to_json() == (
        "{\n"
        '  "EnableIPv4": true,\n'
        '  "EnableIPv6": false,\n'
        '  "EnableNFTables": false,\n'
        '  "Network": "10.1.0.0/16",\n'
        '  "SubnetLen": 24,\n'
        '  "SubnetMin": "10.1.1.0",\n'
        '  "SubnetMax": "10.1.255.0",\n'
        '  "Backend": {\n'
        '    "Type": "udp",\n'
        '    "Port": 8285,\n'
        '    "DSCP": 0\n'
        "  }\n"
        "}"
    )


# --- Which subnets fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "fits"),
    [
        ("10.1.1.0/24", True),
        ("10.1.255.0/24", True),
        ("10.1.0.0/24", False),
        ("10.2.1.0/24", False),
        ("10.1.1.0/25", False),
        ("10.1.0.0/20", False),
    ],
)
def test_a_subnet_fits_with_the_configured_length_inside_the_range(subnet: str, fits: bool) -> None:
    assert parse(Network="10.1.0.0/16").fits(Subnet(IPv4Network(subnet))) is fits


def test_dual_stack_subnets_fit_only_a_dual_stack_configuration() -> None:
    single = Subnet(IPv4Network("10.1.1.0/24"))
    dual = Subnet(IPv4Network("10.1.1.0/24"), IPv6Network("fd00:0:0:1::/64"))
    v4 = parse(Network="10.1.0.0/16")
    both = parse(Network="10.1.0.0/16", EnableIPv6=True, IPv6Network="fd00::/48")
    assert (v4.fits(single), v4.fits(dual), both.fits(single), both.fits(dual)) == (True, False, False, True)
    assert not both.fits(Subnet(dual.v4, IPv6Network("fd00::/64")))


def test_a_range_of_four_million_subnets_costs_nothing_to_count() -> None:
    assert parse_v4(Network="10.0.0.0/8", SubnetLen=30).count == (1 << 22) - 1
