"""The compiled path against its pure-Python twin: whatever comes in, both decide alike, bit for bit."""

from __future__ import annotations

import random
from array import array
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._fastpath import checksum as compiled_checksum
from flannel_udp._fastpath import icmp
from flannel_udp._fastpath.drops import DropReason
from flannel_udp._fastpath.routes import NO_ROUTE, OWN, PEERS_FROM, RouteList, RouteTable
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import Dropped, Forwarded, ReferenceTable
from tests.support.effort import share_of
from tests.support.engine_rig import EngineRig, compile_table, small_table

addresses = st.one_of(
    st.sampled_from(
        [
            *("10.1.1.0", "10.1.1.5", "10.1.2.7", "10.1.3.255", "10.1.4.1", "0.0.0.0", "127.0.0.1", "127.0.0.2"),
            *("223.255.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
            "8.8.8.8",
        ]
    ).map(IPv4Address),
    st.integers(0, 2**32 - 1).map(IPv4Address),
)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """IPv4 packets, most of them well-formed, some of them not in one place or another."""
    words = draw(st.integers(5, 15))
    payload = draw(st.binary(max_size=60))
    options = draw(st.binary(min_size=(words - 5) * 4, max_size=(words - 5) * 4))
    header = bytearray(
        bytes([0x40 | words, draw(st.integers(0, 255))])
        + (words * 4 + len(payload)).to_bytes(2, "big")
        + draw(st.binary(min_size=2, max_size=2))
        + draw(st.sampled_from([0, 0x4000, 0x2000, 0x2001, 0x0005, 0x8000])).to_bytes(2, "big")
        + bytes([draw(st.sampled_from([0, 1, 2, 64, 255])), draw(st.sampled_from([1, 6, 17, 255])), 0, 0])
        + draw(addresses).packed
        + draw(addresses).packed
        + options
    )
    header[10:12] = reference.checksum(bytes(header)).to_bytes(2, "big")
    packet = header + payload
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet[: draw(st.integers(0, len(packet)))] if draw(st.integers(0, 9)) == 0 else packet)


@given(st.lists(packets(), min_size=1, max_size=150))
@settings(max_examples=share_of(150))
def test_outbound_decides_like_the_twin(batch: list[bytes]) -> None:
    table = small_table()
    with EngineRig(table, vnet_bytes=10) as rig:
        expected: dict[str, list[bytes]] = {"127.0.0.2": [], "127.0.0.3": []}
        drops: dict[str, int] = {}
        for packet in batch:
            rig.from_tun(packet)
            verdict = reference.outbound(packet, table)
            if isinstance(verdict, Forwarded):
                expected[str(verdict.to)].append(verdict.packet)
            else:
                drops[verdict.reason] = drops.get(verdict.reason, 0) + 1
        rig.poll()
        assert {address: rig.to_peer(address) for address in expected} == expected
        assert rig.drops("out") == drops


@given(
    st.lists(st.tuples(packets(), st.sampled_from(["127.0.0.2", "127.0.0.3", "127.0.0.9"])), min_size=1, max_size=150),
    st.sampled_from(["strict", "loose", "off"]),
)
@settings(max_examples=share_of(150))
def test_inbound_decides_like_the_twin(batch: list[tuple[bytes, str]], source_check: str) -> None:
    table = small_table()
    with EngineRig(table, peers=["127.0.0.2", "127.0.0.3", "127.0.0.9"], source_check=source_check) as rig:
        expected: list[bytes] = []
        drops: dict[str, int] = {}
        for packet, sender in batch:
            rig.from_peer(sender, packet)
            verdict = reference.inbound(packet, IPv4Address(sender), table, source_check)
            if isinstance(verdict, Forwarded):
                expected.append(verdict.packet)
            else:
                drops[verdict.reason] = drops.get(verdict.reason, 0) + 1
        rig.poll()
        assert rig.to_tun() == expected
        assert rig.drops("in") == drops


@given(packets(), st.sampled_from(["no_route", "own_subnet", "ttl_expired", "too_big"]))
@settings(max_examples=share_of(1000))
def test_icmp_answers_are_the_twins(packet: bytes, reason: str) -> None:
    own = IPv4Address("10.1.1.0")
    mtu = 1_272 if reason == "too_big" else 0
    expected = None if reference.fault_of(packet) else reference.icmp_answer(packet, reason, own, mtu)
    assert icmp.answer(packet, DropReason[reason.upper()], mtu) == (expected or b"")


def test_a_long_packet_is_quoted_up_to_576_bytes() -> None:
    header = bytearray(bytes.fromhex("450005dc000040004011000a0a0101050a090909"))
    header[10:12] = b"\0\0"
    header[10:12] = reference.checksum(bytes(header)).to_bytes(2, "big")
    packet = bytes(header) + bytes(1480)
    answer = icmp.answer(packet, DropReason.NO_ROUTE)
    assert answer == reference.icmp_answer(packet, "no_route", IPv4Address("10.1.1.0"))
    assert len(answer) == 576


@given(st.binary(max_size=200))
def test_the_checksum_is_the_twins(data: bytes) -> None:
    assert compiled_checksum.checksum(data) == reference.checksum(data)


def test_the_ttl_patch_is_right_for_every_ttl_and_checksum() -> None:
    """RFC 1624: over all 65,536 checksums, patching equals computing anew."""
    for before in range(65_536):
        ttl_and_protocol = (before % 255 + 1) << 8 | 17
        after = ttl_and_protocol - 0x100
        other_words = ~before & 0xFFFF  # the sum of the rest of the header, such that `before` is the right checksum
        rest = (other_words - ttl_and_protocol) % 0xFFFF
        anew = (rest + after) % 0xFFFF
        patched = compiled_checksum.patch(before, ttl_and_protocol, after)
        assert (~patched & 0xFFFF) % 0xFFFF == anew


