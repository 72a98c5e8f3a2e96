"""The names of measures: what may stand in them, and what is measured and shown by them."""

from __future__ import annotations

import pytest

from flannel_udp.bench.measure import measure_of
from flannel_udp.bench.metrics import metrics_of
from flannel_udp.bench.names import (
    ALL,
    DEFAULT,
    Datagrams,
    Streams,
    check_payloads,
    datagrams_of,
    needs_blast,
    parse_measures,
    streams_of,
)
from flannel_udp.errors import UsageError


def test_names_come_out_once_and_in_the_order_in_which_a_round_takes_them() -> None:
    text = "rtt, udp1400,tcp16,udp64-loss-free,tcp1-write64k,tcp1,tcp1-write1024,udp64,tcp1-write1k,tcp2,tcp1"
    assert parse_measures(text) == (
        *("tcp1", "tcp1-write1k", "tcp1-write64k", "tcp2", "tcp16"),
        *("udp64", "udp1400", "udp64-loss-free", "rtt"),
    )


def test_all_and_the_default_are_names_in_their_order_and_each_can_be_taken() -> None:
    assert parse_measures("all") == parse_measures(",".join(ALL)) == ALL
    assert parse_measures(",".join(DEFAULT)) == DEFAULT
    assert all(measure_of(name).nominal_s(1) > 0 for name in ALL)


def test_numbers_in_a_name_are_streams_and_bytes() -> None:
    assert streams_of("tcp128-write65536") == streams_of("tcp128-write64k") == Streams(128, 65_536)
    assert streams_of("tcp4") == Streams(4, 0)
    assert datagrams_of("udp1400-loss-free") == Datagrams(1400, True)
    assert [name for name in ALL if needs_blast(name)] == [name for name in ALL if name.startswith("udp")]


@pytest.mark.parametrize(
    "name",
    [
        *("", "tcp", "tcp0", "tcp01", "tcp129", "tcp1-write", "tcp1-write63", "tcp1-write65k", "tcp1-write0k"),
        *("udp", "udp0", "udp1401", "udp64-lossfree", "rtt2", "TCP1", "tcp-both2", "tcp\u0661", "tcp1-write64K"),
    ],
)
def test_what_is_no_name_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of tcpN, tcpN-writeBYTES, .*, or all"):
        parse_measures(f"tcp1,{name}")


def test_datagrams_that_not_every_contender_carries_in_one_packet_are_refused() -> None:
    check_payloads(("udp1400", "tcp1"), 4)
    check_payloads(("udp1360-loss-free", "udp64-offered"), 6)
    with pytest.raises(UsageError, match=r"--measures udp1361: by IPv6 not every contender carries more than 1360"):
        check_payloads(("tcp1", "udp1361"), 6)


def test_metrics_are_read_as_people_do_and_shown_in_order() -> None:
    names = [
        *("rtt_p999_us", "udp1400_kpps", "tcp16_gbit_s", "tcp1_write64k_gbit_s", "rtt_p99_us", "tcp2_gbit_s"),
        *(
            "tcp1_write64_gbit_s",
            "udp64_at_100k_lost_percent",
            "udp512_loss_free_kpps",
            "tcp1_retransmits",
            "udp64_kpps",
        ),
        *("tcp1_write1k_gbit_s", "udp64_at_50k_lost_percent", "tcp1_gbit_s", "rtt_loaded_p999_us"),
    ]
    assert [metric.label for metric in metrics_of([*names, *names])] == [
        "TCP, 1 stream, Gbit/s",
        "TCP, 2 streams, Gbit/s",
        "TCP, 16 streams, Gbit/s",
        "TCP, 1 stream, writes of 64 B, Gbit/s",
        "TCP, 1 stream, writes of 1 KiB, Gbit/s",
        "TCP, 1 stream, writes of 64 KiB, Gbit/s",
        "UDP 64 B delivered at saturation, kpps",
        "UDP 1,400 B delivered at saturation, kpps",
        "UDP 64 B lost of 50 kpps, %",
        "UDP 64 B lost of 100 kpps, %",
        "UDP 512 B, highest rate without loss, kpps",
        "ping p99, µs",
        "ping p99.9, µs",
        "ping p99.9 beside a TCP stream, µs",
    ]
