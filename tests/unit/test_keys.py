"""Keys and values of `PREFIX/subnets/`: byte for byte flannel's, and every fault with its own line."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.model import LeaseAttrs, Subnet
from flannel_udp.registry.keys import MAX_VALUE_BYTES, format_key, format_value, parse_key, parse_value

subnets_v4 = st.builds(
    lambda address, prefix_len: IPv4Network((address, prefix_len), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
subnets_v6 = st.builds(
    lambda address, prefix_len: IPv6Network((address, prefix_len), strict=False),
    st.integers(0, 2**128 - 1).filter(lambda address: address >> 32 != 0xFFFF),  # no IPv4-mapped ones
    st.integers(1, 128),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
attrs = st.builds(
    LeaseAttrs,
    public_ip=st.none() | st.builds(IPv4Address, st.integers(1, 2**32 - 1)),
    public_ipv6=st.none() | st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
    backend_type=st.sampled_from(["", "vxlan", "host-gw"]),
    backend_data=json_values,
    backend_v6_data=json_values,
)

V4 = IPv4Network("10.1.15.0/24")
IP = IPv4Address("192.0.2.1")


# Keys


@pytest.mark.parametrize(
    ("key", "subnet"),
    [
        ("10.1.15.0-24", Subnet(V4)),
        ("10.1.15.0-24&fd00:1:2::-64", Subnet(V4, IPv6Network("fd00:1:2::/64"))),
        ("10.1.15.0-24&fd00:abcd::-120", Subnet(V4, IPv6Network("fd00:ABCD::/120"))),
        ("128.0.0.0-1", Subnet(IPv4Network("128.0.0.0/1"))),
        ("10.1.15.7-32", Subnet(IPv4Network("10.1.15.7/32"))),
        ("0.0.0.0-0&fd00:1:2::-64", Subnet(None, IPv6Network("fd00:1:2::/64"))),
    ],
)
def test_a_key_is_written_and_read_as_flannel_does(key: str, subnet: Subnet) -> None:
    assert format_key(subnet) == key
    assert parse_key(key) == subnet


@given(st.builds(Subnet, subnets_v4, st.none() | subnets_v6) | st.builds(Subnet, st.none(), subnets_v6))
def test_every_subnet_survives_its_key(subnet: Subnet) -> None:
    assert parse_key(format_key(subnet)) == subnet


def test_other_spellings_of_one_ipv6_prefix_are_read() -> None:
    assert parse_key("10.1.15.0-24&fd00:1:2:0::-64") == parse_key("10.1.15.0-24&fd00:1:2::-64")


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "does not look like"),
        ("10.1.15.0", "does not look like"),
        ("10.1.15.0/24", "does not look like"),
        ("10.1.15.0-24 ", "does not look like"),
        ("10.1.15.0-24\n", "does not look like"),
        ("10.1.15.0--24", "does not look like"),
        ("10.1.15.0-24&", "does not look like"),
        ("10.1.15.0-24&FD00::-64", "does not look like"),
        ("10.1.15.0-24&fe80::1%eth0-64", "does not look like"),
        ("\u0661\u0660.1.15.0-24", "does not look like"),
        ("config/10.1.15.0-24", "does not look like"),
        ("10.1.15-24", "'10.1.15' is no IPv4 address"),
        ("10.1.15.256-24", "'10.1.15.256' is no IPv4 address"),
        ("10.1.015.0-24", "'10.1.015.0' is no IPv4 address"),
        ("10.1.15.0-24&fd00:1:2-64", "'fd00:1:2' is no IPv6 address"),
        ("0.0.0.0-0", "prefix length 0 is outside 1 to 32"),
        ("0.0.0.0-0&fd00::-0", "prefix length 0 is outside 1 to 128"),
        ("10.1.15.0-33", "prefix length 33 is outside 1 to 32"),
        ("10.1.15.0-24&fd00::-0", "prefix length 0 is outside 1 to 128"),
        ("10.1.15.0-24&fd00::-129", "prefix length 129 is outside 1 to 128"),
        ("10.1.15.1-24", "host bits are set, the subnet would be 10.1.15.0/24"),
        ("10.1.15.0-24&fd00::1-64", "host bits are set, the subnet would be fd00::/64"),
        ("1" * 1_000_000, "is longer than 80 characters"),
    ],
)
def test_a_key_that_is_no_subnet_is_refused_with_one_line(key: str, fault: str) -> None:
    with pytest.raises(ValueError, match="subnet key") as caught:
        parse_key(key)
    message = str(caught.value)
    assert fault in message
    assert len(message) < 300
    assert message.isprintable()


@given(st.text(max_size=90))
def test_no_key_causes_anything_but_a_value_error(key: str) -> None:
    try:
        subnet = parse_key(key)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert parse_key(format_key(subnet)) == subnet


# Values


@pytest.mark.parametrize(
    ("value", "attributes"),
    [
        (b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', LeaseAttrs(IP)),
        (b'{"PublicIP":"192.0.2.1","PublicIPv6":"fd00::1"}', LeaseAttrs(IP, IPv6Address("fd00::1"))),
        (
            (
                b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
                b'"BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}'
            ),
            LeaseAttrs(IP, None, "vxlan", {"VNI": 1, "VtepMAC": "aa:bb:cc:dd:ee:ff"}),
        ),
        (
            b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendV6Data":{"VNI":1}}',
            LeaseAttrs(IP, None, "vxlan", None, {"VNI": 1}),
        ),
        (b'{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1"}', LeaseAttrs(None, IPv6Address("fd00::1"))),
    ],
    ids=["udp", "dual stack", "vxlan", "vxlan over IPv6", "IPv6 only"],
)
def test_a_value_is_written_byte_for_byte_as_flannel_does(value: bytes, attributes: LeaseAttrs) -> None:
    assert format_value(attributes) == value
    assert parse_value(value) == attributes


@given(attrs)
def test_all_attributes_survive_their_value(attributes: LeaseAttrs) -> None:
    assert parse_value(format_value(attributes)) == attributes


@pytest.mark.parametrize(
    "value",
    [
        b' {\n\t"PublicIP" : "192.0.2.1" ,\r\n "PublicIPv6" : null }\n',
        b'{"publicip":"192.0.2.1"}',
        b'{"PUBLICIP":"192.0.2.1","BACKENDTYPE":""}',
        b'{"PublicIP":"192.0.2.9","publicIP":"192.0.2.1"}',
        b'{"PublicIP":"192.0.2.1","BackendType":null,"BackendData":null,"Comment":{"by":["hand"]}}',
    ],
    ids=["blanks", "lower case", "upper case", "the last spelling wins", "unknown fields"],
)
def test_a_value_is_read_as_freely_as_flanneld_reads_it(value: bytes) -> None:
    assert parse_value(value) == LeaseAttrs(IP)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"not json", "is not JSON: Expecting value"),
        (b'{"PublicIP":"192.0.2.1"', "is not JSON"),
        (b'{"PublicIP":"192.0.2.1"} x', "is not JSON: Extra data"),
        (b'{"PublicIP":"192.0.2.1","x":NaN}', "is not JSON: NaN is no JSON value"),
        (b'{"PublicIP":"192.0.2.1","x":' + b"1" * 5_000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"PublicIP":"192.0.2.1","x":"\xff"}', "is not JSON: byte 29 is not UTF-8"),
        ('{"PublicIP":"192.0.2.1"}'.encode("utf-16"), "is not JSON: byte 0 is not UTF-8"),
        (b"null", "is no JSON object: None"),
        (b'"192.0.2.1"', "is no JSON object: '192.0.2.1'"),
        (b'["' + b"x" * 1_000 + b'"]', "is no JSON object: ['xxx"),
        (b"{}", "has no PublicIP"),
        (b'{"PublicIP":null}', "PublicIP None is no IPv4 address"),
        (b'{"PublicIP":3221225985}', "PublicIP 3221225985 is no IPv4 address"),
        (b'{"PublicIP":"192.0.2"}', "PublicIP '192.0.2' is no IPv4 address"),
        (b'{"PublicIP":"192.0.02.1"}', "PublicIP '192.0.02.1' is no IPv4 address"),
        (b'{"PublicIP":"fd00::1"}', "PublicIP 'fd00::1' is no IPv4 address"),
        (b'{"PublicIP":"192.0.2.1\\n"}', "PublicIP '192.0.2.1\\n' is no IPv4 address"),
        (b'{"PublicIP":"192.0.2.1","PublicIPv6":"192.0.2.1"}', "PublicIPv6 '192.0.2.1' is no IPv6 address"),
        (b'{"PublicIP":"192.0.2.1","PublicIPv6":"fe80::1%eth0"}', "PublicIPv6 'fe80::1%eth0' is no IPv6 address"),
        (b'{"PublicIP":"192.0.2.1","BackendType":7}', "BackendType 7 is no string"),
        (b'{"PublicIP":"192.0.2.1","x":"' + b"x" * MAX_VALUE_BYTES + b'"}', "bytes, more than 65536"),
        (b"[" * 60_000, "more than 256 objects and arrays"),
        (b'{"PublicIP":"192.0.2.1","x":' + b"[" * 300 + b"]" * 300 + b"}", "more than 256 objects and arrays"),
    ],
)
def test_a_value_that_says_nothing_of_use_is_refused_with_one_line(value: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match="lease value") as caught:
        parse_value(value)
    message = str(caught.value)
    assert fault in message
    assert len(message) < 200
    assert message.isprintable()


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_value_causes_anything_but_a_value_error(value: bytes) -> None:
    try:
        parse_value(value)
    except ValueError as error:
        assert "\n" not in str(error)


def test_half_a_character_in_a_foreign_value_can_be_written_again() -> None:
    attributes = parse_value(b'{"PublicIP":"192.0.2.1","BackendData":"\\ud800"}')
    assert parse_value(format_value(attributes)) == attributes


@given(
    st.one_of(
        st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){2,4}", fullmatch=True),
        st.ip_addresses(v=4).map(str),
        st.text(st.sampled_from("0123456789. -x\n\0\u0661\ud800"), max_size=16),
    )
)
def test_an_address_is_read_as_the_standard_library_reads_it(text: str) -> None:
    value = json.dumps({"PublicIP": text}).encode()
    try:
        expected = IPv4Address(text)
    except ValueError:
        with pytest.raises(ValueError, match="is no IPv4 address"):
            parse_value(value)
    else:
        assert parse_value(value).public_ip == (expected if int(expected) else None)
