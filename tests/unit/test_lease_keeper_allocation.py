"""Which subnet a host takes: flannel's order, and never one that somebody else holds."""

from __future__ import annotations

import json
import random
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.control.allocation import CANDIDATES, Decision, Seeker, choose_subnet
from flannel_udp.errors import AddressClaimed, NoFreeSubnet
from flannel_udp.model import Entry, Snapshot, Subnet, lease_id_of
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config

OUR_IP = IPv4Address("192.0.2.1")
OUR_MARK, OTHER_MARK = 0x1234, 0x5678


def config(**keys: object) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.1.0.0/16", **keys})).config


def entry(
    key: str, public_ip: str = "192.0.2.9", *, reserved: bool = False, mark: int = OTHER_MARK, **more: object
) -> Entry:
    lease_id = 0 if reserved else lease_id_of(mark, 7)
    return Entry(key, json.dumps({"PublicIP": public_ip, **more}).encode(), 5, lease_id)


def subnet(text: str) -> Subnet:
    return Subnet(IPv4Network(text))


def choose(*entries: Entry, previous: str | None = None, seed: int = 1, **keys: object) -> Decision:
    snapshot = Snapshot({item.key: item for item in entries}, 9)
    wanted = None if previous is None else subnet(previous)
    return choose_subnet(config(**keys), snapshot, Seeker(OUR_IP, OUR_MARK), wanted, random.Random(seed))


# --- The order ----------------------------------------------------------------------------------------------------


def test_an_entry_under_our_public_ip_that_fits_is_reused_before_anything_else() -> None:
    ours = entry("10.1.7.0-24", str(OUR_IP))
    assert choose(ours, entry("10.1.8.0-24"), previous="10.1.9.0/24") == Decision(subnet("10.1.7.0/24"), reuse=ours)


def test_an_entry_of_ours_is_reused_whatever_backend_wrote_it() -> None:
    ours = entry("10.1.7.0-24", str(OUR_IP), BackendType="vxlan")
    assert choose(ours).reuse == ours


def test_of_several_entries_of_ours_a_reservation_comes_first_then_the_previous_subnet_then_the_first_key() -> None:
    first, second = entry("10.1.7.0-24", str(OUR_IP)), entry("10.1.8.0-24", str(OUR_IP))
    reserved = entry("10.1.9.0-24", str(OUR_IP), reserved=True)
    assert choose(second, first).reuse == first
    assert choose(first, second, previous="10.1.8.0/24").reuse == second
    assert choose(first, second, reserved, previous="10.1.8.0/24").reuse == reserved


@pytest.mark.parametrize("key", ["10.1.7.0-25", "10.1.0.0-24", "10.2.7.0-24", "10.1.0.0-16", "10.1.7.0-24&fd00::-64"])
def test_a_lease_of_ours_that_does_not_fit_is_discarded_and_another_subnet_taken(key: str) -> None:
    unfit = entry(key, str(OUR_IP), mark=OUR_MARK)
    decision = choose(unfit, previous="10.1.7.0/24")
    assert [lease.entry for lease in decision.discard] == [unfit]
    assert (decision.subnet, decision.reuse) == (subnet("10.1.7.0/24"), None)


@pytest.mark.parametrize("key", ["10.1.7.9-32", "10.1.7.0-25", "10.2.7.0-24", "10.1.0.0-16", "10.1.7.0-24&fd00::-64"])
def test_a_lease_under_our_address_that_does_not_bear_our_mark_is_never_deleted_and_what_it_covers_not_taken(
    key: str,
) -> None:
    decision = choose(entry(key, str(OUR_IP)), previous="10.1.7.0/24")
    assert (decision.discard, decision.reuse) == ((), None)
    assert (decision.subnet == subnet("10.1.7.0/24")) == (key in {"10.2.7.0-24", "10.1.0.0-16"})


def test_a_host_without_a_mark_deletes_nothing() -> None:
    unfit = entry("10.1.7.0-25", str(OUR_IP), mark=0)
    snapshot = Snapshot({unfit.key: unfit}, 9)
    assert choose_subnet(config(), snapshot, Seeker(OUR_IP), None, random.Random(1)).discard == ()


def test_of_several_entries_under_our_address_the_one_with_our_mark_comes_first() -> None:
    theirs, ours = entry("10.1.7.0-24", str(OUR_IP)), entry("10.1.8.0-24", str(OUR_IP), mark=OUR_MARK)
    assert choose(theirs, ours, previous="10.1.7.0/24").reuse == ours


@pytest.mark.parametrize(("mark", "who"), [(OTHER_MARK, "another host"), (OUR_MARK, "a copy of this host")])
def test_what_another_host_has_just_taken_under_our_address_is_left_to_it(mark: int, who: str) -> None:
    theirs = entry("10.1.7.0-24", str(OUR_IP), mark=mark)
    snapshot = Snapshot({theirs.key: theirs}, 9)
    with pytest.raises(AddressClaimed, match=who):
        choose_subnet(config(), snapshot, Seeker(OUR_IP, OUR_MARK, yields=True), None, random.Random(1))
    gone = Snapshot({}, 10)
    previous = subnet("10.1.7.0/24")
    decision = choose_subnet(config(), gone, Seeker(OUR_IP, OUR_MARK, yields=True), previous, random.Random(1))
    assert decision == Decision(previous)


