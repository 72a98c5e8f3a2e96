"""Which messages of the kernel are worth a look."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.host.monitor import Interest, OwnEntries, OwnRoutes, concerns
from flannel_udp.host.neighbours import NEIGHBOURS
from flannel_udp.model import Address, Prefix

INTEREST = Interest(frozenset({2, 7}), frozenset({16, 23}))


def message(kind: int, body: bytes) -> bytes:
    padding = bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + padding


def link(index: int, kind: int = 16) -> bytes:
    return message(kind, struct.pack("=BxHiII", 0, 1, index, 0, 0) + b"\x05\0\x03\0x\0\0\0")


def address(index: int, kind: int = 20) -> bytes:
    return message(kind, struct.pack("=BBBBI", 2, 24, 0, 0, index))


def route(prefix_len: int, kind: int = 24) -> bytes:
    return message(kind, struct.pack("=BBBBBBBBI", 2, prefix_len, 0, 0, 254, 3, 0, 1, 0))


def test_links_and_addresses_of_our_devices_count_both_new_and_gone() -> None:
    for make, kinds in ((link, (16, 17)), (address, (20, 21))):
        for kind in kinds:
            assert concerns(make(7, kind), INTEREST)
            assert concerns(make(2, kind), INTEREST)
            assert not concerns(make(3, kind), INTEREST)


def test_routes_count_that_are_as_long_as_one_of_ours() -> None:
    assert concerns(route(16), INTEREST)
    assert concerns(route(23), INTEREST)
    assert concerns(route(16, kind=25), INTEREST)
    assert not concerns(route(24), INTEREST)


NEW, GONE = 24, 25  # RTM_NEWROUTE, RTM_DELROUTE
OURS, BOOT = 82, 3  # protocols
WANTED: dict[Prefix, Address] = {IPv4Network("10.1.16.0/24"): IPv4Address("192.0.2.2")}


@pytest.mark.parametrize(
    ("kind", "protocol", "destination", "gateway", "counts"),
    [
        (NEW, OURS, "10.1.16.0", "192.0.2.2", False),
        (GONE, OURS, "10.1.16.0", "192.0.2.2", True),
        (GONE, OURS, "10.1.16.0", "192.0.2.3", False),
        (GONE, OURS, "10.1.17.0", "192.0.2.2", False),
        (NEW, BOOT, "10.1.16.0", "192.0.2.9", True),
        (GONE, BOOT, "10.1.16.0", "192.0.2.9", True),
        (NEW, BOOT, "10.1.17.0", "192.0.2.9", False),
    ],
    ids=["made", "taken away", "replaced", "not wanted", "in its place", "gone from its place", "elsewhere"],
)
def test_of_our_routes_counts_what_somebody_else_has_done(
    kind: int, protocol: int, destination: str, gateway: str, counts: bool
) -> None:
    attributes = [(15, struct.pack("=I", 254)), (1, IPv4Address(destination).packed), (5, IPv4Address(gateway).packed)]
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, protocol, 0, 1, 0)
    body += b"".join(struct.pack("=HH", 4 + len(value), name) + value for name, value in attributes)
    interest = Interest(frozenset(), frozenset(), OwnRoutes(OURS, WANTED.get))
    assert concerns(message(kind, body), interest) == counts


NEW_ENTRY, GONE_ENTRY = 28, 29  # RTM_NEWNEIGH, RTM_DELNEIGH
PERMANENT, REACHABLE = 0x80, 0x02
KEY, MAC, OTHER_MAC = IPv4Address("10.1.16.0").packed, bytes(range(2, 8)), bytes(range(12, 18))


@pytest.mark.parametrize(
    ("kind", "index", "state", "entry", "counts"),
    [
        (NEW_ENTRY, 7, PERMANENT, (KEY, MAC), False),
        (NEW_ENTRY, 7, PERMANENT, (KEY, OTHER_MAC), True),
        (NEW_ENTRY, 7, REACHABLE, (KEY, MAC), True),
        (NEW_ENTRY, 7, 0x20, (KEY, None), True),
        (GONE_ENTRY, 7, PERMANENT, (KEY, MAC), True),
        (GONE_ENTRY, 8, PERMANENT, (KEY, MAC), False),
        (NEW_ENTRY, 7, PERMANENT, (IPv4Address("10.1.17.0").packed, MAC), False),
        (GONE_ENTRY, 7, PERMANENT, (IPv4Address("10.1.17.0").packed, MAC), False),
    ],
    ids=["made", "changed", "learned", "failed", "taken away", "elsewhere", "not wanted", "not wanted any more"],
)
def test_of_our_neighbours_counts_what_somebody_else_has_done(
    kind: int, index: int, state: int, entry: tuple[bytes, bytes | None], counts: bool
) -> None:
    key, value = entry
    interest = Interest(frozenset(), frozenset(), entries=(OwnEntries(NEIGHBOURS[4], 7, {KEY: MAC}.get),))
    attributes = [(1, key)] + ([(2, value)] if value else []) + [(3, bytes(16))]
    body = struct.pack("=B3xiHBB", 2, index, state, 0, 1)
    body += b"".join(
        struct.pack("=HH", 4 + len(each), name) + each + bytes(-len(each) % 4) for name, each in attributes
    )
    assert concerns(message(kind, body), interest) == counts


def test_other_kinds_do_not_count() -> None:
    assert not concerns(message(NEW_ENTRY, bytes(12)), INTEREST)


def test_one_message_of_many_is_enough() -> None:
    others = link(3) + address(4) + route(24)
    assert not concerns(others, INTEREST)
    assert concerns(others + link(7), INTEREST)
    assert concerns(link(7) + others, INTEREST)


def test_without_an_interest_everything_counts() -> None:
    assert concerns(link(3), None)


@given(st.binary(max_size=64))
def test_nonsense_is_no_fault_and_too_short_bodies_count(nonsense: bytes) -> None:
    concerns(nonsense, INTEREST)
    assert concerns(message(16, b""), INTEREST)
    assert concerns(struct.pack("=IHHII", 3, 16, 0, 0, 0), INTEREST)
