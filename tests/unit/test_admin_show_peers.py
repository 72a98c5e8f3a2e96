"""What people and scripts see of peers: which are meant, in which order, what is said of each."""

from __future__ import annotations

import io
from ipaddress import IPv4Address, IPv4Network
from time import process_time
from typing import cast

import pytest

from flannel_udp.admin.shapes import PeerRow
from flannel_udp.admin.show_peers import (
    SORT_KEYS,
    peers_lines,
    select_peers,
    show_peers,
    show_peers_oneline,
    sort_peers,
)
from flannel_udp.admin.table import short_number
from flannel_udp.cli.peer_commands import _RATE_KEYS, _SORT_KEYS
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.model import RATE_KEYS
from tests.support.status import PEER as OLD_PEER

PEER: PeerRow = {
    **OLD_PEER,
    "packets_out": 10**6,
    "bytes_out": 1_250_000_000,
    "heard_ago_s": 75.0,
    "host": None,
    "carrier": "userspace",
    "packets_out_s": 1_000.0,
    "bytes_out_s": 1_250_000.0,
    "packets_in_s": 0.5,
    "bytes_in_s": 42.0,
    "refused_out": 0,
}
QUIET: PeerRow = {
    **PEER,
    "subnet": "10.1.17.0/24",
    "public_ip": "192.0.2.10",
    "heard_ago_s": None,
    "bytes_out_s": 0.0,
    "packets_out_s": 0.0,
    "bytes_out": 0,
    "refused_out": 7,
}
KERNELS: PeerRow = {
    **OLD_PEER,
    "subnet": "10.1.18.0/24",
    "public_ip": "192.0.2.9",
    "packets_out": None,
    "bytes_out": None,
    "packets_in": None,
    "bytes_in": None,
    "heard_ago_s": None,
    "host": "node-b",
    "carrier": "kernel",
    "packets_out_s": None,
    "bytes_out_s": None,
    "packets_in_s": None,
    "bytes_in_s": None,
    "refused_out": None,
    "error": "port unreachable, says 192.0.2.9",
    "error_ago_s": 3.0,
    "path_mtu": 1372,
    "problem": "nothing comes back",
}
SIXTH: PeerRow = {**PEER, "subnet": "fd00:1:0:16::/64", "public_ip": "2001:db8::2", "host": "node-c"}
ALL = [PEER, QUIET, KERNELS, SIXTH]


def subnets(peers: list[PeerRow]) -> list[str]:
    return [peer["subnet"] for peer in peers]


def test_a_peer_is_a_line_with_what_passes_and_has_passed() -> None:
    heading, first, second = peers_lines([PEER, QUIET])
    assert heading.split("  ")[0] == "subnet"
    assert first.split() == [
        *("10.1.16.0/24", "192.0.2.2", "userspace", "1", "min", "15", "s", "ago"),
        *("1.25M", "1.00k", "42", "0.5", "1.25G", "1.00M", "168", "2", "0"),
    ]
    assert second.split()[:4] == ["10.1.17.0/24", "192.0.2.10", "userspace", "-"]
    assert len({line.index("192.0.2") for line in (first, second)}) == 1


def test_what_is_known_of_one_peer_only_has_a_column_all_the_same() -> None:
    asked: PeerRow = {**PEER, "echo": {"answered": True, "round_trip_ms": 0.25, "reason": None}}
    ill: PeerRow = {**KERNELS, "echo": {"answered": False, "round_trip_ms": None, "reason": "no answer"}}
    heading, first, second = peers_lines([asked, ill])
    assert heading.split()[0] == "host"
    assert heading.split()[-6:] == ["echo", "path", "mtu", "last", "error", "problem"]
    assert first.endswith("0.25 ms")
    for text in ("node-b", "kernel", "no answer", "1372", "port unreachable, says 192.0.2.9, 3 s ago"):
        assert text in second
    assert second.endswith("nothing comes back")


def test_what_nobody_counts_and_an_older_agent_leaves_out_is_a_dash() -> None:
    assert peers_lines([KERNELS])[1].split()[4:14] == ["-"] * 10
    assert peers_lines([OLD_PEER])[1].split() == [
        *("10.1.16.0/24", "192.0.2.2", "-", "2", "s", "ago", "-", "-", "-", "-", "84", "1", "168", "2", "-"),
    ]


def test_a_much_older_agents_peer_has_an_address_and_dashes() -> None:
    bare = cast(PeerRow, {"subnet": "10.1.16.0/24", "public_ip": "192.0.2.2"})
    assert peers_lines([bare])[1].split() == ["10.1.16.0/24", "192.0.2.2", *["-"] * 11]
    for key in SORT_KEYS:
        assert sort_peers([bare], key) == [bare]
    stream = io.StringIO()
    show_peers_oneline([bare], stream)
    assert stream.getvalue().rstrip().split("\t")[2:] == ["-"] * 16


