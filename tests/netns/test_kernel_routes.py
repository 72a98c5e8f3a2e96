"""A set of kernel routes against a real kernel: differences, foreign routes, what a kernel refuses, ten thousand."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.backend.routes import ROUTE_PROTOCOL, Hop, RouteSet
from flannel_udp.errors import FlannelError
from flannel_udp.host import rtnetlink
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ETH0 = 42
"""eth0's index in these namespaces; its network is 192.0.0.0/16, so that ten thousand hosts are in it."""
A, B, C = (IPv4Network(f"10.1.{n}.0/24") for n in (16, 17, 18))


HIDDEN = f"a route to {A} is not ours: remove it; `ip route show exact {A}` shows it"


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_link("eth0", ETH0)
        made.ip("address add 192.0.2.1/16 dev eth0")
        yield made


def via(gateway: str, source: str | None = None, *, oif: int = ETH0, onlink: bool = False) -> Hop:
    return Hop(IPv4Address(gateway), oif, IPv4Address(source) if source else None, onlink)


def ways(host: OneHost) -> list[str]:
    return [line.split(" dev")[0] for line in host.routes()]


def many(n: int, first_host: str = "192.0.10.0") -> dict[IPv4Network, Hop]:
    """Return routes to n subnets of 10.128.0.0/9, each through a host of its own."""
    first, gateway = int(IPv4Address("10.128.0.0")), int(IPv4Address(first_host))
    return {IPv4Network((first + (i << 8), 24)): Hop(IPv4Address(gateway + i), ETH0) for i in range(n)}


def loaded(host: OneHost, hops: Mapping[IPv4Network, Hop]) -> RouteSet:
    routes = RouteSet()
    host.call(routes.load, hops)
    return routes


class CountingSocket(socket.socket):
    """A real socket whose system calls are counted."""

    sent = received = 0

    def send(self, *arguments: Any) -> int:
        CountingSocket.sent += 1
        return super().send(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        CountingSocket.received += 1
        return super().recv_into(*arguments)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingSocket]:
    monkeypatch.setattr("flannel_udp.host.rtnetlink.socket.socket", CountingSocket)
    CountingSocket.sent = CountingSocket.received = 0
    return CountingSocket


# Differences


def test_a_route_is_flannels_but_for_its_protocol_number(host: OneHost) -> None:
    assert host.call(RouteSet().load, {A: via("192.0.2.2"), B: via("192.0.2.3")}) == 2
    assert host.routes() == [
        f"10.1.16.0/24 via 192.0.2.2 dev eth0 proto {ROUTE_PROTOCOL}",
        f"10.1.17.0/24 via 192.0.2.3 dev eth0 proto {ROUTE_PROTOCOL}",
    ]


def test_a_gateway_may_be_said_to_be_a_neighbour(host: OneHost) -> None:
    routes = loaded(host, {A: via("203.0.113.9", onlink=True)})
    assert host.routes() == [f"10.1.16.0/24 via 203.0.113.9 dev eth0 proto {ROUTE_PROTOCOL} onlink"]
    assert host.call(routes.repair) == 0


def test_what_is_as_flannelds_ipip_makes_it_is_flannelds_at_the_first_look_alone(host: OneHost) -> None:
    routes = RouteSet()
    routes.inherit(ETH0, IPv4Network("10.1.0.0/16"), elsewhere=False)
    host.ip(f"route add {A} via 192.0.2.9 dev eth0 onlink")
    assert (host.call(routes.load, {}), host.routes()) == (1, [])
    again = RouteSet()
    again.inherit(ETH0, IPv4Network("10.1.0.0/16"), elsewhere=False)
    assert host.call(again.load, {}) == 0
    host.ip(f"route add {A} via 192.0.2.9 dev eth0 onlink")  # an administrator, later
    assert (host.call(again.repair), ways(host)) == (0, [f"{A} via 192.0.2.9"])


def test_what_a_killed_run_left_is_kept_changed_or_removed_with_the_fewest_writes(host: OneHost) -> None:
    loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3"), C: via("192.0.2.4")})
    with host.news() as news:
        assert host.call(RouteSet().load, {A: via("192.0.2.2"), B: via("192.0.2.33")}) == 2
        assert sorted(news()) == ["deleted route", "deleted route", "new route"]
    assert [line.split(" dev")[0] for line in host.routes()] == [
        "10.1.16.0/24 via 192.0.2.2",
        "10.1.17.0/24 via 192.0.2.33",
    ]


