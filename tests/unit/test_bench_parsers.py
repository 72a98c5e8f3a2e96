from __future__ import annotations

import json
import os
from typing import Any

import pytest

from flannel_udp.bench.cpu import (
    ProcessCpu,
    daemons_cpu_s,
    foreign,
    parse_machine,
    parse_process,
    read_processes,
    used_between_s,
)
from flannel_udp.bench.generators import parse_blast
from flannel_udp.bench.machine import parse_cpu_model
from flannel_udp.bench.pings import parse_ping, parse_ping_sent
from flannel_udp.bench.streams import Transfer, parse_iperf3
from flannel_udp.errors import FlannelError
from tests.support.names import name_cut_in_a_letter

IPERF3: dict[str, dict[str, Any]] = {
    "start": {"version": "iperf 3.12"},
    "end": {
        "sum_sent": {"bytes": 1_300_000_000, "bits_per_second": 5.2e9, "retransmits": 17},
        "sum_received": {"bytes": 1_250_000_000, "bits_per_second": 5.0e9},
    },
}

PING = """\
PING 10.244.2.0 (10.244.2.0) 56(84) bytes of data.
64 bytes from 10.244.2.0: icmp_seq=1 ttl=62 time=0.069 ms
64 bytes from 10.244.2.0: icmp_seq=2 ttl=62 time=1.25 ms
64 bytes from 10.244.2.0: icmp_seq=2 ttl=62 time=1.40 ms (DUP!)
64 bytes from 10.244.2.0: icmp_seq=4 ttl=62 time=12 ms

--- 10.244.2.0 ping statistics ---
4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 3ms
rtt min/avg/max/mdev = 0.069/4.439/12.000/5.372 ms, pipe 2
"""


def process_line(pid: int, parent: int, utime: int, stime: int, *, cutime: int = 0, cstime: int = 0) -> str:
    return f"{pid} (a) b (c)) S {parent} 1 1 0 -1 4194560 900 80 7 6 {utime} {stime} {cutime} {cstime} 20 0 3 0 99"


def test_iperf3_counts_what_arrived_not_what_was_sent() -> None:
    assert parse_iperf3(json.dumps(IPERF3)) == [Transfer(1_250_000_000, 5.0e9, 17)]


def both_ways(back_bytes: int) -> str:
    end = {
        **IPERF3["end"],
        "sum_sent_bidir_reverse": {"bytes": 8, "bits_per_second": 4.0, "retransmits": 3},
        "sum_received_bidir_reverse": {"bytes": back_bytes, "bits_per_second": 2.0},
    }
    return json.dumps({"end": end})


def test_iperf3_both_ways_gives_a_transfer_there_and_one_back() -> None:
    assert parse_iperf3(both_ways(4)) == [Transfer(1_250_000_000, 5.0e9, 17), Transfer(4, 2.0, 3)]


@pytest.mark.parametrize("around", ["%s", "warning: MSS mismatch\n%s", "%s\niperf3: interrupt"])
def test_iperf3_may_print_lines_around_its_json(around: str) -> None:
    assert parse_iperf3(around % json.dumps(IPERF3, indent=4))[0].retransmits == 17


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON: \\(nothing\\)"),
        ("iperf3: not found", "no JSON: iperf3: not found"),
        ('{"start": {', "no JSON"),
        ('{"end": {}, "error": "unable to connect to server"}', "unable to connect to server"),
        (json.dumps({"end": {"sum_received": {"bytes": 0}, "sum_sent": {}}}), "nothing got through"),
        (both_ways(0), "nothing got through"),
    ],
)
def test_iperf3_that_measured_nothing_is_an_error(text: str, message: str) -> None:
    with pytest.raises(FlannelError, match=message):
        parse_iperf3(text)


def test_ping_times_are_in_microseconds_and_duplicates_count_once() -> None:
    assert parse_ping(PING) == pytest.approx([69, 1250, 12_000])


