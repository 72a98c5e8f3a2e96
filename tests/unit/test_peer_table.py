"""The peer table: any events, one bad key, overlaps; only the registry's present state matters."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.control.peers import PART_SIZE, PeerTable, SharedSubnet
from flannel_udp.model import Address, Change, Delta, Entry, LeaseAttrs, Peer, Snapshot, Subnet, lease_id_of
from tests.support.backends import read_udp_hop

NETWORK = IPv4Network("10.1.0.0/16")
OUR_IP = "192.0.2.1"
OUR_MARK, OTHER_MARK = 0x1234, 0x5678
OWN = IPv4Network("10.1.15.0/24")
OWN_ADDRESSES: dict[Address, str] = {
    IPv4Address("198.51.100.1"): "is an address of this host",
    IPv4Address("192.0.2.255"): "is the broadcast address of eth0's network",
}


def entry(key: str, public_ip: str, revision: int = 1, **more: object) -> Entry:
    return Entry(key, json.dumps({"PublicIP": public_ip, **more}).encode(), revision, lease_id=7)


def snapshot(*entries: Entry) -> Snapshot:
    return Snapshot({item.key: item for item in entries}, revision=10)


def change(*entries: Entry, gone: tuple[str, ...] = ()) -> Change:
    return Change({**{item.key: item for item in entries}, **dict.fromkeys(gone)}, revision=11)


def peer(subnet: str, public_ip: str) -> Peer:
    return Peer(IPv4Network(subnet), IPv4Address(public_ip))


def new_table() -> PeerTable:
    """Make a table of the host that holds 10.1.15.0/24."""
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    assert not table.set_own(Subnet(OWN))
    return table


def test_peers_appear_move_and_vanish() -> None:
    table = new_table()
    first = peer("10.1.16.0/24", "192.0.2.2")
    moved = peer("10.1.16.0/24", "192.0.2.3")
    assert table.apply(snapshot(entry("10.1.16.0-24", "192.0.2.2"))) == Delta(added=(first,))
    assert table.apply(change(entry("10.1.16.0-24", "192.0.2.3", 2))) == Delta(changed=(moved,))
    assert table.peers() == (moved,)
    assert table.apply(change(gone=("10.1.16.0-24", "10.1.99.0-24"))) == Delta(removed=(moved,))
    assert (table.peers(), table.count) == ((), 0)


def test_a_peer_has_the_name_that_the_registry_has_for_its_host() -> None:
    table, subnet = new_table(), IPv4Network("10.1.16.0/24")
    table.apply(snapshot(replace(entry("10.1.16.0-24", "192.0.2.2"), host="node-b")))
    assert table.host_of(subnet) == "node-b"
    table.apply(change(replace(entry("10.1.16.0-24", "192.0.2.2", 2), host="node-c")))
    assert table.host_of(subnet) == "node-c"
    assert table.host_of(IPv4Network("10.1.17.0/24")) is None
    table.apply(change(entry("10.1.16.0-24", "192.0.2.3", 3)))
    assert table.host_of(subnet) is None


@pytest.mark.parametrize(
    ("public_ip", "more", "delta"),
    [
        ("192.0.2.3", {}, Delta(changed=(peer("10.1.16.0/24", "192.0.2.3"),))),
        ("192.0.2.2", {"BackendType": "udp"}, Delta()),
        (OUR_IP, {}, "our public IP"),
        ("224.0.0.1", {}, "is no address of one host"),
        ("0.1.2.3", {}, "is no address of one host"),
        ("255.255.255.255", {}, "is no address of one host"),
        ("192.0.2.3", {"BackendType": "vxlan"}, "its backend is"),
        ("192.0.2", {}, "is no IPv4 address"),
    ],
)
def test_a_peers_new_value_is_judged_as_a_new_peers(public_ip: str, more: dict[str, str], delta: Delta | str) -> None:
    table = new_table()
    first = peer("10.1.16.0/24", "192.0.2.2")
    table.apply(snapshot(entry("10.1.16.0-24", "192.0.2.2")))
    changed = entry("10.1.16.0-24", public_ip, 2, **more)
    found = table.apply(change(changed))
    if isinstance(delta, str):
        assert found.removed == (first,)
        assert delta in found.warnings[0]
    else:
        assert found == delta
    assert table.entry("10.1.16.0-24") == changed


def test_a_snapshot_is_compared_by_whole_values_not_only_by_keys() -> None:
    table = new_table()
    table.apply(snapshot(*(entry(f"10.1.{n}.0-24", f"192.0.2.{n}") for n in (2, 3, 4))))
    delta = table.apply(
        snapshot(
            entry("10.1.3.0-24", "192.0.2.3"), entry("10.1.4.0-24", "192.0.2.44"), entry("10.1.5.0-24", "192.0.2.5")
        )
    )
    assert delta == Delta(
        added=(peer("10.1.5.0/24", "192.0.2.5"),),
        changed=(peer("10.1.4.0/24", "192.0.2.44"),),
        removed=(peer("10.1.2.0/24", "192.0.2.2"),),
    )


def test_a_value_rewritten_with_the_same_meaning_changes_nothing_but_the_entry() -> None:
    table = new_table()
    table.apply(snapshot(entry("10.1.16.0-24", "192.0.2.2", 1)))
    rewritten = entry("10.1.16.0-24", "192.0.2.2", 2, PublicIPv6=None)
    assert table.apply(change(rewritten)) == Delta()
    assert table.entry("10.1.16.0-24") == rewritten
    same_value = entry("10.1.16.0-24", "192.0.2.2", 3, PublicIPv6=None)
    assert table.apply(change(same_value)) == Delta()
    assert table.entry("10.1.16.0-24") == same_value


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Entry("nonsense", b'{"PublicIP":"192.0.2.9"}', 1), "subnet key 'nonsense' does not look like"),
        (Entry("0.0.0.0-0", b'{"PublicIP":"192.0.2.9"}', 1), "prefix length 0 is outside 1 to 32"),
        (Entry("10.1.20.0-24", b"{", 1), "lease value is not JSON"),
        (Entry("10.1.20.0-24", b"\xff", 1), "lease value is not JSON"),
        (entry("10.2.0.0-24", "192.0.2.9"), "10.2.0.0/24 is outside the overlay network 10.1.0.0/16"),
        (entry("10.1.0.0-16", "192.0.2.9"), "10.1.0.0/16 is as wide as the overlay network 10.1.0.0/16 or wider"),
        (entry("10.0.0.0-8", "192.0.2.9"), "10.0.0.0/8 is as wide as the overlay network 10.1.0.0/16 or wider"),
        (entry("10.1.20.0-24", OUR_IP), "it has our public IP, but our subnet is 10.1.15.0/24"),
        (entry("10.1.20.0-24", "192.0.2.9", BackendType="vxlan"), "its backend is 'vxlan', ours is udp"),
        (entry("10.1.20.0-24", "0.1.2.3"), "PublicIP 0.1.2.3 is no address of one host"),
        (entry("10.1.20.0-24", "224.0.0.5"), "PublicIP 224.0.0.5 is no address of one host"),
        (entry("10.1.20.0-24", "255.255.255.255"), "PublicIP 255.255.255.255 is no address of one host"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.key,
)
def test_one_poisoned_key_costs_no_other_peer_and_is_said_once_until_its_value_changes(bad: Entry, why: str) -> None:
    table = new_table()
    good = entry("10.1.16.0-24", "192.0.2.2")
    delta = table.apply(snapshot(bad, good))
    assert delta.added == table.peers() == (peer("10.1.16.0/24", "192.0.2.2"),)
    assert len(delta.warnings) == 1
    assert why in delta.warnings[0]
    assert repr(bad.key) in delta.warnings[0]
    assert "\n" not in delta.warnings[0]
    assert table.apply(snapshot(bad, good)) == Delta()
    assert table.apply(change(bad)) == Delta()
    changed = Entry(bad.key, bad.value.replace(b"}", b' ,"x":1}') + b" ", 2)
    assert len(table.apply(change(changed)).warnings) == 1
    assert replace(table.apply(change(gone=(bad.key,))), ours=None) == Delta()


def test_hosts_whose_entries_are_ignored_are_known_by_their_addresses_until_these_are_good() -> None:
    table = new_table()
    table.set_own_addresses(OWN_ADDRESSES)
    table.apply(
        snapshot(
            entry("10.1.16.0-24", "192.0.2.2", BackendType="host-gw"),
            entry("10.2.16.0-24", "192.0.2.3"),
            entry("10.1.17.0-24", "192.0.2.4"),
            entry("10.1.18.0-24", "198.51.100.1"),  # this host's
            entry("10.2.19.0-24", OUR_IP),
            Entry("junk", b"?", 1),  # nobody's
        )
    )
    outside = "10.2.16.0/24 is outside the overlay network 10.1.0.0/16"
    assert table.ignored() == {
        IPv4Address("192.0.2.2"): "entry '10.1.16.0-24' is ignored: its backend is 'host-gw', ours is udp",
        IPv4Address("192.0.2.3"): f"entry '10.2.16.0-24' is ignored: {outside}",
    }
    table.apply(change(entry("10.1.16.0-24", "192.0.2.2", 2), gone=("10.2.16.0-24",)))
    assert table.ignored() == {}


def test_a_poisoned_key_that_is_repaired_becomes_a_peer_and_the_other_way_round() -> None:
    table = new_table()
    table.apply(snapshot(Entry("10.1.20.0-24", b"?", 1)))
    assert table.apply(change(entry("10.1.20.0-24", "192.0.2.9"))).added == (peer("10.1.20.0/24", "192.0.2.9"),)
    delta = table.apply(change(Entry("10.1.20.0-24", b"?", 3)))
    assert delta.removed == (peer("10.1.20.0/24", "192.0.2.9"),)
    assert len(delta.warnings) == 1


def test_a_huge_key_makes_a_short_warning() -> None:
    (warning,) = new_table().apply(snapshot(entry("9" * 100_000, "192.0.2.9"))).warnings
    assert len(warning) < 400


@pytest.mark.parametrize("backend_type", ["", "udp", "UDP"])
def test_a_lease_of_the_udp_backend_may_say_so(backend_type: str) -> None:
    assert new_table().apply(snapshot(entry("10.1.16.0-24", "192.0.2.2", BackendType=backend_type))).added


@pytest.mark.parametrize(
    ("public_ip", "why"),
    [
        ("10.1.16.7", "is in the overlay network 10.1.0.0/16, so what is sent there comes back into the overlay"),
        ("10.1.99.7", "is in the overlay network 10.1.0.0/16, so what is sent there comes back into the overlay"),
        ("0.0.0.0", "is no address of one host"),
        ("127.0.0.1", "is no address of one host"),
        ("169.254.7.7", "is link-local: another host may have the same (RFC 3927)"),
        ("224.0.0.251", "is no address of one host"),
        ("255.255.255.255", "is no address of one host"),
        ("192.0.2.255", "is the broadcast address of eth0's network"),
        ("198.51.100.1", "is an address of this host"),
    ],
)
def test_an_entry_whose_address_leads_nowhere_is_ignored_with_one_warning(public_ip: str, why: str) -> None:
    table = new_table()
    table.set_own_addresses(OWN_ADDRESSES)
    delta = table.apply(snapshot(entry("10.1.16.0-24", public_ip), entry("10.1.17.0-24", "192.0.2.3")))
    assert delta.added == table.peers() == (peer("10.1.17.0/24", "192.0.2.3"),)
    text = f"entry '10.1.16.0-24' is ignored: PublicIP {public_ip} {why}"
    assert delta.warnings == (text,)
    assert table.apply(change(entry("10.1.16.0-24", public_ip, 2))) == Delta()
    assert table.apply(change(entry("10.1.16.0-24", "192.0.2.2", 3))).added == (peer("10.1.16.0/24", "192.0.2.2"),)
    assert table.apply(change(entry("10.1.16.0-24", public_ip, 4))).removed == (peer("10.1.16.0/24", "192.0.2.2"),)


@pytest.mark.parametrize("public_ip", ["240.1.2.3", "10.2.0.1", "192.0.2.0"])
def test_an_address_that_may_be_a_hosts_is_a_peers(public_ip: str) -> None:
    assert new_table().apply(snapshot(entry("10.1.16.0-24", public_ip))).added == (peer("10.1.16.0/24", public_ip),)


def test_hosts_inside_the_overlay_are_peers_where_nobody_may_lease_their_addresses() -> None:
    hosts = IPv4Network("10.1.0.0/24")
    table = PeerTable(
        (NETWORK,), LeaseAttrs(IPv4Address("10.1.0.1")), read_udp_hop, lambda address: address not in hosts
    )
    delta = table.apply(snapshot(entry("10.1.16.0-24", "10.1.0.2"), entry("10.1.17.0-24", "10.1.99.7")))
    assert delta.added == (peer("10.1.16.0/24", "10.1.0.2"),)
    assert len(delta.warnings) == 1


def test_who_has_an_address_of_ours_is_a_peer_again_when_it_is_ours_no_more_ten_times() -> None:
    table = new_table()
    there = peer("10.1.16.0/24", "198.51.100.1")
    assert table.apply(snapshot(entry("10.1.16.0-24", "198.51.100.1"), entry("10.1.17.0-24", "192.0.2.3"))).added
    for _ in range(10):
        delta = table.set_own_addresses(OWN_ADDRESSES)
        assert (delta.removed, len(delta.warnings)) == ((there,), 1)
        assert table.set_own_addresses(OWN_ADDRESSES) == Delta()
        assert table.set_own_addresses({}) == Delta(added=(there,))


def test_among_thousands_of_peers_a_hundred_ill_ones_come_and_go_ten_times_and_cost_the_others_nothing() -> None:
    table = new_table()
    keys = [f"10.1.{n >> 4}.{(n & 15) << 4}-28" for n in range(256, 4096)]
    good = {key: entry(key, f"198.18.{n >> 8}.{n & 255}") for n, key in enumerate(keys)}
    ill = {key: entry(key, "10.1.99.1") for key in keys[::38]}
    table.apply(Snapshot(good, revision=1))
    for revision in range(10):
        delta = table.apply(Change(ill, revision=2 * revision + 2))
        assert (len(delta.removed), len(delta.warnings), delta.added, delta.changed) == (len(ill), len(ill), (), ())
        delta = table.apply(Change({key: good[key] for key in ill}, revision=2 * revision + 3))
        assert (len(delta.added), delta.warnings, delta.removed) == (len(ill), (), ())
    assert table.count == len(good)


def test_our_own_entry_is_no_fault_though_its_address_is_ours() -> None:
    table = new_table()
    table.set_own_addresses({IPv4Address(OUR_IP): "is an address of this host"})
    assert table.apply(snapshot(entry("10.1.15.0-24", OUR_IP))) == Delta()
    assert table.set_own_addresses({}) == Delta()


def test_a_subnet_of_another_length_is_a_good_peer() -> None:
    delta = new_table().apply(snapshot(entry("10.1.64.0-20", "192.0.2.2"), entry("10.1.9.64-27", "192.0.2.3")))
    assert delta == Delta(added=(peer("10.1.64.0/20", "192.0.2.2"), peer("10.1.9.64/27", "192.0.2.3")))


# --- Our own subnet -----------------------------------------------------------------------------------------------


def test_our_own_subnet_is_never_a_peer_whoever_holds_it() -> None:
    table = new_table()
    assert table.apply(snapshot(entry("10.1.15.0-24", OUR_IP))) == Delta()
    assert table.apply(change(entry("10.1.15.0-24", "192.0.2.9"))) == Delta()
    assert table.set_own(None) == Delta(added=(peer("10.1.15.0/24", "192.0.2.9"),))
    assert table.set_own(Subnet(OWN)) == Delta(removed=(peer("10.1.15.0/24", "192.0.2.9"),))


def test_when_our_public_ip_changes_nobody_under_the_new_one_is_a_peer_any_more() -> None:
    table = new_table()
    entries = (entry("10.1.15.0-24", OUR_IP), entry("10.1.16.0-24", "192.0.2.9"), entry("10.1.17.0-24", OUR_IP))
    assert table.apply(snapshot(*entries)).added == (peer("10.1.16.0/24", "192.0.2.9"),)
    delta = table.set_public_ips(LeaseAttrs(IPv4Address("192.0.2.9")))
    assert delta.removed == (peer("10.1.16.0/24", "192.0.2.9"),)
    assert delta.added == (peer("10.1.17.0/24", OUR_IP),)  # what the registry says: that address is not ours now
    assert table.apply(change(entry("10.1.15.0-24", "192.0.2.9", 2))) == Delta()
    fresh = PeerTable((NETWORK,), LeaseAttrs(IPv4Address("192.0.2.9")), read_udp_hop)
    fresh.set_own(Subnet(OWN))
    fresh.apply(snapshot(entry("10.1.15.0-24", "192.0.2.9", 2), *entries[1:]))
    assert set(table.peers()) == set(fresh.peers())


def test_what_else_has_our_public_ip_is_ours_and_no_peer_and_follows_the_registry() -> None:
    table = new_table()
    delta = table.apply(snapshot(entry("10.1.16.0-24", "192.0.2.2"), entry("10.1.16.9-32", OUR_IP)))
    assert delta.added == table.peers() == (peer("10.1.16.0/24", "192.0.2.2"),)
    assert delta.ours == table.ours() == frozenset({IPv4Network("10.1.16.9/32")})
    assert table.apply(change(entry("10.1.16.9-32", OUR_IP, 2))).ours is None
    delta = table.apply(change(entry("10.1.16.9-32", "192.0.2.3", 3)))
    assert (delta.ours, delta.added) == (frozenset(), (peer("10.1.16.9/32", "192.0.2.3"),))
    assert table.set_public_ips(LeaseAttrs(IPv4Address("192.0.2.3"))).ours == frozenset({IPv4Network("10.1.16.9/32")})
    assert table.apply(snapshot()).ours == frozenset()


@pytest.mark.parametrize(
    ("key", "mark", "claims"),
    [
        ("10.1.20.0-24", OTHER_MARK, True),
        ("10.1.20.0-24", OUR_MARK, True),  # a copied host
        ("10.1.20.0-24", 0, False),  # a reservation: somebody's decision
        ("10.1.20.7-32", OTHER_MARK, False),  # a service
        ("10.1.15.0-24", OTHER_MARK, False),  # our own subnet: the lease machine's
    ],
)
def test_another_hosts_subnet_under_our_public_ip_is_a_claim(key: str, mark: int, claims: bool) -> None:
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    theirs = replace(entry(key, OUR_IP), lease_id=lease_id_of(mark, 7))
    table.apply(snapshot(theirs))
    assert table.claims() == []  # nobody's, as long as we have none
    delta = table.set_own(Subnet(OWN))
    assert table.claims() == ([theirs] if claims else [])
    assert len(delta.warnings) == (key != "10.1.15.0-24" and not claims)  # a claim is said as one
    table.apply(snapshot())
    assert table.claims() == []


@pytest.mark.parametrize(
    ("key", "host", "claims"),
    [
        ("10.1.20.0-24", "stale", True),
        ("10.1.20.0-25", "stale", True),  # a node's podCIDR has any length
        ("10.1.20.0-24", "h1", False),  # our own node, which has another podCIDR now
        ("10.1.15.0-24", "a", False),  # our podCIDR: a rival, which is said as one
    ],
)
def test_another_node_under_our_public_ip_is_a_claim_without_any_mark(key: str, host: str, claims: bool) -> None:
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    table.set_own(Subnet(OWN), "h1")
    theirs = replace(entry(key, OUR_IP), lease_id=0, host=host)
    table.apply(snapshot(theirs))
    assert table.claims() == ([theirs] if claims else [])
    table.apply(change(gone=(key,)))
    assert table.claims() == []


def test_a_subnet_that_several_hosts_hold_is_known_until_one_has_it_alone() -> None:
    table = new_table()
    ours = replace(entry("10.1.15.0-24", OUR_IP), host="h1", rivals=("a", "b"))
    theirs = replace(entry("10.1.16.0-24", "192.0.2.2"), host="n1", rivals=("n2",))
    table.apply(snapshot(ours, theirs))
    assert table.shared() == [
        SharedSubnet("10.1.15.0/24", ("h1", "a", "b"), ours=True),
        SharedSubnet("10.1.16.0/24", ("n1", "n2"), ours=False),
    ]
    table.set_own(None)
    assert table.shared() == []
    table.set_own(Subnet(OWN))
    assert not table.apply(change(replace(theirs, rivals=())))
    assert [shared.subnet for shared in table.shared()] == ["10.1.15.0/24"]
    table.apply(snapshot(theirs))
    assert [shared.subnet for shared in table.shared()] == ["10.1.16.0/24"]
    table.apply(change(gone=("10.1.16.0-24",)))
    assert table.shared() == []
    table.apply(change(replace(entry("nonsense", "192.0.2.2"), host="n1", rivals=("n2",))))
    assert table.shared() == []  # no packets go there in any case


def test_keys_under_our_public_ip_are_no_matter_before_we_hold_a_subnet_and_warned_about_once_after() -> None:
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    assert table.apply(snapshot(entry("10.1.15.0-24", OUR_IP), entry("10.1.20.0-24", OUR_IP))) == Delta()
    (warning,) = table.set_own(Subnet(OWN)).warnings
    assert warning == (
        "entry '10.1.20.0-24' is no peer: it has our public IP, but our subnet is 10.1.15.0/24; what comes for it is "
        "given to the kernel"
    )
    assert table.set_own(Subnet(OWN)) == Delta()
    assert table.peers() == ()


# --- Overlaps -----------------------------------------------------------------------------------------------------


def test_overlapping_peers_both_stay_with_one_warning() -> None:
    table = new_table()
    wide, narrow = entry("10.1.64.0-20", "192.0.2.2"), entry("10.1.65.0-24", "192.0.2.3")
    delta = table.apply(snapshot(wide, narrow))
    assert (
        set(delta.added) == set(table.peers()) == {peer("10.1.64.0/20", "192.0.2.2"), peer("10.1.65.0/24", "192.0.2.3")}
    )
    assert delta.warnings == ("10.1.64.0/20 of 192.0.2.2 overlaps 10.1.65.0/24 of 192.0.2.3: the longer prefix wins",)
    assert table.apply(change(entry("10.1.66.0-24", "192.0.2.4"))).warnings == ()


def test_a_wide_peer_that_comes_last_is_warned_about_once_for_all_it_overlaps() -> None:
    table = new_table()
    table.apply(snapshot(*(entry(f"10.1.{n}.0-24", f"192.0.2.{n}") for n in range(64, 70))))
    delta = table.apply(change(entry("10.1.64.0-20", "192.0.2.2")))
    assert delta.warnings == ("10.1.64.0/20 of 192.0.2.2 overlaps 6 longer subnets inside it: the longer prefix wins",)


def test_an_overlap_with_our_own_subnet_is_warned_about() -> None:
    (warning,) = new_table().apply(snapshot(entry("10.1.0.0-20", "192.0.2.2"))).warnings
    assert warning == "10.1.0.0/20 of 192.0.2.2 overlaps 1 longer subnet inside it: the longer prefix wins"
    (warning,) = new_table().apply(snapshot(entry("10.1.15.128-25", "192.0.2.2"))).warnings
    assert warning == "10.1.15.0/24 of this host overlaps 10.1.15.128/25 of 192.0.2.2: the longer prefix wins"


def test_an_overlap_that_ended_and_comes_back_is_said_again() -> None:
    table = new_table()
    wide, narrow = entry("10.1.64.0-20", "192.0.2.2"), entry("10.1.65.0-24", "192.0.2.3")
    table.apply(snapshot(wide, narrow))
    table.apply(change(gone=(wide.key,)))
    assert len(table.apply(change(wide)).warnings) == 1


def test_of_two_keys_for_one_subnet_the_first_counts_and_the_other_takes_over() -> None:
    table = new_table()
    single, dual = entry("10.1.16.0-24", "192.0.2.2"), entry("10.1.16.0-24&fd00:0:0:1::-64", "192.0.2.3")
    assert table.apply(change(dual)).added == (peer("10.1.16.0/24", "192.0.2.3"),)
    delta = table.apply(change(single))
    assert delta.changed == (peer("10.1.16.0/24", "192.0.2.2"),)
    assert delta.warnings == (f"entries '{single.key}' and '{dual.key}' hold one subnet: '{single.key}' counts",)
    assert table.apply(change(gone=(single.key,))).changed == (peer("10.1.16.0/24", "192.0.2.3"),)
    assert table.apply(change(gone=(dual.key,))).removed == (peer("10.1.16.0/24", "192.0.2.3"),)


# --- Size ---------------------------------------------------------------------------------------------------------


def test_a_change_costs_the_same_with_many_peers() -> None:
    def seconds_a_change(peers: int) -> float:
        table = PeerTable((IPv4Network("10.0.0.0/8"),), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
        keys = [f"{IPv4Address((10 << 24) + 4 * n)}-30" for n in range(1, peers + 1)]
        table.apply(snapshot(*(entry(key, "192.0.2.2") for key in keys)))
        key = keys[peers // 2]
        fastest = 1.0
        for _ in range(30):
            began = time.perf_counter()
            table.apply(change(gone=(key,)))
            table.apply(change(entry(key, "192.0.2.3")))
            fastest = min(fastest, time.perf_counter() - began)
        return fastest

    assert seconds_a_change(20_000) < 10 * seconds_a_change(20)


def test_parts_are_small_and_complete() -> None:
    table = new_table()
    table.apply(snapshot(*(entry(f"10.1.{n}.0-24", "192.0.2.2") for n in range(100, 150))))
    event = snapshot(*(entry(f"10.1.{n}.0-24", "192.0.2.3") for n in range(140, 200)))
    parts = list(table.parts(event))
    assert max(map(len, parts)) <= PART_SIZE
    merged = {key: value for part in parts for key, value in part.items()}
    assert merged == {**{f"10.1.{n}.0-24": None for n in range(100, 140)}, **event.entries}