def test_two_routes_of_ours_to_one_destination_become_one(host: OneHost) -> None:
    loaded(host, {A: via("192.0.2.2")})
    host.ip(f"route append {A} via 192.0.2.3 dev eth0 proto {ROUTE_PROTOCOL}")
    host.ip(f"route add {A} via 192.0.2.2 dev eth0 proto {ROUTE_PROTOCOL} metric 7")
    host.ip(f"route add {A} via 192.0.2.2 dev eth0 proto {ROUTE_PROTOCOL} tos 8")
    routes = loaded(host, {A: via("192.0.2.3")})
    assert host.routes() == [f"10.1.16.0/24 via 192.0.2.3 dev eth0 proto {ROUTE_PROTOCOL}"]
    assert routes.faults == {}


def test_changes_are_applied_and_touch_nothing_else(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    with host.news() as news:
        assert host.call(routes.apply, {A: None, C: via("192.0.2.4")}) == 2
        assert news() == ["deleted route", "new route"]
        assert host.call(routes.apply, {C: via("192.0.2.5")}) == 1
        assert news() == ["new route", "deleted route"]  # in this order: no packet finds none
        assert host.call(routes.apply, {C: via("192.0.2.5"), A: None}) == 0
        assert news() == []
    assert [line.split(" dev")[0] for line in host.routes()] == [
        "10.1.17.0/24 via 192.0.2.3",
        "10.1.18.0/24 via 192.0.2.5",
    ]


def test_repair_writes_nothing_where_all_is_well(host: OneHost, counted: type[CountingSocket]) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3", "192.0.2.1")})
    counted.sent = 0
    with host.news() as news:
        assert host.call(routes.repair) == 0
        assert news() == []
    assert counted.sent == 1  # it asked


def test_repair_puts_back_what_was_removed_or_changed(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3"), C: via("192.0.2.4")})
    before = host.routes()
    host.ip(f"route del {A}", f"route change {B} via 192.0.2.77 dev eth0 proto {ROUTE_PROTOCOL}")
    host.ip(f"route add 10.1.99.0/24 via 192.0.2.9 proto {ROUTE_PROTOCOL}")
    assert host.call(routes.repair) == 3
    assert host.routes() == before


def test_repair_puts_back_what_was_set_and_removed_since_the_last_look(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2")})
    host.call(routes.repair)
    host.call(routes.apply, {A: via("192.0.2.3"), B: via("192.0.2.4")})
    before = host.routes()
    host.ip(f"route del {A}", f"route del {B}")
    assert host.call(routes.repair) == 2
    assert host.routes() == before
    assert [host.call(routes.repair) for _ in range(2)] == [0, 0]


def test_clear_removes_ours_and_nothing_else(host: OneHost) -> None:
    host.ip("route add 10.9.0.0/16 via 192.0.2.9", "route add 10.1.16.0/24 via 192.0.2.9 metric 5")
    host.ip(f"route add 10.1.16.0/24 via 192.0.2.9 proto {ROUTE_PROTOCOL} table 77")
    before = host.routes("table all")
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    assert host.call(routes.clear) == 2
    assert host.routes("table all") == before
    assert host.call(routes.clear) == 0


def test_a_second_set_on_the_host_takes_the_first_ones_routes_for_left_over(host: OneHost) -> None:
    first = loaded(host, {A: via("192.0.2.2")})
    second = loaded(host, {B: via("192.0.2.3")})
    assert host.routes() == [f"10.1.17.0/24 via 192.0.2.3 dev eth0 proto {ROUTE_PROTOCOL}"]
    assert host.call(first.repair) == 2  # and so on: one agent a host
    assert host.call(second.repair) == 2


# Other people's routes


def test_a_foreign_route_is_named_and_stays_and_ours_comes_when_it_goes(host: OneHost) -> None:
    host.ip(f"route add {A} via 192.0.2.9 proto static")
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    assert routes.faults == {
        A: "route 10.1.16.0/24 via 192.0.2.9 dev eth0 (proto static) is not ours: remove it, or give it a metric"
    }
    assert f"{A} via 192.0.2.9 dev eth0 proto static" in host.routes()
    assert len(host.routes()) == 2
    assert host.call(routes.repair) == 0
    assert A in routes.faults

    host.ip(f"route del {A}")
    assert host.call(routes.repair) == 1
    assert routes.faults == {}
    assert len(host.routes(f"proto {ROUTE_PROTOCOL}")) == 2


def test_a_foreign_route_in_place_of_ours_is_found_by_repair(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    host.ip(f"route replace {A} via 192.0.2.9")
    assert host.call(routes.repair) == 0
    assert list(routes.faults) == [A]
    assert "(proto boot) is not ours" in routes.faults[A]
    host.call(routes.apply, {A: None})
    assert routes.faults == {}
    assert f"{A} via 192.0.2.9 dev eth0" in host.routes()


def test_a_foreign_route_in_place_of_ours_is_never_overwritten_by_a_change(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    host.ip(f"route replace {A} via 192.0.2.9")
    host.call(routes.apply, {A: via("192.0.2.22")})
    assert host.routes(str(A)) == [f"{A} via 192.0.2.9 dev eth0"]
    assert "via 192.0.2.9 dev eth0 (proto boot) is not ours" in routes.faults[A]
    host.ip(f"route del {A}")
    assert host.call(routes.repair) == 1
    assert host.routes(str(A)) == [f"{A} via 192.0.2.22 dev eth0 proto {ROUTE_PROTOCOL}"]


def test_a_change_of_a_route_that_is_gone_adds_it(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2")})
    host.ip(f"route del {A}")
    host.call(routes.apply, {A: via("192.0.2.22")})
    assert host.routes() == [f"{A} via 192.0.2.22 dev eth0 proto {ROUTE_PROTOCOL}"]
    assert routes.faults == {}


def test_a_foreign_route_with_a_metric_is_no_fault_and_ours_is_used(host: OneHost) -> None:
    host.ip(f"route add {A} via 192.0.2.9 metric 50")
    routes = loaded(host, {A: via("192.0.2.2")})
    assert routes.faults == {}
    assert host.show("route get 10.1.16.5")[0].startswith("10.1.16.5 via 192.0.2.2 ")
    host.call(routes.clear)
    assert host.routes() == [f"{A} via 192.0.2.9 dev eth0 metric 50"]


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        ("blackhole {}", HIDDEN),
        ("unreachable {}", HIDDEN),
        ("{} dev eth0 proto 201", f"route {A} dev eth0 (proto 201) is not ours: remove it, or give it a metric"),
        (
            "{} nexthop via 192.0.2.7 dev eth0 nexthop via 192.0.2.8 dev eth0",
            "route 10.1.16.0/24 (proto boot) is not ours: remove it, or give it a metric",
        ),
    ],
)
def test_foreign_routes_of_every_kind_are_named(host: OneHost, foreign: str, named: str) -> None:
    host.ip(f"route add {foreign.format(A)}")
    before = host.routes()
    assert loaded(host, {A: via("192.0.2.2")}).faults == {A: named}
    assert host.routes() == before


def test_a_foreign_route_to_a_part_does_not_hide_who_has_the_whole(host: OneHost) -> None:
    host.ip("route add 10.1.16.0/25 via 192.0.2.8", f"route add {A} via 192.0.2.9")
    assert loaded(host, {A: via("192.0.2.2")}).faults[A].startswith("a route to 10.1.16.0/24 is not ours: ")


# What the kernel refuses


def test_a_gateway_off_link_is_named_and_the_others_stand(host: OneHost) -> None:
    routes = loaded(host, {A: via("203.0.113.9"), B: via("192.0.2.3")})
    assert routes.faults == {
        A: "no route to 10.1.16.0/24 via 203.0.113.9 dev eth0: "
        "203.0.113.9 is not on-link, that is in a network of eth0's own"
    }
    assert host.routes() == [f"{B} via 192.0.2.3 dev eth0 proto {ROUTE_PROTOCOL}"]
    host.ip("address add 203.0.113.1/24 dev eth0")
    assert host.call(routes.repair) == 1
    assert routes.faults == {}


def test_a_peer_that_moved_off_link_loses_its_former_route(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2")})
    host.call(routes.apply, {A: via("203.0.113.9")})
    assert list(routes.faults) == [A]
    assert host.routes() == []


def test_a_source_that_the_host_does_not_have_is_named(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2", "10.1.15.0")})
    assert routes.faults == {A: "no route to 10.1.16.0/24 via 192.0.2.2 dev eth0: Invalid prefsrc address"}


def test_an_interface_that_is_down_is_named_until_it_is_up(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("203.0.113.9", onlink=True)})
    host.ip("link set eth0 down")
    assert host.call(routes.repair) == 0
    assert set(routes.faults.values()) == {
        "no route to 10.1.16.0/24 via 192.0.2.2 dev eth0: eth0 is down",
        "no route to 10.1.17.0/24 via 203.0.113.9 dev eth0: eth0 is down",
    }
    host.ip("link set eth0 up")
    assert host.call(routes.repair) == 2
    assert routes.faults == {}


def test_an_interface_that_was_deleted_meanwhile_is_named(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    host.ip("link del eth0")
    host.call(routes.apply, {A: None, B: via("192.0.2.4")})
    assert routes.faults == {B: "no route to 10.1.17.0/24 via 192.0.2.4 dev number 42: that interface is gone"}
    host.call(routes.clear)
    assert routes.faults == {}


def test_without_capability_it_is_one_clear_line(host: OneHost) -> None:
    code = (
        "from ipaddress import *; from flannel_udp.errors import FlannelError\n"
        "from flannel_udp.backend.routes import *\n"
        f"try: RouteSet().load({{IPv4Network('{A}'): Hop(IPv4Address('192.0.2.2'), {ETH0})}})\n"
        "except FlannelError as error: print(error)\n"
    )
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(
        ["ip", "netns", "exec", host.name, *bare], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == (
        "setting routes: needs CAP_NET_ADMIN in this network namespace: run as root or grant the capability\n"
    )
    assert host.routes() == []


def test_a_change_that_fails_midway_is_made_by_the_next_repair(host: OneHost) -> None:
    routes = loaded(host, {A: via("192.0.2.2"), B: via("192.0.2.3")})
    host.call(routes.repair)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(FlannelError, match="setting routes: Too many open files"):
            routes.apply({A: via("192.0.2.9"), B: None, C: via("192.0.2.4")})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert host.call(routes.repair) == 3
    assert ways(host) == ["10.1.16.0/24 via 192.0.2.9", "10.1.18.0/24 via 192.0.2.4"]


def test_a_namespace_without_any_route_is_an_empty_table() -> None:
    with one_host() as bare:
        assert bare.call(RouteSet().repair) == 0


# Ten thousand


def test_ten_thousand_routes_take_a_hundredth_as_many_system_calls(
    host: OneHost, counted: type[CountingSocket]
) -> None:
    hops = many(10_000)
    routes = RouteSet()
    assert host.call(routes.load, hops) == 10_000
    assert routes.faults == {}
    assert counted.sent <= 102
    assert counted.received <= 110
    assert len(host.routes(f"proto {ROUTE_PROTOCOL}")) == 10_000

    counted.sent = 0
    assert host.call(routes.apply, {IPv4Network("10.128.7.0/24"): via("192.0.2.7")}) == 1
    assert counted.sent == 1
    assert host.call(routes.clear) == 10_000
    assert host.routes() == []


def test_no_answer_is_lost_where_thousands_are_refused(host: OneHost) -> None:
    host.ip(*[f"route add {subnet} via 192.0.2.9 proto bgp" for subnet in many(1_000)])
    routes = loaded(host, {**many(2_000, "203.0.10.0"), **many(1_000)})
    assert len(routes.faults) == 2_000
    assert sum("(proto bgp) is not ours" in text for text in routes.faults.values()) == 1_000
    assert sum("is not on-link" in text for text in routes.faults.values()) == 1_000


def test_a_look_does_not_read_the_routes_of_others(
    host: OneHost, counted: type[CountingSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ip(*[f"route add {subnet} via 192.0.2.9 proto bgp" for subnet in many(3_000)])
    routes = loaded(host, {A: via("192.0.2.2")})
    counted.received = 0
    assert host.call(routes.repair) == 0
    assert counted.received <= 2

    monkeypatch.setattr(rtnetlink, "_NETLINK_GET_STRICT_CHK", 9_999)  # as before Linux 4.20
    assert host.call(routes.repair) == 0
    assert counted.received > 5
    host.ip(f"route del {A}")
    assert host.call(routes.repair) == 1
