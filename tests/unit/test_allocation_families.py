"""Which subnet a host takes where IPv6 is on: a part of each family under one key, each chosen by itself."""

from __future__ import annotations

import json
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.control.allocation import CANDIDATES, Decision, Seeker, accept_assigned, choose_subnet, find_rival
from flannel_udp.control.entries import read_leases
from flannel_udp.errors import NoFreeSubnet, RegistryError
from flannel_udp.model import Entry, LeaseAttrs, Snapshot, Subnet, lease_id_of
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry.keys import format_key
from tests.support.backends import parse_families

IP, IPV6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
MARK, OTHER_MARK = 0x1234, 0x5678
BOTH = Seeker(IP, MARK, versions=(4, 6))
ONLY_V6 = Seeker(IPV6, MARK, versions=(6,))


def dual(**keys: object) -> NetworkConfig:
    return parse_families({"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48", **keys})


def v6_alone(**keys: object) -> NetworkConfig:
    return parse_families({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:1::/48", **keys})


def entry(
    key: str,
    public_ip: str = "192.0.2.9",
    public_ipv6: str | None = "2001:db8::9",
    *,
    reserved: bool = False,
    mark: int = OTHER_MARK,
) -> Entry:
    value = json.dumps({"PublicIP": public_ip, "PublicIPv6": public_ipv6}).encode()
    return Entry(key, value, 5, 0 if reserved else lease_id_of(mark, 7))


def subnet(v4: str | None, v6: str | None = None) -> Subnet:
    return Subnet(None if v4 is None else IPv4Network(v4), None if v6 is None else IPv6Network(v6))


def choose(
    config: NetworkConfig, *entries: Entry, seeker: Seeker = BOTH, previous: Subnet | None = None, seed: int = 1
) -> Decision:
    snapshot = Snapshot({item.key: item for item in entries}, 9)
    return choose_subnet(config, snapshot, seeker, previous, random.Random(seed))


# --- A part of each family ----------------------------------------------------------------------------------------


def test_both_parts_are_picked_at_random_among_the_first_hundred_free_ones_of_each() -> None:
    taken = entry("10.1.1.0-24&fd00:1:0:1::-64")
    picks = {choose(dual(), taken, seed=seed).subnet for seed in range(900)}
    assert {pick.v4 for pick in picks} == {IPv4Network(f"10.1.{n}.0/24") for n in range(2, 2 + CANDIDATES)}
    assert {pick.v6 for pick in picks} == {IPv6Network(f"fd00:1:0:{n:x}::/64") for n in range(2, 2 + CANDIDATES)}
    assert len(picks) > 800  # one part does not tell the other


def test_a_host_without_an_address_of_one_family_gets_no_part_of_it() -> None:
    assert choose(dual(), seeker=Seeker(IP, MARK, versions=(4,))).subnet.v6 is None
    alone = choose(dual(), seeker=ONLY_V6).subnet
    assert alone.v4 is None
    assert format_key(alone).startswith("0.0.0.0-0&fd00:1:0:")


def test_a_family_that_is_off_gives_nobody_a_part() -> None:
    assert choose(v6_alone(), seeker=Seeker(IPV6, MARK, versions=(4, 6))).subnet.v4 is None


def test_who_holds_a_part_keeps_it_under_whatever_key() -> None:
    bounds = {
        "SubnetMin": "10.1.5.0",
        "SubnetMax": "10.1.6.0",
        "IPv6SubnetMin": "fd00:1:0:5::",
        "IPv6SubnetMax": "fd00:1:0:6::",
    }
    others = (entry("10.1.5.0-24"), entry("0.0.0.0-0&fd00:1:0:6::-64", "0.0.0.0"))
    picks = {choose(dual(**bounds), *others, seed=seed).subnet for seed in range(20)}
    assert picks == {subnet("10.1.6.0/24", "fd00:1:0:5::/64")}


@pytest.mark.parametrize(
    ("poisoned", "free"), [("10.1.5.1-24&fd00:1:0:6::-64", "v4"), ("10.1.6.0-24&fd00:1:0:5::1-64", "v6")]
)
def test_of_a_key_with_one_poisoned_part_the_other_one_is_held(poisoned: str, free: str) -> None:
    bounds = {
        "SubnetMin": "10.1.5.0",
        "SubnetMax": "10.1.6.0",
        "IPv6SubnetMin": "fd00:1:0:5::",
        "IPv6SubnetMax": "fd00:1:0:6::",
    }
    picks = {choose(dual(**bounds), entry(poisoned), seed=seed).subnet for seed in range(60)}
    assert len({pick.v4 for pick in picks}) == (2 if free == "v4" else 1)
    assert len({pick.v6 for pick in picks}) == (2 if free == "v6" else 1)


def test_what_cannot_be_understood_blocks_no_more_than_its_own_parts() -> None:
    bounds = {"IPv6SubnetMin": "fd00:1:0:5::", "IPv6SubnetMax": "fd00:1:0:6::"}
    bad = Entry("10.1.5.0-24&fd00:1:0:5::-64", b"not JSON", 1)
    picks = {
        choose(dual(**bounds), bad, previous=subnet(None, "fd00:1:0:5::/64"), seed=seed).subnet.v6 for seed in range(20)
    }
    assert picks == {IPv6Network("fd00:1:0:6::/64")}


def test_no_free_part_of_one_family_names_that_family_s_range() -> None:
    with pytest.raises(NoFreeSubnet) as caught:
        choose(dual(IPv6SubnetMin="fd00:1:0:5::", IPv6SubnetMax="fd00:1:0:5::"), entry("10.1.5.0-24&fd00:1:0:5::-64"))
    assert str(caught.value).startswith("all 1 subnets of length /64 from fd00:1:0:5:: to fd00:1:0:5:: are taken: ")


# --- The subnet we had --------------------------------------------------------------------------------------------


def test_both_parts_of_subnet_env_are_wanted_again() -> None:
    previous = subnet("10.1.9.0/24", "fd00:1:0:9::/64")
    assert choose(dual(), previous=previous) == Decision(previous)


@pytest.mark.parametrize(
    ("taken", "kept"),
    [
        ("10.1.9.0-24", "fd00:1:0:9::/64"),
        ("0.0.0.0-0&fd00:1:0:9::-64", "10.1.9.0/24"),
        ("10.1.0.0-20", "fd00:1:0:9::/64"),
    ],
)
def test_a_part_of_subnet_env_that_is_taken_does_not_cost_the_other(taken: str, kept: str) -> None:
    previous = subnet("10.1.9.0/24", "fd00:1:0:9::/64")
    decision = choose(dual(), entry(taken), previous=previous)
    assert decision.subnet != previous
    assert kept in {str(part) for part in decision.subnet.prefixes}


def test_ipv6_that_is_switched_on_or_off_leaves_the_pods_their_ipv4_subnet() -> None:
    ours = entry("10.1.9.0-24", str(IP), None, mark=MARK)
    on = choose(dual(), ours)  # also without a subnet.env
    assert ([lease.entry for lease in on.discard], on.subnet.v4, on.reuse) == ([ours], IPv4Network("10.1.9.0/24"), None)
    assert on.subnet.v6 is not None
    both = entry("10.1.9.0-24&fd00:1:0:9::-64", str(IP), str(IPV6), mark=MARK)
    off = choose(parse_families({"Network": "10.1.0.0/16"}), both)
    assert off == Decision(subnet("10.1.9.0/24"), discard=off.discard)


def test_ipv4_that_is_switched_off_leaves_the_pods_their_ipv6_subnet() -> None:
    both = entry("10.1.9.0-24&fd00:1:0:9::-64", str(IP), str(IPV6), mark=MARK)
    decision = choose(v6_alone(), both, seeker=ONLY_V6)  # found by its PublicIPv6
    assert (decision.subnet, len(decision.discard)) == (subnet(None, "fd00:1:0:9::/64"), 1)


def test_a_host_whose_ipv6_address_is_away_keeps_the_part_that_it_has() -> None:
    ours = entry("10.1.9.0-24&fd00:1:0:9::-64", str(IP), str(IPV6), mark=MARK)
    decision = choose(dual(), ours, seeker=Seeker(IP, MARK, versions=(4,)))
    assert decision == Decision(subnet("10.1.9.0/24", "fd00:1:0:9::/64"), reuse=ours)


# --- Who we are ---------------------------------------------------------------------------------------------------


def test_with_ipv4_on_a_host_is_found_by_its_public_ip_alone() -> None:
    ours = entry("10.1.9.0-24&fd00:1:0:9::-64", str(IP), "2001:db8::77")
    theirs = entry("10.1.8.0-24&fd00:1:0:8::-64", "192.0.2.9", str(IPV6))
    assert choose(dual(), theirs, ours).reuse == ours
    assert choose(dual(), theirs).reuse is None


def test_five_hosts_without_ipv4_are_five_hosts() -> None:
    entries = [entry(f"0.0.0.0-0&fd00:1:0:{n}::-64", "0.0.0.0", f"2001:db8::{n}") for n in range(1, 6)]
    for n in range(1, 6):
        seeker = Seeker(IPv6Address(f"2001:db8::{n}"), n, versions=(6,))
        assert choose(v6_alone(), *entries, seeker=seeker).reuse == entries[n - 1]
    sixth = choose(v6_alone(), *entries, seeker=Seeker(IPv6Address("2001:db8::6"), 6, versions=(6,)))
    assert sixth.reuse is None
    assert sixth.subnet.v6 not in {IPv6Network(f"fd00:1:0:{n}::/64") for n in range(1, 6)}


def test_what_a_lease_says_tells_who_seeks() -> None:
    assert Seeker.saying(LeaseAttrs(IP, IPV6), MARK) == BOTH
    assert Seeker.saying(LeaseAttrs(None, IPV6), MARK, yields=True) == Seeker(IPV6, MARK, True, (6,))
    with pytest.raises(ValueError, match="without any address"):
        Seeker.saying(LeaseAttrs(None), MARK)


# --- Reservations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "key", "taken"),
    [
        (dual(), "10.1.9.0-24&fd00:1:0:9::-64", subnet("10.1.9.0/24", "fd00:1:0:9::/64")),
        (dual(), "10.1.9.0-24", subnet("10.1.9.0/24")),
        (parse_families({"Network": "10.1.0.0/16"}), "10.1.9.0-24&fd00:1:0:9::-64", subnet("10.1.9.0/24")),
    ],
    ids=["both", "IPv4 in a dual-stack network", "both in an IPv4 network"],
)
def test_a_reservation_of_either_form_is_taken_as_far_as_it_counts(
    config: NetworkConfig, key: str, taken: Subnet
) -> None:
    reserved = entry(key, str(IP), None, reserved=True)
    assert choose(config, reserved, previous=subnet("10.1.8.0/24")) == Decision(taken, reuse=reserved)


def test_a_reservation_of_ipv6_alone_is_found_by_the_public_ipv6() -> None:
    for key in ("0.0.0.0-0&fd00:1:0:9::-64", "10.1.9.0-24&fd00:1:0:9::-64"):
        reserved = entry(key, "0.0.0.0", str(IPV6), reserved=True)
        decision = choose(v6_alone(), reserved, seeker=ONLY_V6)
        assert decision == Decision(subnet(None, "fd00:1:0:9::/64"), reuse=reserved)


def test_of_two_reservations_the_one_with_both_parts_comes_first() -> None:
    single, both = (entry(key, str(IP), reserved=True) for key in ("10.1.8.0-24", "10.1.9.0-24&fd00:1:0:9::-64"))
    assert choose(dual(), single, both).reuse == both


# --- Two hosts at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "is_rival"),
    [
        ("10.1.9.0-24&fd00:1:0:8::-64", True),
        ("10.1.8.0-24&fd00:1:0:9::-64", True),
        ("10.1.9.0-24", True),
        ("10.1.9.0-25", True),
        ("0.0.0.0-0&fd00:1:0:9::-64", True),
        ("10.1.8.0-24&fd00:1:0:8::-64", False),
        ("10.1.9.0-24&fd00:1:0:9::-64", False),  # the key that was created
        ("10.0.0.0-8", False),  # as wide as the network, and wider: it is nobody's subnet
        ("0.0.0.0-0&fd00::-16", False),
    ],
)
def test_who_has_created_another_key_with_the_same_part_is_found(key: str, is_rival: bool) -> None:
    leases = read_leases({key: entry(key)})
    found = find_rival(dual(), leases, "10.1.9.0-24&fd00:1:0:9::-64", subnet("10.1.9.0/24", "fd00:1:0:9::/64"))
    assert (found is not None) == is_rival


