"""What is said of the kernel's answers, and which of its rules and routes are behind them: no kernel is asked here."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from flannel_udp.host.lookup.cut_off import Need, resolvers, stays
from flannel_udp.host.lookup.diversions import Diversion, Overlay, Refusing, Sender, Trial, culprit
from flannel_udp.host.lookup.forwarding import ALL_DEVICES, Inlet, Settings, judge_forwarding
from flannel_udp.host.lookup.prefixes import Prefixes
from flannel_udp.host.lookup.question import RTN_BLACKHOLE, RTN_BROADCAST, RTN_LOCAL, Entry, Question, Way, Ways
from flannel_udp.host.lookup.rules import PolicyRule
from flannel_udp.host.lookup.verdicts import NAMED_MAX, judge_diversions
from flannel_udp.host.rtnetlink import RTN_UNICAST, RTPROT_KERNEL
from flannel_udp.options import EtcdOptions, Options
from flannel_udp.registry.servers import servers_of

NETWORK = IPv4Network("10.0.0.0/8")
NAMES = {1: "lo", 2: "eth0", 3: "flannel0", 4: "other", 5: "flannel.1"}
MAIN, LOCAL = PolicyRule(32766, 254), PolicyRule(0, 255)
PEER = IPv4Network("10.1.2.0/24")
TO_PEER = Question(PEER[1])


def route(destination: str, device: int = 4, table: int = 254, kind: int = 1, gateway: str | None = None) -> Entry:
    hops = (Way(device, IPv4Address(gateway) if gateway else None),) if kind == 1 else ()
    return Entry(IPv4Network(destination), table, kind, 3, 0, 0, hops)


def diversion(subnet: IPv4Network, entry: Entry, sender: Sender = Sender.HOST) -> Diversion:
    return Diversion(Trial(sender, subnet, Way(3), Question(subnet[1])), entry, MAIN, entry)


def test_one_route_that_leads_many_peers_elsewhere_is_one_sentence() -> None:
    wide = route("10.1.0.0/16")
    found = [diversion(IPv4Network(f"10.1.{i}.0/24"), wide, sender) for sender in Sender for i in range(2, 102)]
    (item,) = judge_diversions(found, Overlay(NETWORK, Ways(3, {}), None), NAMES)
    assert item.text == (
        "packets for 10.1.2.0/24, 10.1.3.0/24, 10.1.4.0/24 and 97 more are sent to other, not to flannel0: "
        'by the route "10.1.0.0/16 dev other proto boot": ip route del 10.1.0.0/16 dev other'
    )


@pytest.mark.parametrize(
    ("way", "wide", "ours"),
    [
        (Way(3), "0.0.0.0/0", "10.0.0.0/8"),
        (Way(2, IPv4Address("192.0.2.2")), "0.0.0.0/0", "10.1.2.0/24"),
        (Way(2, IPv4Address("192.0.2.2")), "10.0.0.0/8", "10.1.2.0/24"),
    ],
)
def test_nobody_is_told_to_remove_a_wider_route_where_ours_is_missing(way: Way, wide: str, ours: str) -> None:
    entry = route(wide)
    found = [Diversion(Trial(Sender.HOST, PEER, way, TO_PEER), entry, MAIN, entry)]
    (item,) = judge_diversions(found, Overlay(NETWORK, Ways(way.device, {PEER: way.gateway}), None), NAMES)
    assert item.text.endswith(
        f": the overlay's own route to {ours} is missing: `ip -ts monitor route` shows what takes it away"
    )


def test_a_hundred_routes_are_ten_sentences_and_a_count() -> None:
    subnets = [IPv4Network(f"10.1.{i}.0/24") for i in range(100)]
    found = [diversion(subnet, route(str(subnet))) for subnet in subnets]
    texts = [item.text for item in judge_diversions(found, Overlay(NETWORK, Ways(3, {}), None), NAMES)]
    assert len(texts) == NAMED_MAX + 1
    assert texts[-1].startswith("and 90 more rules or routes like these: ")


@pytest.mark.parametrize("kind", [RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST])
def test_of_a_route_that_came_with_an_address_the_address_has_to_go(kind: int) -> None:
    entry = replace(route("10.1.2.0/24"), type=kind, protocol=RTPROT_KERNEL)
    (item,) = judge_diversions([diversion(PEER, entry)], Overlay(NETWORK, Ways(3, {PEER: None}), None), NAMES)
    assert item.text.endswith(": take the address that brought it off other, or choose another Network")


def test_a_peer_past_the_tunnel_has_a_way_of_its_own() -> None:
    other = IPv4Network("10.1.3.0/24")
    direct = Way(2, IPv4Address("192.0.2.2"))
    ways = Ways(3, {PEER: None, other: None}, {PEER: direct})
    assert (ways.way(PEER), ways.way(other), ways.devices) == (direct, Way(3), {2, 3})
    assert Ways(3, {PEER: None}).devices == {3}


def test_strict_source_checks_are_named_of_the_device_that_the_peer_s_packets_come_in_by() -> None:
    direct = Way(2, IPv4Address("192.0.2.2"))
    trial = Trial(Sender.PODS, PEER, direct, Question(PEER[1], IPv4Address("10.1.1.2"), 6))
    wide = route("10.1.0.0/16")
    settings = {ALL_DEVICES: Settings(True, 0), 2: Settings(True, 1), 3: Settings(True, 0)}
    overlay = Overlay(NETWORK, Ways(3, {PEER: None}, {PEER: direct}), None, settings)
    (item,) = judge_diversions([Diversion(trial, wide, MAIN, wide)], overlay, NAMES)
    assert "are sent to other, not to eth0 via 192.0.2.2" in item.text
    assert "and what comes from there is dropped, as rp_filter of eth0 is 1" in item.text


def test_the_rule_that_leads_to_the_route_s_table_is_found() -> None:
    rules = [LOCAL, PolicyRule(50, 77, iif="cni0"), PolicyRule(60, 77, mark=(7, 0xFF)), PolicyRule(70, 77), MAIN]
    answer = route("0.0.0.0/0", table=77)
    assert culprit(TO_PEER, "lo", answer, rules, Refusing([])) == (rules[3], answer)
    forwarded = Question(PEER[1], IPv4Address("10.1.1.2"), 6)
    assert culprit(forwarded, "cni0", answer, rules, Refusing([])) == (rules[1], answer)


def test_the_rule_for_all_vrfs_is_meant_only_where_no_other_one_leads_to_the_table() -> None:
    vrfs = PolicyRule(1000, l3mdev=True)
    foreign, in_a_vrf = route("10.1.2.0/24"), route("10.1.2.0/24", table=10)
    assert culprit(TO_PEER, "lo", foreign, [LOCAL, vrfs, MAIN], Refusing([])) == (MAIN, foreign)
    assert culprit(TO_PEER, "lo", in_a_vrf, [LOCAL, vrfs, MAIN], Refusing([])) == (vrfs, in_a_vrf)
    assert culprit(TO_PEER, "lo", in_a_vrf, [LOCAL, MAIN], Refusing([])) == (None, in_a_vrf)


def test_a_rule_that_passes_over_the_route_is_not_the_one() -> None:
    but_default, default = PolicyRule(95, 254, suppress_prefix_len=0), route("0.0.0.0/0")
    assert culprit(TO_PEER, "lo", default, [LOCAL, but_default, MAIN], Refusing([])) == (MAIN, default)
    longer = route("10.1.2.0/24")
    assert culprit(TO_PEER, "lo", longer, [LOCAL, but_default, MAIN], Refusing([])) == (but_default, longer)


def test_the_longest_refusing_route_of_the_first_table_is_found() -> None:
    wide, narrow = route("10.1.0.0/16", kind=RTN_BLACKHOLE), route("10.1.2.0/24", kind=RTN_BLACKHOLE)
    assert culprit(TO_PEER, "lo", 22, [LOCAL, MAIN], Refusing([wide, narrow])) == (MAIN, narrow)
    refusing_rule = PolicyRule(10, action=RTN_BLACKHOLE, destination=PEER)
    assert culprit(TO_PEER, "lo", 22, [LOCAL, refusing_rule, MAIN], Refusing([wide])) == (refusing_rule, None)
    assert culprit(TO_PEER, "lo", 13, [LOCAL, MAIN], Refusing([wide])) == (None, None)


def test_a_device_with_a_dot_in_its_name_is_named_as_sysctl_takes_it() -> None:
    settings = {ALL_DEVICES: Settings(True, 0), 5: Settings(False, 0), 3: Settings(True, 0)}
    (item,) = judge_forwarding(settings, [Inlet(5, "flannel.1", "all"), Inlet(3, "flannel0", "all")])
    assert item.text == "flannel.1 does not forward: dropped is all: sysctl -w net/ipv4/conf/flannel.1/forwarding=1"


def test_a_host_that_forwards_by_none_of_its_other_devices_is_well() -> None:
    assert judge_forwarding({ALL_DEVICES: Settings(False, 0), 3: Settings(True, 0)}, [Inlet(3, "flannel0", "")]) == []


@pytest.mark.parametrize(
    ("answer", "stay"),
    [
        (route("0.0.0.0/0"), False),
        (route("10.0.0.0/8"), False),
        (route("10.9.9.0/24"), True),
        (route("10.9.9.9/32", device=1, kind=2), True),
        (route("0.0.0.0/0", table=77), True),
        (route("0.0.0.0/0", table=88), False),
        (101, False),
    ],
)
def test_a_way_stays_if_it_is_narrower_or_asked_before_the_main_table(answer: Entry | int, stay: bool) -> None:
    rules = [LOCAL, PolicyRule(70, 77), MAIN, PolicyRule(32767, 88)]
    assert stays(answer, NETWORK, Question(IPv4Address("10.9.9.9")), rules) is stay


def test_resolvers_are_read_once_each(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("search x\nnameserver 10.0.0.53 \nnameserver ::1\n#nameserver 10.0.0.54\n")
    (tmp_path / "b").write_text("nameserver 10.0.0.53\nnameserver 300.1.1.1\nnameserver 127.0.0.53\n")
    found = resolvers([tmp_path / "a", tmp_path / "missing", tmp_path / "b"], vital=False)
    assert found == [
        Need(f"the resolver in {tmp_path}/a", IPv4Address("10.0.0.53"), vital=False),
        Need(f"the resolver in {tmp_path}/a", IPv6Address("::1"), vital=False),
        Need(f"the resolver in {tmp_path}/b", IPv4Address("127.0.0.53"), vital=False),
    ]


def test_the_registry_s_servers_are_those_of_the_flags() -> None:
    etcd = EtcdOptions(endpoints=("http://10.9.9.9:2379", "https://etcd.example:2379"))
    assert [(server.host, server.is_name) for server in servers_of(Options(etcd=etcd))] == [
        ("10.9.9.9", False),
        ("etcd.example", True),
    ]
    assert servers_of(Options(registry="file:/x")) == []


def test_parts_of_a_subnet_are_found_whatever_else_there_is() -> None:
    prefixes = Prefixes(NETWORK)
    for network in map(
        IPv4Network, ("10.1.2.0/24", "10.1.2.0/25", "10.1.2.7/32", "10.1.3.0/25", "10.0.0.0/8", "9.0.0.0/9")
    ):
        prefixes.note(int(network.network_address), network.prefixlen)
    assert prefixes.below(PEER) == [IPv4Network("10.1.2.0/25"), IPv4Network("10.1.2.7/32")]
