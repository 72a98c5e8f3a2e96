"""What people see of the control socket's documents."""

from __future__ import annotations

import io
import json
import os
import pty
from typing import TextIO, cast

import pytest

from flannel_udp.admin.shapes import Route, Status
from flannel_udp.admin.show import show_json, show_route, show_routes, show_status
from tests.support.status import DUAL, ROUTES, RUNNING, WAITING


def lines_of(status: Status) -> list[str]:
    stream = io.StringIO()
    show_status(status, stream)
    return stream.getvalue().splitlines()


def test_what_concerns_both_families_is_one_line_and_a_device_of_both_is_one_device() -> None:
    assert lines_of(DUAL)[3:8] == [
        "network    10.1.0.0/16 and fd00:1::/48",
        "subnet     10.1.15.0/24 and fd00:1:0:15::/64",
        "public ip  192.0.2.1 and 2001:db8::1",
        "interface  eth0, address 192.0.2.1 and 2001:db8::1, mtu 1500",
        "tunnel     flannel0, address 10.1.15.0/32 and fd00:1:0:15::/128, mtu 1452",
    ]


def test_two_tunnel_devices_are_two_lines() -> None:
    two: Status = {**DUAL, "ipv6_tunnel": {"name": "flannel-v6.1", "address": "fd00:1:0:15::/128", "mtu": 1430}}
    assert [line for line in lines_of(two) if line.startswith("tunnel")] == [
        "tunnel     flannel0, address 10.1.15.0/32, mtu 1452",
        "tunnel     flannel-v6.1, address fd00:1:0:15::/128, mtu 1430",
    ]


def test_ipv6_alone_says_nothing_of_ipv4() -> None:
    alone: Status = {
        **DUAL,
        "network": None,
        "subnet": None,
        "public_ip": None,
        "tunnel": None,
        "interface": {"name": "eth0", "address": None, "mtu": 1500, "ipv6_address": "2001:db8::1"},
    }
    assert lines_of(alone)[3:8] == [
        "network    fd00:1::/48",
        "subnet     fd00:1:0:15::/64",
        "public ip  2001:db8::1",
        "interface  eth0, address 2001:db8::1, mtu 1500",
        "tunnel     flannel0, address fd00:1:0:15::/128, mtu 1452",
    ]


def test_a_running_agent_is_one_page() -> None:
    stream = io.StringIO()
    show_status(RUNNING, stream)
    assert stream.getvalue() == (
        "state      running (ready)\n"
        "agent      flannel-udp 0.1.0, pid 4711, up 1 d 1 h\n"
        "registry   etcd, revision 42\n"
        "network    10.1.0.0/16\n"
        "subnet     10.1.15.0/24\n"
        "public ip  192.0.2.1\n"
        "interface  eth0, address 192.0.2.1, mtu 1500\n"
        "tunnel     flannel0, address 10.1.15.0, mtu 1472\n"
        "backend    udp, port 8285\n"
        "lease      10.1.15.0-24, expires in 23 h 59 min\n"
        "peers      2 (1 heard, 1 idle)\n"
        "offload    tso, udp-gro\n"
        "workers    2\n"
        "           worker 0: 1,234,560 packets out, 0 in\n"
        "           worker 1: 7 packets out, 0 in\n"
        "buffers    receive 4,194,304 bytes, send 212,992 bytes\n"
        "repairs    1,000 link, 2 route\n"
        "rights     CAP_NET_ADMIN, CAP_NET_RAW\n"
        "out        1,234,567 packets, 1,500,000,000 bytes\n"
        "           3 dropped: no_route; 12 s ago: 10.1.15.2 > 10.1.99.1, ICMP, 84 bytes\n"
        "in         0 packets, 0 bytes\n"
        "icmp       1 sent, 2 rate limited, 0 failed\n"
        "calls      1,000 tun reads, 7 udp sends\n"
        "unfinished 5 partial checksums, 0 super packets\n"
        "kernel     5 dropped: datagrams to our UDP sockets: no room to receive, or a wrong checksum (SO_MEMINFO)\n"
    )


def test_the_last_errors_are_told_also_when_they_are_over() -> None:
    errors = {
        "lease": {"text": "no subnet is free", "ago_s": 3.0, "over": False},
        "watch": {"text": "etcd is away", "ago_s": 75.0, "over": True},
    }
    assert lines_of(cast(Status, {**WAITING, "last_errors": errors}))[1:3] == [
        "error      lease, 3 s ago: no subnet is free",
        "error      watch, 1 min 15 s ago, over: etcd is away",
    ]


def test_an_older_agents_status_has_no_last_errors() -> None:
    older = cast(Status, {name: fact for name, fact in RUNNING.items() if name != "last_errors"})
    assert lines_of(older) == lines_of(RUNNING)