OWN_KEY = "10.1.9.0-24&fd00:1:0:9::-64"


@pytest.mark.parametrize("other", ["10.1.9.0-24&fd00:1:0:8::-64", "0.0.0.0-0&fd00:1:0:9::-64", "10.1.9.0-24"])
def test_who_comes_back_to_a_subnet_of_which_another_host_has_a_part_chooses_anew(other: str) -> None:
    ours, theirs = entry(OWN_KEY, str(IP), mark=MARK), entry(other)
    decision = choose(dual(), ours, theirs)
    assert decision.reuse is None
    assert [lease.entry for lease in decision.discard] == [ours]
    taken = read_leases({other: theirs})[0].subnet
    assert not set(decision.subnet.prefixes) & set(taken.prefixes)


@pytest.mark.parametrize("other", ["10.1.8.0-24&fd00:1:0:8::-64", "10.1.9.0-25", "10.0.0.0-8", "10.1.9.1-24"])
def test_what_is_no_host_s_part_of_our_subnet_costs_us_nothing(other: str) -> None:
    ours = entry(OWN_KEY, str(IP), mark=MARK)
    assert choose(dual(), ours, entry(other)).reuse == ours


def test_a_reservation_is_kept_whoever_else_has_a_part_of_it() -> None:
    ours = entry(OWN_KEY, str(IP), reserved=True)
    assert choose(dual(), ours, entry("10.1.9.0-24")).reuse == ours