# --- Leases that are over by our clock ----------------------------------------------------------------------------


def over(*entries: Entry, previous: str | None = None, seed: int = 1, **keys: object) -> Subnet:
    """Return the choice where only leases are that ended by our clock."""
    snapshot = Snapshot({}, 9, ended={item.key: item for item in entries})
    wanted = None if previous is None else subnet(previous)
    return choose_subnet(config(**keys), snapshot, Seeker(OUR_IP, OUR_MARK), wanted, random.Random(seed)).subnet


def test_a_subnet_whose_lease_ended_by_our_clock_is_avoided_while_another_is_free() -> None:
    bounds = {"SubnetMin": "10.1.5.0", "SubnetMax": "10.1.6.0"}
    picks = {over(entry("10.1.5.0-24"), previous="10.1.5.0/24", seed=seed, **bounds) for seed in range(30)}
    assert picks == {subnet("10.1.6.0/24")}


def test_it_is_taken_when_nothing_else_is_free() -> None:
    assert over(entry("10.1.5.0-24"), SubnetMin="10.1.5.0", SubnetMax="10.1.5.0") == subnet("10.1.5.0/24")


def test_our_own_that_ended_may_be_had_again() -> None:
    assert over(entry("10.1.5.0-24", str(OUR_IP)), previous="10.1.5.0/24") == subnet("10.1.5.0/24")


def test_nothing_is_discarded_when_another_entry_of_ours_fits() -> None:
    assert choose(entry("10.1.7.0-25", str(OUR_IP)), entry("10.1.9.0-24", str(OUR_IP))).discard == ()


def test_a_reservation_of_ours_that_does_not_fit_stays_and_what_it_covers_is_not_taken() -> None:
    decision = choose(entry("10.1.16.0-20", str(OUR_IP), reserved=True), previous="10.1.17.0/24")
    assert decision.discard == ()
    assert not decision.subnet.ipv4.overlaps(IPv4Network("10.1.16.0/20"))


def test_a_reservation_of_ours_as_wide_as_the_network_blocks_nothing() -> None:
    assert choose(entry("10.1.0.0-16", str(OUR_IP), reserved=True), previous="10.1.17.0/24").subnet == subnet(
        "10.1.17.0/24"
    )


def test_the_previous_subnet_is_taken_when_free_and_fitting() -> None:
    assert choose(entry("10.1.8.0-24"), previous="10.1.9.0/24") == Decision(subnet("10.1.9.0/24"))


@pytest.mark.parametrize("previous", ["10.1.9.0/25", "10.2.9.0/24", "10.1.0.0/24"])
def test_a_previous_subnet_that_does_not_fit_is_passed_over(previous: str) -> None:
    decision = choose(previous=previous)
    assert config().fits(decision.subnet)


def test_a_dual_stack_previous_subnet_does_not_fit_an_ipv4_configuration() -> None:
    previous = Subnet(IPv4Network("10.1.9.0/24"), IPv6Network("fd00::/64"))
    decision = choose_subnet(config(), Snapshot({}, 1), Seeker(OUR_IP), previous, random.Random(1))
    assert decision.subnet.v6 is None


@pytest.mark.parametrize("taken", ["10.1.9.0-24", "10.1.0.0-20", "10.1.9.64-26", "10.1.9.0-24&fd00::-64"])
def test_a_previous_subnet_that_overlaps_a_peer_of_any_length_is_passed_over(taken: str) -> None:
    decision = choose(entry(taken), previous="10.1.9.0/24")
    assert decision.subnet != subnet("10.1.9.0/24")


# --- The free choice ----------------------------------------------------------------------------------------------


def test_the_pick_is_random_among_the_first_hundred_free_subnets() -> None:
    picks = {choose(entry("10.1.1.0-24"), seed=seed).subnet for seed in range(2000)}
    assert picks == {subnet(f"10.1.{n}.0/24") for n in range(2, 2 + CANDIDATES)}


@pytest.mark.parametrize("races", [1, 5])
def test_who_was_slower_than_another_host_picks_among_twice_as_many_each_time(races: int) -> None:
    snapshot, seeker = Snapshot({}, 9), Seeker(OUR_IP, OUR_MARK, races=races)
    settings = parse_config('{"Network": "10.0.0.0/8"}').config
    picks = [choose_subnet(settings, snapshot, seeker, None, random.Random(seed)).subnet.ipv4 for seed in range(20)]
    places = [(int(pick.network_address) - int(IPv4Address("10.0.1.0"))) >> 8 for pick in picks]
    assert CANDIDATES << races - 1 < max(places) < CANDIDATES << races


