"""The benches' Cython modules are compiled as a bench compiles them, and do what they say."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from ipaddress import IPv6Address
from types import ModuleType

import pytest

from bench import compiled, encap, lookup
from flannel_udp._fastpath.checksum import checksum
from flannel_udp._fastpath.routes import NO_ROUTE, PEERS_FROM, RouteList, RouteTable
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6
from flannel_udp.errors import FlannelError

NETWORK = 0x0A020000
TABLE = RouteTable(
    RouteList(array("I", [NETWORK]), array("B", [24]), array("I", [PEERS_FROM])), array("I", [0, 0, 0xC6120001])
)


@pytest.fixture(scope="module")
def look_up() -> ModuleType:
    return compiled.load("_lookup")


@pytest.fixture(scope="module")
def stages() -> ModuleType:
    return compiled.load("_encap")


def test_the_loop_looks_up_every_address(look_up: ModuleType) -> None:
    addresses = [NETWORK + 1, NETWORK + 255, NETWORK + 256, 0]
    assert [TABLE.lookup(address) for address in addresses] == [PEERS_FROM, PEERS_FROM, NO_ROUTE, NO_ROUTE]
    assert look_up.look_up(TABLE, array("I", addresses), 0) == 2 * PEERS_FROM


def test_the_loop_looks_up_every_ipv6_address(look_up: ModuleType) -> None:
    network = int(IPv6Address("fd00:10:244::"))
    table = RouteTable6(
        RouteList6(network.to_bytes(16, "big"), b"\x40", array("I", [PEERS_FROM])), bytes(32) + b"\x20\x01" + bytes(14)
    )
    addresses = [network + 1, network + (1 << 64) - 1, network + (1 << 64), 0]
    packed = b"".join(address.to_bytes(16, "big") for address in addresses)
    assert look_up.look_up6(table, packed, 0) == 2 * PEERS_FROM


def batched16(packed: bytes) -> Iterator[bytes]:
    return (packed[at : at + 16] for at in range(0, len(packed), 16))


@pytest.mark.parametrize("layout", lookup.LAYOUTS, ids=lambda layout: layout.title)
@pytest.mark.parametrize("n", lookup.SIZES[:2])
def test_every_address_that_is_looked_up_has_a_route(layout: lookup.Layout, n: int) -> None:
    table, packed = lookup.make_case(random.Random(1), layout, n)
    addresses = packed if isinstance(packed, array) else [int.from_bytes(each, "big") for each in batched16(packed)]
    hops = {table.lookup(address) for address in addresses}
    assert hops == set(range(PEERS_FROM, PEERS_FROM + n))


@pytest.mark.parametrize(("size", "n", "length"), [("small", 64, 92), ("large", 45, 1472)])
def test_a_super_packet_becomes_sound_packets_that_every_stage_takes(
    stages: ModuleType, size: str, n: int, length: int
) -> None:
    whole, payload, headers = encap.super_packet(size)
    assert headers + payload == length
    bundle = bytearray(n * length)
    assert stages.split(bytearray(whole), size == "large", payload, bundle, 1) == n
    assert [checksum(bundle[i * length : i * length + 20]) for i in range(n)] == [0] * n
    before = bytes(bundle)
    assert stages.join(bundle, length, 3) == 3 * n
    assert bundle == before
    assert stages.queue(bundle, length, 2) == 2 * n
    assert stages.route(bundle, TABLE, length, 254) == 254 * n
    assert bundle[8] == 1  # the TTL


def test_a_stage_that_drops_is_not_measured(stages: ModuleType) -> None:
    whole, payload, headers = encap.super_packet("small")
    bundle = bytearray(64 * (headers + payload))
    stages.split(bytearray(whole), False, payload, bundle, 1)
    with pytest.raises(ValueError, match="dropped"):
        stages.route(bundle, TABLE, headers + payload, 255)  # one round more than a TTL of 255 bears
    bundle[-1] ^= 1
    with pytest.raises(ValueError, match="not joined"):
        stages.join(bundle, headers + payload, 1)


def test_a_module_that_does_not_compile_is_one_clear_line() -> None:
    with pytest.raises(FlannelError, match=r"_missing\.pyx` failed: .+ \(the bench needs Cython"):
        compiled.load("_missing")