def test_pings_that_were_sent_are_counted_by_ping_itself() -> None:
    assert parse_ping_sent(PING) == 4
    assert parse_ping_sent("PING 10.244.2.0 (10.244.2.0) 56(84) bytes of data.\n") == 0


def test_pings_without_an_answer_give_no_times() -> None:
    assert parse_ping("PING 10.244.2.0 (10.244.2.0) 56(84) bytes of data.\nrtt min/avg/max/mdev = 0/0/0/0 ms\n") == []


def test_blast_gives_packets_a_second() -> None:
    assert parse_blast('{"packets": 300, "seconds": 1.5}\n').pps == 200


@pytest.mark.parametrize(("text", "message"), [("", "no result"), ('{"packets": 0, "seconds": 1.0}', "no datagram")])
def test_blast_that_measured_nothing_is_an_error(text: str, message: str) -> None:
    with pytest.raises(FlannelError, match=message):
        parse_blast(text)


def test_a_process_name_with_blanks_and_parentheses_shifts_no_field() -> None:
    parsed = parse_process(process_line(7, 3, utime=150, stime=50, cutime=20, cstime=10))
    assert parsed.parent == 3
    assert parsed.waited_s / parsed.own_s == pytest.approx(30 / 200)


def test_a_process_whose_name_is_cut_in_the_middle_of_a_letter_is_read_as_any() -> None:
    with name_cut_in_a_letter():
        assert os.getpid() in read_processes()
        assert daemons_cpu_s([os.getpid()]) > 0


def test_idle_and_waiting_time_is_not_busy_and_stolen_time_is_apart() -> None:
    parsed = parse_machine("cpu  100 10 200 99999 5000 30 60 40 7 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert parsed.stolen_s / parsed.busy_s == pytest.approx(40 / 400)


def test_foreign_load_leaves_out_our_descendants_and_the_kernel_and_counts_collected_children() -> None:
    lines = [
        process_line(1, 0, 1, 0),
        process_line(2, 0, 1000, 0),
        process_line(20, 2, 1000, 0),  # a kernel thread
        process_line(50, 1, 2, 0, cutime=4),  # a shell, and what it has run
        process_line(60, 50, 1000, 0, cutime=1000),  # us
        process_line(61, 60, 1000, 0),
        process_line(62, 61, 1000, 0),
        process_line(70, 50, 0, 8),
        process_line(80, 79, 16, 0),  # its parent had ended when its turn came
    ]
    processes = {int(line.split()[0]): parse_process(line) for line in lines}
    assert set(foreign(processes, ours=(60,))) == {1, 50, 70, 80}


def test_what_others_used_counts_whom_they_collected_and_loses_nobody_who_is_counted_nowhere() -> None:
    shell, ending, busy = ProcessCpu(1, 1.0, 5.0), ProcessCpu(50, 9.0, 0.0), ProcessCpu(1, 100.0, 0.0)
    before = {50: shell, 51: ending, 70: busy}
    collected = {50: ProcessCpu(1, 1.0, 5.0 + 9.5), 70: ProcessCpu(1, 101.0, 0.0)}
    assert used_between_s(before, collected) == pytest.approx(0.5 + 1.0)
    assert used_between_s(before, {50: shell, 70: ProcessCpu(1, 101.0, 0.0)}) == pytest.approx(1.0)
    came_and_went = {**before, 50: ProcessCpu(1, 1.0, 5.0 + 0.25)}
    assert used_between_s(before, came_and_went) == pytest.approx(0.25)
    assert used_between_s(before, {**before, 99: ProcessCpu(1, 2.0, 0.0)}) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: fpu\n\n", "Some CPU @ 2.00GHz"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n", "CPU part 0xd0c"),
    ],
)
def test_the_cpu_is_named_on_x86_and_on_arm(cpuinfo: str, model: str) -> None:
    assert parse_cpu_model(cpuinfo) == model