# --- Assigned by the registry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("10.1.9.0-24&fd00:1:0:9::-64", subnet("10.1.9.0/24", "fd00:1:0:9::/64")),
        ("10.1.9.0-24", subnet("10.1.9.0/24")),
        ("0.0.0.0-0&fd00:1:0:9::-64", subnet(None, "fd00:1:0:9::/64")),
        ("10.1.9.0-24&fd00:2::-64", subnet("10.1.9.0/24")),
        ("10.2.9.0-24&fd00:1:0:9::-64", subnet(None, "fd00:1:0:9::/64")),
        ("10.1.9.0-24&fd00:1:0:9::1-64", subnet("10.1.9.0/24")),
    ],
)
def test_what_can_be_taken_of_what_the_registry_assigns_is_taken(key: str, taken: Subnet) -> None:
    assigned = Entry(key, b"", 5)
    assert accept_assigned(dual(), assigned, (4, 6)) == Decision(taken, reuse=assigned)


def test_an_assigned_subnet_without_a_part_that_counts_is_refused() -> None:
    with pytest.raises(RegistryError, match="has no part of a family that is on: make the two agree"):
        accept_assigned(v6_alone(), Entry("10.1.9.0-24", b"", 5), (6,))


# --- Against a comparison of everything with everything -----------------------------------------------------------