prefixes = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.one_of(st.integers(0, 2**32 - 1), st.integers(0x0A010000, 0x0A01FFFF)),
    st.one_of(st.integers(1, 32), st.sampled_from([24, 24, 25, 16])),
)


@given(st.dictionaries(prefixes, st.sampled_from(["127.0.0.2", "127.0.0.3", "127.0.0.4"]), max_size=40), st.data())
@settings(max_examples=share_of(500))
def test_the_longest_prefix_wins_as_in_the_twin(routes: dict[IPv4Network, str], data: st.DataObject) -> None:
    table = ReferenceTable({prefix: IPv4Address(peer) for prefix, peer in routes.items()})
    compiled = compile_table(table)
    edges = [
        int(edge) + step
        for prefix in routes
        for edge in (prefix.network_address, prefix.broadcast_address)
        for step in (-1, 0, 1)
        if 0 <= int(edge) + step < 2**32
    ]
    for address in [*edges, *data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=20))]:
        hop = compiled.lookup(address)
        expected = table.lookup(IPv4Address(address))
        assert (IPv4Address(compiled.peer_address(hop)) if hop != NO_ROUTE else None) == expected


def test_a_table_that_grows_and_shrinks_always_equals_the_twin() -> None:
    """Seeded random inserts and removals, as wireguard-go tests its allowed IPs."""
    random.seed(20261122)
    table = ReferenceTable()
    for _ in range(300):
        prefix = IPv4Network((random.getrandbits(12) << 12 | 0x0A << 24, random.choice([12, 16, 20, 22, 24])), False)
        if prefix in table.routes and random.random() < 0.5:
            del table.routes[prefix]
        else:
            table.routes[prefix] = IPv4Address(random.randrange(0x7F000002, 0x7F000012))
        compiled = compile_table(table)
        for _ in range(50):
            address = 0x0A << 24 | random.getrandbits(24)
            hop = compiled.lookup(address)
            assert (IPv4Address(compiled.peer_address(hop)) if hop else None) == table.lookup(IPv4Address(address))


def test_a_hundred_thousand_subnets_take_little_memory_and_all_are_found() -> None:
    n = share_of(100_000)
    routes = RouteList(
        array("I", [0x0A000000 + (i << 8) for i in range(n)]),
        array("B", [24]) * n,
        array("I", range(PEERS_FROM, PEERS_FROM + n)),
    )
    compiled = RouteTable(routes, array("I", [0, 0, *range(0x14000000, 0x14000000 + n)]))
    assert all(compiled.lookup(0x0A000000 + (i << 8) + 7) == PEERS_FROM + i for i in range(n))
    assert all(compiled.peer_of(0x14000000 + i) == PEERS_FROM + i for i in range(0, n, 7))
    assert compiled.peer_of(0x14000000 + n) == NO_ROUTE
    assert compiled.memory_bytes / n <= 64


@pytest.mark.parametrize(
    ("networks", "prefix_lens", "next_hops", "message"),
    [
        ([0x0A010001], [24], [2], "host bits"),
        ([0x0A010000], [33], [2], "prefix length"),
        ([0x0A010000], [24], [3], "next hop"),
        ([0x0A010000], [24], [1 << 20], "next hop"),
        ([0x0A010000, 0x0A010000], [24, 24], [2, OWN], "twice"),
        ([0x0A010000], [24, 24], [2], "length"),
    ],
)
def test_a_table_that_is_none_is_refused(
    networks: list[int], prefix_lens: list[int], next_hops: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        routes = RouteList(array("I", networks), array("B", prefix_lens), array("I", next_hops))
        RouteTable(routes, array("I", [0, 0, 1]))


@pytest.mark.parametrize(
    ("addresses", "macs", "message"),
    [([0, 0, 1], [0, 0], "length"), ([0, 0, 1], [0, 0, 0], "MAC"), ([0, 0, 1], [0, 0, 1 << 48], "MAC")],
)
def test_macs_that_are_none_are_refused_from_the_beginning_and_later(
    addresses: list[int], macs: list[int], message: str
) -> None:
    routes, peers, good = RouteList(), array("I", addresses), array("Q", [0, 0, 7])
    with pytest.raises(ValueError, match=message):
        RouteTable(routes, peers, macs=array("Q", macs))
    table = RouteTable(routes, peers, macs=good)
    nothing = array("I"), array("B"), array("I", [2])
    with pytest.raises(ValueError, match=message):
        table.update(routes, peers, *nothing, array("Q", macs))
    with pytest.raises(ValueError, match="never"):
        table.update(routes, peers, *nothing)
    with pytest.raises(ValueError, match="never"):
        RouteTable(routes, peers).update(routes, peers, *nothing, good)
    assert table.peer_mac(2) == 7


def test_the_twin_answers_only_what_may_be_answered() -> None:
    """The oracle itself, on a case worked out by hand."""
    echo = bytes.fromhex("4500001c00000000400165df0a0101050a090909") + bytes.fromhex("0800f7ff00000000")
    fixed = echo[:10] + reference.checksum(echo[:10] + b"\0\0" + echo[12:20]).to_bytes(2, "big") + echo[12:]
    verdict = reference.outbound(fixed, small_table())
    assert isinstance(verdict, Dropped)
    assert verdict.answer is not None
    assert verdict.answer[20:22] == b"\3\0"
    assert verdict.answer[28:] == fixed