def test_where_lines_are_too_long_for_the_terminal_a_peer_is_a_page_that_cuts_no_address() -> None:
    assert peers_lines([PEER], 200) == peers_lines([PEER])
    lines = peers_lines([SIXTH, KERNELS], 40)
    assert lines[:4] == ["peer fd00:1:0:16::/64", "  host: node-c", "  public ip: 2001:db8::2", "  datapath: userspace"]
    assert lines[lines.index("") + 1 :] == [
        "peer 10.1.18.0/24",
        "  host: node-b",
        "  public ip: 192.0.2.9",
        "  datapath: kernel",
        "  path mtu: 1372",
        "  last error: port unreachable, says 192.0.2.9, 3 s ago",
        "  problem: nothing comes back",
    ]


def test_no_peers_says_so() -> None:
    stream = io.StringIO()
    show_peers([], stream)
    assert stream.getvalue() == "no peers\n"


def test_what_others_have_written_breaks_no_line() -> None:
    hostile: PeerRow = {**PEER, "host": "a\nb\x1b[2J"}
    assert len(peers_lines([hostile])) == 2
    stream = io.StringIO()
    show_peers_oneline([hostile], stream)
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_a_line_for_scripts_has_the_same_fields_for_ever() -> None:
    stream = io.StringIO()
    show_peers_oneline([PEER, KERNELS, OLD_PEER], stream)
    first, second, third = [line.split("\t") for line in stream.getvalue().splitlines()]
    assert first == [
        *("10.1.16.0/24", "192.0.2.2", "-", "userspace", "heard", "75", "1000000", "1250000000", "2", "168"),
        *("1000", "1250000", "0.5", "42", "-", "0", "-", "-"),
    ]
    assert second[2:6] == ["node-b", "kernel", "heard", "-"]
    assert second[6:14] == ["-"] * 8
    assert second[14:] == ["1372", "-", "port unreachable, says 192.0.2.9", "nothing comes back"]
    assert len(third) == len(first)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], [0, 1, 2, 3]),
        (["10.1.16.0/23"], [0, 1]),
        (["10.1.17.5/24"], [1]),
        (["10.1.18.77"], [2]),
        (["192.0.2.9"], [2]),
        (["node-c"], [3]),
        (["fd00:1:0:16::7"], [3]),
        (["::/0"], [3]),
        (["192.0.2.9", "10.1.16.1", "10.1.16.0/24"], [0, 2]),
    ],
)
def test_a_subnet_an_address_in_it_a_public_ip_or_a_name_finds_its_peer(words: list[str], found: list[int]) -> None:
    assert select_peers(ALL, words) == [ALL[number] for number in found]


def test_an_address_finds_the_peer_with_the_longest_prefix() -> None:
    longer: PeerRow = {**PEER, "subnet": "10.1.16.128/25", "public_ip": "192.0.2.77"}
    assert select_peers([PEER, longer], ["10.1.16.200"]) == [longer]
    assert select_peers([PEER, longer], ["10.1.16.20"]) == [PEER]


def test_who_means_nobody_is_told_in_one_line() -> None:
    with pytest.raises(FlannelError, match=r"^none of 4 peers is 10\.9\.9\.9 or 10\.9\.0\.0/16$") as told:
        select_peers(ALL, ["10.9.9.9", "10.9.0.0/16"])
    assert told.value.exit_code == 1
    with pytest.raises(FlannelError, match="none of 4 peers is node-d: did you mean node-"):
        select_peers(ALL, ["node-d"])
    with pytest.raises(UsageError, match="is not a network"):
        select_peers(ALL, ["10.1.16.0/99"])


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("subnet", [0, 1, 2, 3]),
        ("host", [2, 3, 0, 1]),
        ("public-ip", [0, 2, 1, 3]),
        ("heard", [0, 3, 1, 2]),
        ("bytes", [0, 3, 1, 2]),
        ("total", [0, 3, 1, 2]),
        ("path-mtu", [2, 0, 1, 3]),
        ("drops", [1, 0, 3, 2]),
        ("error", [2, 0, 1, 3]),
    ],
)
def test_peers_are_sorted_and_what_is_not_known_goes_last(key: str, order: list[int]) -> None:
    assert subnets(sort_peers(ALL, key)) == [ALL[number]["subnet"] for number in order]


def test_the_command_line_has_all_keys() -> None:
    assert tuple(SORT_KEYS) == _SORT_KEYS
    assert tuple(RATE_KEYS) == _RATE_KEYS
    for key in SORT_KEYS:
        assert len(sort_peers([*ALL, OLD_PEER], key)) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.04, "0"), (0.5, "0.5"), (9.96, "10"), (12, "12"), (850.4, "850"), (999.6, "1.00k")),
        *(
            (1250, "1.25k"),
            (12_345, "12.3k"),
            (999_499, "999k"),
            (999_999, "1.00M"),
            (10**15, "1.00P"),
            (10**22, "10000E"),
        ),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_ten_thousand_peers_are_shown_at_once() -> None:
    peers: list[PeerRow] = [
        {
            **PEER,
            "subnet": str(IPv4Network((int(IPv4Address("10.64.0.0")) + (n << 8), 24))),
            "public_ip": str(IPv4Address(int(IPv4Address("198.18.1.0")) + n)),
        }
        for n in range(10_000)
    ]
    began_s = process_time()
    assert len(peers_lines(sort_peers(select_peers(peers, ["10.64.0.0/10"]), "public-ip"))) == 10_001
    assert process_time() - began_s < 5