def test_what_is_not_known_yet_is_left_out() -> None:
    stream = io.StringIO()
    show_status(WAITING, stream)
    assert stream.getvalue() == (
        "state      waiting for configuration (not ready)\n"
        "agent      flannel-udp 0.1.0, pid 4711, up 5 s\n"
        "registry   etcd\n"
        "peers      0\n"
        "rights     CAP_NET_ADMIN, CAP_NET_RAW\n"
    )


def test_square_brackets_are_no_markup() -> None:
    stream = io.StringIO()
    show_status({**WAITING, "registry": "file:/a[b]"}, stream)
    assert "registry   file:/a[b]\n" in stream.getvalue()


def test_no_offload_is_said() -> None:
    stream = io.StringIO()
    show_status({**RUNNING, "offload": []}, stream)
    assert "offload    none\n" in stream.getvalue()


def test_a_reservation_never_expires() -> None:
    stream = io.StringIO()
    show_status({**RUNNING, "lease": {"key": "10.1.15.0-24", "expires_in_s": None, "reserved": True}}, stream)
    assert "lease      10.1.15.0-24, a reservation, never expires\n" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1.0, "0 s"), (0.9, "0 s"), (59.0, "59 s"), (60.0, "1 min 0 s"), (3600.0, "1 h 0 min"), (86_400.0, "1 d 0 h")],
)
def test_durations_are_two_units_long(seconds: float, text: str) -> None:
    stream = io.StringIO()
    show_status({**WAITING, "uptime_s": seconds}, stream)
    assert f"up {text}\n" in stream.getvalue()


def test_a_route_to_a_peer_reads_like_ip_route_get() -> None:
    route: Route = {
        "address": "10.1.16.5",
        "verdict": "peer",
        "reason": "10.1.16.0/24 is the longest prefix that covers it",
        "subnet": "10.1.16.0/24",
        "public_ip": "192.0.2.2",
        "port": 8285,
        "interface": "eth0",
        "tunnel": "flannel0",
    }
    stream = io.StringIO()
    show_route(route, stream)
    assert stream.getvalue() == (
        "10.1.16.5 via 192.0.2.2:8285 dev eth0 tunnel flannel0 subnet 10.1.16.0/24\n"
        "    10.1.16.0/24 is the longest prefix that covers it\n"
    )


def test_a_route_past_the_tunnel_says_so() -> None:
    route: Route = {
        "address": "10.1.16.5",
        "verdict": "peer",
        "reason": "10.1.16.0/24 is the longest prefix that covers it",
        "subnet": "10.1.16.0/24",
        "public_ip": "192.0.2.2",
        "interface": "eth0",
        "datapath": "direct",
    }
    stream = io.StringIO()
    show_route(route, stream)
    assert stream.getvalue().startswith("10.1.16.5 via 192.0.2.2 dev eth0 direct subnet 10.1.16.0/24\n")


@pytest.mark.parametrize(
    ("route", "line"),
    [
        (
            {"address": "10.1.15.9", "verdict": "own subnet", "subnet": "10.1.15.0/24", "reason": "it is here"},
            "10.1.15.9 own subnet 10.1.15.0/24",
        ),
        ({"address": "10.1.99.9", "verdict": "no route", "reason": "no lease covers it"}, "10.1.99.9 no route"),
        ({"address": "8.8.8.8", "verdict": "outside network", "reason": "not ours"}, "8.8.8.8 outside network"),
    ],
)
def test_a_route_to_nobody_gives_the_verdict_and_why(route: Route, line: str) -> None:
    stream = io.StringIO()
    show_route(route, stream)
    assert stream.getvalue() == f"{line}\n    {route['reason']}\n"


def test_routes_are_lines_that_read_like_ip_route_list() -> None:
    stream = io.StringIO()
    show_routes(ROUTES, stream)
    assert stream.getvalue().splitlines() == [
        "10.1.9.0/24 no route: 192.0.2.9 is not on-link",
        "10.1.15.0/24 own subnet",
        "10.1.16.0/24 via 192.0.2.2:8285 dev eth0 tunnel flannel0",
        "fd00:1:0:16::/64 via 2001:db8::2 dev eth0 direct: nothing comes back",
    ]


def test_no_routes_says_so() -> None:
    stream = io.StringIO()
    show_routes([], stream)
    assert stream.getvalue() == "no routes\n"


def test_json_is_the_document() -> None:
    stream = io.StringIO()
    show_json(RUNNING, stream)
    assert json.loads(stream.getvalue()) == RUNNING
    assert stream.getvalue().endswith("}\n")


def terminal_output(show: object) -> str:
    leader, follower = pty.openpty()
    try:
        with os.fdopen(follower, "w") as stream:
            assert callable(show)
            show(stream)
        return os.read(leader, 65_536).decode()
    finally:
        os.close(leader)


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def show(stream: TextIO) -> None:
        show_status(WAITING, stream)

    assert "\x1b[33mwaiting for configuration (not ready)\x1b[0m" in terminal_output(show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in terminal_output(show)
