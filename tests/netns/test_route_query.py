"""Questions about routes, put to a real kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

import pytest

from flannel_udp.host.route_query import (
    Packet,
    is_local,
    look_up,
    next_hop_devices,
    routes_in_force,
    stream_default_routes,
    stream_routes,
)
from flannel_udp.host.rtnetlink import Refusal, Route, Rtnetlink, open_rtnetlink, parse_route
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host

pytestmark = NEEDS_NETNS

ETH0, ETH1 = 42, 43
TARGET = IPv4Address("203.0.113.7")
T = TypeVar("T")


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        for index, name in ((ETH0, "eth0"), (ETH1, "eth1")):
            made.ip(
                f"link add {name} index {index} type veth peer name far-{name}",
                f"link set far-{name} up",
                f"link set {name} up",
            )
        made.ip("address add 192.0.2.1/24 dev eth0", "address add 198.51.100.1/24 dev eth1")
        yield made


def ask(host: OneHost, question: Callable[[Rtnetlink], T]) -> T:
    def inside() -> T:
        with open_rtnetlink("asking") as netlink:
            return question(netlink)

    return host.call(inside)


def answers(host: OneHost, *packets: Packet) -> list[Route | Refusal]:
    return ask(host, lambda netlink: look_up(netlink, packets))


def test_each_packet_gets_the_entry_that_the_kernel_takes_whatever_its_table(host: OneHost) -> None:
    host.ip(
        "route add 203.0.113.0/24 dev eth0",
        "route add 203.0.113.0/24 via 198.51.100.9 dev eth1 table 1000",
        "rule add fwmark 7 table 1000",
        "rule add from 198.51.100.0/24 table 1000",
    )
    plain, marked, ours = answers(
        host, Packet(TARGET), Packet(TARGET, mark=7), Packet(TARGET, source=IPv4Address("198.51.100.1"))
    )
    assert isinstance(plain, Route)
    assert (plain.table, plain.oif, plain.gateway) == (254, ETH0, None)
    for answer in (marked, ours):
        assert isinstance(answer, Route)
        assert (answer.table, answer.oif, str(answer.gateway)) == (1000, ETH1, "198.51.100.9")


def test_a_packet_that_comes_in_is_asked_for_as_such(host: OneHost) -> None:
    host.ip("route add 203.0.113.0/24 dev eth1")
    asked = Packet(TARGET, source=IPv4Address("192.0.2.55"), iif=ETH0)
    (closed,) = answers(host, asked)
    assert isinstance(closed, Refusal)  # this host does not forward
    host.call(lambda: open("/proc/sys/net/ipv4/conf/all/forwarding", "w").write("1"))  # noqa: SIM115, PTH123
    (answer,) = answers(host, asked)
    assert isinstance(answer, Route)
    assert answer.oif == ETH1


@pytest.mark.parametrize(
    ("kind", "code"),
    [("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES), ("blackhole", errno.EINVAL)],
)
def test_a_route_that_refuses_is_a_refusal_and_others_are_answered_all_the_same(
    host: OneHost, kind: str, code: int
) -> None:
    host.ip(f"route add {kind} 203.0.113.0/25")
    refused, none, fine = answers(
        host, Packet(TARGET), Packet(IPv4Address("8.8.8.8")), Packet(IPv4Address("192.0.2.9"))
    )
    assert isinstance(refused, Refusal)
    assert refused.code == code
    assert isinstance(none, Refusal)
    assert none.code == errno.ENETUNREACH
    assert isinstance(fine, Route)


def test_thousands_of_questions_are_answered_each_at_its_place(host: OneHost) -> None:
    host.ip(*(f"route add 10.{n}.0.0/16 dev eth{n % 2}" for n in range(100)))
    packets = [Packet(IPv4Address((10 << 24) + (n << 16) + i)) for n in range(100) for i in range(30)]
    found = answers(host, *packets)
    assert [route.oif for route in found if isinstance(route, Route)] == [
        (ETH0, ETH1)[n % 2] for n in range(100) for _ in range(30)
    ]


def test_an_address_is_local_while_the_kernel_delivers_packets_to_it(host: OneHost) -> None:
    mine = IPv4Address("192.0.2.1")
    assert ask(host, lambda netlink: is_local(netlink, mine))
    assert not ask(host, lambda netlink: is_local(netlink, IPv4Address("192.0.2.255")))
    host.ip(f"route del local {mine} dev eth0 table local")  # as it is for who is not in the interface's VRF
    assert not ask(host, lambda netlink: is_local(netlink, mine))


def test_a_route_in_force_is_the_first_of_exactly_that_destination(host: OneHost) -> None:
    network = IPv4Network("10.1.0.0/16")
    host.ip(f"route add {network} dev eth0", f"route prepend {network} dev eth1")
    (found,) = ask(host, lambda netlink: routes_in_force(netlink, [network]))
    assert found is not None
    assert found.oif == ETH1
    host.ip("route add 10.1.0.0/24 dev eth0")
    assert ask(host, lambda netlink: routes_in_force(netlink, [network])) == [None]


def test_a_stream_holds_what_was_asked_for_and_nothing_else(host: OneHost) -> None:
    host.ip(
        "route add 10.1.0.0/16 dev eth0 proto 82",
        "route add 10.2.0.0/16 nexthop dev eth0 nexthop dev eth1",
        "route add blackhole 10.3.0.0/16",
        "route add 10.4.0.0/16 dev eth1 table 1000",
    )

    def streamed(**wanted: int) -> list[str]:
        return [
            str(parse_route(body).destination)
            for body in ask(host, lambda netlink: list(stream_routes(netlink, **wanted)))
        ]

    assert streamed(protocol=82) == ["10.1.0.0/16"]
    assert streamed(oif=ETH1, protocol=3) == ["10.2.0.0/16"]
    assert streamed(kind=6) == ["10.3.0.0/16"]
    assert streamed(table=1000) == ["10.4.0.0/16"]
    assert streamed(table=1001) == []
    assert streamed() == ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "192.0.2.0/24", "198.51.100.0/24"]


def test_default_routes_come_first_and_nothing_behind_them_is_read(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ip(
        "route add 0.0.0.0/8 dev eth0",
        "route add default via 192.0.2.9 metric 5",
        "route add default metric 50 nexthop via 198.51.100.9 dev eth1 nexthop via 192.0.2.9 dev eth0",
        *(f"route add 10.{n}.{m}.0/24 dev eth0" for n in range(20) for m in range(100)),
    )
    datagrams = []
    receive = Rtnetlink._receive

    def counted(netlink: Rtnetlink) -> Iterator[tuple[int, int, int, bytes]]:
        datagrams.append(1)
        return receive(netlink)

    monkeypatch.setattr(Rtnetlink, "_receive", counted)
    bodies = ask(host, lambda netlink: list(stream_default_routes(netlink)))
    assert [(parse_route(body).metric, next_hop_devices(body)) for body in bodies] == [
        (5, [ETH0]),
        (50, [ETH1, ETH0]),
    ]
    assert len(datagrams) == 1
