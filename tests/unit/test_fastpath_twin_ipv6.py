"""The compiled path's IPv6 against golden packets and the pure-Python twin: whatever comes in, both decide alike."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._fastpath import icmp6
from flannel_udp._fastpath.drops import DropReason
from flannel_udp._fastpath.routes import NO_ROUTE
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import Dropped, ReferenceTable, VnetHeader
from flannel_udp.options import Offload
from tests.support import golden_ipv6
from tests.support.effort import share_of
from tests.support.engine_rig import PEERS, VXLAN, EngineRig, compile_table6, small_table
from tests.support.golden_ipv6 import Golden
from tests.support.repair import repaired
from tests.support.twin import FromPeer, FromTun, TwinRun

TABLE = small_table(version=6)


@pytest.fixture(scope="module")
def rig() -> Iterator[EngineRig]:
    """It serves all packets of the module."""
    with EngineRig(TABLE, PEERS[6]) as rig:
        yield rig


@pytest.fixture(scope="module", params=["strict", "loose", "off"])
def both(request: pytest.FixtureRequest) -> Iterator[TwinRun]:
    """An engine of either IP version on one TUN, and their twin."""
    tables = small_table(), TABLE
    peers = [*PEERS[4], *PEERS[6]]
    with EngineRig(tables[0], peers, request.param, offload=Offload(), beside=tables[1]) as rig:
        yield TwinRun(rig, *tables, source_check=request.param)


@pytest.fixture(scope="module")
def vxlan() -> Iterator[TwinRun]:
    table = small_table(VXLAN, 6)
    with EngineRig(table, PEERS[6], offload=Offload()) as rig:
        yield TwinRun(rig, table, source_check="strict")


def ends(rig: EngineRig, direction: str) -> list[tuple[str, bytes]]:
    """Let the engine work; return where each packet ended, and what it was then."""
    before = rig.drops(direction)
    rig.poll()
    dropped = {reason: n - before.get(reason, 0) for reason, n in rig.drops(direction).items()}
    return [
        *((address, datagram) for address in rig.peers for datagram in rig.to_peer(address)),
        *(("", packet) for packet in rig.to_tun()),
        *((reason, b"") for reason, n in dropped.items() for _ in range(n)),
    ]


def on_its_way(golden: Golden) -> bytes:
    is_dropped = golden.end.replace("_", "").isalnum() and bool(golden.end)
    return b"" if is_dropped else golden.packet[:7] + bytes([golden.packet[7] - 1]) + golden.packet[8:]


@pytest.mark.parametrize("golden", list(golden_ipv6.outbound()), ids=lambda golden: golden.name)
def test_what_the_host_sends_ends_where_it_should(rig: EngineRig, golden: Golden) -> None:
    rig.from_tun(golden.packet)
    assert ends(rig, "out") == [(golden.end, on_its_way(golden))]


@pytest.mark.parametrize("golden", list(golden_ipv6.inbound()), ids=lambda golden: golden.name)
def test_what_a_peer_sends_ends_where_it_should(rig: EngineRig, golden: Golden) -> None:
    rig.from_peer(golden.sender, golden.packet)
    assert ends(rig, "in") == [(golden.end, on_its_way(golden))]


@pytest.mark.parametrize("golden", list(golden_ipv6.outbound()), ids=lambda golden: golden.name)
def test_who_gets_an_answer_gets_the_one_that_it_should(golden: Golden) -> None:
    reason = DropReason[golden.end.upper()] if golden.end.upper() in DropReason.__members__ else DropReason.KEEP
    answer = icmp6.answer(golden.packet, reason, IPv6Address(golden_ipv6.OWN_ADDRESS).packed)
    assert ((answer[40], answer[41]) if answer else None) == golden.answer
    verdict = reference.outbound(golden.packet, TABLE)
    assert answer == ((isinstance(verdict, Dropped) and verdict.answer) or b"")


@pytest.mark.parametrize("n_bytes", range(89))
def test_every_length_from_0_to_88_is_one_packet_or_one_drop(rig: EngineRig, n_bytes: int) -> None:
    for source, destination in ((golden_ipv6.OURS, golden_ipv6.THEIRS), (golden_ipv6.THEIRS, golden_ipv6.OURS)):
        whole = golden_ipv6.ipv6(source, destination, golden_ipv6.NOTHING, "00" * 48, length=20)[:n_bytes]
        is_out = source == golden_ipv6.OURS
        if is_out and not n_bytes:
            continue  # a TUN never gives an empty packet
        if is_out:
            rig.from_tun(whole)
        else:
            rig.from_peer(PEERS[6][0], whole)
        ((end, _),) = ends(rig, "out" if is_out else "in")
        expected = "too_short" if n_bytes < 40 else "bad_total_len"
        assert end == ((PEERS[6][0] if is_out else "") if n_bytes == 60 else expected)


addresses = st.one_of(
    st.sampled_from(
        [
            *("fd00:10:244:1::", "fd00:10:244:1::5", "fd00:10:244:2::7", "fd00:10:244:3::7", "fd00:10:244:9::1"),
            *("::", "::1", "::2", "::ffff:10.1.2.3", "fe7f:ffff::1", "fe80::1", "febf::1", "fec0::1", "fdff::1"),
            *("feff::1", "ff00::1", "ff02::1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "::fffe:0:0", "::1:0:0:0"),
        ]
    ).map(IPv6Address),
    st.integers(0, 2**128 - 1).map(IPv6Address),
)
extensions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0, 43, 60]), st.sampled_from([0, 0, 1, 3, 40])),
        st.tuples(st.just(44), st.sampled_from([0, 1, 8, 0x1F40, 0xFFF8])),
        st.tuples(st.just(51), st.integers(0, 5)),
    ),
    max_size=10,
)


def chained(chain: list[tuple[int, int]], transport: int) -> tuple[int, bytes]:
    """Return the first next header, and the extension headers in front of a transport, long as they claim."""
    headers = b""
    following = transport
    for kind, value in reversed(chain):
        if kind == 44:
            headers = bytes([following, 0]) + value.to_bytes(2, "big") + b"\0\0\0\7" + headers
        else:
            n_bytes = (value + 2) * 4 if kind == 51 else (value + 1) * 8
            headers = bytes([following, value]) + bytes(n_bytes - 2) + headers
        following = kind
    return following, headers


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """IPv6 packets, most of them well-formed, some of them not in one place or another."""
    chain = draw(st.one_of(st.just([]), extensions))
    next_header, headers = chained(chain, draw(st.sampled_from([1, 6, 17, 17, 58, 59, 255])))
    payload = headers + draw(st.binary(max_size=60))
    packet = bytearray(
        (6 << 28 | draw(st.integers(0, 2**28 - 1))).to_bytes(4, "big")
        + len(payload).to_bytes(2, "big")
        + bytes([next_header, draw(st.sampled_from([0, 1, 2, 64, 255]))])
        + draw(addresses).packed
        + draw(addresses).packed
        + payload
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 4)) == 0:
        return repaired(bytes(packet), transport_too=True)
    return bytes(packet[: draw(st.integers(1, len(packet)))] if draw(st.integers(0, 9)) == 0 else packet)


@given(st.lists(packets(), min_size=1, max_size=100))
def test_outbound_decides_like_the_twin(both: TwinRun, batch: list[bytes]) -> None:
    both.check([FromTun(VnetHeader(), packet) for packet in batch])


@given(
    st.lists(
        st.tuples(packets(), st.sampled_from([*PEERS[6], PEERS[4][0]]), st.integers(0, 3)), min_size=1, max_size=60
    )
)
def test_inbound_decides_like_the_twin(both: TwinRun, batch: list[tuple[bytes, str, int]]) -> None:
    both.check([FromPeer(sender, (packet,), tos) for packet, sender, tos in batch])


@given(
    st.lists(
        st.tuples(
            packets(), st.sampled_from(PEERS[6]), st.one_of(st.none(), st.tuples(st.integers(0, 21), st.just(9)))
        ),
        min_size=1,
        max_size=60,
    )
)
def test_inbound_by_vxlan_decides_like_the_twin(
    vxlan: TwinRun, batch: list[tuple[bytes, str, tuple[int, int] | None]]
) -> None:
    vxlan.check([FromPeer(sender, (packet + b"\xff" * 6,), 0, change) for packet, sender, change in batch])


@given(packets(), st.sampled_from(["no_route", "own_subnet", "ttl_expired", "too_big"]), st.sampled_from([0, 1400]))
@settings(max_examples=share_of(1000))
def test_icmp_answers_are_the_twins(packet: bytes, reason: str, mtu: int) -> None:
    own = IPv6Address("fd00:10:244:1::")
    expected = None if reference.fault_of(packet, 6) else reference.icmp_answer(packet, reason, own, mtu)
    assert icmp6.answer(packet, DropReason[reason.upper()], own.packed, mtu) == (expected or b"")


def test_a_long_packet_is_quoted_up_to_1280_bytes() -> None:
    packet = golden_ipv6.ipv6(golden_ipv6.OURS, "fd00:10:244:9::1", golden_ipv6.UDP, "ab" * 1400)
    answer = icmp6.answer(packet, DropReason.NO_ROUTE, IPv6Address("fd00:10:244:1::").packed)
    assert answer == reference.icmp_answer(packet, "no_route", ip_address("fd00:10:244:1::"))
    assert len(answer) == 1280


prefixes = st.builds(
    lambda address, length: IPv6Network((address, length), strict=False),
    st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 0xFFFF).map(lambda n: 0xFD00_0010_0244_0000 << 64 | n << 60)),
    st.one_of(st.integers(1, 128), st.sampled_from([48, 64, 64, 65, 96, 127, 128])),
)


@given(st.dictionaries(prefixes, st.sampled_from(["::2", "2001:db8::3", "2001:db8::4"]), max_size=40), st.data())
@settings(max_examples=share_of(500))
def test_the_longest_prefix_wins_as_in_the_twin(routes: dict[IPv6Network, str], data: st.DataObject) -> None:
    table = ReferenceTable({prefix: IPv6Address(peer) for prefix, peer in routes.items()}, version=6)
    compiled = compile_table6(table)
    edges = [
        int(edge) + step
        for prefix in routes
        for edge in (prefix.network_address, prefix.broadcast_address)
        for step in (-1, 0, 1)
        if 0 <= int(edge) + step < 2**128
    ]
    for address in [*edges, *data.draw(st.lists(st.integers(0, 2**128 - 1), max_size=20))]:
        hop = compiled.lookup(address)
        expected = table.lookup(IPv6Address(address))
        assert (IPv6Address(compiled.peer_address(hop)) if hop != NO_ROUTE else None) == expected
