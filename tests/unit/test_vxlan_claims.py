"""Which neighbours and forwarding entries a kernel VXLAN's peers need, also where they contradict each other."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backend.vxlan.claims import MAC_BYTES, PeerClaims, Wanted
from flannel_udp.backend.vxlan.hop import VxlanHop
from flannel_udp.model import Peer, Prefix

A, B = 0x0A0000000001, 0x0A0000000002


def peer(subnet: str, host: int, mac: int) -> Peer:
    return Peer(IPv4Network(subnet), IPv4Address(f"192.0.2.{host}"), VxlanHop(mac))


def packed(mac: int) -> bytes:
    return mac.to_bytes(MAC_BYTES, "big")


def first(text: str) -> bytes:
    return IPv4Address(text).packed


def take(claims: PeerClaims, *peers: Peer) -> Wanted:
    return claims.change({each.subnet: each for each in peers})


def test_a_peer_is_a_neighbour_and_a_forwarding_entry() -> None:
    wanted = take(PeerClaims(), peer("10.1.16.0/24", 2, A))
    assert wanted.neighbours == {first("10.1.16.0"): packed(A)}
    assert wanted.forwarding == {packed(A): first("192.0.2.2")}
    assert wanted.subnets == {IPv4Network("10.1.16.0/24")}


def test_a_peer_that_leaves_takes_both_along() -> None:
    claims = PeerClaims()
    take(claims, peer("10.1.16.0/24", 2, A))
    wanted = claims.change({IPv4Network("10.1.16.0/24"): None})
    assert (wanted.neighbours, wanted.forwarding) == ({first("10.1.16.0"): None}, {packed(A): None})


def test_another_mac_is_another_entry_and_the_former_one_goes() -> None:
    claims = PeerClaims()
    take(claims, peer("10.1.16.0/24", 2, A))
    wanted = take(claims, peer("10.1.16.0/24", 2, B))
    assert wanted.neighbours == {first("10.1.16.0"): packed(B)}
    assert wanted.forwarding == {packed(A): None, packed(B): first("192.0.2.2")}


def test_what_is_the_same_wants_nothing() -> None:
    claims = PeerClaims()
    take(claims, peer("10.1.16.0/24", 2, A))
    wanted = take(claims, peer("10.1.16.0/24", 2, A))
    assert (wanted.neighbours, wanted.forwarding) == ({}, {})


def test_an_entry_of_two_subnets_stays_with_the_last_one() -> None:
    claims = PeerClaims()
    take(claims, peer("10.1.16.0/24", 2, A), peer("10.1.17.0/24", 2, A))
    assert claims.faults == {}
    wanted = claims.change({IPv4Network("10.1.16.0/24"): None})
    assert wanted.forwarding == {packed(A): first("192.0.2.2")}


def test_of_two_hosts_with_one_mac_the_last_one_counts_until_it_goes() -> None:
    claims, former, now = PeerClaims(), peer("10.1.16.0/24", 2, A), peer("10.1.17.0/24", 3, A)
    take(claims, former)
    wanted = take(claims, now)
    assert wanted.forwarding == {packed(A): first("192.0.2.3")}
    assert wanted.neighbours == {first("10.1.16.0"): None, first("10.1.17.0"): packed(A)}
    assert wanted.subnets == {former.subnet, now.subnet}
    assert list(claims.faults) == [former.subnet]
    wanted = claims.change({now.subnet: None})
    assert wanted.forwarding == {packed(A): first("192.0.2.2")}
    assert wanted.neighbours == {first("10.1.16.0"): packed(A), first("10.1.17.0"): None}
    assert claims.faults == {}


def test_of_subnets_that_begin_with_one_address_the_narrowest_counts() -> None:
    claims, wide, narrow = PeerClaims(), peer("10.1.16.0/23", 2, A), peer("10.1.16.0/24", 3, B)
    assert take(claims, wide, narrow).neighbours == {first("10.1.16.0"): packed(B)}
    assert claims.faults == {
        wide.subnet: "the subnet 10.1.16.0/23 begins with the same address as 10.1.16.0/24, which counts"
    }
    assert claims.change({narrow.subnet: None}).neighbours == {first("10.1.16.0"): packed(A)}
    assert claims.faults == {}


def test_whatever_comes_and_goes_what_is_wanted_is_what_a_fresh_start_would_want() -> None:
    rng = random.Random(12)
    claims = PeerClaims()
    neighbours: dict[bytes, bytes] = {}
    forwarding: dict[bytes, bytes] = {}
    there: dict[Prefix, Peer] = {}
    for _ in range(2_000):
        subnet = f"10.1.{2 * rng.randrange(6)}.0/{rng.choice((23, 24))}"
        each = peer(subnet, rng.randrange(2, 6), A + rng.randrange(4))
        if there.get(each.subnet) == each:
            continue
        gone = rng.random() < 0.4
        there.pop(each.subnet, None)  # who comes anew is the last one heard of
        wanted = claims.change({each.subnet: None if gone else each})
        if not gone:
            there[each.subnet] = each
        for table, changes in ((neighbours, wanted.neighbours), (forwarding, wanted.forwarding)):
            for key, value in changes.items():
                table.pop(key, None)
                if value is not None:
                    table[key] = value
        fresh = PeerClaims()
        expected = Wanted()
        for other in there.values():
            found = take(fresh, other)
            expected.neighbours.update(found.neighbours)
            expected.forwarding.update(found.forwarding)
        assert neighbours == {key: value for key, value in expected.neighbours.items() if value is not None}
        assert forwarding == {key: value for key, value in expected.forwarding.items() if value is not None}
        assert claims.faults == fresh.faults
