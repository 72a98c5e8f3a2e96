"""Route messages as bytes: pyroute2, which shares no code with ours, reads what we write and writes what we read."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flannel_udp.host.links import LOOPBACK_INDEX, device, device_named, stream_addresses
from flannel_udp.host.route_query import is_local, routes_in_force
from flannel_udp.host.rtnetlink import (
    Message,
    Refusal,
    Route,
    _refusal,
    add_route,
    append_route,
    delete_route,
    open_rtnetlink,
    parse_route,
)

NETWORKS = st.builds(
    lambda address, prefix_len: IPv4Network((address, prefix_len), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
ADDRESSES = st.none() | st.integers(1, 2**32 - 1).map(IPv4Address)
U8 = st.integers(0, 255)
ROUTES = st.builds(
    Route,
    destination=NETWORKS,
    gateway=ADDRESSES,
    oif=st.integers(0, 2**31 - 1),
    source=ADDRESSES,
    onlink=st.booleans(),
    protocol=U8,
    metric=st.integers(0, 2**32 - 1),
    tos=U8,
    scope=U8,
    type=U8,
)


def read_by_pyroute2(message: Message) -> Any:
    header = struct.pack("=IHHII", 16 + len(message.body), message.type, message.flags, 7, 0)
    read = rtmsg(header + message.body)
    read.decode()
    return read


@given(ROUTES)
def test_a_route_is_read_as_it_was_written(route: Route) -> None:
    assert parse_route(add_route(route).body) == route


def test_what_we_write_is_what_pyroute2_reads() -> None:
    route = Route(
        IPv4Network("10.1.16.0/24"), IPv4Address("192.0.2.2"), 7, IPv4Address("10.1.15.0"), onlink=True, protocol=82
    )
    read = read_by_pyroute2(add_route(route))
    fields = ("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type", "flags")
    assert [read[field] for field in fields] == [2, 24, 0, 0, 254, 82, 0, 1, 4]
    assert dict(read["attrs"]) == {
        "RTA_DST": "10.1.16.0",
        "RTA_OIF": 7,
        "RTA_GATEWAY": "192.0.2.2",
        "RTA_PREFSRC": "10.1.15.0",
    }


def test_to_add_to_append_and_to_delete_differ_in_type_and_flags() -> None:
    route = Route(IPv4Network("10.1.16.0/24"), IPv4Address("192.0.2.2"), 7)
    messages = [change(route) for change in (add_route, append_route, delete_route)]
    assert [(message.type, message.flags) for message in messages] == [(24, 0x600), (24, 0xC00), (25, 0)]
    assert len({message.body for message in messages}) == 1


def test_a_route_of_an_unknown_shape_is_read_as_far_as_it_goes() -> None:
    written = rtmsg()
    written["family"], written["dst_len"], written["table"], written["proto"], written["type"] = 2, 0, 254, 4, 1
    written["attrs"] = [("RTA_MULTIPATH", [{"oif": 3, "hops": 0, "attrs": [("RTA_GATEWAY", "192.0.2.7")]}])]
    written.encode()
    assert parse_route(bytes(written.data)[16:]) == Route(IPv4Network("0.0.0.0/0"), None, 0, protocol=4)


@pytest.mark.parametrize(
    ("flags", "error", "words", "expected"),
    [
        (0, 0, b"", None),
        (0x300, -errno.EEXIST, b"", Refusal(errno.EEXIST, "File exists")),
        (0x100, -errno.ESRCH, b"", Refusal(errno.ESRCH, "No such process")),
        (0x300, -errno.ENETUNREACH, b"Because\0", Refusal(errno.ENETUNREACH, "Because")),
    ],
)
def test_a_refusal_is_said_in_the_kernels_words_if_there_are_any(
    flags: int, error: int, words: bytes, expected: Refusal | None
) -> None:
    body = struct.pack("=i16x", error)
    if words:
        body += struct.pack("=HH", 4 + len(words), 1) + words + bytes(-len(words) % 4)
    assert _refusal(flags, body) == expected


def test_questions_need_no_rights() -> None:
    with open_rtnetlink("looking") as netlink:
        lo = device(netlink, LOOPBACK_INDEX)
        assert lo is not None
        assert (lo.name, lo.loopback) == ("lo", True)
        assert device_named(netlink, "lo") == lo
        assert device(netlink, 2**30) is None
        assert device_named(netlink, "nosuch0") is None
        assert is_local(netlink, IPv4Address("127.0.0.1"))
        assert not is_local(netlink, IPv4Address("127.255.255.255"))
        assert IPv4Address("127.0.0.1") in [found.address for found in stream_addresses(netlink, LOOPBACK_INDEX)]
        nobodys = [IPv4Network("203.0.113.128/31"), IPv4Network("203.0.113.130/31")]
        assert routes_in_force(netlink, nobodys) == [None, None]