def test_the_pick_stays_within_subnet_min_and_max() -> None:
    picks = {choose(seed=seed, SubnetMin="10.1.10.0", SubnetMax="10.1.12.0").subnet for seed in range(100)}
    assert picks == {subnet(f"10.1.{n}.0/24") for n in (10, 11, 12)}


@pytest.mark.parametrize(
    "poison",
    [
        Entry("0.0.0.0-0", b'{"PublicIP":"192.0.2.9"}', 1),
        entry("10.0.0.0-8"),
        entry("10.1.0.0-16"),
        Entry("10.1.0.0-17", b"not JSON", 1),
        entry("nonsense"),
    ],
    ids=lambda item: item.key,
)
def test_a_poisoned_key_blocks_nothing(poison: Entry) -> None:
    assert choose(poison, SubnetMin="10.1.5.0", SubnetMax="10.1.5.0").subnet == subnet("10.1.5.0/24")


def test_a_key_that_exists_is_not_picked_even_if_poisoned_because_it_cannot_be_created() -> None:
    bad = Entry("10.1.5.0-24", b"not JSON", 1)
    picks = {
        choose(bad, seed=n, SubnetMin="10.1.5.0", SubnetMax="10.1.6.0", previous="10.1.5.0/24").subnet
        for n in range(30)
    }
    assert picks == {subnet("10.1.6.0/24")}


def test_leases_of_other_backends_keep_what_they_hold() -> None:
    with pytest.raises(NoFreeSubnet):
        choose(entry("10.1.5.0-24", BackendType="vxlan"), SubnetMin="10.1.5.0", SubnetMax="10.1.5.0")


def test_an_exhausted_range_says_how_many_subnets_it_has_and_where() -> None:
    with pytest.raises(NoFreeSubnet) as caught:
        choose(*(entry(f"10.1.{n}.0-24") for n in range(5, 8)), SubnetMin="10.1.5.0", SubnetMax="10.1.7.0")
    assert str(caught.value) == (
        "all 3 subnets of length /24 from 10.1.5.0 to 10.1.7.0 are taken: "
        "delete stale leases or widen the network configuration"
    )


PREFIXES = st.builds(
    lambda address, length: IPv4Network((address >> (32 - length) << (32 - length), length)),
    st.integers(0, 0x3FF).map(lambda low: (10 << 24) + (1 << 16) + low),
    st.integers(21, 32),
)


@given(
    st.lists(PREFIXES, max_size=12, unique=True),
    st.sampled_from([24, 26, 28, 30]),
    st.tuples(st.integers(0, 15), st.integers(0, 15)).map(sorted),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_choice_agrees_with_a_comparison_of_every_subnet_with_every_lease(
    taken: list[IPv4Network], length: int, bounds: list[int], poisoned: bool, seed: int
) -> None:
    network = IPv4Network("10.1.0.0/22")
    subnets = list(network.subnets(new_prefix=length))
    low, high = (bound * len(subnets) // 16 for bound in bounds)
    settings = parse_config(
        json.dumps(
            {
                "Network": str(network),
                "SubnetLen": length,
                "SubnetMin": str(subnets[low].network_address),
                "SubnetMax": str(subnets[high].network_address),
            }
        )
    ).config
    entries = [entry(f"{prefix.network_address}-{prefix.prefixlen}") for prefix in taken]
    if poisoned and entries:
        entries[0] = Entry(entries[0].key, b"?", 1)
    keys = {item.key for item in entries}
    blocking = [prefix for prefix in taken[1 if poisoned else 0 :] if prefix.prefixlen > network.prefixlen]
    free = [
        candidate
        for candidate in subnets[low : high + 1]
        if not any(candidate.overlaps(prefix) for prefix in blocking)
        and f"{candidate.network_address}-{length}" not in keys
    ]
    snapshot = Snapshot({item.key: item for item in entries}, 1)
    expected = random.Random(seed).choice(free[:CANDIDATES]) if free else None
    try:
        chosen = choose_subnet(settings, snapshot, Seeker(OUR_IP), None, random.Random(seed)).subnet.v4
    except NoFreeSubnet:
        assert expected is None
    else:
        assert chosen == expected


def test_a_hundred_thousand_leases_in_four_million_subnets_are_chosen_from_in_reasonable_time() -> None:
    keys = [f"{IPv4Address((10 << 24) + 4 * n)}-30" for n in range(1, 100_001)]
    value = b'{"PublicIP":"192.0.2.9","PublicIPv6":null}'
    snapshot = Snapshot({key: Entry(key, value, 1, 7) for key in keys}, 1)
    settings = parse_config('{"Network": "10.0.0.0/8", "SubnetLen": 30}').config
    began = time.process_time()
    chosen = choose_subnet(settings, snapshot, Seeker(OUR_IP), None, random.Random(1)).subnet.ipv4
    # Of this process's CPU time. Reading the leases takes two seconds; comparing each with each candidate would take
    # hours.
    assert time.process_time() - began < 20
    assert int(chosen.network_address) > (10 << 24) + 4 * 100_000
