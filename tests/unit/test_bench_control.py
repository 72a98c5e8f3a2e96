"""What bench/control.py makes of what it has measured; the measuring itself needs a lab."""

from __future__ import annotations

import io
import json
import socket
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

import pytest
from rich.console import Console
from scapy.layers.inet import ICMP, IP, UDP

from bench import churn, control, probes
from bench.churn import ELSEWHERE, HOMES, OVERLAY, home_of, lease_of, moves, subnet_at
from bench.control import CARRIED, PROMISES, Promise
from bench.probes import EARLY_NS, STALE_NS, Seen, percentile
from flannel_udp.model import LeaseAttrs
from flannel_udp.registry.file.document import entries_of, parse_document
from flannel_udp.registry.keys import format_value

MS = 1_000_000
MOST = Promise("delay", 10, "delay", 50, "ms")
LEAST = Promise("throughput", 10, "ratio", 0.95, "", at_least=True)


@pytest.mark.parametrize(
    ("promise", "figure", "words"),
    [
        (MOST, 50, "met"),
        (MOST, 50.000001, "NOT met"),
        (MOST, float("inf"), "NOT met"),
        (LEAST, 0.95, "met"),
        (LEAST, 0.949999, "NOT met"),
        (LEAST, None, "not measured"),
    ],
)
def test_a_promise_is_kept_up_to_its_bound(promise: Promise, figure: float | None, words: str) -> None:
    assert promise.words(figure) == words


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_the_table_has_a_row_for_every_promise_of_the_sizes_that_were_measured(backend: str) -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(control._table({10_000: {"wrong": 0, "etcd_load_s": 2.5}}, backend))
    rows = out.getvalue().splitlines()
    of_backend = [promise for promise in PROMISES if promise.backend == backend]
    assert sum("10,000" in row for row in rows) == sum(promise.subnets == 10_000 for promise in of_backend)
    assert not any("100,000" in row for row in rows)
    assert next("NOT met" in row for row in rows if "load from etcd" in row) == (backend == "udp")
    assert next("not measured" in row for row in rows if "delay" in row)


def test_it_is_said_where_etcd_was_too_slow() -> None:
    found = {10_000: {"changes_per_s": CARRIED["udp"]}, 100_000: {"changes_per_s": 612.3}}
    assert control._remarks(found, "udp") == [
        "100,000 subnets: etcd carried 612 changes/s only, so the delays are of those"
    ]


def test_every_move_leads_to_an_address_that_nobody_else_has() -> None:
    made = list(islice(moves(1_000, 0), 5_000))
    assert len({address for _, address in made}) == len(made)
    assert all(address in ELSEWHERE for _, address in made)
    assert {place for place, _ in made} == set(range(1_000))
    assert next(moves(1_000, 17)) == made[17]


def test_a_hundred_thousand_peers_have_subnets_and_homes_of_their_own() -> None:
    places = range(0, 100_000, 997)
    assert all(subnet_at(place).subnet_of(OVERLAY) and home_of(place) in HOMES for place in places)
    assert all(int(subnet_at(n + 1)[0]) - int(subnet_at(n)[0]) == subnet_at(n).num_addresses for n in places)
    assert home_of(99_999) < HOMES.broadcast_address


def test_the_registry_file_holds_the_same_peers() -> None:
    document = parse_document(churn.write_file(3, {"10.255.0.0/26": "192.0.2.1"}, {"Network": str(OVERLAY)}).encode())
    entries = entries_of(document, 0.0)
    subnets = {IPv4Network(key.replace("-", "/")): json.loads(entry.value) for key, entry in entries.items()}
    assert subnets[subnet_at(2)] == {"PublicIP": str(home_of(2)), "PublicIPv6": None}
    assert len(subnets) == 4
    assert all(entry.reserved for entry in entries.values())


@pytest.mark.parametrize("heading", [b"", bytes(22)], ids=["udp", "vxlan"])
def test_a_probe_is_told_from_an_echo_of_the_agents_own(heading: bytes) -> None:
    inner = IP(src="10.255.0.0", dst="10.1.0.65")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as arriving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        arriving.setsockopt(socket.IPPROTO_IP, probes._IP_PKTINFO, 1)
        arriving.bind(("127.0.0.1", 0))
        arriving.setblocking(False)
        for packet in (inner / ICMP(type=8) / bytes(12), inner / UDP(sport=40_000, dport=9) / (7).to_bytes(4, "big")):
            out.sendto(heading + bytes(packet), arriving.getsockname())
        found = Seen()
        probes._receive(arriving, found, {})
    assert [(place, address) for _, place, address in found.arrived] == [(7, int(IPv4Address("127.0.0.1")))]


def seen(*arrived: tuple[int, int, int]) -> Seen:
    """Place 1 moves to address 7 at 5 s and to address 8 at 8 s; the first move is probed."""
    return Seen(moved=[(5_000 * MS, 1, 7), (8_000 * MS, 1, 8)], probed=[0], arrived=list(arrived))


def test_a_delay_ends_with_the_first_packet_at_the_new_peer() -> None:
    assert seen((5_010 * MS, 1, 3), (5_020 * MS, 1, 7), (5_030 * MS, 1, 7)).delays_ms() == [20.0]
    assert seen((4_990 * MS, 1, 7)).delays_ms() == [0.0]  # the agent knew before the writer had its answer
    assert seen((5_010 * MS, 2, 7)).delays_ms() == [float("inf")]


@pytest.mark.parametrize(
    ("at_ms", "address", "wrong"),
    [
        (1_000, int(home_of(1)), 0),
        (1_000, 7, 1),
        (5_000 + STALE_NS // MS - 1, int(home_of(1)), 0),
        (5_000 + STALE_NS // MS, int(home_of(1)), 1),
        (5_000 - EARLY_NS // MS, 7, 0),
        (5_000 - EARLY_NS // MS - 1, 7, 1),
        (7_000, 7, 0),
        (7_000, 8, 1),
        (8_500, 7, 0),
        (9_500, 8, 0),
        (9_500, 7, 1),
    ],
)
def test_a_packet_is_wrong_at_a_peer_that_has_lost_or_not_yet_got_its_subnet(
    at_ms: int, address: int, wrong: int
) -> None:
    assert seen((at_ms * MS, 1, address)).wrong({}) == wrong


def test_what_moved_before_counts_too() -> None:
    assert seen((1_000 * MS, 1, 6)).wrong({1: 6}) == 0
    assert seen((1_000 * MS, 1, int(home_of(1)))).wrong({1: 6}) == 1


def test_percentiles_are_figures_that_were_measured() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert IPv4Address(int(home_of(0))) == HOMES[1]


def test_with_vxlan_every_host_says_where_frames_go() -> None:
    value = json.loads(format_value(lease_of(IPv4Address("198.18.0.5"), "vxlan")))
    assert value["BackendData"] == {"VNI": 1, "VtepMAC": "02:00:c6:12:00:05"}
    assert lease_of(IPv4Address("198.18.0.5"), "udp") == LeaseAttrs(IPv4Address("198.18.0.5"))