PARTS_V4 = st.none() | st.builds(
    lambda n, length: IPv4Network(((10 << 24 | 1 << 16) + n * 64 >> 32 - length << 32 - length, length)),
    st.integers(0, 15),
    st.integers(23, 28),
)
PARTS_V6 = st.none() | st.builds(
    lambda n, length: IPv6Network(((0xFD000001 << 96) + (n << 64) >> 128 - length << 128 - length, length)),
    st.integers(0, 7),
    st.integers(62, 66),
)


@given(
    st.lists(st.tuples(PARTS_V4, PARTS_V6).filter(any), max_size=8),
    st.sampled_from([(4,), (6,), (4, 6)]),
    st.integers(0, 99),
)
def test_the_parts_agree_with_a_comparison_of_every_candidate_with_every_lease(
    taken: list[tuple[IPv4Network | None, IPv6Network | None]], versions: tuple[int, ...], seed: int
) -> None:
    config = dual(Network="10.1.0.0/22", SubnetLen=26, IPv6Network="fd00:1::/61", IPv6SubnetLen=64)
    leases = [Subnet(*parts) for parts in taken]
    seeker = Seeker(IP if 4 in versions else IPV6, MARK, versions=versions)
    free = {
        family.network.version: [
            candidate
            for candidate in family.network.subnets(new_prefix=family.subnet_len)
            if candidate != next(family.network.subnets(new_prefix=family.subnet_len))
            and not any(
                part is not None and candidate.overlaps(part)
                for part in (lease.of(candidate.version) for lease in leases)
            )
        ]
        for family in (config.v4, config.v6)
        if family is not None and family.network.version in versions
    }
    try:
        chosen = choose(config, *(entry(format_key(lease)) for lease in leases), seeker=seeker, seed=seed).subnet
    except NoFreeSubnet:
        assert not all(free.values())
    else:
        assert {part.version for part in chosen.prefixes} == set(versions)
        assert all(part in free[part.version] for part in chosen.prefixes)
